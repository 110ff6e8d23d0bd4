//! A workload whose sidecar is stock Envoy, with `mesh-proxy agent` for its certificate, among those with our proxy.
//!
//! This owns what such a pod is made of: nobody injects it.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::super::{Context, eventually};
use super::{PATIENCE, REACHES, Workload, answers, get, joined, probe, seen, service, start};
use crate::images;

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("the image of stock Envoy is imported", import(context)).await?;
    context.check("a workload with stock Envoy and our agent gets ready", begin(context)).await?;
    let _ = context.check("our proxy calls Envoy, which knows the caller", called(context)).await;
    let _ = context.check("Envoy calls our proxy, which knows the caller", calls(context)).await;
    let _ = context.check("TCP both ways, the server speaking first", tcp(context)).await;
    context.check("Envoy serves by identity, and nobody without", secured(context)).await
}

async fn import(context: &Context<'_>) -> Result<()> {
    let make = || images::envoy(&crate::python::environment(&crate::python::binaries()?)?);
    let archive = tokio::task::spawn_blocking(make).await.context("the image broke off")??;
    context.cluster().import_image(&archive.file).await
}

async fn begin(context: &Context<'_>) -> Result<()> {
    let bootstrap = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "bootstrap" },
        "data": { "envoy.json": bootstrap(&context.namespace).to_string() },
    });
    let all = [Workload::new("ours"), Workload::plain("plain")];
    let beside = format!("{}{}{bootstrap}\n---\n{}", service("ours"), service("envoy"), pod(&context.namespace));
    start(context, &all, &beside).await?;
    context.rolled_out("envoy", PATIENCE).await
}

fn socket(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

/// Its bootstrap: certificates from our agent's socket, all else from our control plane, which knows it by them.
fn bootstrap(namespace: &str) -> Value {
    let endpoints = |name: &str, address: &Value| {
        json!({
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        })
    };
    let http2 = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let secrets = json!({
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "sds-grpc" } }],
        },
        "resource_api_version": "V3",
    });
    let own = json!({ "name": "default", "sds_config": secrets });
    let control = "istiod.istio-system.svc";
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": control,
        "common_tls_context": {
            "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificate_sds_secret_configs": [own],
            "validation_context": {
                "trusted_ca": { "filename": "/var/run/secrets/istio/root-cert.pem" },
                "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": control } }],
            },
        },
    });
    let source = json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" });
    json!({
        "node": {
            "cluster": format!("envoy.{namespace}"),
            "metadata": {
                "NAMESPACE": namespace,
                "LABELS": { "app": "envoy" },
                "SERVICE_ACCOUNT": "envoy",
                "WORKLOAD_NAME": "envoy",
                "CLUSTER_ID": "Kubernetes",
                "INTERCEPTION_MODE": "REDIRECT",
                "PROXY_CONFIG": {},
            },
        },
        // Where the kubelet asks whether it is ready, too.
        "admin": { "address": socket("0.0.0.0", 15021) },
        "static_resources": {
            "clusters": [
                {
                    "name": "xds-grpc",
                    "type": "STRICT_DNS",
                    "dns_lookup_family": "V4_ONLY",
                    "connect_timeout": "2s",
                    "typed_extension_protocol_options": http2,
                    "transport_socket": { "name": "tls", "typed_config": tls },
                    "load_assignment": endpoints("xds-grpc", &socket(control, 15012)),
                },
                {
                    "name": "sds-grpc",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "typed_extension_protocol_options": http2,
                    "load_assignment": endpoints("sds-grpc", &json!({ "pipe": { "path": SOCKET } })),
                },
            ],
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
            },
            "cds_config": source,
            "lds_config": source,
        },
    })
}

const SOCKET: &str = "/run/identity/socket";

/// Account and Deployment: redirection, the application, Envoy and the agent.
fn pod(namespace: &str) -> String {
    let (envoy, proxy) = (images::ENVOY, images::PROXY);
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: envoy}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: envoy}}
spec:
  selector: {{matchLabels: {{app: envoy}}}}
  template:
    metadata: {{labels: {{app: envoy, sidecar.istio.io/inject: 'false', security.istio.io/tlsMode: istio}}}}
    spec:
      serviceAccountName: envoy
      terminationGracePeriodSeconds: 2
      initContainers:
      - name: redirect
        image: {proxy}
        args: [capture, apply, -p, '15001', -z, '15006', -u, '1337', -m, REDIRECT, -i, '*', -b, '*', -d, '15021']
        securityContext: {{runAsUser: 0, runAsGroup: 0, capabilities: {{add: [NET_ADMIN, NET_RAW], drop: [ALL]}}}}
        volumeMounts: [{{name: identity, mountPath: /run}}]
      containers:
      - name: app
        image: localhost/mesh/probe:1
        args: [serve, -name, envoy, -tcp, ':9000']
        readinessProbe: {{exec: {{command: [probe, get, 'http://127.0.0.1:8080/ready']}}, periodSeconds: 1}}
      - name: envoy
        image: {envoy}
        args:
        - -c
        - /etc/envoy/envoy.json
        - --service-node
        - sidecar~$(IP)~$(NAME).{namespace}~{namespace}.svc.cluster.local
        - --concurrency
        - '1'
        - --disable-hot-restart
        - -l
        - warning
        env:
        - {{name: IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: NAME, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
        readinessProbe: {{httpGet: {{path: /ready, port: 15021}}, periodSeconds: 1}}
        volumeMounts:
        - {{name: bootstrap, mountPath: /etc/envoy}}
        - {{name: root, mountPath: /var/run/secrets/istio}}
        - {{name: identity, mountPath: /run/identity}}
      - name: agent
        image: {proxy}
        args: [agent, --socket, {SOCKET}]
        volumeMounts:
        - {{name: root, mountPath: /var/run/secrets/istio}}
        - {{name: token, mountPath: /var/run/secrets/tokens}}
        - {{name: identity, mountPath: /run/identity}}
      volumes:
      - {{name: bootstrap, configMap: {{name: bootstrap}}}}
      - {{name: root, configMap: {{name: istio-ca-root-cert}}}}
      - name: token
        projected: {{sources: [{{serviceAccountToken: {{path: istio-token, audience: istio-ca}}}}]}}
      - {{name: identity, emptyDir: {{medium: Memory}}}}
---
"
    )
}

/// A server sees the account of its caller.
async fn identified(context: &Context<'_>, from: &str, to: &str) -> Result<()> {
    let caller = format!("spiffe://cluster.local/ns/{}/sa/{from}", context.namespace);
    eventually(REACHES, async || {
        let seen = seen(context, from, &[&format!("http://{to}/")]).await?;
        let told = seen["headers"]["X-Forwarded-Client-Cert"].to_string();
        ensure!(seen["name"] == to && told.contains(&format!("URI={caller}")), "{seen}");
        Ok(())
    })
    .await
}

async fn called(context: &Context<'_>) -> Result<()> {
    identified(context, "ours", "envoy").await
}

async fn calls(context: &Context<'_>) -> Result<()> {
    identified(context, "envoy", "ours").await
}

async fn tcp(context: &Context<'_>) -> Result<()> {
    for (from, to) in [("ours", "envoy"), ("envoy", "ours")] {
        let said = probe(context, from, &["send", "-wait", &format!("{to}:9000"), "hello"]).await?;
        ensure!(said.contains(&format!("{to} hello")), "{from} to {to}: {said:?}");
    }
    Ok(())
}

async fn secured(context: &Context<'_>) -> Result<()> {
    let policy = |action: &str| {
        format!(
            "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: envoy}}
spec:
  selector: {{matchLabels: {{app: envoy}}}}
  action: {action}
  rules: [{{from: [{{source: {{principals: [cluster.local/ns/{}/sa/ours]}}}}]}}]
",
            context.namespace
        )
    };
    context.apply(&policy("DENY")).await?;
    answers(context, "ours", &["http://envoy/"], 403).await?;
    context.apply(&policy("ALLOW")).await?;
    answers(context, "ours", &["http://envoy/"], 200).await?;
    for host in ["envoy", "ours"] {
        eventually(REACHES, async || match get(context, "plain", &[&format!("http://{host}/")]).await {
            Ok((status, body)) => bail!("{host} serves a caller without certificate: {status} {body}"),
            Err(_) => Ok(()),
        })
        .await?;
    }
    calls(context).await
}
