//! The rule set: what Istio's init container sets, as data. The order of the rules is the meaning; each says why it is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Capture, DNS_PORT, Dns, OWN_PORTS, Selection};

/// An address family: each has rules of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Family {
    V4,
    V6,
}

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Table {
    Raw,
    Mangle,
    Nat,
}

/// Chains of ours. Those of the system hold one jump to the first of ours, so that taking them away is easy and exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Chain {
    /// Beginning of what arrives.
    Prerouting,
    /// Beginning of what is sent.
    Output,
    Inbound,
    InRedirect,
    Redirect,
    RawPrerouting,
    RawOutput,
    DropInvalid,
}

impl Chain {
    /// Name, also in the system.
    pub fn name(self) -> &'static str {
        match self {
            Chain::Prerouting => "MESH_PREROUTING",
            Chain::Output => "MESH_OUTPUT",
            Chain::Inbound => "MESH_INBOUND",
            Chain::InRedirect => "MESH_IN_REDIRECT",
            Chain::Redirect => "MESH_REDIRECT",
            Chain::RawPrerouting => "MESH_RAW_PREROUTING",
            Chain::RawOutput => "MESH_RAW_OUTPUT",
            Chain::DropInvalid => "MESH_DROP_INVALID",
        }
    }

    /// Table it is in.
    pub fn table(self) -> Table {
        match self {
            Chain::RawPrerouting | Chain::RawOutput => Table::Raw,
            Chain::DropInvalid => Table::Mangle,
            _ => Table::Nat,
        }
    }

    /// The system's chain that jumps to it.
    pub fn hook(self) -> Option<Hook> {
        match self {
            Chain::Prerouting | Chain::RawPrerouting | Chain::DropInvalid => Some(Hook::Prerouting),
            Chain::Output | Chain::RawOutput => Some(Hook::Output),
            _ => None,
        }
    }
}

/// Where packets come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Hook {
    Prerouting,
    Output,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Proto {
    Tcp,
    Udp,
}

/// What a packet must be; all conditions of a rule hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Comes in there.
    In(String),
    /// Goes out there.
    Out(String),
    /// Comes from there.
    From(IpNet),
    /// Goes there.
    To(IpNet),
    /// Goes anywhere else.
    NotTo(IpNet),
    /// Is of this transport.
    Is(Proto),
    /// Is of this transport and goes to one of these ports; never empty.
    ToPort(Proto, Vec<u16>),
    /// Is of this transport and goes to none of these ports; never empty.
    NotToPort(Proto, Vec<u16>),
    /// Is of this transport and comes from this port.
    FromPort(Proto, u16),
    /// Is sent by a process of this user.
    Uid(u32),
    /// Is sent by a process of this group.
    Gid(u32),
    /// Belongs to no connection that is known.
    Invalid,
}

/// What happens to it then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on as if there were no rules.
    Return,
    /// Is dropped.
    Drop,
    /// Goes through the rules of another chain.
    Jump(Chain),
    /// Goes to this port of this machine.
    Redirect(u16),
    /// Is tracked apart.
    Zone(u16),
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Chain it stands in, in order.
    pub chain: Chain,
    /// Conditions.
    pub matches: Vec<Match>,
    /// What happens.
    pub verdict: Verdict,
}

/// Ports in one rule at most: a limit of the `multiport` match.
const PORTS_A_RULE: usize = 15;

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Family::V4)
    }

    /// The address itself, as a network.
    fn loopback(self) -> IpNet {
        IpNet::from(match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        })
    }

    /// What the proxy binds to when it connects to its application.
    fn passthrough(self) -> IpNet {
        IpNet::from(match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
            Family::V6 => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
        })
    }
}

/// The rules of one family, in order.
pub fn rules(c: &Capture, family: Family) -> Vec<Rule> {
    let mut out = Builder { c, family, rules: Vec::new() };
    out.dns_tracking();
    if c.drop_invalid {
        out.add(Chain::DropInvalid, [Match::Invalid], Verdict::Drop);
    }
    out.add(Chain::Redirect, [Match::Is(Proto::Tcp)], Verdict::Redirect(c.outbound_port));
    out.add(Chain::InRedirect, [Match::Is(Proto::Tcp)], Verdict::Redirect(c.inbound_port));
    out.prerouting();
    out.inbound();
    out.output();
    out.rules
}

/// Chains that have rules, in the order of their first.
pub fn chains(rules: &[Rule]) -> Vec<Chain> {
    let mut out = Vec::new();
    for rule in rules {
        if !out.contains(&rule.chain) {
            out.push(rule.chain);
        }
    }
    out
}

struct Builder<'a> {
    c: &'a Capture,
    family: Family,
    rules: Vec<Rule>,
}

impl Builder<'_> {
    fn add(&mut self, chain: Chain, matches: impl IntoIterator<Item = Match>, verdict: Verdict) {
        self.rules.push(Rule { chain, matches: matches.into_iter().collect(), verdict });
    }

    fn ports(&mut self, chain: Chain, proto: Proto, ports: &[u16], verdict: Verdict) {
        for some in ports.chunks(PORTS_A_RULE) {
            self.add(chain, [Match::ToPort(proto, some.to_vec())], verdict);
        }
    }

    fn owners(&self) -> Vec<Match> {
        let uids = self.c.proxy_uids.iter().map(|id| Match::Uid(*id));
        uids.chain(self.c.proxy_gids.iter().map(|id| Match::Gid(*id))).collect()
    }

    /// Servers whose DNS is captured: `None` stands for all.
    fn dns_servers(&self) -> Vec<Option<IpNet>> {
        match &self.c.dns {
            Dns::Off => vec![],
            Dns::All => vec![None],
            Dns::Servers(all) => all.iter().filter(|ip| self.family.has(**ip)).map(|ip| Some((*ip).into())).collect(),
        }
    }

    fn networks(&self, nets: &[IpNet]) -> Vec<IpNet> {
        nets.iter().copied().filter(|n| self.family.has(n.addr())).collect()
    }

    /// An application and the proxy may ask the same server from the same port: the proxy's queries are tracked apart from
    /// what the application is answered.
    fn dns_tracking(&mut self) {
        const UPSTREAM: Verdict = Verdict::Zone(1);
        const DOWNSTREAM: Verdict = Verdict::Zone(2);
        let servers = self.dns_servers();
        if servers.is_empty() {
            return;
        }
        for owner in self.owners() {
            // The first zone that is set stays.
            self.add(Chain::RawOutput, [Match::ToPort(Proto::Udp, vec![53]), owner.clone()], UPSTREAM);
            self.add(Chain::RawOutput, [Match::FromPort(Proto::Udp, DNS_PORT), owner], DOWNSTREAM);
        }
        for server in servers {
            let to = server.map(Match::To);
            self.add(Chain::RawOutput, to.into_iter().chain([Match::ToPort(Proto::Udp, vec![53])]), DOWNSTREAM);
            let from = server.map(Match::From);
            self.add(Chain::RawPrerouting, from.into_iter().chain([Match::FromPort(Proto::Udp, 53)]), UPSTREAM);
        }
    }

    fn prerouting(&mut self) {
        for name in &self.c.exclude_interfaces {
            self.add(Chain::Prerouting, [Match::In(name.clone())], Verdict::Return);
        }
        for name in &self.c.virtual_interfaces {
            let arrives = Match::In(name.clone());
            match &self.c.outbound {
                Selection::All => {
                    self.add(Chain::Prerouting, [arrives.clone()], Verdict::Jump(Chain::Redirect));
                }
                Selection::These(nets) => {
                    for net in self.networks(nets) {
                        let there = [arrives.clone(), Match::To(net)];
                        self.add(Chain::Prerouting, there, Verdict::Jump(Chain::Redirect));
                    }
                }
            }
            self.add(Chain::Prerouting, [arrives], Verdict::Return);
        }
        self.add(Chain::Prerouting, [Match::Is(Proto::Tcp)], Verdict::Jump(Chain::Inbound));
    }

    fn inbound(&mut self) {
        self.ports(Chain::Inbound, Proto::Tcp, &OWN_PORTS, Verdict::Return);
        let more: Vec<u16> = self.c.inbound_exclude.iter().copied().filter(|p| !OWN_PORTS.contains(p)).collect();
        self.ports(Chain::Inbound, Proto::Tcp, &more, Verdict::Return);
        match &self.c.inbound {
            Selection::All => {
                self.add(Chain::Inbound, [Match::Is(Proto::Tcp)], Verdict::Jump(Chain::InRedirect));
            }
            Selection::These(ports) => {
                self.ports(Chain::Inbound, Proto::Tcp, ports, Verdict::Jump(Chain::InRedirect));
            }
        }
    }

    fn output(&mut self) {
        let captures_dns = self.c.dns != Dns::Off;
        let loopback = self.family.loopback();
        let lo = || Match::Out("lo".to_owned());
        for name in &self.c.exclude_interfaces {
            self.add(Chain::Output, [Match::Out(name.clone())], Verdict::Return);
        }
        // Before calls to oneself are looked at.
        for proto in [Proto::Tcp, Proto::Udp] {
            self.ports(Chain::Output, proto, &self.c.outbound_ports_exclude, Verdict::Return);
        }
        // The proxy calls its application.
        self.add(Chain::Output, [lo(), Match::From(self.family.passthrough())], Verdict::Return);
        // The proxy calls its own pod, which a service may have led it to: as if the call came from outside. Not so DNS:
        // the proxy asks resolvers, wherever they are.
        let not_these = if captures_dns { vec![53, 15008] } else { vec![15008] };
        for owner in self.owners() {
            let call = [lo(), Match::NotTo(loopback), Match::NotToPort(Proto::Tcp, not_these.clone()), owner];
            self.add(Chain::Output, call, Verdict::Jump(Chain::InRedirect));
        }
        // Whatever else the proxy sends would come back to it for ever.
        for owner in self.owners() {
            self.add(Chain::Output, [owner], Verdict::Return);
        }
        let others = self.c.exclude_uids.iter().map(|id| Match::Uid(*id));
        for owner in others.chain(self.c.exclude_gids.iter().map(|id| Match::Gid(*id))) {
            self.add(Chain::Output, [owner], Verdict::Return);
        }
        for server in self.dns_servers() {
            for proto in [Proto::Tcp, Proto::Udp] {
                let query = server.map(Match::To).into_iter().chain([Match::ToPort(proto, vec![53])]);
                self.add(Chain::Output, query, Verdict::Redirect(DNS_PORT));
            }
        }
        // An application calls its own pod by address, unless loopback is listed as captured.
        if !self.loopback_is_wanted() {
            self.add(Chain::Output, [lo()], Verdict::Return);
        }
        self.add(Chain::Output, [Match::To(loopback)], Verdict::Return);
        for net in self.networks(&self.c.outbound_exclude) {
            self.add(Chain::Output, [Match::To(net)], Verdict::Return);
        }
        self.ports(Chain::Output, Proto::Tcp, &self.c.outbound_ports, Verdict::Jump(Chain::Redirect));
        match &self.c.outbound {
            Selection::All => self.add(Chain::Output, [], Verdict::Jump(Chain::Redirect)),
            Selection::These(nets) => {
                for net in self.networks(nets) {
                    self.add(Chain::Output, [Match::To(net)], Verdict::Jump(Chain::Redirect));
                }
            }
        }
    }

    fn loopback_is_wanted(&self) -> bool {
        match &self.c.outbound {
            Selection::All => false,
            Selection::These(nets) => nets.iter().any(|n| self.family.has(n.addr()) && n.addr().is_loopback()),
        }
    }
}
