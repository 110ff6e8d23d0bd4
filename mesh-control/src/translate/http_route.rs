//! Rules of HTTPRoutes and GRPCRoutes as routes.
//!
//! Owns matches with their precedence, filters, backends with weights and grants. Must not know where a route is
//! attached; clusters and hashes are asked for through [`Destinations`].

use std::{cmp::Reverse, time::Duration};

use mesh_api::{
    crd::gateway_api::{
        BackendRef, Cors, FilterType, GrpcRouteMatch, HeaderModifier, HttpRouteMatch, PathMatchType, PathModifier,
        PathModifierType, RequestMirror, RequestRedirect, RouteFilter, RouteRetry, RouteTimeouts, UrlRewrite,
        ValueMatch, ValueMatchType,
    },
    model::{
        Action, AppendAction, CorsPolicy, FilterOverride, Forward, Fraction, HeaderMatcher, HeaderMutation, HeaderOps,
        HeaderValueMatch, HostRewrite, Metadata, Mirror, Name, Origin, PathMatch, PathRewrite, QueryMatcher, Redirect,
        RedirectPath, RetryPolicy, Route, RouteMatch, StringMatcher, Target, WeightedCluster,
    },
    names::{ClusterName, service_host},
};

use super::{
    filter_names,
    gateway_api::{Reference, RouteEntry, RouteSpec, is_granted},
    rule_parts, session,
    virtual_service::{Destinations, UNKNOWN_SERVICE, operation},
};
use crate::index::{Index, ServiceKey};

/// Group of Istio's `Hostname` backends.
const ISTIO_GROUP: &str = "networking.istio.io";

/// All that rules are translated with.
#[derive(Clone, Copy)]
pub struct RouteEnv<'a> {
    /// The state of the mesh.
    pub index: &'a Index,
    /// Lookups.
    pub destinations: &'a dyn Destinations,
    /// Port of the listener (or of the service).
    pub port: u16,
    /// The listener terminates TLS.
    pub tls: bool,
    /// Sidecars: backends of other namespaces need no grant.
    pub mesh: bool,
}

impl std::fmt::Debug for RouteEnv<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteEnv").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Order of matches by Gateway API: exact paths, longer paths, methods, headers, query parameters; then age and name
/// of the object, then the order of rules.
type Rank = (Reverse<u8>, Reverse<usize>, Reverse<bool>, Reverse<usize>, Reverse<usize>);

/// A route with its place among others.
#[derive(Debug)]
pub struct Ranked {
    rank: Rank,
    route: Route,
}

/// Routes of several objects (oldest first) in the order in which they are tried.
pub fn in_order(mut ranked: Vec<Ranked>) -> Vec<Route> {
    ranked.sort_by_key(|a| a.rank);
    ranked.into_iter().map(|r| r.route).collect()
}

/// The rules of one object.
pub fn rules(entry: &RouteEntry, env: &RouteEnv<'_>) -> Vec<Ranked> {
    let config: Name = entry.object.key.config_path().into();
    let name = &entry.object.key.name;
    // What makes a rule this one and no other.
    let rule_key = |rule: &str, i: usize| match rule {
        "" => format!("{config}/{i}"),
        named => format!("{config}/{named}"),
    };
    let mut out = Vec::new();
    let mut add = |rule: Rule<'_>, matches: Vec<(RouteMatch, Rank)>| {
        for (i, (m, rank)) in matches.into_iter().enumerate() {
            let mut route = rule.route(entry, m, env);
            if route.name.is_empty() {
                route.name = format!("{}.{name}.{i}", entry.namespace()).into();
            }
            route.origin = Origin { config: config.clone() };
            out.push(Ranked { rank, route });
        }
    };
    match &entry.spec {
        RouteSpec::Http(spec) => {
            for (i, r) in spec.rules.iter().enumerate() {
                let rule = Rule {
                    name: &r.name,
                    filters: &r.filters,
                    backends: &r.backend_refs,
                    timeouts: r.timeouts.as_ref(),
                    retry: r.retry.as_ref(),
                    session: r.session_persistence.as_ref().map(|s| session::filter(s, &rule_key(&r.name, i))),
                };
                let any = [HttpRouteMatch::default()];
                let all = if r.matches.is_empty() { &any[..] } else { &r.matches };
                add(rule, all.iter().map(http_match).collect());
            }
        }
        RouteSpec::Grpc(spec) => {
            for (i, r) in spec.rules.iter().enumerate() {
                let rule = Rule {
                    name: &r.name,
                    filters: &r.filters,
                    backends: &r.backend_refs,
                    timeouts: None,
                    retry: None,
                    session: r.session_persistence.as_ref().map(|s| session::filter(s, &rule_key(&r.name, i))),
                };
                let any = [GrpcRouteMatch::default()];
                let all = if r.matches.is_empty() { &any[..] } else { &r.matches };
                add(rule, all.iter().map(grpc_match).collect());
            }
        }
        RouteSpec::Tls(_) | RouteSpec::Tcp(_) => {}
    }
    out
}

fn http_match(m: &HttpRouteMatch) -> (RouteMatch, Rank) {
    let value = m.path.as_ref().and_then(|p| p.value.as_deref()).unwrap_or("/");
    let kind = m.path.as_ref().and_then(|p| p.kind).unwrap_or_default();
    // A final slash of a prefix means nothing, so it counts for nothing.
    let letters = if kind == PathMatchType::PathPrefix { value.trim_end_matches('/').len() } else { value.len() };
    let (path, class) = match kind {
        PathMatchType::Exact => (PathMatch::Exact(value.into()), 3),
        PathMatchType::RegularExpression => (PathMatch::Regex(value.into()), 1),
        PathMatchType::PathPrefix => match value.trim_end_matches('/') {
            "" => (PathMatch::Prefix("/".into()), 2),
            prefix => (PathMatch::PathSeparatedPrefix(prefix.into()), 2),
        },
    };
    let mut out = RouteMatch::path(path);
    out.headers = headers(&m.headers);
    if let Some(method) = &m.method {
        out.headers.push(header_matcher(":method", HeaderValueMatch::String(StringMatcher::exact(method.as_str()))));
    }
    out.query = m
        .query_params
        .iter()
        .map(|q| QueryMatcher { name: q.name.as_str().into(), value: Some(string_matcher(q)) })
        .collect();
    let rank = (
        Reverse(class),
        Reverse(letters),
        Reverse(m.method.is_some()),
        Reverse(m.headers.len()),
        Reverse(m.query_params.len()),
    );
    (out, rank)
}

fn grpc_match(m: &GrpcRouteMatch) -> (RouteMatch, Rank) {
    let method = m.method.clone().unwrap_or_default();
    let regex = method.kind == Some(ValueMatchType::RegularExpression);
    let given = |s: Option<String>| s.filter(|s| !s.is_empty());
    let any = "[^/]+".to_owned();
    let (path, class, len) = match (given(method.service), given(method.method)) {
        (None, None) => (PathMatch::Prefix("/".into()), 2, 1),
        (service, name) if regex => {
            let pattern = format!("/{}/{}", service.unwrap_or_else(|| any.clone()), name.unwrap_or(any));
            (PathMatch::Regex(pattern.as_str().into()), 1, pattern.len())
        }
        (Some(s), Some(n)) => {
            let path = format!("/{s}/{n}");
            (PathMatch::Exact(path.as_str().into()), 3, path.len())
        }
        (Some(s), None) => {
            let path = format!("/{s}/");
            (PathMatch::Prefix(path.as_str().into()), 2, path.len())
        }
        (None, Some(n)) => {
            let pattern = format!("/[^/]+/{}", regex::escape(&n));
            (PathMatch::Regex(pattern.as_str().into()), 1, pattern.len())
        }
    };
    let mut out = RouteMatch::path(path);
    out.headers = headers(&m.headers);
    (out, (Reverse(class), Reverse(len), Reverse(false), Reverse(m.headers.len()), Reverse(0)))
}

fn headers(list: &[ValueMatch]) -> Vec<HeaderMatcher> {
    let mut out: Vec<HeaderMatcher> = Vec::new();
    for h in list {
        let name = h.name.to_ascii_lowercase();
        // Of entries of one name the first counts.
        if !out.iter().any(|o| *o.name == *name) {
            out.push(header_matcher(&name, HeaderValueMatch::String(string_matcher(h))));
        }
    }
    out
}

fn header_matcher(name: &str, value: HeaderValueMatch) -> HeaderMatcher {
    HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
}

fn string_matcher(m: &ValueMatch) -> StringMatcher {
    match m.kind.unwrap_or_default() {
        ValueMatchType::Exact => StringMatcher::exact(m.value.as_str()),
        ValueMatchType::RegularExpression => StringMatcher::regex(m.value.as_str()),
    }
}

/// A rule of either kind of route.
struct Rule<'a> {
    name: &'a str,
    filters: &'a [RouteFilter],
    backends: &'a [BackendRef],
    timeouts: Option<&'a RouteTimeouts>,
    retry: Option<&'a RouteRetry>,
    /// The filter by which its sessions stick.
    session: Option<(Name, FilterOverride)>,
}

/// What filters of a rule amount to.
#[derive(Default)]
struct Effects<'a> {
    headers: HeaderOps,
    redirect: Option<&'a RequestRedirect>,
    rewrite: Option<&'a UrlRewrite>,
    mirrors: Vec<&'a RequestMirror>,
    cors: Option<&'a Cors>,
    /// A filter that cannot be carried out: such requests must fail.
    unsupported: bool,
}

fn effects(filters: &[RouteFilter]) -> Effects<'_> {
    let mut out = Effects::default();
    for f in filters {
        match f.kind {
            FilterType::RequestHeaderModifier => mutate(&mut out.headers.request, f.request_header_modifier.as_ref()),
            FilterType::ResponseHeaderModifier => {
                mutate(&mut out.headers.response, f.response_header_modifier.as_ref());
            }
            FilterType::RequestRedirect => out.redirect = f.request_redirect.as_ref(),
            FilterType::UrlRewrite => out.rewrite = f.url_rewrite.as_ref(),
            FilterType::RequestMirror => out.mirrors.extend(f.request_mirror.as_ref()),
            FilterType::Cors => out.cors = f.cors.as_ref(),
            FilterType::ExternalAuth | FilterType::ExtensionRef => out.unsupported = true,
        }
    }
    out
}

fn mutate(out: &mut HeaderMutation, m: Option<&HeaderModifier>) {
    let Some(m) = m else { return };
    let value = |p: &mesh_api::crd::gateway_api::HeaderPair, a| rule_parts::header_value(&p.name, &p.value, a);
    out.add.extend(m.set.iter().map(|p| value(p, AppendAction::OverwriteIfExistsOrAdd)));
    out.add.extend(m.add.iter().map(|p| value(p, AppendAction::AppendIfExistsOrAdd)));
    out.remove.extend(m.remove.iter().map(|n| Name::from(n.to_ascii_lowercase())));
}

impl Rule<'_> {
    fn route(&self, entry: &RouteEntry, matches: RouteMatch, env: &RouteEnv<'_>) -> Route {
        let mut effects = effects(self.filters);
        let action = if effects.unsupported {
            failure()
        } else if let Some(r) = effects.redirect {
            redirect(r, &matches.path, env)
        } else {
            self.forward(entry, &matches, &mut effects, env)
        };
        let cors = effects.cors.map(|c| (Name::from(filter_names::CORS), FilterOverride::Cors(cors(c))));
        Route {
            name: self.name.into(),
            operation: operation(&matches, &action, &entry.object.key.name, env.port),
            matches,
            action,
            headers: effects.headers,
            filter_overrides: cors.into_iter().chain(self.session.clone()).collect(),
            stat_prefix: "".into(),
            origin: Origin::default(),
            metadata: Metadata::new(),
        }
    }

    fn forward(
        &self,
        entry: &RouteEntry,
        matches: &RouteMatch,
        effects: &mut Effects<'_>,
        env: &RouteEnv<'_>,
    ) -> Action {
        let mut out = Forward::to(UNKNOWN_SERVICE);
        // What does not exist or may not be used answers 500, for its share.
        out.cluster_not_found_status = 500;
        let request = self.timeouts.and_then(|t| t.request).map_or(Duration::ZERO, |d| d.0);
        out.timeout = Some(request);
        out.grpc_timeout_max = Some(request);
        if let Some(r) = effects.rewrite {
            out.host_rewrite = r.hostname.as_ref().map(|h| HostRewrite::Literal(h.as_str().into()));
            out.rewrite = r.path.as_ref().and_then(|p| path_rewrite(p, &matches.path));
        }
        out.mirrors = effects.mirrors.iter().filter_map(|m| mirror(m, entry, env)).collect();
        let mut hashed = false;
        let used: Vec<&BackendRef> = self.backends.iter().filter(|b| b.weight.unwrap_or(1) > 0).collect();
        match used.as_slice() {
            [] => return failure(),
            [only] => {
                let backend = self.backend(only, entry, env);
                out.target = Target::Cluster(backend.cluster.name);
                rule_parts::append_ops(&mut effects.headers, backend.cluster.headers);
                if let Some(host) = backend.cluster.host_rewrite {
                    out.host_rewrite = Some(HostRewrite::Literal(host));
                }
                hashed = backend.hash.is_some();
                out.hash.extend(backend.hash);
            }
            several => {
                let backends: Vec<Backend> = several.iter().map(|b| self.backend(b, entry, env)).collect();
                out.hash.extend(backends.iter().filter_map(|b| b.hash.clone()));
                out.target = Target::Weighted(backends.into_iter().map(|b| b.cluster).collect());
            }
        }
        out.retry = self.retries(env, hashed);
        Action::Forward(Box::new(out))
    }

    fn backend(&self, b: &BackendRef, entry: &RouteEntry, env: &RouteEnv<'_>) -> Backend {
        let effects = effects(&b.filters);
        let found = cluster(b, entry, env).filter(|_| !effects.unsupported && effects.redirect.is_none());
        let hash = found.as_ref().and_then(|(host, port)| env.destinations.hash(host, Some(*port), ""));
        let name: Name = match &found {
            Some((host, port)) => ClusterName::outbound(env.destinations.concrete(host), *port, "").to_string().into(),
            None => UNKNOWN_SERVICE.into(),
        };
        let host_rewrite = effects.rewrite.and_then(|r| r.hostname.as_deref()).map(Name::from);
        let cluster = WeightedCluster {
            name,
            weight: b.weight.unwrap_or(1),
            headers: effects.headers,
            host_rewrite,
            filter_overrides: vec![],
        };
        Backend { cluster, hash }
    }

    fn retries(&self, env: &RouteEnv<'_>, hashed: bool) -> Option<RetryPolicy> {
        let mut out = rule_parts::retry_policy(env.index.mesh().default_http_retry_policy.as_ref(), hashed);
        if let Some(own) = self.retry {
            let mut policy = rule_parts::retry_policy(None, hashed).unwrap_or_default();
            policy.num_retries = own.attempts.unwrap_or(1);
            policy.retriable_statuses.clone_from(&own.codes);
            policy.on.retriable_status_codes = true;
            policy.on.reset = true;
            policy.backoff = own.backoff.map(|d| (d.0, d.0.saturating_mul(10)));
            out = (policy.num_retries > 0).then_some(policy);
        }
        if let Some(limit) = self.timeouts.and_then(|t| t.backend_request).map(|d| d.0).filter(|d| !d.is_zero()) {
            // Without retries the limit of a try is carried by a policy that never retries.
            out.get_or_insert_default().per_try_timeout = Some(limit);
        }
        out
    }
}

struct Backend {
    cluster: WeightedCluster,
    hash: Option<mesh_api::model::HashPolicy>,
}

fn failure() -> Action {
    Action::DirectResponse { status: 500, body: "".into() }
}

/// Why a backend is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Another namespace, without a grant.
    NotPermitted,
    /// No kind of backend.
    Kind,
    /// There is no such service or port.
    NotFound,
}

/// Host and port of a backend that exists and may be used.
pub fn cluster(b: &BackendRef, entry: &RouteEntry, env: &RouteEnv<'_>) -> Option<(String, u16)> {
    resolve(b, entry, env.index, env.mesh).ok()
}

/// Host and port of a backend. `mesh`: backends of other namespaces need no grant.
///
/// # Errors
/// Why it is not used.
pub fn resolve(b: &BackendRef, entry: &RouteEntry, index: &Index, mesh: bool) -> Result<(String, u16), Unusable> {
    let own = entry.namespace();
    let namespace = b.namespace.as_deref().unwrap_or(own);
    let (group, kind) = (b.group.as_deref().unwrap_or(""), b.kind.as_deref().unwrap_or("Service"));
    let reference = Reference {
        from_kind: entry.kind(),
        from_namespace: own,
        to_group: group,
        to_kind: kind,
        to_namespace: namespace,
        to_name: &b.name,
    };
    if !matches!((group, kind), ("", "Service") | (ISTIO_GROUP, "Hostname")) {
        return Err(Unusable::Kind);
    }
    if !mesh && !is_granted(index, reference) {
        return Err(Unusable::NotPermitted);
    }
    let port = b.port.ok_or(Unusable::NotFound)?;
    if kind == "Hostname" {
        return Ok((b.name.to_ascii_lowercase(), port));
    }
    let host = service_host(&b.name, namespace, index.domain());
    let service = index.service_entry(&ServiceKey::new(&host, namespace)).ok_or(Unusable::NotFound)?;
    service.service.port(port).ok_or(Unusable::NotFound)?;
    Ok((host, port))
}

fn mirror(m: &RequestMirror, entry: &RouteEntry, env: &RouteEnv<'_>) -> Option<Mirror> {
    let (host, port) = cluster(&m.backend_ref.clone().into(), entry, env)?;
    let fraction = match (&m.fraction, m.percent) {
        (Some(f), _) => {
            let whole = f64::from(f.denominator.unwrap_or(100).max(1));
            Fraction::from_percent(f64::from(f.numerator) * 100.0 / whole)
        }
        (None, Some(p)) => Fraction::from_percent(f64::from(p)),
        (None, None) => Fraction::ALWAYS,
    };
    let cluster = ClusterName::outbound(env.destinations.concrete(&host), port, "").to_string().into();
    (fraction.0 > 0).then_some(Mirror { cluster, fraction, keep_host: true })
}

/// Replacing a prefix goes by segments: `/a` of `/a/b` by `/` leaves `/b`.
enum PrefixChange {
    Text(Name),
    Regex { pattern: Name, substitution: Name },
}

fn prefix_change(replacement: &str, matched: &PathMatch) -> Option<PrefixChange> {
    let to = replacement.trim_end_matches('/');
    match matched {
        // The root is replaced with what ends in a slash.
        PathMatch::Prefix(_) => Some(PrefixChange::Text(format!("{to}/").into())),
        PathMatch::PathSeparatedPrefix(_) if !to.is_empty() => Some(PrefixChange::Text(to.into())),
        PathMatch::PathSeparatedPrefix(prefix) => Some(PrefixChange::Regex {
            pattern: format!("^{}/?(.*)", regex::escape(prefix)).into(),
            substitution: "/\\1".into(),
        }),
        _ => None,
    }
}

fn path_rewrite(p: &PathModifier, matched: &PathMatch) -> Option<PathRewrite> {
    match p.kind {
        PathModifierType::ReplaceFullPath => {
            p.replace_full_path.as_deref().map(|f| PathRewrite::Full(if f.is_empty() { "/" } else { f }.into()))
        }
        PathModifierType::ReplacePrefixMatch => {
            prefix_change(p.replace_prefix_match.as_deref()?, matched).map(|c| match c {
                PrefixChange::Text(text) => PathRewrite::Prefix(text),
                PrefixChange::Regex { pattern, substitution } => PathRewrite::Regex { pattern, substitution },
            })
        }
    }
}

fn redirect(r: &RequestRedirect, matched: &PathMatch, env: &RouteEnv<'_>) -> Action {
    let path = r.path.as_ref().and_then(|p| match p.kind {
        PathModifierType::ReplaceFullPath => p.replace_full_path.as_deref().map(|f| RedirectPath::Full(f.into())),
        PathModifierType::ReplacePrefixMatch => {
            prefix_change(p.replace_prefix_match.as_deref()?, matched).map(|c| match c {
                PrefixChange::Text(text) => RedirectPath::Prefix(text),
                PrefixChange::Regex { pattern, substitution } => RedirectPath::Regex { pattern, substitution },
            })
        }
    });
    let scheme = r.scheme.as_deref().unwrap_or(if env.tls { "https" } else { "http" });
    // Without a port: that of the new scheme, else the listener's.
    let wanted = r.port.or_else(|| r.scheme.is_none().then_some(env.port));
    let default = matches!((wanted, scheme), (Some(80), "http") | (Some(443), "https"));
    Action::Redirect(Box::new(Redirect {
        https: false,
        scheme: r.scheme.as_deref().unwrap_or_default().into(),
        host: r.hostname.as_deref().unwrap_or_default().into(),
        port: wanted.filter(|_| !default),
        path,
        code: r.status_code.filter(|c| matches!(c, 301 | 302 | 303 | 307 | 308)).unwrap_or(302),
        strip_query: false,
    }))
}

fn cors(c: &Cors) -> CorsPolicy {
    let origin = |o: &String| match (o.as_str(), o.split_once("*")) {
        ("*", _) => StringMatcher::regex(".*"),
        (_, Some((before, after))) => {
            StringMatcher::regex(format!("{}.+{}", regex::escape(before), regex::escape(after)))
        }
        (exact, None) => StringMatcher::exact(exact),
    };
    CorsPolicy {
        allow_origins: c.allow_origins.iter().map(origin).collect(),
        allow_methods: c.allow_methods.join(",").into(),
        allow_headers: c.allow_headers.join(",").into(),
        expose_headers: c.expose_headers.join(",").into(),
        max_age: c.max_age.unwrap_or(5).to_string().into(),
        allow_credentials: c.allow_credentials,
        enabled: Some(Fraction::ALWAYS),
        // A foreign preflight is answered here, without the headers that would allow it.
        forward_not_matching_preflights: Some(false),
    }
}
