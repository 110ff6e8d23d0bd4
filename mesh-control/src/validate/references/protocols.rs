//! Ports whose protocol matters: rules of HTTP where bytes of TCP come in, Services that say different things of one port.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::crd::security::{AuthorizationPolicy, PolicyAction, Rule};
use mesh_api::labels::Labels;

use super::checker::{Checker, list};
use super::known::OfferedPort;
use crate::index::protocol::Protocol;
use crate::source::core::Service;
use crate::validate::Finding;
use crate::validate::codes::HTTP_RULE_ON_TCP;

impl Checker<'_> {
    /// Rules that ask for what only HTTP has, of workloads with ports of TCP: there ALLOW never allows, and the others
    /// refuse without asking.
    pub(super) fn http_on_tcp(&mut self, policy: &AuthorizationPolicy, selector: &Labels) {
        let asking: Vec<(usize, &Rule)> =
            policy.rules.iter().flatten().enumerate().filter(|(_, r)| asks_for_http(r)).collect();
        if asking.is_empty() {
            return;
        }
        let services = self.services_of(self.known.scope(self.key), selector);
        let opaque: BTreeSet<u16> = services
            .values()
            .flat_map(|ports| ports.iter())
            .filter(|p| p.protocol.is_tcp())
            .map(OfferedPort::listens)
            .collect();
        let meaning = match policy.action {
            PolicyAction::Allow => "allows nothing there",
            _ => "concerns everything there that its other conditions do",
        };
        for (i, rule) in asking {
            let concerned: BTreeSet<u16> = opaque.iter().copied().filter(|p| is_for_port(rule, *p)).collect();
            if !concerned.is_empty() {
                let message = format!(
                    "asks for what only HTTP has, and port {} of the workloads is TCP: the rule {meaning}",
                    list(&concerned)
                );
                self.found.push(Finding::warning(format!("spec.rules[{i}]"), message).code(HTTP_RULE_ON_TCP));
            }
        }
    }

    /// Services of the same workloads that contradict each other.
    pub(super) fn shared_ports(&mut self, service: &Service) {
        let own: Vec<OfferedPort> = super::known::service_ports(service);
        let others = self.services_of(&self.key.namespace, &service.selector);
        let mut protocols: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
        let mut numbers: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
        for (key, ports) in others.into_iter().filter(|(key, _)| *key != self.key) {
            for other in ports.iter().filter(|p| p.protocol != Protocol::Udp) {
                let same = |p: &&OfferedPort| p.protocol != Protocol::Udp;
                for mine in own.iter().filter(same) {
                    if mine.number == other.number && mine.protocol != other.protocol {
                        protocols.entry(mine.number).or_default().insert(key.name.to_string());
                    }
                    if mine.target.is_some() && mine.target == other.target && mine.number != other.number {
                        numbers.entry(mine.listens()).or_default().insert(format!("{} ({})", key.name, other.number));
                    }
                }
            }
        }
        for (port, names) in protocols {
            let names = Vec::from_iter(names).join(", ");
            let message = format!("{names} gives port {port} of the same workloads another protocol");
            self.found.push(Finding::warning("spec.ports", message).code("IST0116"));
        }
        for (port, names) in numbers {
            let names = Vec::from_iter(names).join(", ");
            let message = format!("target port {port} of the same workloads has another port in {names}");
            self.found.push(Finding::warning("spec.ports", message).code("IST0137"));
        }
    }
}

/// Whether a rule asks for anything that connections of TCP do not have.
fn asks_for_http(rule: &Rule) -> bool {
    let any = |lists: &[&Vec<String>]| lists.iter().any(|l| !l.is_empty());
    let sources = rule.from.iter().flatten().filter_map(|f| f.source.as_ref());
    let operations = rule.to.iter().flatten().filter_map(|t| t.operation.as_ref());
    sources.into_iter().any(|s| any(&[&s.request_principals, &s.not_request_principals]))
        || operations
            .into_iter()
            .any(|o| any(&[&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths]))
        || rule.when.iter().any(|w| w.key.starts_with("request."))
}

/// Whether a rule may be meant for a port.
fn is_for_port(rule: &Rule, port: u16) -> bool {
    let text = port.to_string();
    let Some(to) = rule.to.as_ref().filter(|to| !to.is_empty()) else { return true };
    to.iter().any(|t| match &t.operation {
        Some(o) => (o.ports.is_empty() || o.ports.contains(&text)) && !o.not_ports.contains(&text),
        None => true,
    })
}
