//! gRPC services of Envoy's and OpenTelemetry's that this process serves or calls, behind plain types.

use std::net::SocketAddr;

use mesh_api::xds::envoy::config::core::v3::{
    Address, HeaderValue, SocketAddress, address, socket_address::PortSpecifier,
};

use crate::http::filters::ext_authz::RawHeader;

pub mod als;
pub mod ext_authz;
mod otlp_log;
pub mod rate_limit;
pub mod sds;

/// A header as a service gives it.
fn raw(header: HeaderValue) -> RawHeader {
    let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
    (header.key, value)
}

fn socket(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}
