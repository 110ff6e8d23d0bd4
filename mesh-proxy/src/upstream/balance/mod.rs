//! Choosing an endpoint.

use std::{net::SocketAddr, sync::Arc};

use super::Endpoint;

/// Random numbers; seeded in tests.
pub trait Random {
    /// 64 random bits.
    fn next_u64(&self) -> u64;
    /// Uniform in `0..n`; 0 when `n` is 0. (Multiply-shift: the bias is below `n` / 2^64.)
    fn below(&self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
    /// Uniform in `0.0..1.0`.
    fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Random for crate::runtime::Rng {
    fn next_u64(&self) -> u64 {
        crate::runtime::Rng::next_u64(self)
    }
}

/// What a choice may depend on. The default is a first try without a hash.
#[derive(Debug, Clone, Copy, Default)]
pub struct LbContext<'a> {
    /// For consistent balancers; a random one when there is none.
    pub hash: Option<u64>,
    /// Endpoints of earlier tries that are to be avoided (`previous_hosts`).
    pub tried: &'a [Arc<Endpoint>],
    /// How often another endpoint is drawn when a tried one comes up; 0 counts as 1.
    pub selection_attempts: u32,
    /// Priorities of earlier tries are avoided too (`previous_priorities`), forgotten again after this many tries.
    pub avoid_priorities: Option<u32>,
    /// Number of the try, 0 first: consistent balancers walk on.
    pub attempt: u32,
    /// Original destination of the connection (or what `x-envoy-original-dst-host` says).
    pub original_dst: Option<SocketAddr>,
    /// This endpoint if it is there and takes requests (stateful session).
    pub override_host: Option<SocketAddr>,
}
