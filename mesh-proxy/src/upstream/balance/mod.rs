//! Choosing an endpoint: what a choice may depend on, and one [`Picker`] per policy, built anew whenever membership or
//! health changes so that a choice itself takes no lock. Knows no priorities or localities (see `table`), no IO.

mod hash;
mod least_request;
mod round_robin;
pub(super) mod table;
pub(super) mod zone;

use std::{net::SocketAddr, sync::Arc};

use mesh_api::model::{Cluster, LbPolicy, SlowStart};
use tokio::time::Instant;

use self::{
    hash::{Maglev, Ring},
    least_request::LeastRequest,
    round_robin::RoundRobin,
};
use super::Endpoint;

/// Random numbers; seeded in tests.
pub trait Random {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
    /// Uniform in `0..n`; 0 when `n` is 0. (Multiply-shift: the bias is below `n` / 2^64.)
    fn below(&self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
    /// Uniform in `0.0..1.0`.
    fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Random for crate::runtime::Rng {
    fn next_u64(&self) -> u64 {
        crate::runtime::Rng::next_u64(self)
    }
}

/// Random numbers of the thread, for what happens too rarely to be handed a worker's.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadRandom;

impl Random for ThreadRandom {
    fn next_u64(&self) -> u64 {
        rand::random()
    }
}

/// Uniform in `0..n` as an index.
pub(super) fn index(random: &impl Random, n: usize) -> usize {
    usize::try_from(random.below(n as u64)).unwrap_or(0)
}

/// What a choice may depend on. The default is a first try without a hash.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// For consistent balancers; a random one when there is none.
    pub hash: Option<u64>,
    /// Endpoints of earlier tries that are to be avoided (`previous_hosts`).
    pub tried: &'a [Arc<Endpoint>],
    /// How often another endpoint is drawn when a tried one comes up; 0 counts as 1.
    pub selection_attempts: u32,
    /// Priorities of earlier tries are avoided too (`previous_priorities`), forgotten again after this many tries.
    pub avoid_priorities: Option<u32>,
    /// Number of the try, 0 first: consistent balancers walk on.
    pub attempt: u32,
    /// Original destination of the connection (or what `x-envoy-original-dst-host` says).
    pub original_dst: Option<SocketAddr>,
    /// This endpoint if it is there and takes requests (stateful session).
    pub override_host: Option<SocketAddr>,
}

/// What a [`Picker`] is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Hash of the request, or a random one.
    pub(super) hash: u64,
    /// Number of the draw, over retries and redraws.
    pub(super) attempt: u32,
}

/// A set of endpoints and the way one of them is chosen.
#[derive(Debug)]
pub(super) struct Picker {
    endpoints: Vec<Arc<Endpoint>>,
    kind: Kind,
    slow_start: Option<SlowStart>,
    /// Until then some endpoint may still be warming up.
    warm_until: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    RoundRobin(RoundRobin),
    LeastRequest(LeastRequest),
    Random,
    Ring(Ring),
    Maglev(Maglev),
}

/// Draws at most this often for an endpoint that its warm-up lets through.
const SLOW_START_DRAWS: u32 = 16;

impl Picker {
    /// `weights` stand beside `endpoints` (the product of endpoint and locality weight for hashing policies).
    pub(super) fn new(cluster: &Cluster, endpoints: Vec<Arc<Endpoint>>, weights: &[f64], random: &impl Random) -> Self {
        let balance = cluster.lb_common.hash_balance_factor;
        let (kind, slow_start) = match &cluster.lb {
            LbPolicy::RoundRobin { slow_start } => {
                (Kind::RoundRobin(RoundRobin::new(&endpoints, random.next_u64())), *slow_start)
            }
            LbPolicy::LeastRequest { choices, active_request_bias, slow_start } => {
                (Kind::LeastRequest(LeastRequest::new(&endpoints, *choices, *active_request_bias)), *slow_start)
            }
            LbPolicy::Random | LbPolicy::ClusterProvided => (Kind::Random, None),
            LbPolicy::RingHash { minimum, maximum } => {
                (Kind::Ring(Ring::new(&endpoints, weights, *minimum, *maximum, balance)), None)
            }
            LbPolicy::Maglev { table_size } => {
                (Kind::Maglev(Maglev::new(&endpoints, weights, *table_size, balance)), None)
            }
        };
        let warm_until = slow_start.and_then(|s| endpoints.iter().map(|e| e.warm_at(s.window)).max());
        Self { endpoints, kind, slow_start, warm_until }
    }

    /// Members.
    pub(super) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// One of them; `None` only when there is none.
    pub(super) fn pick(&self, ask: Ask, random: &impl Random) -> Option<&Arc<Endpoint>> {
        if let [only] = self.endpoints.as_slice() {
            return Some(only);
        }
        let (Some(cfg), Some(until)) = (&self.slow_start, self.warm_until) else { return self.draw(ask, random) };
        let now = Instant::now();
        if now >= until {
            return self.draw(ask, random);
        }
        // Accepting a draw with the probability of its warm-up factor makes shares proportional to weight x factor.
        let mut drawn = self.draw(ask, random)?;
        for _ in 0..SLOW_START_DRAWS {
            let factor = drawn.slow_start_factor(cfg, now);
            if factor >= 1.0 || random.unit() < factor {
                break;
            }
            drawn = self.draw(ask, random)?;
        }
        Some(drawn)
    }

    fn draw(&self, ask: Ask, random: &impl Random) -> Option<&Arc<Endpoint>> {
        let at = match &self.kind {
            Kind::RoundRobin(p) => p.pick(self.endpoints.len(), random),
            Kind::LeastRequest(p) => p.pick(&self.endpoints, random),
            Kind::Random => index(random, self.endpoints.len()),
            Kind::Ring(p) => p.pick(&self.endpoints, ask),
            Kind::Maglev(p) => p.pick(&self.endpoints, ask),
        };
        self.endpoints.get(at)
    }
}

/// Weights as running sums, for drawing an index in proportion to them.
#[derive(Debug)]
struct Cumulative(Vec<u64>);

impl Cumulative {
    fn new(weights: impl Iterator<Item = u64>) -> Self {
        let mut sum = 0u64;
        Self(
            weights
                .map(|w| {
                    sum = sum.saturating_add(w);
                    sum
                })
                .collect(),
        )
    }
    fn draw(&self, random: &impl Random) -> usize {
        let total = self.0.last().copied().unwrap_or(0);
        let point = random.below(total);
        self.0.partition_point(|&sum| sum <= point)
    }
}

/// Whether all endpoints weigh the same.
fn equal_weights(endpoints: &[Arc<Endpoint>]) -> bool {
    endpoints.windows(2).all(|w| match w {
        [a, b] => a.weight() == b.weight(),
        _ => true,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::{cell::Cell, collections::HashMap, time::Duration};

    use mesh_api::model::Discovery;

    use super::*;
    use crate::upstream::endpoint::tests::endpoint;

    /// xorshift, seeded.
    #[derive(Debug)]
    pub(in crate::upstream) struct Seeded(Cell<u64>);

    impl Seeded {
        pub(in crate::upstream) fn new(seed: u64) -> Self {
            Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
        }
    }

    impl Random for Seeded {
        fn next_u64(&self) -> u64 {
            let mut x = self.0.get();
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            self.0.set(x);
            x.wrapping_mul(0x2545_f491_4f6c_dd1d)
        }
    }

    pub(in crate::upstream) fn cluster(lb: LbPolicy) -> Cluster {
        let mut c = Cluster::new("c", Discovery::Eds { service: "".into() });
        c.lb = lb;
        c
    }

    fn picker(lb: LbPolicy, weights: &[u32]) -> Picker {
        let endpoints: Vec<_> = weights.iter().zip(1..).map(|(w, port)| endpoint(port, *w)).collect();
        let w: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        Picker::new(&cluster(lb), endpoints, &w, &Seeded::new(7))
    }

    fn shares(p: &Picker, n: u32) -> Vec<f64> {
        let random = Seeded::new(3);
        let mut counts: HashMap<u16, u32> = HashMap::new();
        for _ in 0..n {
            let e = p.pick(Ask { hash: random.next_u64(), attempt: 0 }, &random).unwrap();
            *counts.entry(e.socket_addr().unwrap().port()).or_default() += 1;
        }
        (1..=p.endpoints.len() as u16).map(|i| f64::from(*counts.get(&i).unwrap_or(&0)) / f64::from(n)).collect()
    }

    fn all_policies() -> Vec<LbPolicy> {
        vec![
            LbPolicy::RoundRobin { slow_start: None },
            LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0, slow_start: None },
            LbPolicy::RingHash { minimum: 65536, maximum: 8 << 20 },
            LbPolicy::Maglev { table_size: 65537 },
        ]
    }

    #[test]
    fn shares_follow_weights_under_every_weighted_policy() {
        for lb in all_policies() {
            for weights in [&[1u32, 1, 1][..], &[1, 2, 7], &[5, 5, 90], &[1, 100_000]] {
                let got = shares(&picker(lb.clone(), weights), 40_000);
                let total: u32 = weights.iter().sum();
                for (share, w) in got.iter().zip(weights) {
                    let want = f64::from(*w) / f64::from(total);
                    assert!((share - want).abs() < 0.02, "{lb:?} {weights:?}: {got:?}");
                }
            }
        }
        let got = shares(&picker(LbPolicy::Random, &[1, 9]), 20_000);
        assert!((got[0] - 0.5).abs() < 0.02, "random takes no weights: {got:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_gets_its_share_little_by_little() {
        let cfg = SlowStart { window: Duration::from_secs(10), aggression: 1.0, min_weight_percent: 10.0 };
        for lb in [
            LbPolicy::RoundRobin { slow_start: Some(cfg) },
            LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0, slow_start: Some(cfg) },
        ] {
            let old = endpoint(1, 1);
            tokio::time::advance(Duration::from_secs(60)).await;
            let fresh = endpoint(2, 1);
            let p = Picker::new(&cluster(lb), vec![old, fresh], &[1.0, 1.0], &Seeded::new(7));
            let at_first = shares(&p, 20_000);
            assert!((0.07..0.12).contains(&at_first[1]), "{at_first:?}");
            tokio::time::advance(Duration::from_secs(5)).await;
            let half = shares(&p, 20_000);
            assert!((0.29..0.38).contains(&half[1]), "{half:?}");
            tokio::time::advance(Duration::from_secs(6)).await;
            let full = shares(&p, 20_000);
            assert!((0.48..0.52).contains(&full[1]), "{full:?}");
        }
    }

    #[test]
    fn one_endpoint_gets_everything_and_none_is_none() {
        for lb in all_policies() {
            assert_eq!(shares(&picker(lb.clone(), &[3]), 10), [1.0]);
            let none = picker(lb, &[]);
            assert!(none.pick(Ask { hash: 1, attempt: 0 }, &Seeded::new(1)).is_none());
        }
    }
}
