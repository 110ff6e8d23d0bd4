//! Connects through the rules, as an application and as the proxy, and reads them back.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use socket2::SockRef;

use super::rules::{Family, rules};
use super::system::{Present, present, privileged};
use super::{Capture, DNS_PORT, Dns, OWN_PORTS, Selection, iptables, nft};
use crate::net::orig_dst;

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What was seen.
    pub what: String,
    /// What to do.
    pub hint: &'static str,
}

const APPLY: &str = "run `mesh-proxy capture apply` with the same flags in this network namespace";
const SAME_FLAGS: &str =
    "another program changed the rules, or they were set with other flags: apply them again with these flags";

/// Everything that does not hold of what these settings promise.
pub fn verify(capture: &Capture, families: &[Family], timeout: Duration) -> Vec<Problem> {
    let mut problems = Vec::new();
    for family in families {
        if privileged() {
            problems.extend(structure(capture, *family));
        } else {
            tracing::info!("the rules are not read back: that needs NET_ADMIN");
        }
        problems.extend(outbound(capture, *family, timeout));
        problems.extend(proxy_side(capture, *family, timeout));
        problems.extend(dns(capture, *family, timeout));
    }
    problems
}

/// Whether every chain is there, with as many rules as it must have.
fn structure(capture: &Capture, family: Family) -> Vec<Problem> {
    let rules = rules(capture, family);
    let (found, hooked): (_, Box<dyn Fn(_) -> bool>) = match present(family) {
        Present::Nothing => {
            let what = format!("no redirection is set for {family:?}");
            return vec![Problem { what, hint: APPLY }];
        }
        Present::Nft(listing) => (nft::listed(&listing), Box::new(|_| true)),
        Present::Iptables(saved) => {
            (iptables::listed(&saved), Box::new(move |chain| iptables::jumps_to(&saved, chain)))
        }
    };
    let mut problems = Vec::new();
    for (chain, wanted) in nft::expected(&rules) {
        let has = found.iter().find(|(name, _)| name == chain.name()).map_or(0, |(_, count)| *count);
        if has != wanted {
            let what = format!("chain {} has {has} rules, {wanted} are expected ({family:?})", chain.name());
            problems.push(Problem { what, hint: SAME_FLAGS });
        } else if chain.hook().is_some() && !hooked(chain) {
            let what = format!("nothing leads to chain {} ({family:?})", chain.name());
            problems.push(Problem { what, hint: SAME_FLAGS });
        }
    }
    problems
}

/// A listener where the proxy is to be, or the proxy itself.
enum End {
    Ours(TcpListener),
    Proxy,
}

fn end(family: Family, port: u16) -> std::io::Result<End> {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    match TcpListener::bind((any, port)) {
        Ok(listener) => listener.set_nonblocking(true).map(|()| End::Ours(listener)),
        Err(e) if e.kind() == ErrorKind::AddrInUse => Ok(End::Proxy),
        Err(e) => Err(e),
    }
}

impl End {
    /// Where the connection that arrives within `timeout` wanted to go; `None`: none arrives.
    fn arrival(&self, timeout: Duration) -> Option<SocketAddr> {
        const STEP: Duration = Duration::from_millis(5);
        let End::Ours(listener) = self else { return None };
        for _ in 0..=timeout.as_millis() / STEP.as_millis() {
            match listener.accept() {
                Ok((stream, _)) => {
                    let local = stream.local_addr().ok()?;
                    return orig_dst::before_redirection(&SockRef::from(&stream), local).or(Some(local));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(STEP),
                Err(_) => return None,
            }
        }
        None
    }
}

/// A destination that must be captured; nobody is there (RFC 5737, RFC 3849). `None`: these settings capture nothing.
fn captured_destination(c: &Capture, family: Family) -> Option<SocketAddr> {
    let documentation: [IpAddr; 3] = match family {
        Family::V4 => [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]].map(|o| IpAddr::V4(o.into())),
        Family::V6 => [1, 2, 3].map(|n| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n))),
    };
    let port = (8080..8180).find(|p| !c.outbound_ports_exclude.contains(p))?;
    let kept = |ip: &IpAddr| !c.outbound_exclude.iter().any(|n| n.contains(ip));
    let documented = || documentation.into_iter().find(kept);
    match &c.outbound {
        Selection::All => Some(SocketAddr::new(documented()?, port)),
        Selection::These(nets) => {
            let hosts = nets.iter().filter_map(|n| n.hosts().find(|ip| !ip.is_loopback() && kept(ip)));
            let same = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
            let in_net = hosts.into_iter().find(same).map(|ip| SocketAddr::new(ip, port));
            in_net.or_else(|| Some(SocketAddr::new(documented()?, *c.outbound_ports.first()?)))
        }
    }
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    Application,
    Proxy,
}

/// Connects in a process of its own, as the user that is asked for. `None`: this process may not become that user.
fn connect(c: &Capture, who: As, to: SocketAddr, timeout: Duration) -> Option<Result<(), String>> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let is_proxy = |uid: u32, gid: u32| c.proxy_uids.contains(&uid) || c.proxy_gids.contains(&gid);
    let is_excluded = |uid: u32, gid: u32| c.exclude_uids.contains(&uid) || c.exclude_gids.contains(&gid);
    let (uid, gid) = match who {
        As::Proxy if is_proxy(uid, gid) => return Some(probe(to, timeout)),
        As::Application if !is_proxy(uid, gid) && !is_excluded(uid, gid) => return Some(probe(to, timeout)),
        As::Proxy => (*c.proxy_uids.first()?, c.proxy_gids.first().copied().unwrap_or(gid)),
        As::Application => {
            let some = (1..).find(|id| !is_proxy(*id, *id) && !is_excluded(*id, *id))?;
            (some, some)
        }
    };
    let mut command = Command::new("/proc/self/exe");
    command.args(["capture", "probe", &to.to_string(), "--timeout-ms", &timeout.as_millis().to_string()]);
    command.uid(uid).gid(gid).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let out = command.output().ok()?;
    Some(if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()) })
}

/// Connects once.
///
/// # Errors
/// Why it did not work.
pub fn probe(to: SocketAddr, timeout: Duration) -> Result<(), String> {
    TcpStream::connect_timeout(&to, timeout).map(drop).map_err(|e| match e.kind() {
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => UNREACHABLE.to_owned(),
        _ => format!("{to}: {e}"),
    })
}

/// Nothing can leave the namespace that way, captured or not.
const UNREACHABLE: &str = "unreachable";

/// What an application sends goes to the outbound port.
fn outbound(c: &Capture, family: Family, timeout: Duration) -> Option<Problem> {
    let to = captured_destination(c, family)?;
    let hint =
        "outbound traffic passes the proxy by: apply the rules; look for rules of others with `nft list ruleset`";
    let end = match end(family, c.outbound_port) {
        Ok(end) => end,
        Err(e) => return Some(cannot_listen(c.outbound_port, &e)),
    };
    let result = connect(c, As::Application, to, timeout)?;
    match (&end, result) {
        (_, Err(why)) if why == UNREACHABLE => {
            tracing::info!("{to} has no route, so nothing leaves uncaptured either");
            None
        }
        (End::Proxy, Ok(())) => None,
        (End::Ours(_), Ok(())) if end.arrival(timeout) == Some(to) => None,
        (_, result) => {
            let seen = result.err().unwrap_or_else(|| "it was answered by somebody else".to_owned());
            let what = format!("a connection to {to} does not come to port {}: {seen}", c.outbound_port);
            Some(Problem { what, hint })
        }
    }
}

fn cannot_listen(port: u16, e: &std::io::Error) -> Problem {
    Problem {
        what: format!("port {port} cannot be listened on: {e}"),
        hint: "the check stands in for the proxy; ports below 1024 need the capability NET_BIND_SERVICE",
    }
}

/// What the proxy sends to its own pod counts as inbound; what it sends elsewhere does not come back to it.
fn proxy_side(c: &Capture, family: Family, timeout: Duration) -> Vec<Problem> {
    let mut problems = Vec::new();
    let port = (8080..8180).find(|p| !OWN_PORTS.contains(p) && !c.outbound_ports_exclude.contains(p));
    if let (Some(ip), Some(port), Ok(end @ End::Ours(_))) = (own_address(family), port, end(family, c.inbound_port)) {
        let to = SocketAddr::new(ip, port);
        match connect(c, As::Proxy, to, timeout) {
            None => tracing::info!("connections of the proxy are not tried: that needs its user or the capability SETUID"),
            Some(result) if result.is_err() || end.arrival(timeout) != Some(to) => problems.push(Problem {
                what: format!("a connection of the proxy to its own pod ({to}) does not come to port {}", c.inbound_port),
                hint: "calls of a workload to itself fail: apply the rules, with the user the proxy runs as (--proxy-uid)",
            }),
            Some(_) => {}
        }
    }
    // A short while: what does not come back never comes.
    let while_ = timeout.min(Duration::from_millis(300));
    if let (Some(to), Ok(end @ End::Ours(_))) = (captured_destination(c, family), end(family, c.outbound_port))
        && connect(c, As::Proxy, to, while_) == Some(Ok(()))
        && end.arrival(while_).is_some()
    {
        problems.push(Problem {
            what: format!("what the proxy sends comes back to it ({to})"),
            hint: "the proxy would call itself for ever: --proxy-uid must be the user the proxy runs as",
        });
    }
    problems
}

/// An address of this namespace that others reach it by: the source of what would be sent.
fn own_address(family: Family) -> Option<IpAddr> {
    let (any, there): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((there, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// A query of an application comes to the DNS port.
fn dns(c: &Capture, family: Family, timeout: Duration) -> Option<Problem> {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let server = match &c.dns {
        Dns::Off => return None,
        Dns::All => captured_destination(c, family)?.ip(),
        Dns::Servers(all) => *all.iter().find(|ip| ip.is_ipv4() == (family == Family::V4))?,
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if c.proxy_uids.contains(&uid) || c.proxy_gids.contains(&gid) {
        return None;
    }
    // The port is taken where the proxy runs: then it answers, and what it answers is not ours to judge.
    let end = UdpSocket::bind((any, DNS_PORT)).ok()?;
    end.set_read_timeout(Some(timeout)).ok()?;
    let sender = UdpSocket::bind((any, 0)).ok()?;
    if sender.send_to(b"?", (server, 53)).is_err_and(|e| e.kind() == ErrorKind::NetworkUnreachable) {
        return None;
    }
    let mut buffer = [0; 8];
    match end.recv_from(&mut buffer) {
        Ok(_) => None,
        Err(_) => Some(Problem {
            what: format!("a DNS query to {server} does not come to port {DNS_PORT}"),
            hint: "apply the rules with --redirect-dns, or with --capture-all-dns where the nameserver is not known",
        }),
    }
}
