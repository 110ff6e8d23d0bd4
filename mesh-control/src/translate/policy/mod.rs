//! AuthorizationPolicies as RBAC filters of a workload.
//!
//! Owns which policies hold, their actions and order (CUSTOM, AUDIT, DENY, ALLOW), and the safe side: what cannot be
//! expressed never matches in ALLOW and always matches in DENY. Must not know listeners. What one condition means
//! stands in [`condition`].

mod condition;
mod provider;

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::{
    crd::{
        extensions::TrafficSelector,
        gateway_api,
        security::{self as crd, PolicyAction},
        telemetry::WorkloadMode,
    },
    labels::{DRY_RUN, Labels},
    model::{ExtAuthz, Name, Permission, Policy, Principal, Rbac, RbacAction, RbacFilter},
};

use self::condition::{Condition, Side, TrustDomains};
use super::gateway_infrastructure::label_value;
use crate::{
    index::{Index, extensions::Refusal},
    source::object::{Kind, Object, Spec},
};

/// RBAC of a workload, for HTTP and for TCP chains.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Authorization {
    /// CUSTOM, for requests: asked before anything else.
    pub custom_http: Vec<Guard>,
    /// CUSTOM, for connections.
    pub custom_tcp: Vec<Guard>,
    /// For requests.
    pub http: Vec<RbacFilter>,
    /// For connections.
    pub tcp: Vec<RbacFilter>,
}

/// A filter of CUSTOM policies.
#[derive(Debug, Clone, PartialEq)]
pub enum Guard {
    /// Says which requests are asked about, or refuses them when nobody can be asked.
    Rbac(RbacFilter),
    /// Asks.
    Ask(Box<ExtAuthz>),
}

/// Whom policies are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Namespace of the workload.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Gateway of Gateway API that it implements, in the same namespace.
    pub gateway: Option<&'a str>,
    /// Its traffic as extensions see it: of sidecars what comes in, of gateways what goes out.
    pub side: WorkloadMode,
}

impl Authorization {
    /// All policies that hold for a workload.
    pub fn of(index: &Index, subject: Subject<'_>) -> Self {
        let policies = policies(index, subject);
        if policies.is_empty() {
            return Self::default();
        }
        let mut domains: Vec<&str> = vec![index.trust_domain()];
        domains.extend(index.mesh().trust_domain_aliases.iter().map(String::as_str));
        let domains = TrustDomains::new(&domains);
        Self {
            custom_http: custom(index, &policies, &domains, Side::Http),
            custom_tcp: custom(index, &policies, &domains, Side::Tcp),
            http: filters(&policies, &domains, Side::Http),
            tcp: filters(&policies, &domains, Side::Tcp),
        }
    }

    /// Nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.tcp.is_empty() && self.custom_http.is_empty() && self.custom_tcp.is_empty()
    }
}

pub use provider::services as authorizers;

/// A policy with the object it stands in.
type Entry = (Arc<Object>, Arc<crd::AuthorizationPolicy>);

fn policies(index: &Index, subject: Subject<'_>) -> Vec<Entry> {
    let mut out: Vec<Entry> = index
        .policies(Kind::AuthorizationPolicy, subject.namespace, subject.labels)
        .into_iter()
        .filter_map(entry)
        .collect();
    out.extend(refusals(index, subject));
    let Some(gateway) = subject.gateway else { return out };
    let mut attached: Vec<Entry> = index
        .objects_in(Kind::AuthorizationPolicy, subject.namespace)
        .filter_map(entry)
        .filter(|(_, p)| p.target_ref.iter().chain(&p.target_refs).any(|t| is_gateway(t, gateway)))
        .collect();
    attached.sort_by(|a, b| a.0.age_order().cmp(&b.0.age_order()));
    out.extend(attached);
    out
}

/// Extensions that refuse, as policies that deny.
fn refusals(index: &Index, subject: Subject<'_>) -> impl Iterator<Item = Entry> {
    let is_target = |t: &mesh_api::crd::TargetRef| subject.gateway.is_some_and(|gateway| is_gateway(t, gateway));
    let objects = index.refusing_extensions(subject.namespace, subject.labels, is_target);
    objects.into_iter().filter_map(move |object| {
        let rules = denied(Refusal::of(&object)?.matches, subject.side)?;
        let policy = crd::AuthorizationPolicy { action: PolicyAction::Deny, rules: Some(rules), ..Default::default() };
        Some((object, Arc::new(policy)))
    })
}

/// What is denied of the traffic of a side; `None`: nothing.
fn denied(matches: &[TrafficSelector], side: WorkloadMode) -> Option<Vec<crd::Rule>> {
    if matches.is_empty() {
        return Some(vec![crd::Rule::default()]);
    }
    let here = matches.iter().filter(|m| m.mode.is_none_or(|mode| mode.covers(side)));
    let rules: Vec<crd::Rule> = here
        .map(|m| {
            let ports: Vec<String> = m.ports.iter().map(|p| p.number.to_string()).collect();
            let operation = crd::Operation { ports, ..Default::default() };
            let to = (!m.ports.is_empty()).then(|| vec![crd::To { operation: Some(operation) }]);
            crd::Rule { to, ..Default::default() }
        })
        .collect();
    (!rules.is_empty()).then_some(rules)
}

fn entry(object: &Arc<Object>) -> Option<Entry> {
    match &object.spec {
        Spec::AuthorizationPolicy(p) => Some((object.clone(), p.clone())),
        _ => None,
    }
}

/// Whether a policy is attached to this Gateway of its namespace.
pub fn is_gateway(target: &mesh_api::crd::TargetRef, gateway: &str) -> bool {
    target.group == gateway_api::GROUP && target.kind == "Gateway" && label_value(&target.name) == gateway
}

fn filters(policies: &[Entry], domains: &TrustDomains, side: Side) -> Vec<RbacFilter> {
    let order = [
        (PolicyAction::Audit, RbacAction::Log, "audit"),
        (PolicyAction::Deny, RbacAction::Deny, "deny"),
        (PolicyAction::Allow, RbacAction::Allow, "allow"),
    ];
    order.into_iter().filter_map(|(of, action, word)| filter(policies, of, action, word, domains, side)).collect()
}

/// Whether a policy is only to be tried.
pub fn is_dry(object: &Object) -> bool {
    let word = object.meta.annotations.get(DRY_RUN).map(String::as_str);
    matches!(word, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Filters of CUSTOM policies, by provider: shadow rules, which tell what is to be asked about, and who asks. Rules whose
/// provider is not to be had refuse. A policy that is only tried asks nobody: an authorizer may act upon a question.
fn custom(index: &Index, policies: &[Entry], domains: &TrustDomains, side: Side) -> Vec<Guard> {
    let mut by_provider: BTreeMap<&str, Vec<Policy>> = BTreeMap::new();
    for (object, policy) in policies.iter().filter(|(o, p)| p.action == PolicyAction::Custom && !is_dry(o)) {
        let provider = policy.provider.as_ref().map_or("", |p| p.name.as_str());
        let named = rules(object, policy, RbacAction::Deny, domains, side)
            .into_iter()
            .map(|p| Policy { name: format!("{}{}", provider::mark(provider), p.name).into(), ..p });
        by_provider.entry(provider).or_default().extend(named);
    }
    let mut out = Vec::new();
    for (name, policies) in by_provider {
        let rbac = |policies| Some(Rbac { action: RbacAction::Deny, policies: sorted(policies) });
        let stat_prefix: Name = if side == Side::Tcp { "tcp.".into() } else { "".into() };
        match provider::resolve(index, name, side) {
            provider::Resolved::Ask(ask) => {
                let shadow_prefix = provider::SHADOW_PREFIX.into();
                let shadow_rules = rbac(policies);
                out.push(Guard::Rbac(RbacFilter { stat_prefix, rules: None, shadow_rules, shadow_prefix }));
                out.push(Guard::Ask(ask));
            }
            provider::Resolved::NotHere => {}
            provider::Resolved::Missing => {
                let refuse = |p: Policy| Policy { name: format!("{}{}", p.name, provider::BAD).into(), ..p };
                let rules = rbac(policies.into_iter().map(refuse).collect());
                out.push(Guard::Rbac(RbacFilter { stat_prefix, rules, ..RbacFilter::default() }));
            }
        }
    }
    out
}

fn filter(
    policies: &[Entry],
    of: PolicyAction,
    action: RbacAction,
    word: &str,
    domains: &TrustDomains,
    side: Side,
) -> Option<RbacFilter> {
    let mut enforced: Option<Vec<Policy>> = None;
    let mut shadow: Option<Vec<Policy>> = None;
    for (object, policy) in policies.iter().filter(|(_, p)| p.action == of) {
        let dry = is_dry(object);
        // A policy without a usable rule still turns ALLOW into "nothing else".
        let slot = if dry { &mut shadow } else { &mut enforced }.get_or_insert_default();
        slot.extend(rules(object, policy, action, domains, side));
    }
    if enforced.is_none() && shadow.is_none() {
        return None;
    }
    let rbac = |policies: Option<Vec<Policy>>| policies.map(|policies| Rbac { action, policies: sorted(policies) });
    let shadow_prefix: Name = if shadow.is_some() { format!("istio_dry_run_{word}_").into() } else { Name::from("") };
    let stat_prefix: Name = if side == Side::Tcp { "tcp.".into() } else { "".into() };
    Some(RbacFilter { stat_prefix, rules: rbac(enforced), shadow_rules: rbac(shadow), shadow_prefix })
}

fn sorted(mut policies: Vec<Policy>) -> Vec<Policy> {
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    policies
}

fn rules(
    object: &Object,
    policy: &crd::AuthorizationPolicy,
    action: RbacAction,
    domains: &TrustDomains,
    side: Side,
) -> Vec<Policy> {
    let key = &object.key;
    let name = |i: usize| Name::from(format!("ns[{}]-policy[{}]-rule[{i}]", key.namespace, key.name));
    let rules = policy.rules.as_deref().unwrap_or_default();
    if rules.is_empty() {
        // Matches nothing, but shows in dumps which policy it is.
        return vec![Policy {
            name: name(0),
            permissions: vec![Permission::Not(Box::new(Permission::Any))],
            principals: vec![Principal::Not(Box::new(Principal::Any))],
        }];
    }
    let reader = Reader { namespace: &key.namespace, domains, side, deny: action != RbacAction::Allow };
    rules.iter().enumerate().filter_map(|(i, rule)| reader.rule(rule, name(i))).collect()
}

/// Reads the rules of one policy.
struct Reader<'a> {
    namespace: &'a str,
    domains: &'a TrustDomains,
    side: Side,
    /// Not ALLOW: what cannot be expressed widens the rule instead of dropping it.
    deny: bool,
}

/// A rule holds a condition that cannot be expressed.
struct Unusable;

impl Reader<'_> {
    fn rule(&self, rule: &crd::Rule, name: Name) -> Option<Policy> {
        let mut when = Vec::new();
        for c in &rule.when {
            match Condition::of_key(&c.key) {
                Some(condition) => when.push((condition, &c.values, &c.not_values)),
                None if self.deny => {}
                None => return None,
            }
        }
        let sources: Vec<Vec<_>> = match &rule.from {
            Some(from) if !from.is_empty() => {
                from.iter().map(|f| f.source.as_ref().map_or(vec![], source_conditions)).collect()
            }
            _ => vec![vec![]],
        };
        let operations: Vec<Vec<_>> = match &rule.to {
            Some(to) if !to.is_empty() => {
                to.iter().map(|t| t.operation.as_ref().map_or(vec![], operation_conditions)).collect()
            }
            _ => vec![vec![]],
        };
        // A source or operation that cannot be expressed is none; when none is left the rule matches nothing.
        let principals: Vec<Principal> =
            sources.into_iter().filter_map(|list| self.principal(&[list, when.clone()].concat()).ok()).collect();
        let permissions: Vec<Permission> =
            operations.into_iter().filter_map(|list| self.permission(&[list, when.clone()].concat()).ok()).collect();
        (!principals.is_empty() && !permissions.is_empty()).then_some(Policy { name, permissions, principals })
    }

    fn permission(&self, conditions: &[Listed<'_>]) -> Result<Permission, Unusable> {
        let mut all = Vec::new();
        for (condition, values, not_values) in conditions {
            let read = |v: &str| condition.permission(v, self.side);
            all.extend(self.one_of(values, read)?.map(Permission::Or));
            all.extend(self.one_of(not_values, read)?.map(|v| Permission::Not(Box::new(Permission::Or(v)))));
        }
        Ok(if all.is_empty() { Permission::Any } else { Permission::And(all) })
    }

    fn principal(&self, conditions: &[Listed<'_>]) -> Result<Principal, Unusable> {
        let mut all = Vec::new();
        for (condition, values, not_values) in conditions {
            let read = |v: &str| condition.principal(v, self.side, self.namespace, self.domains);
            all.extend(self.one_of(values, read)?.map(Principal::Or));
            all.extend(self.one_of(not_values, read)?.map(|v| Principal::Not(Box::new(Principal::Or(v)))));
        }
        Ok(if all.is_empty() { Principal::Any } else { Principal::And(all) })
    }

    /// Values of a list; `None`: nothing to ask here.
    fn one_of<T>(
        &self,
        values: &[String],
        read: impl Fn(&str) -> Result<Option<Vec<T>>, condition::Unsupported>,
    ) -> Result<Option<Vec<T>>, Unusable> {
        let mut out = Vec::new();
        for value in values {
            match read(value) {
                Ok(Some(more)) => out.extend(more),
                Ok(None) => return Ok(None),
                // In DENY the whole condition falls away, so that more is denied, never less.
                Err(_) if self.deny => return Ok(None),
                Err(_) => return Err(Unusable),
            }
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

/// A condition with the values of which one must hold, and those of which none may.
type Listed<'a> = (Condition<'a>, &'a Vec<String>, &'a Vec<String>);

fn source_conditions(s: &crd::Source) -> Vec<Listed<'_>> {
    use Condition as C;
    let all = [
        (C::SourcePrincipal, &s.principals, &s.not_principals),
        (C::RequestPrincipal, &s.request_principals, &s.not_request_principals),
        (C::SourceNamespace, &s.namespaces, &s.not_namespaces),
        (C::SourceServiceAccount, &s.service_accounts, &s.not_service_accounts),
        (C::SourceTrustDomain, &s.trust_domains, &s.not_trust_domains),
        (C::SourceIp, &s.ip_blocks, &s.not_ip_blocks),
        (C::RemoteIp, &s.remote_ip_blocks, &s.not_remote_ip_blocks),
    ];
    given(all)
}

fn operation_conditions(o: &crd::Operation) -> Vec<Listed<'_>> {
    use Condition as C;
    let all = [
        (C::Host, &o.hosts, &o.not_hosts),
        (C::DestinationPort, &o.ports, &o.not_ports),
        (C::Method, &o.methods, &o.not_methods),
        (C::Path, &o.paths, &o.not_paths),
    ];
    given(all)
}

fn given<'a, const N: usize>(all: [Listed<'a>; N]) -> Vec<Listed<'a>> {
    all.into_iter().filter(|(_, values, not_values)| !values.is_empty() || !not_values.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use mesh_api::model::{HeaderMatcher, HeaderValueMatch, StringMatcher};

    use super::super::testing::World;
    use super::*;

    const SHOP: Subject<'_> =
        Subject { namespace: "shop", labels: &Labels::new(), gateway: None, side: WorkloadMode::Server };

    #[test]
    fn extensions_that_fail_closed_deny() {
        let plugin = |spec: &str| {
            let yaml = format!(
                "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {{name: w, namespace: shop}}\nspec: {spec}\n"
            );
            Authorization::of(World::new(&yaml).index(), SHOP)
        };
        let all = plugin("{url: 'oci://a'}");
        assert_eq!(only(&all.http).policies[0].permissions, [Permission::Any]);
        assert_eq!(
            (only(&all.tcp).action, &*only(&all.http).policies[0].name),
            (RbacAction::Deny, "ns[shop]-policy[w]-rule[0]")
        );
        assert!(plugin("{url: 'oci://a', failStrategy: FAIL_OPEN}").is_empty());
        assert!(plugin("{url: 'oci://a', match: [{mode: CLIENT}]}").is_empty());
        let port = plugin("{url: 'oci://a', match: [{mode: SERVER, ports: [{number: 80}]}]}");
        assert_eq!(
            only(&port.http).policies[0].permissions,
            [Permission::And(vec![Permission::Or(vec![Permission::DestinationPort(80)])])]
        );
        assert!(plugin("{url: 'oci://a', selector: {matchLabels: {app: other}}}").is_empty());
    }

    fn authorization(specs: &[&str]) -> Authorization {
        let yaml: String = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                format!(
                    "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{i}, namespace: shop}}\nspec: {spec}\n"
                )
            })
            .collect();
        let world = World::new(&yaml);
        Authorization::of(world.index(), SHOP)
    }

    fn only(filters: &[RbacFilter]) -> &Rbac {
        assert_eq!(filters.len(), 1);
        filters[0].rules.as_ref().unwrap()
    }

    #[test]
    fn nothing_asked_without_policies() {
        assert!(authorization(&[]).is_empty());
    }

    #[test]
    fn an_empty_spec_denies_all_and_an_empty_rule_allows_all() {
        let none = authorization(&["{}"]);
        let rbac = only(&none.http);
        assert_eq!(rbac.action, RbacAction::Allow);
        assert_eq!(rbac.policies[0].permissions, [Permission::Not(Box::new(Permission::Any))]);
        let all = authorization(&["{rules: [{}]}"]);
        assert_eq!(only(&all.tcp).policies[0].principals, [Principal::Any]);
    }

    #[test]
    fn identities_paths_and_methods() {
        let a = authorization(&[
            "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web], namespaces: [bank]}}], to: [{operation: {methods: [GET], paths: [/a*], ports: ['8080']}}], when: [{key: 'request.headers[X-V]', notValues: [v1]}]}]}",
        ]);
        let policy = &only(&a.http).policies[0];
        assert_eq!(&*policy.name, "ns[shop]-policy[p0]-rule[0]");
        let header = |name: &str, value: &str| HeaderMatcher {
            name: name.into(),
            value: HeaderValueMatch::String(StringMatcher::exact(value)),
            invert: false,
            treat_missing_as_empty: false,
        };
        assert_eq!(
            policy.permissions,
            [Permission::And(vec![
                Permission::Or(vec![Permission::DestinationPort(8080)]),
                Permission::Or(vec![Permission::Header(header(":method", "GET"))]),
                Permission::Or(vec![Permission::UrlPath(StringMatcher::prefix("/a"))]),
            ])]
        );
        let identity = |m| Principal::Or(vec![Principal::Authenticated(Some(m))]);
        assert_eq!(
            policy.principals,
            [Principal::And(vec![
                identity(StringMatcher::exact("spiffe://cluster.local/ns/shop/sa/web")),
                identity(StringMatcher::regex(".*/ns/bank/.*")),
                Principal::Not(Box::new(Principal::Or(vec![Principal::Header(header("x-v", "v1"))]))),
            ])]
        );
    }

    #[test]
    fn http_fields_on_tcp_narrow_allow_and_widen_deny() {
        let allow = authorization(&["{rules: [{to: [{operation: {paths: [/a]}}, {operation: {ports: ['80']}}]}]}"]);
        let policy = &only(&allow.tcp).policies[0];
        assert_eq!(policy.permissions, [Permission::And(vec![Permission::Or(vec![Permission::DestinationPort(80)])])]);
        let nothing = authorization(&["{rules: [{to: [{operation: {paths: [/a]}}]}]}"]);
        assert!(only(&nothing.tcp).policies.is_empty(), "ALLOW without a rule refuses everything");
        let deny = authorization(&["{action: DENY, rules: [{to: [{operation: {paths: [/a], ports: ['80']}}]}]}"]);
        let policy = &only(&deny.tcp).policies[0];
        assert_eq!(policy.permissions, [Permission::And(vec![Permission::Or(vec![Permission::DestinationPort(80)])])]);
    }

    #[test]
    fn order_of_actions_and_dry_run() {
        let yaml = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: dry, namespace: shop, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: DENY, rules: [{}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: custom, namespace: shop}\nspec: {action: CUSTOM, provider: {name: ext}, rules: [{to: [{operation: {paths: [/admin]}}]}]}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: mesh, namespace: istio-system}\nspec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}\n";
        let world = World::new(yaml);
        let a = Authorization::of(world.index(), SHOP);
        assert_eq!((a.http.len(), a.custom_http.len()), (2, 1));
        let Guard::Rbac(bad) = &a.custom_http[0] else { panic!("CUSTOM without a provider refuses") };
        let bad = bad.rules.as_ref().unwrap();
        let name = "istio-ext-authz-ext-ns[shop]-policy[custom]-rule[0]-deny-due-to-bad-CUSTOM-action";
        assert_eq!((bad.action, &*bad.policies[0].name), (RbacAction::Deny, name));
        assert_eq!((a.http[0].rules.is_none(), &*a.http[0].shadow_prefix), (true, "istio_dry_run_deny_"));
        assert_eq!(&*a.http[1].rules.as_ref().unwrap().policies[0].name, "ns[istio-system]-policy[mesh]-rule[0]");
    }

    #[test]
    fn aliases_stand_for_the_trust_domain() {
        let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomainAliases: [old.test]'}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}\n";
        let world = World::new(yaml);
        let a = Authorization::of(world.index(), SHOP);
        let Principal::And(all) = &only(&a.http).policies[0].principals[0] else { panic!() };
        let Principal::Or(ids) = &all[0] else { panic!() };
        assert_eq!(ids.len(), 2);
        assert_eq!(ids[1], Principal::Authenticated(Some(StringMatcher::exact("spiffe://old.test/ns/a/sa/b"))));
    }
}
