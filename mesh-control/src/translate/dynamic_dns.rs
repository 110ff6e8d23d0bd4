//! Hosts that are looked up when somebody asks for them: ServiceEntries of resolution `DYNAMIC_DNS`, and unknown hosts
//! under `ALLOW_ANY_DYNAMIC_DNS`.
//!
//! Owns the DNS caches, which clusters and filters of one proxy name alike, and the cluster for unknown hosts. Must not
//! know listeners or routes.

use std::net::SocketAddr;

use mesh_api::{
    meshconfig::OutboundPolicyMode,
    model::{Cluster, Discovery, DnsCache, DnsFamily, LbPolicy},
    names::ALLOW_ANY_DYNAMIC_DNS_CLUSTER,
};

use super::{
    destination_rule::Policy,
    tls::{self, Origination},
    translator::Request,
};
use crate::{
    index::{Protocol, Resolution, Service},
    view::{Families, ProxyView},
};

/// Cache of declared hosts. One for all of them: Envoy has one filter before the router, which looks the host of any
/// request up that is on its way to such a cluster.
const DECLARED: &str = "dynamic_dns_cache";
/// Cache of unknown hosts.
const UNKNOWN: &str = "allow_any_dfp_dns_cache";
/// Where Istio's agents answer DNS.
const DNS_PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15053);

/// The families that a proxy can reach.
pub fn lookup_family(families: Families) -> DnsFamily {
    match (families.v4, families.v6) {
        (true, true) => DnsFamily::All,
        (false, true) => DnsFamily::V6Only,
        _ => DnsFamily::V4Only,
    }
}

/// The cache of declared hosts. The system's resolvers are asked: those of the mesh know the hosts by addresses that
/// lead to the proxy.
pub fn declared_cache(families: Families) -> DnsCache {
    DnsCache { family: lookup_family(families), ..DnsCache::new(DECLARED) }
}

/// The cache of unknown hosts. Where the proxy's side answers the application's DNS it answers this too.
fn unknown_cache(view: &ProxyView) -> DnsCache {
    let mut cache = DnsCache { family: lookup_family(view.families()), ..DnsCache::new(UNKNOWN) };
    if view.metadata.dns_capture {
        let told = view.metadata.dns_proxy_addr.replace("localhost:", "127.0.0.1:");
        cache.resolvers = vec![told.parse().unwrap_or(DNS_PROXY)];
    }
    cache
}

/// Whether unknown hosts are looked up.
pub fn for_unknown(request: Request<'_>) -> bool {
    request.view.is_sidecar() && request.scope.outbound_mode(request.index) == OutboundPolicyMode::AllowAnyDynamicDns
}

/// The caches that HTTP requests of a sidecar's application may need.
pub fn caches(request: Request<'_>) -> Vec<DnsCache> {
    if !request.view.is_sidecar() {
        return vec![];
    }
    let declared = request.scope.services().iter().any(|s| s.service.resolution == Resolution::DynamicDns);
    let declared = declared.then(|| declared_cache(request.view.families()));
    declared.into_iter().chain(for_unknown(request).then(|| unknown_cache(request.view))).collect()
}

/// Whether a port of such a service can be served: the host must be in what a client says first.
pub fn serves(service: &Service, protocol: Protocol) -> bool {
    service.resolution != Resolution::DynamicDns || protocol.is_http() || protocol.is_tls()
}

/// Where requests for unknown hosts go.
pub fn unknown_cluster(request: Request<'_>) -> Cluster {
    let Request { index, view, .. } = request;
    let mut cluster = Cluster::new(ALLOW_ANY_DYNAMIC_DNS_CLUSTER, Discovery::Dynamic(unknown_cache(view)));
    Policy::default().apply_pool(&mut cluster, index.mesh(), Protocol::Auto, true, false);
    cluster.lb = LbPolicy::ClusterProvided;
    if let Some(wanted) = index.mesh().outbound_traffic_policy.as_ref().and_then(|p| p.tls.as_ref()) {
        let defaults = index.mesh().tls_defaults.as_ref();
        let how = Origination { sni: "", server_names: &[], declared_names: &[], defaults };
        tls::originate(&mut cluster, wanted, &how);
    }
    cluster
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{HttpFilterKind, Listener, NetworkFilter, Target};

    use super::super::{
        clusters,
        filter_chain::{ChainEnv, Class},
        outbound, sidecar_routes,
        telemetry::{TelemetryPlan, objects},
        testing::World,
    };
    use super::*;

    const WILD: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: shop}\nspec: {hosts: ['*.wild.test'], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 7070, name: grpc, protocol: GRPC}], resolution: DYNAMIC_DNS, location: MESH_EXTERNAL}\n";

    fn rule(policy: &str) -> String {
        format!(
            "{WILD}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: wild, namespace: shop}}\nspec: {{host: '*.wild.test', trafficPolicy: {{{policy}}}, subsets: [{{name: v1, labels: {{version: v1}}}}]}}\n"
        )
    }

    fn mesh(policy: &str) -> String {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: '{{outboundTrafficPolicy: {policy}}}'}}\n"
        )
    }

    fn cluster(yaml: &str, name: &str) -> Option<Cluster> {
        let world = World::new(yaml);
        world.ask(&world.sidecar("10.0.0.1", "shop", &[]), |r| clusters::model(*r, name))
    }

    fn listeners(yaml: &str) -> Vec<Listener> {
        let world = World::new(yaml);
        let view = world.sidecar("10.0.0.1", "shop", &[]);
        let plan = TelemetryPlan::of(world.index(), &view, &objects(world.index(), &view));
        world.ask(&view, |r| {
            let names = caches(*r);
            let env = ChainEnv {
                class: Class::Outbound,
                native: true,
                telemetry: &plan.client,
                mesh: r.index.mesh(),
                settings: &r.view.proxy_config,
                authentication: None,
                authorization: None,
                names: &names,
            };
            outbound::listeners(*r, &env)
        })
    }

    fn caches_of(filters: &[NetworkFilter]) -> Vec<String> {
        let Some(NetworkFilter::Http(manager)) = filters.last() else { panic!("{filters:?}") };
        let cache = |k: &HttpFilterKind| match k {
            HttpFilterKind::DynamicForwardProxy(cache) => Some(cache.name.to_string()),
            _ => None,
        };
        manager.filters.iter().filter_map(|f| cache(&f.kind)).collect()
    }

    #[test]
    fn a_cluster_that_looks_names_up() {
        let plain = cluster(WILD, "outbound|80||*.wild.test").unwrap();
        assert_eq!(plain.discovery, Discovery::Dynamic(declared_cache(Families { v4: true, v6: false })));
        assert_eq!((&plain.lb, plain.tls, plain.tls_matches.len()), (&LbPolicy::ClusterProvided, None, 0));
        assert!(!plain.http.auto_sni && !plain.http.auto_san_validation);

        let tls = rule("loadBalancer: {simple: PASSTHROUGH}, tls: {mode: SIMPLE, subjectAltNames: [x.test]}");
        let simple = cluster(&tls, "outbound|80||*.wild.test").unwrap();
        assert!(matches!(simple.discovery, Discovery::Dynamic(_)), "there is no address to pass through to");
        assert!(simple.http.auto_sni && simple.http.auto_san_validation && simple.tls.is_some());
        assert_eq!(cluster(&tls, "outbound|80|v1|*.wild.test"), None, "there are no endpoints to choose among");
        let fixed =
            cluster(&rule("tls: {mode: SIMPLE, sni: a.test, insecureSkipVerify: true}"), "outbound|80||*.wild.test");
        let fixed = fixed.unwrap();
        assert!(!fixed.http.auto_sni && !fixed.http.auto_san_validation);
        let mutual = cluster(&rule("tls: {mode: ISTIO_MUTUAL}"), "outbound|80||*.wild.test").unwrap();
        assert_eq!(&*mutual.tls.unwrap().sni, "");
        assert!(mutual.http.auto_sni);
    }

    #[test]
    fn listeners_look_hosts_and_server_names_up() {
        let all = listeners(WILD);
        let get = |name: &str| all.iter().find(|l| *l.name == *name).unwrap();
        assert_eq!(caches_of(&get("0.0.0.0_80").filter_chains[0].filters), [DECLARED]);
        let tls = &get("0.0.0.0_443").filter_chains[0];
        assert_eq!(&*tls.matches.server_names[0], "*.wild.test");
        let [.., NetworkFilter::SniDynamicForwardProxy { cache, port: 443 }, NetworkFilter::TcpProxy(_)] =
            tls.filters.as_slice()
        else {
            panic!("{:?}", tls.filters)
        };
        assert_eq!(&*cache.name, DECLARED);
        assert!(listeners("").iter().all(|l| l.listener_filters.is_empty()), "nothing to look up");
    }

    #[test]
    fn unknown_hosts() {
        let on = mesh("{mode: ALLOW_ANY_DYNAMIC_DNS}");
        let all = listeners(&on);
        let out = all.iter().find(|l| &*l.name == "virtualOutbound").unwrap();
        let names: Vec<&str> = out.filter_chains.iter().map(|c| &*c.name).collect();
        assert_eq!(names, ["virtualOutbound-blackhole", "allow_any_dynamic_dns"]);
        assert_eq!(caches_of(&out.filter_chains[1].filters), [UNKNOWN]);
        assert_eq!(&*out.default_filter_chain.as_ref().unwrap().name, "virtualOutbound-catchall-tcp");
        assert_eq!((out.listener_filters.len(), out.listener_filters_timeout.as_secs()), (2, 5));

        let world = World::new(&on);
        let mut view = world.sidecar("10.0.0.1", "shop", &[]);
        let table = world.ask(&view, |r| sidecar_routes::generate(*r, "80")).unwrap();
        let last = table.virtual_hosts.last().unwrap();
        let mesh_api::model::Action::Forward(forward) = &last.routes[0].action else { panic!("{last:?}") };
        assert_eq!(
            (&*last.name, &forward.target),
            ("allow_any_dynamic_dns", &Target::Cluster(ALLOW_ANY_DYNAMIC_DNS_CLUSTER.into()))
        );
        let names = world.ask(&view, |r| clusters::other_names(*r));
        assert!(names.iter().any(|n| **n == *ALLOW_ANY_DYNAMIC_DNS_CLUSTER));
        let found = world.ask(&view, |r| clusters::model(*r, ALLOW_ANY_DYNAMIC_DNS_CLUSTER)).unwrap();
        assert!(matches!(&found.discovery, Discovery::Dynamic(c) if c.resolvers.is_empty()) && found.tls.is_none());

        let mut metadata = (*view.metadata).clone();
        (metadata.dns_capture, metadata.dns_proxy_addr) = (true, "localhost:53".into());
        view.metadata = metadata.into();
        assert_eq!(unknown_cache(&view).resolvers, ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn only_where_nothing_else_is_said() {
        let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {outboundTrafficPolicy: {mode: ALLOW_ANY}, egress: [{hosts: ['*/*']}]}\n";
        let yaml = mesh("{mode: ALLOW_ANY_DYNAMIC_DNS}") + sidecar;
        assert_eq!(cluster(&yaml, ALLOW_ANY_DYNAMIC_DNS_CLUSTER), None);
        let tls = cluster(&mesh("{mode: ALLOW_ANY_DYNAMIC_DNS, tls: {mode: SIMPLE}}"), ALLOW_ANY_DYNAMIC_DNS_CLUSTER)
            .unwrap();
        assert!(tls.tls.is_some() && tls.http.auto_sni && tls.http.auto_san_validation);
    }
}
