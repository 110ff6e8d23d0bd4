//! Weighted round robin: a precomputed cyclic schedule (earliest deadline first, so heavy endpoints are spread out) and
//! one cursor that all workers share. Weights too coarse for a schedule are drawn at random in proportion.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{Cumulative, Random, equal_weights};
use crate::upstream::Endpoint;

/// Longest schedule.
const MAX_SCHEDULE: u64 = 8192;

#[derive(Debug)]
pub(super) struct RoundRobin {
    cursor: AtomicUsize,
    order: Order,
}

#[derive(Debug)]
enum Order {
    Plain,
    Schedule(Vec<u32>),
    Drawn(Cumulative),
}

impl RoundRobin {
    pub(super) fn new(endpoints: &[Arc<Endpoint>], start: u64) -> Self {
        let order = if equal_weights(endpoints) {
            Order::Plain
        } else {
            let common = endpoints.iter().map(|e| u64::from(e.weight())).fold(0, gcd).max(1);
            let weights: Vec<u64> = endpoints.iter().map(|e| u64::from(e.weight()) / common).collect();
            let total = weights.iter().sum::<u64>();
            if total <= MAX_SCHEDULE {
                Order::Schedule(schedule(&weights, total))
            } else {
                Order::Drawn(Cumulative::new(weights.into_iter()))
            }
        };
        // Workers of many proxies must not all begin with the first endpoint.
        Self { cursor: AtomicUsize::new((start >> 33) as usize), order }
    }

    pub(super) fn pick(&self, n: usize, random: &impl Random) -> usize {
        let next = || self.cursor.fetch_add(1, Relaxed);
        match &self.order {
            Order::Plain => next() % n.max(1),
            Order::Schedule(s) => s.get(next() % s.len().max(1)).map_or(0, |i| *i as usize),
            Order::Drawn(c) => c.draw(random),
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Each endpoint's k-th turn is due at (k - 1/2) / weight; turns in order of due time, ties by index.
fn schedule(weights: &[u64], total: u64) -> Vec<u32> {
    // Due times are compared as turn * (SCALE / weight): exact enough for totals up to MAX_SCHEDULE.
    const SCALE: u64 = 1 << 40;
    let mut heap: BinaryHeap<Reverse<(u64, u32)>> =
        weights.iter().zip(0u32..).filter(|(w, _)| **w > 0).map(|(w, i)| Reverse((SCALE / (2 * w), i))).collect();
    let mut order = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for _ in 0..total {
        let Some(Reverse((due, i))) = heap.pop() else { break };
        order.push(i);
        let w = weights.get(i as usize).copied().unwrap_or(1).max(1);
        heap.push(Reverse((due + SCALE / w, i)));
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heavy_endpoints_are_spread_out() {
        let order = schedule(&[5, 1, 1], 7);
        assert_eq!(order.iter().filter(|i| **i == 0).count(), 5);
        let longest = order.split(|i| *i != 0).map(<[u32]>::len).max().unwrap();
        assert!(longest <= 4, "{order:?}");
        assert_eq!(schedule(&[1, 1], 2), [0, 1]);
    }

    proptest! {
        #[test]
        fn a_cycle_serves_everyone_exactly_by_weight(weights in prop::collection::vec(1u64..50, 1..20)) {
            let order = schedule(&weights, weights.iter().sum());
            for (i, w) in weights.iter().enumerate() {
                prop_assert_eq!(order.iter().filter(|x| **x as usize == i).count() as u64, *w);
            }
        }
    }
}
