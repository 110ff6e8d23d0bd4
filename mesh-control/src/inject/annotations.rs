//! The labels and annotations of pods that concern injection: which are honoured, what their values may be, and which
//! have no effect, with the reason. One table, from which documentation is checked too.

use ipnet::IpNet;

use super::node::{Map, Node};

/// What becomes of an annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It has its effect.
    Honoured,
    /// It has none; why, or what to do instead.
    Ignored(&'static str),
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Bool,
    Port,
    Ports,
    AllOrPorts,
    Cidrs,
    AllOrCidrs,
    Count,
    Mode,
    Json,
    Level,
}

/// An annotation or label.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name.
    pub name: &'static str,
    form: Form,
    /// What becomes of it.
    pub effect: Effect,
}

const fn honoured(name: &'static str, form: Form) -> Row {
    Row { name, form, effect: Effect::Honoured }
}

const fn ignored(name: &'static str, why: &'static str) -> Row {
    Row { name, form: Form::Text, effect: Effect::Ignored(why) }
}

const OF_ENVOY: &str = "mesh-proxy has no Envoy bootstrap";
const OF_STATS: &str = "mesh-proxy serves all of its statistics";
const OF_AMBIENT: &str = "there is no ambient mode";

/// Whether a pod is injected.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// What was injected.
pub const STATUS: &str = "sidecar.istio.io/status";
/// The revision that injects.
pub const REVISION: &str = "istio.io/rev";
/// Which templates.
pub const TEMPLATES: &str = "inject.istio.io/templates";
/// What the user wrote of injected containers.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Settings of the proxy.
pub const PROXY_CONFIG: &str = mesh_api::labels::PROXY_CONFIG;
/// Redirection.
pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// Port of merged metrics and probes.
pub const STATUS_PORT: &str = "status.sidecar.istio.io/port";

/// Annotations of pods.
pub const ANNOTATIONS: &[Row] = &[
    honoured(INJECT, Form::Bool),
    honoured(STATUS, Form::Json),
    honoured(TEMPLATES, Form::Text),
    honoured(PROXY_CONFIG, Form::Text),
    honoured(OVERRIDES, Form::Json),
    honoured(INTERCEPTION_MODE, Form::Mode),
    honoured("sidecar.istio.io/nativeSidecar", Form::Bool),
    honoured("sidecar.istio.io/proxyImage", Form::Text),
    honoured("sidecar.istio.io/proxyImageType", Form::Text),
    honoured("sidecar.istio.io/proxyCPU", Form::Text),
    honoured("sidecar.istio.io/proxyCPULimit", Form::Text),
    honoured("sidecar.istio.io/proxyMemory", Form::Text),
    honoured("sidecar.istio.io/proxyMemoryLimit", Form::Text),
    honoured("sidecar.istio.io/logLevel", Form::Level),
    honoured("sidecar.istio.io/rewriteAppHTTPProbers", Form::Bool),
    honoured("sidecar.istio.io/userVolume", Form::Json),
    honoured("sidecar.istio.io/userVolumeMount", Form::Json),
    honoured(STATUS_PORT, Form::Port),
    honoured("readiness.status.sidecar.istio.io/initialDelaySeconds", Form::Count),
    honoured("readiness.status.sidecar.istio.io/periodSeconds", Form::Count),
    honoured("readiness.status.sidecar.istio.io/failureThreshold", Form::Count),
    honoured("traffic.sidecar.istio.io/includeInboundPorts", Form::AllOrPorts),
    honoured("traffic.sidecar.istio.io/excludeInboundPorts", Form::Ports),
    honoured("traffic.sidecar.istio.io/includeOutboundPorts", Form::Ports),
    honoured("traffic.sidecar.istio.io/excludeOutboundPorts", Form::Ports),
    honoured("traffic.sidecar.istio.io/includeOutboundIPRanges", Form::AllOrCidrs),
    honoured("traffic.sidecar.istio.io/excludeOutboundIPRanges", Form::Cidrs),
    honoured("traffic.sidecar.istio.io/excludeInterfaces", Form::Text),
    honoured("traffic.sidecar.istio.io/kubevirtInterfaces", Form::Text),
    honoured("istio.io/reroute-virtual-interfaces", Form::Text),
    honoured("prometheus.istio.io/merge-metrics", Form::Bool),
    ignored("prometheus.istio.io/scrape-targets", "only the port of prometheus.io/port is scraped"),
    ignored("readiness.status.sidecar.istio.io/applicationPorts", "Istio ignores it too: use readiness probes"),
    ignored("sidecar.istio.io/bootstrapOverride", OF_ENVOY),
    ignored("sidecar.istio.io/discoveryAddress", "use discoveryAddress in proxy.istio.io/config"),
    ignored("sidecar.istio.io/controlPlaneAuthPolicy", "Istio ignores it too"),
    ignored("sidecar.istio.io/componentLogLevel", "mesh-proxy has one level: use sidecar.istio.io/logLevel"),
    ignored("sidecar.istio.io/agentLogLevel", "there is no agent beside the proxy: use sidecar.istio.io/logLevel"),
    ignored("sidecar.istio.io/enableCoreDump", "it needs a privileged container"),
    ignored("sidecar.istio.io/statsInclusionPrefixes", OF_STATS),
    ignored("sidecar.istio.io/statsInclusionSuffixes", OF_STATS),
    ignored("sidecar.istio.io/statsInclusionRegexps", OF_STATS),
    ignored("sidecar.istio.io/extraStatTags", "use a Telemetry object"),
    ignored("sidecar.istio.io/statsHistogramBuckets", "mesh-proxy has Envoy's default buckets"),
    ignored("sidecar.istio.io/statsEvictionInterval", "mesh-proxy evicts idle series by itself"),
    ignored("sidecar.istio.io/statsCompression", "mesh-proxy does not compress its statistics"),
    ignored("ambient.istio.io/redirection", OF_AMBIENT),
    ignored("ambient.istio.io/bypass-inbound-capture", OF_AMBIENT),
    ignored("ambient.istio.io/dns-capture", OF_AMBIENT),
];

/// Labels of pods and namespaces that injection reads or writes.
pub const LABELS: &[Row] = &[
    honoured(INJECT, Form::Bool),
    honoured(REVISION, Form::Text),
    honoured("istio-injection", Form::Text),
    honoured(mesh_api::labels::NETWORK, Form::Text),
    honoured(mesh_api::labels::TLS_MODE, Form::Text),
    honoured(mesh_api::labels::CANONICAL_NAME, Form::Text),
    honoured(mesh_api::labels::CANONICAL_REVISION, Form::Text),
    honoured(mesh_api::labels::WORKLOAD_NAME, Form::Text),
    ignored("istio.io/dataplane-mode", OF_AMBIENT),
];

/// Something about an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Annotation.
    pub name: String,
    /// What is to be said of it.
    pub message: String,
}

/// Wrong values, which nothing may be injected with, and annotations without effect.
pub fn judge(annotations: &Map) -> (Vec<Remark>, Vec<Remark>) {
    let (mut wrong, mut without_effect) = (Vec::new(), Vec::new());
    for (name, value) in annotations {
        let Some(row) = ANNOTATIONS.iter().find(|r| r.name == name) else { continue };
        let say = |to: &mut Vec<Remark>, message: String| to.push(Remark { name: name.clone(), message });
        let Some(text) = value.as_str() else {
            say(&mut wrong, "must be text: put it in quotes".to_owned());
            continue;
        };
        match row.effect {
            Effect::Ignored(why) => say(&mut without_effect, format!("has no effect: {why}")),
            Effect::Honoured => {
                if let Some(why) = self::wrong(name, text) {
                    say(&mut wrong, format!("{text:?} {why}"));
                }
                if row.form == Form::Mode && text == "TPROXY" {
                    let message =
                        "TPROXY is not supported, REDIRECT is used: applications see the proxy as their client";
                    say(&mut without_effect, message.to_owned());
                }
            }
        }
    }
    (wrong, without_effect)
}

/// What is wrong with the value of an annotation of a pod; `None`: nothing, or it has no effect anyway.
pub fn wrong(name: &str, value: &str) -> Option<&'static str> {
    let row = ANNOTATIONS.iter().find(|r| r.name == name && r.effect == Effect::Honoured)?;
    row.form.check(value).err()
}

/// Go's words for truth values, beside those of YAML.
pub fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "y" | "yes" | "true" | "on" | "1" | "t" => Some(true),
        "n" | "no" | "false" | "off" | "0" | "f" => Some(false),
        _ => None,
    }
}

impl Form {
    fn check(self, text: &str) -> Result<(), &'static str> {
        let words = || text.split(',').map(str::trim).filter(|w| !w.is_empty());
        let ports = || words().all(|w| w.parse::<u16>().is_ok());
        let cidrs = || words().all(|w| w.parse::<IpNet>().is_ok());
        let (good, why) = match self {
            Form::Text => (true, ""),
            Form::Bool => (text.is_empty() || truth(text).is_some(), "is not true or false"),
            Form::Port => (text.parse::<u16>().is_ok(), "is not a port"),
            Form::Ports => (ports(), "is not a list of ports such as 80,8080"),
            Form::AllOrPorts => (text == "*" || ports(), "is neither * nor a list of ports such as 80,8080"),
            Form::Cidrs => (cidrs(), "is not a list of CIDRs such as 10.0.0.0/8,192.168.1.1/32"),
            Form::AllOrCidrs => (text == "*" || cidrs(), "is neither * nor a list of CIDRs such as 10.0.0.0/8"),
            Form::Count => (text.parse::<u32>().is_ok(), "is not a number"),
            Form::Mode => (["REDIRECT", "TPROXY", "NONE"].contains(&text), "is not REDIRECT, TPROXY or NONE"),
            Form::Json => (serde_json::from_str::<Node>(text).is_ok_and(|n| n.as_map().is_some()), "is not JSON"),
            Form::Level => (
                ["trace", "debug", "info", "warning", "warn", "error", "critical", "off"].contains(&text),
                "is not one of trace, debug, info, warning, error, critical, off",
            ),
        };
        if good { Ok(()) } else { Err(why) }
    }
}
