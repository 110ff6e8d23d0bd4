//! Who calls: a client certificate of this CA, or a token.

use std::{sync::Arc, time::SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use mesh_api::identity::SpiffeId;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Authority, TokenKey, issuer::unix};
use crate::xds::caller::{Authenticate, Peer};

/// A service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceAccount {
    /// From `system:serviceaccount:NAMESPACE:NAME`.
    pub fn from_subject(subject: &str) -> Option<Self> {
        let (namespace, name) = subject.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let ok = SpiffeId::new(Default::default(), namespace, name).is_ok();
        ok.then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// Says whose token this is: our own key, or (elsewhere) Kubernetes' TokenReview.
pub trait VerifyToken: std::fmt::Debug + Send + Sync + 'static {
    /// The account of a token for the audience `istio-ca`; the error is for the client's eyes.
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, String>>;
}

/// Tokens signed by our own key.
#[derive(Debug, Clone)]
pub struct LocalTokens(pub Arc<TokenKey>);

impl VerifyToken for LocalTokens {
    fn verify<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ServiceAccount, String>> {
        std::future::ready(self.0.verify(token)).boxed()
    }
}

/// Authenticates callers of xDS and of the CA.
#[derive(Debug, Clone)]
pub struct Authenticator {
    authority: Arc<Authority>,
    tokens: Arc<dyn VerifyToken>,
}

impl Authenticator {
    /// With the tokens of the authority's own key.
    pub fn new(authority: &Arc<Authority>) -> Self {
        Self::with_tokens(authority, Arc::new(LocalTokens(authority.tokens().clone())))
    }

    /// With other tokens.
    pub fn with_tokens(authority: &Arc<Authority>, tokens: Arc<dyn VerifyToken>) -> Self {
        Self { authority: authority.clone(), tokens }
    }

    /// The identity of a certificate that the handshake has verified. The connection may be old, so its end is checked.
    fn by_certificate(&self, leaf: &CertificateDer<'_>) -> Result<SpiffeId, String> {
        let unreadable = |_| "client certificate: unreadable".to_owned();
        let (_, x509) = X509Certificate::from_der(leaf).map_err(unreadable)?;
        let end = x509.validity().not_after.timestamp();
        if u64::try_from(end).is_ok_and(|end| end < unix(SystemTime::now()).as_secs()) || end < 0 {
            return Err("client certificate: expired".to_owned());
        }
        let names = x509.subject_alternative_name().map_err(|_| "client certificate: unreadable names".to_owned())?;
        let mut uris = names.iter().flat_map(|n| &n.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err("client certificate: not exactly one URI name".to_owned());
        };
        let id: SpiffeId = uri.parse().map_err(|e| format!("client certificate: {e}"))?;
        if !self.authority.vouches_for(&id.trust_domain) {
            return Err(format!("client certificate: trust domain {} is not ours", id.trust_domain));
        }
        // An alias means us; what is issued and compared from here on is in our own domain.
        self.authority.identity(&id.namespace, &id.service_account)
    }
}

impl Authenticate for Authenticator {
    fn authenticate<'a>(&'a self, peer: &'a Peer, bearer: Option<&'a str>) -> BoxFuture<'a, Result<SpiffeId, String>> {
        async move {
            let leaf = peer.certificates.as_ref().and_then(|chain| chain.first());
            let by_certificate = leaf.map(|leaf| self.by_certificate(leaf));
            match (by_certificate, bearer) {
                (Some(Ok(id)), _) => Ok(id),
                (_, Some(token)) => {
                    let account = self.tokens.verify(token).await?;
                    self.authority.identity(&account.namespace, &account.name)
                }
                (Some(Err(why)), None) => Err(why),
                (None, None) => Err("neither a client certificate nor a bearer token".to_owned()),
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::KeyPair;

    use super::*;
    use crate::ca::{authority::tests::authority, issuer::Subject};

    #[tokio::test]
    async fn certificates_and_tokens_tell_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let authenticator = Authenticator::new(&authority);
        let key = KeyPair::generate().unwrap();
        let peer = |uri: &str| {
            let issued = authority.sign(&Subject::Workload(uri.to_owned()), &key, Some(Duration::from_secs(60)));
            Peer { address: None, certificates: Some(vec![issued.unwrap().leaf].into()) }
        };
        let web = peer("spiffe://cluster.local/ns/shop/sa/web");
        let id = authenticator.authenticate(&web, None).await.unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");

        let token = authority.tokens().issue("bank", "teller", Duration::from_secs(60)).unwrap();
        let id = authenticator.authenticate(&Peer::default(), Some(&token)).await.unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/bank/sa/teller");
        assert!(authenticator.authenticate(&Peer::default(), None).await.is_err());
        assert!(authenticator.authenticate(&Peer::default(), Some("x")).await.is_err());

        for wrong in ["spiffe://other/ns/shop/sa/web", "spiffe://cluster.local/workload", "https://a/b"] {
            assert!(authenticator.authenticate(&peer(wrong), None).await.is_err(), "{wrong}");
        }
        authority.set_trust_domain("new".parse().unwrap(), vec!["cluster.local".parse().unwrap()]);
        let id = authenticator.authenticate(&web, None).await.unwrap();
        assert_eq!(id.to_string(), "spiffe://new/ns/shop/sa/web", "an alias");

        let server = authority.sign(&Subject::Server(vec!["istiod".to_owned()]), &key, None).unwrap();
        let peer = Peer { address: None, certificates: Some(vec![server.leaf].into()) };
        assert!(authenticator.authenticate(&peer, None).await.is_err(), "a server is no workload");
    }

    #[tokio::test]
    async fn an_expired_certificate_does_not_count_on_an_old_connection() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let authenticator = Authenticator::new(&authority);
        let id = Subject::Workload("spiffe://cluster.local/ns/shop/sa/web".to_owned());
        let issued = authority.sign(&id, &KeyPair::generate().unwrap(), Some(Duration::from_secs(1))).unwrap();
        let peer = Peer { address: None, certificates: Some(vec![issued.leaf].into()) };
        assert!(authenticator.authenticate(&peer, None).await.is_ok());
        std::thread::sleep(Duration::from_millis(3100));
        assert!(authenticator.authenticate(&peer, None).await.unwrap_err().contains("expired"));
    }
}
