//! Indexes from manifests, for tests.

use std::{path::Path, sync::Arc};

use mesh_api::{
    model::Locality,
    node::{NodeId, NodeMetadata},
};

use super::{ChangeSet, Index, IndexWriter, Options};
use crate::{
    source::{
        manifest,
        object::{Object, ObjectChange},
    },
    view::ProxyView,
};

/// The objects of a manifest, all of which must be good.
pub(crate) fn objects(yaml: &str) -> Vec<Arc<Object>> {
    manifest::read(Path::new("test.yaml"), yaml)
        .into_iter()
        .filter(|r| r.key.is_some() || !r.findings.is_empty())
        .map(|r| Arc::new(r.object.unwrap_or_else(|| panic!("{:?}: {:?}", r.key, r.findings))))
        .collect()
}

/// A writer with what a manifest says.
pub(crate) fn writer(yaml: &str) -> IndexWriter {
    let mut writer = IndexWriter::new(Options::default());
    apply(&mut writer, yaml);
    writer
}

/// Applies a manifest.
pub(crate) fn apply(writer: &mut IndexWriter, yaml: &str) -> ChangeSet {
    writer.apply(objects(yaml).into_iter().map(ObjectChange::Upsert).collect())
}

/// A captured sidecar at an address.
pub(crate) fn sidecar(index: &Index, namespace: &str, ip: &str) -> ProxyView {
    proxy(index, &format!("sidecar~{ip}~web.{namespace}~{namespace}.svc.cluster.local"), NodeMetadata::default(), "")
}

/// A gateway.
pub(crate) fn gateway(index: &Index, namespace: &str) -> ProxyView {
    proxy(index, &format!("router~10.9.9.9~gw.{namespace}~{namespace}.svc.cluster.local"), NodeMetadata::default(), "")
}

/// Any proxy, at a locality.
pub(crate) fn proxy(index: &Index, id: &str, metadata: NodeMetadata, locality: &str) -> ProxyView {
    let id: NodeId = id.parse().unwrap();
    index.view(ProxyView::new(&id, metadata, Locality::parse(locality), "envoy", "1.40.0"))
}
