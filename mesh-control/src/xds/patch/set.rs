//! The patches of one proxy, and what they make of a resource.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::{
    crd::networking::envoy_filter::{ApplyTo, Operation, PatchContext},
    names::INBOUND_PASSTHROUGH_V4,
    xds::TypeUrl,
};
use prost_reflect::{DynamicMessage, Value};

use super::{Patch, cluster, dynamic, listener, matching, needs, route};
use crate::xds::encoded::{Name, Need};

/// What matches ask of a proxy beyond its resources: the ports that it serves, and the hosts they belong to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Facts(pub Vec<Served>);

/// A port of a service that a proxy serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Served {
    /// Port of the workload.
    pub target_port: u16,
    /// Port of the service.
    pub port: u16,
    /// The service.
    pub host: Name,
}

impl Facts {
    /// Services behind a port of the workload; `None`: it serves none there.
    pub(super) fn hosts_at(&self, target_port: u16) -> Option<Vec<&Name>> {
        let hosts: Vec<&Name> = self.0.iter().filter(|s| s.target_port == target_port).map(|s| &s.host).collect();
        (!hosts.is_empty()).then_some(hosts)
    }

    /// Whether a listener's port is the one asked for, or that of a service that leads there.
    pub(super) fn is_port(&self, listener: u32, asked: u32) -> bool {
        listener == asked || self.0.iter().any(|s| u32::from(s.target_port) == listener && u32::from(s.port) == asked)
    }
}

/// A patch that could not be applied to a resource.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Which.
    pub patch: Arc<Patch>,
    /// Why.
    pub message: String,
}

/// What patches made of a resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Patched {
    /// Nothing.
    Same,
    /// There is none any more.
    Removed,
    /// Another one: the encoded message and what a client will ask for because of it.
    Changed(Vec<u8>, Vec<Need>),
}

/// The patches of one proxy, in the order in which they apply.
#[derive(Debug)]
pub struct PatchSet {
    gateway: bool,
    facts: Facts,
    patches: BTreeMap<ApplyTo, Vec<Arc<Patch>>>,
    clusters: Arc<[Name]>,
    listeners: Arc<[Name]>,
}

/// The work on one resource.
pub(super) struct Run<'s> {
    set: &'s PatchSet,
    pub(super) at: PatchContext,
    pub(super) facts: &'s Facts,
    pub(super) changed: bool,
    troubles: Vec<Trouble>,
}

impl<'s> Run<'s> {
    /// Patches of one part of the configuration that are for this context.
    pub(super) fn patches(&self, apply_to: ApplyTo) -> impl Iterator<Item = &'s Arc<Patch>> + use<'s> {
        let at = self.at;
        self.set.of(apply_to).iter().filter(move |patch| matching::context(patch, at))
    }

    /// Whether there are any.
    pub(super) fn has(&self, apply_to: ApplyTo) -> bool {
        self.patches(apply_to).next().is_some()
    }

    pub(super) fn trouble(&mut self, patch: &Arc<Patch>, message: impl Into<String>) {
        self.troubles.push(Trouble { patch: patch.clone(), message: message.into() });
    }

    /// Takes note of what became of a patch.
    pub(super) fn done(&mut self, patch: &Arc<Patch>, result: Result<(), String>) {
        match result {
            Ok(()) => self.changed = true,
            Err(message) => self.trouble(patch, message),
        }
    }
}

impl PatchSet {
    /// Of `patches`, in this order, for a gateway or a sidecar of which `facts` hold.
    pub fn new(gateway: bool, facts: Facts, patches: impl IntoIterator<Item = Arc<Patch>>) -> Self {
        let mut by: BTreeMap<ApplyTo, Vec<Arc<Patch>>> = BTreeMap::new();
        for patch in patches {
            by.entry(patch.apply_to).or_default().push(patch);
        }
        let mut set = Self { gateway, facts, patches: by, clusters: Arc::default(), listeners: Arc::default() };
        set.clusters = set.added_names(ApplyTo::Cluster);
        set.listeners = set.added_names(ApplyTo::Listener);
        set
    }

    fn of(&self, apply_to: ApplyTo) -> &[Arc<Patch>] {
        self.patches.get(&apply_to).map_or(&[], Vec::as_slice)
    }

    fn contexts(&self) -> &'static [PatchContext] {
        if self.gateway {
            &[PatchContext::Gateway]
        } else {
            &[PatchContext::SidecarOutbound, PatchContext::SidecarInbound]
        }
    }

    /// Resources that are added whole, in order.
    fn added(&self, apply_to: ApplyTo) -> impl Iterator<Item = (&Arc<Patch>, &str)> {
        let anywhere = apply_to == ApplyTo::ExtensionConfig;
        let adds = move |patch: &Patch| {
            patch.operation == Operation::Add
                && (anywhere || self.contexts().iter().any(|at| matching::adds_to(patch, *at)))
        };
        let all = self.of(apply_to).iter().filter(move |patch| adds(patch));
        all.map(|patch| (patch, dynamic::text(&patch.value, "name"))).filter(|(_, name)| !name.is_empty())
    }

    fn added_names(&self, apply_to: ApplyTo) -> Arc<[Name]> {
        let mut names: Vec<Name> = Vec::new();
        for (_, name) in self.added(apply_to) {
            if !names.iter().any(|n| **n == *name) {
                names.push(name.into());
            }
        }
        names.into()
    }

    /// Names that a wildcard subscription has beyond those of what was generated.
    pub fn names(&self, ty: TypeUrl) -> &[Name] {
        match ty {
            TypeUrl::Cluster => &self.clusters,
            TypeUrl::Listener => &self.listeners,
            TypeUrl::Endpoints | TypeUrl::Secret | TypeUrl::Route | TypeUrl::Extension | TypeUrl::NameTable => &[],
        }
    }

    /// Patches that may change resources of a type.
    pub fn concerning(&self, ty: TypeUrl) -> impl Iterator<Item = &Arc<Patch>> {
        let parts: &'static [ApplyTo] = match ty {
            TypeUrl::Cluster => &[ApplyTo::Cluster],
            TypeUrl::Listener => &[
                ApplyTo::Listener,
                ApplyTo::ListenerFilter,
                ApplyTo::FilterChain,
                ApplyTo::NetworkFilter,
                ApplyTo::HttpFilter,
                ApplyTo::RouteConfiguration,
                ApplyTo::VirtualHost,
                ApplyTo::HttpRoute,
            ],
            TypeUrl::Route => &[ApplyTo::RouteConfiguration, ApplyTo::VirtualHost, ApplyTo::HttpRoute],
            TypeUrl::Extension => &[ApplyTo::ExtensionConfig],
            TypeUrl::Endpoints | TypeUrl::Secret | TypeUrl::NameTable => &[],
        };
        parts.iter().flat_map(move |part| self.of(*part))
    }

    /// What becomes of a resource; `None`: none was generated under this name.
    pub fn apply(&self, ty: TypeUrl, name: &str, generated: Option<&[u8]>) -> (Patched, Vec<Trouble>) {
        if self.concerning(ty).next().is_none() {
            return (Patched::Same, vec![]);
        }
        match (ty, generated) {
            (TypeUrl::Cluster, Some(bytes)) => self.change_cluster(name, bytes),
            (TypeUrl::Listener, Some(bytes)) => self.change_listener(name, bytes),
            (TypeUrl::Route, Some(bytes)) => self.change_routes(name, bytes),
            (TypeUrl::Cluster, None) => self.add(ApplyTo::Cluster, name),
            (TypeUrl::Listener, None) => self.add(ApplyTo::Listener, name),
            (TypeUrl::Extension, _) => self.add(ApplyTo::ExtensionConfig, name),
            _ => (Patched::Same, vec![]),
        }
    }

    fn run(&self, at: PatchContext) -> Run<'_> {
        Run { set: self, at, facts: &self.facts, changed: false, troubles: vec![] }
    }

    fn change_cluster(&self, name: &str, bytes: &[u8]) -> (Patched, Vec<Trouble>) {
        let inbound = name.starts_with("inbound|") || name.starts_with(INBOUND_PASSTHROUGH_V4);
        let mut run = self.run(match (self.gateway, inbound) {
            (true, _) => PatchContext::Gateway,
            (false, true) => PatchContext::SidecarInbound,
            (false, false) => PatchContext::SidecarOutbound,
        });
        let Some(mut message) = dynamic::decode("envoy.config.cluster.v3.Cluster", bytes) else {
            return (Patched::Same, vec![]);
        };
        self.twice(&mut run, ApplyTo::Cluster, name);
        let kept = cluster::apply(&mut run, name, &mut message);
        finish(run, name, message, kept)
    }

    fn change_listener(&self, name: &str, bytes: &[u8]) -> (Patched, Vec<Trouble>) {
        let Some(mut message) = dynamic::decode("envoy.config.listener.v3.Listener", bytes) else {
            return (Patched::Same, vec![]);
        };
        const INBOUND: u32 = 1;
        let mut run = self.run(match (self.gateway, dynamic::number(&message, "traffic_direction")) {
            (true, _) => PatchContext::Gateway,
            (false, Some(INBOUND)) => PatchContext::SidecarInbound,
            (false, _) => PatchContext::SidecarOutbound,
        });
        self.twice(&mut run, ApplyTo::Listener, name);
        let kept = listener::apply(&mut run, name, &mut message);
        finish(run, name, message, kept)
    }

    fn change_routes(&self, name: &str, bytes: &[u8]) -> (Patched, Vec<Trouble>) {
        let Some(mut message) = dynamic::decode("envoy.config.route.v3.RouteConfiguration", bytes) else {
            return (Patched::Same, vec![]);
        };
        let mut run = self.run(match (self.gateway, name.starts_with("inbound|")) {
            (true, _) => PatchContext::Gateway,
            (false, true) => PatchContext::SidecarInbound,
            (false, false) => PatchContext::SidecarOutbound,
        });
        route::apply(&mut run, &mut message);
        finish(run, name, message, true)
    }

    /// What would be there twice is not added.
    fn twice(&self, run: &mut Run<'_>, apply_to: ApplyTo, name: &str) {
        let again = self.added(apply_to).filter(|(_, added)| *added == name).map(|(patch, _)| patch);
        for patch in again {
            run.trouble(patch, format!("{name} is there already, and not added"));
        }
    }

    fn add(&self, apply_to: ApplyTo, name: &str) -> (Patched, Vec<Trouble>) {
        let mut all = self.added(apply_to).filter(|(_, added)| *added == name).map(|(patch, _)| patch);
        let Some(first) = all.next() else { return (Patched::Same, vec![]) };
        let message = format!("{name} is added by {} already", first.object);
        let troubles = all.map(|patch| Trouble { patch: patch.clone(), message: message.clone() }).collect();
        (Patched::Changed(dynamic::encode(&first.value), needs::of(&first.value)), troubles)
    }
}

/// Whoever asks for a name must be answered under it.
fn finish(mut run: Run<'_>, name: &str, mut message: DynamicMessage, kept: bool) -> (Patched, Vec<Trouble>) {
    if !kept {
        return (Patched::Removed, run.troubles);
    }
    if !run.changed {
        return (Patched::Same, run.troubles);
    }
    let renamed = dynamic::text(&message, "name").to_owned();
    if renamed != name {
        message.set_field_by_name("name", Value::String(name.to_owned()));
        let by = run
            .set
            .patches
            .values()
            .flatten()
            .find(|p| p.merges().is_some() && dynamic::text(&p.value, "name") == renamed);
        if let Some(patch) = by.cloned() {
            run.trouble(&patch, format!("{name} keeps its name: what refers to it would find nothing under {renamed}"));
        }
    }
    (Patched::Changed(dynamic::encode(&message), needs::of(&message)), run.troubles)
}
