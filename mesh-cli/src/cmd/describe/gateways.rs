//! Gateways that lead to a service: which object opens them, which addresses they have, which routes lead there.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;

use super::effective::{Route, Side};
use crate::client::cluster::{Cluster, gvk};
use crate::client::mesh::Mesh;
use crate::client::pods::PodName;
use crate::cmd::proxy_config::{Dump, cause, list_at, str_at};
use crate::exit::Failure;

/// A gateway's way to a service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// Host of the service.
    pub service: String,
    /// Object that opens the port, `NAME.NAMESPACE (KIND)`.
    pub gateway: String,
    /// A proxy that runs it.
    pub proxy: String,
    /// Where clients reach it.
    pub addresses: Vec<String>,
    /// How requests get to the service.
    pub routes: Vec<Route>,
}

/// All of them, for each of these hosts.
///
/// # Errors
/// When the control plane or the API server does not tell.
pub async fn exposures(mesh: &Mesh<'_>, rows: &[Value], hosts: &[&str]) -> Result<Vec<Exposure>, Failure> {
    let proxies = one_of_each(rows);
    let found = join_all(proxies.iter().map(|proxy| of_proxy(mesh, proxy, hosts))).await;
    Ok(found.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Gateways, one pod of each Deployment: all have the same.
fn one_of_each(rows: &[Value]) -> Vec<PodName> {
    let routers = rows.iter().filter(|row| row["proxy_type"] == "router").filter_map(|row| row["proxy"].as_str());
    let mut out: BTreeMap<(String, String), PodName> = BTreeMap::new();
    for name in routers.map(|proxy| PodName::parse(proxy, "")) {
        // NAME-HASH-HASH of a Deployment; whatever has no such name stands for itself.
        let mut parts = name.name.rsplitn(3, '-');
        let workload = parts.nth(2).unwrap_or(&name.name).to_owned();
        out.entry((name.namespace.clone(), workload)).or_insert(name);
    }
    out.into_values().collect()
}

async fn of_proxy(mesh: &Mesh<'_>, proxy: &PodName, hosts: &[&str]) -> Result<Vec<Exposure>, Failure> {
    let dump = Dump::of_control(mesh, proxy).await?;
    let side = Side::new(&dump);
    let mut out: Vec<Exposure> = Vec::new();
    for host in hosts {
        for route in side.routes(host) {
            let gateway = opener(&dump, &route);
            let same = |e: &&mut Exposure| e.gateway == gateway && e.service == *host;
            match out.iter_mut().find(same) {
                Some(exposure) => exposure.routes.push(route),
                None => out.push(Exposure {
                    service: (*host).to_owned(),
                    gateway,
                    proxy: proxy.to_string(),
                    addresses: vec![],
                    routes: vec![route],
                }),
            }
        }
    }
    if let (false, Some(cluster)) = (out.is_empty(), mesh.cluster()) {
        let page = super::facts(mesh, &format!("/debug/workloadz?name={proxy}")).await?.unwrap_or_default();
        let addresses = addresses(cluster, &page).await?;
        out.iter_mut().for_each(|e| e.addresses.clone_from(&addresses));
    }
    Ok(out)
}

/// The object behind the listener that a route stands in.
fn opener(dump: &Dump, route: &Route) -> String {
    for listener in dump.listeners() {
        let by_name = str_at(listener, "/name") == route.place;
        let chains = || list_at(listener, "/filter_chains").chain(listener.get("default_filter_chain"));
        let config = "/typed_config/rds/route_config_name";
        let by_route = || chains().flat_map(|c| list_at(c, "/filters")).any(|f| str_at(f, config) == route.place);
        if by_name || by_route() {
            return cause(listener, "");
        }
    }
    "-".to_owned()
}

/// Where the Services of a gateway's pod are reached.
async fn addresses(cluster: &Cluster, pod: &Value) -> Result<Vec<String>, Failure> {
    let mut out = Vec::new();
    for service in pod["services"].as_array().into_iter().flatten() {
        let text = |key: &str| service[key].as_str().unwrap_or_default();
        let found = cluster.get(&gvk("", "v1", "Service"), Some(text("namespace")), text("name")).await?;
        out.extend(found.iter().flat_map(of_service));
    }
    Ok(out)
}

/// From outside if it can be, with its ports.
fn of_service(service: &Value) -> Vec<String> {
    let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers = |field: &str| {
        let all: Vec<String> = ports.iter().filter_map(|p| p[field].as_u64()).map(|n| n.to_string()).collect();
        all.join(",")
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let balancers = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    let mut outside: Vec<String> = balancers.filter_map(|i| text(&i["ip"]).or_else(|| text(&i["hostname"]))).collect();
    outside.extend(service["spec"]["externalIPs"].as_array().into_iter().flatten().filter_map(text));
    let mut out: Vec<String> = outside.into_iter().map(|a| format!("{a} (ports {})", numbers("port"))).collect();
    let nodes = numbers("nodePort");
    if out.is_empty() && !nodes.is_empty() {
        out.push(format!("any node (ports {nodes})"));
    }
    if out.is_empty() {
        let ip = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        out.push(format!("{ip} (ports {}, inside of the cluster only)", numbers("port")));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gateway_is_asked_once_and_found_by_its_addresses() {
        let row = |proxy: &str, kind: &str| json!({"proxy": proxy, "proxy_type": kind});
        let rows = [
            row("ingress-5d4c-x1.edge", "router"),
            row("ingress-5d4c-x2.edge", "router"),
            row("own.edge", "router"),
            row("web-5d4c-x1.shop", "sidecar"),
        ];
        let names: Vec<String> = one_of_each(&rows).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ingress-5d4c-x1.edge", "own.edge"]);
        let ports = json!([{"port": 80, "nodePort": 30080}, {"port": 443, "nodePort": 30443}]);
        let balanced = json!({"spec": {"ports": ports, "clusterIP": "10.1.0.1"},
            "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "lb.test"}]}}});
        assert_eq!(of_service(&balanced), ["1.2.3.4 (ports 80,443)", "lb.test (ports 80,443)"]);
        let nodes = json!({"spec": {"ports": ports, "clusterIP": "10.1.0.1"}});
        assert_eq!(of_service(&nodes), ["any node (ports 30080,30443)"]);
        let inside = json!({"spec": {"ports": [{"port": 80}], "clusterIP": "10.1.0.1"}});
        assert_eq!(of_service(&inside), ["10.1.0.1 (ports 80, inside of the cluster only)"]);
    }
}
