//! VirtualServices with what every lookup needs worked out once: whole hosts, whole gateway names, visibility.

use std::sync::Arc;

use mesh_api::{crd::networking, meshconfig::MeshConfig, model::Name, names::complete_host};

use super::visibility::ExportTo;
use crate::source::object::{Object, Spec};

/// The reserved gateway name that means all sidecars.
pub const MESH_GATEWAY: &str = "mesh";

/// A VirtualService.
#[derive(Debug, Clone)]
pub struct VirtualServiceEntry {
    /// The object; where it stands in a file may be out of date.
    pub object: Arc<Object>,
    /// Its content.
    pub spec: Arc<networking::VirtualService>,
    /// Fully qualified hosts, lower case. Empty for delegates.
    pub hosts: Vec<Name>,
    /// `namespace/name`, or `mesh`.
    pub gateways: Vec<Name>,
    /// Who sees it.
    pub export: ExportTo,
}

impl PartialEq for VirtualServiceEntry {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&self.object, &other.object);
        // Not the object's spec: what an Ingress comes to depends on the ports of Services as well.
        (&a.key, &a.meta, &self.spec) == (&b.key, &b.meta, &other.spec)
            && (&self.hosts, &self.gateways, &self.export) == (&other.hosts, &other.gateways, &other.export)
    }
}

impl VirtualServiceEntry {
    pub(super) fn new(object: &Arc<Object>, mesh: &MeshConfig, domain: &str) -> Option<Self> {
        let Spec::VirtualService(spec) = &object.spec else { return None };
        let namespace = &*object.key.namespace;
        let gateways = if spec.gateways.is_empty() {
            vec![MESH_GATEWAY.into()]
        } else {
            spec.gateways.iter().map(|g| gateway_name(g, namespace, domain)).collect()
        };
        Some(Self {
            hosts: spec.hosts.iter().map(|h| complete_host(h, namespace, domain).to_ascii_lowercase().into()).collect(),
            gateways,
            export: ExportTo::parse(
                spec.export_to.iter().map(String::as_str),
                &mesh.default_virtual_service_export_to,
                namespace,
            ),
            spec: spec.clone(),
            object: object.clone(),
        })
    }

    /// Namespace of the object.
    pub fn namespace(&self) -> &Name {
        &self.object.key.namespace
    }

    /// Applies to sidecars.
    pub fn is_mesh(&self) -> bool {
        self.gateways.iter().any(|g| &**g == MESH_GATEWAY)
    }

    /// Applies to this gateway (`namespace/name`).
    pub fn applies_to(&self, gateway: &str) -> bool {
        self.gateways.iter().any(|g| &**g == gateway)
    }
}

/// `namespace/name` of a gateway reference; `name.namespace...` is the old form.
pub fn gateway_name(reference: &str, namespace: &str, domain: &str) -> Name {
    if reference == MESH_GATEWAY || reference.contains('/') {
        return match reference.strip_prefix("./") {
            Some(name) => format!("{namespace}/{name}").into(),
            None => reference.into(),
        };
    }
    let old = reference.strip_suffix(domain).and_then(|r| r.strip_suffix(".svc.")).unwrap_or(reference);
    match old.split_once('.') {
        Some((name, ns)) => format!("{ns}/{name}").into(),
        None => format!("{namespace}/{reference}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateway_references() {
        let name = |r| gateway_name(r, "shop", "cluster.local").to_string();
        assert_eq!(name("mesh"), "mesh");
        assert_eq!(name("gw"), "shop/gw");
        assert_eq!(name("infra/gw"), "infra/gw");
        assert_eq!(name("./gw"), "shop/gw");
        assert_eq!(name("gw.infra.svc.cluster.local"), "infra/gw");
    }
}
