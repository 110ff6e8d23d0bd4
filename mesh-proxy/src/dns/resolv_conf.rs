//! The resolvers of the system, and what its clients put behind names.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_resolver::system_conf::parse_resolv_conf;

/// Port of resolvers.
const PORT: u16 = 53;

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Who is asked, in order.
    pub servers: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads a file. One that cannot be used is said, and names nobody.
    pub fn read(path: &Path) -> Self {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(target: "dns", "{}: {error}", path.display());
                return Self::default();
            }
        };
        Self::parse(&text).unwrap_or_else(|error| {
            tracing::warn!(target: "dns", "{}: {error}", path.display());
            Self::default()
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let (config, _) = parse_resolv_conf(text).map_err(|e| e.to_string())?;
        Ok(Self {
            servers: config.name_servers().iter().map(|s| s.ip).collect(),
            search: config.search().iter().map(|name| name.to_ascii()).collect(),
        })
    }

    /// Resolvers to ask: all but ourselves.
    pub fn upstreams(&self, own: &[SocketAddr]) -> Vec<SocketAddr> {
        let ours = |at: &SocketAddr| {
            let everywhere = |o: &SocketAddr| o.ip().is_unspecified() && o.port() == at.port() && at.ip().is_loopback();
            own.iter().any(|o| o == at || everywhere(o))
        };
        let all = self.servers.iter().map(|ip| SocketAddr::new(*ip, PORT));
        all.filter(|at| !ours(at) && !at.ip().is_unspecified()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_search_domains() {
        let text = b"# x\nsearch shop.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\nnameserver fd00::1\noptions ndots:5\n";
        let conf = ResolvConf::parse(text).unwrap();
        assert_eq!(conf.servers, ["10.0.0.10".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(conf.search.len(), 2);
        assert!(conf.search[0].starts_with("shop.svc.cluster.local"));
        assert!(ResolvConf::parse(b"nonsense").is_err());
    }

    #[test]
    fn nobody_asks_himself() {
        let conf = ResolvConf::parse(b"nameserver 127.0.0.1\nnameserver 127.0.0.53\n").unwrap();
        let ports = |own: &str| conf.upstreams(&[own.parse().unwrap()]).len();
        assert_eq!((ports("127.0.0.1:15053"), ports("127.0.0.1:53"), ports("0.0.0.0:53")), (2, 1, 0));
    }
}
