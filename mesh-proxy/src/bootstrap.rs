//! Envoy's bootstrap file: read, checked, turned into the plain model.
//!
//! Owns what `-c FILE` may say: node, admin address, static resources, where ADS is. The file is YAML or JSON of
//! `envoy.config.bootstrap.v3.Bootstrap`; an unknown field is refused with its path. Opens nothing but the file.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use mesh_api::model;
use mesh_api::xds::envoy::config::{
    bootstrap::v3 as proto, cluster::v3 as cluster, core::v3 as core, endpoint::v3 as endpoint,
    overload::v3 as overload,
};
use mesh_api::xds::envoy::extensions::resource_monitors;
use mesh_api::xds::google::protobuf;
use mesh_api::xds::json;
use prost::Message;
use serde_json::{Map, Value};

use crate::xds::convert::{self, ResourceError};

/// Name of the control plane's cluster, as Istio's bootstrap has it.
const CONTROL_CLUSTER: &str = "xds-grpc";

/// What a bootstrap file says.
#[derive(Debug, Clone, Default)]
pub struct Bootstrap {
    /// Who we are (`--service-node` and `--service-cluster` replace id and cluster).
    pub node: Node,
    /// Admin server; `None`: none.
    pub admin: Option<model::Address>,
    /// `static_resources.listeners`.
    pub listeners: Vec<StaticResource<model::Listener>>,
    /// `static_resources.clusters`.
    pub clusters: Vec<StaticResource<model::Cluster>>,
    /// `static_resources.secrets`.
    pub secrets: Vec<StaticResource<model::Secret>>,
    /// `dynamic_resources.ads_config`.
    pub ads: Option<AdsConfig>,
    /// Listeners come over ADS.
    pub lds: Option<DynamicResources>,
    /// Clusters come over ADS.
    pub cds: Option<DynamicResources>,
    /// Limits of the process.
    pub limits: Limits,
    /// The whole message as wire bytes, for `config_dump`.
    pub wire: Bytes,
}

/// A static resource with the bytes it was made of.
#[derive(Debug, Clone)]
pub struct StaticResource<T> {
    /// Its name.
    pub name: model::Name,
    /// Its meaning.
    pub value: T,
    /// Its wire bytes (without `Any` around it).
    pub wire: Bytes,
}

/// `envoy.config.core.v3.Node`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Id.
    pub id: String,
    /// Cluster.
    pub cluster: String,
    /// Metadata, untouched.
    pub metadata: Map<String, Value>,
    /// Locality.
    pub locality: model::Locality,
}

/// Where ADS is and how it is spoken.
#[derive(Debug, Clone, PartialEq)]
pub struct AdsConfig {
    /// `DELTA_GRPC` instead of `GRPC`.
    pub delta: bool,
    /// Static cluster of the server.
    pub cluster: model::Name,
    /// `:authority`; empty: the cluster's name.
    pub authority: model::Name,
    /// Headers of the stream.
    pub initial_metadata: Vec<(model::Name, model::Name)>,
    /// The node is sent on the first request of a stream only.
    pub set_node_on_first_message_only: bool,
}

/// One of `lds_config`, `cds_config`, served by ADS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicResources {
    /// How long initialisation waits for the first answer; zero: for ever.
    pub initial_fetch_timeout: Duration,
}

/// Limits of the process (`overload_manager`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Downstream connections at once (`envoy.resource_monitors.global_downstream_max_connections`).
    pub max_downstream_connections: Option<u64>,
    /// Heap in bytes (`envoy.resource_monitors.fixed_heap`).
    pub max_heap_bytes: Option<u64>,
}

/// Why a bootstrap file cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BootstrapError {
    /// Not readable.
    #[error("{file}: {reason}")]
    Read {
        /// File.
        file: String,
        /// Reason of the system.
        reason: String,
    },
    /// Not YAML or JSON of a bootstrap.
    #[error("{0}")]
    Syntax(String),
    /// Valid, but asks for something that does not exist here.
    #[error("{path}: {message}")]
    Unsupported {
        /// Field.
        path: String,
        /// Reason.
        message: String,
    },
    /// A static resource is refused.
    #[error("static_resources: {0}")]
    Resource(#[from] ResourceError),
}

impl Bootstrap {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is unreadable, not a bootstrap, or asks for what does not exist here.
    pub fn read(path: &Path) -> Result<Self, BootstrapError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| BootstrapError::Read { file: path.display().to_string(), reason: e.to_string() })?;
        Self::parse(&text)
    }

    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// As [`Bootstrap::read`].
    pub fn parse(text: &str) -> Result<Self, BootstrapError> {
        let wire = json::parse(text, "envoy.config.bootstrap.v3.Bootstrap")
            .map_err(|e| BootstrapError::Syntax(e.to_string()))?;
        let message = proto::Bootstrap::decode(&*wire).map_err(|e| BootstrapError::Syntax(e.to_string()))?;
        let mut out = Self { wire: wire.into(), ..Self::default() };
        if let Some(node) = &message.node {
            out.node = read_node(node);
        }
        if let Some(address) = message.admin.as_ref().and_then(|a| a.address.as_ref()) {
            out.admin = Some(convert::address("admin", address)?);
        }
        if let Some(fixed) = &message.static_resources {
            out.listeners = all(&fixed.listeners, |l| &l.name, convert::listener)?;
            out.clusters = all(&fixed.clusters, |c| &c.name, convert::cluster)?;
            out.secrets = all(&fixed.secrets, |s| &s.name, convert::secret)?;
        }
        if let Some(dynamic) = &message.dynamic_resources {
            out.ads = dynamic.ads_config.as_ref().map(read_ads).transpose()?;
            out.lds = dynamic.lds_config.as_ref().map(|c| by_ads("lds_config", c)).transpose()?;
            out.cds = dynamic.cds_config.as_ref().map(|c| by_ads("cds_config", c)).transpose()?;
            if out.ads.is_none() && (out.lds.is_some() || out.cds.is_some()) {
                return unsupported(
                    "dynamic_resources.ads_config",
                    "is required: listeners and clusters come over ADS",
                );
            }
        }
        if let Some(manager) = &message.overload_manager {
            out.limits = read_limits(manager)?;
        }
        Ok(out)
    }
}

/// What a sidecar or gateway starts with, in the words of a bootstrap: for `config_dump`, which shows no other.
/// `control` is HOST:PORT of the control plane.
pub fn of_workload(node: core::Node, admin: SocketAddr, control: &str) -> Bytes {
    use core::{address, api_config_source, config_source, grpc_service, socket_address};
    let place = |host: &str, port: u16| core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            address: host.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.into())),
            ..core::SocketAddress::default()
        })),
    };
    let server = core::GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: CONTROL_CLUSTER.to_owned(),
            ..grpc_service::EnvoyGrpc::default()
        })),
        ..core::GrpcService::default()
    };
    let by_ads = || core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..core::ConfigSource::default()
    };
    let (host, port) = control.rsplit_once(':').unwrap_or((control, ""));
    let endpoint = endpoint::Endpoint {
        address: Some(place(host.trim_matches(['[', ']']), port.parse().unwrap_or(0))),
        ..endpoint::Endpoint::default()
    };
    let endpoint = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
        ..endpoint::LbEndpoint::default()
    };
    let group = endpoint::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    let upstream = cluster::Cluster {
        name: CONTROL_CLUSTER.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::StrictDns.into(),
        )),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: CONTROL_CLUSTER.to_owned(),
            endpoints: vec![group],
            ..Default::default()
        }),
        ..cluster::Cluster::default()
    };
    let message = proto::Bootstrap {
        node: Some(node),
        admin: Some(proto::Admin { address: Some(place(&admin.ip().to_string(), admin.port())), ..Default::default() }),
        static_resources: Some(proto::bootstrap::StaticResources { clusters: vec![upstream], ..Default::default() }),
        dynamic_resources: Some(proto::bootstrap::DynamicResources {
            lds_config: Some(by_ads()),
            cds_config: Some(by_ads()),
            ads_config: Some(core::ApiConfigSource {
                api_type: api_config_source::ApiType::DeltaGrpc.into(),
                transport_api_version: core::ApiVersion::V3.into(),
                grpc_services: vec![server],
                ..core::ApiConfigSource::default()
            }),
            ..Default::default()
        }),
        ..proto::Bootstrap::default()
    };
    message.encode_to_vec().into()
}

fn unsupported<T>(path: &str, message: impl Into<String>) -> Result<T, BootstrapError> {
    Err(BootstrapError::Unsupported { path: path.to_owned(), message: message.into() })
}

/// Converts resources with the same code that converts those of xDS.
fn all<M: Message, T>(
    messages: &[M],
    name: impl Fn(&M) -> &String,
    convert: impl Fn(&str, &[u8]) -> convert::Result<T>,
) -> Result<Vec<StaticResource<T>>, BootstrapError> {
    let mut out = Vec::with_capacity(messages.len());
    for message in messages {
        let wire: Bytes = message.encode_to_vec().into();
        let name = name(message);
        out.push(StaticResource { name: name.as_str().into(), value: convert(name, &wire)?, wire });
    }
    Ok(out)
}

fn read_node(node: &core::Node) -> Node {
    let metadata = node.metadata.as_ref().map(convert::structure);
    let place = node.locality.clone().unwrap_or_default();
    Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        metadata: match metadata {
            Some(Value::Object(map)) => map,
            _ => Map::new(),
        },
        locality: model::Locality {
            region: place.region.into(),
            zone: place.zone.into(),
            sub_zone: place.sub_zone.into(),
        },
    }
}

fn read_ads(api: &core::ApiConfigSource) -> Result<AdsConfig, BootstrapError> {
    use core::api_config_source::ApiType;
    use core::grpc_service::TargetSpecifier;
    const PATH: &str = "dynamic_resources.ads_config";
    let delta = match ApiType::try_from(api.api_type) {
        Ok(ApiType::Grpc) => false,
        Ok(ApiType::DeltaGrpc) => true,
        _ => return unsupported(PATH, "api_type must be GRPC or DELTA_GRPC"),
    };
    let service = api.grpc_services.first();
    let Some(TargetSpecifier::EnvoyGrpc(grpc)) = service.and_then(|s| s.target_specifier.as_ref()) else {
        return unsupported(PATH, "must name a cluster by grpc_services.envoy_grpc");
    };
    let metadata = service.map(|s| s.initial_metadata.as_slice()).unwrap_or_default();
    Ok(AdsConfig {
        delta,
        cluster: grpc.cluster_name.as_str().into(),
        authority: grpc.authority.as_str().into(),
        initial_metadata: metadata.iter().map(|h| (h.key.as_str().into(), h.value.as_str().into())).collect(),
        set_node_on_first_message_only: api.set_node_on_first_message_only,
    })
}

fn by_ads(field: &str, source: &core::ConfigSource) -> Result<DynamicResources, BootstrapError> {
    let path = format!("dynamic_resources.{field}");
    if !matches!(source.config_source_specifier, Some(core::config_source::ConfigSourceSpecifier::Ads(_))) {
        return unsupported(&path, "only ads is supported");
    }
    let timeout = source.initial_fetch_timeout.as_ref().map_or(Some(Duration::from_secs(15)), duration);
    match timeout {
        Some(initial_fetch_timeout) => Ok(DynamicResources { initial_fetch_timeout }),
        None => unsupported(&path, "initial_fetch_timeout is not a duration of zero or more"),
    }
}

fn duration(d: &protobuf::Duration) -> Option<Duration> {
    Some(Duration::new(u64::try_from(d.seconds).ok()?, u32::try_from(d.nanos).ok()?))
}

fn read_limits(manager: &overload::OverloadManager) -> Result<Limits, BootstrapError> {
    use overload::resource_monitor::ConfigType::TypedConfig;
    let mut limits = Limits::default();
    for monitor in &manager.resource_monitors {
        let Some(TypedConfig(any)) = &monitor.config_type else { continue };
        let broken = |e: prost::DecodeError| BootstrapError::Syntax(format!("overload_manager {}: {e}", monitor.name));
        match convert::type_name(any) {
            "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig" => {
                let config = resource_monitors::downstream_connections::v3::DownstreamConnectionsConfig::decode(
                    any.value.as_slice(),
                )
                .map_err(broken)?;
                limits.max_downstream_connections = u64::try_from(config.max_active_downstream_connections).ok();
            }
            "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig" => {
                let config =
                    resource_monitors::fixed_heap::v3::FixedHeapConfig::decode(any.value.as_slice()).map_err(broken)?;
                limits.max_heap_bytes = Some(config.max_heap_size_bytes);
            }
            other => return unsupported("overload_manager.resource_monitors", format!("{other} is not supported")),
        }
    }
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
node: {id: n, cluster: c, metadata: {A: {B: 1}}, locality: {zone: z}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    grpc_services: [{envoy_grpc: {cluster_name: xds}, initial_metadata: [{key: a, value: b}]}]
  cds_config: {ads: {}, initial_fetch_timeout: 0s}
  lds_config: {ads: {}}
layered_runtime: {layers: [{name: l, static_layer: {a: 1}}]}
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 0.0.0.0, port_value: 80}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: xds
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment:
      cluster_name: xds
      endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: /run/xds.sock}}}}]}]
";

    #[test]
    fn reads_what_envoy_reads() {
        let b = Bootstrap::parse(TEXT).unwrap();
        assert_eq!((b.node.id.as_str(), &*b.node.locality.zone), ("n", "z"));
        assert_eq!(b.node.metadata["A"], serde_json::json!({"B": 1}));
        assert_eq!(b.admin.unwrap().to_string(), "127.0.0.1:9901");
        let ads = b.ads.unwrap();
        assert!(ads.delta && &*ads.cluster == "xds" && ads.initial_metadata.len() == 1);
        assert_eq!(b.cds.unwrap().initial_fetch_timeout, Duration::ZERO);
        assert_eq!(b.lds.unwrap().initial_fetch_timeout, Duration::from_secs(15));
        assert_eq!(b.clusters[0].value.http.version, model::HttpVersionChoice::Http2);
        assert_eq!(b.listeners[0].value.filter_chains.len(), 1);
    }

    #[test]
    fn refusals_name_the_field() {
        let error = |from: &str, to: &str| Bootstrap::parse(&TEXT.replace(from, to)).unwrap_err().to_string();
        assert!(error("port_value: 80}", "port: 80}").contains("static_resources.listeners[0].address"));
        let text =
            error("type: STATIC", "type: STATIC\n    lb_policy: MAGLEV\n    maglev_lb_config: {table_size: 9999999}");
        assert!(text.contains("maglev_lb_config.table_size"), "{text}");
        assert!(error("api_type: DELTA_GRPC", "api_type: REST").contains("dynamic_resources.ads_config"));
    }

    #[test]
    fn what_a_workload_starts_with_reads_as_a_bootstrap() {
        let node = core::Node { id: "sidecar~127.0.0.2~web.shop~d".to_owned(), ..core::Node::default() };
        let admin = "127.0.0.2:15000".parse().unwrap();
        let bootstrap = of_workload(node, admin, "istiod.istio-system.svc:15012").to_vec();
        let dump = mesh_api::xds::dump::ConfigDump { bootstrap, ..Default::default() }.render(&Default::default());
        let read = Bootstrap::parse(&dump["configs"][0]["bootstrap"].to_string()).unwrap();
        assert_eq!(read.node.id, "sidecar~127.0.0.2~web.shop~d");
        assert_eq!(read.admin, Some(model::Address::Socket(admin)));
        assert_eq!(read.ads.map(|a| (a.delta, a.cluster)), Some((true, CONTROL_CLUSTER.into())));
        assert_eq!(read.clusters.len(), 1);
    }
}
