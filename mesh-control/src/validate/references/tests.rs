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

fn codes_of(text: &str) -> Vec<String> {
    let readings = manifest::read(Path::new("a.yaml"), text);
    let objects = readings.into_iter().map(|r| Arc::new(r.object.expect("good")));
    let word = |f: &Finding| {
        let name = f.object.as_ref().map(|o| o.name.to_string()).unwrap_or_default();
        format!("{name} {} {}", f.code.unwrap_or_default(), f.field)
    };
    check(objects, "cluster.local").iter().map(word).collect()
}

const WORKLOAD: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db, role: store}}
spec: {}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 5432, targetPort: 5433}]}
---
";

fn policy(action: &str, rule: &str) -> String {
    format!(
        "{WORKLOAD}apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: {action}, selector: {{matchLabels: {{app: db}}}}, rules: [{rule}]}}\n"
    )
}

#[test]
fn rules_of_http_on_ports_of_tcp_are_told() {
    let told = ["p MESH0007 spec.rules[0]"];
    for rule in [
        "{to: [{operation: {methods: [GET]}}]}",
        "{to: [{operation: {paths: [/a], ports: ['5433']}}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{when: [{key: 'request.headers[x]', values: [a]}]}",
    ] {
        assert_eq!(codes_of(&policy("ALLOW", rule)), told, "{rule}");
        assert_eq!(codes_of(&policy("DENY", rule)), told, "{rule}");
    }
    for rule in [
        "{to: [{operation: {methods: [GET], ports: ['8080']}}]}",
        "{to: [{operation: {methods: [GET], notPorts: ['5433']}}]}",
        "{to: [{operation: {ports: ['5433']}}]}",
        "{from: [{source: {principals: ['*']}}]}",
    ] {
        assert!(codes_of(&policy("ALLOW", rule)).is_empty(), "{rule}");
    }
}

#[test]
fn services_of_one_workload_that_contradict_each_other_are_told() {
    let other = |ports: &str| {
        format!(
            "{WORKLOAD}apiVersion: v1\nkind: Service\nmetadata: {{name: zz, namespace: shop}}\nspec: {{selector: {{role: store}}, ports: [{ports}]}}\n"
        )
    };
    let protocols = codes_of(&other("{name: tcp, port: 80, targetPort: 9000}"));
    assert_eq!(protocols, ["db IST0116 spec.ports", "zz IST0116 spec.ports"]);
    let ports = codes_of(&other("{name: http, port: 81, targetPort: 8080}"));
    assert_eq!(ports, ["db IST0137 spec.ports", "zz IST0137 spec.ports"]);
    assert!(codes_of(&other("{name: http, port: 80, targetPort: 8080}")).is_empty());
    assert!(codes_of(&other("{name: dns, port: 80, protocol: UDP}")).is_empty());
}

#[test]
fn secrets_without_a_certificate_are_told_when_they_change() {
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: shop}\nspec: {selector: {app: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: cred}}]}\n---\n";
    let secret = |crt: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: cred, namespace: shop}}\ntype: kubernetes.io/tls\nstringData: {{tls.crt: '{crt}', tls.key: '{crt}'}}\n"
        )
    };
    assert_eq!(codes_of(&format!("{gateway}{}", secret("x"))), ["g IST0161 spec.servers[0].tls.credentialName"]);
    assert_eq!(codes_of(gateway), ["g IST0101 spec.servers[0].tls.credentialName"]);
}

#[test]
fn gateways_of_gateway_api_are_named_otherwise() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: gw-0, namespace: shop, labels: {app: gw, gateway.networking.k8s.io/gateway-name: edge}}\nspec: {}\n---\n";
    let policy = |selector: &str| {
        format!(
            "{pod}apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{selector}}}\n"
        )
    };
    assert_eq!(codes_of(&policy("selector: {matchLabels: {app: gw}}")), ["p IST0166 spec.selector"]);
    assert!(codes_of(&policy("")).is_empty());
    let vs = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: shop}\nspec: {hosts: [a.test], gateways: [shop/edge-istio-autogenerated-k8s-gateway-http], http: [{directResponse: {status: 200}}]}\n";
    assert_eq!(codes_of(vs), ["v IST0165 spec.gateways[0]"]);
}
