//! Installation on Kubernetes: what is wanted (`operator`), the objects that follow (`render`), and the cluster's side of
//! it (`cluster`, `apply`, `wait`, `remove`).
//!
//! Objects come from the charts of `deploy/charts`, which Helm renders to the same. They are applied by the server with
//! field manager `meshctl`, so what others set in them stays, and a second run changes nothing.

pub mod apply;
#[cfg(test)]
mod crds;
pub mod operator;
pub mod remove;
pub mod render;
#[cfg(test)]
mod tests;
pub mod wait;
