//! What the control plane said last of each resource: bytes in force, their version, and the newest refusal. For
//! `/config_dump`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use mesh_api::model::Name;
use mesh_api::xds::TypeUrl;
use mesh_api::xds::dump::{ConfigDump, DumpEntry, DumpError};
use parking_lot::Mutex;

/// Shared with the admin server.
pub type SharedStore = Arc<Mutex<Store>>;

/// All resources by type and name.
#[derive(Debug, Default)]
pub struct Store {
    resources: BTreeMap<TypeUrl, BTreeMap<Name, DumpEntry>>,
    /// The bootstrap, as wire bytes.
    pub bootstrap: Bytes,
    /// When it was read.
    pub started: Option<SystemTime>,
}

impl Store {
    /// A resource of the bootstrap file.
    pub fn put_static(&mut self, ty: TypeUrl, name: &Name, wire: Bytes) {
        let entry = DumpEntry {
            name: name.to_string(),
            is_static: true,
            wire: Some(wire),
            updated: Some(SystemTime::now()),
            ..DumpEntry::default()
        };
        self.resources.entry(ty).or_default().insert(name.clone(), entry);
    }

    /// An accepted resource.
    pub fn accept(&mut self, ty: TypeUrl, name: &Name, version: &str, wire: Bytes) {
        let entry = self.resources.entry(ty).or_default().entry(name.clone()).or_default();
        *entry = DumpEntry {
            name: name.to_string(),
            version: version.to_owned(),
            wire: Some(wire),
            updated: Some(SystemTime::now()),
            ..DumpEntry::default()
        };
    }

    /// A refused one; what was accepted before stays.
    pub fn refuse(&mut self, ty: TypeUrl, name: &Name, version: &str, wire: Bytes, why: &str) {
        let entry = self.resources.entry(ty).or_default().entry(name.clone()).or_default();
        entry.name = name.to_string();
        entry.error = Some(DumpError {
            wire: Some(wire),
            version: version.to_owned(),
            at: Some(SystemTime::now()),
            details: why.to_owned(),
        });
    }

    /// An accepted listener could not be bound: what was sent counts as refused.
    pub fn unbound(&mut self, name: &Name, version: &str, wire: Bytes, why: &str) {
        let Some(entry) = self.resources.get_mut(&TypeUrl::Listener).and_then(|all| all.get_mut(name)) else { return };
        let wire = if wire.is_empty() { entry.wire.take() } else { Some(wire) };
        let version = if version.is_empty() { std::mem::take(&mut entry.version) } else { version.to_owned() };
        entry.wire = None;
        entry.error = Some(DumpError { wire, version, at: Some(SystemTime::now()), details: why.to_owned() });
    }

    /// A resource is gone.
    pub fn remove(&mut self, ty: TypeUrl, name: &str) {
        if let Some(all) = self.resources.get_mut(&ty) {
            all.remove(name);
        }
    }

    /// What is in force has these very bytes.
    pub fn is_same(&self, ty: TypeUrl, name: &str, wire: &Bytes) -> bool {
        let entry = self.resources.get(&ty).and_then(|all| all.get(name));
        entry.is_some_and(|e| e.error.is_none() && e.wire.as_ref() == Some(wire))
    }

    /// Everything, for a dump.
    pub fn dump(&self) -> ConfigDump {
        let of = |ty| self.resources.get(&ty).into_iter().flat_map(|all| all.values().cloned()).collect();
        ConfigDump {
            bootstrap: self.bootstrap.to_vec(),
            started: self.started,
            listeners: of(TypeUrl::Listener),
            clusters: of(TypeUrl::Cluster),
            routes: of(TypeUrl::Route),
            endpoints: of(TypeUrl::Endpoints),
            secrets: of(TypeUrl::Secret),
            extensions: of(TypeUrl::Extension),
            ..ConfigDump::default()
        }
    }
}

pub use mesh_api::xds::dump::DumpQuery;
pub use mesh_api::xds::json::timestamp;

/// A secret that was made in this process: named, never shown.
pub fn local_secret(name: &str, state: &crate::tls::SecretState) -> DumpEntry {
    use mesh_api::xds::dump::DumpState;
    DumpEntry {
        name: name.to_owned(),
        state: if state.material.is_some() { DumpState::Active } else { DumpState::Warming },
        version: state.generation.to_string(),
        updated: Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(state.updated)),
        ..DumpEntry::default()
    }
}
