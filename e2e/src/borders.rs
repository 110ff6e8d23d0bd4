//! The borders between modules, as rules on source text: which files must not name what.
//!
//! A rule looks at code only; comments and doc comments may speak of anything.

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
}

/// The borders of the design.
pub const RULES: &[Rule] = &[
    Rule {
        why: "Envoy's protos are named only under folders xds/ and in bootstrap.rs",
        scope: &["mesh-api/src", "mesh-control/src", "mesh-proxy/src", "mesh-cli/src"],
        // The gRPC health check speaks one message of its own.
        except: &["/xds/", "/bootstrap.rs", "mesh-api/src/ca.rs", "/upstream/health.rs"],
        forbidden: r"\benvoy_types\b|\bxds::(envoy|google|discovery|xds)\b|\bprost(_types|_reflect)?::",
    },
    Rule {
        why: "the shared model is plain data: no protobuf, no runtime, no Kubernetes",
        scope: &["mesh-api/src/model"],
        except: &[],
        forbidden: r"\b(prost|tokio|tonic|kube|k8s_openapi|hyper)\b",
    },
    Rule {
        why: "kube and k8s-openapi stay in the modules that watch, write status or inject",
        scope: &[
            "mesh-control/src/index",
            "mesh-control/src/translate",
            "mesh-control/src/xds",
            "mesh-control/src/validate",
        ],
        except: &[],
        forbidden: r"\b(kube|k8s_openapi)::",
    },
    Rule {
        why: "translation is pure: no IO, no runtime, no streams",
        scope: &["mesh-control/src/index", "mesh-control/src/translate", "mesh-control/src/view.rs"],
        except: &[],
        forbidden: r"\b(tokio|tonic|hyper|axum)::|\bstd::(fs|net::Tcp|process)",
    },
    Rule {
        why: "configuration of the proxy knows no IO",
        scope: &["mesh-proxy/src/config"],
        except: &[],
        forbidden: r"\btokio::(net|fs|io|process)|\bstd::fs\b|\b(hyper|h2|tonic)::",
    },
    Rule {
        why: "the request path knows no xDS",
        scope: &["mesh-proxy/src/http", "mesh-proxy/src/tcp", "mesh-proxy/src/upstream", "mesh-proxy/src/net"],
        // A client of the control thread.
        except: &["/upstream/health.rs"],
        forbidden: r"\bcrate::xds\b|\bmesh_api::xds\b|\btonic::",
    },
    Rule {
        why: "xDS of the proxy knows no HTTP library",
        scope: &["mesh-proxy/src/xds"],
        except: &[],
        forbidden: r"\b(hyper|h2)::",
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
            "/xds/sds.rs",
        ],
        forbidden: r"\b(hyper|hyper_util)::|\bh2::(client|server|Error|Reason|RecvStream|SendStream)\b",
    },
    Rule {
        why: "no module named after nothing",
        scope: &["mesh-api/src", "mesh-control/src", "mesh-proxy/src", "mesh-cli/src", "e2e/src"],
        except: &[],
        forbidden: r"^\s*(pub(\([a-z]+\))? )?mod (common|utils?|helpers?|misc);",
    },
];

/// Longest source file, in lines.
pub const MAX_LINES: usize = 850;

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
                for (number, line) in code(&text).filter(|(_, line)| forbidden.is_match(line)) {
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

/// Lines of code with their numbers: no comments, nothing behind `//`, no unit tests (which end a file).
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .enumerate()
        .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or_default()))
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
