//! What an object refers to: hosts, subsets, ports, gateways, delegates, parents, credentials.

use std::collections::{BTreeSet, HashMap};

use mesh_api::crd::gateway_api::{BackendRef, BackendTlsPolicy, L4RouteRule, ParentRef};
use mesh_api::crd::networking::{Destination, DestinationRule, Gateway, VirtualService};
use mesh_api::names::{complete_host, service_host};

use super::Checked;
use super::known::{Group, Known, Topic, for_sidecars};
use crate::source::object::{Kind, Object, ObjectKey, Spec};
use crate::validate::Finding;
use crate::validate::codes::{MISSING, OTHERS_HOST};

/// Looks at one object.
pub(super) struct Checker<'k> {
    pub(super) known: &'k Known,
    pub(super) objects: &'k HashMap<ObjectKey, Checked>,
    pub(super) key: &'k ObjectKey,
    pub(super) found: Vec<Finding>,
    /// What the findings depend on.
    pub(super) uses: Vec<Topic>,
}

impl<'k> Checker<'k> {
    pub(super) fn object(&mut self, object: &Object) {
        self.conflicts(object);
        self.selection(object);
        match &object.spec {
            Spec::VirtualService(vs) => self.virtual_service(vs),
            Spec::EnvoyFilter(filter) => self.patches(filter),
            Spec::DestinationRule(rule) => self.destination_rule(rule),
            Spec::IstioGateway(gateway) => self.gateway(gateway),
            Spec::Ingress(ingress) => self.ingress(ingress),
            Spec::HttpRoute(route) => {
                self.parents(&route.parent_refs);
                for (i, rule) in route.rules.iter().enumerate() {
                    self.backends(&format!("spec.rules[{i}]"), &rule.backend_refs);
                }
            }
            Spec::TlsRoute(route) => self.l4(&route.parent_refs, &route.rules),
            Spec::TcpRoute(route) => self.l4(&route.parent_refs, &route.rules),
            Spec::BackendTlsPolicy(policy) => self.backend_tls(policy),
            Spec::ListenerSet(set) => {
                let namespace = set.parent_ref.namespace.as_deref().unwrap_or(&self.key.namespace);
                if !self.has(Kind::Gateway, namespace, &set.parent_ref.name) {
                    let message = format!("there is no Gateway {namespace}/{}", set.parent_ref.name);
                    self.missing("spec.parentRef.name".to_owned(), message);
                }
            }
            Spec::GrpcRoute(route) => {
                self.parents(&route.parent_refs);
                for (i, rule) in route.rules.iter().enumerate() {
                    self.backends(&format!("spec.rules[{i}]"), &rule.backend_refs);
                }
            }
            _ => {}
        }
    }

    /// Ports of a host, noting that the object depends on it.
    pub(super) fn ports(&mut self, host: &str) -> Option<BTreeSet<u16>> {
        self.uses.push(Topic::Host(host.to_owned()));
        self.known.ports(host)
    }

    /// Whether there is an object, noting that this one depends on it.
    pub(super) fn has(&mut self, kind: Kind, namespace: &str, name: &str) -> bool {
        let key = ObjectKey::new(kind, namespace, name);
        let found = self.known.objects.contains(&key);
        self.uses.push(Topic::Object(key));
        found
    }

    pub(super) fn missing(&mut self, field: String, message: String) {
        self.found.push(Finding::error(field, message).code(MISSING));
    }

    fn virtual_service(&mut self, vs: &VirtualService) {
        for (i, gateway) in vs.gateways.iter().enumerate().filter(|(_, g)| *g != "mesh") {
            let (namespace, name) = gateway.split_once('/').unwrap_or((&self.key.namespace, gateway));
            if self.has(Kind::IstioGateway, namespace, name) {
                self.hosts_of_gateway(&format!("spec.gateways[{i}]"), vs, namespace, name);
            } else {
                self.missing(format!("spec.gateways[{i}]"), format!("there is no Gateway {namespace}/{name}"));
            }
        }
        self.claims(vs);
        self.hosts_of_others(vs);
        for (i, http) in vs.http.iter().enumerate() {
            let field = format!("spec.http[{i}]");
            for (j, route) in http.route.iter().enumerate() {
                self.destination(&format!("{field}.route[{j}].destination"), &route.destination);
            }
            if let Some(mirror) = &http.mirror {
                self.destination(&format!("{field}.mirror"), mirror);
            }
            for (j, mirror) in http.mirrors.iter().enumerate() {
                self.destination(&format!("{field}.mirrors[{j}].destination"), &mirror.destination);
            }
            if let Some(delegate) = &http.delegate {
                let own = &*self.key.namespace;
                let namespace = if delegate.namespace.is_empty() { own } else { &delegate.namespace };
                if !self.has(Kind::VirtualService, namespace, &delegate.name) {
                    let message = format!("there is no VirtualService {namespace}/{}", delegate.name);
                    self.missing(format!("{field}.delegate"), message);
                }
            }
        }
        let tls = vs.tls.iter().map(|r| &r.route).enumerate().map(|(i, r)| (format!("spec.tls[{i}]"), r));
        let tcp = vs.tcp.iter().map(|r| &r.route).enumerate().map(|(i, r)| (format!("spec.tcp[{i}]"), r));
        for (field, routes) in tls.chain(tcp) {
            for (j, route) in routes.iter().enumerate() {
                self.destination(&format!("{field}.route[{j}].destination"), &route.destination);
            }
        }
    }

    /// Services of other namespaces are routed for the own clients only.
    fn hosts_of_others(&mut self, vs: &VirtualService) {
        let own = self.key.namespace.clone();
        if !for_sidecars(vs) || self.known.scope(self.key).is_empty() {
            return;
        }
        for (i, host) in vs.hosts.iter().enumerate() {
            let host = complete_host(host, &own, &self.known.domain).to_ascii_lowercase();
            self.uses.push(Topic::Host(host.clone()));
            if self.known.belongs_to_others(&host, &own) {
                let message = format!(
                    "{host} belongs to another namespace: only clients in {own} are routed by this, \
                     unless mesh-control runs with --cross-namespace-routes"
                );
                self.found.push(Finding::warning(format!("spec.hosts[{i}]"), message).code(OTHERS_HOST));
            }
        }
    }

    fn destination(&mut self, field: &str, to: &Destination) {
        let host = complete_host(&to.host, &self.key.namespace, &self.known.domain);
        let Some(ports) = self.ports(&host) else {
            self.missing(format!("{field}.host"), format!("there is no service {host}: requests get 503"));
            return;
        };
        match &to.port {
            None if ports.len() > 1 => {
                let message = format!("{host} has several ports ({}): name one", list(&ports));
                self.found.push(Finding::error(format!("{field}.port"), message).code("IST0112"));
            }
            Some(port) if !ports.is_empty() && !ports.contains(&port.number) => {
                let message = format!("{host} has no port {}, but {}", port.number, list(&ports));
                self.missing(format!("{field}.port.number"), message);
            }
            _ => {}
        }
        if !to.subset.is_empty() && !self.known.has_subset(&host, &to.subset) {
            let message = format!("no DestinationRule of {host} has a subset {:?}: requests get 503", to.subset);
            self.missing(format!("{field}.subset"), message);
        }
    }

    fn destination_rule(&mut self, rule: &DestinationRule) {
        let host = complete_host(&rule.host, &self.key.namespace, &self.known.domain);
        if host.starts_with('*') {
            return;
        }
        if self.ports(&host).is_none() {
            let finding = Finding::warning("spec.host", format!("there is no service {host}"));
            self.found.push(finding.code("IST0174"));
        } else {
            self.subsets(&host, rule);
        }
    }

    /// The Gateway of a VirtualService has a server for at least one of its hosts.
    fn hosts_of_gateway(&mut self, field: &str, vs: &VirtualService, namespace: &str, name: &str) {
        let Some(gateway) = self.istio_gateway(namespace, name) else { return };
        let own = &*self.key.namespace;
        let served = |server: &str| {
            let (from, host) = server.split_once('/').unwrap_or(("*", server));
            let visible = from == "*" || from == own || (from == "." && namespace == own);
            visible && vs.hosts.iter().any(|h| meet(h, host) || meet(&complete_host(h, own, &self.known.domain), host))
        };
        if !vs.hosts.is_empty() && !gateway.servers.iter().flat_map(|s| &s.hosts).any(|h| served(h)) {
            let message = format!("no server of Gateway {namespace}/{name} has {}", vs.hosts.join(" or "));
            self.found.push(Finding::warning(field, message).code("IST0132"));
        }
    }

    pub(super) fn istio_gateway(&self, namespace: &str, name: &str) -> Option<&'k Gateway> {
        let key = ObjectKey::new(Kind::IstioGateway, namespace, name);
        match &self.objects.get(&key)?.object.spec {
            Spec::IstioGateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    /// Credentials; where the gateway's workload runs is not known here, so a secret of that name anywhere will do.
    fn gateway(&mut self, gateway: &Gateway) {
        for (i, server) in gateway.servers.iter().enumerate() {
            let Some(tls) = &server.tls else { continue };
            let field = format!("spec.servers[{i}].tls");
            let many =
                tls.credential_names.iter().enumerate().map(|(j, n)| (format!("{field}.credentialNames[{j}]"), n));
            let one = (format!("{field}.credentialName"), &tls.credential_name);
            for (field, name) in std::iter::once(one).chain(many) {
                if name.is_empty() || name.contains("://") {
                    continue;
                }
                self.secret(field, name);
            }
        }
        self.gateway_ports(gateway);
    }

    /// A Secret of that name, in whatever namespace.
    pub(super) fn secret(&mut self, field: String, name: &str) {
        let group = Group::Secret(name.to_owned());
        if self.known.group(&group).is_none() {
            self.missing(field, format!("there is no Secret {name}: handshakes fail"));
        }
        self.uses.push(Topic::Group(group));
    }

    fn parents(&mut self, parents: &[ParentRef]) {
        for (i, parent) in parents.iter().enumerate() {
            let kind = match parent.kind.as_deref().unwrap_or("Gateway") {
                "Gateway" => Kind::Gateway,
                "ListenerSet" => Kind::ListenerSet,
                "Service" => Kind::Service,
                _ => continue,
            };
            let namespace = parent.namespace.as_deref().unwrap_or(&self.key.namespace);
            if !self.has(kind, namespace, &parent.name) {
                let message = format!("there is no {kind} {namespace}/{}", parent.name);
                self.missing(format!("spec.parentRefs[{i}].name"), message);
            }
        }
    }

    fn l4(&mut self, parents: &[ParentRef], rules: &[L4RouteRule]) {
        self.parents(parents);
        for (i, rule) in rules.iter().enumerate() {
            let backends: Vec<BackendRef> = rule.backend_refs.iter().cloned().map(BackendRef::from).collect();
            self.backends(&format!("spec.rules[{i}]"), &backends);
        }
    }

    fn backend_tls(&mut self, policy: &BackendTlsPolicy) {
        let namespace = self.key.namespace.clone();
        for (i, target) in policy.target_refs.iter().enumerate().filter(|(_, t)| t.kind == "Service") {
            if !self.has(Kind::Service, &namespace, &target.name) {
                let message = format!("there is no Service {namespace}/{}", target.name);
                self.missing(format!("spec.targetRefs[{i}].name"), message);
            }
        }
        let maps = policy.validation.ca_certificate_refs.iter().enumerate().filter(|(_, r)| r.kind == "ConfigMap");
        for (i, r) in maps {
            if !self.has(Kind::ConfigMap, &namespace, &r.name) {
                let message = format!("there is no ConfigMap {namespace}/{}: requests fail", r.name);
                self.missing(format!("spec.validation.caCertificateRefs[{i}].name"), message);
            }
        }
    }

    fn backends(&mut self, field: &str, backends: &[BackendRef]) {
        for (i, backend) in backends.iter().enumerate() {
            let field = format!("{field}.backendRefs[{i}].name");
            let host = match backend.kind.as_deref().unwrap_or("Service") {
                "Service" => {
                    let namespace = backend.namespace.as_deref().unwrap_or(&self.key.namespace);
                    service_host(&backend.name, namespace, &self.known.domain)
                }
                "Hostname" => backend.name.clone(),
                _ => continue,
            };
            if self.ports(&host).is_none() {
                self.missing(field, format!("there is no service {host}: requests get 500"));
            }
        }
    }
}

pub(super) fn list(ports: &BTreeSet<u16>) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Whether there is a name that both stand for.
fn meet(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (None, None) => a == b,
        (Some(suffix), None) => b.ends_with(suffix),
        (None, Some(suffix)) => a.ends_with(suffix),
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
    }
}
