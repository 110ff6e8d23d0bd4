//! Patches that are accepted and do not do what they say, or not for sure.

use mesh_api::crd::networking::envoy_filter::{ApplyTo, ConfigPatch, EnvoyFilter, Operation};

use super::checker::Checker;
use crate::validate::Finding;

impl Checker<'_> {
    pub(super) fn patches(&mut self, filter: &EnvoyFilter) {
        for (i, config) in filter.config_patches.iter().enumerate() {
            let Some(patch) = &config.patch else { continue };
            let field = format!("spec.configPatches[{i}].patch.operation");
            let on = config.apply_to;
            let finding = match patch.operation {
                Operation::Add if on == ApplyTo::RouteConfiguration => {
                    Finding::error(field, "has no effect: route configurations cannot be added").code("IST0153")
                }
                Operation::Remove if on == ApplyTo::RouteConfiguration => {
                    Finding::error(field, "has no effect: route configurations cannot be removed").code("IST0154")
                }
                Operation::Replace if !can_be_replaced(on) => {
                    Finding::error(field, "has no effect: only filters and virtual hosts are replaced").code("IST0152")
                }
                Operation::Remove | Operation::Replace | Operation::InsertBefore | Operation::InsertAfter
                    if filter.priority == 0 =>
                {
                    let message = "depends on what other EnvoyFilters do, and spec.priority is not set";
                    let code = if for_some_versions(filter, &name(config)) { "IST0155" } else { "IST0151" };
                    Finding::warning(field, message).code(code)
                }
                _ => continue,
            };
            self.found.push(finding);
        }
    }
}

fn can_be_replaced(apply_to: ApplyTo) -> bool {
    use ApplyTo::{HttpFilter, ListenerFilter, NetworkFilter, VirtualHost};
    matches!(apply_to, HttpFilter | ListenerFilter | NetworkFilter | VirtualHost)
}

/// Whether a patch of this name holds for some versions of the proxy only.
fn for_some_versions(filter: &EnvoyFilter, of: &str) -> bool {
    let proxy = |config: &&ConfigPatch| {
        config.matches.as_ref().and_then(|m| m.proxy.as_ref()).is_some_and(|p| !p.proxy_version.is_empty())
    };
    filter.config_patches.iter().filter(proxy).any(|config| name(config) == of)
}

/// What a patch is about: the name in its value, else the filter that it is for.
fn name(config: &ConfigPatch) -> String {
    let value = config.patch.as_ref().and_then(|p| p.value.as_ref());
    if let Some(name) = value.and_then(|v| v.get("name")).and_then(serde_json::Value::as_str) {
        return name.to_owned();
    }
    let chain = config.matches.as_ref().and_then(|m| m.listener.as_ref()).and_then(|l| l.filter_chain.as_ref());
    chain.and_then(|c| c.filter.as_ref()).map(|f| f.name.clone()).unwrap_or_default()
}
