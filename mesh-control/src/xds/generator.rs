//! The border between what is computed and how it is served: streams ask a [`Generator`] for resources by name.
//!
//! Owns the trait and the vocabulary of change. The streams know neither the index nor the view of a proxy: both are
//! opaque values of the generator.

use std::{net::IpAddr, sync::Arc};

use mesh_api::xds::TypeUrl;

use super::{
    encoded::{Encoded, Name},
    node::Client,
};
use crate::{source::object::Object, validate::Finding};

/// Computes resources; pure, called from many threads at once.
pub trait Generator: Send + Sync + 'static {
    /// An immutable state of the mesh, cheap to clone.
    type Index: Clone + Send + Sync + 'static;
    /// The difference between two states.
    type Change: Clone + Send + Sync + 'static;
    /// The few facts of a proxy that its resources depend on.
    type View: PartialEq + Send + Sync + 'static;

    /// What `client` is under `index`. The text of an error reaches the client.
    fn view(&self, index: &Self::Index, client: &Client) -> Result<Self::View, String>;

    /// What a wildcard subscription of this type holds, in a fixed order; empty for types without a wildcard.
    fn names(&self, index: &Self::Index, view: &Self::View, ty: TypeUrl) -> Arc<[Name]>;

    /// One resource; `None` when it does not exist for this proxy. For wildcard types exactly the names of
    /// [`Self::names`] and whatever may be asked for beyond them.
    fn generate(&self, index: &Self::Index, view: &Self::View, ty: TypeUrl, name: &str) -> Option<Arc<Encoded>>;

    /// Whom a change may concern, without looking at any proxy.
    fn reach(&self, index: &Self::Index, change: &Self::Change) -> Reach;

    /// What a change may have altered for one proxy. Too much costs time, too little leaves a proxy behind.
    fn affected(&self, index: &Self::Index, change: &Self::Change, view: &Self::View) -> Affected;

    /// What is wrong with objects and showed only when resources were made from them.
    fn findings(&self, _index: &Self::Index) -> Vec<Finding> {
        vec![]
    }

    /// Objects by which users changed resources of a type for a client in Envoy's own terms, which nobody but the proxy
    /// can judge in full.
    fn patched_by(&self, _view: &Self::View, _ty: TypeUrl) -> Vec<Arc<Object>> {
        vec![]
    }

    /// Adds a later change to an earlier one.
    fn merge(&self, change: &mut Self::Change, later: Self::Change);
}

/// Whom a change may concern.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Every client is asked by [`Generator::affected`], after debouncing. When false the change touches nothing but
    /// `names` and `addresses`, and goes out at once.
    pub all: bool,
    /// Resources whose subscribers are concerned (endpoint changes: EDS names of all ports and subsets).
    pub names: Vec<(TypeUrl, Name)>,
    /// Proxies at these addresses derive their view anew.
    pub addresses: Vec<IpAddr>,
}

/// Names of one type that may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Names {
    /// None.
    #[default]
    None,
    /// These; whether they exist, appeared or vanished is found out by generating them.
    Some(Vec<Name>),
    /// Any.
    All,
}

/// What may have changed for one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Affected {
    /// Derive the view anew; when it differs, everything may have changed.
    pub view: bool,
    /// By type, in the order of [`TypeUrl::ALL`].
    pub types: [Names; TypeUrl::ALL.len()],
}

impl Affected {
    /// Nothing changed.
    pub fn none() -> Self {
        Self::default()
    }

    /// Anything may have changed.
    pub fn all() -> Self {
        Self { view: true, types: std::array::from_fn(|_| Names::All) }
    }

    /// Any resource of this type may have changed.
    pub fn with_all(mut self, ty: TypeUrl) -> Self {
        if let Some(slot) = self.types.get_mut(ty as usize) {
            *slot = Names::All;
        }
        self
    }

    /// Adds what another change may have altered.
    pub fn add(&mut self, other: Self) {
        self.view |= other.view;
        for (old, new) in self.types.iter_mut().zip(other.types) {
            match (&mut *old, new) {
                (Names::All, _) | (_, Names::None) => {}
                (Names::Some(old), Names::Some(new)) => old.extend(new),
                (old, new) => *old = new,
            }
        }
    }

    /// These resources may have changed.
    pub fn with(mut self, ty: TypeUrl, names: impl IntoIterator<Item = Name>) -> Self {
        if let Some(slot) = self.types.get_mut(ty as usize) {
            match slot {
                Names::All => {}
                Names::Some(old) => old.extend(names),
                Names::None => {
                    let names: Vec<Name> = names.into_iter().collect();
                    if !names.is_empty() {
                        *slot = Names::Some(names);
                    }
                }
            }
        }
        self
    }
}
