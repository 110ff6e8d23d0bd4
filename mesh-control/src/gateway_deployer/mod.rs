//! Runs the proxies of Gateways: each Gateway of this mesh's classes gets a Deployment, a Service and an account of its
//! own, unless it names a Service that is there.
//!
//! Owns these objects: `desired` says which Gateways get them, `render` what is in them, `ledger` what is to be done. Only
//! this file and `cluster` speak to the API server. Must not know listeners beyond their ports, nor how a status is written.

mod cluster;
mod desired;
mod ledger;
mod made;
mod render;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use kube::Client;
use tokio::{sync::watch, time::Instant};

use self::{
    cluster::{Cluster, Events},
    desired::{Basis, Plan, Revisions, plans},
    ledger::{Ledger, Step},
    made::{Made, MadeKey},
};
use crate::{
    index::Index,
    source::{
        kubernetes::Served,
        object::{Kind, ObjectKey},
    },
};

/// Changes that come closer together than this are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// What failed or was refused is tried again after this: what stood in the way may be gone.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked which tags stand for this revision.
const TAGS: Duration = Duration::from_secs(30);

/// Why objects of Gateways cannot be made.
pub type Refusals = BTreeMap<ObjectKey, String>;

/// Keeps the objects of all Gateways.
pub struct Deployer {
    /// The API server.
    pub client: Client,
    /// What is in force.
    pub index: Arc<ArcSwapOption<Index>>,
    /// Which kinds there are.
    pub served: watch::Receiver<Served>,
    /// Revision of this control plane.
    pub revision: String,
    /// Who hears of what cannot be made.
    pub refused: watch::Sender<Refusals>,
}

impl std::fmt::Debug for Deployer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployer").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Deployer {
    /// Keeps them while leading, until nobody says whether we do. `changed` with the index.
    ///
    /// # Errors
    /// Never; the type is that of a task.
    pub async fn run(
        mut self,
        mut changed: watch::Receiver<u64>,
        mut leading: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        loop {
            if leading.wait_for(|leads| *leads).await.is_err() {
                return Ok(());
            }
            // Without Gateways there is nothing to watch for them.
            let there = self.served.wait_for(|served| served.versions.contains_key(&Kind::Gateway));
            let there = tokio::select! {
                found = there => found.is_ok(),
                ended = leading.changed() => { if ended.is_err() { return Ok(()) }; continue }
            };
            if !there {
                return Ok(());
            }
            if self.lead(&mut changed, &mut leading).await {
                return Ok(());
            }
        }
    }

    /// Keeps them until somebody else leads. Whether all is over.
    async fn lead(&self, changed: &mut watch::Receiver<u64>, leading: &mut watch::Receiver<bool>) -> bool {
        let (cluster, mut events) = (Cluster(self.client.clone()), Events::watch(&self.client));
        let mut ledger = Ledger::default();
        let mut revisions = Revisions { own: self.revision.clone(), tags: BTreeSet::new() };
        let mut tags = tokio::time::interval(TAGS);
        tags.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut due = Some(Instant::now());
        let mut planned: Option<(Basis, Vec<Plan>)> = None;
        while *leading.borrow() {
            // What is there must be known first.
            let turn = due.filter(|_| ledger.is_complete());
            let turn = async move {
                match turn {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let soon = |due: Option<Instant>| {
                let at = Instant::now() + SETTLE;
                Some(due.map_or(at, |due| due.min(at)))
            };
            tokio::select! {
                _ = tags.tick() => {
                    if let Some(now) = cluster.tags(&self.revision).await && now != revisions.tags {
                        revisions.tags = now;
                        due = soon(due);
                    }
                }
                () = turn => {
                    let Some(index) = self.index.load_full() else { due = None; continue };
                    let basis = Basis::of(&index, &revisions);
                    let plans = match planned.take() {
                        Some((before, plans)) if before == basis => plans,
                        _ => plans(&index, &revisions),
                    };
                    let complete = self.reconcile(&cluster, &mut ledger, &index, &plans, leading).await;
                    planned = Some((basis, plans));
                    due = (!complete).then(|| Instant::now() + AGAIN);
                }
                () = events.next(&mut ledger) => due = soon(due),
                ended = changed.changed() => {
                    if ended.is_err() {
                        return true;
                    }
                    let now = self.index.load_full().map(|index| Basis::of(&index, &revisions));
                    if now.as_ref() != planned.as_ref().map(|(basis, _)| basis) {
                        due = soon(due);
                    }
                }
                ended = leading.changed() => if ended.is_err() { return true },
            }
        }
        // Whoever leads now has words of its own.
        self.refused.send_replace(Refusals::new());
        false
    }

    /// Makes what is not as it is to be. Whether nothing is left.
    async fn reconcile(
        &self,
        cluster: &Cluster,
        ledger: &mut Ledger,
        index: &Index,
        plans: &[Plan],
        leading: &watch::Receiver<bool>,
    ) -> bool {
        let classes = self.served.borrow().versions.contains_key(&Kind::GatewayClass);
        let mut complete = !classes || cluster.ensure_class(index).await;
        let mut refusals = Refusals::new();
        for plan in plans {
            // Each step asks the API server, and another may lead meanwhile.
            if !*leading.borrow() {
                return true;
            }
            match self.keep(cluster, ledger, plan).await {
                Ok(()) => {}
                Err(Failure::Refused(why)) => {
                    complete = false;
                    refusals.insert(plan.gateway.clone(), why);
                }
                Err(Failure::Failed(why)) => {
                    complete = false;
                    tracing::warn!(target: "gateway", gateway = %plan.gateway, "cannot be deployed yet: {why}");
                }
            }
        }
        self.refused.send_if_modified(|told| {
            for (gateway, why) in refusals.iter().filter(|(g, why)| told.get(*g) != Some(*why)) {
                tracing::warn!(target: "gateway", %gateway, "is not deployed: {why}");
            }
            let other = *told != refusals;
            *told = refusals;
            other
        });
        complete
    }

    /// The objects of one Gateway. Nothing is made of it when one of them is somebody else's.
    async fn keep(&self, cluster: &Cluster, ledger: &mut Ledger, plan: &Plan) -> Result<(), Failure> {
        let objects = plan.objects.as_ref().map_err(|why| Failure::Refused(why.clone()))?;
        let key = |made: &Made| MadeKey {
            namespace: plan.gateway.namespace.to_string(),
            kind: made.kind,
            name: made.name.clone(),
        };
        let mut due = Vec::new();
        for made in objects {
            let key = key(made);
            let step = match ledger.judge(&key, made, &plan.uid, None) {
                Step::Ask => {
                    let there = cluster.get(&key).await?;
                    ledger.judge(&key, made, &plan.uid, Some(there.as_ref()))
                }
                step => step,
            };
            match step {
                Step::Apply => due.push((key, made)),
                Step::Refuse(why) => return Err(Failure::Refused(why)),
                Step::Keep | Step::Ask => {}
            }
        }
        for (key, made) in due {
            tracing::debug!(target: "gateway", gateway = %plan.gateway, object = %key, "applied");
            let now = cluster.apply(&key, &made.value).await?;
            ledger.note(key, made.value.clone(), now);
        }
        let wanted = objects.iter().map(key).collect();
        for key in ledger.obsolete(&plan.uid, &wanted) {
            cluster.delete(&key).await?;
            ledger.lose(&key);
        }
        Ok(())
    }
}

/// Why an object is not as it is to be.
#[derive(Debug)]
enum Failure {
    /// It cannot be, until somebody changes something.
    Refused(String),
    /// The API server could not be asked.
    Failed(String),
}
