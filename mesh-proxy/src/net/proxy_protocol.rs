//! PROXY protocol headers, version 1 (text) and 2 (binary), as HAProxy's specification has them. Strict and bounded:
//! what is not exactly a header is an error, because an address that is believed decides about access.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest version 1 line, with CRLF.
const MAX_V1: usize = 107;
/// Longest version 2 address and TLV block we take.
const MAX_V2: usize = 4096;
/// Bytes that a whole header may have.
pub const MAX_HEADER: usize = 16 + MAX_V2;

/// What the bytes so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// Could still become a header.
    More,
    /// No header: the bytes belong to the application.
    Absent,
    /// A header of this length.
    Header {
        /// Bytes to take off.
        length: usize,
        /// Source and destination; `None`: keep the socket's own (LOCAL, UNKNOWN, Unix addresses).
        addresses: Option<(SocketAddr, SocketAddr)>,
    },
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Version 1, not to the letter.
    #[error("malformed PROXY protocol v1 header")]
    V1,
    /// Version 2 with a field out of range.
    #[error("malformed PROXY protocol v2 header: {0}")]
    V2(&'static str),
}

/// Reads a header off the start of `buf`.
///
/// # Errors
/// When the bytes begin like a header but are none.
pub fn parse(buf: &[u8]) -> Result<Parsed, BadHeader> {
    let common = buf.len().min(SIGNATURE.len());
    if buf.get(..common) == SIGNATURE.get(..common) {
        return if common < SIGNATURE.len() { Ok(Parsed::More) } else { v2(buf) };
    }
    const V1: &[u8] = b"PROXY ";
    let common = buf.len().min(V1.len());
    if buf.get(..common) == V1.get(..common) {
        return if common < V1.len() { Ok(Parsed::More) } else { v1(buf) };
    }
    Ok(Parsed::Absent)
}

fn v1(buf: &[u8]) -> Result<Parsed, BadHeader> {
    let window = buf.get(..MAX_V1.min(buf.len())).unwrap_or_default();
    let Some(end) = window.windows(2).position(|w| w == b"\r\n") else {
        return if window.len() >= MAX_V1 { Err(BadHeader::V1) } else { Ok(Parsed::More) };
    };
    let line = window.get(..end).and_then(|l| std::str::from_utf8(l).ok()).ok_or(BadHeader::V1)?;
    let length = end + 2;
    let parts: Vec<&str> = line.split(' ').collect();
    match parts.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(Parsed::Header { length, addresses: None }),
        ["PROXY", family @ ("TCP4" | "TCP6"), src, dst, sport, dport] => {
            let ip = |s: &str| -> Result<IpAddr, BadHeader> {
                let ip: IpAddr = s.parse().map_err(|_| BadHeader::V1)?;
                if ip.is_ipv4() == (*family == "TCP4") { Ok(ip) } else { Err(BadHeader::V1) }
            };
            let port = |s: &str| -> Result<u16, BadHeader> {
                let canonical = s == "0" || !s.starts_with('0');
                if canonical && s.bytes().all(|b| b.is_ascii_digit()) {
                    s.parse().map_err(|_| BadHeader::V1)
                } else {
                    Err(BadHeader::V1)
                }
            };
            let addresses = Some((SocketAddr::new(ip(src)?, port(sport)?), SocketAddr::new(ip(dst)?, port(dport)?)));
            Ok(Parsed::Header { length, addresses })
        }
        _ => Err(BadHeader::V1),
    }
}

fn v2(buf: &[u8]) -> Result<Parsed, BadHeader> {
    let Some([version_command, family, hi, lo]) = buf.get(12..16) else { return Ok(Parsed::More) };
    let block = usize::from(u16::from_be_bytes([*hi, *lo]));
    if version_command >> 4 != 2 {
        return Err(BadHeader::V2("version"));
    }
    if block > MAX_V2 {
        return Err(BadHeader::V2("too long"));
    }
    let length = 16 + block;
    let Some(data) = buf.get(16..length) else { return Ok(Parsed::More) };
    let addresses = match (version_command & 0xf, family) {
        (0, _) | (1, 0x00 | 0x31) => None,
        (1, 0x11) => {
            let d: &[u8; 12] = data.first_chunk().ok_or(BadHeader::V2("short IPv4 addresses"))?;
            let [a, b, c, e, f, g, h, i, sp1, sp2, dp1, dp2] = *d;
            Some((
                SocketAddr::new(Ipv4Addr::new(a, b, c, e).into(), u16::from_be_bytes([sp1, sp2])),
                SocketAddr::new(Ipv4Addr::new(f, g, h, i).into(), u16::from_be_bytes([dp1, dp2])),
            ))
        }
        (1, 0x21) => {
            let short = BadHeader::V2("short IPv6 addresses");
            let (src, rest) = data.split_first_chunk::<16>().ok_or(short)?;
            let (dst, rest) = rest.split_first_chunk::<16>().ok_or(short)?;
            let [sp1, sp2, dp1, dp2] = *rest.first_chunk::<4>().ok_or(short)?;
            Some((
                SocketAddr::new(Ipv6Addr::from(*src).into(), u16::from_be_bytes([sp1, sp2])),
                SocketAddr::new(Ipv6Addr::from(*dst).into(), u16::from_be_bytes([dp1, dp2])),
            ))
        }
        (1, _) => return Err(BadHeader::V2("address family or transport")),
        _ => return Err(BadHeader::V2("command")),
    };
    Ok(Parsed::Header { length, addresses })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(src: &str, dst: &str, length: usize) -> Result<Parsed, BadHeader> {
        Ok(Parsed::Header { length, addresses: Some((src.parse().unwrap(), dst.parse().unwrap())) })
    }

    #[test]
    fn version_1() {
        let h = b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\n";
        for cut in 0..h.len() {
            assert_eq!(parse(&h[..cut]), Ok(Parsed::More), "{cut}");
        }
        assert_eq!(parse(&[&h[..], b"GET /"].concat()), header("10.0.0.1:1234", "10.0.0.2:80", h.len()));
        assert_eq!(parse(b"PROXY TCP6 ::1 ::2 1 2\r\n"), header("[::1]:1", "[::2]:2", 24));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Ok(Parsed::Header { length: 15, addresses: None }));
        for bad in [
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 01 80\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 +1 80\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 65536 80\r\n",
            "PROXY TCP4  10.0.0.1 10.0.0.2 1 80\r\n",
            "PROXY TCP4 10.0.0.1 10.0.0.2 1 80 x\r\n",
            "PROXY UDP4 10.0.0.1 10.0.0.2 1 80\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(BadHeader::V1), "{bad}");
        }
        assert_eq!(parse(&[&b"PROXY "[..], &[b'x'; 200]].concat()), Err(BadHeader::V1), "no end in sight");
    }

    #[test]
    fn version_2() {
        let mut h = SIGNATURE.to_vec();
        h.extend([0x21, 0x11, 0, 15, 10, 0, 0, 1, 10, 0, 0, 2, 4, 210, 0, 80, 3, 0, 0]); // with a TLV
        for cut in 0..h.len() {
            assert_eq!(parse(&h[..cut]), Ok(Parsed::More), "{cut}");
        }
        assert_eq!(parse(&h), header("10.0.0.1:1234", "10.0.0.2:80", h.len()));
        let v2 = |tail: &[u8]| parse(&[&SIGNATURE[..], tail].concat());
        assert_eq!(v2(&[0x20, 0, 0, 0]), Ok(Parsed::Header { length: 16, addresses: None }), "LOCAL");
        assert!(v2(&[0x11, 0x11, 0, 12]).is_err(), "version");
        assert!(v2(&[0x22, 0x11, 0, 0]).is_err(), "command");
        assert!(v2(&[0x21, 0x12, 0, 0]).is_err(), "UDP");
        assert!(v2(&[0x21, 0x11, 0, 4, 1, 2, 3, 4]).is_err(), "short");
        assert!(v2(&[0x21, 0x11, 0xff, 0xff]).is_err(), "long");
    }

    #[test]
    fn others_are_left_alone() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Ok(Parsed::Absent));
        assert_eq!(parse(b"\r\n\r\nx"), Ok(Parsed::Absent));
        assert_eq!(parse(b""), Ok(Parsed::More));
    }
}
