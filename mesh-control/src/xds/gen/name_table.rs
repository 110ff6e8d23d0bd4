//! Name tables: Istio's message, not Envoy's.

use mesh_api::model::{NameInfo, NameTable};

use super::wire::Message;

/// `NameTable`.
pub fn name_table(table: &NameTable) -> Message {
    table.0.iter().fold(Message::new(), |out, (host, info)| out.entry(1, host, name_info(info)))
}

fn name_info(info: &NameInfo) -> Message {
    Message::new()
        .strs(1, info.ips.iter().map(ToString::to_string))
        .str(2, info.registry.as_str())
        .str(3, &info.short_name)
        .str(4, &info.namespace)
}
