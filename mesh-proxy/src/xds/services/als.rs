//! What collectors of access logs are sent: Envoy's access log service (`envoy.service.accesslog.v3`) with its entries of
//! HTTP exchanges and of connections and the stream that carries them, and OTLP.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderName, HeaderValue, Method, Version};
use mesh_api::model::{LoggedHeaders, Name};
use mesh_api::xds::envoy::config::core::v3::{Metadata, Node as NodeMessage, RequestMethod};
use mesh_api::xds::envoy::data::accesslog::v3 as data;
use mesh_api::xds::envoy::service::accesslog::v3::{StreamAccessLogsResponse, stream_access_logs_message::Identifier};
use mesh_api::xds::google::protobuf;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Channel;

use super::{otlp_log, socket};
use crate::config::snapshot::Node;
use crate::http::local_reply::ResponseFlags;
use crate::http::stats::ExchangeStats;
use crate::telemetry::log_export::Codec;
use crate::tls::{CertificateFacts, PeerInfo};
use crate::xds::node;

/// The protocols.
#[derive(Debug, Clone, Copy, Default)]
pub struct Collectors;

/// `StreamAccessLogsMessage`, with entries that are in wire form already.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(message, optional, tag = "1")]
    identifier: Option<Identifier>,
    #[prost(message, optional, tag = "2")]
    http: Option<Entries>,
    #[prost(message, optional, tag = "3")]
    tcp: Option<Entries>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Entries {
    #[prost(bytes = "vec", repeated, tag = "1")]
    log_entry: Vec<Vec<u8>>,
}

impl Codec for Collectors {
    fn record(&self, stats: &ExchangeStats, body: Option<String>, attributes: serde_json::Value) -> Vec<u8> {
        otlp_log::record(stats, body, attributes)
    }

    fn export(
        &self,
        channel: Channel,
        node: &Node,
        log_name: &Name,
        records: &[Vec<u8>],
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        let request = otlp_log::request(node, log_name, records);
        Box::pin(async move { otlp_log::export(channel, request).await.map_err(|e| e.to_string()) })
    }

    fn entry(&self, stats: &ExchangeStats, headers: &LoggedHeaders, tcp: bool) -> Vec<u8> {
        if tcp {
            let connection =
                data::ConnectionProperties { received_bytes: stats.bytes_received, sent_bytes: stats.bytes_sent };
            let entry = data::TcpAccessLogEntry {
                common_properties: Some(common(stats)),
                connection_properties: Some(connection),
            };
            return entry.encode_to_vec();
        }
        let entry = data::HttpAccessLogEntry {
            common_properties: Some(common(stats)),
            protocol_version: if stats.tcp { 0 } else { version(stats.version) },
            request: Some(request(stats, headers)),
            response: Some(response(stats, headers)),
        };
        entry.encode_to_vec()
    }

    fn stream(
        &self,
        channel: Channel,
        node: &Node,
        log_name: &Name,
        tcp: bool,
        batches: mpsc::Receiver<Vec<Vec<u8>>>,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        let node: NodeMessage = node::message(node);
        let mut identifier = Some(Identifier { node: Some(node), log_name: log_name.to_string() });
        let messages = ReceiverStream::new(batches).map(move |log_entry| {
            let entries = Some(Entries { log_entry });
            let (http, tcp) = if tcp { (None, entries) } else { (entries, None) };
            // The first message says who speaks.
            Batch { identifier: identifier.take(), http, tcp }
        });
        Box::pin(async move {
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.map_err(|e| e.to_string())?;
            let path =
                http::uri::PathAndQuery::from_static("/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
            let codec = tonic_prost::ProstCodec::<Batch, StreamAccessLogsResponse>::default();
            let answer = client.client_streaming(tonic::Request::new(messages), path, codec).await;
            answer.map(drop).map_err(|e| e.to_string())
        })
    }
}

fn common(stats: &ExchangeStats) -> data::AccessLogCommon {
    let times = &stats.times;
    let since = |then: Option<tokio::time::Instant>| then.map(|t| duration(t.saturating_duration_since(stats.start)));
    let upstream = stats.upstream.as_deref();
    let remote = upstream.and_then(|u| u.remote).or_else(|| stats.endpoint.as_ref()?.socket_addr());
    let metadata =
        stats.metadata.iter().filter_map(|(name, value)| Some((name.clone(), node::structure(value.as_object()?))));
    data::AccessLogCommon {
        downstream_remote_address: Some(socket(stats.client)),
        downstream_local_address: Some(socket(stats.conn.local)),
        downstream_direct_remote_address: Some(socket(stats.conn.direct_peer)),
        tls_properties: stats.conn.tls.as_ref().map(|t| tls(t, stats.conn.sni.as_deref())),
        start_time: Some(timestamp(stats.start_time.duration_since(UNIX_EPOCH).unwrap_or_default())),
        time_to_last_rx_byte: since(times.request_end),
        time_to_first_upstream_tx_byte: since(times.upstream_start),
        time_to_last_upstream_tx_byte: since(times.upstream_start.and(times.request_end)),
        time_to_first_upstream_rx_byte: since(times.upstream_head),
        time_to_last_upstream_rx_byte: since(times.upstream_end),
        time_to_first_downstream_tx_byte: since(times.response_start),
        time_to_last_downstream_tx_byte: since(times.response_start.and(times.end)),
        upstream_remote_address: remote.map(socket),
        upstream_local_address: upstream.and_then(|u| u.local).map(socket),
        upstream_cluster: match &stats.cluster {
            Some(c) if !c.config.alt_stat_name.is_empty() => c.config.alt_stat_name.to_string(),
            _ => text(stats.cluster_name.as_deref()),
        },
        response_flags: Some(flags(stats.flags)).filter(|_| !stats.flags.is_empty()),
        metadata: Some(Metadata { filter_metadata: metadata.collect(), ..Metadata::default() }),
        upstream_transport_failure_reason: text(stats.transport_failure.as_deref()),
        downstream_transport_failure_reason: text(stats.downstream_failure.as_deref()),
        route_name: text(stats.route_name.as_deref()),
        duration: since(times.end),
        upstream_request_attempt_count: stats.attempts,
        connection_termination_details: text(stats.termination.as_deref()),
        stream_id: stats.request_id.as_ref().map(value).unwrap_or_default(),
        access_log_type: if stats.tcp {
            data::AccessLogType::TcpConnectionEnd.into()
        } else {
            data::AccessLogType::DownstreamEnd.into()
        },
        ..data::AccessLogCommon::default()
    }
}

fn request(stats: &ExchangeStats, headers: &LoggedHeaders) -> data::HttpRequestProperties {
    if stats.tcp {
        return data::HttpRequestProperties::default();
    }
    let of = |name: &'static str| {
        let wanted = HeaderName::from_static(name);
        find(&stats.captured.request, &wanted).unwrap_or_default()
    };
    data::HttpRequestProperties {
        request_method: method(&stats.method).into(),
        scheme: stats.scheme.as_str().to_owned(),
        authority: stats.sent_authority().as_str().to_owned(),
        path: stats.sent_target().as_str().to_owned(),
        user_agent: of("user-agent"),
        referer: of("referer"),
        forwarded_for: of("x-forwarded-for"),
        request_id: stats.request_id.as_ref().map(value).unwrap_or_default(),
        original_path: of("x-envoy-original-path"),
        request_headers_bytes: stats.request_header_bytes,
        request_body_bytes: stats.bytes_received,
        request_headers: chosen(&headers.request, &stats.captured.request),
        ..data::HttpRequestProperties::default()
    }
}

fn response(stats: &ExchangeStats, headers: &LoggedHeaders) -> data::HttpResponseProperties {
    data::HttpResponseProperties {
        response_code: (stats.status != 0).then(|| protobuf::UInt32Value { value: stats.status.into() }),
        response_headers_bytes: stats.response_header_bytes,
        response_body_bytes: stats.bytes_sent,
        response_headers: chosen(&headers.response, &stats.captured.response),
        response_trailers: chosen(&headers.trailers, &stats.captured.trailers),
        response_code_details: stats.reason.details().into_owned(),
        ..data::HttpResponseProperties::default()
    }
}

/// The headers that were asked for by name, as far as they are there.
fn chosen(names: &[Name], from: &[(HeaderName, HeaderValue)]) -> HashMap<String, String> {
    let named = |name: &Name| {
        let found = from.iter().find(|(n, _)| n.as_str().eq_ignore_ascii_case(name))?;
        Some((name.to_ascii_lowercase(), value(&found.1)))
    };
    names.iter().filter_map(named).collect()
}

fn find(list: &[(HeaderName, HeaderValue)], name: &HeaderName) -> Option<String> {
    list.iter().find(|(n, _)| n == name).map(|(_, v)| value(v))
}

fn value(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn text(of: Option<&str>) -> String {
    of.unwrap_or_default().to_owned()
}

fn duration(d: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(d.subsec_nanos()).unwrap_or(0),
    }
}

fn timestamp(since: Duration) -> protobuf::Timestamp {
    let d = duration(since);
    protobuf::Timestamp { seconds: d.seconds, nanos: d.nanos }
}

fn version(version: Version) -> i32 {
    use data::http_access_log_entry::HttpVersion as V;
    let known = match version {
        Version::HTTP_09 | Version::HTTP_10 => V::Http10,
        Version::HTTP_11 => V::Http11,
        Version::HTTP_2 => V::Http2,
        Version::HTTP_3 => V::Http3,
        _ => V::ProtocolUnspecified,
    };
    known.into()
}

fn method(method: &Method) -> RequestMethod {
    match method.as_str() {
        "GET" => RequestMethod::Get,
        "HEAD" => RequestMethod::Head,
        "POST" => RequestMethod::Post,
        "PUT" => RequestMethod::Put,
        "DELETE" => RequestMethod::Delete,
        "CONNECT" => RequestMethod::Connect,
        "OPTIONS" => RequestMethod::Options,
        "TRACE" => RequestMethod::Trace,
        "PATCH" => RequestMethod::Patch,
        _ => RequestMethod::MethodUnspecified,
    }
}

fn tls(tls: &PeerInfo, sni: Option<&str>) -> data::TlsProperties {
    use data::tls_properties::TlsVersion as V;
    use data::tls_properties::certificate_properties::{SubjectAltName, subject_alt_name::San};
    let version = match tls.version {
        "TLSv1.2" => V::TlSv12,
        "TLSv1.3" => V::TlSv13,
        _ => V::VersionUnspecified,
    };
    let certificate = |facts: &CertificateFacts| {
        let uri = facts.uri_sans.iter().map(|n| San::Uri(n.to_string()));
        let dns = facts.dns_sans.iter().map(|n| San::Dns(n.to_string()));
        data::tls_properties::CertificateProperties {
            subject_alt_name: uri.chain(dns).map(|san| SubjectAltName { san: Some(san) }).collect(),
            subject: facts.subject.to_string(),
            issuer: facts.issuer.to_string(),
        }
    };
    data::TlsProperties {
        tls_version: version.into(),
        tls_cipher_suite: suite(tls.cipher).map(|value| protobuf::UInt32Value { value }),
        tls_sni_hostname: text(sni),
        local_certificate_properties: tls.local.as_deref().map(certificate),
        peer_certificate_properties: tls.certificate.as_deref().map(certificate),
        ..data::TlsProperties::default()
    }
}

/// The number of a cipher suite by OpenSSL's name.
fn suite(name: &str) -> Option<u32> {
    Some(match name {
        "TLS_AES_128_GCM_SHA256" => 0x1301,
        "TLS_AES_256_GCM_SHA384" => 0x1302,
        "TLS_CHACHA20_POLY1305_SHA256" => 0x1303,
        "ECDHE-ECDSA-AES128-GCM-SHA256" => 0xc02b,
        "ECDHE-ECDSA-AES256-GCM-SHA384" => 0xc02c,
        "ECDHE-RSA-AES128-GCM-SHA256" => 0xc02f,
        "ECDHE-RSA-AES256-GCM-SHA384" => 0xc030,
        "ECDHE-RSA-CHACHA20-POLY1305" => 0xcca8,
        "ECDHE-ECDSA-CHACHA20-POLY1305" => 0xcca9,
        _ => return None,
    })
}

fn flags(flags: ResponseFlags) -> data::ResponseFlags {
    use data::response_flags::{Unauthorized, unauthorized::Reason};
    type F = ResponseFlags;
    let has = |flag| flags.contains(flag);
    data::ResponseFlags {
        failed_local_healthcheck: has(F::LH),
        no_healthy_upstream: has(F::UH),
        upstream_request_timeout: has(F::UT),
        local_reset: has(F::LR),
        upstream_remote_reset: has(F::UR),
        upstream_connection_failure: has(F::UF),
        upstream_connection_termination: has(F::UC),
        upstream_overflow: has(F::UO),
        no_route_found: has(F::NR),
        delay_injected: has(F::DI),
        fault_injected: has(F::FI),
        rate_limited: has(F::RL),
        unauthorized_details: has(F::UAEX).then(|| Unauthorized { reason: Reason::ExternalService.into() }),
        rate_limit_service_error: has(F::RLSE),
        downstream_connection_termination: has(F::DC),
        upstream_retry_limit_exceeded: has(F::URX),
        stream_idle_timeout: has(F::SI),
        invalid_envoy_request_headers: has(F::IH),
        downstream_protocol_error: has(F::DPE),
        upstream_max_stream_duration_reached: has(F::UMSDR),
        response_from_cache_filter: has(F::RFCF),
        no_filter_config_found: has(F::NFCF),
        duration_timeout: has(F::DT),
        upstream_protocol_error: has(F::UPE),
        no_cluster_found: has(F::NC),
        overload_manager: has(F::OM),
        dns_resolution_failure: has(F::DF),
        downstream_remote_reset: has(F::DR),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use mesh_api::xds::envoy::service::accesslog::v3::{
        StreamAccessLogsMessage, stream_access_logs_message::LogEntries,
    };

    use super::*;
    use crate::http::local_reply::Reason;
    use crate::http::testing;

    fn stats() -> ExchangeStats {
        let mut stats = ExchangeStats::new(Rc::new(testing::conn()), &testing::get("a.test", "/x?y=1"));
        stats.status = 503;
        stats.end_with(Reason::NoHealthyUpstream);
        stats.times.end = Some(stats.start + Duration::from_millis(1500));
        stats.bytes_sent = 7;
        let header = |n: &'static str, v: &'static str| (HeaderName::from_static(n), HeaderValue::from_static(v));
        stats.captured.request.extend([header("user-agent", "ua"), header("x-a", "1"), header("x-b", "2")]);
        stats.metadata.insert("f".to_owned(), serde_json::json!({"k": "v"}));
        stats
    }

    #[tokio::test]
    async fn an_entry_tells_what_is_known() {
        let headers = LoggedHeaders { request: vec!["X-A".into(), "x-none".into()], ..LoggedHeaders::default() };
        let entry = Collectors.entry(&stats(), &headers, false);
        let entry = data::HttpAccessLogEntry::decode(&*entry).unwrap();
        let common = entry.common_properties.unwrap();
        assert!(common.response_flags.unwrap().no_healthy_upstream);
        assert_eq!(common.duration, Some(protobuf::Duration { seconds: 1, nanos: 500_000_000 }));
        assert!(common.metadata.unwrap().filter_metadata.contains_key("f"));
        assert_eq!((common.upstream_remote_address, common.time_to_last_rx_byte), (None, None));
        let request = entry.request.unwrap();
        assert_eq!((request.path.as_str(), request.user_agent.as_str()), ("/x?y=1", "ua"));
        assert_eq!(request.request_headers, HashMap::from([("x-a".to_owned(), "1".to_owned())]));
        let response = entry.response.unwrap();
        assert_eq!(response.response_code.unwrap().value, 503);
        assert_eq!((response.response_code_details.as_str(), response.response_body_bytes), ("no_healthy_upstream", 7));
        let tcp = ExchangeStats { bytes_received: 3, tcp: true, ..stats() };
        let entry = data::TcpAccessLogEntry::decode(&*Collectors.entry(&tcp, &headers, true)).unwrap();
        assert_eq!(entry.connection_properties.unwrap().received_bytes, 3);
        assert_eq!(entry.common_properties.unwrap().access_log_type, data::AccessLogType::TcpConnectionEnd as i32);
    }

    #[tokio::test]
    async fn a_batch_is_the_services_message() {
        let log_entry = vec![Collectors.entry(&stats(), &LoggedHeaders::default(), false)];
        let identifier = Some(Identifier { node: None, log_name: "log".to_owned() });
        let bytes = Batch { identifier, http: Some(Entries { log_entry }), tcp: None }.encode_to_vec();
        let message = StreamAccessLogsMessage::decode(&*bytes).unwrap();
        assert_eq!(message.identifier.unwrap().log_name, "log");
        let Some(LogEntries::HttpLogs(logs)) = message.log_entries else { panic!("other entries") };
        assert_eq!(logs.log_entry[0].request.as_ref().unwrap().path, "/x?y=1");
    }
}
