//! Listeners, filter chains, network filters.

use mesh_api::model::{
    ClientCertDetails, Codec, EscapedSlashes, FilterChain, FilterChainMatch, ForwardClientCert, HashSource,
    HttpManager, Listener, ListenerFilter, NetworkFilter, PortRanges, RbacFilter, RouteSource, ServerHeader,
    SourceType, StripPort, TcpProxy, TrafficDirection, Underscores, Upgrade,
};

use super::access_log::{access_log, request_id, tracing};
use super::cluster::{dns_cache, http2_options};
use super::ext_authz::network_ext_authz;
use super::http_filter::{http_filter, istio_stats};
use super::rbac::rbac;
use super::route::route_config;
use super::tls;
use super::values::{ads, metadata};
use super::wire::{Message, address, cidr};

/// `Listener`.
pub fn listener(listener: &Listener) -> Message {
    if listener.api_listener {
        return api_listener(listener);
    }
    let direction = match listener.traffic_direction {
        TrafficDirection::Unspecified => 0,
        TrafficDirection::Inbound => 1,
        TrafficDirection::Outbound => 2,
    };
    let message = Message::new()
        .str(1, &listener.name)
        .msg(2, address(&listener.address))
        .msgs(3, listener.filter_chains.iter().map(filter_chain));
    let message = if listener.use_original_dst { message.wrapped_bool(4, true) } else { message };
    let message = message
        .wrapped(5, listener.per_connection_buffer_limit)
        .metadata(6, metadata(&listener.metadata, &listener.origin))
        .msgs(9, listener.listener_filters.iter().map(listener_filter));
    let message = if listener.transparent { message.wrapped_bool(10, true) } else { message };
    let message = message
        .duration(15, listener.listener_filters_timeout)
        .uint(16, direction)
        .bool(17, listener.continue_on_listener_filters_timeout)
        .msgs(22, listener.access_log.iter().map(access_log))
        .maybe(25, listener.default_filter_chain.as_ref().map(filter_chain));
    let message = if listener.bind_to_port { message } else { message.wrapped_bool(26, false) };
    // AdditionalAddress.address
    message.msgs(33, listener.additional_addresses.iter().map(|a| Message::new().msg(1, address(a))))
}

/// For gRPC clients: the HTTP manager alone counts.
fn api_listener(listener: &Listener) -> Message {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let manager = chains.flat_map(|c| &c.filters).find_map(|f| match f {
        NetworkFilter::Http(manager) => Some(Message::any(HTTP_MANAGER, http_manager(manager))),
        _ => None,
    });
    let message = Message::new().str(1, &listener.name);
    match manager {
        Some(manager) => message.msg(19, Message::new().msg(1, manager)),
        None => message,
    }
}

/// `ListenerFilterChainMatchPredicate` that holds for these destination ports.
fn port_predicate(ranges: &PortRanges) -> Option<Message> {
    // Int32Range, its end excluded.
    let one = |(from, to): &(u16, u16)| {
        Message::new().msg(5, Message::new().int(1, (*from).into()).int(2, i64::from(*to) + 1))
    };
    match ranges.as_slice() {
        [] => None,
        [only] => Some(one(only)),
        // An OR needs two members at least.
        several => Some(Message::new().msg(1, Message::new().msgs(1, several.iter().map(one)))),
    }
}

fn listener_filter(filter: &ListenerFilter) -> Message {
    let (name, url, config, disabled) = match filter {
        ListenerFilter::OriginalDst => (
            "envoy.filters.listener.original_dst",
            "envoy.extensions.filters.listener.original_dst.v3.OriginalDst",
            Message::new(),
            None,
        ),
        ListenerFilter::TlsInspector { disabled_ports } => (
            "envoy.filters.listener.tls_inspector",
            "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
            Message::new(),
            port_predicate(disabled_ports),
        ),
        ListenerFilter::HttpInspector { disabled_ports } => (
            "envoy.filters.listener.http_inspector",
            "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
            Message::new(),
            port_predicate(disabled_ports),
        ),
        ListenerFilter::ProxyProtocol { allow_requests_without } => (
            "envoy.filters.listener.proxy_protocol",
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
            Message::new().bool(2, *allow_requests_without),
            None,
        ),
    };
    Message::new().str(1, name).msg(3, Message::any(url, config)).maybe(4, disabled)
}

fn filter_chain(chain: &FilterChain) -> Message {
    let message = if chain.matches == FilterChainMatch::default() {
        Message::new()
    } else {
        Message::new().msg(1, chain_match(&chain.matches))
    };
    let message = message
        .msgs(3, chain.filters.iter().map(network_filter))
        .metadata(5, metadata(&chain.metadata, &mesh_api::model::Origin::default()))
        .maybe(6, chain.tls.as_ref().map(tls::downstream))
        .str(7, &chain.name);
    if chain.transport_socket_connect_timeout.is_zero() {
        message
    } else {
        message.duration(9, chain.transport_socket_connect_timeout)
    }
}

fn chain_match(m: &FilterChainMatch) -> Message {
    let source_type = match m.source_type {
        SourceType::Any => 0,
        SourceType::SameIpOrLoopback => 1,
        SourceType::External => 2,
    };
    Message::new()
        .msgs(3, m.prefix_ranges.iter().map(cidr))
        .msgs(6, m.source_prefix_ranges.iter().map(cidr))
        .uints(7, m.source_ports.iter().map(|p| u64::from(*p)))
        .wrapped_maybe(8, m.destination_port.map(u32::from))
        .str(9, &m.transport_protocol)
        .strs(10, &m.application_protocols)
        .strs(11, &m.server_names)
        .uint(12, source_type)
        .msgs(13, m.direct_source_prefix_ranges.iter().map(cidr))
}

const HTTP_MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// `RuntimeFeatureFlag` of what is off; nothing says that it is on.
fn off(enabled: bool) -> Option<Message> {
    (!enabled).then(|| Message::new().wrapped_bool(1, false).str(2, "off"))
}

fn network_filter(filter: &NetworkFilter) -> Message {
    let (name, url, config) = match filter {
        NetworkFilter::Http(manager) => {
            ("envoy.filters.network.http_connection_manager", HTTP_MANAGER, http_manager(manager))
        }
        NetworkFilter::TcpProxy(proxy) => (
            "envoy.filters.network.tcp_proxy",
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            tcp_proxy(proxy),
        ),
        NetworkFilter::Rbac(filter) => {
            ("envoy.filters.network.rbac", "envoy.extensions.filters.network.rbac.v3.RBAC", network_rbac(filter))
        }
        NetworkFilter::ExtAuthz(filter) => (
            "envoy.filters.network.ext_authz",
            "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            network_ext_authz(filter),
        ),
        NetworkFilter::SniCluster => (
            "envoy.filters.network.sni_cluster",
            "envoy.extensions.filters.network.sni_cluster.v3.SniCluster",
            Message::new(),
        ),
        NetworkFilter::SniDynamicForwardProxy { cache, port } => (
            "envoy.filters.network.sni_dynamic_forward_proxy",
            "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
            Message::new().msg(1, dns_cache(cache)).uint_always(2, (*port).into()),
        ),
        NetworkFilter::ConnectionLimit(limit) => {
            let config = Message::new().str(1, &limit.stat_prefix).wrapped(2, limit.max);
            let config = if limit.delay.is_zero() { config } else { config.duration(3, limit.delay) };
            (
                "envoy.filters.network.connection_limit",
                "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
                config.maybe(4, off(limit.enabled)),
            )
        }
        NetworkFilter::LocalRateLimit(rate) => {
            let b = &rate.bucket;
            let bucket =
                Message::new().uint(1, b.max_tokens.into()).wrapped(2, b.tokens_per_fill).duration(3, b.fill_interval);
            let config = Message::new().str(1, &rate.stat_prefix).msg(2, bucket);
            (
                "envoy.filters.network.local_ratelimit",
                "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
                config.maybe(3, off(rate.enabled)).str(4, &rate.share_key),
            )
        }
        NetworkFilter::MetadataExchange => (
            "istio.metadata_exchange",
            "envoy.tcp.metadataexchange.config.MetadataExchange",
            Message::new().str(1, "istio-peer-exchange"),
        ),
        NetworkFilter::IstioStats(stats) => {
            let (url, config) = istio_stats(stats);
            ("istio.stats", url, config)
        }
        NetworkFilter::SetFilterState => (
            "envoy.filters.network.set_filter_state",
            "envoy.extensions.filters.network.set_filter_state.v3.Config",
            Message::new(),
        ),
    };
    Message::new().str(1, name).msg(4, Message::any(url, config))
}

fn network_rbac(filter: &RbacFilter) -> Message {
    Message::new()
        .maybe(1, filter.rules.as_ref().map(rbac))
        .maybe(2, filter.shadow_rules.as_ref().map(rbac))
        // stat_prefix is required.
        .str(3, if filter.stat_prefix.is_empty() { "tcp." } else { &filter.stat_prefix })
        .str(5, &filter.shadow_prefix)
}

fn tcp_proxy(proxy: &TcpProxy) -> Message {
    let message = Message::new().str(1, if proxy.stat_prefix.is_empty() { "tcp" } else { &proxy.stat_prefix });
    let message = match proxy.clusters.as_slice() {
        [(only, _)] => message.str_always(2, only),
        several => {
            let one =
                |(name, weight): &(mesh_api::model::Name, u32)| Message::new().str(1, name).uint(2, (*weight).into());
            message.msg(10, Message::new().msgs(1, several.iter().map(one)))
        }
    };
    let hash = proxy.hash.iter().filter_map(|source| match source {
        HashSource::SourceIp => Some(Message::new().msg(1, Message::new())),
        HashSource::FilterState(key) => Some(Message::new().msg(2, Message::new().str(1, key))),
        _ => None,
    });
    message
        .msgs(5, proxy.access_log.iter().map(access_log))
        .wrapped(7, proxy.max_connect_attempts)
        .duration(8, proxy.idle_timeout)
        .metadata(9, metadata(&proxy.metadata_match, &mesh_api::model::Origin::default()))
        .msgs(11, hash)
        .maybe(
            12,
            proxy.tunnel.as_ref().map(|tunnel| {
                let message = Message::new().str(1, &tunnel.hostname).bool(2, tunnel.post_path.is_some());
                // `/` is what it is without a word.
                match tunnel.post_path.as_deref() {
                    None | Some("/") => message,
                    Some(path) => message.str(5, path),
                }
            }),
        )
        .duration_maybe(13, proxy.max_connection_duration)
}

fn http_manager(manager: &HttpManager) -> Message {
    let codec = match manager.codec {
        Codec::Auto => 0,
        Codec::Http1 => 1,
        Codec::Http2 => 2,
    };
    let stat_prefix = if manager.stat_prefix.is_empty() { "http" } else { &manager.stat_prefix };
    let message = Message::new().uint(1, codec).str(2, stat_prefix);
    let message = match &manager.routes {
        RouteSource::Rds(name) => {
            message.msg(3, Message::new().msg(1, ads(Some(manager.rds_fetch_timeout))).str(2, name))
        }
        RouteSource::Inline(config) => message.msg(4, route_config(config)),
    };
    let http1 = (manager.accept_http_10 || !manager.default_host_http_10.is_empty())
        .then(|| Message::new().bool(2, manager.accept_http_10).str(3, &manager.default_host_http_10));
    let message = message
        .msgs(5, manager.filters.iter().map(http_filter))
        .maybe(7, manager.tracing.as_ref().map(tracing))
        .maybe(8, http1)
        .msg(
            9,
            http2_options(
                manager.max_concurrent_streams,
                manager.initial_stream_window,
                manager.initial_connection_window,
                manager.keepalive,
            ),
        );
    http_manager_rest(manager, message)
}

fn http_manager_rest(manager: &HttpManager, message: Message) -> Message {
    let times = &manager.timeouts;
    let forward = match manager.forward_client_cert {
        ForwardClientCert::Sanitize => 0,
        ForwardClientCert::ForwardOnly => 1,
        ForwardClientCert::AppendForward => 2,
        ForwardClientCert::SanitizeSet => 3,
        ForwardClientCert::AlwaysForwardOnly => 4,
    };
    let server_header = match manager.server_header {
        ServerHeader::Overwrite => 0,
        ServerHeader::AppendIfAbsent => 1,
        ServerHeader::PassThrough => 2,
    };
    let slashes = match manager.escaped_slashes {
        EscapedSlashes::Keep => 1,
        EscapedSlashes::Reject => 2,
        EscapedSlashes::UnescapeAndRedirect => 3,
        EscapedSlashes::UnescapeAndForward => 4,
    };
    let message = message
        .str(10, manager.server_name.as_deref().unwrap_or_default())
        .duration(12, times.drain)
        .msgs(13, manager.access_log.iter().map(access_log))
        .wrapped_bool(14, manager.use_remote_address)
        .wrapped_bool(15, manager.generate_request_id)
        .uint(16, forward)
        .msg(17, client_cert_details(&manager.client_cert_details))
        .uint(19, manager.xff_num_trusted_hops.into())
        .bool(21, manager.skip_xff_append)
        .str(22, &manager.via)
        .msgs(23, manager.upgrades.iter().map(upgrade))
        .duration(24, times.stream_idle)
        .duration(26, times.delayed_close)
        .duration(28, times.request)
        .wrapped(29, manager.max_request_headers_bytes.div_ceil(1024))
        .wrapped_bool(30, manager.normalize_path)
        .bool(32, manager.preserve_external_request_id)
        .bool(33, manager.merge_slashes)
        .uint(34, server_header)
        .msg(35, common_http(manager))
        .maybe(36, manager.tracing.as_ref().and_then(request_id))
        .bool(37, manager.always_set_request_id_in_response)
        .bool(39, manager.strip_port == StripPort::Matching);
    let message = if manager.stream_error_on_invalid { message.wrapped_bool(40, true) } else { message };
    let message = if times.request_headers.is_zero() { message } else { message.duration(41, times.request_headers) };
    let message = if manager.strip_port == StripPort::Any { message.bool_always(42, true) } else { message };
    let message = message.uint(45, slashes).bool(47, manager.strip_trailing_host_dot);
    let message = match &manager.scheme_override {
        Some(scheme) => message.msg(48, Message::new().str_always(1, scheme)),
        None => message,
    };
    message.bool(51, manager.append_x_forwarded_port)
}

/// `HttpProtocolOptions`.
fn common_http(manager: &HttpManager) -> Message {
    let times = &manager.timeouts;
    let underscores = match manager.underscores {
        Underscores::Allow => 0,
        Underscores::Reject => 1,
        Underscores::Drop => 2,
    };
    let message = Message::new().duration(1, times.idle).wrapped(2, manager.max_headers);
    let message = if times.max_connection.is_zero() { message } else { message.duration(3, times.max_connection) };
    let message = if times.max_stream.is_zero() { message } else { message.duration(4, times.max_stream) };
    message.uint(5, underscores).wrapped_maybe(6, manager.max_requests_per_connection)
}

fn client_cert_details(details: &ClientCertDetails) -> Message {
    let message = if details.subject { Message::new().wrapped_bool(1, true) } else { Message::new() };
    message.bool(3, details.cert).bool(4, details.dns).bool(5, details.uri).bool(6, details.chain)
}

fn upgrade(upgrade: &Upgrade) -> Message {
    Message::new().str(1, &upgrade.kind).wrapped_bool(3, upgrade.enabled)
}
