//! Which of several replicas does what only one may do.
//!
//! A Lease in the control plane's namespace names the leader; whoever holds it renews it, and others take it over when
//! it was not renewed for its duration. A leader that cannot renew stops being one before others may begin. Owns that
//! question only. Must not know what leaders do.

use std::time::Duration;

use kube::{
    Api, Client,
    api::PostParams,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

/// How long a Lease holds that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that has not renewed for this long is none any more. It finds out after one more attempt and one more period
/// at the latest, which together must stay below [`DURATION`].
const DEADLINE: Duration = Duration::from_secs(8);
/// How often it is tried.
const PERIOD: Duration = Duration::from_secs(2);

/// A Lease, and who asks for it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub lease: String,
    /// Name of this replica.
    pub identity: String,
}

/// The last renewal by somebody else, and when we saw it first: clocks of others are not to be trusted.
type Observed = (String, Instant);

/// Stands for election until `stop`, and tells `leading` how it ended each time. Gives the Lease back at the end.
pub async fn run(client: Client, candidate: Candidate, leading: watch::Sender<bool>, stop: CancellationToken) {
    let kind = GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease");
    let api: Api<DynamicObject> =
        Api::namespaced_with(client, &candidate.namespace, &ApiResource::from_gvk_with_plural(&kind, "leases"));
    let mut observed: Option<Observed> = None;
    let mut renewed: Option<Instant> = None;
    let mut complained = false;
    while !stop.is_cancelled() {
        // A request that hangs must not keep us leader.
        let attempt = tokio::time::timeout(PERIOD * 2, attempt(&api, &candidate, &mut observed));
        match attempt.await {
            Ok(Ok(true)) => {
                renewed = Some(Instant::now());
                complained = false;
            }
            Ok(Ok(false)) => renewed = None,
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer".to_owned(),
                };
                if !complained {
                    tracing::warn!(target: "leader", lease = candidate.lease, "cannot be asked for: {why}");
                    complained = true;
                }
            }
        }
        let is = renewed.is_some_and(|at| at.elapsed() < DEADLINE);
        leading.send_if_modified(|was| {
            if *was != is {
                tracing::info!(target: "leader", lease = candidate.lease, identity = candidate.identity, leading = is);
            }
            std::mem::replace(was, is) != is
        });
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => {}
        }
    }
    if renewed.is_some() {
        // So that the next one need not wait.
        let _ = tokio::time::timeout(PERIOD, give_back(&api, &candidate)).await;
    }
}

fn spec(candidate: &Candidate, transitions: i64, acquired: Option<Value>) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
    json!({
        "holderIdentity": candidate.identity,
        "leaseDurationSeconds": DURATION.as_secs(),
        "acquireTime": acquired.unwrap_or_else(|| now.clone().into()),
        "renewTime": now,
        "leaseTransitions": transitions,
    })
}

/// Takes, renews or leaves the Lease. Whether we hold it now.
async fn attempt(
    api: &Api<DynamicObject>,
    candidate: &Candidate,
    observed: &mut Option<Observed>,
) -> kube::Result<bool> {
    let Some(mut lease) = api.get_opt(&candidate.lease).await? else {
        let new = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": candidate.lease, "namespace": candidate.namespace},
            "spec": spec(candidate, 0, None),
        });
        let Ok(new) = serde_json::from_value(new) else { return Ok(false) };
        return won(api.create(&PostParams::default(), &new).await);
    };
    let field = |name: &str| lease.data.pointer(&format!("/spec/{name}")).cloned().unwrap_or_default();
    let holder = field("holderIdentity");
    let transitions = field("leaseTransitions").as_i64().unwrap_or_default();
    let holder = holder.as_str().unwrap_or_default();
    let ours = holder == candidate.identity;
    if !ours && !holder.is_empty() {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match observed {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                *observed = Some((version, now));
                now
            }
        };
        let duration = field("leaseDurationSeconds").as_u64().map_or(DURATION, Duration::from_secs);
        if since.elapsed() < duration {
            return Ok(false);
        }
    }
    let acquired = if ours { Some(field("acquireTime")) } else { None };
    lease.data["spec"] = spec(candidate, transitions + i64::from(!ours), acquired);
    // With the version that was read: of two who try, one fails.
    won(api.replace(&candidate.lease, &PostParams::default(), &lease).await)
}

/// Somebody else was quicker: no error.
fn won(result: kube::Result<DynamicObject>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn give_back(api: &Api<DynamicObject>, candidate: &Candidate) -> kube::Result<()> {
    let mut lease = api.get(&candidate.lease).await?;
    let holder = lease.data.pointer("/spec/holderIdentity").and_then(Value::as_str);
    if holder == Some(candidate.identity.as_str()) {
        lease.data["spec"]["holderIdentity"] = "".into();
        api.replace(&candidate.lease, &PostParams::default(), &lease).await?;
    }
    Ok(())
}
