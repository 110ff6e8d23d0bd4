//! `mesh-proxy capture`. Flags are those of Istio's `pilot-agent istio-iptables` where it has them.

use std::net::SocketAddr;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::net::capture::rules::Family;
use crate::net::capture::{Backend, Capture, Dns, Selection, nameservers};

/// What to do with the redirection of this network namespace.
#[derive(Debug, Clone, Subcommand)]
pub enum CaptureCommand {
    /// Set the rules, in place of those set before
    Apply(Box<ApplyArgs>),
    /// Check that the rules are there and do what they promise
    Verify(Box<RuleArgs>),
    /// Remove what apply set
    Clean,
    /// Connect once, for verify
    #[command(hide = true)]
    Probe {
        /// Where to
        to: SocketAddr,
        /// How long to wait
        #[arg(long, default_value_t = 1000)]
        timeout_ms: u64,
    },
}

/// `capture apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Print what would be set, change nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Check the rules afterwards, as verify does
    #[arg(long)]
    pub run_validation: bool,
    /// Set nothing: with --run-validation, only check
    #[arg(long)]
    pub skip_rule_apply: bool,
}

/// What is captured.
#[derive(Debug, Clone, Args)]
pub struct RuleArgs {
    /// Port that outbound TCP goes to
    #[arg(short = 'p', long, default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub envoy_port: u16,
    /// Port that inbound TCP goes to
    #[arg(short = 'z', long, default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_capture_port: u16,
    /// Users that are the proxy, comma separated
    #[arg(short = 'u', long, default_value = "1337", value_parser = list::<u32>)]
    pub proxy_uid: Words<u32>,
    /// Groups that are the proxy [default: as --proxy-uid]
    #[arg(short = 'g', long, value_parser = list::<u32>)]
    pub proxy_gid: Option<Words<u32>>,
    /// How inbound traffic is redirected
    #[arg(short = 'm', long, value_enum, ignore_case = true, default_value = "REDIRECT")]
    pub istio_inbound_interception_mode: InterceptionMode,
    /// Inbound ports to capture, comma separated; *: all; empty: none
    #[arg(short = 'b', long, default_value = "*", value_parser = selection::<u16>)]
    pub istio_inbound_ports: Choice<u16>,
    /// Inbound ports not to capture, beside 15008, 15020, 15021 and 15090
    #[arg(short = 'd', long, default_value = "", value_parser = list::<u16>)]
    pub istio_local_exclude_ports: Words<u16>,
    /// Destinations to capture, CIDRs; *: all; empty: none
    #[arg(short = 'i', long, default_value = "*", value_parser = selection::<Net>)]
    pub istio_service_cidr: Choice<Net>,
    /// Destinations not to capture, CIDRs
    #[arg(short = 'x', long, default_value = "", value_parser = list::<Net>)]
    pub istio_service_exclude_cidr: Words<Net>,
    /// Outbound ports to capture whatever the destination
    #[arg(short = 'q', long, default_value = "", value_parser = list::<u16>)]
    pub istio_outbound_ports: Words<u16>,
    /// Outbound ports not to capture
    #[arg(short = 'o', long, default_value = "", value_parser = list::<u16>)]
    pub istio_local_outbound_ports_exclude: Words<u16>,
    /// Interfaces of virtual machines, whose traffic counts as outbound
    #[arg(short = 'k', long, default_value = "", value_parser = list::<Interface>)]
    pub kube_virt_interfaces: Words<Interface>,
    /// Interfaces to capture nothing on
    #[arg(short = 'c', long, default_value = "", value_parser = list::<Interface>)]
    pub istio_exclude_interfaces: Words<Interface>,
    /// Users whose traffic is not captured
    #[arg(long, default_value = "", value_parser = list::<u32>)]
    pub exclude_uid: Words<u32>,
    /// Groups whose traffic is not captured
    #[arg(long, default_value = "", value_parser = list::<u32>)]
    pub exclude_gid: Words<u32>,
    /// Send DNS for the nameservers of /etc/resolv.conf to port 15053
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", value_parser = FalseyValueParser::new())]
    pub redirect_dns: bool,
    /// With --redirect-dns: send all DNS there
    #[arg(long)]
    pub capture_all_dns: bool,
    /// Drop packets of no known connection
    #[arg(long, env = "INVALID_DROP", value_parser = FalseyValueParser::new())]
    pub drop_invalid: bool,
    /// Whether to capture IPv6
    #[arg(long, value_enum, default_value = "auto")]
    pub ipv6: Ipv6,
    /// Program that sets the rules
    #[arg(long, value_enum, default_value = "auto")]
    pub backend: Backend,
    /// How long a connection of a check may take
    #[arg(long, default_value = "2s", value_parser = super::duration)]
    pub probe_timeout: Duration,
}

/// Modes of redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InterceptionMode {
    /// The destination is replaced; the proxy learns the one before. TPROXY is not supported.
    #[value(name = "REDIRECT")]
    Redirect,
}

/// Whether a namespace speaks IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ipv6 {
    /// If an interface other than lo has an address.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// A comma separated list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words<T>(pub Vec<T>);

/// A list or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice<T>(pub Selection<T>);

/// A network; a bare address is one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Net(pub IpNet);

impl std::str::FromStr for Net {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        net.map(|n| Net(n.trunc())).map_err(|_| "is not a CIDR such as 10.0.0.0/8 or fd00::/8".to_owned())
    }
}

/// A name of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(pub String);

impl std::str::FromStr for Interface {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        // The names that the kernel takes, of characters that mean nothing in rules.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '@');
        if text.len() < 16 && text.chars().all(plain) {
            return Ok(Interface(text.to_owned()));
        }
        Err("is not the name of an interface".to_owned())
    }
}

fn list<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Words<T>, String> {
    let words = text.split(',').map(str::trim).filter(|w| !w.is_empty());
    words.map(|w| w.parse().map_err(|e| format!("{w:?}: {e}"))).collect::<Result<_, _>>().map(Words)
}

fn selection<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Choice<T>, String> {
    if text.trim() == "*" {
        return Ok(Choice(Selection::All));
    }
    list(text).map(|Words(these)| Choice(Selection::These(these)))
}

impl RuleArgs {
    /// What is captured. `resolv_conf` is asked when DNS is.
    ///
    /// # Errors
    /// When DNS is to be captured and no nameserver is known.
    pub fn capture(&self, resolv_conf: impl FnOnce() -> std::io::Result<String>) -> anyhow::Result<Capture> {
        let names = |w: &Words<Interface>| w.0.iter().map(|i| i.0.clone()).collect();
        let nets = |w: &[Net]| w.iter().map(|n| n.0).collect();
        anyhow::ensure!(
            !self.proxy_uid.0.is_empty(),
            "--proxy-uid is empty: what the proxy sends would come back to it for ever"
        );
        let dns = match (self.redirect_dns, self.capture_all_dns) {
            (false, _) => Dns::Off,
            (true, true) => Dns::All,
            (true, false) => {
                let text =
                    resolv_conf().map_err(|e| anyhow::anyhow!("/etc/resolv.conf: {e}; use --capture-all-dns"))?;
                let servers = nameservers(&text);
                anyhow::ensure!(!servers.is_empty(), "/etc/resolv.conf names no nameserver; use --capture-all-dns");
                Dns::Servers(servers)
            }
        };
        Ok(Capture {
            outbound_port: self.envoy_port,
            inbound_port: self.inbound_capture_port,
            proxy_uids: self.proxy_uid.0.clone(),
            proxy_gids: self.proxy_gid.as_ref().unwrap_or(&self.proxy_uid).0.clone(),
            inbound: self.istio_inbound_ports.0.clone(),
            inbound_exclude: self.istio_local_exclude_ports.0.clone(),
            outbound: match &self.istio_service_cidr.0 {
                Selection::All => Selection::All,
                Selection::These(all) => Selection::These(nets(all)),
            },
            outbound_exclude: nets(&self.istio_service_exclude_cidr.0),
            outbound_ports: self.istio_outbound_ports.0.clone(),
            outbound_ports_exclude: self.istio_local_outbound_ports_exclude.0.clone(),
            exclude_interfaces: names(&self.istio_exclude_interfaces),
            virtual_interfaces: names(&self.kube_virt_interfaces),
            exclude_uids: self.exclude_uid.0.clone(),
            exclude_gids: self.exclude_gid.0.clone(),
            dns,
            drop_invalid: self.drop_invalid,
        })
    }

    /// Families to capture, given the namespace's IPv6 addresses in the kernel's form.
    pub fn families(&self, if_inet6: &str) -> Vec<Family> {
        let speaks = || if_inet6.lines().any(|l| l.split_whitespace().last().is_some_and(|name| name != "lo"));
        match self.ipv6 {
            Ipv6::Off => vec![Family::V4],
            Ipv6::Auto if !speaks() => vec![Family::V4],
            Ipv6::Auto | Ipv6::On => vec![Family::V4, Family::V6],
        }
    }
}
