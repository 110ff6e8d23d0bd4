//! Real handshakes between our two ends.

use std::{sync::Arc, time::Duration};

use mesh_api::model::{
    CertificateSource, CommonTls, DataSource, DownstreamTls, Name, PrivateData, SanKind, SanMatcher, SdsRef, SdsSource,
    SecretKind, StringMatcher, TlsCertificate, TlsVersion, UpstreamTls, Validation, ValidationContext,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

const DAY: time::Duration = time::Duration::DAY;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Names that start with `spiffe:` are URIs; valid from now plus `start` to now plus `end`.
    fn issue(&self, names: &[&str], start: time::Duration, end: time::Duration, serial: u64) -> SecretKind {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = names
            .iter()
            .map(|n| match n.strip_prefix("spiffe:") {
                Some(_) => SanType::URI((*n).try_into().unwrap()),
                None => SanType::DnsName((*n).try_into().unwrap()),
            })
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = OffsetDateTime::now_utc() + start;
        params.not_after = OffsetDateTime::now_utc() + end;
        params.serial_number = Some(SerialNumber::from(serial));
        params.use_authority_key_identifier_extension = true;
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        certificate(&pem, &key.serialize_pem())
    }

    fn leaf(&self, names: &[&str]) -> SecretKind {
        self.issue(names, -DAY, DAY, 1)
    }

    fn trust(&self) -> SecretKind {
        SecretKind::Validation(ValidationContext {
            trusted_ca: Some(DataSource::Inline(self.pem.as_str().into())),
            ..Default::default()
        })
    }

    fn crl(&self, revoked: &[u64]) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now - DAY,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now - DAY,
            next_update: now + DAY,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn certificate(chain: &str, key: &str) -> SecretKind {
    SecretKind::Certificate(TlsCertificate {
        chain: DataSource::Inline(chain.into()),
        key: PrivateData(DataSource::Inline(key.into())),
    })
}

fn sds(name: &str) -> SdsRef {
    SdsRef { name: name.into(), source: SdsSource::Ads }
}

fn matcher(kind: SanKind, name: &str) -> SanMatcher {
    SanMatcher { kind, matcher: StringMatcher::exact(name) }
}

fn common(certificate: Option<&str>, trust: Option<&str>, sans: Vec<SanMatcher>) -> CommonTls {
    CommonTls {
        certificates: certificate.map(|name| CertificateSource::Sds(sds(name))).into_iter().collect(),
        validation: trust.map(|name| Validation {
            inline: Some(ValidationContext { san_matchers: sans, ..Default::default() })
                .filter(|c| !c.san_matchers.is_empty()),
            sds: Some(sds(name)),
        }),
        ..Default::default()
    }
}

fn downstream(common: CommonTls, require: bool) -> DownstreamTls {
    DownstreamTls { common, require_client_certificate: require }
}

fn upstream(common: CommonTls) -> UpstreamTls {
    UpstreamTls { common, sni: "a.test".into(), auto_host_sni: false, auto_sni_san_validation: false }
}

type Ends = (
    Result<(ServerStream<DuplexStream>, PeerInfo), TlsError>,
    Result<(ClientStream<DuplexStream>, PeerInfo), TlsError>,
);

async fn shake_with(server: &ServerTls, client: &ClientTls, options: ConnectOptions<'_>, buffer: usize) -> Ends {
    let (a, b) = tokio::io::duplex(buffer);
    let serve = async {
        let (mut stream, info) = server.accept(a).await?;
        // In TLS 1.3 a client learns only by reading that its certificate was refused.
        stream.write_all(b"!").await.unwrap();
        stream.flush().await.unwrap();
        Ok((stream, info))
    };
    let connect = async {
        let (mut stream, info) = client.connect(b, options).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(|e| TlsError::from_handshake(&e))?;
        Ok((stream, info))
    };
    tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(serve, connect) }).await.unwrap()
}

async fn shake(server: &ServerTls, client: &ClientTls) -> Ends {
    shake_with(server, client, ConnectOptions::default(), 4096).await
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

/// A server `bank` and a client `web`, mutually authenticated as the mesh does it.
fn mesh(ca: &Ca) -> (Arc<SecretStore>, Arc<ServerTls>, Arc<ClientTls>) {
    let store = SecretStore::new();
    store.put(&sds("web"), ca.leaf(&[WEB])).unwrap();
    store.put(&sds("bank"), ca.leaf(&[BANK])).unwrap();
    store.put(&sds("roots"), ca.trust()).unwrap();
    let prefix = SanMatcher { kind: SanKind::Uri, matcher: StringMatcher::prefix("spiffe://cluster.local/") };
    let server = downstream(common(Some("bank"), Some("roots"), vec![prefix]), true);
    let client = upstream(common(Some("web"), Some("roots"), vec![matcher(SanKind::Uri, BANK)]));
    (store.clone(), ServerTls::new(&server, &store).unwrap(), ClientTls::new(&client, &store).unwrap())
}

#[tokio::test]
async fn mutual_tls_of_the_mesh() {
    let (_store, server, client) = mesh(&Ca::new("ca"));
    // The small buffer: every record in pieces.
    for buffer in [7, 4096] {
        let (s, c) = shake_with(&server, &client, ConnectOptions::default(), buffer).await;
        let ((_s, s), (_c, c)) = (s.unwrap(), c.unwrap());
        assert_eq!((s.spiffe().unwrap().as_ref(), c.spiffe().unwrap().as_ref()), (WEB, BANK));
        assert_eq!(s.local.unwrap().spiffe.as_deref(), Some(BANK));
        assert_eq!((s.version, s.group, s.cipher), ("TLSv1.3", "X25519MLKEM768", "TLS_AES_128_GCM_SHA256"));
        assert_eq!((s.sni.as_deref(), s.chain.len(), s.validated), (Some("a.test"), 1, true));
        assert_eq!(c.local.unwrap().spiffe.as_deref(), Some(WEB));
    }
}

#[tokio::test]
async fn another_account_is_refused_by_the_client() {
    let ca = Ca::new("ca");
    let (store, server, client) = mesh(&ca);
    store.put(&sds("bank"), ca.leaf(&[WEB])).unwrap();
    let (s, c) = shake(&server, &client).await;
    assert!(s.is_err());
    let error = c.unwrap_err();
    assert!(error.is_verify() && error.to_string().contains(WEB), "{error}");
    // Two identities are none.
    store.put(&sds("bank"), ca.leaf(&[BANK, WEB])).unwrap();
    assert!(shake(&server, &client).await.1.unwrap_err().is_verify());
}

#[tokio::test]
async fn expired_early_and_foreign_certificates_are_refused_by_both() {
    let ca = Ca::new("ca");
    let (store, server, client) = mesh(&ca);
    let expired = |id| ca.issue(&[id], -2 * DAY, -DAY, 2);
    let early = |id| ca.issue(&[id], DAY, 2 * DAY, 3);
    let foreign = |id| Ca::new("ca").leaf(&[id]);
    let cases: [(&dyn Fn(&'static str) -> SecretKind, &str); 3] =
        [(&expired, "expired"), (&early, "not yet valid"), (&foreign, "CERTIFICATE_VERIFY_FAILED")];
    for (make, reason) in cases {
        store.put(&sds("bank"), make(BANK)).unwrap();
        let error = shake(&server, &client).await.1.unwrap_err();
        assert!(error.is_verify() && error.to_string().contains(reason), "{error}");
        store.put(&sds("bank"), ca.leaf(&[BANK])).unwrap();
        store.put(&sds("web"), make(WEB)).unwrap();
        let (s, c) = shake(&server, &client).await;
        let error = s.unwrap_err();
        assert!(error.is_verify() && error.to_string().contains(reason), "{error}");
        assert!(c.is_err(), "the client hears of it");
        store.put(&sds("web"), ca.leaf(&[WEB])).unwrap();
    }
    assert!(shake(&server, &client).await.0.is_ok());
}

#[tokio::test]
async fn a_client_without_certificate() {
    let ca = Ca::new("ca");
    let (store, strict, _) = mesh(&ca);
    let bare = upstream(common(None, Some("roots"), vec![matcher(SanKind::Uri, BANK)]));
    let bare = ClientTls::new(&bare, &store).unwrap();
    let (s, c) = shake(&strict, &bare).await;
    assert!(s.unwrap_err().to_string().contains("peer did not return a certificate"));
    assert!(c.is_err());
    let optional = ServerTls::new(&downstream(common(Some("bank"), Some("roots"), vec![]), false), &store).unwrap();
    let (_, info) = shake(&optional, &bare).await.0.unwrap();
    assert!(info.spiffe().is_none() && !info.peer_presented() && !info.validated);
}

#[tokio::test]
async fn rotation_leaves_connections_alone() {
    let ca = Ca::new("ca");
    let (store, server, client) = mesh(&ca);
    let (s, c) = shake(&server, &client).await;
    let ((mut s, before), (mut c, _)) = (s.unwrap(), c.unwrap());
    let generation = client.generation();
    assert_eq!(generation, client.generation());
    // New CA: trusted first, used then, the old one dropped last.
    let new = Ca::new("new");
    let both = format!("{}{}", ca.pem, new.pem);
    let both = ValidationContext { trusted_ca: Some(DataSource::Inline(both.into())), ..Default::default() };
    store.put(&sds("roots"), SecretKind::Validation(both)).unwrap();
    assert!(shake(&server, &client).await.0.is_ok());
    store.put(&sds("web"), new.leaf(&[WEB])).unwrap();
    assert!(shake(&server, &client).await.0.is_ok());
    store.put(&sds("bank"), new.leaf(&[BANK])).unwrap();
    store.put(&sds("roots"), new.trust()).unwrap();
    let (_, after) = shake(&server, &client).await.0.unwrap();
    assert_ne!(before.certificate.unwrap().serial.len(), 0);
    assert_ne!(before.generation, after.generation);
    assert_ne!(generation, client.generation());
    s.write_all(b"x").await.unwrap();
    s.flush().await.unwrap();
    assert_eq!(c.read_u8().await.unwrap(), b'x', "the old connection goes on");
    // Whoever wants to close such connections can tell.
    let old = shake(&server, &client).await.0.unwrap().1;
    assert!(server.still_trusted(&old).is_ok());
    store.put(&sds("roots"), ca.trust()).unwrap();
    assert!(server.still_trusted(&old).unwrap_err().is_verify());
}

#[tokio::test]
async fn a_missing_secret_breaks_the_handshake() {
    let ca = Ca::new("ca");
    let (store, server, client) = mesh(&ca);
    assert!(server.ready() && client.ready());
    store.remove(&sds("web"));
    assert!(!client.ready());
    assert_eq!((client.generation(), client.missing()), (0, vec![Name::from("web")]));
    assert!(matches!(shake(&server, &client).await.1, Err(TlsError::NotReady(_))));
    // Refused: the last good one stays.
    assert!(store.put(&sds("bank"), certificate("x", "y")).is_err());
    assert!(server.ready());
    store.put(&sds("web"), ca.leaf(&[WEB])).unwrap();
    assert!(shake(&server, &client).await.0.is_ok());
    let wrong_kind = ServerTls::new(&downstream(common(Some("roots"), None, vec![]), false), &store);
    assert!(wrong_kind.is_err());
}

#[tokio::test]
async fn simple_tls_chooses_by_name() {
    let ca = Ca::new("ca");
    let store = SecretStore::new();
    store.put(&sds("a"), ca.leaf(&["a.test"])).unwrap();
    store.put(&sds("wild"), ca.leaf(&["*.b.test"])).unwrap();
    store.put(&sds("roots"), ca.trust()).unwrap();
    let mut cfg = common(Some("a"), None, vec![]);
    cfg.certificates.push(CertificateSource::Sds(sds("wild")));
    cfg.alpn = vec!["h2".into(), "http/1.1".into()];
    let server = ServerTls::new(&downstream(cfg, false), &store).unwrap();
    let mut cfg = upstream(common(None, Some("roots"), vec![]));
    cfg.sni = "".into();
    cfg.auto_host_sni = true;
    cfg.auto_sni_san_validation = true;
    cfg.common.alpn = vec!["http/1.1".into()];
    let client = ClientTls::new(&cfg, &store).unwrap();
    for (host, fits) in
        [("a.test", true), ("x.b.test", true), ("X.B.test", true), ("x.y.b.test", false), ("c.test", false)]
    {
        let options = ConnectOptions { host: Some(host), ..Default::default() };
        let (_, c) = shake_with(&server, &client, options, 4096).await;
        assert_eq!(c.is_ok(), fits, "{host}: {:?}", c.err());
    }
    let h2: [Name; 1] = ["h2".into()];
    let none: [Name; 1] = ["foo".into()];
    for (alpn, got) in [(None, Some("http/1.1")), (Some(&h2[..]), Some("h2")), (Some(&none[..]), None)] {
        let options = ConnectOptions { host: Some("a.test"), alpn, ..Default::default() };
        let (s, c) = shake_with(&server, &client, options, 4096).await;
        assert_eq!(s.unwrap().1.alpn.as_deref(), got);
        assert_eq!(c.unwrap().1.alpn.as_deref(), got);
    }
    let options = ConnectOptions { verify_name: Some("other.test"), host: Some("a.test"), ..Default::default() };
    assert!(shake_with(&server, &client, options, 4096).await.1.unwrap_err().to_string().contains("other.test"));
}

#[tokio::test]
async fn versions_are_kept_to() {
    let ca = Ca::new("ca");
    let (store, strict, _) = mesh(&ca);
    let mut cfg = upstream(common(Some("web"), Some("roots"), vec![matcher(SanKind::Uri, BANK)]));
    cfg.common.max_version = Some(TlsVersion::V1_2);
    cfg.common.min_version = Some(TlsVersion::V1_2);
    let old = ClientTls::new(&cfg, &store).unwrap();
    let (s, c) = shake(&strict, &old).await;
    assert!(s.is_err() && c.is_err(), "the mesh speaks 1.3 only");
    let open = ServerTls::new(&downstream(common(Some("bank"), Some("roots"), vec![]), true), &store).unwrap();
    let (_, info) = shake(&open, &old).await.0.unwrap();
    assert_eq!(info.version, "TLSv1.2");
    assert!(info.cipher.starts_with("ECDHE-ECDSA-"), "{}", info.cipher);
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let ca = Ca::new("ca");
    let (store, server, client) = mesh(&ca);
    store.put(&sds("web"), ca.issue(&[WEB], -DAY, DAY, 7)).unwrap();
    let with = |revoked: &[u64]| {
        SecretKind::Validation(ValidationContext {
            trusted_ca: Some(DataSource::Inline(ca.pem.as_str().into())),
            crl: Some(DataSource::Inline(ca.crl(revoked).into())),
            ..Default::default()
        })
    };
    store.put(&sds("roots"), with(&[5])).unwrap();
    assert!(shake(&server, &client).await.0.is_ok());
    store.put(&sds("roots"), with(&[5, 7])).unwrap();
    let error = shake(&server, &client).await.0.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
}

#[tokio::test]
async fn files_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let (cert, key, root) = (dir.path().join("cert"), dir.path().join("key"), dir.path().join("root"));
    let write = |kind: SecretKind| {
        let SecretKind::Certificate(c) = kind else { panic!() };
        for (path, source) in [(&cert, c.chain), (&key, c.key.0)] {
            let DataSource::Inline(text) = source else { panic!() };
            std::fs::write(path, text.as_bytes()).unwrap();
        }
    };
    let store = SecretStore::with_local_identity();
    let name = format!("file-cert:{}~{}", cert.display(), key.display());
    let slot = store.slot(&SecretStore::local_reference(&name));
    let roots = store.slot(&SecretStore::local_reference(&format!("file-root:{}", root.display())));
    assert!(!slot.ready() && slot.state().error.is_some());
    write(ca.leaf(&[BANK]));
    std::fs::write(&root, &ca.pem).unwrap();
    assert_eq!(store.poll_files(), 2);
    assert!(slot.ready() && roots.ready());
    assert_eq!(store.poll_files(), 0);
    let generation = slot.generation();
    std::fs::write(&key, "half written").unwrap();
    assert_eq!(store.poll_files(), 0);
    assert!(slot.ready() && slot.state().error.is_some(), "the last good one stays");
    write(ca.leaf(&[BANK]));
    assert_eq!(store.poll_files(), 1);
    assert!(slot.generation() > generation && slot.state().error.is_none());
}

#[tokio::test]
async fn garbage_is_an_error() {
    let (_store, server, _) = mesh(&Ca::new("ca"));
    for garbage in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 0xff, 0xff],
        &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 9],
        &[0xff; 600],
    ] {
        let (mut a, b) = tokio::io::duplex(4096);
        a.write_all(garbage).await.unwrap();
        a.shutdown().await.unwrap();
        let result = tokio::time::timeout(Duration::from_secs(10), server.accept(b)).await.unwrap();
        assert!(matches!(result, Err(TlsError::Handshake(_) | TlsError::Io(_))), "{garbage:?}");
    }
}

#[test]
fn contexts_that_can_never_work_are_refused() {
    let store = SecretStore::new();
    assert!(ServerTls::new(&downstream(common(None, None, vec![]), false), &store).is_err());
    let mut cfg = upstream(CommonTls::default());
    cfg.sni = "not a name".into();
    assert!(ClientTls::new(&cfg, &store).is_err());
    let mut cfg = upstream(CommonTls::default());
    let context = ValidationContext { san_matchers: vec![matcher(SanKind::Dns, "a")], ..Default::default() };
    cfg.common.validation = Some(Validation { inline: Some(context), sds: None });
    let error = ClientTls::new(&cfg, &store).unwrap_err().to_string();
    assert!(error.contains("without trusted CA"), "{error}");
}

#[test]
fn endpoints_choose_their_context_by_labels() {
    use mesh_api::model::TlsMatch;
    let store = SecretStore::new();
    let label = |v: &str| [("tlsMode".to_owned(), v.to_owned())].into();
    let matches = [
        TlsMatch { name: "istio".into(), labels: label("istio"), tls: Some(upstream(CommonTls::default())) },
        TlsMatch { name: "disabled".into(), labels: Default::default(), tls: None },
    ];
    let tls = ClusterTls::of(None, &matches, &store).unwrap();
    assert!(tls.select(&label("istio")).is_some());
    assert!(tls.select(&label("disabled")).is_none());
    assert!(tls.select(&Default::default()).is_none());
    assert_eq!(tls.match_name(&label("istio")).map(|n| &**n), Some("istio"));
    assert!(!tls.is_none() && ClusterTls::none().is_none());
}
