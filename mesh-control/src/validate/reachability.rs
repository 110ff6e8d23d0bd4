//! Rules of a VirtualService that no request reaches, as earlier ones take all that they match. Rules are tried in
//! order, and the first that matches is used: that is all this knows of translation.

use std::collections::{HashMap, HashSet};

use mesh_api::crd::networking::{HttpMatch, StringMatch, TlsMatch, VirtualService};
use serde::Serialize;

use super::Finding;

/// Findings on all lists of rules.
pub(super) fn rules(vs: &VirtualService, out: &mut Vec<Finding>) {
    // Rules of a delegate are tried among those of others.
    if vs.hosts.is_empty() {
        return;
    }
    let mut http = Earlier::default();
    for (i, rule) in vs.http.iter().enumerate() {
        let covered: Vec<_> = rule.matches.iter().map(|m| http.covers_http(m)).collect();
        report(&format!("spec.http[{i}]"), "spec.http", http.all, &covered, out);
        // Where no rule of the delegate matches, the next one is tried.
        if rule.delegate.is_none() {
            http.add_http(i, &rule.matches);
        }
    }
    let mut tls = Earlier::default();
    for (i, rule) in vs.tls.iter().enumerate() {
        let covered: Vec<_> = rule.matches.iter().map(|m| tls.covers_tls(m)).collect();
        report(&format!("spec.tls[{i}]"), "spec.tls", tls.all, &covered, out);
        tls.add_tls(i, &rule.matches);
    }
    let mut tcp = Earlier::default();
    for (i, rule) in vs.tcp.iter().enumerate() {
        let covered: Vec<_> = rule.matches.iter().map(|m| tcp.same(m)).collect();
        report(&format!("spec.tcp[{i}]"), "spec.tcp", tcp.all, &covered, out);
        tcp.add(i, &rule.matches);
    }
}

fn report(field: &str, list: &str, all: Option<usize>, covered: &[Option<usize>], out: &mut Vec<Finding>) {
    let unreachable = |message: String| Finding::warning(field, message).code("IST0130");
    if let Some(earlier) = all {
        out.push(unreachable(format!("is never used: {list}[{earlier}] takes everything")));
        return;
    }
    if !covered.is_empty() && covered.iter().all(Option::is_some) {
        let by: HashSet<usize> = covered.iter().flatten().copied().collect();
        let mut by: Vec<usize> = by.into_iter().collect();
        by.sort_unstable();
        let by: Vec<String> = by.iter().map(|i| format!("{list}[{i}]")).collect();
        out.push(unreachable(format!("is never used: {} takes all that it matches", by.join(" and "))));
        return;
    }
    for (j, earlier) in covered.iter().enumerate() {
        if let Some(earlier) = earlier {
            let message = format!("is never used: {list}[{earlier}] takes all of it");
            out.push(Finding::info(format!("{field}.match[{j}]"), message).code("IST0131"));
        }
    }
}

/// What the rules before one take. Lookups cost the same however many rules there are.
#[derive(Default)]
struct Earlier {
    /// The rule that takes everything.
    all: Option<usize>,
    /// Whole conditions.
    conditions: HashMap<String, usize>,
    /// Prefixes of paths, and server names, that are taken whatever else is said.
    alone: HashMap<String, usize>,
}

impl Earlier {
    fn add(&mut self, rule: usize, matches: &[impl Serialize]) {
        if matches.is_empty() {
            self.all.get_or_insert(rule);
        }
        for m in matches {
            self.conditions.entry(text(m)).or_insert(rule);
        }
    }

    fn same(&self, m: &impl Serialize) -> Option<usize> {
        self.conditions.get(&text(m)).copied()
    }

    fn add_http(&mut self, rule: usize, matches: &[HttpMatch]) {
        let bare: Vec<HttpMatch> = matches.iter().map(nameless).collect();
        self.add(rule, &bare);
        for m in &bare {
            if *m == HttpMatch::default() {
                self.all.get_or_insert(rule);
            }
            let Some(prefix) = m.uri.as_ref().and_then(|uri| uri.prefix.clone()) else { continue };
            if *m == (HttpMatch { uri: m.uri.clone(), ..HttpMatch::default() }) {
                if prefix == "/" {
                    self.all.get_or_insert(rule);
                }
                self.alone.entry(prefix).or_insert(rule);
            }
        }
    }

    fn covers_http(&self, m: &HttpMatch) -> Option<usize> {
        let path = match &m.uri {
            Some(StringMatch { exact: Some(path), .. } | StringMatch { prefix: Some(path), .. }) => path.as_str(),
            _ => "",
        };
        let path = if m.ignore_uri_case { "" } else { path };
        let ends = path.char_indices().map(|(at, c)| at + c.len_utf8());
        let by_prefix = ends.filter_map(|end| self.alone.get(path.get(..end)?)).min();
        self.same(&nameless(m)).into_iter().chain(by_prefix.copied()).min()
    }

    fn add_tls(&mut self, rule: usize, matches: &[TlsMatch]) {
        self.add(rule, matches);
        for m in matches {
            if *m == (TlsMatch { sni_hosts: m.sni_hosts.clone(), ..TlsMatch::default() }) {
                for name in &m.sni_hosts {
                    self.alone.entry(name.clone()).or_insert(rule);
                }
            }
        }
    }

    fn covers_tls(&self, m: &TlsMatch) -> Option<usize> {
        let names: Option<Vec<usize>> = m.sni_hosts.iter().map(|name| self.alone.get(name).copied()).collect();
        let by_name = names.and_then(|rules| rules.into_iter().max());
        self.same(m).into_iter().chain(by_name).min()
    }
}

fn nameless(m: &HttpMatch) -> HttpMatch {
    HttpMatch { name: String::new(), stat_prefix: String::new(), ..m.clone() }
}

fn text(m: &impl Serialize) -> String {
    serde_json::to_string(m).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(spec: &str) -> Vec<String> {
        let vs: VirtualService = serde_saphyr::from_str(spec).unwrap();
        let mut out = Vec::new();
        rules(&vs, &mut out);
        out.iter().map(|f| format!("{} {}", f.code.unwrap_or_default(), f.field)).collect()
    }

    fn http(rules: &str) -> Vec<String> {
        found(&format!("{{hosts: [a], http: [{rules}]}}"))
    }

    #[test]
    fn what_is_taken_by_earlier_rules() {
        assert_eq!(http("{}, {}"), ["IST0130 spec.http[1]"]);
        assert_eq!(http("{match: [{uri: {prefix: /}}]}, {match: [{uri: {regex: .*}}]}"), ["IST0130 spec.http[1]"]);
        assert_eq!(http("{match: [{name: x}]}, {match: [{method: {exact: GET}}]}"), ["IST0130 spec.http[1]"]);
        let prefix = "{match: [{uri: {prefix: /api}}]}";
        assert_eq!(
            http(&format!("{prefix}, {{match: [{{uri: {{exact: /api/a}}, port: 80}}]}}")),
            ["IST0130 spec.http[1]"]
        );
        assert_eq!(
            http(&format!("{prefix}, {{match: [{{uri: {{prefix: /apis}}}}, {{uri: {{prefix: /b}}}}]}}")),
            ["IST0131 spec.http[1].match[0]"]
        );
        let header = "{match: [{name: a, headers: {x: {exact: y}}}]}";
        assert_eq!(http(&format!("{header}, {}", header.replace("name: a", "name: b"))), ["IST0130 spec.http[1]"]);
        let tls = "{match: [{sniHosts: [a, b]}]}";
        assert_eq!(
            found(&format!("{{hosts: [a, b], tls: [{tls}, {{match: [{{sniHosts: [b], port: 443}}]}}]}}")),
            ["IST0130 spec.tls[1]"]
        );
        assert_eq!(found("{hosts: [a], tcp: [{match: [{port: 1}]}, {match: [{port: 1}]}]}"), ["IST0130 spec.tcp[1]"]);
    }

    #[test]
    fn what_is_reached() {
        let none: [&str; 0] = [];
        for rules in [
            "{match: [{uri: {prefix: /api}}]}, {match: [{uri: {prefix: /ap}}]}, {}",
            "{match: [{uri: {exact: /a}}]}, {match: [{uri: {prefix: /a}}]}",
            "{match: [{uri: {prefix: /}, ignoreUriCase: true}]}, {match: [{uri: {exact: /}}]}",
            "{match: [{uri: {prefix: /a}, gateways: [g]}]}, {match: [{uri: {prefix: /a}}]}",
            "{match: [{uri: {prefix: /a}}]}, {match: [{uri: {prefix: /A}}]}",
            "{match: [{uri: {prefix: /a}}]}, {match: [{uri: {prefix: /aB}, ignoreUriCase: true}]}",
            "{delegate: {name: d}}, {}",
        ] {
            assert_eq!(http(rules), none, "{rules}");
        }
        assert_eq!(found("{http: [{}, {}]}"), none, "a delegate");
    }
}
