//! Looking at the first bytes of a connection without consuming them: TLS ClientHello (SNI, ALPN) and HTTP.
//! Pure parsers over a growing buffer; every byte is untrusted. Who reads from the socket is `net::inspect`.

use mesh_api::model::Name;

/// Most bytes of a ClientHello that are waited for.
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// Most bytes of a request line that are waited for.
pub const MAX_REQUEST_LINE: usize = 8 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the bytes so far say about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Could still become a ClientHello.
    More,
    /// Not TLS.
    No,
    /// A whole ClientHello.
    Hello(ClientHello),
}

/// What a ClientHello asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// Server name, lower case.
    pub sni: Option<Name>,
    /// ALPN protocols in the client's order.
    pub alpn: Vec<Name>,
}

/// What the bytes so far say about cleartext HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    /// Could still become HTTP.
    More,
    /// Not HTTP.
    No,
    /// A request line of HTTP/1.0.
    Http10,
    /// A request line of HTTP/1.1.
    Http11,
    /// The preface of HTTP/2.
    Http2,
}

/// A cursor that never reads past its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn u8(&mut self) -> Option<usize> {
        let (b, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*b))
    }
    fn u16(&mut self) -> Option<usize> {
        let b = self.take(2)?;
        b.iter().try_fold(0usize, |n, b| Some((n << 8) | usize::from(*b)))
    }
    fn u24(&mut self) -> Option<usize> {
        let b = self.take(3)?;
        b.iter().try_fold(0usize, |n, b| Some((n << 8) | usize::from(*b)))
    }
    /// A vector with a length of one byte in front.
    fn vec8(&mut self) -> Option<Reader<'a>> {
        let n = self.u8()?;
        self.take(n).map(Reader)
    }
    /// A vector with a length of two bytes in front.
    fn vec16(&mut self) -> Option<Reader<'a>> {
        let n = self.u16()?;
        self.take(n).map(Reader)
    }
}

/// Reads a ClientHello, fragmented over records or not.
pub fn client_hello(buf: &[u8]) -> Tls {
    let mut handshake: Vec<u8> = Vec::new();
    let mut r = Reader(buf);
    loop {
        // What is there of a record header must look like one: a handshake record of version 3.x.
        match r.0 {
            [] => return Tls::More,
            [t, ..] if *t != 22 => return Tls::No,
            [_, major, ..] if *major != 3 => return Tls::No,
            _ => {}
        }
        let Some(header) = r.take(3) else { return Tls::More };
        debug_assert_eq!(header.len(), 3);
        let Some(len) = r.u16() else { return Tls::More };
        if len == 0 || len > (1 << 14) + 256 {
            return Tls::No;
        }
        let fragment = r.0.get(..len).unwrap_or(r.0);
        handshake.extend_from_slice(fragment);
        if handshake.first().is_some_and(|t| *t != 1) {
            return Tls::No; // a handshake message, but no ClientHello
        }
        let mut message = Reader(&handshake);
        if let Some(length) = message.u8().and_then(|_| message.u24()) {
            if length > MAX_CLIENT_HELLO {
                return Tls::No;
            }
            if let Some(body) = message.take(length) {
                return Tls::Hello(hello_body(body));
            }
        }
        if fragment.len() < len {
            return Tls::More;
        }
        r.take(len);
    }
}

/// SNI and ALPN of a ClientHello body. A malformed body names nothing; the handshake itself will refuse it.
fn hello_body(body: &[u8]) -> ClientHello {
    let mut hello = ClientHello::default();
    let mut r = Reader(body);
    let extensions = (|| {
        r.take(2 + 32)?; // version, random
        r.vec8()?; // session
        r.vec16()?; // cipher suites
        r.vec8()?; // compression
        r.vec16()
    })();
    let Some(mut extensions) = extensions else { return hello };
    while let Some((kind, mut data)) = extensions.u16().zip(extensions.vec16()) {
        match kind {
            0 => hello.sni = server_name(&mut data),
            16 => hello.alpn = alpn(&mut data),
            _ => {}
        }
    }
    hello
}

fn server_name(data: &mut Reader<'_>) -> Option<Name> {
    let mut list = data.vec16()?;
    while let Some((kind, name)) = list.u8().zip(list.vec16()) {
        let plain = !name.0.is_empty() && name.0.len() <= 255 && name.0.iter().all(|b| b.is_ascii_graphic());
        if kind == 0 && plain {
            return std::str::from_utf8(name.0).ok().map(|s| s.to_ascii_lowercase().into());
        }
    }
    None
}

fn alpn(data: &mut Reader<'_>) -> Vec<Name> {
    let mut found = vec![];
    let Some(mut list) = data.vec16() else { return found };
    while let Some(protocol) = list.vec8() {
        if let Ok(p) = std::str::from_utf8(protocol.0) {
            found.push(p.into());
        }
    }
    found
}

/// Recognises a request line or the HTTP/2 preface.
pub fn http(buf: &[u8]) -> Http {
    if buf.len() < PREFACE.len() && PREFACE.starts_with(buf) {
        return Http::More;
    }
    if buf.starts_with(PREFACE) {
        return Http::Http2;
    }
    // RFC 9112 2.2: empty lines before the request line are tolerated.
    let start = buf.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(buf.len());
    let rest = buf.get(start..).unwrap_or_default();
    let method = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    if start > 4 || method > 64 || !rest.iter().take(method).all(token) {
        return Http::No;
    }
    let Some(end) = rest.iter().position(|b| *b == b'\n') else {
        return if buf.len() >= MAX_REQUEST_LINE { Http::No } else { Http::More };
    };
    let line = rest.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut parts = line.split(|b| *b == b' ');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(m), Some(target), Some(b"HTTP/1.1"), None) if !m.is_empty() && !target.is_empty() => Http::Http11,
        (Some(m), Some(target), Some(b"HTTP/1.0"), None) if !m.is_empty() && !target.is_empty() => Http::Http10,
        _ => Http::No,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn v16(data: &[u8]) -> Vec<u8> {
        [&(data.len() as u16).to_be_bytes()[..], data].concat()
    }

    /// A ClientHello handshake message (without record layer).
    pub(crate) fn hello_message(sni: Option<&str>, alpn: &[&str]) -> Vec<u8> {
        let mut ext = vec![0x00, 0x2b, 0, 3, 2, 3, 4]; // supported_versions
        if let Some(n) = sni {
            let entry = [&[0u8][..], &v16(n.as_bytes())].concat();
            ext.extend([&[0, 0][..], &v16(&v16(&entry))].concat());
        }
        if !alpn.is_empty() {
            let list: Vec<u8> = alpn.iter().flat_map(|p| [&[p.len() as u8][..], p.as_bytes()].concat()).collect();
            ext.extend([&[0, 16][..], &v16(&v16(&list))].concat());
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(v16(&[0x13, 1]));
        body.extend([1, 0]);
        body.extend(v16(&ext));
        let mut msg = vec![1, 0];
        msg.extend(v16(&body));
        msg
    }

    /// Cuts a message into records of `size` bytes.
    pub(crate) fn records(msg: &[u8], size: usize) -> Vec<u8> {
        msg.chunks(size).flat_map(|c| [&[22, 3, 1][..], &v16(c)].concat()).collect()
    }

    #[test]
    fn hello_in_one_or_many_records_and_byte_by_byte() {
        let msg = hello_message(Some("Web.Shop.SVC"), &["h2", "http/1.1"]);
        for size in [1, 3, 50, 10_000] {
            let wire = records(&msg, size);
            for cut in 0..wire.len() {
                assert_eq!(client_hello(&wire[..cut]), Tls::More, "size {size} cut {cut}");
            }
            let Tls::Hello(h) = client_hello(&wire) else { panic!("no hello at size {size}") };
            assert_eq!(h.sni.as_deref(), Some("web.shop.svc"));
            assert_eq!(h.alpn, ["h2".into(), "http/1.1".into()]);
        }
    }

    #[test]
    fn not_tls_is_seen_at_the_first_byte() {
        assert_eq!(client_hello(b"G"), Tls::No);
        assert_eq!(client_hello(&[22, 2]), Tls::No);
        assert_eq!(client_hello(&[22, 3, 1, 0, 0]), Tls::No, "empty record");
        assert_eq!(client_hello(&[22, 3, 1, 0, 4, 2]), Tls::No, "ServerHello");
        assert_eq!(client_hello(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Tls::No, "longer than we take");
    }

    #[test]
    fn truncated_and_hostile_bodies_do_not_panic() {
        let msg = hello_message(Some("a"), &["h2"]);
        for i in 0..msg.len() {
            for v in [0u8, 1, 0x7f, 0xff] {
                let mut m = msg.clone();
                m[i] = v;
                let _ = client_hello(&records(&m, 4096));
            }
        }
    }

    #[test]
    fn http_lines() {
        assert_eq!(http(b"GET /x HTTP/1.1\r\nHost: a"), Http::Http11);
        assert_eq!(http(b"\r\nPOST / HTTP/1.0\n"), Http::Http10);
        assert_eq!(http(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"), Http::Http2);
        assert_eq!(http(b"PRI * HT"), Http::More);
        assert_eq!(http(b""), Http::More);
        assert_eq!(http(b"GET /x HT"), Http::More);
        assert_eq!(http(b"PRIV / HTTP/1.1\r\n"), Http::Http11);
        assert_eq!(http(b"\x16\x03\x01"), Http::No);
        assert_eq!(http(b"GET  / HTTP/1.1\r\n"), Http::No);
        assert_eq!(http(b"GET / HTTP/1.2\r\n"), Http::No);
        assert_eq!(http(b"*1\r\n$4\r\nPING\r\n"), Http::No, "redis");
        assert_eq!(http(&[b'A'; 70]), Http::No);
        assert_eq!(http(&[&b"GET /"[..], &[b'a'; MAX_REQUEST_LINE]].concat()), Http::No);
    }
}
