//! Endpoints of services, sharded by where they come from.
//!
//! Owns how EndpointSlices, Pods, WorkloadEntries and inline endpoints become endpoints. Must not know which proxy
//! asks: networks, priorities and mesh TLS are decided when an answer is made.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc};

use mesh_api::{
    crd::networking::{ServiceEntry, WorkloadEntry},
    labels::selects,
    model::{Locality, Name},
};
use smallvec::SmallVec;

use super::{
    service::{Resolution, Service, ServicePort, TargetPort},
    workload::Workload,
};
use crate::source::{
    core::{self, EndpointSlice, SliceEndpoint},
    object::{Object, ObjectKey},
};

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// An address.
    Ip(IpAddr),
    /// A name to resolve.
    Host(Name),
    /// A Unix socket.
    Pipe(PathBuf),
}

impl EndpointAddress {
    /// Reads an address of a WorkloadEntry.
    fn parse(text: &str) -> Self {
        match (text.strip_prefix("unix://"), text.parse()) {
            (Some(path), _) => Self::Pipe(path.into()),
            (None, Ok(ip)) => Self::Ip(ip),
            (None, Err(_)) => Self::Host(text.into()),
        }
    }
}

/// State of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Health {
    /// Takes requests.
    Healthy,
    /// Takes none.
    Unhealthy,
    /// Ends, but still serves sessions.
    Draining,
    /// Ends.
    Terminating,
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Service port to endpoint port; a port that is missing is not served here.
    pub ports: SmallVec<[(u16, u16); 2]>,
    /// What runs there.
    pub workload: Arc<Workload>,
    /// Network; empty: the default one.
    pub network: Name,
    /// Where it runs.
    pub locality: Locality,
    /// 1 or more.
    pub weight: u32,
    /// State.
    pub health: Health,
    /// Name within a headless service.
    pub hostname: Name,
}

impl Endpoint {
    /// Port of the endpoint for a port of the service.
    pub fn port(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|(p, _)| *p == service_port).map(|(_, target)| *target)
    }

    /// Its IP address.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.address {
            EndpointAddress::Ip(ip) => Some(ip),
            _ => None,
        }
    }
}

/// Where endpoints of a service come from. One source can vanish without taking the others along.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    /// Cluster.
    pub cluster: Name,
    /// The object that lists them, or the service itself when its selector found them.
    pub source: ObjectKey,
}

/// The endpoints of one source.
#[derive(Debug, Clone, PartialEq)]
pub struct Shard {
    /// Source.
    pub key: ShardKey,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// All endpoints of a service, in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServiceEndpoints {
    /// By source.
    pub shards: Vec<Shard>,
}

impl ServiceEndpoints {
    /// All.
    pub fn iter(&self) -> impl Iterator<Item = (&ShardKey, &Endpoint)> {
        self.shards.iter().flat_map(|s| s.endpoints.iter().map(move |e| (&s.key, e)))
    }

    /// The addresses at which the service is served.
    pub fn ips(&self) -> BTreeSet<IpAddr> {
        self.iter().filter_map(|(_, e)| e.ip()).collect()
    }
}

/// What clusters show of endpoints: changes of it are changes of clusters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointFacts {
    /// Namespace and service account of the workloads.
    pub accounts: BTreeSet<(Name, Name)>,
    /// Every endpoint terminates mesh TLS (and there is one).
    pub all_mesh_tls: bool,
    /// There are IPv4 and IPv6 addresses.
    pub both_families: bool,
}

impl EndpointFacts {
    pub(super) fn of(endpoints: &ServiceEndpoints) -> Self {
        let family = |v6: bool| endpoints.iter().any(|(_, e)| e.ip().is_some_and(|ip| ip.is_ipv6() == v6));
        let mut facts = Self {
            all_mesh_tls: endpoints.iter().next().is_some(),
            both_families: family(true) && family(false),
            ..Self::default()
        };
        for (_, e) in endpoints.iter() {
            facts.all_mesh_tls &= e.workload.mesh_tls;
            let account = (&e.workload.namespace, &e.workload.service_account);
            if !account.1.is_empty() && !facts.accounts.contains(&(account.0.clone(), account.1.clone())) {
                facts.accounts.insert((account.0.clone(), account.1.clone()));
            }
        }
        facts
    }
}

/// Endpoints of a Kubernetes Service by one EndpointSlice. `pod` finds the pod at an address.
pub(super) fn of_slice(
    service: &Service,
    object: &Object,
    slice: &EndpointSlice,
    mut pod: impl FnMut(IpAddr) -> Option<Arc<Workload>>,
) -> Vec<Endpoint> {
    let ports: SmallVec<[(u16, u16); 2]> = service
        .ports
        .iter()
        .filter_map(|p| {
            let found = slice.ports.iter().find(|s| *s.name == *p.name)?;
            Some((p.port, found.port?))
        })
        .collect();
    let mut out = Vec::new();
    for (i, member) in slice.endpoints.iter().enumerate() {
        let health = slice_health(service, member);
        for address in member.addresses.iter().map(|a| EndpointAddress::parse(a)) {
            let found = match address {
                EndpointAddress::Ip(ip) => pod(ip),
                _ => None,
            };
            let workload = found.unwrap_or_else(|| Arc::new(bare_workload(object, i, member)));
            let mut locality = workload.locality.clone();
            if locality.zone.is_empty() && !member.zone.is_empty() {
                locality.zone = member.zone.as_str().into();
            }
            out.push(Endpoint {
                address,
                ports: ports.clone(),
                network: workload.network.clone(),
                locality,
                weight: 1,
                health,
                hostname: member.hostname.as_str().into(),
                workload,
            });
        }
    }
    out
}

fn slice_health(service: &Service, member: &SliceEndpoint) -> Health {
    let c = &member.conditions;
    let ready = c.ready.unwrap_or(true);
    if ready || service.publish_not_ready {
        Health::Healthy
    } else if c.terminating.unwrap_or(false) {
        if c.serving.unwrap_or(ready) { Health::Draining } else { Health::Terminating }
    } else {
        Health::Unhealthy
    }
}

/// An endpoint no pod is known for (an EndpointSlice written by hand).
fn bare_workload(object: &Object, index: usize, member: &SliceEndpoint) -> Workload {
    let name = member.target_ref.as_ref().map(|t| t.name.as_str()).unwrap_or_default();
    Workload {
        source: (object.key.clone(), index),
        namespace: object.key.namespace.clone(),
        name: name.into(),
        labels: Arc::default(),
        service_account: "".into(),
        network: "".into(),
        locality: Locality::default(),
        node: member.node_name.as_str().into(),
        mesh_tls: false,
        ready: true,
    }
}

/// A pod that a selector found.
pub(super) fn of_pod(service: &Service, workload: &Arc<Workload>, pod: &core::Pod) -> Vec<Endpoint> {
    let ports: SmallVec<[(u16, u16); 2]> = service
        .ports
        .iter()
        .filter_map(|p| match &p.target {
            TargetPort::Number(n) => Some((p.port, *n)),
            TargetPort::Named(name) => pod.ports.get(&**name).map(|n| (p.port, *n)),
        })
        .collect();
    let health = if pod.ready || service.publish_not_ready { Health::Healthy } else { Health::Unhealthy };
    // One address a family would count a pod twice.
    pod.ips
        .first()
        .map(|ip| Endpoint {
            address: EndpointAddress::Ip(*ip),
            ports,
            workload: workload.clone(),
            network: workload.network.clone(),
            locality: workload.locality.clone(),
            weight: 1,
            health,
            hostname: "".into(),
        })
        .into_iter()
        .collect()
}

/// A WorkloadEntry that a selector found, or an inline endpoint.
pub(super) fn of_entry(service: &Service, workload: &Arc<Workload>, entry: &WorkloadEntry) -> Endpoint {
    let ports = service.ports.iter().filter_map(|p| Some((p.port, entry_port(entry, p)?))).collect();
    Endpoint {
        address: EndpointAddress::parse(&entry.address),
        ports,
        network: workload.network.clone(),
        locality: workload.locality.clone(),
        weight: entry.weight.unwrap_or(1).max(1),
        health: Health::Healthy,
        hostname: "".into(),
        workload: workload.clone(),
    }
}

fn entry_port(entry: &WorkloadEntry, port: &ServicePort) -> Option<u16> {
    if let Some(own) = entry.ports.get(&*port.name) {
        return Some(*own);
    }
    match &port.target {
        TargetPort::Number(n) => Some(*n),
        TargetPort::Named(name) => entry.ports.get(&**name).copied(),
    }
}

/// What a ServiceEntry lists itself. A DNS service without endpoints is its own endpoint.
pub(super) fn of_service_entry(service: &Service, object: &Object, se: &ServiceEntry) -> Vec<Endpoint> {
    if se.endpoints.is_empty() {
        let own = matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin)
            && se.workload_selector.is_none()
            && !service.is_wildcard();
        if !own {
            return vec![];
        }
        let entry = WorkloadEntry { address: service.key.host.to_string(), ..WorkloadEntry::default() };
        return vec![of_entry(service, &Arc::new(Workload::of_entry(object, 0, &entry)), &entry)];
    }
    se.endpoints
        .iter()
        .enumerate()
        .filter(|(_, e)| !e.address.is_empty())
        .map(|(i, e)| of_entry(service, &Arc::new(Workload::of_entry(object, i, e)), e))
        .collect()
}

/// Whether a selector, which may not be empty, picks these labels.
pub(super) fn picks(selector: &mesh_api::labels::Labels, labels: &mesh_api::labels::Labels) -> bool {
    !selector.is_empty() && selects(selector, labels)
}
