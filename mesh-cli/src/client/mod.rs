//! Asks control planes and proxies for what their debug and admin servers tell.

mod http;

use std::io::{BufReader, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

pub use http::Answer;

use crate::args::ControlArgs;
use crate::exit::{FORBIDDEN, Failure, NEGATIVE, TIMEOUT, UNREACHABLE};

/// How long an answer may take, from the first byte of the request to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whom to ask.
#[derive(Debug)]
pub struct Server {
    address: String,
    token: Option<String>,
    /// What to do when nobody is there.
    advice: &'static str,
}

impl Server {
    /// The control plane.
    pub fn control(args: &ControlArgs) -> Self {
        Self {
            address: bare(&args.control),
            token: args.token.clone(),
            advice: "Is it running? Name another address with --control or MESHCTL_CONTROL.",
        }
    }

    /// A proxy's admin server. The token is not for it.
    pub fn admin(address: &str) -> Self {
        Self { address: bare(address), token: None, advice: "Is this the address of a proxy's admin server?" }
    }

    /// As it was named.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// It is on this machine.
    pub fn is_local(&self) -> bool {
        let mut all = self.address.to_socket_addrs().into_iter().flatten().peekable();
        all.peek().is_some() && all.all(|a| a.ip().is_loopback())
    }

    /// GET of `path`, which must answer 200.
    ///
    /// # Errors
    /// When nobody answers in time, or not with 200.
    pub fn good(&self, path: &str) -> Result<Answer, Failure> {
        let answer = self.get(path)?;
        let code = match answer.status {
            200 => return Ok(answer),
            401 | 403 => FORBIDDEN,
            _ => NEGATIVE,
        };
        let text = String::from_utf8_lossy(&answer.body);
        let mut message = format!("http://{}{path} answers {}: {}", self.address, answer.status, text.trim());
        if code == FORBIDDEN {
            message.push_str("\nAsk on the machine where it runs, or give a token with --token or MESHCTL_TOKEN.");
        }
        Err(Failure::new(code, message))
    }

    /// GET of `path`, decoded.
    ///
    /// # Errors
    /// As [`Server::good`], or when the answer is not JSON.
    pub fn json(&self, path: &str) -> Result<Value, Failure> {
        self.decode(path, &self.good(path)?)
    }

    /// The body of an answer as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn decode(&self, path: &str, answer: &Answer) -> Result<Value, Failure> {
        serde_json::from_slice(&answer.body).map_err(|e| {
            Failure::new(NEGATIVE, format!("http://{}{path} does not answer with JSON: {e}", self.address))
        })
    }

    /// GET of `path`, whatever the status.
    fn get(&self, path: &str) -> Result<Answer, Failure> {
        let failed = |why: std::io::Error| match why.kind() {
            // What a socket says when its read timeout is over.
            ErrorKind::TimedOut | ErrorKind::WouldBlock => {
                Failure::new(TIMEOUT, format!("http://{} did not answer within {PATIENCE:?}", self.address))
            }
            _ => {
                Failure::new(UNREACHABLE, format!("http://{} cannot be reached: {why}\n{}", self.address, self.advice))
            }
        };
        let end = Instant::now() + PATIENCE;
        let mut last = std::io::Error::other("no such host");
        for candidate in self.address.to_socket_addrs().map_err(failed)? {
            match connect(candidate, end) {
                Ok(stream) => return self.exchange(stream, end, path).map_err(failed),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    fn exchange(&self, stream: TcpStream, end: Instant, path: &str) -> std::io::Result<Answer> {
        stream.set_write_timeout(Some(PATIENCE))?;
        let authorization = match &self.token {
            Some(token) => format!("authorization: Bearer {}\r\n", token.trim()),
            None => String::new(),
        };
        if authorization.trim_end().chars().any(char::is_control) {
            return Err(std::io::Error::other("the token is not one line of text"));
        }
        // One request on one connection needs no HTTP library. Not HTTP/1.0: Envoy's admin server refuses it.
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\naccept: */*\r\n{authorization}connection: close\r\n\r\n",
            self.address
        );
        (&stream).write_all(request.as_bytes())?;
        http::read(&mut BufReader::new(Patient { stream, end }))
    }
}

/// `HOST:PORT` of what may be written as a URL.
fn bare(address: &str) -> String {
    address.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

fn connect(address: SocketAddr, end: Instant) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&address, left(end)?)
}

fn left(end: Instant) -> std::io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A stream that must have said everything by a deadline.
struct Patient {
    stream: TcpStream,
    end: Instant,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(Some(left(self.end)?))?;
        self.stream.read(buffer)
    }
}
