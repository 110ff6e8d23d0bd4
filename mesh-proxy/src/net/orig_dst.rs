//! Where a redirected connection wanted to go (`SO_ORIGINAL_DST`).

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination before REDIRECT. With TPROXY (`transparent`) the socket's own local address is that destination.
/// `None` when nothing redirected the connection.
pub fn original_dst(stream: &TcpStream, transparent: bool) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    if transparent {
        return Some(canonical(local));
    }
    before_redirection(&SockRef::from(stream), local)
}

/// The destination before REDIRECT of an accepted socket with this local address; `None` when nothing redirected it.
pub fn before_redirection(socket: &SockRef<'_>, local: SocketAddr) -> Option<SocketAddr> {
    // A connection over a dual-stack socket has IPv4 addresses in IPv6 clothes; conntrack knows it as IPv4.
    let found = if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let dst = canonical(found.ok()?.as_socket()?);
    Some(dst)
}

/// IPv4-mapped IPv6 addresses as IPv4.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
