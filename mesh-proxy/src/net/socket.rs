//! Listening sockets: one a worker with SO_REUSEPORT, bound before anything is reported as started, listening only
//! when the listener's configuration is warm.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use mesh_api::model::Address;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connections that wait to be accepted, a socket; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The sockets of one address.
#[derive(Debug)]
pub struct BoundSockets {
    /// The address as bound: port 0 is replaced by the port the kernel chose.
    pub address: Address,
    /// One a worker.
    pub sockets: Vec<Socket>,
    /// Removed again when dropped.
    pub pipe: Option<PipeFile>,
}

/// A Unix socket's file, removed when dropped.
#[derive(Debug)]
pub struct PipeFile(PathBuf);

impl Drop for PipeFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds `workers` sockets to an address. With `exclusive` it must not be in use by another process.
///
/// # Errors
/// When the address is taken, not ours or of a kind that cannot be listened at.
pub fn bind(address: &Address, workers: usize, transparent: bool, exclusive: bool) -> io::Result<BoundSockets> {
    match address {
        Address::Socket(addr) => {
            if exclusive && addr.port() != 0 {
                probe(*addr, transparent)?;
            }
            let mut addr = *addr;
            let mut sockets = Vec::with_capacity(workers);
            for _ in 0..workers.max(1) {
                let socket = tcp(addr, transparent)?;
                socket.set_reuse_port(true)?;
                socket.bind(&addr.into())?;
                if addr.port() == 0
                    && let Some(bound) = socket.local_addr()?.as_socket()
                {
                    addr.set_port(bound.port());
                }
                sockets.push(socket);
            }
            Ok(BoundSockets { address: Address::Socket(addr), sockets, pipe: None })
        }
        Address::Pipe(path) => bind_pipe(path, workers),
        Address::Host(..) | Address::Internal(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cannot listen at {address}")))
        }
    }
}

/// SO_REUSEPORT would silently share an address with another process of the same user. Another process' listening
/// socket shows itself when we bind without it.
fn probe(addr: SocketAddr, transparent: bool) -> io::Result<()> {
    tcp(addr, transparent)?.bind(&addr.into())
}

fn tcp(addr: SocketAddr, transparent: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if transparent {
        if addr.is_ipv6() { socket.set_ip_transparent_v6(true)? } else { socket.set_ip_transparent_v4(true)? }
    }
    Ok(socket)
}

fn bind_pipe(path: &Path, workers: usize) -> io::Result<BoundSockets> {
    let abstract_name = path.to_str().and_then(|p| p.strip_prefix('@'));
    let addr = match abstract_name {
        Some(name) => SockAddr::unix(format!("\0{name}"))?,
        None => {
            // A socket file that nobody listens at any more is a leftover.
            let stale = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
                && std::os::unix::net::UnixStream::connect(path).is_err();
            if stale {
                std::fs::remove_file(path)?;
            }
            SockAddr::unix(path)?
        }
    };
    let first = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    first.bind(&addr)?;
    let mut sockets = vec![];
    for _ in 1..workers.max(1) {
        sockets.push(first.try_clone()?);
    }
    sockets.push(first);
    let pipe = abstract_name.is_none().then(|| PipeFile(path.to_owned()));
    Ok(BoundSockets { address: Address::Pipe(path.to_owned()), sockets, pipe })
}

impl BoundSockets {
    /// Begins to take connections.
    ///
    /// # Errors
    /// Of the system.
    pub fn listen(&self) -> io::Result<()> {
        self.sockets.iter().try_for_each(|s| s.listen(BACKLOG))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_port_for_all_workers_and_none_for_strangers() {
        let any = Address::Socket("127.0.0.1:0".parse().unwrap());
        let a = bind(&any, 3, false, true).unwrap();
        assert_eq!(a.sockets.len(), 3);
        a.listen().unwrap();
        let Address::Socket(addr) = a.address else { panic!() };
        assert_ne!(addr.port(), 0);
        for s in &a.sockets {
            assert_eq!(s.local_addr().unwrap().as_socket(), Some(addr));
        }
        let e = bind(&a.address, 1, false, true).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn pipes_replace_leftovers_only_and_clean_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let a = bind(&Address::Pipe(path.clone()), 2, false, true).unwrap();
        a.listen().unwrap();
        assert!(bind(&Address::Pipe(path.clone()), 1, false, true).is_err(), "in use");
        drop(a);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&Address::Pipe(path.clone()), 1, false, true).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
