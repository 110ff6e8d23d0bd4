//! Keeps the workload's certificate fresh: renewed at half its life, kept to its end when renewal fails, then taken
//! away, so that handshakes fail instead of going on with a dead identity.
//!
//! Connections that stand are not touched by a renewal.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh_api::model::{DataSource, Name, PrivateData, SecretKind, TlsCertificate};
use tokio::sync::watch;

use super::{
    CERTIFICATE, ControlPlane, IdentityError, Settings,
    ca_client::{self, Answer},
    csr::Request,
    schedule,
    storage::{self, Kept},
    trust::Trust,
};
use crate::tls::{CertificateFacts, SecretStore};

/// No sleep is longer: the machine may be suspended, or its clock set.
const NAP: Duration = Duration::from_secs(30);
/// A certificate taken from the state folder must live at least this long to be of use.
const WORTHWHILE: Duration = Duration::from_secs(1);

/// How it stands with the identity.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// There is a certificate and it is valid.
    pub ready: bool,
    /// The workload's SPIFFE id, as the CA wrote it.
    pub spiffe: Option<Name>,
    /// End of the certificate, seconds since the epoch.
    pub not_after: i64,
    /// Certificates received.
    pub received: u64,
    /// Attempts failed, in all.
    pub failed: u64,
    /// Why the newest attempt failed; `None`: it did not.
    pub error: Option<String>,
}

/// Keeps the identity of this process fresh, for ever. The secrets are in the store as soon as `status` says ready.
pub async fn keep(settings: Settings, store: Arc<SecretStore>, status: Arc<watch::Sender<Status>>) {
    let settings = Arc::new(settings);
    let trust = Arc::new(Trust::new(settings.root_cert.clone(), store.clone()));
    let random = rand::random::<f64>;
    let mut keeper = Keeper { settings, store, trust: trust.clone(), status, not_after: None, failures: 0, random };
    let renewals = async {
        let mut wait = keeper.restore();
        loop {
            keeper.sleep(wait).await;
            wait = match keeper.renew().await {
                Ok(life) => schedule::renewal(life, (keeper.random)()),
                Err(error) => keeper.failed(&error),
            };
        }
    };
    tokio::select! {
        () = renewals => {}
        () = trust.follow() => {}
    }
}

struct Keeper {
    settings: Arc<Settings>,
    store: Arc<SecretStore>,
    trust: Arc<Trust>,
    status: Arc<watch::Sender<Status>>,
    /// End of the certificate in force; `None`: there is none.
    not_after: Option<SystemTime>,
    /// In a row.
    failures: u32,
    random: fn() -> f64,
}

impl Keeper {
    /// Takes what the state folder has. How long until it is to be renewed.
    fn restore(&mut self) -> Duration {
        let Some(dir) = &self.settings.state_dir else { return Duration::ZERO };
        let Some(kept) = storage::load(dir) else { return Duration::ZERO };
        let answer = Answer { chain: kept.chain.into(), roots: kept.roots.into() };
        let facts = match self.check(&answer, WORTHWHILE) {
            Ok(facts) => facts,
            Err(error) => {
                tracing::info!(target: "identity", "what the state folder holds is not used: {error}");
                return Duration::ZERO;
            }
        };
        if let Err(error) = self.put(&answer, kept.key.into(), &facts) {
            tracing::warn!(target: "identity", "what the state folder holds is not used: {error}");
            return Duration::ZERO;
        }
        tracing::info!(target: "identity", "certificate taken from the state folder");
        let life = Duration::from_secs(u64::try_from(facts.not_after - facts.not_before).unwrap_or(0));
        self.left().saturating_sub(life / 2)
    }

    /// Sleeps, in naps; when the certificate ends meanwhile it is taken away.
    async fn sleep(&mut self, wait: Duration) {
        let until = SystemTime::now() + wait;
        loop {
            if self.not_after.is_some() && self.left().is_zero() {
                self.expire();
                // A suspended machine: nothing to wait for any more.
                return;
            }
            let mut nap = until.duration_since(SystemTime::now()).unwrap_or_default().min(wait).min(NAP);
            if nap.is_zero() {
                return;
            }
            if self.not_after.is_some() {
                nap = nap.min(self.left());
            }
            tokio::time::sleep(nap).await;
        }
    }

    /// Life of the certificate in force.
    fn left(&self) -> Duration {
        self.not_after.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default()
    }

    /// Gets a new certificate into force. Its life.
    async fn renew(&mut self) -> Result<Duration, IdentityError> {
        let control = ControlPlane::new(&self.settings.control, &self.settings.root_cert, &self.store)?;
        let Request { csr, key } = Request::new()?;
        // By the certificate we have; every other time without it, should the CA not like it.
        let present = self.failures.is_multiple_of(2) || self.settings.token.is_none();
        let settings = self.settings.clone();
        let answer = ca_client::create(&settings, &control, csr, present);
        let answer = self.while_valid(answer).await?;
        let facts = self.check(&answer, Duration::ZERO)?;
        self.put(&answer, key.clone(), &facts)?;
        if let Some(dir) = self.settings.state_dir.clone() {
            let kept = Kept { key: key.to_string(), chain: answer.chain.to_string(), roots: answer.roots.to_string() };
            match tokio::task::spawn_blocking(move || storage::save(&dir, &kept)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::warn!(target: "identity", "certificate cannot be kept: {e}"),
                Err(e) => tracing::warn!(target: "identity", "certificate cannot be kept: {e}"),
            }
        }
        self.failures = 0;
        let life = self.left();
        tracing::info!(target: "identity", id = facts.spiffe.as_deref(), life = ?life, "certificate received");
        Ok(life)
    }

    /// Waits for an attempt; when the certificate in force ends meanwhile it is taken away in time.
    async fn while_valid<T>(&mut self, attempt: impl Future<Output = T>) -> T {
        tokio::pin!(attempt);
        if self.not_after.is_some() {
            tokio::select! {
                result = &mut attempt => return result,
                () = tokio::time::sleep(self.left()) => self.expire(),
            }
        }
        attempt.await
    }

    fn check(&self, answer: &Answer, least: Duration) -> Result<CertificateFacts, IdentityError> {
        use rustls_pki_types::{CertificateDer, pem::PemObject};
        let bad = |text: String| IdentityError::Answer(text);
        let leaf = CertificateDer::from_pem_slice(answer.chain.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let facts = CertificateFacts::parse(&leaf).map_err(bad)?;
        if facts.spiffe.is_none() {
            return Err(bad("the certificate has no SPIFFE id".to_owned()));
        }
        if end_of(&facts) <= SystemTime::now() + least {
            return Err(bad("the certificate has expired".to_owned()));
        }
        Ok(facts)
    }

    fn put(&mut self, answer: &Answer, key: Name, facts: &CertificateFacts) -> Result<(), IdentityError> {
        let bad = |e: crate::tls::TlsError| IdentityError::Answer(e.to_string());
        // What is trusted comes before what is shown: peers with the new one already are understood.
        self.trust.answered(&answer.roots).map_err(bad)?;
        let chain = DataSource::Inline(answer.chain.clone());
        let certificate = TlsCertificate { chain, key: PrivateData(DataSource::Inline(key)) };
        let own = SecretStore::local_reference(CERTIFICATE);
        self.store.put(&own, SecretKind::Certificate(certificate)).map_err(bad)?;
        self.not_after = Some(end_of(facts));
        self.status.send_modify(|s| {
            *s = Status {
                ready: true,
                spiffe: facts.spiffe.clone(),
                not_after: facts.not_after,
                received: s.received + 1,
                failed: s.failed,
                error: None,
            };
        });
        Ok(())
    }

    /// Notes a failure. How long to wait before the next attempt.
    fn failed(&mut self, error: &IdentityError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let left = self.left();
        let wait = schedule::pause(self.failures, left, (self.random)());
        tracing::warn!(target: "identity", ?left, retry_in = ?wait, failures = self.failures, "no new certificate: {error}");
        let mut error = error.to_string();
        if self.not_after.is_none() && self.status.borrow().received > 0 {
            error = format!("the certificate has expired ({error})");
        }
        self.store.note_error(&SecretStore::local_reference(CERTIFICATE), &error);
        self.status.send_modify(|s| {
            s.failed += 1;
            s.error = Some(error);
        });
        wait
    }

    fn expire(&mut self) {
        self.not_after = None;
        tracing::error!(target: "identity", "the certificate has expired; TLS is refused until there is a new one");
        let own = SecretStore::local_reference(CERTIFICATE);
        self.store.remove(&own);
        let error = self.status.borrow().error.clone();
        let error = format!("the certificate has expired ({})", error.as_deref().unwrap_or("renewal was not in time"));
        self.store.note_error(&own, &error);
        self.status.send_modify(|s| {
            s.ready = false;
            s.error = Some(error);
        });
    }
}

fn end_of(facts: &CertificateFacts) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(facts.not_after).unwrap_or(0))
}
