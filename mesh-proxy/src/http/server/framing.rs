//! Looks at what a client of HTTP/1 sends before the codec does: a head that tells the length of its body in two ways
//! (`content-length` and `transfer-encoding`) is not shown as such by the codec, and must be refused.
//!
//! Nothing is held back and nothing decided here: heads are found by following the same framing as the codec, and counted
//! like its requests. Where bytes break the rules the codec ends the connection, so it does not matter what is seen then.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a line that are kept until the rest of it comes: more than any honest length needs.
const KEPT: usize = 64;

/// Where in the stream of requests a connection is.
#[derive(Debug, Default)]
pub(super) struct Framing {
    state: State,
    /// Begin of a line whose end has not come.
    line: Vec<u8>,
    length: Option<u64>,
    chunked: bool,
    /// Heads that were complete.
    heads: u64,
    /// The first one with two lengths, from 0.
    ambiguous: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// Before a request line.
    #[default]
    Start,
    /// In a head.
    Head,
    /// So much of a body is left.
    Body(u64),
    Chunks(Chunks),
    /// Nothing that follows is a request.
    Over,
}

/// A position in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunks {
    /// In the size line; the size so far.
    Size(u64),
    /// Behind the size's digits.
    Extension(u64),
    SizeEnd(u64),
    /// So much of the chunk is left.
    Data(u64),
    DataEnd,
    /// Begin of a line behind the last chunk.
    Line,
    Trailer,
    TrailerEnd,
    End,
}

impl Framing {
    /// Whether head number `n` (from 0) tells two lengths.
    pub(super) fn is_ambiguous(&self, n: u64) -> bool {
        self.ambiguous == Some(n)
    }

    /// The connection became a tunnel.
    pub(super) fn stop(&mut self) {
        self.state = State::Over;
    }

    /// More has come.
    fn read(&mut self, mut data: &[u8]) {
        while let Some((first, rest)) = data.split_first() {
            match self.state {
                State::Over => return,
                State::Start | State::Head => data = self.lines(data),
                State::Body(left) => {
                    let (left, rest) = skip(left, data);
                    data = rest;
                    self.state = if left == 0 { State::Start } else { State::Body(left) };
                }
                State::Chunks(Chunks::Data(left)) => {
                    let (left, rest) = skip(left, data);
                    data = rest;
                    self.state = State::Chunks(if left == 0 { Chunks::DataEnd } else { Chunks::Data(left) });
                }
                State::Chunks(at) => {
                    data = rest;
                    self.state = at.step(*first);
                }
            }
        }
    }

    /// Reads one line, or what there is of it; what is behind.
    fn lines<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let end = data.iter().position(|b| *b == b'\n');
        let (line, rest) = match end.and_then(|end| data.split_at_checked(end)) {
            Some((line, rest)) => (line, rest.get(1..).unwrap_or_default()),
            None => {
                self.keep(data);
                return &[];
            }
        };
        if self.line.is_empty() {
            self.line(line);
        } else {
            self.keep(line);
            let kept = std::mem::take(&mut self.line);
            self.line(&kept);
        }
        rest
    }

    fn keep(&mut self, more: &[u8]) {
        let room = KEPT.saturating_sub(self.line.len());
        self.line.extend_from_slice(more.get(..room).unwrap_or(more));
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match (self.state, line) {
            // Empty lines before a request mean nothing.
            (State::Start, []) => {}
            (State::Start, _) => (self.state, self.length, self.chunked) = (State::Head, None, false),
            (_, []) => self.end_of_head(),
            (_, [b'c' | b'C' | b't' | b'T', ..]) => {
                let Some(colon) = line.iter().position(|b| *b == b':') else { return };
                let Some((name, value)) = line.split_at_checked(colon) else { return };
                if name.eq_ignore_ascii_case(b"content-length") {
                    if line.len() >= KEPT {
                        // Padded, and perhaps cut: the body cannot be followed, so what comes next cannot be judged.
                        self.ambiguous.get_or_insert(self.heads);
                    }
                    let digits = value.get(1..).unwrap_or_default().trim_ascii();
                    // What is none is refused by the codec.
                    self.length = Some(std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok()).unwrap_or(0));
                } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                    self.chunked = true;
                }
            }
            _ => {}
        }
    }

    fn end_of_head(&mut self) {
        if self.chunked && self.length.is_some() {
            self.ambiguous.get_or_insert(self.heads);
        }
        let refused = self.is_ambiguous(self.heads);
        self.heads += 1;
        self.state = match (self.chunked, self.length) {
            // The connection ends with the answer to it.
            _ if refused => State::Over,
            (true, _) => State::Chunks(Chunks::Size(0)),
            (false, Some(length)) if length > 0 => State::Body(length),
            _ => State::Start,
        };
    }
}

/// Takes up to `left` bytes off.
fn skip(left: u64, data: &[u8]) -> (u64, &[u8]) {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
    (left - n as u64, data.get(n..).unwrap_or_default())
}

impl Chunks {
    /// After one more byte.
    fn step(self, b: u8) -> State {
        let next = match (self, b) {
            (Chunks::Size(n), _) if b.is_ascii_hexdigit() => {
                let digit = char::from(b).to_digit(16).map_or(0, u64::from);
                match n.checked_mul(16).and_then(|n| n.checked_add(digit)) {
                    Some(n) => Chunks::Size(n),
                    None => return State::Over,
                }
            }
            (Chunks::Size(n) | Chunks::Extension(n), b'\r') => Chunks::SizeEnd(n),
            (Chunks::Size(n) | Chunks::Extension(n), _) => Chunks::Extension(n),
            (Chunks::SizeEnd(0), b'\n') | (Chunks::TrailerEnd, b'\n') => Chunks::Line,
            (Chunks::SizeEnd(n), b'\n') => Chunks::Data(n),
            (Chunks::DataEnd, b'\r') => Chunks::DataEnd,
            (Chunks::DataEnd, b'\n') => Chunks::Size(0),
            (Chunks::Line, b'\r') => Chunks::End,
            (Chunks::Trailer, b'\r') => Chunks::TrailerEnd,
            (Chunks::Line | Chunks::Trailer, _) => Chunks::Trailer,
            (Chunks::End, b'\n') => return State::Start,
            _ => return State::Over,
        };
        State::Chunks(next)
    }
}

/// A connection whose bytes are looked at as they are read.
#[derive(Debug)]
pub(super) struct Framed<S> {
    inner: S,
    /// Shared on one thread; the codec wants what could change threads.
    framing: Arc<Mutex<Framing>>,
}

impl<S> Framed<S> {
    /// With who looks at them.
    pub(super) fn new(inner: S, framing: Arc<Mutex<Framing>>) -> Self {
        Self { inner, framing }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..).filter(|new| !new.is_empty()) {
            self.framing.lock().read(new);
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads, and which one is ambiguous, in whatever pieces the bytes come.
    fn seen(bytes: &str) -> (u64, Option<u64>) {
        let mut found = None;
        for size in [1, 2, 3, 7, bytes.len()] {
            let mut framing = Framing::default();
            for piece in bytes.as_bytes().chunks(size) {
                framing.read(piece);
            }
            let now = (framing.heads, framing.ambiguous);
            assert_eq!(*found.get_or_insert(now), now, "in pieces of {size}");
        }
        found.unwrap()
    }

    const TWO: &str = "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn two_lengths_are_seen_behind_every_kind_of_body() {
        assert_eq!(seen(TWO), (1, Some(0)));
        let turned = "POST / HTTP/1.1\nTRANSFER-ENCODING:chunked\nx: y\ncontent-length:\t5\n\n";
        assert_eq!(seen(turned), (1, Some(0)));
        let before = [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\ncookie: transfer-encoding: chunked\r\n\r\nTransf",
            "POST / HTTP/1.1\r\ncontent-length: 68\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1B;x=y\r\nContent-Length: 5\r\n\r\n012345\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0 \r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n",
        ];
        let after_length = before[1].strip_suffix("f").unwrap();
        assert_eq!(seen(&format!("{after_length}{TWO}")), (2, Some(1)));
        for first in [before[0], before[2], before[3], before[4]] {
            assert_eq!(seen(first), (1, None), "{first}");
            assert_eq!(seen(&format!("{first}\r\n{TWO}")), (2, Some(1)), "{first}");
        }
    }

    #[test]
    fn a_padded_length_hides_nothing() {
        for padding in [" ".repeat(60), "0".repeat(60)] {
            let first = format!("POST / HTTP/1.1\r\ncontent-length: {padding}18\r\n\r\nGET / HTTP/1.1\r\n\r\n");
            assert_eq!(seen(&first), (1, Some(0)), "{padding:?}");
        }
    }

    #[test]
    fn a_tunnel_is_not_looked_at() {
        let mut framing = Framing::default();
        framing.read(b"GET / HTTP/1.1\r\nupgrade: x\r\n\r\n");
        framing.stop();
        framing.read(TWO.as_bytes());
        assert!(!framing.is_ambiguous(1));
    }

    #[test]
    fn long_lines_and_lost_ones_are_no_trouble() {
        let long = format!("GET /{} HTTP/1.1\r\ncookie: {}\r\n\r\n{TWO}", "a".repeat(5000), "b".repeat(5000));
        assert_eq!(seen(&long), (2, Some(1)));
        assert_eq!(seen("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"), (1, None));
    }
}
