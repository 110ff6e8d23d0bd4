//! The objects of a cluster that a Gateway of Gateway API stands for: how its own Deployment, Service and account are
//! called, what it says about them, and by which Services it is reached.
//!
//! Owns these names and Istio's annotations on Gateways. Must not know what is in the objects, nor who makes them.

use std::{borrow::Cow, collections::BTreeMap};

use mesh_api::{crd::gateway_api::Gateway, labels::Labels, names};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::gateway_api::GatewayEntry;
use crate::index::{Index, ServiceKey};

/// Name of the generated Deployment and Service, instead of `GATEWAY-CLASS`.
pub const NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// Account that the proxies run as, instead of `GATEWAY-CLASS`.
pub const ACCOUNT_OVERRIDE: &str = "gateway.istio.io/service-account";
/// Version of the control plane that generates.
pub const CONTROLLER_VERSION: &str = "gateway.istio.io/controller-version";
/// Type of the generated Service, instead of `LoadBalancer`.
pub const SERVICE_TYPE: &str = "networking.istio.io/service-type";
/// Whether a Gateway without an address outside tells host name or address inside: `Hostname` (default) or `IPAddress`.
pub const ADDRESS_TYPE: &str = "networking.istio.io/address-type";

/// Longest label value, and name of a Service.
const LONGEST: usize = 63;

/// The keys of a parameters ConfigMap, one for each generated kind.
pub const PARAMETERS: [&str; 5] =
    ["serviceAccount", "service", "deployment", "horizontalPodAutoscaler", "podDisruptionBudget"];

/// What comes on top of generated objects, by key.
pub type Parameters = BTreeMap<&'static str, Value>;

/// A name that is too long, cut, with a hash of the whole so that no two become one.
fn shortened(name: &str) -> Cow<'_, str> {
    if name.len() <= LONGEST {
        return Cow::Borrowed(name);
    }
    let hash = format!("{:08x}", xxh3_64(name.as_bytes()) & 0xffff_ffff);
    let head: String = name.chars().take(LONGEST - 1 - hash.len()).collect();
    Cow::Owned(format!("{}-{hash}", head.trim_end_matches(['-', '.', '_'])))
}

/// The value of the label by which pods and Services name a Gateway.
pub fn label_value(gateway: &str) -> Cow<'_, str> {
    shortened(gateway)
}

/// `GATEWAY-CLASS`, as the name of a Service: no dots, at most 63 characters.
fn default_name(gateway: &GatewayEntry) -> String {
    let plain = format!("{}-{}", gateway.object.key.name, gateway.spec.gateway_class_name);
    if plain.contains('.') {
        let hash = format!("{:08x}", xxh3_64(plain.as_bytes()) & 0xffff_ffff);
        return shortened(&format!("{}-{hash}", plain.replace('.', "-"))).into_owned();
    }
    shortened(&plain).into_owned()
}

fn annotation<'a>(gateway: &'a GatewayEntry, name: &str) -> Option<&'a str> {
    gateway.object.meta.annotations.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// Name of the Deployment and the Service that are generated for a Gateway.
pub fn own_name(gateway: &GatewayEntry) -> String {
    annotation(gateway, NAME_OVERRIDE).map_or_else(|| default_name(gateway), str::to_owned)
}

/// Account that the proxies of a Gateway run as, and whether the user has named it.
pub fn account(gateway: &GatewayEntry) -> (String, bool) {
    match annotation(gateway, ACCOUNT_OVERRIDE) {
        Some(own) => (own.to_owned(), true),
        None => (default_name(gateway), false),
    }
}

/// Whether Deployment and Service are generated: unless an address names what is there already. One IP address is what
/// the generated Service is to ask for.
pub fn is_generated(gateway: &Gateway) -> bool {
    match gateway.addresses.as_slice() {
        [] => true,
        [one] => one.kind.as_deref().is_none_or(|kind| kind == "IPAddress"),
        _ => false,
    }
}

/// The Services by which a Gateway is reached, and those of its addresses that name none.
pub fn services(index: &Index, gateway: &GatewayEntry) -> (Vec<ServiceKey>, Vec<String>) {
    let namespace = &*gateway.object.key.namespace;
    let host = |name: &str| {
        let full = if name.contains('.') {
            name.trim_end_matches('.').to_owned()
        } else {
            names::service_host(name, namespace, index.domain())
        };
        // A host outside of the cluster can be an entry of the Gateway's namespace.
        let owner = names::service_namespace(&full, index.domain()).unwrap_or(namespace).to_owned();
        ServiceKey::new(&full, &owner)
    };
    if is_generated(&gateway.spec) {
        return (vec![host(&own_name(gateway))], vec![]);
    }
    let (mut hosts, mut others) = (Vec::new(), Vec::new());
    for address in &gateway.spec.addresses {
        match address.kind.as_deref() {
            None | Some("Hostname") => hosts.push(host(&address.value)),
            Some(_) => others.push(address.value.clone()),
        }
    }
    (hosts, others)
}

/// Labels for generated objects: those of `infrastructure`, else the Gateway's own.
pub fn labels(gateway: &GatewayEntry) -> Labels {
    let given = gateway.spec.infrastructure.as_ref().map(|i| &i.labels).filter(|l| !l.is_empty());
    given.unwrap_or(&gateway.object.meta.labels).clone()
}

/// Annotations for generated objects: those of `infrastructure`, else the Gateway's own; what is meant for the control
/// plane stays behind.
pub fn annotations(gateway: &GatewayEntry) -> Labels {
    let given = gateway.spec.infrastructure.as_ref().map(|i| &i.annotations).filter(|a| !a.is_empty());
    let mut out = given.unwrap_or(&gateway.object.meta.annotations).clone();
    for name in [NAME_OVERRIDE, ACCOUNT_OVERRIDE, CONTROLLER_VERSION, SERVICE_TYPE, ADDRESS_TYPE] {
        out.remove(name);
    }
    out.retain(|name, _| !name.starts_with("kubectl.kubernetes.io/"));
    out
}

/// What a Gateway's `parametersRef` says of generated objects.
///
/// # Errors
/// Why it cannot be used.
pub fn parameters(index: &Index, gateway: &GatewayEntry) -> Result<Parameters, String> {
    let reference = gateway.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref());
    let Some(r) = reference else { return Ok(Parameters::new()) };
    if !r.group.is_empty() || r.kind != "ConfigMap" {
        return Err(format!("parameters are a ConfigMap, {} {} is none", r.kind, r.name));
    }
    let namespace = &gateway.object.key.namespace;
    let Some(map) = index.config_map(namespace, &r.name) else {
        return Err(format!("there is no ConfigMap {namespace}/{}", r.name));
    };
    let given = PARAMETERS.into_iter().filter_map(|key| Some((key, map.data.get(key)?)));
    let read = |(key, text): (&'static str, &String)| {
        let place = format!("ConfigMap {namespace}/{}, {key}", r.name);
        match mesh_api::yaml::from_str::<Value>(text) {
            Ok(Value::Null) => Ok((key, Value::Object(serde_json::Map::new()))),
            Ok(value @ Value::Object(_)) => Ok((key, value)),
            Ok(_) => Err(format!("{place}: an object is expected, such as {{spec: {{...}}}}")),
            Err(error) => Err(format!("{place}: {}", error.to_string().lines().next().unwrap_or_default())),
        }
    };
    given.map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::gateway_api::gateway_entry, *};
    use crate::{index::testing::writer, source::object::Kind};

    const MAP: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: more, namespace: infra}\ndata: {deployment: 'spec: {replicas: 3}', service: '[1]', podDisruptionBudget: ''}\n";

    fn with<T>(metadata: &str, spec: &str, look: impl FnOnce(&Index, &GatewayEntry) -> T) -> T {
        let writer = writer(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{namespace: infra, {metadata}}}\nspec: {{gatewayClassName: istio, listeners: [{{name: http, port: 80, protocol: HTTP}}], {spec}}}\n{MAP}"
        ));
        let index = writer.index();
        let entry = index.objects(Kind::Gateway).find_map(|o| gateway_entry(index, o)).unwrap();
        look(index, &entry)
    }

    fn named(metadata: &str) -> (String, (String, bool)) {
        with(metadata, "", |_, g| (own_name(g), account(g)))
    }

    #[test]
    fn names_follow_the_class_and_annotations() {
        assert_eq!(named("name: edge"), ("edge-istio".to_owned(), ("edge-istio".to_owned(), false)));
        let own = "name: edge, annotations: {gateway.istio.io/name-override: gw, gateway.istio.io/service-account: sa}";
        assert_eq!(named(own), ("gw".to_owned(), ("sa".to_owned(), true)));
    }

    #[test]
    fn long_names_are_cut_and_stay_apart() {
        let (long, other) = ("a".repeat(253), format!("{}b", "a".repeat(252)));
        let of = |name: &str| named(&format!("name: {name}")).0;
        let cut = of(&long);
        assert_eq!(cut.len(), 63, "{cut}");
        assert_eq!(cut, of(&long), "the same each time");
        assert_ne!(cut, of(&other));
        assert_ne!(label_value(&long), label_value(&other));
        assert_eq!(label_value(&long).len(), 63);
        let dotted = of("a.b");
        assert!(!dotted.contains('.'), "{dotted}");
        assert_ne!(dotted, of("a-b"));
    }

    #[test]
    fn addresses_say_who_deploys() {
        let keys = |spec: &str| {
            with("name: edge", spec, |index, g| {
                let (services, others) = services(index, g);
                let hosts: Vec<String> = services.iter().map(|k| format!("{} {}", k.namespace, k.host)).collect();
                (is_generated(&g.spec), hosts, others)
            })
        };
        let own = || vec!["infra edge-istio.infra.svc.cluster.local".to_owned()];
        assert_eq!(keys(""), (true, own(), vec![]));
        assert_eq!(keys("addresses: [{type: IPAddress, value: 10.0.0.1}]"), (true, own(), vec![]));
        let manual = "addresses: [{type: Hostname, value: gw}, {type: Hostname, value: gw.other.svc.cluster.local}, {type: IPAddress, value: 10.0.0.1}]";
        let hosts = vec!["infra gw.infra.svc.cluster.local".to_owned(), "other gw.other.svc.cluster.local".to_owned()];
        assert_eq!(keys(manual), (false, hosts, vec!["10.0.0.1".to_owned()]));
    }

    #[test]
    fn labels_of_infrastructure_replace_those_of_the_gateway() {
        let metadata = "name: edge, labels: {team: a}, annotations: {gateway.istio.io/service-account: sa, networking.istio.io/service-type: ClusterIP, example.com/x: y}";
        with(metadata, "", |_, g| {
            assert_eq!(labels(g), Labels::from([("team".to_owned(), "a".to_owned())]));
            assert_eq!(annotations(g), Labels::from([("example.com/x".to_owned(), "y".to_owned())]));
        });
        with(metadata, "infrastructure: {labels: {b: c}, annotations: {d: e}}", |_, g| {
            assert_eq!(labels(g), Labels::from([("b".to_owned(), "c".to_owned())]));
            assert_eq!(annotations(g), Labels::from([("d".to_owned(), "e".to_owned())]));
        });
    }

    #[test]
    fn parameters_are_objects_of_a_config_map() {
        let of = |reference: &str| {
            let spec = format!("infrastructure: {{parametersRef: {reference}}}");
            with("name: edge", &spec, parameters)
        };
        let why = of("{group: '', kind: ConfigMap, name: more}").unwrap_err();
        assert!(why.contains("infra/more, service"), "{why}");
        assert!(of("{group: '', kind: ConfigMap, name: none}").unwrap_err().contains("there is no"));
        assert!(of("{group: x.test, kind: Thing, name: more}").unwrap_err().contains("Thing more is none"));
    }
}
