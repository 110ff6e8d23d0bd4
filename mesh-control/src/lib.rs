//! The control plane: from the operator's objects to what each proxy is told.
//!
//! `source` reads objects, `index` keeps them, `translate` works out what a proxy must do, `xds` tells it.

pub mod source;
pub mod validate;
pub mod xds;
