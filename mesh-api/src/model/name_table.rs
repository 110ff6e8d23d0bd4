//! The names that a proxy's side answers DNS by (`istio.networking.nds.v1.NameTable`).

use std::{collections::BTreeMap, net::IpAddr};

use serde::Serialize;

use super::Name;

/// Hosts and their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct NameTable(pub BTreeMap<Name, NameInfo>);

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct NameInfo {
    /// Its addresses, in the order in which they are told.
    pub ips: Vec<IpAddr>,
    /// Who declares it.
    pub registry: Registry,
    /// Name of the Kubernetes Service (`POD.SERVICE` of a pod of one); its shorter forms are answered too. Empty: there
    /// are none.
    pub short_name: Name,
    /// Namespace of that Service; empty beside an empty short name.
    pub namespace: Name,
}

/// Who declares a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
pub enum Registry {
    /// A Service.
    #[default]
    Kubernetes,
    /// A ServiceEntry.
    External,
}

impl Registry {
    /// As it is told.
    pub const fn as_str(self) -> &'static str {
        match self {
            Registry::Kubernetes => "Kubernetes",
            Registry::External => "External",
        }
    }
}
