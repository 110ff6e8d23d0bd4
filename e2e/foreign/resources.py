"""Envoy resources for the scenarios, written as their JSON and turned into messages by the published protobuf code."""

import json

# Messages inside `Any` must be known before JSON that names them is read.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2  # noqa: F401
from envoy.extensions.filters.http.router.v3 import router_pb2  # noqa: F401
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2  # noqa: F401
from envoy.extensions.filters.http.lua.v3 import lua_pb2  # noqa: F401
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2  # noqa: F401
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2  # noqa: F401
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2  # noqa: F401
from xds.type.v3 import typed_struct_pb2  # noqa: F401
from google.protobuf import any_pb2, json_format

import ads_server as ads

MESSAGES = {
    ads.CDS: cluster_pb2.Cluster,
    ads.EDS: endpoint_pb2.ClusterLoadAssignment,
    ads.LDS: listener_pb2.Listener,
    ads.RDS: route_pb2.RouteConfiguration,
    ads.SDS: secret_pb2.Secret,
    ads.ECDS: extension_pb2.TypedExtensionConfig,
}
TYPES = "type.googleapis.com/envoy.extensions."


def pack(type_url, value):
    """A resource in its envelope."""
    message = json_format.ParseDict(value, MESSAGES[type_url]())
    return any_pb2.Any(type_url=type_url, value=message.SerializeToString(deterministic=True))


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, connect_timeout="1s", fetch_timeout=None, **more):
    """An EDS cluster."""
    source = {"ads": {}, "resource_api_version": "V3"}
    if fetch_timeout is not None:
        source["initial_fetch_timeout"] = fetch_timeout
    value = {"name": name, "type": "EDS", "connect_timeout": connect_timeout, "eds_cluster_config": {"eds_config": source}}
    return pack(ads.CDS, {**value, **more})


def bad_cluster(name):
    """Well formed, but nobody can serve it: the table is larger than Envoy's limit."""
    return cluster(name, lb_policy="MAGLEV", maglev_lb_config={"table_size": "9999999"})


def static_cluster(name, *ports, **more):
    load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(p)}} for p in ports]}]}
    return pack(ads.CDS, {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": load, **more})


def endpoints(name, *ports, factor=140):
    members = [{"endpoint": {"address": address(p)}} for p in ports]
    groups = [{"lb_endpoints": members}] if members else []
    return pack(ads.EDS, {"cluster_name": name, "endpoints": groups, "policy": {"overprovisioning_factor": factor}})


def http_manager(routes, filters=(), **more):
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": TYPES + "filters.http.router.v3.Router"}}
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "t",
            **routes,
            "http_filters": [*filters, router],
            **more,
        },
    }


def rds(route, fetch_timeout=None):
    source = {"ads": {}, "resource_api_version": "V3"}
    if fetch_timeout is not None:
        source["initial_fetch_timeout"] = fetch_timeout
    return {"rds": {"route_config_name": route, "config_source": source}}


def listener(name, port, routes, filters=(), tls=None, manager=None, **more):
    """A listener with one HTTP manager; `routes` is the name of a table, or a table itself, or what `rds` made."""
    if isinstance(routes, str):
        routes = rds(routes)
    elif "rds" not in routes:
        routes = {"route_config": routes}
    chain = {"filters": [http_manager(routes, filters, **(manager or {}))]}
    if tls:
        chain["transport_socket"] = tls
    return pack(ads.LDS, {"name": name, "address": address(port), "filter_chains": [chain], **more})


def table(name, *routes, domains=("*",)):
    """A route table; a route is the name of a cluster (everything goes there) or a route's JSON."""
    full = [{"match": {"prefix": "/"}, "route": {"cluster": r}} if isinstance(r, str) else r for r in routes]
    return {"name": name, "virtual_hosts": [{"name": "v", "domains": list(domains), "routes": full}]}


def route(name, *routes):
    return pack(ads.RDS, table(name, *routes))


def to(prefix, cluster_name):
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster_name}}


def says(prefix, text, status=200):
    """A route that is answered by the proxy itself."""
    return {"match": {"prefix": prefix}, "direct_response": {"status": status, "body": {"inline_string": text}}}


def sds_tls(secret):
    """A listener's TLS with a certificate that comes by ADS."""
    config = {"name": secret, "sds_config": {"ads": {}, "resource_api_version": "V3"}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": TYPES + "transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [config]},
        },
    }


def secret(name, chain, key):
    value = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
    return pack(ads.SDS, {"name": name, "tls_certificate": value})


def bootstrap(control_port, admin_port, variant, cds_timeout="0s", lds_timeout="0s", keepalive=True):
    """Envoy's bootstrap file for a proxy that gets everything over ADS."""
    http2 = {"connection_keepalive": {"interval": "2s", "timeout": "1s"}} if keepalive else {}
    options = {
        "@type": TYPES + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2},
    }

    def dynamic(timeout):
        return {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": timeout}

    return {
        "node": {"id": "foreign-node", "cluster": "foreign", "metadata": {"A": "B"}},
        "admin": {"address": address(admin_port)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if variant == "delta" else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}, "initial_metadata": [{"key": "x-who", "value": "me"}]}],
            },
            "cds_config": dynamic(cds_timeout),
            "lds_config": dynamic(lds_timeout),
        },
        "static_resources": {
            "clusters": [{
                "name": "xds",
                "type": "STATIC",
                "connect_timeout": "1s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
                "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(control_port)}}]}]},
            }],
        },
    }


def text(value):
    return json.dumps(value, indent=1)
