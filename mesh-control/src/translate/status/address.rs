//! Where a Gateway is reached: the addresses of its Services, and what they lack.
//!
//! Owns `addresses` and the part of `Programmed` that hangs on them. Must not know listeners beyond their ports.

use std::collections::BTreeSet;

use mesh_api::model::Name;
use serde::Serialize;

use super::{
    super::{
        gateway_api::{GatewayEntry, ListenerEntry, gateway_entry},
        gateway_infrastructure::{ADDRESS_TYPE, services},
    },
    Problem,
};
use crate::{
    index::{Health, Index, ServiceEntry, ServiceKey},
    source::object::Kind,
};

/// More than the API takes are not told.
const MOST: usize = 16;

/// An address of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Address {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `value`.
    pub value: Name,
}

impl Address {
    fn of(value: &str) -> Self {
        let kind = if value.parse::<std::net::IpAddr>().is_ok() { "IPAddress" } else { "Hostname" };
        Self { kind, value: value.into() }
    }
}

/// How a Gateway is reached.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) addresses: Vec<Address>,
    /// Services that lead to it.
    pub(super) through: Vec<Name>,
    pub(super) problem: Option<Problem>,
}

/// How a Gateway is reached; `None`: not by Services of a cluster.
pub(super) fn of(index: &Index, gateway: &GatewayEntry, listeners: &[ListenerEntry]) -> Option<Reach> {
    if !index.options().in_cluster {
        return None;
    }
    let ports: BTreeSet<u16> = listeners.iter().map(|l| l.listener.port).collect();
    let (keys, others) = services(index, gateway);
    let (mut inside, mut outside, mut reach) = (BTreeSet::new(), BTreeSet::new(), Reach::default());
    let (mut lacks, mut usable) = (Vec::new(), true);
    for key in keys {
        let Some(entry) = index.service_entry(&key) else {
            usable = false;
            lacks.push(format!("there is no Service {}", key.host));
            continue;
        };
        match &entry.service.outside {
            Some(all) if all.is_empty() => lacks.push(format!("Service {} waits for its address", key.host)),
            Some(all) => outside.extend(all.iter().map(|a| Address::of(a))),
            None => inside.extend(addresses_inside(gateway, entry)),
        }
        let (without, dead) = unserved(entry, &ports);
        if !without.is_empty() {
            usable = false;
            lacks.push(format!("Service {} has no port {}", key.host, words(&without)));
        }
        if dead {
            lacks.push(format!("no pod behind Service {} is ready", key.host));
        } else {
            reach.through.push(key.host.clone());
        }
    }
    if !others.is_empty() {
        lacks.push(format!("only host names of Services are supported beside others, not {}", others.join(", ")));
    }
    reach.addresses = if outside.is_empty() { inside } else { outside }.into_iter().take(MOST).collect();
    if !lacks.is_empty() {
        let reason = if usable { "AddressNotAssigned" } else { "AddressNotUsable" };
        reach.problem = Some(Problem::new(reason, lacks.join("; ")));
    }
    Some(reach)
}

fn words(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Host name or addresses in the cluster, as the Gateway has it.
fn addresses_inside(gateway: &GatewayEntry, entry: &ServiceEntry) -> Vec<Address> {
    if gateway.object.meta.annotations.get(ADDRESS_TYPE).is_some_and(|kind| kind == "IPAddress") {
        return entry.service.ips().map(|ip| Address { kind: "IPAddress", value: ip.to_string().into() }).collect();
    }
    vec![Address { kind: "Hostname", value: entry.service.key.host.clone() }]
}

/// Ports that a Service does not have, and whether nothing is ready behind those that it has.
fn unserved(entry: &ServiceEntry, ports: &BTreeSet<u16>) -> (Vec<u16>, bool) {
    let without: Vec<u16> = ports.iter().copied().filter(|p| entry.service.port(*p).is_none()).collect();
    let ready = entry.endpoints.iter().filter(|(_, e)| e.health == Health::Healthy);
    let mut served = ready.filter(|(_, e)| ports.is_empty() || ports.iter().any(|p| e.port(*p).is_some()));
    (without, served.next().is_none())
}

/// Whether statuses say something of the endpoints of one of these services: it leads to a Gateway.
pub fn read_endpoints<'a>(index: &Index, mut changed: impl Iterator<Item = &'a ServiceKey>) -> bool {
    if !index.options().in_cluster || index.objects(Kind::Gateway).next().is_none() {
        return false;
    }
    let entries = index.objects(Kind::Gateway).filter_map(|o| gateway_entry(index, o));
    let lead_there: BTreeSet<ServiceKey> = entries.flat_map(|gateway| services(index, &gateway).0).collect();
    changed.any(|key| lead_there.contains(key))
}

#[cfg(test)]
mod tests {
    use super::super::{super::testing::World, of as status_of};
    use super::*;
    use crate::{index::Options, source::object::ObjectKey};

    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: infra, annotations: {MORE}}\nspec: {gatewayClassName: istio, SPEC, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    const ENDPOINT: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: gw, namespace: infra, labels: {kubernetes.io/service-name: edge-istio}}\naddressType: IPv4\nports: [{name: http, port: 80}]\nendpoints: [{addresses: [10.0.0.9], conditions: {ready: READY}}]\n";

    fn gateway(more: &str, spec: &str) -> String {
        GATEWAY.replace("MORE", more).replace("SPEC, ", spec)
    }

    fn service(kind: &str, status: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: edge-istio, namespace: infra}}\nspec: {{type: {kind}, clusterIP: 10.1.0.7, ports: [{{name: http, port: 80}}]}}\nstatus: {{{status}}}\n"
        )
    }

    fn endpoint(ready: bool) -> String {
        ENDPOINT.replace("READY", &ready.to_string())
    }

    /// Addresses, then `status reason message` of `Programmed`.
    fn told(world: &World) -> (Vec<String>, String) {
        let object = world.index().object(&ObjectKey::new(Kind::Gateway, "infra", "edge")).unwrap().clone();
        let status = serde_json::to_value(status_of(world.index(), &object)).unwrap();
        let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
        let addresses = status["addresses"].as_array().unwrap().iter();
        let addresses = addresses.map(|a| format!("{} {}", text(&a["type"]), text(&a["value"])));
        let programmed = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Programmed").unwrap();
        let words = ["status", "reason", "message"].map(|field| text(&programmed[field]));
        (addresses.collect(), words.join(" "))
    }

    fn world(yaml: &[String]) -> World {
        World::with_options(&yaml.concat(), Options { in_cluster: true, ..Options::default() })
    }

    #[test]
    fn a_balancer_comes_little_by_little() {
        let mut world = world(&[gateway("", "")]);
        let (addresses, programmed) = told(&world);
        assert!(addresses.is_empty());
        assert_eq!(programmed, "False AddressNotUsable there is no Service edge-istio.infra.svc.cluster.local");
        world.apply(&service("LoadBalancer", ""));
        let (addresses, programmed) = told(&world);
        assert!(addresses.is_empty());
        assert!(programmed.starts_with("False AddressNotAssigned") && programmed.contains("waits for its address"));
        let change =
            world.apply(&service("LoadBalancer", "loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: lb.test}]}"));
        assert!(!change.only_endpoints(), "somebody is told");
        let (addresses, programmed) = told(&world);
        assert_eq!(addresses, ["Hostname lb.test", "IPAddress 192.0.2.1"]);
        assert!(programmed.starts_with("False AddressNotAssigned no pod"), "{programmed}");
        world.apply(&endpoint(false));
        assert!(told(&world).1.starts_with("False"), "a pod that is not ready");
        let change = world.apply(&endpoint(true));
        assert!(read_endpoints(world.index(), change.endpoints.iter()), "somebody is told");
        assert_eq!(told(&world).1, "True Programmed reached by Service edge-istio.infra.svc.cluster.local");
    }

    #[test]
    fn inside_of_the_cluster() {
        let parts = |more: &str| [gateway(more, ""), service("ClusterIP", ""), endpoint(true)];
        let host = vec!["Hostname edge-istio.infra.svc.cluster.local".to_owned()];
        assert_eq!(told(&world(&parts(""))).0, host);
        let by_ip = "networking.istio.io/address-type: IPAddress";
        assert_eq!(told(&world(&parts(by_ip))).0, ["IPAddress 10.1.0.7"]);
    }

    #[test]
    fn a_manual_service_must_have_the_ports() {
        let of = |spec: &str| told(&world(&[gateway("", spec), service("ClusterIP", ""), endpoint(true)]));
        let manual = "addresses: [{type: Hostname, value: edge-istio}], ";
        assert!(of(manual).1.starts_with("True"));
        let other = "addresses: [{type: Hostname, value: other}], ";
        assert!(of(other).1.contains("there is no Service other.infra"));
        let mut world = world(&[gateway("", manual), service("ClusterIP", ""), endpoint(true)]);
        world.apply(&gateway("", manual).replace("port: 80", "port: 81"));
        assert!(told(&world).1.contains("has no port 81"), "{}", told(&world).1);
        let both = "addresses: [{type: Hostname, value: edge-istio}, {type: IPAddress, value: 10.0.0.1}], ";
        assert!(of(both).1.contains("not 10.0.0.1"));
    }

    #[test]
    fn endpoints_of_others_concern_nobody() {
        let mut world = world(&[gateway("", ""), service("ClusterIP", "").replace("edge-istio", "web")]);
        let change = world.apply(&endpoint(true).replace("edge-istio", "web"));
        assert!(!change.endpoints.is_empty());
        assert!(!read_endpoints(world.index(), change.endpoints.iter()));
    }
}
