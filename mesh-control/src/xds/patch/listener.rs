//! Patches of listeners, their filter chains and filters.

use std::sync::Arc;

use mesh_api::crd::networking::envoy_filter::{ApplyTo, Operation};
use prost_reflect::{DynamicMessage, Value};

use super::{
    Patch,
    cluster::{merge_transport_socket, without_transport_socket},
    dynamic, matching,
    merge::{merge, merge_extension},
    route,
    set::Run,
};

/// Network filter that speaks HTTP.
const HTTP_MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Changes a listener, what is in it after the whole; false: it is removed.
pub(super) fn apply(run: &mut Run<'_>, name: &str, listener: &mut DynamicMessage) -> bool {
    inline_routes(run, listener);
    let place = Place { name: name.to_owned(), port: port(listener) };
    for patch in run.patches(ApplyTo::Listener).filter(|p| matching::listener(p, &place.matched(), true)) {
        if patch.operation == Operation::Remove {
            return false;
        }
        if let Some(lists) = patch.merges() {
            merge(listener, &patch.value, lists);
            run.changed = true;
        }
    }
    // A merge may have moved it.
    let place = Place { port: port(listener), ..place };
    listener_filters(run, &place, listener);
    filter_chains(run, &place, listener);
    true
}

fn port(listener: &DynamicMessage) -> Option<u32> {
    let address = dynamic::message(listener, "address")?;
    dynamic::number(dynamic::message(address, "socket_address")?, "port_value")
}

/// A listener as matches see it.
struct Place {
    name: String,
    port: Option<u32>,
}

impl Place {
    fn matched(&self) -> matching::Listener<'_> {
        matching::Listener { name: &self.name, port: self.port }
    }

    /// Patches of a part that may be for something in this listener.
    fn patches<'s>(&self, run: &Run<'s>, apply_to: ApplyTo) -> Vec<&'s Arc<Patch>> {
        run.patches(apply_to).filter(|p| matching::listener(p, &self.matched(), false)).collect()
    }
}

/// Route configurations that stand in the listener itself.
fn inline_routes(run: &mut Run<'_>, listener: &mut DynamicMessage) {
    if !route::wanted(run) {
        return;
    }
    each_chain(listener, |chain| {
        let filters = dynamic::list_mut(chain, "filters").into_iter().flatten();
        for filter in filters.filter_map(Value::as_message_mut) {
            let before = std::mem::take(&mut run.changed);
            with_http_manager(filter, |manager| {
                if let Some(routes) = dynamic::message_mut(manager, "route_config") {
                    route::apply(run, routes);
                }
                run.changed
            });
            run.changed |= before;
        }
        true
    });
}

/// Calls with each filter chain; those for which it says false are taken out.
fn each_chain(listener: &mut DynamicMessage, mut change: impl FnMut(&mut DynamicMessage) -> bool) {
    if let Some(chains) = dynamic::list_mut(listener, "filter_chains") {
        chains.retain_mut(|chain| chain.as_message_mut().is_none_or(&mut change));
    }
    if dynamic::message_mut(listener, "default_filter_chain").is_some_and(|chain| !change(chain)) {
        listener.clear_field_by_name("default_filter_chain");
    }
}

/// Calls with the HTTP manager of a filter that is one; it is written back when the call says that it changed.
fn with_http_manager(filter: &mut DynamicMessage, change: impl FnOnce(&mut DynamicMessage) -> bool) {
    if dynamic::text(filter, "name") != HTTP_MANAGER {
        return;
    }
    let Some(config) = dynamic::message_mut(filter, "typed_config") else { return };
    if let Some(mut manager) = dynamic::unpack(config)
        && change(&mut manager)
    {
        dynamic::repack(config, &manager);
    }
}

fn listener_filters(run: &mut Run<'_>, place: &Place, listener: &mut DynamicMessage) {
    let patches = place.patches(run, ApplyTo::ListenerFilter);
    if patches.is_empty() {
        return;
    }
    let Some(filters) = dynamic::list_mut(listener, "listener_filters") else { return };
    for patch in patches {
        let asked = matching::listener_filter_name(patch);
        run.changed |= arrange(filters, patch, asked);
        if patch.merges().is_some() && asked.is_some() {
            merge_filters(run, filters, patch, asked);
        }
    }
}

fn filter_chains(run: &mut Run<'_>, place: &Place, listener: &mut DynamicMessage) {
    let patches = Chains {
        chains: place.patches(run, ApplyTo::FilterChain),
        network: place.patches(run, ApplyTo::NetworkFilter),
        http: place.patches(run, ApplyTo::HttpFilter),
    };
    if patches.chains.is_empty() && patches.network.is_empty() && patches.http.is_empty() {
        return;
    }
    each_chain(listener, |chain| filter_chain(run, place, chain, &patches));
    let added = patches.chains.iter().filter(|p| p.operation == Operation::Add);
    if let Some(chains) = dynamic::list_mut(listener, "filter_chains") {
        for patch in added {
            chains.push(Value::Message(patch.value.clone()));
            run.changed = true;
        }
    }
}

/// Patches that may be for something in the chains of a listener.
struct Chains<'s> {
    chains: Vec<&'s Arc<Patch>>,
    network: Vec<&'s Arc<Patch>>,
    http: Vec<&'s Arc<Patch>>,
}

/// Changes a chain, then its filters; false: it is removed.
fn filter_chain(run: &mut Run<'_>, place: &Place, chain: &mut DynamicMessage, patches: &Chains<'_>) -> bool {
    let is_for = |patch: &Arc<Patch>, chain: &DynamicMessage| matching::chain(patch, &place.matched(), chain);
    for patch in &patches.chains {
        if !is_for(patch, chain) {
            continue;
        }
        if patch.operation == Operation::Remove {
            run.changed = true;
            return false;
        }
        if let Some(lists) = patch.merges() {
            let socket = dynamic::message(&patch.value, "transport_socket");
            let result = socket.map_or(Ok(()), |socket| merge_transport_socket(chain, socket));
            if result.is_ok() {
                merge(chain, &without_transport_socket(&patch.value), lists);
            }
            run.done(patch, result);
        }
    }
    let network: Vec<&Arc<Patch>> = patches.network.iter().copied().filter(|p| is_for(p, chain)).collect();
    let http: Vec<&Arc<Patch>> = patches.http.iter().copied().filter(|p| is_for(p, chain)).collect();
    let Some(filters) = dynamic::list_mut(chain, "filters") else { return true };
    for patch in &network {
        run.changed |= arrange(filters, patch, matching::filter_name(patch));
    }
    for patch in network.iter().filter(|p| p.merges().is_some()) {
        merge_filters(run, filters, patch, matching::filter_name(patch));
    }
    for filter in filters.iter_mut().filter_map(Value::as_message_mut) {
        let here: Vec<&Arc<Patch>> =
            http.iter().copied().filter(|p| matching::named(matching::filter_name(p), filter)).collect();
        if !here.is_empty() {
            with_http_manager(filter, |manager| http_filters(run, manager, &here));
        }
    }
    true
}

/// Changes the filters of an HTTP manager; whether any did.
fn http_filters(run: &mut Run<'_>, manager: &mut DynamicMessage, patches: &[&Arc<Patch>]) -> bool {
    let Some(filters) = dynamic::list_mut(manager, "http_filters") else { return false };
    let before = std::mem::take(&mut run.changed);
    for patch in patches {
        run.changed |= arrange(filters, patch, matching::sub_filter_name(patch));
    }
    for patch in patches.iter().filter(|p| p.merges().is_some()) {
        merge_filters(run, filters, patch, matching::sub_filter_name(patch));
    }
    let changed = run.changed;
    run.changed |= before;
    changed
}

/// Adds, inserts, replaces or removes a filter, beside or in the place of the one that is asked for; whether that did
/// anything. Without one that is asked for nothing is replaced or removed.
fn arrange(filters: &mut Vec<Value>, patch: &Patch, asked: Option<&str>) -> bool {
    let is = |v: &Value| v.as_message().is_some_and(|filter| matching::named(asked, filter));
    let found = filters.iter().position(is).filter(|_| asked.is_some());
    let at = match patch.operation {
        Operation::Add => Some(filters.len()),
        Operation::InsertFirst => Some(0),
        Operation::InsertAfter if asked.is_none() => Some(filters.len()),
        Operation::InsertBefore if asked.is_none() => Some(0),
        Operation::InsertAfter => found.map(|i| i + 1),
        Operation::InsertBefore => found,
        Operation::Replace => {
            let Some(filter) = found.and_then(|i| filters.get_mut(i)) else { return false };
            *filter = Value::Message(patch.value.clone());
            return true;
        }
        Operation::Remove if asked.is_some() => {
            let count = filters.len();
            filters.retain(|filter| !is(filter));
            return filters.len() != count;
        }
        _ => None,
    };
    if let Some(at) = at {
        filters.insert(at, Value::Message(patch.value.clone()));
    }
    at.is_some()
}

/// Merges into every filter that is asked for.
fn merge_filters(run: &mut Run<'_>, filters: &mut [Value], patch: &Arc<Patch>, asked: Option<&str>) {
    for filter in filters.iter_mut().filter_map(Value::as_message_mut) {
        if matching::named(asked, filter) {
            let result = merge_extension(filter, &patch.value);
            run.done(patch, result);
        }
    }
}
