//! Connections of the control thread to clusters of the configuration: span collectors, control planes of bootstrap
//! files.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use mesh_api::model::Name;

use crate::config::SharedConfig;
use crate::telemetry::span_export::{Dial, Stream};
use crate::upstream::balance::ThreadRandom;
use crate::upstream::{LbContext, connect};

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
