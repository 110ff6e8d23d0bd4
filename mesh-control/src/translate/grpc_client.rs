//! What clients of gRPC's `xds:///` ask for: a listener named by host and port, and its routes.
//!
//! Owns their names. Must not know sidecars' listeners.

use mesh_api::{
    model::{
        Action, Address, HttpFilter, HttpFilterKind, HttpManager, Listener, Metadata, NetworkFilter, Origin,
        RouteConfig, RouteSource, RouterFilter, TrafficDirection,
    },
    names::{ClusterName, Direction},
};

use super::{filter_chain::chain, filter_names, sidecar_routes, translator::Request};

/// A listener by `host:port`.
pub fn listener(request: Request<'_>, name: &str) -> Option<Listener> {
    let (host, port) = name.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = complete(request, host);
    let service = request.scope.service(&host).filter(|s| s.port(port).is_some())?;
    let routes = ClusterName::outbound(&service.service.key.host, port, "").to_string();
    let filters = [
        (filter_names::FAULT, HttpFilterKind::Fault(Default::default())),
        (filter_names::ROUTER, HttpFilterKind::Router(RouterFilter::default())),
    ];
    let filters = filters.map(|(name, kind)| HttpFilter { name: name.into(), kind, disabled: false });
    let manager = HttpManager::new(name, RouteSource::Rds(routes.into()), filters.into());
    Some(Listener {
        name: name.into(),
        address: Address::Host(host.into(), port),
        additional_addresses: vec![],
        bind_to_port: false,
        use_original_dst: false,
        transparent: false,
        listener_filters: vec![],
        listener_filters_timeout: std::time::Duration::ZERO,
        continue_on_listener_filters_timeout: false,
        filter_chains: vec![chain("", Default::default(), vec![NetworkFilter::Http(Box::new(manager))])],
        default_filter_chain: None,
        per_connection_buffer_limit: 0,
        access_log: vec![],
        traffic_direction: TrafficDirection::Outbound,
        api_listener: true,
        origin: Origin::default(),
        metadata: Metadata::new(),
    })
}

/// Clients may write shorter names, as elsewhere.
fn complete(request: Request<'_>, host: &str) -> String {
    let domain = request.index.domain();
    let dots = host.bytes().filter(|b| *b == b'.').count();
    match dots {
        0 => format!("{host}.{}.svc.{domain}", request.view.namespace),
        1 if request.scope.service(host).is_none() => format!("{host}.svc.{domain}"),
        2 if host.ends_with(".svc") => format!("{host}.{domain}"),
        _ => host.to_owned(),
    }
}

/// Routes by `outbound|port||host`.
pub fn routes(request: Request<'_>, name: &str) -> Option<RouteConfig> {
    let parsed = ClusterName::parse(name).filter(|c| c.direction == Direction::Outbound && c.subset.is_empty())?;
    let mut host = sidecar_routes::of_service(request, parsed.host, parsed.port)?;
    for route in &mut host.routes {
        if let Action::Forward(forward) = &mut route.action {
            // The only timeout of a route that gRPC's clients read.
            forward.max_stream_duration = forward.timeout;
        }
    }
    Some(RouteConfig { name: name.into(), virtual_hosts: vec![host], ..RouteConfig::default() })
}
