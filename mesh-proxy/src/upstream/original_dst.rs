//! Endpoints of original-destination clusters: made when a connection asks for its address, kept while they are used.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use mesh_api::model::{self, Address, Locality};
use parking_lot::RwLock;

use super::{Endpoint, endpoint::EndpointState};
use crate::tls::ClusterTls;

/// Endpoints by address.
#[derive(Debug)]
pub(super) struct OriginalDst {
    port: Option<u16>,
    known: RwLock<HashMap<SocketAddr, Entry>>,
    locality: Arc<Locality>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    used: AtomicBool,
}

impl OriginalDst {
    pub(super) fn new(port: Option<u16>) -> Self {
        Self { port, known: RwLock::default(), locality: Arc::default() }
    }

    /// The endpoint for a destination; `None` without one.
    pub(super) fn pick(&self, dst: Option<SocketAddr>, tls: &ClusterTls) -> Option<Arc<Endpoint>> {
        let mut dst = dst.filter(|d| d.port() != 0 && !d.ip().is_unspecified())?;
        if let Some(port) = self.port {
            dst.set_port(port);
        }
        if let Some(entry) = self.known.read().get(&dst) {
            if !entry.used.load(Relaxed) {
                entry.used.store(true, Relaxed);
            }
            return Some(entry.endpoint.clone());
        }
        let mut known = self.known.write();
        let entry = known.entry(dst).or_insert_with(|| {
            let config = model::Endpoint::at(Address::Socket(dst));
            let tls = tls.select(&config.tls_labels).cloned();
            let endpoint = Endpoint::new(config, self.locality.clone(), 0, tls, EndpointState::new());
            Entry { endpoint, used: AtomicBool::new(true) }
        });
        Some(entry.endpoint.clone())
    }

    /// Forgets those that nobody holds and nobody asked for since the last call.
    pub(super) fn sweep(&self) {
        self.known.write().retain(|_, e| e.used.swap(false, Relaxed) || Arc::strong_count(&e.endpoint) > 1);
    }

    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.known.read().values().map(|e| e.endpoint.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_live_while_used() {
        let o = OriginalDst::new(Some(8080));
        let none = ClusterTls::none();
        assert!(o.pick(None, &none).is_none());
        assert!(o.pick(Some("0.0.0.0:80".parse().unwrap()), &none).is_none());
        let a = o.pick(Some("10.0.0.1:80".parse().unwrap()), &none).unwrap();
        assert_eq!(a.socket_addr().unwrap().port(), 8080);
        o.sweep();
        o.sweep();
        assert_eq!(o.all().len(), 1, "held");
        let id = a.state.id;
        drop(a);
        assert_eq!(o.pick(Some("10.0.0.1:80".parse().unwrap()), &none).unwrap().state.id, id);
        o.sweep();
        assert_eq!(o.all().len(), 1, "used since the last sweep");
        o.sweep();
        assert!(o.all().is_empty());
    }
}
