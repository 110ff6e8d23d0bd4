//! Tokens of workloads without Kubernetes: JWTs as Kubernetes' projected service account tokens, signed by a key of the
//! state folder.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use mesh_api::identity::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use super::{ServiceAccount, issuer::unix, state};

/// Audience of tokens for the CA and for xDS, as Istio's.
pub const TOKEN_AUDIENCE: &str = "istio-ca";
const ISSUER: &str = "mesh-control";
const KEY_FILE: &str = "token-key.pem";
/// Life of tokens when nobody asks for one.
const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Largest token.
const MAX: usize = 16 << 10;
/// Clocks may differ by this many seconds.
const LEEWAY: u64 = 5;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    #[serde(default)]
    aud: Vec<String>,
    iat: u64,
    nbf: u64,
    exp: u64,
}

/// The key that signs and verifies tokens.
pub struct TokenKey {
    sign: EncodingKey,
    verify: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey([redacted])")
    }
}

impl TokenKey {
    /// The key of a state folder, made when there is none.
    ///
    /// # Errors
    /// When the folder cannot be used or the key is damaged.
    pub fn open(state_dir: &Path) -> anyhow::Result<Self> {
        state::ensure(state_dir)?;
        let path = state_dir.join(KEY_FILE);
        if state::read_private(&path)?.is_none() {
            state::create(&path, &KeyPair::generate()?.serialize_pem(), state::PRIVATE)?;
        }
        let pem = state::read_private(&path)?.unwrap_or_default();
        let damaged =
            || format!("{} is damaged: restore it, or remove it; all tokens must then be made anew", path.display());
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_ECDSA_P256_SHA256).with_context(damaged)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[TOKEN_AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        Ok(Self {
            sign: EncodingKey::from_ec_pem(pem.as_bytes()).with_context(damaged)?,
            verify: DecodingKey::from_ec_pem(key.public_key_pem().as_bytes()).with_context(damaged)?,
            validation,
        })
    }

    /// A token for a service account.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of an identity.
    pub fn issue(&self, namespace: &str, service_account: &str, life: Duration) -> anyhow::Result<String> {
        // What no identity can be made of gets no token.
        SpiffeId::new(TrustDomain::default(), namespace, service_account)
            .map_err(|_| anyhow::anyhow!("{namespace:?} and {service_account:?} do not name a service account"))?;
        let now = unix(SystemTime::now()).as_secs();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
            aud: vec![TOKEN_AUDIENCE.to_owned()],
            iat: now,
            nbf: now,
            exp: now.saturating_add(life.as_secs()),
        };
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.sign)?)
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// When it is not ours, not for us, or not valid now.
    pub fn verify(&self, token: &str) -> Result<ServiceAccount, String> {
        if token.len() > MAX {
            return Err(format!("token of {} bytes, {MAX} are allowed", token.len()));
        }
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.verify, &self.validation)
            .map_err(|e| format!("token refused: {e}"))?;
        ServiceAccount::from_subject(&decoded.claims.sub)
            .ok_or_else(|| "token refused: its subject is not a service account".to_owned())
    }
}

/// A token for a workload, signed by the key of a state folder (which is made when it is missing).
///
/// # Errors
/// When the folder cannot be used, or the names are not those of a service account.
pub fn workload_token(
    state_dir: &Path,
    namespace: &str,
    service_account: &str,
    life: Option<Duration>,
) -> anyhow::Result<String> {
    TokenKey::open(state_dir)?.issue(namespace, service_account, life.unwrap_or(DEFAULT_LIFE))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn claims() -> Value {
        let now = unix(SystemTime::now()).as_secs();
        json!({"iss": ISSUER, "sub": "system:serviceaccount:shop:web", "aud": ["other", TOKEN_AUDIENCE],
               "iat": now, "nbf": now, "exp": now + 60})
    }

    fn signed(key: &TokenKey, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key.sign).unwrap()
    }

    #[test]
    fn tokens_name_their_account_and_survive_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let token = workload_token(dir.path(), "shop", "web", None).unwrap();
        let key = TokenKey::open(dir.path()).unwrap();
        let account = key.verify(&token).unwrap();
        assert_eq!((account.namespace.as_str(), account.name.as_str()), ("shop", "web"));
        assert!(key.verify(&signed(&key, &claims())).is_ok());
        assert!(key.issue("shop", "a:b", HOUR).is_err());
        assert!(key.issue("", "a", HOUR).is_err());
        std::fs::write(dir.path().join(KEY_FILE), "broken").unwrap();
        assert!(TokenKey::open(dir.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn claims_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let key = TokenKey::open(dir.path()).unwrap();
        let now = unix(SystemTime::now()).as_secs();
        for (claim, value) in [
            ("aud", json!(["istio"])),
            ("aud", json!([])),
            ("aud", Value::Null),
            ("iss", json!("kubernetes")),
            ("iss", Value::Null),
            ("exp", json!(now - 60)),
            ("exp", Value::Null),
            ("nbf", json!(now + 60)),
            ("sub", json!("system:serviceaccount:shop")),
            ("sub", json!("system:serviceaccount:shop:web:x")),
            ("sub", json!("system:node:web")),
            ("sub", json!("system:serviceaccount::web")),
            ("sub", json!("system:serviceaccount:..:web")),
        ] {
            let mut claims = claims();
            claims[claim] = value;
            assert!(key.verify(&signed(&key, &claims)).is_err(), "{claims}");
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let key = TokenKey::open(dir.path()).unwrap();
        let good = key.issue("shop", "web", HOUR).unwrap();
        assert!(key.verify(&TokenKey::open(other.path()).unwrap().issue("shop", "web", HOUR).unwrap()).is_err());
        let parts: Vec<&str> = good.split('.').collect();
        let encode = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let mut admin = claims();
        admin["sub"] = json!("system:serviceaccount:kube-system:admin");
        let none = encode(&json!({"alg": "none", "typ": "JWT"}));
        let pem = std::fs::read_to_string(dir.path().join(KEY_FILE)).unwrap();
        let public = KeyPair::from_pem(&pem).unwrap().public_key_pem();
        let confused =
            jsonwebtoken::encode(&Header::default(), &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
        let twice =
            format!(r#"{{"sub":"system:serviceaccount:shop:web",{}"#, admin.to_string().strip_prefix('{').unwrap());
        let twice = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(twice), parts[2]);
        for bad in [
            format!("{}.{}.{}", parts[0], encode(&admin), parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            confused,
            twice,
            String::new(),
            "..".to_owned(),
            "x".repeat(MAX + 1),
            format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("[".repeat(10_000)), parts[2]),
        ] {
            assert!(key.verify(&bad).is_err(), "{bad:.200}");
        }
    }
}
