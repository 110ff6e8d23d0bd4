//! Consistent hashing, compatible with Envoy's: the ring (xxHash64 of `ADDRESS_i`) and Maglev's tables.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::Ask;
use crate::upstream::Endpoint;

/// Largest ring and table that is built whatever the configuration says: 8 Mi entries, as Envoy.
const MAX_RING: u64 = 8 << 20;

fn key(e: &Endpoint) -> String {
    e.config.address.to_string()
}

/// Weights as shares of 1.
fn normalized(weights: &[f64], n: usize) -> Vec<f64> {
    let sum: f64 = weights.iter().take(n).sum();
    (0..n).map(|i| if sum > 0.0 { weights.get(i).copied().unwrap_or(0.0) / sum } else { 1.0 / n as f64 }).collect()
}

/// Bounded load: an endpoint takes a request while its load stays within `factor` percent of its share.
#[derive(Debug)]
struct Bound {
    factor: u32,
    shares: Vec<f64>,
}

impl Bound {
    fn new(factor: u32, shares: &[f64]) -> Option<Self> {
        (factor > 0).then(|| Self { factor, shares: shares.to_vec() })
    }
    fn full(&self, endpoints: &[Arc<Endpoint>], i: usize, total: u64) -> bool {
        let share = self.shares.get(i).copied().unwrap_or(0.0);
        let allowed = ((total + 1) as f64 * share * f64::from(self.factor) / 100.0).ceil();
        endpoints.get(i).is_some_and(|e| e.active_requests() as f64 + 1.0 > allowed)
    }
}

/// Goes through candidates in order and takes the first that is not full, else the first.
fn bounded(bound: Option<&Bound>, endpoints: &[Arc<Endpoint>], mut candidates: impl Iterator<Item = usize>) -> usize {
    let Some(first) = candidates.next() else { return 0 };
    let Some(bound) = bound else { return first };
    let total = endpoints.iter().map(|e| e.active_requests()).sum();
    if !bound.full(endpoints, first, total) {
        return first;
    }
    candidates.find(|i| !bound.full(endpoints, *i, total)).unwrap_or(first)
}

#[derive(Debug)]
pub(super) struct Ring {
    /// (point, index), ascending.
    points: Vec<(u64, u32)>,
    bound: Option<Bound>,
}

impl Ring {
    pub(super) fn new(endpoints: &[Arc<Endpoint>], weights: &[f64], min: u64, max: u64, balance: u32) -> Self {
        let shares = normalized(weights, endpoints.len());
        let max = max.clamp(1, MAX_RING);
        let least = shares.iter().copied().filter(|s| *s > 0.0).fold(f64::INFINITY, f64::min);
        let mut points = Vec::new();
        if least.is_finite() {
            // Every endpoint gets a whole number of points at the smallest ring that is at least `min` long.
            let scale = ((least * min.min(max) as f64).ceil() / least).min(max as f64);
            let (mut current, mut target) = (0.0, 0.0);
            for ((e, share), i) in endpoints.iter().zip(&shares).zip(0u32..) {
                let name = key(e);
                target += scale * share;
                let mut n = 0u64;
                while current < target {
                    points.push((xxh64(format!("{name}_{n}").as_bytes(), 0), i));
                    n += 1;
                    current += 1.0;
                }
            }
            points.sort_unstable();
        }
        Self { points, bound: Bound::new(balance, &shares) }
    }

    pub(super) fn pick(&self, endpoints: &[Arc<Endpoint>], ask: Ask) -> usize {
        let n = self.points.len().max(1);
        let start = self.points.partition_point(|(p, _)| *p < ask.hash) + ask.attempt as usize;
        let candidates =
            (0..self.points.len()).filter_map(|k| self.points.get((start + k) % n)).map(|(_, i)| *i as usize);
        bounded(self.bound.as_ref(), endpoints, candidates)
    }
}

#[derive(Debug)]
pub(super) struct Maglev {
    table: Vec<u32>,
    bound: Option<Bound>,
}

impl Maglev {
    pub(super) fn new(endpoints: &[Arc<Endpoint>], weights: &[f64], size: u64, balance: u32) -> Self {
        let shares = normalized(weights, endpoints.len());
        Self { table: table(endpoints, &shares, size.clamp(2, MAX_RING)), bound: Bound::new(balance, &shares) }
    }

    pub(super) fn pick(&self, endpoints: &[Arc<Endpoint>], ask: Ask) -> usize {
        let size = (self.table.len() as u64).max(1);
        let at = |attempt: u32| {
            // Envoy: later tries look with another hash.
            let hash = if attempt == 0 { ask.hash } else { ask.hash ^ (u64::MAX - u64::from(attempt) + 1) };
            self.table.get((hash % size) as usize).map(|i| *i as usize)
        };
        let draws = if self.bound.is_some() { endpoints.len() as u32 * 4 } else { 1 };
        bounded(self.bound.as_ref(), endpoints, (0..draws).filter_map(|k| at(ask.attempt + k)))
    }
}

struct Entry {
    offset: u64,
    skip: u64,
    share: f64,
    next: u64,
    placed: f64,
}

/// Every endpoint walks its own permutation of the table and takes free places in turns, weights decide how often.
fn table(endpoints: &[Arc<Endpoint>], shares: &[f64], size: u64) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if endpoints.is_empty() {
        return vec![];
    }
    let largest = shares.iter().copied().fold(0.0, f64::max);
    let mut entries: Vec<Entry> = endpoints
        .iter()
        .zip(shares)
        .map(|(e, share)| {
            let name = key(e);
            let offset = xxh64(name.as_bytes(), 0) % size;
            let skip = xxh64(name.as_bytes(), 1) % (size - 1) + 1;
            Entry { offset, skip, share: *share, next: 0, placed: 0.0 }
        })
        .collect();
    let mut table = vec![FREE; usize::try_from(size).unwrap_or(0)];
    let mut filled = 0;
    let mut round = 1.0;
    while filled < size {
        let before = filled;
        for (entry, i) in entries.iter_mut().zip(0u32..) {
            if filled >= size {
                break;
            }
            // In round r an endpoint holds r * share / largest places.
            if round * entry.share < entry.placed * largest {
                continue;
            }
            entry.placed += 1.0;
            // The size is prime, so the permutation meets every place; for other sizes give up after a full walk.
            for _ in 0..size {
                let at = (entry.offset + entry.skip.wrapping_mul(entry.next) % size) % size;
                entry.next += 1;
                match table.get_mut(at as usize) {
                    Some(place) if *place == FREE => {
                        *place = i;
                        filled += 1;
                        break;
                    }
                    _ => {}
                }
            }
        }
        round += 1.0;
        if before == filled && round > size as f64 {
            break;
        }
    }
    for place in table.iter_mut().filter(|p| **p == FREE) {
        *place = 0;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::endpoint::tests::endpoint;

    fn endpoints(n: u16) -> Vec<Arc<Endpoint>> {
        (1..=n).map(|p| endpoint(p, 1)).collect()
    }

    fn moved(a: impl Fn(u64) -> u16, b: impl Fn(u64) -> u16, gone: u16) -> f64 {
        let (mut stay, mut kept) = (0, 0);
        for k in 0..20_000u64 {
            let h = xxh64(&k.to_le_bytes(), 0);
            if a(h) != gone {
                stay += 1;
                kept += u32::from(a(h) == b(h));
            }
        }
        1.0 - f64::from(kept) / f64::from(stay)
    }

    #[test]
    fn removing_one_of_ten_moves_hardly_anyone_else() {
        let ten = endpoints(10);
        let nine: Vec<_> = ten.iter().filter(|e| e.socket_addr().unwrap().port() != 4).cloned().collect();
        let (w10, w9) = (vec![1.0; 10], vec![1.0; 9]);
        let port = |es: &[Arc<Endpoint>], i: usize| es[i].socket_addr().unwrap().port();
        let ask = |hash| Ask { hash, attempt: 0 };

        let (a, b) = (Ring::new(&ten, &w10, 1024, MAX_RING, 0), Ring::new(&nine, &w9, 1024, MAX_RING, 0));
        let share = moved(|h| port(&ten, a.pick(&ten, ask(h))), |h| port(&nine, b.pick(&nine, ask(h))), 4);
        assert!(share < 0.08, "ring: {share}"); // each endpoint has a tenth more points in the smaller ring
        let (a, b) = (Maglev::new(&ten, &w10, 65537, 0), Maglev::new(&nine, &w9, 65537, 0));
        let share = moved(|h| port(&ten, a.pick(&ten, ask(h))), |h| port(&nine, b.pick(&nine, ask(h))), 4);
        assert!(share < 0.05, "maglev: {share}");
    }

    #[test]
    fn the_ring_is_envoys() {
        // Same points as Envoy: xxHash64 of "address_i".
        let e = endpoints(1);
        let r = Ring::new(&e, &[1.0], 2, 10, 0);
        let mut want = [xxh64(b"127.0.0.1:1_0", 0), xxh64(b"127.0.0.1:1_1", 0)];
        want.sort_unstable();
        assert_eq!(r.points.iter().map(|p| p.0).collect::<Vec<_>>(), want);
    }

    #[test]
    fn later_attempts_leave_the_first_choice_and_the_same_hash_stays() {
        let es = endpoints(5);
        let w = vec![1.0; 5];
        let ring = Ring::new(&es, &w, 1024, MAX_RING, 0);
        let maglev = Maglev::new(&es, &w, 65537, 0);
        for pick in [&(|a| ring.pick(&es, a)) as &dyn Fn(Ask) -> usize, &|a| maglev.pick(&es, a)] {
            let first = pick(Ask { hash: 42, attempt: 0 });
            assert_eq!(first, pick(Ask { hash: 42, attempt: 0 }));
            assert!((1..20).any(|attempt| pick(Ask { hash: 42, attempt }) != first));
        }
    }

    #[test]
    fn bounded_load_moves_on_when_the_favourite_is_full() {
        let es = endpoints(4);
        let ring = Ring::new(&es, &[1.0; 4], 1024, MAX_RING, 120);
        let first = ring.pick(&es, Ask { hash: 42, attempt: 0 });
        for _ in 0..10 {
            es[first].state.stats.rq_active.inc();
        }
        assert_ne!(ring.pick(&es, Ask { hash: 42, attempt: 0 }), first);
    }

    #[test]
    fn odd_sizes_and_zero_weights_do_not_hang() {
        let es = endpoints(3);
        for size in [2, 4, 6, 100, 65536] {
            assert_eq!(table(&es, &[0.5, 0.25, 0.25], size).len() as u64, size);
        }
        assert!(Ring::new(&es, &[0.0; 3], 10, 10, 0).pick(&es, Ask { hash: 1, attempt: 0 }) < 3);
    }
}
