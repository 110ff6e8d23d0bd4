//! A rule set as a script for `nft -f`: one table of our own a family, replaced as a whole in one transaction.

use std::fmt::Write as _;

use super::rules::{Chain, Family, Hook, Match, Proto, Rule, Table, Verdict, chains};

/// Name of our table; everything in it is ours.
pub const TABLE: &str = "mesh_capture";

/// Family in nft's word.
pub fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The script that sets these rules and nothing else of ours.
pub fn script(sets: &[(Family, Vec<Rule>)]) -> String {
    let mut out = String::new();
    for (f, rules) in sets {
        out.push_str(&removal(*f));
        table(&mut out, *f, rules);
    }
    out
}

/// Removes our table of a family, if it is there: what does not exist cannot be deleted, so it is made first.
pub fn removal(f: Family) -> String {
    let f = family(f);
    format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")
}

fn table(out: &mut String, f: Family, rules: &[Rule]) {
    let _ = writeln!(out, "table {} {TABLE} {{", family(f));
    for chain in chains(rules) {
        let _ = writeln!(out, "  chain {} {{", chain.name());
        if let Some(hook) = chain.hook() {
            let (kind, priority) = match chain.table() {
                Table::Raw => ("filter", -300),
                Table::Mangle => ("filter", -150),
                Table::Nat => ("nat", -100),
            };
            let hook = match hook {
                Hook::Prerouting => "prerouting",
                Hook::Output => "output",
            };
            let _ = writeln!(out, "    type {kind} hook {hook} priority {priority}; policy accept;");
        }
        for rule in rules.iter().filter(|r| r.chain == chain) {
            let _ = writeln!(out, "    {}", line(f, rule));
        }
        out.push_str("  }\n");
    }
    out.push_str("}\n");
}

fn line(f: Family, rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().map(|m| condition(f, m)).collect();
    words.push(match rule.verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Jump(chain) => format!("jump {}", chain.name()),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
    });
    words.join(" ")
}

fn condition(f: Family, m: &Match) -> String {
    let ip = family(f);
    match m {
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(name) => format!("oifname \"{name}\""),
        Match::From(net) => format!("{ip} saddr {net}"),
        Match::To(net) => format!("{ip} daddr {net}"),
        Match::NotTo(net) => format!("{ip} daddr != {net}"),
        Match::Is(proto) => format!("meta l4proto {}", transport(*proto)),
        Match::ToPort(proto, ports) => format!("{} dport {}", transport(*proto), set(ports)),
        Match::NotToPort(proto, ports) => format!("{} dport != {}", transport(*proto), set(ports)),
        Match::FromPort(proto, port) => format!("{} sport {port}", transport(*proto)),
        Match::Uid(id) => format!("meta skuid {id}"),
        Match::Gid(id) => format!("meta skgid {id}"),
        Match::Invalid => "ct state invalid".to_owned(),
    }
}

fn transport(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}

fn set(ports: &[u16]) -> String {
    match ports {
        [one] => one.to_string(),
        many => format!("{{ {} }}", many.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// How many rules each chain of a listing (`nft list table`) has.
pub fn listed(listing: &str) -> Vec<(String, usize)> {
    let mut out: Vec<(String, usize)> = Vec::new();
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ").and_then(|l| l.strip_suffix(" {")) {
            out.push((name.to_owned(), 0));
        } else if line.starts_with("type ") || line.starts_with("table ") || matches!(line, "" | "}") {
        } else if let Some((_, count)) = out.last_mut() {
            *count += 1;
        }
    }
    out
}

/// How many rules each chain must have.
pub fn expected(rules: &[Rule]) -> Vec<(Chain, usize)> {
    chains(rules).into_iter().map(|c| (c, rules.iter().filter(|r| r.chain == c).count())).collect()
}
