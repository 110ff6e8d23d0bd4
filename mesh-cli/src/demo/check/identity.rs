//! Who talks to whom: identities on every hop, plain text, imposters, denied callers.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{EFFECTIVE, SLACK, Verdict, copy_sample, journey, stop, within};
use crate::demo::http;
use crate::demo::manifests::write_file;
use crate::demo::mesh::Mesh;
use crate::demo::plan::{INBOUND_PORT, NAMESPACE, OUTBOUND_PORT, SYSTEM};

fn spiffe(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// Gateway to webapp to catalog to forum.
pub async fn three_hops(mesh: &Mesh) -> Verdict {
    let (status, webapp) = journey(mesh, None).await?;
    anyhow::ensure!(status == 200, "the page answers {status}: {webapp:?}");
    let accounts = ["webapp", "catalog", "forum"];
    let callers = [spiffe(SYSTEM, "gateway"), spiffe(NAMESPACE, "webapp"), spiffe(NAMESPACE, "catalog")];
    for (service, caller) in accounts.into_iter().zip(callers) {
        let Some(hop) = stop(&webapp, service) else { anyhow::bail!("{service} was not reached: {webapp:?}") };
        anyhow::ensure!(hop.encrypted, "{service} was called without encryption");
        anyhow::ensure!(hop.caller.as_ref() == Some(&caller), "{service} saw {:?} instead of {caller}", hop.caller);
        let own = spiffe(NAMESPACE, service);
        anyhow::ensure!(hop.own.as_ref() == Some(&own), "{service} presented {:?} instead of {own}", hop.own);
    }
    Ok(String::new())
}

/// A client without a certificate.
pub async fn plain_refused(mesh: &Mesh) -> Verdict {
    let Some(webapp) = mesh.plan.workload("webapp") else { anyhow::bail!("no webapp") };
    let mut stream = TcpStream::connect((webapp.ip, INBOUND_PORT)).await?;
    stream.write_all(b"GET /journey HTTP/1.1\r\nhost: webapp\r\n\r\n").await?;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
    match read {
        Err(_) => anyhow::bail!("the connection stays open"),
        Ok(_) if answer.starts_with(b"HTTP/") => {
            anyhow::bail!("it was answered: {}", String::from_utf8_lossy(&answer).lines().next().unwrap_or_default())
        }
        Ok(_) => Ok(String::new()),
    }
}

/// An endpoint that should be catalog's but holds forum's certificate.
pub async fn imposter_refused(mesh: &Mesh) -> Verdict {
    let Some(forum) = mesh.plan.workload("forum") else { anyhow::bail!("no forum") };
    let Some(webapp) = mesh.plan.workload("webapp") else { anyhow::bail!("no webapp") };
    let text = format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: imposter, namespace: {NAMESPACE}}}
spec:
  hosts: [imposter.{NAMESPACE}.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: {INBOUND_PORT}}}]
  endpoints:
  - address: {ip}
    serviceAccount: catalog
    labels: {{security.istio.io/tlsMode: istio}}
  subjectAltNames: ['{san}']
",
        ip = forum.ip,
        san = spiffe(NAMESPACE, "catalog"),
    );
    write_file(&mesh.plan.config_dir(), "imposter.yaml", &text)?;
    let proxy = format!("http://{}:{OUTBOUND_PORT}/journey", webapp.ip);
    let host = format!("imposter.{NAMESPACE}.svc.cluster.local");
    let refused = within(SLACK * Duration::from_secs(5), "the refusal", async || {
        let request = ::http::Request::get(&proxy).header("host", &host);
        let answer = http::send(request).await?;
        anyhow::ensure!(answer.status != 200, "the imposter's answer came through: {}", answer.text());
        anyhow::ensure!(answer.status == 503, "{} instead of 503: {}", answer.status, answer.text());
        let text = answer.text().to_lowercase();
        anyhow::ensure!(text.contains("tls") || text.contains("certificate"), "refused for another reason: {text}");
        Ok(())
    })
    .await;
    std::fs::remove_file(mesh.plan.config_dir().join("imposter.yaml"))?;
    refused.map(|_| String::new())
}

/// `deny-catalog.yaml` comes and goes.
pub async fn denied(mesh: &Mesh) -> Verdict {
    copy_sample(mesh, "deny-catalog.yaml", "deny-catalog.yaml")?;
    let came = within(EFFECTIVE, "the denial", async || {
        let (_, journey) = journey(mesh, None).await?;
        let problem = stop(&journey, "catalog").and_then(|c| c.problem.clone()).unwrap_or_default();
        anyhow::ensure!(problem.contains("403") && problem.contains("RBAC: access denied"), "catalog says {problem:?}");
        Ok(())
    })
    .await;
    std::fs::remove_file(mesh.plan.config_dir().join("deny-catalog.yaml"))?;
    let came = came?;
    let went = within(EFFECTIVE, "the end of the denial", async || {
        let (status, _) = journey(mesh, None).await?;
        anyhow::ensure!(status == 200, "the page answers {status}");
        Ok(())
    })
    .await?;
    Ok(format!("after {came:.0?} and {went:.0?}"))
}
