//! Least request: of `choices` distinct endpoints drawn at random the one with fewest requests in flight (power of two
//! choices). With weights, endpoints are drawn in proportion to them and compared by requests per weight.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Cumulative, Random, equal_weights, index};
use crate::upstream::Endpoint;

#[derive(Debug)]
pub(super) struct LeastRequest {
    choices: usize,
    bias: f64,
    weights: Option<Cumulative>,
}

impl LeastRequest {
    pub(super) fn new(endpoints: &[Arc<Endpoint>], choices: u32, bias: f64) -> Self {
        let weights =
            (!equal_weights(endpoints)).then(|| Cumulative::new(endpoints.iter().map(|e| u64::from(e.weight()))));
        let choices = (choices.max(2) as usize).min(endpoints.len().max(1));
        Self { choices, bias: if bias.is_finite() && bias >= 0.0 { bias } else { 1.0 }, weights }
    }

    pub(super) fn pick(&self, endpoints: &[Arc<Endpoint>], random: &impl Random) -> usize {
        match &self.weights {
            None if self.choices == 2 => Self::of_two(endpoints, random),
            None => Self::of_many(self.choices, endpoints, random),
            Some(weights) => self.weighted(weights, endpoints, random),
        }
    }

    fn of_two(endpoints: &[Arc<Endpoint>], random: &impl Random) -> usize {
        let n = endpoints.len();
        if n < 2 {
            return 0;
        }
        let a = index(random, n);
        let b = (a + 1 + index(random, n - 1)) % n;
        if load(endpoints, b) < load(endpoints, a) { b } else { a }
    }

    /// Floyd's sampling: distinct indices without a copy of the list.
    fn of_many(choices: usize, endpoints: &[Arc<Endpoint>], random: &impl Random) -> usize {
        let n = endpoints.len();
        let mut drawn: SmallVec<[usize; 8]> = SmallVec::new();
        for top in n.saturating_sub(choices)..n {
            let i = index(random, top + 1);
            drawn.push(if drawn.contains(&i) { top } else { i });
        }
        // Ties: the later draws of Floyd's sampling favour high indices, so begin anywhere.
        let start = index(random, drawn.len());
        drawn.rotate_left(start);
        drawn.iter().copied().min_by_key(|i| load(endpoints, *i)).unwrap_or(0)
    }

    fn weighted(&self, weights: &Cumulative, endpoints: &[Arc<Endpoint>], random: &impl Random) -> usize {
        let mut best = weights.draw(random);
        let mut least = self.relative(endpoints, best);
        for _ in 1..self.choices {
            if least <= 0.0 {
                break; // nothing can be less; the first draw keeps shares proportional
            }
            let other = weights.draw(random);
            let l = self.relative(endpoints, other);
            if l < least {
                (best, least) = (other, l);
            }
        }
        best
    }

    fn relative(&self, endpoints: &[Arc<Endpoint>], i: usize) -> f64 {
        if self.bias == 0.0 {
            return 0.0;
        }
        endpoints.get(i).map_or(f64::MAX, |e| (e.active_requests() as f64).powf(self.bias) / f64::from(e.weight()))
    }
}

fn load(endpoints: &[Arc<Endpoint>], i: usize) -> u64 {
    endpoints.get(i).map_or(u64::MAX, |e| e.active_requests())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::{balance::tests::Seeded, endpoint::tests::endpoint};

    #[test]
    fn two_choices_are_distinct_so_the_busier_of_two_gets_nothing() {
        let endpoints = vec![endpoint(1, 1), endpoint(2, 1)];
        endpoints[0].state.stats.rq_active.inc();
        let p = LeastRequest::new(&endpoints, 2, 1.0);
        let random = Seeded::new(1);
        assert!((0..1000).all(|_| p.pick(&endpoints, &random) == 1));
    }

    #[test]
    fn full_scan_finds_the_idle_one() {
        let endpoints: Vec<_> = (1..=10).map(|p| endpoint(p, 1)).collect();
        for (i, e) in endpoints.iter().enumerate() {
            if i != 4 {
                e.state.stats.rq_active.inc();
            }
        }
        let p = LeastRequest::new(&endpoints, 10, 1.0);
        let random = Seeded::new(2);
        assert!((0..200).all(|_| p.pick(&endpoints, &random) == 4));
    }

    #[test]
    fn closed_loop_load_spreads_by_weight() {
        let endpoints = vec![endpoint(1, 1), endpoint(2, 3)];
        let p = LeastRequest::new(&endpoints, 2, 1.0);
        let random = Seeded::new(5);
        for _ in 0..400 {
            endpoints[p.pick(&endpoints, &random)].state.stats.rq_active.inc();
        }
        let share = endpoints[1].active_requests() as f64 / 400.0;
        assert!((0.70..0.80).contains(&share), "{share}");
    }
}
