//! Probes of applications lead through the proxy, which asks the application in the kubelet's place: the kubelet has no
//! certificate, and a redirected TCP probe would find the proxy listening whatever the application does.

use super::node::{Map, Node};
use super::template::PROXY;

/// Probes of a container, with the last part of their path.
const PROBES: [(&str, &str); 3] =
    [("readinessProbe", "readyz"), ("livenessProbe", "livez"), ("startupProbe", "startupz")];
/// Hooks that are requests, with theirs.
const HOOKS: [(&str, &str); 2] = [("preStop", "prestopz"), ("postStart", "poststartz")];
/// What a probe asks.
const ACTIONS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

/// Where the original probes stand, for the proxy and for taking injection back.
pub const ENV: &str = "ISTIO_KUBE_APP_PROBERS";

/// Rewrites the probes of all containers but the proxy's. What was there, as JSON by path; `None`: nothing.
pub fn rewrite(spec: &mut Node, status_port: u16) -> Option<String> {
    let mut found = Map::new();
    for list in ["containers", "initContainers"] {
        let Some(Node::List(containers)) = spec.get_mut(list) else { continue };
        for container in containers.iter_mut().filter(|c| c.name() != PROXY) {
            // Of init containers only those that stay are probed.
            if list == "initContainers" && container.get("restartPolicy").and_then(Node::as_str) != Some("Always") {
                continue;
            }
            let (name, ports) = (container.name().to_owned(), named_ports(container));
            for (probe, end) in PROBES {
                let Some(probe) = container.get_mut(probe) else { continue };
                rewrite_one(probe, &format!("/app-health/{name}/{end}"), &ports, status_port, &mut found);
            }
            for (hook, end) in HOOKS {
                let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) else { continue };
                if hook.get("httpGet").is_some() {
                    rewrite_one(hook, &format!("/app-lifecycle/{name}/{end}"), &ports, status_port, &mut found);
                }
            }
        }
    }
    if found.is_empty() { None } else { serde_json::to_string(&found).ok() }
}

fn named_ports(container: &Node) -> Vec<(String, u64)> {
    let ports = container.items("ports").iter();
    ports.filter_map(|p| Some((p.name().to_owned(), p.get("containerPort")?.as_u64()?))).collect()
}

fn rewrite_one(probe: &mut Node, path: &str, ports: &[(String, u64)], status_port: u16, found: &mut Map) {
    let Some(kind) = ACTIONS.into_iter().find(|a| probe.get(a).is_some()) else { return };
    let Some(action) = probe.get(kind) else { return };
    // Already leads to the proxy.
    if action.get("path").and_then(Node::as_str).is_some_and(|p| p.starts_with("/app-")) {
        return;
    }
    let number = match action.get("port") {
        Some(Node::Number(n)) => n.as_u64(),
        Some(Node::Text(name)) => ports.iter().find(|(n, _)| n == name).map(|(_, p)| *p).or_else(|| name.parse().ok()),
        _ => None,
    };
    // The API server refuses such a probe by itself.
    let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { return };
    let mut original = action.clone();
    // Names of ports mean nothing to the proxy; the name comes back when injection is taken back.
    if let (Node::Map(map), Some(Node::Text(name))) = (&mut original, action.get("port")) {
        map.insert("port".to_owned(), Node::from(u64::from(number)));
        map.insert("portName".to_owned(), name.as_str().into());
    }
    let mut entry = Map::new();
    entry.insert(kind.to_owned(), original);
    if let Some(seconds) = probe.get("timeoutSeconds") {
        entry.insert("timeoutSeconds".to_owned(), seconds.clone());
    }
    found.insert(path.to_owned(), Node::Map(entry));
    let mut replaced = Map::new();
    // Headers go along: the proxy sends them on.
    if let (true, Some(headers)) = (kind == "httpGet", action.get("httpHeaders")) {
        replaced.insert("httpHeaders".to_owned(), headers.clone());
    }
    replaced.insert("path".to_owned(), path.into());
    replaced.insert("port".to_owned(), Node::from(u64::from(status_port)));
    if let Node::Map(members) = probe {
        // In the place of the old one.
        let at = members.get_index_of(kind).unwrap_or(0);
        members.shift_remove(kind);
        members.shift_insert(at.min(members.len()), "httpGet".to_owned(), Node::Map(replaced));
    }
}

/// Puts back what [`rewrite`] found.
pub fn restore(spec: &mut Node, originals: &str) {
    let Ok(Node::Map(originals)) = serde_json::from_str::<Node>(originals) else { return };
    for list in ["containers", "initContainers"] {
        let Some(Node::List(containers)) = spec.get_mut(list) else { continue };
        for container in containers {
            let name = container.name().to_owned();
            for (probe, end) in PROBES {
                if let Some(probe) = container.get_mut(probe) {
                    put_back(probe, originals.get(&format!("/app-health/{name}/{end}")));
                }
            }
            for (hook, end) in HOOKS {
                if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)) {
                    put_back(hook, originals.get(&format!("/app-lifecycle/{name}/{end}")));
                }
            }
        }
    }
}

fn put_back(probe: &mut Node, original: Option<&Node>) {
    let (Some(original), Node::Map(members)) = (original, probe) else { return };
    let Some((kind, action)) = ACTIONS.into_iter().find_map(|a| Some((a, original.get(a)?))) else { return };
    let mut action = action.clone();
    if let Some(name) = action.remove("portName")
        && let Some(port) = action.get_mut("port")
    {
        *port = name;
    }
    let at = members.get_index_of("httpGet").unwrap_or(0);
    members.shift_remove("httpGet");
    members.shift_insert(at.min(members.len()), kind.to_owned(), action);
}
