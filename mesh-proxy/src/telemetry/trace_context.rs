//! Trace context in headers: W3C `traceparent` and B3 (one header or several), read, continued, written.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::stats::{TraceContext, hex};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What a caller said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// Trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub span_id: [u8; 8],
    /// Its decision; `None`: it left that to us.
    pub sampled: Option<bool>,
    /// It speaks B3.
    pub b3: bool,
}

/// The context of a request, `traceparent` first. What is malformed counts as absent.
pub fn read(headers: &HeaderMap) -> Option<Incoming> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    text(&TRACEPARENT).and_then(traceparent).or_else(|| text(&B3).and_then(b3_single)).or_else(|| {
        Some(Incoming {
            trace_id: trace_id(text(&TRACE_ID)?)?,
            span_id: unhex(text(&SPAN_ID)?)?,
            sampled: match (text(&FLAGS), text(&SAMPLED)) {
                (Some("1"), _) => Some(true),
                (_, sampled) => sampled.and_then(b3_sampled),
            },
            b3: true,
        })
    })
}

/// A sampling decision without a trace: `b3: 0` or `x-b3-sampled`.
pub fn decision_only(headers: &HeaderMap) -> Option<bool> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    text(&B3).and_then(b3_sampled).or_else(|| text(&SAMPLED).and_then(b3_sampled))
}

fn traceparent(text: &str) -> Option<Incoming> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let [version] = unhex::<1>(version)?;
    // Version 00 has exactly four parts; later ones may have more; ff is forbidden.
    if version == 0xff || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let (trace_id, span_id, [flags]) = (unhex::<16>(trace)?, unhex::<8>(span)?, unhex::<1>(flags)?);
    let valid = trace_id != [0; 16] && span_id != [0; 8];
    valid.then_some(Incoming { trace_id, span_id, sampled: Some(flags & 1 == 1), b3: false })
}

fn b3_single(text: &str) -> Option<Incoming> {
    let mut parts = text.split('-');
    let (trace, span) = (trace_id(parts.next()?)?, unhex(parts.next()?)?);
    Some(Incoming { trace_id: trace, span_id: span, sampled: parts.next().and_then(b3_sampled), b3: true })
}

fn b3_sampled(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// 64 or 128 bits.
fn trace_id(text: &str) -> Option<[u8; 16]> {
    if text.len() == 16 {
        let [a, b, c, d, e, f, g, h] = unhex::<8>(text)?;
        return Some([0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h]);
    }
    unhex(text)
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes = text.as_bytes();
    if bytes.len() != 2 * N || bytes.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let mut out = [0; N];
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        let (high, low) = (digit(*pair.first()?)?, digit(*pair.get(1)?)?);
        *byte = high << 4 | low;
    }
    Some(out)
}

/// Writes our span as the parent of what comes next; B3 too where B3 is spoken.
pub fn write(context: &TraceContext, b3: bool, headers: &mut HeaderMap) {
    let (trace, span) = (hex(&context.trace_id), hex(&context.span_id));
    let sampled = if context.sampled { "1" } else { "0" };
    put(headers, TRACEPARENT, &format!("00-{trace}-{span}-0{sampled}"));
    if !b3 {
        return;
    }
    if headers.contains_key(&B3) {
        put(headers, B3, &format!("{trace}-{span}-{sampled}"));
    }
    // 64-bit traces keep their short form.
    put(headers, TRACE_ID, trace.strip_prefix("0000000000000000").unwrap_or(&trace));
    put(headers, SPAN_ID, &span);
    put(headers, SAMPLED, sampled);
    match context.parent_id {
        Some(parent) => put(headers, PARENT_ID, &hex(&parent)),
        None => {
            headers.remove(&PARENT_ID);
        }
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_every_form() {
        let w3c = read(&headers(&[("traceparent", W3C), ("b3", "0")])).unwrap();
        assert_eq!((hex(&w3c.span_id).as_str(), w3c.sampled, w3c.b3), ("b7ad6b7169203331", Some(true), false));
        let single = read(&headers(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0")])).unwrap();
        assert_eq!((single.sampled, single.b3), (Some(false), true));
        let multi =
            read(&headers(&[("x-b3-traceid", "64fe8b2a57d3eff7"), ("x-b3-spanid", "e457b5a2e4d86bd1")])).unwrap();
        assert_eq!((hex(&multi.trace_id).as_str(), multi.sampled), ("000000000000000064fe8b2a57d3eff7", None));
        assert_eq!(decision_only(&headers(&[("b3", "0")])), Some(false));
    }

    #[test]
    fn what_is_malformed_is_absent() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0-0-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            let mut map = HeaderMap::new();
            map.insert("traceparent", bad.parse().unwrap());
            assert_eq!(read(&map), None, "{bad}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        let context = TraceContext { trace_id: [0; 16], span_id: [1; 8], parent_id: Some([2; 8]), sampled: true };
        let mut map = HeaderMap::new();
        let context = TraceContext { trace_id: [0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9], ..context };
        write(&context, true, &mut map);
        assert_eq!(map["x-b3-traceid"], "0909090909090909");
        assert_eq!(map["x-b3-parentspanid"], "0202020202020202");
        let read = read(&map).unwrap();
        assert_eq!((read.span_id, read.sampled), ([1; 8], Some(true)));
    }
}
