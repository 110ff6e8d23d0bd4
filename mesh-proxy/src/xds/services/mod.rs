//! gRPC services of Envoy's that this process serves or calls, behind plain types.

pub mod sds;
