//! What is enforced in the place of a security object that is refused and was never good: it never opens anything.
//!
//! An EnvoyFilter goes on without the patches that cannot be used: what they were to add to others is not taken from
//! these. A PeerAuthentication counts as STRICT, a WasmPlugin or TrafficExtension as one that fails closed. Of an
//! AuthorizationPolicy every part that can be read holds as written; one that cannot never matches in ALLOW and always
//! matches in DENY. Scope is kept as far as it can be told: a typo in a policy for one workload must not become a policy
//! for all. Knows manifests as plain values; no files, no time.

use std::sync::Arc;

use mesh_api::crd::extensions::{TrafficExtension, WasmModule, WasmPlugin};
use mesh_api::crd::networking::{EnvoyFilter, envoy_filter::ConfigPatch};
use mesh_api::crd::security::{
    AuthorizationPolicy, Condition, From, MtlsMode, MutualTls, Operation, PeerAuthentication, PolicyAction, Rule,
    Source, To,
};
use mesh_api::crd::{PolicySelector, TargetRef, gateway_api};
use mesh_api::labels::{DRY_RUN, Labels};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::object::{Kind, Meta, Object, ObjectKey, Position, Spec};
use crate::validate::sound;

/// The strictest form of a refused object. `None`: its kind guards nothing by itself.
pub(super) fn strictest(position: Option<Position>, key: &ObjectKey, raw: &Value) -> Option<Arc<Object>> {
    let empty = Map::new();
    let parts = Parts::of(spec_of(raw).unwrap_or(&empty), key.kind);
    let spec = match key.kind {
        Kind::PeerAuthentication => Spec::PeerAuthentication(Arc::new(PeerAuthentication {
            selector: Scope::of(&parts).selector,
            mtls: Some(MutualTls { mode: MtlsMode::Strict }),
            ..PeerAuthentication::default()
        })),
        Kind::AuthorizationPolicy => Spec::AuthorizationPolicy(Arc::new(authorization_policy(&parts)?)),
        Kind::WasmPlugin => Spec::WasmPlugin(Arc::new(closed_plugin(&parts))),
        Kind::TrafficExtension => Spec::TrafficExtension(Arc::new(closed_extension(&parts))),
        Kind::EnvoyFilter => Spec::EnvoyFilter(Arc::new(sound_patches(spec_of(raw)?)?)),
        _ => return None,
    };
    // Without a time of creation it counts as the oldest, which is the one that holds where only one can.
    let mut meta = Meta::default();
    let dry = raw.get("metadata").and_then(|m| m.get("annotations")?.get(DRY_RUN)).and_then(scalar);
    if dry.as_deref() == Some("true") {
        meta.annotations.insert(DRY_RUN.to_owned(), "true".to_owned());
    }
    Some(Arc::new(Object { key: key.clone(), meta, spec, position }))
}

fn spec_of(raw: &Value) -> Option<&Map<String, Value>> {
    raw.get("spec").and_then(Value::as_object)
}

/// A plugin that refuses whom it is for.
fn closed_plugin(parts: &Parts<'_>) -> WasmPlugin {
    let scope = Scope::of(parts);
    WasmPlugin {
        selector: scope.selector,
        target_ref: scope.target_ref,
        target_refs: scope.target_refs,
        ..WasmPlugin::default()
    }
}

/// The same of an extension.
fn closed_extension(parts: &Parts<'_>) -> TrafficExtension {
    let scope = Scope::of(parts);
    TrafficExtension {
        selector: scope.selector,
        target_refs: scope.target_refs.into_iter().chain(scope.target_ref).collect(),
        wasm: Some(WasmModule::default()),
        ..TrafficExtension::default()
    }
}

/// An EnvoyFilter without the patches that cannot be used; in their places nothing is patched, so that the others keep
/// their numbers. `None`: none is left, or it cannot be told whom they are for.
fn sound_patches(spec: &Map<String, Value>) -> Option<EnvoyFilter> {
    let mut scope = spec.clone();
    let patches = scope.remove("configPatches")?;
    let mut filter = strict::<EnvoyFilter>(&Value::Object(scope)).filter(sound::envoy_filter)?;
    let alone = |patch: &Value| strict::<ConfigPatch>(patch).filter(sound::config_patch).unwrap_or_default();
    filter.config_patches = patches.as_array()?.iter().map(alone).collect();
    filter.config_patches.iter().any(|p| p.patch.is_some()).then_some(filter)
}

/// Fields of a spec; one whose name is misspelt counts as what it looks like.
struct Parts<'a> {
    known: Vec<(&'static str, &'a Value)>,
    /// Something is there that looks like nothing that is known.
    odd: bool,
    /// It may have said whom the policy is for.
    odd_object: bool,
    /// One of them is a word.
    odd_text: bool,
}

impl<'a> Parts<'a> {
    fn of(spec: &'a Map<String, Value>, kind: Kind) -> Self {
        const POLICY: &[&str] = &["selector", "targetRef", "targetRefs", "rules", "action", "provider"];
        const PEERS: &[&str] = &["selector", "mtls", "portLevelMtls"];
        const EXTENSION: &[&str] =
            &["selector", "targetRef", "targetRefs", "match", "pluginConfig", "vmConfig", "wasm"];
        let names = match kind {
            Kind::PeerAuthentication => PEERS,
            Kind::WasmPlugin | Kind::TrafficExtension => EXTENSION,
            _ => POLICY,
        };
        let mut known: Vec<(&'static str, &'a Value)> =
            names.iter().filter_map(|name| Some((*name, spec.get(*name)?))).collect();
        let (mut odd, mut odd_object, mut odd_text) = (false, false, false);
        for (_, value) in spec.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
            match looks_like(value).filter(|n| names.contains(n) && !known.iter().any(|(k, _)| k == n)) {
                Some(name) => known.push((name, value)),
                None => {
                    odd = true;
                    odd_object |= value.is_object();
                    odd_text |= value.is_string();
                }
            }
        }
        Self { known, odd, odd_object, odd_text }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

fn looks_like(value: &Value) -> Option<&'static str> {
    let is_target = |v: &Value| target(v).is_some();
    match value {
        Value::Array(items) if !items.is_empty() && items.iter().all(is_target) => Some("targetRefs"),
        Value::Array(_) => Some("rules"),
        Value::String(text) => action(text).map(|_| "action"),
        _ if is_target(value) => Some("targetRef"),
        _ => labels(value, false).map(|_| "selector"),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// Whom a policy is for.
#[derive(Default)]
struct Scope {
    selector: Option<PolicySelector>,
    target_ref: Option<TargetRef>,
    target_refs: Vec<TargetRef>,
    /// It cannot be told, so it is for everybody.
    unknown: bool,
}

impl Scope {
    fn of(parts: &Parts<'_>) -> Self {
        let everybody = || Self { unknown: true, ..Self::default() };
        match (parts.get("selector"), parts.get("targetRef"), parts.get("targetRefs")) {
            (None, None, None) => Self { unknown: parts.odd_object, ..Self::default() },
            (Some(value), None, None) => match labels(value, true) {
                Some(match_labels) => Self {
                    selector: Some(PolicySelector { match_labels }),
                    // Of two parts one narrows what the other says, and only one is read.
                    unknown: parts.odd_object
                        || value.as_object().is_some_and(|m| m.len() > 1 && m.values().any(Value::is_object)),
                    ..Self::default()
                },
                None => everybody(),
            },
            (None, Some(one), None) => match target(one) {
                Some(one) => Self { target_ref: Some(one), ..Self::default() },
                None => everybody(),
            },
            (None, None, Some(Value::Array(many))) => match many.iter().map(target).collect() {
                Some(target_refs) => Self { target_refs, ..Self::default() },
                None => everybody(),
            },
            // They exclude each other: nobody can tell which was meant.
            _ => everybody(),
        }
    }
}

/// Labels of a selector, whatever the field around them is called; `bare`: they may stand without one.
fn labels(selector: &Value, bare: bool) -> Option<Labels> {
    let map = selector.as_object()?;
    if bare && map.is_empty() {
        return Some(Labels::new());
    }
    let named = map.get("matchLabels").and_then(Value::as_object);
    let labels = match named.or_else(|| map.values().find_map(Value::as_object)) {
        Some(inner) => inner,
        None if bare => map,
        None => return None,
    };
    let read: Option<Labels> = labels.iter().map(|(k, v)| Some((k.clone(), scalar(v)?))).collect();
    // A label that cannot exist would select nobody.
    read.filter(sound::labels)
}

fn target(value: &Value) -> Option<TargetRef> {
    let text = |field: &str| value.get(field).and_then(scalar).filter(|t| !t.is_empty());
    let (kind, name) = (text("kind")?, text("name")?);
    let group = if kind == "Gateway" { gateway_api::GROUP.to_owned() } else { text("group").unwrap_or_default() };
    Some(TargetRef { group, kind, name, namespace: text("namespace").unwrap_or_default() })
}

fn action(text: &str) -> Option<PolicyAction> {
    Some(match text.to_ascii_uppercase().as_str() {
        "ALLOW" => PolicyAction::Allow,
        "DENY" => PolicyAction::Deny,
        "AUDIT" => PolicyAction::Audit,
        "CUSTOM" => PolicyAction::Custom,
        _ => return None,
    })
}

fn authorization_policy(parts: &Parts<'_>) -> Option<AuthorizationPolicy> {
    let scope = Scope::of(parts);
    let everything = || Some(vec![Rule::default()]);
    let action = match parts.get("action") {
        // It may be the action, misspelt twice.
        None if parts.odd_text => None,
        None => Some(PolicyAction::Allow),
        Some(value) => value.as_str().and_then(action),
    };
    let (action, rules) = match action {
        Some(PolicyAction::Audit) => return None,
        // For workloads that it was not meant for an ALLOW would open what other policies keep closed.
        Some(PolicyAction::Allow) if scope.unknown => (PolicyAction::Allow, None),
        Some(PolicyAction::Allow) => (PolicyAction::Allow, rules(parts.get("rules"), false)),
        // CUSTOM refuses what nobody can be asked about.
        Some(PolicyAction::Deny | PolicyAction::Custom) => {
            let lost = parts.odd && parts.get("rules").is_none();
            (PolicyAction::Deny, if lost { everything() } else { rules(parts.get("rules"), true) })
        }
        None => (PolicyAction::Deny, everything()),
    };
    let Scope { selector, target_ref, target_refs, .. } = scope;
    Some(AuthorizationPolicy { selector, target_ref, target_refs, rules, action, provider: None })
}

fn rules(raw: Option<&Value>, deny: bool) -> Option<Vec<Rule>> {
    match raw? {
        Value::Array(rules) => Some(rules.iter().filter_map(|r| rule(r, deny)).collect()),
        _ => deny.then(|| vec![Rule::default()]),
    }
}

/// `None`: it never matches.
fn rule(raw: &Value, deny: bool) -> Option<Rule> {
    let Some(map) = raw.as_object() else { return deny.then(Rule::default) };
    if !deny && map.keys().any(|k| !matches!(k.as_str(), "from" | "to" | "when")) {
        return None;
    }
    let from = any_of(map.get("from"), "source", deny, sound::source).ok()?;
    let to = any_of(map.get("to"), "operation", deny, sound::operation).ok()?;
    let mut when = Vec::new();
    match map.get("when") {
        None => {}
        Some(Value::Array(all)) => {
            for condition in all {
                match strict::<Condition>(condition).filter(sound::condition) {
                    Some(condition) => when.push(condition),
                    None if deny => {}
                    None => return None,
                }
            }
        }
        Some(_) if deny => {}
        Some(_) => return None,
    }
    let source = |source: Source| From { source: Some(source) };
    let operation = |operation: Operation| To { operation: Some(operation) };
    Some(Rule {
        from: from.map(|all| all.into_iter().map(source).collect()),
        to: to.map(|all| all.into_iter().map(operation).collect()),
        when,
    })
}

/// No part of the list matches.
struct Never;

/// Parts of a list of which one must match; `Ok(None)`: nothing is asked.
fn any_of<T: DeserializeOwned>(
    raw: Option<&Value>,
    field: &str,
    deny: bool,
    sound: impl Fn(&T) -> bool,
) -> Result<Option<Vec<T>>, Never> {
    let unreadable = || if deny { Ok(None) } else { Err(Never) };
    let items = match raw {
        None => return Ok(None),
        Some(Value::Array(items)) if items.is_empty() => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(_) => return unreadable(),
    };
    let mut out = Vec::new();
    for item in items {
        let only = item.as_object().filter(|map| map.len() == 1 || deny).and_then(|map| map.get(field));
        match only.and_then(|part| readable(part, deny, &sound)) {
            Some(part) => out.push(part),
            None if deny => return Ok(None),
            None => {}
        }
    }
    if out.is_empty() { Err(Never) } else { Ok(Some(out)) }
}

/// A part all of whose fields must hold. In DENY a field that cannot be read falls away, so that more is denied.
fn readable<T: DeserializeOwned>(raw: &Value, deny: bool, sound: impl Fn(&T) -> bool) -> Option<T> {
    if let Some(whole) = strict::<T>(raw).filter(&sound) {
        return Some(whole);
    }
    if !deny {
        return None;
    }
    let alone = |name: &String, value: &Value| Value::Object(Map::from_iter([(name.clone(), value.clone())]));
    let good = raw.as_object()?.iter().filter(|(k, v)| strict::<T>(&alone(k, v)).is_some_and(|t| sound(&t)));
    strict::<T>(&Value::Object(good.map(|(k, v)| (k.clone(), v.clone())).collect())).filter(sound)
}

/// Decodes; an unknown field is an error.
fn strict<T: DeserializeOwned>(value: &Value) -> Option<T> {
    let mut unknown = false;
    let read = serde_ignored::deserialize(value, |_| unknown = true).ok()?;
    (!unknown).then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> AuthorizationPolicy {
        let raw: Value = mesh_api::yaml::from_str(&format!("spec: {spec}")).unwrap();
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p");
        match &strictest(None, &key, &raw).unwrap().spec {
            Spec::AuthorizationPolicy(p) => (**p).clone(),
            other => panic!("{other:?}"),
        }
    }

    fn rules(yaml: &str) -> Option<Vec<Rule>> {
        Some(mesh_api::yaml::from_str(yaml).unwrap())
    }

    #[test]
    fn scope_is_kept() {
        let p = policy(
            "{action: DENY, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gw}], rules: [{too: []}]}",
        );
        assert_eq!((p.target_refs.len(), p.selector), (1, None));
        let p = policy("{action: DENY, targetRef: {group: x, kind: Gateway, name: gw}, rules: 5}");
        assert_eq!(p.target_ref.unwrap().group, gateway_api::GROUP);
        for selector in [
            "selector: {matchLabels: {app: web, v: 1}}",
            "selecter: {matchLabels: {app: web, v: 1}}",
            "selector: {matchLabel: {app: web, v: 1}}",
            "selector: {app: web, v: 1}",
        ] {
            let labels = policy(&format!("{{action: DENY, {selector}, rules: [{{}}]}}")).selector.unwrap().match_labels;
            assert_eq!((labels["app"].as_str(), labels["v"].as_str()), ("web", "1"), "{selector}");
        }
    }

    #[test]
    fn of_two_parts_of_a_selector_the_labels_count_and_nothing_is_allowed() {
        for selector in [
            "selector: {extra: {team: a}, matchLabels: {app: web}}",
            "selector: {annotations: {}, matchLabels: {app: web}}",
            "selector: {matchLabels: {app: web}, matchExpressions: {key: v}}",
            "selector: {matchLabels: {app: web}}, selectors: {other: 5}",
        ] {
            let deny = policy(&format!("{{action: DENY, {selector}, rules: [{{}}]}}"));
            assert_eq!(deny.selector.unwrap().match_labels["app"], "web", "{selector}");
            assert_eq!(deny.rules, rules("[{}]"), "{selector}");
            let allow = policy(&format!("{{{selector}, rules: [{{}}]}}"));
            assert_eq!((allow.action, allow.rules), (PolicyAction::Allow, None), "{selector}");
        }
    }

    #[test]
    fn a_scope_that_cannot_be_told_is_everybody_and_allows_nothing() {
        for scope in ["selector: 5", "selector: {matchLabels: {app: 'web*'}}", "selecter: {matchLabels: 5}"] {
            let p = policy(&format!("{{{scope}, rules: [{{}}]}}"));
            assert_eq!((p.action, p.rules, p.selector), (PolicyAction::Allow, None, None), "{scope}");
            let p = policy(&format!("{{action: DENY, {scope}, rules: [{{to: [{{operation: {{ports: ['80']}}}}]}}]}}"));
            assert_eq!(p.rules, rules("[{to: [{operation: {ports: ['80']}}]}]"), "{scope}");
        }
    }

    #[test]
    fn the_unreadable_part_never_matches_in_allow() {
        let p = policy(
            "{rules: [{from: [{source: {namespaces: [a]}}, {source: {ipBlocks: [x]}}]}, {when: [{key: nonsense, values: [a]}]}, {form: []}, {from: [{source: {}}]}, {to: [{operation: {paths: [/b]}}]}]}",
        );
        assert_eq!(
            p.rules,
            rules("[{from: [{source: {namespaces: [a]}}]}, {to: [{operation: {paths: [/b]}}]}]"),
            "what can be read holds as written"
        );
    }

    #[test]
    fn the_unreadable_part_always_matches_in_deny() {
        let p = policy(
            "{action: deny, rules: [{from: [{source: {namespaces: [a], ipBlocks: [x]}}], to: [{operation: {path: [/a]}}]}, {when: [{key: nonsense, values: [a]}, {key: source.ip, values: [10.0.0.1]}]}, 5]}",
        );
        assert_eq!(
            p.rules,
            rules("[{from: [{source: {namespaces: [a]}}]}, {when: [{key: source.ip, values: [10.0.0.1]}]}, {}]")
        );
        assert_eq!(policy("{action: DENY, rulez: [{to: [{operation: {ports: ['80']}}]}]}").rules.unwrap().len(), 1);
        assert_eq!(policy("{action: DENY, foo: 5}").rules, rules("[{}]"));
    }

    #[test]
    fn an_action_that_cannot_be_read_denies() {
        assert_eq!(policy("{action: DENNY, rules: []}").rules, rules("[{}]"));
        assert_eq!(policy("{acton: DENY, rules: []}").action, PolicyAction::Deny);
        for twice in ["acton: DENNY", "mode: block"] {
            let p = policy(&format!("{{{twice}, rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}"));
            assert_eq!((p.action, p.rules), (PolicyAction::Deny, rules("[{}]")), "{twice}");
        }
    }

    #[test]
    fn what_is_only_tried_stays_so() {
        let raw = serde_json::json!({"metadata": {"annotations": {DRY_RUN: "true"}}, "spec": {"action": "DENY"}});
        let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p");
        let object = strictest(None, &key, &raw).unwrap();
        assert_eq!(object.meta.annotations[DRY_RUN], "true");
    }
}
