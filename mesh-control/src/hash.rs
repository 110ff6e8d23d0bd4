//! The hash of tables by name, of which there are as many as clients times resources.
//!
//! Names come from clients too, so the seed is drawn at start: nobody can prepare names that collide. Must not be used
//! where a hash leaves the process.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::LazyLock,
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0u8));

/// A map by name.
pub type NameMap<K, V> = std::collections::HashMap<K, V, ByName>;

/// Makes hashers for names.
#[derive(Debug, Clone, Copy)]
pub struct ByName(u64);

impl Default for ByName {
    fn default() -> Self {
        Self(*SEED)
    }
}

impl BuildHasher for ByName {
    type Hasher = NameHasher;

    fn build_hasher(&self) -> NameHasher {
        NameHasher(self.0)
    }
}

/// XXH3 of what is written, each piece seeded with those before.
#[derive(Debug, Clone, Copy)]
pub struct NameHasher(u64);

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// Ends a string: what tells `("ab", "c")` from `("a", "bc")`.
    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.rotate_left(5) ^ u64::from(byte);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;

    #[test]
    fn names_spread_and_are_found_by_any_form() {
        let by = ByName::default();
        let names: Vec<Arc<str>> = (0..4096).map(|i| format!("outbound|80||svc-{i}.ns.svc").into()).collect();
        let low: HashSet<u64> = names.iter().map(|n| by.hash_one(n) & 0xffff).collect();
        assert!(low.len() > 3800, "{} of 4096 differ in their low bits", low.len());
        let high: HashSet<u64> = names.iter().map(|n| by.hash_one(n) >> 48).collect();
        assert!(high.len() > 3800, "{} of 4096 differ in their high bits", high.len());
        let map: NameMap<Arc<str>, usize> = names.iter().cloned().zip(0..).collect();
        assert_eq!(map.get("outbound|80||svc-17.ns.svc"), Some(&17));
        assert_ne!(by.hash_one(("ab", "c")), by.hash_one(("a", "bc")));
    }
}
