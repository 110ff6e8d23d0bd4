//! Secrets: names, kinds and states. Keys are never in a dump.

use serde_json::Value;

use super::{Dump, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// RESOURCE NAME, TYPE, STATUS, VERSION.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let mut table = Table::new(&["RESOURCE NAME", "TYPE", "STATUS", "VERSION", "LAST UPDATED"]);
    let mut raw = Vec::new();
    let section = dump.section("SecretsConfigDump");
    let lists =
        [("static_secrets", "ACTIVE"), ("dynamic_active_secrets", "ACTIVE"), ("dynamic_warming_secrets", "WARMING")];
    for (list, status) in lists {
        let items = section.and_then(|s| s.get(list)).and_then(Value::as_array).into_iter().flatten();
        for item in items.filter(|i| args.name.as_deref().is_none_or(|n| n == str_at(i, "/name"))) {
            let kind = if item.pointer("/secret/validation_context").is_some() {
                "CA"
            } else if item.pointer("/secret/tls_certificate").is_some() {
                "Cert Chain"
            } else {
                // Made in the proxy itself: named by Istio's names, never in a dump.
                match str_at(item, "/name") {
                    "ROOTCA" => "CA",
                    "default" => "Cert Chain",
                    _ => "Unknown",
                }
            };
            table.row([
                str_at(item, "/name"),
                kind,
                status,
                str_at(item, "/version_info"),
                str_at(item, "/last_updated"),
            ]);
            raw.push(item.clone());
        }
    }
    (table, raw)
}
