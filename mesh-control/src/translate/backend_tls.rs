//! BackendTLSPolicies: TLS towards the pods of a Service.
//!
//! Owns which policy holds for a port, its trust anchors, and that a policy that cannot be carried out lets nothing
//! through instead of falling back to clear text. Must not know clusters' other settings.

use std::sync::Arc;

use mesh_api::{
    crd::gateway_api::{BackendTlsPolicy, LocalObjectRef, SubjectAltNameType},
    model::{
        CertificateSource, Cluster, CommonTls, DataSource, Discovery, EndpointSet, HttpVersionChoice, LbPolicy, Name,
        SanKind, SanMatcher, StringMatcher, TlsVersion, UpstreamTls, Validation, ValidationContext,
    },
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{
    gateway_api::{GatewayEntry, gateways_of},
    tls::{credential, file_roots},
};
use crate::{
    index::{Index, Service, ServicePort, Stamp},
    source::object::{Kind, Object, Spec},
    view::ProxyView,
};

/// Keys of trust anchors in a ConfigMap.
const ROOT_KEYS: [&str; 2] = ["ca.crt", "cacert"];
/// The only well-known set of trust anchors.
const SYSTEM: &str = "System";

/// What is wrong with a reference to trust anchors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadReference {
    /// Not a ConfigMap.
    Kind,
    /// There is none, or no certificate in it.
    Content,
}

/// Why nothing can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalid {
    /// No reference leads to trust anchors.
    NoAnchors,
    /// A well-known set that is not known.
    UnknownSet,
}

/// Whom a server's certificate may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchors {
    /// Those of the system.
    System,
    /// Certificates as PEM.
    Inline(Name),
}

/// The policy that holds for a port of a Service.
pub fn find(index: &Index, service: &Service, port: &ServicePort) -> Option<(Arc<Object>, Arc<BackendTlsPolicy>)> {
    if !service.kubernetes || index.stamp(Kind::BackendTlsPolicy) == Stamp::NONE {
        return None;
    }
    let mut all = of_service(index, &service.key.namespace, &service.name);
    // A word about the port counts before one about the whole Service, the older before the younger.
    all.retain(|(.., section)| section.as_ref().is_none_or(|s| **s == *port.name));
    all.into_iter().min_by_key(|(.., section)| section.is_none()).map(|(object, policy, _)| (object, policy))
}

/// Policies that are attached to a Service, with the names of ports, older ones first.
pub fn of_service(
    index: &Index,
    namespace: &str,
    name: &str,
) -> Vec<(Arc<Object>, Arc<BackendTlsPolicy>, Option<Name>)> {
    let mut out = Vec::new();
    for object in index.objects_in(Kind::BackendTlsPolicy, namespace) {
        let Spec::BackendTlsPolicy(policy) = &object.spec else { continue };
        for target in &policy.target_refs {
            if target.group.is_empty() && target.kind == "Service" && target.name == name {
                let section = target.section_name.as_deref().filter(|s| !s.is_empty()).map(Name::from);
                out.push((object.clone(), policy.clone(), section));
            }
        }
    }
    out.sort_by(|a, b| a.0.age_order().cmp(&b.0.age_order()));
    out
}

/// Trust anchors of a policy: of all references that lead to some.
///
/// # Errors
/// Why there are none.
pub fn anchors(index: &Index, namespace: &str, policy: &BackendTlsPolicy) -> Result<Anchors, Invalid> {
    let validation = &policy.validation;
    if validation.ca_certificate_refs.is_empty() {
        return match validation.well_known_ca_certificates.as_deref() {
            Some(SYSTEM) => Ok(Anchors::System),
            _ => Err(Invalid::UnknownSet),
        };
    }
    let found: Vec<&str> =
        validation.ca_certificate_refs.iter().filter_map(|r| referenced(index, namespace, r).ok()).collect();
    if found.is_empty() { Err(Invalid::NoAnchors) } else { Ok(Anchors::Inline(found.join("\n").into())) }
}

/// Trust anchors that a reference leads to.
///
/// # Errors
/// What is wrong with it.
pub fn referenced<'a>(index: &'a Index, namespace: &str, r: &LocalObjectRef) -> Result<&'a str, BadReference> {
    if !r.group.is_empty() || r.kind != "ConfigMap" {
        return Err(BadReference::Kind);
    }
    let map = index.config_map(namespace, &r.name).ok_or(BadReference::Content)?;
    let text = ROOT_KEYS.iter().find_map(|k| map.data.get(*k)).ok_or(BadReference::Content)?;
    if is_certificates(text) { Ok(text) } else { Err(BadReference::Content) }
}

/// Whether a text is certificates: proxies refuse a whole resource for one that does not parse.
pub fn is_certificates(pem: &str) -> bool {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.is_ok_and(|all| !all.is_empty() && all.iter().all(|c| x509_parser::parse_x509_certificate(c).is_ok()))
}

/// The Secret, by its name for proxies, with what a Gateway presents to backends that it speaks TLS to.
pub fn presented_by(gateway: &GatewayEntry) -> Option<Name> {
    let tls = gateway.spec.tls.as_ref()?;
    let r = tls.backend.as_ref()?.client_certificate_ref.as_ref()?;
    let is_secret = r.group.as_deref().unwrap_or("").is_empty() && r.kind.as_deref().unwrap_or("Secret") == "Secret";
    let namespace = r.namespace.as_deref().unwrap_or(&gateway.object.key.namespace);
    is_secret.then(|| format!("kubernetes-gateway://{namespace}/{}", r.name).into())
}

/// The same, of a proxy: that of its oldest Gateway with one.
pub fn presented(index: &Index, view: &ProxyView) -> Option<Name> {
    if !view.is_gateway() {
        return None;
    }
    gateways_of(index, view).iter().find_map(presented_by)
}

/// TLS of a cluster as a policy says. Without trust anchors the cluster has no endpoints. `presents`: a Secret with what
/// clients are known by; while it is not to be had no connection is made.
pub fn originate(
    cluster: &mut Cluster,
    index: &Index,
    namespace: &str,
    policy: &BackendTlsPolicy,
    presents: Option<&str>,
) {
    let anchors = match anchors(index, namespace, policy) {
        Ok(anchors) => anchors,
        Err(_) => {
            let set = EndpointSet { cluster: cluster.name.clone(), ..EndpointSet::default() };
            cluster.discovery = Discovery::Static(set);
            cluster.lb = LbPolicy::RoundRobin { slow_start: None };
            return;
        }
    };
    let mut inline = ValidationContext { san_matchers: names(policy), ..ValidationContext::default() };
    let sds = match anchors {
        Anchors::System => Some(file_roots("")),
        Anchors::Inline(pem) => {
            inline.trusted_ca = Some(DataSource::Inline((&*pem).into()));
            None
        }
    };
    let mut common = CommonTls { max_version: Some(TlsVersion::V1_3), ..CommonTls::default() };
    common.validation = Some(Validation { inline: Some(inline), sds });
    common.certificates = presents.map(|name| CertificateSource::Sds(credential(name, ""))).into_iter().collect();
    if cluster.http.version == HttpVersionChoice::Http2 {
        common.alpn = vec!["h2".into()];
    }
    cluster.tls = Some(UpstreamTls {
        common,
        sni: policy.validation.hostname.as_str().into(),
        auto_host_sni: false,
        auto_sni_san_validation: false,
    });
}

/// What servers may be called: one of the listed names, else the hostname.
fn names(policy: &BackendTlsPolicy) -> Vec<SanMatcher> {
    let validation = &policy.validation;
    let dns = |name: &str| SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact(name) };
    if validation.subject_alt_names.is_empty() {
        return vec![dns(&validation.hostname)];
    }
    let name = |n: &mesh_api::crd::gateway_api::SubjectAltName| match n.kind {
        SubjectAltNameType::Hostname => dns(n.hostname.as_deref().unwrap_or_default()),
        SubjectAltNameType::Uri => {
            SanMatcher { kind: SanKind::Uri, matcher: StringMatcher::exact(n.uri.as_deref().unwrap_or_default()) }
        }
    };
    validation.subject_alt_names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{clusters, gateway_api::GATEWAY_NAME, testing::World},
        *,
    };

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.1.0.1, ports: [{name: https, port: 443}]}\n";

    fn cluster(policy: &str, roots: &str) -> Cluster {
        let world = World::new(&format!(
            "{SERVICE}---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: web}}], validation: {{hostname: web.test, {policy}}}}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: shop}}\ndata: {}\n",
            serde_json::json!({"ca.crt": roots})
        ));
        let view = world.gateway("10.0.0.9", "infra", &[]);
        world.ask(&view, |r| clusters::model(*r, "outbound|443||web.shop.svc.cluster.local")).unwrap()
    }

    #[test]
    fn a_gateway_presents_its_own_certificate() {
        let yaml = format!(
            "{SERVICE}---\napiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: web}}], validation: {{hostname: web.test, wellKnownCACertificates: System}}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: infra}}\nspec: {{gatewayClassName: istio, tls: {{backend: {{clientCertificateRef: {{name: own}}}}}}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        );
        let world = World::new(&yaml);
        let certificates = |labels: &[(&str, &str)]| {
            let view = world.gateway("10.0.0.9", "infra", labels);
            let cluster = world.ask(&view, |r| clusters::model(*r, "outbound|443||web.shop.svc.cluster.local"));
            cluster.unwrap().tls.unwrap().common.certificates
        };
        let own = CertificateSource::Sds(credential("kubernetes-gateway://infra/own", ""));
        assert_eq!(certificates(&[(GATEWAY_NAME, "edge")]), [own]);
        assert_eq!(certificates(&[]), [], "another gateway has none");
    }

    #[test]
    fn a_policy_makes_tls_or_nothing() {
        let pem = rcgen::generate_simple_self_signed(vec!["ca".to_owned()]).unwrap().cert.pem();
        let refs = "caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]";
        let good = cluster(refs, &pem);
        let tls = good.tls.unwrap();
        assert_eq!((&*tls.sni, good.tls_matches.len()), ("web.test", 0));
        let inline = tls.common.validation.unwrap().inline.unwrap();
        assert_eq!(inline.trusted_ca, Some(DataSource::Inline(pem.as_str().into())));
        assert_eq!((inline.san_matchers.len(), inline.san_matchers[0].kind), (1, SanKind::Dns));
        let system = cluster("wellKnownCACertificates: System", "").tls.unwrap().common.validation.unwrap();
        assert!(system.sds.is_some());
        for broken in [cluster(refs, "odd"), cluster("wellKnownCACertificates: Odd", &pem)] {
            assert!(matches!(&broken.discovery, Discovery::Static(set) if set.localities.is_empty()), "no clear text");
        }
    }
}
