//! What profiles and settings render to.

use std::path::Path;

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, autoscaling::v2 as autoscaling, core::v1 as core,
    policy::v1 as policy, rbac::v1 as rbac,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::operator::{PROFILES, Sources, Wish};
use super::render::components;

fn sources(set: &[&str]) -> Sources {
    Sources { set: set.iter().map(|s| (*s).to_owned()).collect(), ..Sources::default() }
}

fn rendered(set: &[&str]) -> Vec<Value> {
    let wish = Wish::read(&sources(set)).unwrap();
    components(&wish).unwrap().into_iter().flat_map(|c| c.objects).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// Settings that reach into every part of the templates.
const EVERYTHING: &[&str] = &[
    "profile=demo",
    "hub=registry.example/mesh",
    "tag=1.2.3",
    "revision=blue",
    "meshConfig.trustDomain=example.org",
    "values.global.imagePullSecrets={pull}",
    "values.global.imagePullPolicy=IfNotPresent",
    "values.global.priorityClassName=system-cluster-critical",
    "values.global.logAsJson=true",
    "values.global.network=n1",
    "values.global.multiCluster.clusterName=east",
    "values.pilot.autoscaleEnabled=true",
    "values.pilot.autoscaleMin=2",
    "values.pilot.plaintextXds=true",
    "values.pilot.env.ENABLE_NATIVE_SIDECARS=false",
    "values.pilot.extraContainerArgs={--root-grace,5s}",
    "values.pilot.podAnnotations.a\\.b/c=d",
    "values.pilot.serviceAnnotations.e=f",
    "values.pilot.serviceAccountAnnotations.g=h",
    "values.sidecarInjectorWebhook.enableNamespacesByDefault=true",
    "components.pilot.k8s.nodeSelector.disk=ssd",
    "components.pilot.k8s.tolerations[0].operator=Exists",
    "components.ingressGateways[name:istio-ingressgateway].k8s.serviceAnnotations.x=y",
    "components.ingressGateways[name:istio-ingressgateway].k8s.hpaSpec.minReplicas=2",
    "components.egressGateways[0].k8s.env[0].name=A",
    "components.egressGateways[0].k8s.env[0].value=B",
];

#[test]
fn profiles_render_to_what_is_written_down() {
    for (profile, _) in PROFILES {
        let mut objects = rendered(&[&format!("profile={profile}"), "hub=registry.example/mesh", "tag=1.0.0"]);
        // They are in deploy/crds.
        objects.retain(|o| o["kind"] != "CustomResourceDefinition");
        let text: Vec<String> = objects.iter().map(|o| serde_saphyr::to_string(o).unwrap()).collect();
        let text = text.join("---\n");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/install/golden/{profile}.yaml"));
        if std::env::var_os("MESH_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is not what is rendered: run this test with MESH_WRITE=1", path.display());
    }
}

/// Whether everything in `part` is in `whole`: what the types of Kubernetes do not know is lost between the two.
fn lost(part: &Value, whole: &Value, at: &str) -> Vec<String> {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            let one = |(k, v): (&String, &Value)| lost(v, whole.get(k).unwrap_or(&Value::Null), &format!("{at}.{k}"));
            part.iter().flat_map(one).collect()
        }
        (Value::Array(part), Value::Array(whole)) if part.len() == whole.len() => {
            part.iter().zip(whole).enumerate().flat_map(|(i, (p, w))| lost(p, w, &format!("{at}[{i}]"))).collect()
        }
        (Value::Array(part), Value::Null) if part.is_empty() => vec![],
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => vec![],
        (part, whole) if part == whole => vec![],
        _ => vec![at.to_owned()],
    }
}

fn through<T: Serialize + DeserializeOwned>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object}"));
    serde_json::to_value(typed).unwrap()
}

#[test]
fn objects_are_what_kubernetes_knows() {
    let profiles = PROFILES.iter().map(|(p, _)| vec![format!("profile={p}")]);
    let everything = EVERYTHING.iter().map(|s| (*s).to_owned()).collect();
    for set in profiles.chain([everything]) {
        for object in rendered(&set.iter().map(String::as_str).collect::<Vec<_>>()) {
            let kind = object["kind"].as_str().unwrap();
            let again = match kind {
                "Namespace" => through::<core::Namespace>(&object),
                "ServiceAccount" => through::<core::ServiceAccount>(&object),
                "ConfigMap" => through::<core::ConfigMap>(&object),
                "Service" => through::<core::Service>(&object),
                "Deployment" => through::<apps::Deployment>(&object),
                "ClusterRole" => through::<rbac::ClusterRole>(&object),
                "ClusterRoleBinding" => through::<rbac::ClusterRoleBinding>(&object),
                "Role" => through::<rbac::Role>(&object),
                "RoleBinding" => through::<rbac::RoleBinding>(&object),
                "PodDisruptionBudget" => through::<policy::PodDisruptionBudget>(&object),
                "HorizontalPodAutoscaler" => through::<autoscaling::HorizontalPodAutoscaler>(&object),
                "MutatingWebhookConfiguration" => through::<admission::MutatingWebhookConfiguration>(&object),
                "ValidatingWebhookConfiguration" => through::<admission::ValidatingWebhookConfiguration>(&object),
                "CustomResourceDefinition" => through::<extensions::CustomResourceDefinition>(&object),
                other => panic!("{other} is not expected"),
            };
            assert_eq!(lost(&object, &again, kind), Vec::<String>::new());
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/managed-by"], "meshctl");
            let of_cluster = ["Namespace", "CustomResourceDefinition"].contains(&kind)
                || kind.starts_with("Cluster")
                || kind.ends_with("WebhookConfiguration");
            assert_eq!(object["metadata"]["namespace"].is_null(), of_cluster, "{kind}");
        }
    }
}

#[test]
fn settings_arrive() {
    let objects = rendered(EVERYTHING);
    let deployment = find(&objects, "Deployment", "istiod-blue");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/mesh/control:1.2.3");
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(pod["nodeSelector"]["disk"], "ssd");
    assert_eq!(pod["tolerations"][0]["operator"], "Exists");
    assert_eq!(deployment["spec"]["template"]["metadata"]["annotations"]["a.b/c"], "d");
    assert!(deployment["spec"]["replicas"].is_null(), "the autoscaler says how many");
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    assert!(args.ends_with(&["--log-format", "json", "--root-grace", "5s"]), "{args:?}");
    let value =
        |name: &str| container["env"].as_array().unwrap().iter().find(|v| v["name"] == name).unwrap()["value"].clone();
    assert_eq!([value("REVISION"), value("CLUSTER_ID"), value("MESH_NETWORK")], ["blue", "east", "n1"]);
    assert_eq!(value("ENABLE_NATIVE_SIDECARS"), "false");
    let ports = find(&objects, "Service", "istiod-blue")["spec"]["ports"].as_array().unwrap().clone();
    assert_eq!(ports.iter().map(|p| p["port"].as_u64().unwrap()).collect::<Vec<_>>(), [15010, 15012, 443, 15014]);
    let ingress = find(&objects, "Service", "istio-ingressgateway");
    assert_eq!(ingress["metadata"]["annotations"]["x"], "y");
    assert_eq!(ingress["spec"]["selector"]["istio"], "ingressgateway");
    let egress = &find(&objects, "Deployment", "istio-egressgateway")["spec"]["template"];
    assert_eq!(egress["spec"]["containers"][0]["env"][0]["value"], "B");
    assert_eq!(egress["metadata"]["labels"]["istio.io/rev"], "blue");
    let webhooks = &find(&objects, "MutatingWebhookConfiguration", "istio-sidecar-injector-blue")["webhooks"];
    assert_eq!(webhooks.as_array().unwrap().len(), 2, "istio-injection=enabled is for the default revision");
}

#[test]
fn injection_and_the_control_plane_read_the_config_maps() {
    let objects = rendered(EVERYTHING);
    let values = &find(&objects, "ConfigMap", "istio-sidecar-injector-blue")["data"]["values"];
    let values = mesh_control::inject::values::Values::read(values.as_str().unwrap(), &[]).unwrap();
    assert_eq!(values.revision(), "blue");
    assert_eq!(values.image(&values.global.proxy.image, ""), "registry.example/mesh/proxy:1.2.3");
    assert_eq!(values.control_plane(), "istiod-blue.istio-system.svc:15012");
    assert!(!values.native_sidecars());
    let mesh = &find(&objects, "ConfigMap", "istio-blue")["data"]["mesh"];
    let file =
        mesh_control::inject::manifest::File { path: Path::new("mesh"), text: mesh.as_str().unwrap(), namespace: "" };
    let mesh = mesh_control::inject::manifest::mesh_config(file).unwrap();
    assert_eq!(mesh.trust_domain, "example.org");
    assert_eq!(mesh.access_log_file, "/dev/stdout");
    assert_eq!(mesh.default_config.discovery_address, "istiod-blue.istio-system.svc:15012");
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let file = |text: &str| Sources { files: vec![("f.yaml".into(), text.to_owned())], ..Sources::default() };
    const HEAD: &str = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n";
    for (sources, wanted) in [
        (
            file(&format!("{HEAD}  values:\n    pilot:\n      replicas: 2\n")),
            "f.yaml:6: spec.values.pilot.replicas: unknown field",
        ),
        (file(&format!("{HEAD}  hub: x\n---\n{HEAD}  tagg: y\n")), "f.yaml:9: spec.tagg: unknown field"),
        (
            file(&format!("{HEAD}  meshConfig:\n    accessLog: x\n")),
            "f.yaml:5: spec.meshConfig.accessLog: is not a field of MeshConfig",
        ),
        (
            file(&format!("{HEAD}  components:\n    pilot: {{enabled: 1}}\n")),
            "f.yaml:5: spec.components.pilot.enabled: boolean is expected",
        ),
        (sources(&["values.global.hubb=x"]), "--set: spec.values.global.hubb: unknown field"),
        (sources(&["hub"]), "--set hub: PATH=VALUE is expected"),
        (sources(&["profile=big"]), "no profile big: there are default, demo, minimal"),
        (sources(&["revision=1.24.0"]), "revision \"1.24.0\" is no name"),
        (sources(&["namespace=Mesh"]), "namespace \"Mesh\" is no name"),
    ] {
        let why = Wish::read(&sources).unwrap_err();
        assert!(why.starts_with(wanted), "{why}");
    }
}

#[test]
fn gateways_that_are_not_wanted_are_to_have_no_objects() {
    let wish = Wish::read(&sources(&["components.ingressGateways[0].enabled=false"])).unwrap();
    let names: Vec<(String, usize)> =
        super::render::unwanted(&wish).into_iter().map(|c| (c.name, c.objects.len())).collect();
    assert_eq!(names, [("istio-ingressgateway".to_owned(), 0), ("istio-egressgateway".to_owned(), 0)]);
    assert!(wish.releases().iter().all(|r| r.name != "istio-ingressgateway"));
}

#[test]
fn a_null_takes_a_default_away() {
    let objects = rendered(&["values.pilot.resources=null", "values.global.proxy.resources.limits=null"]);
    let container = &find(&objects, "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0];
    assert!(container["resources"].is_null(), "{container}");
    let values = find(&objects, "ConfigMap", "istio-sidecar-injector")["data"]["values"].as_str().unwrap();
    let values: Value = serde_json::from_str(values).unwrap();
    assert_eq!(values["global"]["proxy"]["resources"]["requests"]["cpu"], "100m");
    assert!(values["global"]["proxy"]["resources"]["limits"].is_null(), "{values}");
}

#[test]
fn labels_and_annotations_of_users_stand_beside_ours_once() {
    let objects = rendered(&[
        "values.pilot.podAnnotations.prometheus\\.io/scrape=no",
        "values.pilot.podLabels.app=other",
        "values.pilot.podLabels.team=x",
        "components.ingressGateways[0].label.team=x",
        "components.ingressGateways[0].label.istio=edge",
        "components.ingressGateways[0].k8s.podAnnotations.prometheus\\.io/path=/own",
    ]);
    let istiod = &find(&objects, "Deployment", "istiod")["spec"]["template"]["metadata"];
    assert_eq!(istiod["annotations"]["prometheus.io/scrape"], "no");
    assert_eq!(istiod["annotations"]["prometheus.io/port"], "15014");
    assert_eq!([&istiod["labels"]["app"], &istiod["labels"]["team"]], ["istiod", "x"], "the selector still fits");
    let gateway = &find(&objects, "Deployment", "istio-ingressgateway")["spec"]["template"]["metadata"];
    assert_eq!(gateway["annotations"]["prometheus.io/path"], "/own");
    assert_eq!(gateway["annotations"]["inject.istio.io/templates"], "gateway");
    assert_eq!(gateway["labels"]["team"], "x");
    let selector = &find(&objects, "Service", "istio-ingressgateway")["spec"]["selector"];
    assert_eq!(*selector, serde_json::json!({"app": "istio-ingressgateway", "istio": "edge"}));
}

#[test]
fn budgets_are_for_several_pods() {
    let budgets = |set: &[&str]| -> Vec<String> {
        let objects = rendered(set);
        let of = objects.iter().filter(|o| o["kind"] == "PodDisruptionBudget");
        of.map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(budgets(&[]).is_empty(), "a budget of one pod would keep its node from being drained");
    assert_eq!(budgets(&["values.pilot.autoscaleMin=2"]), ["istiod"]);
    assert_eq!(budgets(&["components.pilot.k8s.replicaCount=2"]), ["istiod"]);
    assert_eq!(budgets(&["components.ingressGateways[0].k8s.hpaSpec.minReplicas=2"]), ["istio-ingressgateway"]);
    let off = ["values.pilot.autoscaleMin=2", "values.global.defaultPodDisruptionBudget.enabled=false"];
    assert!(budgets(&off).is_empty());
}

#[test]
fn a_namespace_of_ones_own() {
    let all = Sources { namespace: Some("mesh-system".to_owned()), ..sources(&["values.defaultRevision=blue"]) };
    let objects: Vec<Value> =
        components(&Wish::read(&all).unwrap()).unwrap().into_iter().flat_map(|c| c.objects).collect();
    let mesh = find(&objects, "ConfigMap", "istio")["data"]["mesh"].as_str().unwrap();
    assert!(mesh.contains("rootNamespace: mesh-system"), "{mesh}");
    assert!(mesh.contains("discoveryAddress: istiod.mesh-system.svc:15012"), "{mesh}");
    find(&objects, "ClusterRole", "istiod-clusterrole-mesh-system");
    find(&objects, "ValidatingWebhookConfiguration", "istio-validator-mesh-system");
    find(&objects, "MutatingWebhookConfiguration", "istio-sidecar-injector-mesh-system");
    let validator = find(&objects, "ValidatingWebhookConfiguration", "istiod-default-validator");
    assert_eq!(validator["webhooks"][0]["clientConfig"]["service"]["name"], "istiod-blue");
    assert!(objects.iter().all(|o| o["metadata"]["namespace"].as_str().is_none_or(|n| n == "mesh-system")));
    let wish = Wish::read(&sources(&["values.global.istioNamespace=mesh-system"])).unwrap();
    assert_eq!(wish.namespace(), "mesh-system");
}

#[test]
fn files_lie_over_profiles_and_settings_over_files() {
    let text = "spec:\n  profile: minimal\n  hub: a\n  components:\n    ingressGateways:\n    - name: edge\n      namespace: edge\n      enabled: true\n";
    let all = Sources { files: vec![("f.yaml".into(), text.to_owned())], ..sources(&["tag=9", "hub=b"]) };
    let wish = Wish::read(&all).unwrap();
    let releases: Vec<(String, String)> = wish.releases().into_iter().map(|r| (r.name, r.namespace)).collect();
    let wanted = [("istio-base", "istio-system"), ("istiod", "istio-system"), ("edge", "edge")];
    assert_eq!(releases, wanted.map(|(n, s)| (n.to_owned(), s.to_owned())));
    let objects: Vec<Value> = components(&wish).unwrap().into_iter().flat_map(|c| c.objects).collect();
    let image = &find(&objects, "Deployment", "istiod")["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "b/control:9");
    find(&objects, "Namespace", "edge");
}
