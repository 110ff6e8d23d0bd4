//! Extension providers that CUSTOM policies name: whom to ask, and what with.
//!
//! Owns the providers' meaning as filters, and how shadow rules tell them what is to be asked about. Must not know
//! rules.

use std::time::Duration;

use mesh_api::{
    meshconfig::{ExtAuthzGrpcProvider, ExtAuthzHttpProvider, ExtAuthzRequestBody, ExtensionProvider},
    model::{
        AuthzBody, AuthzGrpc, AuthzHttp, AuthzService, ExtAuthz, MetadataMatch, MetadataValue, Name, StringMatcher,
        StringPattern,
    },
    names::{ClusterName, complete_host},
};

use super::condition::Side;
use crate::index::{Index, ServiceEntry, Stamp};

/// In front of what shadow rules of CUSTOM policies tell.
pub(super) const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// At the end of the names of rules that refuse for lack of a provider.
pub(super) const BAD: &str = "-deny-due-to-bad-CUSTOM-action";
/// Without a word an answer may take this long; a DestinationRule may limit it.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Who is to be asked.
pub(super) enum Resolved {
    /// This one.
    Ask(Box<ExtAuthz>),
    /// Nobody on this kind of traffic: over HTTP there is nothing to ask about a connection.
    NotHere,
    /// Nobody, although somebody should be.
    Missing,
}

/// In front of the names of a provider's rules.
pub(super) fn mark(provider: &str) -> String {
    if provider.is_empty() { "istio-ext-authz-".to_owned() } else { format!("istio-ext-authz-{provider}-") }
}

/// What a provider's name stands for.
pub(super) fn resolve(index: &Index, name: &str, side: Side) -> Resolved {
    let Some(provider) = index.mesh().extension_providers.iter().find(|p| p.name == name) else {
        return Resolved::Missing;
    };
    let Some((service, port)) = address(provider) else { return Resolved::Missing };
    let Some(host) = host(index, service) else { return Resolved::Missing };
    let cluster: Name = ClusterName::outbound(&host, port, "").to_string().into();
    let mut out = match (&provider.envoy_ext_authz_grpc, &provider.envoy_ext_authz_http) {
        (Some(p), _) => grpc(p, cluster, &host),
        (None, Some(_)) if side == Side::Tcp => return Resolved::NotHere,
        (None, Some(p)) => http(p, cluster, &host),
        (None, None) => return Resolved::Missing,
    };
    let filter = match side {
        Side::Http => "envoy.filters.http.rbac",
        Side::Tcp => "envoy.filters.network.rbac",
    };
    // Up to where names of rules begin, so that one provider's name may begin with another's.
    let marked = StringMatcher::prefix(format!("{}ns[", mark(name)));
    out.enabled_metadata = Some(MetadataMatch {
        filter: filter.into(),
        path: vec![format!("{SHADOW_PREFIX}shadow_effective_policy_id").into()],
        value: MetadataValue::String(marked),
        invert: false,
    });
    if side == Side::Tcp {
        out.stat_prefix = "tcp.".into();
    }
    Resolved::Ask(Box::new(out))
}

/// States of the services of all authorizers: whether they exist decides between asking and refusing.
pub fn services(index: &Index) -> impl Iterator<Item = Stamp> {
    let named = index.mesh().extension_providers.iter().filter_map(address);
    named.map(|(service, _)| entry(index, service).map_or(Stamp::NONE, |e| e.service.stamp()))
}

fn address(p: &ExtensionProvider) -> Option<(&str, u16)> {
    let http = p.envoy_ext_authz_http.as_ref().map(|a| (a.service.as_str(), a.port));
    http.or_else(|| p.envoy_ext_authz_grpc.as_ref().map(|a| (a.service.as_str(), a.port)))
}

/// The host of `[NS/]HOST`, when there is exactly one service of it.
fn host(index: &Index, service: &str) -> Option<String> {
    entry(index, service).map(|e| e.service.key.host.to_string())
}

fn entry<'a>(index: &'a Index, service: &str) -> Option<&'a ServiceEntry> {
    let (namespace, host) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace), complete_host(host, namespace, index.domain())),
        None => (None, service.to_owned()),
    };
    let host = host.to_ascii_lowercase();
    let mut found = index.services_of_host(&host).filter(|e| namespace.is_none_or(|n| *e.service.key.namespace == *n));
    // Of several it is not known which one is trusted.
    found.next().filter(|_| found.next().is_none())
}

fn grpc(p: &ExtAuthzGrpcProvider, cluster: Name, host: &str) -> ExtAuthz {
    let service = AuthzService::Grpc(AuthzGrpc {
        cluster,
        authority: host.into(),
        timeout: p.timeout.map_or(TIMEOUT, |t| t.0),
        initial_metadata: vec![],
    });
    ExtAuthz {
        failure_mode_allow: p.fail_open,
        status_on_error: status(&p.status_on_error),
        body: p.include_request_body_in_check.as_ref().map(body),
        clear_route_cache: p.clear_route_cache,
        ..ExtAuthz::new(service)
    }
}

fn http(p: &ExtAuthzHttpProvider, cluster: Name, host: &str) -> ExtAuthz {
    let added = p.include_additional_headers_in_check.iter();
    let service = AuthzService::Http(Box::new(AuthzHttp {
        cluster,
        uri: format!("http://{host}").into(),
        timeout: p.timeout.map_or(TIMEOUT, |t| t.0),
        path_prefix: p.path_prefix.as_str().into(),
        headers_to_add: added.map(|(k, v)| (k.to_ascii_lowercase().into(), v.as_str().into())).collect(),
        upstream_headers: headers(&p.headers_to_upstream_on_allow),
        upstream_headers_to_append: vec![],
        client_headers: headers(&p.headers_to_downstream_on_deny),
        client_headers_on_success: headers(&p.headers_to_downstream_on_allow),
    }));
    let older = if p.include_request_headers_in_check.is_empty() {
        &p.include_headers_in_check
    } else {
        &p.include_request_headers_in_check
    };
    ExtAuthz {
        failure_mode_allow: p.fail_open,
        status_on_error: status(&p.status_on_error),
        body: p.include_request_body_in_check.as_ref().map(body),
        clear_route_cache: p.clear_route_cache,
        allowed_headers: headers(older),
        ..ExtAuthz::new(service)
    }
}

fn status(text: &str) -> u16 {
    text.parse().unwrap_or(403)
}

fn body(b: &ExtAuthzRequestBody) -> AuthzBody {
    AuthzBody { max_bytes: b.max_request_bytes, allow_partial: b.allow_partial_message, as_bytes: b.pack_as_bytes }
}

/// Names, `prefix*` or `*suffix`, in any case.
fn headers(names: &[String]) -> Vec<StringMatcher> {
    let one = |name: &String| {
        let pattern = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(suffix), _) => StringPattern::Suffix(suffix.into()),
            (None, Some(prefix)) => StringPattern::Prefix(prefix.into()),
            (None, None) => StringPattern::Exact(name.as_str().into()),
        };
        StringMatcher { pattern, ignore_case: true }
    };
    names.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::World;
    use super::super::{Authorization, Guard, Subject};
    use super::*;
    use mesh_api::labels::Labels;

    const MESH: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    extensionProviders:
    - name: ext
      envoyExtAuthzHttp:
        service: shop/authz.shop.svc.cluster.local
        port: 8000
        statusOnError: '503'
        pathPrefix: /check
        includeRequestHeadersInCheck: [X-User, 'x-a-*']
        includeAdditionalHeadersInCheck: {X-From: mesh}
        includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}
        headersToUpstreamOnAllow: ['*-ok']
    - name: ext-grpc
      envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 9000, timeout: 2s, failOpen: true}
---
";
    const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: authz, namespace: shop}
spec: {clusterIP: 10.1.0.9, selector: {app: authz}, ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]}
---
";

    fn policy(name: &str, provider: &str) -> String {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}\n---\n"
        )
    }

    fn of(yaml: &str) -> Authorization {
        let world = World::new(yaml);
        Authorization::of(
            world.index(),
            Subject {
                namespace: "shop",
                labels: &Labels::new(),
                gateway: None,
                side: mesh_api::crd::telemetry::WorkloadMode::Server,
            },
        )
    }

    #[test]
    fn a_provider_over_http() {
        let a = of(&format!("{MESH}{SERVICE}{}", policy("p", "ext")));
        let [Guard::Rbac(shadow), Guard::Ask(ask)] = a.custom_http.as_slice() else { panic!("{a:?}") };
        assert!(shadow.rules.is_none());
        assert_eq!(&*shadow.shadow_prefix, "istio_ext_authz_");
        let name = &shadow.shadow_rules.as_ref().unwrap().policies[0].name;
        assert_eq!(&**name, "istio-ext-authz-ext-ns[shop]-policy[p]-rule[0]");
        let MetadataValue::String(m) = &ask.enabled_metadata.as_ref().unwrap().value else { panic!() };
        assert_eq!(*m, StringMatcher::prefix("istio-ext-authz-ext-ns["));
        assert_eq!((ask.status_on_error, ask.failure_mode_allow), (503, false));
        let AuthzService::Http(http) = &ask.service else { panic!() };
        assert_eq!(&*http.cluster, "outbound|8000||authz.shop.svc.cluster.local");
        assert_eq!((&*http.path_prefix, http.timeout), ("/check", TIMEOUT));
        assert_eq!(http.headers_to_add, [("x-from".into(), "mesh".into())]);
        assert_eq!(http.upstream_headers[0].pattern, StringPattern::Suffix("-ok".into()));
        assert_eq!(ask.allowed_headers[1].pattern, StringPattern::Prefix("x-a-".into()));
        assert_eq!(ask.body.unwrap().max_bytes, 10);
        assert!(a.custom_tcp.is_empty(), "there is nothing to ask about a connection over HTTP");
    }

    #[test]
    fn a_provider_over_grpc_is_asked_about_connections_too() {
        let a = of(&format!("{MESH}{SERVICE}{}{}", policy("p", "ext-grpc"), policy("q", "ext")));
        // In order of their names, each with its own rules.
        assert_eq!(a.custom_http.len(), 4);
        let [Guard::Rbac(shadow), Guard::Ask(ask)] = a.custom_tcp.as_slice() else { panic!("{a:?}") };
        assert_eq!(shadow.shadow_rules.as_ref().unwrap().policies.len(), 1);
        assert!(ask.failure_mode_allow);
        let AuthzService::Grpc(grpc) = &ask.service else { panic!() };
        assert_eq!((&*grpc.authority, grpc.timeout), ("authz.shop.svc.cluster.local", Duration::from_secs(2)));
    }

    #[test]
    fn without_its_service_everything_is_refused() {
        let refuses = |a: &Authorization| matches!(a.custom_http.as_slice(), [Guard::Rbac(r)] if r.rules.is_some());
        let mut world = World::new(&format!("{MESH}{}", policy("p", "ext-grpc")));
        let now = |world: &World| {
            Authorization::of(
                world.index(),
                Subject {
                    namespace: "shop",
                    labels: &Labels::new(),
                    gateway: None,
                    side: mesh_api::crd::telemetry::WorkloadMode::Server,
                },
            )
        };
        assert!(refuses(&now(&world)), "although it may fail open");
        let before: Vec<Stamp> = services(world.index()).collect();
        world.apply(SERVICE);
        assert!(!refuses(&now(&world)));
        assert!(before != services(world.index()).collect::<Vec<_>>(), "listeners are made again");
        assert!(refuses(&of(&format!("{MESH}{SERVICE}{}", policy("p", "other")))));
    }

    #[test]
    fn trying_a_policy_asks_nobody() {
        let dry =
            policy("p", "ext").replace("namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: 'True'}}");
        let a = of(&format!("{MESH}{SERVICE}{dry}"));
        assert!(a.is_empty(), "{a:?}");
    }
}
