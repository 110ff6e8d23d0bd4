//! A description for people, in the order and the words of istioctl's.

use std::fmt::Write as _;

use serde_json::Value;

use super::effective::{ClientTls, Route};
use super::gateways::Exposure;
use super::{Description, Pod, Service};

/// Between parts.
const LINE: &str = "--------------------";

/// All of it.
pub fn render(description: &Description) -> String {
    let Description { pods, services, gateways, problems } = description;
    let mut parts = Vec::new();
    parts.extend(pods.iter().map(pod));
    parts.extend(services.iter().map(service));
    parts.extend(gateways.iter().map(exposure));
    let mut trouble = String::from(if problems.is_empty() { "Nothing looks wrong" } else { "What looks wrong:" });
    for problem in problems {
        let _ = write!(trouble, "\n   - {problem}");
    }
    parts.push(trouble);
    parts.join(&format!("\n{LINE}\n"))
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

/// `NAME.NAMESPACE` of a reference.
fn named(reference: &Value) -> String {
    format!("{}.{}", text(reference, "name"), text(reference, "namespace"))
}

fn names(list: &Value) -> String {
    list.as_array().into_iter().flatten().map(named).collect::<Vec<_>>().join(", ")
}

// Writing into a String cannot fail.
fn pod(pod: &Pod) -> String {
    let mut out = format!("Pod: {}.{}", pod.name, pod.namespace);
    if !pod.revision.is_empty() {
        let _ = write!(out, "\n   Pod Revision: {}", pod.revision);
    }
    if !pod.ports.is_empty() {
        let _ = write!(out, "\n   Pod Ports: {}", pod.ports.join(", "));
    }
    let account = text(&pod.facts, "serviceAccount");
    if !account.is_empty() {
        let _ = write!(out, "\n   Service Account: {account}");
    }
    let proxy = match (&pod.connected, pod.sidecar) {
        (Some(c), _) => {
            let odd: Vec<String> =
                c.states.iter().filter(|(_, s)| *s != "SYNCED").map(|(t, s)| format!("{t} {s}")).collect();
            let state = if odd.is_empty() { "everything SYNCED".to_owned() } else { odd.join(", ") };
            format!("version {}, connected to {}, {state}", c.version, c.istiod)
        }
        (None, true) => "not connected".to_owned(),
        (None, false) => "none".to_owned(),
    };
    let _ = write!(out, "\n   Proxy: {proxy}");
    let sidecar = &pod.facts["sidecar"];
    if sidecar.is_object() {
        let _ = write!(out, "\n   Sidecar: {}", named(sidecar));
    }
    let authn = &pod.facts["peerAuthentication"];
    if authn.is_object() {
        let _ = write!(out, "\nEffective PeerAuthentication:\n   Workload mTLS mode: {}", text(authn, "mode"));
        for (port, mode) in authn["ports"].as_object().into_iter().flatten() {
            let _ = write!(out, "\n   Port {port}: {}", mode.as_str().unwrap_or_default());
        }
        let policies = names(&authn["policies"]);
        if !policies.is_empty() {
            let _ = write!(out, "\nApplied PeerAuthentication: {policies}");
        }
    }
    let jwt = names(&pod.facts["requestAuthentications"]);
    if !jwt.is_empty() {
        let _ = write!(out, "\nRequestAuthentication: {jwt}");
    }
    let policies = pod.facts["authorizationPolicies"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !policies.is_empty() {
        out.push_str("\nAuthorizationPolicies:");
    }
    for policy in policies {
        let dry = if policy["dryRun"] == true { " (dry run)" } else { "" };
        let _ = write!(out, "\n   {} {}{dry}", text(policy, "action"), named(policy));
    }
    out
}

fn service(service: &Service) -> String {
    let facts = &service.facts;
    let mut out = format!("Service: {}\n   Host: {}", service.name(), service.host());
    for port in facts["ports"].as_array().into_iter().flatten() {
        let name = Some(text(port, "name")).filter(|n| !n.is_empty()).unwrap_or("(unnamed)");
        let target = match &port["targetPort"] {
            Value::String(name) => name.clone(),
            number => number.to_string(),
        };
        let protocol = match text(port, "protocol") {
            "auto" => "auto-detect",
            known => known,
        };
        let healthy = &port["endpoints"]["healthy"];
        let _ =
            write!(out, "\n   Port: {name} {}/{protocol} targets pod port {target}, {healthy} endpoints", port["port"]);
    }
    let rule = &facts["destinationRule"];
    if rule.is_object() {
        let _ = write!(out, "\nDestinationRule: {} for {:?}", names(&rule["sources"]), text(rule, "host"));
        for subset in rule["subsets"].as_array().into_iter().flatten() {
            let labels = subset["labels"].as_object().into_iter().flatten();
            let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
            let _ = write!(out, "\n   Subset: {} ({})", text(subset, "name"), labels.join(","));
        }
        out.push_str(if rule["trafficPolicy"] == true { "\n   Traffic Policy" } else { "\n   No Traffic Policy" });
    }
    match &service.seen_by {
        None => out.push_str("\nNo sidecar is connected: nobody has routes to it"),
        Some(proxy) => {
            tls(&service.client_tls, &mut out);
            if !service.routes.is_empty() {
                let _ = write!(out, "\nRoutes, as {proxy} has them:");
                routes(&service.routes, &mut out);
            }
        }
    }
    out
}

fn tls(all: &[ClientTls], out: &mut String) {
    if !all.is_empty() {
        out.push_str("\nTLS of clients:");
    }
    for ClientTls { port, subset, mode } in all {
        let subset = if subset.is_empty() { String::new() } else { format!(" subset {subset}") };
        let meaning = match *mode {
            "AUTO" => "mutual TLS with pods that have a sidecar, cleartext with others",
            "DISABLE" => "cleartext (DISABLE)",
            mode => mode,
        };
        let _ = write!(out, "\n   {port}{subset}: {meaning}");
    }
}

fn routes(all: &[Route], out: &mut String) {
    for route in all {
        let share = |d: &super::effective::Destination| {
            let subset = if d.subset.is_empty() { String::new() } else { format!(" subset {}", d.subset) };
            let weight = if route.destinations.len() > 1 { format!("{}% ", d.weight) } else { String::new() };
            let missing = if d.missing { " (not there)" } else { "" };
            format!("{weight}{}{subset}{missing}", d.to)
        };
        let to: Vec<String> = route.destinations.iter().map(share).chain(route.remarks.iter().cloned()).collect();
        let host = route.hosts.first().map(|h| format!("{h} ")).unwrap_or_default();
        let by = if route.cause == "-" { String::new() } else { format!("   by {}", route.cause) };
        let _ = write!(out, "\n   {host}{} -> {}{by}", route.matches, to.join(", "));
    }
}

fn exposure(exposure: &Exposure) -> String {
    let mut out = format!("Exposed to the outside by {} on {}", exposure.gateway, exposure.proxy);
    for address in &exposure.addresses {
        let _ = write!(out, "\n   Address: {address}");
    }
    routes(&exposure.routes, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::effective::Destination;
    use super::super::{Connection, Pod};
    use super::*;

    #[test]
    fn a_pod_and_its_service_in_istioctls_words() {
        let reference = json!({"name": "default", "namespace": "istio-system"});
        let facts = json!({"serviceAccount": "web", "peerAuthentication":
            {"mode": "STRICT", "ports": {"9000": "DISABLE"}, "policies": [reference]},
            "authorizationPolicies": [{"name": "deny", "namespace": "shop", "action": "DENY", "dryRun": true}]});
        let states = [("CDS".to_owned(), "SYNCED".to_owned())].into();
        let connected =
            Some(Connection { istiod: "istiod-1".into(), version: "1.2.3".into(), states, ..Default::default() });
        let pod =
            Pod { name: "web-1".into(), namespace: "shop".into(), sidecar: true, connected, facts, ..Pod::default() };
        let facts = json!({"name": "web", "namespace": "shop", "host": "web.shop.svc.cluster.local",
            "ports": [{"name": "http", "port": 80, "protocol": "HTTP", "targetPort": 8080, "endpoints": {"healthy": 2}}],
            "destinationRule": {"host": "web", "sources": [{"name": "web", "namespace": "shop"}],
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}], "trafficPolicy": false}});
        let to = |subset: &str, weight| Destination {
            to: "web:80".into(),
            subset: subset.into(),
            weight,
            missing: false,
            endpoints: Some(1),
        };
        let route = Route {
            hosts: vec!["web".into()],
            place: "80".into(),
            matches: "/api*".into(),
            destinations: vec![to("v1", 90), to("v2", 10)],
            remarks: vec![],
            cause: "web.shop (VirtualService)".into(),
        };
        let service = Service { facts, seen_by: Some("a.shop".into()), routes: vec![route], client_tls: vec![] };
        let shown = render(&Description { pods: vec![pod], services: vec![service], ..Description::default() });
        for line in [
            "Pod: web-1.shop",
            "   Proxy: version 1.2.3, connected to istiod-1, everything SYNCED",
            "   Workload mTLS mode: STRICT",
            "   Port 9000: DISABLE",
            "Applied PeerAuthentication: default.istio-system",
            "   DENY deny.shop (dry run)",
            "   Port: http 80/HTTP targets pod port 8080, 2 endpoints",
            "DestinationRule: web.shop for \"web\"",
            "   Subset: v1 (version=v1)",
            "   web /api* -> 90% web:80 subset v1, 10% web:80 subset v2   by web.shop (VirtualService)",
            "Nothing looks wrong",
        ] {
            assert!(shown.lines().any(|l| l == line), "{line:?} is not in\n{shown}");
        }
    }
}
