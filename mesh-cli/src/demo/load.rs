//! Load: requests at an even rate, and what became of them. A machine that cannot keep up gets fewer, not a queue that
//! grows: what is waited for is the mesh, not the queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::apps::Journey;
use super::http;

/// Requests in flight at once. At the rates here that many wait only where answers take a sixth of a second.
const IN_FLIGHT: u32 = 32;

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
    turns: Arc<Semaphore>,
}

impl Load {
    /// Sends `rate` requests a second to the page until stopped.
    pub fn start(page: String, rate: u32) -> Self {
        let tally: Arc<Mutex<Tally>> = Arc::default();
        let turns = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        let (shared, queue) = (tally.clone(), turns.clone());
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
                let Ok(turn) = queue.clone().acquire_owned().await else { return };
                let (url, tally) = (url.clone(), shared.clone());
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
                    drop(turn);
                });
            }
        });
        Self { task, tally, turns }
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
        // Longer than any request may take.
        let _ = tokio::time::timeout(Duration::from_secs(11), self.turns.acquire_many(IN_FLIGHT)).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mesh_that_does_not_answer_is_not_asked_ever_more() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let load = Load::start(format!("http://{}", listener.local_addr().unwrap()), 5000);
        let mut asked = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await {
            asked.push(stream);
        }
        assert_eq!(u32::try_from(asked.len()).unwrap(), IN_FLIGHT);
        // Now they fail, and others come.
        drop(asked);
        listener.accept().await.unwrap();
        assert!(load.tally().failed() > 0);
    }
}
