//! Compiled listeners and filter chains.
//!
//! A chain whose content did not change survives an update of its listener together with its connections; a chain of
//! which only the HTTP manager changed keeps its connections too, whose next request meets the new manager; every other
//! change drains the old chain's connections.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_api::model::{self, Address, ListenerFilter, Name, NetworkFilter};

use super::matching::{ChainTable, MatchInput};
use crate::{config::ConfigError, drain, http::HttpManager, http::filters::rbac, tcp::TcpProxy, tls::ServerTls};

/// A compiled listener.
#[derive(Debug)]
pub struct Listener {
    /// As it was declared.
    pub config: Arc<model::Listener>,
    /// Counters; survive updates.
    pub stats: Arc<ListenerStats>,
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
    pub filters: Vec<NetFilter>,
    /// Who serves the connection; `None`: it is closed.
    pub terminal: Option<Terminal>,
    /// Fires when this chain goes away.
    pub drain: drain::Trigger,
}

/// A compiled network filter.
pub enum NetFilter {
    /// Lets a connection through or not.
    Rbac(Arc<rbac::Filter>),
    /// The cluster is the SNI.
    SniCluster,
    /// At most so many connections.
    ConnectionLimit(Arc<ConnectionLimit>),
}

/// Connections of a chain, counted.
#[derive(Debug)]
pub struct ConnectionLimit {
    max: u64,
    /// How long a refused connection is kept before it is closed.
    pub delay: Duration,
    active: AtomicU64,
}

/// One counted connection.
#[derive(Debug)]
pub struct Permit(Arc<ConnectionLimit>);

impl ConnectionLimit {
    /// A limit.
    pub fn new(max: u64, delay: Duration) -> Arc<Self> {
        Arc::new(Self { max, delay, active: AtomicU64::new(0) })
    }
    /// Counts a connection; `None` when the limit is reached.
    pub fn acquire(self: &Arc<Self>) -> Option<Permit> {
        if self.active.fetch_add(1, Ordering::AcqRel) < self.max {
            return Some(Permit(self.clone()));
        }
        self.active.fetch_sub(1, Ordering::AcqRel);
        None
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The last filter of a chain.
pub enum Terminal {
    /// Speaks HTTP; the manager is replaced in place.
    Http(Arc<ArcSwap<HttpManager>>),
    /// Forwards bytes.
    Tcp(Arc<TcpProxy>),
}

/// What builds the parts of chains that other modules own.
pub trait ChainCompiler {
    /// TLS contexts.
    ///
    /// # Errors
    /// When it cannot be used.
    fn tls(&mut self, tls: &model::DownstreamTls) -> Result<Arc<ServerTls>, ConfigError>;
    /// HTTP managers.
    ///
    /// # Errors
    /// When it cannot be used.
    fn http(&mut self, chain: &Name, manager: &model::HttpManager) -> Result<Arc<HttpManager>, ConfigError>;
    /// TCP proxies.
    ///
    /// # Errors
    /// When it cannot be used.
    fn tcp(&mut self, chain: &Name, proxy: &model::TcpProxy) -> Result<Arc<TcpProxy>, ConfigError>;
    /// Network RBAC.
    ///
    /// # Errors
    /// When it cannot be used.
    fn rbac(&mut self, filter: &model::RbacFilter) -> Result<Arc<rbac::Filter>, ConfigError>;
}

impl Listener {
    /// Compiles a listener, taking over what did not change from its predecessor.
    ///
    /// # Errors
    /// With the filter chain and the reason.
    pub fn compile(
        config: Arc<model::Listener>,
        previous: Option<&Listener>,
        compiler: &mut dyn ChainCompiler,
    ) -> Result<Self, ConfigError> {
        let table = ChainTable::build(config.filter_chains.iter().map(|c| (&c.name, &c.matches)))
            .map_err(ConfigError::new)?;
        let mut chains = Vec::with_capacity(config.filter_chains.len());
        for chain in &config.filter_chains {
            chains.push(Chain::compile(chain, previous, compiler)?);
        }
        let default = match &config.default_filter_chain {
            Some(chain) => Some(Chain::compile(chain, previous, compiler)?),
            None => None,
        };
        let stats = previous.map(|p| p.stats.clone()).unwrap_or_default();
        Ok(Self { config, stats, table, chains, default })
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

    /// Puts changed HTTP managers in front of the connections of chains that were carried on. To be called when this
    /// listener replaces its predecessor, not before: compiling must not change what is in force.
    pub fn adopt(&self, previous: &Listener) {
        for chain in self.chains() {
            let Some(Terminal::Http(new)) = &chain.terminal else { continue };
            let old = previous.chains().find(|c| c.drain.same(&chain.drain));
            if let Some(Terminal::Http(old)) = old.and_then(|c| c.terminal.as_ref())
                && !Arc::ptr_eq(old, new)
            {
                old.store(new.load_full());
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
        compiler: &mut dyn ChainCompiler,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut carried = None;
        for old in previous.into_iter().flat_map(Listener::chains) {
            if *old.config == *config {
                return Ok(old.clone());
            }
            if carried.is_none() && same_connections(&old.config, config) {
                carried = Some(old.drain.clone());
            }
        }
        let within = |e: ConfigError| e.within(format_args!("filter chain {:?}", config.name));
        let tls = config.tls.as_ref().map(|t| compiler.tls(t)).transpose().map_err(within)?;
        let mut filters = vec![];
        let mut terminal = None;
        for filter in &config.filters {
            if terminal.is_some() {
                return Err(within(ConfigError::new("a terminal filter must be the last one")));
            }
            match filter {
                NetworkFilter::Http(m) => {
                    let manager = compiler.http(&config.name, m).map_err(within)?;
                    terminal = Some(Terminal::Http(Arc::new(ArcSwap::new(manager))));
                }
                NetworkFilter::TcpProxy(p) => {
                    terminal = Some(Terminal::Tcp(compiler.tcp(&config.name, p).map_err(within)?));
                }
                NetworkFilter::Rbac(r) => filters.push(NetFilter::Rbac(compiler.rbac(r).map_err(within)?)),
                NetworkFilter::SniCluster => filters.push(NetFilter::SniCluster),
                NetworkFilter::ConnectionLimit { max, delay, .. } => {
                    filters.push(NetFilter::ConnectionLimit(ConnectionLimit::new(*max, *delay)));
                }
                // What these mean is done by telemetry and by the filters that ask for it.
                NetworkFilter::MetadataExchange | NetworkFilter::IstioStats(_) | NetworkFilter::SetFilterState => {}
            }
        }
        if terminal.is_none() && !config.filters.is_empty() {
            return Err(within(ConfigError::new("no terminal filter (HTTP connection manager or TCP proxy)")));
        }
        let drain = carried.unwrap_or_default();
        Ok(Arc::new(Self { config: Arc::new(config.clone()), tls, filters, terminal, drain }))
    }
}

/// Whether connections of `old` may go on as connections of `new`: same matches, same TLS, same filters, and HTTP
/// managers that treat a connection (not a request) the same way.
fn same_connections(old: &model::FilterChain, new: &model::FilterChain) -> bool {
    let Some((NetworkFilter::Http(a), before_a)) = old.filters.split_last() else { return false };
    let Some((NetworkFilter::Http(b), before_b)) = new.filters.split_last() else { return false };
    old.name == new.name
        && old.matches == new.matches
        && old.tls == new.tls
        && before_a == before_b
        && a.codec == b.codec
        && a.timeouts == b.timeouts
        && a.max_request_headers_bytes == b.max_request_headers_bytes
        && a.max_headers == b.max_headers
        && a.max_requests_per_connection == b.max_requests_per_connection
        && a.max_concurrent_streams == b.max_concurrent_streams
        && a.initial_stream_window == b.initial_stream_window
        && a.initial_connection_window == b.initial_connection_window
        && a.keepalive == b.keepalive
        && a.accept_http_10 == b.accept_http_10
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("name", &self.config.name).field("users", &self.drain.users()).finish()
    }
}

/// Whether a listener's filters look at the connection at all.
pub fn asks_original_dst(filters: &[ListenerFilter]) -> bool {
    filters.iter().any(|f| matches!(f, ListenerFilter::OriginalDst))
}
