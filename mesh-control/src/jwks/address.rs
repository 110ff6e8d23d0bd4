//! Which addresses keys are fetched from: a name in an object must not make the control plane ask its own machine or
//! the metadata service of a cloud.
//!
//! Owns that decision, for an address that was resolved already. Must not know names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What may be asked.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    /// Never asked, whatever else holds.
    pub blocked: Vec<IpNet>,
    /// Asked although they are loopback, link-local or of a metadata service.
    pub allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// Why an address is not asked; `None`: it is.
    pub(super) fn refuses(&self, ip: IpAddr) -> Option<&'static str> {
        let real = embedded(ip);
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip) || net.contains(&real));
        if within(&self.blocked) {
            return Some("it is blocked by --jwks-blocked-cidrs");
        }
        let why = special(real).or_else(|| special(ip))?;
        (!within(&self.allowed)).then_some(why)
    }
}

/// The IPv4 address that an IPv6 address stands for (mapped, compatible, NAT64, 6to4), else itself.
fn embedded(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let pair = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] if v6 != Ipv6Addr::LOCALHOST && v6 != Ipv6Addr::UNSPECIFIED => {
            pair(high, low)
        }
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => pair(high, low),
        _ => ip,
    }
}

fn special(ip: IpAddr) -> Option<&'static str> {
    const METADATA: &str = "it is the metadata service of a cloud, which only --jwks-allowed-cidrs opens";
    /// Alibaba Cloud's and Oracle Cloud's lie outside 169.254.0.0/16.
    const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
    /// Amazon's and Google's.
    const METADATA_V6: [Ipv6Addr; 2] =
        [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
    let link_local = match ip {
        IpAddr::V4(v4) if METADATA_V4.contains(&v4) => return Some(METADATA),
        IpAddr::V6(v6) if METADATA_V6.contains(&v6) => return Some(METADATA),
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let this = matches!(ip, IpAddr::V4(v4) if v4.octets().first() == Some(&0));
    if ip.is_loopback() {
        Some("loopback addresses are asked only when --jwks-allowed-cidrs names them")
    } else if link_local {
        Some("link-local addresses are asked only when --jwks-allowed-cidrs names them")
    } else if ip.is_unspecified() || this || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("it is no address of a host")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(policy: &AddressPolicy, ip: &str) -> bool {
        policy.refuses(ip.parse().unwrap()).is_some()
    }

    #[test]
    fn own_machine_and_metadata_are_not_asked() {
        let policy = AddressPolicy::default();
        for ip in [
            "127.0.0.1",
            "127.8.9.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            // The same in IPv6's clothes.
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
        ] {
            assert!(refused(&policy, ip), "{ip}");
        }
        for ip in [
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.9",
            "100.64.0.1",
            "8.8.8.8",
            "fd00::1",
            "2001:db8::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!refused(&policy, ip), "{ip}");
        }
    }

    #[test]
    fn flags_open_and_close() {
        let policy = AddressPolicy {
            blocked: vec!["10.0.0.0/8".parse().unwrap(), "127.0.0.9/32".parse().unwrap()],
            allowed: vec!["127.0.0.0/8".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
        };
        assert!(!refused(&policy, "127.0.0.1"));
        assert!(!refused(&policy, "::ffff:127.0.0.1"));
        assert!(refused(&policy, "127.0.0.9"), "blocked is stronger");
        assert!(refused(&policy, "10.1.2.3"));
        assert!(refused(&policy, "::ffff:10.9.9.9"));
        assert!(refused(&policy, "::1"), "not named");
    }
}
