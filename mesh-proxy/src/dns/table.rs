//! Addresses by name: hosts of the mesh, their shorter forms, wildcards, and what a client's resolver makes of them with
//! the first search domain.
//!
//! Compiled once a push, read by each question. Knows neither messages nor sockets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use mesh_api::model::{NameInfo, NameTable, Registry};

/// Where the proxy stands, which decides about shorter names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Namespace of the proxy: its services are known by their name alone.
    pub namespace: String,
    /// Domain of the proxy's services, `svc.cluster.local`; empty: there are no shorter forms.
    pub domain: String,
    /// First search domain of the resolvers, without dots around it; empty: none.
    pub search: String,
}

impl Place {
    /// `domain` is that of the node id, which may begin with the namespace.
    pub fn new(namespace: &str, domain: &str, search: &[String]) -> Self {
        let own = domain.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('.'));
        Self {
            namespace: namespace.to_ascii_lowercase(),
            domain: own.unwrap_or(domain).to_ascii_lowercase(),
            search: search.first().map(|s| plain(s)).unwrap_or_default(),
        }
    }
}

/// Addresses of a host, each family in the order in which they were told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For `A`.
    pub v4: Vec<Ipv4Addr>,
    /// For `AAAA`.
    pub v6: Vec<Ipv6Addr>,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its addresses.
    pub addresses: Arc<Addresses>,
    /// The name asked for stands for the part of it that has this many bytes: a client's resolver put a search domain
    /// behind it.
    pub alias_of: Option<usize>,
}

/// All names. Keys are in lower case, without the dot at the end.
#[derive(Debug, Default)]
pub struct Table {
    hosts: HashMap<Box<str>, Arc<Addresses>>,
    /// `*.example.com` by `example.com`.
    wildcards: HashMap<Box<str>, Arc<Addresses>>,
    /// With a dot before it.
    search: String,
}

impl Table {
    /// From the names that the control plane told. A host without an address is none.
    pub fn build(names: &NameTable, place: &Place) -> Self {
        let mut table = Self::default();
        if !place.search.is_empty() {
            table.search = format!(".{}", place.search);
        }
        for (host, info) in &names.0 {
            let mut addresses = Addresses::default();
            for ip in &info.ips {
                match ip {
                    IpAddr::V4(v4) => addresses.v4.push(*v4),
                    IpAddr::V6(v6) => addresses.v6.push(*v6),
                }
            }
            let host = plain(host);
            if info.ips.is_empty() || host.is_empty() {
                continue;
            }
            let addresses = Arc::new(addresses);
            for name in shorter(&host, info, place) {
                // A host is itself before it is the short form of another.
                table.hosts.entry(name.into_boxed_str()).or_insert_with(|| addresses.clone());
            }
            match host.strip_prefix("*.") {
                Some(base) => table.wildcards.insert(base.into(), addresses),
                None => table.hosts.insert(host.into_boxed_str(), addresses),
            };
        }
        table
    }

    /// How many names are answered, without those that search domains make.
    pub fn len(&self) -> usize {
        self.hosts.len() + self.wildcards.len()
    }

    /// Whether no name is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of a name: in lower case, without the dot at the end.
    pub fn find(&self, name: &str) -> Option<Found> {
        if let Some(addresses) = self.hosts.get(name) {
            return Some(Found { addresses: addresses.clone(), alias_of: None });
        }
        let stem = (!self.search.is_empty()).then(|| name.strip_suffix(&*self.search)).flatten();
        // What lies in the search domain itself is not looked for with that domain once more.
        let expanded = |host: &str| {
            stem.is_some() && !host.ends_with(&*self.search) && host != self.search.get(1..).unwrap_or_default()
        };
        if let Some(stem) = stem
            && expanded(stem)
            && let Some(addresses) = self.hosts.get(stem)
        {
            return Some(Found { addresses: addresses.clone(), alias_of: Some(stem.len()) });
        }
        if self.wildcards.is_empty() {
            return None;
        }
        // The most specific one counts.
        let mut rest = name;
        while let Some((_, base)) = rest.split_once('.') {
            if let Some(addresses) = self.wildcards.get(base) {
                return Some(Found { addresses: addresses.clone(), alias_of: None });
            }
            if let (Some(stem), Some(host)) = (stem, base.strip_suffix(&*self.search))
                && expanded(host)
                && let Some(addresses) = self.wildcards.get(host)
            {
                return Some(Found { addresses: addresses.clone(), alias_of: Some(stem.len()) });
            }
            rest = base;
        }
        None
    }
}

/// A name as the table has it.
fn plain(name: &str) -> String {
    name.trim_matches('.').to_ascii_lowercase()
}

/// Shorter forms of a Service in the proxy's own domain: `NAME.NAMESPACE`, `NAME.NAMESPACE.svc`, and `NAME` of its own
/// namespace. Services of other domains have none: they could not be told apart.
fn shorter(host: &str, info: &NameInfo, place: &Place) -> Vec<String> {
    let (short, namespace) = (plain(&info.short_name), plain(&info.namespace));
    let known = !short.is_empty() && !namespace.is_empty() && !place.domain.is_empty();
    if info.registry != Registry::Kubernetes || !known || !host.ends_with(&place.domain) {
        return vec![];
    }
    let first = place.domain.split('.').next().unwrap_or_default();
    let mut out = vec![format!("{short}.{namespace}"), format!("{short}.{namespace}.{first}")];
    if namespace == place.namespace {
        out.push(short);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(ips: &[&str], registry: Registry, short: &str, namespace: &str) -> NameInfo {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        NameInfo { ips, registry, short_name: short.into(), namespace: namespace.into() }
    }

    fn table(search: &[&str]) -> Table {
        let search: Vec<String> = search.iter().map(|s| (*s).to_owned()).collect();
        let kubernetes = |ip: &str, short, namespace| info(&[ip], Registry::Kubernetes, short, namespace);
        let external = |ip: &str| info(&[ip], Registry::External, "", "");
        let names = [
            ("web.shop.svc.cluster.local", kubernetes("10.1.0.1", "web", "shop")),
            ("db.bank.svc.cluster.local", kubernetes("10.1.0.2", "db", "bank")),
            ("far.shop.svc.other.domain", kubernetes("10.1.0.3", "far", "shop")),
            ("Ext.Test", external("240.240.0.1")),
            ("*.wild.test", external("240.240.0.2")),
            ("*.deep.wild.test", external("240.240.0.3")),
            ("both.test", info(&["10.2.0.1", "fd00::1"], Registry::External, "", "")),
            ("none.test", info(&[], Registry::External, "", "")),
            // Is also what a short name would be.
            ("db.bank", external("10.9.9.9")),
        ];
        let names = NameTable(names.into_iter().map(|(host, info)| (host.into(), info)).collect());
        Table::build(&names, &Place::new("shop", "shop.svc.cluster.local", &search))
    }

    fn v4(table: &Table, name: &str) -> Option<String> {
        table.find(name).and_then(|f| f.addresses.v4.first().map(ToString::to_string))
    }

    #[test]
    fn shorter_forms_of_services() {
        let t = table(&[]);
        for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
            assert_eq!(v4(&t, name).as_deref(), Some("10.1.0.1"), "{name}");
        }
        assert_eq!(v4(&t, "web.shop.svc.cluster"), None);
        assert_eq!(v4(&t, "db"), None, "of another namespace");
        assert_eq!(v4(&t, "db.bank.svc").as_deref(), Some("10.1.0.2"));
        assert_eq!(v4(&t, "db.bank").as_deref(), Some("10.9.9.9"), "a host is itself first");
        assert_eq!((v4(&t, "far.shop"), v4(&t, "far.shop.svc.other.domain").is_some()), (None, true));
    }

    #[test]
    fn hosts_and_families() {
        let t = table(&[]);
        assert_eq!(v4(&t, "ext.test").as_deref(), Some("240.240.0.1"), "keys are in lower case");
        let both = t.find("both.test").unwrap();
        assert_eq!((both.addresses.v4.len(), both.addresses.v6.len(), both.alias_of), (1, 1, None));
        assert_eq!(t.find("none.test"), None);
        assert_eq!(t.find(""), None);
    }

    #[test]
    fn the_most_specific_wildcard() {
        let t = table(&[]);
        assert_eq!(v4(&t, "a.wild.test").as_deref(), Some("240.240.0.2"));
        assert_eq!(v4(&t, "a.b.wild.test").as_deref(), Some("240.240.0.2"));
        assert_eq!(v4(&t, "a.deep.wild.test").as_deref(), Some("240.240.0.3"));
        assert_eq!(v4(&t, "deep.wild.test").as_deref(), Some("240.240.0.2"));
        assert_eq!(v4(&t, "wild.test"), None, "not the name itself");
    }

    #[test]
    fn what_search_domains_make_of_names() {
        let t = table(&["shop.svc.cluster.local", "svc.cluster.local"]);
        let found = t.find("ext.test.shop.svc.cluster.local").unwrap();
        assert_eq!(found.alias_of, Some("ext.test".len()));
        let found = t.find("a.deep.wild.test.shop.svc.cluster.local").unwrap();
        assert_eq!(
            (found.alias_of, found.addresses.v4[0].to_string().as_str()),
            (Some("a.deep.wild.test".len()), "240.240.0.3")
        );
        // A real name, whatever it looks like.
        assert_eq!(t.find("web.shop.svc.cluster.local").unwrap().alias_of, None);
        // Only the first domain, and nothing twice.
        assert_eq!(t.find("ext.test.svc.cluster.local"), None);
        assert_eq!(t.find("web.shop.svc.cluster.local.shop.svc.cluster.local"), None);
        assert_eq!(t.find("shop.svc.cluster.local"), None);
        assert_eq!(t.find(".shop.svc.cluster.local"), None);
    }

    #[test]
    fn where_a_proxy_stands() {
        let place = Place::new("shop", "shop.svc.cluster.local", &["A.b.".to_owned()]);
        assert_eq!((place.domain.as_str(), place.search.as_str()), ("svc.cluster.local", "a.b"));
        assert_eq!(Place::new("shop", "shopping.local", &[]).domain, "shopping.local");
    }
}
