//! The client of Istio's certificate service: one request, one chain.

use std::{path::Path, time::Duration};

use mesh_api::{
    ca::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
    model::Name,
};
use tonic::{Code, Request, Status, client::Grpc, metadata::AsciiMetadataValue};
use tonic_prost::ProstCodec;

use super::{ControlPlane, IdentityError, Settings};

/// How long one attempt may take in all.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Largest token.
const TOKEN_MAX: u64 = 64 << 10;
/// Largest answer.
const ANSWER_MAX: usize = 1 << 20;

/// What the CA answered, PEM.
#[derive(Debug)]
pub(super) struct Answer {
    /// Leaf first.
    pub(super) chain: Name,
    /// All trust anchors.
    pub(super) roots: Name,
}

/// Asks for a certificate. `present`: with the certificate that we have, besides the token.
pub(super) async fn create(
    settings: &Settings,
    control: &ControlPlane,
    csr: String,
    present: bool,
) -> Result<Answer, IdentityError> {
    let token = match &settings.token {
        Some(path) => read_token(path).await,
        None => Ok(None),
    };
    let present = present && control.has_certificate();
    let token = match token {
        Ok(token) => token,
        // The certificate alone may do.
        Err(e) if present => {
            tracing::warn!(target: "identity", "{e}");
            None
        }
        Err(e) => return Err(e),
    };
    if token.is_none() && !present {
        return Err(IdentityError::Settings("no token to authenticate with".to_owned()));
    }
    let ttl = i64::try_from(settings.ttl.as_secs().max(1)).unwrap_or(i64::MAX);
    let mut request = Request::new(CertificateRequest { csr, validity_duration: ttl, metadata: None });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    if let Ok(id) = AsciiMetadataValue::try_from(settings.cluster_id.as_str())
        && !id.is_empty()
    {
        request.metadata_mut().insert("clusterid", id);
    }
    let call = async {
        let mut grpc = Grpc::new(control.channel(present)?).max_decoding_message_size(ANSWER_MAX);
        let unreachable = |reason: String| IdentityError::Connect { address: control.address(), reason };
        grpc.ready().await.map_err(|e| unreachable(causes(&e)))?;
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
        let answer = grpc.unary(request, path, codec).await.map_err(|status| failure(&status, unreachable))?;
        split(answer.into_inner())
    };
    match tokio::time::timeout(ATTEMPT, call).await {
        Ok(result) => result,
        Err(_) => Err(IdentityError::Connect { address: control.address(), reason: "no answer in time".to_owned() }),
    }
}

/// The last element is the bundle of roots, all before it the chain.
fn split(answer: CertificateResponse) -> Result<Answer, IdentityError> {
    let mut chain = answer.cert_chain;
    let bad = |text: &str| IdentityError::Answer(text.to_owned());
    let roots = chain.pop().ok_or_else(|| bad("empty"))?;
    if chain.is_empty() {
        return Err(bad("only one certificate"));
    }
    let chain: String = chain.iter().flat_map(|pem| [pem.trim_end(), "\n"]).collect();
    Ok(Answer { chain: chain.into(), roots: roots.into() })
}

async fn read_token(path: &Path) -> Result<Option<AsciiMetadataValue>, IdentityError> {
    let fail = |e: String| IdentityError::Settings(format!("token {}: {e}", path.display()));
    let size = tokio::fs::metadata(path).await.map_err(|e| fail(e.to_string()))?.len();
    if size > TOKEN_MAX {
        return Err(fail(format!("{size} bytes, {TOKEN_MAX} are allowed")));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(|e| fail(e.to_string()))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(fail("empty".to_owned()));
    }
    let mut value =
        AsciiMetadataValue::try_from(format!("Bearer {token}")).map_err(|_| fail("not a token".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn failure(status: &Status, unreachable: impl FnOnce(String) -> IdentityError) -> IdentityError {
    let text = match std::error::Error::source(status) {
        Some(source) => causes(source),
        None => status.message().to_owned(),
    };
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            unreachable(text)
        }
        code => IdentityError::Refused(format!("{}: {text}", code.description())),
    }
}

/// An error with what caused it, once each.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_the_chain_is_the_bundle() {
        let split =
            |parts: &[&str]| split(CertificateResponse { cert_chain: parts.iter().map(|p| (*p).into()).collect() });
        let answer = split(&["leaf", "intermediate\n", "roots"]).unwrap();
        assert_eq!((&*answer.chain, &*answer.roots), ("leaf\nintermediate\n", "roots"));
        assert!(split(&["leaf"]).is_err());
        assert!(split(&[]).is_err());
    }
}
