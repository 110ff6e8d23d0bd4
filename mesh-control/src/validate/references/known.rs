//! What there is to refer to and to be in conflict with, each with the objects that declare it. Knows nothing of
//! findings.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use mesh_api::crd::networking::VirtualService;
use mesh_api::labels::{Labels, selects};
use mesh_api::names::{complete_host, service_host};

use crate::index::protocol::Protocol;
use crate::source::core::{IntOrString, Service, ServicePort};
use crate::source::object::{Kind, Object, ObjectKey, Spec};
use crate::translate::secrets::has_certificate;

/// Something that objects refer to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    Host(String),
    Object(ObjectKey),
    Group(Group),
    /// Workloads with a label, `key=value`, of a namespace (empty: of all).
    Label(String, String),
    /// Whether any workload of a namespace (empty: of all) is known.
    Workloads(String),
}

/// Objects that may be in each other's way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Group {
    /// VirtualServices of a host for sidecars; of a namespace, when they are for that alone.
    MeshHost { only: String, host: String },
    /// Objects of a kind that stand for a whole namespace.
    Unselective(Kind, String),
    /// Objects of a kind and namespace that select by a label among others.
    Selecting(Kind, String, String),
    /// Gateways of a workload with a host on a port.
    Listener { selector: String, port: u16, bind: String, host: String },
    /// Gateways of a workload with a certificate.
    Certificate { selector: String, name: String },
    /// ServiceEntries with a port of a host.
    EntryPort { only: String, host: String, port: u16 },
    /// RequestAuthentications of a namespace.
    Tokens(String),
    /// Secrets of a name.
    Secret(String),
}

/// What others have to know of a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    Selector(Labels),
    Protocol(String),
    /// A Secret with a certificate and its key.
    Certificate(bool),
    /// Selector and ports of a Service.
    Ports(Labels, Vec<OfferedPort>),
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OfferedPort {
    pub(super) number: u16,
    /// Of the workloads; `None`: named, or the same.
    pub(super) target: Option<u16>,
    pub(super) protocol: Protocol,
}

impl OfferedPort {
    /// Where workloads listen, as far as it can be told.
    pub(super) fn listens(&self) -> u16 {
        self.target.unwrap_or(self.number)
    }
}

/// What an object declares for others to refer to, beside itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Offer {
    /// A host and its ports.
    Host(String, BTreeSet<u16>),
    /// `.suffix` of a wildcard host.
    Suffix(String),
    /// Subsets of a host.
    Subsets(String, BTreeSet<String>),
    /// What a Service selects, and in which namespace.
    Selector(String, String, Labels),
    /// Being one of a group.
    Member(Group, Detail),
    /// A workload of a namespace.
    Workload(String, Labels),
}

/// Members of a group.
pub(super) type Members = BTreeMap<ObjectKey, Detail>;

/// What there is to refer to.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) domain: String,
    /// Namespace whose objects are for all.
    pub(super) root: String,
    hosts: HashMap<String, HashMap<ObjectKey, BTreeSet<u16>>>,
    /// `.suffix` of wildcard hosts of ServiceEntries.
    suffixes: BTreeMap<String, HashSet<ObjectKey>>,
    subsets: HashMap<String, HashMap<ObjectKey, BTreeSet<String>>>,
    pub(super) objects: HashSet<ObjectKey>,
    /// By host: namespace and selector of the Service.
    selectors: HashMap<String, BTreeMap<ObjectKey, (String, Labels)>>,
    groups: HashMap<Group, Members>,
    workloads: HashMap<ObjectKey, Labels>,
    /// Namespace (empty: all) and `key=value`.
    labelled: HashMap<(String, String), BTreeSet<ObjectKey>>,
    /// Number of workloads by namespace (empty: all).
    counts: HashMap<String, usize>,
}

/// `key=value`.
pub(super) fn label((key, value): (&String, &String)) -> String {
    format!("{key}={value}")
}

/// Labels as a user writes them.
pub(super) fn words(labels: &Labels) -> String {
    labels.iter().map(label).collect::<Vec<_>>().join(",")
}

/// Namespace that alone sees an object with this `exportTo`; empty: all may.
fn only(export_to: &[String], namespace: &str) -> String {
    let all = export_to.is_empty() || export_to.iter().any(|e| e == "*");
    if all { String::new() } else { namespace.to_owned() }
}

/// Selector of an object that has one for workloads, empty when it stands for all. `None`: it is attached otherwise.
pub(super) fn selector(object: &Object) -> Option<Labels> {
    let (selector, target, targets) = match &object.spec {
        Spec::Sidecar(s) => return Some(s.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default()),
        Spec::PeerAuthentication(s) => (&s.selector, None, &[][..]),
        Spec::RequestAuthentication(s) => (&s.selector, s.target_ref.as_ref(), s.target_refs.as_slice()),
        Spec::AuthorizationPolicy(s) => (&s.selector, s.target_ref.as_ref(), s.target_refs.as_slice()),
        Spec::WasmPlugin(s) => (&s.selector, s.target_ref.as_ref(), s.target_refs.as_slice()),
        Spec::TrafficExtension(s) => (&s.selector, None, s.target_refs.as_slice()),
        Spec::Telemetry(s) => (&s.selector, s.target_ref.as_ref(), s.target_refs.as_slice()),
        _ => return None,
    };
    let labels = selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
    (target.is_none() && targets.is_empty()).then_some(labels)
}

pub(super) fn for_sidecars(vs: &VirtualService) -> bool {
    vs.gateways.is_empty() || vs.gateways.iter().any(|g| g == "mesh")
}

pub(super) fn service_ports(service: &Service) -> Vec<OfferedPort> {
    let port = |p: &ServicePort| OfferedPort {
        number: p.port,
        target: match p.target_port {
            Some(IntOrString::Int(n)) => Some(n),
            _ => None,
        },
        protocol: Protocol::of_service_port(&p.protocol, &p.app_protocol, &p.name, p.port),
    };
    service.ports.iter().map(port).collect()
}

/// Groups that an object belongs to, with the field that makes it so.
pub(super) fn memberships(object: &Object, domain: &str) -> Vec<(Group, Detail, String)> {
    let namespace = object.key.namespace.to_string();
    let mut out = Vec::new();
    match &object.spec {
        Spec::VirtualService(vs) if for_sidecars(vs) => {
            for (i, host) in vs.hosts.iter().enumerate() {
                let host = complete_host(host, &namespace, domain).to_ascii_lowercase();
                let group = Group::MeshHost { only: only(&vs.export_to, &namespace), host };
                out.push((group, Detail::None, format!("spec.hosts[{i}]")));
            }
        }
        Spec::Sidecar(_) | Spec::Telemetry(_) => {
            let (kind, Some(labels)) = (object.key.kind, selector(object)) else { return out };
            let field = if kind == Kind::Sidecar { "spec.workloadSelector" } else { "spec.selector" };
            match labels.iter().next().map(label) {
                None => out.push((Group::Unselective(kind, namespace), Detail::None, field.to_owned())),
                Some(first) => {
                    let group = Group::Selecting(kind, namespace, first);
                    out.push((group, Detail::Selector(labels), field.to_owned()));
                }
            }
        }
        Spec::RequestAuthentication(policy) if !policy.jwt_rules.is_empty() => {
            let Some(labels) = selector(object) else { return out };
            out.push((Group::Tokens(namespace), Detail::Selector(labels), String::new()));
        }
        Spec::IstioGateway(gateway) => {
            for (i, server) in gateway.servers.iter().enumerate() {
                let field = format!("spec.servers[{i}]");
                for (j, host) in server.hosts.iter().enumerate() {
                    let host = host.rsplit('/').next().unwrap_or(host).to_ascii_lowercase();
                    let (selector, bind) = (words(&gateway.selector), server.bind.clone());
                    let group = Group::Listener { selector, port: server.port.number, bind, host };
                    out.push((group, Detail::None, format!("{field}.hosts[{j}]")));
                }
                if let Some(name) = server.tls.as_ref().map(|t| &t.credential_name).filter(|n| !n.is_empty()) {
                    let group = Group::Certificate { selector: words(&gateway.selector), name: name.clone() };
                    out.push((group, Detail::None, format!("{field}.tls.credentialName")));
                }
            }
        }
        Spec::ServiceEntry(entry) => {
            for host in &entry.hosts {
                for (i, port) in entry.ports.iter().enumerate() {
                    let (only, host) = (only(&entry.export_to, &namespace), host.to_ascii_lowercase());
                    let group = Group::EntryPort { only, host, port: port.number };
                    let protocol = Detail::Protocol(port.protocol.to_ascii_uppercase());
                    out.push((group, protocol, format!("spec.ports[{i}].protocol")));
                }
            }
        }
        Spec::Service(service) => {
            if let Some(first) = service.selector.iter().next().map(label) {
                let detail = Detail::Ports(service.selector.clone(), service_ports(service));
                out.push((Group::Selecting(Kind::Service, namespace, first), detail, String::new()));
            }
        }
        Spec::Secret(secret) => {
            let detail = Detail::Certificate(has_certificate(secret));
            out.push((Group::Secret(object.key.name.to_string()), detail, String::new()));
        }
        _ => {}
    }
    out
}

impl Known {
    /// Nothing; `domain` completes short names, and objects of namespace `root` are for all.
    pub(super) fn new(domain: &str, root: &str) -> Self {
        Self { domain: domain.to_owned(), root: root.to_owned(), ..Self::default() }
    }

    /// The namespace whose workloads an object selects; empty: of all.
    pub(super) fn scope<'k>(&self, key: &'k ObjectKey) -> &'k str {
        if *key.namespace == *self.root { "" } else { &key.namespace }
    }

    /// What an object offers. One object may offer a host only once.
    pub(super) fn offers(&self, object: &Object) -> Vec<Offer> {
        let key = &object.key;
        let mut out = match &object.spec {
            Spec::Service(service) => {
                let ports = service.ports.iter().map(|p| p.port).collect();
                let host = service_host(&key.name, &key.namespace, &self.domain);
                let mut out = vec![Offer::Host(host.clone(), ports)];
                if !service.selector.is_empty() {
                    out.push(Offer::Selector(host, key.namespace.to_string(), service.selector.clone()));
                }
                out
            }
            Spec::ServiceEntry(entry) => {
                let ports: BTreeSet<u16> = entry.ports.iter().map(|p| p.number).collect();
                let hosts: BTreeSet<&String> = entry.hosts.iter().collect();
                let offer = |host: &String| match host.strip_prefix('*') {
                    Some(suffix) => Offer::Suffix(suffix.to_owned()),
                    None => Offer::Host(host.clone(), ports.clone()),
                };
                hosts.into_iter().map(offer).collect()
            }
            Spec::DestinationRule(rule) => {
                let host = complete_host(&rule.host, &key.namespace, &self.domain);
                vec![Offer::Subsets(host, rule.subsets.iter().map(|s| s.name.clone()).collect())]
            }
            Spec::Pod(pod) if !pod.finished => {
                vec![Offer::Workload(key.namespace.to_string(), object.meta.labels.clone())]
            }
            Spec::WorkloadEntry(entry) => {
                let mut labels = object.meta.labels.clone();
                labels.extend(entry.labels.clone());
                vec![Offer::Workload(key.namespace.to_string(), labels)]
            }
            _ => vec![],
        };
        let members = memberships(object, &self.domain).into_iter();
        out.extend(members.map(|(group, detail, _)| Offer::Member(group, detail)));
        out
    }

    pub(super) fn declare(&mut self, key: &ObjectKey, offer: &Offer) {
        let key = key.clone();
        match offer {
            Offer::Host(host, ports) => {
                self.hosts.entry(host.clone()).or_default().insert(key, ports.clone());
            }
            Offer::Suffix(suffix) => {
                self.suffixes.entry(suffix.clone()).or_default().insert(key);
            }
            Offer::Subsets(host, names) => {
                self.subsets.entry(host.clone()).or_default().insert(key, names.clone());
            }
            Offer::Selector(host, namespace, labels) => {
                let selected = (namespace.clone(), labels.clone());
                self.selectors.entry(host.clone()).or_default().insert(key, selected);
            }
            Offer::Member(group, detail) => {
                self.groups.entry(group.clone()).or_default().insert(key, detail.clone());
            }
            Offer::Workload(namespace, labels) => {
                for scope in [namespace.as_str(), ""] {
                    *self.counts.entry(scope.to_owned()).or_default() += 1;
                    for label in labels.iter().map(label) {
                        self.labelled.entry((scope.to_owned(), label)).or_default().insert(key.clone());
                    }
                }
                self.workloads.insert(key, labels.clone());
            }
        }
    }

    pub(super) fn withdraw(&mut self, key: &ObjectKey, offer: &Offer) {
        match offer {
            Offer::Host(host, _) => {
                drop_from(&mut self.hosts, host, |by| {
                    by.remove(key);
                    by.is_empty()
                });
            }
            Offer::Suffix(suffix) => {
                if let Some(by) = self.suffixes.get_mut(suffix) {
                    by.remove(key);
                    if by.is_empty() {
                        self.suffixes.remove(suffix);
                    }
                }
            }
            Offer::Subsets(host, _) => {
                drop_from(&mut self.subsets, host, |by| {
                    by.remove(key);
                    by.is_empty()
                });
            }
            Offer::Selector(host, ..) => {
                drop_from(&mut self.selectors, host, |by| {
                    by.remove(key);
                    by.is_empty()
                });
            }
            Offer::Member(group, _) => {
                drop_from(&mut self.groups, group, |by| {
                    by.remove(key);
                    by.is_empty()
                });
            }
            Offer::Workload(namespace, labels) => {
                for scope in [namespace.as_str(), ""] {
                    drop_from(&mut self.counts, &scope.to_owned(), |n| {
                        *n = n.saturating_sub(1);
                        *n == 0
                    });
                    for label in labels.iter().map(label) {
                        let place = (scope.to_owned(), label);
                        drop_from(&mut self.labelled, &place, |by| {
                            by.remove(key);
                            by.is_empty()
                        });
                    }
                }
                self.workloads.remove(key);
            }
        }
    }

    /// Ports of a host; empty for one that only a wildcard covers.
    pub(super) fn ports(&self, host: &str) -> Option<BTreeSet<u16>> {
        match self.hosts.get(host) {
            Some(by) => Some(by.values().flatten().copied().collect()),
            None => self.suffixes.keys().any(|s| host.ends_with(s.as_str())).then(BTreeSet::new),
        }
    }

    /// Whether a host is declared, and by objects of other namespaces only.
    pub(super) fn belongs_to_others(&self, host: &str, namespace: &str) -> bool {
        self.hosts.get(host).is_some_and(|by| by.keys().all(|key| &*key.namespace != namespace))
    }

    pub(super) fn has_subset(&self, host: &str, name: &str) -> bool {
        self.subsets.get(host).is_some_and(|by| by.values().any(|names| names.contains(name)))
    }

    /// Namespace and selector of the Service of a host.
    pub(super) fn selector(&self, host: &str) -> Option<&(String, Labels)> {
        self.selectors.get(host)?.values().next()
    }

    pub(super) fn group(&self, group: &Group) -> Option<&Members> {
        self.groups.get(group)
    }

    /// Number of workloads in a namespace (empty: in all).
    pub(super) fn workloads(&self, scope: &str) -> usize {
        self.counts.get(scope).copied().unwrap_or(0)
    }

    /// Workloads of a namespace (empty: of all) with all of these labels, of which there is at least one.
    pub(super) fn selected<'a>(
        &'a self,
        scope: &str,
        selector: &'a Labels,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Labels)> + use<'a> {
        let place = selector.iter().next().map(|first| (scope.to_owned(), label(first)));
        let with = place.and_then(|place| self.labelled.get(&place));
        let all = with.into_iter().flatten().filter_map(|key| self.workloads.get_key_value(key));
        all.filter(move |(_, labels)| selects(selector, labels))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let tables = [self.hosts.is_empty(), self.suffixes.is_empty(), self.subsets.is_empty(), self.groups.is_empty()];
        let workloads = [self.workloads.is_empty(), self.labelled.is_empty(), self.counts.is_empty()];
        tables.into_iter().chain(workloads).all(|e| e) && self.selectors.is_empty() && self.objects.is_empty()
    }
}

/// Changes an entry, and removes it when that leaves nothing of it.
fn drop_from<K: std::hash::Hash + Eq, V>(table: &mut HashMap<K, V>, key: &K, change: impl FnOnce(&mut V) -> bool) {
    if let Some(value) = table.get_mut(key)
        && change(value)
    {
        table.remove(key);
    }
}
