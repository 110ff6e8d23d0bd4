//! Endpoints of clusters that are found by name (dynamic forward proxy): one for each host and port that was asked for,
//! dialled at what its name says now.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use mesh_api::model::{self, Address, DnsCache, Locality, Name};
use parking_lot::RwLock;

use super::{
    Endpoint,
    endpoint::EndpointState,
    names::{Entry, Names, Unresolved},
};
use crate::tls::ClusterTls;

/// Endpoints by host and port.
#[derive(Debug)]
pub(super) struct Dynamic {
    pub(super) names: Arc<Names>,
    /// Port of who says none.
    default_port: u16,
    places: RwLock<HashMap<Name, HashMap<u16, Place>>>,
    locality: Arc<Locality>,
}

#[derive(Debug)]
struct Place {
    endpoint: Arc<Endpoint>,
    /// The addresses that the endpoint has.
    addresses: ArcSwap<Vec<IpAddr>>,
}

impl Place {
    fn new(host: &Name, port: u16, locality: &Arc<Locality>, tls: &ClusterTls, state: Arc<EndpointState>) -> Self {
        let mut config = model::Endpoint::at(Address::Host(host.clone(), port));
        config.hostname = host.clone();
        let tls = tls.select(&config.tls_labels).cloned();
        Self { endpoint: Endpoint::new(config, locality.clone(), 0, tls, state), addresses: ArcSwap::default() }
    }

    /// The endpoint, at what the name says now.
    fn at(&self, port: u16, entry: &Entry) -> Arc<Endpoint> {
        let now = entry.addresses();
        if !Arc::ptr_eq(&self.addresses.load(), &now) {
            let sockets = now.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
            self.endpoint.state.resolved.store(Arc::new(sockets));
            self.addresses.store(now);
        }
        self.endpoint.clone()
    }
}

impl Dynamic {
    /// For a cluster that has these contexts; the version of the cluster before gives what it knows.
    pub(super) fn new(config: &DnsCache, tls: &ClusterTls, old: Option<&Dynamic>) -> Self {
        let names = old.filter(|o| o.names.config() == config).map(|o| o.names.clone());
        let locality = Arc::default();
        let mut places: HashMap<Name, HashMap<u16, Place>> = HashMap::new();
        for (host, ports) in old.iter().flat_map(|o| o.places.read().iter().map(own).collect::<Vec<_>>()) {
            let of = |(port, state)| (port, Place::new(&host, port, &locality, tls, state));
            places.insert(host.clone(), ports.into_iter().map(of).collect());
        }
        let default_port = if tls.select(&Default::default()).is_some() { 443 } else { 80 };
        Self {
            names: names.unwrap_or_else(|| Names::new(config.clone())),
            default_port,
            places: RwLock::new(places),
            locality,
        }
    }

    /// The endpoint of a host, once its name is looked up.
    pub(super) async fn resolve(
        &self,
        host: &str,
        port: Option<u16>,
        tls: &ClusterTls,
    ) -> Result<Arc<Endpoint>, Unresolved> {
        let host: Cow<'_, str> =
            if host.bytes().any(|b| b.is_ascii_uppercase()) { host.to_ascii_lowercase().into() } else { host.into() };
        let port = port.unwrap_or(self.default_port);
        let entry = self.names.resolve(&host).await?;
        if let Some(place) = self.places.read().get(&*host).and_then(|ports| ports.get(&port)) {
            return Ok(place.at(port, &entry));
        }
        let mut places = self.places.write();
        let host: Name = (&*host).into();
        let place = places
            .entry(host.clone())
            .or_default()
            .entry(port)
            .or_insert_with(|| Place::new(&host, port, &self.locality, tls, EndpointState::new()));
        Ok(place.at(port, &entry))
    }

    /// Forgets endpoints whose name is forgotten.
    pub(super) fn sweep(&self) {
        self.places.write().retain(|host, ports| {
            let keep = self.names.holds(host);
            if !keep {
                ports.values().for_each(|p| p.endpoint.state.set_removed(true));
            }
            keep
        });
    }

    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.places.read().values().flat_map(HashMap::values).map(|p| p.endpoint.clone()).collect()
    }
}

/// A host with the state of its endpoints.
fn own((host, ports): (&Name, &HashMap<u16, Place>)) -> (Name, Vec<(u16, Arc<EndpointState>)>) {
    (host.clone(), ports.iter().map(|(port, p)| (*port, p.endpoint.state.clone())).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::Handle;

    use super::super::endpoint::Target;
    use super::*;

    fn dynamic(config: &DnsCache) -> Dynamic {
        let lookup = Arc::new(|_: Name| {
            Box::pin(async { Ok((vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])], None)) })
                as futures_util::future::BoxFuture<'static, _>
        });
        let names = Names::with_lookup(config.clone(), lookup);
        names.start(&Handle::current());
        Dynamic { names, default_port: 80, places: RwLock::default(), locality: Arc::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_for_each_host_and_port() {
        let config = DnsCache { host_ttl: Duration::from_secs(30), ..DnsCache::new("c") };
        let d = dynamic(&config);
        let none = ClusterTls::none();
        let a = d.resolve("A.test", None, &none).await.unwrap();
        let again = d.resolve("a.test", Some(80), &none).await.unwrap();
        assert_eq!((a.state.id, &*a.config.hostname), (again.state.id, "a.test"));
        let Target::Tcp(sockets) = a.target() else { panic!("{:?}", a.target()) };
        assert_eq!(sockets.as_slice(), ["10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap()]);
        assert_ne!(d.resolve("a.test", Some(81), &none).await.unwrap().state.id, a.state.id);

        let next = Dynamic::new(&config, &none, Some(&d));
        assert!(Arc::ptr_eq(&next.names, &d.names), "the next version looks nothing up again");
        assert_eq!(next.resolve("a.test", None, &none).await.unwrap().state.id, a.state.id);
        let other = Dynamic::new(&DnsCache { max_hosts: 1, ..config }, &none, Some(&d));
        assert!(!Arc::ptr_eq(&other.names, &d.names));

        tokio::time::sleep(Duration::from_secs(200)).await;
        next.sweep();
        assert!(next.all().is_empty() && a.state.is_removed());
    }
}
