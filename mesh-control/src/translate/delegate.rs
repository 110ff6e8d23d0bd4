//! Delegation: a root VirtualService hands a rule on to another VirtualService, whose rules take its place.
//!
//! Owns what such a merge means and when two matches contradict each other. Must not know who asks.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use mesh_api::{
    crd::networking::{HttpMatch, HttpRoute, StringMatch, VirtualService},
    names::complete_host,
};

/// The rules of `vs` with delegates put in their place. `find(namespace, name)` yields delegates (VirtualServices
/// without hosts) that the root may see; what is not found stays as it is and is no route.
pub fn resolve<'a>(
    vs: &'a VirtualService,
    namespace: &str,
    domain: &str,
    find: &dyn Fn(&str, &str) -> Option<Arc<VirtualService>>,
) -> Cow<'a, [HttpRoute]> {
    if vs.http.iter().all(|r| r.delegate.is_none()) {
        return Cow::Borrowed(&vs.http);
    }
    let mut out = Vec::with_capacity(vs.http.len());
    for rule in &vs.http {
        let Some(d) = &rule.delegate else {
            out.push(rule.clone());
            continue;
        };
        let from = if d.namespace.is_empty() { namespace } else { &d.namespace };
        // Only one level: a delegate that delegates again is not followed.
        if let Some(delegate) = find(from, &d.name).filter(|v| v.hosts.is_empty()) {
            let rules = delegate.http.iter().filter(|r| r.delegate.is_none());
            out.extend(rules.filter_map(|r| merge(rule, qualified(r, from, domain))));
        }
    }
    Cow::Owned(out)
}

/// Completes short names, because the merged rule counts as one of the root's namespace.
fn qualified(rule: &HttpRoute, namespace: &str, domain: &str) -> HttpRoute {
    let mut rule = rule.clone();
    let complete = |host: &mut String| *host = complete_host(host, namespace, domain);
    rule.route.iter_mut().for_each(|d| complete(&mut d.destination.host));
    rule.mirror.iter_mut().for_each(|d| complete(&mut d.host));
    rule.mirrors.iter_mut().for_each(|m| complete(&mut m.destination.host));
    for g in rule.matches.iter_mut().flat_map(|m| m.gateways.iter_mut()) {
        if g != "mesh" && !g.contains('/') && !g.contains('.') {
            *g = format!("{namespace}/{g}");
        }
    }
    rule
}

fn merge(root: &HttpRoute, mut leaf: HttpRoute) -> Option<HttpRoute> {
    leaf.matches = merge_matches(&root.matches, leaf.matches)?;
    leaf.name = joined(&root.name, leaf.name);
    let mut take = root.clone();
    leaf.rewrite = leaf.rewrite.or(take.rewrite.take());
    leaf.direct_response = leaf.direct_response.or(take.direct_response.take());
    leaf.timeout = leaf.timeout.or(root.timeout);
    leaf.retries = leaf.retries.or(take.retries.take());
    leaf.fault = leaf.fault.or(take.fault.take());
    leaf.mirror = leaf.mirror.or(take.mirror.take());
    leaf.mirror_percent = leaf.mirror_percent.or(root.mirror_percent);
    leaf.mirror_percentage = leaf.mirror_percentage.or(take.mirror_percentage.take());
    leaf.cors_policy = leaf.cors_policy.or(take.cors_policy.take());
    leaf.headers = leaf.headers.or(take.headers.take());
    if leaf.mirrors.is_empty() {
        leaf.mirrors = take.mirrors;
    }
    Some(leaf)
}

fn joined(root: &str, leaf: String) -> String {
    match (root, leaf.as_str()) {
        (root, "") => root.to_owned(),
        ("", _) => leaf,
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// Every match of the leaf must lie within one of the root's; otherwise the rule is dropped.
fn merge_matches(root: &[HttpMatch], leaf: Vec<HttpMatch>) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(leaf);
    }
    if leaf.is_empty() {
        return Some(root.to_vec());
    }
    let mut out = Vec::new();
    for l in &leaf {
        let before = out.len();
        out.extend(root.iter().filter(|r| !conflict(r, l)).map(|r| merge_match(r, l)));
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn merge_match(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let or = |leaf: &Option<StringMatch>, root: &Option<StringMatch>| leaf.clone().or_else(|| root.clone());
    HttpMatch {
        name: joined(&root.name, leaf.name.clone()),
        uri: or(&leaf.uri, &root.uri),
        scheme: or(&leaf.scheme, &root.scheme),
        method: or(&leaf.method, &root.method),
        authority: or(&leaf.authority, &root.authority),
        headers: union(&root.headers, &leaf.headers),
        without_headers: union(&root.without_headers, &leaf.without_headers),
        query_params: union(&root.query_params, &leaf.query_params),
        source_labels: union(&root.source_labels, &leaf.source_labels),
        port: leaf.port.or(root.port),
        gateways: if leaf.gateways.is_empty() { root.gateways.clone() } else { leaf.gateways.clone() },
        ignore_uri_case: leaf.ignore_uri_case,
        source_namespace: if leaf.source_namespace.is_empty() {
            &root.source_namespace
        } else {
            &leaf.source_namespace
        }
        .clone(),
        stat_prefix: if leaf.stat_prefix.is_empty() { &root.stat_prefix } else { &leaf.stat_prefix }.clone(),
    }
}

fn union<V: Clone>(root: &BTreeMap<String, V>, leaf: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    root.iter().chain(leaf).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn conflict(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let pairs = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let differs = |a: u16, b: u16| a != 0 && b != 0 && a != b;
    pairs.iter().any(|(r, l)| strings_conflict(r.as_ref(), l.as_ref()))
        || maps.iter().any(|(r, l)| l.iter().any(|(k, v)| strings_conflict(r.get(k), Some(v))))
        || root.ignore_uri_case != leaf.ignore_uri_case
        || differs(root.port.unwrap_or(0), leaf.port.unwrap_or(0))
        || (!root.source_namespace.is_empty() && root.source_namespace != leaf.source_namespace)
        || leaf.source_labels.iter().any(|(k, v)| root.source_labels.get(k).is_some_and(|r| r != v))
        || (!root.gateways.is_empty() && leaf.gateways.iter().any(|g| !root.gateways.contains(g)))
}

/// Whether the leaf's comparison is not within the root's.
fn strings_conflict(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else { return false };
    let given = |s: &Option<String>| s.as_ref().filter(|s| !s.is_empty()).cloned();
    let (r_exact, r_prefix, r_regex) = (given(&root.exact), given(&root.prefix), given(&root.regex));
    let (l_exact, l_prefix, l_regex) = (given(&leaf.exact), given(&leaf.prefix), given(&leaf.regex));
    if r_regex.is_some() || l_regex.is_some() {
        return true;
    }
    match (r_exact, r_prefix) {
        (Some(exact), _) => l_exact != Some(exact),
        (None, Some(prefix)) => !l_prefix.or(l_exact).is_some_and(|l| l.starts_with(&prefix)),
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vs(yaml: &str) -> VirtualService {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn run(root: &str, leaf: &str) -> Vec<HttpRoute> {
        let root = vs(root);
        let leaf = Arc::new(vs(leaf));
        resolve(&root, "ingress", "cluster.local", &|ns, name| (ns == "shop" && name == "leaf").then(|| leaf.clone()))
            .into_owned()
    }

    #[test]
    fn a_delegates_rules_take_the_place_of_the_roots() {
        let out = run(
            "hosts: [a.test]\nhttp:\n- match: [{uri: {prefix: /shop}}]\n  timeout: 3s\n  name: r\n  delegate: {name: leaf, namespace: shop}\n- route: [{destination: {host: x}}]\n",
            "http:\n- match: [{uri: {prefix: /shop/cart}}]\n  name: l\n  route: [{destination: {host: cart}}]\n- match: [{uri: {prefix: /other}}]\n  route: [{destination: {host: no}}]\n- route: [{destination: {host: web}}]\n",
        );
        let hosts: Vec<&str> = out.iter().map(|r| r.route[0].destination.host.as_str()).collect();
        assert_eq!(hosts, ["cart.shop.svc.cluster.local", "web.shop.svc.cluster.local", "x"]);
        assert_eq!(out[0].name, "r-l");
        assert!(out[0].timeout.is_some());
        assert_eq!(out[1].matches[0].uri.as_ref().unwrap().prefix.as_deref(), Some("/shop"));
    }

    #[test]
    fn a_missing_delegate_vanishes() {
        let out = run("hosts: [a]\nhttp:\n- delegate: {name: nobody}\n", "http: []");
        assert!(out.is_empty());
    }
}
