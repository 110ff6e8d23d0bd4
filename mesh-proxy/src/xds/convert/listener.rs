//! Listeners, filter chains, network filters.

use std::time::Duration;

use mesh_api::model::{
    ClientCertDetails, Codec, ConnectionLimit, ConnectionRate, EscapedSlashes, FilterChain, FilterChainMatch,
    ForwardClientCert, HashSource, HttpManager, HttpTimeouts, Listener, ListenerFilter, NetworkFilter, PortRanges,
    RbacFilter, RouteSource, ServerHeader, SourceType, StripPort, TcpProxy, TcpTunnel, TrafficDirection, Underscores,
    Upgrade,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::listener::v3 as proto;
use mesh_api::xds::envoy::extensions::filters::listener as listener_filters;
use mesh_api::xds::envoy::extensions::filters::network;
use mesh_api::xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;

use super::Result;
use super::access_log::{access_logs, request_id, tracing};
use super::at::At;
use super::cluster::keepalive;
use super::dns_cache::dns_cache;
use super::ext_authz;
use super::http_filter::http_filter;
use super::istio_stats;
use super::rbac::rbac;
use super::route::route_config;
use super::tls;
use super::values::{
    address, bool_or, cidrs, duration_opt, duration_or, metadata, names, plain_metadata, port, token_bucket, type_name,
    typed_struct, u32_or, unpack,
};

pub fn listener(at: &At<'_>, l: &proto::Listener) -> Result<Listener> {
    if let Some(api) = &l.api_listener {
        return api_listener(at, l, api);
    }
    let unsupported = [
        ("udp_listener_config", l.udp_listener_config.is_some()),
        ("filter_chain_matcher", l.filter_chain_matcher.is_some()),
        ("fcds_config", l.fcds_config.is_some()),
        ("listener_specifier", l.listener_specifier.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return at.field(field).refuse("is not supported");
    }
    let traffic_direction = match core::TrafficDirection::try_from(l.traffic_direction) {
        Ok(core::TrafficDirection::Unspecified) => TrafficDirection::Unspecified,
        Ok(core::TrafficDirection::Inbound) => TrafficDirection::Inbound,
        Ok(core::TrafficDirection::Outbound) => TrafficDirection::Outbound,
        Err(_) => return at.field("traffic_direction").refuse("does not exist"),
    };
    let more = l.additional_addresses.iter().enumerate();
    let filters = l.listener_filters.iter().enumerate();
    let chains = l.filter_chains.iter().enumerate();
    let (metadata, origin) = metadata(l.metadata.as_ref());
    #[allow(deprecated)] // the older way not to bind
    let bound = l.deprecated_v1.as_ref().and_then(|v| v.bind_to_port);
    let mut listener_filters = Vec::new();
    for (i, filter) in filters {
        listener_filters.extend(listener_filter(&at.item("listener_filters", i), filter)?);
    }
    let use_original_dst = bool_or(l.use_original_dst, false);
    if use_original_dst && !listener_filters.contains(&ListenerFilter::OriginalDst) {
        // As Envoy does, which adds it at the end; here it comes first, so that ports that switch off an inspector are
        // those of the real destination.
        listener_filters.insert(0, ListenerFilter::OriginalDst);
    }
    Ok(Listener {
        name: l.name.as_str().into(),
        address: address(&at.field("address"), l.address.as_ref())?,
        additional_addresses: more
            .map(|(i, a)| address(&at.item("additional_addresses", i), a.address.as_ref()))
            .collect::<Result<_>>()?,
        bind_to_port: bool_or(l.bind_to_port.or(bound), true),
        use_original_dst,
        transparent: bool_or(l.transparent, false),
        listener_filters,
        listener_filters_timeout: duration_or(
            &at.field("listener_filters_timeout"),
            l.listener_filters_timeout.as_ref(),
            Duration::from_secs(15),
        )?,
        continue_on_listener_filters_timeout: l.continue_on_listener_filters_timeout,
        filter_chains: chains.map(|(i, c)| filter_chain(&at.item("filter_chains", i), c)).collect::<Result<_>>()?,
        default_filter_chain: l
            .default_filter_chain
            .as_ref()
            .map(|c| filter_chain(&at.field("default_filter_chain"), c))
            .transpose()?,
        per_connection_buffer_limit: u32_or(l.per_connection_buffer_limit_bytes, 1 << 20),
        access_log: access_logs(at, &l.access_log)?,
        traffic_direction,
        api_listener: false,
        origin,
        metadata,
    })
}

/// For gRPC clients; here so that a dump of one can be read.
fn api_listener(at: &At<'_>, l: &proto::Listener, api: &proto::ApiListener) -> Result<Listener> {
    let at = at.field("api_listener");
    let manager: hcm::HttpConnectionManager = unpack(&at, at.required(api.api_listener.as_ref())?)?;
    let manager = NetworkFilter::Http(Box::new(http_manager(&at, &manager)?));
    let unbound = mesh_api::model::Address::Socket(([0, 0, 0, 0], 0).into());
    Ok(Listener {
        name: l.name.as_str().into(),
        address: unbound,
        additional_addresses: vec![],
        bind_to_port: false,
        use_original_dst: false,
        transparent: false,
        listener_filters: vec![],
        listener_filters_timeout: Duration::from_secs(15),
        continue_on_listener_filters_timeout: false,
        filter_chains: vec![FilterChain {
            name: "".into(),
            matches: FilterChainMatch::default(),
            tls: None,
            transport_socket_connect_timeout: Duration::ZERO,
            filters: vec![manager],
            metadata: Default::default(),
        }],
        default_filter_chain: None,
        per_connection_buffer_limit: 1 << 20,
        access_log: vec![],
        traffic_direction: TrafficDirection::Unspecified,
        api_listener: true,
        origin: Default::default(),
        metadata: Default::default(),
    })
}

/// Ports for which a filter is off.
fn disabled_ports(at: &At<'_>, p: Option<&proto::ListenerFilterChainMatchPredicate>) -> Result<PortRanges> {
    use proto::listener_filter_chain_match_predicate::Rule as R;
    let Some(p) = p else { return Ok(vec![]) };
    let mut ranges = match at.required(p.rule.as_ref())? {
        R::DestinationPortRange(r) => {
            let bound = |n: i32| u16::try_from(n).map_err(|_| at.error("is not a range of ports"));
            // The end is excluded.
            vec![(bound(r.start)?, bound(r.end.saturating_sub(1))?)]
        }
        R::OrMatch(set) => {
            let mut all = Vec::new();
            for rule in &set.rules {
                all.extend(disabled_ports(at, Some(rule))?);
            }
            all
        }
        R::AnyMatch(true) => vec![(0, u16::MAX)],
        _ => return at.refuse("only ranges of ports are supported"),
    };
    ranges.sort_unstable();
    let mut merged: PortRanges = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match merged.last_mut() {
            Some((_, end)) if u32::from(from) <= u32::from(*end) + 1 => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    Ok(merged)
}

fn listener_filter(at: &At<'_>, f: &proto::ListenerFilter) -> Result<Option<ListenerFilter>> {
    use proto::listener_filter::ConfigType as C;
    let kind = match &f.config_type {
        Some(C::TypedConfig(any)) => type_name(any),
        Some(C::ConfigDiscovery(_)) => return at.refuse("filters by discovery are not supported"),
        None => f.name.as_str(),
    };
    let disabled = || disabled_ports(&at.field("filter_disabled"), f.filter_disabled.as_ref());
    Ok(Some(match kind {
        k if k.contains("original_dst") => ListenerFilter::OriginalDst,
        k if k.contains("tls_inspector") => ListenerFilter::TlsInspector { disabled_ports: disabled()? },
        k if k.contains("http_inspector") => ListenerFilter::HttpInspector { disabled_ports: disabled()? },
        k if k.contains("proxy_protocol") => {
            let config = match &f.config_type {
                Some(C::TypedConfig(any)) => unpack(at, any)?,
                _ => listener_filters::proxy_protocol::v3::ProxyProtocol::default(),
            };
            ListenerFilter::ProxyProtocol { allow_requests_without: config.allow_requests_without_proxy_protocol }
        }
        other => return at.refuse(format!("listener filter {:?} ({other}) is not supported", f.name)),
    }))
}

fn filter_chain(at: &At<'_>, c: &proto::FilterChain) -> Result<FilterChain> {
    let mut filters = Vec::with_capacity(c.filters.len());
    for (i, filter) in c.filters.iter().enumerate() {
        filters.extend(network_filter(&at.item("filters", i), filter)?);
    }
    if !matches!(filters.last(), Some(NetworkFilter::Http(_) | NetworkFilter::TcpProxy(_))) && !c.filters.is_empty() {
        return at.field("filters").refuse("the last one must be an HTTP manager or a TCP proxy");
    }
    let matches = c.filter_chain_match.as_ref().map(|m| chain_match(&at.field("filter_chain_match"), m)).transpose()?;
    let tls = c.transport_socket.as_ref().map(|s| tls::downstream(&at.field("transport_socket"), s)).transpose()?;
    Ok(FilterChain {
        name: c.name.as_str().into(),
        matches: matches.unwrap_or_default(),
        tls: tls.flatten(),
        transport_socket_connect_timeout: duration_or(
            &at.field("transport_socket_connect_timeout"),
            c.transport_socket_connect_timeout.as_ref(),
            Duration::ZERO,
        )?,
        filters,
        metadata: plain_metadata(c.metadata.as_ref()),
    })
}

fn chain_match(at: &At<'_>, m: &proto::FilterChainMatch) -> Result<FilterChainMatch> {
    use proto::filter_chain_match::ConnectionSourceType as S;
    if !m.address_suffix.is_empty() || m.suffix_len.is_some() {
        return at.refuse("address_suffix and suffix_len are not supported");
    }
    let source_type = match S::try_from(m.source_type) {
        Ok(S::Any) => SourceType::Any,
        Ok(S::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
        Ok(S::External) => SourceType::External,
        Err(_) => return at.field("source_type").refuse("does not exist"),
    };
    let ports = m.source_ports.iter().enumerate();
    Ok(FilterChainMatch {
        destination_port: m.destination_port.map(|p| port(&at.field("destination_port"), p.value)).transpose()?,
        prefix_ranges: cidrs(at, "prefix_ranges", &m.prefix_ranges)?,
        server_names: super::values::lower(&m.server_names),
        transport_protocol: m.transport_protocol.as_str().into(),
        application_protocols: names(&m.application_protocols),
        direct_source_prefix_ranges: cidrs(at, "direct_source_prefix_ranges", &m.direct_source_prefix_ranges)?,
        source_type,
        source_prefix_ranges: cidrs(at, "source_prefix_ranges", &m.source_prefix_ranges)?,
        source_ports: ports.map(|(i, p)| port(&at.item("source_ports", i), *p)).collect::<Result<_>>()?,
    })
}

/// `None`: a filter without effect here.
fn network_filter(at: &At<'_>, f: &proto::Filter) -> Result<Option<NetworkFilter>> {
    use proto::filter::ConfigType as C;
    let any = match &f.config_type {
        Some(C::TypedConfig(any)) => any,
        Some(C::ConfigDiscovery(_)) => return at.refuse("filters by discovery are not supported"),
        None if f.name.ends_with("sni_cluster") => return Ok(Some(NetworkFilter::SniCluster)),
        None => return at.refuse(format!("filter {:?} has no typed_config", f.name)),
    };
    let at = at.field("typed_config");
    if let Some((inner, value)) = typed_struct(&at, any)? {
        return match inner.as_str() {
            "stats.PluginConfig" => Ok(Some(NetworkFilter::IstioStats(istio_stats::of_struct(&at, &value)?))),
            _ => at.refuse(format!("filter {:?} ({inner}) is not supported", f.name)),
        };
    }
    Ok(Some(match type_name(any) {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            NetworkFilter::Http(Box::new(http_manager(&at, &unpack(&at, any)?)?))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            NetworkFilter::TcpProxy(Box::new(tcp_proxy(&at, &unpack(&at, any)?)?))
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let config: network::rbac::v3::Rbac = unpack(&at, any)?;
            if config.matcher.is_some() || config.shadow_matcher.is_some() {
                return at.refuse("matchers are not supported, use rules");
            }
            NetworkFilter::Rbac(RbacFilter {
                stat_prefix: config.stat_prefix.as_str().into(),
                rules: config.rules.as_ref().map(|r| rbac(&at.field("rules"), r)).transpose()?,
                shadow_rules: config.shadow_rules.as_ref().map(|r| rbac(&at.field("shadow_rules"), r)).transpose()?,
                shadow_prefix: config.shadow_rules_stat_prefix.as_str().into(),
            })
        }
        "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => {
            NetworkFilter::ExtAuthz(Box::new(ext_authz::connection(&at, &unpack(&at, any)?)?))
        }
        "envoy.extensions.filters.network.sni_cluster.v3.SniCluster" => NetworkFilter::SniCluster,
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig" => {
            use network::sni_dynamic_forward_proxy::v3 as sni;
            let config: sni::FilterConfig = unpack(&at, any)?;
            let number = match config.port_specifier {
                Some(sni::filter_config::PortSpecifier::PortValue(n)) => port(&at.field("port_value"), n)?,
                None => 443,
            };
            let cache = at.field("dns_cache_config");
            let cache = dns_cache(&cache, cache.required(config.dns_cache_config.as_ref())?)?;
            NetworkFilter::SniDynamicForwardProxy { cache, port: number }
        }
        "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit" => {
            let config: network::connection_limit::v3::ConnectionLimit = unpack(&at, any)?;
            let max = at.field("max_connections");
            let limit = max.required(config.max_connections)?.value;
            if limit == 0 {
                return max.refuse("must be 1 at least");
            }
            NetworkFilter::ConnectionLimit(ConnectionLimit {
                stat_prefix: config.stat_prefix.as_str().into(),
                max: limit,
                delay: duration_or(&at.field("delay"), config.delay.as_ref(), Duration::ZERO)?,
                enabled: is_on(config.runtime_enabled.as_ref()),
            })
        }
        "envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit" => {
            let config: network::local_ratelimit::v3::LocalRateLimit = unpack(&at, any)?;
            let bucket = at.field("token_bucket");
            NetworkFilter::LocalRateLimit(ConnectionRate {
                stat_prefix: config.stat_prefix.as_str().into(),
                bucket: token_bucket(&bucket, bucket.required(config.token_bucket.as_ref())?)?,
                share_key: config.share_key.as_str().into(),
                enabled: is_on(config.runtime_enabled.as_ref()),
            })
        }
        "envoy.tcp.metadataexchange.config.MetadataExchange" => NetworkFilter::MetadataExchange,
        "stats.PluginConfig" => NetworkFilter::IstioStats(istio_stats::of_any(&at, any)?),
        "envoy.extensions.filters.network.set_filter_state.v3.Config" => NetworkFilter::SetFilterState,
        other => return at.refuse(format!("filter {:?} ({other}) is not supported", f.name)),
    }))
}

/// A flag that only the runtime could change, which is not supported: its default counts.
fn is_on(flag: Option<&core::RuntimeFeatureFlag>) -> bool {
    flag.and_then(|f| f.default_value).is_none_or(|v| v.value)
}

fn tcp_proxy(at: &At<'_>, p: &network::tcp_proxy::v3::TcpProxy) -> Result<TcpProxy> {
    use mesh_api::xds::envoy::r#type::v3::hash_policy::PolicySpecifier as H;
    use network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as C;
    let clusters = match at.required(p.cluster_specifier.as_ref())? {
        C::Cluster(name) => vec![(name.as_str().into(), 1)],
        C::WeightedClusters(all) => all.clusters.iter().map(|c| (c.name.as_str().into(), c.weight)).collect(),
    };
    let mut hash = Vec::new();
    for (i, policy) in p.hash_policy.iter().enumerate() {
        match &policy.policy_specifier {
            Some(H::SourceIp(_)) => hash.push(HashSource::SourceIp),
            Some(H::FilterState(f)) => hash.push(HashSource::FilterState(f.key.as_str().into())),
            None => return at.item("hash_policy", i).refuse("is empty"),
        }
    }
    Ok(TcpProxy {
        stat_prefix: p.stat_prefix.as_str().into(),
        clusters,
        idle_timeout: duration_or(&at.field("idle_timeout"), p.idle_timeout.as_ref(), Duration::from_secs(3600))?,
        max_connection_duration: duration_opt(
            &at.field("max_downstream_connection_duration"),
            p.max_downstream_connection_duration.as_ref(),
        )?,
        max_connect_attempts: u32_or(p.max_connect_attempts, 1).max(1),
        hash,
        tunnel: p.tunneling_config.as_ref().map(|t| tunnel(&at.field("tunneling_config"), t)).transpose()?,
        access_log: access_logs(at, &p.access_log)?,
        metadata_match: plain_metadata(p.metadata_match.as_ref()),
    })
}

fn tunnel(at: &At<'_>, t: &network::tcp_proxy::v3::tcp_proxy::TunnelingConfig) -> Result<TcpTunnel> {
    if t.hostname.is_empty() {
        return at.field("hostname").refuse("is required");
    }
    if t.hostname.contains('%') {
        return at.field("hostname").refuse("command operators are not supported");
    }
    if !t.headers_to_add.is_empty() {
        return at.field("headers_to_add").refuse("is not supported");
    }
    let path = if t.post_path.is_empty() { "/" } else { t.post_path.as_str() };
    Ok(TcpTunnel { hostname: t.hostname.as_str().into(), post_path: t.use_post.then(|| path.into()) })
}

fn http_manager(at: &At<'_>, m: &hcm::HttpConnectionManager) -> Result<HttpManager> {
    use hcm::http_connection_manager::{CodecType, RouteSpecifier as R};
    let (routes, fetch) = match at.required(m.route_specifier.as_ref())? {
        R::Rds(rds) => {
            let timeout = rds.config_source.as_ref().and_then(|c| c.initial_fetch_timeout.as_ref());
            (RouteSource::Rds(rds.route_config_name.as_str().into()), timeout)
        }
        R::RouteConfig(config) => {
            // Inline tables name clusters that may come later unless they say that they want a check.
            let config = route_config(&at.field("route_config"), config, false)?;
            (RouteSource::Inline(Box::new(config)), None)
        }
        R::ScopedRoutes(_) => return at.field("scoped_routes").refuse("is not supported"),
    };
    let mut filters = Vec::with_capacity(m.http_filters.len());
    for (i, filter) in m.http_filters.iter().enumerate() {
        filters.extend(http_filter(&at.item("http_filters", i), filter)?);
    }
    let mut out = HttpManager::new(m.stat_prefix.as_str(), routes, filters);
    out.codec = match CodecType::try_from(m.codec_type) {
        Ok(CodecType::Auto) => Codec::Auto,
        Ok(CodecType::Http1) => Codec::Http1,
        Ok(CodecType::Http2) => Codec::Http2,
        _ => return at.field("codec_type").refuse("is not supported"),
    };
    out.rds_fetch_timeout = duration_or(&at.field("rds.initial_fetch_timeout"), fetch, out.rds_fetch_timeout)?;
    out.access_log = access_logs(at, &m.access_log)?;
    out.tracing = m.tracing.as_ref().map(|t| tracing(&at.field("tracing"), t)).transpose()?;
    if let Some(extension) = &m.request_id_extension {
        let how = request_id(&at.field("request_id_extension"), extension)?;
        if let Some(tracing) = &mut out.tracing {
            tracing.request_id = how;
        }
    }
    http_manager_headers(at, m, &mut out)?;
    http_manager_limits(at, m, &mut out)?;
    Ok(out)
}

fn http_manager_headers(at: &At<'_>, m: &hcm::HttpConnectionManager, out: &mut HttpManager) -> Result<()> {
    use hcm::http_connection_manager::{
        ForwardClientCertDetails as F, PathWithEscapedSlashesAction as P, ServerHeaderTransformation as S,
    };
    out.server_name = (!m.server_name.is_empty()).then(|| m.server_name.as_str().into());
    out.server_header = match S::try_from(m.server_header_transformation) {
        Ok(S::Overwrite) => ServerHeader::Overwrite,
        Ok(S::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
        Ok(S::PassThrough) => ServerHeader::PassThrough,
        Err(_) => return at.field("server_header_transformation").refuse("does not exist"),
    };
    out.use_remote_address = bool_or(m.use_remote_address, false);
    out.xff_num_trusted_hops = m.xff_num_trusted_hops;
    out.skip_xff_append = m.skip_xff_append;
    out.append_x_forwarded_port = m.append_x_forwarded_port;
    out.forward_client_cert = match F::try_from(m.forward_client_cert_details) {
        Ok(F::Sanitize) => ForwardClientCert::Sanitize,
        Ok(F::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Ok(F::AppendForward) => ForwardClientCert::AppendForward,
        Ok(F::SanitizeSet) => ForwardClientCert::SanitizeSet,
        Ok(F::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
        Err(_) => return at.field("forward_client_cert_details").refuse("does not exist"),
    };
    if let Some(details) = &m.set_current_client_cert_details {
        out.client_cert_details = ClientCertDetails {
            subject: bool_or(details.subject, false),
            cert: details.cert,
            chain: details.chain,
            dns: details.dns,
            uri: details.uri,
        };
    }
    out.generate_request_id = bool_or(m.generate_request_id, true);
    out.preserve_external_request_id = m.preserve_external_request_id;
    out.always_set_request_id_in_response = m.always_set_request_id_in_response;
    out.normalize_path = bool_or(m.normalize_path, false);
    out.merge_slashes = m.merge_slashes;
    out.escaped_slashes = match P::try_from(m.path_with_escaped_slashes_action) {
        Ok(P::ImplementationSpecificDefault | P::KeepUnchanged) => EscapedSlashes::Keep,
        Ok(P::RejectRequest) => EscapedSlashes::Reject,
        Ok(P::UnescapeAndRedirect) => EscapedSlashes::UnescapeAndRedirect,
        Ok(P::UnescapeAndForward) => EscapedSlashes::UnescapeAndForward,
        Err(_) => return at.field("path_with_escaped_slashes_action").refuse("does not exist"),
    };
    use hcm::http_connection_manager::StripPortMode::StripAnyHostPort;
    out.strip_port = match (&m.strip_port_mode, m.strip_matching_host_port) {
        (Some(StripAnyHostPort(true)), _) => StripPort::Any,
        (_, true) => StripPort::Matching,
        _ => StripPort::No,
    };
    out.strip_trailing_host_dot = m.strip_trailing_host_dot;
    out.via = m.via.as_str().into();
    out.upgrades = m
        .upgrade_configs
        .iter()
        .map(|u| Upgrade {
            kind: u.upgrade_type.as_str().into(),
            enabled: bool_or(u.enabled, true),
            terminate_connect: false,
        })
        .collect();
    use core::scheme_header_transformation::Transformation::SchemeToOverwrite;
    let scheme = m.scheme_header_transformation.as_ref().and_then(|s| s.transformation.as_ref());
    out.scheme_override = scheme.map(|SchemeToOverwrite(scheme)| scheme.as_str().into());
    Ok(())
}

fn http_manager_limits(at: &At<'_>, m: &hcm::HttpConnectionManager, out: &mut HttpManager) -> Result<()> {
    let default = HttpTimeouts::default();
    let common = m.common_http_protocol_options.unwrap_or_default();
    let field = |name: &'static str| at.field(name);
    out.timeouts = HttpTimeouts {
        idle: duration_or(
            &field("common_http_protocol_options.idle_timeout"),
            common.idle_timeout.as_ref(),
            default.idle,
        )?,
        stream_idle: duration_or(&field("stream_idle_timeout"), m.stream_idle_timeout.as_ref(), default.stream_idle)?,
        request: duration_or(&field("request_timeout"), m.request_timeout.as_ref(), default.request)?,
        request_headers: duration_or(
            &field("request_headers_timeout"),
            m.request_headers_timeout.as_ref(),
            default.request_headers,
        )?,
        max_connection: duration_or(
            &field("common_http_protocol_options.max_connection_duration"),
            common.max_connection_duration.as_ref(),
            default.max_connection,
        )?,
        max_stream: duration_or(
            &field("common_http_protocol_options.max_stream_duration"),
            common.max_stream_duration.as_ref(),
            default.max_stream,
        )?,
        drain: duration_or(&field("drain_timeout"), m.drain_timeout.as_ref(), default.drain)?,
        delayed_close: duration_or(
            &field("delayed_close_timeout"),
            m.delayed_close_timeout.as_ref(),
            default.delayed_close,
        )?,
    };
    out.max_request_headers_bytes = u32_or(m.max_request_headers_kb, 60).saturating_mul(1024);
    out.max_headers = u32_or(common.max_headers_count, 100);
    out.max_requests_per_connection = common.max_requests_per_connection.map(|v| v.value).filter(|n| *n > 0);
    use core::http_protocol_options::HeadersWithUnderscoresAction as U;
    out.underscores = match U::try_from(common.headers_with_underscores_action) {
        Ok(U::Allow) => Underscores::Allow,
        Ok(U::RejectRequest) => Underscores::Reject,
        Ok(U::DropHeader) => Underscores::Drop,
        Err(_) => return at.field("headers_with_underscores_action").refuse("does not exist"),
    };
    if let Some(http2) = &m.http2_protocol_options {
        out.max_concurrent_streams = http2.max_concurrent_streams.map(|v| v.value);
        out.initial_stream_window = http2.initial_stream_window_size.map(|v| v.value);
        out.initial_connection_window = http2.initial_connection_window_size.map(|v| v.value);
        out.keepalive = keepalive(&at.field("http2_protocol_options.connection_keepalive"), http2)?;
    }
    if let Some(http1) = &m.http_protocol_options {
        out.accept_http_10 = http1.accept_http_10;
        out.default_host_http_10 = http1.default_host_for_http_10.as_str().into();
    }
    out.stream_error_on_invalid = bool_or(m.stream_error_on_invalid_http_message, false);
    Ok(())
}
