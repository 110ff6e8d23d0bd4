//! Answers in HTTP/1.1: head, body by length, in chunks or up to the end of the connection.

use std::io::{BufRead, Read as _, Result};

/// Longest line of a head, and of what stands between chunks.
const MAX_LINE: u64 = 64 << 10;
/// Most lines of a head.
const MAX_LINES: usize = 200;
/// Longest body.
const MAX_BODY: u64 = 1 << 30;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

fn broken(what: &str) -> std::io::Error {
    std::io::Error::other(format!("the answer is not HTTP: {what}"))
}

/// Reads one answer.
///
/// # Errors
/// When it is not HTTP/1, ends early or is too long.
pub fn read(from: &mut impl BufRead) -> Result<Answer> {
    loop {
        let mut answer = head(from)?;
        // Interim answers come before the one that counts.
        if answer.status >= 200 {
            answer.body = body(from, &answer)?;
            return Ok(answer);
        }
    }
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(broken("a line does not end"));
    }
    let text = String::from_utf8(bytes).map_err(|_| broken("a line is not text"))?;
    Ok(text.trim_end_matches('\r').to_owned())
}

fn head(from: &mut impl BufRead) -> Result<Answer> {
    let first = line(from)?;
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.ok_or_else(|| broken("no status"))?;
    let mut headers = Vec::new();
    loop {
        let text = line(from)?;
        if text.is_empty() {
            return Ok(Answer { status, headers, body: Vec::new() });
        }
        let (name, value) = text.split_once(':').ok_or_else(|| broken("a header without a colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        if headers.len() > MAX_LINES {
            return Err(broken("too many headers"));
        }
    }
}

fn body(from: &mut impl BufRead, answer: &Answer) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if answer.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        chunks(from, &mut body)?;
    } else if let Some(length) = answer.header("content-length") {
        exactly(from, length.parse().map_err(|_| broken("content-length is not a number"))?, &mut body)?;
    } else {
        from.take(MAX_BODY).read_to_end(&mut body)?;
    }
    Ok(body)
}

fn exactly(from: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> Result<()> {
    if length > MAX_BODY {
        return Err(broken("the body is too long"));
    }
    let got = from.take(length).read_to_end(body)?;
    if u64::try_from(got).ok() != Some(length) {
        return Err(broken("the body ends early"));
    }
    Ok(())
}

fn chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let size = line(from)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(digits, 16).map_err(|_| broken("the size of a chunk is not a number"))?;
        if size == 0 {
            // Trailers say nothing to us.
            while !line(from)?.is_empty() {}
            return Ok(());
        }
        let so_far = u64::try_from(body.len()).unwrap_or(u64::MAX);
        if so_far.saturating_add(size) > MAX_BODY {
            return Err(broken("the body is too long"));
        }
        exactly(from, size, body)?;
        if !line(from)?.is_empty() {
            return Err(broken("a chunk is longer than it says"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(raw: &str) -> std::result::Result<(u16, String), String> {
        let answer = read(&mut raw.as_bytes()).map_err(|e| e.to_string())?;
        Ok((answer.status, String::from_utf8(answer.body).unwrap()))
    }

    #[test]
    fn bodies_by_length_in_chunks_and_to_the_end() {
        let good = Ok((200, "hello world".to_owned()));
        assert_eq!(text("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello worldmore"), good);
        assert_eq!(
            text(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nt: u\r\n\r\n"
            ),
            good
        );
        assert_eq!(text("HTTP/1.0 200 OK\r\n\r\nhello world"), good);
        assert_eq!(text("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello world"), good);
    }

    #[test]
    fn what_is_broken_is_refused() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for (raw, why) in [
            ("SSH-2.0-x\r\n\r\n", "no status"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", "ends early"),
            (&format!("{chunked}5\r\nhello world\r\n0\r\n\r\n"), "longer than it says"),
            (&format!("{chunked}x\r\n"), "not a number"),
            (&format!("{chunked}5\r\nhello"), "does not end"),
            (&format!("{chunked}ffffffffffffffff\r\n"), "too long"),
            ("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", "without a colon"),
        ] {
            assert!(text(raw).unwrap_err().contains(why), "{raw:?}");
        }
    }
}
