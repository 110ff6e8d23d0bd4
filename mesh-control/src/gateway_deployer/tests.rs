//! Folders of `testdata/gateway`: objects of `in.yaml` become those of `out.yaml`. `BLESS=1` writes them anew.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{
    desired::{Revisions, plans},
    made::MadeKind,
};
use crate::{
    index::{Index, IndexWriter, Options, testing},
    source::object::{Kind, Object, ObjectChange},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/gateway");

/// Objects with the ids that an API server gives.
fn objects(yaml: &str) -> Vec<Arc<Object>> {
    let identified = |object: Arc<Object>| {
        let mut object = Arc::unwrap_or_clone(object);
        if object.key.kind == Kind::Gateway && object.meta.uid.is_empty() {
            object.meta.uid = format!("uid-of-{}", object.key.name);
        }
        Arc::new(object)
    };
    testing::objects(yaml).into_iter().map(identified).collect()
}

fn index(yaml: &str) -> Index {
    let mut writer = IndexWriter::new(Options { in_cluster: true, ..Options::default() });
    writer.apply(objects(yaml).into_iter().map(ObjectChange::Upsert).collect());
    writer.index().clone()
}

fn revisions(own: &str, tags: &[&str]) -> Revisions {
    Revisions { own: own.to_owned(), tags: tags.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>() }
}

/// What is made, as text.
fn made(yaml: &str) -> String {
    let mut out = String::new();
    for plan in plans(&index(yaml), &revisions("default", &[])) {
        match plan.objects {
            Ok(objects) => {
                for object in objects {
                    out.push_str("---\n");
                    out.push_str(&serde_saphyr::to_string(&object.value).unwrap());
                }
            }
            Err(why) => out.push_str(&format!("# {}: {why}\n", plan.gateway)),
        }
    }
    out
}

#[test]
fn gateways_become_these() {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(FOLDER).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 4);
    for case in cases {
        let found = made(&std::fs::read_to_string(case.join("in.yaml")).unwrap());
        let golden = case.join("out.yaml");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&golden, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(&golden).unwrap_or_default(), "{}", golden.display());
    }
}

fn gateway(name: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: infra, {metadata}}}\nspec: {{gatewayClassName: istio, listeners: [{{name: http, port: 80, protocol: HTTP}}], {spec}}}\n"
    )
}

/// The Gateways that one is to deploy.
fn names(yaml: &str, revisions: &Revisions) -> Vec<String> {
    plans(&index(yaml), revisions).iter().map(|p| p.gateway.name.to_string()).collect()
}

#[test]
fn only_those_that_are_ours_to_deploy() {
    let default = revisions("default", &[]);
    let all = [
        gateway("own", "", ""),
        gateway("manual", "", "addresses: [{type: Hostname, value: gw.infra.svc.cluster.local}]"),
        gateway("asks", "", "addresses: [{type: IPAddress, value: 10.0.0.1}]"),
        gateway("newer", "annotations: {gateway.istio.io/controller-version: '6'}", ""),
        gateway("older", "annotations: {gateway.istio.io/controller-version: '5'}", ""),
        gateway("ending", "deletionTimestamp: '2026-01-01T00:00:00Z'", ""),
        gateway("others", "", "").replace("ClassName: istio", "ClassName: other"),
    ];
    assert_eq!(names(&all.concat(), &default), ["asks", "older", "own"]);
}

#[test]
fn revisions_and_tags_say_whose_they_are() {
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: infra, labels: {istio.io/rev: blue}}\n";
    let all = [gateway("plain", "", ""), gateway("green", "labels: {istio.io/rev: green}", "")].concat();
    assert_eq!(names(&all, &revisions("default", &[])), ["plain"]);
    assert_eq!(names(&all, &revisions("green", &[])), ["green"]);
    assert_eq!(names(&all, &revisions("green", &["default"])), ["green", "plain"], "its tag is the default one");
    let all = format!("{all}{namespace}");
    assert_eq!(names(&all, &revisions("default", &[])), [""; 0]);
    assert_eq!(names(&all, &revisions("blue", &[])), ["plain"], "as their namespace says");
    assert_eq!(names(&all, &revisions("2-0", &["blue", "green"])), ["green", "plain"]);
}

#[test]
fn bad_settings_are_said_and_nothing_is_made() {
    let values = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-sidecar-injector, namespace: istio-system}\ndata: {values: '[1]'}\n";
    let all = format!("{}{values}", gateway("own", "", ""));
    let plans = plans(&index(&all), &revisions("default", &[]));
    let why = plans[0].objects.as_ref().unwrap_err();
    assert!(why.contains("istio-sidecar-injector"), "{why}");
    let wrong = gateway("own", "annotations: {status.sidecar.istio.io/port: x}", "");
    let why = made(&wrong);
    assert!(why.contains("status.sidecar.istio.io/port"), "{why}");
}

#[test]
fn names_of_kinds_in_paths() {
    let all: Vec<String> = MadeKind::ALL.map(|k| format!("{} {}", k.api_version(), k.plural())).into();
    assert_eq!(
        all,
        [
            "v1 serviceaccounts",
            "v1 services",
            "apps/v1 deployments",
            "autoscaling/v2 horizontalpodautoscalers",
            "policy/v1 poddisruptionbudgets"
        ]
    );
}
