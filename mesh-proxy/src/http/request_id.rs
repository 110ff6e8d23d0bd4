//! What `x-request-id` says of tracing: the decision in the 13th digit of a UUID and the number that shares are drawn by.
//! As Envoy packs it, so that both kinds of proxies on the way of a request decide alike. Knows no configuration.

use http::{HeaderName, HeaderValue};

/// Where the id stands.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Length of a UUID in text.
const LENGTH: usize = 36;
/// Where the decision stands.
const AT: usize = 14;

/// Why a request is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is not, yet.
    Undecided,
    /// By chance.
    Sampled,
    /// A service wanted it.
    Forced,
    /// The client wanted it.
    Client,
}

impl Reason {
    const ALL: [(Self, u8); 4] =
        [(Self::Undecided, b'4'), (Self::Sampled, b'9'), (Self::Forced, b'a'), (Self::Client, b'b')];

    fn digit(self) -> u8 {
        Self::ALL.iter().find(|(reason, _)| *reason == self).map_or(b'4', |(_, digit)| *digit)
    }
}

/// The decision in an id; `None`: it is no UUID.
pub fn reason(id: &HeaderValue) -> Option<Reason> {
    let digit = digits(id)?.get(AT)?;
    // Any other digit was not put there by a proxy.
    Some(Reason::ALL.iter().find(|(_, d)| d == digit).map_or(Reason::Undecided, |(reason, _)| *reason))
}

/// The number in an id: its first eight digits.
pub fn number(id: &HeaderValue) -> Option<u64> {
    let text = std::str::from_utf8(digits(id)?.get(..8)?).ok()?;
    u64::from_str_radix(text, 16).ok()
}

/// The id with a decision; `None`: it is no UUID, or says that already.
pub fn marked(id: &HeaderValue, reason: Reason) -> Option<HeaderValue> {
    let mut bytes = [0; LENGTH];
    bytes.copy_from_slice(digits(id)?);
    let digit = bytes.get_mut(AT).filter(|d| **d != reason.digit())?;
    *digit = reason.digit();
    HeaderValue::from_bytes(&bytes).ok()
}

fn digits(id: &HeaderValue) -> Option<&[u8]> {
    Some(id.as_bytes()).filter(|b| b.len() == LENGTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_read_and_written() {
        let id = HeaderValue::from_static("0000ffff-0000-4000-8000-000000000000");
        assert_eq!((reason(&id), number(&id)), (Some(Reason::Undecided), Some(0xffff)));
        for (why, digit) in [(Reason::Sampled, '9'), (Reason::Forced, 'a'), (Reason::Client, 'b')] {
            let marked = marked(&id, why).unwrap();
            assert_eq!(marked.to_str().unwrap(), format!("0000ffff-0000-{digit}000-8000-000000000000"));
            assert_eq!(reason(&marked), Some(why));
        }
        assert_eq!(marked(&id, Reason::Undecided), None);
        let other = HeaderValue::from_static("0000ffff-0000-7000-8000-000000000000");
        assert_eq!(reason(&other), Some(Reason::Undecided));
    }

    #[test]
    fn what_is_no_uuid_says_nothing() {
        for text in ["", "9", "req-9999999999999999999999999999999999999"] {
            let id = HeaderValue::from_static(text);
            assert_eq!((reason(&id), number(&id), marked(&id, Reason::Sampled)), (None, None, None), "{text}");
        }
        let words = HeaderValue::from_static("zzzzzzzz-0000-4000-8000-000000000000");
        assert_eq!(number(&words), None);
    }
}
