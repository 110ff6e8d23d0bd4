//! What no list of examples covers: objects that lack any field, or have nonsense in it, and long histories of edits.
//!
//! The objects come from the behaviour cases and from the wide configuration. A failure names its seed;
//! `MESH_CHANCE=SEED,FACTOR,EVERY` sets it, by how much the run is longer, and after how many edits proxies are looked at.

pub(crate) mod corpus;
mod edits;
mod fields;
pub(crate) mod mirror;
mod precedence;

use rand::{SeedableRng as _, rngs::StdRng};

/// What is left to chance.
struct Chance {
    rng: StdRng,
    seed: u64,
    /// By how much the run is longer than usual.
    factor: usize,
    /// Edits after which proxies are compared with ones that just started.
    every: usize,
}

impl Chance {
    fn new() -> Self {
        let text = std::env::var("MESH_CHANCE").unwrap_or_default();
        let mut parts = text.split(',');
        let seed = parts.next().and_then(|s| s.parse().ok()).unwrap_or_else(any_seed);
        let mut number = |usual| parts.next().and_then(|s| s.parse().ok()).unwrap_or(usual);
        let (factor, every) = (number(1), number(100));
        Self { rng: StdRng::seed_from_u64(seed), seed, factor, every }
    }
}

/// Another one each time; everything after it follows from it.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}
