//! The crypto provider (aws-lc-rs) and how Envoy's names of suites, groups and versions map to it.

use std::sync::{Arc, LazyLock};

use mesh_api::model::{CommonTls, TlsVersion};
use rustls::{
    CipherSuite, NamedGroup, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{
        CryptoProvider, SupportedKxGroup,
        aws_lc_rs::{self, cipher_suite as cs, kx_group as kx},
    },
};

use super::TlsError;

/// TLS 1.3 suites; their choice is not configurable (as in Envoy).
const SUITES_13: [SupportedCipherSuite; 3] =
    [cs::TLS13_AES_128_GCM_SHA256, cs::TLS13_AES_256_GCM_SHA384, cs::TLS13_CHACHA20_POLY1305_SHA256];

/// TLS 1.2 suites in our order, under OpenSSL's names.
const SUITES_12: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", cs::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", cs::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", cs::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", cs::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", cs::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", cs::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// Suites that Envoy knows and we leave out (CBC, or without forward secrecy). Named beside others they are skipped.
const KNOWN_UNSUPPORTED: [&str; 14] = [
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "ECDHE-RSA-AES256-SHA384",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "PSK-AES128-CBC-SHA",
    "DES-CBC3-SHA",
];

static DEFAULT: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = SUITES_13.iter().copied().chain(SUITES_12.iter().map(|(_, s)| *s)).collect();
    provider.kx_groups = default_groups();
    Arc::new(provider)
});

fn default_groups() -> Vec<&'static dyn SupportedKxGroup> {
    vec![kx::X25519MLKEM768, kx::X25519, kx::SECP256R1, kx::SECP384R1]
}

/// Makes aws-lc-rs the process-wide provider, for clients that do not name one (tonic). Calling it again is harmless.
pub fn install_default_provider() {
    // An error only says that a provider is installed already, which is ours.
    let _ = DEFAULT.as_ref().clone().install_default();
}

/// The provider for a context without wishes of its own.
pub(crate) fn default_provider() -> Arc<CryptoProvider> {
    DEFAULT.clone()
}

/// The provider and versions that a context asks for.
pub(crate) fn for_context(
    tls: &CommonTls,
    spiffe: bool,
) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), TlsError> {
    let versions = versions(tls, spiffe)?;
    if tls.cipher_suites.is_empty() && tls.ecdh_curves.is_empty() {
        return Ok((default_provider(), versions));
    }
    let mut provider = DEFAULT.as_ref().clone();
    if !tls.cipher_suites.is_empty() {
        let chosen = suites(tls.cipher_suites.iter().map(|s| &**s))?;
        if chosen.is_empty() && versions.iter().all(|v| v.version == ProtocolVersion::TLSv1_2) {
            return Err(TlsError::config(
                "none of cipher_suites is supported: only ECDHE suites with AEAD ciphers are",
            ));
        }
        provider.cipher_suites = SUITES_13.iter().copied().chain(chosen).collect();
    }
    if !tls.ecdh_curves.is_empty() {
        provider.kx_groups = groups(tls.ecdh_curves.iter().map(|s| &**s))?;
    }
    // A version without any suite left would be refused by rustls.
    let versions = versions.into_iter().filter(|v| provider.cipher_suites.iter().any(|s| s.version() == *v)).collect();
    Ok((Arc::new(provider), versions))
}

fn versions(tls: &CommonTls, spiffe: bool) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
    let max = tls.max_version.unwrap_or(TlsVersion::V1_3);
    // Contexts that check SPIFFE ids speak 1.3 only unless told otherwise.
    let least = if spiffe { TlsVersion::V1_3.min(max) } else { TlsVersion::V1_2 };
    let min = tls.min_version.unwrap_or(least);
    let versions: Vec<_> = [(TlsVersion::V1_3, &rustls::version::TLS13), (TlsVersion::V1_2, &rustls::version::TLS12)]
        .into_iter()
        .filter(|(v, _)| (min..=max).contains(v))
        .map(|(_, v)| v)
        .collect();
    if versions.is_empty() {
        return Err(TlsError::config("tls_minimum_protocol_version is above tls_maximum_protocol_version"));
    }
    Ok(versions)
}

/// Reads OpenSSL names; `[A|B]` names a group of equal preference, which we take in its order.
fn suites<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<SupportedCipherSuite>, TlsError> {
    let mut out: Vec<SupportedCipherSuite> = vec![];
    for entry in names {
        let list = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']')).unwrap_or(entry);
        for name in list.split('|').map(str::trim) {
            match SUITES_12.iter().find(|(n, _)| *n == name || iana_matches(name, n)) {
                Some((_, suite)) if !out.contains(suite) => out.push(*suite),
                Some(_) => {}
                None if KNOWN_UNSUPPORTED.contains(&name) || name.starts_with("TLS_AES_") => {}
                None => return Err(TlsError::config(format!("cipher_suites: unknown cipher suite {name:?}"))),
            }
        }
    }
    Ok(out)
}

/// BoringSSL takes `ECDHE-RSA-CHACHA20-POLY1305` and its long form alike.
fn iana_matches(name: &str, openssl: &str) -> bool {
    name.strip_suffix("-SHA256").is_some_and(|short| short == openssl && short.ends_with("POLY1305"))
}

fn groups<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<&'static dyn SupportedKxGroup>, TlsError> {
    let mut out: Vec<&'static dyn SupportedKxGroup> = vec![];
    for name in names {
        let group = match name {
            "X25519MLKEM768" => kx::X25519MLKEM768,
            "X25519" => kx::X25519,
            "P-256" | "prime256v1" | "secp256r1" => kx::SECP256R1,
            "P-384" | "secp384r1" => kx::SECP384R1,
            "MLKEM1024" => kx::MLKEM1024,
            "P-521" | "secp521r1" | "P-224" | "X25519Kyber768Draft00" => continue,
            other => return Err(TlsError::config(format!("ecdh_curves: unknown curve {other:?}"))),
        };
        if !out.iter().any(|g| g.name() == group.name()) {
            out.push(group);
        }
    }
    if out.is_empty() {
        return Err(TlsError::config("none of ecdh_curves is supported"));
    }
    Ok(out)
}

/// The version as access logs write it.
pub(crate) fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// The suite as access logs write it (OpenSSL's name).
pub(crate) fn suite_name(suite: Option<CipherSuite>) -> &'static str {
    match suite {
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
        Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
        Some(other) => SUITES_12.iter().find(|(_, s)| s.suite() == other).map_or("", |(n, _)| n),
        None => "",
    }
}

/// The key exchange group under its usual name.
pub(crate) fn group_name(group: Option<NamedGroup>) -> &'static str {
    match group {
        Some(NamedGroup::X25519MLKEM768) => "X25519MLKEM768",
        Some(NamedGroup::X25519) => "X25519",
        Some(NamedGroup::secp256r1) => "P-256",
        Some(NamedGroup::secp384r1) => "P-384",
        Some(NamedGroup::MLKEM1024) => "MLKEM1024",
        _ => "",
    }
}

/// SHA-256, by the provider that does all other cryptography.
pub(crate) fn sha256(data: &[u8]) -> Vec<u8> {
    match cs::TLS13_AES_128_GCM_SHA256 {
        SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.hash(data).as_ref().to_vec(),
        SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider.hash(data).as_ref().to_vec(),
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_s_suite_list_is_understood() {
        let list = [
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
            "ECDHE-RSA-AES128-GCM-SHA256",
            "AES256-GCM-SHA384",
        ];
        let got = suites(list.into_iter()).unwrap();
        assert_eq!(got.len(), 5);
        assert_eq!(got[0], cs::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384);
        assert!(suites(["NONSENSE"].into_iter()).is_err());
    }

    #[test]
    fn versions_and_curves() {
        let mut tls = CommonTls::default();
        assert_eq!(versions(&tls, false).unwrap().len(), 2);
        assert_eq!(versions(&tls, true).unwrap().len(), 1);
        tls.max_version = Some(TlsVersion::V1_2);
        assert_eq!(versions(&tls, true).unwrap().first().unwrap().version, ProtocolVersion::TLSv1_2);
        tls.min_version = Some(TlsVersion::V1_3);
        assert!(versions(&tls, false).is_err());
        assert_eq!(groups(["P-256", "P-521"].into_iter()).unwrap().len(), 1);
        assert!(groups(["P-521"].into_iter()).is_err());
        assert_eq!(hex(&sha256(b"")).get(..8), Some("e3b0c442"));
    }
}
