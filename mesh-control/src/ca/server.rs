//! The certificate of the xDS server, issued by our own CA and renewed when a connection finds it half spent.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use rustls_pki_types::PrivateKeyDer;

use super::{Authority, issuer::Subject};

/// Names and addresses of the xDS server.
#[derive(Debug, Clone)]
pub struct ServerNames(Vec<String>);

impl ServerNames {
    /// Istio's names, those of this host, the address listened on and others.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn new(bind: Option<IpAddr>, further: &[String]) -> anyhow::Result<Self> {
        let mut names: Vec<String> =
            ["istiod.istio-system.svc", "istiod.istio-system", "istiod", "localhost", "127.0.0.1", "::1"]
                .map(str::to_owned)
                .into();
        names.extend(bind.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
        names.extend(further.iter().map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()));
        for name in &names {
            let fine = name.parse::<IpAddr>().is_ok() || rustls_pki_types::DnsName::try_from(name.as_str()).is_ok();
            anyhow::ensure!(fine, "{name:?} is neither a host name nor an address");
        }
        names.sort();
        names.dedup();
        Ok(Self(names))
    }
}

/// The TLS configuration of the moment.
pub type TlsSource = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Protocols above TLS, the preferred first.
type Alpn = &'static [&'static [u8]];

#[derive(Debug)]
struct Built {
    config: Arc<ServerConfig>,
    generation: u64,
    renew: SystemTime,
}

/// The TLS configuration of the moment. Client certificates are asked for, verified when they come, and optional.
///
/// # Errors
/// When the first certificate cannot be made.
pub fn server_tls(authority: &Arc<Authority>, names: ServerNames) -> anyhow::Result<TlsSource> {
    renewed(authority, names, &[b"h2"])
}

/// The same for webhooks, which API servers call over HTTP/2 or 1.1.
///
/// # Errors
/// When the first certificate cannot be made.
pub fn webhook_tls(authority: &Arc<Authority>, names: ServerNames) -> anyhow::Result<TlsSource> {
    renewed(authority, names, &[b"h2", b"http/1.1"])
}

fn renewed(authority: &Arc<Authority>, names: ServerNames, alpn: Alpn) -> anyhow::Result<TlsSource> {
    let current = ArcSwap::from_pointee(build(authority, &names, alpn)?);
    let building = Mutex::new(());
    let authority = authority.clone();
    Ok(Arc::new(move || {
        // Lets roots go whose time has passed.
        authority.roots();
        let outdated = |b: &Built| b.generation != authority.generation() || b.renew <= SystemTime::now();
        if outdated(&current.load()) {
            let _one_at_a_time = building.lock();
            if outdated(&current.load()) {
                match build(&authority, &names, alpn) {
                    Ok(built) => current.store(Arc::new(built)),
                    Err(error) => tracing::error!("certificate of the xDS server: {error:#}"),
                }
            }
        }
        current.load().config.clone()
    }))
}

fn build(authority: &Authority, names: &ServerNames, alpn: Alpn) -> anyhow::Result<Built> {
    let generation = authority.generation();
    let key = KeyPair::generate()?;
    let issued = authority.sign(&Subject::Server(names.0.clone()), &key, None)?;
    let now = SystemTime::now();
    let life = issued.not_after.duration_since(now).unwrap_or_default();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authority.roots().iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("verifier of client certificates")?;
    let mut chain = vec![issued.leaf];
    chain.extend(issued.chain);
    let key = PrivateKeyDer::from(key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    // A resumed session would skip the check of the client's certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Built { config: Arc::new(config), generation, renew: now + (life / 2).max(Duration::from_millis(500)) })
}
