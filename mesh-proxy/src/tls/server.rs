//! TLS on listeners: which certificate a client gets and what is demanded of it.

use std::sync::Arc;

use mesh_api::model::{DownstreamTls, Name};
use rustls::{
    ServerConfig, SignatureScheme,
    server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    CertificateFacts, CertificateMaterial, PeerInfo, SecretStore, ServerStream, TlsError,
    context::{Built, Current, Secrets, Sources, peer_info, recheck},
    provider, san,
    verify::{Peer, Verifier},
};

/// How a filter chain terminates TLS. Its secrets may change at any time; the next handshake uses the new ones.
#[derive(Debug)]
pub struct ServerTls {
    cfg: DownstreamTls,
    store: Arc<SecretStore>,
    current: Current<Configs>,
}

/// The configuration with and without ALPN: without common protocol the handshake goes on without one (as in Envoy).
#[derive(Debug)]
struct Configs {
    offered: Arc<ServerConfig>,
    silent: Arc<ServerConfig>,
}

impl ServerTls {
    /// Compiles a context. Equal contexts are shared.
    ///
    /// # Errors
    /// When it can never work: bad inline certificates, unknown suites, names checked without a CA.
    pub fn new(cfg: &DownstreamTls, store: &Arc<SecretStore>) -> Result<Arc<Self>, TlsError> {
        store.shared_server(cfg, || {
            if cfg.common.certificates.is_empty() {
                return Err(TlsError::config("a TLS listener needs a certificate"));
            }
            let sources = Sources::resolve(&cfg.common, store)?;
            provider::for_context(&cfg.common, false)?;
            Ok(Arc::new(Self { cfg: cfg.clone(), store: store.clone(), current: Current::new(sources) }))
        })
    }

    /// Whether all secrets are there.
    pub fn ready(&self) -> bool {
        self.current.sources().missing().is_empty()
    }

    /// Secrets that are missing.
    pub fn missing(&self) -> Vec<Name> {
        self.current.sources().missing()
    }

    /// Whether clients must present a certificate.
    pub fn requires_client_certificate(&self) -> bool {
        self.cfg.require_client_certificate
    }

    /// Identifies the secrets in force; 0 when one is missing.
    pub fn generation(&self) -> u64 {
        self.built().map_or(0, |b| b.generation)
    }

    /// Checks a live connection's peer against the trust of now (after rotation of roots or revocation).
    ///
    /// # Errors
    /// When the connection would not be accepted any more.
    pub fn still_trusted(&self, info: &PeerInfo) -> Result<(), TlsError> {
        match &self.built()?.secrets.trust {
            Some(trust) if !trust.accept_untrusted && trust.demands() => recheck(trust, &info.chain, Peer::Client),
            _ => Ok(()),
        }
    }

    /// Does the server's side of a handshake. The caller limits its time.
    ///
    /// # Errors
    /// When a secret is missing (the stream is dropped unanswered) or the handshake fails.
    pub async fn accept<S>(&self, io: S) -> Result<(ServerStream<S>, PeerInfo), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let built = self.built()?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await.map_err(|e| TlsError::from_handshake(&e))?;
        let config = {
            let configs = &built.config;
            let common = match start.client_hello().alpn() {
                Some(mut offered) => offered.any(|p| configs.offered.alpn_protocols.iter().any(|ours| ours == p)),
                None => false,
            };
            if common { configs.offered.clone() } else { configs.silent.clone() }
        };
        let stream = start.into_stream(config).await.map_err(|e| TlsError::from_handshake(&e))?;
        let info = {
            let (_, connection) = stream.get_ref();
            let sni = connection.server_name();
            let local = select(&built.secrets.certificates, sni, None).map(|c| c.facts.clone());
            peer_info(connection, sni, &built.secrets, built.generation, Peer::Client, local)
        };
        Ok((ServerStream::new(stream), info))
    }

    /// Facts of the certificates in force (admin).
    pub fn certificates(&self) -> Vec<Arc<CertificateFacts>> {
        self.built().map_or_else(|_| vec![], |b| b.secrets.certificates.iter().map(|c| c.facts.clone()).collect())
    }

    fn built(&self) -> Result<Arc<Built<Configs>>, TlsError> {
        self.current.get(&self.store, |secrets| self.build(secrets))
    }

    fn build(&self, secrets: &Secrets) -> Result<Configs, TlsError> {
        let common = &self.cfg.common;
        let trust = secrets.trust.as_ref();
        let spiffe = trust.is_some_and(|t| t.is_spiffe());
        let (provider, versions) = provider::for_context(common, spiffe)?;
        let asks = self.cfg.require_client_certificate || trust.is_some_and(|t| t.demands());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|e| TlsError::Config(e.to_string()))?;
        let resolver = Arc::new(Resolver { certificates: secrets.certificates.clone() });
        let builder = if asks {
            let verifier = Verifier::of_clients(trust.cloned(), self.cfg.require_client_certificate, &provider);
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.max_early_data_size = 0;
        if asks {
            // A resumed session would skip the check of the client's certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            config.send_tls13_tickets = 1;
            match rustls::crypto::aws_lc_rs::Ticketer::new() {
                Ok(ticketer) => config.ticketer = ticketer,
                Err(e) => tracing::warn!(error = %e, "TLS sessions are not resumed"),
            }
        }
        // Suites in the operator's order when there is one.
        config.ignore_client_order = !common.cipher_suites.is_empty();
        let silent = Arc::new(config.clone());
        config.alpn_protocols = common.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        Ok(Configs { offered: Arc::new(config), silent })
    }
}

/// Chooses among several certificates by server name.
#[derive(Debug)]
struct Resolver {
    certificates: Vec<Arc<CertificateMaterial>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        select(&self.certificates, hello.server_name(), Some(hello.signature_schemes())).map(|c| c.key.clone())
    }
}

/// The first certificate for this very name, else by wildcard, else the first of all; in each step one that the client
/// can verify is preferred.
fn select<'a>(
    certificates: &'a [Arc<CertificateMaterial>],
    sni: Option<&str>,
    schemes: Option<&[SignatureScheme]>,
) -> Option<&'a Arc<CertificateMaterial>> {
    if certificates.len() == 1 {
        return certificates.first();
    }
    let usable = |c: &&Arc<CertificateMaterial>| schemes.is_none_or(|s| c.key.key.choose_scheme(s).is_some());
    if let Some(sni) = sni {
        let exact = |c: &&Arc<CertificateMaterial>| c.facts.dns_sans.iter().any(|n| n.eq_ignore_ascii_case(sni));
        let covered = |c: &&Arc<CertificateMaterial>| c.facts.dns_sans.iter().any(|n| san::dns_name_matches(sni, n));
        let found = certificates.iter().filter(exact).find(usable);
        if let Some(found) = found.or_else(|| certificates.iter().filter(covered).find(usable)) {
            return Some(found);
        }
    }
    certificates.iter().find(usable).or_else(|| certificates.first())
}
