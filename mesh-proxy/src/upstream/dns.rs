//! Endpoints by name: asks the system's resolvers, turns answers into endpoint sets (strict) or into addresses of one
//! endpoint (logical), keeps the last good answer when a question fails.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    lookup_ip::LookupIp,
};
use mesh_api::model::{Address, DnsCache, DnsFamily, EndpointSet, Name};
use tokio::time::Instant;

use super::{Cluster, Random, balance::ThreadRandom, names::Lookup};

/// Names of one cluster that are asked for at once.
const AT_ONCE: usize = 16;
/// Least time between two rounds, whatever TTL says.
const LEAST_REFRESH: Duration = Duration::from_millis(100);
/// Rounds are spread by up to this share, in percent.
const JITTER: u64 = 10;
/// A failed round is repeated after this, when the refresh rate is longer.
const RETRY: Duration = Duration::from_secs(5);

/// Resolves the cluster's names again and again, as long as it lives.
pub(super) async fn run(cluster: Weak<Cluster>, set: Arc<EndpointSet>, logical: bool) {
    let (family, refresh, respect_ttl) = match cluster.upgrade() {
        Some(c) => (c.config.dns_family, c.config.dns_refresh, c.config.respect_dns_ttl),
        None => return,
    };
    let mut known: std::collections::HashMap<Name, Vec<IpAddr>> = std::collections::HashMap::new();
    loop {
        let names: BTreeSet<Name> = hosts(&set).map(|(host, _)| host.clone()).collect();
        if let Some(c) = cluster.upgrade() {
            c.stats.update_attempt.inc();
        }
        let mut ttl = Duration::MAX;
        let mut failed = false;
        let names: Vec<Name> = names.into_iter().collect();
        for chunk in names.chunks(AT_ONCE) {
            let answers = futures_util::future::join_all(chunk.iter().map(|name| lookup(name, family))).await;
            for (name, answer) in chunk.iter().zip(answers) {
                match answer {
                    Ok((addresses, until)) => {
                        ttl = ttl.min(until);
                        known.insert(name.clone(), addresses);
                    }
                    Err(e) => {
                        failed = true;
                        tracing::debug!(host = %name, error = %e, "name cannot be resolved");
                    }
                }
            }
        }
        {
            let Some(c) = cluster.upgrade() else { return };
            if failed {
                c.stats.update_failure.inc();
            }
            if logical {
                publish_logical(&c, &set, &known);
            } else {
                c.set_endpoints(Arc::new(expand(&set, &known)));
            }
        }
        if names.is_empty() {
            return;
        }
        let mut wait = if respect_ttl && ttl != Duration::MAX { ttl } else { refresh };
        if failed {
            wait = wait.min(RETRY);
        }
        let wait = wait.max(LEAST_REFRESH);
        let percent = ThreadRandom.below(JITTER);
        tokio::time::sleep(wait + wait * u32::try_from(percent).unwrap_or(0) / 100).await;
    }
}

fn hosts(set: &EndpointSet) -> impl Iterator<Item = (&Name, u16)> {
    set.localities.iter().flat_map(|l| &l.endpoints).filter_map(|e| match &e.address {
        Address::Host(host, port) => Some((host, *port)),
        _ => None,
    })
}

/// Every address of a name becomes an endpoint.
fn expand(set: &EndpointSet, known: &std::collections::HashMap<Name, Vec<IpAddr>>) -> EndpointSet {
    let mut out = set.clone();
    for group in &mut out.localities {
        group.endpoints = std::mem::take(&mut group.endpoints)
            .into_iter()
            .flat_map(|e| match &e.address {
                Address::Host(host, port) => {
                    let (host, port) = (host.clone(), *port);
                    let addresses = known.get(&host).cloned().unwrap_or_default();
                    addresses
                        .into_iter()
                        .map(|ip| {
                            let mut one = e.clone();
                            one.address = Address::Socket(SocketAddr::new(ip, port));
                            if one.hostname.is_empty() {
                                one.hostname = host.clone();
                            }
                            one
                        })
                        .collect::<Vec<_>>()
                }
                _ => vec![e],
            })
            .collect();
    }
    out
}

/// The endpoint keeps its identity; new connections go to what the name says now.
fn publish_logical(cluster: &Cluster, set: &Arc<EndpointSet>, known: &std::collections::HashMap<Name, Vec<IpAddr>>) {
    let mut named = EndpointSet::clone(set);
    for group in &mut named.localities {
        // A name that was never resolved is no endpoint.
        group.endpoints.retain_mut(|e| match &e.address {
            Address::Host(host, _) => {
                if e.hostname.is_empty() {
                    e.hostname = host.clone();
                }
                known.get(host).is_some_and(|a| !a.is_empty())
            }
            _ => true,
        });
    }
    cluster.set_resolved(Arc::new(named), |address| match address {
        Address::Host(host, port) => {
            known.get(host).map(|ips| ips.iter().map(|ip| SocketAddr::new(*ip, *port)).collect())
        }
        _ => None,
    });
}

/// Addresses and for how long they hold.
async fn lookup(name: &str, family: DnsFamily) -> Result<(Vec<IpAddr>, Duration), String> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok((vec![ip], Duration::MAX));
    }
    let resolver = resolver(family)?;
    let answer = resolver.lookup_ip(name).await.map_err(|e| e.to_string())?;
    Ok(sorted(&answer, family))
}

fn sorted(answer: &LookupIp, family: DnsFamily) -> (Vec<IpAddr>, Duration) {
    let mut addresses: Vec<IpAddr> = answer.iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    match family {
        DnsFamily::Auto | DnsFamily::V6Only => addresses.sort_by_key(|a| !a.is_ipv6()),
        _ => {}
    }
    let ttl = answer.valid_until().saturating_duration_since(Instant::now().into_std());
    (addresses, ttl)
}

/// How the names of a cache are looked up: by the resolvers it names, else by the system's.
pub(super) fn lookup_of(config: &DnsCache) -> Lookup {
    let family = config.family;
    let own = (!config.resolvers.is_empty()).then(|| own_resolver(config));
    Arc::new(move |name: Name| {
        let own = own.clone();
        Box::pin(async move {
            let resolver = match &own {
                Some(made) => made.as_ref().map_err(|e| cause(e))?,
                None => resolver(family).map_err(|e| cause(&e))?,
            };
            match resolver.lookup_ip(&*name).await {
                Ok(answer) => {
                    let (addresses, ttl) = sorted(&answer, family);
                    Ok((addresses, Some(ttl)))
                }
                Err(e) if e.is_nx_domain() => Err("not_found".into()),
                Err(e) if e.is_no_records_found() => Err("no_records".into()),
                Err(e) => Err(cause(&e.to_string())),
            }
        })
    })
}

/// In one word, for logs.
fn cause(text: &str) -> Name {
    text.replace(|c: char| c.is_whitespace() || c.is_control(), "_").into()
}

fn own_resolver(config: &DnsCache) -> Result<Arc<TokioResolver>, String> {
    let servers = config.resolvers.iter().map(|at| {
        let mut server = NameServerConfig::new(at.ip(), true, vec![ConnectionConfig::udp(), ConnectionConfig::tcp()]);
        server.connections.iter_mut().for_each(|c| c.port = at.port());
        server
    });
    let servers = ResolverConfig::from_name_servers(servers.collect());
    let mut builder = TokioResolver::builder_with_config(servers, Default::default());
    builder.options_mut().ip_strategy = strategy(config.family);
    builder.build().map(Arc::new).map_err(|e| e.to_string())
}

fn strategy(family: DnsFamily) -> LookupIpStrategy {
    match family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

/// One resolver a family, made when first needed, with the system's configuration.
fn resolver(family: DnsFamily) -> Result<&'static TokioResolver, String> {
    static RESOLVERS: [OnceLock<TokioResolver>; 5] = [const { OnceLock::new() }; 5];
    let slot = match family {
        DnsFamily::Auto => &RESOLVERS[0],
        DnsFamily::V4Only => &RESOLVERS[1],
        DnsFamily::V6Only => &RESOLVERS[2],
        DnsFamily::V4Preferred => &RESOLVERS[3],
        DnsFamily::All => &RESOLVERS[4],
    };
    if let Some(resolver) = slot.get() {
        return Ok(resolver);
    }
    let mut builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
    builder.options_mut().ip_strategy = strategy(family);
    let resolver = builder.build().map_err(|e| e.to_string())?;
    Ok(slot.get_or_init(|| resolver))
}
