//! AdmissionReview, `admission.k8s.io/v1`: what is asked, and how it is answered.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the API server asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Review {
    api_version: String,
    pub(super) request: Request,
}

/// The object in question.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    uid: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) operation: String,
    #[serde(default)]
    pub(super) object: Value,
}

impl Review {
    /// From the body of a request.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let review: Self = serde_json::from_slice(body).map_err(|e| format!("no AdmissionReview: {e}"))?;
        if review.api_version != "admission.k8s.io/v1" {
            return Err(format!("{} is not answered, only admission.k8s.io/v1", review.api_version));
        }
        Ok(review)
    }
}

/// The answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Why it is refused.
    pub(super) refused: Option<String>,
    /// Steps of a JSON patch.
    pub(super) patch: Vec<Value>,
    /// Shown to the user.
    pub(super) warnings: Vec<String>,
}

/// Longest warning that clients show whole, and how many.
const WARNING: usize = 250;
const WARNINGS: usize = 16;

impl Answer {
    pub(super) fn refuse(why: impl Into<String>) -> Self {
        Self { refused: Some(why.into()), ..Self::default() }
    }

    pub(super) fn into_json(self, review: &Review) -> Value {
        let mut response = json!({"uid": review.request.uid, "allowed": self.refused.is_none()});
        if let Some(why) = self.refused {
            response["status"] = json!({"code": 400, "reason": "BadRequest", "message": why});
        }
        if !self.patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(Value::Array(self.patch).to_string()).into();
        }
        let warnings: Vec<String> =
            self.warnings.into_iter().take(WARNINGS).map(|w| w.chars().take(WARNING).collect()).collect();
        if !warnings.is_empty() {
            response["warnings"] = warnings.into();
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}
