//! Choosing a filter chain, exactly by Envoy's rules, from tables built when the listener is compiled.
//!
//! Criteria are looked at one after the other, each by its most specific match, without going back: destination port,
//! destination address (longest prefix), server name (exact, then the longest wildcard suffix, then none), transport
//! protocol, application protocols, address of the socket's peer, source type, source address, source port.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mesh_api::model::{CidrRange, FilterChainMatch, Name, SourceType};

/// What a chain is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct MatchInput<'a> {
    /// Local address, restored if it was redirected; `None`: Unix socket.
    pub local: Option<SocketAddr>,
    /// Peer after PROXY protocol; `None`: Unix socket.
    pub peer: Option<SocketAddr>,
    /// Peer of the socket.
    pub direct_peer: Option<SocketAddr>,
    /// SNI, lower case; empty: none.
    pub sni: &'a str,
    /// `tls` or `raw_buffer`.
    pub transport: &'a str,
    /// ALPN, or what the HTTP inspector found.
    pub protocols: &'a [Name],
}

/// Filter chains by what they match; a chain is an index into the listener's list.
#[derive(Debug, Default)]
pub struct ChainTable {
    /// Port 0: any.
    ports: HashMap<u16, Prefixes<Names>>,
}

/// Server name (`.suffix` for wildcards, empty for any) to the rest.
type Names = HashMap<Name, Transports>;
/// Transport protocol (empty: any) to the rest.
type Transports = Vec<(Name, Protocols)>;
/// Application protocol (empty: any) to the rest.
type Protocols = Vec<(Name, Prefixes<SourceTypes>)>;
/// By [`SourceType`].
type SourceTypes = [Option<Prefixes<Ports>>; 3];
/// Source port (0: any) to the chain.
type Ports = HashMap<u16, usize>;

/// Values by address prefix, longest first. One hash table a prefix length that occurs.
#[derive(Debug)]
struct Prefixes<V> {
    v4: Vec<(u8, HashMap<u32, V>)>,
    v6: Vec<(u8, HashMap<u128, V>)>,
    /// Of whom no prefix was asked: any address of either family.
    any: Option<Box<V>>,
}

impl<V> Default for Prefixes<V> {
    fn default() -> Self {
        Self { v4: vec![], v6: vec![], any: None }
    }
}

fn mask4(ip: u32, len: u8) -> u32 {
    ip & u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

fn mask6(ip: u128, len: u8) -> u128 {
    ip & u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

fn by_length<K: std::hash::Hash + Eq, V: Default>(levels: &mut Vec<(u8, HashMap<K, V>)>, len: u8, key: K) -> &mut V {
    let at = match levels.binary_search_by(|(l, _)| len.cmp(l)) {
        Ok(at) => at,
        Err(at) => {
            levels.insert(at, (len, HashMap::new()));
            at
        }
    };
    // `at` is where the level was found or has just been put.
    #[allow(clippy::indexing_slicing)]
    levels[at].1.entry(key).or_default()
}

impl<V: Default> Prefixes<V> {
    fn entry(&mut self, range: Option<CidrRange>) -> &mut V {
        match range {
            None => self.any.get_or_insert_default(),
            Some(r) => match r.address.to_canonical() {
                IpAddr::V4(ip) => {
                    let len = r.prefix_len.min(32);
                    by_length(&mut self.v4, len, mask4(ip.into(), len))
                }
                IpAddr::V6(ip) => {
                    let len = r.prefix_len.min(128);
                    by_length(&mut self.v6, len, mask6(ip.into(), len))
                }
            },
        }
    }

    fn find(&self, ip: IpAddr) -> Option<&V> {
        let specific = match ip.to_canonical() {
            IpAddr::V4(ip) => self.v4.iter().find_map(|(len, m)| m.get(&mask4(ip.into(), *len))),
            IpAddr::V6(ip) => self.v6.iter().find_map(|(len, m)| m.get(&mask6(ip.into(), *len))),
        };
        specific.or(self.any.as_deref())
    }
}

/// What Envoy takes for the address of a peer that has none.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

fn or_any<T>(list: &[T]) -> Vec<Option<&T>> {
    if list.is_empty() { vec![None] } else { list.iter().map(Some).collect() }
}

/// Prefixes to enter. To Envoy "no prefix" and `0.0.0.0/0` with `::/0` are the same entry; so where a listener has such
/// a range, "no prefix" is entered as both (`split`), otherwise as one entry for either family.
fn ranges(list: &[CidrRange], split: bool) -> Vec<Option<CidrRange>> {
    match (list, split) {
        ([], false) => vec![None],
        ([], true) => [IpAddr::from([0u8; 4]), IpAddr::from([0u8; 16])]
            .map(|address| Some(CidrRange { address, prefix_len: 0 }))
            .to_vec(),
        (list, _) => list.iter().copied().map(Some).collect(),
    }
}

impl ChainTable {
    /// Tables for these matches.
    ///
    /// # Errors
    /// When two chains match the same, or a server name has a wildcard that is not its first label.
    pub fn build<'a>(matches: impl IntoIterator<Item = (&'a Name, &'a FilterChainMatch)>) -> Result<Self, String> {
        let mut table = Self::default();
        let empty = Name::from("");
        let matches: Vec<_> = matches.into_iter().collect();
        let split = matches.iter().any(|(_, m)| {
            let lists = [&m.prefix_ranges, &m.direct_source_prefix_ranges, &m.source_prefix_ranges];
            lists.iter().any(|l| l.iter().any(|r| r.prefix_len == 0))
        });
        for (index, (name, m)) in matches.into_iter().enumerate() {
            let mut server_names = vec![];
            for n in &m.server_names {
                let lower = n.to_ascii_lowercase();
                match lower.strip_prefix('*') {
                    Some(suffix) if suffix.starts_with('.') && !suffix.contains('*') => {
                        server_names.push(suffix.into())
                    }
                    None if !lower.contains('*') => server_names.push(lower.into()),
                    _ => return Err(format!("filter chain {name:?}: partial wildcard {n:?} in server_names")),
                }
            }
            if server_names.is_empty() {
                server_names.push(empty.clone());
            }
            let names = table.ports.entry(m.destination_port.unwrap_or(0)).or_default();
            for range in ranges(&m.prefix_ranges, split) {
                let names = names.entry(range);
                for sni in &server_names {
                    let transports = names.entry(sni.clone()).or_default();
                    let protocols = keyed(transports, &m.transport_protocol);
                    for protocol in or_any(&m.application_protocols) {
                        insert_sources(keyed(protocols, protocol.unwrap_or(&empty)), m, split, index).map_err(
                            |()| format!("filter chain {name:?}: another filter chain has the same matching rules"),
                        )?;
                    }
                }
            }
        }
        Ok(table)
    }

    /// The chain for a connection, if any.
    pub fn find(&self, input: &MatchInput<'_>) -> Option<usize> {
        // A port that occurs at all hides the chains without a port.
        let port = input.local.map_or(0, |a| a.port());
        let names = self.ports.get(&port).or_else(|| self.ports.get(&0))?;
        let names = names.find(input.local.map_or(UNKNOWN, |a| a.ip()))?;
        let transports = find_name(names, input.sni)?;
        let protocols = find_keyed(transports, input.transport)?;
        let any = || protocols.iter().find(|(n, _)| n.is_empty());
        let (_, direct) = input.protocols.iter().find_map(|p| protocols.iter().find(|(n, _)| n == p)).or_else(any)?;
        let types = direct.find(input.direct_peer.map_or(UNKNOWN, |a| a.ip()))?;
        let [any, local, external] = types;
        let specific = if local.is_some() || external.is_some() {
            if is_local(input) { local.as_ref() } else { external.as_ref() }
        } else {
            None
        };
        let ports = specific.or(any.as_ref())?.find(input.peer.map_or(UNKNOWN, |a| a.ip()))?;
        let port = input.peer.map_or(0, |a| a.port());
        ports.get(&port).or_else(|| ports.get(&0)).copied()
    }
}

fn insert_sources(
    direct: &mut Prefixes<SourceTypes>,
    m: &FilterChainMatch,
    split: bool,
    index: usize,
) -> Result<(), ()> {
    for range in ranges(&m.direct_source_prefix_ranges, split) {
        let [any, local, external] = direct.entry(range);
        let sources = match m.source_type {
            SourceType::Any => any,
            SourceType::SameIpOrLoopback => local,
            SourceType::External => external,
        }
        .get_or_insert_default();
        for range in ranges(&m.source_prefix_ranges, split) {
            let ports = sources.entry(range);
            for port in or_any(&m.source_ports) {
                if ports.insert(port.copied().unwrap_or(0), index).is_some() {
                    return Err(());
                }
            }
        }
    }
    Ok(())
}

fn keyed<'a, V: Default>(list: &'a mut Vec<(Name, V)>, key: &Name) -> &'a mut V {
    let at = list.iter().position(|(n, _)| n == key).unwrap_or_else(|| {
        list.push((key.clone(), V::default()));
        list.len() - 1
    });
    // `at` was found or has just been pushed.
    #[allow(clippy::indexing_slicing)]
    &mut list[at].1
}

fn find_keyed<'a, V>(list: &'a [(Name, V)], key: &str) -> Option<&'a V> {
    let of = |k: &str| list.iter().find(|(n, _)| &**n == k).map(|(_, v)| v);
    of(key).or_else(|| of(""))
}

fn find_name<'a>(names: &'a Names, sni: &str) -> Option<&'a Transports> {
    if let Some(found) = names.get(sni) {
        return Some(found);
    }
    let mut rest = sni;
    while let Some(dot) = rest.get(1..).and_then(|r| r.find('.')).map(|at| at + 1) {
        rest = rest.get(dot..).unwrap_or_default();
        if rest.len() > 1
            && let Some(found) = names.get(rest)
        {
            return Some(found);
        }
    }
    names.get("")
}

/// Envoy's `isSameIpOrLoopback`: Unix sockets are local.
fn is_local(input: &MatchInput<'_>) -> bool {
    match (input.peer, input.local) {
        (Some(peer), local) => {
            let peer = peer.ip().to_canonical();
            peer.is_loopback() || local.is_some_and(|l| l.ip().to_canonical() == peer)
        }
        (None, _) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> CidrRange {
        let (a, l) = s.split_once('/').unwrap();
        CidrRange { address: a.parse().unwrap(), prefix_len: l.parse().unwrap() }
    }
    fn m() -> FilterChainMatch {
        FilterChainMatch::default()
    }
    fn table(list: &[FilterChainMatch]) -> ChainTable {
        let names: Vec<Name> = (0..list.len()).map(|i| i.to_string().into()).collect();
        ChainTable::build(names.iter().zip(list)).unwrap()
    }
    fn input<'a>(local: &str, peer: &str, sni: &'a str, transport: &'a str, protocols: &'a [Name]) -> MatchInput<'a> {
        let peer = Some(peer.parse().unwrap());
        MatchInput { local: Some(local.parse().unwrap()), peer, direct_peer: peer, sni, transport, protocols }
    }

    #[test]
    fn precedence_without_going_back() {
        let t = table(&[
            FilterChainMatch { destination_port: Some(80), prefix_ranges: vec![cidr("10.0.0.0/8")], ..m() }, // 0
            FilterChainMatch { prefix_ranges: vec![cidr("10.1.0.0/16")], ..m() },                            // 1
            FilterChainMatch { prefix_ranges: vec![cidr("10.0.0.0/8")], server_names: vec!["a.b".into()], ..m() }, // 2
            m(),                                                                                             // 3
        ]);
        let find = |l: &str, sni: &str| t.find(&input(l, "9.9.9.9:1", sni, "raw_buffer", &[]));
        assert_eq!(find("10.1.1.1:80", ""), Some(0), "port first");
        assert_eq!(find("11.1.1.1:80", ""), None, "a known port hides chains without one");
        assert_eq!(find("10.1.1.1:81", "a.b"), Some(1), "longest prefix");
        assert_eq!(find("10.2.1.1:81", "a.b"), Some(2));
        assert_eq!(find("10.2.1.1:81", "x"), None, "no way back from the prefix");
        assert_eq!(find("[::1]:81", ""), Some(3));
    }

    #[test]
    fn server_names() {
        let named = |n: &str| FilterChainMatch { server_names: vec![n.into()], ..m() };
        let t = table(&[named("www.Example.com"), named("*.example.com"), named("*.com"), m()]);
        let find = |sni: &str| t.find(&input("1.1.1.1:1", "9.9.9.9:1", sni, "tls", &[]));
        assert_eq!(find("www.example.com"), Some(0));
        assert_eq!(find("a.b.example.com"), Some(1));
        assert_eq!(find("example.com"), Some(2));
        assert_eq!(find("com"), Some(3));
        assert_eq!(find(""), Some(3));
        assert_eq!(find("x.com."), Some(3));
        assert!(ChainTable::build([(&"x".into(), &named("w*.example.com"))]).is_err());
        assert!(ChainTable::build([(&"x".into(), &named("*"))]).is_err());
    }

    #[test]
    fn protocols_and_sources() {
        let t = table(&[
            FilterChainMatch { transport_protocol: "tls".into(), application_protocols: vec!["istio".into()], ..m() },
            FilterChainMatch { transport_protocol: "tls".into(), ..m() },
            FilterChainMatch { application_protocols: vec!["http/1.1".into(), "h2c".into()], ..m() },
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..m() },
            FilterChainMatch { source_prefix_ranges: vec![cidr("10.0.0.0/8")], source_ports: vec![7, 8], ..m() },
            FilterChainMatch { source_prefix_ranges: vec![cidr("10.0.0.0/8")], ..m() },
        ]);
        let (istio, h1): (&[Name], &[Name]) = (&["h2".into(), "istio".into()], &["http/1.1".into()]);
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:1", "", "tls", istio)), Some(0));
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:1", "", "tls", h1)), Some(1));
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:1", "", "raw_buffer", h1)), Some(2));
        assert_eq!(t.find(&input("1.1.1.1:1", "127.0.0.1:1", "", "raw_buffer", &[])), Some(3));
        assert_eq!(t.find(&input("1.1.1.1:1", "1.1.1.1:1", "", "raw_buffer", &[])), Some(3));
        assert_eq!(t.find(&input("1.1.1.1:1", "10.0.0.1:8", "", "raw_buffer", &[])), Some(4));
        assert_eq!(t.find(&input("1.1.1.1:1", "10.0.0.1:9", "", "raw_buffer", &[])), Some(5));
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:9", "", "raw_buffer", &[])), None);
    }

    #[test]
    fn direct_source_and_unix_sockets() {
        let t = table(&[
            FilterChainMatch { direct_source_prefix_ranges: vec![cidr("192.168.0.0/16")], ..m() },
            FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..m() },
        ]);
        let mut i = input("1.1.1.1:1", "9.9.9.9:1", "", "raw_buffer", &[]);
        i.direct_peer = Some("192.168.1.1:1".parse().unwrap());
        assert_eq!(t.find(&i), Some(0));
        let unix =
            MatchInput { local: None, peer: None, direct_peer: None, sni: "", transport: "raw_buffer", protocols: &[] };
        assert_eq!(t.find(&unix), Some(1));
    }

    #[test]
    fn no_prefix_and_zero_prefix_are_one_entry() {
        let t = table(&[
            FilterChainMatch { prefix_ranges: vec![cidr("0.0.0.0/0")], server_names: vec!["a".into()], ..m() },
            m(),
        ]);
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:1", "a", "tls", &[])), Some(0));
        assert_eq!(t.find(&input("1.1.1.1:1", "9.9.9.9:1", "b", "tls", &[])), Some(1));
        assert_eq!(t.find(&input("[::1]:1", "9.9.9.9:1", "a", "tls", &[])), Some(1));
    }

    #[test]
    fn same_rules_twice_is_an_error() {
        let a: Name = "a".into();
        let x = FilterChainMatch { server_names: vec!["a".into(), "b".into()], ..m() };
        let y = FilterChainMatch { server_names: vec!["b".into()], ..m() };
        let e = ChainTable::build([(&a, &x), (&a, &y)]).unwrap_err();
        assert!(e.contains("same matching rules"), "{e}");
    }
}
