//! Secrets: names, kinds, states and what their certificates say. Keys are never in a dump.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_api::xds::json::timestamp;
use mesh_proxy::tls::CertificateFacts;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use super::{Dump, list_at, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// istioctl's columns, and where a secret comes from.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let head = ["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE", "SOURCE"];
    let mut table = Table::new(&head);
    let mut raw = Vec::new();
    let section = dump.section("SecretsConfigDump");
    let lists =
        [("static_secrets", "ACTIVE"), ("dynamic_active_secrets", "ACTIVE"), ("dynamic_warming_secrets", "WARMING")];
    for (list, status) in lists {
        let items = section.and_then(|s| s.get(list)).and_then(Value::as_array).into_iter().flatten();
        for item in items.filter(|i| args.name.as_deref().is_none_or(|n| n == str_at(i, "/name"))) {
            let name = str_at(item, "/name");
            let facts = Facts::of_secret(item).or_else(|| Facts::of_page(dump.certificates.as_ref()?, name));
            let facts = facts.unwrap_or_default();
            let cells = [facts.valid, facts.serial, facts.not_after, facts.not_before];
            let cells = cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell });
            let start = [name, kind(item, name), status].map(str::to_owned);
            table.row(start.into_iter().chain(cells).chain([source(name)]));
            raw.push(item.clone());
        }
    }
    (table, raw)
}

fn kind(item: &Value, name: &str) -> &'static str {
    if item.pointer("/secret/validation_context").is_some() {
        "CA"
    } else if item.pointer("/secret/tls_certificate").is_some() {
        "Cert Chain"
    } else {
        // Made in the proxy itself: named by Istio's names, never in a dump.
        match name {
            "ROOTCA" => "CA",
            "default" => "Cert Chain",
            _ => "Unknown",
        }
    }
}

/// By Istio's names for secrets.
fn source(name: &str) -> String {
    if let Some(secret) = name.strip_prefix("kubernetes://") {
        return format!("{} (Secret)", secret.strip_suffix("-cacert").unwrap_or(secret));
    }
    let file = name.strip_prefix("file-cert:").or_else(|| name.strip_prefix("file-root:"));
    match (file, name) {
        (Some(file), _) => format!("{} (file)", file.split('~').next().unwrap_or(file)),
        (None, "default") => "workload identity".to_owned(),
        (None, "ROOTCA") => "roots of the mesh".to_owned(),
        _ => "-".to_owned(),
    }
}

/// Of the first certificate: the leaf of a chain.
#[derive(Debug, Default, PartialEq)]
struct Facts {
    valid: String,
    serial: String,
    not_after: String,
    not_before: String,
}

impl Facts {
    /// From the certificate in the dump.
    fn of_secret(item: &Value) -> Option<Self> {
        let places = ["/secret/tls_certificate/certificate_chain", "/secret/validation_context/trusted_ca"];
        let data = places.iter().find_map(|place| item.pointer(place))?;
        let pem = match data.get("inline_string").and_then(Value::as_str) {
            Some(text) => text.as_bytes().to_vec(),
            None => STANDARD.decode(str_at(data, "/inline_bytes")).ok()?,
        };
        let facts = CertificateFacts::parse(&CertificateDer::from_pem_slice(&pem).ok()?).ok()?;
        let time = |seconds: i64| {
            let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            SystemTime::UNIX_EPOCH.checked_add(since).map(timestamp).unwrap_or_default()
        };
        Some(Self::new(facts.serial.to_string(), time(facts.not_before), time(facts.not_after)))
    }

    /// From the proxy's `/certs`.
    fn of_page(page: &Value, name: &str) -> Option<Self> {
        let entry = list_at(page, "/certificates").find(|c| str_at(c, "/secret") == name)?;
        let first = list_at(entry, "/cert_chain").chain(list_at(entry, "/ca_cert")).next()?;
        let text = |field| str_at(first, field).to_owned();
        Some(Self::new(text("/serial_number"), text("/valid_from"), text("/expiration_time")))
    }

    /// Times are RFC 3339 in UTC, which sort as text up to the second.
    fn new(serial: String, not_before: String, not_after: String) -> Self {
        let now = timestamp(SystemTime::now());
        let second = |t: &str| t.get(..19).unwrap_or_default().to_owned();
        let valid = (second(&not_before)..=second(&not_after)).contains(&second(&now));
        Self { valid: valid.to_string(), serial, not_after, not_before }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cmd::proxy_config::tests::options;

    /// A certificate that held from 2020 to 2021.
    const EXPIRED: &str = include_str!("testdata/expired.pem");

    #[test]
    fn certificates_in_the_dump_and_of_the_proxy_itself() {
        let section = json!({
            "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
            "dynamic_active_secrets": [
                {"name": "default"},
                {"name": "kubernetes://web", "secret": {"tls_certificate": {
                    "certificate_chain": {"inline_bytes": STANDARD.encode(EXPIRED)},
                    "private_key": {"inline_bytes": "W3JlZGFjdGVkXQ=="}}}},
                {"name": "other"},
            ],
        });
        let own = json!({"certificates": [{"secret": "default", "cert_chain": [{"serial_number": "0abc",
            "valid_from": "2020-01-01T00:00:00Z", "expiration_time": "2999-01-01T00:00:00Z"}]}]});
        let dump = Dump { configs: vec![section], certificates: Some(own), ..Dump::default() };
        let shown = view(&dump, &options()).0.render();
        let lines: Vec<String> = shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "RESOURCE NAME TYPE STATUS VALID CERT SERIAL NUMBER NOT AFTER NOT BEFORE SOURCE",
                "default Cert Chain ACTIVE true 0abc 2999-01-01T00:00:00Z 2020-01-01T00:00:00Z workload identity",
                "kubernetes://web Cert Chain ACTIVE false 0102 2021-01-01T00:00:00Z 2020-01-01T00:00:00Z web (Secret)",
                "other Unknown ACTIVE - - - - -",
            ]
        );
    }
}
