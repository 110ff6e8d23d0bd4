//! References between objects: hosts, subsets, ports, gateways, delegates that are not there. What is missing here is
//! no reason to refuse an object (it may come later); the object applies in its fail-safe form.
//!
//! Looks at all objects at once, so it runs after a change has settled and never on the way of a push.

use std::collections::{HashMap, HashSet};

use mesh_api::crd::gateway_api::{BackendRef, ParentRef};
use mesh_api::crd::networking::{Destination, VirtualService};
use mesh_api::names::{complete_host, service_host};

use super::Finding;
use crate::source::object::{Kind, Object, ObjectKey, Spec};

/// Everything that refers to something that is not there, ordered by object.
pub fn check<'a>(objects: &[&'a Object], domain: &'a str) -> Vec<Finding> {
    let known = Known::collect(objects, domain);
    let mut findings = Vec::new();
    for object in objects {
        let mut on = Checker { known: &known, key: &object.key, found: Vec::new() };
        match &object.spec {
            Spec::VirtualService(vs) => on.virtual_service(vs),
            Spec::DestinationRule(rule) => on.destination_rule(&rule.host),
            Spec::HttpRoute(route) => {
                on.parents(&route.parent_refs);
                for (i, rule) in route.rules.iter().enumerate() {
                    on.backends(&format!("spec.rules[{i}]"), &rule.backend_refs);
                }
            }
            Spec::GrpcRoute(route) => {
                on.parents(&route.parent_refs);
                for (i, rule) in route.rules.iter().enumerate() {
                    on.backends(&format!("spec.rules[{i}]"), &rule.backend_refs);
                }
            }
            _ => {}
        }
        for mut finding in on.found {
            finding.object = Some(object.key.clone());
            if let Some(position) = &object.position {
                finding.file = Some(position.file.clone());
                finding.line = Some(position.line);
            }
            findings.push(finding);
        }
    }
    findings.sort_by(|a, b| (&a.file, &a.object, &a.field).cmp(&(&b.file, &b.object, &b.field)));
    findings
}

/// What there is to refer to.
#[derive(Debug, Default)]
struct Known<'a> {
    domain: &'a str,
    /// Host → its ports.
    hosts: HashMap<String, Vec<u16>>,
    /// `.suffix` of wildcard hosts of ServiceEntries.
    suffixes: Vec<&'a str>,
    /// (Host, subset).
    subsets: HashSet<(String, &'a str)>,
    objects: HashSet<&'a ObjectKey>,
}

impl<'a> Known<'a> {
    fn collect(objects: &[&'a Object], domain: &'a str) -> Self {
        let mut known = Known { domain, ..Known::default() };
        for object in objects {
            let key = &object.key;
            match &object.spec {
                Spec::Service(service) => {
                    let ports = service.ports.iter().map(|p| p.port).collect();
                    known.hosts.insert(service_host(&key.name, &key.namespace, domain), ports);
                }
                Spec::ServiceEntry(entry) => {
                    for host in &entry.hosts {
                        match host.strip_prefix('*') {
                            Some(suffix) => known.suffixes.push(suffix),
                            None => {
                                let ports = known.hosts.entry(host.clone()).or_default();
                                ports.extend(entry.ports.iter().map(|p| p.number));
                            }
                        }
                    }
                }
                Spec::DestinationRule(rule) => {
                    let host = complete_host(&rule.host, &key.namespace, domain);
                    known.subsets.extend(rule.subsets.iter().map(|s| (host.clone(), s.name.as_str())));
                }
                _ => {}
            }
            known.objects.insert(key);
        }
        known
    }

    /// Ports of a host; empty for one that only a wildcard covers.
    fn ports(&self, host: &str) -> Option<&[u16]> {
        match self.hosts.get(host) {
            Some(ports) => Some(ports),
            None => self.suffixes.iter().any(|s| host.ends_with(s)).then_some(&[]),
        }
    }

    fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.objects.contains(&ObjectKey::new(kind, namespace, name))
    }
}

struct Checker<'k> {
    known: &'k Known<'k>,
    key: &'k ObjectKey,
    found: Vec<Finding>,
}

/// Something referred to is missing.
const MISSING: &str = "IST0101";

impl Checker<'_> {
    fn missing(&mut self, field: String, message: String) {
        self.found.push(Finding::error(field, message).code(MISSING));
    }

    fn virtual_service(&mut self, vs: &VirtualService) {
        for (i, gateway) in vs.gateways.iter().enumerate().filter(|(_, g)| *g != "mesh") {
            let (namespace, name) = gateway.split_once('/').unwrap_or((&self.key.namespace, gateway));
            if !self.known.has(Kind::IstioGateway, namespace, name) {
                self.missing(format!("spec.gateways[{i}]"), format!("there is no Gateway {namespace}/{name}"));
            }
        }
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
                if !self.known.has(Kind::VirtualService, namespace, &delegate.name) {
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

    fn destination(&mut self, field: &str, to: &Destination) {
        let host = complete_host(&to.host, &self.key.namespace, self.known.domain);
        let Some(ports) = self.known.ports(&host) else {
            self.missing(format!("{field}.host"), format!("there is no service {host}: requests get 503"));
            return;
        };
        match &to.port {
            None if ports.len() > 1 => {
                let message = format!("{host} has several ports ({}): name one", list(ports));
                self.found.push(Finding::error(format!("{field}.port"), message).code("IST0112"));
            }
            Some(port) if !ports.is_empty() && !ports.contains(&port.number) => {
                let message = format!("{host} has no port {}, but {}", port.number, list(ports));
                self.missing(format!("{field}.port.number"), message);
            }
            _ => {}
        }
        if !to.subset.is_empty() && !self.known.subsets.contains(&(host.clone(), to.subset.as_str())) {
            let message = format!("no DestinationRule of {host} has a subset {:?}: requests get 503", to.subset);
            self.missing(format!("{field}.subset"), message);
        }
    }

    fn destination_rule(&mut self, host: &str) {
        let host = complete_host(host, &self.key.namespace, self.known.domain);
        if !host.starts_with('*') && self.known.ports(&host).is_none() {
            let finding = Finding::warning("spec.host", format!("there is no service {host}"));
            self.found.push(finding.code("IST0174"));
        }
    }

    fn parents(&mut self, parents: &[ParentRef]) {
        for (i, parent) in parents.iter().enumerate() {
            let kind = match parent.kind.as_deref().unwrap_or("Gateway") {
                "Gateway" => Kind::Gateway,
                "Service" => Kind::Service,
                _ => continue,
            };
            let namespace = parent.namespace.as_deref().unwrap_or(&self.key.namespace);
            if !self.known.has(kind, namespace, &parent.name) {
                let message = format!("there is no {kind} {namespace}/{}", parent.name);
                self.missing(format!("spec.parentRefs[{i}].name"), message);
            }
        }
    }

    fn backends(&mut self, field: &str, backends: &[BackendRef]) {
        for (i, backend) in backends.iter().enumerate() {
            let field = format!("{field}.backendRefs[{i}].name");
            let host = match backend.kind.as_deref().unwrap_or("Service") {
                "Service" => {
                    let namespace = backend.namespace.as_deref().unwrap_or(&self.key.namespace);
                    service_host(&backend.name, namespace, self.known.domain)
                }
                "Hostname" => backend.name.clone(),
                _ => continue,
            };
            if self.known.ports(&host).is_none() {
                self.missing(field, format!("there is no service {host}: requests get 500"));
            }
        }
    }
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::source::manifest;

    #[test]
    fn names_what_is_missing() {
        let text = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  gateways: [mesh, public/edge]
  http:
  - route:
    - destination: {host: web, subset: v2, port: {number: 80}}
      weight: 20
    - destination: {host: web}
      weight: 20
    - destination: {host: wbe, port: {number: 80}}
      weight: 20
    - destination: {host: web, port: {number: 82}}
      weight: 20
    - destination: {host: api.example.com}
      weight: 20
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec:
  hosts: ['*.example.com']
  ports: [{number: 443, name: tls, protocol: TLS}]
";
        let readings = manifest::read(Path::new("a.yaml"), text);
        let objects: Vec<_> = readings.iter().map(|r| r.object.as_ref().expect("good")).collect();
        let found: Vec<_> = check(&objects, "cluster.local")
            .iter()
            .map(|f| format!("{} {} {}", f.code.unwrap_or_default(), f.field, f.line.unwrap_or_default()))
            .collect();
        let route = "spec.http[0].route";
        assert_eq!(
            found,
            [
                "IST0101 spec.gateways[1] 7".to_owned(),
                format!("IST0101 {route}[0].destination.subset 7"),
                format!("IST0112 {route}[1].destination.port 7"),
                format!("IST0101 {route}[2].destination.host 7"),
                format!("IST0101 {route}[3].destination.port.number 7"),
            ]
        );
    }
}
