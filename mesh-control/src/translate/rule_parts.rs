//! Parts of an HTTP rule that do not depend on where it stands: header operations, retries, faults, CORS, redirects,
//! fixed answers, hash policies.
//!
//! Owns the exact meaning Istio gives each field. Must not know services, gateways or proxies.

use std::time::Duration;

use base64::Engine as _;
use mesh_api::{
    crd::networking as crd,
    labels::Labels,
    model::{
        Action, AppendAction, Body, CorsPolicy, FaultAbort, FaultFilter, Fraction, HashPolicy, HashSource,
        HeaderMutation, HeaderOps, HeaderValueOption, Name, Redirect, RedirectPath, RetryOn, RetryPolicy,
        StringMatcher,
    },
};

use super::match_conditions::string_matcher;

/// How often another endpoint is drawn when the one drawn was tried before.
const HOST_SELECTION_ATTEMPTS: u32 = 5;
/// Retries without a policy.
const DEFAULT_RETRIES: u32 = 2;

/// Header operations and the authority that they set.
pub fn header_ops(headers: Option<&crd::Headers>) -> (HeaderOps, Option<Name>) {
    let Some(headers) = headers else { return (HeaderOps::default(), None) };
    let side = |ops: Option<&crd::HeaderOperations>| ops.map(mutation).unwrap_or_default();
    let authority = headers.request.as_ref().and_then(|r| authority(&r.set).or_else(|| authority(&r.add)));
    let ops = HeaderOps { request: side(headers.request.as_ref()), response: side(headers.response.as_ref()) };
    (ops, authority)
}

fn authority(values: &Labels) -> Option<Name> {
    let is_authority = |k: &str| k.eq_ignore_ascii_case(":authority") || k.eq_ignore_ascii_case("host");
    values.iter().rfind(|(k, v)| is_authority(k) && !v.is_empty()).map(|(_, v)| v.as_str().into())
}

/// Pseudo-headers and the host are no plain headers: they are rewritten, never added or removed.
fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

fn mutation(ops: &crd::HeaderOperations) -> HeaderMutation {
    let values = |from: &Labels, append: AppendAction| -> Vec<HeaderValueOption> {
        from.iter().filter(|(k, _)| !is_internal(k)).map(|(k, v)| header_value(k, v, append)).collect()
    };
    let mut add = values(&ops.set, AppendAction::OverwriteIfExistsOrAdd);
    add.extend(values(&ops.add, AppendAction::AppendIfExistsOrAdd));
    let remove = ops.remove.iter().filter(|k| !is_internal(k)).map(|k| k.to_ascii_lowercase().into()).collect();
    HeaderMutation { remove, add }
}

/// One header to write.
pub fn header_value(name: &str, value: &str, append: AppendAction) -> HeaderValueOption {
    HeaderValueOption { name: name.to_ascii_lowercase().into(), value: value.into(), append, keep_empty: false }
}

/// Appends `more` to `ops`, as a single destination's operations follow its rule's.
pub fn append_ops(ops: &mut HeaderOps, more: HeaderOps) {
    ops.request.add.extend(more.request.add);
    ops.request.remove.extend(more.request.remove);
    ops.response.add.extend(more.response.add);
    ops.response.remove.extend(more.response.remove);
}

/// Istio's default: two retries where the request surely was not processed, elsewhere than before unless the
/// destination is chosen by a hash.
fn default_retry(hashed: bool) -> RetryPolicy {
    let on = RetryOn {
        connect_failure: true,
        refused_stream: true,
        grpc_unavailable: true,
        grpc_cancelled: true,
        retriable_status_codes: true,
        ..RetryOn::default()
    };
    RetryPolicy {
        on,
        num_retries: DEFAULT_RETRIES,
        previous_hosts: !hashed,
        host_selection_attempts: HOST_SELECTION_ATTEMPTS,
        ..RetryPolicy::default()
    }
}

/// Retry policy of a route; `None`: no retries. `hashed`: the destination is chosen by consistent hashing.
pub fn retry_policy(policy: Option<&crd::HttpRetry>, hashed: bool) -> Option<RetryPolicy> {
    let mut out = default_retry(hashed);
    let Some(policy) = policy else { return Some(out) };
    out.num_retries = u32::try_from(policy.attempts.unwrap_or(0)).ok().filter(|n| *n > 0)?;
    if !policy.retry_on.is_empty() {
        (out.on, out.retriable_statuses) = retry_conditions(&policy.retry_on);
    }
    out.per_try_timeout = policy.per_try_timeout.map(|d| d.0);
    if let Some(avoid) = policy.retry_ignore_previous_hosts {
        out.previous_hosts = avoid;
    }
    if policy.retry_remote_localities == Some(true) {
        out.previous_priorities = Some(2);
    }
    // Envoy's rule for a missing maximum: ten times the base.
    out.backoff = policy.backoff.map(|d| (d.0, d.0.saturating_mul(10)));
    Some(out)
}

/// `retryOn`: words that nobody knows are left out, as Envoy does.
fn retry_conditions(list: &str) -> (RetryOn, Vec<u16>) {
    let known: Vec<&str> = list.split(',').map(str::trim).filter(|w| RetryOn::parse(w).is_ok()).collect();
    RetryOn::parse(&known.join(",")).unwrap_or_default()
}

/// Retries of an inbound route: only what never reached the application, which hides keep-alive races.
pub fn inbound_retry(policy: Option<&crd::HttpRetry>) -> Option<RetryPolicy> {
    match policy {
        Some(p) => retry_policy(Some(p), true),
        None => Some(RetryPolicy {
            on: RetryOn { reset_before_request: true, ..RetryOn::default() },
            num_retries: DEFAULT_RETRIES,
            ..RetryPolicy::default()
        }),
    }
}

fn share(p: Option<&crd::Percent>) -> Fraction {
    p.map_or(Fraction(0), |p| Fraction::from_percent(p.value))
}

/// Faults; without a percentage they do nothing, as in Istio.
pub fn fault(f: &crd::FaultInjection) -> Option<FaultFilter> {
    let delay = f.delay.as_ref().and_then(|d| {
        let share = match &d.percentage {
            Some(p) => share(Some(p)),
            None => Fraction::from_percent(f64::from(d.percent.unwrap_or(0))),
        };
        d.fixed_delay.map(|t| (share, t.0))
    });
    let abort = f.abort.as_ref().and_then(|a| {
        let kind = match (a.http_status, a.grpc_status.as_str()) {
            (Some(status), _) => u16::try_from(status).ok().filter(|s| (200..600).contains(s)).map(FaultAbort::Http),
            (None, "") => None,
            (None, grpc) => grpc_status(grpc).map(FaultAbort::Grpc),
        };
        kind.map(|k| (share(a.percentage.as_ref()), k))
    });
    let acts = |s: Fraction| s.0 > 0;
    let delay = delay.filter(|d| acts(d.0));
    let abort = abort.filter(|a| acts(a.0));
    (delay.is_some() || abort.is_some()).then(|| FaultFilter { delay, abort, ..FaultFilter::default() })
}

/// Number of a gRPC status that is given as name or number.
fn grpc_status(word: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|n| *n == word).and_then(|i| u32::try_from(i).ok());
    by_name.or_else(|| word.parse().ok().filter(|n| *n <= 16))
}

/// CORS policy; preflights of foreign origins go to the backend unless told otherwise.
pub fn cors(c: &crd::CorsPolicy) -> CorsPolicy {
    let allow_origins = if c.allow_origins.is_empty() {
        c.allow_origin.iter().map(|o| StringMatcher::exact(o.as_str())).collect()
    } else {
        // One that says nothing is nobody's origin.
        c.allow_origins.iter().filter_map(string_matcher).collect()
    };
    CorsPolicy {
        allow_origins,
        allow_methods: c.allow_methods.join(",").into(),
        allow_headers: c.allow_headers.join(",").into(),
        expose_headers: c.expose_headers.join(",").into(),
        max_age: c.max_age.map(|d| d.0.as_secs().to_string()).unwrap_or_default().into(),
        allow_credentials: c.allow_credentials,
        enabled: Some(Fraction::ALWAYS),
        forward_not_matching_preflights: Some(c.unmatched_preflights != Some(crd::UnmatchedPreflights::Ignore)),
    }
}

/// A redirect of a route on `port`; `tls`: the listener terminates TLS.
pub fn redirect(r: &crd::HttpRedirect, port: u16, tls: bool) -> Action {
    let path = match (r.prefix_rewrite.as_str(), r.uri.as_str()) {
        ("", "") => None,
        ("", uri) => Some(RedirectPath::Full(uri.into())),
        (prefix, _) => Some(RedirectPath::Prefix(prefix.into())),
    };
    let wanted = match (r.port, r.derive_port) {
        (Some(p), _) => Some(p),
        (None, Some(crd::RedirectPortSelection::FromRequestPort)) => Some(port),
        _ => None,
    };
    let scheme = match r.scheme.as_str() {
        "" if tls => "https",
        "" => "http",
        given => given,
    };
    // No explicit port where it is the scheme's own.
    let default = matches!((wanted, scheme), (Some(80), "http") | (Some(443), "https"));
    Action::Redirect(Box::new(Redirect {
        https: false,
        scheme: r.scheme.as_str().into(),
        host: r.authority.as_str().into(),
        port: wanted.filter(|_| !default),
        path,
        code: r.redirect_code.filter(|c| matches!(c, 301 | 302 | 303 | 307 | 308)).unwrap_or(301),
        strip_query: false,
    }))
}

/// A fixed answer.
pub fn direct_response(d: &crd::DirectResponse) -> Action {
    let bytes = |b: &String| base64::engine::general_purpose::STANDARD.decode(b).ok();
    let body = d.body.as_ref().and_then(|b| match (&b.string, &b.bytes) {
        (Some(text), _) => Some(text.as_str().into()),
        (None, Some(b64)) => bytes(b64).map(Body::from),
        (None, None) => None,
    });
    let status = if (200..600).contains(&d.status) { d.status } else { 500 };
    Action::DirectResponse { status, body: body.unwrap_or_default() }
}

/// Share of a mirror; `None`: no mirror.
pub fn mirror_share(percentage: Option<&crd::Percent>, percent: Option<u32>) -> Option<Fraction> {
    let share = match (percentage, percent) {
        (Some(p), _) => Fraction::from_percent(p.value),
        (None, Some(p)) => Fraction::from_percent(f64::from(p)),
        (None, None) => Fraction::ALWAYS,
    };
    (share.0 > 0).then_some(share)
}

/// How requests are hashed for a consistent balancer.
pub fn hash_policy(h: &crd::ConsistentHash) -> Option<HashPolicy> {
    let source = if let Some(name) = &h.http_header_name {
        HashSource::Header(name.to_ascii_lowercase().into())
    } else if let Some(c) = &h.http_cookie {
        HashSource::Cookie {
            name: c.name.as_str().into(),
            ttl: c.ttl.map(|d| d.0),
            path: c.path.as_str().into(),
            attributes: c.attributes.iter().map(|a| (a.name.as_str().into(), a.value.as_str().into())).collect(),
        }
    } else if let Some(name) = &h.http_query_parameter_name {
        HashSource::Query(name.as_str().into())
    } else if h.use_source_ip == Some(true) {
        HashSource::SourceIp
    } else {
        return None;
    };
    Some(HashPolicy { source, terminal: false })
}

/// `timeout` of a rule: none by default.
pub fn timeout(t: Option<mesh_api::crd::Duration>) -> Duration {
    t.map_or(Duration::ZERO, |d| d.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml<T: for<'de> serde::Deserialize<'de>>(text: &str) -> T {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn no_retry_on_503_by_default_and_attempts_do_not_change_the_conditions() {
        let default = retry_policy(None, false).unwrap();
        assert_eq!(default.num_retries, 2);
        assert!(!default.on.five_xx && default.retriable_statuses.is_empty() && default.previous_hosts);
        let three = retry_policy(Some(&yaml("attempts: 3")), false).unwrap();
        assert_eq!((three.num_retries, three.on), (3, default.on));
        assert_eq!(retry_policy(Some(&yaml("attempts: 0")), false), None);
        assert_eq!(retry_policy(Some(&yaml("retryOn: 5xx")), false), None, "no attempts, no retries");
        assert!(!retry_policy(None, true).unwrap().previous_hosts);
    }

    #[test]
    fn retry_on_takes_statuses_and_skips_what_nobody_knows() {
        let p: crd::HttpRetry = yaml(
            "attempts: 2\nretryOn: 'gateway-error,503, nonsense'\nperTryTimeout: 2s\nbackoff: 100ms\nretryRemoteLocalities: true\nretryIgnorePreviousHosts: false",
        );
        let out = retry_policy(Some(&p), false).unwrap();
        assert!(out.on.gateway_error && out.on.retriable_status_codes);
        assert_eq!(out.retriable_statuses, [503]);
        assert_eq!(out.per_try_timeout, Some(Duration::from_secs(2)));
        assert_eq!(out.backoff, Some((Duration::from_millis(100), Duration::from_secs(1))));
        assert_eq!((out.previous_hosts, out.previous_priorities), (false, Some(2)));
    }

    #[test]
    fn faults_without_percentage_do_nothing() {
        assert_eq!(fault(&yaml("abort: {httpStatus: 503}\ndelay: {fixedDelay: 1s}")), None);
        let f = fault(&yaml(
            "abort: {grpcStatus: UNAVAILABLE, percentage: {value: 12.5}}\ndelay: {fixedDelay: 1s, percent: 10}",
        ))
        .unwrap();
        assert_eq!(f.abort, Some((Fraction(125_000), FaultAbort::Grpc(14))));
        assert_eq!(f.delay, Some((Fraction(100_000), Duration::from_secs(1))));
    }

    #[test]
    fn the_host_is_rewritten_never_added() {
        let (ops, authority) = header_ops(Some(&yaml(
            "request: {set: {X-A: '1', ':authority': a.test}, add: {x-b: '2', host: b.test}, remove: [X-C, ':path']}\nresponse: {remove: [server]}",
        )));
        assert_eq!(authority.as_deref(), Some("a.test"));
        let names: Vec<&str> = ops.request.add.iter().map(|h| &*h.name).collect();
        assert_eq!(names, ["x-a", "x-b"]);
        assert_eq!(ops.request.remove, ["x-c".into()]);
        assert_eq!(ops.response.remove, ["server".into()]);
    }

    #[test]
    fn redirect_ports() {
        let port = |text: &str, tls| match redirect(&yaml(text), 8080, tls) {
            Action::Redirect(r) => r.port,
            _ => None,
        };
        assert_eq!(port("derivePort: FROM_REQUEST_PORT", false), Some(8080));
        assert_eq!(port("derivePort: FROM_PROTOCOL_DEFAULT", false), None);
        assert_eq!(port("port: 80", false), None);
        assert_eq!(port("port: 80", true), Some(80));
        assert_eq!(port("port: 443\nscheme: https", false), None);
    }

    #[test]
    fn cors_forwards_foreign_preflights() {
        let c = cors(&yaml(
            "allowOrigins: [{exact: 'https://a.test'}, {prefix: 'https://b'}]\nallowMethods: [GET, PUT]\nmaxAge: 24h",
        ));
        assert_eq!(c.forward_not_matching_preflights, Some(true));
        assert_eq!((&*c.allow_methods, &*c.max_age), ("GET,PUT", "86400"));
        assert!(cors(&yaml("allowOrigins: [{}]")).allow_origins.is_empty(), "nothing said is not everything");
        assert_eq!(cors(&yaml("unmatchedPreflights: IGNORE")).forward_not_matching_preflights, Some(false));
    }

    #[test]
    fn bodies_may_be_base64() {
        let body = |text: &str| match direct_response(&yaml(text)) {
            Action::DirectResponse { status, body } => (status, body.to_vec()),
            _ => unreachable!(),
        };
        assert_eq!(body("status: 418\nbody: {string: tea}"), (418, b"tea".to_vec()));
        assert_eq!(body("status: 200\nbody: {bytes: aGk=}"), (200, b"hi".to_vec()));
        assert_eq!(body("status: 200\nbody: {bytes: /wCA}"), (200, vec![0xff, 0, 0x80]), "no text");
    }
}
