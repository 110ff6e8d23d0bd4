//! Name tables: Istio's message, not Envoy's.

use std::collections::HashMap;

use mesh_api::model;
use prost::Message;

/// `istio.networking.nds.v1.NameTable`.
#[derive(Clone, PartialEq, Message)]
pub struct NameTable {
    #[prost(map = "string, message", tag = "1")]
    table: HashMap<String, NameInfo>,
}

/// `NameTable.NameInfo`.
#[derive(Clone, PartialEq, Message)]
struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    ips: Vec<String>,
    #[prost(string, tag = "2")]
    registry: String,
    #[prost(string, tag = "3")]
    shortname: String,
    #[prost(string, tag = "4")]
    namespace: String,
}

/// As the plain model. What is no address is left out: one odd host must not take the names of all others away.
pub fn name_table(message: NameTable) -> model::NameTable {
    let one = |(host, info): (String, NameInfo)| {
        let registry = match info.registry.as_str() {
            "Kubernetes" => model::Registry::Kubernetes,
            _ => model::Registry::External,
        };
        let ips = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
        (
            host.into(),
            model::NameInfo { ips, registry, short_name: info.shortname.into(), namespace: info.namespace.into() },
        )
    };
    model::NameTable(message.table.into_iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_what_are_addresses() {
        let info = |ips: &[&str], registry: &str| NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: registry.to_owned(),
            shortname: "a".to_owned(),
            namespace: "shop".to_owned(),
        };
        let table = [
            ("a.shop.svc.cluster.local".to_owned(), info(&["10.0.0.1", "fd00::1", "10.0.0.0/8", "x"], "Kubernetes")),
            ("b.test".to_owned(), info(&[], "External")),
        ];
        let message = NameTable { table: table.into_iter().collect() };
        let wire = message.encode_to_vec();
        let got = super::super::name_table("", &wire).unwrap().0;
        let a = &got["a.shop.svc.cluster.local"];
        assert_eq!((a.ips.len(), a.registry, &*a.short_name), (2, model::Registry::Kubernetes, "a"));
        assert_eq!(got["b.test"].registry, model::Registry::External);
        assert!(super::super::name_table("", b"\x0a\xff\x01").is_err());
    }
}
