//! Who watches what: from a resource to the clients that asked for it by name.
//!
//! Owns the reverse index that makes the cost of an endpoint change independent of how many resources and clients there
//! are. Clients are small numbers that are used again, so a set of them is a bitmap.

use mesh_api::xds::TypeUrl;

use super::encoded::Name;
use crate::hash::NameMap;

/// A set of small numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slots {
    words: Vec<u64>,
    len: usize,
}

impl Slots {
    /// Adds one.
    pub fn insert(&mut self, slot: usize) {
        let (word, bit) = (slot / 64, 1u64 << (slot % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if let Some(w) = self.words.get_mut(word)
            && *w & bit == 0
        {
            *w |= bit;
            self.len += 1;
        }
    }

    /// Takes one away.
    pub fn remove(&mut self, slot: usize) {
        let bit = 1u64 << (slot % 64);
        if let Some(w) = self.words.get_mut(slot / 64)
            && *w & bit != 0
        {
            *w &= !bit;
            self.len -= 1;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(i, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    i * 64 + bit
                })
            })
        })
    }
}

/// Clients by what they asked for.
#[derive(Debug, Default)]
pub struct Subscribers {
    types: [NameMap<Name, Slots>; TypeUrl::ALL.len()],
    wildcards: [Slots; TypeUrl::ALL.len()],
}

impl Subscribers {
    /// A client asked for these names.
    pub fn add<'a>(&mut self, ty: TypeUrl, names: impl IntoIterator<Item = &'a Name>, slot: usize) {
        if let Some(map) = self.types.get_mut(ty as usize) {
            for name in names {
                match map.get_mut(&**name) {
                    Some(slots) => slots.insert(slot),
                    None => map.entry(name.clone()).or_default().insert(slot),
                }
            }
        }
    }

    /// A client does not ask for these names any more.
    pub fn remove<'a>(&mut self, ty: TypeUrl, names: impl IntoIterator<Item = &'a Name>, slot: usize) {
        if let Some(map) = self.types.get_mut(ty as usize) {
            for name in names {
                if let Some(slots) = map.get_mut(&**name) {
                    slots.remove(slot);
                    if slots.is_empty() {
                        map.remove(&**name);
                    }
                }
            }
        }
    }

    /// A client's wildcard subscription begins or ends.
    pub fn set_wildcard(&mut self, ty: TypeUrl, on: bool, slot: usize) {
        if let Some(slots) = self.wildcards.get_mut(ty as usize) {
            if on { slots.insert(slot) } else { slots.remove(slot) }
        }
    }

    /// Clients that see this resource.
    pub fn of(&self, ty: TypeUrl, name: &str) -> impl Iterator<Item = usize> + '_ {
        let named = self.types.get(ty as usize).and_then(|m| m.get(name));
        let all = self.wildcards.get(ty as usize);
        named.into_iter().chain(all).flat_map(Slots::iter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_who_asked_and_forgets_who_left() {
        let mut s = Subscribers::default();
        let names: Vec<Name> = ["a", "b"].map(Into::into).into();
        for slot in [0, 63, 64, 500] {
            s.add(TypeUrl::Endpoints, &names, slot);
        }
        s.remove(TypeUrl::Endpoints, &names[..1], 64);
        assert_eq!(s.of(TypeUrl::Endpoints, "a").collect::<Vec<_>>(), [0, 63, 500]);
        assert_eq!(s.of(TypeUrl::Endpoints, "b").collect::<Vec<_>>(), [0, 63, 64, 500]);
        assert_eq!(s.of(TypeUrl::Cluster, "a").count(), 0);
        for slot in [0, 63, 64, 500] {
            s.remove(TypeUrl::Endpoints, &names, slot);
        }
        assert!(s.types.iter().all(NameMap::is_empty), "nothing is kept for names that nobody wants");
        s.set_wildcard(TypeUrl::Cluster, true, 7);
        assert_eq!(s.of(TypeUrl::Cluster, "x").collect::<Vec<_>>(), [7]);
    }
}
