//! What injection depends on beside the pod, and where a control plane has it from.

use mesh_api::meshconfig::MeshConfig;

use super::{proxy_config::ProxyConfigObject, values::Values};
use crate::{
    index::Index,
    source::object::{Kind, Spec},
    validate::INJECTOR,
};

/// What injection depends on beside the pod.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Operator's values.
    pub values: Values,
    /// Mesh-wide settings.
    pub mesh: MeshConfig,
    /// ProxyConfig objects.
    pub proxy_configs: Vec<ProxyConfigObject>,
    /// Whether the cluster runs sidecars as init containers that stay.
    pub native_sidecars: bool,
}

impl Settings {
    /// Those of the moment: values of the injector's ConfigMap, MeshConfig, ProxyConfigs. `native`: the cluster has init
    /// containers that stay.
    ///
    /// # Errors
    /// When the values cannot be read.
    pub fn of(index: &Index, revision: &str, native: bool) -> Result<Self, String> {
        let (namespace, name, key) = INJECTOR;
        let text = index.config_map(namespace, name).and_then(|map| map.data.get(key));
        let root = index.mesh().root_namespace();
        let place = || match revision {
            "" | "default" => format!("ConfigMap {root}/{name}, {key}"),
            revision => format!("ConfigMap {root}/{name}-{revision}, {key}"),
        };
        let mut values =
            Values::read(text.map_or("{}", String::as_str), &[]).map_err(|e| format!("{}: {e}", place()))?;
        if values.revision.is_empty() {
            revision.clone_into(&mut values.revision);
        }
        let proxy_configs = index.objects(Kind::ProxyConfig).filter_map(|o| match &o.spec {
            Spec::ProxyConfig(spec) => Some(ProxyConfigObject {
                namespace: o.key.namespace.to_string(),
                name: o.key.name.to_string(),
                spec: (**spec).clone(),
            }),
            _ => None,
        });
        Ok(Self {
            native_sidecars: values.native_sidecars() && native,
            values,
            mesh: index.mesh().clone(),
            proxy_configs: proxy_configs.collect(),
        })
    }
}
