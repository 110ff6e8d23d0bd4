//! WasmPlugins and TrafficExtensions, none of which run: which of them refuse what they are for.
//!
//! Owns what `failStrategy` means while nothing runs. Must not know how a refusal is told to a proxy.

use std::sync::Arc;

use mesh_api::crd::{
    TargetRef,
    extensions::{ExtensionPhase, FailStrategy, TrafficExtension, TrafficSelector, WasmPlugin},
};

use crate::source::object::{Kind, Object, Spec};

/// Kinds of extensions.
pub const KINDS: [Kind; 2] = [Kind::WasmPlugin, Kind::TrafficExtension];

/// An extension that refuses, because it does not run and fails closed.
#[derive(Debug, Clone, Copy)]
pub struct Refusal<'a> {
    /// Of which traffic; empty: of all.
    pub matches: &'a [TrafficSelector],
    targets: (&'a Option<TargetRef>, &'a [TargetRef]),
}

impl<'a> Refusal<'a> {
    /// What an object refuses; `None`: nothing.
    pub fn of(object: &'a Object) -> Option<Self> {
        match &object.spec {
            Spec::WasmPlugin(p) if plugin_fails_closed(p) => {
                Some(Self { matches: &p.matches, targets: (&p.target_ref, &p.target_refs) })
            }
            Spec::TrafficExtension(e) if extension_fails_closed(e) => {
                Some(Self { matches: &e.matches, targets: (&None, &e.target_refs) })
            }
            _ => None,
        }
    }

    /// What it is attached to by reference.
    pub fn targets(&self) -> impl Iterator<Item = &'a TargetRef> {
        self.targets.0.iter().chain(self.targets.1)
    }
}

/// Whether a plugin refuses while it does not run.
pub fn plugin_fails_closed(plugin: &WasmPlugin) -> bool {
    plugin.fail_strategy != FailStrategy::FailOpen
}

/// Whether an extension refuses while it does not run. A script has no strategy: it does where it is to authenticate or
/// to authorize.
pub fn extension_fails_closed(extension: &TrafficExtension) -> bool {
    match &extension.wasm {
        Some(wasm) => wasm.fail_strategy != FailStrategy::FailOpen,
        None => matches!(extension.phase, Some(ExtensionPhase::Authn | ExtensionPhase::Authz)),
    }
}

impl super::Index {
    /// Extensions that hold for a workload by selector, or are attached to the Gateway that it implements, and refuse.
    pub fn refusing_extensions(
        &self,
        namespace: &str,
        labels: &mesh_api::labels::Labels,
        is_target: impl Fn(&TargetRef) -> bool,
    ) -> Vec<Arc<Object>> {
        let selected = KINDS.into_iter().flat_map(|kind| self.policies(kind, namespace, labels));
        let attached = KINDS.into_iter().flat_map(|kind| self.objects_in(kind, namespace));
        let attached = attached.filter(|o| Refusal::of(o).is_some_and(|r| r.targets().any(&is_target)));
        selected.filter(|o| Refusal::of(o).is_some()).chain(attached).cloned().collect()
    }
}
