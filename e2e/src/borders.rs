//! The borders between modules, as rules on source text: which files must not name what.
//!
//! A rule looks at code only; comments and doc comments may speak of anything. Imports are taken apart first: however
//! they are grouped, a rule sees one whole path a line.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// Files under `scope`, except those under `except`, must not match `forbidden`.
#[derive(Debug, Clone)]
pub struct Rule {
    /// What the rule protects, shown when it is crossed.
    pub why: &'static str,
    /// Path prefixes from the root of the repository.
    pub scope: &'static [&'static str],
    /// Parts of paths where the rule does not hold.
    pub except: &'static [&'static str],
    /// Regular expression, searched line by line.
    pub forbidden: &'static str,
    /// Code that crosses it: the checker is tested with each.
    pub crossed_by: &'static [&'static str],
}

/// The borders of the design.
pub const RULES: &[Rule] = &[
    Rule {
        why: "Envoy's protos are named only under folders xds/ and in bootstrap.rs",
        scope: &["mesh-api/src", "mesh-control/src", "mesh-proxy/src", "mesh-cli/src"],
        // The gRPC health check speaks one message of its own.
        except: &["/xds/", "/bootstrap.rs", "mesh-api/src/ca.rs", "/upstream/health.rs"],
        forbidden: r"\benvoy_types\b|\bxds::(envoy|google|discovery|xds)\b|\bprost(_types|_reflect)?::",
        crossed_by: &[
            "let node = mesh_api::xds::envoy::config::core::v3::Node::default();",
            "use mesh_api::xds::{TypeUrl, envoy::config::core::v3 as core};",
            "use mesh_api::{\n    names::ClusterName,\n    xds::{\n        google::protobuf,\n    },\n};",
            "use prost::Message;",
        ],
    },
    Rule {
        why: "the shared model is plain data: no protobuf, no runtime, no Kubernetes",
        scope: &["mesh-api/src/model"],
        except: &[],
        forbidden: r"\b(prost|tokio|tonic|kube|k8s_openapi|hyper|hyper_util)\b",
        crossed_by: &["use tokio::net;", "use prost::Message;", "impl kube::Resource for X {}"],
    },
    Rule {
        why: "kube stays in the modules that watch, write status, elect a leader, review tokens or inject",
        scope: &["mesh-control/src"],
        except: &[
            "mesh-control/src/source/",
            "mesh-control/src/status/",
            "mesh-control/src/leader.rs",
            "mesh-control/src/ca/token_review.rs",
            // The root of all replicas, and in every namespace.
            "mesh-control/src/ca/root_secret.rs",
            "mesh-control/src/ca/root_config_maps.rs",
            "mesh-control/src/multicluster/",
            "mesh-control/src/webhook/bundles.rs",
            // What is made for Gateways.
            "mesh-control/src/gateway_deployer/mod.rs",
            "mesh-control/src/gateway_deployer/cluster.rs",
            "mesh-control/src/app/",
        ],
        forbidden: r"\bkube(_client|_core|_runtime)?::",
        crossed_by: &["use kube::{Api, Client};", "fn watch(client: kube::Client) {}", "use kube_runtime::watcher;"],
    },
    Rule {
        why: "structs of k8s-openapi stay where objects are read",
        scope: &["mesh-control/src"],
        except: &["mesh-control/src/source/", "mesh-control/src/inject/"],
        forbidden: r"\bk8s_openapi::",
        crossed_by: &["use k8s_openapi::api::core::v1::Pod;"],
    },
    Rule {
        why: "translation is pure: no IO, no runtime, no streams",
        scope: &["mesh-control/src/index", "mesh-control/src/translate", "mesh-control/src/view.rs"],
        except: &[],
        forbidden: r"\b(tokio|tonic|hyper|hyper_util|axum)::|\bstd::(fs|net::Tcp|process)",
        crossed_by: &["use tokio::sync::mpsc;", "use std::{collections::BTreeMap, fs};", "std::process::exit(1);"],
    },
    Rule {
        why: "who fetches keys knows no objects, no translation, no streams",
        scope: &["mesh-control/src/jwks"],
        except: &[],
        forbidden: r"\b(xds|translate|source|admin)::|\bindex::(\{|Index\b)",
        crossed_by: &["use crate::xds::hub::Hub;", "use crate::index::Index;", "use crate::source::object::Object;"],
    },
    Rule {
        why: "configuration of the proxy knows no IO",
        scope: &["mesh-proxy/src/config"],
        except: &[],
        forbidden: r"\btokio::(net|fs|io|process)|\bstd::fs\b|\b(hyper|hyper_util|h2|tonic)::",
        crossed_by: &["use tokio::{net::TcpStream, sync::watch};", "std::fs::read(path)", "use h2::client;"],
    },
    Rule {
        why: "the request path and its configuration know no xDS",
        scope: &[
            "mesh-proxy/src/config",
            "mesh-proxy/src/http",
            "mesh-proxy/src/tcp",
            "mesh-proxy/src/upstream",
            "mesh-proxy/src/net",
        ],
        // A client of the control thread.
        except: &["/upstream/health.rs"],
        forbidden: r"\bcrate::xds\b|\bmesh_api::xds\b|\btonic::",
        crossed_by: &["use crate::{config::SharedConfig, xds::store::Store};", "mesh_api::xds::TypeUrl::Cluster"],
    },
    Rule {
        why: "who answers DNS knows no xDS, no listeners, no clusters",
        scope: &["mesh-proxy/src/dns"],
        except: &[],
        forbidden: r"\bcrate::(xds|http|tcp|net|upstream|config|app)\b|\bmesh_api::xds\b|\bprost::",
        crossed_by: &[
            "use crate::xds::store::Store;",
            "use crate::config::SharedConfig;",
            "use mesh_api::xds::TypeUrl;",
        ],
    },
    Rule {
        why: "xDS of the proxy knows no HTTP library",
        scope: &["mesh-proxy/src/xds"],
        except: &[],
        forbidden: r"\b(hyper|hyper_util|h2)::",
        crossed_by: &["use hyper::body::Incoming;", "use hyper_util::rt::TokioIo;", "let e: h2::Error = e;"],
    },
    Rule {
        why: "hyper and h2 are named only at the codec border, in admin servers and in clients of the control threads",
        scope: &["mesh-proxy/src"],
        except: &[
            "/http/server/h1.rs",
            "/http/server/h2.rs",
            "/upstream/pool/h1.rs",
            "/upstream/pool/h2.rs",
            "/upstream/health",
            "/admin/",
            "/telemetry/",
            "/identity/",
            "/app/",
        ],
        forbidden: r"\b(hyper|hyper_util)::|\bh2::(client|server|Error|Reason|RecvStream|SendStream)\b",
        crossed_by: &["use hyper::Request;", "fn f(e: h2::Error) {}", "use h2::{Reason, server};"],
    },
    Rule {
        why: "chance comes from the seeded trait, so that tests can repeat it",
        scope: &["mesh-proxy/src", "mesh-control/src"],
        except: &[
            // The trait itself, and the seed of each worker.
            "/upstream/balance/mod.rs",
            "mesh-proxy/src/workers.rs",
            // Spreads reconnects and renewals of many proxies; what is done with the number is pure and tested.
            "/identity/rotate.rs",
            "/xds/stream.rs",
            "/xds/sds.rs",
            // Whoever foresees the number of a question can answer it.
            "/dns/forward.rs",
            // Spreads the renewal of connections over a window; which moment it is changes no answer.
            "/upstream/pool/conn.rs",
            // A websocket key, a serial number, the nonces of a stream must not be foreseen.
            "/upstream/pool/h1.rs",
            "mesh-control/src/ca/",
            "mesh-control/src/xds/stream.rs",
        ],
        forbidden: r"\brand::(random|rng|thread_rng|random_range|random_bool)\b|\b(fastrand|getrandom)::",
        crossed_by: &["let x: f64 = rand::random();", "use rand::{RngExt, rng};", "fastrand::u32(..)"],
    },
    Rule {
        why: "no module named after nothing",
        scope: &["mesh-api/src", "mesh-control/src", "mesh-proxy/src", "mesh-cli/src", "e2e/src"],
        except: &[],
        forbidden: r"^\s*(pub(\([a-z]+\))? )?mod (common|utils?|helpers?|misc)\b",
        crossed_by: &["mod util;", "pub(crate) mod helpers {"],
    },
];

/// Longest source file, in lines.
pub const MAX_LINES: usize = 800;

/// Where the rules are crossed, one line each: `file:line: why: text`.
///
/// # Errors
/// When files cannot be read or a rule is not a regular expression.
pub fn crossings(root: &Path, rules: &[Rule]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for rule in rules {
        let forbidden = Regex::new(rule.forbidden)?;
        for scope in rule.scope {
            for file in sources(&root.join(scope))? {
                let name = file.strip_prefix(root)?.display().to_string();
                if rule.except.iter().any(|e| name.contains(e)) {
                    continue;
                }
                let text = fs::read_to_string(&file)?;
                for (number, line) in code(&text).into_iter().filter(|(_, line)| forbidden.is_match(line)) {
                    found.push(format!("{name}:{number}: {}: {}", rule.why, line.trim()));
                }
            }
        }
    }
    Ok(found)
}

/// Files that are longer than [`MAX_LINES`].
///
/// # Errors
/// When files cannot be read.
pub fn too_long(root: &Path, scopes: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for scope in scopes {
        for file in sources(&root.join(scope))? {
            let lines = fs::read_to_string(&file)?.lines().count();
            if lines > MAX_LINES {
                found.push(format!("{}: {lines} lines", file.strip_prefix(root)?.display()));
            }
        }
    }
    Ok(found)
}

/// Packages of Kubernetes in the output of `cargo tree --prefix none`.
pub fn kubernetes_in(tree: &str) -> Vec<&str> {
    let names = tree.lines().filter_map(|line| line.split(' ').next());
    names.filter(|n| matches!(*n, "schemars" | "kube" | "k8s-openapi") || n.starts_with("kube-")).collect()
}

/// Lines of code with their numbers: no comments, nothing behind `//`, no unit tests (which end a file). Imports are
/// flattened.
fn code(text: &str) -> Vec<(usize, String)> {
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {")).enumerate();
    let mut lines = lines.map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()));
    let mut out = Vec::new();
    while let Some((number, line)) = lines.next() {
        if !starts_import(line) {
            out.push((number, line.to_owned()));
            continue;
        }
        let mut import: Vec<(usize, char)> = line.chars().map(|c| (number, c)).collect();
        while !import.iter().any(|(_, c)| *c == ';') {
            let Some((number, line)) = lines.next() else { break };
            import.extend(std::iter::once(' ').chain(line.chars()).map(|c| (number, c)));
        }
        // What may stand before the first path is part of the prefix: it is on every line then.
        flatten(&mut import.into_iter(), "", &mut out);
    }
    out
}

fn starts_import(line: &str) -> bool {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or(rest, |(_, rest)| rest),
        Some(rest) => rest,
        None => line,
    };
    line.trim_start().starts_with("use ")
}

/// `use a::{b, c::{d, e}};` becomes `use a::b`, `use a::c::d` and `use a::c::e`, each where its last part stands.
/// Returns what ended this part of the tree.
fn flatten(rest: &mut impl Iterator<Item = (usize, char)>, prefix: &str, out: &mut Vec<(usize, String)>) -> char {
    let mut path = prefix.to_owned();
    let mut place = 0;
    while let Some((number, c)) = rest.next() {
        match c {
            '{' => while flatten(rest, &path, out) == ',' {},
            ',' | '}' | ';' => {
                // After a group nothing was added to what its members have said already.
                if path != prefix && !path.ends_with("::") {
                    out.push((place, path));
                }
                return c;
            }
            c if c.is_whitespace() => {
                if !path.ends_with([' ', ':']) {
                    path.push(' ');
                }
            }
            c => {
                path.push(c);
                place = number;
            }
        }
    }
    ';'
}

/// Every `.rs` file at or below `path`, in order.
fn sources(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if path.is_file() {
        files.push(path.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if path.is_dir() || path.extension().is_some_and(|e| e == "rs") {
                files.extend(sources(&path)?);
            }
        }
    }
    files.sort();
    Ok(files)
}
