//! Envoy's resources into the plain model: one function a resource type, one error a resource.
//!
//! Owns what of Envoy's API is understood. Everything that is not understood is refused with the path of the field,
//! unless it stands in a table of fields without effect. Knows neither sockets nor the tables that the model is compiled into.
//! Never panics, whatever the bytes.

mod access_log;
mod at;
mod cluster;
mod dns_cache;
mod endpoint;
mod ext_authz;
mod http_filter;
mod istio_stats;
mod jwt;
mod listener;
mod name_table;
mod rate_limit;
mod rbac;
mod route;
mod tls;
mod values;

use std::fmt;

use mesh_api::model;
use mesh_api::xds::envoy;

use at::At;

pub use tls::api_cluster;
pub use values::{structure, type_name};

/// Why a resource is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ResourceError {
    /// Name of the resource.
    pub resource: String,
    /// Field, as in JSON (`filter_chains[0].filters[1].typed_config.http_filters[2]`); empty: the whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.resource)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Result of a conversion.
pub type Result<T, E = ResourceError> = std::result::Result<T, E>;

/// Bytes of an `envoy.config.listener.v3.Listener`.
///
/// # Errors
/// When the bytes cannot be decoded, a value is invalid or something is asked for that does not exist here.
pub fn listener(name: &str, bytes: &[u8]) -> Result<model::Listener> {
    let at = At::resource(name);
    let message: envoy::config::listener::v3::Listener = at.decode(bytes)?;
    listener::listener(&at, &message)
}

/// Bytes of an `envoy.config.route.v3.RouteConfiguration`.
///
/// # Errors
/// As [`listener`].
pub fn route(name: &str, bytes: &[u8]) -> Result<model::RouteConfig> {
    let at = At::resource(name);
    let message: envoy::config::route::v3::RouteConfiguration = at.decode(bytes)?;
    route::route_config(&at, &message, false)
}

/// Bytes of an `envoy.config.cluster.v3.Cluster`.
///
/// # Errors
/// As [`listener`].
pub fn cluster(name: &str, bytes: &[u8]) -> Result<model::Cluster> {
    let at = At::resource(name);
    let message: envoy::config::cluster::v3::Cluster = at.decode(bytes)?;
    cluster::cluster(&at, &message)
}

/// Bytes of an `envoy.config.endpoint.v3.ClusterLoadAssignment`.
///
/// # Errors
/// As [`listener`].
pub fn endpoints(name: &str, bytes: &[u8]) -> Result<model::EndpointSet> {
    let at = At::resource(name);
    let message: envoy::config::endpoint::v3::ClusterLoadAssignment = at.decode(bytes)?;
    endpoint::endpoint_set(&at, &message, endpoint::Hosts::Numeric)
}

/// Bytes of an `envoy.extensions.transport_sockets.tls.v3.Secret`.
///
/// # Errors
/// As [`listener`].
pub fn secret(name: &str, bytes: &[u8]) -> Result<model::Secret> {
    let at = At::resource(name);
    let message: envoy::extensions::transport_sockets::tls::v3::Secret = at.decode(bytes)?;
    tls::secret(&at, &message)
}

/// Bytes of an `envoy.config.core.v3.TypedExtensionConfig`.
///
/// # Errors
/// As [`listener`].
pub fn extension(name: &str, bytes: &[u8]) -> Result<model::ExtensionConfig> {
    let at = At::resource(name);
    let message: envoy::config::core::v3::TypedExtensionConfig = at.decode(bytes)?;
    http_filter::extension(&at, name, &message)
}

/// Bytes of an `istio.networking.nds.v1.NameTable`.
///
/// # Errors
/// When the bytes cannot be decoded. What is no address is left out.
pub fn name_table(name: &str, bytes: &[u8]) -> Result<model::NameTable> {
    Ok(name_table::name_table(At::resource(name).decode(bytes)?))
}

/// An address outside of a resource, e.g. that of the admin server.
///
/// # Errors
/// When it is not one that can be listened at.
pub fn address(place: &str, address: &envoy::config::core::v3::Address) -> Result<model::Address> {
    values::address(&At::resource(place), Some(address))
}
