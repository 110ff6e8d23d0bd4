//! All proxies: their pods are ready, they are connected and up to date, of the control plane's version, and their
//! certificates hold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures_util::StreamExt as _;
use mesh_api::xds::json::timestamp;
use serde_json::Value;

use super::{Row, Verdict};
use crate::args::CheckArgs;
use crate::client::Server;
use crate::client::cluster::{Cluster, gvk};
use crate::client::mesh::Mesh;
use crate::client::pods::{PodName, has_proxy, is_ready, runs};
use crate::cmd::proxy_config::list_at;
use crate::cmd::{proxy_status, version};
use crate::exit::Failure;

/// Proxies that are asked at a time.
const AT_ONCE: usize = 8;
/// Port of their admin server.
const ADMIN: u16 = 15000;

/// All answers.
pub async fn rows(args: &CheckArgs) -> Result<Vec<Row>, Failure> {
    let mesh = Mesh::find(&args.mesh).await?;
    let space = args.mesh.namespace.as_deref();
    let mut rows = Vec::new();
    let pods = match mesh.cluster() {
        Some(cluster) => {
            let mut pods = cluster.list(&gvk("", "v1", "Pod"), space, "").await?;
            pods.retain(|pod| has_proxy(pod) && runs(pod));
            rows.push(ready(&pods));
            Some(pods)
        }
        None => None,
    };
    match proxy_status::rows(&mesh).await {
        Ok(mut connected) => {
            let of_space = |row: &Value| row["proxy"].as_str().and_then(|p| p.rsplit('.').next()).map(str::to_owned);
            connected.retain(|row| space.is_none_or(|s| of_space(row).as_deref() == Some(s)));
            if let Some(pods) = &pods {
                rows.push(unconnected(pods, &connected));
            }
            rows.extend(synced(&connected));
            rows.push(versions(&connected, &control_versions(&mesh).await?));
        }
        Err(why) => {
            let detail = why.message.replace('\n', " ");
            rows.push(Row::failed("connected", detail, "what follows is of the proxies themselves; meshctl check"));
        }
    }
    if let (Some(cluster), Some(pods)) = (mesh.cluster(), &pods) {
        rows.push(certificates(cluster, pods).await);
    }
    Ok(rows)
}

fn ready(pods: &[Value]) -> Row {
    let bad = pods.iter().filter(|pod| !is_ready(pod)).map(|pod| format!("{} is not", PodName::of(pod)));
    let good = format!("{} pods with a proxy", pods.len());
    Row::of("ready", bad.collect(), good, Verdict::Failed, "kubectl describe pod NAME -n NAMESPACE")
}

fn unconnected(pods: &[Value], connected: &[Value]) -> Row {
    let known: BTreeSet<&str> = connected.iter().filter_map(|row| row["proxy"].as_str()).collect();
    let bad = pods.iter().map(|pod| PodName::of(pod).to_string()).filter(|pod| !known.contains(pod.as_str()));
    let bad = bad.map(|pod| format!("{pod} is not")).collect();
    let hint = "kubectl logs NAME -n NAMESPACE -c istio-proxy";
    Row::of("connected", bad, format!("{} proxies", connected.len()), Verdict::Failed, hint)
}

/// What they refused, and what they have not confirmed.
fn synced(connected: &[Value]) -> Vec<Row> {
    let (mut refused, mut stale) = (Vec::new(), Vec::new());
    for row in connected {
        let proxy = row["proxy"].as_str().unwrap_or_default();
        let why = proxy_status::rejections(row).into_iter();
        refused.extend(why.map(|(short, why)| format!("{proxy} refused {short}: {why}")));
        let types = row["types"].as_object().into_iter().flatten().map(|(short, _)| short);
        let late = types.filter(|short| proxy_status::state(row, short) == "STALE");
        stale.extend(late.map(|short| format!("{proxy} has not confirmed {short}")));
    }
    let mut rows = vec![Row::of(
        "up to date",
        refused,
        format!("none of {} refused anything", connected.len()),
        Verdict::Failed,
        "meshctl analyze; the last good configuration serves",
    )];
    if !stale.is_empty() {
        rows.push(Row::warning("up to date", stale.join("; "), "ask again: a push may be under way"));
    }
    rows
}

async fn control_versions(mesh: &Mesh<'_>) -> Result<BTreeSet<String>, Failure> {
    let mut out = BTreeSet::new();
    for plane in mesh.control_planes().await? {
        out.insert(version::of_plane(plane).await?);
    }
    Ok(out)
}

fn versions(connected: &[Value], control: &BTreeSet<String>) -> Row {
    let mut other: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in connected {
        let (proxy, version) = (row["proxy"].as_str().unwrap_or_default(), row["proxy_version"].as_str());
        if let Some(version) = version.filter(|v| !control.contains(*v)) {
            other.entry(version).or_default().push(proxy);
        }
    }
    let all: Vec<&str> = control.iter().map(String::as_str).collect();
    let bad = other.into_iter().map(|(version, proxies)| format!("{version}: {}", proxies.join(", "))).collect();
    let hint = "restart them: kubectl rollout restart deployment";
    Row::of("versions", bad, format!("all are {}", all.join(" or ")), Verdict::Warning, hint)
}

async fn certificates(cluster: &Cluster, pods: &[Value]) -> Row {
    let ready: Vec<PodName> = pods.iter().filter(|pod| is_ready(pod)).map(PodName::of).collect();
    let asked = ready.iter().map(|pod| async move {
        let page = Server::pod(cluster, pod, ADMIN).json("/certs").await;
        (pod, page)
    });
    let answers: Vec<_> = futures_util::stream::iter(asked).buffered(AT_ONCE).collect().await;
    let now = timestamp(SystemTime::now());
    let (mut bad, mut worst) = (Vec::new(), Verdict::Warning);
    for (pod, page) in answers {
        match page {
            Err(why) => bad.push(format!("{pod} does not tell: {}", why.message.replace('\n', " "))),
            Ok(page) => {
                for (verdict, why) in of_page(&page, &now) {
                    worst = worst.max(verdict);
                    bad.push(format!("{pod}: {why}"));
                }
            }
        }
    }
    let good = format!("of {} proxies hold", ready.len());
    Row::of(
        "certificates",
        bad,
        good,
        worst,
        "meshctl proxy-config secret NAME; the control plane renews them at half life",
    )
}

/// Chains that ended, or will soon although they should have been renewed. Times are RFC 3339 in UTC.
fn of_page(page: &Value, now: &str) -> Vec<(Verdict, String)> {
    let mut out = Vec::new();
    for entry in list_at(page, "/certificates") {
        let secret = entry["secret"].as_str().unwrap_or("a certificate");
        let Some(leaf) = list_at(entry, "/cert_chain").next() else { continue };
        let (from, to) = (seconds(&leaf["valid_from"]), seconds(&leaf["expiration_time"]));
        let (Some(from), Some(to), Some(now)) = (from, to, seconds(&now.into())) else { continue };
        let end = leaf["expiration_time"].as_str().unwrap_or_default();
        if now >= to {
            out.push((Verdict::Failed, format!("{secret} ended at {end}")));
        } else if to - now < (to - from) / 4 {
            out.push((Verdict::Warning, format!("{secret} ends at {end} and was not renewed yet")));
        }
    }
    out
}

/// Seconds since 1970.
fn seconds(time: &Value) -> Option<i64> {
    time.as_str()?.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(proxy: &str, version: &str, state: &str, error: Value) -> Value {
        json!({"proxy": proxy, "proxy_version": version, "types": {"CDS": {"state": state, "error": error}}})
    }

    #[test]
    fn proxies_that_are_behind_are_named() {
        let all = [row("a.shop", "1.0.0", "SYNCED", Value::Null), row("b.shop", "0.9.0", "ERROR", json!("bad"))];
        let rows = synced(&all);
        assert!(rows[0].result == Verdict::Failed && rows[0].detail == "b.shop refused CDS: bad", "{rows:?}");
        assert_eq!(synced(&all[..1])[0].result, Verdict::Ok);
        assert_eq!(synced(&[row("a.shop", "1", "STALE", Value::Null)])[1].result, Verdict::Warning);
        let control = ["1.0.0".to_owned()].into();
        let row = versions(&all, &control);
        assert!(row.result == Verdict::Warning && row.detail == "0.9.0: b.shop", "{row:?}");
        let pods = [
            json!({"metadata": {"name": "a", "namespace": "shop"}}),
            json!({"metadata": {"name": "c", "namespace": "shop"}}),
        ];
        assert_eq!(unconnected(&pods, &all).detail, "c.shop is not");
        assert_eq!(ready(&pods).result, Verdict::Failed);
    }

    #[test]
    fn certificates_that_end() {
        let page = json!({"certificates": [{"secret": "default", "cert_chain": [
            {"valid_from": "2025-01-01T00:00:00Z", "expiration_time": "2025-01-02T00:00:00Z"}]}]});
        let verdict = |now: &str| of_page(&page, now).first().map(|(verdict, _)| *verdict);
        assert_eq!(verdict("2025-01-01T12:00:00Z"), None);
        assert_eq!(verdict("2025-01-01T19:00:00Z"), Some(Verdict::Warning));
        assert_eq!(verdict("2025-01-02T00:00:00Z"), Some(Verdict::Failed));
    }
}
