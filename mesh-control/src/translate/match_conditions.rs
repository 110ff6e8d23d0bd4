//! Conditions of VirtualService rules: `StringMatch` and `HTTPMatchRequest` as matchers of the model.
//!
//! Owns what can be decided at run time by a proxy and what is decided here, because it is known of the proxy (labels,
//! namespace, gateway, port). Must not know where a request goes.

use mesh_api::{
    crd::networking::{CLAIMS, HttpMatch, StringMatch},
    labels::{self, Labels},
    model::{
        HeaderMatcher, HeaderValueMatch, JWT_FILTER, MetadataMatch, MetadataValue, Name, PathMatch, QueryMatcher,
        RouteMatch, StringMatcher,
    },
};

/// What is known of the place a rule is translated for.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Port that the client asked for.
    pub port: u16,
    /// `mesh`, or the gateway as `ns/name`.
    pub gateway: &'a str,
    /// Namespace of the rule, for gateway names without one.
    pub rule_namespace: &'a str,
    /// Labels of the proxy.
    pub labels: &'a Labels,
    /// Namespace of the proxy.
    pub namespace: &'a str,
}

impl Place<'_> {
    /// Whether one of the names means this gateway; none: yes.
    pub fn is_bound(&self, gateways: &[String]) -> bool {
        gateways.is_empty() || gateways.iter().any(|g| names_gateway(g, self.rule_namespace, self.gateway))
    }

    /// The conditions on the client that VirtualService matches know: labels and namespace.
    pub fn is_source(&self, source_labels: &Labels, source_namespace: &str) -> bool {
        labels::selects(source_labels, self.labels)
            && (source_namespace.is_empty() || source_namespace == self.namespace)
    }

    /// Whether a match can hold here at all. A match that names gateways is not asked for its source.
    pub fn admits(&self, m: &HttpMatch) -> bool {
        if m.port.is_some_and(|p| p != 0 && p != self.port) {
            return false;
        }
        if m.gateways.is_empty() {
            self.is_source(&m.source_labels, &m.source_namespace)
        } else {
            self.is_bound(&m.gateways)
        }
    }
}

/// Whether `name` (short, `ns/name`, `mesh`, or the old `name.ns.svc...`) in an object of `namespace` means `gateway`.
pub fn names_gateway(name: &str, namespace: &str, gateway: &str) -> bool {
    if name == gateway {
        return true;
    }
    if name.contains('/') || gateway == "mesh" {
        return false;
    }
    let Some((gw_namespace, gw_name)) = gateway.split_once('/') else { return false };
    match name.split_once('.') {
        None => gw_namespace == namespace && gw_name == name,
        // gateway names as DNS names: name.namespace[.svc.domain]
        Some((n, rest)) => gw_name == n && rest.split('.').next() == Some(gw_namespace),
    }
}

/// The comparison of a `StringMatch`; `None`: anything that is there.
///
/// `regex: "*"` is not a regular expression but means presence, as in Istio. Empty prefixes match all that is there.
pub fn string_matcher(m: &StringMatch) -> Option<StringMatcher> {
    if let Some(exact) = &m.exact {
        return Some(StringMatcher::exact(exact.as_str()));
    }
    if let Some(prefix) = &m.prefix {
        return (!prefix.is_empty()).then(|| StringMatcher::prefix(prefix.as_str()));
    }
    match m.regex.as_deref() {
        None | Some("*") => None,
        Some(regex) => Some(StringMatcher::regex(regex)),
    }
}

fn header(name: &str, m: &StringMatch) -> HeaderMatcher {
    let value = string_matcher(m).map_or(HeaderValueMatch::Present(true), HeaderValueMatch::String);
    HeaderMatcher { name: lower(name), value, invert: false, treat_missing_as_empty: false }
}

fn lower(name: &str) -> Name {
    Name::from(name.to_ascii_lowercase())
}

fn without(name: &str, m: &StringMatch) -> HeaderMatcher {
    let mut h = header(name, m);
    h.invert = true;
    // "Absent" has its own form; of every other comparison a missing header is the empty value.
    h.treat_missing_as_empty = !matches!(h.value, HeaderValueMatch::Present(_));
    h
}

fn path(uri: Option<&StringMatch>) -> PathMatch {
    let any = || PathMatch::Prefix("/".into());
    let Some(uri) = uri else { return any() };
    if let Some(exact) = &uri.exact {
        return PathMatch::Exact(exact.as_str().into());
    }
    if let Some(prefix) = &uri.prefix {
        return if prefix.is_empty() { any() } else { PathMatch::Prefix(prefix.as_str().into()) };
    }
    uri.regex.as_deref().map_or_else(any, |r| PathMatch::Regex(r.into()))
}

/// The claim that a header name stands for, outermost key first: `@request.auth.claims.a.b` or `...claims[a][b]`.
/// Empty: it names none.
fn claim(name: &str) -> Option<Vec<Name>> {
    let rest = name.strip_prefix(CLAIMS)?;
    if let Some(inner) = rest.strip_prefix('[').and_then(|r| r.strip_suffix(']')) {
        return Some(inner.split("][").map(Name::from).collect());
    }
    Some(rest.strip_prefix('.').map(|keys| keys.split('.').map(Name::from).collect()).unwrap_or_default())
}

/// A claim is a text or a list of texts.
fn claim_match(keys: Vec<Name>, m: &StringMatch, invert: bool) -> MetadataMatch {
    let value = match string_matcher(m) {
        Some(text) => {
            let text = MetadataValue::String(text);
            MetadataValue::OneOf(vec![text.clone(), MetadataValue::ListOneOf(Box::new(text))])
        }
        None => MetadataValue::Present(true),
    };
    let path = std::iter::once("payload".into()).chain(keys).collect();
    MetadataMatch { filter: JWT_FILTER.into(), path, value, invert }
}

/// The run-time part of a match; `None` when it asks for a claim without naming one: such a rule never matches, which
/// is the safe side. Where no tokens are checked there are no claims.
pub fn route_match(m: &HttpMatch) -> Option<RouteMatch> {
    let mut claims = Vec::new();
    for (headers, invert) in [(&m.headers, false), (&m.without_headers, true)] {
        for (name, value) in headers {
            match claim(name) {
                Some(keys) if keys.iter().any(|k| k.is_empty()) || keys.is_empty() => return None,
                Some(keys) => claims.push(claim_match(keys, value, invert)),
                None => {}
            }
        }
    }
    let plain = |name: &&String| !name.starts_with(CLAIMS);
    let mut out = RouteMatch::path(path(m.uri.as_ref()));
    out.case_sensitive = !m.ignore_uri_case;
    out.dynamic_metadata = claims;
    out.headers.extend(m.headers.iter().filter(|(n, _)| plain(n)).map(|(n, v)| header(n, v)));
    out.headers.extend(m.without_headers.iter().filter(|(n, _)| plain(n)).map(|(n, v)| without(n, v)));
    out.headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [(":method", &m.method), (":authority", &m.authority), (":scheme", &m.scheme)];
    out.headers.extend(pseudo.iter().filter_map(|(n, v)| v.as_ref().map(|v| header(n, v))));
    out.query
        .extend(m.query_params.iter().map(|(n, v)| QueryMatcher { name: n.as_str().into(), value: string_matcher(v) }));
    Some(out)
}

/// Whether nothing gets past it.
pub fn is_catch_all(m: &RouteMatch) -> bool {
    let path = match &m.path {
        PathMatch::Prefix(p) => &**p == "/",
        PathMatch::Regex(r) => &**r == ".*",
        PathMatch::PathSeparatedPrefix(p) => &**p == "/",
        _ => false,
    };
    let asks = !m.headers.is_empty() || !m.query.is_empty() || !m.dynamic_metadata.is_empty();
    path && !asks && !m.grpc && m.fraction.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(yaml: &str) -> RouteMatch {
        route_match(&serde_saphyr::from_str::<HttpMatch>(yaml).unwrap()).unwrap()
    }

    #[test]
    fn every_condition_has_its_matcher() {
        let m = translate(
            "uri: {prefix: /a}\nignoreUriCase: true\nmethod: {exact: GET}\nauthority: {exact: 'a.test:80'}\nscheme: {exact: http}\nheaders: {X-B: {regex: 'v[12]'}, x-a: {}}\nqueryParams: {q: {exact: '1'}, p: {}}",
        );
        assert_eq!(m.path, PathMatch::Prefix("/a".into()));
        assert!(!m.case_sensitive);
        let names: Vec<&str> = m.headers.iter().map(|h| &*h.name).collect();
        assert_eq!(names, ["x-a", "x-b", ":method", ":authority", ":scheme"]);
        assert_eq!(m.headers[0].value, HeaderValueMatch::Present(true));
        assert_eq!(m.headers[3].value, HeaderValueMatch::String(StringMatcher::exact("a.test:80")));
        assert_eq!(m.query[0], QueryMatcher { name: "p".into(), value: None });
    }

    #[test]
    fn without_headers_holds_when_the_header_is_absent() {
        let m = translate("withoutHeaders: {x-v: {exact: v1}, x-any: {}}");
        assert_eq!((m.headers[0].invert, m.headers[0].treat_missing_as_empty), (true, false));
        assert_eq!(m.headers[0].value, HeaderValueMatch::Present(true));
        assert_eq!((m.headers[1].invert, m.headers[1].treat_missing_as_empty), (true, true));
    }

    #[test]
    fn claims_are_conditions_on_the_token() {
        let m = translate(
            "headers: {'@request.auth.claims.sub': {exact: me}, x-a: {}}\nwithoutHeaders: {'@request.auth.claims[a.b][c]': {prefix: p}}",
        );
        assert_eq!(m.headers.len(), 1);
        let paths: Vec<String> = m.dynamic_metadata.iter().map(|d| d.path.join("/")).collect();
        assert_eq!(paths, ["payload/sub", "payload/a.b/c"]);
        assert_eq!((m.dynamic_metadata[0].invert, m.dynamic_metadata[1].invert), (false, true));
        assert!(!is_catch_all(&m));
    }

    #[test]
    fn a_star_is_presence_and_claims_without_a_name_never_match() {
        assert_eq!(string_matcher(&StringMatch { regex: Some("*".into()), ..Default::default() }), None);
        let m: HttpMatch = serde_saphyr::from_str("headers: {'@request.auth.claims': {exact: me}}").unwrap();
        assert_eq!(route_match(&m), None);
    }

    #[test]
    fn gateways_of_a_match_replace_its_source() {
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        let place =
            Place { port: 80, gateway: "ingress/gw", rule_namespace: "ingress", labels: &labels, namespace: "shop" };
        let m = |yaml: &str| serde_saphyr::from_str::<HttpMatch>(yaml).unwrap();
        assert!(place.admits(&m("gateways: [gw]\nsourceLabels: {app: other}")));
        assert!(place.admits(&m("gateways: [gw.ingress.svc.cluster.local]")));
        assert!(!place.admits(&m("gateways: [mesh, other/gw]")));
        assert!(place.admits(&m("sourceLabels: {app: web}\nsourceNamespace: shop\nport: 80")));
        assert!(!place.admits(&m("sourceLabels: {app: other}")));
        assert!(!place.admits(&m("port: 81")));
        assert!(!place.admits(&m("sourceNamespace: bank")));
    }
}
