//! `meshctl inject` and `uninject` from outside: input, output, exit codes. What is injected is tested where it is made.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use std::io::Write as _;
use std::process::Stdio;

use support::{Ended, ended, meshctl};

const POD: &str = "# mine\napiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    image: web:1\n";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self(folder)
    }

    fn run(&self, args: &[&str]) -> Ended {
        ended(meshctl().args(args).current_dir(self.0.path()))
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(name)).unwrap()
    }
}

#[test]
fn there_and_back() {
    let folder = Folder::new(&[("a.yaml", POD)]);
    let there = folder.run(&["inject", "-f", "a.yaml", "--set", "global.hub=here", "-o", "out.yaml"]);
    assert_eq!((there.code, there.out.as_str(), there.err.as_str()), (0, "", ""), "{there:?}");
    let injected = folder.read("out.yaml");
    assert!(injected.contains("image: here/mesh-proxy:") && injected.contains("name: istio-init"), "{injected}");
    let again = folder.run(&["kube-inject", "-f", "out.yaml", "--set", "global.hub=here"]);
    assert_eq!((again.code, again.out.as_str()), (0, injected.as_str()));
    let back = folder.run(&["uninject", "-f", "out.yaml"]);
    assert_eq!((back.code, back.out.as_str()), (0, POD.strip_prefix("# mine\n").unwrap()), "{back:?}");
    // What has nothing to take back is handed on to the letter.
    assert_eq!(folder.run(&["uninject", "-f", "a.yaml"]).out, POD);
}

#[test]
fn settings_come_from_files() {
    let folder = Folder::new(&[
        ("a.yaml", POD),
        (
            "b.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j"}, "spec": {"hostNetwork": true, "containers": []}}"#,
        ),
        ("mesh.yaml", "trustDomain: td.test\ndefaultConfig: {concurrency: 7}\n"),
        ("values.yaml", "global: {tag: from-file}\nrevision: red\n"),
    ]);
    let args = [
        "inject",
        "-f",
        "a.yaml",
        "-f",
        "b.json",
        "--meshConfigFile",
        "mesh.yaml",
        "--valuesFile",
        "values.yaml",
        "-r",
        "blue",
    ];
    let found = folder.run(&args);
    assert_eq!(found.code, 0, "{found:?}");
    for wanted in [
        "value: td.test",
        "- \"7\"",
        "mesh-proxy:from-file",
        "istiod-blue.istio-system.svc:15012",
        "\"hostNetwork\": true",
    ] {
        assert!(found.out.contains(wanted), "{wanted}: {}", found.out);
    }
    assert!(
        found.err.contains("note: b.json:1: Pod default/j: is not injected: it uses its node's network"),
        "{}",
        found.err
    );
}

#[test]
fn bad_input_is_told_and_nothing_is_written() {
    let bad =
        POD.replace("  name: web\nspec", "  name: web\n  annotations:\n    status.sidecar.istio.io/port: http\nspec");
    let folder = Folder::new(&[
        ("bad.yaml", &bad),
        ("a.yaml", POD),
        ("broken.yaml", "a: [\n"),
        ("mesh.yaml", "trustDomain: a\ntrustdomain: b\n"),
        ("values.yaml", "global:\n  proxy: {statusPort: x}\n"),
    ]);
    let cases: [(&[&str], u8, &str); 7] = [
        (
            &["-f", "a.yaml", "-f", "bad.yaml"],
            65,
            "bad.yaml:7: Pod default/web: metadata.annotations.status.sidecar.istio.io/port: \"http\" is not a port",
        ),
        (&["-f", "broken.yaml"], 65, "broken.yaml:"),
        (&["-f", "gone.yaml"], 65, "gone.yaml cannot be read"),
        (
            &["-f", "a.yaml", "--meshConfigFile", "mesh.yaml"],
            65,
            "mesh.yaml:2: trustdomain: is not a field of MeshConfig",
        ),
        (&["-f", "a.yaml", "--valuesFile", "values.yaml"], 65, "values.yaml: global.proxy.statusPort: "),
        (&["-f", "a.yaml", "--set", "global.hub"], 65, "--set global.hub: PATH=VALUE is expected"),
        (&[], 64, "--filename"),
    ];
    for (args, code, why) in cases {
        let found = folder.run(&[&["inject"], args].concat());
        assert_eq!((found.code, found.out.as_str()), (i32::from(code), ""), "{args:?}: {found:?}");
        assert!(found.err.contains(why), "{args:?}: {}", found.err);
    }
}

#[test]
fn standard_input() {
    let mut child = meshctl();
    let child = child.args(["inject", "-f", "-", "-n", "shop"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(POD.as_bytes()).unwrap();
    let out = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(out.contains("value: kubernetes://apis/v1/namespaces/shop/pods/web"), "{out}");
}
