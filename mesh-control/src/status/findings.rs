//! Statuses of Istio's own kinds: what is found wrong with an object, where its author looks.
//!
//! `validationMessages` are Istio's, codes without words. The words stand in two conditions: `Accepted` (this version is
//! in force) and `Degraded` (something about it does not work as it stands). An object with nothing to say has no status,
//! as under Istio: a mesh of thousands of objects costs the API server no writes.
//!
//! Pure. Must not know how findings come about, nor an API server.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use crate::{
    source::{
        object::{Kind, ObjectKey},
        status::SourceStatus,
    },
    validate::{Finding, Level, codes},
};

/// Longest text of a condition, more or less, in characters; the API server permits 32 KiB.
const LONGEST: usize = 2048;

/// Kinds whose statuses these are.
pub(super) fn kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.group().ends_with(".istio.io"))
}

/// Whether a status that an object has is one of these, and says something.
pub(super) fn says_something(status: &Value) -> bool {
    let listed = |field: &str| status.get(field).and_then(Value::as_array).into_iter().flatten();
    let bad = |condition: &Value| match condition.get("type").and_then(Value::as_str) {
        Some("Accepted") => condition.get("status").and_then(Value::as_str) == Some("False"),
        Some("Degraded") => condition.get("status").and_then(Value::as_str) == Some("True"),
        _ => false,
    };
    listed("conditions").any(bad)
}

/// Statuses of all objects that something is found of, and of `told`: those that were told something before.
pub(super) fn computed(source: &SourceStatus, told: &HashSet<ObjectKey>) -> HashMap<ObjectKey, Value> {
    let mut found: BTreeMap<&ObjectKey, Vec<&Finding>> = told.iter().map(|key| (key, Vec::new())).collect();
    for finding in source.findings.iter().filter(|f| f.level > Level::Info) {
        if let Some(object) = finding.object.as_ref().filter(|o| o.kind.group().ends_with(".istio.io")) {
            found.entry(object).or_default().push(finding);
        }
    }
    let one = |(key, mut findings): (&ObjectKey, Vec<&Finding>)| {
        findings.sort_by(|a, b| (b.level, &a.field, &a.message).cmp(&(a.level, &b.field, &b.message)));
        (key.clone(), status(&findings, source.refused.contains(key)))
    };
    found.into_iter().map(one).collect()
}

fn status(findings: &[&Finding], refused: bool) -> Value {
    let (refusing, other): (Vec<&Finding>, Vec<&Finding>) =
        findings.iter().copied().partition(|f| refused && f.level == Level::Error);
    let accepted = match refused {
        true => condition("Accepted", false, "Invalid", text(&refusing)),
        false => condition("Accepted", true, "Accepted", String::new()),
    };
    let name = |f: &Finding| f.code.and_then(codes::find).map_or("Finding", |c| c.name);
    let degraded = match other.first() {
        Some(first) => condition("Degraded", true, name(first), text(&other)),
        None => condition("Degraded", false, "NothingFound", String::new()),
    };
    let messages: Vec<Value> = findings
        .iter()
        .filter_map(|f| {
            let level = if f.level == Level::Error { "ERROR" } else { "WARNING" };
            Some(json!({"type": {"code": f.code?, "name": name(f)}, "level": level}))
        })
        .collect();
    json!({"conditions": [accepted, degraded], "validationMessages": messages})
}

fn condition(kind: &str, holds: bool, reason: &str, message: String) -> Value {
    json!({"type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message})
}

/// `IST0101 spec.http[0]: text; ...`, cut where it is too long.
fn text(findings: &[&Finding]) -> String {
    let mut out = String::new();
    for (i, finding) in findings.iter().enumerate() {
        let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
        let one = format!("{} {field}{}", finding.code.unwrap_or_default(), finding.message);
        if i > 0 && out.len() + one.len() > LONGEST {
            out.push_str(&format!("; and {} more", findings.len() - i));
            break;
        }
        if i > 0 {
            out.push_str("; ");
        }
        out.extend(one.trim_start().chars().take(LONGEST));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(findings: Vec<Finding>, refused: &[&ObjectKey]) -> SourceStatus {
        let refused = refused.iter().map(|key| (*key).clone()).collect();
        let mut source = SourceStatus::default();
        source.publish(findings, refused, false);
        source
    }

    fn word<'a>(status: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
        let all = status["conditions"].as_array().unwrap();
        let one = all.iter().find(|c| c["type"] == kind).unwrap();
        (one["status"].as_str().unwrap(), one["reason"].as_str().unwrap(), one["message"].as_str().unwrap())
    }

    #[test]
    fn refused_and_degraded_objects_are_told_and_untold() {
        let (bad, vague) = ["bad", "vague"].map(|n| ObjectKey::new(Kind::VirtualService, "shop", n)).into();
        let service = ObjectKey::new(Kind::Service, "shop", "web");
        let findings = vec![
            Finding::error("spec.http", "no route").code(codes::SCHEMA).on(&bad),
            Finding::warning("spec.hosts[0]", "nobody's").code(codes::OTHERS_HOST).on(&vague),
            Finding::error("spec.http[0]", "no service").code(codes::MISSING).on(&vague),
            Finding::info("spec.x", "does nothing").code(codes::NO_EFFECT).on(&vague),
            Finding::warning("spec", "not ours").on(&service),
        ];
        let first = computed(&source(findings, &[&bad]), &HashSet::new());
        assert_eq!(first.len(), 2);
        assert_eq!(word(&first[&bad], "Accepted"), ("False", "Invalid", "IST0106 spec.http: no route"));
        assert_eq!(word(&first[&bad], "Degraded").0, "False");
        assert_eq!(word(&first[&vague], "Accepted").0, "True");
        let text = "IST0101 spec.http[0]: no service; MESH0005 spec.hosts[0]: nobody's";
        assert_eq!(word(&first[&vague], "Degraded"), ("True", "ReferencedResourceNotFound", text));
        let messages = &first[&vague]["validationMessages"];
        assert_eq!(
            messages[0],
            json!({"type": {"code": "IST0101", "name": "ReferencedResourceNotFound"}, "level": "ERROR"})
        );
        assert_eq!(messages[1]["level"], "WARNING");
        assert!(says_something(&first[&bad]) && says_something(&first[&vague]));
        // Mended: whoever was told must be told.
        let told: HashSet<ObjectKey> = [vague.clone()].into();
        let second = computed(&source(vec![], &[]), &told);
        assert_eq!(word(&second[&vague], "Degraded").0, "False");
        assert!(!says_something(&second[&vague]));
    }

    #[test]
    fn long_lists_are_cut() {
        let key = ObjectKey::new(Kind::Sidecar, "shop", "s");
        let findings = (0..500).map(|i| Finding::warning(format!("spec.egress[{i}]"), "x".repeat(50)).on(&key));
        let all = computed(&source(findings.collect(), &[]), &HashSet::new());
        let (_, _, text) = word(&all[&key], "Degraded");
        assert!(text.len() < LONGEST + 100 && text.contains(" more"), "{}", text.len());
    }
}
