//! Load: requests at an even rate, whatever the answers take, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::apps::Journey;
use super::http;

/// What became of requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Answers 200.
    pub good: u64,
    /// The rest by reason, and when each reason was seen first.
    pub bad: BTreeMap<String, (u64, Duration)>,
    /// Good answers by version of catalog.
    pub versions: BTreeMap<String, u64>,
}

impl Tally {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.bad.values().map(|(n, _)| n).sum()
    }
    /// `3 x 503 after 1.2s: upstream ...`.
    pub fn reasons(&self) -> String {
        let all = self.bad.iter().map(|(why, (n, at))| format!("{n} x {why} (first after {:.1}s)", at.as_secs_f64()));
        all.collect::<Vec<_>>().join("; ")
    }
}

/// Load that runs.
#[derive(Debug)]
pub struct Load {
    task: JoinHandle<()>,
    tally: Arc<Mutex<Tally>>,
    running: Arc<()>,
}

impl Load {
    /// Sends `rate` requests a second to the page until stopped.
    pub fn start(page: String, rate: u32) -> Self {
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let running = Arc::new(());
        let (shared, token) = (tally.clone(), running.clone());
        let task = tokio::spawn(async move {
            if rate == 0 {
                return;
            }
            let start = Instant::now();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let url: Arc<str> = format!("{page}/journey").into();
            loop {
                ticks.tick().await;
                let (url, tally, token) = (url.clone(), shared.clone(), token.clone());
                tokio::spawn(async move {
                    let outcome = one(&url).await;
                    let mut tally = tally.lock();
                    match outcome {
                        Ok(version) => {
                            tally.good += 1;
                            *tally.versions.entry(version).or_default() += 1;
                        }
                        Err(why) => tally.bad.entry(why).or_insert((0, start.elapsed())).0 += 1,
                    }
                    drop(token);
                });
            }
        });
        Self { task, tally, running }
    }

    /// So far.
    pub fn tally(&self) -> Tally {
        self.tally.lock().clone()
    }

    /// Counts anew from here.
    pub fn reset(&self) {
        *self.tally.lock() = Tally::default();
    }

    /// Sends no more, waits for what is in flight.
    pub async fn stop(self) -> Tally {
        self.task.abort();
        let _ = self.task.await;
        let end = Instant::now() + Duration::from_secs(11);
        while Arc::strong_count(&self.running) > 1 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.tally.lock().clone()
    }
}

/// One request; which version of catalog answered, or why it failed.
async fn one(url: &str) -> Result<String, String> {
    let answer = http::get(url).await.map_err(|e| format!("{e:#}"))?;
    if answer.status != 200 {
        return Err(format!("{}: {}", answer.status, answer.text().chars().take(200).collect::<String>()));
    }
    let journey: Journey = serde_json::from_slice(&answer.body).map_err(|e| format!("not a journey: {e}"))?;
    Ok(journey.next.as_ref().map_or_else(|| "none".to_owned(), |n| n.version.clone()))
}
