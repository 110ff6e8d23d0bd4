//! Addresses of local clusters: a slot's number gives each its own, so that several fit on one machine.

use std::net::Ipv4Addr;

/// The machine, on the bridge that all nodes hang on.
pub const HOST: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The network of nodes and load balancers.
pub const NODES: &str = "172.30.0.0/24";
/// The bridge.
pub const BRIDGE: &str = "mesh-clusters";
/// How many clusters fit.
pub const SLOTS: u8 = 6;
/// Load balancer addresses of each.
const BALANCERS: u8 = 20;

/// Addresses of one cluster. Plain data.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// From 1.
    pub slot: u8,
    /// The node.
    pub node: Ipv4Addr,
    /// All pods.
    pub pods: String,
    /// Pods of its node.
    pub node_pods: String,
    /// Services.
    pub services: String,
    /// The API server's service.
    pub first_service: Ipv4Addr,
    /// DNS for pods.
    pub dns: Ipv4Addr,
}

impl Addresses {
    /// Those of a slot, from 1 to [`SLOTS`].
    pub fn of(slot: u8) -> Self {
        let (pods, services) = (10 + slot, 110 + slot);
        Self {
            slot,
            node: Ipv4Addr::new(172, 30, 0, 10 + slot),
            pods: format!("10.{pods}.0.0/16"),
            node_pods: format!("10.{pods}.0.0/20"),
            services: format!("10.{services}.0.0/16"),
            first_service: Ipv4Addr::new(10, services, 0, 1),
            dns: Ipv4Addr::new(10, services, 0, 10),
        }
    }

    /// Addresses for Services of type LoadBalancer.
    pub fn balancers(&self) -> impl Iterator<Item = Ipv4Addr> {
        let first = 100 + BALANCERS * self.slot;
        (first..first + BALANCERS).map(|last| Ipv4Addr::new(172, 30, 0, last))
    }

    /// The machine's end of the node's cable.
    pub fn link(&self) -> String {
        format!("mesh-node-{}", self.slot)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Addresses, HOST, SLOTS};

    #[test]
    fn no_address_is_anothers() {
        let mut seen = BTreeSet::from([HOST]);
        for slot in 1..=SLOTS {
            let addresses = Addresses::of(slot);
            for address in addresses.balancers().chain([addresses.node]) {
                assert!(seen.insert(address), "{address}");
            }
            assert!(seen.insert(addresses.dns));
        }
    }
}
