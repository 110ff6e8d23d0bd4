//! Secrets of gateways: certificates and trust anchors that Gateways refer to by name.
//!
//! Owns names (`kubernetes://NAME`, `kubernetes-gateway://NS/NAME`, `configmap://NS/NAME-cacert`), the keys of Secrets,
//! and where one may lie: in the gateway's own namespace, or where a ReferenceGrant says so. Who may have it is for
//! `secret_access`. Workload certificates are not here: a proxy's own agent serves those.

use std::{collections::HashSet, sync::Arc};

use mesh_api::model::{DataSource, Name, PrivateData, Secret, SecretKind, TlsCertificate, ValidationContext};

use parking_lot::Mutex;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

use super::{
    backend_tls::is_certificates,
    cache::Cache,
    gateway_api::{Reference, is_granted_to_gateway},
    secret_access,
    tls::CA_SUFFIX,
    translator::Request,
};
use crate::{
    index::{Index, Stamp},
    source::{core, object::Kind},
    xds::encoded::Encoded,
};

/// Keys of certificate chain and private key.
const CERTIFICATE_KEYS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert", "key")];
/// Keys of trust anchors.
const ROOT_KEYS: [&str; 2] = ["ca.crt", "cacert"];
/// Key of revocation lists.
const CRL_KEY: &str = "ca.crl";
/// Most refusals that are remembered, so that each is logged once.
const MAX_REFUSALS: usize = 4096;

/// Secrets of all gateways, by namespace.
#[derive(Debug, Default)]
pub struct Secrets {
    cache: Cache<Name, [Stamp; 6]>,
    /// Proxy, secret and reason.
    refusals: Mutex<HashSet<(String, Name, String)>>,
}

impl Secrets {
    /// A secret by name; `None`: there is none, or not for this proxy.
    pub fn generate(&self, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
        let view = request.view;
        if let Err(why) = secret_access::check(request, name) {
            self.note_refusal(request, name, why);
            return None;
        }
        let kinds =
            [Kind::Secret, Kind::ConfigMap, Kind::ReferenceGrant, Kind::ListenerSet, Kind::Gateway, Kind::Namespace];
        let basis = kinds.map(|k| request.index.stamp(k));
        self.cache.get(name, view.namespace.clone(), basis, || {
            secret(request.index, &view.namespace, name).map(|s| Encoded::secret(&s))
        })
    }

    /// Logs a refusal, once.
    fn note_refusal(&self, request: Request<'_>, name: &str, why: String) {
        let view = request.view;
        let proxy = format!("{}.{}", view.name, view.namespace);
        let refusal = (proxy, Name::from(name), why);
        let mut known = self.refusals.lock();
        if known.contains(&refusal) {
            return;
        }
        if known.len() >= MAX_REFUSALS {
            known.clear();
        }
        known.insert(refusal.clone());
        drop(known);
        let (proxy, secret, why) = refusal;
        tracing::warn!(target: "xds", proxy, account = &*view.service_account, secret = &*secret, "secret refused: {why}");
    }
}

/// Where a secret lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    config_map: bool,
    pub(super) namespace: &'a str,
    name: &'a str,
}

impl<'a> Place<'a> {
    pub(super) fn parse(name: &'a str, own_namespace: &'a str) -> Option<Self> {
        let (scheme, rest) = name.split_once("://")?;
        let config_map = match scheme {
            "kubernetes" | "kubernetes-gateway" => false,
            "configmap" => true,
            _ => return None,
        };
        let (namespace, name) = rest.split_once('/').unwrap_or((own_namespace, rest));
        let fits = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
        fits.then_some(Self { config_map, namespace, name })
    }
}

fn secret(index: &Index, own_namespace: &str, full: &str) -> Option<Secret> {
    let place = Place::parse(full, own_namespace)?;
    let roots = place.name.strip_suffix(CA_SUFFIX);
    let object = roots.unwrap_or(place.name);
    let reference = Reference {
        from_kind: "Gateway",
        from_namespace: own_namespace,
        to_group: "",
        to_kind: if place.config_map { "ConfigMap" } else { "Secret" },
        to_namespace: place.namespace,
        to_name: object,
    };
    if !is_granted_to_gateway(index, reference) {
        return None;
    }
    let kind = if place.config_map {
        let map = index.config_map(place.namespace, roots?)?;
        let trusted = ROOT_KEYS.iter().find_map(|k| map.data.get(*k))?;
        let crl = map.data.get(CRL_KEY).map(|c| inline(c));
        SecretKind::Validation(anchors(trusted, crl))
    } else {
        match roots {
            // A secret may really be called so; else its own object, else that of the certificate.
            Some(bare) => {
                let own = index.secret(place.namespace, place.name).and_then(|s| validation(s));
                let kind = own.or_else(|| index.secret(place.namespace, bare).and_then(|s| validation(s)))?;
                SecretKind::Validation(kind)
            }
            None => SecretKind::Certificate(certificate(index.secret(place.namespace, place.name)?)?),
        }
    };
    Some(Secret { name: full.into(), kind })
}

fn inline(text: &str) -> DataSource {
    DataSource::Inline(text.into())
}

fn text<'a>(secret: &'a core::Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(secret.data.get(key)?).ok().filter(|t| !t.is_empty())
}

fn certificate(secret: &core::Secret) -> Option<TlsCertificate> {
    let pair = |(c, k): (&str, &str)| Some((text(secret, c)?, text(secret, k)?));
    let (chain, key) = CERTIFICATE_KEYS.into_iter().find_map(pair)?;
    Some(TlsCertificate { chain: inline(chain), key: PrivateData(inline(key)) })
}

/// Whether a Secret holds a certificate and its key.
pub fn has_certificate(secret: &core::Secret) -> bool {
    let pair = |(c, k): (&str, &str)| Some((text(secret, c)?, text(secret, k)?));
    CERTIFICATE_KEYS
        .into_iter()
        .find_map(pair)
        .is_some_and(|(chain, key)| is_certificates(chain) && PrivateKeyDer::from_pem_slice(key.as_bytes()).is_ok())
}

/// Whether a Secret holds trust anchors.
pub fn has_anchors(secret: &core::Secret) -> bool {
    ROOT_KEYS.iter().find_map(|k| text(secret, k)).is_some_and(is_certificates)
}

fn validation(secret: &core::Secret) -> Option<ValidationContext> {
    let trusted = ROOT_KEYS.iter().find_map(|k| text(secret, k))?;
    Some(anchors(trusted, text(secret, CRL_KEY).map(inline)))
}

fn anchors(trusted: &str, crl: Option<DataSource>) -> ValidationContext {
    ValidationContext { trusted_ca: Some(inline(trusted)), crl, ..ValidationContext::default() }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::World, *};

    const YAML: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: web, namespace: infra}\ntype: kubernetes.io/tls\nstringData: {tls.crt: CHAIN, tls.key: KEY, ca.crt: ROOTS}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: other, namespace: shop}\nstringData: {cert: C2, key: K2}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: roots, namespace: infra}\ndata: {ca.crt: CM}\n";

    fn find(world: &World, name: &str) -> Option<Secret> {
        secret(world.index(), "infra", name)
    }

    #[test]
    fn certificates_and_trust_anchors_of_the_own_namespace() {
        let world = World::new(YAML);
        let SecretKind::Certificate(c) = find(&world, "kubernetes://web").unwrap().kind else { panic!() };
        assert_eq!((c.chain, c.key.0), (inline("CHAIN"), inline("KEY")));
        let SecretKind::Validation(v) = find(&world, "kubernetes://web-cacert").unwrap().kind else { panic!() };
        assert_eq!(v.trusted_ca, Some(inline("ROOTS")));
        let SecretKind::Validation(v) = find(&world, "configmap://infra/roots-cacert").unwrap().kind else { panic!() };
        assert_eq!(v.trusted_ca, Some(inline("CM")));
        assert!(find(&world, "kubernetes://nobody").is_none());
        assert!(find(&world, "default").is_none());
    }

    #[test]
    fn other_namespaces_only_with_a_grant() {
        let mut world = World::new(YAML);
        assert!(find(&world, "kubernetes-gateway://shop/other").is_none());
        world.apply("apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g, namespace: shop}\nspec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}], to: [{group: '', kind: Secret, name: other}]}\n");
        assert!(find(&world, "kubernetes-gateway://shop/other").is_some());
    }

    #[test]
    fn only_authenticated_gateways_have_secrets() {
        let istio = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: infra}\nspec: {selector: {istio: gw}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: web}}]}\n";
        let world = World::new(&format!("{YAML}{istio}"));
        let secrets = Secrets::default();
        let mut gateway = world.gateway("10.0.0.9", "infra", &[("istio", "gw")]);
        let asks =
            |view: &crate::view::ProxyView| world.ask(view, |r| secrets.generate(*r, "kubernetes://web").is_some());
        assert!(!asks(&gateway));
        gateway.authenticated = true;
        assert!(asks(&gateway));
        let mut sidecar = world.sidecar("10.0.0.8", "infra", &[]);
        sidecar.authenticated = true;
        assert!(!asks(&sidecar) && !asks(&sidecar));
        assert_eq!(secrets.refusals.lock().len(), 2, "each once");
    }
}
