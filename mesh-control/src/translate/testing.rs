//! A small world from YAML for tests of translation, read as a folder is.

use std::{path::Path, sync::Arc};

use mesh_api::{
    labels::Labels,
    model::{Locality, Name},
    node::{NodeId, NodeMetadata, NodeType},
};

use super::{Request, Scope, Translator};
use crate::{
    index::{ChangeSet, Index, IndexWriter, Options},
    source::{manifest, object::ObjectChange},
    view::ProxyView,
};

/// An index with a translator.
pub(crate) struct World {
    writer: IndexWriter,
    pub(crate) translator: Translator,
}

impl World {
    /// From manifests, every one of which must be accepted.
    pub(crate) fn new(yaml: &str) -> Self {
        Self::with_options(yaml, Options::default())
    }

    /// The same, of a control plane with these options.
    pub(crate) fn with_options(yaml: &str, options: Options) -> Self {
        let mut world = Self { writer: IndexWriter::new(options), translator: Translator::new() };
        world.apply(yaml);
        world
    }

    /// Adds or changes objects.
    pub(crate) fn apply(&mut self, yaml: &str) -> ChangeSet {
        let mut changes = Vec::new();
        for reading in manifest::read(Path::new("test.yaml"), yaml) {
            assert!(!reading.refused(), "{:?}", reading.findings);
            changes.extend(reading.object.map(|o| ObjectChange::Upsert(Arc::new(o))));
        }
        self.change(changes)
    }

    /// Applies changes.
    pub(crate) fn change(&mut self, changes: Vec<ObjectChange>) -> ChangeSet {
        self.writer.apply(changes)
    }

    pub(crate) fn index(&self) -> &Index {
        self.writer.index()
    }

    pub(crate) fn proxy(&self, kind: NodeType, ip: &str, namespace: &str, metadata: NodeMetadata) -> ProxyView {
        let id = NodeId {
            kind,
            ip: ip.to_owned(),
            name: "web-1".to_owned(),
            namespace: namespace.to_owned(),
            domain: format!("{namespace}.svc.cluster.local"),
        };
        self.index().view(ProxyView::new(&id, metadata, Locality::default(), "mesh-proxy", "1"))
    }

    fn metadata(namespace: &str, labels: &[(&str, &str)]) -> NodeMetadata {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NodeMetadata { namespace: namespace.to_owned(), labels, ..NodeMetadata::default() }
    }

    /// A captured sidecar.
    pub(crate) fn sidecar(&self, ip: &str, namespace: &str, labels: &[(&str, &str)]) -> ProxyView {
        self.proxy(NodeType::Sidecar, ip, namespace, Self::metadata(namespace, labels))
    }

    /// A sidecar that nothing is redirected to.
    pub(crate) fn explicit(&self, ip: &str, namespace: &str, labels: &[(&str, &str)]) -> ProxyView {
        let metadata = NodeMetadata { interception_mode: "NONE".into(), ..Self::metadata(namespace, labels) };
        self.proxy(NodeType::Sidecar, ip, namespace, metadata)
    }

    /// A gateway.
    pub(crate) fn gateway(&self, ip: &str, namespace: &str, labels: &[(&str, &str)]) -> ProxyView {
        self.proxy(NodeType::Router, ip, namespace, Self::metadata(namespace, labels))
    }

    /// Calls with what makers of resources are asked with.
    pub(crate) fn ask<R>(&self, view: &ProxyView, f: impl FnOnce(&Request<'_>) -> R) -> R {
        let scope: Arc<Scope> = self.translator.scope(self.index(), view);
        f(&Request { index: self.index(), view, scope: &scope })
    }
}

/// Names as text.
pub(crate) fn texts(names: &[Name]) -> Vec<&str> {
    names.iter().map(|n| &**n).collect()
}
