//! What a proxy holds about one service: routes with their weights and causes, TLS towards it, endpoints. Reads dumps
//! in Envoy's shape and asks nobody.

use std::collections::BTreeMap;

use mesh_api::names::ClusterName;
use serde::Serialize;
use serde_json::Value;

use crate::cmd::proxy_config::{Dump, cause, list_at, route::matching, str_at};

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Hosts that it is for; empty for TCP.
    pub hosts: Vec<String>,
    /// Name of the route configuration or listener that it stands in.
    pub place: String,
    /// Path and other conditions.
    pub matches: String,
    /// Where to, with shares.
    pub destinations: Vec<Destination>,
    /// What else it does, e.g. `mirrored`.
    pub remarks: Vec<String>,
    /// Object that made it, `NAME.NAMESPACE (KIND)`; `-`: none, it is the service's own.
    pub cause: String,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Host and port; the name of a cluster that has none.
    pub to: String,
    /// Subset; empty: none.
    pub subset: String,
    /// Share in percent.
    pub weight: u64,
    /// The proxy has no such cluster: requests end with 503.
    pub missing: bool,
    /// Endpoints that it has; `None`: they are not the control plane's to tell (names to be looked up, say).
    pub endpoints: Option<usize>,
}

/// TLS towards a port of a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientTls {
    /// Port of the service.
    pub port: u16,
    /// Subset; empty: none.
    pub subset: String,
    /// `AUTO` (mutual where the server has a proxy), or a mode of DestinationRule.
    pub mode: &'static str,
}

/// One proxy's side.
#[derive(Debug)]
pub struct Side<'a> {
    dump: &'a Dump,
    /// Endpoints of every cluster that the proxy has, as far as the control plane tells them.
    clusters: BTreeMap<String, Option<usize>>,
}

impl<'a> Side<'a> {
    /// From its dump.
    pub fn new(dump: &'a Dump) -> Self {
        let told = |c: &Value| (str_at(c, "/type") == "EDS").then_some(0);
        let mut clusters: BTreeMap<String, Option<usize>> =
            dump.clusters().iter().map(|c| (str_at(c, "/name").to_owned(), told(c))).collect();
        for assignment in dump.endpoints() {
            let endpoints = list_at(assignment, "/endpoints").flat_map(|l| list_at(l, "/lb_endpoints")).count();
            if let Some(Some(count)) = clusters.get_mut(str_at(assignment, "/cluster_name")) {
                *count += endpoints;
            }
        }
        Self { dump, clusters }
    }

    /// HTTP routes for a host, and those of other hosts that lead to it; then TCP.
    pub fn routes(&self, host: &str) -> Vec<Route> {
        let mut out = Vec::new();
        for config in self.dump.routes() {
            for virtual_host in list_at(config, "/virtual_hosts") {
                let hosts: Vec<String> =
                    list_at(virtual_host, "/domains").filter_map(Value::as_str).map(str::to_owned).collect();
                let name = str_at(virtual_host, "/name");
                let own = name.rsplit_once(':').map_or(name, |(name, _)| name) == host;
                for route in list_at(virtual_host, "/routes") {
                    let destinations = self.destinations(route.get("route").unwrap_or(&Value::Null));
                    if own || destinations.iter().any(|d| leads_to(d, host)) {
                        out.push(Route {
                            hosts: hosts.clone(),
                            place: str_at(config, "/name").to_owned(),
                            matches: conditions(route),
                            destinations,
                            remarks: remarks(route),
                            cause: cause(route, ""),
                        });
                    }
                }
            }
        }
        out.extend(self.tcp_routes(host));
        out
    }

    fn tcp_routes(&self, host: &str) -> Vec<Route> {
        let mut out = Vec::new();
        for listener in self.dump.listeners() {
            let fallback = listener.get("default_filter_chain");
            for chain in list_at(listener, "/filter_chains").chain(fallback) {
                let configs = list_at(chain, "/filters").filter_map(|f| f.get("typed_config"));
                let proxies = configs.filter(|c| c.get("cluster").is_some() || c.get("weighted_clusters").is_some());
                for proxy in proxies {
                    let destinations = self.destinations(proxy);
                    if !destinations.iter().any(|d| leads_to(d, host)) {
                        continue;
                    }
                    let sni: Vec<&str> =
                        list_at(chain, "/filter_chain_match/server_names").filter_map(Value::as_str).collect();
                    let matches = if sni.is_empty() { "TCP".to_owned() } else { format!("TLS for {}", sni.join(", ")) };
                    let cause = Some(cause(chain, "")).filter(|c| c != "-").unwrap_or_else(|| cause(listener, ""));
                    out.push(Route {
                        hosts: vec![],
                        place: str_at(listener, "/name").to_owned(),
                        matches,
                        destinations,
                        remarks: vec![],
                        cause,
                    });
                }
            }
        }
        out
    }

    /// Of an HTTP route's action or a TCP proxy.
    fn destinations(&self, action: &Value) -> Vec<Destination> {
        let single = str_at(action, "/cluster");
        if !single.is_empty() {
            return vec![self.destination(single, 100)];
        }
        let weight = |c: &Value| c.get("weight").and_then(Value::as_u64).unwrap_or(0);
        let all: Vec<&Value> = list_at(action, "/weighted_clusters/clusters").collect();
        let total = all.iter().map(|c| weight(c)).sum::<u64>().max(1);
        all.iter().map(|c| self.destination(str_at(c, "/name"), weight(c) * 100 / total)).collect()
    }

    fn destination(&self, cluster: &str, weight: u64) -> Destination {
        let endpoints = self.clusters.get(cluster);
        let parsed = ClusterName::parse(cluster);
        Destination {
            to: parsed.as_ref().map_or_else(|| cluster.to_owned(), |n| format!("{}:{}", n.host, n.port)),
            subset: parsed.map(|n| n.subset.to_owned()).unwrap_or_default(),
            weight,
            missing: endpoints.is_none(),
            endpoints: endpoints.copied().flatten(),
        }
    }

    /// TLS towards every port and subset of a host.
    pub fn client_tls(&self, host: &str) -> Vec<ClientTls> {
        let mut out = Vec::new();
        for cluster in self.dump.clusters() {
            let Some(name) = ClusterName::parse(str_at(cluster, "/name")) else { continue };
            if name.host == host && name.direction.as_str() == "outbound" {
                out.push(ClientTls { port: name.port, subset: name.subset.to_owned(), mode: tls_mode(cluster) });
            }
        }
        out.sort_by(|a, b| (a.port, &a.subset).cmp(&(b.port, &b.subset)));
        out
    }
}

fn leads_to(destination: &Destination, host: &str) -> bool {
    destination.to.rsplit_once(':').is_some_and(|(to, _)| to == host)
}

/// Path, methods and headers that a route asks for.
fn conditions(route: &Value) -> String {
    let mut out = vec![matching(route)];
    let tests = [("/match/headers", "header"), ("/match/query_parameters", "query parameter")];
    for (pointer, word) in tests {
        for test in list_at(route, pointer) {
            let name = str_at(test, "/name");
            let forms = [("exact", "is"), ("prefix", "begins with"), ("suffix", "ends with"), ("contains", "contains")];
            let plain = forms.iter().find_map(|(field, verb)| {
                Some((*verb, test.pointer(&format!("/string_match/{field}"))?.as_str()?.to_owned()))
            });
            let regex = || Some(("fits", test.pointer("/string_match/safe_regex/regex")?.as_str()?.to_owned()));
            let (verb, value) = plain.or_else(regex).unwrap_or(("is there", String::new()));
            let not = if test.get("invert_match").and_then(Value::as_bool) == Some(true) { "not: " } else { "" };
            let word = if name == ":method" { "method".to_owned() } else { format!("{word} {name}") };
            out.push(format!("{not}{word} {verb} {value}").trim_end().to_owned());
        }
    }
    out.join(", ")
}

/// What a route does beside leading somewhere.
fn remarks(route: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if route.get("redirect").is_some() {
        out.push("redirects".to_owned());
    }
    if let Some(status) = route.pointer("/direct_response/status").and_then(Value::as_u64) {
        out.push(format!("answers {status} itself"));
    }
    if list_at(route, "/route/request_mirror_policies").next().is_some() {
        out.push("mirrors".to_owned());
    }
    if route.pointer("/typed_per_filter_config/envoy.filters.http.fault").is_some() {
        out.push("injects faults".to_owned());
    }
    let timeout = str_at(route, "/route/timeout");
    if !matches!(timeout, "" | "0s") {
        out.push(format!("timeout {timeout}"));
    }
    out
}

/// In DestinationRule's words.
fn tls_mode(cluster: &Value) -> &'static str {
    if list_at(cluster, "/transport_socket_matches").next().is_some() {
        return "AUTO";
    }
    let Some(outer) = cluster.get("transport_socket") else { return "DISABLE" };
    // TLS may be inside of the PROXY protocol.
    let socket = outer.pointer("/typed_config/transport_socket").unwrap_or(outer);
    if !str_at(socket, "/name").ends_with(".tls") {
        return "DISABLE";
    }
    let common = socket.pointer("/typed_config/common_tls_context").unwrap_or(&Value::Null);
    let secrets = list_at(common, "/tls_certificate_sds_secret_configs");
    let names: Vec<&str> = secrets.map(|s| str_at(s, "/name")).collect();
    let files = list_at(common, "/tls_certificates").next().is_some();
    match names.first() {
        Some(&"default") => "ISTIO_MUTUAL",
        Some(_) => "MUTUAL",
        None if files => "MUTUAL",
        None => "SIMPLE",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WEB: &str = "web.shop.svc.cluster.local";

    fn dump() -> Dump {
        let cluster =
            |name: &str, socket: Value| json!({"cluster": {"name": name, "type": "EDS", "transport_socket": socket}});
        let tls = |secret: &str| {
            json!({"name": "envoy.transport_sockets.tls", "typed_config": {"common_tls_context":
                {"tls_certificate_sds_secret_configs": [{"name": secret}]}}})
        };
        let auto = json!({"cluster": {"name": format!("outbound|80||{WEB}"),
            "transport_socket_matches": [{"name": "tlsMode-istio"}]}});
        let route = |value: Value| json!({"route_config": {"name": "80", "virtual_hosts": [value]}});
        let istio = |path: &str| json!({"filter_metadata": {"istio": {"config": path}}});
        Dump::of(&json!({"configs": [
            {"@type": "x.ClustersConfigDump", "dynamic_active_clusters": [
                auto,
                cluster(&format!("outbound|80|v1|{WEB}"), tls("default")),
                cluster(&format!("outbound|9000||{WEB}"), Value::Null),
            ]},
            {"@type": "x.EndpointsConfigDump", "dynamic_endpoint_configs": [{"endpoint_config": {
                "cluster_name": format!("outbound|80|v1|{WEB}"), "endpoints": [{"lb_endpoints": [{}, {}]}]}}]},
            {"@type": "x.RoutesConfigDump", "dynamic_route_configs": [
                route(json!({"name": format!("{WEB}:80"), "domains": ["web"], "routes": [
                    {"match": {"prefix": "/api", "headers": [{"name": "x-user", "string_match": {"exact": "me"}}]},
                     "metadata": istio("/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web"),
                     "route": {"weighted_clusters": {"clusters": [
                        {"name": format!("outbound|80|v1|{WEB}"), "weight": 9},
                        {"name": format!("outbound|80|v2|{WEB}"), "weight": 1}]}, "timeout": "2s"}},
                    {"match": {"prefix": "/"}, "direct_response": {"status": 503}},
                ]})),
                route(json!({"name": "other.shop.svc.cluster.local:80", "domains": ["other"], "routes": [
                    {"match": {"prefix": "/"}, "route": {"cluster": "outbound|80||other.shop.svc.cluster.local"}}]})),
            ]},
            {"@type": "x.ListenersConfigDump", "dynamic_listeners": [{"active_state": {"listener": {
                "name": "10.0.0.1_9000", "filter_chains": [{"filters": [{"typed_config":
                    {"cluster": format!("outbound|9000||{WEB}")}}]}]}}}]},
        ]}))
        .unwrap()
    }

    #[test]
    fn routes_of_a_host_with_shares_and_causes() {
        let dump = dump();
        let routes = Side::new(&dump).routes(WEB);
        assert_eq!(routes.len(), 3, "{routes:?}");
        let first = &routes[0];
        assert_eq!(first.matches, "/api*, header x-user is me");
        assert_eq!(first.cause, "web.shop (VirtualService)");
        assert_eq!(first.remarks, ["timeout 2s"]);
        let shares: Vec<(&str, u64, bool, Option<usize>)> =
            first.destinations.iter().map(|d| (&*d.subset, d.weight, d.missing, d.endpoints)).collect();
        assert_eq!(shares, [("v1", 90, false, Some(2)), ("v2", 10, true, None)]);
        assert_eq!(routes[1].remarks, ["answers 503 itself"]);
        assert_eq!((routes[2].matches.as_str(), routes[2].place.as_str()), ("TCP", "10.0.0.1_9000"));
    }

    #[test]
    fn tls_towards_a_host_by_port_and_subset() {
        let dump = dump();
        let all = Side::new(&dump).client_tls(WEB);
        let modes: Vec<(u16, &str, &str)> = all.iter().map(|t| (t.port, &*t.subset, t.mode)).collect();
        assert_eq!(modes, [(80, "", "AUTO"), (80, "v1", "ISTIO_MUTUAL"), (9000, "", "DISABLE")]);
    }
}
