//! The generator of all resources: finds the maker of a resource by type and name.
//!
//! Owns the caches and what a change may alter for whom. Must not know what resources look like.

use std::sync::Arc;

use mesh_api::xds::TypeUrl;

use super::scope::{Scope, Scopes};
use crate::{
    index::{ChangeSet, Index},
    view::ProxyView,
    xds::{
        encoded::{Encoded, Name},
        generator::{Affected, Generator, Reach},
        node::Client,
    },
};

/// What makers of resources are asked with.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The state of the mesh.
    pub index: &'a Index,
    /// Who asks.
    pub view: &'a ProxyView,
    /// What it sees.
    pub scope: &'a Arc<Scope>,
}

/// Makes every resource; one for the process.
#[derive(Debug, Default)]
pub struct Translator {
    scopes: Scopes,
}

impl Translator {
    /// With empty caches.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a proxy sees.
    pub fn scope(&self, index: &Index, view: &ProxyView) -> Arc<Scope> {
        self.scopes.get(index, view)
    }
}

impl Generator for Translator {
    type Index = Index;
    type Change = ChangeSet;
    type View = ProxyView;

    fn view(&self, index: &Index, client: &Client) -> Result<ProxyView, String> {
        Ok(index.view(ProxyView::of_client(client)))
    }

    fn names(&self, index: &Index, view: &ProxyView, ty: TypeUrl) -> Arc<[Name]> {
        let scope = self.scope(index, view);
        let _request = Request { index, view, scope: &scope };
        match ty {
            // The makers of listeners, routes and secrets are called here.
            TypeUrl::Cluster | TypeUrl::Listener => Arc::default(),
            TypeUrl::Endpoints | TypeUrl::Route | TypeUrl::Secret | TypeUrl::Extension => Arc::default(),
        }
    }

    fn generate(&self, index: &Index, view: &ProxyView, ty: TypeUrl, _name: &str) -> Option<Arc<Encoded>> {
        let scope = self.scope(index, view);
        let _request = Request { index, view, scope: &scope };
        match ty {
            TypeUrl::Cluster | TypeUrl::Endpoints => None,
            TypeUrl::Listener | TypeUrl::Route | TypeUrl::Secret => None,
            TypeUrl::Extension => None,
        }
    }

    fn reach(&self, _index: &Index, change: &ChangeSet) -> Reach {
        Reach { all: !change.only_endpoints(), names: vec![], addresses: change.addresses.iter().copied().collect() }
    }

    fn affected(&self, _index: &Index, _change: &ChangeSet, _view: &ProxyView) -> Affected {
        Affected::all()
    }

    fn merge(&self, change: &mut ChangeSet, later: ChangeSet) {
        change.merge(later);
    }
}
