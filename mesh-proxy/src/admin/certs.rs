//! `/certs`: certificates in use, in Envoy's shape.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Handles;
use crate::tls::CertificateFacts;

/// `envoy.admin.v3.Certificates`.
pub fn json(handles: &Handles) -> Value {
    let mut all = Vec::new();
    for listed in handles.shared.secrets.certificates() {
        let Some(material) = &listed.state.material else { continue };
        let (roots, chain) = material.facts();
        let path = listed.file.map_or_else(|| "<inline>".to_owned(), |file| file.display().to_string());
        let mut entry = json!({
            "ca_cert": roots.iter().map(|c| one(c, &path)).collect::<Vec<_>>(),
            "cert_chain": chain.iter().map(|c| one(c, &path)).collect::<Vec<_>>(),
        });
        // Ours: Envoy does not say which secret they came with.
        if let (Some(name), Some(entry)) = (&listed.name, entry.as_object_mut()) {
            entry.insert("secret".to_owned(), (**name).into());
        }
        all.push(entry);
    }
    json!({"certificates": all})
}

fn one(facts: &CertificateFacts, path: &str) -> Value {
    let time = |seconds: i64| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        crate::xds::store::timestamp(at)
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let left = facts.not_after.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX)).max(0);
    let names = facts
        .uri_sans
        .iter()
        .map(|u| json!({"uri": **u}))
        .chain(facts.dns_sans.iter().map(|d| json!({"dns": **d})))
        .chain(facts.ip_sans.iter().map(|i| json!({"ip_address": **i})));
    json!({
        "path": path,
        "serial_number": *facts.serial,
        "subject_alt_names": names.collect::<Vec<_>>(),
        "days_until_expiration": (left / 86_400).to_string(),
        "valid_from": time(facts.not_before),
        "expiration_time": time(facts.not_after),
    })
}
