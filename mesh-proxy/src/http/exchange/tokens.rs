//! Tokens of a request: checked by the filter, and the keys that it misses fetched through a cluster, one fetch at a
//! time for all who wait.

use std::{rc::Rc, sync::Arc};

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use mesh_api::model::Name;
use tokio::time::Instant;

use super::{
    super::{
        filters::jwt::{
            Filter, Now, Stop,
            keys::KeySet,
            remote::{MAX_KEY_SET, Remote},
            status::Status,
        },
        local_reply::LocalReply,
        message::{Body, RequestHead},
    },
    Exchange, Session,
};
use crate::{
    config::Snapshot,
    upstream::{LbContext, pool::SendOptions},
};

impl Exchange {
    /// Lets a request pass whose tokens are as the filter (or the requirement that its route names) wants them.
    pub(super) async fn authenticate(
        &mut self,
        filter: &Filter,
        named: Option<&Name>,
        head: &mut RequestHead,
    ) -> Result<(), LocalReply> {
        filter.sanitize(head);
        let random = self.random();
        let Some(requirement) = filter.requirement(head, &self.session.conn, random, named)? else { return Ok(()) };
        let mut asked: Vec<Arc<Remote>> = Vec::new();
        let passed = loop {
            match filter.check(requirement, head, Now::read()) {
                Ok(passed) => break passed,
                Err(Stop::Refused(status)) => return Err(filter.refusal(status, head)),
                // Once a request: keys that are old at once, or a server that takes longer than its failure counts, would
                // be asked for ever.
                Err(Stop::Fetch(remote)) if asked.iter().any(|a| Arc::ptr_eq(a, &remote)) => {
                    return Err(filter.refusal(Status::FetchFailed, head));
                }
                // Afterwards there are keys, or it is known that there are none.
                Err(Stop::Fetch(remote)) => {
                    Box::pin(fetch(&self.session, &self.snapshot, &remote)).await;
                    asked.push(remote);
                }
            }
        };
        for remote in &passed.renew {
            let (session, snapshot, remote) = (self.session.clone(), self.snapshot.clone(), remote.clone());
            tokio::task::spawn_local(async move { fetch(&session, &snapshot, &remote).await });
        }
        self.reroute |= filter.apply(passed, head, &mut self.recorder.stats().metadata);
        Ok(())
    }
}

async fn fetch(session: &Rc<Session>, snapshot: &Arc<Snapshot>, remote: &Remote) {
    let _only_one = remote.fetching.lock().await;
    if !remote.wants_fetch(Instant::now()) {
        return;
    }
    let fetched = match tokio::time::timeout(remote.timeout, get(session, snapshot, remote)).await {
        Ok(fetched) => fetched.and_then(|bytes| KeySet::parse(&bytes)),
        Err(_) => Err("no answer in time".to_owned()),
    };
    remote.settle(fetched, Instant::now());
}

/// One request; redirects are not followed.
async fn get(session: &Rc<Session>, snapshot: &Arc<Snapshot>, remote: &Remote) -> Result<bytes::Bytes, String> {
    let cluster = snapshot.cluster(&remote.cluster).ok_or_else(|| format!("no cluster {:?}", remote.cluster))?;
    let endpoint = cluster.pick(&LbContext::default(), &session.worker.rng);
    let endpoint = endpoint.map_err(|e| format!("cluster {:?}: {e:?}", remote.cluster))?;
    let mut head = RequestHead::new(Method::GET, remote.authority.clone(), remote.target.clone());
    head.headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    let options = SendOptions::default();
    let sent = session.worker.pools.send(cluster, &endpoint, head, Body::Empty, &options).await;
    let (head, body) = sent.map_err(|e| e.to_string())?;
    if head.status != StatusCode::OK {
        return Err(format!("status {}", head.status));
    }
    let body = Limited::new(body, MAX_KEY_SET).collect().await.map_err(|e| e.to_string())?;
    Ok(body.to_bytes())
}
