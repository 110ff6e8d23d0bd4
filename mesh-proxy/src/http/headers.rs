//! What a head carries, and values that many heads carry. Where a list of names is looked for, one walk over the few
//! headers that are there is cheaper than a look-up for each that may be: that one hashes a name to find nothing.

use std::cell::RefCell;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use smallvec::SmallVec;

/// `grpc-status`.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What all names begin with that [`carries`] and [`remove`] are asked for.
const ENVOY: &str = "x-envoy-";

/// Whether one of `listed` is there, all of which begin with `x-envoy-`.
pub fn carries(headers: &HeaderMap, listed: &[&str]) -> bool {
    headers.keys().any(|name| is_listed(name, listed))
}

/// Takes those of `listed` off, all of which begin with `x-envoy-`.
pub fn remove(headers: &mut HeaderMap, listed: &[&str]) {
    let found: SmallVec<[HeaderName; 4]> = headers.keys().filter(|name| is_listed(name, listed)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn is_listed(name: &HeaderName, listed: &[&str]) -> bool {
    let name = name.as_str();
    name.starts_with(ENVOY) && listed.contains(&name)
}

/// Headers that belong to one connection.
pub static HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
];

/// Whether a head has something that belongs to one connection.
pub fn has_hop_by_hop(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| HOP_BY_HOP.contains(name))
}

/// A number as a value, written anew only when it is another one than the last time.
#[derive(Debug)]
pub struct LastNumber(RefCell<(u64, HeaderValue)>);

impl LastNumber {
    /// The value.
    pub fn value(&self, number: u64) -> HeaderValue {
        let mut last = self.0.borrow_mut();
        if last.0 != number {
            *last = (number, HeaderValue::from(number));
        }
        last.1.clone()
    }
}

impl Default for LastNumber {
    fn default() -> Self {
        Self(RefCell::new((0, HeaderValue::from(0u64))))
    }
}

/// `date`, written anew every second.
#[derive(Debug, Default)]
pub struct LastDate(RefCell<Option<(i64, HeaderValue)>>);

impl LastDate {
    /// The value for a moment.
    pub fn value(&self, now: Timestamp) -> Option<HeaderValue> {
        let mut last = self.0.borrow_mut();
        if last.as_ref().is_none_or(|(second, _)| *second != now.as_second()) {
            let text = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            *last = Some((now.as_second(), HeaderValue::from_str(&text).ok()?));
        }
        last.as_ref().map(|(_, value)| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_headers_are_found_and_taken_off_with_all_their_values() {
        let listed = ["x-envoy-a", "x-envoy-b"];
        let mut headers = HeaderMap::new();
        for name in ["x-envoy-c", "x-a", "x-envoy-a", "x-envoy-a", "x-envoy-ab", "te"] {
            assert_eq!(carries(&headers, &listed), headers.contains_key("x-envoy-a"));
            headers.append(name, HeaderValue::from_static("1"));
        }
        remove(&mut headers, &listed);
        let left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!((left.len(), carries(&headers, &listed)), (4, false), "{left:?}");
        assert!(has_hop_by_hop(&headers));
        headers.remove("te");
        assert!(!has_hop_by_hop(&headers));
    }

    #[test]
    fn values_follow_what_they_say() {
        let number = LastNumber::default();
        assert_eq!([0, 15_000, 15_000, 7, 0].map(|n| number.value(n)), ["0", "15000", "15000", "7", "0"]);
        let (date, at) = (LastDate::default(), |s| Timestamp::from_second(s).unwrap());
        let first = date.value(at(784_111_777)).unwrap();
        assert_eq!(first, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.value(at(784_111_777)), Some(first));
        assert_eq!(date.value(at(784_111_778)).unwrap(), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}
