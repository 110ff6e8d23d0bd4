//! Rate limits of a request: when a service is asked, and what comes of its answer.

use std::sync::Arc;

use super::super::authorizer::Caller;
use super::super::filters::descriptors::Facts;
use super::super::filters::global_limit::{GlobalLimit, RouteRules, Settings};
use super::super::filters::rate_limit::RateLimit;
use super::super::local_reply::LocalReply;
use super::super::message::RequestHead;
use super::super::router::{Action, RouteMatch};
use super::{Exchange, forward};

impl Exchange {
    /// Asks a service whether a request may pass. Only what is forwarded is asked about.
    pub(super) async fn limit_globally(
        &mut self,
        filter: &GlobalLimit,
        settings: Option<&Settings>,
        route: &RouteMatch,
        head: &mut RequestHead,
    ) -> Result<(), LocalReply> {
        let session = self.session.clone();
        let random = || session.worker.rng.next_u64();
        let (Some(host), Some(found)) = (route.host(), route.route()) else { return Ok(()) };
        let Action::Forward(action) = &found.action else { return Ok(()) };
        let Some(cluster) = self.chosen.clone().filter(|_| filter.applies(random)) else { return Ok(()) };
        let message = {
            let stats = self.recorder.stats();
            let facts = Facts {
                head,
                client: stats.client.ip(),
                source: &session.worker.shared.node.cluster,
                destination: &cluster,
                metadata: &stats.metadata,
                route: &found.metadata,
            };
            let rules =
                RouteRules { route: &action.limits, host: &host.limits, include_host: action.include_host_limits };
            let descriptors = filter.describe(settings, rules, &facts);
            if descriptors.is_empty() {
                return Ok(());
            }
            session.worker.shared.services.limits.question(filter.domain(settings), &descriptors)
        };
        let snapshot = self.snapshot.clone();
        let alpn = forward::offered(&session);
        let caller = Caller { worker: &session.worker, snapshot: &snapshot, conn: &session.conn, alpn: Some(&alpn) };
        let answer = caller.ask_grpc(&filter.config.service, filter.call(), &message).await;
        let understood = answer.and_then(|message| {
            let answer = session.worker.shared.services.limits.answer(&message)?;
            let told = filter.told(&answer)?;
            if !answer.over {
                answer.mark(head)?;
            }
            Ok((answer, told))
        });
        let (mut answer, told) = match understood {
            Ok(understood) => understood,
            Err(why) => {
                tracing::debug!(domain = %filter.config.domain, error = %why, "no answer of the rate limit service");
                return filter.failed().map_or(Ok(()), Err);
            }
        };
        self.finish.told.extend(told);
        if let Some(metadata) = answer.metadata.take() {
            self.recorder.stats().metadata.insert(filter.namespace().to_owned(), metadata);
        }
        match filter.refusal(&answer, random) {
            Some(reply) => {
                self.finish.limited = Some(filter.headers.clone());
                Err(reply)
            }
            None => Ok(()),
        }
    }

    /// Asks the bucket of this proxy.
    pub(super) fn limit(&mut self, limit: &Arc<RateLimit>) -> Result<(), LocalReply> {
        match limit.check(|| self.session.worker.rng.next_u64()) {
            Some(reply) => {
                self.finish.limited = Some(limit.headers.clone());
                Err(reply)
            }
            None => Ok(()),
        }
    }
}
