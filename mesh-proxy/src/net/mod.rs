//! Accepted connections: sockets, what is known of them before a protocol is spoken, and the IO object that filters get.
//! Knows no xDS, no HTTP.

pub mod accept;
pub mod capture;
pub mod connection;
pub mod inspect;
pub mod io;
pub mod limits;
pub mod listener;
pub mod matching;
pub mod orig_dst;
pub mod proxy_protocol;
pub mod sniff;
pub mod socket;

use std::net::SocketAddr;

use mesh_api::model::{Name, TrafficDirection};

pub use io::{Io, Prefixed, Transport};
pub use listener::Listener;

use crate::tls;

/// What is known of an accepted connection when its filter chain is chosen and its TLS handshake is done.
#[derive(Debug, Clone)]
pub struct ConnInfo {
    /// Unique in the process (`%CONNECTION_ID%`).
    pub id: u64,
    /// Peer, after PROXY protocol. Unix sockets: `0.0.0.0:0`.
    pub peer: SocketAddr,
    /// Peer of the socket itself.
    pub direct_peer: SocketAddr,
    /// Local address: the original destination when that was restored, else the socket's (or PROXY protocol's).
    pub local: SocketAddr,
    /// Local address of the socket itself.
    pub direct_local: SocketAddr,
    /// Destination before redirection, when the original-destination listener filter found one.
    pub original_dst: Option<SocketAddr>,
    /// SNI of the ClientHello, lower case.
    pub sni: Option<Name>,
    /// Protocols offered by ALPN, or found by the HTTP inspector; the negotiated one is `tls.alpn`.
    pub application_protocols: Vec<Name>,
    /// The connection is TLS and was terminated here.
    pub tls: Option<tls::PeerInfo>,
    /// Listener.
    pub listener: Name,
    /// Direction of that listener.
    pub direction: TrafficDirection,
    /// Filter chain; may be empty.
    pub chain: Name,
    /// Cluster chosen by the SNI cluster filter.
    pub sni_cluster: Option<Name>,
    /// Port at which the SNI is looked up, where a filter says so.
    pub sni_port: Option<u16>,
    /// When it was accepted.
    pub accepted: tokio::time::Instant,
}
