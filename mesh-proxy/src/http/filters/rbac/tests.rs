use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use mesh_api::model::{
    HeaderMatcher, HeaderValueMatch, MetadataValue, Permission as Pm, Principal as Pr, StringMatcher as Sm,
};

use super::*;
use crate::{http::testing, tls::PeerInfo};

fn attributes<'a>(conn: &'a ConnInfo, head: Option<&'a RequestHead>) -> Attributes<'a> {
    Attributes { conn, head, client: conn.peer, metadata: None }
}

fn engine(action: RbacAction, permissions: Vec<Pm>, principals: Vec<Pr>) -> Engine {
    let name = "ns[shop]-policy[p]-rule[0]".into();
    let policies = vec![model::Policy { name, permissions, principals }];
    Engine::compile(&model::Rbac { action, policies }).unwrap()
}

fn header(name: &str, value: Sm) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        value: HeaderValueMatch::String(value),
        invert: false,
        treat_missing_as_empty: false,
    }
}

fn request(path: &str, headers: &[(&str, &[u8])]) -> RequestHead {
    let mut head = testing::get("reviews.test", path);
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        head.headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    head
}

fn meshed(spiffe: &str) -> ConnInfo {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(spiffe.try_into().unwrap())];
    let certificate = params.self_signed(&key).unwrap();
    let facts = crate::tls::CertificateFacts::parse(certificate.der()).unwrap();
    let tls = PeerInfo { certificate: Some(Arc::new(facts)), validated: true, ..PeerInfo::default() };
    ConnInfo { tls: Some(tls), ..testing::conn() }
}

#[test]
fn allow_needs_a_match_and_deny_needs_none() {
    let conn = testing::conn();
    let allow = engine(RbacAction::Allow, vec![Pm::UrlPath(Sm::prefix("/public"))], vec![Pr::Any]);
    let deny = engine(RbacAction::Deny, vec![Pm::UrlPath(Sm::exact("/admin"))], vec![Pr::Any]);
    let (public, admin) = (request("/public/x?y=/admin", &[]), request("/admin?x", &[]));
    assert_eq!(allow.check(&attributes(&conn, Some(&public))).policy.as_deref(), Some("ns[shop]-policy[p]-rule[0]"));
    let verdict = allow.check(&attributes(&conn, Some(&admin)));
    assert!(!verdict.allowed);
    assert_eq!(&*verdict.policy_or_none(), "none");
    assert!(deny.check(&attributes(&conn, Some(&public))).allowed);
    assert!(!deny.check(&attributes(&conn, Some(&admin))).allowed);
}

#[test]
fn allow_without_policies_refuses_everything() {
    let empty = Engine::compile(&model::Rbac { action: RbacAction::Allow, policies: vec![] }).unwrap();
    let (conn, head) = (testing::conn(), request("/", &[]));
    assert!(!empty.check(&attributes(&conn, Some(&head))).allowed);
}

#[test]
fn repeated_headers_never_open() {
    let conn = testing::conn();
    let head = request("/", &[("x-role", b"user"), ("x-role", b"admin")]);
    let role = || Pm::Header(header("x-role", Sm::exact("admin")));
    assert!(!engine(RbacAction::Deny, vec![role()], vec![Pr::Any]).check(&attributes(&conn, Some(&head))).allowed);
    assert!(!engine(RbacAction::Allow, vec![role()], vec![Pr::Any]).check(&attributes(&conn, Some(&head))).allowed);
    let not = engine(RbacAction::Allow, vec![Pm::Not(Box::new(role()))], vec![Pr::Any]);
    assert!(!not.check(&attributes(&conn, Some(&head))).allowed);
}

#[test]
fn bytes_that_are_not_text_do_not_slip_through() {
    let conn = testing::conn();
    let head = request("/", &[("x-tenant", b"\xff\xfe")]);
    let tenant = Pm::Header(header("x-tenant", Sm::regex("[a-z]+")));
    let deny = engine(RbacAction::Deny, vec![Pm::Not(Box::new(tenant))], vec![Pr::Any]);
    assert!(!deny.check(&attributes(&conn, Some(&head))).allowed);
}

#[test]
fn identities() {
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let (mesh, plain, head) = (meshed(id), testing::conn(), request("/", &[]));
    let web = || vec![Pr::Authenticated(Some(Sm::exact(id)))];
    let allow = engine(RbacAction::Allow, vec![Pm::Any], web());
    assert!(allow.check(&attributes(&mesh, Some(&head))).allowed);
    assert!(!allow.check(&attributes(&plain, Some(&head))).allowed);
    let mut unverified = meshed(id);
    unverified.tls.as_mut().unwrap().validated = false;
    assert!(!allow.check(&attributes(&unverified, Some(&head))).allowed);
    let others = engine(
        RbacAction::Deny,
        vec![Pm::Any],
        vec![Pr::Not(Box::new(Pr::Authenticated(Some(Sm::prefix("spiffe://cluster.local/ns/shop/")))))],
    );
    assert!(others.check(&attributes(&mesh, Some(&head))).allowed);
    assert!(!others.check(&attributes(&plain, Some(&head))).allowed);
}

#[test]
fn http_conditions_on_connections_never_open() {
    let conn = testing::conn();
    let path = || vec![Pm::UrlPath(Sm::exact("/x"))];
    assert!(!engine(RbacAction::Allow, path(), vec![Pr::Any]).check(&attributes(&conn, None)).allowed);
    assert!(!engine(RbacAction::Deny, path(), vec![Pr::Any]).check(&attributes(&conn, None)).allowed);
    let not = vec![Pm::Not(Box::new(Pm::UrlPath(Sm::exact("/x"))))];
    assert!(!engine(RbacAction::Allow, not, vec![Pr::Any]).check(&attributes(&conn, None)).allowed);
}

#[test]
fn ports_addresses_and_metadata() {
    let (conn, head) = (testing::conn(), request("/", &[]));
    let net = |ip: [u8; 4], prefix_len| CidrRange { address: ip.into(), prefix_len };
    let e = engine(
        RbacAction::Allow,
        vec![Pm::And(vec![Pm::DestinationPort(8080), Pm::DestinationIp(net([10, 0, 0, 2], 32))])],
        vec![Pr::RemoteIp(net([10, 0, 0, 0], 24))],
    );
    assert!(e.check(&attributes(&conn, Some(&head))).allowed);
    let far = Attributes { client: "192.0.2.1:1".parse().unwrap(), ..attributes(&conn, Some(&head)) };
    assert!(!e.check(&far).allowed);

    let claim = model::MetadataMatch {
        filter: "jwt".into(),
        path: vec!["payload".into(), "groups".into()],
        value: MetadataValue::ListOneOf(Box::new(MetadataValue::String(Sm::exact("admins")))),
        invert: false,
    };
    let e = engine(RbacAction::Allow, vec![Pm::Any], vec![Pr::Metadata(claim)]);
    let mut metadata = model::Metadata::new();
    metadata.insert("jwt".into(), serde_json::json!({"payload": {"groups": ["users", "admins"]}}));
    assert!(!e.check(&attributes(&conn, Some(&head))).allowed);
    assert!(e.check(&Attributes { metadata: Some(&metadata), ..attributes(&conn, Some(&head)) }).allowed);
}

#[test]
fn explanations_name_the_condition() {
    let (conn, head) = (testing::conn(), request("/x", &[]));
    let filter = Filter::compile(&model::RbacFilter {
        rules: Some(model::Rbac {
            action: RbacAction::Allow,
            policies: vec![model::Policy {
                name: "p".into(),
                permissions: vec![Pm::And(vec![Pm::Any, Pm::UrlPath(Sm::exact("/y"))])],
                principals: vec![Pr::Any],
            }],
        }),
        ..model::RbacFilter::default()
    })
    .unwrap();
    let a = attributes(&conn, Some(&head));
    assert_eq!(filter.check(&a).denied.as_deref(), Some("none"));
    assert_eq!(filter.explain(&a), "p: permission: path is \"/x\"");
}
