//! Signing of leaf certificates: what they say, and for how long.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{CaError, material::Material};

/// Shortest life.
const LEAST: Duration = Duration::from_secs(1);
/// Clocks may differ by this much.
const BACKDATE: Duration = Duration::from_secs(60);

/// Whom a certificate is for.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// A workload by its SPIFFE id.
    Workload(String),
    /// A server by names and addresses.
    Server(Vec<String>),
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub leaf: CertificateDer<'static>,
    /// What follows it, without roots.
    pub chain: Vec<CertificateDer<'static>>,
    /// End of its life.
    pub not_after: SystemTime,
}

/// Signs `key`. The life is `ttl`, or less when the CA itself ends earlier.
pub(crate) fn sign(
    ca: &Material,
    subject: &Subject,
    key: &impl PublicKeyData,
    ttl: Duration,
    now: SystemTime,
) -> Result<Issued, CaError> {
    let fail = |e: rcgen::Error| CaError::Signing(e.to_string());
    if ca.not_after <= now {
        return Err(CaError::Signing("the certificate of the CA has expired".to_owned()));
    }
    let ttl = ttl.max(LEAST);
    // Certificates count whole seconds; rounded up, so that the shortest lives do not vanish.
    let end = unix(now + ttl);
    let end = Duration::from_secs(end.as_secs() + u64::from(end.subsec_nanos() > 0));
    let not_after = (SystemTime::UNIX_EPOCH + end).min(ca.not_after);
    let mut params = CertificateParams::default();
    params.not_before = offset(now - BACKDATE.min(ttl / 2))?;
    params.not_after = offset(not_after)?;
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.distinguished_name = DistinguishedName::new();
    match subject {
        Subject::Workload(id) => {
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(fail)?)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        }
        Subject::Server(names) => {
            for name in names {
                params.subject_alt_names.push(match name.parse::<IpAddr>() {
                    Ok(ip) => SanType::IpAddress(ip),
                    Err(_) => SanType::DnsName(name.as_str().try_into().map_err(fail)?),
                });
            }
            params.distinguished_name.push(DnType::CommonName, "xDS server");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
    }
    let certificate = params.signed_by(key, &ca.issuer).map_err(fail)?;
    Ok(Issued { leaf: certificate.into(), chain: ca.chain.clone(), not_after })
}

/// 127 random bits.
pub(crate) fn random_serial() -> SerialNumber {
    let number = rand::random::<u128>() >> 1;
    SerialNumber::from(number.to_be_bytes().to_vec())
}

/// Since the epoch.
pub(crate) fn unix(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

pub(crate) fn offset(time: SystemTime) -> Result<OffsetDateTime, CaError> {
    i64::try_from(unix(time).as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or_else(|| CaError::Signing("time out of range".to_owned()))
}
