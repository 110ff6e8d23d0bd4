//! When changes are pushed: at once after quiet, in bundles under a stream of events.
//!
//! Owns the rule, as a value without tasks or clocks of its own. Must not know what changed.

use std::time::Duration;

use tokio::time::Instant;

/// After quiet a push follows the first event by this; what belongs together usually arrives within it.
pub const QUICK: Duration = Duration::from_millis(10);
/// Under a stream of events: this long no event.
pub const QUIET: Duration = Duration::from_millis(100);
/// Under a stream of events: a push at least this often.
pub const CAP: Duration = Duration::from_millis(500);

/// State of the rule.
#[derive(Debug, Default)]
pub struct Debounce {
    first: Option<Instant>,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Debounce {
    /// An event; returns when the push is due.
    pub fn event(&mut self, now: Instant) -> Instant {
        let quiet = self.last.is_none_or(|last| now.duration_since(last) >= QUIET);
        self.last = Some(now);
        let first = *self.first.get_or_insert(now);
        let due = match self.due {
            None if quiet => now + QUICK,
            // The first push after quiet is not put off by what comes meanwhile.
            Some(due) if due <= first + QUICK => due,
            _ => (now + QUIET).min(first + CAP),
        };
        self.due = Some(due);
        due
    }

    /// When the push is due; `None`: nothing waits.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The push happens; returns when the first of its events came.
    pub fn push(&mut self) -> Option<Instant> {
        self.due = None;
        self.first.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn one_event_after_quiet_is_pushed_soon() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        assert_eq!(d.event(t), t + QUICK);
        assert_eq!(d.event(t + 6 * MS), t + QUICK, "not put off");
        assert_eq!((d.push(), d.due()), (Some(t), None));
        assert_eq!(d.event(t + 200 * MS), t + 210 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_events_is_bundled() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        d.event(t);
        d.push();
        // An event each 20 ms from now on: only the cap ends the bundle.
        let first = t + 20 * MS;
        for i in 0..24 {
            let now = first + i * 20 * MS;
            assert_eq!(d.event(now), (now + QUIET).min(first + CAP));
        }
        assert_eq!(d.due(), Some(first + CAP));
        assert_eq!(d.push(), Some(first));
        // The stream ends: the rest follows a quiet period later.
        let last = first + CAP;
        assert_eq!(d.event(last), last + QUIET);
    }
}
