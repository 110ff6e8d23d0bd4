//! Protocols through both proxies: upgrades, streams both ways, servers that speak first, large bodies, ports of nodes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::super::{Context, eventually, reach};
use super::{REACHES, Workload, answers, get, joined, probe, seen, service, start};

pub(in super::super) async fn run(context: &Context<'_>) -> Result<()> {
    joined(context).await?;
    context.check("clients and a server get ready", begin(context)).await?;
    let _ = context.check("websockets", websockets(context)).await;
    let _ = context.check("gRPC streams both ways, by name, appProtocol and detection", streams(context)).await;
    let _ = context.check("clients that wait for the server to speak", server_first(context)).await;
    let _ = context.check("HTTP/2 in clear, with and without knowing it", http2(context)).await;
    let _ = context.check("100 MB up and down, the other side being slow", large_bodies(context)).await;
    context.check("a port of the node", node_port(context)).await
}

/// Ports that say what they are in several ways. They lead to one pod for each protocol: a port of a pod has but one.
const PORTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: two}
spec:
  selector: {app: two}
  ports:
  - {name: grpc-named, port: 81, targetPort: 8080}
  - {name: declared, port: 82, targetPort: 8080, appProtocol: grpc}
  - {name: http2, port: 83, targetPort: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: detected}
spec:
  type: NodePort
  selector: {app: detected}
  ports: [{name: any, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: lines}
spec:
  selector: {app: server}
  ports:
  - {name: tcp-named, port: 9001, targetPort: 9000}
  - {name: spoken, port: 9002, targetPort: 9000, appProtocol: mysql}
  - {name: known, port: 3306, targetPort: 9000}
---
";

async fn begin(context: &Context<'_>) -> Result<()> {
    let servers = ["server", "two", "detected"].map(Workload::new);
    let all = [&servers[..], &[Workload::new("client"), Workload::plain("plain")]].concat();
    start(context, &all, &format!("{}{PORTS}", service("server"))).await?;
    answers(context, "client", &["http://server/"], 200).await.map(drop)
}

async fn websockets(context: &Context<'_>) -> Result<()> {
    for host in ["server", "detected"] {
        let said = probe(context, "client", &["websocket", &format!("http://{host}/websocket")]).await?;
        ensure!(said.matches("message").count() == 3, "{host}: {said:?}");
    }
    Ok(())
}

async fn streams(context: &Context<'_>) -> Result<()> {
    for host in ["two:81", "two:82", "detected"] {
        let said = probe(context, "client", &["stream", &format!("http://{host}/stream")]).await;
        let said = said.with_context(|| format!("of {host}"))?;
        ensure!(said.matches("message").count() == 3 && said.ends_with("grpc-status 0\n"), "{host}: {said:?}");
    }
    Ok(())
}

async fn server_first(context: &Context<'_>) -> Result<()> {
    for port in [9001, 9002, 3306] {
        let said = probe(context, "client", &["send", "-wait", &format!("lines:{port}"), "hello"]).await;
        let said = said.with_context(|| format!("port {port}"))?;
        ensure!(said.contains("server hello"), "{port}: {said:?}");
    }
    Ok(())
}

async fn http2(context: &Context<'_>) -> Result<()> {
    // A client of HTTP/1.1 whose service is said to speak HTTP/2, and one whose service says nothing.
    for (host, proto) in [("two:83", "HTTP/2.0"), ("detected", "HTTP/1.1")] {
        let seen = seen(context, "client", &[&format!("http://{host}/")]).await?;
        ensure!(seen["proto"] == proto, "{host} was to be asked by {proto}: {seen}");
        ensure!(seen["headers"].get("X-Forwarded-Client-Cert").is_some(), "{host} not by mesh TLS: {seen}");
    }
    Ok(())
}

const LARGE: u64 = 100 << 20;

/// How much memory each proxy of the node has had at most, in KiB, by its process.
async fn peaks(context: &Context<'_>) -> Result<BTreeMap<String, u64>> {
    let read = "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2>/dev/null)\" != mesh-proxy ] || \
                echo $p $(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' $p/status); done";
    let said = context.cluster().node_exec(&["sh", "-c", read]).await?;
    let peak = |line: &str| {
        let (process, peak) = line.split_once(' ')?;
        Some((process.to_owned(), peak.parse().ok()?))
    };
    let all: BTreeMap<_, _> = said.lines().filter_map(peak).collect();
    ensure!(all.len() >= 2, "the proxies are not found: {said:?}");
    Ok(all)
}

async fn large_bodies(context: &Context<'_>) -> Result<()> {
    let (large, near) = (LARGE.to_string(), context.is_near());
    let before = if near { peaks(context).await? } else { BTreeMap::new() };
    let up = ["-timeout", "60s", "-upload", &large, "http://server/?pause=2s"];
    let seen = seen(context, "client", &up).await?;
    ensure!(seen["length"] == LARGE, "{seen}");
    let url = format!("http://server/bytes/{large}");
    let down = ["-timeout", "60s", "-pause", "2s", "-discard", &url];
    let (status, length) = get(context, "client", &down).await?;
    ensure!(status == 200 && length == large, "{status}: {length} bytes");
    if near {
        let after = peaks(context).await?;
        for (process, peak) in after {
            let Some(before) = before.get(&process) else { continue };
            ensure!(peak - before < 24 << 10, "{process} took {} KiB more for it", peak - before);
        }
    }
    Ok(())
}

async fn node_port(context: &Context<'_>) -> Result<()> {
    let service = context.json(&["get", "service", "detected"]).await?;
    let port = &service["spec"]["ports"][0]["nodePort"];
    let nodes = context.cluster().json(&["get", "nodes"]).await?;
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let internal =
        addresses.iter().find(|address| address["type"] == "InternalIP").context("a node without address")?;
    let address = format!("{}:{port}", internal["address"].as_str().unwrap_or_default());
    for from in ["plain", "client"] {
        eventually(REACHES, async || {
            let seen = seen(context, from, &[&format!("http://{address}/")]).await?;
            ensure!(seen["name"] == "detected", "{seen}");
            Ok(())
        })
        .await
        .with_context(|| format!("from {from}"))?;
    }
    if context.is_near() {
        let (status, body) = reach::get(&address, "/").await?;
        ensure!(status == 200 && body.contains("\"name\":\"detected\""), "{status} {body}");
    }
    Ok(())
}
