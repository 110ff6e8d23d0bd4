//! Typed objects as every source hands them on: key, a few metadata, spec. Knows nothing of where they come from.

use std::{fmt, path::PathBuf, sync::Arc};

use mesh_api::crd::{extensions, gateway_api, networking, security, telemetry};
use mesh_api::labels::Labels;
use serde::Serialize;

use super::{core, ingress};

/// Kinds that the control plane reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Core: namespaces.
    Namespace,
    /// Core: nodes.
    Node,
    /// Core: services.
    Service,
    /// Discovery: endpoints of a service.
    EndpointSlice,
    /// Core: pods.
    Pod,
    /// Core: secrets.
    Secret,
    /// Core: config maps.
    ConfigMap,
    /// Networking: Kubernetes Ingress.
    Ingress,
    /// Networking: who implements an Ingress.
    IngressClass,
    /// Istio.
    VirtualService,
    /// Istio.
    DestinationRule,
    /// Istio's Gateway.
    IstioGateway,
    /// Istio.
    ServiceEntry,
    /// Istio.
    WorkloadEntry,
    /// Istio.
    WorkloadGroup,
    /// Istio.
    Sidecar,
    /// Istio.
    ProxyConfig,
    /// Istio.
    EnvoyFilter,
    /// Istio.
    PeerAuthentication,
    /// Istio.
    RequestAuthentication,
    /// Istio.
    AuthorizationPolicy,
    /// Istio.
    Telemetry,
    /// Istio.
    WasmPlugin,
    /// Istio.
    TrafficExtension,
    /// Gateway API.
    GatewayClass,
    /// Gateway API's Gateway.
    Gateway,
    /// Gateway API.
    HttpRoute,
    /// Gateway API.
    GrpcRoute,
    /// Gateway API.
    ReferenceGrant,
    /// Gateway API.
    TlsRoute,
    /// Gateway API.
    TcpRoute,
    /// Gateway API.
    BackendTlsPolicy,
    /// Gateway API.
    ListenerSet,
}

/// API group, served versions, resource word (as in paths and `istio.config` metadata) and name of a [`Kind`].
struct KindFacts {
    group: &'static str,
    versions: &'static [&'static str],
    word: &'static str,
    name: &'static str,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 33] = [
        Kind::Namespace,
        Kind::Node,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Pod,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::Ingress,
        Kind::IngressClass,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::IstioGateway,
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::WorkloadGroup,
        Kind::Sidecar,
        Kind::ProxyConfig,
        Kind::EnvoyFilter,
        Kind::PeerAuthentication,
        Kind::RequestAuthentication,
        Kind::AuthorizationPolicy,
        Kind::Telemetry,
        Kind::WasmPlugin,
        Kind::TrafficExtension,
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::ReferenceGrant,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::BackendTlsPolicy,
        Kind::ListenerSet,
    ];

    fn facts(self) -> KindFacts {
        const NET: &str = "networking.istio.io";
        const SEC: &str = "security.istio.io";
        const EXT: &str = "extensions.istio.io";
        const GW: &str = mesh_api::crd::gateway_api::GROUP;
        const V1: &[&str] = &["v1"];
        const NET_V: &[&str] = &["v1", "v1beta1", "v1alpha3"];
        const SEC_V: &[&str] = &["v1", "v1beta1"];
        let f = |group, versions, word, name| KindFacts { group, versions, word, name };
        match self {
            Kind::Namespace => f("", V1, "namespace", "Namespace"),
            Kind::Node => f("", V1, "node", "Node"),
            Kind::Service => f("", V1, "service", "Service"),
            Kind::EndpointSlice => f("discovery.k8s.io", V1, "endpointslice", "EndpointSlice"),
            Kind::Pod => f("", V1, "pod", "Pod"),
            Kind::Secret => f("", V1, "secret", "Secret"),
            Kind::ConfigMap => f("", V1, "configmap", "ConfigMap"),
            Kind::Ingress => f("networking.k8s.io", V1, "ingress", "Ingress"),
            Kind::IngressClass => f("networking.k8s.io", V1, "ingress-class", "IngressClass"),
            Kind::VirtualService => f(NET, NET_V, "virtual-service", "VirtualService"),
            Kind::DestinationRule => f(NET, NET_V, "destination-rule", "DestinationRule"),
            Kind::IstioGateway => f(NET, NET_V, "gateway", "Gateway"),
            Kind::ServiceEntry => f(NET, NET_V, "service-entry", "ServiceEntry"),
            Kind::WorkloadEntry => f(NET, NET_V, "workload-entry", "WorkloadEntry"),
            Kind::WorkloadGroup => f(NET, NET_V, "workload-group", "WorkloadGroup"),
            Kind::Sidecar => f(NET, NET_V, "sidecar", "Sidecar"),
            Kind::ProxyConfig => f(NET, &["v1beta1"], "proxy-config", "ProxyConfig"),
            Kind::EnvoyFilter => f(NET, &["v1alpha3"], "envoy-filter", "EnvoyFilter"),
            Kind::PeerAuthentication => f(SEC, SEC_V, "peer-authentication", "PeerAuthentication"),
            Kind::RequestAuthentication => f(SEC, SEC_V, "request-authentication", "RequestAuthentication"),
            Kind::AuthorizationPolicy => f(SEC, SEC_V, "authorization-policy", "AuthorizationPolicy"),
            Kind::Telemetry => f("telemetry.istio.io", &["v1", "v1alpha1"], "telemetry", "Telemetry"),
            Kind::WasmPlugin => f(EXT, &["v1alpha1"], "wasm-plugin", "WasmPlugin"),
            Kind::TrafficExtension => f(EXT, &["v1alpha1"], "traffic-extension", "TrafficExtension"),
            Kind::GatewayClass => f(GW, SEC_V, "gateway-class", "GatewayClass"),
            Kind::Gateway => f(GW, SEC_V, "kubernetes-gateway", "Gateway"),
            Kind::HttpRoute => f(GW, SEC_V, "http-route", "HTTPRoute"),
            Kind::GrpcRoute => f(GW, &["v1", "v1alpha2"], "grpc-route", "GRPCRoute"),
            Kind::ReferenceGrant => f(GW, SEC_V, "reference-grant", "ReferenceGrant"),
            Kind::TlsRoute => f(GW, &["v1", "v1alpha3", "v1alpha2"], "tls-route", "TLSRoute"),
            Kind::TcpRoute => f(GW, &["v1", "v1alpha2"], "tcp-route", "TCPRoute"),
            Kind::BackendTlsPolicy => f(GW, &["v1", "v1alpha3"], "backend-tls-policy", "BackendTLSPolicy"),
            Kind::ListenerSet => f(GW, V1, "listener-set", "ListenerSet"),
        }
    }

    /// `kind` of a manifest.
    pub fn name(self) -> &'static str {
        self.facts().name
    }
    /// API group; empty: core.
    pub fn group(self) -> &'static str {
        self.facts().group
    }
    /// Name of the resource, as in paths of the API server.
    pub fn plural(self) -> String {
        let name = self.name().to_ascii_lowercase();
        match name.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o', 'u'])) {
            Some(stem) => format!("{stem}ies"),
            None if name.ends_with('s') => format!("{name}es"),
            None => format!("{name}s"),
        }
    }
    /// Versions that are served.
    pub fn versions(self) -> &'static [&'static str] {
        self.facts().versions
    }
    /// The kind of a manifest, version aside.
    pub fn find(group: &str, kind: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.group() == group && k.name() == kind)
    }
    /// Objects of this kind belong to no namespace.
    pub fn cluster_scoped(self) -> bool {
        matches!(self, Kind::Namespace | Kind::Node | Kind::GatewayClass | Kind::IngressClass)
    }
    /// Says who may connect or ask: its loss may open something.
    pub fn is_security(self) -> bool {
        matches!(
            self,
            Kind::PeerAuthentication
                | Kind::RequestAuthentication
                | Kind::AuthorizationPolicy
                | Kind::WasmPlugin
                | Kind::TrafficExtension
        )
    }
    /// A kind of Kubernetes itself: unknown fields are ignored there, refused elsewhere.
    pub fn is_core(self) -> bool {
        matches!(
            self,
            Kind::Namespace
                | Kind::Node
                | Kind::Service
                | Kind::EndpointSlice
                | Kind::Pod
                | Kind::Secret
                | Kind::ConfigMap
                | Kind::Ingress
                | Kind::IngressClass
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an object is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds that have none.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// Puts a key together.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
    /// Path in the form of Istio's `istio.config` metadata.
    pub fn config_path(&self) -> String {
        let facts = self.kind.facts();
        format!(
            "/apis/{}/{}/namespaces/{}/{}/{}",
            facts.group, facts.versions[0], self.namespace, facts.word, self.name
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// What translation needs of an object's metadata.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Meta {
    /// Labels.
    pub labels: Labels,
    /// Annotations that have a meaning to us.
    pub annotations: Labels,
    /// Creation time; `None`: unknown (all such objects are of one age).
    pub creation: Option<jiff::Timestamp>,
    /// How often the API server has seen its spec change; 0: unknown.
    #[serde(skip)]
    pub generation: i64,
    /// Of a Gateway, which objects are made for: what the API server knows it by; empty: unknown.
    #[serde(skip)]
    pub uid: String,
    /// It is being deleted.
    #[serde(skip)]
    pub ending: bool,
}

/// Where an object stands in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Position {
    /// File.
    pub file: PathBuf,
    /// First line of the document, from 1.
    pub line: u32,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Object {
    /// Key.
    pub key: ObjectKey,
    /// Metadata.
    pub meta: Meta,
    /// Content.
    pub spec: Spec,
    /// Where it stands, for objects from a folder.
    pub position: Option<Position>,
}

impl Object {
    /// Istio's order of objects: older first, then namespace and name.
    pub fn age_order(&self) -> (Option<jiff::Timestamp>, &str, &str) {
        (self.meta.creation, &self.key.namespace, &self.key.name)
    }
}

/// Content of an object.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(clippy::large_enum_variant)]
pub enum Spec {
    /// Labels are all that matters.
    Namespace,
    /// Labels are all that matters: they say where it stands.
    Node,
    /// Service.
    Service(Arc<core::Service>),
    /// EndpointSlice.
    EndpointSlice(Arc<core::EndpointSlice>),
    /// Pod.
    Pod(Arc<core::Pod>),
    /// Secret.
    Secret(Arc<core::Secret>),
    /// ConfigMap.
    ConfigMap(Arc<core::ConfigMap>),
    /// Ingress.
    Ingress(Arc<ingress::Ingress>),
    /// IngressClass.
    IngressClass(ingress::IngressClass),
    /// VirtualService.
    VirtualService(Arc<networking::VirtualService>),
    /// DestinationRule.
    DestinationRule(Arc<networking::DestinationRule>),
    /// Istio's Gateway.
    IstioGateway(Arc<networking::Gateway>),
    /// ServiceEntry.
    ServiceEntry(Arc<networking::ServiceEntry>),
    /// WorkloadEntry.
    WorkloadEntry(Arc<networking::WorkloadEntry>),
    /// WorkloadGroup.
    WorkloadGroup(Arc<networking::WorkloadGroup>),
    /// Sidecar.
    Sidecar(Arc<networking::Sidecar>),
    /// ProxyConfig.
    ProxyConfig(Arc<networking::ProxyConfig>),
    /// EnvoyFilter.
    EnvoyFilter(Arc<networking::EnvoyFilter>),
    /// PeerAuthentication.
    PeerAuthentication(Arc<security::PeerAuthentication>),
    /// RequestAuthentication.
    RequestAuthentication(Arc<security::RequestAuthentication>),
    /// AuthorizationPolicy.
    AuthorizationPolicy(Arc<security::AuthorizationPolicy>),
    /// Telemetry.
    Telemetry(Arc<telemetry::Telemetry>),
    /// WasmPlugin.
    WasmPlugin(Arc<extensions::WasmPlugin>),
    /// TrafficExtension.
    TrafficExtension(Arc<extensions::TrafficExtension>),
    /// GatewayClass.
    GatewayClass(Arc<gateway_api::GatewayClass>),
    /// Gateway API's Gateway.
    Gateway(Arc<gateway_api::Gateway>),
    /// HTTPRoute.
    HttpRoute(Arc<gateway_api::HttpRoute>),
    /// GRPCRoute.
    GrpcRoute(Arc<gateway_api::GrpcRoute>),
    /// ReferenceGrant.
    ReferenceGrant(Arc<gateway_api::ReferenceGrant>),
    /// TLSRoute.
    TlsRoute(Arc<gateway_api::TlsRoute>),
    /// TCPRoute.
    TcpRoute(Arc<gateway_api::TcpRoute>),
    /// BackendTLSPolicy.
    BackendTlsPolicy(Arc<gateway_api::BackendTlsPolicy>),
    /// ListenerSet.
    ListenerSet(Arc<gateway_api::ListenerSet>),
}

/// A change that a source reports.
#[derive(Debug, Clone, PartialEq)]
pub enum ObjectChange {
    /// New, or changed.
    Upsert(Arc<Object>),
    /// Gone.
    Remove(ObjectKey),
}

impl ObjectChange {
    /// What changed.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Upsert(object) => &object.key,
            Self::Remove(key) => key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_group_and_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::find(kind.group(), kind.name()), Some(kind));
        }
        for (kind, plural) in [
            (Kind::IstioGateway, "gateways"),
            (Kind::AuthorizationPolicy, "authorizationpolicies"),
            (Kind::ServiceEntry, "serviceentries"),
            (Kind::Telemetry, "telemetries"),
            (Kind::IngressClass, "ingressclasses"),
            (Kind::Ingress, "ingresses"),
            (Kind::BackendTlsPolicy, "backendtlspolicies"),
            (Kind::HttpRoute, "httproutes"),
        ] {
            assert_eq!(kind.plural(), plural);
        }
        assert_eq!(
            ObjectKey::new(Kind::VirtualService, "shop", "web").config_path(),
            "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web"
        );
    }
}
