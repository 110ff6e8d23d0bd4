//! References and conflicts, change by change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::source::manifest;

#[test]
fn names_what_is_missing() {
    let text = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}, {name: admin, port: 81}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  gateways: [mesh, public/edge]
  http:
  - route:
    - destination: {host: web, subset: v2, port: {number: 80}}
      weight: 20
    - destination: {host: web}
      weight: 20
    - destination: {host: wbe, port: {number: 80}}
      weight: 20
    - destination: {host: web, port: {number: 82}}
      weight: 20
    - destination: {host: api.example.com}
      weight: 20
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: shop}
spec:
  hosts: ['*.example.com']
  ports: [{number: 443, name: tls, protocol: TLS}]
";
    let readings = manifest::read(Path::new("a.yaml"), text);
    let objects = readings.into_iter().map(|r| Arc::new(r.object.expect("good")));
    let found: Vec<_> = check(objects, "cluster.local")
        .iter()
        .map(|f| format!("{} {} {}", f.code.unwrap_or_default(), f.field, f.line.unwrap_or_default()))
        .collect();
    let route = "spec.http[0].route";
    assert_eq!(
        found,
        [
            "IST0101 spec.gateways[1] 7".to_owned(),
            format!("IST0101 {route}[0].destination.subset 7"),
            format!("IST0112 {route}[1].destination.port 7"),
            format!("IST0101 {route}[2].destination.host 7"),
            format!("IST0101 {route}[3].destination.port.number 7"),
        ]
    );
}
/// Objects of a text, by name.
fn objects(text: &str) -> HashMap<String, Arc<Object>> {
    let readings = manifest::read(Path::new("a.yaml"), text);
    readings.into_iter().map(|r| r.object.expect("good")).map(|o| (o.key.name.to_string(), Arc::new(o))).collect()
}

const PARTS: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: shop}
spec: {hosts: [api.example.com], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two, namespace: shop}
spec: {hosts: [api.example.com], ports: [{number: 81, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: shop}
spec: {hosts: ['*.example.com'], ports: [{number: 80, name: http, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: rule, namespace: shop}
spec: {host: api.example.com, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {selector: {app: edge}, servers: [{hosts: ['*'], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routes, namespace: shop}
spec:
  hosts: [api.example.com]
  gateways: [edge]
  http: [{route: [{destination: {host: api.example.com, subset: v1, port: {number: 80}}}]}]
";

/// What is in the way of those, and workloads.
const RIVALS: &str = r"
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge-again, namespace: shop}
spec: {selector: {app: edge}, servers: [{hosts: [b.test], port: {number: 80, name: http, protocol: HTTP}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routes-again, namespace: shop}
spec:
  hosts: [api.example.com]
  gateways: [mesh, edge-again]
  http: [{route: [{destination: {host: api.example.com, port: {number: 80}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routes-mesh, namespace: shop}
spec: {hosts: [api.example.com], http: [{route: [{destination: {host: api.example.com, port: {number: 80}}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pod, namespace: shop, labels: {app: edge, version: v1}}
---
apiVersion: v1
kind: Service
metadata: {name: service, namespace: shop}
spec: {selector: {version: v1}, ports: [{name: http, port: 81}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: sidecar, namespace: shop}
spec: {workloadSelector: {labels: {app: edge}}, egress: [{hosts: ['./*']}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: sidecar-again, namespace: shop}
spec: {workloadSelector: {labels: {version: v1}}, egress: [{hosts: ['./*']}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: subsets, namespace: shop}
spec: {host: service, subsets: [{name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: entry, namespace: shop}
spec: {address: 192.0.2.1, labels: {app: other}}
";

/// Whatever the way to a set of objects, its findings are those of the set.
#[test]
fn every_order_of_changes_leads_to_the_same_findings() {
    let mut parts = objects(PARTS);
    parts.extend(objects(RIVALS));
    // Some of them change, too.
    let moved = RIVALS.replace("version: v1", "version: v2").replace("[b.test]", "['*']");
    let others = objects(&moved);
    let mut names: Vec<&String> = parts.keys().collect();
    names.sort();
    let mut references = References::new("cluster.local", "istio-system");
    let mut present: BTreeSet<&String> = BTreeSet::new();
    let mut seen = HashSet::new();
    // A walk over sets that differ in one object each: a Gray code, there and back with an offset.
    let mut changed: BTreeSet<&String> = BTreeSet::new();
    for step in 1..4000u32 {
        let name = names[(step.trailing_zeros() as usize + step as usize / 64) % names.len()];
        let now = |changed: &BTreeSet<&String>, n: &String| {
            others.get(n).filter(|_| changed.contains(n)).unwrap_or(&parts[n]).clone()
        };
        let change = if present.contains(name) && step % 3 == 0 {
            if !changed.remove(name) {
                changed.insert(name);
            }
            ObjectChange::Upsert(now(&changed, name))
        } else if present.remove(name) {
            ObjectChange::Remove(parts[name].key.clone())
        } else {
            present.insert(name);
            ObjectChange::Upsert(now(&changed, name))
        };
        references.apply([change]);
        let whole = check(present.iter().map(|n| now(&changed, n)), "cluster.local");
        assert_eq!(references.findings(), whole, "{present:?}");
        seen.insert(whole.iter().map(|f| (f.code, f.field.clone())).collect::<Vec<_>>());
    }
    assert!(seen.len() > 100, "{}", seen.len());
    let codes: BTreeSet<&str> = seen.iter().flatten().filter_map(|(code, _)| *code).collect();
    let all = ["IST0101", "IST0109", "IST0110", "IST0127", "IST0132", "IST0145", "IST0162", "IST0173", "IST0174"];
    assert!(all.iter().all(|code| codes.contains(code)), "{codes:?}");
    references.apply(parts.values().map(|o| ObjectChange::Remove(o.key.clone())));
    assert!(references.users.is_empty() && references.known.is_empty() && references.dangling.is_empty());
}

#[test]
fn only_those_who_refer_to_a_change_are_looked_at() {
    let parts = objects(PARTS);
    let mut references = References::new("cluster.local", "istio-system");
    references.apply(parts.values().cloned().map(ObjectChange::Upsert));
    let mut looked =
        |change| -> Vec<String> { references.apply([change]).into_iter().map(|k| k.name.to_string()).collect() };
    assert_eq!(looked(ObjectChange::Upsert(parts["one"].clone())), ["one"], "offers the same");
    assert_eq!(looked(ObjectChange::Remove(parts["edge"].key.clone())), ["routes", "edge"]);
    assert_eq!(looked(ObjectChange::Remove(parts["rule"].key.clone())), ["routes", "rule"]);
    assert_eq!(looked(ObjectChange::Remove(parts["wild"].key.clone())), ["routes", "wild"]);
}

#[test]
fn gateway_api_refers_to_gateways_services_and_config_maps() {
    let text = r"
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {name: tcp, namespace: shop}
spec: {parentRefs: [{name: edge}, {kind: ListenerSet, name: more}], rules: [{backendRefs: [{name: db, port: 5432}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: tls, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  validation: {hostname: web.test, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}
";
    let readings = manifest::read(Path::new("a.yaml"), text);
    let objects = readings.into_iter().map(|r| Arc::new(r.object.unwrap_or_else(|| panic!("{:?}", r.findings))));
    let found: Vec<String> = check(objects, "cluster.local").into_iter().map(|f| f.field).collect();
    assert_eq!(
        found,
        [
            "spec.parentRefs[0].name",
            "spec.parentRefs[1].name",
            "spec.rules[0].backendRefs[0].name",
            "spec.targetRefs[0].name",
            "spec.validation.caCertificateRefs[0].name",
        ]
    );
}
