//! Envoy's xDS: the ADS client, its state machines and the conversion of protos into the plain model. The only folder
//! (with `bootstrap.rs`) that names Envoy's protos. Knows no hyper.

pub mod ads;
mod apply;
pub mod convert;
pub mod node;
pub mod protocol;
pub mod sds;
pub mod services;
pub mod store;
pub mod stream;
pub mod subscriptions;
