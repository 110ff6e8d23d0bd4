use mesh_api::crd::security::{AuthorizationPolicy, MtlsMode, PolicyAction};

use super::super::object::Spec;
use super::*;

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

fn open(dir: &Path) -> Folder {
    Folder::open(dir, "cluster.local", vec![]).unwrap()
}

fn host(hosts: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\nspec: {{host: {hosts}}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

const DENY: &str = "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}";

fn names(changes: &[ObjectChange]) -> Vec<String> {
    changes
        .iter()
        .map(|c| match c {
            ObjectChange::Upsert(o) => format!("+{}", o.key.name),
            ObjectChange::Remove(k) => format!("-{}", k.name),
        })
        .collect()
}

/// A scan and the second look.
fn rescan(folder: &mut Folder) -> Vec<String> {
    let mut changes = folder.scan();
    changes.extend(folder.confirm());
    names(&changes)
}

fn served(folder: &Folder, name: &str) -> Option<Arc<AuthorizationPolicy>> {
    folder.objects().find(|o| &*o.key.name == name).and_then(|o| match &o.spec {
        Spec::AuthorizationPolicy(p) => Some(p.clone()),
        _ => None,
    })
}

fn rule_host_of(folder: &Folder, name: &str) -> String {
    match folder.objects().find(|o| &*o.key.name == name).map(|o| &o.spec) {
        Some(Spec::DestinationRule(rule)) => rule.host.clone(),
        other => panic!("{other:?}"),
    }
}

fn rule_host(folder: &Folder) -> String {
    match &folder.objects().next().unwrap().spec {
        Spec::DestinationRule(rule) => rule.host.clone(),
        other => panic!("{other:?}"),
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn reports_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &host("one"));
    write(dir.path(), "notes.txt", "kind: [");
    write(dir.path(), ".hidden.yaml", "kind: [");
    let mut folder = open(dir.path());
    assert_eq!(names(&folder.scan()), ["+a"]);
    assert_eq!(rescan(&mut folder), NOTHING);
    let path = folder.root().join("a.yaml");
    write(dir.path(), "a.yaml", &format!("# comment\n{}", host("one")));
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING, "a comment is no change");
    write(dir.path(), "a.yaml", &host("two"));
    assert_eq!(names(&folder.reread([path.clone()])), ["+a"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(names(&folder.reread([path])), NOTHING, "it may come back at once, as editors do it");
    assert!(folder.unsettled());
    assert_eq!(names(&folder.confirm()), ["-a"]);
    assert!(!folder.unsettled());
}

#[test]
fn the_last_good_version_stays() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &host("one"));
    let mut folder = open(dir.path());
    folder.scan();
    let path = folder.root().join("a.yaml");
    write(dir.path(), "a.yaml", "kind: [");
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING);
    assert_eq!(folder.objects().count(), 1);
    assert_eq!(folder.findings().len(), 1);
    write(dir.path(), "a.yaml", &host("[1]"));
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING);
    assert!(folder.findings()[0].message.contains("last good"), "{:?}", folder.findings());
    write(dir.path(), "a.yaml", &host("three"));
    assert_eq!(names(&folder.reread([path])), ["+a"]);
    assert!(folder.findings().is_empty());
}

#[test]
fn the_first_of_two_declarations_wins() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "b.yaml", &host("second"));
    let mut folder = open(dir.path());
    folder.scan();
    write(dir.path(), "a.yaml", &host("first"));
    assert_eq!(rescan(&mut folder), ["+a"]);
    let findings = folder.findings();
    assert_eq!(findings.len(), 1);
    assert!(findings[0].file.as_ref().unwrap().ends_with("b.yaml"));
    assert!(findings[0].message.contains("a.yaml"));
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(rescan(&mut folder), ["+a"]);
    assert!(folder.findings().is_empty());
}

#[test]
fn a_refused_copy_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "b.yaml", &host("good"));
    write(dir.path(), "c.yaml", &policy("p", DENY));
    let mut folder = open(dir.path());
    folder.scan();
    write(dir.path(), "a.yaml", &format!("{}---\n{}", host("[1]"), policy("p", "{action: 5}")));
    assert_eq!(rescan(&mut folder), NOTHING);
    assert_eq!(rule_host(&open_and_scan(dir.path(), "DestinationRule")), "good", "whoever comes first");
    assert!(served(&folder, "p").unwrap().rules.as_ref().unwrap()[0].to.is_some(), "not the strictest form");
    let findings = folder.findings();
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(findings.iter().all(|f| f.file.as_ref().unwrap().ends_with("a.yaml")));
    assert!(findings[0].message.contains("b.yaml is in force"), "{}", findings[0]);
}

/// A new look at a folder, with the objects of one kind.
fn open_and_scan(dir: &Path, kind: &str) -> Folder {
    let mut folder = open(dir);
    folder.scan();
    folder.served.retain(|key, _| key.kind.name() == kind);
    folder
}

#[test]
fn a_refused_object_may_move() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &host("good"));
    let mut folder = open(dir.path());
    folder.scan();
    let paths = ["a.yaml", "b.yaml"].map(|name| folder.root().join(name));
    write(dir.path(), "a.yaml", &host("[1]"));
    folder.reread([paths[0].clone()]);
    fs::rename(&paths[0], &paths[1]).unwrap();
    assert_eq!(names(&folder.reread(paths.clone())), NOTHING);
    assert_eq!(names(&folder.confirm()), NOTHING);
    assert!(folder.findings()[0].message.contains("last good"), "{:?}", folder.findings());
    // Moved and broken at once.
    write(dir.path(), "b.yaml", &host("better"));
    assert_eq!(names(&folder.reread(paths.clone())), ["+a"]);
    fs::remove_file(&paths[1]).unwrap();
    write(dir.path(), "a.yaml", "kind: [");
    assert_eq!(names(&folder.reread(paths.clone())), NOTHING);
    assert_eq!(names(&folder.confirm()), NOTHING);
    assert_eq!(rule_host(&folder), "better");
    assert!(folder.findings().iter().any(|f| f.message.contains("stays in force")), "{:?}", folder.findings());
    write(dir.path(), "a.yaml", "");
    folder.reread(paths.clone());
    assert_eq!(names(&folder.confirm()), ["-a"]);
}

#[test]
fn a_security_object_that_was_never_good_never_opens() {
    let dir = tempfile::tempdir().unwrap();
    let head = "apiVersion: security.istio.io/v1\nmetadata: {name: a, namespace: shop}\n";
    write(dir.path(), "p.yaml", &format!("{head}kind: PeerAuthentication\nspec: {{mtls: {{mode: MAYBE}}}}\n"));
    write(
        dir.path(),
        "q.yaml",
        &format!(
            "{head}kind: AuthorizationPolicy\nspec: {{action: DENY, selector: {{matchLabels: {{app: x}}}}, rules: 5}}\n"
        ),
    );
    let unserved = "apiVersion: security.istio.io/v1beta2\nkind: AuthorizationPolicy\nmetadata: {name: b, namespace: shop, labels: {v: 1}}\n";
    write(dir.path(), "r.yaml", &format!("{unserved}spec: {DENY}\n"));
    let mut folder = open(dir.path());
    folder.scan();
    for object in folder.objects() {
        match &object.spec {
            Spec::PeerAuthentication(p) => assert_eq!(p.mtls.as_ref().unwrap().mode, MtlsMode::Strict),
            Spec::AuthorizationPolicy(p) => {
                assert_eq!(p.action, PolicyAction::Deny);
                assert_eq!(p.rules.as_ref().unwrap().len(), 1);
                if &*object.key.name == "a" {
                    assert_eq!(p.selector.as_ref().unwrap().match_labels["app"], "x");
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(folder.objects().count(), 3);
    assert_eq!(folder.good_security().count(), 0);
    // Mended, it is what it says; broken again, it stays so.
    let path = folder.root().join("r.yaml");
    write(dir.path(), "r.yaml", &policy("b", "{action: DENY, rules: [{}]}"));
    assert_eq!(names(&folder.reread([path.clone()])), ["+b"]);
    write(dir.path(), "r.yaml", &policy("b", "{action: DENY, rules: 5}"));
    assert_eq!(names(&folder.reread([path])), NOTHING);
    assert_eq!(folder.good_security().count(), 1);
}

#[test]
fn a_restart_keeps_what_a_broken_file_said() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &policy("p", DENY));
    write(dir.path(), "b.yaml", &policy("q", DENY));
    write(dir.path(), "c.yaml", &policy("r", DENY));
    let mut folder = open(dir.path());
    folder.scan();
    let kept: Vec<Arc<Object>> = folder.good_security().cloned().collect();
    write(dir.path(), "a.yaml", "kind: [");
    write(dir.path(), "b.yaml", &policy("q", "5"));
    fs::remove_file(dir.path().join("c.yaml")).unwrap();
    let mut folder = Folder::open(dir.path(), "cluster.local", kept.clone()).unwrap();
    assert_eq!(names(&folder.scan()), ["+p", "+q", "+r"], "r may be in the file that cannot be read");
    assert_eq!(rescan(&mut folder), NOTHING);
    assert!(served(&folder, "q").unwrap().rules.as_ref().unwrap()[0].to.is_some());
    let findings = folder.findings();
    assert_eq!(findings.iter().filter(|f| f.level == Level::Warning).count(), 2, "{findings:?}");
    assert_eq!(folder.good_security().count(), 3);
    write(dir.path(), "a.yaml", &policy("p", "{action: DENY, rules: [{}]}"));
    folder.reread([folder.root().join("a.yaml")]);
    folder.confirm();
    assert!(served(&folder, "r").is_none() && served(&folder, "q").is_some());
    // Where everything can be read nothing is kept that is not there.
    write(dir.path(), "b.yaml", "");
    let mut folder = Folder::open(dir.path(), "cluster.local", kept).unwrap();
    assert_eq!(names(&folder.scan()), ["+p"]);
}

#[test]
fn a_policy_stays_while_a_file_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", "kind: [");
    write(dir.path(), "b.yaml", &format!("{}---\n{}", policy("p", DENY), host("one")));
    let mut folder = open(dir.path());
    folder.scan();
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    assert_eq!(rescan(&mut folder), ["-a"], "what guards nothing goes");
    assert!(served(&folder, "p").is_some());
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(rescan(&mut folder), ["-p"]);
}

#[test]
fn a_file_in_the_middle_of_a_change_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &policy("p", DENY));
    let mut folder = open(dir.path());
    folder.scan();
    let path = folder.root().join("a.yaml");
    // A scan reads what changed only when it has come to rest.
    write(dir.path(), "a.yaml", "");
    assert_eq!(names(&folder.scan()), NOTHING);
    write(dir.path(), "a.yaml", "# more to come\n");
    assert_eq!(names(&folder.confirm()), NOTHING);
    write(dir.path(), "a.yaml", &policy("p", "{action: DENY, rules: [{}]}"));
    assert_eq!(names(&folder.confirm()), NOTHING, "it has changed again");
    assert_eq!(names(&folder.confirm()), ["+p"]);
    // An event may come from the change before.
    write(dir.path(), "a.yaml", "");
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING);
    write(dir.path(), "a.yaml", "# more to come\n");
    assert_eq!(names(&folder.confirm()), NOTHING, "the file is not as it was");
    assert_eq!(names(&folder.confirm()), ["-p"]);
    assert!(!folder.unsettled());
}

#[test]
fn a_change_is_never_seen_in_halves() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &format!("{}---\n{}", host("one"), policy("p", DENY)));
    let mut folder = open(dir.path());
    folder.scan();
    let path = folder.root().join("a.yaml");
    write(dir.path(), "a.yaml", &format!("{}---\n{}", host("two"), policy("q", DENY)));
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING, "it removes something");
    assert_eq!(rule_host_of(&folder, "a"), "one");
    let mut all = names(&folder.confirm());
    all.sort();
    assert_eq!(all, ["+a", "+q", "-p"]);
    // What moves to another file is not removed.
    write(dir.path(), "a.yaml", &host("two"));
    write(dir.path(), "b.yaml", &policy("q", DENY));
    assert_eq!(names(&folder.reread([path.clone(), folder.root().join("b.yaml")])), NOTHING);
    assert!(!folder.unsettled());
    // One that changes all the time is believed in the end.
    for n in 0..usize::from(MOST_LOOKS) {
        write(dir.path(), "a.yaml", &format!("# {n} {}\n", "x".repeat(n)));
        assert_eq!(names(&folder.reread([path.clone()])), NOTHING, "{n}");
    }
    write(dir.path(), "a.yaml", "# at last, and something else again\n");
    assert_eq!(names(&folder.reread([path])), ["-a"]);
}

#[test]
fn only_what_is_not_there_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.yaml", &host("one"));
    let mut folder = open(dir.path());
    folder.scan();
    let path = folder.root().join("a.yaml");
    fs::remove_file(&path).unwrap();
    // A link to itself: it is there, and nobody can look at it.
    std::os::unix::fs::symlink("a.yaml", &path).unwrap();
    assert_eq!(names(&folder.reread([path.clone()])), NOTHING);
    assert_eq!(rescan(&mut folder), NOTHING);
    assert_eq!(folder.objects().count(), 1);
    assert!(folder.findings()[0].message.contains("cannot be read"), "{:?}", folder.findings());
    fs::remove_file(&path).unwrap();
    folder.reread([path]);
    assert_eq!(names(&folder.confirm()), ["-a"]);
}

#[test]
fn a_folder_that_is_gone_is_not_an_empty_one() {
    let outside = tempfile::tempdir().unwrap();
    let dir = outside.path().join("config");
    fs::create_dir(&dir).unwrap();
    write(&dir, "a.yaml", &policy("p", DENY));
    let mut folder = open(&dir);
    folder.scan();
    fs::rename(&dir, outside.path().join("elsewhere")).unwrap();
    assert_eq!(rescan(&mut folder), NOTHING);
    assert!(folder.findings().iter().any(|f| f.message.contains("cannot be listed")), "{:?}", folder.findings());
    fs::rename(outside.path().join("elsewhere"), &dir).unwrap();
    assert_eq!(rescan(&mut folder), NOTHING);
    assert!(folder.findings().is_empty(), "{:?}", folder.findings());
}

#[test]
fn references_know_the_domain() {
    let dir = tempfile::tempdir().unwrap();
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let rule = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web.shop.svc.corp.test}}]}]}\n";
    write(dir.path(), "a.yaml", &format!("{service}---\n{rule}"));
    let mut folder = Folder::open(dir.path(), "corp.test", vec![]).unwrap();
    folder.scan();
    assert!(folder.references().is_empty(), "{:?}", folder.references());
}
