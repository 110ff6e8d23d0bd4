//! Addresses for hosts of ServiceEntries that have none, so that connections to them can be told apart.
//!
//! Owns which hosts get some, and which. An address follows from the host and its namespace; of two that would have the
//! same the younger takes another. So it is the same after a restart and in every replica, and nothing has to be kept.
//! Must not know which proxies use them.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mesh_api::{crd::networking, labels::Labels};
use xxhash_rust::xxh64::xxh64;

use super::{ServiceKey, host};
use crate::source::object::{Object, Spec};

/// Label by which an object says that it wants none (`"false"`).
const ENABLED: &str = "networking.istio.io/enable-autoallocate-ip";
/// `240.240.0.0/16`, as Istio: reserved for the future, so nobody's.
const V4: u32 = 0xf0f0_0000;
/// The first and the last address of the block are nobody's.
const V4_COUNT: u32 = (1 << 16) - 2;
/// `2001:2::/48`, as Istio: for benchmarks.
const V6: u128 = 0x2001_0002_0000_0000_0000_0000_0000_0000;

/// The addresses of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allocated {
    /// In `240.240.0.0/16`.
    pub v4: Ipv4Addr,
    /// In `2001:2::/48`.
    pub v6: Ipv6Addr,
}

impl Allocated {
    /// Both.
    pub fn ips(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// Addresses by host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allocation {
    /// What it was made from.
    wanted: Vec<ServiceKey>,
    reserved: HashSet<IpAddr>,
    hosts: HashMap<ServiceKey, Allocated>,
}

impl Allocation {
    /// The addresses of a host.
    pub fn get(&self, key: &ServiceKey) -> Option<Allocated> {
        self.hosts.get(key).copied()
    }

    /// For the ServiceEntries of a mesh, in any order; `None`: the same as before.
    pub fn renew<'a>(&self, entries: impl Iterator<Item = &'a std::sync::Arc<Object>>) -> Option<Self> {
        let mut objects: Vec<_> = entries.collect();
        objects.sort_by(|a, b| a.age_order().cmp(&b.age_order()));
        let (mut wanted, mut seen, mut reserved) = (Vec::new(), HashSet::new(), HashSet::new());
        for object in objects {
            let Spec::ServiceEntry(entry) = &object.spec else { continue };
            reserved.extend(entry.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()).filter(ours));
            if !applies(entry, &object.meta.labels) {
                continue;
            }
            let hosts = entry.hosts.iter().filter(|h| keeps(entry, h));
            let keys = hosts.map(|h| ServiceKey::new(h, &object.key.namespace));
            wanted.extend(keys.filter(|k| seen.insert(k.clone())));
        }
        if wanted == self.wanted && reserved == self.reserved {
            return None;
        }
        let hosts = allocate(&wanted, &reserved);
        Some(Self { wanted, reserved, hosts })
    }

    /// Hosts whose addresses are others than in `old`, or were not there.
    pub fn changed<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = &'a ServiceKey> {
        let here = self.hosts.iter().filter(|(k, a)| old.hosts.get(*k) != Some(*a)).map(|(k, _)| k);
        here.chain(old.hosts.keys().filter(|k| !self.hosts.contains_key(*k)))
    }
}

/// Whether two forms of a ServiceEntry claim the same addresses for the same hosts, with the same right.
pub fn claims_alike(old: Option<&Object>, new: Option<&Object>) -> bool {
    let (Some(old), Some(new)) = (old, new) else { return false };
    let (Spec::ServiceEntry(a), Spec::ServiceEntry(b)) = (&old.spec, &new.spec) else { return false };
    old.meta.creation == new.meta.creation
        && old.meta.labels.get(ENABLED) == new.meta.labels.get(ENABLED)
        && a.resolution == b.resolution
        && a.hosts == b.hosts
        && a.addresses == b.addresses
}

/// Whether hosts of an object without an address get one: not where clients' own addresses count, nor where the object
/// says no.
pub fn applies(entry: &networking::ServiceEntry, labels: &Labels) -> bool {
    let refused = labels.get(ENABLED).is_some_and(|v| v.eq_ignore_ascii_case("false"));
    entry.resolution != networking::Resolution::None && !refused && entry.addresses.is_empty()
}

/// A pattern is no host, unless names are looked up as they are asked for.
fn keeps(entry: &networking::ServiceEntry, name: &str) -> bool {
    entry.resolution == networking::Resolution::DynamicDns || !host::is_wildcard(name)
}

fn ours(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => u32::from(*ip) & 0xffff_0000 == V4,
        IpAddr::V6(ip) => u128::from(*ip) >> 80 == V6 >> 80,
    }
}

/// The address of a host is where its hash says, or the next that is free. Those who come first come first.
fn allocate(wanted: &[ServiceKey], reserved: &HashSet<IpAddr>) -> HashMap<ServiceKey, Allocated> {
    let mut taken = reserved.clone();
    let mut out = HashMap::with_capacity(wanted.len());
    for key in wanted {
        let hash = xxh64(format!("{}/{}", key.namespace, key.host).as_bytes(), 0);
        let start = u32::try_from(hash % u64::from(V4_COUNT)).unwrap_or(0);
        let mut places = (0..V4_COUNT).map(|i| Ipv4Addr::from(V4 + 1 + (start + i) % V4_COUNT));
        let Some(v4) = places.find(|ip| !taken.contains(&IpAddr::V4(*ip))) else {
            tracing::error!(host = %key.host, namespace = %key.namespace, "no address is left for it in 240.240.0.0/16");
            continue;
        };
        let mut places = (0..u64::MAX).map(|i| Ipv6Addr::from(V6 | u128::from(hash.wrapping_add(i).max(1))));
        let Some(v6) = places.find(|ip| !taken.contains(&IpAddr::V6(*ip))) else { continue };
        taken.extend([IpAddr::V4(v4), IpAddr::V6(v6)]);
        out.insert(key.clone(), Allocated { v4, v6 });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(n: u32) -> Vec<ServiceKey> {
        (0..n).map(|i| ServiceKey::new(&format!("host-{i}.test"), "shop")).collect()
    }

    #[test]
    fn an_address_follows_from_the_host() {
        let all = allocate(&keys(2000), &HashSet::new());
        let distinct: HashSet<Ipv4Addr> = all.values().map(|a| a.v4).collect();
        assert_eq!(distinct.len(), 2000, "no two share one");
        assert!(all.values().flat_map(|a| a.ips()).all(|ip| ours(&ip)));
        let more = allocate(&keys(3000), &HashSet::new());
        assert!(all.iter().all(|(k, a)| more.get(k) == Some(a)), "those who come later move nobody");
        let alone = allocate(&keys(3000)[1..2], &HashSet::new());
        assert_eq!(alone.values().next(), all.get(&keys(2)[1]));
        let elsewhere = allocate(&[ServiceKey::new("host-1.test", "other")], &HashSet::new());
        assert_ne!(elsewhere.values().next(), alone.values().next());
    }

    #[test]
    fn addresses_that_somebody_declares_are_taken() {
        let key = keys(1);
        let first = allocate(&key, &HashSet::new())[&key[0]];
        let second = allocate(&key, &HashSet::from(first.ips()))[&key[0]];
        assert_ne!(second.v4, first.v4);
        assert_ne!(second.v6, first.v6);
    }

    #[test]
    fn there_is_an_end() {
        let all_but_one = (2..=V4_COUNT).map(|i| IpAddr::V4(Ipv4Addr::from(V4 + i))).collect();
        let found = allocate(&keys(3), &all_but_one);
        assert_eq!(found.len(), 1);
        assert_eq!(found[&keys(1)[0]].v4, Ipv4Addr::new(240, 240, 0, 1));
    }
}
