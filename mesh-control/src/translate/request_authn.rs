//! RequestAuthentications as the token filter of a workload or gateway.
//!
//! Owns which objects hold, and what their rules ask: a token that is there must be good, none is needed. Keys are
//! those that stand in the object, that were fetched, or that the proxy fetches from a service of the mesh; an issuer whose
//! keys are not known has none, and its tokens are refused. No key is ever made up, and nothing but public parts of keys
//! goes out. Must not know listeners, nor how keys are fetched.

use std::time::Duration;

use mesh_api::{
    crd::security::{JwtPresence, JwtRule as Rule, RequestAuthentication},
    model::{DataSource, JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule, Name, RemoteKeys, RouteMatch},
    names::{BLACK_HOLE_CLUSTER, ClusterName},
};

use super::policy::{Subject, is_gateway};
use crate::{
    index::{Index, KeyOrigin, keys::fetch_timeout},
    jwks::public_keys,
    source::object::{Kind, Object, Spec},
};

/// Metadata key of claims, where policies and routes look for them.
const PAYLOAD: &str = "payload";
/// Keys that a proxy fetched hold so long, as under Istio.
const CACHE: Duration = Duration::from_secs(300);
/// Claims whose text is a list, whoever says so or not.
const LISTS: [&str; 2] = ["scope", "permission"];

/// The token filter of a workload; `None`: nobody asks for one. `reroute`: routes may match on claims.
pub fn of(index: &Index, subject: Subject<'_>, reroute: bool) -> Option<JwtAuthn> {
    let mut rules: Vec<(Name, &Rule)> = Vec::new();
    for (object, policy) in policies(index, subject) {
        rules.extend(policy.jwt_rules.iter().map(|rule| (object.key.namespace.clone(), rule)));
    }
    // As Istio orders them.
    rules.sort_by(|(_, a), (_, b)| a.issuer.cmp(&b.issuer));
    if rules.is_empty() {
        return None;
    }
    let name = |i: usize| Name::from(format!("origins-{i}"));
    let alone = |(i, (_, rule)): (usize, &(Name, &Rule))| match rule.presence {
        JwtPresence::Required => JwtRequirement::Provider(name(i)),
        JwtPresence::Optional => {
            JwtRequirement::Any(vec![JwtRequirement::Provider(name(i)), JwtRequirement::AllowMissing])
        }
    };
    let mut each: Vec<JwtRequirement> = rules.iter().enumerate().map(alone).collect();
    let requires = if each.len() == 1 {
        each.remove(0)
    } else {
        // Issuers may share the place of the token: then one of them is enough.
        let mut any: Vec<JwtRequirement> = (0..rules.len()).map(|i| JwtRequirement::Provider(name(i))).collect();
        any.push(JwtRequirement::All(each));
        JwtRequirement::Any(any)
    };
    let mut providers: Vec<(Name, JwtProvider)> = rules
        .iter()
        .enumerate()
        .map(|(i, (ns, rule))| (name(i), provider(rule, keys(index, ns, rule), reroute)))
        .collect();
    providers.sort_by(|a, b| a.0.cmp(&b.0));
    Some(JwtAuthn {
        providers,
        rules: vec![JwtRule { matches: RouteMatch::any(), requires: Some(requires) }],
        bypass_cors_preflight: true,
        ..JwtAuthn::default()
    })
}

fn policies<'a>(index: &'a Index, subject: Subject<'_>) -> Vec<(&'a Object, &'a RequestAuthentication)> {
    let spec = |o: &'a std::sync::Arc<Object>| match &o.spec {
        Spec::RequestAuthentication(p) => Some((&**o, &**p)),
        _ => None,
    };
    let selected = index.policies(Kind::RequestAuthentication, subject.namespace, subject.labels);
    let mut out: Vec<_> = selected.into_iter().filter_map(spec).collect();
    if let Some(gateway) = subject.gateway {
        let mut attached: Vec<_> = index.objects_in(Kind::RequestAuthentication, subject.namespace).collect();
        attached.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
        let to_it = |(_, p): &(&Object, &RequestAuthentication)| {
            p.target_ref.iter().chain(&p.target_refs).any(|target| is_gateway(target, gateway))
        };
        out.extend(attached.into_iter().filter_map(spec).filter(to_it));
    }
    out
}

/// Keys of a rule of an object in `namespace`.
fn keys(index: &Index, namespace: &str, rule: &Rule) -> JwtKeys {
    let known: Option<Name> = match index.key_origin(namespace, rule) {
        KeyOrigin::Inline(text) => public_keys(text).map(Into::into),
        KeyOrigin::Fetched(source) => index.fetched_keys(&source).map(|keys| Name::from(&**keys)),
        KeyOrigin::Service(entry, port) => {
            let cluster = ClusterName::outbound(&entry.service.key.host, port, "").to_string();
            return JwtKeys::Remote(RemoteKeys {
                uri: rule.jwks_uri.as_str().into(),
                cluster: cluster.into(),
                timeout: fetch_timeout(rule),
                cache: CACHE,
                ahead: true,
                retry_after: Duration::from_secs(1),
            });
        }
    };
    known.map_or_else(|| JwtKeys::Remote(nowhere()), |keys| JwtKeys::Local(DataSource::Inline(keys)))
}

fn provider(rule: &Rule, keys: JwtKeys, reroute: bool) -> JwtProvider {
    let names = |texts: &[String]| texts.iter().map(|t| Name::from(t.as_str())).collect();
    let lower = |text: &str| Name::from(text.to_ascii_lowercase());
    let mut lists: Vec<Name> = LISTS.iter().map(|l| Name::from(*l)).collect();
    for claim in &rule.space_delimited_claims {
        if !lists.iter().any(|l| **l == **claim) {
            lists.push(claim.as_str().into());
        }
    }
    JwtProvider {
        audiences: names(&rule.audiences),
        forward: rule.forward_original_token,
        from_headers: rule.from_headers.iter().map(|h| (lower(&h.name), Name::from(h.prefix.as_str()))).collect(),
        from_params: names(&rule.from_params),
        from_cookies: names(&rule.from_cookies),
        forward_payload_header: lower(&rule.output_payload_to_header),
        payload_in_metadata: PAYLOAD.into(),
        space_delimited_claims: lists,
        claim_to_headers: rule
            .output_claim_to_headers
            .iter()
            .map(|c| (lower(&c.header), Name::from(c.claim.as_str())))
            .collect(),
        clear_route_cache: reroute,
        ..JwtProvider::new(rule.issuer.as_str(), keys)
    }
}

/// Keys that never come: Envoy takes no key set without a key, and a made-up key is none. Whoever brings a token waits
/// for a fetch that fails at once.
fn nowhere() -> RemoteKeys {
    RemoteKeys {
        uri: "http://keys.invalid/".into(),
        cluster: BLACK_HOLE_CLUSTER.into(),
        timeout: Duration::from_secs(1),
        cache: Duration::from_secs(600),
        ahead: false,
        retry_after: Duration::from_secs(1),
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::labels::Labels;

    use super::super::testing::World;
    use super::*;

    fn authn(specs: &[&str], gateway: Option<&str>) -> Option<JwtAuthn> {
        let yaml: String = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                format!(
                    "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r{i}, namespace: shop}}\nspec: {spec}\n"
                )
            })
            .collect();
        let world = World::new(&yaml);
        of(
            world.index(),
            Subject {
                namespace: "shop",
                labels: &Labels::new(),
                gateway,
                side: mesh_api::crd::telemetry::WorkloadMode::Server,
            },
            false,
        )
    }

    #[test]
    fn a_token_that_is_there_must_be_good() {
        assert_eq!(authn(&[], None), None);
        assert_eq!(authn(&["{selector: {matchLabels: {app: other}}, jwtRules: [{issuer: a}]}"], None), None);
        let one = authn(
            &["{jwtRules: [{issuer: a, audiences: [x], fromHeaders: [{name: X-T, prefix: 'T '}], fromParams: [p], fromCookies: [c], forwardOriginalToken: true, outputPayloadToHeader: X-P, outputClaimToHeaders: [{header: X-Sub, claim: sub}], spaceDelimitedClaims: [groups, scope]}]}"],
            None,
        )
        .unwrap();
        let p = JwtRequirement::Provider("origins-0".into());
        assert_eq!(one.rules[0].requires, Some(JwtRequirement::Any(vec![p, JwtRequirement::AllowMissing])));
        let (_, p) = &one.providers[0];
        assert_eq!(p.from_headers, [("x-t".into(), "T ".into())]);
        assert_eq!(p.claim_to_headers, [("x-sub".into(), "sub".into())]);
        assert_eq!((&*p.forward_payload_header, p.forward, p.clear_route_cache), ("x-p", true, false));
        assert_eq!(p.space_delimited_claims, ["scope".into(), "permission".into(), Name::from("groups")]);
        let must = authn(&["{jwtRules: [{issuer: a, presence: REQUIRED}]}"], None).unwrap();
        assert_eq!(must.rules[0].requires, Some(JwtRequirement::Provider("origins-0".into())));
    }

    #[test]
    fn issuers_in_order_and_one_is_enough() {
        let two = authn(&["{jwtRules: [{issuer: b}]}", "{jwtRules: [{issuer: a}]}"], None).unwrap();
        let issuers: Vec<&str> = two.providers.iter().map(|(_, p)| &*p.issuer).collect();
        assert_eq!(issuers, ["a", "b"]);
        let Some(JwtRequirement::Any(any)) = &two.rules[0].requires else { panic!() };
        assert_eq!(any.len(), 3);
        assert!(matches!(&any[2], JwtRequirement::All(each) if each.len() == 2));
    }

    #[test]
    fn gateways_by_reference() {
        let spec =
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}], jwtRules: [{issuer: a}]}";
        assert!(authn(&[spec], Some("gw")).is_some());
        assert_eq!(authn(&[spec], Some("other")), None);
        assert_eq!(authn(&[spec], None), None);
    }
}
