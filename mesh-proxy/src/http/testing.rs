//! Pieces that unit tests of this folder share.

use mesh_api::model::TrafficDirection;

use super::message::{Authority, RequestHead};
use crate::net::ConnInfo;

/// A plain TCP connection from 10.0.0.1:40000 to 10.0.0.2:8080.
pub(crate) fn conn() -> ConnInfo {
    let (peer, local) = ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:8080".parse().unwrap());
    ConnInfo {
        id: 1,
        peer,
        direct_peer: peer,
        local,
        direct_local: local,
        original_dst: None,
        sni: None,
        application_protocols: vec![],
        tls: None,
        listener: "listener".into(),
        direction: TrafficDirection::Outbound,
        chain: "".into(),
        sni_cluster: None,
        accepted: tokio::time::Instant::now(),
    }
}

/// A GET of `http://AUTHORITY/TARGET`.
pub(crate) fn get(authority: &str, target: &str) -> RequestHead {
    RequestHead::new(http::Method::GET, Authority::parse(authority).unwrap(), target.parse().unwrap())
}
