//! Policies that are attached by selector: which of them hold for a workload.
//!
//! Owns selection and the order of levels (mesh, namespace, workload). Must not know what a policy means, save the
//! mutual TLS mode of PeerAuthentication, which clients need as well as servers.

use std::sync::Arc;

use mesh_api::{
    crd::security::MtlsMode,
    labels::{Labels, selects},
};

use super::Index;
use crate::source::object::{Kind, Object, Spec};

/// The selector of a policy; `None`: everything in its namespace (in the root namespace: the mesh).
pub fn selector(object: &Object) -> Option<&Labels> {
    let selector = match &object.spec {
        Spec::PeerAuthentication(p) => &p.selector,
        Spec::RequestAuthentication(p) => &p.selector,
        Spec::AuthorizationPolicy(p) => &p.selector,
        Spec::Telemetry(p) => &p.selector,
        Spec::WasmPlugin(p) => &p.selector,
        Spec::TrafficExtension(p) => &p.selector,
        Spec::ProxyConfig(p) => &p.selector,
        _ => &None,
    };
    selector.as_ref().map(|s| &s.match_labels).filter(|l| !l.is_empty())
}

/// Whether a policy is attached to objects by reference instead of by selector.
pub fn is_targeted(object: &Object) -> bool {
    match &object.spec {
        Spec::RequestAuthentication(p) => p.target_ref.is_some() || !p.target_refs.is_empty(),
        Spec::AuthorizationPolicy(p) => p.target_ref.is_some() || !p.target_refs.is_empty(),
        Spec::Telemetry(p) => p.target_ref.is_some() || !p.target_refs.is_empty(),
        Spec::WasmPlugin(p) => p.target_ref.is_some() || !p.target_refs.is_empty(),
        Spec::TrafficExtension(p) => !p.target_refs.is_empty(),
        _ => false,
    }
}

/// Mutual TLS that a workload's PeerAuthentication asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerAuthn {
    /// Ports without an own entry. Never `Unset`.
    pub mode: Mtls,
    /// By port of the workload.
    pub ports: std::collections::BTreeMap<u16, Mtls>,
}

impl PeerAuthn {
    /// For a port of the workload.
    pub fn port(&self, port: u16) -> Mtls {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// Mutual TLS of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mtls {
    /// Cleartext only.
    Disable,
    /// Both.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl Mtls {
    fn of(mode: MtlsMode) -> Option<Self> {
        match mode {
            MtlsMode::Unset => None,
            MtlsMode::Disable => Some(Self::Disable),
            MtlsMode::Permissive => Some(Self::Permissive),
            MtlsMode::Strict => Some(Self::Strict),
        }
    }
}

impl Index {
    /// Policies of a kind that hold for a workload by selector: the root namespace's, then the namespace's own, each
    /// oldest first.
    pub fn policies(&self, kind: Kind, namespace: &str, labels: &Labels) -> Vec<&Arc<Object>> {
        let root = self.mesh().root_namespace();
        let mut out = self.selected(kind, root, labels);
        if namespace != root {
            out.extend(self.selected(kind, namespace, labels));
        }
        out
    }

    fn selected(&self, kind: Kind, namespace: &str, labels: &Labels) -> Vec<&Arc<Object>> {
        let mut out: Vec<_> = self
            .objects_in(kind, namespace)
            .filter(|o| !is_targeted(o) && selector(o).is_none_or(|s| selects(s, labels)))
            .collect();
        out.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
        out
    }

    /// What PeerAuthentication asks of a workload.
    pub fn peer_authn(&self, namespace: &str, labels: &Labels) -> PeerAuthn {
        let root = self.mesh().root_namespace();
        let mut out = PeerAuthn { mode: self.namespace_mtls(namespace).unwrap_or_default(), ..PeerAuthn::default() };
        if namespace == root {
            return out;
        }
        // Of several that select the workload the oldest counts.
        let workload = self.selected(Kind::PeerAuthentication, namespace, labels);
        if let Some(policy) = workload.into_iter().find(|o| selector(o).is_some())
            && let Spec::PeerAuthentication(policy) = &policy.spec
        {
            if let Some(mode) = policy.mtls.as_ref().and_then(|m| Mtls::of(m.mode)) {
                out.mode = mode;
            }
            let mode = out.mode;
            out.ports = policy.port_level_mtls.iter().map(|(p, m)| (*p, Mtls::of(m.mode).unwrap_or(mode))).collect();
        }
        out
    }

    /// The PeerAuthentications that say so: the mesh's, the namespace's and the workload's, as far as each is there.
    pub fn peer_authn_policies(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Object>> {
        let root = self.mesh().root_namespace();
        let own = if namespace == root { None } else { self.namespace_peer_authn(namespace) };
        let selected = || self.selected(Kind::PeerAuthentication, namespace, labels).into_iter();
        let workload = if namespace == root { None } else { selected().find(|o| selector(o).is_some()) };
        [self.namespace_peer_authn(root), own, workload].into_iter().flatten().collect()
    }

    /// The oldest of a namespace that selects everything there.
    fn namespace_peer_authn(&self, namespace: &str) -> Option<&Arc<Object>> {
        let policies = self.objects_in(Kind::PeerAuthentication, namespace).filter(|o| selector(o).is_none());
        policies.min_by(|a, b| a.age_order().cmp(&b.age_order()))
    }

    /// The mode of a namespace as a whole: its own policy's, else the mesh's; `None` when there is neither.
    pub fn namespace_mtls(&self, namespace: &str) -> Option<Mtls> {
        let level = |namespace: &str| match &self.namespace_peer_authn(namespace)?.spec {
            Spec::PeerAuthentication(p) => p.mtls.as_ref().and_then(|m| Mtls::of(m.mode)),
            _ => None,
        };
        let root = self.mesh().root_namespace();
        let own = if namespace == root { None } else { level(namespace) };
        own.or_else(|| level(root))
    }

    /// Telemetry that holds for a workload: of the mesh, the namespace and the workload, the oldest each.
    pub fn telemetry(&self, namespace: &str, labels: &Labels) -> Vec<&Arc<Object>> {
        let root = self.mesh().root_namespace();
        let oldest = |ns: &str, with_selector: bool| {
            self.selected(Kind::Telemetry, ns, labels).into_iter().find(|o| selector(o).is_some() == with_selector)
        };
        let mut out: Vec<_> = oldest(root, false).into_iter().collect();
        if namespace != root {
            out.extend(oldest(namespace, false));
        }
        out.extend(oldest(namespace, true));
        out
    }
}
