//! What a proxy holds when it is told of changes only: as a stream computes it, without a wire between.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::xds::TypeUrl;

use crate::{
    index::{ChangeSet, Index},
    translate::Translator,
    view::ProxyView,
    xds::{
        encoded::{Encoded, Name},
        generator::{Affected, Generator as _, Names},
    },
};

/// A proxy and what it holds.
pub(crate) struct Mirror {
    /// As it says it is, before the index adds what it knows.
    proxy: ProxyView,
    view: ProxyView,
    held: [BTreeMap<Name, Arc<Encoded>>; TypeUrl::ALL.len()],
}

impl Mirror {
    pub(crate) fn new(proxy: ProxyView, translator: &Translator, index: &Index) -> Self {
        let mut mirror = Self { view: index.view(proxy.clone()), proxy, held: Default::default() };
        mirror.follow(translator, index, &Affected::all());
        mirror
    }

    /// The same proxy, which begins under another index.
    pub(super) fn fresh(&self, translator: &Translator, index: &Index) -> Self {
        Self::new(self.proxy.clone(), translator, index)
    }

    /// Learns of a change.
    pub(crate) fn learn(&mut self, translator: &Translator, index: &Index, change: &ChangeSet) {
        let reach = translator.reach(index, change);
        let mut affected = if reach.all { translator.affected(index, change, &self.view) } else { Affected::none() };
        for (ty, name) in reach.names {
            affected = affected.with(ty, [name]);
        }
        if affected.view || self.view.ips.iter().any(|ip| reach.addresses.contains(ip)) {
            let view = index.view(self.proxy.clone());
            if view != self.view {
                self.view = view;
                affected = Affected::all();
            }
        }
        self.follow(translator, index, &affected);
    }

    fn follow(&mut self, translator: &Translator, index: &Index, affected: &Affected) {
        if affected.view {
            self.view = index.view(self.proxy.clone());
        }
        for (ty, names) in TypeUrl::ALL.into_iter().zip(&affected.types) {
            let wildcard = matches!(ty, TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::NameTable);
            let asked = self.asked(ty);
            let mut look: Vec<Name> = match names {
                Names::None => vec![],
                Names::Some(names) => names.iter().filter(|n| wildcard || asked.contains(n)).cloned().collect(),
                Names::All if wildcard => translator.names(index, &self.view, ty).to_vec(),
                Names::All => asked.clone(),
            };
            let Some(held) = self.held.get_mut(ty as usize) else { continue };
            if wildcard {
                if matches!(names, Names::All) {
                    held.retain(|name, _| look.contains(name));
                }
            } else {
                held.retain(|name, _| asked.contains(name));
                look.extend(asked.iter().filter(|n| !held.contains_key(*n)).cloned());
            }
            for name in look {
                match translator.generate(index, &self.view, ty, &name) {
                    Some(resource) => drop(held.insert(name, resource)),
                    None => drop(held.remove(&name)),
                }
            }
        }
    }

    /// What its resources make it ask for.
    fn asked(&self, ty: TypeUrl) -> Vec<Name> {
        let all = self.held.iter().flat_map(BTreeMap::values);
        let mut names: Vec<Name> = all.flat_map(|e| e.needs()).filter(|n| n.ty == ty).map(|n| n.name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Where the two differ.
    pub(super) fn differences(&self, fresh: &Self) -> Vec<String> {
        let mut out = Vec::new();
        if self.view != fresh.view {
            out.push(format!("view {:?} instead of {:?}", self.view, fresh.view));
        }
        for (ty, (ours, theirs)) in TypeUrl::ALL.into_iter().zip(self.held.iter().zip(&fresh.held)) {
            for name in ours.keys().chain(theirs.keys().filter(|n| !ours.contains_key(*n))) {
                match (ours.get(name), theirs.get(name)) {
                    (Some(a), Some(b)) if a.hash() == b.hash() => {}
                    (Some(_), Some(_)) => out.push(format!("{} {name} is stale", ty.short())),
                    (Some(_), None) => out.push(format!("{} {name} should be gone", ty.short())),
                    _ => out.push(format!("{} {name} is missing", ty.short())),
                }
            }
        }
        out
    }

    /// What is held, as one number.
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut all = DefaultHasher::new();
        self.held.iter().flatten().for_each(|(name, e)| (name, e.hash()).hash(&mut all));
        all.finish()
    }

    /// Resources held.
    pub(super) fn len(&self) -> usize {
        self.held.iter().map(BTreeMap::len).sum()
    }
}
