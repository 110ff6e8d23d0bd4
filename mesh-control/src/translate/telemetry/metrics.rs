//! What Telemetry objects change about Istio's metrics, as its own control plane reads them.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::{
    crd::telemetry as crd,
    meshconfig::MeshConfig,
    model::{IstioStats, MetricChange},
};

use super::provider;

/// Name that the provider has which exists without being declared.
const BUILT_IN: &str = "prometheus";

/// Names of Istio's metrics as the filter has them.
const ALL: [(crd::IstioMetric, &str); 10] = {
    use crd::IstioMetric as M;
    [
        (M::RequestCount, "requests_total"),
        (M::RequestDuration, "request_duration_milliseconds"),
        (M::RequestSize, "request_bytes"),
        (M::ResponseSize, "response_bytes"),
        (M::TcpOpenedConnections, "tcp_connections_opened_total"),
        (M::TcpClosedConnections, "tcp_connections_closed_total"),
        (M::TcpSentBytes, "tcp_sent_bytes_total"),
        (M::TcpReceivedBytes, "tcp_received_bytes_total"),
        (M::GrpcRequestMessages, "request_messages_total"),
        (M::GrpcResponseMessages, "response_messages_total"),
    ]
};

/// What is changed about one metric.
#[derive(Debug, Default)]
struct Change<'a> {
    dropped: bool,
    /// `None`: the label goes away.
    labels: BTreeMap<&'a str, Option<&'a str>>,
}

/// Metrics of one side, as Prometheus reads them. A provider that is turned off has every metric dropped: our proxy
/// records what nobody forbids.
pub fn stats(mesh: &MeshConfig, specs: &[&crd::Telemetry], mode: crd::WorkloadMode) -> IstioStats {
    let is_prometheus = |name: &str| name == BUILT_IN || provider(mesh, name).is_some_and(|p| p.prometheus.is_some());
    let names = |m: &crd::Metrics| m.providers.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let defaults = mesh.default_providers.as_ref().map(|d| d.metrics.clone()).unwrap_or_default();
    let defaults = if defaults.is_empty() { vec![BUILT_IN.to_owned()] } else { defaults };
    let entries: Vec<&crd::Metrics> = specs.iter().flat_map(|s| &s.metrics).collect();
    // The nearest entry that names providers decides which there are; what is said about others counts for nothing.
    let in_scope: BTreeSet<String> = entries
        .iter()
        .rev()
        .map(|m| names(m))
        .find(|n| !n.is_empty())
        .unwrap_or(defaults.clone())
        .into_iter()
        .collect();
    let mut on = in_scope.iter().any(|n| is_prometheus(n));
    let mut changes: BTreeMap<&str, Change<'_>> = BTreeMap::new();
    let mut interval = None;
    let mut inherited = defaults;
    for entry in entries {
        let own = names(entry);
        let named = if own.is_empty() { inherited } else { own };
        if named.iter().any(|n| in_scope.contains(n) && is_prometheus(n)) {
            interval = entry.reporting_interval.map(|d| d.0).or(interval);
            for o in entry.overrides.iter().filter(|o| applies(o, mode)) {
                let metrics = matched(o);
                if metrics.len() == ALL.len() && o.disabled == Some(true) {
                    on = false;
                    continue;
                }
                // A nearer object may turn on again what a wider one turned off.
                on = true;
                for metric in metrics {
                    let change = changes.entry(metric).or_default();
                    change.dropped = o.disabled.unwrap_or(change.dropped);
                    for (label, tag) in &o.tag_overrides {
                        let value = (tag.operation != crd::TagOperation::Remove).then_some(tag.value.as_str());
                        change.labels.insert(label, value);
                    }
                }
            }
        }
        inherited = named;
    }
    if !on {
        let dropped =
            |(_, name): &(_, &str)| MetricChange { name: (*name).into(), dropped: true, ..Default::default() };
        return IstioStats { metrics: ALL.iter().map(dropped).collect(), ..IstioStats::default() };
    }
    IstioStats {
        tcp_reporting: interval,
        metrics: changes.iter().map(|(n, c)| c.as_model(n)).collect(),
        ..IstioStats::default()
    }
}

impl Change<'_> {
    fn as_model(&self, name: &str) -> MetricChange {
        let labels = self.labels.iter().filter_map(|(label, value)| Some(((*label).into(), (*value)?.into())));
        let removed = self.labels.iter().filter(|(_, value)| value.is_none());
        MetricChange {
            name: name.into(),
            dropped: self.dropped,
            labels: labels.collect(),
            removed: removed.map(|(label, _)| (*label).into()).collect(),
        }
    }
}

fn applies(o: &crd::MetricsOverride, mode: crd::WorkloadMode) -> bool {
    o.matches.as_ref().is_none_or(|m| m.mode == crd::WorkloadMode::ClientAndServer || m.mode == mode)
}

/// Which metrics an override is for, by the filter's names.
fn matched(o: &crd::MetricsOverride) -> Vec<&str> {
    let all = || ALL.iter().map(|(_, name)| *name).collect();
    let Some(m) = &o.matches else { return all() };
    if let Some(own) = &m.custom_metric {
        return vec![own];
    }
    match m.metric {
        None | Some(crd::IstioMetric::AllMetrics) => all(),
        Some(metric) => ALL.iter().filter(|(m, _)| *m == metric).map(|(_, name)| *name).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mesh: &str, telemetry: &[&str], mode: crd::WorkloadMode) -> IstioStats {
        let mesh: MeshConfig = serde_saphyr::from_str(mesh).unwrap();
        let specs: Vec<crd::Telemetry> = telemetry.iter().map(|t| serde_saphyr::from_str(t).unwrap()).collect();
        stats(&mesh, &specs.iter().collect::<Vec<_>>(), mode)
    }

    const CLIENT: crd::WorkloadMode = crd::WorkloadMode::Client;
    const SERVER: crd::WorkloadMode = crd::WorkloadMode::Server;

    fn dropped(stats: &IstioStats) -> usize {
        stats.metrics.iter().filter(|m| m.dropped).count()
    }

    #[test]
    fn later_changes_win_label_by_label() {
        let wide = "metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, tagOverrides: {a: {value: '1'}, b: {value: '2'}}}, {match: {metric: REQUEST_SIZE, mode: CLIENT}, disabled: true}]}]";
        let near = "metrics: [{reportingInterval: 3s, overrides: [{match: {metric: REQUEST_COUNT, mode: SERVER}, tagOverrides: {a: {operation: REMOVE}, c: {value: '3'}}}, {match: {customMetric: own}, tagOverrides: {d: {value: '4'}}}]}]";
        let server = of("{}", &[wide, near], SERVER);
        let count = server.metrics.iter().find(|m| &*m.name == "requests_total").unwrap();
        assert_eq!(count.labels, [("b".into(), "2".into()), ("c".into(), "3".into())]);
        assert_eq!(count.removed, ["a".into()]);
        assert!(server.metrics.iter().any(|m| &*m.name == "own"));
        assert_eq!((dropped(&server), server.tcp_reporting), (0, Some(std::time::Duration::from_secs(3))));
        let client = of("{}", &[wide, near], CLIENT);
        let count = client.metrics.iter().find(|m| &*m.name == "requests_total").unwrap();
        assert_eq!(count.labels, [("a".into(), "1".into()), ("b".into(), "2".into())]);
        assert_eq!(dropped(&client), 1);
    }

    #[test]
    fn without_a_word_nothing_is_changed() {
        assert_eq!(of("{}", &[], CLIENT), IstioStats::default());
        assert_eq!(of("{}", &["metrics: [{providers: [{name: prometheus}]}]"], CLIENT), IstioStats::default());
    }

    #[test]
    fn all_metrics_are_changed_each() {
        let stats = of("{}", &["metrics: [{overrides: [{tagOverrides: {a: {value: 'x'}}}]}]"], CLIENT);
        assert_eq!(stats.metrics.len(), ALL.len());
        assert!(stats.metrics.iter().all(|m| m.labels == [("a".into(), "x".into())]));
    }

    #[test]
    fn a_side_or_a_provider_is_turned_off_and_on_again() {
        let off = "metrics: [{overrides: [{match: {metric: ALL_METRICS, mode: CLIENT}, disabled: true}]}]";
        assert_eq!(dropped(&of("{}", &[off], CLIENT)), ALL.len());
        assert_eq!(dropped(&of("{}", &[off], SERVER)), 0);
        let again = "metrics: [{overrides: [{match: {metric: REQUEST_COUNT}, disabled: false}]}]";
        assert_eq!(dropped(&of("{}", &[off, again], CLIENT)), 0);
        let other = "metrics: [{providers: [{name: stackdriver}]}]";
        assert_eq!(dropped(&of("{}", &[other], SERVER)), ALL.len());
        let declared = "extensionProviders: [{name: mine, prometheus: {}}]\ndefaultProviders: {metrics: [mine]}";
        assert_eq!(of(declared, &[], SERVER), IstioStats::default());
        let scoped =
            "metrics: [{providers: [{name: prometheus}], overrides: [{disabled: true}]}, {providers: [{name: mine}]}]";
        assert_eq!(dropped(&of(declared, &[scoped], SERVER)), 0, "what is said of a provider that is replaced");
    }
}
