//! Resources of one response: decoded, applied, remembered; what cannot be used is refused by name while the rest
//! applies. The same for both protocols.

use std::collections::BTreeSet;

use bytes::Bytes;
use mesh_api::model::{Name, NameTable, SdsRef, SdsSource};
use mesh_api::xds::TypeUrl;

use super::convert;
use super::protocol::Resource;
use super::store::SharedStore;
use crate::config::ConfigError;
use crate::config::SharedConfig;
use crate::config::apply::Configurator;
use crate::dns::Names;

/// Applies resources; the refusals by name.
pub fn update(
    config: &mut Configurator,
    shared: &SharedConfig,
    names: Option<&Names>,
    store: &SharedStore,
    ty: TypeUrl,
    resources: &[Resource],
) -> Vec<(Name, String)> {
    let mut refused = Vec::new();
    for Resource { name, version, wire } in resources {
        if store.lock().is_same(ty, name, wire) {
            store.lock().accept(ty, name, version, wire.clone());
            continue;
        }
        match one(config, shared, names, ty, name, wire) {
            Ok(()) => store.lock().accept(ty, name, version, wire.clone()),
            Err(error) => {
                tracing::warn!(target: "xds", "{} {name} is refused: {error}", ty.short());
                store.lock().refuse(ty, name, version, wire.clone(), &error.0);
                if ty == TypeUrl::Extension {
                    config.extension_refused(name);
                }
                refused.push((name.clone(), error.0));
            }
        }
    }
    refused
}

fn one(
    config: &mut Configurator,
    shared: &SharedConfig,
    names: Option<&Names>,
    ty: TypeUrl,
    name: &Name,
    wire: &Bytes,
) -> Result<(), ConfigError> {
    // The path stands in front of the message; the name is said once, by the caller.
    let refused = |e: convert::ResourceError| {
        ConfigError(if e.path.is_empty() { e.message } else { format!("{}: {}", e.path, e.message) })
    };
    match ty {
        TypeUrl::Cluster => config.put_cluster(convert::cluster(name, wire).map_err(refused)?),
        TypeUrl::Endpoints => {
            config.put_endpoints(name, convert::endpoints(name, wire).map_err(refused)?);
            Ok(())
        }
        TypeUrl::Listener => config.put_listener(convert::listener(name, wire).map_err(refused)?),
        TypeUrl::Route => config.put_routes(&convert::route(name, wire).map_err(refused)?),
        TypeUrl::Secret => {
            let secret = convert::secret(name, wire).map_err(refused)?;
            let reference = SdsRef { name: name.clone(), source: SdsSource::Ads };
            config.secret_exists(name, true);
            shared.secrets.put(&reference, secret.kind).map_err(ConfigError::new)
        }
        TypeUrl::Extension => config.put_extension(convert::extension(name, wire).map_err(refused)?),
        TypeUrl::NameTable => {
            let table = convert::name_table(name, wire).map_err(refused)?;
            let names = names.ok_or_else(|| ConfigError::new("DNS is not answered here"))?;
            names.put(&table);
            Ok(())
        }
    }
}

/// Takes resources away.
pub fn remove(
    config: &mut Configurator,
    shared: &SharedConfig,
    names_of_mesh: Option<&Names>,
    store: &SharedStore,
    ty: TypeUrl,
    names: &[Name],
) {
    for name in names {
        match ty {
            TypeUrl::Cluster => config.remove_cluster(name),
            TypeUrl::Endpoints => config.remove_endpoints(name),
            TypeUrl::Listener => config.remove_listener(name),
            TypeUrl::Route => config.remove_routes(name),
            TypeUrl::Secret => {
                shared.secrets.remove(&SdsRef { name: name.clone(), source: SdsSource::Ads });
                config.secret_exists(name, false);
            }
            TypeUrl::Extension => config.remove_extension(name),
            // Without one every name is asked of others.
            TypeUrl::NameTable => names_of_mesh.iter().for_each(|n| n.put(&NameTable::default())),
        }
        store.lock().remove(ty, name);
    }
}

/// Forgets resources that nothing refers to any more.
pub fn forget(config: &mut Configurator, shared: &SharedConfig, store: &SharedStore, ty: TypeUrl, names: &[Name]) {
    for name in names {
        match ty {
            TypeUrl::Endpoints => config.remove_endpoints(name),
            TypeUrl::Route => config.forget_routes(name),
            TypeUrl::Secret => config.secret_exists(name, true),
            TypeUrl::Extension => config.forget_extension(name),
            TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::NameTable => {}
        }
        store.lock().remove(ty, name);
    }
    if ty == TypeUrl::Secret {
        shared.secrets.collect();
    }
}

/// Names of a type that are wanted now.
pub fn wanted(config: &Configurator, shared: &SharedConfig, ty: TypeUrl) -> BTreeSet<Name> {
    match ty {
        TypeUrl::Endpoints => config.wanted_endpoints().into_iter().collect(),
        TypeUrl::Route => config.wanted_routes().into_iter().collect(),
        TypeUrl::Secret => {
            shared.secrets.wanted().into_iter().filter(|s| s.source == SdsSource::Ads).map(|s| s.name).collect()
        }
        TypeUrl::Extension => config.wanted_extensions(),
        TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::NameTable => BTreeSet::new(),
    }
}
