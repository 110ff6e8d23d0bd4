//! Clusters.

use mesh_api::names::ClusterName;
use serde_json::Value;

use super::{Dump, cause, service_of, str_at};
use crate::args::PartArgs;
use crate::output::Table;

/// SERVICE FQDN, PORT, SUBSET, DIRECTION, TYPE, DESTINATION RULE; without a rule, the service that is the cause.
pub fn view(dump: &Dump, args: &PartArgs) -> (Table, Vec<Value>) {
    let mut all = dump.clusters();
    all.sort_by_key(|c| str_at(c, "/name"));
    all.retain(|c| wanted(str_at(c, "/name"), args));
    let mut table = Table::new(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    for cluster in &all {
        let name = str_at(cluster, "/name");
        let kind = match (str_at(cluster, "/type"), str_at(cluster, "/cluster_type/name")) {
            ("", "") => "STATIC",
            ("", other) => other,
            (kind, _) => kind,
        };
        let cause = Some(cause(cluster, "DestinationRule")).filter(|c| c != "-").unwrap_or_else(|| service_of(cluster));
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        match ClusterName::parse(name) {
            Some(n) => table.row([
                n.host.to_owned(),
                n.port.to_string(),
                dash(n.subset),
                n.direction.as_str().to_owned(),
                kind.to_owned(),
                cause,
            ]),
            None => table.row([name.to_owned(), dash(""), dash(""), dash(""), kind.to_owned(), cause]),
        }
    }
    (table, all.into_iter().cloned().collect())
}

fn wanted(name: &str, args: &PartArgs) -> bool {
    let parsed = ClusterName::parse(name);
    let host = parsed.as_ref().map_or(name, |n| n.host);
    args.fqdn.as_deref().is_none_or(|f| f == host)
        && args.port.is_none_or(|p| parsed.as_ref().is_some_and(|n| n.port == p))
        && args.subset.as_deref().is_none_or(|s| parsed.as_ref().is_some_and(|n| n.subset == s))
        && args.direction.as_deref().is_none_or(|d| parsed.as_ref().is_some_and(|n| n.direction.as_str() == d))
}
