//! Who may see the debug pages: this host, and workloads of the root namespace with a token.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Admin, peer};
use crate::xds::{caller::Peer, generator::Generator};

/// Lets a request through or refuses it.
pub(super) async fn guard<G: Generator>(State(admin): State<Arc<Admin<G>>>, request: Request, next: Next) -> Response {
    let refuse = |why: &str| (StatusCode::FORBIDDEN, format!("{why}\n")).into_response();
    // A page in a browser must not read this by way of the user's own machine.
    if request.headers().contains_key(header::ORIGIN) {
        return refuse("not for browsers");
    }
    if !host_permitted(request.headers()) {
        return refuse("unknown host name");
    }
    let local = peer(&request).is_some_and(|from| from.0.ip().to_canonical().is_loopback());
    if local {
        return next.run(request).await;
    }
    let Some(authenticate) = admin.authenticate.load_full() else {
        return refuse("debug pages are for this host only");
    };
    let token = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = token.and_then(|v| v.strip_prefix("Bearer ")).map(str::to_owned);
    match authenticate.authenticate(&Peer::default(), token.as_deref()).await {
        Ok(id) if id.namespace == **admin.root_namespace.load() => next.run(request).await,
        Ok(id) => refuse(&format!("{id} may not see debug pages")),
        Err(why) => refuse(&why),
    }
}

/// An address, or a name that this server is known by; any other name points here by an attacker's DNS.
fn host_permitted(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name == "istiod"
        || name.ends_with(".svc")
        || name.contains(".svc.")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use arc_swap::{ArcSwap, ArcSwapOption};
    use axum::body::Body;
    use futures_util::future::{BoxFuture, FutureExt};
    use mesh_api::identity::SpiffeId;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        admin::{From, router},
        translate::Translator,
        xds::{caller::Authenticate, hub::Hub},
    };

    /// The token is the namespace.
    #[derive(Debug)]
    struct Namespaces;

    impl Authenticate for Namespaces {
        fn authenticate<'a>(&'a self, _: &'a Peer, token: Option<&'a str>) -> BoxFuture<'a, Result<SpiffeId, String>> {
            let id = SpiffeId::new(Default::default(), token.unwrap_or_default(), "kiali").map_err(|e| e.to_string());
            std::future::ready(id).boxed()
        }
    }

    #[tokio::test]
    async fn from_elsewhere_for_the_root_namespace_of_the_mesh_only() {
        let hub = Hub::new(Translator::new(), Arc::default());
        let authenticate: Arc<dyn Authenticate> = Arc::new(Namespaces);
        let admin = Arc::new(Admin {
            hub,
            metrics: Arc::default(),
            source: ArcSwapOption::empty(),
            index: Arc::default(),
            waiting: ArcSwap::default(),
            root_namespace: ArcSwap::from_pointee("mesh-root".to_owned()),
            authenticate: ArcSwapOption::from_pointee(authenticate),
            keys: ArcSwapOption::empty(),
            cluster_id: String::new(),
            started: tokio::time::Instant::now(),
        });
        let status = async |namespace: &str, from: &str| {
            let mut request = Request::get("/debug/syncz").header(header::AUTHORIZATION, format!("Bearer {namespace}"));
            let from: SocketAddr = from.parse().unwrap();
            request.extensions_mut().unwrap().insert(From(from));
            router(admin.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
        };
        assert_eq!(status("mesh-root", "10.0.0.1:1").await, StatusCode::OK);
        assert_eq!(status("istio-system", "10.0.0.1:1").await, StatusCode::FORBIDDEN);
        assert_eq!(status("shop", "127.0.0.1:1").await, StatusCode::OK);
    }

    #[test]
    fn foreign_names_are_refused() {
        let permitted = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            host_permitted(&headers)
        };
        for host in ["localhost:15014", "127.0.0.1", "[::1]:80", "istiod.istio-system.svc:15014"] {
            assert!(permitted(host), "{host}");
        }
        for host in ["x", "evil.example:15014", "[x]"] {
            assert!(!permitted(host), "{host}");
        }
    }
}
