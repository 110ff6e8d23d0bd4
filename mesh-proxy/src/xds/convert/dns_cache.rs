//! DNS caches of dynamic forward proxies, and the clusters that have one.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_api::model::{Address, Discovery, DnsCache, DnsFamily};
use mesh_api::xds::envoy::config::cluster::v3 as cluster;
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dynamic;
use mesh_api::xds::envoy::extensions::common::dynamic_forward_proxy::v3 as proto;
use mesh_api::xds::envoy::extensions::network::dns_resolver::cares::v3 as cares;

use super::Result;
use super::at::At;
use super::values::{address, duration_or, type_name, u32_or, unpack};

/// `DnsLookupFamily`.
pub fn family(at: &At<'_>, value: i32) -> Result<DnsFamily> {
    use cluster::cluster::DnsLookupFamily as F;
    Ok(match F::try_from(value) {
        Ok(F::Auto) => DnsFamily::Auto,
        Ok(F::V4Only) => DnsFamily::V4Only,
        Ok(F::V6Only) => DnsFamily::V6Only,
        Ok(F::V4Preferred) => DnsFamily::V4Preferred,
        Ok(F::All) => DnsFamily::All,
        Err(_) => return at.field("dns_lookup_family").refuse("does not exist"),
    })
}

/// A cluster type by name; `DYNAMIC_FORWARD_PROXY` is the one there is.
pub fn cluster_type(at: &At<'_>, custom: &cluster::cluster::CustomClusterType) -> Result<Discovery> {
    use dynamic::cluster_config::ClusterImplementationSpecifier as S;
    let at = at.field("typed_config");
    let any = match &custom.typed_config {
        Some(any) if type_name(any) == "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig" => any,
        _ => return at.refuse(format!("cluster type {:?} is not supported", custom.name)),
    };
    let config: dynamic::ClusterConfig = unpack(&at, any)?;
    match &config.cluster_implementation_specifier {
        Some(S::DnsCacheConfig(cache)) => Ok(Discovery::Dynamic(dns_cache(&at.field("dns_cache_config"), cache)?)),
        Some(S::SubClustersConfig(_)) => at.field("sub_clusters_config").refuse("is not supported"),
        None => at.field("dns_cache_config").refuse("is required"),
    }
}

/// Whether a cluster says that names of servers need not be checked (`allow_insecure_cluster_options`).
pub fn allows_insecure(at: &At<'_>, custom: &cluster::cluster::CustomClusterType) -> Result<bool> {
    let Some(any) = &custom.typed_config else { return Ok(false) };
    let config: dynamic::ClusterConfig = unpack(at, any)?;
    Ok(config.allow_insecure_cluster_options)
}

/// `DnsCacheConfig`.
#[allow(deprecated)] // older fields are still in static files
pub fn dns_cache(at: &At<'_>, c: &proto::DnsCacheConfig) -> Result<DnsCache> {
    if c.name.is_empty() {
        return at.field("name").refuse("is required");
    }
    let unsupported = [
        ("key_value_config", c.key_value_config.is_some()),
        ("resolved_address_filter", c.resolved_address_filter.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return at.field(field).refuse("is not supported");
    }
    let mut out = DnsCache::new(c.name.as_str());
    out.family = family(at, c.dns_lookup_family)?;
    let above_zero = |field: &str, value, default: Duration| {
        let value = duration_or(&at.field(field), value, default)?;
        if value.is_zero() { at.field(field).refuse("must be above zero") } else { Ok(value) }
    };
    out.refresh = above_zero("dns_refresh_rate", c.dns_refresh_rate.as_ref(), out.refresh)?;
    out.min_refresh = above_zero("dns_min_refresh_rate", c.dns_min_refresh_rate.as_ref(), out.min_refresh)?;
    out.host_ttl = above_zero("host_ttl", c.host_ttl.as_ref(), out.host_ttl)?;
    // Zero means no limit, as in Envoy.
    out.query_timeout = duration_or(&at.field("dns_query_timeout"), c.dns_query_timeout.as_ref(), out.query_timeout)?;
    out.max_hosts = u32_or(c.max_hosts, out.max_hosts);
    if out.max_hosts == 0 {
        return at.field("max_hosts").refuse("must be above zero");
    }
    if let Some(rate) = &c.dns_failure_refresh_rate {
        let at = at.field("dns_failure_refresh_rate");
        let base = duration_or(&at.field("base_interval"), rate.base_interval.as_ref(), out.refresh)?;
        let most = duration_or(&at.field("max_interval"), rate.max_interval.as_ref(), base.saturating_mul(10))?;
        if base.is_zero() || most < base {
            return at.refuse("base_interval must be above zero and not above max_interval");
        }
        out.failure_refresh = Some((base, most));
    }
    if let Some(limit) = &c.dns_cache_circuit_breaker {
        out.max_pending = u32_or(limit.max_pending_requests, out.max_pending);
    }
    out.resolvers = match (&c.typed_dns_resolver_config, &c.dns_resolution_config) {
        (Some(resolver), _) => typed_resolver(&at.field("typed_dns_resolver_config"), resolver)?,
        (None, Some(old)) => resolvers(&at.field("dns_resolution_config"), &old.resolvers)?,
        (None, None) => vec![],
    };
    Ok(out)
}

fn typed_resolver(at: &At<'_>, config: &core::TypedExtensionConfig) -> Result<Vec<SocketAddr>> {
    let any = at.field("typed_config").required(config.typed_config.as_ref())?;
    match type_name(any) {
        "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig" => {
            let config: cares::CaresDnsResolverConfig = unpack(at, any)?;
            // Ours would be asked when the system has none; it always has one, or there is no answer.
            if config.use_resolvers_as_fallback { Ok(vec![]) } else { resolvers(at, &config.resolvers) }
        }
        // The system's, in its own way.
        "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
        | "envoy.extensions.network.dns_resolver.apple.v3.AppleDnsResolverConfig" => Ok(vec![]),
        other => at.refuse(format!("resolver {other} is not supported")),
    }
}

fn resolvers(at: &At<'_>, all: &[core::Address]) -> Result<Vec<SocketAddr>> {
    let one = |(i, a): (usize, &core::Address)| {
        let at = at.item("resolvers", i);
        match address_of(&at, a)? {
            Address::Socket(a) => Ok(SocketAddr::new(a.ip(), if a.port() == 0 { 53 } else { a.port() })),
            _ => at.refuse("is not an IP address"),
        }
    };
    all.iter().enumerate().map(one).collect()
}

/// Resolvers are asked over UDP, which may be said or not.
fn address_of(at: &At<'_>, a: &core::Address) -> Result<Address> {
    let mut plain = a.clone();
    if let Some(core::address::Address::SocketAddress(socket)) = &mut plain.address {
        socket.protocol = 0;
    }
    address(at, Some(&plain))
}
