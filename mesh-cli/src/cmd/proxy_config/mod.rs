//! `meshctl proxy-config`: what a proxy was configured with, from a dump in Envoy's shape: that of the control plane,
//! of the proxy itself, or a file, so that dumps of stock Envoys can be read too.

mod cluster;
mod endpoint;
mod listener;
mod route;
mod secret;

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::{ConfigArgs, Format, Part, PartArgs};
use crate::client;
use crate::exit::{Failure, NEGATIVE, Outcome, UNPARSABLE};
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
    };
    let dump = Dump::read(options)?;
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

/// A config_dump.
struct Dump {
    configs: Vec<Value>,
}

impl Dump {
    fn read(args: &PartArgs) -> Result<Self, Failure> {
        let value = match (&args.file, &args.admin, &args.proxy) {
            (Some(file), ..) => {
                let fail = |e: &dyn std::fmt::Display| Failure::new(UNPARSABLE, format!("{}: {e}", file.display()));
                let text = std::fs::read_to_string(file).map_err(|e| fail(&e))?;
                serde_json::from_str(&text).map_err(|e| fail(&e))?
            }
            (None, Some(admin), _) => client::json(admin, "/config_dump?include_eds")?,
            (None, None, Some(proxy)) => {
                client::json(&args.control.control, &format!("/debug/config_dump?proxyID={proxy}"))?
            }
            (None, None, None) => return Err(Failure::new(NEGATIVE, "name a proxy, --admin or --file")),
        };
        let configs = value.get("configs").and_then(Value::as_array).cloned();
        let configs = configs.ok_or_else(|| Failure::new(UNPARSABLE, "this is not a config_dump: no \"configs\""))?;
        Ok(Self { configs })
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

fn str_at<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list_at<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
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

/// The object that caused a resource: `KIND NAME.NAMESPACE`, from the metadata that control planes leave.
fn origin(resource: &Value) -> String {
    let path = str_at(resource, "/metadata/filter_metadata/istio/config");
    // /apis/GROUP/VERSION/namespaces/NS/KIND/NAME
    let mut parts = path.rsplit('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(kind), Some(namespace)) if !name.is_empty() => format!("{kind} {name}.{namespace}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> PartArgs {
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
        Dump { configs: value["configs"].as_array().unwrap().clone() }
    }

    #[test]
    fn tables_have_istioctls_columns_and_the_cause() {
        let (options, dump) = (options(), dump());
        let show = |view: View| view(&dump, &options).0.render();
        let expected = "\
SERVICE FQDN                      PORT   SUBSET   DIRECTION   TYPE     DESTINATION RULE
BlackHoleCluster                  -      -        -           STATIC   \n\
catalog.shop.svc.cluster.local    80     v2       outbound    EDS      catalog.shop";
        let trimmed =
            |s: &str| s.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
        assert_eq!(trimmed(&show(cluster::view)), trimmed(expected));
        assert_eq!(
            trimmed(&show(listener::view)),
            trimmed("ADDRESSES PORT MATCH DESTINATION SOURCE\n0.0.0.0 8080 ALL Route: http.8080 gateway ingress.shop")
        );
        assert_eq!(
            trimmed(&show(route::view)),
            trimmed(
                "NAME VHOST NAME DOMAINS MATCH VIRTUAL SERVICE\n80 catalog.shop.svc.cluster.local:80 catalog, 10.0.0.1 /* catalog.shop"
            )
        );
        assert_eq!(
            trimmed(&show(endpoint::view)),
            trimmed(
                "ENDPOINT STATUS OUTLIER CHECK CLUSTER\n127.0.0.4:8080 HEALTHY OK outbound|80|v2|catalog.shop.svc.cluster.local"
            )
        );
    }
}
