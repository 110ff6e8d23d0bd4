//! Whether a pod is injected, and by whom: Istio's rules, and the reason in words.

use std::fmt;

use mesh_api::crd::gateway_api::LabelSelector;
use mesh_api::labels::Labels;

use super::annotations::{INJECT, REVISION, truth};
use super::values::Values;
use crate::index::visibility::label_selector_fits;

/// Namespaces of Kubernetes itself.
const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// Label of namespaces: `enabled` or `disabled`.
const INJECTION: &str = "istio-injection";

/// What the decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Its labels; `None`: not known, so it counts as one that is injected. That is how a command line asks.
    pub namespace_labels: Option<&'a Labels>,
    /// Labels of the pod.
    pub labels: &'a Labels,
    /// Annotations of the pod.
    pub annotations: &'a Labels,
    /// Whether the pod uses its node's network.
    pub host_network: bool,
    /// A webhook's selectors have chosen this control plane, by its revision or by a tag that stands for it. Which tags
    /// there are nobody else knows, so what they chose is not for us to doubt.
    pub selected: bool,
}

/// Why a pod is not injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It has its node's network.
    HostNetwork,
    /// Its namespace belongs to Kubernetes.
    SystemNamespace,
    /// Its label or annotation says so.
    PodSaysNo,
    /// Its namespace says so.
    NamespaceSaysNo,
    /// Neither it nor its namespace says anything.
    NothingSaysYes,
    /// It matches `neverInjectSelector`.
    NeverSelector,
    /// It is for a control plane of another revision.
    OtherRevision(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::HostNetwork => {
                f.write_str("it uses its node's network (hostNetwork), whose traffic is not to be redirected")
            }
            Reason::SystemNamespace => f.write_str("its namespace belongs to Kubernetes"),
            Reason::PodSaysNo => write!(f, "its label or annotation {INJECT} says so"),
            Reason::NamespaceSaysNo => write!(f, "its namespace is labelled {INJECTION}=disabled"),
            Reason::NothingSaysYes => {
                write!(f, "neither its namespace ({INJECTION}, {REVISION}) nor its own label asks for it")
            }
            Reason::NeverSelector => f.write_str("it matches neverInjectSelector"),
            Reason::OtherRevision(revision) => write!(f, "it is for revision {revision}"),
        }
    }
}

/// Decides.
///
/// # Errors
/// The reason why not.
pub fn decide(facts: &Facts<'_>, values: &Values) -> Result<(), Reason> {
    if facts.host_network {
        return Err(Reason::HostNetwork);
    }
    if SYSTEM_NAMESPACES.contains(&facts.namespace) {
        return Err(Reason::SystemNamespace);
    }
    // The label is the newer of the two.
    let own = facts.labels.get(INJECT).or_else(|| facts.annotations.get(INJECT)).map(String::as_str);
    let says = own.filter(|text| !text.is_empty()).map(|text| truth(text) == Some(true));
    if says == Some(false) {
        return Err(Reason::PodSaysNo);
    }
    by_namespace(facts, values, says == Some(true))?;
    if says == Some(true) {
        return Ok(());
    }
    let matches = |all: &[LabelSelector]| all.iter().any(|s| selected(s, facts.labels));
    if matches(&values.sidecar_injector_webhook.never_inject_selector) {
        return Err(Reason::NeverSelector);
    }
    Ok(())
}

/// What the labels of namespaces and revisions say.
fn by_namespace(facts: &Facts<'_>, values: &Values, pod_says_yes: bool) -> Result<(), Reason> {
    let Some(labels) = facts.namespace_labels else { return Ok(()) };
    let revision = values.revision();
    let right = |asked: &str| {
        if facts.selected || asked == revision { Ok(()) } else { Err(Reason::OtherRevision(asked.to_owned())) }
    };
    // The older label of the namespace wins over its revision.
    match (labels.get(INJECTION).map(String::as_str), labels.get(REVISION)) {
        (Some("enabled"), _) => right("default"),
        (Some(_), _) => Err(Reason::NamespaceSaysNo),
        (None, Some(asked)) => right(asked),
        (None, None) => match facts.labels.get(REVISION) {
            Some(asked) => right(asked),
            None if pod_says_yes => right("default"),
            None if values.sidecar_injector_webhook.enable_namespaces_by_default => right("default"),
            None if values
                .sidecar_injector_webhook
                .always_inject_selector
                .iter()
                .any(|s| selected(s, facts.labels)) =>
            {
                right("default")
            }
            None => Err(Reason::NothingSaysYes),
        },
    }
}

/// Whether a selector has these labels; an empty one has none, and one that cannot be understood neither.
fn selected(selector: &LabelSelector, labels: &Labels) -> bool {
    let empty = selector.match_labels.is_empty() && selector.match_expressions.is_empty();
    !empty && label_selector_fits(selector, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_whitespace().filter_map(|w| w.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    /// Labels of the namespace (`?`: not known), labels of the pod, its annotations, what comes out.
    const CASES: [(&str, &str, &str, Result<(), Reason>); 19] = [
        ("?", "", "", Ok(())),
        ("?", "sidecar.istio.io/inject=false", "", Err(Reason::PodSaysNo)),
        ("?", "", "sidecar.istio.io/inject=no", Err(Reason::PodSaysNo)),
        ("?", "sidecar.istio.io/inject=true", "sidecar.istio.io/inject=false", Ok(())),
        ("?", "sidecar.istio.io/inject=nonsense", "", Err(Reason::PodSaysNo)),
        ("?", "never=1", "", Err(Reason::NeverSelector)),
        ("?", "never=1 sidecar.istio.io/inject=true", "", Ok(())),
        ("", "", "", Err(Reason::NothingSaysYes)),
        ("", "sidecar.istio.io/inject=true", "", Ok(())),
        ("", "always=1", "", Ok(())),
        ("", "always=1 never=1", "", Err(Reason::NeverSelector)),
        ("istio-injection=enabled", "", "", Ok(())),
        ("istio-injection=enabled", "sidecar.istio.io/inject=false", "", Err(Reason::PodSaysNo)),
        ("istio-injection=disabled", "sidecar.istio.io/inject=true", "", Err(Reason::NamespaceSaysNo)),
        ("istio-injection=disabled istio.io/rev=default", "", "", Err(Reason::NamespaceSaysNo)),
        ("istio-injection=enabled istio.io/rev=blue", "", "", Ok(())),
        ("istio.io/rev=default", "", "", Ok(())),
        ("", "istio.io/rev=default", "", Ok(())),
        ("", "always=no sidecar.istio.io/inject=", "", Err(Reason::NothingSaysYes)),
    ];

    fn values() -> Values {
        let text = "sidecarInjectorWebhook: {neverInjectSelector: [{}, {matchLabels: {never: '1'}}], \
                    alwaysInjectSelector: [{matchExpressions: [{key: always, operator: In, values: ['1']}]}]}";
        Values::read(text, &[]).unwrap()
    }

    #[test]
    fn who_is_injected() {
        for (namespace, pod, annotations, wanted) in CASES {
            let namespace_labels = (namespace != "?").then(|| labels(namespace));
            let (pod_labels, annotations) = (labels(pod), labels(annotations));
            let facts = Facts {
                namespace: "shop",
                namespace_labels: namespace_labels.as_ref(),
                labels: &pod_labels,
                annotations: &annotations,
                host_network: false,
                selected: false,
            };
            assert_eq!(decide(&facts, &values()), wanted, "namespace {namespace:?}, pod {pod:?}, {annotations:?}");
            let system = Facts { namespace: "kube-system", ..facts };
            assert_eq!(decide(&system, &values()), Err(Reason::SystemNamespace));
            assert_eq!(decide(&Facts { host_network: true, ..facts }, &values()), Err(Reason::HostNetwork));
        }
    }

    #[test]
    fn revisions_take_what_is_theirs() {
        let mut blue = values();
        blue.revision = "blue".to_owned();
        let (none, on, rev) = (Labels::new(), labels("istio-injection=enabled"), labels("istio.io/rev=blue"));
        let facts = |namespace_labels, labels| Facts {
            namespace: "shop",
            namespace_labels: Some(namespace_labels),
            labels,
            annotations: &none,
            host_network: false,
            selected: false,
        };
        assert_eq!(decide(&facts(&on, &none), &blue), Err(Reason::OtherRevision("default".to_owned())));
        assert_eq!(decide(&facts(&rev, &none), &blue), Ok(()));
        assert_eq!(decide(&facts(&none, &rev), &blue), Ok(()));
        assert_eq!(decide(&facts(&rev, &none), &values()), Err(Reason::OtherRevision("blue".to_owned())));
        // `blue` may be a tag of the revision `default`: the webhook's selectors know.
        assert_eq!(decide(&Facts { selected: true, ..facts(&rev, &none) }, &values()), Ok(()));
        let nothing = Facts { selected: true, ..facts(&none, &none) };
        assert_eq!(decide(&nothing, &values()), Err(Reason::NothingSaysYes));
    }
}
