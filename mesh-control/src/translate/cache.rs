//! Encoded resources, kept by exactly what they were made from.
//!
//! A resource is stored under its name and a key (the declared facts of the view that it may depend on), together
//! with its basis (stamps of what it was made from). Same name, key and basis: the stored bytes. Another basis: made
//! anew, and when the bytes come out equal the old ones stay, so that everybody goes on sharing one copy.

use std::{fmt, sync::Arc};

use parking_lot::RwLock;

use crate::{
    hash::NameMap,
    xds::encoded::{Encoded, Name},
};

/// Most keys under which one name is kept (proxies of as many localities, node names, ...).
const MAX_KEYS: usize = 512;
/// Most names; far above any mesh, so that names nobody asks for any more do not pile up.
const MAX_NAMES: usize = 1 << 20;

/// A cache of one type of resource. `K` is the declared subset of the view, `B` the basis.
pub struct Cache<K, B> {
    names: RwLock<NameMap<Name, Vec<Entry<K, B>>>>,
}

struct Entry<K, B> {
    key: K,
    basis: B,
    resource: Option<Arc<Encoded>>,
}

impl<K, B> Default for Cache<K, B> {
    fn default() -> Self {
        Self { names: RwLock::default() }
    }
}

impl<K, B> fmt::Debug for Cache<K, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({} names)", self.names.read().len())
    }
}

impl<K: PartialEq, B: PartialEq> Cache<K, B> {
    /// The stored resource, or a new one.
    pub fn get(
        &self,
        name: &str,
        key: K,
        basis: B,
        make: impl FnOnce() -> Option<Arc<Encoded>>,
    ) -> Option<Arc<Encoded>> {
        if let Some(entries) = self.names.read().get(name)
            && let Some(found) = entries.iter().find(|e| e.key == key)
            && found.basis == basis
        {
            return found.resource.clone();
        }
        // Two threads may make the same at the same time; that costs less than to keep everybody waiting.
        let made = make();
        let mut names = self.names.write();
        if names.len() > MAX_NAMES {
            names.clear();
        }
        let entries = match names.get_mut(name) {
            Some(entries) => entries,
            None => names.entry(made.as_ref().map_or_else(|| name.into(), |m| m.name().clone())).or_default(),
        };
        // Whoever has the same bytes shares them, whatever the key.
        let resource = made.map(|new| {
            let same = entries.iter().filter_map(|e| e.resource.as_ref()).find(|old| old.hash() == new.hash());
            same.cloned().unwrap_or(new)
        });
        match entries.iter_mut().find(|e| e.key == key) {
            Some(entry) => {
                entry.basis = basis;
                entry.resource.clone_from(&resource);
            }
            None => {
                if entries.len() >= MAX_KEYS {
                    entries.clear();
                }
                entries.push(Entry { key, basis, resource: resource.clone() });
            }
        }
        resource
    }

    /// Forgets a name that does not exist any more.
    pub fn forget(&self, name: &str) {
        if self.names.read().contains_key(name) {
            self.names.write().remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::xds::TypeUrl;

    use super::*;

    fn make(text: &str) -> Option<Arc<Encoded>> {
        Some(Encoded::new(TypeUrl::Cluster, "c", text.as_bytes(), vec![]))
    }

    #[test]
    fn made_once_and_shared() {
        let cache = Cache::<u8, u8>::default();
        let first = cache.get("c", 1, 1, || make("x")).unwrap();
        let again = cache.get("c", 1, 1, || panic!("made twice")).unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        let other_key = cache.get("c", 2, 1, || make("x")).unwrap();
        let other_basis = cache.get("c", 1, 2, || make("x")).unwrap();
        assert!(Arc::ptr_eq(&first, &other_key) && Arc::ptr_eq(&first, &other_basis));
        assert_ne!(cache.get("c", 1, 3, || make("y")).unwrap().hash(), first.hash());
        cache.forget("c");
        assert!(cache.get("c", 1, 3, || None).is_none());
    }
}
