//! PROXY protocol headers (versions 1 and 2) as they are written to upstreams.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header for a connection from the first to the second address; without addresses one that says so.
pub(super) fn encode(version: u8, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match version {
        1 => version_1(addresses).into_bytes(),
        _ => version_2(addresses),
    }
}

fn version_1(addresses: Option<(SocketAddr, SocketAddr)>) -> String {
    match addresses.map(same_family) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((src, dst)) => {
            let family = if src.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", src.ip(), dst.ip(), src.port(), dst.port())
        }
    }
}

fn version_2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    match addresses.map(same_family) {
        // LOCAL, unspecified family, no addresses.
        None => out.extend_from_slice(&[0x20, 0x00, 0, 0]),
        Some((src, dst)) => {
            let (family, length) = if src.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            out.extend_from_slice(&[0x21, family, 0, length]);
            for ip in [src.ip(), dst.ip()] {
                match ip {
                    IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
                    IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
                }
            }
            out.extend_from_slice(&src.port().to_be_bytes());
            out.extend_from_slice(&dst.port().to_be_bytes());
        }
    }
    out
}

/// Both as IPv4 when both can be, else both as IPv6.
fn same_family((src, dst): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let (a, b) = (src.ip().to_canonical(), dst.ip().to_canonical());
    let wide = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        v6 @ IpAddr::V6(_) => v6,
    };
    let (a, b) = if a.is_ipv4() && b.is_ipv4() { (a, b) } else { (wide(a), wide(b)) };
    (SocketAddr::new(a, src.port()), SocketAddr::new(b, dst.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_and_mixed_families() {
        let v4 = |s: &str| s.parse::<SocketAddr>().unwrap();
        let (src, dst) = (v4("10.0.0.1:1234"), v4("10.0.0.2:80"));
        assert_eq!(encode(1, Some((src, dst))), b"PROXY TCP4 10.0.0.1 10.0.0.2 1234 80\r\n");
        assert_eq!(encode(1, Some((src, v4("[::1]:80")))), b"PROXY TCP6 ::ffff:10.0.0.1 ::1 1234 80\r\n");
        assert_eq!(encode(1, None), b"PROXY UNKNOWN\r\n");
        let header = encode(2, Some((src, dst)));
        assert_eq!(header.len(), 16 + 12);
        assert_eq!(header[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(header[24..], [0x04, 0xd2, 0, 80]);
        assert_eq!(encode(2, Some((src, v4("[::1]:80")))).len(), 16 + 36);
        assert_eq!(encode(2, None)[12..], [0x20, 0, 0, 0]);
    }
}
