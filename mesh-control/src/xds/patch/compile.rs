//! From what the user wrote to patches that are ready to apply: values as messages of the right type, the expression on
//! the version compiled.

use std::sync::Arc;

use mesh_api::{
    crd::networking::envoy_filter::{ApplyTo, EnvoyFilter, ObjectMatch, Operation},
    node::NodeMetadata,
    xds::json,
};
use prost_reflect::{DynamicMessage, ReflectMessage as _, Value};
use serde_json::{Map, Value as Json};

use super::{dynamic, merge::Lists};
use crate::{index::Stamp, source::object::ObjectKey};

/// Longest expression on versions: versions are short, and compiling costs.
pub const MAX_VERSION_PATTERN: usize = 1024;
/// Most bytes of what such an expression becomes; validation refuses what is larger.
const MAX_VERSION_PROGRAM: usize = 1 << 20;

/// One patch of an EnvoyFilter.
#[derive(Debug)]
pub struct Patch {
    /// Tells this state of this patch from every other.
    pub id: Stamp,
    /// The EnvoyFilter.
    pub object: ObjectKey,
    /// Which of its `configPatches`.
    pub index: usize,
    /// What is changed.
    pub apply_to: ApplyTo,
    /// How.
    pub operation: Operation,
    /// Where.
    pub matches: ObjectMatch,
    /// With what; of a removal nothing.
    pub value: DynamicMessage,
    version: Version,
}

/// What `match.proxy.proxyVersion` asks.
#[derive(Debug)]
enum Version {
    Any,
    Like(regex::Regex),
    /// An expression that is too long holds for no version, as in Istio.
    None,
}

impl Patch {
    /// Field of the object that says this.
    pub fn field(&self) -> String {
        format!("spec.configPatches[{}].patch.value", self.index)
    }

    /// Whether it is for a proxy that says this of itself.
    pub fn is_for(&self, proxy: &NodeMetadata) -> bool {
        let version = match &self.version {
            Version::Any => true,
            // Whoever tells no version has none that could fit.
            Version::Like(pattern) => !proxy.istio_version.is_empty() && pattern.is_match(&proxy.istio_version),
            Version::None => false,
        };
        let wanted = self.matches.proxy.iter().flat_map(|p| &p.metadata);
        version && wanted.into_iter().all(|(key, value)| proxy.text(key).as_deref() == Some(value))
    }

    /// How lists merge, when this merges.
    pub(super) fn merges(&self) -> Option<Lists> {
        match self.operation {
            Operation::Merge => Some(Lists::Append),
            Operation::MergeAndReplaceList => Some(Lists::Replace),
            _ => None,
        }
    }
}

/// What is wrong with one patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field in the object.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// An EnvoyFilter, ready to apply.
#[derive(Debug, Default)]
pub struct Compiled {
    /// In the order in which they are written.
    pub patches: Vec<Arc<Patch>>,
    /// What is wrong with those that are left out.
    pub problems: Vec<Problem>,
}

/// Reads every patch of an EnvoyFilter. What has no effect (bootstraps, waypoints) is left out without a word.
pub fn compile(object: &ObjectKey, filter: &EnvoyFilter) -> Compiled {
    use mesh_api::crd::networking::envoy_filter::PatchContext;
    let mut out = Compiled::default();
    for (index, config) in filter.config_patches.iter().enumerate() {
        let matches = config.matches.clone().unwrap_or_default();
        let Some(patch) = &config.patch else { continue };
        if config.apply_to == ApplyTo::Bootstrap || matches.context == PatchContext::Waypoint {
            continue;
        }
        let version = match matches.proxy.as_ref().map(|p| p.proxy_version.as_str()).filter(|v| !v.is_empty()) {
            None => Version::Any,
            Some(pattern) if pattern.len() > MAX_VERSION_PATTERN => Version::None,
            Some(pattern) => match regex::RegexBuilder::new(pattern).size_limit(MAX_VERSION_PROGRAM).build() {
                Ok(pattern) => Version::Like(pattern),
                Err(_) => Version::None,
            },
        };
        let empty = Map::new();
        let value = match read_value(config.apply_to, index, patch.value.as_ref().unwrap_or(&empty)) {
            Ok(value) => value,
            Err(problem) => {
                out.problems.push(problem);
                continue;
            }
        };
        out.patches.push(Arc::new(Patch {
            id: Stamp::next(),
            object: object.clone(),
            index,
            apply_to: config.apply_to,
            operation: effective(config.apply_to, patch.operation),
            matches,
            value,
            version,
        }));
    }
    out
}

/// Where there is no order to insert by, to insert is to add.
fn effective(apply_to: ApplyTo, operation: Operation) -> Operation {
    let ordered =
        [ApplyTo::ListenerFilter, ApplyTo::NetworkFilter, ApplyTo::HttpFilter, ApplyTo::HttpRoute].contains(&apply_to);
    match operation {
        Operation::InsertBefore | Operation::InsertAfter | Operation::InsertFirst if !ordered => Operation::Add,
        other => other,
    }
}

/// Type of the values of a part of the configuration; `None`: there are none.
fn type_of(apply_to: ApplyTo) -> Option<&'static str> {
    Some(match apply_to {
        ApplyTo::Invalid => return None,
        ApplyTo::Listener => "envoy.config.listener.v3.Listener",
        ApplyTo::FilterChain => "envoy.config.listener.v3.FilterChain",
        ApplyTo::NetworkFilter => "envoy.config.listener.v3.Filter",
        ApplyTo::ListenerFilter => "envoy.config.listener.v3.ListenerFilter",
        ApplyTo::HttpFilter => "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        ApplyTo::RouteConfiguration => "envoy.config.route.v3.RouteConfiguration",
        ApplyTo::VirtualHost => "envoy.config.route.v3.VirtualHost",
        ApplyTo::HttpRoute => "envoy.config.route.v3.Route",
        ApplyTo::Cluster => "envoy.config.cluster.v3.Cluster",
        ApplyTo::ExtensionConfig => "envoy.config.core.v3.TypedExtensionConfig",
        ApplyTo::Bootstrap => "envoy.config.bootstrap.v3.Bootstrap",
    })
}

/// Reads the value of the patch at `index` of an EnvoyFilter.
///
/// # Errors
/// A field or type that Envoy does not have, or a value of the wrong kind, with the path of the field in the object.
pub fn read_value(apply_to: ApplyTo, index: usize, value: &Map<String, Json>) -> Result<DynamicMessage, Problem> {
    let base = format!("spec.configPatches[{index}]");
    let Some(descriptor) = type_of(apply_to).and_then(dynamic::descriptor) else {
        return Err(Problem { field: format!("{base}.applyTo"), message: "is required".to_owned() });
    };
    let kind = descriptor.name().to_owned();
    let mut message = json::read(&Json::Object(value.clone()), descriptor).map_err(|error| {
        let inner = error.path.trim_start_matches('.');
        let dot = if inner.is_empty() || inner == "." { "" } else { "." };
        let hint = if error.message.contains(".v2.") { " (Envoy knows version 3 of its messages only)" } else { "" };
        Problem {
            field: format!("{base}.patch.value{dot}{inner}"),
            message: format!("is not what Envoy's {kind} has there: {}{hint}", error.message),
        }
    })?;
    dynamic::settle(&mut message);
    Ok(message)
}

/// Names of extensions within a value that are to be found by their name alone, which Envoy does not do any more.
pub fn unconfigured(message: &DynamicMessage) -> Vec<String> {
    let descriptor = message.descriptor();
    let mut out = Vec::new();
    for (_, value) in message.fields() {
        if let Value::Message(inner) = value {
            out.extend(unconfigured(inner));
        }
    }
    let has = |field: &str| message.has_field_by_name(field);
    if descriptor.get_field_by_name("typed_config").is_some() && !has("typed_config") && !has("config_discovery") {
        out.push(dynamic::text(message, "name").to_owned());
    }
    out
}
