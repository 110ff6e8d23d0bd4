//! Acknowledgements: what a request says of the response before it, and the last rejection of each type.
//!
//! Owns nonces' meaning and the bookkeeping that `/debug/syncz` shows.

use mesh_api::xds::TypeUrl;
use tokio::time::Instant;

use super::{encoded::Name, subscription::Subscription};

/// Most bytes kept of a rejection's text.
const MAX_ERROR_BYTES: usize = 4096;

/// What one request told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// The first of its type on the stream.
    pub first: bool,
    /// What it says of the response before it.
    pub outcome: Option<Outcome>,
    /// Names newly asked for.
    pub asked: Vec<Name>,
    /// Names no longer asked for.
    pub unasked: Vec<Name>,
    /// The wildcard begins or ends.
    pub wildcard: Option<bool>,
}

/// What a request says of the response before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Accepted; the names that others waited for.
    Ack(Vec<Name>),
    /// Rejected, at least in part; the client's words, and the names that others waited for.
    Nack(String, Vec<Name>),
    /// The newest response, again.
    Repeated,
    /// Of an older response, or of another stream.
    Stale,
}

impl Outcome {
    /// Compares a nonce with the response in flight and takes note.
    pub fn settle(sub: &mut Subscription, nonce: &str, error: Option<&str>) -> Self {
        match sub.in_flight.take_if(|f| f.nonce == nonce) {
            Some(flight) => {
                sub.nacked = error.is_some();
                match error {
                    Some(text) => Outcome::Nack(cut(text).to_owned(), flight.awaited),
                    None => Outcome::Ack(flight.awaited),
                }
            }
            None if sub.last_nonce == nonce => Outcome::Repeated,
            None => Outcome::Stale,
        }
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=MAX_ERROR_BYTES.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// A request that ends the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many names, or a name too long.
    #[error("too many or too long resource names for {}", .0.as_str())]
    TooManyNames(TypeUrl),
}

/// Acknowledgement state of one type of one client.
#[derive(Debug, Clone, Default)]
pub struct AckState {
    /// The client watches this type.
    pub watched: bool,
    /// Nonce and time of the last response.
    pub sent: Option<(String, Instant)>,
    /// Nonce and time of the last accepted response.
    pub acked: Option<(String, Instant)>,
    /// Time and text of the last rejection; kept when a later response is accepted.
    pub rejected: Option<(Instant, String)>,
    /// The last response was rejected.
    pub nacked: bool,
    /// Responses accepted and rejected.
    pub acks: u64,
    /// See `acks`.
    pub nacks: u64,
    /// Resources that the client has.
    pub resources: usize,
    /// Changes wait for this client.
    pub pending: bool,
}

impl AckState {
    /// A response went out.
    pub fn on_sent(&mut self, nonce: &str, now: Instant) {
        self.sent = Some((nonce.to_owned(), now));
    }

    /// A request arrived.
    pub fn on_outcome(&mut self, outcome: &Outcome, now: Instant) {
        match outcome {
            Outcome::Ack(_) => {
                self.acks += 1;
                self.nacked = false;
                self.acked = self.sent.as_ref().map(|(nonce, _)| (nonce.clone(), now));
            }
            Outcome::Nack(text, _) => {
                self.nacks += 1;
                self.nacked = true;
                self.rejected = Some((now, text.clone()));
            }
            Outcome::Repeated | Outcome::Stale => {}
        }
    }

    /// As `proxy-status` says it.
    pub fn word(&self) -> &'static str {
        let nonce = |x: &Option<(String, Instant)>| x.as_ref().map(|(n, _)| n.clone());
        if !self.watched {
            "IGNORED"
        } else if self.nacked {
            "ERROR"
        } else if self.sent.is_none() && !self.pending {
            // Nothing had to be said: the client reconnected with what it has.
            if self.resources > 0 { "SYNCED" } else { "NOT SENT" }
        } else if nonce(&self.sent) == nonce(&self.acked) && !self.pending {
            "SYNCED"
        } else {
            "STALE"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = "é".repeat(MAX_ERROR_BYTES);
        assert!(cut(&long).len() <= MAX_ERROR_BYTES && cut(&long).ends_with('é'));
    }
}
