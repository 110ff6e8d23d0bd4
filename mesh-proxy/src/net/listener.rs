//! Compiled listeners and filter chains.
//!
//! A chain whose content did not change survives an update of its listener together with its connections; a chain of
//! which only the HTTP manager changed keeps its connections too, whose next request meets the new manager; every other
//! change drains the old chain's connections.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use arc_swap::ArcSwap;
use mesh_api::model::{self, Address, ListenerFilter, Name, NetworkFilter};

use super::limits::{ConnectionLimit, ConnectionRate};
use super::matching::{ChainTable, MatchInput};
use crate::{
    config::{CompileCtx, ConfigError},
    drain,
    http::{
        filters::{ext_authz::ExtAuthz, rbac},
        manager::HttpManager,
        stats::ExchangeSink,
    },
    tcp::TcpProxy,
    tls::ServerTls,
};

/// A compiled listener.
#[derive(Debug)]
pub struct Listener {
    /// As it was declared.
    pub config: Arc<model::Listener>,
    /// Counters; survive updates.
    pub stats: Arc<ListenerStats>,
    /// Where every connection is logged when it ends, or is refused.
    pub log: Option<Arc<dyn ExchangeSink>>,
    table: ChainTable,
    chains: Vec<Arc<Chain>>,
    default: Option<Arc<Chain>>,
}

/// Counters of a listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Connections ever.
    pub connections: AtomicU64,
    /// Connections now.
    pub active: AtomicU64,
    /// Connections for which there was no filter chain.
    pub no_filter_chain_match: AtomicU64,
    /// Connections that listener filters refused.
    pub refused: AtomicU64,
    /// Connections whose listener filters took too long.
    pub inspection_timeout: AtomicU64,
    /// Failed TLS handshakes.
    pub tls_errors: AtomicU64,
    /// Connections refused by a limit of the process.
    pub overflow: AtomicU64,
}

/// A compiled filter chain.
pub struct Chain {
    /// As it was declared.
    pub config: Arc<model::FilterChain>,
    /// TLS termination.
    pub tls: Option<Arc<ServerTls>>,
    /// Filters before the terminal one.
    pub filters: Arc<Vec<NetFilter>>,
    /// What live connections are checked against: the filters of the newest version they were carried on to.
    pub policy: Arc<ArcSwap<Vec<NetFilter>>>,
    /// Who serves the connection; `None`: it is closed.
    pub terminal: Option<Terminal>,
    /// Fires when this chain goes away.
    pub drain: drain::Trigger,
}

/// A compiled network filter.
#[derive(Debug)]
pub enum NetFilter {
    /// Lets a connection through or not.
    Rbac {
        /// What is enforced; `None`: nothing.
        enforced: Option<rbac::Engine>,
        /// What is only told.
        shadow: Option<rbac::Engine>,
        /// In front of the names under which it is told.
        shadow_prefix: Name,
    },
    /// Asks an external authorizer.
    ExtAuthz(Arc<ExtAuthz>),
    /// The cluster is the SNI.
    SniCluster,
    /// The host that a cluster found by name is asked for is the SNI, at this port.
    SniHost(u16),
    /// At most so many connections at once.
    ConnectionLimit(Arc<ConnectionLimit>),
    /// At most so many in a time.
    ConnectionRate(Arc<ConnectionRate>),
}

/// The last filter of a chain.
#[derive(Debug)]
pub enum Terminal {
    /// Speaks HTTP.
    Http {
        /// The manager of this version of the chain.
        manager: Arc<HttpManager>,
        /// What connections use: the manager of the newest version that they were carried on to.
        live: Arc<ArcSwap<HttpManager>>,
    },
    /// Forwards bytes.
    Tcp(Arc<TcpProxy>),
}

impl Listener {
    /// Compiles a listener, taking over what did not change from its predecessor.
    ///
    /// # Errors
    /// With the filter chain and the reason.
    pub fn compile(
        config: Arc<model::Listener>,
        previous: Option<&Listener>,
        ctx: &CompileCtx,
    ) -> Result<Self, ConfigError> {
        let table =
            ChainTable::build(config.filter_chains.iter().map(|c| (&c.name, &c.matches))).map_err(ConfigError::new)?;
        let mut chains = Vec::with_capacity(config.filter_chains.len());
        for chain in &config.filter_chains {
            chains.push(Chain::compile(chain, previous, ctx)?);
        }
        let default = match &config.default_filter_chain {
            Some(chain) => Some(Chain::compile(chain, previous, ctx)?),
            None => None,
        };
        let stats = previous.map(|p| p.stats.clone()).unwrap_or_default();
        let log = ctx.shared.telemetry.listener_sink(&config.access_log, ctx)?;
        Ok(Self { config, stats, log, table, chains, default })
    }

    /// The chain for a connection.
    pub fn find_chain(&self, input: &MatchInput<'_>) -> Option<&Arc<Chain>> {
        self.table.find(input).and_then(|at| self.chains.get(at)).or(self.default.as_ref())
    }

    /// All chains, the default one last.
    pub fn chains(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default)
    }

    /// All addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        addresses(&self.config)
    }

    /// Addresses as sockets' addresses, for the hand-off by original destination.
    pub fn socket_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses().filter_map(|a| if let Address::Socket(s) = a { Some(*s) } else { None })
    }

    /// Whether all secrets of its chains are there.
    pub fn tls_ready(&self) -> bool {
        self.chains().all(|c| c.tls.as_ref().is_none_or(|t| t.ready()))
    }

    /// Chains of `self` that `next` does not carry on: their connections must drain.
    pub fn abandoned<'a>(&'a self, next: Option<&'a Listener>) -> impl Iterator<Item = &'a Arc<Chain>> {
        self.chains().filter(move |c| !next.is_some_and(|n| n.chains().any(|o| c.drain.same(&o.drain))))
    }

    /// Puts the HTTP managers and policies of this version in front of the connections of chains that were carried on.
    /// To be called when this listener comes into force, not before: compiling must not change what is in force.
    pub fn activate(&self) {
        for chain in self.chains() {
            if !Arc::ptr_eq(&chain.filters, &chain.policy.load()) {
                chain.policy.store(chain.filters.clone());
                chain.drain.nudge();
            }
            if let Some(Terminal::Http { manager, live }) = &chain.terminal
                && !Arc::ptr_eq(manager, &live.load())
            {
                live.store(manager.clone());
            }
        }
    }
}

/// All addresses of a listener.
pub fn addresses(config: &model::Listener) -> impl Iterator<Item = &Address> {
    std::iter::once(&config.address).chain(&config.additional_addresses)
}

impl Chain {
    fn compile(
        config: &model::FilterChain,
        previous: Option<&Listener>,
        ctx: &CompileCtx,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut carried = None;
        for old in previous.into_iter().flat_map(Listener::chains) {
            if *old.config == *config {
                return Ok(old.clone());
            }
            if carried.is_none() && same_connections(&old.config, config) {
                carried = Some(old);
            }
        }
        let ctx = CompileCtx { chain: config.name.clone(), ..ctx.clone() };
        Self::build(config, carried, &ctx).map_err(|e| e.within(format_args!("filter chain {:?}", config.name)))
    }

    fn build(
        config: &model::FilterChain,
        carried: Option<&Arc<Chain>>,
        ctx: &CompileCtx,
    ) -> Result<Arc<Self>, ConfigError> {
        let secrets = &ctx.shared.secrets;
        let tls = config.tls.as_ref().map(|t| ServerTls::new(t, secrets)).transpose().map_err(ConfigError::new)?;
        let engine = |rules: &Option<model::Rbac>| rules.as_ref().map(rbac::Engine::compile).transpose();
        let kept = carried.into_iter().flat_map(|c| c.filters.iter());
        let mut filters = vec![];
        let mut terminal = None;
        let stats = config.filters.iter().find_map(|f| match f {
            NetworkFilter::IstioStats(stats) => Some(stats),
            _ => None,
        });
        for filter in &config.filters {
            if terminal.is_some() {
                return Err(ConfigError::new("a terminal filter must be the last one"));
            }
            match filter {
                NetworkFilter::Http(m) => {
                    let manager = HttpManager::compile(m, ctx)?;
                    let live = match carried.and_then(|c| c.terminal.as_ref()) {
                        Some(Terminal::Http { live, .. }) => live.clone(),
                        _ => Arc::new(ArcSwap::new(manager.clone())),
                    };
                    terminal = Some(Terminal::Http { manager, live });
                }
                NetworkFilter::TcpProxy(p) => terminal = Some(Terminal::Tcp(TcpProxy::compile(p, stats, ctx)?)),
                NetworkFilter::Rbac(r) => {
                    filters.push(NetFilter::Rbac {
                        enforced: engine(&r.rules)?,
                        shadow: engine(&r.shadow_rules)?,
                        shadow_prefix: r.shadow_prefix.clone(),
                    });
                }
                NetworkFilter::ExtAuthz(f) => filters.push(NetFilter::ExtAuthz(Arc::new(ExtAuthz::compile(f)?))),
                NetworkFilter::SniCluster => filters.push(NetFilter::SniCluster),
                // The cluster does the look-up, with a cache of its own.
                NetworkFilter::SniDynamicForwardProxy { port, .. } => filters.push(NetFilter::SniHost(*port)),
                // Connections that are carried on go on being counted.
                NetworkFilter::ConnectionLimit(l) => {
                    let old = kept.clone().find_map(|f| match f {
                        NetFilter::ConnectionLimit(old) if old.config == *l => Some(old.clone()),
                        _ => None,
                    });
                    let limit = old.unwrap_or_else(|| ConnectionLimit::new(l, &ctx.shared.limits));
                    filters.push(NetFilter::ConnectionLimit(limit));
                }
                NetworkFilter::LocalRateLimit(r) => {
                    let old = kept.clone().find_map(|f| match f {
                        NetFilter::ConnectionRate(old) if old.config == *r => Some(old.clone()),
                        _ => None,
                    });
                    let rate = old.unwrap_or_else(|| ConnectionRate::new(r, &ctx.shared.limits));
                    filters.push(NetFilter::ConnectionRate(rate));
                }
                // What these mean is done by telemetry and by the filters that ask for it.
                NetworkFilter::MetadataExchange | NetworkFilter::IstioStats(_) | NetworkFilter::SetFilterState => {}
            }
        }
        if terminal.is_none() && !config.filters.is_empty() {
            return Err(ConfigError::new("no terminal filter (HTTP connection manager or TCP proxy)"));
        }
        let drain = carried.map(|c| c.drain.clone()).unwrap_or_default();
        let filters = Arc::new(filters);
        let policy = carried.map_or_else(|| Arc::new(ArcSwap::new(filters.clone())), |c| c.policy.clone());
        Ok(Arc::new(Self { config: Arc::new(config.clone()), tls, filters, policy, terminal, drain }))
    }
}

/// Whether connections of `old` may go on as connections of `new`: same matches, same TLS, same filters but for the
/// policies (live connections are checked against new ones), and the same terminal filter, but for what an HTTP manager
/// does to a request (the next request meets the new one).
fn same_connections(old: &model::FilterChain, new: &model::FilterChain) -> bool {
    fn other(f: &&NetworkFilter) -> bool {
        !matches!(f, NetworkFilter::Rbac(_) | NetworkFilter::Http(_))
    }
    let http = |c: &model::FilterChain| match c.filters.last() {
        Some(NetworkFilter::Http(m)) => Some((
            (m.codec, m.timeouts, m.keepalive, m.accept_http_10, m.max_request_headers_bytes, m.max_headers),
            (m.max_requests_per_connection, m.max_concurrent_streams),
            (m.initial_stream_window, m.initial_connection_window),
        )),
        _ => None,
    };
    old.name == new.name
        && old.matches == new.matches
        && old.tls == new.tls
        && old.filters.iter().filter(other).eq(new.filters.iter().filter(other))
        && http(old) == http(new)
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("name", &self.config.name).field("users", &self.drain.users()).finish()
    }
}

/// Whether the kernel must be asked for the original destination.
pub fn asks_original_dst(filters: &[ListenerFilter]) -> bool {
    filters.iter().any(|f| matches!(f, ListenerFilter::OriginalDst))
}
