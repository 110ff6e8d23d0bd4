//! Secrets of gateways: certificates and trust anchors that Gateways refer to by name.
//!
//! Owns names (`kubernetes://NAME`, `kubernetes-gateway://NS/NAME`, `configmap://NS/NAME-cacert`), the keys of Secrets,
//! and who may have one: authenticated gateways, of their own namespace, or where a ReferenceGrant says so. Workload
//! certificates are not here: a proxy's own agent serves those.

use std::sync::Arc;

use mesh_api::model::{DataSource, Name, PrivateData, Secret, SecretKind, TlsCertificate, ValidationContext};

use super::{
    cache::Cache,
    gateway_api::{Reference, is_granted},
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

/// Secrets of all gateways, by namespace.
#[derive(Debug, Default)]
pub struct Secrets {
    cache: Cache<Name, [Stamp; 3]>,
}

impl Secrets {
    /// A secret by name; `None`: there is none, or not for this proxy.
    pub fn generate(&self, request: Request<'_>, name: &str) -> Option<Arc<Encoded>> {
        let view = request.view;
        if !view.is_gateway() || !view.authenticated {
            return None;
        }
        let basis = [Kind::Secret, Kind::ConfigMap, Kind::ReferenceGrant].map(|k| request.index.stamp(k));
        self.cache.get(name, view.namespace.clone(), basis, || {
            secret(request.index, &view.namespace, name).map(|s| Encoded::secret(&s))
        })
    }
}

/// Where a secret lies.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    config_map: bool,
    namespace: &'a str,
    name: &'a str,
}

impl<'a> Place<'a> {
    fn parse(name: &'a str, own_namespace: &'a str) -> Option<Self> {
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
    if !is_granted(index, reference) {
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
        let world = World::new(YAML);
        let secrets = Secrets::default();
        let mut gateway = world.gateway("10.0.0.9", "infra", &[]);
        let asks =
            |view: &crate::view::ProxyView| world.ask(view, |r| secrets.generate(*r, "kubernetes://web").is_some());
        assert!(!asks(&gateway));
        gateway.authenticated = true;
        assert!(asks(&gateway));
        let mut sidecar = world.sidecar("10.0.0.8", "infra", &[]);
        sidecar.authenticated = true;
        assert!(!asks(&sidecar));
    }
}
