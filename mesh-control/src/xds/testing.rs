//! A small world for the protocol's tests: resources by type and name, and requests in one line.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::xds::{
    TypeUrl,
    discovery::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

use super::{
    encoded::{Encoded, Name, Need},
    push::Response,
    subscription::Resources,
};

/// Resources by type and name.
#[derive(Debug, Clone, Default)]
pub(crate) struct World(pub(crate) BTreeMap<(TypeUrl, String), Arc<Encoded>>);

impl World {
    pub(crate) fn set(&mut self, ty: TypeUrl, name: &str, body: &str) -> &mut Self {
        self.0.insert((ty, name.to_owned()), Encoded::new(ty, name, body.as_bytes(), vec![]));
        self
    }
    /// A cluster that needs endpoints of its own name.
    pub(crate) fn eds(&mut self, name: &str, body: &str) -> &mut Self {
        let needs = vec![Need { ty: TypeUrl::Endpoints, name: name.into() }];
        self.0
            .insert((TypeUrl::Cluster, name.to_owned()), Encoded::new(TypeUrl::Cluster, name, body.as_bytes(), needs));
        self
    }
    pub(crate) fn del(&mut self, ty: TypeUrl, name: &str) -> &mut Self {
        self.0.remove(&(ty, name.to_owned()));
        self
    }
    pub(crate) fn version(&self, ty: TypeUrl, name: &str) -> String {
        self.0[&(ty, name.to_owned())].version()
    }
}

impl Resources for World {
    fn names(&self, ty: TypeUrl) -> Arc<[Name]> {
        if !matches!(ty, TypeUrl::Cluster | TypeUrl::Listener) {
            return Arc::new([]);
        }
        self.0.keys().filter(|(t, _)| *t == ty).map(|(_, n)| n.as_str().into()).collect()
    }
    fn get(&self, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>> {
        self.0.get(&(ty, name.to_owned())).cloned()
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

pub(crate) fn delta(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..Default::default()
    }
}

pub(crate) fn returning(subscribe: &[&str], versions: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    let initial_resource_versions = versions.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    DeltaDiscoveryRequest { initial_resource_versions, ..delta(subscribe, &[]) }
}

pub(crate) fn delta_ack(r: &Response) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: r.nonce.clone(), ..Default::default() }
}

pub(crate) fn delta_nack(r: &Response, why: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { error_detail: Some(error(why)), ..delta_ack(r) }
}

pub(crate) fn error(why: &str) -> Status {
    Status { code: 13, message: why.to_owned(), details: vec![] }
}

pub(crate) fn sotw(names: &[&str], last: Option<&Response>) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: owned(names),
        version_info: last.map(|r| r.version.clone()).unwrap_or_default(),
        response_nonce: last.map(|r| r.nonce.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

/// Names of the resources in a response, sorted.
pub(crate) fn names(r: &Response) -> Vec<&str> {
    let mut names: Vec<&str> = r.resources.iter().map(|e| &**e.name()).collect();
    names.sort_unstable();
    names
}

/// Names removed by a response, sorted.
pub(crate) fn removed(r: &Response) -> Vec<&str> {
    let mut names: Vec<&str> = r.removed.iter().map(|n| &**n).collect();
    names.sort_unstable();
    names
}
