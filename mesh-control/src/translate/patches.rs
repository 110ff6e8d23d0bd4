//! EnvoyFilters by proxy: which patches hold for it, and what they made of its resources, kept and shared.
//!
//! Patching comes after translation: the shared encoding of a resource goes in, another one comes out, kept under the
//! list of patches and the version of what went in. Proxies without an EnvoyFilter never get here. Owns the caches and
//! the table of patches that could not be applied; what a patch does is [`crate::xds::patch`]'s business.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use mesh_api::{
    crd::networking::envoy_filter::{EnvoyFilter, ObjectMatch},
    xds::TypeUrl,
};
use parking_lot::{Mutex, RwLock};

use super::cache::Cache;
use crate::{
    index::{Index, Stamp},
    source::object::{Kind, Object, ObjectKey, Spec},
    validate::Finding,
    view::ProxyView,
    xds::{
        encoded::{Encoded, Name},
        patch::{self, Compiled, Facts, Patch, PatchSet, Patched, Served},
    },
};

/// Most EnvoyFilters, and most lists of patches, that are remembered.
const MAX_KEPT: usize = 1 << 14;
/// Most resources that one finding names.
const NAMED: usize = 3;

/// The patches of a proxy, worked out at the first use from the facts beside them. Takes no part in equality.
#[derive(Debug, Clone, Default)]
pub struct Memo(OnceLock<Arc<Shared>>);

impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A list of patches that several proxies may have in common.
#[derive(Debug)]
struct Shared {
    set: PatchSet,
    /// Stands for this very state of the patches.
    state: Stamp,
    /// Stands for the same patches whatever their content.
    line: Stamp,
}

/// Which patches, whatever their content, with what they are evaluated on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Line {
    gateway: bool,
    patches: Vec<(ObjectKey, usize)>,
    facts: Facts,
}

/// What a patched resource was made from: the state of the patches, and the version of what was generated.
type Basis = (Stamp, Option<u64>);

/// Patches of all proxies.
#[derive(Debug, Default)]
pub struct Patches {
    compiled: RwLock<HashMap<ObjectKey, (Arc<EnvoyFilter>, Arc<Compiled>)>>,
    lines: RwLock<HashMap<Line, (Stamp, Vec<Stamp>, Arc<Shared>)>>,
    resources: [Cache<Stamp, Basis>; TypeUrl::ALL.len()],
    troubles: Mutex<BTreeMap<(ObjectKey, usize), Troubles>>,
    troubled: AtomicBool,
}

/// Resources that a patch could not be applied to.
#[derive(Debug)]
struct Troubles {
    /// The state of the patch.
    patch: Stamp,
    field: String,
    resources: BTreeMap<(TypeUrl, Name), String>,
}

impl Patches {
    /// What becomes of a resource for a proxy.
    pub fn apply(
        &self,
        view: &ProxyView,
        ty: TypeUrl,
        name: &str,
        generated: Option<Arc<Encoded>>,
    ) -> Option<Arc<Encoded>> {
        if view.envoy_filters.is_empty() || matches!(ty, TypeUrl::Endpoints | TypeUrl::Secret) {
            return generated;
        }
        let shared = self.of(view);
        if shared.set.concerning(ty).next().is_none() {
            return generated;
        }
        let basis = (shared.state, generated.as_ref().map(|g| g.hash()));
        let cache = self.resources.get(ty as usize)?;
        cache.get(name, shared.line, basis, || self.patched(&shared.set, ty, name, generated))
    }

    /// Names that a wildcard subscription of a proxy has beyond `generated`.
    pub fn names(&self, view: &ProxyView, ty: TypeUrl, generated: Arc<[Name]>) -> Arc<[Name]> {
        if view.envoy_filters.is_empty() {
            return generated;
        }
        let shared = self.of(view);
        let added = shared.set.names(ty);
        if added.is_empty() {
            return generated;
        }
        let new = added.iter().filter(|name| !generated.contains(name));
        generated.iter().chain(new).cloned().collect()
    }

    fn patched(
        &self,
        set: &PatchSet,
        ty: TypeUrl,
        name: &str,
        generated: Option<Arc<Encoded>>,
    ) -> Option<Arc<Encoded>> {
        let message = generated.as_ref().map(|g| g.message());
        let (patched, troubles) = set.apply(ty, name, message.as_deref());
        self.note(set, ty, name, &troubles);
        match patched {
            Patched::Same => generated,
            Patched::Removed => None,
            Patched::Changed(message, needs) => Some(Encoded::new(ty, name, &message, needs)),
        }
    }

    /// Patches of a proxy.
    fn of(&self, view: &ProxyView) -> Arc<Shared> {
        view.patches.0.get_or_init(|| self.collect(view)).clone()
    }

    fn collect(&self, view: &ProxyView) -> Arc<Shared> {
        let compiled: Vec<Arc<Compiled>> = view.envoy_filters.iter().filter_map(|o| self.compiled(o)).collect();
        let patches: Vec<&Arc<Patch>> =
            compiled.iter().flat_map(|c| &c.patches).filter(|p| p.is_for(&view.metadata)).collect();
        let facts = if patches.iter().any(|p| asks_for_ports(&p.matches)) { facts(view) } else { Facts::default() };
        let line = Line {
            gateway: view.is_gateway(),
            patches: patches.iter().map(|p| (p.object.clone(), p.index)).collect(),
            facts,
        };
        let ids: Vec<Stamp> = patches.iter().map(|p| p.id).collect();
        let stamp = match self.lines.read().get(&line) {
            Some((_, known, shared)) if *known == ids => return shared.clone(),
            known => known.map(|(stamp, ..)| *stamp),
        };
        let stamp = stamp.unwrap_or_else(Stamp::next);
        let set = PatchSet::new(line.gateway, line.facts.clone(), patches.into_iter().cloned());
        let shared = Arc::new(Shared { set, state: Stamp::next(), line: stamp });
        let mut lines = self.lines.write();
        if lines.len() > MAX_KEPT {
            lines.clear();
        }
        lines.insert(line, (stamp, ids, shared.clone()));
        shared
    }

    /// An EnvoyFilter's patches, read once for each state of it.
    fn compiled(&self, object: &Object) -> Option<Arc<Compiled>> {
        let Spec::EnvoyFilter(spec) = &object.spec else { return None };
        if let Some((of, compiled)) = self.compiled.read().get(&object.key)
            && (Arc::ptr_eq(of, spec) || of == spec)
        {
            return Some(compiled.clone());
        }
        let new = Arc::new(patch::compile(&object.key, spec));
        let mut all = self.compiled.write();
        if all.len() > MAX_KEPT {
            all.clear();
        }
        all.insert(object.key.clone(), (spec.clone(), new.clone()));
        Some(new)
    }

    /// Takes note of what could not be applied to a resource, and of what could now.
    fn note(&self, set: &PatchSet, ty: TypeUrl, name: &str, new: &[patch::Trouble]) {
        if new.is_empty() && !self.troubled.load(Relaxed) {
            return;
        }
        let resource = (ty, Name::from(name));
        let mut all = self.troubles.lock();
        for patch in set.concerning(ty) {
            let key = (patch.object.clone(), patch.index);
            let trouble = new.iter().find(|t| t.patch.id == patch.id);
            let Some(trouble) = trouble else {
                if let Some(known) = all.get_mut(&key) {
                    known.resources.remove(&resource);
                }
                continue;
            };
            let fresh = || Troubles { patch: patch.id, field: patch.field(), resources: BTreeMap::new() };
            let known = all.entry(key).or_insert_with(fresh);
            if known.patch != patch.id {
                *known = fresh();
            }
            known.resources.insert(resource.clone(), trouble.message.clone());
        }
        all.retain(|_, t| !t.resources.is_empty());
        self.troubled.store(!all.is_empty(), Relaxed);
    }

    /// EnvoyFilters that may change resources of a type for a proxy.
    pub fn concerning(&self, view: &ProxyView, ty: TypeUrl) -> Vec<Arc<Object>> {
        if view.envoy_filters.is_empty() {
            return vec![];
        }
        let shared = self.of(view);
        let changes = |object: &&Arc<Object>| shared.set.concerning(ty).any(|patch| patch.object == object.key);
        view.envoy_filters.iter().filter(changes).cloned().collect()
    }

    /// Patches of the objects in `index` that could not be applied to what was generated.
    pub fn findings(&self, index: &Index) -> Vec<Finding> {
        if !self.troubled.load(Relaxed) {
            return vec![];
        }
        let compiled = self.compiled.read();
        let is_now = |object: &Object, patch: Stamp| {
            let Spec::EnvoyFilter(spec) = &object.spec else { return false };
            let known = compiled.get(&object.key).filter(|(of, _)| Arc::ptr_eq(of, spec) || of == spec);
            known.is_some_and(|(_, c)| c.patches.iter().any(|p| p.id == patch))
        };
        let mut out = Vec::new();
        for ((key, _), troubles) in self.troubles.lock().iter() {
            let Some(object) = index.object(key).filter(|o| is_now(o, troubles.patch)) else { continue };
            let Some(first) = troubles.resources.values().next() else { continue };
            let names: Vec<&str> = troubles.resources.keys().take(NAMED).map(|(_, name)| &**name).collect();
            let more = troubles.resources.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let message = format!("has no effect on {}{more}: {first}", names.join(", "));
            let mut finding = Finding::error(&troubles.field, message).code("IST0106").on(key);
            if let Some(position) = &object.position {
                finding.file = Some(position.file.clone());
                finding.line = Some(position.line);
            }
            out.push(finding);
        }
        out
    }
}

/// Whether an answer may hang on the services that a proxy serves.
fn asks_for_ports(matches: &ObjectMatch) -> bool {
    matches.cluster.as_ref().is_some_and(|c| c.name.is_empty() && !c.service.is_empty())
        || matches.route_configuration.as_ref().is_some_and(|r| r.port_number != 0)
}

fn facts(view: &ProxyView) -> Facts {
    let mut served: Vec<Served> = view
        .targets
        .iter()
        .map(|t| Served { target_port: t.target_port, port: t.port.port, host: t.service.key.host.clone() })
        .collect();
    served.sort_by(|a, b| (a.target_port, a.port, &a.host).cmp(&(b.target_port, b.port, &b.host)));
    Facts(served)
}

impl Index {
    /// EnvoyFilters that hold for a proxy, in the order in which they apply: by priority, those of the root namespace
    /// first, older ones first.
    pub fn envoy_filters(&self, view: &ProxyView) -> Arc<[Arc<Object>]> {
        let root = self.mesh().root_namespace();
        let own = (*view.namespace != *root).then_some(&*view.namespace);
        let namespaces = std::iter::once(root).chain(own);
        let here = namespaces.flat_map(|namespace| self.objects_in(Kind::EnvoyFilter, namespace));
        let mut out: Vec<(&Arc<Object>, &EnvoyFilter)> = here
            .filter_map(|object| match &object.spec {
                Spec::EnvoyFilter(spec) => Some((object, &**spec)),
                _ => None,
            })
            .filter(|(object, spec)| is_attached(object, spec, view))
            .collect();
        out.sort_by(|(a, a_spec), (b, b_spec)| {
            let order = |o: &Object, spec: &EnvoyFilter| (spec.priority, *o.key.namespace != *root);
            let name = |o: &Object| format!("{}.{}", o.key.name, o.key.namespace);
            order(a, a_spec)
                .cmp(&order(b, b_spec))
                .then_with(|| a.meta.creation.cmp(&b.meta.creation))
                .then_with(|| name(a).cmp(&name(b)))
        });
        out.into_iter().map(|(object, _)| object.clone()).collect()
    }
}

/// By reference for gateways of Gateway API alone, in their own namespace; by selector for everybody else.
fn is_attached(object: &Object, spec: &EnvoyFilter, view: &ProxyView) -> bool {
    if !spec.target_refs.is_empty() {
        let Some(gateway) = super::gateway_api::gateway_name(view) else { return false };
        return object.key.namespace == view.namespace
            && spec.target_refs.iter().any(|t| super::policy::is_gateway(t, gateway));
    }
    let labels = spec.workload_selector.as_ref().map(|s| &s.labels);
    labels.is_none_or(|labels| mesh_api::labels::selects(labels, &view.labels))
}

#[cfg(test)]
mod tests;
