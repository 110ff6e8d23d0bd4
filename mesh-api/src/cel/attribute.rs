//! Envoy's attributes by name.

use super::Dialect;

/// What an expression can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // named as in Envoy's list of attributes
pub enum Attribute {
    RequestPath,
    RequestUrlPath,
    RequestHost,
    RequestScheme,
    RequestMethod,
    /// Read with the name of a header.
    RequestHeaders,
    RequestReferer,
    RequestUserAgent,
    RequestTime,
    RequestId,
    RequestProtocol,
    RequestQuery,
    RequestDuration,
    RequestSize,
    RequestTotalSize,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseGrpcStatus,
    /// Read with the name of a header.
    ResponseHeaders,
    /// Read with the name of a trailer.
    ResponseTrailers,
    ResponseSize,
    ResponseTotalSize,
    ResponseBackendLatency,
    ConnectionId,
    ConnectionMtls,
    ConnectionServerName,
    ConnectionTermination,
    ConnectionTransportFailure,
    ConnectionTlsVersion,
    ConnectionSubjectLocal,
    ConnectionSubjectPeer,
    ConnectionDnsSanLocal,
    ConnectionDnsSanPeer,
    ConnectionUriSanLocal,
    ConnectionUriSanPeer,
    ConnectionDigestPeer,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    UpstreamAddress,
    UpstreamPort,
    UpstreamLocalAddress,
    UpstreamTransportFailure,
    UpstreamAttempts,
    UpstreamTlsVersion,
    UpstreamSubjectLocal,
    UpstreamSubjectPeer,
    UpstreamDnsSanLocal,
    UpstreamDnsSanPeer,
    UpstreamUriSanLocal,
    UpstreamUriSanPeer,
    UpstreamDigestPeer,
    /// Dynamic metadata, read with `filter_metadata` and keys.
    Metadata,
    /// Read with the name of an object and keys.
    FilterState,
    /// The proxy's node, read with its members.
    Node,
    ClusterName,
    /// Read with `filter_metadata` and keys.
    ClusterMetadata,
    ListenerDirection,
    RouteName,
    VirtualHostName,
    FilterChainName,
    /// Read with `filter_metadata` and keys.
    HostMetadata,
    /// What a peer told of itself, and Istio's names for it; read with a member.
    DownstreamPeer,
    /// As [`Attribute::DownstreamPeer`], of the upstream.
    UpstreamPeer,
    /// A name that means nothing: never has a value.
    Unknown,
}

impl Attribute {
    /// The attribute at the start of a path of names, and how many of them it takes.
    pub(super) fn of(path: &[Box<str>], dialect: Dialect) -> (Self, usize) {
        use Attribute as A;
        let label = dialect == Dialect::Label;
        let word = |at: usize| path.get(at).map_or("", |w| &**w);
        let of = match (word(0), word(1)) {
            ("metadata", _) => return (A::Metadata, 1),
            ("node", _) if label => return (A::Node, 1),
            ("downstream_peer", _) if label => return (A::DownstreamPeer, 1),
            ("upstream_peer", _) if label => return (A::UpstreamPeer, 1),
            ("filter_state", "downstream_peer" | "wasm.downstream_peer") => A::DownstreamPeer,
            ("filter_state", "upstream_peer" | "wasm.upstream_peer") => A::UpstreamPeer,
            ("filter_state", _) => return (A::FilterState, 1),
            ("request", name) => Self::request(name),
            ("response", name) => Self::response(name),
            ("connection", name) => Self::connection(name),
            ("source", "address") => A::SourceAddress,
            ("source", "port") => A::SourcePort,
            ("destination", "address") => A::DestinationAddress,
            ("destination", "port") => A::DestinationPort,
            ("upstream", name) => Self::upstream(name),
            ("xds", name) => Self::xds(name),
            _ => A::Unknown,
        };
        (of, 2)
    }

    /// Whether it holds members, so that it is there even if it has none.
    pub(super) fn is_map(self) -> bool {
        use Attribute as A;
        matches!(self, A::RequestHeaders | A::ResponseHeaders | A::ResponseTrailers | A::Metadata)
    }

    fn request(name: &str) -> Self {
        use Attribute as A;
        match name {
            "path" => A::RequestPath,
            "url_path" => A::RequestUrlPath,
            "host" => A::RequestHost,
            "scheme" => A::RequestScheme,
            "method" => A::RequestMethod,
            "headers" => A::RequestHeaders,
            "referer" => A::RequestReferer,
            "useragent" => A::RequestUserAgent,
            "time" => A::RequestTime,
            "id" => A::RequestId,
            "protocol" => A::RequestProtocol,
            "query" => A::RequestQuery,
            "duration" => A::RequestDuration,
            "size" => A::RequestSize,
            "total_size" => A::RequestTotalSize,
            _ => A::Unknown,
        }
    }

    fn response(name: &str) -> Self {
        use Attribute as A;
        match name {
            "code" => A::ResponseCode,
            "code_details" => A::ResponseCodeDetails,
            "flags" => A::ResponseFlags,
            "grpc_status" => A::ResponseGrpcStatus,
            "headers" => A::ResponseHeaders,
            "trailers" => A::ResponseTrailers,
            "size" => A::ResponseSize,
            "total_size" => A::ResponseTotalSize,
            "backend_latency" => A::ResponseBackendLatency,
            _ => A::Unknown,
        }
    }

    fn connection(name: &str) -> Self {
        use Attribute as A;
        match name {
            "id" => A::ConnectionId,
            "mtls" => A::ConnectionMtls,
            "requested_server_name" => A::ConnectionServerName,
            "termination_details" => A::ConnectionTermination,
            "transport_failure_reason" => A::ConnectionTransportFailure,
            "tls_version" => A::ConnectionTlsVersion,
            "subject_local_certificate" => A::ConnectionSubjectLocal,
            "subject_peer_certificate" => A::ConnectionSubjectPeer,
            "dns_san_local_certificate" => A::ConnectionDnsSanLocal,
            "dns_san_peer_certificate" => A::ConnectionDnsSanPeer,
            "uri_san_local_certificate" => A::ConnectionUriSanLocal,
            "uri_san_peer_certificate" => A::ConnectionUriSanPeer,
            "sha256_peer_certificate_digest" => A::ConnectionDigestPeer,
            _ => A::Unknown,
        }
    }

    fn upstream(name: &str) -> Self {
        use Attribute as A;
        match name {
            "address" => A::UpstreamAddress,
            "port" => A::UpstreamPort,
            "local_address" => A::UpstreamLocalAddress,
            "transport_failure_reason" => A::UpstreamTransportFailure,
            "request_attempt_count" => A::UpstreamAttempts,
            "tls_version" => A::UpstreamTlsVersion,
            "subject_local_certificate" => A::UpstreamSubjectLocal,
            "subject_peer_certificate" => A::UpstreamSubjectPeer,
            "dns_san_local_certificate" => A::UpstreamDnsSanLocal,
            "dns_san_peer_certificate" => A::UpstreamDnsSanPeer,
            "uri_san_local_certificate" => A::UpstreamUriSanLocal,
            "uri_san_peer_certificate" => A::UpstreamUriSanPeer,
            "sha256_peer_certificate_digest" => A::UpstreamDigestPeer,
            _ => A::Unknown,
        }
    }

    fn xds(name: &str) -> Self {
        use Attribute as A;
        match name {
            "node" => A::Node,
            "cluster_name" => A::ClusterName,
            "cluster_metadata" => A::ClusterMetadata,
            "listener_direction" => A::ListenerDirection,
            "route_name" => A::RouteName,
            "virtual_host_name" => A::VirtualHostName,
            "filter_chain_name" => A::FilterChainName,
            "upstream_host_metadata" => A::HostMetadata,
            _ => A::Unknown,
        }
    }
}
