//! `meshctl proxy-config`: what a proxy was configured with, from a dump in Envoy's shape: that of the control plane,
//! of the proxy itself, or a file, so that dumps of stock Envoys can be read too.

mod cluster;
mod endpoint;
mod listener;
mod log;
pub mod route;
mod secret;

use std::collections::HashMap;
use std::process::ExitCode;

use mesh_control::source::object::Kind;
use serde_json::{Value, json};

use crate::args::{ConfigArgs, Format, Part, PartArgs};
use crate::client::Server;
use crate::client::cluster::block_on;
use crate::client::mesh::Mesh;
use crate::client::pods::PodName;
use crate::exit::{Failure, NEGATIVE, Outcome, UNPARSABLE, USAGE};
use crate::output::{Table, print, structured};

/// Prints one part, or all.
pub fn run(args: &ConfigArgs) -> Outcome {
    let (part, options) = match &args.part {
        Part::Cluster(a) => ("clusters", a),
        Part::Listener(a) => ("listeners", a),
        Part::Route(a) => ("routes", a),
        Part::Endpoint(a) => ("endpoints", a),
        Part::Secret(a) => ("secrets", a),
        Part::Bootstrap(a) => ("bootstrap", a),
        Part::All(a) => ("all", a),
        Part::Log(a) => return log::run(a),
    };
    let dump = block_on(Dump::read(part, options))?;
    let wanted = |name: &str| part == name || part == "all";
    let mut blocks = Vec::new();
    let mut whole = serde_json::Map::new();
    let views: [(&str, View); 5] = [
        ("clusters", cluster::view),
        ("listeners", listener::view),
        ("routes", route::view),
        ("endpoints", endpoint::view),
        ("secrets", secret::view),
    ];
    for (name, view) in views.into_iter().filter(|(name, _)| wanted(name)) {
        let (table, raw) = view(&dump, options);
        blocks.push(table.render());
        whole.insert(name.to_owned(), Value::Array(raw));
    }
    if wanted("bootstrap") {
        let bootstrap = dump.section("BootstrapConfigDump").cloned().unwrap_or(Value::Null);
        if part == "bootstrap" && bootstrap.is_null() {
            let message = "this dump holds no bootstrap: ask the proxy itself with --admin ADDRESS";
            return Err(Failure::new(NEGATIVE, message));
        }
        whole.insert("bootstrap".to_owned(), bootstrap);
    }
    match options.output {
        Format::Short if part == "bootstrap" => structured(&whole["bootstrap"], Format::Json)?,
        Format::Short => print(&blocks.join("\n\n")),
        format if part == "all" => structured(&whole, format)?,
        format => structured(&whole.get(part).unwrap_or(&json!([])), format)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A table and what it was made of.
type View = fn(&Dump, &PartArgs) -> (Table, Vec<Value>);

/// Header by which our control plane names a proxy's admin server.
const ADMIN_HEADER: &str = "x-proxy-admin";

/// A config_dump, and what only the proxy itself knows beside it.
#[derive(Debug, Default)]
pub struct Dump {
    configs: Vec<Value>,
    /// Its `/clusters`: which endpoints are ejected.
    health: Option<Value>,
    /// Its `/certs`: certificates that it made itself and never shows in a dump.
    certificates: Option<Value>,
}

impl Dump {
    async fn read(part: &str, args: &PartArgs) -> Result<Self, Failure> {
        if let Some(file) = &args.file {
            let fail = |e: &dyn std::fmt::Display| Failure::new(UNPARSABLE, format!("{}: {e}", file.display()));
            let text = std::fs::read_to_string(file).map_err(|e| fail(&e))?;
            return Self::of(&serde_json::from_str(&text).map_err(|e| fail(&e))?);
        }
        if let Some(admin) = &args.admin {
            return Self::of_proxy(part, &Server::admin(admin)).await;
        }
        let Some(word) = &args.proxy else {
            return Err(Failure::new(USAGE, "name a proxy, --admin or --file"));
        };
        let mesh = Mesh::find(&args.mesh).await?;
        let proxy = mesh.pods(word).await?;
        let proxy = proxy.first().ok_or_else(|| Failure::new(NEGATIVE, format!("{word} has no pods")))?;
        // Certificates, states of endpoints and the bootstrap only the proxy itself can tell.
        let own = matches!(part, "secrets" | "endpoints" | "bootstrap" | "all");
        match mesh.cluster() {
            Some(cluster) => {
                let admin = Server::pod(cluster, proxy, args.port_of_admin.proxy_admin_port);
                Self::in_cluster(part, &mesh, proxy, &admin, own).await
            }
            None => Self::by_address(part, &mesh, proxy, own).await,
        }
    }

    /// From the control plane at an address, which may know where the proxy itself is.
    async fn by_address(part: &str, mesh: &Mesh<'_>, proxy: &PodName, own: bool) -> Result<Self, Failure> {
        if own && let Some(admin) = admin_of(mesh, proxy).await? {
            match Self::of_proxy(part, &admin).await {
                Ok(dump) if dump.is_of(proxy) => return Ok(dump),
                Ok(_) => anstream::eprintln!("{} is the admin server of another proxy", admin.name()),
                Err(why) => anstream::eprintln!("the control plane is asked instead of the proxy: {}", why.message),
            }
        }
        Self::of_control(mesh, proxy).await
    }

    /// From the proxy itself or the control plane, whichever is to tell; from the other when that cannot be asked.
    async fn in_cluster(
        part: &str,
        mesh: &Mesh<'_>,
        proxy: &PodName,
        admin: &Server,
        own: bool,
    ) -> Result<Self, Failure> {
        if own {
            let failure = match Self::of_proxy(part, admin).await {
                Ok(dump) => return Ok(dump),
                Err(failure) => failure,
            };
            return match Self::of_control(mesh, proxy).await {
                Ok(dump) => {
                    anstream::eprintln!("the control plane is asked instead of the proxy: {}", failure.message);
                    Ok(dump)
                }
                Err(_) => Err(failure),
            };
        }
        let failure = match Self::of_control(mesh, proxy).await {
            Ok(dump) => return Ok(dump),
            Err(failure) => failure,
        };
        match Self::of_proxy(part, admin).await {
            Ok(dump) => {
                anstream::eprintln!("the proxy itself is asked instead of the control plane: {}", failure.message);
                Ok(dump)
            }
            Err(own) => {
                let message = format!("{}\nThe proxy does not tell either: {}", failure.message, own.message);
                Err(Failure { code: failure.code, message })
            }
        }
    }

    /// What the control plane has sent to a proxy.
    ///
    /// # Errors
    /// When it cannot be asked, or the proxy is not connected.
    pub async fn of_control(mesh: &Mesh<'_>, proxy: &PodName) -> Result<Self, Failure> {
        let (by, answer) = mesh.of_proxy(&dump_path(proxy)).await?;
        let value = serde_json::from_slice(&answer.body)
            .map_err(|e| Failure::new(NEGATIVE, format!("the dump of {} is not JSON: {e}", by.name)))?;
        Self::of(&value)
    }

    /// From a page.
    ///
    /// # Errors
    /// When it is no dump.
    pub fn of(value: &Value) -> Result<Self, Failure> {
        let configs = value.get("configs").and_then(Value::as_array).cloned();
        let configs = configs.ok_or_else(|| Failure::new(UNPARSABLE, "this is not a config_dump: no \"configs\""))?;
        Ok(Self { configs, ..Self::default() })
    }

    /// What the proxy itself tells.
    async fn of_proxy(part: &str, admin: &Server) -> Result<Self, Failure> {
        let mut dump = Self::of(&admin.json("/config_dump?include_eds").await?)?;
        if matches!(part, "endpoints" | "all") {
            dump.health = Some(admin.json("/clusters?format=json").await?);
        }
        if matches!(part, "secrets" | "all") {
            dump.certificates = Some(admin.json("/certs").await?);
        }
        Ok(dump)
    }

    /// It is that of the proxy NAME.NAMESPACE.
    fn is_of(&self, proxy: &PodName) -> bool {
        let node = self.section("BootstrapConfigDump").map(|s| str_at(s, "/bootstrap/node/id")).unwrap_or_default();
        let proxy = proxy.to_string();
        node == proxy || node.split('~').nth(2) == Some(&proxy)
    }

    fn section(&self, kind: &str) -> Option<&Value> {
        self.configs.iter().find(|c| str_at(c, "/@type").ends_with(kind))
    }

    /// Resources of a section: `lists` are pairs of the list's name and the path of the resource in its items.
    fn resources(&self, kind: &str, lists: &[(&str, &str)]) -> Vec<&Value> {
        let Some(section) = self.section(kind) else { return vec![] };
        let of = |(list, path): &(&str, &str)| {
            let items = section.get(*list).and_then(Value::as_array).into_iter().flatten();
            items.filter_map(|item| item.pointer(path)).collect::<Vec<_>>()
        };
        lists.iter().flat_map(of).collect()
    }
}

impl Dump {
    /// All clusters.
    pub fn clusters(&self) -> Vec<&Value> {
        self.resources(
            "ClustersConfigDump",
            &[("static_clusters", "/cluster"), ("dynamic_active_clusters", "/cluster")],
        )
    }

    /// All listeners.
    pub fn listeners(&self) -> Vec<&Value> {
        let lists = [("static_listeners", "/listener"), ("dynamic_listeners", "/active_state/listener")];
        self.resources("ListenersConfigDump", &lists)
    }

    /// All route configurations that listeners name.
    pub fn routes(&self) -> Vec<&Value> {
        let lists = [("static_route_configs", "/route_config"), ("dynamic_route_configs", "/route_config")];
        self.resources("RoutesConfigDump", &lists)
    }

    /// Endpoints of all clusters.
    pub fn endpoints(&self) -> Vec<&Value> {
        let lists = [("static_endpoint_configs", "/endpoint_config"), ("dynamic_endpoint_configs", "/endpoint_config")];
        self.resources("EndpointsConfigDump", &lists)
    }

    /// The services behind clusters, by their names.
    fn services(&self) -> HashMap<&str, String> {
        self.clusters().into_iter().map(|c| (str_at(c, "/name"), service_of(c))).collect()
    }
}

/// Text at a JSON pointer; empty without one.
pub fn str_at<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Items of the list at a JSON pointer.
pub fn list_at<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// `ADDRESS` and `PORT` of an Envoy address.
fn address(value: &Value) -> (String, Option<u64>) {
    if let Some(path) = value.pointer("/pipe/path").and_then(Value::as_str) {
        return (format!("unix://{path}"), None);
    }
    (
        str_at(value, "/socket_address/address").to_owned(),
        value.pointer("/socket_address/port_value").and_then(Value::as_u64),
    )
}

/// Where a control plane tells what a proxy holds.
fn dump_path(proxy: &PodName) -> String {
    format!("/debug/config_dump?proxyID={proxy}")
}

/// Where a control plane says that the proxy's admin server is. Only on this machine is that to be believed, and of use.
async fn admin_of(mesh: &Mesh<'_>, proxy: &PodName) -> Result<Option<Server>, Failure> {
    // No type has this name: only the head of the answer is wanted.
    let (by, answer) = mesh.of_proxy(&format!("{}&types=none", dump_path(proxy))).await?;
    let admin = answer.header(ADMIN_HEADER).map(Server::admin).filter(Server::is_local);
    Ok(admin.filter(|_| by.server.is_local()))
}

/// The object that caused a resource, from the metadata that control planes leave: `NAME.NAMESPACE (KIND)`, without the
/// kind when it is the one that the column is for; `-` when there is none.
pub fn cause(resource: &Value, expected: &str) -> String {
    let path = str_at(resource, "/metadata/filter_metadata/istio/config");
    // /apis/GROUP/VERSION/namespaces/NS/KIND/NAME
    let mut parts = path.rsplit('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(word), Some(namespace)) if !name.is_empty() => {
            // `http-route` is HTTPRoute, `kubernetes-gateway` the Gateway API's Gateway.
            let plain = word.replace("kubernetes-", "").replace('-', "");
            let kind = Kind::ALL.into_iter().find(|k| k.name().eq_ignore_ascii_case(&plain)).map_or(word, |k| k.name());
            named(name, namespace, kind, expected)
        }
        _ => "-".to_owned(),
    }
}

/// The Service or ServiceEntry that a cluster stands for.
fn service_of(cluster: &Value) -> String {
    let Some(service) = list_at(cluster, "/metadata/filter_metadata/istio/services").next() else {
        return "-".to_owned();
    };
    let (host, name, namespace) = (str_at(service, "/host"), str_at(service, "/name"), str_at(service, "/namespace"));
    // Kubernetes' hosts are made of the name; of a ServiceEntry the host is all that is told.
    let kind = if host.starts_with(&format!("{name}.{namespace}.svc.")) { "Service" } else { "ServiceEntry" };
    named(name, namespace, kind, "")
}

fn named(name: &str, namespace: &str, kind: &str, expected: &str) -> String {
    if kind == expected { format!("{name}.{namespace}") } else { format!("{name}.{namespace} ({kind})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn options() -> PartArgs {
        use clap::Parser as _;
        let words = ["meshctl", "pc", "cluster", "web.shop"];
        match crate::args::Args::try_parse_from(words).unwrap().command {
            crate::args::Command::ProxyConfig(ConfigArgs { part: Part::Cluster(a) }) => a,
            other => panic!("{other:?}"),
        }
    }

    fn dump() -> Dump {
        let text = include_str!("testdata/config_dump.json");
        let value: Value = serde_json::from_str(text).unwrap();
        Dump::of(&value).unwrap()
    }

    fn trimmed(text: &str) -> Vec<String> {
        text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn tables_have_istioctls_columns_and_the_cause() {
        let (options, dump) = (options(), dump());
        let show = |view: View| trimmed(&view(&dump, &options).0.render());
        assert_eq!(
            show(cluster::view),
            [
                "SERVICE FQDN PORT SUBSET DIRECTION TYPE DESTINATION RULE",
                "BlackHoleCluster - - - STATIC -",
                "a.test 443 - outbound STRICT_DNS a.test.shop (ServiceEntry)",
                "catalog.shop.svc.cluster.local 80 v2 outbound EDS catalog.shop",
                "forum.shop.svc.cluster.local 80 - outbound EDS forum.shop (Service)",
            ]
        );
        assert_eq!(
            show(listener::view),
            ["ADDRESSES PORT MATCH DESTINATION SOURCE", "0.0.0.0 8080 ALL Route: http.8080 ingress.shop (Gateway)",]
        );
        assert_eq!(
            show(route::view),
            [
                "NAME VHOST NAME DOMAINS MATCH VIRTUAL SERVICE",
                "80 catalog.shop.svc.cluster.local:80 catalog, 10.0.0.1 /* catalog.shop",
                "80 catalog.shop.svc.cluster.local:80 catalog, 10.0.0.1 /api* catalog.shop (HTTPRoute)",
                "80 forum.shop.svc.cluster.local:80 forum /* forum.shop (Service)",
            ]
        );
        assert_eq!(
            show(endpoint::view),
            [
                "ENDPOINT STATUS OUTLIER CHECK CLUSTER SOURCE",
                "127.0.0.4:8080 HEALTHY - outbound|80|v2|catalog.shop.svc.cluster.local catalog.shop (Service)",
            ]
        );
    }

    #[test]
    fn ejected_endpoints_are_known_by_the_proxy_alone() {
        let host = |ip: &str, failed: bool| {
            json!({"address": {"socket_address": {"address": ip, "port_value": 8080}},
                   "health_status": {"failed_outlier_check": failed}})
        };
        let name = "outbound|80|v2|catalog.shop.svc.cluster.local";
        let shown = |failed| {
            let health = json!({"cluster_statuses": [{"name": name, "host_statuses": [host("127.0.0.4", failed)]}]});
            let dump = Dump { health: Some(health), ..dump() };
            trimmed(&endpoint::view(&dump, &options()).0.render())[1].clone()
        };
        assert!(shown(true).contains(" FAILED "));
        assert!(shown(false).contains(" OK "));
    }

    #[test]
    fn a_dump_of_another_proxy_is_known_by_its_node() {
        let section =
            json!({"@type": "x.BootstrapConfigDump", "bootstrap": {"node": {"id": "sidecar~1.2.3.4~web.shop~d"}}});
        let dump = Dump { configs: vec![section], ..Dump::default() };
        let named = |word: &str| PodName::parse(word, "");
        assert!(dump.is_of(&named("web.shop")) && !dump.is_of(&named("web.bank")));
    }
}
