//! Endpoints of a cluster, as a proxy at some place gets them.
//!
//! Owns which endpoints of a service belong to a cluster, their grouping by locality, and what is told of them. The
//! result depends on the [`Place`] of a proxy and nothing else of it. Must not know clusters' other settings.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_api::{
    crd::networking::Subset,
    labels::{Labels, TLS_MODE_ISTIO, selects},
    model::{self, Address, EndpointSet, HealthStatus, Locality, Metadata, Name},
    names::{ClusterName, Direction},
};

use super::{
    cache::Cache,
    clusters::outbound,
    destination_rule::Policy,
    locality::{EndpointLabels, Group, Place, Preference},
    tls::TLS_MODE_KEY,
    translator::Request,
};
use crate::{
    index::{
        Endpoint, EndpointAddress, Health, Index, Mtls, Protocol, Resolution, Rule, Service, ServiceEntry, ServicePort,
        Stamp, Stamped, endpoint::ShardKey,
    },
    source::object::Kind,
    view::{Families, ProxyView},
    xds::encoded::Encoded,
};

/// A cluster of a service: port and subset.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The service.
    pub entry: &'a ServiceEntry,
    /// Its port.
    pub port: &'a ServicePort,
    /// Labels of the subset; `None`: all.
    pub subset: Option<&'a Labels>,
    /// The rule that holds for it.
    pub rule: Option<&'a Stamped<Rule>>,
    /// What that says for it.
    pub policy: Policy<'a>,
}

/// What endpoints of a cluster depend on beyond its name: the declared subset of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    namespace: Name,
    rule: Option<Name>,
    place: Place,
}

/// What they are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Basis {
    service: Stamp,
    endpoints: Stamp,
    facts: Stamp,
    rule: Stamp,
    mesh: Stamp,
    authn: Stamp,
}

/// Encoded assignments.
pub type Assignments = Cache<Key, Basis>;

/// The assignment of an EDS cluster by name, encoded.
pub fn generate(cache: &Assignments, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
    let target = Target::find(request, &outbound(name)?.0)?;
    let preference = target.preference(request.index);
    let place = target.place(&preference, request.view);
    let rule = target.rule;
    let entry = target.entry;
    let key = Key {
        namespace: entry.service.arc().key.namespace.clone(),
        rule: rule.map(|r| r.id.clone()),
        place: place.clone(),
    };
    let basis = Basis {
        service: entry.service.stamp(),
        endpoints: entry.endpoints.stamp(),
        facts: entry.facts.stamp(),
        rule: rule.map_or(Stamp::NONE, Stamped::stamp),
        mesh: request.index.mesh_stamped().stamp(),
        authn: request.index.stamp(Kind::PeerAuthentication),
    };
    cache.get(name, key, basis, || {
        Some(Encoded::endpoints(&resolved(target.assignment(request.index, name, &preference, &place))))
    })
}

/// The assignment of an EDS cluster by name, as the plain model.
pub fn model(request: Request<'_>, name: &str) -> Option<EndpointSet> {
    let target = Target::find(request, &outbound(name)?.0)?;
    let preference = target.preference(request.index);
    let place = target.place(&preference, request.view);
    Some(resolved(target.assignment(request.index, name, &preference, &place)))
}

/// Names that have to be resolved are not allowed in assignments.
fn resolved(mut set: EndpointSet) -> EndpointSet {
    for group in &mut set.localities {
        group.endpoints.retain(|e| !matches!(e.address, Address::Host(..)));
    }
    set.localities.retain(|group| !group.endpoints.is_empty());
    set
}

/// The subset of a rule by name, the outer `None`: there is no such subset. The empty name means all endpoints.
pub fn find_subset<'a>(rule: Option<&'a Stamped<Rule>>, name: &str) -> Option<Option<&'a Subset>> {
    if name.is_empty() {
        return Some(None);
    }
    rule?.arc().spec.subsets.iter().find(|s| s.name == name).map(Some)
}

impl<'a> Target<'a> {
    /// What an outbound cluster name means to a proxy; `None`: nothing.
    pub fn find(request: Request<'a>, name: &ClusterName<'_>) -> Option<Self> {
        let Request { index, view, scope } = request;
        let scoped = scope.service(name.host).filter(|_| name.direction == Direction::Outbound)?;
        let port = scoped.port(name.port).filter(|p| p.protocol != Protocol::Udp)?;
        let service = &scoped.service;
        if service.resolution == Resolution::Alias {
            return None;
        }
        let entry = index.service_entry(&service.key)?;
        let rule = index.destination_rule(service, view);
        let subset = find_subset(rule, name.subset)?;
        let policy = Policy::of(index.mesh(), rule.map(|r| &*r.arc().spec), subset, name.port);
        Some(Self { entry, port, subset: subset.map(|s| &s.labels), policy, rule })
    }

    fn service(&self) -> &Service {
        self.entry.service.arc()
    }

    /// How localities are preferred.
    pub fn preference(&self, index: &Index) -> Preference {
        Preference::of(index.mesh(), self.service(), self.policy.lb, self.policy.outlier.is_some())
    }

    /// The facts of a proxy that the endpoints depend on.
    pub fn place(&self, preference: &Preference, view: &ProxyView) -> Place {
        let mut place = preference.place(view);
        if self.service().node_local {
            place.node = Some(view.node.clone());
        }
        if self.entry.facts.both_families {
            place.families = Some(view.families());
        }
        place
    }

    /// The endpoints.
    pub fn assignment(&self, index: &Index, cluster: &str, preference: &Preference, place: &Place) -> EndpointSet {
        let mut groups: BTreeMap<Locality, Group> = BTreeMap::new();
        let compares = matches!(preference, Preference::Failover { priority, .. } if !priority.is_empty());
        for (shard, endpoint) in self.entry.endpoints.iter() {
            if !self.takes(endpoint, place) {
                continue;
            }
            let Some(port) = endpoint.port(self.port.port) else { continue };
            let labels = compares.then(|| EndpointLabels {
                workload: endpoint.workload.clone(),
                locality: endpoint.locality.clone(),
                network: endpoint.network.clone(),
                cluster: shard.cluster.clone(),
            });
            let group = groups.entry(endpoint.locality.clone()).or_default();
            group.members.push((describe(index, shard, endpoint, port), labels));
        }
        let groups = groups.into_iter().map(|(locality, group)| Group { locality, ..group }).collect();
        EndpointSet {
            cluster: cluster.into(),
            localities: preference.apply(place, groups),
            overprovisioning: None,
            drops: vec![],
        }
    }

    fn takes(&self, endpoint: &Endpoint, place: &Place) -> bool {
        let family = |families: &Families| match endpoint.ip() {
            Some(IpAddr::V4(_)) => families.v4,
            Some(IpAddr::V6(_)) => families.v6,
            None => true,
        };
        endpoint.health == Health::Healthy
            && self.subset.is_none_or(|s| selects(s, &endpoint.workload.labels))
            && place.node.as_ref().is_none_or(|n| *n == endpoint.workload.node)
            && place.families.as_ref().is_none_or(family)
    }
}

fn describe(index: &Index, shard: &ShardKey, endpoint: &Endpoint, port: u16) -> model::Endpoint {
    let workload = &endpoint.workload;
    let mut tls_labels = BTreeMap::new();
    // Where the server's own policy wants cleartext, mesh TLS would not be understood.
    if workload.mesh_tls && index.peer_authn(&workload.namespace, &workload.labels).port(port) != Mtls::Disable {
        tls_labels.insert(TLS_MODE_KEY.to_owned(), TLS_MODE_ISTIO.to_owned());
    }
    model::Endpoint {
        address: match &endpoint.address {
            EndpointAddress::Ip(ip) => Address::Socket(SocketAddr::new(*ip, port)),
            EndpointAddress::Host(name) => Address::Host(name.clone(), port),
            EndpointAddress::Pipe(path) => Address::Pipe(path.clone()),
        },
        hostname: "".into(),
        weight: endpoint.weight,
        health: HealthStatus::Healthy,
        tls_labels,
        workload: workload.telemetry(&shard.cluster),
        metadata: Metadata::new(),
    }
}
