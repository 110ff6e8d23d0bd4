//! Objects of a cluster, read once for analysis.

use futures_util::StreamExt as _;
use mesh_control::source::bundle::Bundle;
use mesh_control::source::object::Kind;
use mesh_control::validate::Finding;
use serde_json::Value;

use crate::args::KubeArgs;
use crate::client::cluster::{AT_ONCE, Cluster, block_on, gvk};
use crate::exit::{FORBIDDEN, Failure};

/// What was read.
#[derive(Debug)]
pub struct Live {
    /// Namespace of the context.
    pub namespace: String,
    /// The caller may not list Secrets.
    secrets_hidden: bool,
}

impl Live {
    /// A finding that only tells that Secrets were not seen.
    pub fn hides(&self, finding: &Finding) -> bool {
        self.secrets_hidden && finding.message.starts_with("there is no Secret ")
    }
}

/// Adds every object of the kinds that the control plane reads. Kinds that the caller may not list are told of and left
/// out.
///
/// # Errors
/// When the API server cannot be asked.
pub fn add(args: &KubeArgs, bundle: &mut Bundle) -> Result<Live, Failure> {
    block_on(async {
        let cluster = Cluster::connect(args).await?;
        read(&cluster, bundle).await
    })
}

async fn read(cluster: &Cluster, bundle: &mut Bundle) -> Result<Live, Failure> {
    let mut live = Live { namespace: cluster.default_namespace().to_owned(), secrets_hidden: false };
    let listed = Kind::ALL.into_iter().map(async |kind| (kind, objects(cluster, kind).await));
    let lists: Vec<_> = futures_util::stream::iter(listed).buffered(AT_ONCE).collect().await;
    for (kind, objects) in lists {
        match objects {
            Ok(objects) => objects.into_iter().for_each(|object| bundle.add_live(object)),
            Err(why) if why.code == std::process::ExitCode::from(FORBIDDEN) => {
                anstream::eprintln!("not looked at: {}", why.message);
                live.secrets_hidden |= kind == Kind::Secret;
            }
            Err(why) => return Err(why),
        }
    }
    Ok(live)
}

/// All of a kind, in the newest version that the server has.
async fn objects(cluster: &Cluster, kind: Kind) -> Result<Vec<Value>, Failure> {
    for version in kind.versions() {
        let found = cluster.list(&gvk(kind.group(), version, kind.name()), None, "").await?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(vec![])
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use http::StatusCode;
    use mesh_api::names::DEFAULT_DOMAIN;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn kinds_that_are_there_and_may_be_listed() {
        let status = |code: u16, reason: &str| {
            let body = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
                "reason": reason, "message": reason});
            (StatusCode::from_u16(code).unwrap(), axum::Json(body))
        };
        let gateway = json!({"metadata": {"name": "edge", "namespace": "shop"}, "spec": {"selector": {"app": "edge"},
            "servers": [{"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"],
                         "tls": {"mode": "SIMPLE", "credentialName": "edge"}}]}});
        let rule = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"host": "web"}});
        let list = |kind: &str, version: &str, item: Value| {
            axum::Json(json!({"apiVersion": format!("networking.istio.io/{version}"), "kind": kind, "metadata": {},
                "items": [item]}))
        };
        let (gateways, rules) = (list("GatewayList", "v1", gateway), list("DestinationRuleList", "v1beta1", rule));
        let (forbidden, none) = (status(403, "Forbidden"), status(404, "NotFound"));
        let router = axum::Router::new()
            .route("/apis/networking.istio.io/v1/gateways", get(async || gateways))
            .route("/apis/networking.istio.io/v1beta1/destinationrules", get(async || rules))
            .route("/api/v1/secrets", get(async || forbidden))
            .fallback(async || none);
        let mut bundle = Bundle::default();
        let live = read(&Cluster::of_router(router), &mut bundle).await.unwrap();
        assert_eq!((bundle.objects(), live.namespace.as_str()), (2, "default"));
        let findings = bundle.findings(DEFAULT_DOMAIN);
        let hidden: Vec<&Finding> = findings.iter().filter(|f| live.hides(f)).collect();
        assert!(hidden.len() == 1 && hidden[0].message.contains("edge"), "{findings:?}");
        assert!(findings.iter().any(|f| f.message.contains("web")), "{findings:?}");
    }
}
