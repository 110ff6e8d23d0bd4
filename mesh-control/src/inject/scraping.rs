//! Where Prometheus finds the metrics of a pod: at the proxy, which asks the application for its own and shows both. What
//! the pod's annotations said goes into a variable of the proxy, in Istio's form.

use serde::{Deserialize, Serialize};

use super::annotations::truth;
use super::node::{Map, Node};

/// Variable with what the annotations said.
pub(super) const ENV: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";
/// Where the proxy shows its metrics alone.
const PROXY_PORT: &str = "15090";
/// Page of the proxy.
const PATH: &str = "/stats/prometheus";
/// What annotations say, and under which names.
const SCRAPE: &str = "prometheus.io/scrape";
const AT_PATH: &str = "prometheus.io/path";
const PORT: &str = "prometheus.io/port";

/// Istio's form of the annotations.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Written {
    scrape: String,
    path: String,
    port: String,
}

/// What becomes of the annotations of a pod.
#[derive(Debug)]
pub(super) struct Plan {
    /// Value of the variable, if the application has metrics of its own.
    pub(super) variable: Option<String>,
    /// New annotations.
    pub(super) annotations: [(&'static str, String); 3],
}

/// As Prometheus sees names: several annotations may be one to it.
fn is(name: &str, known: &str) -> bool {
    let sanitized = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    name.len() == known.len() && name.chars().map(sanitized).eq(known.chars().map(sanitized))
}

/// What is to be done; `None`: the annotations stay as they are. `status_port`: of the proxy, 0 when it has none.
pub(super) fn plan(annotations: &Map, merge: bool, status_port: u16) -> Option<Plan> {
    let value = |known: &str| {
        annotations.iter().find(|(name, _)| is(name, known)).and_then(|(_, v)| v.as_str()).map(str::to_owned)
    };
    let asked = annotations.get("prometheus.istio.io/merge-metrics").and_then(Node::as_str).and_then(truth);
    let written = Written {
        scrape: value(SCRAPE).unwrap_or_default(),
        path: value(AT_PATH).unwrap_or_default(),
        port: value(PORT).unwrap_or_default(),
    };
    let own = status_port.to_string();
    // Who does not want to be asked, or asks the proxy already, has said so.
    let has_said = truth(&written.scrape) == Some(false) || [own.as_str(), PROXY_PORT].contains(&written.port.as_str());
    if !merge || asked == Some(false) || status_port == 0 || has_said {
        return None;
    }
    let variable = (written != Written::default()).then(|| serde_json::to_string(&written).unwrap_or_default());
    Some(Plan { variable, annotations: [(SCRAPE, "true".to_owned()), (AT_PATH, PATH.to_owned()), (PORT, own)] })
}

/// Takes the pod's own annotations away, whatever way they are written.
pub(super) fn clear(annotations: &mut Map) {
    annotations.retain(|name, _| ![SCRAPE, AT_PATH, PORT].iter().any(|known| is(name, known)));
}

/// Puts back what a variable holds.
pub(super) fn restore(annotations: &mut Map, variable: &str) {
    let Ok(Written { scrape, path, port }) = serde_json::from_str(variable) else { return };
    for (name, value) in [(SCRAPE, scrape), (AT_PATH, path), (PORT, port)] {
        if !value.is_empty() {
            annotations.insert(name.to_owned(), Node::Text(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(pairs: &[(&str, &str)]) -> Option<Plan> {
        let annotations = pairs.iter().map(|(k, v)| ((*k).to_owned(), Node::Text((*v).to_owned()))).collect();
        plan(&annotations, true, 15020)
    }

    #[test]
    fn the_proxy_is_asked_in_the_applications_place() {
        let plan = planned(&[(PORT, "9090"), ("other", "x")]).unwrap();
        assert_eq!(plan.variable.as_deref(), Some(r#"{"scrape":"","path":"","port":"9090"}"#));
        assert_eq!(plan.annotations.map(|(_, v)| v), ["true", PATH, "15020"]);
        assert!(planned(&[]).unwrap().variable.is_none(), "the proxy's own");
        assert!(planned(&[("prometheus.io.port", "9090")]).unwrap().variable.unwrap().contains("9090"));
        for stays in
            [(SCRAPE, "false"), (PORT, "15020"), (PORT, PROXY_PORT), ("prometheus.istio.io/merge-metrics", "false")]
        {
            assert!(planned(&[stays]).is_none(), "{stays:?}");
        }
        assert!(super::plan(&Map::new(), false, 15020).is_none() && super::plan(&Map::new(), true, 0).is_none());
    }

    #[test]
    fn annotations_come_back() {
        let mut all = Map::new();
        for (name, value) in [("prometheus.io_port", "9090"), (AT_PATH, "/m"), ("other", "x")] {
            all.insert(name.to_owned(), Node::Text(value.to_owned()));
        }
        clear(&mut all);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["other"]);
        restore(&mut all, r#"{"scrape":"","path":"/m","port":"9090"}"#);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["other", AT_PATH, PORT]);
        restore(&mut all, "nonsense");
        assert_eq!(all.len(), 3);
    }
}
