//! What a worker thread has to itself: upstream pools and random numbers. The threads are made in `workers`.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    config::SharedConfig,
    drain,
    http::headers::{LastDate, LastNumber},
    upstream::pool::Pools,
};

/// What everything on the data path of one worker thread shares; handed around as `Rc<Worker>`, never across threads.
#[derive(Debug)]
pub struct Worker {
    /// 0 to N-1.
    pub id: usize,
    /// Process-wide state.
    pub shared: Arc<SharedConfig>,
    /// Upstream connections of this worker.
    pub pools: Pools,
    /// Random numbers of this worker.
    pub rng: Rng,
    /// Drain of the whole process; a connection watches its filter chain's instead, which follows this one.
    pub drain: drain::Watch,
    /// Values of `date`.
    pub date: LastDate,
    /// Values of `x-envoy-upstream-service-time`.
    pub service_time: LastNumber,
    /// Values of `x-envoy-expected-rq-timeout-ms`.
    pub expected_timeout: LastNumber,
}

impl Worker {
    /// A context for this thread.
    pub fn new(id: usize, shared: Arc<SharedConfig>, seed: u64, drain: drain::Watch) -> Rc<Self> {
        Rc::new(Self {
            id,
            pools: Pools::new(),
            rng: Rng::seeded(seed),
            drain,
            shared,
            date: LastDate::default(),
            service_time: LastNumber::default(),
            expected_timeout: LastNumber::default(),
        })
    }
}

/// A small random generator behind a cell; seeded, so that tests repeat.
#[derive(Debug)]
pub struct Rng(RefCell<SmallRng>);

impl Rng {
    /// From a seed.
    pub fn seeded(seed: u64) -> Self {
        Self(RefCell::new(SmallRng::seed_from_u64(seed)))
    }
    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        self.0.borrow_mut().random()
    }
    /// Uniform in `0..n`; 0 when `n` is 0.
    pub fn below(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.0.borrow_mut().random_range(0..n) }
    }
    /// Uniform in `0.0..1.0`.
    pub fn unit(&self) -> f64 {
        self.0.borrow_mut().random()
    }
}
