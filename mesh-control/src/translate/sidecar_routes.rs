//! Route configurations of sidecars: one a port (`80`), one a sniffed service (`host:port`), one for explicit HTTP
//! proxying (`http_proxy`), and those of gRPC clients.
//!
//! Owns virtual hosts with their domains: which VirtualService speaks for which host, short names, addresses, unknown
//! hosts. Must not know listeners.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use mesh_api::{
    crd::networking::VirtualService,
    meshconfig::OutboundPolicyMode,
    model::{Action, Forward, HeaderOps, Metadata, Name, Origin, Route, RouteConfig, RouteMatch, VirtualHost},
    names::{ALLOW_ANY_DYNAMIC_DNS_CLUSTER, PASSTHROUGH_CLUSTER},
};

use super::{
    delegate, dynamic_dns,
    lookups::Lookups,
    match_conditions::Place,
    mesh_routes::Attached,
    rule_parts,
    scope::{Egress, Scoped},
    translator::Request,
    virtual_service::{Destinations, RuleEnv, RuleOrigin, cluster_of, default_route, routes},
};
use crate::{
    index::{Index, Protocol, Resolution, Service, VirtualServiceEntry, host, virtual_services::MESH_GATEWAY},
    source::object::{Kind, ObjectKey, Spec},
};

/// Routes of explicit HTTP proxying: all ports of all services.
pub const HTTP_PROXY: &str = "http_proxy";
/// The port whose hosts need no service behind them.
const WEB: u16 = 80;

/// Longest body of a fixed answer; Istio's limit. Envoy's own default refuses the whole table beyond 4 KiB.
pub const MAX_DIRECT_RESPONSE: u32 = 1 << 20;

/// Which requests a route configuration serves.
struct Table<'a> {
    request: Request<'a>,
    lookups: Lookups<'a>,
    /// Port of the listener; 0: any.
    port: u16,
    /// What the listener shows.
    services: Vec<&'a Scoped>,
    virtual_services: Vec<&'a Arc<VirtualServiceEntry>>,
    attached: Attached,
}

/// A route configuration by name; `None` when there is no such listener.
pub fn generate(request: Request<'_>, name: &str) -> Option<RouteConfig> {
    if name.starts_with("outbound|") {
        return super::grpc_client::routes(request, name);
    }
    if let Some((host, port)) = name.rsplit_once(':').filter(|(h, _)| !h.starts_with("unix")) {
        return sniffed(request, name, host, port.parse().ok()?);
    }
    let table = Table::of(request, name)?;
    let mut hosts = table.virtual_hosts();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.push(table.catch_all());
    Some(RouteConfig {
        name: name.into(),
        virtual_hosts: hosts,
        ignore_port_in_host: table.port != 0,
        max_direct_response_body: Some(MAX_DIRECT_RESPONSE),
        ..RouteConfig::default()
    })
}

/// Routes of a listener of a single service, whatever the host.
fn sniffed(request: Request<'_>, name: &str, host: &str, port: u16) -> Option<RouteConfig> {
    let table = Table::new(request, port, request.scope.egress().iter().find(|e| e.port().is_none())?);
    let only = table.services.iter().find(|s| *s.service.key.host == *host)?;
    let table = Table { services: vec![only], ..table };
    let mut found = table.virtual_hosts().into_iter().find(|v| *v.name == *domain_name(host, port))?;
    found.domains = vec!["*".into()];
    Some(RouteConfig {
        name: name.into(),
        virtual_hosts: vec![found],
        ignore_port_in_host: true,
        max_direct_response_body: Some(MAX_DIRECT_RESPONSE),
        ..RouteConfig::default()
    })
}

/// Name of the virtual host of a host and port.
pub fn domain_name(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The virtual host of one service for any authority; for gRPC clients.
pub fn of_service(request: Request<'_>, host: &str, port: u16) -> Option<VirtualHost> {
    let scope = request.scope;
    let service = scope.service(host).filter(|s| s.port(port).is_some())?;
    let virtual_services = scope.egress().iter().flat_map(|e| &e.virtual_services).collect();
    let attached = Attached::new(request.index);
    let table = Table { request, lookups: Lookups(request), port, services: vec![service], virtual_services, attached };
    let name = domain_name(&service.service.key.host, port);
    let mut found = table.virtual_hosts().into_iter().find(|v| *v.name == *name)?;
    found.domains = vec!["*".into()];
    Some(found)
}

impl<'a> Table<'a> {
    fn new(request: Request<'a>, port: u16, egress: &'a Egress) -> Self {
        let shows = |s: &&Scoped| port == 0 || s.port(port).is_some();
        Self {
            request,
            lookups: Lookups(request),
            port,
            services: egress.services.iter().filter(shows).collect(),
            virtual_services: egress.virtual_services.iter().collect(),
            attached: Attached::new(request.index),
        }
    }

    fn of(request: Request<'a>, name: &str) -> Option<Self> {
        let egress = request.scope.egress();
        if name == HTTP_PROXY {
            // Everything that any listener shows.
            let mut all = match egress.iter().find(|e| e.port().is_none()) {
                Some(catch_all) => return Some(Self::new(request, 0, catch_all)),
                None => Self::new(request, 0, egress.first()?),
            };
            all.services = request.scope.services().iter().collect();
            all.virtual_services = egress.iter().flat_map(|e| &e.virtual_services).collect();
            return Some(all);
        }
        if name.starts_with("unix://") {
            let bound = |e: &&Egress| e.listener.as_ref().is_some_and(|l| l.bind == name);
            return Some(Self::new(request, 0, egress.iter().find(bound)?));
        }
        let port: u16 = name.parse().ok().filter(|p| *p != 0)?;
        let listener = egress.iter().find(|e| e.port().is_none_or(|(p, _)| p == port))?;
        let proxy = listener.port().is_some_and(|(_, protocol)| protocol == Protocol::HttpProxy);
        Some(Self::new(request, if proxy { 0 } else { port }, listener))
    }

    fn index(&self) -> &'a Index {
        self.request.index
    }

    /// Virtual hosts of VirtualServices, then of services that none speaks for, then of names that are no service's
    /// and come from another namespace: those must not take a service's shorter names and addresses away.
    fn virtual_hosts(&self) -> Vec<VirtualHost> {
        let own = &self.request.view.namespace;
        let claims = Claims::new(&self.services, &self.virtual_services, |vs, scoped| {
            self.index().routes_for(vs.namespace(), &scoped.service.key.namespace, own)
        });
        let mut out = Hosts { port: self.port, ..Hosts::default() };
        let mut late = Vec::new();
        let mut served: HashSet<(&str, u16)> = HashSet::new();
        for (i, vs) in self.virtual_services.iter().enumerate() {
            self.of_virtual_service(vs, &claims, i, &mut out, &mut late, &mut served);
        }
        for scoped in &self.services {
            let service = scoped.service.arc();
            if service.resolution == Resolution::Alias {
                continue;
            }
            for port in self.ports(scoped).filter(|p| !served.contains(&(&*service.key.host, *p))) {
                let routes = match self.attached.routes(self.request, service, port) {
                    Some(routes) => routes,
                    None => vec![self.default_route(service, port)],
                };
                let origin = Origin::default();
                out.add(&service.key.host, port, self.domains(service), routes, origin);
            }
        }
        for (host, port, routes, origin) in late {
            out.add(host, port, vec![host.clone()], routes, origin);
        }
        out.hosts
    }

    /// HTTP ports of a service in this table.
    fn ports(&self, scoped: &'a Scoped) -> impl Iterator<Item = u16> + 'a {
        let only = self.port;
        scoped
            .ports()
            .filter(move |p| only == 0 || p.port == only)
            .filter(|p| p.protocol.is_http() || p.protocol.is_auto())
            .map(|p| p.port)
    }

    fn default_route(&self, service: &'a Service, port: u16) -> Route {
        let target = self.lookups.concrete_of(service);
        let hash = self.lookups.hash(target, Some(port), "");
        default_route(target, port, self.index().mesh().default_http_retry_policy.as_ref(), hash)
    }

    fn of_virtual_service<'v>(
        &self,
        vs: &'v VirtualServiceEntry,
        claims: &Claims<'a>,
        number: usize,
        out: &mut Hosts,
        late: &mut Vec<(&'v Name, u16, Vec<Route>, Origin)>,
        served: &mut HashSet<(&'a str, u16)>,
    ) {
        let mut by_port: BTreeMap<u16, Vec<&'a Service>> = BTreeMap::new();
        for scoped in claims.services(number) {
            for port in self.ports(scoped) {
                by_port.entry(port).or_default().push(scoped.service.arc());
            }
        }
        let bare: Vec<&'v Name> = vs.hosts.iter().filter(|h| !claims.matched.contains(&***h)).collect();
        if by_port.is_empty() && !bare.is_empty() && (self.port == WEB || self.port == 0) {
            by_port.insert(WEB, vec![]);
        }
        if by_port.is_empty() || vs.spec.http.is_empty() {
            return;
        }
        let config: Name = vs.object.key.config_path().into();
        let rules = resolve(self.index(), vs);
        for (port, services) in by_port {
            let env = self.env(vs.namespace(), port);
            let routes = routes(&rules, RuleOrigin { name: &vs.object.key.name, config: &config }, &env);
            if routes.is_empty() {
                continue;
            }
            let origin = || Origin { config: config.clone() };
            // The empty namespace: nobody owns what is no service.
            let first = self.index().routes_for(vs.namespace(), "", &self.request.view.namespace);
            for host in bare.iter().copied() {
                if first {
                    out.add(host, port, vec![host.clone()], routes.clone(), origin());
                } else {
                    late.push((host, port, routes.clone(), origin()));
                }
            }
            for service in services {
                served.insert((&service.key.host, port));
                out.add(&service.key.host, port, self.domains(service), routes.clone(), origin());
            }
        }
    }

    fn env<'s>(&'s self, rule_namespace: &'s str, port: u16) -> RuleEnv<'s> {
        let view = self.request.view;
        RuleEnv {
            place: Place {
                port,
                gateway: MESH_GATEWAY,
                rule_namespace,
                labels: &view.labels,
                namespace: &view.namespace,
            },
            tls: false,
            domain: self.index().domain(),
            default_retry: self.index().mesh().default_http_retry_policy.as_ref(),
            forwarded_host: false,
            destinations: &self.lookups,
        }
    }

    /// All forms in which clients name a service: its host, shorter names, its addresses.
    fn domains(&self, service: &Service) -> Vec<Name> {
        let host = &service.key.host;
        let mut out: Vec<Name> = vec![host.clone()];
        out.extend(short_names(host, &self.request.view.namespace, self.index().domain()));
        if service.kubernetes && service.resolution == Resolution::Passthrough {
            // Pods of a headless service have names below it.
            let below: Vec<Name> = out.iter().map(|d| format!("*.{d}").into()).collect();
            out.extend(below);
        }
        // Other names of the same service.
        for alias in self.index().aliases_of(host).map(|a| a.service.arc()) {
            if self.index().visible(alias, &self.request.view.namespace) {
                out.push(alias.key.host.clone());
                out.extend(short_names(&alias.key.host, &self.request.view.namespace, self.index().domain()));
            }
        }
        let ips = service.ips_for(self.request.view);
        out.extend(ips.map(|ip| if ip.is_ipv6() { format!("[{ip}]").into() } else { ip.to_string().into() }));
        out
    }

    /// Unknown hosts: passed on, sent to the egress proxy, or answered 502.
    fn catch_all(&self) -> VirtualHost {
        let (name, action) = if dynamic_dns::for_unknown(self.request) {
            ("allow_any_dynamic_dns", Action::Forward(Box::new(unlimited(ALLOW_ANY_DYNAMIC_DNS_CLUSTER.into()))))
        } else if let Some(cluster) = elsewhere(self.request, self.port) {
            ("allow_any", Action::Forward(Box::new(unlimited(cluster))))
        } else {
            ("block_all", Action::DirectResponse { status: 502, body: "".into() })
        };
        for_all(name, action)
    }
}

/// To a cluster, for as long as it takes.
fn unlimited(cluster: Name) -> Forward {
    let mut forward = Forward::to(cluster);
    forward.timeout = Some(rule_parts::timeout(None));
    forward.grpc_timeout_max = forward.timeout;
    forward
}

/// One virtual host for every request.
fn for_all(name: &str, action: Action) -> VirtualHost {
    let route = Route {
        name: name.into(),
        matches: RouteMatch::any(),
        action,
        headers: HeaderOps::default(),
        filter_overrides: vec![],
        operation: "".into(),
        stat_prefix: "".into(),
        origin: Origin::default(),
        metadata: Metadata::new(),
    };
    VirtualHost {
        name: name.into(),
        domains: vec!["*".into()],
        routes: vec![route],
        include_request_attempt_count: true,
        ..VirtualHost::default()
    }
}

/// Requests that reach the proxy at ports of which nothing is known: their hosts are looked up.
pub fn unknown_ports() -> RouteConfig {
    let action = Action::Forward(Box::new(unlimited(ALLOW_ANY_DYNAMIC_DNS_CLUSTER.into())));
    RouteConfig {
        name: "allow_any_dynamic_dns".into(),
        virtual_hosts: vec![for_all("allow_any_dynamic_dns", action)],
        ignore_port_in_host: true,
        max_direct_response_body: Some(MAX_DIRECT_RESPONSE),
        ..RouteConfig::default()
    }
}

/// The HTTP rules of a VirtualService with its delegates in their place.
pub fn resolve<'v>(
    index: &Index,
    vs: &'v VirtualServiceEntry,
) -> std::borrow::Cow<'v, [mesh_api::crd::networking::HttpRoute]> {
    let root = vs.namespace();
    let find = |namespace: &str, name: &str| -> Option<Arc<VirtualService>> {
        let key = ObjectKey::new(Kind::VirtualService, namespace, name);
        let Spec::VirtualService(spec) = &index.object(&key)?.spec else { return None };
        let words = spec.export_to.iter().map(String::as_str);
        let default = &index.mesh().default_virtual_service_export_to;
        crate::index::ExportTo::parse(words, default, namespace).visible(root).then(|| spec.clone())
    };
    delegate::resolve(&vs.spec, root, index.domain(), &find)
}

/// `name`, `name.ns`, `name.ns.svc` of a service of the cluster, as clients of `namespace` may write them.
fn short_names(host: &str, namespace: &str, domain: &str) -> Vec<Name> {
    let rest = host.strip_suffix(domain).and_then(|h| h.strip_suffix(".svc."));
    let Some((name, own)) = rest.and_then(|r| r.split_once('.')) else { return vec![] };
    let mut out: Vec<Name> = Vec::new();
    if own == namespace {
        out.push(name.into());
    }
    out.push(format!("{name}.{own}").into());
    out.push(format!("{name}.{own}.svc").into());
    out
}

/// Virtual hosts as they are put together: a name and a domain stand in one of them only.
#[derive(Default)]
struct Hosts {
    port: u16,
    names: HashSet<String>,
    domains: HashSet<Name>,
    hosts: Vec<VirtualHost>,
}

impl Hosts {
    fn add(&mut self, host: &str, port: u16, domains: Vec<Name>, routes: Vec<Route>, origin: Origin) {
        let name = domain_name(host, port);
        if !self.names.insert(name.clone()) {
            return;
        }
        let mut forms: Vec<Name> = Vec::new();
        for domain in domains {
            // In a table of all ports a name without port means the web's.
            let plain = self.port != 0 || port == WEB;
            let with_port = (self.port == 0 && &*domain != "*").then(|| format!("{domain}:{port}").into());
            forms.extend(plain.then_some(domain).into_iter().chain(with_port));
        }
        forms.retain(|d| self.domains.insert(d.clone()));
        if forms.is_empty() {
            return;
        }
        self.hosts.push(VirtualHost {
            name: name.into(),
            domains: forms,
            routes,
            include_request_attempt_count: true,
            origin,
            ..VirtualHost::default()
        });
    }
}

/// Which VirtualService speaks for which service: of those that may, the one with the most specific host, then the
/// oldest.
struct Claims<'a> {
    by_virtual_service: HashMap<usize, Vec<&'a Scoped>>,
    /// Hosts of VirtualServices that mean services.
    matched: HashSet<&'a str>,
}

impl<'a> Claims<'a> {
    fn new(
        services: &[&'a Scoped],
        virtual_services: &[&'a Arc<VirtualServiceEntry>],
        may_route: impl Fn(&VirtualServiceEntry, &Scoped) -> bool,
    ) -> Self {
        let mut exact: HashMap<&'a str, Vec<usize>> = HashMap::new();
        let mut patterns: Vec<(&'a str, usize)> = Vec::new();
        for (i, vs) in virtual_services.iter().enumerate() {
            for h in vs.hosts.iter().map(|h| &**h) {
                if host::is_wildcard(h) {
                    patterns.push((h, i));
                } else {
                    exact.entry(h).or_default().push(i);
                }
            }
        }
        patterns.sort_by(|a, b| host::by_specificity(a.0, b.0).then(a.1.cmp(&b.1)));
        let mut out = Self { by_virtual_service: HashMap::new(), matched: HashSet::new() };
        for scoped in services {
            let name: &'a str = &scoped.service.arc().key.host;
            let may = |i: &usize| virtual_services.get(*i).is_some_and(|vs| may_route(vs, scoped));
            let mut best = None;
            if let Some((h, list)) = exact.get_key_value(name) {
                out.matched.insert(h);
                best = list.iter().copied().find(may);
            }
            for (pattern, i) in patterns.iter().filter(|(p, _)| host::within(p, name)) {
                out.matched.insert(pattern);
                best = best.or(Some(*i).filter(may));
            }
            if let Some(i) = best {
                out.by_virtual_service.entry(i).or_default().push(scoped);
            }
        }
        out
    }

    fn services(&self, virtual_service: usize) -> impl Iterator<Item = &'a Scoped> {
        self.by_virtual_service.get(&virtual_service).into_iter().flatten().copied()
    }
}

/// The cluster of what goes to unknown destinations: where it wants to, or the egress proxy of the Sidecar. `None`: nowhere.
pub fn elsewhere(request: Request<'_>, port: u16) -> Option<Name> {
    let Request { index, view, scope } = request;
    if scope.outbound_mode(index) == OutboundPolicyMode::RegistryOnly {
        return None;
    }
    let proxy = scope.sidecar().and_then(|s| s.outbound_traffic_policy.as_ref()?.egress_proxy.as_ref());
    Some(match proxy {
        Some(d) => cluster_of(d, &view.namespace, index.domain(), port, &Lookups(request)),
        None => PASSTHROUGH_CLUSTER.into(),
    })
}

#[cfg(test)]
mod tests {
    use mesh_api::model::Target;

    use super::{
        super::testing::{World, texts},
        *,
    };
    use crate::index::Options;

    const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}, {name: grpc-admin, port: 9090}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: bank}\nspec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}, {port: 7000}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: pods, namespace: shop}\nspec: {clusterIP: None, ports: [{name: http, port: 80}]}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: wild, namespace: shop}\nspec: {hosts: ['*.wild.test', api.test], ports: [{number: 80, name: http, protocol: HTTP}], resolution: NONE}\n";

    fn virtual_service(name: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
        )
    }

    fn routes_of(yaml: &str, name: &str) -> Option<RouteConfig> {
        let world = World::new(&format!("{SERVICES}{yaml}"));
        let view = world.sidecar("10.0.0.1", "shop", &[("app", "web")]);
        world.ask(&view, |r| generate(*r, name))
    }

    fn host<'a>(c: &'a RouteConfig, name: &str) -> &'a VirtualHost {
        let names: Vec<&Name> = c.virtual_hosts.iter().map(|v| &v.name).collect();
        c.virtual_hosts.iter().find(|v| *v.name == *name).unwrap_or_else(|| panic!("{name} is not in {names:?}"))
    }

    fn clusters(v: &VirtualHost) -> Vec<String> {
        let one = |r: &Route| match &r.action {
            Action::Forward(f) => match &f.target {
                Target::Cluster(c) => c.to_string(),
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        };
        v.routes.iter().map(one).collect()
    }

    fn of_bank(yaml: &str) -> String {
        virtual_service("v", yaml).replace("namespace: shop", "namespace: bank")
    }

    #[test]
    fn nobody_routes_other_tenants_requests() {
        let spec = "{hosts: [reviews.shop.svc.cluster.local, reviews.shop, 10.1.0.1, free.test], http: [{route: [{destination: {host: ledger.bank.svc.cluster.local}}]}]}";
        let ledger = ["outbound|80||ledger.bank.svc.cluster.local"];
        let own = ["outbound|80||reviews.shop.svc.cluster.local"];
        let of = |from: &str, author: &str, shared: bool| {
            let yaml = format!("{SERVICES}{}", virtual_service("v", spec).replace("namespace: shop", author));
            let options = Options { cross_namespace_routes: shared, ..Options::default() };
            let world = World::with_options(&yaml, options);
            let view = world.sidecar("10.0.0.1", from, &[("app", "web")]);
            let table = world.ask(&view, |r| generate(*r, "80")).unwrap();
            // What a name leads to is what stands first.
            ["reviews.shop.svc.cluster.local", "reviews.shop", "10.1.0.1", "free.test"].map(|name| {
                let host = table.virtual_hosts.iter().find(|v| v.domains.iter().any(|d| **d == *name)).unwrap();
                clusters(host).remove(0)
            })
        };
        let others = [own[0], own[0], own[0], ledger[0]];
        assert_eq!(of("shop", "namespace: bank", false), others, "the owner's clients");
        assert_eq!(of("third", "namespace: bank", false), others, "clients of a third namespace");
        for (from, author, shared, who) in [
            ("bank", "namespace: bank", false, "its own clients"),
            ("third", "namespace: shop", false, "of the owner, for all"),
            ("third", "namespace: istio-system", false, "of the root namespace, for all"),
            ("third", "namespace: bank", true, "as under Istio"),
        ] {
            let found = of(from, author, shared);
            assert_eq!((&*found[0], &*found[3]), (ledger[0], ledger[0]), "{who}");
        }
    }

    #[test]
    fn the_one_that_may_is_found_behind_one_that_may_not() {
        let of_bank = of_bank(
            "{hosts: ['*.shop.svc.cluster.local', reviews.shop.svc.cluster.local], http: [{directResponse: {status: 299}}]}",
        );
        let own =
            virtual_service("w", "{hosts: ['*.shop.svc.cluster.local'], http: [{directResponse: {status: 298}}]}");
        let c = routes_of(&format!("{of_bank}{own}"), "80").unwrap();
        let reviews = host(&c, "reviews.shop.svc.cluster.local:80");
        assert!(clusters(reviews)[0].contains("298"), "{:?}", clusters(reviews));
    }

    #[test]
    fn every_name_of_a_service() {
        let c = routes_of("", "80").unwrap();
        assert!(c.ignore_port_in_host);
        let reviews = host(&c, "reviews.shop.svc.cluster.local:80");
        assert_eq!(
            texts(&reviews.domains),
            ["reviews.shop.svc.cluster.local", "reviews", "reviews.shop", "reviews.shop.svc", "10.1.0.1"]
        );
        let ledger = host(&c, "ledger.bank.svc.cluster.local:80");
        assert_eq!(
            texts(&ledger.domains),
            ["ledger.bank.svc.cluster.local", "ledger.bank", "ledger.bank.svc", "10.1.0.2"]
        );
        assert_eq!(clusters(ledger), ["outbound|80||ledger.bank.svc.cluster.local"]);
        assert!(texts(&host(&c, "pods.shop.svc.cluster.local:80").domains).contains(&"*.pods.shop.svc"));
        let last = c.virtual_hosts.last().unwrap();
        assert_eq!((&*last.name, clusters(last)), ("allow_any", vec!["PassthroughCluster".to_owned()]));
        assert!(routes_of("", "81").unwrap().virtual_hosts.len() == 1, "only the unknown");
        assert_eq!(routes_of("", "nonsense"), None);
    }

    #[test]
    fn registry_only_answers_502() {
        let c = routes_of("---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: shop}\nspec: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['./*']}]}\n", "80").unwrap();
        let last = c.virtual_hosts.last().unwrap();
        assert_eq!(&*last.name, "block_all");
        assert_eq!(last.routes[0].action, Action::DirectResponse { status: 502, body: "".into() });
        assert!(!c.virtual_hosts.iter().any(|v| v.name.starts_with("ledger")), "not imported");
    }

    #[test]
    fn the_oldest_virtual_service_of_the_most_specific_host_counts() {
        let yaml = virtual_service(
            "a",
            "{hosts: ['*.shop.svc.cluster.local'], http: [{route: [{destination: {host: wide}}]}]}",
        ) + &virtual_service("b", "{hosts: [reviews], http: [{route: [{destination: {host: first}}]}]}")
            + &virtual_service("c", "{hosts: [reviews], http: [{route: [{destination: {host: second}}]}]}")
            + &virtual_service(
                "d",
                "{hosts: [virtual.test], http: [{route: [{destination: {host: reviews, port: {number: 80}}}]}]}",
            )
            + &virtual_service(
                "e",
                "{hosts: [ledger.bank.svc.cluster.local], http: [{match: [{sourceLabels: {app: other}}], route: [{destination: {host: nothing}}]}]}",
            );
        let c = routes_of(&yaml, "80").unwrap();
        let reviews = host(&c, "reviews.shop.svc.cluster.local:80");
        assert_eq!(clusters(reviews), ["outbound|80||first.shop.svc.cluster.local"]);
        assert!(reviews.origin.config.ends_with("/virtual-service/b"));
        assert_eq!(clusters(host(&c, "pods.shop.svc.cluster.local:80")), ["outbound|80||wide.shop.svc.cluster.local"]);
        assert_eq!(texts(&host(&c, "virtual.test:80").domains), ["virtual.test"]);
        let untouched = host(&c, "ledger.bank.svc.cluster.local:80");
        assert_eq!(clusters(untouched), ["outbound|80||ledger.bank.svc.cluster.local"], "no rule for this client");
        let admin = routes_of(&yaml, "9090").unwrap();
        assert_eq!(
            clusters(host(&admin, "reviews.shop.svc.cluster.local:9090")),
            ["outbound|9090||first.shop.svc.cluster.local"]
        );
        assert!(
            !admin.virtual_hosts.iter().any(|v| v.name.starts_with("virtual.test")),
            "only the web's port has bare hosts"
        );
    }

    #[test]
    fn a_sniffed_service_has_one_host_for_all() {
        let c = routes_of("", "ledger.bank.svc.cluster.local:7000").unwrap();
        assert_eq!(c.virtual_hosts.len(), 1);
        assert_eq!(texts(&c.virtual_hosts[0].domains), ["*"]);
        assert_eq!(routes_of("", "nobody.test:7000"), None);
    }

    #[test]
    fn the_explicit_proxy_knows_all_ports() {
        let c = routes_of("", HTTP_PROXY).unwrap();
        assert!(!c.ignore_port_in_host);
        let web = host(&c, "reviews.shop.svc.cluster.local:80");
        assert!(texts(&web.domains).contains(&"reviews") && texts(&web.domains).contains(&"reviews:80"));
        let admin = host(&c, "reviews.shop.svc.cluster.local:9090");
        assert!(texts(&admin.domains).contains(&"reviews:9090") && !texts(&admin.domains).contains(&"reviews"));
    }

    #[test]
    fn http_routes_of_services_by_producer_and_consumer() {
        let route = |ns: &str, name: &str, backend: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: ledger, namespace: bank, port: 80}}], rules: [{{matches: [{{path: {{type: Exact, value: /x}}}}, {{path: {{type: PathPrefix, value: /long/}}}}], backendRefs: [{{name: {backend}, namespace: {ns}, port: 80}}]}}]}}\n"
            )
        };
        let producer = routes_of(&route("bank", "p", "ledger"), "80").unwrap();
        let ledger = host(&producer, "ledger.bank.svc.cluster.local:80");
        assert_eq!(ledger.routes.len(), 2);
        assert_eq!(ledger.routes[1].matches.path, mesh_api::model::PathMatch::PathSeparatedPrefix("/long".into()));
        let consumer = routes_of(&(route("bank", "p", "ledger") + &route("shop", "c", "reviews")), "80").unwrap();
        let ledger = host(&consumer, "ledger.bank.svc.cluster.local:80");
        assert_eq!(clusters(ledger)[0], "outbound|80||reviews.shop.svc.cluster.local");
        let elsewhere = routes_of(&route("other", "c", "reviews"), "80").unwrap();
        assert_eq!(
            clusters(host(&elsewhere, "ledger.bank.svc.cluster.local:80")),
            ["outbound|80||ledger.bank.svc.cluster.local"]
        );
    }

    #[test]
    fn grpc_clients_ask_by_cluster() {
        let c = routes_of("", "outbound|9090||reviews.shop.svc.cluster.local").unwrap();
        assert_eq!(texts(&c.virtual_hosts[0].domains), ["*"]);
        let world = World::new(SERVICES);
        let view = world.sidecar("10.0.0.1", "shop", &[]);
        let listener = world.ask(&view, |r| super::super::grpc_client::listener(*r, "reviews:9090")).unwrap();
        assert!(listener.api_listener);
    }
}
