//! Keys that are fetched from their issuer: what is known of them, and when to ask again. Fetches nothing itself.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use mesh_api::model::{Name, RemoteKeys};
use parking_lot::RwLock;
use tokio::{sync::Mutex, time::Instant};

use super::{keys::KeySet, status::Status};
use crate::{config::ConfigError, http::message::Authority};

/// Largest key set that is read.
pub const MAX_KEY_SET: usize = 1 << 20;

/// A fetched key set, shared by all workers.
#[derive(Debug)]
pub struct Remote {
    /// Cluster to ask.
    pub cluster: Name,
    /// Host to ask for.
    pub authority: Authority,
    /// Path and query.
    pub target: PathAndQuery,
    /// A fetch may take so long.
    pub timeout: Duration,
    cache: Duration,
    ahead: bool,
    retry_after: Duration,
    /// Held while fetching, so that many requests wait for one fetch.
    pub fetching: Mutex<()>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last good ones.
    keys: Option<Arc<KeySet>>,
    fetched: Option<Instant>,
    failed: Option<Instant>,
}

/// Keys, as far as they are there.
#[derive(Debug)]
pub enum Known {
    /// These; `renew`: they end soon and should be fetched in the background.
    Keys {
        /// The keys.
        keys: Arc<KeySet>,
        /// Fetch in the background.
        renew: bool,
    },
    /// They have to be fetched first.
    Fetch,
    /// They could not be fetched a moment ago and there are none from before.
    Failed,
}

impl Remote {
    /// Reads the URL.
    ///
    /// # Errors
    /// It is not an http or https URL.
    pub fn compile(config: &RemoteKeys) -> Result<Self, ConfigError> {
        let bad = || ConfigError::new(format!("JWKS URL {:?} is not one", config.uri));
        let uri: http::Uri = config.uri.parse().map_err(|_| bad())?;
        let authority = uri.authority().and_then(|a| Authority::parse(a.as_str())).ok_or_else(bad)?;
        Ok(Self {
            cluster: config.cluster.clone(),
            authority,
            target: uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")),
            timeout: config.timeout,
            cache: config.cache,
            ahead: config.ahead,
            retry_after: config.retry_after,
            fetching: Mutex::default(),
            state: RwLock::default(),
        })
    }

    /// What is known now. After a fetch that failed the last good keys go on to hold.
    pub fn known(&self, now: Instant) -> Known {
        let state = self.state.read();
        let age = state.fetched.map(|at| now.saturating_duration_since(at));
        let paused = state.failed.is_some_and(|at| now.saturating_duration_since(at) < self.retry_after);
        match (&state.keys, age) {
            (Some(keys), Some(age)) if age < self.cache || paused => {
                let late = self.ahead && age >= self.cache - self.cache / 10;
                Known::Keys { keys: keys.clone(), renew: late && !paused }
            }
            _ if paused => Known::Failed,
            _ => Known::Fetch,
        }
    }

    /// Whether a fetch that waited for another one is still of use.
    pub fn wants_fetch(&self, now: Instant) -> bool {
        !matches!(self.known(now), Known::Keys { renew: false, .. } | Known::Failed)
    }

    /// Takes over what a fetch brought.
    pub fn settle(&self, fetched: Result<KeySet, String>, now: Instant) {
        let fetched = match fetched {
            Ok(keys) if keys.is_empty() => Err(Status::NoValidKeys.text().to_owned()),
            other => other,
        };
        let mut state = self.state.write();
        match fetched {
            Ok(keys) => *state = State { keys: Some(Arc::new(keys)), fetched: Some(now), failed: None },
            Err(why) => {
                tracing::warn!("keys of tokens from {}{}: {why}", self.authority.as_str(), self.target);
                state.failed = Some(now);
            }
        }
    }
}
