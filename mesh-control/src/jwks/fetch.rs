//! One fetch of an issuer's keys: discovery where it is needed, names resolved and checked, a few redirects, an answer
//! of bounded size in bounded time.
//!
//! Owns the connection: it is made to the very address that was checked, so that a name cannot lead elsewhere a moment
//! later. Must not know who needs the keys.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{AddressPolicy, KeySource, public::public_keys};

/// Largest answer that is read.
const MAX_BODY: usize = 1 << 20;
/// Largest set of public parts: it goes to every proxy that checks these tokens.
const MAX_KEYS: usize = 128 << 10;
/// Largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// Most redirects.
const MAX_REDIRECTS: usize = 3;
/// Most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Largest file with further roots.
const MAX_CA_FILE: u64 = 4 << 20;

/// How the network is used.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) addresses: AddressPolicy,
    /// PEM file with roots to trust besides the system's.
    pub(super) extra_ca: Option<PathBuf>,
}

impl Network {
    /// The public keys of an issuer; each of the (at most two) exchanges may take so long.
    pub(super) async fn keys(&self, source: &KeySource, limit: Duration) -> Result<Arc<str>, String> {
        let text = match source {
            KeySource::Uri(uri) => self.get(uri, limit).await?,
            KeySource::Issuer(issuer) => {
                let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document = self.get(&url, limit).await.map_err(|e| format!("OpenID discovery: {e}"))?;
                let uri = jwks_uri(&document)?;
                let both = url.starts_with("https:") && !uri.starts_with("https:");
                if both {
                    return Err(format!("OpenID discovery: jwks_uri {uri:?} is not https as the issuer is"));
                }
                self.get(&uri, limit).await?
            }
        };
        let keys = public_keys(&text).ok_or("the answer holds no key that tokens can be verified with")?;
        if keys.len() > MAX_KEYS {
            return Err(format!("{} bytes of public keys, {MAX_KEYS} are allowed", keys.len()));
        }
        Ok(keys.into())
    }

    /// The text at a URL.
    async fn get(&self, url: &str, limit: Duration) -> Result<String, String> {
        match timeout(limit, self.follow(url, limit)).await {
            Ok(done) => done,
            Err(_) => Err(format!("{url}: no whole answer within {limit:?}")),
        }
    }

    async fn follow(&self, url: &str, limit: Duration) -> Result<String, String> {
        let mut target = Target::parse(url)?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&target, limit).await.map_err(|e| format!("{}: {e}", target.uri))?;
            let status = response.status();
            if status == StatusCode::OK {
                return read(response).await.map_err(|e| format!("{}: {e}", target.uri));
            }
            let location = response.headers().get(header::LOCATION).filter(|_| status.is_redirection());
            let Some(location) = location else { return Err(format!("{}: answered {status}", target.uri)) };
            let location = location.to_str().map_err(|_| format!("{}: redirects to no URL", target.uri))?;
            target = target.redirected(location)?;
        }
        Err(format!("{url}: more than {MAX_REDIRECTS} redirects"))
    }

    async fn ask(&self, target: &Target, limit: Duration) -> Result<http::Response<Incoming>, String> {
        let addresses = self.resolve(target).await?;
        let share = limit / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let mut failure = String::from("it has no address");
        for address in addresses {
            match timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) if target.tls => {
                    let config = tls_config(self.extra_ca.clone()).await?;
                    let name = ServerName::try_from(target.host.clone()).map_err(|_| "no name of a TLS server")?;
                    let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|e| format!("TLS: {e}"))?;
                    return exchange(tls, target).await;
                }
                Ok(Ok(tcp)) => return exchange(tcp, target).await,
                Ok(Err(e)) => failure = format!("{address}: {e}"),
                Err(_) => failure = format!("{address}: does not answer"),
            }
        }
        Err(failure)
    }

    /// Addresses that may be asked.
    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, String> {
        let found: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, target.port)],
            Err(_) => tokio::net::lookup_host((target.host.as_str(), target.port))
                .await
                .map_err(|e| format!("its name is not resolved: {e}"))?
                .collect(),
        };
        let refused = found.iter().find_map(|a| Some((a.ip(), self.addresses.refuses(a.ip())?)));
        let mut out = found;
        out.retain(|a| self.addresses.refuses(a.ip()).is_none());
        out.truncate(MAX_ADDRESSES);
        match refused {
            Some((ip, why)) if out.is_empty() => Err(format!("{ip} is not asked: {why}")),
            _ => Ok(out),
        }
    }
}

fn jwks_uri(document: &str) -> Result<String, String> {
    let document: serde_json::Value =
        serde_json::from_str(document).map_err(|e| format!("OpenID discovery: not JSON: {e}"))?;
    let uri = document.get("jwks_uri").and_then(serde_json::Value::as_str);
    uri.map(str::to_owned).ok_or_else(|| "OpenID discovery: the document has no jwks_uri".to_owned())
}

/// A URL to ask.
#[derive(Debug)]
struct Target {
    uri: Uri,
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
}

impl Target {
    fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{url:?} is not an http or https URL")),
        };
        let authority = uri.authority().ok_or_else(|| format!("{url:?} names no host"))?;
        if authority.as_str().contains('@') {
            return Err("a URL of keys must not hold credentials".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if host.is_empty() || port == 0 {
            return Err(format!("{url:?} names no host"));
        }
        Ok(Self { tls, host, port, uri })
    }

    /// Where a redirect leads: never from https to http.
    fn redirected(&self, location: &str) -> Result<Self, String> {
        let scheme = if self.tls { "https" } else { "http" };
        let authority = self.uri.authority().map_or("", http::uri::Authority::as_str);
        let url = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            let folder = self.uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        };
        let next = Self::parse(&url).map_err(|e| format!("{}: redirects: {e}", self.uri))?;
        if self.tls && !next.tls {
            return Err(format!("{}: redirects from https to http", self.uri));
        }
        Ok(next)
    }
}

/// One request on a connection of its own.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
) -> Result<http::Response<Incoming>, String> {
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = http.handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::builder()
        .method(Method::GET)
        .uri(target.uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(header::HOST, target.uri.authority().map_or("", http::uri::Authority::as_str))
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("mesh-control/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let mut response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    // The connection lives as long as the answer is read.
    response.extensions_mut().insert(Arc::new(connection));
    Ok(response)
}

async fn read(response: http::Response<Incoming>) -> Result<String, String> {
    if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(format!("answered in the encoding {encoding:?}, which was not asked for"));
    }
    // The head holds the connection.
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await;
    drop(head);
    let bytes =
        body.map_err(|e| format!("the answer is of no use (at most {MAX_BODY} bytes are read): {e}"))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|_| "the answer is not UTF-8".to_owned())
}

/// Made for each fetch: fetches are few, and roots that an operator changes count at once.
async fn tls_config(extra: Option<PathBuf>) -> Result<Arc<ClientConfig>, String> {
    let made = tokio::task::spawn_blocking(move || {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = &extra {
            for certificate in further_roots(path).map_err(|e| format!("{}: {e}", path.display()))? {
                roots.add(certificate).map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        if roots.is_empty() {
            return Err("the system has no trust anchors, and --jwks-ca names none".to_owned());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|e| e.to_string())?.with_root_certificates(roots).with_no_client_auth();
        Ok(Arc::new(config))
    });
    made.await.map_err(|e| e.to_string())?
}

fn further_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_CA_FILE {
        return Err(format!("{size} bytes, {MAX_CA_FILE} are allowed"));
    }
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let t = Target::parse("https://[2001:db8::1]:8443/keys?x=1").unwrap();
        assert_eq!((t.tls, t.host.as_str(), t.port), (true, "2001:db8::1", 8443));
        let t = Target::parse("http://host/").unwrap();
        assert_eq!((t.tls, t.port), (false, 80));
        for bad in ["", "host", "ftp://host/", "https://user:pass@host/", "http://", "http://host:0/", "/keys"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects() {
        let from = Target::parse("https://host:8443/a/keys").unwrap();
        let to = |location: &str| from.redirected(location).map(|t| t.uri.to_string());
        assert_eq!(to("/b").unwrap(), "https://host:8443/b");
        assert_eq!(to("b?c").unwrap(), "https://host:8443/a/b?c");
        assert_eq!(to("//other/b").unwrap(), "https://other/b");
        assert_eq!(to("https://other/").unwrap(), "https://other/");
        for bad in ["http://host:8443/a/keys", "file:///etc/passwd", "https://u:p@host/"] {
            assert!(to(bad).is_err(), "{bad}");
        }
    }
}
