//! What rate limits are told of a request: rules of hosts, routes and filters, compiled, and the descriptors that they
//! make. Knows no limit.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, HeaderName};
use mesh_api::model::{self, Metadata, Name, RateLimitAction};

use crate::{
    config::ConfigError,
    http::{
        matchers::{Field, HeaderMatch, QueryMatch, query_value},
        message::RequestHead,
    },
};

/// Compiled rules.
#[derive(Debug, Default)]
pub struct Rules(Box<[Rule]>);

#[derive(Debug)]
struct Rule {
    stage: u32,
    actions: Box<[Action]>,
    hits: Option<u64>,
}

#[derive(Debug)]
enum Action {
    SourceCluster,
    DestinationCluster,
    Header { field: Field, key: Name, skip: bool },
    Query { name: Name, key: Name, skip: bool },
    RemoteAddress,
    MaskedRemoteAddress { v4: u8, v6: u8 },
    Generic { key: Name, value: Name },
    HeaderMatch { key: Name, value: Name, expect: bool, headers: Box<[HeaderMatch]> },
    QueryMatch { key: Name, value: Name, expect: bool, query: Box<[QueryMatch]> },
    Metadata { key: Name, of_route: bool, filter: Name, path: Box<[Name]>, default: Name, skip: bool },
}

/// What is known of a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Request.
    pub head: &'a RequestHead,
    /// Client after `x-forwarded-for`.
    pub client: IpAddr,
    /// Cluster of this proxy.
    pub source: &'a str,
    /// Cluster that the request goes to.
    pub destination: &'a str,
    /// What filters said.
    pub metadata: &'a Metadata,
    /// What the route says.
    pub route: &'a Metadata,
}

/// What a limit is looked up by.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Keys and values in order.
    pub entries: Vec<(&'a str, Cow<'a, str>)>,
    /// How much the request counts; `None`: once.
    pub hits: Option<u64>,
}

/// Entry of an action, nothing, or the end of the descriptor.
enum Made<'a> {
    Entry(&'a str, Cow<'a, str>),
    Nothing,
    Impossible,
}

impl Rules {
    /// Compiles rules.
    ///
    /// # Errors
    /// A pattern or header name that is not valid.
    pub fn compile(rules: &[model::RateLimitRule]) -> Result<Self, ConfigError> {
        let one = |r: &model::RateLimitRule| {
            let actions = r.actions.iter().map(Action::compile).collect::<Result<_, ConfigError>>()?;
            Ok(Rule { stage: r.stage, actions, hits: r.hits })
        };
        rules.iter().map(one).collect::<Result<_, ConfigError>>().map(Self)
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the descriptors of a request.
    pub fn describe<'a>(&'a self, stage: u32, facts: &Facts<'a>, out: &mut Vec<Descriptor<'a>>) {
        for rule in self.0.iter().filter(|r| r.stage == stage) {
            out.extend(rule.describe(facts));
        }
    }
}

impl Rule {
    fn describe<'a>(&'a self, facts: &Facts<'a>) -> Option<Descriptor<'a>> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(facts) {
                Made::Entry(key, value) => entries.push((key, value)),
                Made::Nothing => {}
                Made::Impossible => return None,
            }
        }
        (!entries.is_empty()).then_some(Descriptor { entries, hits: self.hits })
    }
}

impl Action {
    fn compile(action: &RateLimitAction) -> Result<Self, ConfigError> {
        use RateLimitAction as A;
        Ok(match action {
            A::SourceCluster => Action::SourceCluster,
            A::DestinationCluster => Action::DestinationCluster,
            A::Header { name, key, skip_if_absent } => {
                Action::Header { field: Field::parse(name)?, key: key.clone(), skip: *skip_if_absent }
            }
            A::Query { name, key, skip_if_absent } => {
                Action::Query { name: name.clone(), key: key.clone(), skip: *skip_if_absent }
            }
            A::RemoteAddress => Action::RemoteAddress,
            A::MaskedRemoteAddress { v4, v6 } => Action::MaskedRemoteAddress { v4: *v4, v6: *v6 },
            A::Generic { key, value } => Action::Generic { key: key.clone(), value: value.clone() },
            A::HeaderMatch { key, value, expect, headers } => Action::HeaderMatch {
                key: key.clone(),
                value: value.clone(),
                expect: *expect,
                headers: HeaderMatch::compile_all(headers)?,
            },
            A::QueryMatch { key, value, expect, query } => Action::QueryMatch {
                key: key.clone(),
                value: value.clone(),
                expect: *expect,
                query: query.iter().map(QueryMatch::compile).collect::<Result<_, _>>()?,
            },
            A::Metadata { key, of_route, filter, path, default, skip_if_absent } => Action::Metadata {
                key: key.clone(),
                of_route: *of_route,
                filter: filter.clone(),
                path: path.clone().into(),
                default: default.clone(),
                skip: *skip_if_absent,
            },
        })
    }

    fn entry<'a>(&'a self, facts: &Facts<'a>) -> Made<'a> {
        match self {
            Action::SourceCluster => Made::Entry("source_cluster", facts.source.into()),
            Action::DestinationCluster => Made::Entry("destination_cluster", facts.destination.into()),
            Action::Header { field, key, skip } => Made::or_absent(key, first(field, facts.head), *skip),
            Action::Query { name, key, skip } => {
                let value = facts.head.query().and_then(|q| query_value(q, name)).map(Cow::Borrowed);
                Made::or_absent(key, value, *skip)
            }
            Action::RemoteAddress => Made::Entry("remote_address", facts.client.to_string().into()),
            Action::MaskedRemoteAddress { v4, v6 } => {
                let bits = if facts.client.is_ipv4() { *v4 } else { *v6 };
                Made::Entry("masked_remote_address", masked(facts.client, bits).into())
            }
            Action::Generic { key, value } => Made::Entry(key, Cow::Borrowed(value)),
            Action::HeaderMatch { key, value, expect, headers } => {
                Made::when(*expect == headers.iter().all(|h| h.matches(facts.head)), key, value)
            }
            Action::QueryMatch { key, value, expect, query } => {
                Made::when(*expect == query.iter().all(|q| q.matches(facts.head.query())), key, value)
            }
            Action::Metadata { key, of_route, filter, path, default, skip } => {
                let mut found = (if *of_route { facts.route } else { facts.metadata }).get(&**filter);
                for step in path {
                    found = found.and_then(|v| v.get(&**step));
                }
                let text = found.and_then(|v| v.as_str()).filter(|t| !t.is_empty());
                let text = text.or_else(|| (!default.is_empty()).then_some(&**default));
                Made::or_absent(key, text.map(Cow::Borrowed), *skip)
            }
        }
    }
}

impl<'a> Made<'a> {
    fn or_absent(key: &'a str, value: Option<Cow<'a, str>>, skip: bool) -> Self {
        match value {
            Some(value) => Made::Entry(key, value),
            None if skip => Made::Nothing,
            None => Made::Impossible,
        }
    }

    fn when(holds: bool, key: &'a str, value: &'a str) -> Self {
        if holds { Made::Entry(key, value.into()) } else { Made::Impossible }
    }
}

/// The first value, as Envoy takes it.
fn first<'a>(field: &Field, head: &'a RequestHead) -> Option<Cow<'a, str>> {
    match field {
        Field::Header(name) => {
            let value = head.headers.get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()))
        }
        pseudo => match pseudo.value(head)? {
            Cow::Borrowed(bytes) => Some(String::from_utf8_lossy(bytes)),
            Cow::Owned(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned().into()),
        },
    }
}

/// The network of an address: `10.1.0.0/16`.
fn masked(address: IpAddr, bits: u8) -> String {
    let network = match address {
        IpAddr::V4(ip) => IpAddr::from(
            (u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0)).to_be_bytes(),
        ),
        IpAddr::V6(ip) => IpAddr::from(
            (u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0)).to_be_bytes(),
        ),
    };
    format!("{network}/{bits}")
}

/// Descriptors of `x-ratelimit-...` that tell a client of a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a window.
    pub requests: u32,
    /// Seconds of a window; 0: not known.
    pub window: u32,
    /// Name; may be empty.
    pub name: String,
    /// Requests left.
    pub remaining: u32,
    /// Seconds until there are all again.
    pub reset: u64,
}

/// `x-ratelimit-limit`, `-remaining` and `-reset` of the limit that is nearest (draft 03 of the RFC).
pub fn limit_headers(quotas: &[Quota]) -> HeaderMap {
    let mut out = HeaderMap::new();
    let Some(nearest) = quotas.iter().min_by_key(|q| q.remaining) else { return out };
    let mut limit = nearest.requests.to_string();
    for quota in quotas.iter().filter(|q| q.window > 0) {
        limit.push_str(&format!(", {};w={}", quota.requests, quota.window));
        if !quota.name.is_empty() {
            limit.push_str(&format!(";name=\"{}\"", quota.name));
        }
    }
    let fields = [
        ("x-ratelimit-limit", limit),
        ("x-ratelimit-remaining", nearest.remaining.to_string()),
        ("x-ratelimit-reset", nearest.reset.to_string()),
    ];
    for (name, value) in fields {
        // A service may name its limits as it likes.
        if let Ok(value) = value.parse() {
            out.insert(HeaderName::from_static(name), value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::testing;

    fn described(actions: Vec<RateLimitAction>, head: &RequestHead) -> Option<Vec<(String, String)>> {
        let rule = model::RateLimitRule { stage: 0, actions, hits: None };
        let rules = Rules::compile(&[rule]).unwrap();
        let metadata = Metadata::from([("f".to_owned(), json!({"a": {"b": "deep", "n": 1}}))]);
        let route = Metadata::from([("r".to_owned(), json!({"plan": "gold"}))]);
        let client = "10.1.2.3".parse().unwrap();
        let facts = Facts { head, client, source: "me", destination: "up", metadata: &metadata, route: &route };
        let mut out = vec![];
        rules.describe(1, &facts, &mut out);
        assert!(out.is_empty(), "another stage");
        rules.describe(0, &facts, &mut out);
        let entries = out.pop()?.entries;
        Some(entries.into_iter().map(|(k, v)| (k.to_owned(), v.into_owned())).collect())
    }

    fn pairs(all: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn metadata(of_route: bool, filter: &str, path: &[&str], default: &str, skip_if_absent: bool) -> RateLimitAction {
        RateLimitAction::Metadata {
            key: "m".into(),
            of_route,
            filter: filter.into(),
            path: path.iter().map(|p| Name::from(*p)).collect(),
            default: default.into(),
            skip_if_absent,
        }
    }

    #[test]
    fn actions_make_entries_in_order() {
        use RateLimitAction as A;
        let mut head = testing::get("a.test", "/p?q=1&r=2");
        head.headers.append("x-user", "ann".parse().unwrap());
        head.headers.append("x-user", "bob".parse().unwrap());
        let header = |name: &str, skip_if_absent| A::Header { name: name.into(), key: "h".into(), skip_if_absent };
        let all = vec![
            A::SourceCluster,
            A::DestinationCluster,
            header("x-user", false),
            header(":path", false),
            header("x-none", true),
            A::Query { name: "q".into(), key: "q".into(), skip_if_absent: false },
            A::RemoteAddress,
            A::MaskedRemoteAddress { v4: 16, v6: 64 },
            A::Generic { key: "generic_key".into(), value: "v".into() },
            metadata(false, "f", &["a", "b"], "", false),
            metadata(true, "r", &["plan"], "", false),
            metadata(false, "f", &["a", "n"], "other", false),
        ];
        let wanted = [
            ("source_cluster", "me"),
            ("destination_cluster", "up"),
            ("h", "ann"),
            ("h", "/p?q=1&r=2"),
            ("q", "1"),
            ("remote_address", "10.1.2.3"),
            ("masked_remote_address", "10.1.0.0/16"),
            ("generic_key", "v"),
            ("m", "deep"),
            ("m", "gold"),
            ("m", "other"),
        ];
        assert_eq!(described(all, &head), pairs(&wanted));
    }

    #[test]
    fn an_entry_that_cannot_be_made_leaves_the_descriptor_out() {
        use RateLimitAction as A;
        let head = testing::get("a.test", "/p?q=1");
        let generic = || A::Generic { key: "g".into(), value: "v".into() };
        let header = |skip_if_absent| A::Header { name: "x".into(), key: "h".into(), skip_if_absent };
        assert_eq!(described(vec![generic(), header(false)], &head), None);
        assert_eq!(described(vec![header(true)], &head), None, "no entry is no descriptor");
        assert_eq!(described(vec![generic(), metadata(false, "none", &[], "", false)], &head), None);
        assert_eq!(described(vec![generic(), metadata(false, "none", &[], "", true)], &head), pairs(&[("g", "v")]));
        let query = |name: &str, expect| A::QueryMatch {
            key: "k".into(),
            value: "v".into(),
            expect,
            query: vec![model::QueryMatcher { name: name.into(), value: None }],
        };
        assert_eq!(described(vec![query("q", true)], &head), pairs(&[("k", "v")]));
        assert_eq!(described(vec![query("q", false)], &head), None);
        assert_eq!(described(vec![query("z", false)], &head), pairs(&[("k", "v")]));
    }

    #[test]
    fn the_nearest_limit_is_told() {
        let quota = |requests, window, name: &str, remaining| Quota {
            requests,
            window,
            name: name.to_owned(),
            remaining,
            reset: 9,
        };
        let headers = limit_headers(&[quota(10, 60, "a", 4), quota(5, 1, "", 2), quota(7, 0, "c", 3)]);
        assert_eq!(headers["x-ratelimit-limit"], "5, 10;w=60;name=\"a\", 5;w=1");
        assert_eq!(headers["x-ratelimit-remaining"], "2");
        assert_eq!(headers["x-ratelimit-reset"], "9");
        assert!(limit_headers(&[]).is_empty());
        assert!(!limit_headers(&[quota(1, 1, "a\nb", 0)]).contains_key("x-ratelimit-limit"));
    }
}
