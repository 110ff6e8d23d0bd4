//! Redirection of a network namespace's traffic to the proxy: what Istio's init container does.
//!
//! [`rules`] turns settings into one rule set a family, [`nft`] and [`iptables`] write it down; both are pure. [`system`]
//! runs the programs, [`verify`] connects through what was set. Knows no proxy and no configuration: the ports are all
//! that is agreed.

pub mod iptables;
pub mod nft;
pub mod rules;
mod system;
mod verify;

use std::net::IpAddr;

use ipnet::IpNet;

pub use system::{Backend, CaptureError, apply, clean, script};
pub use verify::{Problem, probe, verify};

/// Ports of the proxy that nothing redirects: tunnels, merged metrics, health, metrics.
pub const OWN_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];
/// Where DNS goes.
pub const DNS_PORT: u16 = 15053;

/// What is captured, and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Port that outbound TCP is redirected to.
    pub outbound_port: u16,
    /// Port that inbound TCP is redirected to.
    pub inbound_port: u16,
    /// Users that are the proxy: what they send is let through, or it would come back for ever.
    pub proxy_uids: Vec<u32>,
    /// Groups that are the proxy.
    pub proxy_gids: Vec<u32>,
    /// Inbound ports that are captured.
    pub inbound: Selection<u16>,
    /// Inbound ports that are not, beside [`OWN_PORTS`].
    pub inbound_exclude: Vec<u16>,
    /// Destinations that are captured.
    pub outbound: Selection<IpNet>,
    /// Destinations that are not.
    pub outbound_exclude: Vec<IpNet>,
    /// Outbound ports that are captured whatever the destination.
    pub outbound_ports: Vec<u16>,
    /// Outbound ports that are not captured.
    pub outbound_ports_exclude: Vec<u16>,
    /// Interfaces that nothing is captured on.
    pub exclude_interfaces: Vec<String>,
    /// Interfaces of virtual machines: what arrives there counts as outbound.
    pub virtual_interfaces: Vec<String>,
    /// Users whose traffic is not captured.
    pub exclude_uids: Vec<u32>,
    /// Groups whose traffic is not captured.
    pub exclude_gids: Vec<u32>,
    /// Which DNS is captured.
    pub dns: Dns,
    /// Drop what connection tracking calls invalid, which would otherwise pass unredirected.
    pub drop_invalid: bool,
}

/// Everything, or what is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection<T> {
    /// Everything (`*`).
    All,
    /// These; none if it is empty.
    These(Vec<T>),
}

/// Which DNS queries go to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// Those to these servers.
    Servers(Vec<IpAddr>),
    /// All.
    All,
}

/// The nameservers of a `resolv.conf`.
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.split_whitespace().collect::<Vec<_>>().split_first().map(|(k, v)| (*k, v.to_vec())))
        .filter(|(key, _)| *key == "nameserver")
        // A zone (`fe80::1%eth0`) says which interface, which a rule does not ask for.
        .filter_map(|(_, values)| values.first()?.split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests;
