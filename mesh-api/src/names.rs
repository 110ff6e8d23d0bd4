//! Names that travel between the planes: clusters, SNI, listeners, Istio's way. Built and parsed here only.

use std::fmt;

/// Original destination of a captured connection that no service claims, forwarded as it is.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Requests for hosts that no service claims, sent to what their names say now (`ALLOW_ANY_DYNAMIC_DNS`).
pub const ALLOW_ANY_DYNAMIC_DNS_CLUSTER: &str = "AllowAnyDynamicDNSCluster";
/// Where traffic to unknown destinations ends under `REGISTRY_ONLY`.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// Inbound traffic on ports without a service, IPv4.
pub const INBOUND_PASSTHROUGH_V4: &str = "InboundPassthroughCluster";
/// Inbound traffic on ports without a service, IPv6.
pub const INBOUND_PASSTHROUGH_V6: &str = "InboundPassthroughClusterIpv6";
/// Listener that receives captured outbound connections.
pub const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// Listener that receives captured inbound connections.
pub const VIRTUAL_INBOUND: &str = "virtualInbound";

/// DNS domain of a mesh that was not told another one.
pub const DEFAULT_DOMAIN: &str = "cluster.local";

/// Direction part of a cluster name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the local application.
    Inbound,
    /// To other services.
    Outbound,
}

impl Direction {
    /// As in names.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// `direction|port|subset|host`, e.g. `outbound|80|v1|reviews.shop.svc.cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName<'a> {
    /// Direction.
    pub direction: Direction,
    /// Service port (inbound: port of the workload).
    pub port: u16,
    /// DestinationRule subset; empty: all endpoints.
    pub subset: &'a str,
    /// Fully qualified host; empty for inbound clusters.
    pub host: &'a str,
}

impl<'a> ClusterName<'a> {
    /// An outbound cluster.
    pub fn outbound(host: &'a str, port: u16, subset: &'a str) -> Self {
        Self { direction: Direction::Outbound, port, subset, host }
    }
    /// `inbound|PORT||`.
    pub fn inbound(port: u16) -> Self {
        Self { direction: Direction::Inbound, port, subset: "", host: "" }
    }
    /// Takes a name apart; `None` for names of another form.
    pub fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let direction = match parts.next()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?;
        let host = parts.next()?;
        Some(Self { direction, port, subset, host })
    }
    /// SNI of mesh TLS to this cluster: `outbound_.PORT_.SUBSET_.HOST`.
    pub fn sni(&self) -> String {
        format!("{}_.{}_.{}_.{}", self.direction.as_str(), self.port, self.subset, self.host)
    }
    /// Takes such an SNI apart.
    pub fn parse_sni(sni: &'a str) -> Option<Self> {
        let mut parts = sni.splitn(4, "_.");
        let direction = match parts.next()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return None,
        };
        let port = parts.next()?.parse().ok()?;
        let subset = parts.next()?;
        let host = parts.next()?;
        Some(Self { direction, port, subset, host })
    }
}

impl fmt::Display for ClusterName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|{}|{}", self.direction.as_str(), self.port, self.subset, self.host)
    }
}

/// Completes a host of an Istio object: a name without a dot is a service of the object's namespace.
pub fn complete_host(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains('.') || host.contains('*') || host.is_empty() {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

/// `NAME.NAMESPACE.svc.DOMAIN`.
pub fn service_host(name: &str, namespace: &str, domain: &str) -> String {
    format!("{name}.{namespace}.svc.{domain}")
}

/// The namespace whose Kubernetes Services a host names, `*` when a pattern covers several; `None`: it lies outside of
/// them.
pub fn service_namespace<'a>(host: &'a str, domain: &str) -> Option<&'a str> {
    let all = format!(".svc.{domain}");
    if let Some(suffix) = host.strip_prefix('*')
        && all.ends_with(suffix)
    {
        return Some("*");
    }
    let name = host.strip_suffix(&all)?;
    name.rsplit('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_and_sni() {
        let c = ClusterName::outbound("reviews.shop.svc.cluster.local", 80, "v1");
        assert_eq!(c.to_string(), "outbound|80|v1|reviews.shop.svc.cluster.local");
        assert_eq!(ClusterName::parse(&c.to_string()), Some(c.clone()));
        assert_eq!(c.sni(), "outbound_.80_.v1_.reviews.shop.svc.cluster.local");
        assert_eq!(ClusterName::parse_sni(&c.sni()), Some(c));
        assert_eq!(ClusterName::inbound(8080).to_string(), "inbound|8080||");
        for bad in ["", "outbound", "outbound|x||h", "sideways|1||h", "outbound|70000||h"] {
            assert_eq!(ClusterName::parse(bad), None, "{bad}");
        }
    }
}
