//! Connections of the control thread to clusters of the configuration: span collectors, control planes of bootstrap
//! files.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_api::model::Name;
use tonic::transport::{Channel, Endpoint};

use crate::config::SharedConfig;
use crate::identity::KEEPALIVE;
use crate::telemetry::span_export::{Dial, Stream};
use crate::upstream::balance::ThreadRandom;
use crate::upstream::{LbContext, connect};
use crate::xds::sds::Channels;

/// How long a connection to a control plane may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Dials endpoints of clusters in force.
#[derive(Debug, Clone)]
pub struct Dialer(pub Arc<SharedConfig>);

impl Dial for Dialer {
    fn dial(&self, cluster: Name, h2: bool) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let snapshot = shared.load();
            let found = snapshot.cluster(&cluster).cloned();
            let found = found.ok_or_else(|| io::Error::other(format!("there is no cluster {cluster}")))?;
            let endpoint = found.pick(&LbContext::default(), &ThreadRandom).map_err(io::Error::other)?;
            let alpn = [Name::from("h2")];
            let options = connect::ConnectOptions { alpn: h2.then_some(&alpn[..]), ..Default::default() };
            let stream = connect::connect_for_control(&found, &endpoint, &options).await.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

impl Dialer {
    /// A channel to a cluster, which connects when it is used. `authority` is told to the server.
    pub fn channel_to(&self, cluster: &Name, authority: &str) -> Result<Channel, String> {
        let (dialer, target) = (self.clone(), cluster.clone());
        let connector = tower::service_fn(move |_: http::Uri| {
            let connecting = dialer.dial(target.clone(), true);
            async move { connecting.await.map(TokioIo::new) }
        });
        let host: String = authority.chars().map(|c| if c == '|' || c == '_' { '-' } else { c }).collect();
        let endpoint = Endpoint::from_shared(format!("http://{host}")).map_err(|e| e.to_string())?;
        // What the cluster says of its connections counts here as it does for requests.
        let (interval, timeout) = match self.0.load().cluster(cluster).and_then(|c| c.config.http.keepalive) {
            Some(asked) if !asked.0.is_zero() => asked,
            _ => KEEPALIVE,
        };
        let endpoint = endpoint
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect_with_connector_lazy(connector))
    }
}

impl Channels for Dialer {
    fn channel(&self, cluster: &Name) -> Result<Channel, String> {
        self.channel_to(cluster, cluster)
    }
}
