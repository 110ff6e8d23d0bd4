//! Keys of those who issue tokens: where each rule has its own from, and those that were fetched.
//!
//! Owns whose word counts for where keys are. Must not know how they are fetched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use im::OrdMap;
use mesh_api::{
    crd::security::{JwtRule, RequestAuthentication},
    model::Name,
};
use serde::{Deserialize, Serialize};

use super::{ChangeSet, Index, IndexWriter, ServiceEntry, Stamp, change::Since};
use crate::source::object::{Kind, Object, ObjectKey, Spec};

/// A fetch may take so long when its rule says nothing.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that a rule may ask for, and the least.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(30));

/// Where keys are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySource {
    /// `jwksUri`.
    Uri(Name),
    /// OpenID discovery of this issuer.
    Issuer(Name),
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => f.write_str(uri),
            Self::Issuer(issuer) => write!(f, "{issuer} by OpenID discovery"),
        }
    }
}

/// Where a rule has its keys from.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyOrigin<'a> {
    /// They stand in the object.
    Inline(&'a str),
    /// A service of the mesh, which proxies ask themselves, with the mesh's TLS, on this port.
    Service(&'a ServiceEntry, u16),
    /// The control plane fetches them.
    Fetched(KeySource),
}

/// Fetched keys, public parts only.
pub(super) type FetchedKeys = OrdMap<KeySource, Arc<str>>;

/// A fetch may take so long for a rule.
pub fn fetch_timeout(rule: &JwtRule) -> Duration {
    rule.timeout.map_or(TIMEOUT, |t| t.0).clamp(TIMEOUTS.0, TIMEOUTS.1)
}

impl Index {
    /// Where a rule of an object in `namespace` has its keys from.
    pub fn key_origin<'a>(&'a self, namespace: &str, rule: &'a JwtRule) -> KeyOrigin<'a> {
        if !rule.jwks.is_empty() {
            return KeyOrigin::Inline(&rule.jwks);
        }
        if rule.jwks_uri.is_empty() {
            return KeyOrigin::Fetched(KeySource::Issuer(rule.issuer.as_str().into()));
        }
        match self.key_service(namespace, &rule.jwks_uri) {
            Some((entry, port)) => KeyOrigin::Service(entry, port),
            None => KeyOrigin::Fetched(KeySource::Uri(rule.jwks_uri.as_str().into())),
        }
    }

    /// The service of the mesh that an `http` URL names. With `https` the mesh could not check whom it speaks to.
    fn key_service(&self, namespace: &str, uri: &str) -> Option<(&ServiceEntry, u16)> {
        let authority = uri.strip_prefix("http://")?.split(['/', '?', '#']).next()?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, 80),
        };
        let host = host.to_ascii_lowercase();
        let entry = self.service(&host, namespace)?;
        // Nobody may give keys to another namespace by declaring the host of its issuer.
        let owner = &entry.service.key.namespace;
        let of_its_namespace = host.strip_suffix(self.domain()).is_some_and(|h| h.ends_with(&format!(".{owner}.svc.")));
        let trusted = **owner == *namespace || **owner == *self.mesh().root_namespace() || of_its_namespace;
        (trusted && entry.service.port(port).is_some()).then_some((entry, port))
    }

    /// Keys that were fetched.
    pub fn fetched_keys(&self, source: &KeySource) -> Option<&Arc<str>> {
        self.keys.get(source)
    }

    /// Every source of keys that a rule wants to be fetched, with the time that a fetch may take.
    pub fn wanted_keys(&self) -> BTreeMap<KeySource, Duration> {
        let mut out = BTreeMap::new();
        for (object, policy) in self.token_rules() {
            for rule in &policy.jwt_rules {
                if let KeyOrigin::Fetched(source) = self.key_origin(&object.key.namespace, rule) {
                    let limit = out.entry(source).or_insert(Duration::ZERO);
                    *limit = fetch_timeout(rule).max(*limit);
                }
            }
        }
        out
    }

    /// RequestAuthentications.
    pub fn token_rules(&self) -> impl Iterator<Item = (&Arc<Object>, &RequestAuthentication)> {
        self.objects(Kind::RequestAuthentication).filter_map(|o| match &o.spec {
            Spec::RequestAuthentication(policy) => Some((o, &**policy)),
            _ => None,
        })
    }

    /// States of the services that rules of these namespaces have keys from.
    pub(crate) fn key_services<'a>(&'a self, namespaces: [&str; 2]) -> impl Iterator<Item = Stamp> + use<'a> {
        let objects = |namespace: &str| self.objects_in(Kind::RequestAuthentication, namespace).collect::<Vec<_>>();
        let all = namespaces.map(objects).into_iter().flatten();
        all.flat_map(move |object| {
            let rules = match &object.spec {
                Spec::RequestAuthentication(policy) => &policy.jwt_rules[..],
                _ => &[],
            };
            rules.iter().filter_map(move |rule| match self.key_origin(&object.key.namespace, rule) {
                KeyOrigin::Service(entry, _) => Some(entry.service.stamp()),
                _ => None,
            })
        })
    }
}

impl IndexWriter {
    /// Takes over keys that were fetched (`None`: they are wanted no more) and says whom that concerns.
    pub fn apply_keys(&mut self, fetched: Vec<(KeySource, Option<Arc<str>>)>) -> ChangeSet {
        let mut out = ChangeSet { since: Since(Some(Stamp::next())), ..ChangeSet::default() };
        let mut changed = BTreeSet::new();
        for (source, keys) in fetched {
            if self.index.keys.get(&source) == keys.as_ref() {
                continue;
            }
            match keys {
                Some(keys) => self.index.keys.insert(source.clone(), keys),
                None => self.index.keys.remove(&source),
            };
            changed.insert(source);
        }
        if changed.is_empty() {
            return out;
        }
        let index = &self.index;
        let uses = |namespace: &str, rule: &JwtRule| matches!(index.key_origin(namespace, rule), KeyOrigin::Fetched(source) if changed.contains(&source));
        let concerned = index.token_rules().filter(|(o, p)| p.jwt_rules.iter().any(|r| uses(&o.key.namespace, r)));
        let concerned: BTreeSet<ObjectKey> = concerned.map(|(o, _)| o.key.clone()).collect();
        if !concerned.is_empty() {
            Arc::make_mut(&mut self.index.stamps).insert(Kind::RequestAuthentication, Stamp::next());
        }
        out.objects = concerned;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::writer;
    use super::*;

    fn policy(namespace: &str, rule: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: {namespace}}}\nspec: {{jwtRules: [{rule}]}}\n"
        )
    }

    #[test]
    fn one_source_a_url_with_the_longest_time() {
        let state = writer(&format!(
            "{}{}{}",
            policy("a", "{issuer: 'https://i', jwksUri: 'https://i/keys', timeout: 2s}"),
            policy("b", "{issuer: 'https://i', jwksUri: 'https://i/keys', timeout: 1h}, {issuer: x, jwks: '{}'}"),
            policy("c", "{issuer: 'https://i'}"),
        ));
        let wanted: Vec<_> = state.index().wanted_keys().into_iter().collect();
        let (uri, issuer) = (KeySource::Uri("https://i/keys".into()), KeySource::Issuer("https://i".into()));
        assert_eq!(wanted, [(uri, Duration::from_secs(30)), (issuer, Duration::from_secs(5))]);
    }

    #[test]
    fn keys_concern_those_who_want_them() {
        let mut state = writer(&format!(
            "{}{}",
            policy("a", "{issuer: i, jwksUri: 'https://i/keys'}"),
            policy("b", "{issuer: i, jwksUri: 'https://other/keys'}")
        ));
        let source = KeySource::Uri("https://i/keys".into());
        let before = state.index().stamp(Kind::RequestAuthentication);
        let change = state.apply_keys(vec![(source.clone(), Some("keys".into()))]);
        let concerned: Vec<_> = change.objects.iter().map(|k| &*k.namespace).collect();
        assert_eq!(concerned, ["a"]);
        assert!(!change.only_endpoints());
        assert_ne!(state.index().stamp(Kind::RequestAuthentication), before);
        assert_eq!(state.index().fetched_keys(&source).map(|k| &**k), Some("keys"));
        let again = state.apply_keys(vec![(source.clone(), Some("keys".into()))]);
        assert!(again.is_empty(), "the same keys are no change");
        assert!(state.apply_keys(vec![(KeySource::Uri("https://nobody/".into()), Some("k".into()))]).is_empty());
    }

    /// T104: a host that somebody else declares leads nobody's keys astray.
    #[test]
    fn services_of_the_mesh_by_whose_word() {
        let entry = |namespace: &str, host: &str| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\nspec: {{hosts: [{host}], resolution: STATIC, endpoints: [{{address: 1.2.3.4}}], ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n"
            )
        };
        let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: keys, namespace: auth}\nspec: {selector: {app: keys}, ports: [{port: 8080, name: http}]}\n";
        let state = writer(&format!("{}{}{service}", entry("evil", "issuer.test"), entry("good", "own.test")));
        let origin = |namespace: &str, uri: &str| {
            let rule = JwtRule { jwks_uri: uri.into(), ..JwtRule::default() };
            match state.index().key_origin(namespace, &rule) {
                KeyOrigin::Service(entry, port) => format!("{}:{port}", entry.service.key.host),
                KeyOrigin::Fetched(source) => source.to_string(),
                KeyOrigin::Inline(_) => String::new(),
            }
        };
        assert_eq!(origin("good", "http://issuer.test/k"), "http://issuer.test/k");
        assert_eq!(origin("good", "http://own.test/k"), "own.test:80");
        assert_eq!(origin("good", "https://own.test/k"), "https://own.test/k");
        assert_eq!(origin("good", "http://keys.auth.svc.cluster.local:8080"), "keys.auth.svc.cluster.local:8080");
        let no_port = "http://keys.auth.svc.cluster.local/k";
        assert_eq!(origin("good", no_port), no_port);
    }
}
