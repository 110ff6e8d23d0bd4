//! Key sets of token issuers (JWKS, RFC 7517), prepared once, and the check of a signature. Symmetric keys do not exist
//! here: what everybody can read must not be what tokens are signed with.

use std::fmt;

use aws_lc_rs::signature::{self as alg, ParsedPublicKey, RsaParameters, RsaPublicKeyComponents};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use super::status::Status;

/// Most keys of a set: a token without a key id is tried with all of them.
const MAX_KEYS: usize = 100;
/// Shortest RSA modulus in bytes.
const MIN_RSA: usize = 256;

/// How a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // names of RFC 7518 and RFC 8037
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

impl Algorithm {
    /// By the name that `alg` has; `None`: not one that is accepted.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "ES512" => Self::ES512,
            "EdDSA" => Self::EdDSA,
            _ => return None,
        })
    }
}

const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::RS256, &alg::RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::RS384, &alg::RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::RS512, &alg::RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::PS256, &alg::RSA_PSS_2048_8192_SHA256),
    (Algorithm::PS384, &alg::RSA_PSS_2048_8192_SHA384),
    (Algorithm::PS512, &alg::RSA_PSS_2048_8192_SHA512),
];

/// The keys of an issuer; without any, nothing verifies.
#[derive(Default)]
pub struct KeySet(Box<[Key]>);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|k| &k.id)).finish()
    }
}

struct Key {
    id: Option<Box<str>>,
    /// One for each algorithm it may be used with.
    parsed: Box<[(Algorithm, ParsedPublicKey)]>,
}

impl KeySet {
    /// Reads a key set. Keys that are of no use are left out; a set may come out empty.
    ///
    /// # Errors
    /// What is not a key set at all, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|e| format!("not JSON: {e}"))?;
        let Some(keys) = set.get("keys").and_then(Value::as_array) else {
            return Err("has no list \"keys\"".to_owned());
        };
        if keys.len() > MAX_KEYS {
            return Err(format!("has {} keys, at most {MAX_KEYS} are allowed", keys.len()));
        }
        Ok(Self(keys.iter().filter_map(Key::parse).collect()))
    }

    /// Nothing can be verified with it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks the signature of `message`. With a key id only keys of that id (and those without) count.
    ///
    /// # Errors
    /// No key fits, or none verifies.
    pub fn verify(&self, by: Algorithm, id: Option<&str>, message: &[u8], signature: &[u8]) -> Result<(), Status> {
        if self.is_empty() {
            return Err(Status::NoValidKeys);
        }
        let mut fitting = false;
        for key in &self.0 {
            if let (Some(wanted), Some(own)) = (id, &key.id)
                && *wanted != **own
            {
                continue;
            }
            for (_, parsed) in key.parsed.iter().filter(|(algorithm, _)| *algorithm == by) {
                fitting = true;
                if parsed.verify_sig(message, signature).is_ok() {
                    return Ok(());
                }
            }
        }
        Err(if fitting { Status::VerificationFails } else { Status::NoFittingKey })
    }
}

impl Key {
    fn parse(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let only = match key.get("alg") {
            None => None,
            // Of another algorithm than ours: nothing to verify with.
            Some(name) => Some(Algorithm::of_name(name.as_str()?)?),
        };
        if text("use") == Some("enc") {
            return None;
        }
        let wanted = |algorithm: Algorithm| only.is_none_or(|only| only == algorithm);
        let parsed: Vec<_> = match text("kty")? {
            "RSA" => {
                let (n, e) = (number(text("n")?)?, number(text("e")?)?);
                if n.len() < MIN_RSA {
                    return None;
                }
                let components = RsaPublicKeyComponents { n, e };
                let all = RSA.iter().filter(|(algorithm, _)| wanted(*algorithm));
                all.filter_map(|(algorithm, p)| Some((*algorithm, components.to_parsed_public_key(p).ok()?))).collect()
            }
            "EC" => {
                let (algorithm, verifier, width): (_, &'static alg::EcdsaVerificationAlgorithm, _) = match text("crv")?
                {
                    "P-256" => (Algorithm::ES256, &alg::ECDSA_P256_SHA256_FIXED, 32),
                    "P-384" => (Algorithm::ES384, &alg::ECDSA_P384_SHA384_FIXED, 48),
                    "P-521" => (Algorithm::ES512, &alg::ECDSA_P521_SHA512_FIXED, 66),
                    _ => return None,
                };
                let mut point = vec![4];
                for coordinate in [text("x")?, text("y")?] {
                    let bytes = BASE64_URL_SAFE_NO_PAD.decode(coordinate).ok()?;
                    point.resize(point.len() + width_missing(width, bytes.len())?, 0);
                    point.extend(bytes);
                }
                let key = wanted(algorithm).then(|| ParsedPublicKey::new(verifier, &point).ok()).flatten()?;
                vec![(algorithm, key)]
            }
            "OKP" if text("crv") == Some("Ed25519") => {
                let bytes = BASE64_URL_SAFE_NO_PAD.decode(text("x")?).ok().filter(|b| b.len() == 32)?;
                let key =
                    wanted(Algorithm::EdDSA).then(|| ParsedPublicKey::new(&alg::ED25519, &bytes).ok()).flatten()?;
                vec![(Algorithm::EdDSA, key)]
            }
            _ => return None,
        };
        let id = text("kid").filter(|id| !id.is_empty()).map(Into::into);
        (!parsed.is_empty()).then(|| Self { id, parsed: parsed.into() })
    }
}

/// How many zeros stand before a number that should have `width` bytes; `None`: it has more.
fn width_missing(width: usize, len: usize) -> Option<usize> {
    width.checked_sub(len)
}

/// A big-endian number without leading zeros.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let start = bytes.iter().position(|b| *b != 0)?;
    bytes.get(start..).map(<[u8]>::to_vec)
}
