//! Which virtual host serves a host: exact names first, then the longest suffix, the longest prefix, then `*`.

use std::borrow::Cow;
use std::collections::HashMap;

use mesh_api::model;

use crate::config::ConfigError;
use crate::http::message::split_port;

/// Domains of all virtual hosts of a table, by index of the host.
#[derive(Debug, Default)]
pub struct Hosts {
    exact: HashMap<Box<str>, usize>,
    /// `.suffix`, longest first.
    suffixes: Vec<(Box<str>, usize)>,
    /// `prefix.`, longest first.
    prefixes: Vec<(Box<str>, usize)>,
    any: Option<usize>,
    ignore_port: bool,
}

impl Hosts {
    /// Sorts domains.
    ///
    /// # Errors
    /// A domain that stands twice.
    pub fn compile(config: &model::RouteConfig) -> Result<Self, ConfigError> {
        let mut hosts = Hosts { ignore_port: config.ignore_port_in_host, ..Hosts::default() };
        for (index, host) in config.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                let domain = domain.to_ascii_lowercase();
                let twice = match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
                    (Some(""), _) => hosts.any.replace(index).is_some(),
                    (Some(suffix), _) => put(&mut hosts.suffixes, suffix, index),
                    (None, Some(prefix)) => put(&mut hosts.prefixes, prefix, index),
                    (None, None) => hosts.exact.insert(domain.as_str().into(), index).is_some(),
                };
                if twice {
                    return Err(ConfigError::new(format!("domain {domain:?} stands in two virtual hosts")));
                }
            }
        }
        hosts.suffixes.sort_by_key(|(s, _)| std::cmp::Reverse(s.len()));
        hosts.prefixes.sort_by_key(|(p, _)| std::cmp::Reverse(p.len()));
        Ok(hosts)
    }

    /// The host that serves an authority.
    pub fn find(&self, authority: &str) -> Option<usize> {
        let authority = if self.ignore_port { split_port(authority).0 } else { authority };
        let name: Cow<'_, str> = if authority.bytes().any(|b| b.is_ascii_uppercase()) {
            authority.to_ascii_lowercase().into()
        } else {
            authority.into()
        };
        if let Some(index) = self.exact.get(&*name) {
            return Some(*index);
        }
        // A wildcard stands for one character at least.
        let suffix = self.suffixes.iter().find(|(s, _)| name.len() > s.len() && name.ends_with(&**s));
        let found =
            suffix.or_else(|| self.prefixes.iter().find(|(p, _)| name.len() > p.len() && name.starts_with(&**p)));
        found.map(|(_, index)| *index).or(self.any)
    }
}

fn put(list: &mut Vec<(Box<str>, usize)>, part: &str, index: usize) -> bool {
    let twice = list.iter().any(|(p, _)| **p == *part);
    list.push((part.into(), index));
    twice
}
