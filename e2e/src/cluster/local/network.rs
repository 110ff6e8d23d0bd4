//! The cables of local clusters: one bridge on the machine, and to each node a link into a network namespace of its own.
//!
//! Nodes have no way out: what runs on them reaches other nodes and this machine, and nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::addresses::{Addresses, BRIDGE, HOST, NODES};
use crate::cluster::system::call;

/// Name of a node's network namespace.
pub fn namespace(cluster: &str) -> String {
    format!("mesh-{cluster}")
}

/// The file that names it.
pub fn namespace_file(cluster: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace(cluster))
}

/// Lays the cable of a node. Held claims keep others from doing the same meanwhile.
///
/// # Errors
/// When the system refuses, or addresses are in use.
pub fn make(cluster: &str, addresses: &Addresses) -> Result<()> {
    bridge()?;
    let (net, link, node) = (namespace(cluster), addresses.link(), addresses.node.to_string());
    call(&["ip", "netns", "add", &net])?;
    // A cluster that comes after another in a slot keeps its hardware address: neighbours remember that for seconds.
    let hardware = format!("02:00:00:00:1e:{:02x}", 16 + addresses.slot);
    let end = ["peer", "name", "eth0", "address", &hardware, "netns", &net];
    call(&[["ip", "link", "add", &link, "type", "veth"].as_slice(), &end].concat())?;
    call(&["ip", "link", "set", &link, "master", BRIDGE, "up"])?;
    let inside = |words: &[&str]| call(&[&["ip", "-n", &net], words].concat());
    inside(&["link", "set", "lo", "up"])?;
    inside(&["addr", "add", &format!("{node}/24"), "dev", "eth0"])?;
    inside(&["link", "set", "eth0", "up"])?;
    for address in addresses.balancers() {
        inside(&["addr", "add", &format!("{address}/32"), "dev", "eth0"])?;
    }
    // Where a packet goes is looked up before kube-proxy sends it elsewhere; there is no default route that would do.
    inside(&["route", "add", &addresses.services, "dev", "eth0"])?;
    rules(cluster, &masquerade(addresses))?;
    for range in [&addresses.pods, &addresses.services] {
        call(&["ip", "route", "add", range, "via", &node]).with_context(|| {
            format!("{range}, which the cluster's pods or services have, is in use on this machine")
        })?;
    }
    Ok(())
}

/// What pods send elsewhere than to pods and this machine has the node's address.
fn masquerade(addresses: &Addresses) -> String {
    let pods = &addresses.pods;
    format!(
        "table ip mesh-cluster {{
  set keep {{ type ipv4_addr; flags interval; elements = {{ {pods}, {HOST} }} }}
  chain post {{
    type nat hook postrouting priority 110;
    ip saddr {pods} ip daddr != @keep oifname \"eth0\" masquerade
  }}
}}
"
    )
}

fn rules(cluster: &str, text: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace(cluster), "nft", "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run ip")?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = std::io::Write::write_all(&mut input, text.as_bytes());
    }
    let output = child.wait_with_output().context("cannot run nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn bridge() -> Result<()> {
    if !exists(BRIDGE) {
        let routes = call(&["ip", "-4", "route", "show", "root", NODES])?;
        if let Some(route) = routes.lines().next() {
            bail!("{NODES}, where local clusters live, is in use on this machine ({route}): free it");
        }
        // With an address of its own it does not take that of whichever node comes last.
        call(&["ip", "link", "add", BRIDGE, "address", "02:00:00:00:1e:01", "type", "bridge"])?;
    }
    // Also where it is there already: who made it may have been killed before it was done.
    call(&["ip", "addr", "replace", &format!("{HOST}/24"), "dev", BRIDGE])?;
    call(&["ip", "link", "set", BRIDGE, "up"]).map(drop)
}

fn exists(link: &str) -> bool {
    Path::new("/sys/class/net").join(link).exists()
}

/// Takes the cable away, as much of it as is there. The node's processes are gone: a namespace that is in use would live
/// on without a name.
///
/// # Errors
/// When the system refuses.
pub fn remove(cluster: &str, addresses: &Addresses) -> Result<()> {
    for range in [&addresses.pods, &addresses.services] {
        // One that leads elsewhere is not ours.
        let (node, routes) = (addresses.node.to_string(), call(&["ip", "-4", "route", "show", "exact", range])?);
        if routes.split_whitespace().any(|word| word == node) {
            call(&["ip", "route", "del", range, "via", &node])?;
        }
    }
    if exists(&addresses.link()) {
        call(&["ip", "link", "del", &addresses.link()])?;
    }
    if namespace_file(cluster).exists() {
        call(&["ip", "netns", "del", &namespace(cluster)])?;
    }
    Ok(())
}

/// Takes the bridge away: after the last cluster.
///
/// # Errors
/// When the system refuses.
pub fn remove_bridge() -> Result<()> {
    if exists(BRIDGE) {
        call(&["ip", "link", "del", BRIDGE])?;
    }
    Ok(())
}

/// Lets pods of `from` reach pods of `to` by their own addresses and with their own, or no longer.
///
/// # Errors
/// When the system refuses.
pub fn join(from: (&str, &Addresses), to: &Addresses, joined: bool) -> Result<()> {
    let (cluster, _) = from;
    let net = namespace(cluster);
    let inside = |words: &[&str]| call(&[&["ip", "-n", &net], words].concat());
    let is = !inside(&["-4", "route", "show", "exact", &to.pods])?.trim().is_empty();
    let pods = &to.pods;
    match (is, joined) {
        (false, true) => {
            inside(&["route", "replace", pods, "via", &to.node.to_string()])?;
            rules(cluster, &format!("add element ip mesh-cluster keep {{ {pods} }}\n"))
        }
        (true, false) => {
            inside(&["route", "del", pods])?;
            rules(cluster, &format!("delete element ip mesh-cluster keep {{ {pods} }}\n"))
        }
        _ => Ok(()),
    }
}
