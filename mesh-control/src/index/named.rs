//! Secrets and ConfigMaps that objects name, for sources that read no others.
//!
//! Only names: in which namespace one must lie is for translation to say. Too many are no harm, one too few is.

use std::{collections::BTreeSet, sync::Arc};

use mesh_api::crd::{gateway_api, networking};

use super::Index;
use crate::source::object::{Kind, Spec};

/// Kinds that name some.
const KINDS: [Kind; 6] = [
    Kind::IstioGateway,
    Kind::DestinationRule,
    Kind::Gateway,
    Kind::ListenerSet,
    Kind::Ingress,
    Kind::BackendTlsPolicy,
];

/// Trust anchors of a credential may lie in a Secret of its own.
pub const CA_SUFFIX: &str = "-cacert";

#[derive(Default)]
struct Names {
    secrets: BTreeSet<Arc<str>>,
    config_maps: BTreeSet<Arc<str>>,
}

impl Index {
    /// Names of Secrets and of ConfigMaps.
    pub fn named(&self) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) {
        let mut names = Names::default();
        for object in KINDS.into_iter().flat_map(|kind| self.objects(kind)) {
            match &object.spec {
                Spec::IstioGateway(gateway) => names.gateway(gateway),
                Spec::DestinationRule(rule) => names.rule(rule),
                Spec::Gateway(gateway) => names.api_gateway(gateway),
                Spec::ListenerSet(set) => set.listeners.iter().for_each(|l| names.listener(l)),
                Spec::Ingress(ingress) => ingress.tls.iter().for_each(|tls| names.credential(&tls.secret_name)),
                Spec::BackendTlsPolicy(policy) => {
                    policy.validation.ca_certificate_refs.iter().for_each(|r| names.anchors(&r.name));
                }
                _ => {}
            }
        }
        (names.secrets, names.config_maps)
    }

    /// Whether a change of this kind may change the names.
    pub fn names_others(kind: Kind) -> bool {
        KINDS.contains(&kind)
    }
}

impl Names {
    /// `NAME`, `kubernetes://NAME`, `kubernetes-gateway://NS/NAME` or `configmap://NS/NAME`.
    fn credential(&mut self, full: &str) {
        let (scheme, rest) = full.split_once("://").unwrap_or(("", full));
        let name = rest.rsplit_once('/').map_or(rest, |(_, name)| name);
        if name.is_empty() {
            return;
        }
        let bare = name.strip_suffix(CA_SUFFIX).unwrap_or(name);
        let names = [Arc::from(name), Arc::from(bare), format!("{bare}{CA_SUFFIX}").into()];
        if scheme == "configmap" { self.config_maps.extend(names) } else { self.secrets.extend(names) }
    }

    /// Trust anchors, in a ConfigMap or a Secret.
    fn anchors(&mut self, name: &str) {
        self.config_maps.insert(name.into());
        self.secrets.insert(name.into());
    }

    fn gateway(&mut self, gateway: &networking::Gateway) {
        for tls in gateway.servers.iter().filter_map(|s| s.tls.as_ref()) {
            let names = tls.credential_names.iter().chain([&tls.credential_name, &tls.ca_cert_credential_name]);
            names.for_each(|name| self.credential(name));
        }
    }

    fn rule(&mut self, rule: &networking::DestinationRule) {
        let policies = rule.traffic_policy.iter().chain(rule.subsets.iter().filter_map(|s| s.traffic_policy.as_ref()));
        for policy in policies {
            let ports = policy.port_level_settings.iter().filter_map(|s| s.tls.as_ref());
            for tls in policy.tls.iter().chain(ports) {
                self.credential(&tls.credential_name);
                self.credential(&tls.ca_cert_credential_name);
            }
        }
    }

    fn listener(&mut self, listener: &gateway_api::Listener) {
        let certificates = listener.tls.iter().flat_map(|tls| &tls.certificate_refs);
        certificates.for_each(|r| self.credential(&r.name));
    }

    fn api_gateway(&mut self, gateway: &gateway_api::Gateway) {
        gateway.listeners.iter().for_each(|l| self.listener(l));
        if let Some(r) = gateway.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()) {
            self.config_maps.insert(r.name.as_str().into());
        }
        let Some(tls) = &gateway.tls else { return };
        if let Some(own) = tls.backend.as_ref().and_then(|b| b.client_certificate_ref.as_ref()) {
            self.credential(&own.name);
        }
        let Some(frontend) = &tls.frontend else { return };
        let ports = frontend.per_port.iter().map(|p| &p.tls).chain([&frontend.default]);
        for anchors in ports.filter_map(|p| p.validation.as_ref()).flat_map(|v| &v.ca_certificate_refs) {
            self.anchors(&anchors.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::index::testing::writer;

    #[test]
    fn names_of_every_kind() {
        let index = writer(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a}\nspec: {selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, credentialName: one}}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: x, subsets: [{name: s, trafficPolicy: {portLevelSettings: [{port: {number: 1}, tls: {mode: MUTUAL, credentialName: 'kubernetes-gateway://b/two'}}]}}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: k, namespace: a}\nspec: {gatewayClassName: istio, infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: more}}, tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: clients}]}}}}, listeners: [{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: three}]}}]}\n---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i, namespace: a}\nspec: {tls: [{secretName: four}], rules: [{host: a.test}]}\n",
        );
        let (secrets, config_maps) = index.index().named();
        for name in ["one", "one-cacert", "two", "three", "four", "clients"] {
            assert!(secrets.contains(name), "{name} is not in {secrets:?}");
        }
        assert_eq!(config_maps.into_iter().collect::<Vec<_>>(), ["clients".into(), "more".into()]);
    }
}
