//! The client's side of both ADS protocols, without IO: which requests a response or a change of interest calls for.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::model::Name;
use mesh_api::xds::TypeUrl;
use mesh_api::xds::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use mesh_api::xds::envoy::config::core::v3::Node;
use mesh_api::xds::google::rpc::Status;

/// Types that are asked for, in the order in which a stream begins.
pub const TYPES: [TypeUrl; 5] =
    [TypeUrl::Cluster, TypeUrl::Listener, TypeUrl::Endpoints, TypeUrl::Route, TypeUrl::Secret];

/// gRPC's `INVALID_ARGUMENT`, as Envoy says in a NACK.
const INVALID_ARGUMENT: i32 = 3;
/// Longest text of a NACK.
const MAX_DETAIL: usize = 8 << 10;

fn detail(refused: &[String]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    let mut message = refused.join("; ");
    if let Some((cut, _)) = message.char_indices().find(|(i, _)| *i >= MAX_DETAIL) {
        message.truncate(cut);
    }
    Some(Status { code: INVALID_ARGUMENT, message, details: vec![] })
}

/// One type on one delta stream.
#[derive(Debug, Default)]
struct DeltaType {
    begun: bool,
    subscribed: BTreeSet<Name>,
}

/// A delta stream.
#[derive(Debug, Default)]
pub struct Delta {
    types: BTreeMap<TypeUrl, DeltaType>,
    node_sent: bool,
}

impl Delta {
    /// Interest in a type; `None`: in all there is. The request that tells of it, if the server does not know yet.
    pub fn interest(
        &mut self,
        ty: TypeUrl,
        wanted: Option<&[Name]>,
        node: &Node,
        known: impl Iterator<Item = (String, String)>,
    ) -> Option<DeltaDiscoveryRequest> {
        let state = self.types.entry(ty).or_default();
        let wanted: BTreeSet<Name> = wanted.unwrap_or_default().iter().cloned().collect();
        let wildcard = matches!(ty, TypeUrl::Cluster | TypeUrl::Listener);
        let subscribe: Vec<String> = wanted.difference(&state.subscribed).map(ToString::to_string).collect();
        let unsubscribe: Vec<String> = state.subscribed.difference(&wanted).map(ToString::to_string).collect();
        // A request without names would be a wildcard, so a type without interest is not begun at all.
        let begin = !state.begun && (wildcard || !subscribe.is_empty());
        if !begin && subscribe.is_empty() && unsubscribe.is_empty() {
            return None;
        }
        let first = !std::mem::replace(&mut state.begun, true);
        state.subscribed = wanted;
        let initial =
            if first { known.filter(|(n, _)| wildcard || subscribe.contains(n)).collect() } else { Default::default() };
        Some(DeltaDiscoveryRequest {
            node: (!std::mem::replace(&mut self.node_sent, true)).then(|| node.clone()),
            type_url: ty.as_str().to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            initial_resource_versions: initial,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// The answer to a response.
    pub fn acknowledge(&self, ty: TypeUrl, nonce: &str, refused: &[String]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: ty.as_str().to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: detail(refused),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// One type on one state-of-the-world stream.
#[derive(Debug, Default)]
struct SotwType {
    begun: bool,
    names: Vec<Name>,
    version: String,
    nonce: String,
}

/// A state-of-the-world stream. Versions outlive streams.
#[derive(Debug, Default)]
pub struct Sotw {
    types: BTreeMap<TypeUrl, SotwType>,
    node_sent: bool,
}

impl Sotw {
    /// A new stream after a lost one: accepted versions are still true, nonces are not.
    pub fn reconnected(&mut self) {
        self.node_sent = false;
        for state in self.types.values_mut() {
            state.begun = false;
            state.nonce.clear();
        }
    }

    fn request(&mut self, ty: TypeUrl, node: &Node, refused: &[String]) -> DiscoveryRequest {
        let node = (!std::mem::replace(&mut self.node_sent, true)).then(|| node.clone());
        let state = self.types.entry(ty).or_default();
        DiscoveryRequest {
            version_info: state.version.clone(),
            node,
            resource_names: state.names.iter().map(ToString::to_string).collect(),
            type_url: ty.as_str().to_owned(),
            response_nonce: state.nonce.clone(),
            error_detail: detail(refused),
            ..DiscoveryRequest::default()
        }
    }

    /// Interest in a type; `None`: in all there is. The request that tells of it, if the server does not know yet.
    pub fn interest(&mut self, ty: TypeUrl, wanted: Option<&[Name]>, node: &Node) -> Option<DiscoveryRequest> {
        let state = self.types.entry(ty).or_default();
        let wildcard = wanted.is_none();
        let wanted = wanted.unwrap_or_default();
        if state.begun && state.names == wanted {
            return None;
        }
        if !state.begun && !wildcard && wanted.is_empty() {
            return None;
        }
        state.begun = true;
        state.names = wanted.to_vec();
        Some(self.request(ty, node, &[]))
    }

    /// The answer to a response.
    pub fn acknowledge(
        &mut self,
        ty: TypeUrl,
        version: &str,
        nonce: &str,
        refused: &[String],
        node: &Node,
    ) -> DiscoveryRequest {
        let state = self.types.entry(ty).or_default();
        state.nonce = nonce.to_owned();
        if refused.is_empty() {
            state.version = version.to_owned();
        }
        self.request(ty, node, refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<Name> {
        all.iter().map(|n| Name::from(*n)).collect()
    }

    #[test]
    fn delta_begins_with_versions_and_tells_differences() {
        let node = Node { id: "n".to_owned(), ..Node::default() };
        let mut delta = Delta::default();
        let known = || [("c".to_owned(), "1".to_owned())].into_iter();
        let first = delta.interest(TypeUrl::Cluster, None, &node, known()).unwrap();
        assert_eq!((first.initial_resource_versions["c"].as_str(), first.node.is_some()), ("1", true));
        assert!(first.resource_names_subscribe.is_empty());
        assert!(delta.interest(TypeUrl::Cluster, None, &node, known()).is_none());
        let none = std::iter::empty;
        assert!(delta.interest(TypeUrl::Endpoints, Some(&[]), &node, none()).is_none(), "no names is no wildcard");
        let two = delta.interest(TypeUrl::Endpoints, Some(&names(&["a", "b"])), &node, none()).unwrap();
        assert_eq!((two.resource_names_subscribe.len(), two.node), (2, None));
        let change = delta.interest(TypeUrl::Endpoints, Some(&names(&["b", "c"])), &node, none()).unwrap();
        assert_eq!(change.resource_names_subscribe, ["c"]);
        assert_eq!(change.resource_names_unsubscribe, ["a"]);
        let nack = delta.acknowledge(TypeUrl::Cluster, "7", &["c: bad".to_owned()]);
        assert_eq!((nack.response_nonce.as_str(), nack.error_detail.unwrap().message.as_str()), ("7", "c: bad"));
    }

    #[test]
    fn sotw_keeps_the_accepted_version_in_a_nack_and_over_streams() {
        let node = Node::default();
        let mut sotw = Sotw::default();
        assert!(sotw.interest(TypeUrl::Listener, None, &node).is_some());
        let ack = sotw.acknowledge(TypeUrl::Listener, "1", "a", &[], &node);
        assert_eq!((ack.version_info.as_str(), ack.response_nonce.as_str()), ("1", "a"));
        let nack = sotw.acknowledge(TypeUrl::Listener, "2", "b", &["x".to_owned()], &node);
        assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "b"));
        sotw.reconnected();
        let again = sotw.interest(TypeUrl::Listener, None, &node).unwrap();
        assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("1", ""));
        assert!(again.node.is_some());
    }
}
