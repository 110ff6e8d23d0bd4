//! Which Gateways get what: those of our classes and of this revision, unless an address says that all is there. Pure.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    made::Made,
    render::{Input, VERSION, objects},
};
use crate::{
    index::{Index, Stamp},
    inject::{Settings, annotations::REVISION},
    source::object::{Kind, Object, ObjectKey},
    translate::{
        gateway_api::{gateway_entry, listeners_of},
        gateway_infrastructure::{CONTROLLER_VERSION, is_generated, parameters},
    },
};

/// A Gateway and what is to be there for it.
#[derive(Debug)]
pub struct Plan {
    /// The Gateway.
    pub gateway: ObjectKey,
    /// What the API server knows it by.
    pub uid: String,
    /// Its objects; otherwise why there are none.
    pub objects: Result<Vec<Made>, String>,
}

/// For which revisions this control plane acts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Its own.
    pub own: String,
    /// Tags that stand for it.
    pub tags: BTreeSet<String>,
}

impl Revisions {
    /// Whether a Gateway is for this control plane, by its own label, else by that of its namespace. Those without one are
    /// for the default revision.
    fn is_meant(&self, index: &Index, gateway: &Object) -> bool {
        let namespace = index.namespace_labels(&gateway.key.namespace);
        let labels = [Some(&gateway.meta.labels), namespace].into_iter().flatten();
        let asked = labels.filter_map(|l| l.get(REVISION)).find(|r| !r.is_empty()).map_or("default", String::as_str);
        let own = if self.own.is_empty() { "default" } else { &self.own };
        asked == own || self.tags.contains(asked)
    }
}

/// What plans depend on, in a form that is cheap to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    mesh: Stamp,
    kinds: [Stamp; 6],
    revisions: Revisions,
}

impl Basis {
    /// That of a state of the index.
    pub fn of(index: &Index, revisions: &Revisions) -> Self {
        let kinds =
            [Kind::Gateway, Kind::GatewayClass, Kind::ListenerSet, Kind::Namespace, Kind::ConfigMap, Kind::ProxyConfig];
        let kinds = kinds.map(|kind| index.stamp(kind));
        Self { mesh: index.mesh_stamped().stamp(), kinds, revisions: revisions.clone() }
    }
}

/// Plans for all Gateways that are ours to deploy, the oldest first: of two that want the same name it has it.
pub fn plans(index: &Index, revisions: &Revisions) -> Vec<Plan> {
    let mut settings: Option<Result<Settings, String>> = None;
    let mut out = Vec::new();
    let mut gateways: Vec<&Arc<Object>> = index.objects(Kind::Gateway).collect();
    gateways.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
    for object in gateways {
        let Some(gateway) = gateway_entry(index, object) else { continue };
        let newer = object.meta.annotations.get(CONTROLLER_VERSION).and_then(|v| v.parse::<u32>().ok());
        // Without an id nothing can be said to be owned; what is being deleted takes its own along.
        let skipped = object.meta.uid.is_empty()
            || object.meta.ending
            || !is_generated(&gateway.spec)
            || newer.is_some_and(|v| v > VERSION)
            || !revisions.is_meant(index, object);
        if skipped {
            continue;
        }
        let settings = settings.get_or_insert_with(|| Settings::of(index, &revisions.own, true));
        let listeners = listeners_of(index, &gateway);
        let made = parameters(index, &gateway).and_then(|parameters| {
            let settings = settings.as_ref().map_err(Clone::clone)?;
            objects(&Input { gateway: &gateway, listeners: &listeners, parameters: &parameters, settings })
        });
        out.push(Plan { gateway: object.key.clone(), uid: object.meta.uid.clone(), objects: made });
    }
    out
}
