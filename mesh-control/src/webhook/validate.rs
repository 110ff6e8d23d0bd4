//! Objects that cannot work are refused, with the field and the reason; what has no effect is said.

use serde_json::Value;

use super::review::{Answer, Review};
use crate::{
    source::manifest,
    validate::{Finding, Level},
};

/// Looks at an object with the validation that serves.
pub(super) fn answer(review: &Review) -> Answer {
    let request = &review.request;
    if request.operation == "DELETE" || request.object.is_null() {
        return Answer::default();
    }
    let mut value = request.object.clone();
    if let Value::Object(map) = &mut value
        && let Some(Value::Object(metadata)) = map.get_mut("metadata")
    {
        // The name may still be made.
        let prefix = metadata.get("generateName").cloned();
        if let Some(prefix) = prefix.as_ref().and_then(Value::as_str).filter(|_| !metadata.contains_key("name")) {
            metadata.insert("name".to_owned(), format!("{prefix}x").into());
        }
    }
    let findings = manifest::read_object(value).findings;
    let words = |f: &Finding| {
        let code = f.code.map(|c| format!(" [{c}]")).unwrap_or_default();
        if f.field.is_empty() { format!("{}{code}", f.message) } else { format!("{}: {}{code}", f.field, f.message) }
    };
    let errors: Vec<String> = findings.iter().filter(|f| f.level == Level::Error).map(words).collect();
    let warnings = findings.iter().filter(|f| f.level == Level::Warning).map(words).collect();
    let refused = (!errors.is_empty()).then(|| errors.join("; "));
    Answer { refused, warnings, patch: vec![] }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(operation: &str, object: Value) -> Answer {
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                          "request": {"uid": "u", "operation": operation, "object": object}});
        answer(&Review::read(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_cannot_work_is_refused_by_field() {
        let vs = |spec: Value| {
            json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                   "metadata": {"name": "v", "namespace": "shop"}, "spec": spec})
        };
        let good = vs(json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]}));
        assert_eq!(review("CREATE", good).refused, None);
        let bad = vs(
            json!({"hosts": ["a"], "http": [{"match": [{"uri": {"regex": "("}}], "route": [{"destination": {"host": "a"}}]}]}),
        );
        let why = review("UPDATE", bad.clone()).refused.unwrap();
        assert!(why.contains("spec.http[0].match[0].uri"), "{why}");
        assert_eq!(review("DELETE", bad).refused, None, "what is wrong may go");
        let typo = review("CREATE", vs(json!({"hosts": ["a"], "htp": []}))).refused.unwrap();
        assert!(typo.contains("spec.htp"), "{typo}");
        let mut generated = vs(json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}]}]}));
        generated["metadata"] = json!({"generateName": "v-", "namespace": "shop"});
        assert_eq!(review("CREATE", generated).refused, None);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        for body in ["", "{}", r#"{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "u"}}"#] {
            assert!(Review::read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
