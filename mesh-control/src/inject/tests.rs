//! Folders of `testdata/inject`: `in.yaml`, `values.yaml` and `mesh.yaml` become `out.yaml` and `remarks.txt`. `BLESS=1`
//! writes them anew.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::Settings;
use super::annotations::{ANNOTATIONS, Effect, LABELS};
use super::manifest::{File, Problem, inject, surroundings, uninject};
use super::node::Node;
use super::values::Values;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/inject");

fn cases() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(FOLDER).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    assert!(all.len() >= 10);
    all
}

fn text(case: &Path, name: &str) -> String {
    std::fs::read_to_string(case.join(name)).unwrap_or_default()
}

fn settings(case: &Path) -> Settings {
    let values = Values::read(&text(case, "values.yaml"), &[]).unwrap();
    let mesh = text(case, "mesh.yaml");
    let mesh = if mesh.is_empty() { Default::default() } else { mesh_api::yaml::from_str(&mesh).unwrap() };
    Settings { native_sidecars: values.native_sidecars(), values, mesh, proxy_configs: vec![] }
}

fn file(text: &str) -> File<'_> {
    File { path: Path::new("in.yaml"), text, namespace: "default" }
}

fn injected(case: &Path, input: &str) -> (String, Vec<Problem>) {
    let mut settings = settings(case);
    let around = surroundings(file(input)).unwrap();
    settings.proxy_configs = around.proxy_configs;
    let changed = inject(file(input), &settings, &around.namespaces).unwrap();
    (changed.text, changed.remarks)
}

fn golden(path: &Path, found: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(path).unwrap_or_default(), "{}", path.display());
}

/// Every document of a file.
fn nodes(text: &str) -> Vec<Node> {
    crate::source::manifest::documents(Path::new("x.yaml"), text)
        .iter()
        .map(|d| mesh_api::yaml::from_str(d.text).unwrap())
        .collect()
}

#[test]
fn pods_become_these() {
    for case in cases() {
        let (text, remarks) = injected(&case, &text(&case, "in.yaml"));
        golden(&case.join("out.yaml"), &text);
        golden(&case.join("remarks.txt"), &remarks.iter().map(|r| format!("{r}\n")).collect::<String>());
    }
}

#[test]
fn a_second_injection_changes_nothing() {
    for case in cases() {
        let once = text(&case, "out.yaml");
        assert_eq!(injected(&case, &once).0, once, "{}", case.display());
    }
}

#[test]
fn injection_can_be_taken_back() {
    for case in cases() {
        let (before, after) = (text(&case, "in.yaml"), text(&case, "out.yaml"));
        let back = uninject(file(&after)).unwrap().text;
        let clean = uninject(file(&before)).unwrap().text;
        assert_eq!(nodes(&back), nodes(&clean), "{}", case.display());
        assert!(!back.contains("sidecar.istio.io/status"), "{}", case.display());
    }
}

/// Containers anywhere below.
fn containers<'n>(node: &'n Node, found: &mut Vec<&'n Node>) {
    match node {
        Node::Map(map) => {
            if map.contains_key("args") && map.contains_key("name") {
                found.push(node);
            }
            map.values().for_each(|v| containers(v, found));
        }
        Node::List(items) => items.iter().for_each(|v| containers(v, found)),
        _ => {}
    }
}

#[test]
fn what_is_injected_starts_the_proxy() {
    use mesh_proxy::settings::{Mode, Settings, capture::CaptureCommand};
    let mut seen = [0; 3];
    for case in cases() {
        let documents = nodes(&text(&case, "out.yaml"));
        let mut all = Vec::new();
        documents.iter().for_each(|d| containers(d, &mut all));
        for container in all {
            let mut words: Vec<&str> = container.items("args").iter().map(|w| w.as_str().unwrap()).collect();
            words.insert(0, "mesh-proxy");
            if container.name() == super::template::PROXY {
                // What the environment gives there.
                assert!(container.items("env").iter().any(|v| v.name() == "INSTANCE_IP"));
                words.extend(["--ip", "10.0.0.1"]);
            }
            match Settings::try_parse_from(&words).unwrap_or_else(|e| panic!("{words:?}: {e}")).mode.unwrap() {
                Mode::Sidecar(_) => seen[0] += 1,
                Mode::Gateway(_) => seen[1] += 1,
                Mode::Capture(CaptureCommand::Apply(apply)) => {
                    apply.rules.capture(|| Ok("nameserver 10.96.0.10\n".to_owned())).unwrap();
                    seen[2] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(seen[0] > 5 && seen[1] > 0 && seen[2] > 5, "{seen:?}");
}

#[test]
fn wrong_input_is_told_by_place() {
    let pod = |metadata: &str, spec: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    metadata:\n{metadata}    spec:\n{spec}"
        )
    };
    let fine = "      containers:\n      - name: a\n";
    for (input, wanted) in [
        (
            pod(
                "      annotations:\n        sidecar.istio.io/inject: \"true\"\n        traffic.sidecar.istio.io/excludeInboundPorts: http\n",
                fine,
            ),
            "in.yaml:10: Deployment default/web: spec.template.metadata.annotations.traffic.sidecar.istio.io/excludeInboundPorts: \
             \"http\" is not a list of ports such as 80,8080",
        ),
        (
            pod("      labels: {a: 1}\n", fine),
            "in.yaml:8: Deployment default/web: spec.template.metadata.labels.a: must be text: put it in quotes",
        ),
        (
            pod("      annotations: {proxy.istio.io/config: 'concurrency: x'}\n", fine),
            "in.yaml:8: Deployment default/web: spec.template.metadata.annotations.proxy.istio.io/config: concurrency: \
             invalid type: string \"x\", expected i32",
        ),
        (
            pod("      annotations: {inject.istio.io/templates: waypoint}\n", fine),
            "in.yaml:8: Deployment default/web: spec.template.metadata.annotations.inject.istio.io/templates: \"waypoint\" is \
             not a template here: there are sidecar and gateway",
        ),
        (
            pod("      labels: {}\n", "      containers:\n      - image: a\n"),
            "in.yaml:11: Deployment default/web: spec.template.spec.containers[0].name: is missing or is not text",
        ),
        (
            pod("      labels: {}\n", "      containers: 5\n"),
            "in.yaml:10: Deployment default/web: spec.template.spec.containers: is not a list",
        ),
        (
            "a: 1\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}\n".to_owned(),
            "in.yaml:6: Deployment default/web: spec.template: has no pod template",
        ),
    ] {
        let error = inject(file(&input), &Settings::default(), &[]).unwrap_err();
        assert_eq!(error.to_string(), wanted);
    }
    let error = inject(file("a: 1\n---\nkind: [\n"), &Settings::default(), &[]).unwrap_err();
    assert!(error.line.unwrap() >= 3 && error.message.starts_with("does not parse"), "{error}");
    let error = surroundings(file(
        "apiVersion: networking.istio.io/v1beta1\nkind: ProxyConfig\nmetadata: {name: a}\nspec: {concurrency: x}\n",
    ));
    assert_eq!(error.unwrap_err().field, "spec");
}

#[test]
fn odd_pods_do_not_panic() {
    let pieces = ["5", "[]", "{}", "null", "text", "[5]", "[{name: 5}]", "[{name: istio-proxy, env: 5}]", "[null]"];
    for container in pieces {
        for part in
            ["labels", "annotations", "containers", "initContainers", "volumes", "imagePullSecrets", "securityContext"]
        {
            for status in ["", "{", "{\"containers\": 5}", "{\"containers\": [\"a\"], \"labels\": [\"a\"]}"] {
                let spec = if part.starts_with(['l', 'a']) { "spec" } else { part };
                let meta = if spec == "spec" { part } else { "labels" };
                let text = format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, {meta}: {container}, annotations: {{sidecar.istio.io/status: '{status}'}}}}\n\
                     spec: {{containers: [{{name: a}}], {spec}: {container}}}\n"
                );
                let _ = inject(file(&text), &Settings::default(), &[]);
                let _ = uninject(file(&text));
            }
        }
    }
}

#[test]
fn values_are_read_and_set() {
    let set =
        ["global.hub=h", "values.global.tag=7", "global.proxy.statusPort=1", "pilot.env.ENABLE_NATIVE_SIDECARS=false"];
    let values = Values::read("global: {proxy: {image: p}, other: 5}\nunknown: {}\n", &set.map(str::to_owned)).unwrap();
    assert_eq!((values.image("p", ""), values.image("a/b:c", "debug")), ("h/p:7".to_owned(), "a/b:c".to_owned()));
    assert_eq!((values.global.proxy.status_port, values.native_sidecars()), (1, false));
    let tagged = Values::read("global: {tag: 1.0-debug}", &[]).unwrap();
    let images = ["", "default", "distroless"].map(|kind| tagged.image("p", kind));
    assert_eq!(images, ["p:1.0-debug", "p:1.0", "p:1.0-distroless"]);
    assert!(
        Values::read("global: {proxy: {statusPort: x}}", &[]).unwrap_err().starts_with("global.proxy.statusPort: ")
    );
    assert!(Values::read("", &["a".to_owned()]).unwrap_err().contains("PATH=VALUE"));
    assert!(Values::read("global: 5", &["global.hub=x".to_owned()]).unwrap_err().contains("not an object"));
    let blue = Values { revision: "blue".to_owned(), ..Values::default() };
    assert_eq!(blue.control_plane(), "istiod-blue.istio-system.svc:15012");
}

#[test]
fn documentation_lists_what_the_table_says() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/inject.md"));
    for row in ANNOTATIONS.iter().chain(LABELS) {
        let word = match row.effect {
            Effect::Honoured => "honoured",
            Effect::Ignored(_) => "ignored",
        };
        let name = format!("| `{}` | {word} |", row.name);
        assert!(page.contains(&name), "docs/reference/inject.md has no row {name:?}");
    }
}
