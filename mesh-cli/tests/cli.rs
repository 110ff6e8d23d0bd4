//! The program from outside: exit codes, what goes where, colours. No mesh is needed for any of this.

#![allow(clippy::unwrap_used)] // a test that meets what it does not expect ends

mod support;

use std::path::Path;

use support::{closed_port, ended, meshctl, run, server};

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const WRONG: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - route:
    - destination: {host: web}
    timeoutt: 5s
";

#[test]
fn good_manifests_are_valid() {
    let ended = run(["validate", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples")]);
    assert_eq!((ended.code, ended.out.as_str()), (0, ""), "{}", ended.err);
    assert!(ended.err.starts_with("valid: "), "{}", ended.err);
}

#[test]
fn findings_name_file_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "wrong.yaml", WRONG);
    let found = run(["validate", "-f", &path]);
    assert_eq!(found.code, 79, "{found:?}");
    assert!(found.out.contains(&format!("{path}:10")), "{}", found.out);
    assert!(found.out.contains("spec.http[0].timeoutt"), "{}", found.out);
    assert!(found.err.contains("1 errors"), "{}", found.err);

    let json = run(["validate", "-f", &path, "-o", "json"]);
    assert_eq!(json.code, 79, "the exit code does not depend on the format");
    let findings: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(findings[0]["line"], 10, "{findings}");
    assert_eq!(findings[0]["file"], path.as_str(), "{findings}");
}

#[test]
fn what_does_not_parse_is_65() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "broken.yaml", "kind: [Service\nmetadata: {name: x}\n");
    let ended = run(["validate", "-f", &path]);
    assert_eq!(ended.code, 65, "{ended:?}");
    assert!(ended.out.contains(&format!("{path}:")), "{}", ended.out);
    let ended = run(["validate", "-f", "/nowhere/at/all.yaml"]);
    assert_eq!(ended.code, 65, "{ended:?}");
    let ended = run(["pc", "cluster", "--file", &path]);
    assert_eq!(ended.code, 65, "{ended:?}");
}

#[test]
fn a_wrong_command_line_is_64() {
    for args in [&["validate"][..], &["pc", "cluster"], &["ps", "--nothing"], &["nonsense"], &[]] {
        let ended = ended(meshctl().args(args));
        assert_eq!((ended.code, ended.out.as_str()), (64, ""), "{args:?}: {ended:?}");
        assert!(ended.err.contains("Usage"), "{}", ended.err);
    }
    assert_eq!(run(["--help"]).code, 0);
}

#[test]
fn nobody_there_is_69() {
    let address = closed_port().to_string();
    for args in [["ps", "--control", &address], ["version", "--control", &address]] {
        let ended = run(args);
        // What this program is it can say in any case.
        assert_eq!(ended.code, if args[0] == "ps" { 69 } else { 0 }, "{ended:?}");
        assert!(ended.err.contains(&address) && ended.err.contains("--control"), "{}", ended.err);
    }
    let ended = run(["pc", "cluster", "--admin", &address]);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.err.contains("admin"), "{}", ended.err);
}

#[test]
fn no_answer_is_75() {
    let (address, _heads) = server(None);
    let ended = run(["ps", "--control", &address]);
    assert_eq!(ended.code, 75, "{ended:?}");
}

#[test]
fn forbidden_is_77_and_a_token_is_sent() {
    let (address, heads) = server(Some("HTTP/1.1 403 Forbidden\r\ncontent-length: 13\r\n\r\nnot permitted"));
    let ended = run(["ps", "--control", &address, "--token", "one"]);
    assert_eq!(ended.code, 77, "{ended:?}");
    assert!(ended.err.contains("not permitted") && ended.err.contains("--token"), "{}", ended.err);
    let head = heads.recv().unwrap();
    assert!(head.starts_with("GET /debug/syncz HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: Bearer one\r\n"), "{head}");

    support::ended(meshctl().args(["ps", "--control", &address]).env("MESHCTL_TOKEN", "two"));
    assert!(heads.recv().unwrap().contains("authorization: Bearer two\r\n"));
    // The token is for the control plane alone.
    support::ended(meshctl().args(["pc", "cluster", "--admin", &address]).env("MESHCTL_TOKEN", "two"));
    assert!(!heads.recv().unwrap().contains("authorization"));
}

#[test]
fn version_tells_what_the_control_plane_is() {
    let own = run(["version", "--client"]);
    assert_eq!((own.code, own.out), (0, format!("client version: {}\n", env!("CARGO_PKG_VERSION"))));
    let (address, _) =
        server(Some("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n12\r\nmesh-control-1.2.3\r\n0\r\n\r\n"));
    let both = run(["version", "--control", &address]);
    assert!(both.out.contains("control plane version: 1.2.3"), "{both:?}");
    let yaml = run(["version", "--control", &address, "-o", "yaml"]);
    assert!(yaml.out.contains("version: \"1.2.3\"") && yaml.out.contains("clientVersion"), "{yaml:?}");
    // Whoever does not know the page is no control plane of version 9.9.9.
    let (address, _) = server(Some("HTTP/1.1 404 Not Found\r\ncontent-length: 15\r\n\r\nnginx/9.9.9 404"));
    let foreign = run(["version", "--control", &address]);
    assert_eq!(foreign.code, 0, "{foreign:?}");
    assert!(!foreign.out.contains("9.9.9"), "{foreign:?}");
    assert!(foreign.err.contains("unknown"), "{foreign:?}");
}

#[test]
fn without_an_address_a_cluster_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let closed = support::closed_port();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: 'http://{closed}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
    );
    let path = file(dir.path(), "kubeconfig", &kubeconfig);
    let asks: [&[&str]; 8] = [
        &["ps"],
        &["pc", "cluster", "a.shop"],
        &["pc", "log", "a.shop"],
        &["check"],
        &["check-inject", "deployment/a"],
        &["x", "describe", "pod", "a"],
        &["create", "token", "a"],
        &["analyze"],
    ];
    for words in asks {
        for (named, by_env) in [(vec!["--kubeconfig", &path], None), (vec![], Some(&path))] {
            let mut command = meshctl();
            command.args(words).args(named);
            if let Some(path) = by_env {
                command.env("KUBECONFIG", path);
            }
            let ended = ended(&mut command);
            assert_eq!((ended.code, ended.out.as_str()), (69, ""), "{words:?}: {ended:?}");
            assert!(ended.err.contains("API server cannot be reached"), "{words:?}: {}", ended.err);
        }
    }
    // An address that is named counts more.
    let (control, heads) = server(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"));
    let ended = ended(meshctl().args(["ps", "--kubeconfig", &path]).env("MESHCTL_CONTROL", &control));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(heads.recv().unwrap().starts_with("GET /debug/syncz"));
}

#[test]
fn completion_for_bash_is_a_script() {
    let ended = run(["completion", "bash"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert!(ended.out.contains("complete -F _meshctl"), "{}", ended.out);
    for word in ["proxy-status", "proxy-config", "validate", "demo"] {
        assert!(ended.out.contains(word), "{word}");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "wrong.yaml", WRONG);
    let shown = |force: bool, no_color: bool| {
        let mut command = meshctl();
        command.args(["validate", "-f", &path]);
        if force {
            command.env("CLICOLOR_FORCE", "1");
        }
        if no_color {
            command.env("NO_COLOR", "1");
        }
        let ended = ended(&mut command);
        ended.out + &ended.err
    };
    assert!(!shown(false, false).contains('\u{1b}'), "colours in a pipe");
    assert!(shown(true, false).contains('\u{1b}'), "there are none at all: this test shows nothing");
    assert!(!shown(true, true).contains('\u{1b}'), "colours in spite of NO_COLOR");
}

#[test]
fn a_port_that_is_taken_is_named_with_the_way_out() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(["demo", "--port", &port]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""), "{ended:?}");
    assert!(ended.err.contains(&format!("port {port}")) && ended.err.contains("--port"), "{}", ended.err);
}

#[test]
fn the_checks_want_a_folder_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("config")).unwrap();
    file(&dir.path().join("config"), "mine.yaml", "kind: Service\n");
    let ended = run(["demo", "--check", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.err.contains("name another folder"), "{}", ended.err);
}

#[test]
fn what_a_control_plane_says_of_admin_servers_is_not_just_believed() {
    let ok =
        |headers: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
    let node =
        r#"{"configs": [{"@type": "x.BootstrapConfigDump", "bootstrap": {"node": {"id": "sidecar~1~b.shop~d"}}}]}"#;
    let (admin, heads) = server(Some(&ok("", node)));
    let named = |admin: &str| server(Some(&ok(&format!("x-proxy-admin: {admin}\r\n"), r#"{"configs": []}"#))).0;

    let ended = run(["pc", "bootstrap", "b.shop", "--control", &named(&admin), "--token", "secret"]);
    assert!(ended.code == 0 && ended.out.contains("sidecar~1~b.shop~d"), "{ended:?}");
    assert!(!heads.recv().unwrap().contains("secret"), "the token is not for proxies");
    // Another proxy than the one that was asked for.
    let ended = run(["pc", "endpoint", "a.shop", "--control", &named(&admin)]);
    assert!(ended.code == 0 && ended.err.contains("another proxy"), "{ended:?}");
    // Not on this machine: nobody is asked there.
    let ended = run(["pc", "endpoint", "a.shop", "--control", &named("192.0.2.1:15000")]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
}
