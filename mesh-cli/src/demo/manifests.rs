//! The YAML of the demo: what an operator would write, and what there is to try.

use std::fmt::Write as _;
use std::path::Path;

use super::plan::{APP_PORT, INBOUND_PORT, NAMESPACE, OUTBOUND_PORT, Plan, SYSTEM, Workload};

/// Writes configuration and samples; a configuration that is there already is the operator's.
///
/// # Errors
/// When a file cannot be written.
pub fn write(plan: &Plan) -> std::io::Result<()> {
    let samples = plan.samples_dir();
    write_file(&samples, "canary-100-0.yaml", &catalog_route(&[("v1", 100), ("v2", 0)]))?;
    write_file(&samples, "canary-90-10.yaml", &catalog_route(&[("v1", 90), ("v2", 10)]))?;
    write_file(&samples, "canary-0-100.yaml", &catalog_route(&[("v1", 0), ("v2", 100)]))?;
    write_file(&samples, "header-v2.yaml", &header_route())?;
    write_file(&samples, "deny-catalog.yaml", &deny_catalog())?;
    if plan.reused {
        return Ok(());
    }
    let config = plan.config_dir();
    write_file(&config, "mesh.yaml", &mesh())?;
    write_file(&config, "gateway.yaml", &gateway(plan.port))?;
    write_file(&config, "catalog-route.yaml", &catalog_route(&[("v1", 100), ("v2", 0)]))?;
    for service in ["webapp", "catalog", "forum"] {
        let mut text = service_manifest(service);
        for workload in plan.workloads.iter().filter(|w| w.service == service) {
            text.push_str(&workload_manifest(workload));
        }
        write_file(&config, &format!("{service}.yaml"), &text)?;
    }
    Ok(())
}

/// Writes next to the file and renames, so that nobody reads half of it.
pub fn write_file(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let temporary = folder.join(format!(".{name}.new"));
    std::fs::write(&temporary, text.trim_start())?;
    std::fs::rename(temporary, folder.join(name))
}

fn mesh() -> String {
    format!(
        "
# Settings of the mesh.
apiVersion: v1
kind: ConfigMap
metadata:
  name: istio
  namespace: {SYSTEM}
data:
  mesh: |
    accessLogFile: /dev/stdout
---
# Nobody talks to a sidecar without a certificate of the mesh.
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {SYSTEM}
spec:
  mtls:
    mode: STRICT
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
"
    )
}

fn gateway(port: u16) -> String {
    format!(
        "
# The way into the mesh.
apiVersion: networking.istio.io/v1
kind: Gateway
metadata:
  name: ingress
  namespace: {NAMESPACE}
spec:
  selector:
    istio: ingressgateway
  servers:
  - port: {{number: {port}, name: http, protocol: HTTP}}
    bind: 127.0.0.1
    hosts: ['*']
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: webapp
  namespace: {NAMESPACE}
spec:
  hosts: ['*']
  gateways: [ingress]
  http:
  - route:
    - destination:
        host: webapp
"
    )
}

fn service_manifest(service: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata:
  name: {service}
  namespace: {NAMESPACE}
spec:
  selector:
    app: {service}
  ports:
  - {{name: http, port: 80, targetPort: {INBOUND_PORT}}}
"
    )
}

/// The workload and what its sidecar listens on: without root nothing can be captured, so both ways are explicit.
fn workload_manifest(workload: &Workload) -> String {
    let Workload { name, service, version, ip, .. } = workload;
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  address: {ip}
  serviceAccount: {service}
  labels:
    app: {service}
    version: {version}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  workloadSelector:
    labels:
      app: {service}
      version: {version}
  ingress:
  - port: {{number: {INBOUND_PORT}, name: http, protocol: HTTP}}
    bind: {ip}
    captureMode: NONE
    defaultEndpoint: 0.0.0.0:{APP_PORT}
  egress:
  - port: {{number: {OUTBOUND_PORT}, name: http-proxy, protocol: HTTP_PROXY}}
    bind: {ip}
    captureMode: NONE
    hosts: ['./*']
"
    )
}

const SUBSETS: &str = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: catalog
  namespace: shop
spec:
  host: catalog
  subsets:
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: catalog
  namespace: shop
spec:
  hosts: [catalog]
  http:
";

/// Subsets of catalog and how requests are spread over them.
pub fn catalog_route(weights: &[(&str, u32)]) -> String {
    let mut text = format!("{SUBSETS}  - route:\n");
    for (subset, weight) in weights {
        let _ = write!(text, "    - destination: {{host: catalog, subset: {subset}}}\n      weight: {weight}\n");
    }
    text
}

fn header_route() -> String {
    format!(
        "{SUBSETS}  - match:
    - headers:
        x-user: {{exact: me}}
    route:
    - destination: {{host: catalog, subset: v2}}
  - route:
    - destination: {{host: catalog, subset: v1}}
"
    )
}

fn deny_catalog() -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: deny-catalog
  namespace: {NAMESPACE}
spec:
  selector:
    matchLabels: {{app: forum}}
  action: DENY
  rules:
  - from:
    - source:
        principals: ['cluster.local/ns/{NAMESPACE}/sa/catalog']
"
    )
}
