//! Labels and annotations that operators and tools rely on.

/// `app` label: Kiali's and the metrics' application.
pub const APP: &str = "app";
/// `version` label.
pub const VERSION: &str = "version";
/// Canonical service name.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// Canonical service revision; `latest` when there is none.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// Name of the workload for metrics.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// `istio` on workloads that terminate mesh TLS.
pub const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Value of [`TLS_MODE`] on meshed workloads.
pub const TLS_MODE_ISTIO: &str = "istio";
/// Network of a workload.
pub const NETWORK: &str = "topology.istio.io/network";
/// Cluster of a workload.
pub const CLUSTER: &str = "topology.istio.io/cluster";
/// Region of a node.
pub const REGION: &str = "topology.kubernetes.io/region";
/// Zone of a node.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Sub-zone of a node or workload.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// `region.zone.subzone` or `region/zone/subzone` of a workload.
pub const LOCALITY: &str = "istio-locality";
/// Name of a namespace, entered by the API server.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Gateway of Gateway API that a workload was made for.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Visibility of a Service.
pub const EXPORT_TO: &str = "networking.istio.io/exportTo";
/// Dry run of an AuthorizationPolicy.
pub const DRY_RUN: &str = "istio.io/dry-run";
/// Per-pod proxy configuration.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";

use std::collections::BTreeMap;

/// Labels of an object or workload.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` has every pair of `selector`; an empty selector matches everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Istio's canonical service name: its label, `app.kubernetes.io/name`, `app`, else the workload's name.
pub fn canonical_name<'a>(labels: &'a Labels, workload: &'a str) -> &'a str {
    [CANONICAL_NAME, "app.kubernetes.io/name", APP].iter().find_map(|k| labels.get(*k)).map_or(workload, String::as_str)
}

/// Istio's canonical revision: its label, `app.kubernetes.io/version`, `version`, else `latest`.
pub fn canonical_revision(labels: &Labels) -> &str {
    [CANONICAL_REVISION, "app.kubernetes.io/version", VERSION]
        .iter()
        .find_map(|k| labels.get(*k))
        .map_or("latest", String::as_str)
}
