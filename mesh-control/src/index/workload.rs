//! Workloads: what runs at an address, whichever object says so.

use std::{net::IpAddr, sync::Arc};

use mesh_api::{
    crd::networking,
    labels::{self, Labels},
    model::{Locality, Name},
};

use super::Index;
use crate::source::{
    core,
    object::{Object, ObjectKey, Spec},
};

/// A pod, a WorkloadEntry or an inline endpoint of a ServiceEntry.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// The object, and which of its endpoints.
    pub source: (ObjectKey, usize),
    /// Namespace.
    pub namespace: Name,
    /// Name of the workload (deployment) for metrics; may be empty.
    pub name: Name,
    /// Labels.
    pub labels: Arc<Labels>,
    /// Service account; empty: not told.
    pub service_account: Name,
    /// Network; empty: not told.
    pub network: Name,
    /// Where it runs.
    pub locality: Locality,
    /// Node; empty: not told.
    pub node: Name,
    /// Terminates mesh TLS.
    pub mesh_tls: bool,
    /// Takes traffic.
    pub ready: bool,
}

impl Workload {
    /// A pod.
    pub(super) fn of_pod(object: &Object, pod: &core::Pod, index: Option<&Index>) -> Self {
        let labels = &object.meta.labels;
        let mut locality = label_locality(labels);
        if locality == Locality::default()
            && let Some(node) = index.and_then(|index| index.node_labels(&pod.node))
        {
            locality = label_locality(node);
        }
        Self {
            source: (object.key.clone(), 0),
            namespace: object.key.namespace.clone(),
            name: pod_workload_name(&object.key.name, labels),
            labels: Arc::new(labels.clone()),
            service_account: pod.service_account.as_str().into(),
            network: text(labels, labels::NETWORK),
            locality,
            node: pod.node.as_str().into(),
            mesh_tls: labels.get(labels::TLS_MODE).is_some_and(|v| v == labels::TLS_MODE_ISTIO),
            ready: pod.ready,
        }
    }

    /// A WorkloadEntry, or an inline endpoint (`index`) of a ServiceEntry.
    pub(super) fn of_entry(object: &Object, index: usize, entry: &networking::WorkloadEntry) -> Self {
        let own = matches!(object.spec, Spec::WorkloadEntry(_));
        let all = if own { labels_of(object) } else { entry.labels.clone() };
        let name = match all.get(labels::WORKLOAD_NAME) {
            Some(name) => name.as_str().into(),
            None if own => object.key.name.clone(),
            None => "".into(),
        };
        let locality = if entry.locality.is_empty() { label_locality(&all) } else { Locality::parse(&entry.locality) };
        Self {
            source: (object.key.clone(), index),
            namespace: object.key.namespace.clone(),
            name,
            service_account: entry.service_account.as_str().into(),
            network: if entry.network.is_empty() { text(&all, labels::NETWORK) } else { entry.network.as_str().into() },
            locality,
            node: "".into(),
            mesh_tls: match all.get(labels::TLS_MODE) {
                Some(mode) => mode == labels::TLS_MODE_ISTIO,
                None => !entry.service_account.is_empty(),
            },
            labels: Arc::new(all),
            ready: true,
        }
    }

    /// The workloads that an object puts at addresses. Where they stand is not told.
    pub fn declared(object: &Object) -> Vec<Self> {
        declared(object, None).into_iter().map(|(_, workload)| workload).collect()
    }

    /// `name;namespace;canonical-name;canonical-revision;cluster`, as endpoints tell it.
    pub fn telemetry(&self, cluster: &str) -> Name {
        format!(
            "{};{};{};{};{}",
            self.name,
            self.namespace,
            labels::canonical_name(&self.labels, &self.name),
            labels::canonical_revision(&self.labels),
            cluster
        )
        .into()
    }
}

/// Labels that selectors see; those of a WorkloadEntry stand in its spec and in its metadata.
pub(super) fn labels_of(object: &Object) -> Labels {
    let mut all = object.meta.labels.clone();
    if let Spec::WorkloadEntry(entry) = &object.spec {
        all.extend(entry.labels.clone());
    }
    all
}

/// The workloads that an object puts at addresses; the index knows where nodes stand.
pub(super) fn declared(object: &Object, index: Option<&Index>) -> Vec<(IpAddr, Workload)> {
    match &object.spec {
        Spec::Pod(pod) if !pod.finished && !pod.host_network => {
            pod.ips.iter().map(|ip| (*ip, Workload::of_pod(object, pod, index))).collect()
        }
        Spec::WorkloadEntry(entry) => {
            entry.address.parse().ok().map(|ip| (ip, Workload::of_entry(object, 0, entry))).into_iter().collect()
        }
        Spec::ServiceEntry(se) => se
            .endpoints
            .iter()
            .enumerate()
            .filter_map(|(i, e)| Some((e.address.parse().ok()?, Workload::of_entry(object, i, e))))
            .collect(),
        _ => vec![],
    }
}

/// Region, zone and sub-zone by labels: Istio's own label first, then those of the platform.
pub(super) fn label_locality(all: &Labels) -> Locality {
    if let Some(text) = all.get("topology.istio.io/locality").or_else(|| all.get(labels::LOCALITY)) {
        // In labels, where `/` is not allowed, dots separate.
        return Locality::parse(&if text.contains('/') { text.clone() } else { text.replace('.', "/") });
    }
    Locality { region: text(all, labels::REGION), zone: text(all, labels::ZONE), sub_zone: text(all, labels::SUBZONE) }
}

/// `web-7d4b9c-x2x9z` of a Deployment is `web`; the hash stands in a label.
fn pod_workload_name(pod: &str, all: &Labels) -> Name {
    if let Some(name) = all.get(labels::WORKLOAD_NAME) {
        return name.as_str().into();
    }
    if let Some(hash) = all.get("pod-template-hash")
        && let Some((name, _)) = pod.split_once(&format!("-{hash}-"))
    {
        return name.into();
    }
    if let Some(set) = all.get("statefulset.kubernetes.io/pod-name")
        && set == pod
        && let Some((name, _)) = pod.rsplit_once('-')
    {
        return name.into();
    }
    pod.into()
}

fn text(all: &Labels, key: &str) -> Name {
    all.get(key).map_or_else(|| "".into(), |v| v.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_names_of_pods() {
        let deployment: Labels = [("pod-template-hash".to_owned(), "7d4b9c".to_owned())].into();
        assert_eq!(&*pod_workload_name("web-7d4b9c-x2x9z", &deployment), "web");
        assert_eq!(&*pod_workload_name("job-1", &Labels::new()), "job-1");
        let set: Labels = [("statefulset.kubernetes.io/pod-name".to_owned(), "db-0".to_owned())].into();
        assert_eq!(&*pod_workload_name("db-0", &set), "db");
    }

    #[test]
    fn localities_of_labels() {
        let own: Labels = [(labels::LOCALITY.to_owned(), "eu.a.1".to_owned())].into();
        assert_eq!(label_locality(&own).to_string(), "eu/a/1");
        let zone: Labels =
            [(labels::REGION.to_owned(), "eu".to_owned()), (labels::ZONE.to_owned(), "a".to_owned())].into();
        assert_eq!(label_locality(&zone).to_string(), "eu/a");
    }
}
