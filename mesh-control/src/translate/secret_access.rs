//! Who may have a secret: a gateway, known as one by more than its own word, whose configuration refers to it.
//!
//! A node says of itself that it is a gateway and what its labels are; any workload of a namespace could say so. What
//! counts is the workload registered at its address with the caller's own service account. A proxy that nobody
//! registered is believed as far as nothing contradicts it. Must not know what is in a secret.

use mesh_api::{
    crd::networking::{ClientTls, DestinationRule},
    model::{Cluster, Discovery},
};

use super::{
    backend_tls,
    gateway::listener_tls,
    gateway_api::{GatewayEntry, gateway_name, gateways_of, listeners_of},
    gateway_infrastructure::{account, label_value},
    secrets::Place,
    server_tls,
    tls::{self, Origination},
    translator::Request,
};
use crate::{
    index::{ServedGateway, Workload},
    source::object::{Kind, ObjectKey, Spec},
    view::ProxyView,
};

/// Whether a proxy may have a secret.
///
/// # Errors
/// Why not, for the log.
pub fn check(request: Request<'_>, secret: &str) -> Result<(), String> {
    let Request { view, .. } = request;
    if !view.authenticated {
        return Err("the caller is not authenticated".to_owned());
    }
    if !view.is_gateway() {
        return Err("it is a sidecar; secrets are for gateways".to_owned());
    }
    known(request)?;
    // Istio's Gateways and DestinationRules name secrets of the gateway's namespace only. Into others leads a grant, which
    // is looked at for the one reference of a listener that it is meant for.
    let own = Place::parse(secret, &view.namespace).is_some_and(|p| *p.namespace == *view.namespace);
    // What counts against a Gateway that would otherwise hold for the proxy.
    let mut objections: Vec<String> = Vec::new();
    let mut is_gateway = false;
    for ServedGateway { object, spec, .. } in request.index.gateways_for(&view.labels) {
        if let Err(why) = selects_for_certain(request, &object.key, &spec.selector) {
            objections.push(why);
            continue;
        }
        is_gateway = true;
        if own && spec.servers.iter().filter_map(|s| s.tls.as_ref()).any(|tls| server_tls::refers_to(tls, secret)) {
            return Ok(());
        }
    }
    for entry in gateways_of(request.index, view) {
        if let Err(why) = implements_for_certain(view, &entry) {
            objections.push(why);
            continue;
        }
        is_gateway = true;
        let listeners = listeners_of(request.index, &entry);
        let mut contexts = listeners.iter().filter_map(|l| listener_tls(request.index, l));
        let presented = || backend_tls::presented_by(&entry).is_some_and(|name| *name == *secret);
        if contexts.any(|tls| server_tls::refers_to(&tls, secret)) || presented() {
            return Ok(());
        }
    }
    if own && is_gateway && used_by_rule(request, secret) {
        return Ok(());
    }
    if objections.is_empty() {
        let what =
            if is_gateway { "nothing that holds for this gateway refers to it" } else { "no Gateway selects it" };
        return Err(what.to_owned());
    }
    Err(objections.join("; "))
}

/// Whether an account, as workloads name it, is that of the caller.
fn is_account(account: &str, view: &ProxyView) -> bool {
    match account.strip_prefix("spiffe://") {
        Some(id) => id.split_once('/').is_some_and(|(_, path)| {
            path.strip_prefix("ns/").and_then(|p| p.split_once("/sa/"))
                == Some((&*view.namespace, &*view.service_account))
        }),
        None => *account == *view.service_account,
    }
}

/// The workload at its address must be the caller's own. Where there is none, the caller must not be one that is
/// registered elsewhere.
fn known(request: Request<'_>) -> Result<(), String> {
    let Request { view, .. } = request;
    match &view.registered {
        Some((object, account)) if account.is_empty() => {
            Err(format!("{object}, registered at its address, names no service account"))
        }
        Some((object, account)) if !is_account(account, view) => {
            Err(format!("{object}, registered at its address, is of service account {account}, not the caller's"))
        }
        Some(_) => Ok(()),
        None => match workloads(request).find(|w| is_account(&w.service_account, view)) {
            Some(own) => {
                Err(format!("nothing is registered at its address, but the caller's own {} elsewhere", own.source.0))
            }
            None => Ok(()),
        },
    }
}

/// Registered workloads of the proxy's namespace.
fn workloads<'a>(request: Request<'a>) -> impl Iterator<Item = Workload> + 'a {
    let of_kind = |kind| request.index.objects_in(kind, &request.view.namespace);
    of_kind(Kind::Pod).chain(of_kind(Kind::WorkloadEntry)).flat_map(|object| Workload::declared(object))
}

/// Whether the selector of an Istio Gateway tells that this proxy is one of its gateways.
fn selects_for_certain(
    request: Request<'_>,
    gateway: &ObjectKey,
    selector: &mesh_api::labels::Labels,
) -> Result<(), String> {
    let Request { view, .. } = request;
    if selector.is_empty() {
        return Err(format!("{gateway} has no selector, so that it tells nobody to be a gateway"));
    }
    if view.registered.is_some() {
        return Ok(());
    }
    let selected = workloads(request).filter(|w| mesh_api::labels::selects(selector, &w.labels));
    let mut other = None;
    for workload in selected {
        if is_account(&workload.service_account, view) {
            return Ok(());
        }
        other = Some(workload.source.0);
    }
    match other {
        Some(known) => Err(format!("the gateways of {gateway} are registered ({known}), the caller is none of them")),
        None => Ok(()),
    }
}

/// Whether a proxy may speak for a Gateway of Gateway API: one that the Gateway's name was given to runs as
/// the account that is made for it; one that the Gateway names by the address of its Service is known by being registered there.
fn implements_for_certain(view: &ProxyView, entry: &GatewayEntry) -> Result<(), String> {
    let key = &entry.object.key;
    if gateway_name(view).is_some_and(|label| label == label_value(&key.name)) {
        let (expected, _) = account(entry);
        if expected == *view.service_account {
            return Ok(());
        }
        return Err(format!("secrets of {key} are for service account {expected}, not {}", view.service_account));
    }
    if view.registered.is_some() {
        return Ok(());
    }
    Err(format!("nothing is registered at the address by which {key} means it"))
}

/// Whether a DestinationRule that the proxy follows takes its credential from a secret.
fn used_by_rule(request: Request<'_>, secret: &str) -> bool {
    let Request { index, view, scope } = request;
    let mentioned = index.objects(Kind::DestinationRule).any(|o| match &o.spec {
        Spec::DestinationRule(rule) => takes(rule, secret),
        _ => false,
    });
    mentioned
        && scope.services().iter().any(|scoped| {
            index.destination_rule(&scoped.service, view).is_some_and(|rule| takes(&rule.arc().spec, secret))
        })
}

fn takes(rule: &DestinationRule, secret: &str) -> bool {
    let policies = rule.traffic_policy.iter().chain(rule.subsets.iter().filter_map(|s| s.traffic_policy.as_ref()));
    let mut tls =
        policies.flat_map(|p| p.tls.iter().chain(p.port_level_settings.iter().filter_map(|s| s.tls.as_ref())));
    tls.any(|tls| originates_with(tls, secret))
}

fn originates_with(tls: &ClientTls, secret: &str) -> bool {
    let mut names = [&tls.credential_name, &tls.ca_cert_credential_name].into_iter();
    if !names.any(|n| !n.is_empty() && secret.contains(n.as_str())) {
        return false;
    }
    let mut cluster = Cluster::new("", Discovery::Eds { service: "".into() });
    tls::originate(&mut cluster, tls, &Origination { sni: "", server_names: &[], declared_names: &[], defaults: None });
    cluster.tls.is_some_and(|tls| server_tls::takes(&tls.common, secret))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{gateway_api::GATEWAY_NAME, testing::World},
        *,
    };

    const GATEWAY: &str = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: infra}\nspec: {selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: web}}]}\n";
    const API: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: infra}\nspec: {gatewayClassName: istio, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}]}\n";
    const WEB: &str = "kubernetes://web";

    fn entry(name: &str, ip: &str, account: &str, label: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: infra}}\nspec: {{address: {ip}, serviceAccount: '{account}', labels: {{istio: {label}}}}}\n"
        )
    }

    /// Asks as an authenticated proxy that calls itself a gateway with these labels.
    fn ask(world: &World, ip: &str, account: &str, labels: &[(&str, &str)], secret: &str) -> Result<(), String> {
        let mut view = world.gateway(ip, "infra", labels);
        view.authenticated = true;
        view.service_account = account.into();
        world.ask(&view, |r| check(*r, secret))
    }

    fn why(result: Result<(), String>, part: &str) {
        let text = result.unwrap_err();
        assert!(text.contains(part), "{text}");
    }

    #[test]
    fn a_gateway_that_nobody_registered_is_believed_until_something_contradicts() {
        let mut world = World::new(GATEWAY);
        let gw = [("istio", "gw")];
        assert_eq!(ask(&world, "10.0.0.9", "gw", &gw, WEB), Ok(()));
        why(ask(&world, "10.0.0.9", "gw", &gw, "kubernetes://other"), "nothing that holds");
        why(ask(&world, "10.0.0.9", "gw", &gw, "kubernetes://web-cacert"), "nothing that holds");
        why(ask(&world, "10.0.0.9", "gw", &[("istio", "other")], WEB), "no Gateway selects it");
        let mut nobody = world.gateway("10.0.0.9", "infra", &gw);
        assert!(world.ask(&nobody, |r| check(*r, WEB)).unwrap_err().contains("not authenticated"));
        nobody.authenticated = true;
        nobody.kind = crate::view::ProxyKind::Sidecar;
        assert!(world.ask(&nobody, |r| check(*r, WEB)).unwrap_err().contains("sidecar"));

        // A workload that is registered cannot speak from an address that nobody registered ...
        world.apply(&entry("app", "10.0.0.1", "app", "app"));
        why(ask(&world, "10.0.0.9", "app", &gw, WEB), "elsewhere");
        assert_eq!(ask(&world, "10.0.0.9", "gw", &gw, WEB), Ok(()));
        // ... nor has it other labels than the registered ones, nor is it who is registered at the gateway's address.
        why(ask(&world, "10.0.0.1", "app", &gw, WEB), "no Gateway selects it");
        world.apply(&entry("gw", "10.0.0.2", "gw", "gw"));
        why(ask(&world, "10.0.0.2", "app", &gw, WEB), "not the caller's");
        assert_eq!(ask(&world, "10.0.0.2", "gw", &[], WEB), Ok(()));
        // Once the gateways are known, nobody else is one.
        why(ask(&world, "10.0.0.9", "client", &gw, WEB), "none of them");
        world.apply(&entry("gw", "10.0.0.2", "", "gw"));
        why(ask(&world, "10.0.0.2", "gw", &gw, WEB), "names no service account");
        world.apply(&entry("gw", "10.0.0.2", "spiffe://cluster.local/ns/infra/sa/gw", "gw"));
        assert_eq!(ask(&world, "10.0.0.2", "gw", &gw, WEB), Ok(()));
    }

    #[test]
    fn a_gateway_without_selector_gives_nothing_away() {
        let world = World::new(&GATEWAY.replace("{istio: gw}", "{}"));
        why(ask(&world, "10.0.0.9", "gw", &[("istio", "gw")], WEB), "has no selector");
    }

    #[test]
    fn gateways_of_gateway_api_run_as_their_own_account() {
        let world = World::new(API);
        let secret = "kubernetes-gateway://infra/web";
        let labels = [(GATEWAY_NAME, "edge")];
        assert_eq!(ask(&world, "10.0.0.9", "edge-istio", &labels, secret), Ok(()));
        why(ask(&world, "10.0.0.9", "edge-istio", &labels, WEB), "nothing that holds");
        why(ask(&world, "10.0.0.9", "app", &labels, secret), "are for service account edge-istio, not app");
        why(ask(&world, "10.0.0.9", "edge-istio", &[], secret), "no Gateway selects it");
    }

    #[test]
    fn secrets_of_other_namespaces_are_for_the_listeners_that_are_granted_them() {
        let foreign = "kubernetes-gateway://bank/web";
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ext, namespace: infra}\nspec: {host: ext.test, trafficPolicy: {tls: {mode: MUTUAL, credentialName: 'kubernetes-gateway://bank/web'}}}\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: infra}\nspec: {hosts: [ext.test], ports: [{number: 443, name: tls, protocol: HTTPS}], resolution: DNS}\n";
        for name in [foreign, "kubernetes://bank/web"] {
            let named = GATEWAY.replace("credentialName: web", &format!("credentialName: '{name}'"));
            let world = World::new(&format!("{named}---\n{}", rule.replace(foreign, name)));
            why(ask(&world, "10.0.0.9", "gw", &[("istio", "gw")], name), "nothing that holds");
        }
    }

    #[test]
    fn credentials_of_rules_are_for_gateways_that_follow_them() {
        let rule = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: infra}\nspec: {hosts: [ext.test], ports: [{number: 443, name: tls, protocol: HTTPS}], resolution: DNS}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: ext, namespace: infra}\nspec: {host: ext.test, trafficPolicy: {portLevelSettings: [{port: {number: 443}, tls: {mode: MUTUAL, credentialName: client}}]}}\n";
        let mut world = World::new(rule);
        let gw = [("istio", "gw")];
        let (pair, roots) = ("kubernetes://client", "kubernetes://client-cacert");
        why(ask(&world, "10.0.0.9", "gw", &gw, pair), "no Gateway selects it");
        world.apply(GATEWAY);
        for secret in [pair, roots] {
            assert_eq!(ask(&world, "10.0.0.9", "gw", &gw, secret), Ok(()));
        }
        world.apply(&rule.replace("MUTUAL", "SIMPLE"));
        why(ask(&world, "10.0.0.9", "gw", &gw, pair), "nothing that holds");
        assert_eq!(ask(&world, "10.0.0.9", "gw", &gw, roots), Ok(()));
        world.apply(&rule.replace("MUTUAL, credentialName", "SIMPLE, caCertCredentialName"));
        why(ask(&world, "10.0.0.9", "gw", &gw, pair), "nothing that holds");
        assert_eq!(ask(&world, "10.0.0.9", "gw", &gw, roots), Ok(()));
        world.apply(&rule.replace("host: ext.test", "host: other.test"));
        why(ask(&world, "10.0.0.9", "gw", &gw, roots), "nothing that holds");
    }

    #[test]
    fn a_registration_makes_another_view() {
        let mut world = World::new(GATEWAY);
        let before = world.gateway("10.0.0.2", "infra", &[("istio", "gw")]);
        world.apply(&entry("gw", "10.0.0.2", "gw", "gw"));
        assert_ne!(before, world.gateway("10.0.0.2", "infra", &[("istio", "gw")]));
    }
}
