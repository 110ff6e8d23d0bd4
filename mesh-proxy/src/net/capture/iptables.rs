//! A rule set as text for `iptables-restore --noflush`: chains of our own, and one jump to each that a hook begins with.
//!
//! What stands in the tables already, by whoever, is read from `iptables-save`, so that a second time adds nothing and
//! taking away leaves the rest as it was.

use std::fmt::Write as _;

use super::rules::{Chain, Hook, Match, Proto, Rule, Table, Verdict, chains};

/// Chains that are ours begin with this.
const PREFIX: &str = "MESH_";
/// Tables that may hold something of ours.
const TABLES: [Table; 3] = [Table::Raw, Table::Mangle, Table::Nat];

fn table_name(table: Table) -> &'static str {
    match table {
        Table::Raw => "raw",
        Table::Mangle => "mangle",
        Table::Nat => "nat",
    }
}

/// Text that sets these rules and nothing else of ours, given what is set.
pub fn script(rules: &[Rule], saved: &str) -> String {
    let mut out = String::new();
    for table in TABLES {
        let here: Vec<Chain> = chains(rules).into_iter().filter(|c| c.table() == table).collect();
        let present = ours(saved, table);
        if here.is_empty() && present.is_nothing() {
            continue;
        }
        let _ = writeln!(out, "*{}", table_name(table));
        // A chain that is declared is emptied.
        for chain in &here {
            let _ = writeln!(out, ":{} - [0:0]", chain.name());
        }
        for chain in present.chains.iter().filter(|name| here.iter().all(|c| c.name() != name.as_str())) {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        for jump in &present.jumps {
            let _ = writeln!(out, "-D {jump}");
        }
        for rule in rules.iter().filter(|r| r.chain.table() == table) {
            let _ = writeln!(out, "{}", line(rule));
        }
        for chain in &here {
            if let Some(hook) = chain.hook() {
                let _ = writeln!(out, "-A {} -j {}", hook_name(hook), chain.name());
            }
        }
        for chain in present.chains.iter().filter(|name| here.iter().all(|c| c.name() != name.as_str())) {
            let _ = writeln!(out, "-X {chain}");
        }
        out.push_str("COMMIT\n");
    }
    out
}

/// What of a table is ours.
#[derive(Debug, Default)]
struct Ours {
    chains: Vec<String>,
    /// Rules of other chains that jump to ours, without their `-A`.
    jumps: Vec<String>,
}

impl Ours {
    fn is_nothing(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }
}

/// Whether anything is ours.
pub fn any_of_ours(saved: &str) -> bool {
    TABLES.iter().any(|t| !ours(saved, *t).is_nothing())
}

fn lines_of(saved: &str, table: Table) -> impl Iterator<Item = &str> {
    let head = format!("*{}", table_name(table));
    saved.lines().map(str::trim).skip_while(move |l| *l != head).skip(1).take_while(|l| *l != "COMMIT")
}

fn ours(saved: &str, table: Table) -> Ours {
    let mut out = Ours::default();
    for line in lines_of(saved, table) {
        if let Some(chain) = line.strip_prefix(':') {
            out.chains.extend(chain.split(' ').next().filter(|c| c.starts_with(PREFIX)).map(str::to_owned));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let target = rule.split_once(" -j ").map(|(_, t)| t.split(' ').next().unwrap_or(t));
            if !rule.starts_with(PREFIX) && target.is_some_and(|t| t.starts_with(PREFIX)) {
                out.jumps.push(rule.to_owned());
            }
        }
    }
    out
}

/// How many rules each of our chains has.
pub fn listed(saved: &str) -> Vec<(String, usize)> {
    let mut out = Vec::new();
    for table in TABLES {
        for chain in ours(saved, table).chains {
            let head = format!("-A {chain} ");
            let count = lines_of(saved, table).filter(|l| l.starts_with(&head)).count();
            out.push((chain, count));
        }
    }
    out
}

/// Whether the system's chain jumps to ours.
pub fn jumps_to(saved: &str, chain: Chain) -> bool {
    let end = format!("-j {}", chain.name());
    ours(saved, chain.table()).jumps.iter().any(|j| j.ends_with(&end))
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Output => "OUTPUT",
    }
}

fn line(rule: &Rule) -> String {
    let mut out = format!("-A {}", rule.chain.name());
    for m in &rule.matches {
        out.push(' ');
        out.push_str(&condition(m));
    }
    let _ = match rule.verdict {
        Verdict::Return => write!(out, " -j RETURN"),
        Verdict::Drop => write!(out, " -j DROP"),
        Verdict::Jump(chain) => write!(out, " -j {}", chain.name()),
        Verdict::Redirect(port) => write!(out, " -j REDIRECT --to-ports {port}"),
        Verdict::Zone(zone) => write!(out, " -j CT --zone {zone}"),
    };
    out
}

fn condition(m: &Match) -> String {
    match m {
        Match::In(name) => format!("-i {name}"),
        Match::Out(name) => format!("-o {name}"),
        Match::From(net) => format!("-s {net}"),
        Match::To(net) => format!("-d {net}"),
        Match::NotTo(net) => format!("! -d {net}"),
        Match::Is(proto) => format!("-p {}", transport(*proto)),
        Match::ToPort(proto, ports) => match ports.as_slice() {
            [one] => format!("-p {} --dport {one}", transport(*proto)),
            many => format!("-p {} -m multiport --dports {}", transport(*proto), list(many)),
        },
        Match::NotToPort(proto, ports) => match ports.as_slice() {
            [one] => format!("-p {} ! --dport {one}", transport(*proto)),
            many => format!("-p {} -m multiport ! --dports {}", transport(*proto), list(many)),
        },
        Match::FromPort(proto, port) => format!("-p {} --sport {port}", transport(*proto)),
        Match::Uid(id) => format!("-m owner --uid-owner {id}"),
        Match::Gid(id) => format!("-m owner --gid-owner {id}"),
        Match::Invalid => "-m conntrack --ctstate INVALID".to_owned(),
    }
}

fn transport(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}
