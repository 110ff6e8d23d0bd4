//! DNS caches of dynamic forward proxies (`envoy.extensions.common.dynamic_forward_proxy.v3.DnsCacheConfig`).

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;

use super::{DnsFamily, Name};

/// Names that are looked up when somebody asks for them, and what is remembered of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct DnsCache {
    /// Those of one name are one cache, and must be equal.
    pub name: Name,
    /// Which address families are asked for.
    pub family: DnsFamily,
    /// Time between two look-ups of a name whose answer has no time to live; 60 s by default.
    pub refresh: Duration,
    /// Least time between two look-ups of a name; 5 s by default.
    pub min_refresh: Duration,
    /// How long a name is kept that nobody asks for; 5 min by default.
    pub host_ttl: Duration,
    /// Most names; 1,024 by default.
    pub max_hosts: u32,
    /// Time until a name that could not be looked up is looked up again: the first, and the longest (it doubles).
    /// `None`: `refresh`.
    pub failure_refresh: Option<(Duration, Duration)>,
    /// Most requests that wait for an answer; 1,024 by default.
    pub max_pending: u32,
    /// Limit of one look-up; 5 s by default.
    pub query_timeout: Duration,
    /// Who is asked; empty: the system's resolvers.
    pub resolvers: Vec<SocketAddr>,
}

impl DnsCache {
    /// Envoy's defaults.
    pub fn new(name: impl Into<Name>) -> Self {
        Self {
            name: name.into(),
            family: DnsFamily::Auto,
            refresh: Duration::from_secs(60),
            min_refresh: Duration::from_secs(5),
            host_ttl: Duration::from_secs(300),
            max_hosts: 1024,
            failure_refresh: None,
            max_pending: 1024,
            query_timeout: Duration::from_secs(5),
            resolvers: vec![],
        }
    }
}
