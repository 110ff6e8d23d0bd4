//! Whether a patch is for an object: Istio's matches on names, ports and the like, evaluated on what was generated.

use mesh_api::{
    crd::networking::envoy_filter::{ListenerMatch, PatchContext, RouteAction, RouteConfigurationMatch},
    names::{ClusterName, Direction},
};
use prost_reflect::DynamicMessage;

use super::{
    Facts, Patch,
    dynamic::{lists_text, message, number, text},
};

/// Listeners that stand for all ports of a direction.
const VIRTUAL: [&str; 2] = ["virtualInbound", "virtualOutbound"];

/// Whether a patch is for this context.
pub(super) fn context(patch: &Patch, context: PatchContext) -> bool {
    patch.matches.context == PatchContext::Any || patch.matches.context == context
}

/// Whether what is added without saying where belongs to this context: listeners and clusters towards others.
pub(super) fn adds_to(patch: &Patch, at: PatchContext) -> bool {
    match patch.matches.context {
        PatchContext::Any => matches!(at, PatchContext::SidecarOutbound | PatchContext::Gateway),
        named => named == at,
    }
}

fn listener_match(patch: &Patch) -> Option<&ListenerMatch> {
    patch.matches.listener.as_ref()
}

fn is_virtual(listener: &Listener<'_>) -> bool {
    VIRTUAL.contains(&listener.name)
}

/// What matches ask of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listener<'a> {
    pub(super) name: &'a str,
    pub(super) port: Option<u32>,
}

/// Whether a patch is for a listener (`whole`), or may be for something in it.
pub(super) fn listener(patch: &Patch, listener: &Listener<'_>, whole: bool) -> bool {
    let Some(m) = listener_match(patch) else { return true };
    if !m.name.is_empty() && m.name != listener.name {
        return false;
    }
    // There ports are told by the chains.
    if !whole && is_virtual(listener) {
        return true;
    }
    m.port_number == 0 || listener.port == Some(m.port_number)
}

/// Whether a patch is for a chain of a listener that it is for.
pub(super) fn chain(patch: &Patch, listener: &Listener<'_>, chain: &DynamicMessage) -> bool {
    let Some(m) = listener_match(patch) else { return true };
    let condition = message(chain, "filter_chain_match");
    let destination = condition.and_then(|c| number(c, "destination_port"));
    if is_virtual(listener) && m.port_number > 0 && destination != Some(m.port_number) {
        return false;
    }
    let Some(m) = &m.filter_chain else { return true };
    let has = |field: &str, wanted: &str| condition.is_some_and(|c| lists_text(c, field, wanted));
    let transport = condition.map(|c| text(c, "transport_protocol")).unwrap_or_default();
    (m.name.is_empty() || is_named(text(chain, "name"), &m.name))
        && (m.sni.is_empty() || has("server_names", &m.sni))
        && (m.transport_protocol.is_empty() || transport == m.transport_protocol)
        && (m.application_protocols.is_empty()
            || m.application_protocols.split(',').all(|p| has("application_protocols", p)))
        && (m.destination_port == 0 || destination == Some(m.destination_port))
        && (m.transport_socket.is_empty() || m.transport_socket == transport_socket(chain))
}

/// Name of the socket that a chain's bytes pass through.
fn transport_socket(chain: &DynamicMessage) -> &str {
    message(chain, "transport_socket").map_or("envoy.transport_sockets.raw_buffer", |socket| text(socket, "name"))
}

/// Chains of one port have one name in Istio; ours add how one connects, and what is not declared says so by protocol.
fn is_named(chain: &str, wanted: &str) -> bool {
    const WAYS: [&str; 4] = ["-mtls", "-mtls-tcp", "-tls", "-tcp"];
    let wanted = match wanted {
        // Ours are told apart by the ways.
        "virtualInbound-catchall-http" => {
            return chain == "virtualInbound-catchall" || chain == "virtualInbound-catchall-mtls";
        }
        other => other,
    };
    chain.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || WAYS.contains(&rest))
}

/// Name of the network filter that a patch asks for.
pub(super) fn filter_name(patch: &Patch) -> Option<&str> {
    let filter = listener_match(patch)?.filter_chain.as_ref()?.filter.as_ref()?;
    Some(&filter.name)
}

/// Name of the HTTP filter that a patch asks for.
pub(super) fn sub_filter_name(patch: &Patch) -> Option<&str> {
    let filter = listener_match(patch)?.filter_chain.as_ref()?.filter.as_ref()?;
    filter.sub_filter.as_ref().map(|s| s.name.as_str())
}

/// Name of the listener filter that a patch asks for.
pub(super) fn listener_filter_name(patch: &Patch) -> Option<&str> {
    listener_match(patch).map(|m| m.listener_filter.as_str()).filter(|name| !name.is_empty())
}

/// Whether a name is the one asked for, if one is.
pub(super) fn named(asked: Option<&str>, filter: &DynamicMessage) -> bool {
    asked.is_none_or(|name| text(filter, "name") == name)
}

// ---- clusters ----

/// Whether a patch is for a cluster.
pub(super) fn cluster(patch: &Patch, name: &str, facts: &Facts) -> bool {
    let Some(m) = &patch.matches.cluster else { return true };
    if !m.name.is_empty() {
        return m.name == name;
    }
    // Gateways between networks have them by server name.
    let parsed = ClusterName::parse(name).or_else(|| ClusterName::parse_sni(name));
    let (subset, port) = parsed.as_ref().map_or(("", 0), |c| (c.subset, u32::from(c.port)));
    let service = |host: &str| match &parsed {
        Some(c) if c.direction == Direction::Inbound => {
            facts.hosts_at(c.port).is_some_and(|hosts| hosts.iter().any(|h| ***h == *host))
        }
        Some(c) => *c.host == *host,
        None => false,
    };
    (m.subset.is_empty() || m.subset == subset)
        && (m.service.is_empty() || service(&m.service))
        && (m.port_number == 0 || m.port_number == port)
}

// ---- routes ----

fn route_match(patch: &Patch) -> Option<&RouteConfigurationMatch> {
    patch.matches.route_configuration.as_ref()
}

/// Whether a patch is for a route configuration, or may be for something in it.
pub(super) fn routes(patch: &Patch, name: &str, at: PatchContext, facts: &Facts) -> bool {
    let Some(m) = route_match(patch) else { return true };
    if !m.name.is_empty() && m.name != name {
        return false;
    }
    if at != PatchContext::Gateway {
        return m.port_number == 0 || sidecar_port(name) == Some(m.port_number);
    }
    let (port, port_name, gateway) = gateway_routes(name);
    (m.port_name.is_empty() || m.port_name == port_name)
        && (m.gateway.is_empty() || m.gateway == gateway)
        && (m.port_number == 0 || port.is_some_and(|port| facts.is_port(port, m.port_number)))
}

/// Port in the name of a route configuration of a sidecar: `8080`, `inbound|8080||`.
fn sidecar_port(name: &str) -> Option<u32> {
    match ClusterName::parse(name) {
        Some(c) if c.direction == Direction::Inbound => Some(c.port.into()),
        _ => name.parse().ok(),
    }
}

/// Port, name of the port and Gateway in the name of a route configuration of a gateway: `http.PORT`,
/// `https.PORT.PORT_NAME.GATEWAY.NAMESPACE`.
fn gateway_routes(name: &str) -> (Option<u32>, &str, String) {
    let mut parts = name.split('.');
    let (scheme, port) = (parts.next(), parts.next().and_then(|p| p.parse().ok()));
    match (scheme, parts.next(), parts.next(), parts.next()) {
        (Some("http"), ..) => (port, "", String::new()),
        (Some("https"), Some(port_name), Some(gateway), Some(namespace)) => {
            (port, port_name, format!("{namespace}/{gateway}"))
        }
        _ => (None, "", String::new()),
    }
}

/// Whether a patch is for a virtual host of a route configuration that it is for.
pub(super) fn virtual_host(patch: &Patch, host: &DynamicMessage) -> bool {
    let Some(m) = route_match(patch).and_then(|m| m.vhost.as_ref()) else { return true };
    (m.name.is_empty() || m.name == text(host, "name"))
        && (m.domain_name.is_empty() || lists_text(host, "domains", &m.domain_name))
}

/// Whether a patch says for which route of a virtual host it is.
pub(super) fn asks_for_route(patch: &Patch) -> bool {
    route_match(patch).and_then(|m| m.vhost.as_ref()).is_some_and(|h| h.route.is_some())
}

/// Whether a patch is for a route of a virtual host that it is for.
pub(super) fn route(patch: &Patch, route: &DynamicMessage) -> bool {
    let Some(m) = route_match(patch).and_then(|m| m.vhost.as_ref()).and_then(|h| h.route.as_ref()) else {
        return true;
    };
    let does = |field: &str| route.has_field_by_name(field);
    (m.name.is_empty() || m.name == text(route, "name"))
        && match m.action {
            RouteAction::Any => true,
            RouteAction::Route => does("route"),
            RouteAction::Redirect => does("redirect"),
            RouteAction::DirectResponse => does("direct_response"),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_ports() {
        assert_eq!(sidecar_port("8080"), Some(8080));
        assert_eq!(sidecar_port("inbound|9090||"), Some(9090));
        assert_eq!(sidecar_port("http_proxy"), None);
        assert_eq!(gateway_routes("http.8080"), (Some(8080), "", String::new()));
        assert_eq!(gateway_routes("https.443.web.gw.shop"), (Some(443), "web", "shop/gw".to_owned()));
        assert_eq!(gateway_routes("8080").0, None);
    }

    #[test]
    fn chains_have_istio_s_names() {
        assert!(is_named("0.0.0.0_8080", "0.0.0.0_8080") && is_named("0.0.0.0_8080-mtls", "0.0.0.0_8080"));
        assert!(!is_named("0.0.0.0_80801", "0.0.0.0_8080") && !is_named("0.0.0.0_8080", "0.0.0.0_80"));
        assert!(is_named("virtualInbound-catchall-mtls", "virtualInbound-catchall-http"));
        assert!(is_named("virtualInbound-catchall-tcp", "virtualInbound-catchall"));
    }
}
