//! What the planes share: names, identities, the plain model of a proxy's configuration, the operator's objects,
//! the xDS facade and the JSON shapes of the admin servers.
//!
//! Knows no IO and no runtime. `crd` (feature) is for the control plane and the CLI, `xds` (feature) for both planes.

#[cfg(feature = "xds")]
pub mod ca;
#[cfg(feature = "xds")]
pub mod cel;
#[cfg(feature = "crd")]
pub mod crd;
pub mod identity;
pub mod labels;
#[cfg(feature = "crd")]
pub mod meshconfig;
pub mod model;
pub mod names;
pub mod node;
#[cfg(feature = "xds")]
pub mod xds;
#[cfg(any(feature = "crd", feature = "xds"))]
pub mod yaml;
