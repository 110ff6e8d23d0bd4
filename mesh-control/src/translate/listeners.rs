//! The listeners of every kind of proxy, kept by what they depend on.
//!
//! Outbound listeners depend on namespace, Sidecar and few facts more and are shared; inbound ones on the workload;
//! those of gateways on the gateway's workload. Owns the keys and what the parts are made from. Must not know what
//! stands in a listener.

use std::{cell::RefCell, collections::HashMap, hash::Hash, sync::Arc};

use mesh_api::{
    labels::Labels,
    model::{self, DnsCache, Name},
    node::NodeMetadata,
};
use parking_lot::RwLock;

use super::{
    dynamic_dns,
    filter_chain::{ChainEnv, Class},
    gateway, gateway_api, grpc_client, inbound,
    lookups::Relevance,
    outbound,
    policy::{self, Authorization, Subject},
    request_authn,
    scope::Scope,
    telemetry::{self, TelemetryPlan},
    translator::Request,
};
use crate::{
    index::{Index, Resolution, ServiceKey, Stamp},
    source::object::{Kind, Object, ObjectKey},
    view::{Families, Flavour, Interception, ProxyView, ServiceTarget},
    xds::encoded::Encoded,
};

/// Listeners by name, in order.
#[derive(Debug, Default)]
struct Part {
    names: Vec<Name>,
    by_name: HashMap<Name, Arc<Encoded>>,
}

impl Part {
    /// Encodes listeners; what came out as before keeps its bytes.
    fn new(listeners: Vec<model::Listener>, old: Option<&Self>) -> Self {
        let mut out = Self::default();
        for listener in &listeners {
            let new = Encoded::listener(listener);
            let known = old.and_then(|o| o.by_name.get(new.name())).filter(|k| k.hash() == new.hash());
            let new = known.cloned().unwrap_or(new);
            if out.by_name.insert(new.name().clone(), new.clone()).is_none() {
                out.names.push(new.name().clone());
            }
        }
        out
    }
}

/// Parts by the facts they depend on, with what they were made from.
struct Parts<K, B> {
    parts: RwLock<HashMap<K, (B, Arc<Part>)>>,
}

impl<K, B> Default for Parts<K, B> {
    fn default() -> Self {
        Self { parts: RwLock::default() }
    }
}

/// Most parts that are remembered.
const MAX_PARTS: usize = 1 << 16;

impl<K: Eq + Hash, B: PartialEq> Parts<K, B> {
    fn get(&self, key: K, basis: B, make: impl FnOnce() -> Vec<model::Listener>) -> Arc<Part> {
        let old = match self.parts.read().get(&key) {
            Some((at, part)) if *at == basis => return part.clone(),
            old => old.map(|(_, part)| part.clone()),
        };
        let part = Arc::new(Part::new(make(), old.as_deref()));
        let mut parts = self.parts.write();
        if parts.len() > MAX_PARTS {
            parts.clear();
        }
        parts.insert(key, (basis, part.clone()));
        part
    }
}

/// Facts that every listener of a proxy depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Common {
    native: bool,
    namespace: Name,
    families: Families,
    interception: Interception,
    /// Which Telemetry objects hold.
    telemetry: Vec<ObjectKey>,
    /// Values that stand in tags and service names of spans, where there are spans.
    span: Option<Vec<Name>>,
    /// Its own settings as text, where it told any.
    settings: Name,
}

/// Outbound listeners.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OutboundKey {
    common: Common,
    sidecar: Option<ObjectKey>,
    http_proxy_port: Option<u16>,
    /// Where hosts are looked up.
    names: Vec<DnsCache>,
    captures_dns: bool,
    /// Where it binds, when that is an address of its own.
    local: std::net::IpAddr,
    /// Labels that rules ask for.
    labels: Labels,
}

/// Inbound listeners.
#[derive(Debug, PartialEq, Eq, Hash)]
struct InboundKey {
    common: Common,
    sidecar: Option<ObjectKey>,
    labels: Arc<Labels>,
    /// Service, its port and the workload's.
    targets: Vec<(ServiceKey, u16, u16)>,
    /// Only where listeners bind.
    address: Option<std::net::IpAddr>,
}

/// Listeners of gateways.
#[derive(Debug, PartialEq, Eq, Hash)]
struct GatewayKey {
    common: Common,
    labels: Arc<Labels>,
    targets: Vec<(ServiceKey, u16, u16)>,
}

/// States of what listeners are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    mesh: Stamp,
    scope: Stamp,
    rules: Stamp,
    kinds: Vec<Stamp>,
    /// Endpoints of headless services, or declarations of the services that are served.
    services: Vec<Stamp>,
}

/// The listeners of all proxies.
#[derive(Default)]
pub struct Listeners {
    id: Id,
    outbound: Parts<OutboundKey, Basis>,
    inbound: Parts<InboundKey, Basis>,
    gateways: Parts<GatewayKey, Basis>,
    relevance: Relevance,
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

/// Tells instances apart.
#[derive(Clone, Copy, PartialEq)]
struct Id(Stamp);

impl Default for Id {
    fn default() -> Self {
        Self(Stamp::next())
    }
}

/// The parts of one proxy.
#[derive(Clone, Default)]
struct Whole {
    parts: [Option<Arc<Part>>; 2],
}

impl Whole {
    fn iter(&self) -> impl Iterator<Item = &Arc<Part>> {
        self.parts.iter().flatten()
    }
}

/// What the last proxy that this thread asked for has. Streams ask name after name; to work out the keys for each
/// name would cost more than the listener.
struct Memo {
    owner: Id,
    // Kept alive, so that their addresses stand for them.
    metadata: Arc<NodeMetadata>,
    labels: Arc<Labels>,
    targets: Arc<[ServiceTarget]>,
    sidecar: Option<ObjectKey>,
    scope: Arc<Scope>,
    index: Index,
    whole: Whole,
}

thread_local! {
    static MEMO: RefCell<Option<Memo>> = const { RefCell::new(None) };
}

impl Memo {
    fn fits(&self, owner: Id, request: Request<'_>) -> bool {
        let view = request.view;
        self.owner == owner
            && Arc::ptr_eq(&self.metadata, &view.metadata)
            && Arc::ptr_eq(&self.labels, &view.labels)
            && Arc::ptr_eq(&self.targets, &view.targets)
            && Arc::ptr_eq(&self.scope, request.scope)
            && self.sidecar == view.sidecar
            && self.index.is_copy_of(request.index)
    }
}

impl Listeners {
    /// What a wildcard subscription holds.
    pub fn names(&self, request: Request<'_>) -> Arc<[Name]> {
        self.whole(request).iter().flat_map(|p| p.names.iter().cloned()).collect()
    }

    /// A listener by name.
    pub fn generate(&self, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
        if request.view.flavour == Flavour::Grpc {
            return grpc_client::listener(request, name).map(|l| Encoded::listener(&l));
        }
        self.whole(request).iter().find_map(|p| p.by_name.get(name).cloned())
    }

    fn whole(&self, request: Request<'_>) -> Whole {
        if request.view.flavour == Flavour::Grpc {
            return Whole::default();
        }
        let known = MEMO.with_borrow(|m| m.as_ref().filter(|m| m.fits(self.id, request)).map(|m| m.whole.clone()));
        if let Some(whole) = known {
            return whole;
        }
        let whole = self.make(request);
        let view = request.view;
        let memo = Memo {
            owner: self.id,
            metadata: view.metadata.clone(),
            labels: view.labels.clone(),
            targets: view.targets.clone(),
            sidecar: view.sidecar.clone(),
            scope: request.scope.clone(),
            index: request.index.clone(),
            whole: whole.clone(),
        };
        MEMO.set(Some(memo));
        whole
    }

    fn make(&self, request: Request<'_>) -> Whole {
        let Request { index, view, .. } = request;
        let objects = telemetry::objects(index, view);
        let common = common(request, &objects);
        let plan = || TelemetryPlan::of(index, view, &objects);
        if view.is_gateway() {
            let key = GatewayKey { common, labels: view.labels.clone(), targets: targets(view) };
            let basis = gateway_basis(request);
            return Whole {
                parts: [Some(self.gateways.get(key, basis, || gateway_listeners(request, &plan()))), None],
            };
        }
        let names = dynamic_dns::caches(request);
        let key = OutboundKey {
            names: names.clone(),
            captures_dns: view.captures_dns(),
            common: common.clone(),
            sidecar: view.sidecar.clone(),
            http_proxy_port: view.http_proxy_port,
            local: outbound::local(view),
            labels: self.relevance.labels(request),
        };
        let out = self.outbound.get(key, outbound_basis(request), || {
            let plan = plan();
            let env = ChainEnv { names: &names, ..env(request, Class::Outbound, &plan.client, (None, None)) };
            outbound::listeners(request, &env)
        });
        let binds = view.interception == Interception::None || !request.scope.ingress().is_empty();
        let key = InboundKey {
            common,
            sidecar: view.sidecar.clone(),
            labels: view.labels.clone(),
            targets: targets(view),
            address: view.ips.first().copied().filter(|_| binds),
        };
        let inn = self.inbound.get(key, inbound_basis(request), || {
            let plan = plan();
            let subject = Subject {
                namespace: &view.namespace,
                labels: &view.labels,
                gateway: None,
                side: mesh_api::crd::telemetry::WorkloadMode::Server,
            };
            let authorization = Authorization::of(index, subject);
            let tokens = request_authn::of(index, subject, false);
            let authn = index.peer_authn(&view.namespace, &view.labels);
            let env = env(request, Class::Inbound, &plan.server, (tokens.as_ref(), Some(&authorization)));
            inbound::listeners(request, &env, &authn)
        });
        Whole { parts: [Some(out), Some(inn)] }
    }
}

/// Who looks at requests before they pass: by their tokens, by policies.
type Guards<'a> = (Option<&'a model::JwtAuthn>, Option<&'a Authorization>);

fn env<'a>(
    request: Request<'a>,
    class: Class,
    telemetry: &'a telemetry::SideTelemetry,
    guards: Guards<'a>,
) -> ChainEnv<'a> {
    ChainEnv {
        class,
        native: request.view.flavour == Flavour::Mesh,
        telemetry,
        mesh: request.index.mesh(),
        settings: &request.view.proxy_config,
        authentication: guards.0,
        authorization: guards.1,
        names: &[],
    }
}

fn gateway_listeners(request: Request<'_>, plan: &TelemetryPlan) -> Vec<model::Listener> {
    let view = request.view;
    let gateway = gateway_api::gateway_name(view);
    let subject = Subject {
        namespace: &view.namespace,
        labels: &view.labels,
        gateway,
        side: mesh_api::crd::telemetry::WorkloadMode::Client,
    };
    let authorization = Authorization::of(request.index, subject);
    let tokens = request_authn::of(request.index, subject, true);
    let guards = (tokens.as_ref(), Some(&authorization));
    gateway::listeners(request, &env(request, Class::Gateway, &plan.client, guards))
}

fn common(request: Request<'_>, objects: &[Arc<Object>]) -> Common {
    let view = request.view;
    let mesh = request.index.mesh();
    let spans = mesh.enable_tracing
        || mesh.default_providers.as_ref().is_some_and(|d| !d.tracing.is_empty())
        || !objects.is_empty();
    let settings = &view.metadata.proxy_config;
    Common {
        native: view.flavour == Flavour::Mesh,
        namespace: view.namespace.clone(),
        families: view.families(),
        interception: view.interception,
        telemetry: objects.iter().map(|o| o.key.clone()).collect(),
        span: spans.then(|| {
            let workload =
                if view.metadata.workload_name.is_empty() { &*view.name } else { &view.metadata.workload_name };
            vec![
                mesh_api::labels::canonical_name(&view.labels, workload).into(),
                mesh_api::labels::canonical_revision(&view.labels).into(),
                view.cluster.clone(),
                view.metadata.mesh_id.as_str().into(),
            ]
        }),
        settings: if settings.is_null() { "".into() } else { settings.to_string().into() },
    }
}

fn targets(view: &ProxyView) -> Vec<(ServiceKey, u16, u16)> {
    view.targets.iter().map(|t| (t.service.key.clone(), t.port.port, t.target_port)).collect()
}

fn stamps(index: &Index, kinds: &[Kind]) -> Vec<Stamp> {
    kinds.iter().map(|k| index.stamp(*k)).collect()
}

fn outbound_basis(request: Request<'_>) -> Basis {
    let Request { index, scope, .. } = request;
    // Listeners of headless services stand for their endpoints.
    let headless = scope.headless().filter_map(|key| index.service_entry(key)).map(|e| e.endpoints.stamp());
    Basis {
        mesh: index.mesh_stamped().stamp(),
        scope: scope.stamp(),
        rules: index.rules_stamp(),
        kinds: stamps(index, &[Kind::Telemetry, Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute]),
        services: headless.collect(),
    }
}

/// What the proxy serves, authorizers, and services that tell keys of tokens: whether those exist decides who fetches them.
fn services<B: FromIterator<Stamp>>(request: Request<'_>) -> B {
    let Request { index, view, .. } = request;
    let served = view.targets.iter().map(|t| t.service.stamp());
    let keys = index.key_services([&view.namespace, index.mesh().root_namespace()]);
    served.chain(policy::authorizers(index)).chain(keys).collect()
}

fn inbound_basis(request: Request<'_>) -> Basis {
    let index = request.index;
    Basis {
        mesh: index.mesh_stamped().stamp(),
        scope: Stamp::NONE,
        rules: Stamp::NONE,
        kinds: stamps(
            index,
            &[
                Kind::Telemetry,
                Kind::PeerAuthentication,
                Kind::AuthorizationPolicy,
                Kind::WasmPlugin,
                Kind::TrafficExtension,
                Kind::RequestAuthentication,
                Kind::Sidecar,
            ],
        ),
        services: services(request),
    }
}

fn gateway_basis(request: Request<'_>) -> Basis {
    let Request { index, scope, .. } = request;
    Basis {
        mesh: index.mesh_stamped().stamp(),
        scope: scope.stamp(),
        rules: index.rules_stamp(),
        kinds: stamps(
            index,
            &[
                Kind::Telemetry,
                Kind::AuthorizationPolicy,
                Kind::WasmPlugin,
                Kind::TrafficExtension,
                Kind::RequestAuthentication,
                Kind::IstioGateway,
                Kind::Ingress,
                Kind::IngressClass,
                Kind::Gateway,
                Kind::GatewayClass,
                Kind::ListenerSet,
                Kind::TlsRoute,
                Kind::TcpRoute,
                Kind::ReferenceGrant,
                Kind::Namespace,
                // Of a backend that comes or goes the chains of TLSRoutes and TCPRoutes tell.
                Kind::Service,
            ],
        ),
        services: services(request),
    }
}

/// A headless service whose endpoints have listeners of their own.
pub fn is_headless(service: &crate::index::Service) -> bool {
    service.kubernetes
        && service.resolution == Resolution::Passthrough
        && service.ports.iter().any(|p| !p.protocol.is_http())
}
