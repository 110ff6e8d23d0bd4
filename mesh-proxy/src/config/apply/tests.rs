//! What waits for what, with time standing still.

use parking_lot::Mutex;

use super::*;
use crate::{
    bootstrap::Bootstrap,
    config::snapshot::Node,
    http::{stats::NoTelemetry, testing::no_services},
    tls::{SecretStore, install_default_provider},
};

/// Remembers what was bound; refuses listeners called `busy`.
#[derive(Clone, Default)]
struct Bound(Arc<Mutex<Vec<String>>>);

impl Bind for Bound {
    fn put(&mut self, listener: Arc<Listener>) -> Result<(), ConfigError> {
        if &*listener.config.name == "busy" {
            return Err(ConfigError::new("address in use"));
        }
        self.0.lock().push(format!("+{}", listener.config.name));
        Ok(())
    }
    fn remove(&mut self, name: &str) {
        self.0.lock().push(format!("-{name}"));
    }
}

struct Setup {
    config: Configurator,
    events: mpsc::UnboundedReceiver<Event>,
    bound: Bound,
    shared: Arc<SharedConfig>,
}

impl Setup {
    fn new() -> Self {
        install_default_provider();
        let (tx, events) = mpsc::unbounded_channel();
        let bound = Bound::default();
        let shared = SharedConfig::new(Node::default(), SecretStore::new(), Arc::new(NoTelemetry), no_services());
        let config = Configurator::new(shared.clone(), Handle::current(), tx, Box::new(bound.clone()));
        Self { config, events, bound, shared }
    }

    /// Puts everything that a bootstrap in YAML lists.
    fn put(&mut self, yaml: &str) {
        let all = Bootstrap::parse(&format!("static_resources: {{{yaml}}}")).unwrap();
        for cluster in all.clusters {
            self.config.put_cluster(cluster.value).unwrap();
        }
        for listener in all.listeners {
            self.config.put_listener(listener.value).unwrap();
        }
    }

    /// Lets time pass.
    async fn wait(&mut self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        while let Ok(event) = self.events.try_recv() {
            self.config.note(&event);
        }
        self.config.settle();
    }

    fn bound(&self) -> Vec<String> {
        self.bound.0.lock().clone()
    }
}

const EDS: &str = "clusters: [{name: b, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]";

fn listener(name: &str, manager: &str, tls: &str) -> String {
    const T: &str = "type.googleapis.com/envoy.extensions.filters";
    format!(
        "listeners: [{{name: {name}, address: {{socket_address: {{address: 127.0.0.1, port_value: 80}}}}, filter_chains: \
         [{{{tls} filters: [{{name: h, typed_config: {{'@type': {T}.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: s, {manager}, http_filters: [{{name: r, typed_config: {{'@type': {T}.http.router.v3.Router}}}}]}}}}]}}]}}]"
    )
}

fn rds(name: &str, timeout: &str) -> String {
    let manager =
        format!("rds: {{route_config_name: r, config_source: {{ads: {{}}, initial_fetch_timeout: {timeout}}}}}");
    listener(name, &manager, "")
}

fn routes(name: &str, cluster: &str) -> model::RouteConfig {
    let inline = format!(
        "route_config: {{name: {name}, virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         route: {{cluster: {cluster}}}}}]}}]}}"
    );
    let text = format!("static_resources: {{{}}}", listener("l", &inline, ""));
    let mut all = Bootstrap::parse(&text).unwrap();
    let filter = all.listeners.remove(0).value.filter_chains.remove(0).filters.remove(0);
    match filter {
        model::NetworkFilter::Http(manager) => match manager.routes {
            model::RouteSource::Inline(config) => *config,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn one_endpoint() -> model::EndpointSet {
    let endpoint = model::Endpoint::at(model::Address::Socket("127.0.0.1:1".parse().unwrap()));
    let local = model::LocalityEndpoints { endpoints: vec![endpoint], ..Default::default() };
    model::EndpointSet { cluster: "b".into(), localities: vec![local], ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_listener_waits_for_its_routes_and_they_for_their_cluster() {
    let mut s = Setup::new();
    s.put(EDS);
    s.put(&rds("l", "0s"));
    s.wait(60).await; // the patience with endpoints is over, that with routes never
    assert!(s.bound().is_empty());
    assert_eq!(s.config.wanted_routes(), [Name::from("r")]);
    assert_eq!(s.config.wanted_endpoints(), [Name::from("b")]);
    s.put("clusters: [{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 0s}}}]");
    s.config.put_routes(&routes("r", "c")).unwrap();
    s.wait(60).await;
    assert!(s.bound().is_empty(), "cluster c is not warm");
    assert!(s.config.waiting().iter().any(|w| w.contains("cluster c")), "{:?}", s.config.waiting());
    s.config.put_endpoints(&"c".into(), one_endpoint());
    s.wait(0).await;
    assert_eq!(s.bound(), ["+l"]);
    assert!(s.shared.load().route("r").is_some() && s.shared.load().cluster("c").is_some());
    assert!(s.config.waiting().is_empty());
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    let mut s = Setup::new();
    s.put("clusters: [{name: b, type: EDS, eds_cluster_config: {eds_config: {ads: {}, initial_fetch_timeout: 3s}}}]");
    s.put(&rds("l", "5s"));
    s.wait(2).await;
    assert!(s.shared.load().cluster("b").is_none());
    s.wait(2).await;
    assert!(s.shared.load().cluster("b").is_some(), "without endpoints");
    assert!(s.bound().is_empty());
    s.wait(2).await;
    assert_eq!(s.bound(), ["+l"], "without routes");
}

#[tokio::test(start_paused = true)]
async fn a_changed_cluster_replaces_the_old_one_when_it_is_warm() {
    let mut s = Setup::new();
    s.put(EDS);
    s.config.put_endpoints(&"b".into(), one_endpoint());
    s.wait(0).await;
    let first = s.shared.load().cluster("b").cloned().unwrap();
    // Endpoints under another name: not there yet.
    s.put("clusters: [{name: b, type: EDS, eds_cluster_config: {service_name: x, eds_config: {ads: {}}}}]");
    s.wait(1).await;
    assert!(Arc::ptr_eq(&first, s.shared.load().cluster("b").unwrap()));
    assert_eq!(s.config.wanted_endpoints(), [Name::from("b"), Name::from("x")]);
    s.config.put_endpoints(&"x".into(), one_endpoint());
    s.wait(0).await;
    assert!(!Arc::ptr_eq(&first, s.shared.load().cluster("b").unwrap()));
    assert_eq!(s.config.wanted_endpoints(), [Name::from("x")]);
    // Endpoints alone make no new snapshot.
    let version = s.shared.load().version;
    s.config.put_endpoints(&"x".into(), model::EndpointSet { cluster: "x".into(), ..Default::default() });
    s.wait(0).await;
    assert_eq!(s.shared.load().version, version);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_does_not_exist_is_not_waited_for() {
    const TLS: &str = "transport_socket: {name: t, typed_config: {'@type': \
        type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: \
        {tls_certificate_sds_secret_configs: [{name: cert, sds_config: {ads: {}}}]}}},";
    let mut s = Setup::new();
    s.put(&listener("l", "route_config: {name: r}", TLS));
    s.wait(1).await;
    assert!(s.bound().is_empty());
    assert!(s.config.waiting().iter().any(|w| w.contains("certificates")));
    s.config.secret_exists(&"cert".into(), false);
    s.wait(0).await;
    assert_eq!(s.bound(), ["+l"], "handshakes fail, others are served");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_bound_is_told_and_does_not_disturb() {
    let mut s = Setup::new();
    s.put(&listener("l", "route_config: {name: r}", ""));
    s.put(&listener("busy", "route_config: {name: r}", ""));
    let failed = s.config.settle();
    assert_eq!(failed.len(), 1);
    assert_eq!(s.shared.load().listeners.len(), 1);
    s.config.remove_listener("l");
    s.wait(0).await;
    assert_eq!(s.bound(), ["+l", "-l"]);
    assert!(s.shared.load().listeners.is_empty());
}

#[tokio::test(start_paused = true)]
async fn chains_that_are_gone_drain_and_then_close() {
    use crate::drain::Phase;
    let mut s = Setup::new();
    s.put(&listener("l", "route_config: {name: r}", ""));
    s.wait(0).await;
    let chain = s.shared.load().listeners["l"].chains().next().unwrap().clone();
    // Only what is done to requests changes: connections go on.
    s.put(&listener("l", "route_config: {name: other}", ""));
    s.wait(0).await;
    assert_eq!(chain.drain.phase(), Phase::Running);
    s.put(&listener("l", "codec_type: HTTP2, route_config: {name: other}", ""));
    s.wait(0).await;
    assert_eq!(chain.drain.phase(), Phase::Draining);
    s.wait(CHAIN_DRAIN.as_secs() + 1).await;
    assert_eq!(chain.drain.phase(), Phase::Closed);
}

#[tokio::test(start_paused = true)]
async fn routes_that_nobody_refers_to_are_kept_for_connections_that_drain() {
    let mut s = Setup::new();
    s.put(&rds("l", "0s"));
    s.config.put_routes(&routes("r", "b")).unwrap();
    s.wait(0).await;
    s.config.remove_listener("l");
    s.config.forget_routes(&"r".into());
    s.wait(1).await;
    assert!(s.shared.load().route("r").is_some());
    s.wait(CHAIN_DRAIN.as_secs()).await;
    s.wait(0).await;
    assert!(s.shared.load().route("r").is_none());
}

/// A listener whose manager has one filter by discovery, called `x`.
fn with_discovery(name: &str, more: &str) -> String {
    const T: &str = "type.googleapis.com/envoy.extensions.filters";
    let filter = format!(
        "http_filters: [{{name: x, config_discovery: {{config_source: {{ads: {{}}, initial_fetch_timeout: 5s}}, type_urls: \
         [{T}.http.header_mutation.v3.HeaderMutation]{more}}}}}, {{name: r"
    );
    listener(name, "route_config: {name: r}", "").replace("http_filters: [{name: r", &filter)
}

fn mutation(value: &str) -> model::HttpFilterKind {
    let mut request = model::HeaderMutation::default();
    request.remove.push(value.into());
    model::HttpFilterKind::HeaderMutation { request, response: model::HeaderMutation::default() }
}

fn extension(type_name: &str, value: &str) -> model::ExtensionConfig {
    let type_name = format!("envoy.extensions.filters.http.{type_name}").into();
    model::ExtensionConfig { name: "x".into(), type_name, kind: mutation(value) }
}

const MUTATION: &str = "header_mutation.v3.HeaderMutation";

/// The first filter of a listener in force.
fn first_filter(s: &Setup, name: &str) -> model::HttpFilterKind {
    let snapshot = s.shared.load();
    let chain = &snapshot.listeners[name].config.filter_chains[0];
    match &chain.filters[0] {
        model::NetworkFilter::Http(manager) => manager.filters[0].kind.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_waits_for_its_filters_and_follows_them() {
    use crate::drain::Phase;
    let mut s = Setup::new();
    s.put(&with_discovery("l", ""));
    s.wait(1).await;
    assert!(s.bound().is_empty());
    assert_eq!(s.config.wanted_extensions().into_iter().collect::<Vec<_>>(), [Name::from("x")]);
    assert!(s.config.waiting().iter().any(|w| w.contains("for filters x")), "{:?}", s.config.waiting());
    let refused = s.config.put_extension(extension("fault.v3.HTTPFault", "a")).unwrap_err();
    assert!(refused.0.contains("fault.v3.HTTPFault") && refused.0.contains("takes"), "{refused}");
    s.config.put_extension(extension(MUTATION, "a")).unwrap();
    s.wait(0).await;
    assert_eq!((s.bound(), first_filter(&s, "l")), (vec!["+l".to_owned()], mutation("a")));
    let chain = s.shared.load().listeners["l"].chains().next().unwrap().clone();
    s.config.put_extension(extension(MUTATION, "b")).unwrap();
    s.wait(0).await;
    assert_eq!((first_filter(&s, "l"), chain.drain.phase()), (mutation("b"), Phase::Running));
    // What a listener does not take leaves the old one; what is taken away leaves none.
    assert!(s.config.put_extension(extension(MUTATION, "not a name")).is_err());
    s.wait(0).await;
    assert_eq!(first_filter(&s, "l"), mutation("b"));
    s.config.remove_extension(&"x".into());
    s.wait(0).await;
    assert!(matches!(first_filter(&s, "l"), model::HttpFilterKind::Discovered(_)));
    s.config.remove_listener("l");
    assert!(s.config.wanted_extensions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn patience_with_filters_ends() {
    let mut s = Setup::new();
    let default = ", default_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation}";
    s.put(&with_discovery("late", ""));
    s.put(&with_discovery("default", default));
    s.put(&with_discovery("now", &format!("{default}, apply_default_config_without_warming: true")));
    s.wait(1).await;
    assert_eq!(s.bound(), ["+now"]);
    s.wait(5).await;
    assert_eq!(s.bound(), ["+now", "+default", "+late"]);
    assert!(matches!(first_filter(&s, "late"), model::HttpFilterKind::Discovered(_)), "answers 500");
    assert!(matches!(first_filter(&s, "default"), model::HttpFilterKind::HeaderMutation { .. }));
    for name in ["late", "default", "now"] {
        s.config.put_extension(extension(MUTATION, name)).unwrap();
        s.wait(0).await;
        assert_eq!(first_filter(&s, name), mutation(name));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_filter_that_is_of_no_use() {
    let mut s = Setup::new();
    s.put(&with_discovery("l", ""));
    s.config.extension_refused(&"x".into());
    s.wait(0).await;
    assert_eq!(s.bound(), ["+l"]);
    s.config.put_extension(extension(MUTATION, "a")).unwrap();
    s.config.extension_refused(&"x".into());
    s.wait(0).await;
    assert_eq!(first_filter(&s, "l"), mutation("a"), "the good one stays");
}
