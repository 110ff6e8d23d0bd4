//! Draining: how long-lived work is told to end, and how the one who told it knows that it has ended.
//!
//! A [`Trigger`] belongs to whoever owns the thing that goes away (a filter chain, the process); every connection
//! holds a [`Watch`]. Phases only move forward: running, draining (finish what is in flight, take nothing new: GOAWAY,
//! `connection: close`), closed (drop everything now). Knows neither connections nor protocols.

use std::sync::Arc;

use tokio::sync::watch;

/// How far a drain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Business as usual.
    Running,
    /// Finish what is in flight, begin nothing new.
    Draining,
    /// End now.
    Closed,
}

/// Moves the phase forward. Dropping it without a word closes nothing.
#[derive(Debug, Clone)]
pub struct Trigger {
    phase: Arc<watch::Sender<Phase>>,
}

impl Trigger {
    /// In phase [`Phase::Running`].
    pub fn new() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)) }
    }
    /// A view for one user; as long as it lives, [`Trigger::idle`] waits.
    pub fn watch(&self) -> Watch {
        Watch { phase: self.phase.subscribe() }
    }
    /// Asks all users to finish.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }
    /// Asks all users to end at once.
    pub fn close(&self) {
        self.advance(Phase::Closed);
    }
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|p| {
            let forward = *p < to;
            if forward {
                *p = to;
            }
            forward
        });
    }
    /// Makes every [`Watch::changed`] return, without moving the phase: something else about the work has changed.
    pub fn nudge(&self) {
        self.phase.send_modify(|_| {});
    }
    /// Where we are.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }
    /// Whether both move the same phase.
    pub fn same(&self, other: &Trigger) -> bool {
        Arc::ptr_eq(&self.phase, &other.phase)
    }
    /// Watches that are alive.
    pub fn users(&self) -> usize {
        self.phase.receiver_count()
    }
    /// Resolves when no watch is alive.
    pub async fn idle(&self) {
        self.phase.closed().await;
    }
}

impl Default for Trigger {
    fn default() -> Self {
        Self::new()
    }
}

/// What a connection, or whoever must end in time, holds.
#[derive(Debug, Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
}

impl Watch {
    /// A watch whose trigger never fires, for tests and for work that nobody drains.
    pub fn never() -> Self {
        Trigger::new().watch()
    }
    /// Whether draining has begun. Cheap enough to ask for each request.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }
    /// Resolves when draining begins (or has begun); never when the trigger is gone before that.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }
    /// Resolves when the time is over.
    pub async fn closed(&self) {
        self.reached(Phase::Closed).await;
    }
    /// The next phase, or the same one after a [`Trigger::nudge`]. Never returns when the trigger is gone.
    pub async fn changed(&mut self) -> Phase {
        if self.phase.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.phase.borrow_and_update()
    }
    async fn reached(&self, phase: Phase) {
        let mut rx = self.phase.clone();
        if rx.wait_for(|p| *p >= phase).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn phases_move_forward_only_and_idle_waits_for_all_watches() {
        let t = Trigger::new();
        let (a, b) = (t.watch(), t.watch());
        assert!(!a.is_draining());
        t.drain();
        a.draining().await;
        assert!(b.is_draining());
        t.close();
        t.drain();
        assert_eq!(t.phase(), Phase::Closed);
        b.closed().await;
        drop(a);
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(1), t.idle()).await;
        assert!(waiting.is_err());
        drop(b);
        t.idle().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_trigger_does_not_end_anything() {
        let w = Watch::never();
        assert!(tokio::time::timeout(std::time::Duration::from_secs(9), w.draining()).await.is_err());
    }
}
