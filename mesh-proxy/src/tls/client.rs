//! TLS towards upstreams: what is sent, what is presented, what the server must be.

use std::{net::IpAddr, sync::Arc};

use mesh_api::model::{Name, UpstreamTls};
use rustls::{
    ClientConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    sign::CertifiedKey,
};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    CertificateFacts, CertificateMaterial, ClientStream, PeerInfo, SecretStore, TlsError,
    context::{Built, Current, Secrets, Sources, peer_info, recheck},
    provider,
    verify::{Peer, Verifier, WantedName},
};

/// Sessions kept for resumption a context.
const SESSIONS: usize = 32;

/// How a cluster originates TLS. Its secrets may change at any time; the next handshake uses the new ones.
#[derive(Debug)]
pub struct ClientTls {
    cfg: UpstreamTls,
    alpn: Vec<Vec<u8>>,
    store: Arc<SecretStore>,
    current: Current<Arc<ClientConfig>>,
}

/// What varies from connection to connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConnectOptions<'a> {
    /// Server name that replaces the configured one (`auto_sni`: the request's host; a forwarded SNI).
    pub server_name: Option<&'a str>,
    /// The endpoint's or request's host, sent when the context says `auto_host_sni` and names no SNI.
    pub host: Option<&'a str>,
    /// Name that the server's certificate must carry besides all else (`auto_san_validation`).
    pub verify_name: Option<&'a str>,
    /// ALPN protocols that replace the configured ones.
    pub alpn: Option<&'a [Name]>,
}

impl ClientTls {
    /// Compiles a context. Equal contexts are shared.
    ///
    /// # Errors
    /// When it can never work: bad inline certificates, unknown suites, names checked without a CA, an SNI that is no
    /// host name.
    pub fn new(cfg: &UpstreamTls, store: &Arc<SecretStore>) -> Result<Arc<Self>, TlsError> {
        store.shared_client(cfg, || {
            let sources = Sources::resolve(&cfg.common, store)?;
            provider::for_context(&cfg.common, false)?;
            if !cfg.sni.is_empty() {
                server_name(&cfg.sni)?;
            }
            let alpn = protocols(&cfg.common.alpn);
            Ok(Arc::new(Self { cfg: cfg.clone(), alpn, store: store.clone(), current: Current::new(sources) }))
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

    /// Identifies the context with the secrets in force, so pooled connections of older ones can be told apart;
    /// 0 when a secret is missing.
    pub fn generation(&self) -> u64 {
        self.built().map_or(0, |b| b.generation)
    }

    /// As [`Self::generation`], but a renewal of our own certificate leaves it alone: connections may go on then, since
    /// whom we trust has not changed.
    pub fn trust_generation(&self) -> u64 {
        self.built().map_or(0, |b| b.trust_generation)
    }

    /// ALPN protocols of the context.
    pub fn alpn(&self) -> &[Name] {
        &self.cfg.common.alpn
    }

    /// The server name that the context itself sends.
    pub fn sni(&self) -> Option<&Name> {
        Some(&self.cfg.sni).filter(|s| !s.is_empty())
    }

    /// The server name sent depends on the request's host.
    pub fn needs_host(&self) -> bool {
        self.cfg.auto_host_sni && self.cfg.sni.is_empty()
    }

    /// Checks a live connection's peer against the trust of now (after rotation of roots or revocation).
    ///
    /// # Errors
    /// When the connection would not be accepted any more.
    pub fn still_trusted(&self, info: &PeerInfo) -> Result<(), TlsError> {
        match &self.built()?.secrets.trust {
            Some(trust) if !trust.accept_untrusted && trust.demands() => recheck(trust, &info.chain, Peer::Server),
            _ => Ok(()),
        }
    }

    /// Does the client's side of a handshake. The caller limits its time.
    ///
    /// # Errors
    /// When a secret is missing, a name cannot be sent or the handshake fails.
    pub async fn connect<S>(&self, io: S, options: ConnectOptions<'_>) -> Result<(ClientStream<S>, PeerInfo), TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let built = self.built()?;
        let auto = if self.needs_host() { options.host } else { None };
        let sent = options.server_name.or(self.sni().map(|s| &**s)).or(auto).filter(|s| !s.is_empty());
        let name = match sent {
            Some(name) => server_name(name)?,
            // No server name is sent for an address.
            None => ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into()),
        };
        let wanted = options.verify_name.or(sent.filter(|_| self.cfg.auto_sni_san_validation));
        let config = match wanted {
            Some(wanted) => {
                let mut config = ClientConfig::clone(&built.config);
                let provider = config.crypto_provider().clone();
                let verifier =
                    Verifier::of_servers(built.secrets.trust.clone(), Some(WantedName::parse(wanted)), &provider);
                config.dangerous().set_certificate_verifier(verifier);
                config.resumption = Resumption::disabled();
                Arc::new(config)
            }
            None => built.config.clone(),
        };
        let connector = TlsConnector::from(config);
        let stream = match options.alpn {
            Some(alpn) => connector.with_alpn(protocols(alpn)).connect(name, io).await,
            None => connector.connect(name, io).await,
        }
        .map_err(|e| TlsError::from_handshake(&e))?;
        let info = {
            let (_, connection) = stream.get_ref();
            let local = built.secrets.certificates.first().map(|c| c.facts.clone());
            peer_info(connection, sent, &built.secrets, built.generation, Peer::Server, local)
        };
        Ok((ClientStream::new(stream), info))
    }

    /// Facts of the certificates in force (admin).
    pub fn certificates(&self) -> Vec<Arc<CertificateFacts>> {
        self.built().map_or_else(|_| vec![], |b| b.secrets.certificates.iter().map(|c| c.facts.clone()).collect())
    }

    fn built(&self) -> Result<Arc<Built<Arc<ClientConfig>>>, TlsError> {
        self.current.get(&self.store, |secrets| self.build(secrets))
    }

    fn build(&self, secrets: &Secrets) -> Result<Arc<ClientConfig>, TlsError> {
        let spiffe = secrets.trust.as_ref().is_some_and(|t| t.is_spiffe());
        let (provider, versions) = provider::for_context(&self.cfg.common, spiffe)?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|e| TlsError::Config(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Verifier::of_servers(secrets.trust.clone(), None, &provider));
        let mut config = if secrets.certificates.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_cert_resolver(Arc::new(Presented(secrets.certificates.clone())))
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_early_data = false;
        // A resumed session skips the check of the server's certificate; without a server name sessions of different
        // servers would be mixed up.
        config.resumption = if spiffe || !secrets.certificates.is_empty() || self.cfg.sni.is_empty() {
            Resumption::disabled()
        } else {
            Resumption::in_memory_sessions(SESSIONS)
        };
        Ok(Arc::new(config))
    }
}

fn protocols(names: &[Name]) -> Vec<Vec<u8>> {
    names.iter().map(|n| n.as_bytes().to_vec()).collect()
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    if let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(ServerName::IpAddress(ip.into()));
    }
    DnsName::try_from(name.to_owned())
        .map(ServerName::DnsName)
        .map_err(|_| TlsError::Handshake(format!("{name:?} cannot be sent as server name")))
}

/// Presents the first certificate that the server can verify, whatever issuers it names (as Envoy does).
#[derive(Debug)]
struct Presented(Vec<Arc<CertificateMaterial>>);

impl ResolvesClientCert for Presented {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|c| c.key.key.choose_scheme(schemes).is_some()).map(|c| c.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
