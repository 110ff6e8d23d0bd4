//! What looks wrong with pods, services and what leads to them.

use serde_json::Value;

use super::effective::Route;
use super::gateways::Exposure;
use super::{Pod, Service};

/// Everything that looks wrong, one sentence each.
pub fn found(pods: &[Pod], services: &[Service], gateways: &[Exposure]) -> Vec<String> {
    let mut out = Vec::new();
    pods.iter().for_each(|pod| of_pod(pod, &mut out));
    if let ([pod], []) = (pods, services) {
        out.push(format!("no service selects pod {}: nobody finds it by name", pod.name));
    }
    for service in services {
        of_service(service, &mut out);
        service.routes.iter().for_each(|route| of_route(route, &service.name(), &mut out));
        of_tls(service, pods, &mut out);
    }
    for exposure in gateways {
        exposure.routes.iter().for_each(|route| of_route(route, &exposure.gateway, &mut out));
    }
    out.dedup();
    out
}

fn of_pod(pod: &Pod, out: &mut Vec<String>) {
    let name = &pod.name;
    if pod.facts["ready"] == false {
        out.push(format!("pod {name} is not ready: it takes no traffic"));
    }
    match (pod.sidecar, &pod.connected) {
        (true, Some(connection)) => {
            for (short, why) in &connection.rejections {
                out.push(format!("the proxy of pod {name} refused {short}, and goes on with what it had: {why}"));
            }
            for (short, state) in connection.states.iter().filter(|(_, state)| *state == "STALE") {
                out.push(format!("the proxy of pod {name} has not confirmed the newest {short} yet: {state}"));
            }
        }
        (true, None) => out.push(format!(
            "pod {name} has a sidecar that is connected to no control plane: it follows no change (kubectl logs {name} \
             -n {} -c istio-proxy)",
            pod.namespace
        )),
        (false, _) => {
            let why = pod.injection.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            out.push(format!("pod {name} has no sidecar{why}"));
        }
    }
}

fn of_service(service: &Service, out: &mut Vec<String>) {
    let name = service.name();
    for port in service.facts["ports"].as_array().into_iter().flatten() {
        let (number, word) = (&port["port"], port["name"].as_str().unwrap_or_default());
        if port["protocol"] == "auto" {
            let what = if word.is_empty() { "has no name".to_owned() } else { format!("is called {word:?}") };
            out.push(format!(
                "port {number} of service {name} {what}, which tells no protocol: it is guessed at each connection; name it \
                 like http-{} or set appProtocol",
                if word.is_empty() { "web" } else { word }
            ));
        }
        let told = service.facts["external"] == false && port["protocol"] != "UDP";
        if told && port["endpoints"]["healthy"] == 0 {
            let rest = match port["endpoints"]["other"].as_u64() {
                Some(0) | None => "no pod that its selector and target port fit".to_owned(),
                Some(n) => format!("{n} that are not ready"),
            };
            out.push(format!("port {number} of service {name} has no endpoints that take traffic: {rest}"));
        }
    }
}

fn of_route(route: &Route, place: &str, out: &mut Vec<String>) {
    for destination in &route.destinations {
        let subset =
            Some(&destination.subset).filter(|s| !s.is_empty()).map(|s| format!(" subset {s}")).unwrap_or_default();
        let to = &destination.to;
        let by = if route.cause == "-" { place } else { &route.cause };
        if destination.missing {
            out.push(format!(
                "{by} leads {}% of {} to {to}{subset}, which is not there",
                destination.weight, route.matches
            ));
        } else if destination.endpoints == Some(0) && destination.weight > 0 {
            out.push(format!(
                "{by} leads {}% of {} to {to}{subset}, which has no endpoints",
                destination.weight, route.matches
            ));
        }
    }
}

/// Clients and servers that do not agree on TLS.
fn of_tls(service: &Service, pods: &[Pod], out: &mut Vec<String>) {
    let ports = service.facts["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    for tls in &service.client_tls {
        let target = ports.iter().find(|p| p["port"] == tls.port).map_or(&Value::Null, |p| &p["targetPort"]);
        for pod in pods {
            let authn = &pod.facts["peerAuthentication"];
            let of_port = target.as_u64().and_then(|port| authn["ports"][port.to_string()].as_str());
            let mode = of_port.or(authn["mode"].as_str()).unwrap_or_default();
            let why = match (tls.mode, mode) {
                ("DISABLE", "STRICT") if pod.sidecar => {
                    "clients speak cleartext, and its pods want mutual TLS (STRICT)"
                }
                ("ISTIO_MUTUAL", "DISABLE") => "clients speak mutual TLS, and its pods do not (DISABLE)",
                ("ISTIO_MUTUAL", _) if !pod.sidecar => "clients speak mutual TLS, and pods of it have no sidecar",
                _ => continue,
            };
            out.push(format!("port {} of service {}: {why}", tls.port, service.name()));
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::effective::{ClientTls, Destination};
    use super::super::{Connection, Pod, Service};
    use super::*;

    fn pod(facts: Value) -> Pod {
        let connected = Some(Connection::default());
        Pod { name: "web-1".into(), namespace: "shop".into(), sidecar: true, connected, facts, ..Pod::default() }
    }

    fn service(port: Value) -> Service {
        let facts = json!({"name": "web", "namespace": "shop", "external": false, "ports": [port]});
        Service { facts, ..Service::default() }
    }

    fn good_port() -> Value {
        json!({"name": "http", "port": 80, "targetPort": 8080, "protocol": "HTTP", "endpoints": {"healthy": 1, "other": 0}})
    }

    #[test]
    fn what_is_well_is_not_spoken_of() {
        let strict = json!({"ready": true, "peerAuthentication": {"mode": "STRICT", "ports": {}}});
        let tls = vec![ClientTls { port: 80, subset: String::new(), mode: "AUTO" }];
        let service = Service { client_tls: tls, ..service(good_port()) };
        assert_eq!(found(&[pod(strict)], &[service], &[]), [""; 0]);
    }

    #[test]
    fn each_trouble_is_told() {
        let says = |pods: &[Pod], services: &[Service], text: &str| {
            let all = found(pods, services, &[]);
            assert!(all.iter().any(|p| p.contains(text)), "{text:?} is not among {all:?}");
        };
        says(&[pod(json!({"ready": false}))], &[], "not ready");
        says(&[pod(json!({}))], &[], "no service selects");
        says(&[Pod { connected: None, ..pod(json!({})) }], &[], "connected to no control plane");
        let bare = Pod { sidecar: false, injection: Some("because".into()), ..pod(json!({})) };
        says(&[bare], &[], "no sidecar: because");
        let refused = Connection { rejections: [("CDS".to_owned(), "bad".to_owned())].into(), ..Connection::default() };
        says(&[Pod { connected: Some(refused), ..pod(json!({})) }], &[], "refused CDS");
        let mut unnamed = good_port();
        unnamed["protocol"] = json!("auto");
        unnamed["name"] = json!("");
        says(&[], &[service(unnamed)], "has no name");
        let mut empty = good_port();
        empty["endpoints"]["healthy"] = json!(0);
        says(&[], &[service(empty)], "no endpoints that take traffic");
        let route = |missing, endpoints| Route {
            hosts: vec![],
            place: "80".into(),
            matches: "/*".into(),
            destinations: vec![Destination {
                to: "web:80".into(),
                subset: "v2".into(),
                weight: 10,
                missing,
                endpoints,
            }],
            remarks: vec![],
            cause: "web.shop (VirtualService)".into(),
        };
        let routed = |route| Service { routes: vec![route], ..service(good_port()) };
        says(&[], &[routed(route(true, None))], "10% of /* to web:80 subset v2, which is not there");
        says(&[], &[routed(route(false, Some(0)))], "has no endpoints");
        let strict = || pod(json!({"peerAuthentication": {"mode": "PERMISSIVE", "ports": {"8080": "STRICT"}}}));
        let tls = vec![ClientTls { port: 80, subset: String::new(), mode: "DISABLE" }];
        says(&[strict()], &[Service { client_tls: tls, ..service(good_port()) }], "want mutual TLS (STRICT)");
    }
}
