//! Tokens of workloads in Kubernetes: the API server says whose they are.

use std::{collections::HashMap, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use kube::{
    Api, Client,
    api::PostParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ServiceAccount, TOKEN_AUDIENCE, VerifyToken};

/// Largest token.
const MAX: usize = 16 << 10;
/// How long an answer is believed: a workload asks for its certificate and for its configuration within a moment. A token
/// that was withdrawn goes on for that long.
const BELIEVED: Duration = Duration::from_secs(10);
/// Most answers that are remembered.
const MOST: usize = 4096;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the API server.
pub struct TokenReviews {
    api: Api<DynamicObject>,
    /// Only good answers.
    known: Mutex<HashMap<String, (Instant, ServiceAccount)>>,
}

impl std::fmt::Debug for TokenReviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenReviews")
    }
}

impl TokenReviews {
    /// With the API server of a client.
    pub fn new(client: Client) -> Self {
        let kind = GroupVersionKind::gvk("authentication.k8s.io", "v1", "TokenReview");
        let api = Api::all_with(client, &ApiResource::from_gvk_with_plural(&kind, "tokenreviews"));
        Self { api, known: Mutex::default() }
    }

    fn remembered(&self, token: &str) -> Option<ServiceAccount> {
        let known = self.known.lock();
        known.get(token).filter(|(at, _)| at.elapsed() < BELIEVED).map(|(_, account)| account.clone())
    }

    fn remember(&self, token: &str, account: &ServiceAccount) {
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if known.len() < MOST {
            known.insert(token.to_owned(), (Instant::now(), account.clone()));
        }
    }

    async fn ask(&self, token: &str) -> Result<ServiceAccount, String> {
        if token.len() > MAX {
            return Err(format!("token of {} bytes, {MAX} are allowed", token.len()));
        }
        if let Some(account) = self.remembered(token) {
            return Ok(account);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        });
        let review = serde_json::from_value(review).map_err(|e| e.to_string())?;
        let away = |why: String| format!("the API server could not be asked about the token: {why}");
        let answer = tokio::time::timeout(PATIENCE, self.api.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|_| away("no answer".to_owned()))?.map_err(|e| away(e.to_string()))?;
        let account = account(answer.data.get("status").unwrap_or(&Value::Null))?;
        self.remember(token, &account);
        Ok(account)
    }
}

/// Whose token it is, by the status of a review.
fn account(status: &Value) -> Result<ServiceAccount, String> {
    if status.get("authenticated").and_then(Value::as_bool) != Some(true) {
        let why = status.get("error").and_then(Value::as_str).unwrap_or("it is not valid");
        return Err(format!("token refused: {why}"));
    }
    // An API server that does not know audiences would leave this out, and take any token.
    let audiences = status.get("audiences").and_then(Value::as_array);
    if !audiences.is_some_and(|all| all.iter().any(|a| a.as_str() == Some(TOKEN_AUDIENCE))) {
        return Err(format!("token refused: it is not for {TOKEN_AUDIENCE}"));
    }
    let user = status.pointer("/user/username").and_then(Value::as_str).unwrap_or_default();
    ServiceAccount::from_subject(user).ok_or_else(|| format!("token refused: {user:?} is not a service account"))
}

impl VerifyToken for TokenReviews {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, String>> {
        self.ask(token).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_accounts_with_our_audience_count() {
        let good = json!({"authenticated": true, "audiences": ["istio-ca"],
                          "user": {"username": "system:serviceaccount:shop:web"}});
        let found = account(&good).unwrap();
        assert_eq!((found.namespace.as_str(), found.name.as_str()), ("shop", "web"));
        for (status, why) in [
            (json!({}), "not valid"),
            (json!({"authenticated": false, "error": "expired"}), "expired"),
            (
                json!({"authenticated": true, "user": {"username": "system:serviceaccount:shop:web"}}),
                "not for istio-ca",
            ),
            (json!({"authenticated": true, "audiences": ["api"]}), "not for istio-ca"),
            (json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "admin"}}), "admin"),
        ] {
            let error = account(&status).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
