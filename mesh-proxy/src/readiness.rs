//! Whether this proxy may get traffic, and if not, why, in words.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::dns::Names;
use crate::identity;
use crate::xds::ads::AdsStatus;

/// What readiness depends on.
#[derive(Debug)]
pub struct Readiness {
    /// Certificates of the workload, where it has an identity.
    pub identity: Option<watch::Receiver<identity::Status>>,
    /// The control plane and where it is, where there is one.
    pub ads: Option<(String, watch::Receiver<AdsStatus>)>,
    /// The names of the mesh, where the application's DNS is answered.
    pub names: Option<Arc<Names>>,
    /// What is not in force yet.
    pub waiting: Arc<ArcSwap<Vec<String>>>,
    /// It drains.
    pub draining: AtomicBool,
    /// It was ready once: a control plane that goes away later changes nothing.
    pub reached: AtomicBool,
}

impl Readiness {
    /// `Ok`, or why not.
    ///
    /// # Errors
    /// Reasons, one a line.
    pub fn check(&self) -> Result<(), String> {
        if self.draining.load(Relaxed) {
            return Err("draining".to_owned());
        }
        if self.reached.load(Relaxed) {
            return Ok(());
        }
        let mut reasons = Vec::new();
        if let Some(identity) = &self.identity {
            let status = identity.borrow();
            if !status.ready {
                let why = status.error.as_deref().unwrap_or("none has been issued yet");
                reasons.push(format!("certificate: {why}"));
            }
        }
        if let Some((place, ads)) = &self.ads {
            let status = ads.borrow();
            if !status.initial {
                let why = status.error.as_deref().unwrap_or(if status.connected {
                    "waiting for the first clusters and listeners"
                } else {
                    "not connected yet"
                });
                reasons.push(format!("control plane {place}: {why}"));
            }
        }
        if reasons.is_empty() && self.names.as_ref().is_some_and(|n| n.table().is_none()) {
            reasons.push("DNS: waiting for the names of the mesh".to_owned());
        }
        if reasons.is_empty() {
            reasons.extend(self.waiting.load().iter().cloned());
        }
        if reasons.is_empty() {
            self.reached.store(true, Relaxed);
            return Ok(());
        }
        Err(reasons.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_why_and_stays_ready() {
        let (ads, status) = watch::channel(AdsStatus::default());
        let waiting: Arc<ArcSwap<Vec<String>>> = Arc::default();
        let names = Names::new(crate::dns::table::Place::default());
        let readiness = Readiness {
            identity: None,
            ads: Some(("c:15012".to_owned(), status)),
            names: Some(names.clone()),
            waiting: waiting.clone(),
            draining: AtomicBool::new(false),
            reached: AtomicBool::new(false),
        };
        assert_eq!(readiness.check().unwrap_err(), "control plane c:15012: not connected yet");
        ads.send_modify(|s| s.initial = true);
        assert_eq!(readiness.check().unwrap_err(), "DNS: waiting for the names of the mesh");
        names.put(&Default::default());
        waiting.store(Arc::new(vec!["listener l waits".to_owned()]));
        assert_eq!(readiness.check().unwrap_err(), "listener l waits");
        waiting.store(Arc::default());
        assert_eq!(readiness.check(), Ok(()));
        ads.send_modify(|s| s.initial = false);
        assert_eq!(readiness.check(), Ok(()));
        readiness.draining.store(true, Relaxed);
        assert_eq!(readiness.check().unwrap_err(), "draining");
    }
}
