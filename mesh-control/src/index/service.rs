//! Services: what a host is, whichever object declared it.
//!
//! Owns the merged form of Kubernetes Services and ServiceEntries. Must not know their endpoints, nor who sees them.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_api::{
    crd::networking::{self, Location},
    labels::{EXPORT_TO, Labels},
    meshconfig::MeshConfig,
    model::Name,
    names,
};

use super::{allocation::Allocated, protocol::Protocol, visibility::ExportTo};
use crate::{
    source::{
        core::{self, IntOrString},
        object::{Object, ObjectKey, Spec},
    },
    view::ProxyView,
};

/// Annotation of services and namespaces (and field) that says how far endpoints may be away.
pub(super) const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// A host of a namespace. The same host in another namespace is another service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Fully qualified host, lower case; ServiceEntries may have `*.suffix`.
    pub host: Name,
    /// Namespace of the object that declares it.
    pub namespace: Name,
}

impl ServiceKey {
    /// Puts a key together.
    pub fn new(host: &str, namespace: &str) -> Self {
        Self { host: host.to_ascii_lowercase().into(), namespace: namespace.into() }
    }
}

/// How endpoints of a service are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The control plane knows them: EDS.
    Endpoints,
    /// Every address of the endpoints' names.
    Dns,
    /// One address of a name at a time.
    DnsRoundRobin,
    /// Whatever address the client dialled (`NONE`, headless services).
    Passthrough,
    /// The address of the host that a client asks for, looked up then.
    DynamicDns,
    /// Another name of another service, when that is in the mesh; else DNS.
    Alias,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Host and namespace.
    pub key: ServiceKey,
    /// Name of the Kubernetes Service; of a ServiceEntry the host.
    pub name: Name,
    /// The object (of several ServiceEntries the oldest).
    pub origin: ObjectKey,
    /// From Kubernetes, not from a ServiceEntry.
    pub kubernetes: bool,
    /// Ports, in declared order.
    pub ports: Vec<ServicePort>,
    /// Addresses that clients dial (virtual IPs); CIDR blocks only from ServiceEntries.
    pub addresses: Vec<IpNet>,
    /// Addresses that the mesh made up, where the declaration has none.
    pub allocated: Option<Allocated>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Not part of the mesh (`MESH_EXTERNAL`, ExternalName): no mesh TLS.
    pub external: bool,
    /// A Kubernetes Service without address: clients see its endpoints.
    pub headless: bool,
    /// Who sees it.
    pub export: ExportTo,
    /// Labels of the object.
    pub labels: Arc<Labels>,
    /// What picks pods and WorkloadEntries behind it, one of each object that declares it; never empty ones.
    pub selectors: Vec<Labels>,
    /// Unready endpoints count as ready.
    pub publish_not_ready: bool,
    /// Only endpoints of the client's own node.
    pub node_local: bool,
    /// Near endpoints first.
    pub prefer_near: Option<Nearness>,
    /// Names that servers must present, beside those of their service accounts.
    pub subject_alt_names: Vec<Name>,
    /// Host that an ExternalName service stands for.
    pub alias_of: Option<Name>,
    /// Addresses and host names outside of the cluster that lead to it; `None`: it is to have none.
    pub outside: Option<Vec<Name>>,
    /// Age, for who comes first.
    pub creation: Option<jiff::Timestamp>,
}

/// `trafficDistribution`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Nearness {
    /// Network, region, zone, sub-zone.
    Zone,
    /// The same, and the node before.
    Node,
}

/// A port of a [`Service`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Name; may be empty for a single port.
    pub name: Name,
    /// Number.
    pub port: u16,
    /// What is spoken.
    pub protocol: Protocol,
    /// Port of the endpoints.
    pub target: TargetPort,
}

/// Port of the endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// That which the pod calls so.
    Named(Name),
}

impl Service {
    /// A port by number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == number)
    }

    /// A port by name.
    pub fn port_by_name(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|p| *p.name == *name)
    }

    /// The host is a pattern.
    pub fn is_wildcard(&self) -> bool {
        super::host::is_wildcard(&self.key.host)
    }

    /// Single addresses (no blocks).
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().filter(|n| n.prefix_len() == n.max_prefix_len()).map(IpNet::addr)
    }

    /// Single addresses that clients of a proxy dial: the service's own, else those that the mesh made up, where its DNS
    /// tells them.
    pub fn ips_for(&self, view: &ProxyView) -> impl Iterator<Item = IpAddr> + '_ {
        let told = self.addresses.is_empty() && view.captures_dns();
        self.ips().chain(self.allocated.filter(|_| told).into_iter().flat_map(Allocated::ips))
    }

    /// Order in which services of one host count: Kubernetes first, then age, then namespace.
    pub fn precedence(&self) -> (bool, Option<jiff::Timestamp>, &str, &str) {
        (!self.kubernetes, self.creation, &self.key.namespace, &self.origin.name)
    }

    /// A Kubernetes Service.
    pub(super) fn from_kubernetes(
        object: &Object,
        spec: &core::Service,
        (namespace, mesh): (Option<&Object>, &MeshConfig),
        domain: &str,
    ) -> Self {
        let key = ServiceKey::new(
            &names::service_host(&object.key.name, &object.key.namespace, domain),
            &object.key.namespace,
        );
        let alias = spec.kind == "ExternalName" && !spec.external_name.is_empty();
        let headless = spec.headless() && !alias;
        let ports = spec.ports.iter().map(|p| ServicePort {
            name: p.name.as_str().into(),
            port: p.port,
            protocol: Protocol::of_service_port(&p.protocol, &p.app_protocol, &p.name, p.port),
            target: match &p.target_port {
                None => TargetPort::Number(p.port),
                Some(IntOrString::Int(n)) => TargetPort::Number(*n),
                Some(IntOrString::String(s)) => {
                    s.parse().map_or_else(|_| TargetPort::Named(s.as_str().into()), TargetPort::Number)
                }
            },
        });
        let export = object.meta.annotations.get(EXPORT_TO).map(String::as_str).unwrap_or_default();
        let mut ports: Vec<ServicePort> = ports.collect();
        // UDP goes past the mesh; one of its ports must not stand for the one of TCP that has its number.
        let tcp: Vec<u16> = ports.iter().filter(|p| p.protocol != Protocol::Udp).map(|p| p.port).collect();
        ports.retain(|p| p.protocol != Protocol::Udp || !tcp.contains(&p.port));
        Self {
            name: object.key.name.clone(),
            origin: object.key.clone(),
            kubernetes: true,
            ports,
            addresses: if alias { vec![] } else { spec.addresses().map(IpNet::from).collect() },
            allocated: None,
            resolution: match (alias, headless) {
                (true, _) => Resolution::Alias,
                (_, true) => Resolution::Passthrough,
                _ => Resolution::Endpoints,
            },
            external: alias,
            headless,
            export: ExportTo::parse(export.split(','), &mesh.default_service_export_to, &key.namespace),
            labels: Arc::new(object.meta.labels.clone()),
            selectors: Some(spec.selector.clone()).filter(|s| !s.is_empty()).into_iter().collect(),
            publish_not_ready: spec.publish_not_ready_addresses,
            node_local: spec.internal_traffic_policy == "Local",
            prefer_near: nearness(&spec.traffic_distribution, [Some(object), namespace]),
            subject_alt_names: vec![],
            outside: outside(spec),
            alias_of: alias.then(|| spec.external_name.trim_end_matches('.').to_ascii_lowercase().into()),
            creation: object.meta.creation,
            key,
        }
    }

    /// One host of a ServiceEntry. Hosts below another namespace's Services are its own clients' matter.
    pub(super) fn from_entry(
        object: &Object,
        spec: &networking::ServiceEntry,
        host: &str,
        (namespace, mesh): (Option<&Object>, &MeshConfig),
        domain: &str,
    ) -> Self {
        let own = &*object.key.namespace;
        let confined = own != mesh.root_namespace() && names::service_namespace(host, domain).is_some_and(|n| n != own);
        let export = ExportTo::parse(spec.export_to.iter().map(String::as_str), &mesh.default_service_export_to, own);
        let key = ServiceKey::new(host, &object.key.namespace);
        let ports = spec.ports.iter().map(|p| ServicePort {
            name: p.name.as_str().into(),
            port: p.number,
            protocol: Protocol::parse(&p.protocol),
            target: TargetPort::Number(p.target_port.unwrap_or(p.number)),
        });
        Self {
            name: key.host.clone(),
            origin: object.key.clone(),
            kubernetes: false,
            ports: ports.collect(),
            addresses: spec.addresses.iter().filter_map(|a| block(a)).collect(),
            allocated: None,
            resolution: match spec.resolution {
                networking::Resolution::None => Resolution::Passthrough,
                networking::Resolution::DynamicDns => Resolution::DynamicDns,
                networking::Resolution::Static => Resolution::Endpoints,
                networking::Resolution::Dns => Resolution::Dns,
                networking::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            },
            external: spec.location == Location::MeshExternal,
            headless: false,
            export: if confined { export.within(own) } else { export },
            labels: Arc::new(object.meta.labels.clone()),
            selectors: spec.workload_selector.iter().map(|s| s.labels.clone()).filter(|l| !l.is_empty()).collect(),
            publish_not_ready: false,
            node_local: false,
            prefer_near: nearness("", [Some(object), namespace]),
            subject_alt_names: spec.subject_alt_names.iter().map(|s| s.as_str().into()).collect(),
            alias_of: None,
            outside: None,
            creation: object.meta.creation,
            key,
        }
    }

    /// Joins a younger ServiceEntry of the same host and namespace: what it adds, nothing it contradicts. Returns
    /// whether its endpoints belong to the result.
    pub(super) fn join(&mut self, younger: Self) -> bool {
        if younger.resolution != self.resolution || younger.external != self.external {
            return false;
        }
        self.selectors.extend(younger.selectors);
        for port in younger.ports {
            if self.port(port.port).is_none() {
                self.ports.push(port);
            }
        }
        for address in younger.addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        for name in younger.subject_alt_names {
            if !self.subject_alt_names.contains(&name) {
                self.subject_alt_names.push(name);
            }
        }
        true
    }
}

/// The hosts that an object declares, as service keys.
pub(super) fn declared_keys(object: &Object, domain: &str) -> Vec<ServiceKey> {
    match &object.spec {
        Spec::Service(_) => {
            let host = names::service_host(&object.key.name, &object.key.namespace, domain);
            vec![ServiceKey::new(&host, &object.key.namespace)]
        }
        Spec::ServiceEntry(se) => {
            let mut keys: Vec<_> = se.hosts.iter().map(|h| ServiceKey::new(h, &object.key.namespace)).collect();
            keys.sort();
            keys.dedup();
            keys
        }
        _ => vec![],
    }
}

/// Where a Service of Kubernetes is reached from outside of the cluster.
fn outside(spec: &core::Service) -> Option<Vec<Name>> {
    let all = spec.load_balancer.iter().chain(&spec.external_ips).map(|a| a.as_str().into());
    (spec.kind == "LoadBalancer" || !spec.external_ips.is_empty()).then(|| all.collect())
}

/// An address or a block of addresses.
fn block(text: &str) -> Option<IpNet> {
    text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>().map(|n| n.trunc())).ok()
}

/// What the field says, else the first of the objects that has the annotation. A word that is not known means any.
fn nearness(field: &str, annotated: [Option<&Object>; 2]) -> Option<Nearness> {
    let told = annotated.into_iter().flatten().find_map(|o| o.meta.annotations.get(TRAFFIC_DISTRIBUTION));
    let word = if field.is_empty() { told? } else { field };
    match word.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(Nearness::Zone),
        "prefersamenode" => Some(Nearness::Node),
        _ => None,
    }
}
