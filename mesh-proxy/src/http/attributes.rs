//! What CEL expressions see of an exchange: Envoy's attributes, found in an [`ExchangeStats`]. Knows no expression.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use http::{HeaderName, HeaderValue};
use mesh_api::cel::{Attribute, Attributes, Expression, Value};
use mesh_api::model::TrafficDirection;
use tokio::time::Instant;

use super::format::protocol;
use super::local_reply::grpc_status_of;
use super::stats::{ExchangeStats, Needs, want};
use crate::config::{CompileCtx, snapshot::Node};
use crate::tls::{CertificateFacts, PeerInfo};

/// Where in the mesh an exchange is looked at.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// The proxy.
    pub node: Arc<Node>,
    /// Direction of the listener.
    pub direction: TrafficDirection,
}

impl Place {
    /// The listener that is being compiled.
    pub fn of(ctx: &CompileCtx) -> Self {
        Self { node: ctx.shared.node.clone(), direction: ctx.direction }
    }
}

/// A finished exchange or connection.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'e> {
    /// What is remembered of it.
    pub stats: &'e ExchangeStats,
    /// Where it happened.
    pub place: &'e Place,
}

/// Adds the headers that an expression reads. Names that are computed cannot be kept for it; they have no value.
pub fn needs(expression: &Expression, needs: &mut Needs) {
    expression.reads(&mut |attribute, path| {
        let (list, name) = match (attribute, path.first()) {
            (Attribute::RequestHeaders, Some(name)) => (&mut needs.request, &**name),
            (Attribute::RequestReferer, _) => (&mut needs.request, "referer"),
            (Attribute::RequestUserAgent, _) => (&mut needs.request, "user-agent"),
            (Attribute::ResponseHeaders, Some(name)) => (&mut needs.response, &**name),
            (Attribute::ResponseTrailers, Some(name)) => (&mut needs.trailers, &**name),
            _ => return,
        };
        want(list, name);
    });
}

impl Attributes for Exchange<'_> {
    fn get<'a>(&'a self, attribute: Attribute, path: &[Box<str>]) -> Option<Value<'a>> {
        let key = match path {
            [] => None,
            [key] => Some(&**key),
            _ => return self.structure(attribute, path),
        };
        match (attribute, key) {
            (Attribute::RequestHeaders, Some(name)) => self.request_header(name),
            (Attribute::ResponseHeaders, Some(":status")) => self.status().map(|s| Value::text(s.to_string())),
            (Attribute::ResponseHeaders, Some(name)) => header(&self.stats.captured.response, name),
            (Attribute::ResponseTrailers, Some(name)) => header(&self.stats.captured.trailers, name),
            (_, Some(_)) => self.structure(attribute, path),
            (_, None) if self.stats.tcp && is_of_http(attribute) => None,
            (_, None) => self.scalar(attribute),
        }
    }
}

/// Whether it means nothing for a connection whose bytes are forwarded.
fn is_of_http(attribute: Attribute) -> bool {
    use Attribute as A;
    matches!(
        attribute,
        A::RequestPath
            | A::RequestUrlPath
            | A::RequestHost
            | A::RequestScheme
            | A::RequestMethod
            | A::RequestReferer
            | A::RequestUserAgent
            | A::RequestId
            | A::RequestProtocol
            | A::RequestQuery
            | A::ResponseCode
            | A::ResponseGrpcStatus
    )
}

impl Exchange<'_> {
    fn scalar(&self, attribute: Attribute) -> Option<Value<'_>> {
        use Attribute as A;
        let stats = self.stats;
        let target = stats.sent_target();
        Some(match attribute {
            A::RequestPath => Value::text(target.as_str()),
            A::RequestUrlPath => Value::text(target.path()),
            A::RequestQuery => Value::text(target.query().unwrap_or_default()),
            A::RequestHost => Value::text(stats.sent_authority().as_str()),
            A::RequestScheme => Value::text(stats.scheme.as_str()),
            A::RequestMethod => Value::text(stats.method.as_str()),
            A::RequestReferer => return self.request_header("referer"),
            A::RequestUserAgent => return self.request_header("user-agent"),
            A::RequestId => text(stats.request_id.as_ref()?)?,
            A::RequestProtocol => Value::text(protocol(stats.version)),
            A::RequestTime => {
                let since = stats.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
                Value::Timestamp(i128::try_from(since.as_nanos()).ok()?)
            }
            A::RequestDuration => between(stats.start, stats.times.end?)?,
            A::RequestSize => int(stats.bytes_received),
            A::RequestTotalSize => int(stats.bytes_received + stats.request_header_bytes),
            A::ResponseCode => Value::Int(self.status()?.into()),
            A::ResponseCodeDetails => match stats.reason.details() {
                details if details.is_empty() => return None,
                details => Value::text(details),
            },
            A::ResponseFlags => Value::Int(stats.flags.bits().into()),
            // Of an answer without one, the one that its HTTP status means.
            A::ResponseGrpcStatus => {
                Value::Int(stats.grpc_status.or_else(|| self.status().map(grpc_status_of))?.into())
            }
            A::ResponseSize => int(stats.bytes_sent),
            A::ResponseTotalSize => int(stats.bytes_sent + stats.response_header_bytes + stats.response_trailer_bytes),
            A::ResponseBackendLatency => between(stats.times.upstream_start?, stats.times.upstream_end?)?,
            A::SourceAddress => address(stats.client),
            A::SourcePort => Value::Int(stats.client.port().into()),
            A::DestinationAddress => address(stats.conn.local),
            A::DestinationPort => Value::Int(stats.conn.local.port().into()),
            A::ClusterName => Value::text(stats.cluster.as_ref().and(stats.cluster_name.as_deref())?),
            A::RouteName => Value::text(stats.route_name.as_deref().unwrap_or_default()),
            A::VirtualHostName => Value::text(stats.virtual_host.as_deref().unwrap_or_default()),
            A::ListenerDirection => Value::Int(match self.place.direction {
                TrafficDirection::Unspecified => 0,
                TrafficDirection::Inbound => 1,
                TrafficDirection::Outbound => 2,
            }),
            A::FilterChainName => Value::text(&*stats.conn.chain),
            other => return self.connection(other).or_else(|| self.upstream(other)),
        })
    }

    fn connection(&self, attribute: Attribute) -> Option<Value<'_>> {
        use Attribute as A;
        let stats = self.stats;
        let tls = || stats.conn.tls.as_ref();
        Some(match attribute {
            A::ConnectionId => Value::Uint(stats.conn.id),
            A::ConnectionMtls => Value::Bool(tls().is_some_and(|t| t.certificate.is_some())),
            A::ConnectionServerName => Value::text(stats.conn.sni.as_deref().unwrap_or_default()),
            A::ConnectionTermination => Value::text(stats.termination.as_deref()?),
            A::ConnectionTransportFailure => Value::text(stats.downstream_failure.as_deref().unwrap_or_default()),
            A::ConnectionTlsVersion => Value::text(tls()?.version),
            A::ConnectionSubjectLocal => subject(tls()?.local.as_deref()),
            A::ConnectionSubjectPeer => subject(tls()?.certificate.as_deref()),
            A::ConnectionDnsSanLocal => Value::text(&**tls()?.local.as_deref()?.dns_sans.first()?),
            A::ConnectionDnsSanPeer => Value::text(&**tls()?.certificate.as_deref()?.dns_sans.first()?),
            A::ConnectionUriSanLocal => Value::text(&**tls()?.local.as_deref()?.uri_sans.first()?),
            A::ConnectionUriSanPeer => Value::text(&**tls()?.certificate.as_deref()?.uri_sans.first()?),
            A::ConnectionDigestPeer => Value::text(tls()?.certificate.as_deref()?.sha256().as_ref()),
            _ => return None,
        })
    }

    fn upstream(&self, attribute: Attribute) -> Option<Value<'_>> {
        use Attribute as A;
        let stats = self.stats;
        let connection = stats.upstream.as_deref();
        let host =
            || connection.and_then(|u| u.remote).or_else(|| stats.endpoint.as_ref().and_then(|e| e.socket_addr()));
        let tls = || -> Option<&PeerInfo> { connection?.tls.as_ref() };
        Some(match attribute {
            A::UpstreamAddress => address(host()?),
            A::UpstreamPort => Value::Int(host()?.port().into()),
            A::UpstreamLocalAddress => address(connection?.local?),
            A::UpstreamTransportFailure => Value::text(stats.transport_failure.as_deref().unwrap_or_default()),
            A::UpstreamAttempts => Value::Uint(stats.attempts.into()),
            A::UpstreamTlsVersion => Value::text(tls()?.version),
            A::UpstreamSubjectLocal => subject(tls()?.local.as_deref()),
            A::UpstreamSubjectPeer => subject(tls()?.certificate.as_deref()),
            A::UpstreamDnsSanLocal => Value::text(&**tls()?.local.as_deref()?.dns_sans.first()?),
            A::UpstreamDnsSanPeer => Value::text(&**tls()?.certificate.as_deref()?.dns_sans.first()?),
            A::UpstreamUriSanLocal => Value::text(&**tls()?.local.as_deref()?.uri_sans.first()?),
            A::UpstreamUriSanPeer => Value::text(&**tls()?.certificate.as_deref()?.uri_sans.first()?),
            A::UpstreamDigestPeer => Value::text(tls()?.certificate.as_deref()?.sha256().as_ref()),
            _ => return None,
        })
    }

    /// What lies in metadata and in the node.
    fn structure(&self, attribute: Attribute, path: &[Box<str>]) -> Option<Value<'_>> {
        let stats = self.stats;
        let (first, rest) = path.split_first()?;
        let metadata = match (attribute, &**first) {
            (Attribute::Node, "id") if rest.is_empty() => return Some(Value::text(self.place.node.id.as_str())),
            (Attribute::Node, "cluster") if rest.is_empty() => {
                return Some(Value::text(self.place.node.cluster.as_str()));
            }
            (Attribute::Node, "metadata") => &self.place.node.metadata,
            (Attribute::Node, "locality") => {
                let [member] = rest else { return None };
                let locality = &self.place.node.locality;
                return Some(match &**member {
                    "region" => Value::text(&*locality.region),
                    "zone" => Value::text(&*locality.zone),
                    "sub_zone" => Value::text(&*locality.sub_zone),
                    _ => return None,
                });
            }
            (Attribute::Metadata, "filter_metadata") => return below(|k| stats.metadata.get(k), rest),
            (Attribute::ClusterMetadata, "filter_metadata") => {
                return below(|k| stats.cluster.as_ref()?.config.metadata.get(k), rest);
            }
            (Attribute::HostMetadata, "filter_metadata") => {
                return below(|k| stats.endpoint.as_ref()?.config.metadata.get(k), rest);
            }
            _ => return None,
        };
        below(|k| metadata.get(k), rest)
    }

    fn request_header(&self, name: &str) -> Option<Value<'_>> {
        let stats = self.stats;
        if stats.tcp {
            return None;
        }
        match name {
            ":method" => Some(Value::text(stats.method.as_str())),
            ":path" => Some(Value::text(stats.sent_target().as_str())),
            ":authority" => Some(Value::text(stats.sent_authority().as_str())),
            ":scheme" => Some(Value::text(stats.scheme.as_str())),
            _ => header(&stats.captured.request, name),
        }
    }

    /// Status sent to the client; `None`: none was.
    fn status(&self) -> Option<u16> {
        (self.stats.status != 0 && !self.stats.tcp).then_some(self.stats.status)
    }
}

fn below<'a>(get: impl Fn(&str) -> Option<&'a serde_json::Value>, path: &[Box<str>]) -> Option<Value<'a>> {
    let (first, rest) = path.split_first()?;
    Value::of_json_at(get(first)?, rest)
}

fn header<'a>(list: &'a [(HeaderName, HeaderValue)], name: &str) -> Option<Value<'a>> {
    list.iter().find(|(n, _)| n.as_str() == name).and_then(|(_, v)| text(v))
}

fn text(value: &HeaderValue) -> Option<Value<'_>> {
    std::str::from_utf8(value.as_bytes()).ok().map(Value::text)
}

fn int(n: u64) -> Value<'static> {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn address(address: SocketAddr) -> Value<'static> {
    Value::text(address.to_string())
}

fn subject(facts: Option<&CertificateFacts>) -> Value<'_> {
    Value::text(facts.map_or("", |f| &*f.subject))
}

fn between(from: Instant, to: Instant) -> Option<Value<'static>> {
    i128::try_from(to.saturating_duration_since(from).as_nanos()).ok().map(Value::Duration)
}
