//! Patches of clusters.

use std::sync::Arc;

use mesh_api::crd::networking::envoy_filter::{ApplyTo, Operation};
use prost_reflect::{DynamicMessage, Value};

use super::{
    Patch, dynamic, matching,
    merge::{Lists, merge, merge_extension},
    set::Run,
};

/// Changes a cluster; false: it is removed.
pub(super) fn apply(run: &mut Run<'_>, name: &str, cluster: &mut DynamicMessage) -> bool {
    for patch in run.patches(ApplyTo::Cluster) {
        if !matching::cluster(patch, name, run.facts) {
            continue;
        }
        if patch.operation == Operation::Remove {
            return false;
        }
        if let Some(lists) = patch.merges() {
            let result = merge_cluster(cluster, patch, lists);
            run.done(patch, result);
        }
    }
    true
}

/// Merges, the transport socket into the one of its name: of several (chosen by endpoints) into the first.
fn merge_cluster(cluster: &mut DynamicMessage, patch: &Arc<Patch>, lists: Lists) -> Result<(), String> {
    let Some(socket) = dynamic::message(&patch.value, "transport_socket") else {
        merge(cluster, &patch.value, lists);
        return Ok(());
    };
    let name = dynamic::text(socket, "name");
    if dynamic::messages(cluster, "transport_socket_matches").next().is_some() {
        let matches = dynamic::list_mut(cluster, "transport_socket_matches").into_iter().flatten();
        let mut sockets =
            matches.filter_map(Value::as_message_mut).filter_map(|m| dynamic::message_mut(m, "transport_socket"));
        let Some(same) = sockets.find(|s| dynamic::text(s, "name") == name) else {
            return Err(format!("no transport socket of the cluster is called {name}"));
        };
        merge_extension(same, socket)?;
    } else {
        merge_transport_socket(cluster, socket)?;
    }
    merge(cluster, &without_transport_socket(&patch.value), lists);
    Ok(())
}

/// Merges a transport socket into one of the same name, or puts it in the place of what is there.
pub(super) fn merge_transport_socket(holder: &mut DynamicMessage, socket: &DynamicMessage) -> Result<(), String> {
    let name = dynamic::text(socket, "name");
    match dynamic::message_mut(holder, "transport_socket").filter(|s| dynamic::text(s, "name") == name) {
        Some(same) => merge_extension(same, socket),
        None => {
            holder.set_field_by_name("transport_socket", Value::Message(socket.clone()));
            Ok(())
        }
    }
}

/// The rest of a patch.
pub(super) fn without_transport_socket(value: &DynamicMessage) -> DynamicMessage {
    let mut rest = value.clone();
    rest.clear_field_by_name("transport_socket");
    rest
}
