//! Role-based access control: rules compiled once, checked against what is known of a request or of a connection.
//! Knows no HTTP codec and sends nothing; verdicts name the policy.

use std::net::SocketAddr;

use mesh_api::model::{self, Name};

use crate::{config::ConfigError, http::message::RequestHead, net::ConnInfo};

/// Compiled rules of one action.
#[derive(Debug)]
pub struct Engine {}

/// What rules look at. `head` is `None` for connections: conditions on HTTP never match then.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Connection.
    pub conn: &'a ConnInfo,
    /// Request, normalised.
    pub head: Option<&'a RequestHead>,
    /// Client address after `x-forwarded-for` (the peer for connections).
    pub client: SocketAddr,
    /// Dynamic metadata of filters that ran before.
    pub metadata: Option<&'a model::Metadata>,
}

/// Outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// May pass.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<Name>,
}

impl Engine {
    /// Compiles rules.
    ///
    /// # Errors
    /// A pattern or header name that is not valid.
    pub fn compile(_rules: &model::Rbac) -> Result<Self, ConfigError> {
        Ok(Self {})
    }
    /// Checks a request or connection.
    pub fn check(&self, _attributes: &Attributes<'_>) -> Verdict {
        Verdict { allowed: false, policy: None }
    }
}
