//! Conventions that objects keep or break without being wrong: annotations of Istio's, labels of namespaces, names of
//! ports.

use mesh_api::labels::Labels;

use super::Finding;
use super::checks::Report;
use crate::index::protocol::Protocol;
use crate::inject;
use crate::source::core::Service;
use crate::source::object::{Kind, ObjectKey};

/// By codes that it names (`*`: all), an object asks not to be told of them.
const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Namespaces whose ports are none of the users' business.
const SYSTEM: [&str; 5] = ["kube-system", "kube-public", "kube-node-lease", "istio-system", "istio-operator"];

/// Where annotations mean something; empty: everywhere.
type Place = &'static [Kind];

const POD: Place = &[Kind::Pod];
const ENTRY: Place = &[Kind::WorkloadEntry];
const ANY: Place = &[];

/// Domains whose names tools of Istio write for each other.
const INTERNAL: [&str; 4] = ["ambient.istio.io", "gateway.istio.io", "internal.istio.io", "install.operator.istio.io"];

/// Annotations by name, and whether Istio gives them up.
const ANNOTATIONS: &[(&str, Place, bool)] = &[
    ("alpha.istio.io/canonical-serviceaccounts", &[Kind::Service], true),
    ("alpha.istio.io/identity", POD, true),
    ("alpha.istio.io/kubernetes-serviceaccounts", &[Kind::Service], true),
    (SUPPRESS, ANY, false),
    ("inject.istio.io/templates", POD, false),
    ("istio.io/autoRegistrationGroup", ENTRY, false),
    ("istio.io/connectedAt", ENTRY, false),
    ("istio.io/disconnectedAt", ENTRY, false),
    ("istio.io/dry-run", &[Kind::AuthorizationPolicy], false),
    ("istio.io/reroute-virtual-interfaces", POD, false),
    ("istio.io/rev", ANY, false),
    ("istio.io/workloadController", ENTRY, false),
    ("networking.istio.io/address-type", &[Kind::Gateway, Kind::Service], false),
    ("networking.istio.io/exportTo", &[Kind::Service], false),
    ("networking.istio.io/service-type", &[Kind::Gateway], false),
    ("networking.istio.io/traffic-distribution", &[Kind::Service, Kind::ServiceEntry, Kind::Namespace], false),
    ("prometheus.istio.io/merge-metrics", POD, false),
    ("proxy.istio.io/config", POD, false),
    ("proxy.istio.io/overrides", POD, false),
    ("readiness.status.sidecar.istio.io/applicationPorts", POD, false),
    ("readiness.status.sidecar.istio.io/failureThreshold", POD, false),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", POD, false),
    ("readiness.status.sidecar.istio.io/periodSeconds", POD, false),
    ("sidecar.istio.io/agentLogLevel", POD, false),
    ("sidecar.istio.io/bootstrapOverride", POD, false),
    ("sidecar.istio.io/componentLogLevel", POD, false),
    ("sidecar.istio.io/controlPlaneAuthPolicy", POD, true),
    ("sidecar.istio.io/discoveryAddress", POD, true),
    ("sidecar.istio.io/enableCoreDump", POD, false),
    ("sidecar.istio.io/extraStatTags", POD, false),
    ("sidecar.istio.io/inject", POD, false),
    ("sidecar.istio.io/interceptionMode", POD, false),
    ("sidecar.istio.io/logLevel", POD, false),
    ("sidecar.istio.io/nativeSidecar", POD, false),
    ("sidecar.istio.io/proxyCPU", POD, false),
    ("sidecar.istio.io/proxyCPULimit", POD, false),
    ("sidecar.istio.io/proxyImage", POD, false),
    ("sidecar.istio.io/proxyImageType", POD, false),
    ("sidecar.istio.io/proxyMemory", POD, false),
    ("sidecar.istio.io/proxyMemoryLimit", POD, false),
    ("sidecar.istio.io/rewriteAppHTTPProbers", POD, false),
    ("sidecar.istio.io/statsCompression", POD, false),
    ("sidecar.istio.io/statsHistogramBuckets", POD, false),
    ("sidecar.istio.io/statsInclusionPrefixes", POD, true),
    ("sidecar.istio.io/statsInclusionRegexps", POD, true),
    ("sidecar.istio.io/statsInclusionSuffixes", POD, true),
    ("sidecar.istio.io/status", POD, false),
    ("sidecar.istio.io/userVolume", POD, false),
    ("sidecar.istio.io/userVolumeMount", POD, false),
    ("status.sidecar.istio.io/port", POD, false),
    ("topology.istio.io/controlPlaneClusters", &[Kind::Namespace], false),
    ("traffic.istio.io/nodeSelector", &[Kind::Service], false),
    ("traffic.sidecar.istio.io/excludeInboundPorts", POD, false),
    ("traffic.sidecar.istio.io/excludeInterfaces", POD, false),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", POD, false),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", POD, false),
    ("traffic.sidecar.istio.io/includeInboundPorts", POD, false),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", POD, false),
    ("traffic.sidecar.istio.io/includeOutboundPorts", POD, false),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", POD, false),
];

/// Annotations of an object.
pub(super) fn annotations(kind: Kind, annotations: &Labels, out: &mut Report) {
    for (name, value) in annotations {
        let Some((domain, _)) = name.split_once('/') else { continue };
        // A Gateway's annotations are for others, too: what is made for it gets them.
        if INTERNAL.contains(&domain) || !domain.ends_with("istio.io") {
            continue;
        }
        let field = format!("metadata.annotations.{name}");
        match ANNOTATIONS.iter().find(|(known, ..)| known == name) {
            None => out.push(Finding::warning(field, format!("{name} is no annotation of Istio's")).code("IST0108")),
            // What is made for a Gateway inherits them.
            Some((_, places, _))
                if kind == Kind::Gateway && [Kind::Pod, Kind::Service].iter().any(|k| places.contains(k)) => {}
            Some((_, places, _)) if !places.is_empty() && !places.contains(&kind) => {
                let places: Vec<&str> = places.iter().map(|k| k.name()).collect();
                let message = format!("{name} belongs to {}, and does nothing here", places.join(" or "));
                out.push(Finding::warning(field, message).code("IST0107"));
            }
            Some((_, _, true)) => out.push(Finding::info(field, format!("{name} is deprecated")).code("IST0135")),
            Some(_) if kind == Kind::Pod => {
                if let Some(why) = inject::annotations::wrong(name, value) {
                    out.push(Finding::warning(field, format!("{value:?} {why}")).code("IST0125"));
                }
            }
            Some(_) => {}
        }
    }
}

/// Whether an object asks not to be told of a code. What refuses it is told all the same.
pub fn suppressed(annotations: &Labels, code: Option<&str>) -> bool {
    let Some(list) = annotations.get(SUPPRESS) else { return false };
    list.split(',').map(str::trim).any(|word| word == "*" || Some(word) == code)
}

/// Labels of a namespace that say whether its pods are injected.
pub(super) fn namespace(labels: &Labels, out: &mut Report) {
    if labels.contains_key("istio-injection") && labels.contains_key("istio.io/rev") {
        let message = "istio-injection stands beside istio.io/rev, which has no effect then";
        out.push(Finding::warning("metadata.labels", message).code("IST0123"));
    }
}

/// Names of a Service's ports.
pub(super) fn service(key: &ObjectKey, service: &Service, out: &mut Report) {
    if SYSTEM.contains(&&*key.namespace) {
        return;
    }
    let alias = service.kind == "ExternalName";
    for (i, port) in service.ports.iter().enumerate() {
        let protocol = Protocol::of_service_port(&port.protocol, &port.app_protocol, &port.name, port.port);
        let field = format!("spec.ports[{i}].name");
        if alias && (protocol.is_auto() || port.name == "tcp") {
            let message =
                format!("{:?} does not say what is spoken on port {} of the external name", port.name, port.port);
            out.push(Finding::warning(field, message).code("IST0150"));
        } else if protocol.is_auto() {
            let message = format!("{:?} does not say what is spoken on port {}", port.name, port.port);
            out.push(Finding::info(field, message).code("IST0118"));
        }
    }
}
