//! The TLS contexts of a cluster and which one an endpoint gets.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::model::{Cluster, Name, TlsMatch, UpstreamTls};

use super::{ClientTls, SecretStore, TlsError};

/// The contexts of one cluster: a default and some chosen by endpoint labels (`transport_socket_matches`).
#[derive(Debug, Default)]
pub struct ClusterTls {
    default: Option<Arc<ClientTls>>,
    matches: Vec<Choice>,
}

#[derive(Debug)]
struct Choice {
    name: Name,
    labels: BTreeMap<String, String>,
    tls: Option<Arc<ClientTls>>,
}

impl ClusterTls {
    /// Cleartext for every endpoint.
    pub fn none() -> Self {
        Self::default()
    }

    /// The contexts that a cluster declares.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(cluster: &Cluster, store: &Arc<SecretStore>) -> Result<Self, TlsError> {
        Self::of(cluster.tls.as_ref(), &cluster.tls_matches, store)
    }

    /// As [`Self::new`], from the parts.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn of(default: Option<&UpstreamTls>, matches: &[TlsMatch], store: &Arc<SecretStore>) -> Result<Self, TlsError> {
        let client = |tls: Option<&UpstreamTls>| tls.map(|t| ClientTls::new(t, store)).transpose();
        let matches = matches
            .iter()
            .map(|m| Ok(Choice { name: m.name.clone(), labels: m.labels.clone(), tls: client(m.tls.as_ref())? }))
            .collect::<Result<_, TlsError>>()?;
        Ok(Self { default: client(default)?, matches })
    }

    /// The context for an endpoint with these `tls_labels`; `None`: cleartext. The first match wins.
    pub fn select(&self, labels: &BTreeMap<String, String>) -> Option<&Arc<ClientTls>> {
        let fits = |choice: &&Choice| choice.labels.iter().all(|(k, v)| labels.get(k) == Some(v));
        match self.matches.iter().find(fits) {
            Some(choice) => choice.tls.as_ref(),
            None => self.default.as_ref(),
        }
    }

    /// Name of the match that an endpoint with these labels falls under; `None`: the default.
    pub fn match_name(&self, labels: &BTreeMap<String, String>) -> Option<&Name> {
        self.matches.iter().find(|c| c.labels.iter().all(|(k, v)| labels.get(k) == Some(v))).map(|c| &c.name)
    }

    /// Whether no endpoint is reached by TLS.
    pub fn is_none(&self) -> bool {
        self.default.is_none() && self.matches.iter().all(|c| c.tls.is_none())
    }

    /// Whether all secrets are there.
    pub fn ready(&self) -> bool {
        self.contexts().all(|c| c.ready())
    }

    /// Secrets that are missing.
    pub fn missing(&self) -> Vec<Name> {
        self.contexts().flat_map(|c| c.missing()).collect()
    }

    fn contexts(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        self.default.iter().chain(self.matches.iter().filter_map(|c| c.tls.as_ref()))
    }
}
