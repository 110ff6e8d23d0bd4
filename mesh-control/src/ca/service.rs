//! Istio's certificate service over gRPC.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use mesh_api::ca::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, SERVICE};
use tonic::{
    Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::Service;

use super::{Authority, CaError, authority::pem};
use crate::{
    metrics::Metrics,
    xds::caller::{Authenticate, Peer, bearer},
};

/// Largest message.
const MAX: usize = 64 << 10;

/// `istio.v1.auth.IstioCertificateService`.
#[derive(Debug, Clone)]
pub struct CertificateService {
    authority: Arc<Authority>,
    authenticate: Arc<dyn Authenticate>,
    metrics: Arc<Metrics>,
}

/// The certificate service, to be added to the routes of the TLS address.
pub fn grpc_service(
    authority: Arc<Authority>,
    authenticate: Arc<dyn Authenticate>,
    metrics: Arc<Metrics>,
) -> CertificateService {
    CertificateService { authority, authenticate, metrics }
}

impl CertificateService {
    async fn create(self, request: tonic::Request<CertificateRequest>) -> Result<CertificateResponse, Status> {
        self.metrics.csr.inc();
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let token = bearer(request.metadata().as_ref()).map_err(|why| {
            self.metrics.csr_unauthenticated.inc();
            Status::unauthenticated(why)
        })?;
        let caller = self.authenticate.authenticate(&peer, token).await.map_err(|why| {
            self.metrics.csr_unauthenticated.inc();
            tracing::warn!(target: "ca", address = ?peer.address, "certificate refused: {why}");
            Status::unauthenticated(why)
        })?;
        let request = request.into_inner();
        if request.metadata.as_ref().is_some_and(|m| m.fields.contains_key("ImpersonatedIdentity")) {
            tracing::warn!(target: "ca", %caller, "certificate refused: it asks for another identity");
            return Err(Status::permission_denied("nobody may impersonate another identity"));
        }
        let ttl = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let issued = self.authority.issue(&caller, &request.csr, ttl).map_err(|error| {
            let text = error.to_string();
            tracing::warn!(target: "ca", %caller, "certificate refused: {text}");
            match error {
                CaError::Request(_) => {
                    self.metrics.csr_unreadable.inc();
                    Status::invalid_argument(text)
                }
                CaError::Signing(_) | CaError::NotYet(_) | CaError::Material(_) => {
                    self.metrics.csr_unsigned.inc();
                    Status::unavailable(text)
                }
            }
        })?;
        self.metrics.issued.inc();
        tracing::debug!(target: "ca", %caller, "certificate issued");
        let chain = std::iter::once(&issued.leaf).chain(&issued.chain).map(|der| pem("CERTIFICATE", der));
        // The last one is the whole bundle of roots, as clients expect.
        let roots = self.authority.roots_pem().to_string();
        Ok(CertificateResponse { cert_chain: chain.chain(std::iter::once(roots)).collect() })
    }
}

impl UnaryService<CertificateRequest> for CertificateService {
    type Response = CertificateResponse;
    type Future = BoxFuture<'static, Result<tonic::Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.create(request).await.map(tonic::Response::new) })
    }
}

impl NamedService for CertificateService {
    const NAME: &'static str = SERVICE;
}

impl Service<Request<Body>> for CertificateService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let path = request.uri().path();
            if path != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented(format!("{path} is not served")).into_http());
            }
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            Ok(Grpc::new(codec).max_decoding_message_size(MAX).unary(this, request).await)
        })
    }
}
