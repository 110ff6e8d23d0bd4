//! Asks control planes and proxies for what their debug and admin servers tell.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use serde_json::Value;

use crate::exit::{Failure, NEGATIVE, UNREACHABLE};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer.
const MAX_ANSWER: u64 = 1 << 30;

/// GET of `path`, decoded.
///
/// # Errors
/// When nobody answers there, or not with JSON.
pub fn json(address: &str, path: &str) -> Result<Value, Failure> {
    let (status, body) = get(address, path)?;
    if status != 200 {
        let text = String::from_utf8_lossy(&body).trim().to_owned();
        return Err(Failure::new(NEGATIVE, format!("http://{address}{path} answers {status}: {text}")));
    }
    serde_json::from_slice(&body)
        .map_err(|e| Failure::new(NEGATIVE, format!("http://{address}{path} does not answer with JSON: {e}")))
}

/// GET of `path`: status and body.
///
/// One request on one connection that the server closes needs no HTTP library: HTTP/1.0.
///
/// # Errors
/// When nobody answers there.
pub fn get(address: &str, path: &str) -> Result<(u16, Vec<u8>), Failure> {
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    let unreachable = |why: &dyn std::fmt::Display| {
        Failure::new(
            UNREACHABLE,
            format!(
                "http://{address} cannot be reached: {why}\nIs it running? Name another address with --control or MESHCTL_CONTROL."
            ),
        )
    };
    let resolved = address.to_socket_addrs().map_err(|e| unreachable(&e))?;
    let mut last = None;
    for candidate in resolved {
        match TcpStream::connect_timeout(&candidate, PATIENCE) {
            Ok(stream) => return exchange(stream, address, path).map_err(|e| unreachable(&e)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| unreachable(&"no such host"), |e| unreachable(&e)))
}

fn exchange(mut stream: TcpStream, host: &str, path: &str) -> std::io::Result<(u16, Vec<u8>)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\naccept: application/json\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let broken = || std::io::Error::other("the answer is not HTTP");
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(broken)?;
    let (head, body) = answer.split_at(head_end);
    let status = std::str::from_utf8(head).ok().and_then(|h| h.split(' ').nth(1)?.parse().ok()).ok_or_else(broken)?;
    Ok((status, body.get(4..).unwrap_or_default().to_vec()))
}
