//! Pieces that unit tests of this folder share.

use std::sync::Arc;

use mesh_api::model::TrafficDirection;

use super::filters::descriptors::Descriptor;
use super::filters::ext_authz::{Answer, Codec, Question};
use super::filters::global_limit;
use super::message::{Authority, RequestHead};
use crate::config::Services;
use crate::net::ConnInfo;

/// For configurations without an external authorizer.
#[derive(Debug)]
struct NoAuthorizer;

/// For configurations without services that decide.
pub(crate) fn no_services() -> Services {
    Services { authz: Arc::new(NoAuthorizer), limits: Arc::new(NoLimits) }
}

/// For configurations without a rate limit service.
#[derive(Debug)]
struct NoLimits;

impl global_limit::Codec for NoLimits {
    fn question(&self, _: &str, _: &[Descriptor<'_>]) -> Vec<u8> {
        vec![]
    }
    fn answer(&self, _: &[u8]) -> Result<global_limit::Answer, String> {
        Err("there is none".to_owned())
    }
}

impl Codec for NoAuthorizer {
    fn question(&self, _: &Question<'_>) -> Vec<u8> {
        vec![]
    }
    fn answer(&self, _: &[u8]) -> Result<Answer, String> {
        Err("there is none".to_owned())
    }
}

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
        sni_port: None,
        accepted: tokio::time::Instant::now(),
    }
}

/// A GET of `http://AUTHORITY/TARGET`.
pub(crate) fn get(authority: &str, target: &str) -> RequestHead {
    RequestHead::new(http::Method::GET, Authority::parse(authority).unwrap(), target.parse().unwrap())
}
