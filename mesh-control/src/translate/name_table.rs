//! The names that the side of a proxy answers its application's DNS by.
//!
//! Owns which hosts have which addresses for a proxy: those that its listeners are at. Must not know how names are
//! answered, nor shorter forms of them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh_api::model::{self, Name, NameInfo, Registry};

use super::{cache::Cache, translator::Request};
use crate::{
    index::{Health, Resolution, Service, ServiceEntry, Stamp},
    source::object::ObjectKey,
    view::{Families, ProxyView},
    xds::encoded::Encoded,
};

/// Name of the one resource there is: Istio's agents look at the first of an answer, whatever its name.
pub const NAME: &str = "name-table";

/// What a table depends on: the declared subset of the view.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    namespace: Name,
    sidecar: Option<ObjectKey>,
    families: Families,
    allocated: bool,
    network: Name,
    cluster: Name,
}

/// What it is made from.
#[derive(Debug, PartialEq, Eq)]
pub struct Basis {
    scope: Stamp,
    /// Of services whose endpoints are answered.
    endpoints: Vec<Stamp>,
}

/// Encoded tables.
pub type NameTables = Cache<Key, Basis>;

/// The table of a proxy, encoded.
pub fn generate(cache: &NameTables, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
    if name != NAME {
        return None;
    }
    let Request { index, view, scope } = request;
    let key = Key {
        namespace: view.namespace.clone(),
        sidecar: view.sidecar.clone(),
        families: view.families(),
        allocated: view.captures_dns(),
        network: view.network.clone(),
        cluster: view.cluster.clone(),
    };
    let pods = scope.services().iter().filter(|s| answers_endpoints(&s.service));
    let entries = pods.filter_map(|s| index.service_entry(&s.service.key));
    let basis = Basis { scope: scope.stamp(), endpoints: entries.map(|e| e.endpoints.stamp()).collect() };
    cache.get(NAME, key, basis, || Some(Encoded::name_table(NAME, &model(request))))
}

/// A service without an address of its own: its pods' are answered.
pub fn answers_endpoints(service: &Service) -> bool {
    service.kubernetes && service.resolution == Resolution::Passthrough
}

/// The table of a proxy, as the plain model. A host that stands in several listeners of a Sidecar may be several services:
/// the Kubernetes one counts, else all addresses together.
pub fn model(request: Request<'_>) -> model::NameTable {
    let Request { index, view, scope } = request;
    let mut table: BTreeMap<Name, NameInfo> = BTreeMap::new();
    for scoped in scope.egress().iter().flat_map(|e| e.services.iter()) {
        let service = scoped.service.arc();
        let mut ips: Vec<IpAddr> = service.ips_for(view).filter(|ip| reachable(view.families(), *ip)).collect();
        if ips.is_empty() && answers_endpoints(service) {
            let Some(entry) = index.service_entry(&service.key) else { continue };
            ips = pods(entry, view, &mut table);
        }
        if ips.is_empty() {
            continue;
        }
        let new = info(service, ips);
        match table.get_mut(&service.key.host) {
            None => drop(table.insert(service.key.host.clone(), new)),
            Some(old) if old.registry == Registry::Kubernetes => {}
            Some(old) if new.registry == Registry::Kubernetes => *old = new,
            Some(old) => {
                let more: Vec<IpAddr> = new.ips.into_iter().filter(|ip| !old.ips.contains(ip)).collect();
                old.ips.extend(more);
            }
        }
    }
    model::NameTable(table)
}

fn info(service: &Service, ips: Vec<IpAddr>) -> NameInfo {
    if service.kubernetes {
        let (short_name, namespace) = (service.name.clone(), service.key.namespace.clone());
        NameInfo { ips, registry: Registry::Kubernetes, short_name, namespace }
    } else {
        NameInfo { ips, registry: Registry::External, short_name: "".into(), namespace: "".into() }
    }
}

fn reachable(families: Families, ip: IpAddr) -> bool {
    if ip.is_ipv4() { families.v4 } else { families.v6 }
}

/// Addresses of a headless service's pods; each that has a name of its own is entered under it as well.
fn pods(entry: &ServiceEntry, view: &ProxyView, table: &mut BTreeMap<Name, NameInfo>) -> Vec<IpAddr> {
    let service = entry.service.arc();
    let Some(port) = service.ports.first() else { return vec![] };
    let mut out = Vec::new();
    let mut named: BTreeMap<Name, NameInfo> = BTreeMap::new();
    for (shard, endpoint) in entry.endpoints.arc().iter() {
        let Some(ip) = endpoint.ip().filter(|_| endpoint.port(port.port).is_some()) else { continue };
        // What stands elsewhere cannot be reached at its own address.
        let near = (endpoint.network.is_empty() || endpoint.network == view.network)
            && (view.cluster.is_empty() || shard.cluster == view.cluster);
        let healthy = endpoint.health == Health::Healthy || service.publish_not_ready;
        if !near || !healthy || !reachable(view.families(), ip) {
            continue;
        }
        out.push(ip);
        if !endpoint.hostname.is_empty() {
            let short: Name = format!("{}.{}", endpoint.hostname, service.name).into();
            let host: Name = format!("{}.{}", endpoint.hostname, service.key.host).into();
            let blank =
                || NameInfo { short_name: short, namespace: service.key.namespace.clone(), ..NameInfo::default() };
            named.entry(host).or_insert_with(blank).ips.push(ip);
        }
    }
    out.sort_unstable();
    out.dedup();
    for (host, mut info) in named {
        info.ips.sort_unstable();
        info.ips.dedup();
        table.insert(host, info);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::World;
    use super::*;

    const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, clusterIPs: [10.1.0.1, 'fd00::1'], ports: [{name: http, port: 80}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: sts, namespace: shop}\nspec: {clusterIP: None, ports: [{name: tcp, port: 6000}]}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: sts-1, namespace: shop, labels: {kubernetes.io/service-name: sts}}\nports: [{name: tcp, port: 6000}]\nendpoints: [{addresses: [10.2.0.2], hostname: sts-1, conditions: {ready: true}}, {addresses: [10.2.0.1], hostname: sts-0, conditions: {ready: true}}, {addresses: [10.2.0.3], hostname: sts-2, conditions: {ready: false}}]\n---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: web.shop.svc.cluster.local, ports: [{port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec: {hosts: [ext.test], addresses: [10.3.0.1, 10.4.0.0/16, 'fd00::3'], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.9.9.9}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: more, namespace: bank}\nspec: {hosts: [ext.test, web.shop.svc.cluster.local], addresses: [10.3.0.2, 10.4.0.0/16, 'fd00::3'], ports: [{number: 9000, name: tcp, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.9.9.8}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: bare, namespace: shop}\nspec: {hosts: [bare.test, '*.wild.test'], ports: [{number: 9000, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: 10.9.9.7}]}\n";

    fn table(yaml: &str, change: impl FnOnce(&mut mesh_api::node::NodeMetadata)) -> BTreeMap<String, NameInfo> {
        let world = World::new(yaml);
        let mut view = world.sidecar("10.0.0.1", "shop", &[]);
        let mut metadata = (*view.metadata).clone();
        change(&mut metadata);
        view.metadata = metadata.into();
        let found = world.ask(&view, |r| model(*r));
        found.0.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
    }

    fn ips(info: &NameInfo) -> Vec<String> {
        info.ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn hosts_and_their_addresses() {
        let t = table(SERVICES, |_| {});
        let web = &t["web.shop.svc.cluster.local"];
        assert_eq!((web.registry, &*web.short_name, &*web.namespace), (Registry::Kubernetes, "web", "shop"));
        assert_eq!(ips(web), ["10.1.0.1"], "only addresses that the proxy can reach, and the Service comes first");
        let ext = &t["ext.test"];
        assert_eq!((ext.registry, &*ext.short_name, &*ext.namespace), (Registry::External, "", ""));
        // Of one host in two namespaces a proxy sees one, as its routes do.
        assert_eq!(ips(ext), ["10.3.0.2"], "blocks are no addresses");
        let names: Vec<&str> = t.keys().map(String::as_str).collect();
        assert!(!names.contains(&"bare.test"), "nobody told what it would be at: {names:?}");
        assert!(!names.contains(&"alias.shop.svc.cluster.local"));
    }

    #[test]
    fn pods_of_headless_services() {
        let t = table(SERVICES, |_| {});
        assert_eq!(ips(&t["sts.shop.svc.cluster.local"]), ["10.2.0.1", "10.2.0.2"]);
        let pod = &t["sts-0.sts.shop.svc.cluster.local"];
        assert_eq!((&*pod.short_name, &*pod.namespace, ips(pod)), ("sts-0.sts", "shop", vec!["10.2.0.1".to_owned()]));
        assert!(!t.contains_key("sts-2.sts.shop.svc.cluster.local"), "not ready");
    }

    #[test]
    fn allocated_addresses_where_dns_is_answered() {
        let t = table(SERVICES, |m| m.dns_capture = true);
        let [one] = ips(&t["bare.test"]).try_into().unwrap();
        assert!(one.starts_with("240.240."), "{one}");
        assert!(!t.contains_key("*.wild.test"), "a pattern is no host");
        let off = SERVICES
            .replace("name: bare,", "name: bare, labels: {networking.istio.io/enable-autoallocate-ip: 'False'},");
        assert!(!table(&off, |m| m.dns_capture = true).contains_key("bare.test"));
    }
}
