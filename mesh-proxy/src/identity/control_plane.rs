//! Connections to the control plane: TLS verified against the root in a file, with our certificate when we have one.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use mesh_api::{
    ca::SERVER_NAME,
    model::{
        CertificateSource, CommonTls, DataSource, Name, SanKind, SanMatcher, StringMatcher, UpstreamTls, Validation,
        ValidationContext,
    },
};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{CERTIFICATE, IdentityError};
use crate::tls::{ClientTls, ConnectOptions, SecretStore};

/// How long a connection may take to be made, TLS included.
const CONNECT: Duration = Duration::from_secs(10);
/// An idle connection to a control plane is asked this often whether it lives (first), and given up when it does not
/// answer for this long (second): one that is dead is noticed within half a minute. Servers in Go complain of pings that
/// come closer than 15 s.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(8));

/// How the control plane is reached.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    host: String,
    port: u16,
    root_cert: PathBuf,
    store: Arc<SecretStore>,
}

impl ControlPlane {
    /// `address` is `HOST:PORT`; of the store the certificate is taken.
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(address: &str, root_cert: impl Into<PathBuf>, store: &Arc<SecretStore>) -> Result<Self, IdentityError> {
        let bad = || IdentityError::Settings(format!("{address:?} is not HOST:PORT of a control plane"));
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(bad());
        }
        let port = port.parse().map_err(|_| bad())?;
        Ok(Self { host: host.to_owned(), port, root_cert: root_cert.into(), store: store.clone() })
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether there is a certificate to present.
    pub fn has_certificate(&self) -> bool {
        self.store.slot(&SecretStore::local_reference(CERTIFICATE)).ready()
    }

    /// A channel that connects when it is used, and again after a loss. A certificate is presented when `present` is set
    /// and there is one; each new connection takes the newest.
    ///
    /// # Errors
    /// When the root certificate cannot be read or used.
    pub fn channel(&self, present: bool) -> Result<Channel, IdentityError> {
        // Fails early, with the reason.
        self.tls(false)?;
        let this = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let this = this.clone();
            async move { this.connect(present).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://control-plane")
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true);
        // The TLS is ours: tonic sees an `http` address and must name the true authority.
        let name = self.server_name();
        let origin = Uri::builder().scheme("https").authority(name).path_and_query("/").build();
        let origin = origin.map_err(|e| IdentityError::Settings(format!("{name:?}: {e}")))?;
        Ok(endpoint.origin(origin).connect_with_connector_lazy(connector))
    }

    async fn connect(&self, present: bool) -> io::Result<crate::tls::ClientStream<TcpStream>> {
        // Checked anew at each connection, in the files as they are now.
        let store = self.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.poll_files()).await;
        let tls = self.tls(present && self.has_certificate()).map_err(io::Error::other)?;
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let handshake = tls.connect(tcp, ConnectOptions::default());
        match tokio::time::timeout(CONNECT, handshake).await {
            Ok(Ok((stream, _))) => Ok(stream),
            Ok(Err(e)) => Err(io::Error::other(e)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long")),
        }
    }

    fn server_name(&self) -> &str {
        if self.host.parse::<std::net::IpAddr>().is_ok() { SERVER_NAME } else { &self.host }
    }

    fn tls(&self, present: bool) -> Result<Arc<ClientTls>, IdentityError> {
        let named = |name: &str| SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::exact(name) };
        let mut san_matchers = vec![named(SERVER_NAME)];
        if self.server_name() != SERVER_NAME {
            san_matchers.push(named(&self.host));
        }
        let own = CertificateSource::Sds(SecretStore::local_reference(CERTIFICATE));
        let context = UpstreamTls {
            common: CommonTls {
                certificates: if present { vec![own] } else { vec![] },
                validation: Some(Validation {
                    inline: Some(ValidationContext {
                        trusted_ca: Some(DataSource::File(self.root_cert.clone())),
                        san_matchers,
                        ..Default::default()
                    }),
                    sds: None,
                }),
                alpn: vec!["h2".into()],
                ..Default::default()
            },
            sni: Name::from(self.server_name()),
            auto_host_sni: false,
            auto_sni_san_validation: false,
        };
        ClientTls::new(&context, &self.store).map_err(|e| IdentityError::Settings(format!("root certificate: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let store = SecretStore::with_local_identity();
        let new = |a: &str| ControlPlane::new(a, "/nowhere", &store);
        for good in ["istiod.istio-system.svc:15012", "127.0.0.1:1", "[::1]:15012"] {
            assert_eq!(new(good).unwrap().address(), good);
        }
        for bad in ["", "a", ":1", "a:x", "a:99999"] {
            assert!(new(bad).is_err(), "{bad}");
        }
        assert_eq!(new("10.0.0.1:1").unwrap().server_name(), SERVER_NAME);
        let error = new("127.0.0.1:1").unwrap().channel(false).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
    }
}
