//! Access logs on their way to collectors: a bounded queue a collector that workers put records into, and a task each of
//! the control thread that sends batches, gRPC access log service or OTLP. Records are in wire form when they come here.
//!
//! No request waits: a queue that is full drops what comes, and counts it. A collector that is away is tried again at
//! growing intervals.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use mesh_api::model::{LoggedHeaders, Name};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::span_export::{Dial, connect};
use crate::config::snapshot::Node;
use crate::http::stats::ExchangeStats;

/// Most bytes that wait for one collector.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// Most records that wait for one collector.
const MAX_WAITING: usize = 16_384;
/// So many bytes are sent without waiting for more, as in Envoy.
const BATCH_BYTES: usize = 16 << 10;
/// Most bytes a batch: collectors take messages of 4 MiB.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// A record waits this long at most before it is sent.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a connection, and a batch, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pauses after failures: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A batch is tried so often.
const TRIES: u32 = 5;

/// What an export speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `StreamAccessLogs` with HTTP entries.
    Http,
    /// `StreamAccessLogs` with TCP entries.
    Tcp,
    /// OTLP over gRPC.
    Otlp,
}

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// What is spoken.
    pub kind: Kind,
    /// Cluster.
    pub cluster: Name,
    /// Name of the log.
    pub log_name: Name,
}

/// The protocols that collectors speak.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// An OTLP record in wire form; `attributes` is an object.
    fn record(&self, stats: &ExchangeStats, body: Option<String>, attributes: Value) -> Vec<u8>;
    /// Sends OTLP records; an error says that the collector did not take them.
    fn export(
        &self,
        channel: Channel,
        node: &Node,
        log_name: &Name,
        records: &[Vec<u8>],
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
    /// One exchange as the access log service has it, in wire form.
    fn entry(&self, stats: &ExchangeStats, headers: &LoggedHeaders, tcp: bool) -> Vec<u8>;
    /// Sends batches as one stream; ends when there are no more, or the collector ends it.
    fn stream(
        &self,
        channel: Channel,
        node: &Node,
        log_name: &Name,
        tcp: bool,
        batches: mpsc::Receiver<Vec<Vec<u8>>>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
}

/// Queues by target.
#[derive(Debug)]
pub struct Exports {
    queues: Mutex<HashMap<Target, Weak<Queue>>>,
    new: mpsc::UnboundedSender<Arc<Queue>>,
    waiting_for_start: Mutex<Option<mpsc::UnboundedReceiver<Arc<Queue>>>>,
    /// Writes entries.
    pub codec: Arc<dyn Codec>,
    counters: Arc<Counters>,
}

/// What became of records.
#[derive(Debug, Default)]
pub struct Counters {
    /// Handed to a collector.
    pub sent: AtomicU64,
    /// Lost: the queue was full, or the collector did not take them.
    pub dropped: AtomicU64,
}

/// Records for one collector.
#[derive(Debug)]
pub struct Queue {
    target: Target,
    waiting: Mutex<Waiting>,
    wake: Notify,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Waiting {
    records: Vec<Vec<u8>>,
    bytes: usize,
    /// Taken by the task and not sent yet.
    in_hand: usize,
}

impl Exports {
    /// Nothing waits; nothing is sent before [`Exports::run`].
    pub fn new(codec: Arc<dyn Codec>) -> Arc<Self> {
        let (new, waiting) = mpsc::unbounded_channel();
        let waiting_for_start = Mutex::new(Some(waiting));
        Arc::new(Self { queues: Mutex::default(), new, waiting_for_start, codec, counters: Arc::default() })
    }

    /// The queue of a target: one, however many listeners log there.
    pub fn queue(&self, target: Target) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        if let Some(known) = queues.get(&target).and_then(Weak::upgrade) {
            return known;
        }
        queues.retain(|_, weak| weak.strong_count() > 0);
        let counters = self.counters.clone();
        let queue =
            Arc::new(Queue { target: target.clone(), waiting: Mutex::default(), wake: Notify::new(), counters });
        queues.insert(target, Arc::downgrade(&queue));
        // Without a receiver the process is about to end.
        let _ = self.new.send(queue.clone());
        queue
    }

    /// What became of records.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sends what comes, until dropped.
    pub async fn run(self: Arc<Self>, dial: Arc<dyn Dial>, node: Arc<Node>) {
        let Some(mut new) = self.waiting_for_start.lock().take() else { return };
        while let Some(queue) = new.recv().await {
            let (dial, node, exports) = (dial.clone(), node.clone(), self.clone());
            tokio::spawn(Sender { queue, dial, node, exports, stream: None, channel: None }.run());
        }
    }

    /// Forgets a queue that no listener logs to any more; `false`: one does.
    fn retire(&self, queue: &Arc<Queue>) -> bool {
        // Whoever wants it finds it under this lock, so nobody can while it goes.
        let mut queues = self.queues.lock();
        let unused = Arc::strong_count(queue) == 1 && !queue.waits();
        if unused {
            queues.remove(&queue.target);
        }
        unused
    }

    /// Waits until everything is sent, `limit` at most.
    pub async fn flush(&self, limit: Duration) {
        let queues: Vec<Arc<Queue>> = self.queues.lock().values().filter_map(Weak::upgrade).collect();
        let end = Instant::now() + limit;
        while Instant::now() < end && queues.iter().any(|q| q.waits()) {
            queues.iter().for_each(|q| q.wake.notify_one());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was handed to a stream is on its way.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Queue {
    /// Adds a record, unless there is no room.
    pub fn push(&self, record: Vec<u8>) {
        let mut waiting = self.waiting.lock();
        if waiting.records.len() >= MAX_WAITING || waiting.bytes + record.len() > MAX_WAITING_BYTES {
            self.counters.dropped.fetch_add(1, Relaxed);
            return;
        }
        let before = waiting.bytes;
        waiting.bytes += record.len();
        waiting.records.push(record);
        if before < BATCH_BYTES && waiting.bytes >= BATCH_BYTES {
            drop(waiting);
            self.wake.notify_one();
        }
    }

    pub(super) fn take(&self) -> Vec<Vec<u8>> {
        let mut waiting = self.waiting.lock();
        let mut bytes = 0;
        let fits = waiting.records.iter().take_while(|r| {
            let first = bytes == 0;
            bytes += r.len();
            first || bytes <= MAX_BATCH_BYTES
        });
        let n = fits.count();
        let batch: Vec<Vec<u8>> = waiting.records.drain(..n).collect();
        waiting.bytes -= batch.iter().map(Vec::len).sum::<usize>();
        waiting.in_hand = batch.len();
        batch
    }

    fn waits(&self) -> bool {
        let waiting = self.waiting.lock();
        !waiting.records.is_empty() || waiting.in_hand > 0
    }

    fn done(&self, count: &AtomicU64, n: usize) {
        self.waiting.lock().in_hand = 0;
        count.fetch_add(u64::try_from(n).unwrap_or_default(), Relaxed);
    }
}

/// The task of one queue.
struct Sender {
    queue: Arc<Queue>,
    dial: Arc<dyn Dial>,
    node: Arc<Node>,
    exports: Arc<Exports>,
    /// The stream in use, and its end.
    stream: Option<(mpsc::Sender<Vec<Vec<u8>>>, JoinHandle<Result<(), String>>)>,
    channel: Option<Channel>,
}

impl Sender {
    async fn run(mut self) {
        let mut pause = PAUSES.0;
        loop {
            let _ = tokio::time::timeout(INTERVAL, self.queue.wake.notified()).await;
            loop {
                let batch = self.queue.take();
                if batch.is_empty() {
                    if self.exports.retire(&self.queue) {
                        return;
                    }
                    break;
                }
                self.deliver(batch, &mut pause).await;
            }
        }
    }

    /// Tries until it is sent or hopeless.
    async fn deliver(&mut self, batch: Vec<Vec<u8>>, pause: &mut Duration) {
        for attempt in 1..=TRIES {
            let sent = match tokio::time::timeout(PATIENCE, self.send(&batch)).await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("it took longer than {PATIENCE:?}")),
            };
            let Err(error) = sent else {
                *pause = PAUSES.0;
                return self.queue.done(&self.queue.counters.sent, batch.len());
            };
            let (target, n) = (&self.queue.target, batch.len());
            tracing::debug!(target: "access_log", "try {attempt} to send {n} records to {}: {error:#}", target.cluster);
            (self.stream, self.channel) = (None, None);
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).min(PAUSES.1);
        }
        tracing::warn!(target: "access_log", "{} records for {} are lost", batch.len(), self.queue.target.cluster);
        self.queue.done(&self.queue.counters.dropped, batch.len());
    }

    async fn send(&mut self, batch: &[Vec<u8>]) -> anyhow::Result<()> {
        let target = self.queue.target.clone();
        if target.kind == Kind::Otlp {
            let channel = self.channel().await?;
            let sent = self.exports.codec.export(channel, &self.node, &target.log_name, batch).await;
            return sent.map_err(anyhow::Error::msg);
        }
        if self.stream.as_ref().is_some_and(|(_, end)| end.is_finished()) {
            self.stream = None;
            self.channel = None;
        }
        if self.stream.is_none() {
            let channel = self.channel().await?;
            // One batch at most is on its way when the collector ends the stream.
            let (batches, receiver) = mpsc::channel(1);
            let streaming =
                self.exports.codec.stream(channel, &self.node, &target.log_name, target.kind == Kind::Tcp, receiver);
            self.stream = Some((batches, tokio::spawn(streaming)));
        }
        let (batches, _) = self.stream.as_ref().context("no stream")?;
        batches.send(batch.to_vec()).await.context("the collector ended the stream")
    }

    async fn channel(&mut self) -> anyhow::Result<Channel> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let cluster = &self.queue.target.cluster;
        let channel = connect(self.dial.clone(), cluster.clone(), cluster).await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io;

    use super::super::span_export::Stream;
    use super::*;

    /// Keeps what it is given; the first streams break.
    #[derive(Debug, Default)]
    pub struct Collector {
        got: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Codec for Collector {
        fn record(&self, _: &ExchangeStats, body: Option<String>, attributes: Value) -> Vec<u8> {
            format!("{body:?} {attributes}").into_bytes()
        }
        fn export(
            &self,
            _: Channel,
            _: &Node,
            _: &Name,
            records: &[Vec<u8>],
        ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
            self.got.lock().extend_from_slice(records);
            Box::pin(async { Ok(()) })
        }
        fn entry(&self, stats: &ExchangeStats, _: &LoggedHeaders, tcp: bool) -> Vec<u8> {
            format!("{} {tcp}", stats.status).into_bytes()
        }
        fn stream(
            &self,
            _: Channel,
            _: &Node,
            _: &Name,
            _: bool,
            mut batches: mpsc::Receiver<Vec<Vec<u8>>>,
        ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
            let got = self.got.clone();
            Box::pin(async move {
                while let Some(batch) = batches.recv().await {
                    got.lock().extend(batch);
                }
                Ok(())
            })
        }
    }

    /// Refuses some connections.
    struct Flaky {
        failures: AtomicU64,
    }

    impl Dial for Flaky {
        fn dial(&self, _: Name, _: bool) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> {
            let fails = self.failures.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
            Box::pin(async move {
                if fails {
                    return Err(io::Error::other("refused"));
                }
                let (ours, mut theirs) = tokio::io::duplex(1 << 16);
                tokio::spawn(async move { tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await });
                Ok(Box::new(ours) as Box<dyn Stream>)
            })
        }
    }

    fn target(cluster: &str) -> Target {
        Target { kind: Kind::Http, cluster: cluster.into(), log_name: "log".into() }
    }

    fn started(failures: u64) -> (Arc<Exports>, Arc<Mutex<Vec<Vec<u8>>>>) {
        let collector = Collector::default();
        let got = collector.got.clone();
        let exports = Exports::new(Arc::new(collector));
        let dial = Arc::new(Flaky { failures: AtomicU64::new(failures) });
        tokio::spawn(exports.clone().run(dial, Arc::default()));
        (exports, got)
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_was_away_gets_what_waited() {
        let (exports, got) = started(3);
        let queue = exports.queue(target("c"));
        assert!(Arc::ptr_eq(&queue, &exports.queue(target("c"))));
        queue.push(b"one".to_vec());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(got.lock().is_empty(), "refused so far");
        queue.push(b"two".to_vec());
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(*got.lock(), [b"one", b"two"]);
        let counters = exports.counters();
        assert_eq!((counters.sent.load(Relaxed), counters.dropped.load(Relaxed)), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_no_room_is_counted_and_costs_no_memory() {
        let (exports, got) = started(u64::MAX);
        let queue = exports.queue(target("gone"));
        for _ in 0..100 {
            queue.push(vec![0; MAX_WAITING_BYTES / 10]);
        }
        assert!(queue.waiting.lock().bytes <= MAX_WAITING_BYTES);
        assert_eq!(exports.counters().dropped.load(Relaxed), 90);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(got.lock().is_empty() && exports.counters().dropped.load(Relaxed) > 95, "given up at last");
    }

    #[tokio::test(start_paused = true)]
    async fn flushing_waits_for_what_is_sent_and_not_for_ever() {
        let (exports, got) = started(0);
        exports.queue(target("c")).push(b"last".to_vec());
        exports.flush(Duration::from_secs(1)).await;
        assert_eq!(*got.lock(), [b"last"]);
        let (exports, _) = started(u64::MAX);
        exports.queue(target("c")).push(b"last".to_vec());
        exports.flush(Duration::from_secs(1)).await;
    }

    #[test]
    fn batches_are_bounded() {
        let exports = Exports::new(Arc::new(Collector::default()));
        let queue = exports.queue(target("c"));
        for _ in 0..3 {
            queue.push(vec![0; MAX_BATCH_BYTES / 2]);
        }
        queue.push(vec![0; 2 * MAX_BATCH_BYTES]);
        let sizes: Vec<usize> = std::iter::from_fn(|| Some(queue.take().len()).filter(|n| *n > 0)).collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert_eq!(queue.waiting.lock().bytes, 0);
    }
}
