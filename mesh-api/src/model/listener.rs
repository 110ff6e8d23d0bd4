//! Listeners, listener filters and filter chains (`envoy.config.listener.v3`).

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{AccessLog, CidrRange, DownstreamTls, Metadata, Name, NetworkFilter, Origin};

/// A socket that accepts connections (or, unbound, receives them from another listener by original destination).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listener {
    /// Unique name.
    pub name: Name,
    /// Where it listens. For an unbound listener this is the original destination it serves.
    pub address: Address,
    /// More addresses with the same filter chains.
    pub additional_addresses: Vec<Address>,
    /// `false`: no socket; connections arrive from a `use_original_dst` listener.
    pub bind_to_port: bool,
    /// Hand an accepted connection to the listener that matches its original destination
    /// (exact address first, then `0.0.0.0:port`), else serve it here.
    pub use_original_dst: bool,
    /// Sets IP_TRANSPARENT (TPROXY).
    pub transparent: bool,
    /// Run in this order before a filter chain is chosen.
    pub listener_filters: Vec<ListenerFilter>,
    /// How long the listener filters may take; zero: for ever.
    pub listener_filters_timeout: Duration,
    /// After that timeout go on with what is known instead of closing.
    pub continue_on_listener_filters_timeout: bool,
    /// Candidates, matched as Envoy does (most specific first, not first come).
    pub filter_chains: Vec<FilterChain>,
    /// Serves what no chain matches; without it such connections are closed.
    pub default_filter_chain: Option<FilterChain>,
    /// Soft limit of buffered bytes a connection and direction.
    pub per_connection_buffer_limit: u32,
    /// Connection-level log of what ends before a filter chain is found.
    pub access_log: Vec<AccessLog>,
    /// Which direction of the mesh this listener serves.
    pub traffic_direction: TrafficDirection,
    /// gRPC `ApiListener`: only the HTTP manager matters, nothing is bound.
    pub api_listener: bool,
    /// Cause.
    pub origin: Origin,
    /// Everything else in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

/// A place to listen at or to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum Address {
    /// IP address and port.
    Socket(SocketAddr),
    /// A host name to resolve and a port.
    Host(Name, u16),
    /// A Unix socket.
    Pipe(PathBuf),
    /// `envoy_internal_address`: a listener of this process, by name.
    Internal(Name),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Socket(s) => s.fmt(f),
            Address::Host(h, p) => write!(f, "{h}:{p}"),
            Address::Pipe(p) => write!(f, "unix://{}", p.display()),
            Address::Internal(n) => write!(f, "internal://{n}"),
        }
    }
}

/// `envoy.config.core.v3.TrafficDirection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum TrafficDirection {
    /// Gateways and static files.
    #[default]
    Unspecified,
    /// Towards the local application.
    Inbound,
    /// From the local application.
    Outbound,
}

/// Ranges of original destination ports, both ends included; sorted, disjoint, not adjacent.
pub type PortRanges = Vec<(u16, u16)>;

/// What looks at the first bytes of a connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum ListenerFilter {
    /// Restores the destination that redirection changed.
    OriginalDst,
    /// Reads SNI and ALPN from a ClientHello.
    TlsInspector {
        /// Connections to these ports are not looked at (`filter_disabled`).
        disabled_ports: PortRanges,
    },
    /// Detects HTTP/1.x and HTTP/2 in cleartext.
    HttpInspector {
        /// Connections to these ports are not looked at (`filter_disabled`): their servers may speak first.
        disabled_ports: PortRanges,
    },
    /// Reads a PROXY protocol v1 or v2 header.
    ProxyProtocol {
        /// Connections without the header are let through.
        allow_requests_without: bool,
    },
}

/// Filters for the connections that fit `matches`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilterChain {
    /// Name, unique in the listener; may be empty.
    pub name: Name,
    /// When this chain is chosen.
    pub matches: FilterChainMatch,
    /// TLS termination; `None`: cleartext.
    pub tls: Option<DownstreamTls>,
    /// How long the TLS handshake may take; zero: for ever.
    pub transport_socket_connect_timeout: Duration,
    /// Network filters, the last one terminal.
    pub filters: Vec<NetworkFilter>,
    /// Everything in `metadata.filter_metadata`.
    pub metadata: Metadata,
}

/// `FilterChainMatch`: every non-empty criterion must hold. Precedence, the most specific match a criterion winning:
/// destination port, destination IP, server name, transport protocol, application protocols, directly connected
/// source IP, source type, source IP, source port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct FilterChainMatch {
    /// Original destination port.
    pub destination_port: Option<u16>,
    /// Original destination address.
    pub prefix_ranges: Vec<CidrRange>,
    /// SNI, exact or `*.suffix`, lower case.
    pub server_names: Vec<Name>,
    /// `tls` or `raw_buffer`; empty: any.
    pub transport_protocol: Name,
    /// ALPN (or what the HTTP inspector found: `http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Name>,
    /// Address of the peer of the socket itself.
    pub direct_source_prefix_ranges: Vec<CidrRange>,
    /// Local or external peers only.
    pub source_type: SourceType,
    /// Peer address (after PROXY protocol).
    pub source_prefix_ranges: Vec<CidrRange>,
    /// Peer ports.
    pub source_ports: Vec<u16>,
}

/// `FilterChainMatch.ConnectionSourceType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum SourceType {
    /// Whoever.
    #[default]
    Any,
    /// Loopback or the destination address itself.
    SameIpOrLoopback,
    /// Everyone else.
    External,
}
