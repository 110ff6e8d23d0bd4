//! Fault injection: delays and aborts of a share of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use mesh_api::model::{self, FaultAbort};

use crate::config::ConfigError;
use crate::http::local_reply::{LocalReply, Reason};
use crate::http::matchers::HeaderMatch;
use crate::http::message::RequestHead;

/// Compiled faults.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(u32, Duration)>,
    abort: Option<(u32, FaultAbort)>,
    max_active: Option<u32>,
    headers: Box<[HeaderMatch]>,
    active: AtomicU32,
}

/// A fault that is being done.
#[derive(Debug)]
pub struct Active<'f> {
    fault: &'f Fault,
    /// Wait so long.
    pub delay: Option<Duration>,
    /// Then answer this.
    pub abort: Option<FaultAbort>,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.fault.active.fetch_sub(1, Relaxed);
    }
}

impl Fault {
    /// Compiles faults.
    ///
    /// # Errors
    /// A header matcher that is not valid.
    pub fn compile(f: &model::FaultFilter) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self {
            delay: f.delay.map(|(share, length)| (share.0, length)),
            abort: f.abort.map(|(share, abort)| (share.0, abort)),
            max_active: f.max_active,
            headers: HeaderMatch::compile_all(&f.headers)?,
            active: AtomicU32::new(0),
        }))
    }

    /// What is to be done to a request, if anything. `random` yields uniform numbers.
    pub fn choose(&self, head: &RequestHead, mut random: impl FnMut() -> u64) -> Option<Active<'_>> {
        if !self.headers.iter().all(|h| h.matches(head)) {
            return None;
        }
        let mut hit = |share: u32| random() % 1_000_000 < u64::from(share);
        let delay = self.delay.filter(|(share, _)| hit(*share)).map(|(_, length)| length);
        let abort = self.abort.filter(|(share, _)| hit(*share)).map(|(_, abort)| abort);
        if delay.is_none() && abort.is_none() {
            return None;
        }
        let before = self.active.fetch_add(1, Relaxed);
        let active = Active { fault: self, delay, abort };
        // Dropping it takes the count back.
        if self.max_active.is_some_and(|most| before >= most) { None } else { Some(active) }
    }
}

/// The answer to an aborted request.
pub fn reply(abort: FaultAbort) -> LocalReply {
    match abort {
        FaultAbort::Http(status) => Reason::FaultAbort { status }.into(),
        FaultAbort::Grpc(code) => {
            let mut reply = LocalReply::from(Reason::FaultAbort { status: 200 });
            reply.grpc_status = Some(code);
            reply
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::model::Fraction;

    use super::*;
    use crate::http::testing;

    #[test]
    fn a_limit_of_active_faults_is_kept_and_given_back() {
        let fault = Fault::compile(&model::FaultFilter {
            abort: Some((Fraction::ALWAYS, FaultAbort::Http(503))),
            max_active: Some(1),
            ..Default::default()
        })
        .unwrap();
        let head = testing::get("a", "/");
        let first = fault.choose(&head, || 0);
        assert!(first.is_some() && fault.choose(&head, || 0).is_none());
        drop(first);
        assert!(fault.choose(&head, || 0).is_some());
    }

    #[test]
    fn shares_decide() {
        let fault = Fault::compile(&model::FaultFilter {
            delay: Some((Fraction::from_percent(10.0), Duration::from_secs(1))),
            ..Default::default()
        })
        .unwrap();
        let head = testing::get("a", "/");
        assert!(fault.choose(&head, || 99_999).is_some());
        assert!(fault.choose(&head, || 100_000).is_none());
    }
}
