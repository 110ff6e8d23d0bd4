//! Secrets: certificates with keys, and trust anchors.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{Name, SanMatcher};

/// A named secret (`envoy.extensions.transport_sockets.tls.v3.Secret`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Secret {
    /// Name asked for.
    pub name: Name,
    /// Its content.
    pub kind: SecretKind,
}

/// Content of a [`Secret`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum SecretKind {
    /// Certificate chain and private key.
    Certificate(TlsCertificate),
    /// Trust anchors and conditions.
    Validation(ValidationContext),
}

/// Certificate chain (leaf first) and private key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct TlsCertificate {
    /// Chain.
    pub chain: DataSource,
    /// Key.
    pub key: PrivateData,
}

/// `ValidationContext` without what only a context can say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Default)]
pub struct ValidationContext {
    /// PEM bundle of trust anchors; `None`: no chain is checked.
    pub trusted_ca: Option<DataSource>,
    /// The system's trust anchors instead of `trusted_ca`.
    pub system_roots: bool,
    /// At least one must match one name of the peer (empty: any name).
    pub san_matchers: Vec<SanMatcher>,
    /// SHA-256 of the peer's SubjectPublicKeyInfo, base64.
    pub spki_hashes: Vec<Name>,
    /// SHA-256 of the peer's certificate, hex, lower case, without colons.
    pub certificate_hashes: Vec<Name>,
    /// PEM revocation lists.
    pub crl: Option<DataSource>,
    /// A certificate that does not verify is accepted (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// Trust domain to bundle (SPIFFE certificate validator); empty: `trusted_ca` serves all.
    pub spiffe_trust_domains: Vec<(Name, DataSource)>,
}

/// Bytes in the configuration or in a file that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum DataSource {
    /// The content itself.
    Inline(Name),
    /// A file.
    File(PathBuf),
}

/// A [`DataSource`] that never shows itself: `Debug` and `Serialize` print `[redacted]` for inline content.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PrivateData(pub DataSource);

impl std::fmt::Debug for PrivateData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            DataSource::Inline(_) => f.write_str("[redacted]"),
            DataSource::File(p) => write!(f, "File({})", p.display()),
        }
    }
}

impl Serialize for PrivateData {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_hidden() {
        let key = PrivateData(DataSource::Inline("-----BEGIN PRIVATE KEY-----".into()));
        assert_eq!(format!("{key:?}"), "[redacted]");
        assert_eq!(serde_json::to_string(&key).unwrap(), "\"[redacted]\"");
    }
}
