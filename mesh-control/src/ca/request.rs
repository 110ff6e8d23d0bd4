//! Certificate requests: the proof that the caller has the key, and that key. Nothing else of them is used.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer, public_key::PublicKey};

use super::CaError;

/// Largest request, PEM.
const MAX: usize = 32 << 10;
/// RSA keys below this many bits are weak.
const RSA_MIN: usize = 2048;
/// RSA keys above this many bits only cost time.
const RSA_MAX: usize = 8192;

/// The public key of a request whose signature proves that the caller has the private one.
///
/// # Errors
/// When it cannot be read, its signature is wrong or its key is weak or of an unknown kind.
pub(crate) fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, CaError> {
    let bad = |why: &str| CaError::Request(why.to_owned());
    if pem.len() > MAX {
        return Err(bad(&format!("{} bytes, {MAX} are allowed", pem.len())));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| bad("not PEM of one"))?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| bad("not PKCS #10"))?;
    if !rest.is_empty() {
        return Err(bad("trailing bytes"));
    }
    let info = &request.certification_request_info.subject_pki;
    match info.parsed().map_err(|_| bad("the public key cannot be read"))? {
        PublicKey::RSA(key) if !(RSA_MIN..=RSA_MAX).contains(&key.key_size()) => {
            return Err(bad(&format!("RSA key of {} bits, {RSA_MIN} to {RSA_MAX} are allowed", key.key_size())));
        }
        PublicKey::RSA(_) | PublicKey::EC(_) => {}
        // Ed25519 is among what this library does not name.
        PublicKey::Unknown(_) => {}
        _ => return Err(bad("kind of key not supported")),
    }
    request.verify_signature().map_err(|_| bad("its signature does not fit its key"))?;
    // Refuses kinds and curves that it cannot name.
    SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| bad("kind of key not supported"))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData, RsaKeySize};

    use super::*;

    fn request(key: &KeyPair) -> String {
        CertificateParams::new(vec!["evil.example".to_owned()]).unwrap().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_key_is_taken_whatever_its_kind() {
        let p256 = KeyPair::generate().unwrap();
        assert_eq!(public_key(&request(&p256)).unwrap().subject_public_key_info(), p256.subject_public_key_info());
        for alg in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(alg).unwrap();
            assert_eq!(public_key(&request(&key)).unwrap().subject_public_key_info(), key.subject_public_key_info());
        }
        let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        assert_eq!(public_key(&request(&rsa)).unwrap().der_bytes(), rsa.der_bytes());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let pem = request(&KeyPair::generate().unwrap());
        let huge = "x".repeat(MAX + 1);
        let certificate = pem.replace("CERTIFICATE REQUEST", "CERTIFICATE");
        for bad in ["", "x", &huge, &certificate] {
            assert!(matches!(public_key(bad), Err(CaError::Request(_))));
        }
        // A bit of it changed: unreadable, or the signature is wrong, or (in encoding) without effect. Never a panic,
        // never another key.
        let whole = public_key(&pem).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        for i in 0..der.len() {
            let mut der = der.clone();
            der[i] ^= 1;
            let body = base64::engine::general_purpose::STANDARD.encode(&der);
            let pem = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            assert!(public_key(&pem).map_or(true, |key| key == whole), "byte {i}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        // RSA, 1024 bits, made with OpenSSL.
        const WEAK: &str = include_str!("testdata/rsa1024.csr.pem");
        let error = public_key(WEAK).unwrap_err().to_string();
        assert!(error.contains("1024 bits"), "{error}");
    }
}
