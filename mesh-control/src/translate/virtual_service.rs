//! HTTP rules of a VirtualService as routes.
//!
//! Owns the order and pruning of rules, weights, and how the parts of a rule become one route. Must not know which
//! virtual host, listener or proxy the routes end in: clusters and hashes are asked for through [`Destinations`].

use mesh_api::{
    crd::networking::{Destination, HttpDestination, HttpMatch, HttpRewrite, HttpRoute},
    model::{
        Action, FilterOverride, Forward, HashPolicy, HeaderOps, HostRewrite, Metadata, Mirror, Name, Origin, PathMatch,
        PathRewrite, Route, RouteMatch, Target, WeightedCluster,
    },
    names::{ClusterName, complete_host},
};

use super::{
    filter_names,
    match_conditions::{Place, is_catch_all, route_match},
    rule_parts as parts,
};

/// A cluster that never exists: requests to it are answered 503 NC.
pub const UNKNOWN_SERVICE: &str = "UnknownService";

/// Where destinations lead for one proxy.
pub trait Destinations {
    /// The port of a destination that names none: that of a service with a single port, else the port asked for.
    fn port_of(&self, host: &str, asked: u16) -> u16;
    /// How requests to a destination are hashed.
    fn hash(&self, host: &str, port: Option<u16>, subset: &str) -> Option<HashPolicy>;
    /// The service behind an alias (`ExternalName`); others stay what they are.
    fn concrete<'h>(&'h self, host: &'h str) -> &'h str {
        host
    }
}

/// All that rules are translated with.
#[derive(Clone, Copy)]
pub struct RuleEnv<'a> {
    /// Port, gateway and proxy.
    pub place: Place<'a>,
    /// The listener terminates TLS.
    pub tls: bool,
    /// DNS domain of the cluster.
    pub domain: &'a str,
    /// Retries of rules that say nothing.
    pub default_retry: Option<&'a mesh_api::crd::networking::HttpRetry>,
    /// Rewritten hosts are kept in `x-forwarded-host`.
    pub forwarded_host: bool,
    /// Lookups.
    pub destinations: &'a dyn Destinations,
}

impl std::fmt::Debug for RuleEnv<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleEnv").field("place", &self.place).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl RuleEnv<'_> {
    /// Cluster of a destination. An unknown host or subset yields a cluster that nobody has.
    pub fn cluster(&self, d: &Destination) -> Name {
        cluster_of(d, self.place.rule_namespace, self.domain, self.place.port, self.destinations)
    }

    fn hash(&self, d: &Destination) -> Option<HashPolicy> {
        let host = complete_host(&d.host, self.place.rule_namespace, self.domain);
        self.destinations.hash(&host, d.port.as_ref().map(|p| p.number), &d.subset)
    }
}

/// Cluster of a destination that stands in an object of `namespace`, asked for at `port`.
pub fn cluster_of(d: &Destination, namespace: &str, domain: &str, port: u16, lookups: &dyn Destinations) -> Name {
    if d.host.is_empty() {
        return UNKNOWN_SERVICE.into();
    }
    let host = complete_host(&d.host, namespace, domain).to_ascii_lowercase();
    let host = lookups.concrete(&host);
    let port = d.port.as_ref().map_or_else(|| lookups.port_of(host, port), |p| p.number);
    ClusterName::outbound(host, port, &d.subset).to_string().into()
}

/// Name and cause of the rules.
#[derive(Debug, Clone, Copy)]
pub struct RuleOrigin<'a> {
    /// Name of the VirtualService.
    pub name: &'a str,
    /// Path of the object.
    pub config: &'a Name,
}

/// Routes of the rules that can match at `env.place`, in order, up to the first that nothing gets past.
pub fn routes(rules: &[HttpRoute], origin: RuleOrigin<'_>, env: &RuleEnv<'_>) -> Vec<Route> {
    let mut out = Vec::new();
    for rule in rules {
        if rule.matches.is_empty() {
            out.extend(route(rule, None, origin, env));
            return out;
        }
        for m in &rule.matches {
            if let Some(r) = route(rule, Some(m), origin, env) {
                let last = is_catch_all(&r.matches);
                out.push(r);
                if last {
                    return out;
                }
            }
        }
    }
    out
}

fn route(rule: &HttpRoute, m: Option<&HttpMatch>, origin: RuleOrigin<'_>, env: &RuleEnv<'_>) -> Option<Route> {
    // A delegate that is left here was not found: the rule leads nowhere and requests fall to the next one.
    if rule.delegate.is_some() || m.is_some_and(|m| !env.place.admits(m)) {
        return None;
    }
    let matches = match m {
        Some(m) => route_match(m)?,
        None => RouteMatch::any(),
    };
    let name = match m.map(|m| m.name.as_str()).unwrap_or_default() {
        "" => Name::from(rule.name.as_str()),
        m => format!("{}.{m}", rule.name).into(),
    };
    let (mut headers, authority) = parts::header_ops(rule.headers.as_ref());
    let action = if let Some(r) = &rule.redirect {
        parts::redirect(r, env.place.port, env.tls)
    } else if let Some(d) = &rule.direct_response {
        parts::direct_response(d)
    } else {
        Action::Forward(Box::new(forward(rule, &matches, authority, &mut headers, env)))
    };
    let operation = operation(&matches, &action, origin.name, env.place.port);
    Some(Route {
        name,
        matches,
        action,
        headers,
        filter_overrides: overrides(rule),
        operation,
        stat_prefix: m.map(|m| m.stat_prefix.as_str()).unwrap_or_default().into(),
        origin: Origin { config: origin.config.clone() },
        metadata: Metadata::new(),
    })
}

fn overrides(rule: &HttpRoute) -> Vec<(Name, FilterOverride)> {
    let fault = rule.fault.as_ref().and_then(parts::fault).map(FilterOverride::Fault);
    let cors = rule.cors_policy.as_ref().map(|c| FilterOverride::Cors(parts::cors(c)));
    let named = [(filter_names::FAULT, fault), (filter_names::CORS, cors)];
    named.into_iter().filter_map(|(n, o)| o.map(|o| (n.into(), o))).collect()
}

fn forward(
    rule: &HttpRoute,
    matches: &RouteMatch,
    authority: Option<Name>,
    headers: &mut HeaderOps,
    env: &RuleEnv<'_>,
) -> Forward {
    let mut out = Forward::to(UNKNOWN_SERVICE);
    let timeout = parts::timeout(rule.timeout);
    out.timeout = Some(timeout);
    out.grpc_timeout_max = Some(timeout);
    let mut authority = authority;
    if let Some(r) = &rule.rewrite {
        out.append_x_forwarded_host = env.forwarded_host;
        out.rewrite = rewrite(r, matches);
        if !r.authority.is_empty() {
            authority = Some(r.authority.as_str().into());
        }
    }
    out.host_rewrite = authority.map(HostRewrite::Literal);
    out.mirrors = mirrors(rule, env);
    let mut hashed = false;
    match rule.route.as_slice() {
        [only] => {
            out.target = Target::Cluster(env.cluster(&only.destination));
            let (ops, authority) = parts::header_ops(only.headers.as_ref());
            parts::append_ops(headers, ops);
            // The rule's authority wins over the destination's, as it does with several destinations.
            if let (None, Some(a)) = (&out.host_rewrite, authority) {
                out.host_rewrite = Some(HostRewrite::Literal(a));
            }
            let hash = env.hash(&only.destination);
            hashed = hash.is_some();
            out.hash.extend(hash);
        }
        several => {
            let weighted: Vec<WeightedCluster> =
                several.iter().filter_map(|d| weighted(d, env, &mut out.hash)).collect();
            if !weighted.is_empty() {
                out.target = Target::Weighted(weighted);
            }
        }
    }
    out.retry = parts::retry_policy(rule.retries.as_ref().or(env.default_retry), hashed);
    out
}

/// A destination of weight zero has no share when there are others.
fn weighted(d: &HttpDestination, env: &RuleEnv<'_>, hashes: &mut Vec<HashPolicy>) -> Option<WeightedCluster> {
    let weight = u32::try_from(d.weight.unwrap_or(0)).ok().filter(|w| *w > 0)?;
    let (headers, host_rewrite) = parts::header_ops(d.headers.as_ref());
    hashes.extend(env.hash(&d.destination));
    Some(WeightedCluster { name: env.cluster(&d.destination), weight, headers, host_rewrite, filter_overrides: vec![] })
}

fn rewrite(r: &HttpRewrite, _: &RouteMatch) -> Option<PathRewrite> {
    if let Some(re) = &r.uri_regex_rewrite {
        return Some(PathRewrite::Regex {
            pattern: re.matches.as_str().into(),
            substitution: re.rewrite.as_str().into(),
        });
    }
    (!r.uri.is_empty()).then(|| PathRewrite::Prefix(r.uri.as_str().into()))
}

fn mirrors(rule: &HttpRoute, env: &RuleEnv<'_>) -> Vec<Mirror> {
    let one =
        rule.mirror.as_ref().map(|d| (d, parts::mirror_share(rule.mirror_percentage.as_ref(), rule.mirror_percent)));
    let more = rule.mirrors.iter().map(|m| (&m.destination, parts::mirror_share(m.percentage.as_ref(), None)));
    one.into_iter()
        .chain(more)
        .filter_map(|(d, share)| Some(Mirror { cluster: env.cluster(d), fraction: share?, keep_host: true }))
        .collect()
}

/// Span name: destination and path pattern.
pub fn operation(m: &RouteMatch, action: &Action, object: &str, port: u16) -> Name {
    let path = match &m.path {
        PathMatch::Prefix(p) => format!("{p}*"),
        PathMatch::Exact(p) | PathMatch::Regex(p) => p.to_string(),
        _ => "/*".to_owned(),
    };
    if let Action::Forward(f) = action
        && let Target::Cluster(cluster) = &f.target
        && let Some(c) = ClusterName::parse(cluster)
    {
        return format!("{}:{}{path}", c.host, c.port).into();
    }
    format!("{object}:{port}{path}").into()
}

/// The route of a service without rules: all requests, retried where that is safe, without a limit.
pub fn default_route(
    host: &str,
    port: u16,
    default_retry: Option<&mesh_api::crd::networking::HttpRetry>,
    hash: Option<HashPolicy>,
) -> Route {
    let mut forward = Forward::to(ClusterName::outbound(host, port, "").to_string());
    forward.timeout = Some(std::time::Duration::ZERO);
    forward.grpc_timeout_max = Some(std::time::Duration::ZERO);
    // Istio does not keep retries away from other hosts here, whatever the hash.
    forward.retry = parts::retry_policy(default_retry, false);
    forward.hash.extend(hash);
    Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: Action::Forward(Box::new(forward)),
        headers: HeaderOps::default(),
        filter_overrides: vec![],
        operation: format!("{host}:{port}/*").into(),
        stat_prefix: "".into(),
        origin: Origin::default(),
        metadata: Metadata::new(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::{crd::networking::VirtualService, labels::Labels, model::HashSource};

    use super::*;

    struct World;
    impl Destinations for World {
        fn port_of(&self, host: &str, asked: u16) -> u16 {
            if host == "single.shop.svc.cluster.local" { 9080 } else { asked }
        }
        fn hash(&self, host: &str, _: Option<u16>, subset: &str) -> Option<HashPolicy> {
            (host.starts_with("hashed") && subset != "plain")
                .then_some(HashPolicy { source: HashSource::SourceIp, terminal: false })
        }
    }

    fn translate(yaml: &str) -> Vec<Route> {
        let vs: VirtualService = serde_saphyr::from_str(yaml).unwrap();
        let labels = Labels::new();
        let place = Place { port: 80, gateway: "mesh", rule_namespace: "shop", labels: &labels, namespace: "shop" };
        let env = RuleEnv {
            place,
            tls: false,
            domain: "cluster.local",
            default_retry: None,
            forwarded_host: false,
            destinations: &World,
        };
        routes(&vs.http, RuleOrigin { name: "vs", config: &"path".into() }, &env)
    }

    fn forward(r: &Route) -> &Forward {
        match &r.action {
            Action::Forward(f) => f,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules_behind_a_catch_all_are_dropped() {
        let out = translate(
            "http:\n- match: [{uri: {exact: /a}}, {uri: {prefix: /}}, {uri: {exact: /never}}]\n  route: [{destination: {host: a}}]\n- route: [{destination: {host: b}}]\n",
        );
        assert_eq!(out.len(), 2);
        assert_eq!(forward(&out[0]).target, Target::Cluster("outbound|80||a.shop.svc.cluster.local".into()));
        assert_eq!(out[0].operation, "a.shop.svc.cluster.local:80/a".into());
    }

    #[test]
    fn short_names_are_completed_only_without_a_dot() {
        let out = translate("http:\n- route: [{destination: {host: single, subset: v1}}]\n");
        assert_eq!(forward(&out[0]).target, Target::Cluster("outbound|9080|v1|single.shop.svc.cluster.local".into()));
        let out = translate("http:\n- route: [{destination: {host: a.bank, port: {number: 8}}}]\n");
        assert_eq!(forward(&out[0]).target, Target::Cluster("outbound|8||a.bank".into()));
    }

    #[test]
    fn weights() {
        let alone = translate("http:\n- route: [{destination: {host: a}, weight: 0}]\n");
        assert!(matches!(&forward(&alone[0]).target, Target::Cluster(_)), "weight 0 alone is all");
        let out = translate(
            "http:\n- route: [{destination: {host: a}, weight: 30}, {destination: {host: b}, weight: 0}, {destination: {host: c}, weight: 30}]\n",
        );
        let Target::Weighted(w) = &forward(&out[0]).target else { panic!() };
        assert_eq!(w.iter().map(|c| c.weight).collect::<Vec<_>>(), [30, 30]);
        let none =
            translate("http:\n- route: [{destination: {host: a}, weight: 0}, {destination: {host: b}, weight: 0}]\n");
        assert_eq!(forward(&none[0]).target, Target::Cluster(UNKNOWN_SERVICE.into()));
    }

    #[test]
    fn no_timeout_unless_asked_for() {
        let out = translate(
            "http:\n- match: [{uri: {exact: /a}}]\n  timeout: 2s\n  route: [{destination: {host: a}}]\n- route: [{destination: {host: a}}]\n",
        );
        let timeouts: Vec<_> = out.iter().map(|r| forward(r).timeout.unwrap().as_secs()).collect();
        assert_eq!(timeouts, [2, 0]);
    }

    #[test]
    fn mirrors_keep_the_host_and_hashing_keeps_retries_in_place() {
        let out = translate(
            "http:\n- route: [{destination: {host: hashed}}]\n  mirror: {host: m}\n  mirrorPercentage: {value: 50}\n  mirrors: [{destination: {host: n}}, {destination: {host: o}, percentage: {value: 0}}]\n",
        );
        let f = forward(&out[0]);
        assert_eq!(f.mirrors.len(), 2);
        assert!(f.mirrors.iter().all(|m| m.keep_host));
        assert_eq!(f.mirrors[0].fraction.0, 500_000);
        assert_eq!(f.hash.len(), 1);
        assert!(!f.retry.as_ref().unwrap().previous_hosts);
    }

    #[test]
    fn authority_of_rewrite_beats_headers() {
        let out = translate(
            "http:\n- headers: {request: {set: {host: b.test}}}\n  rewrite: {authority: c.test, uri: /}\n  route: [{destination: {host: a}, headers: {request: {add: {x: '1', host: d.test}}}}]\n",
        );
        let f = forward(&out[0]);
        assert_eq!(f.host_rewrite, Some(HostRewrite::Literal("c.test".into())));
        assert_eq!(f.rewrite, Some(PathRewrite::Prefix("/".into())));
        assert_eq!(out[0].headers.request.add.len(), 1);
    }

    #[test]
    fn a_missing_delegate_leaves_no_route() {
        let out = translate(
            "http:\n- match: [{uri: {prefix: /a}}]\n  delegate: {name: nobody}\n- route: [{destination: {host: b}}]\n",
        );
        assert_eq!(out.len(), 1);
    }
}
