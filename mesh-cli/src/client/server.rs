//! One request to a debug or admin server, by its address or through a port-forward of the API server.

use std::net::ToSocketAddrs as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::cluster::{Broken, Cluster, Forward};
use super::pods::PodName;
use crate::args::ControlArgs;
use crate::exit::{FORBIDDEN, Failure, NEGATIVE, TIMEOUT, UNREACHABLE};

/// How long it may take until a server is connected.
const CONNECTED: Duration = Duration::from_secs(2);
/// How long an answer may take, from the first byte of the request to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest body, in bytes.
const MAX_BODY: usize = 1 << 30;

/// What a server said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct Server {
    place: Place,
    token: Option<String>,
    /// What to do when nobody is there.
    advice: &'static str,
}

#[derive(Debug, Clone)]
enum Place {
    /// `HOST:PORT`.
    Address(String),
    /// A port of a pod.
    Pod { cluster: Cluster, pod: PodName, port: u16, line: Arc<Mutex<Option<Line>>> },
}

/// A connection through the API server, which costs much more than a request: it serves one request after another.
struct Line {
    sender: SendRequest<Empty<Bytes>>,
    /// Why the port cannot be used, once that is told.
    broken: Broken,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Server {
    /// The control plane at an address.
    pub fn control(address: &str, args: &ControlArgs) -> Self {
        Self {
            place: Place::Address(bare(address)),
            token: args.token.clone(),
            advice: "Is it running? Name another address with --control or MESHCTL_CONTROL, or a cluster with \
                     --kubeconfig.",
        }
    }

    /// A proxy's admin server. The token is not for it.
    pub fn admin(address: &str) -> Self {
        let advice = "Is this the address of a proxy's admin server?";
        Self { place: Place::Address(bare(address)), token: None, advice }
    }

    /// A port of a pod's own loopback device.
    pub fn pod(cluster: &Cluster, pod: &PodName, port: u16) -> Self {
        let place = Place::Pod { cluster: cluster.clone(), pod: pod.clone(), port, line: Arc::default() };
        Self { place, token: None, advice: "Does it run, and with a proxy? meshctl describe pod tells." }
    }

    /// What it is called: the address, or the pod.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Address(address) => address.clone(),
            Place::Pod { pod, .. } => pod.to_string(),
        }
    }

    /// Where a path of it is.
    fn url(&self, path: &str) -> String {
        match &self.place {
            Place::Address(address) => format!("http://{address}{path}"),
            Place::Pod { pod, port, .. } => format!("{pod}:{port}{path}"),
        }
    }

    /// It is on this machine.
    pub fn is_local(&self) -> bool {
        let Place::Address(address) = &self.place else { return false };
        let mut all = address.to_socket_addrs().into_iter().flatten().peekable();
        all.peek().is_some() && all.all(|a| a.ip().is_loopback())
    }

    /// GET of `path`, which must answer 200.
    ///
    /// # Errors
    /// When nobody answers in time, or not with 200.
    pub async fn good(&self, path: &str) -> Result<Answer, Failure> {
        self.successful(Method::GET, path).await
    }

    /// POST to `path` without a body, which must answer 200.
    ///
    /// # Errors
    /// When nobody answers in time, or not with 200.
    pub async fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.successful(Method::POST, path).await
    }

    /// GET of `path`, decoded.
    ///
    /// # Errors
    /// As [`Server::good`], or when the answer is not JSON.
    pub async fn json(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.good(path).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|e| Failure::new(NEGATIVE, format!("{} does not answer with JSON: {e}", self.url(path))))
    }

    async fn successful(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let answer = self.ask(method, path).await?;
        let code = match answer.status {
            200 => return Ok(answer),
            401 | 403 => FORBIDDEN,
            _ => NEGATIVE,
        };
        let mut message = format!("{} answers {}: {}", self.url(path), answer.status, answer.text().trim());
        if code == FORBIDDEN {
            message.push_str("\nAsk on the machine where it runs, or give a token with --token or MESHCTL_TOKEN.");
        }
        Err(Failure::new(code, message))
    }

    /// Whatever the status.
    async fn ask(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let request = self.request(method, path)?;
        let late = || self.unreachable(&format!("it did not answer within {CONNECTED:?}"));
        match &self.place {
            Place::Address(address) => {
                let connected = timeout(CONNECTED, TcpStream::connect(address)).await.map_err(|_| late())?;
                let stream = connected.map_err(|why| self.unreachable(&why.to_string()))?;
                self.answered(timeout(PATIENCE, exchange(stream, request)).await)
            }
            Place::Pod { cluster, pod, port, line } => {
                let mut line = line.lock().await;
                // One that was used before may be closed by now.
                if let Some(open) = line.as_mut() {
                    match timeout(PATIENCE, send(&mut open.sender, request.clone())).await {
                        Ok(Err(_)) => *line = None,
                        answered => return self.answered(answered),
                    }
                }
                let connected = timeout(CONNECTED, cluster.forward(pod, *port)).await.map_err(|_| late())?;
                let Forward { stream, broken } = connected?;
                let sender = open(stream).await.map_err(|why| self.unreachable(&why))?;
                let open = line.insert(Line { sender, broken });
                let answered = timeout(PATIENCE, send(&mut open.sender, request)).await;
                if let Ok(Err(_)) = &answered {
                    // The API server says why better than the stream that it closed.
                    let broken = timeout(Duration::from_millis(100), &mut open.broken).await;
                    *line = None;
                    if let Ok(Some(why)) = broken {
                        return Err(self.unreachable(why.trim()));
                    }
                }
                self.answered(answered)
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> Result<Request<Empty<Bytes>>, Failure> {
        let (host, connection) = match &self.place {
            Place::Address(address) => (address.as_str(), "close"),
            Place::Pod { .. } => ("localhost", "keep-alive"),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
        }
        request
            .header(header::ACCEPT, "*/*")
            .header(header::CONNECTION, connection)
            .body(Empty::new())
            .map_err(|why| Failure::new(NEGATIVE, format!("{} cannot be asked: {why}", self.url(path))))
    }

    fn answered(
        &self,
        exchanged: Result<Result<Answer, String>, tokio::time::error::Elapsed>,
    ) -> Result<Answer, Failure> {
        match exchanged {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(self.unreachable(&why)),
            Err(_) => Err(Failure::new(TIMEOUT, format!("{} did not answer within {PATIENCE:?}", self.url("")))),
        }
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::new(UNREACHABLE, format!("{} cannot be reached: {why}\n{}", self.url(""), self.advice))
    }
}

/// One request on one connection.
async fn exchange(stream: TcpStream, request: Request<Empty<Bytes>>) -> Result<Answer, String> {
    send(&mut open(stream).await?, request).await
}

/// A connection that ends when nobody sends any more.
async fn open(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<SendRequest<Empty<Bytes>>, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // What goes wrong with it requests tell, too.
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(sender: &mut SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> Result<Answer, String> {
    sender.ready().await.map_err(|e| e.to_string())?;
    let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|e| e.to_string())?;
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
}

/// `HOST:PORT` of what may be written as a URL.
fn bare(address: &str) -> String {
    address.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that says this to whoever asks; what it was asked.
    async fn says(text: &'static str) -> (Server, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1024];
            let n = stream.read(&mut head).await.unwrap();
            stream.write_all(text.as_bytes()).await.unwrap();
            String::from_utf8(head[..n].to_vec()).unwrap()
        });
        let args = ControlArgs { control: None, token: Some("abc\n".to_owned()) };
        (Server::control(&address, &args), asked)
    }

    #[tokio::test]
    async fn answers_and_their_exit_codes() {
        let (server, asked) = says("HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 2\r\n\r\n{}more").await;
        assert!(server.is_local());
        let answer = server.good("/debug/x?y=z").await.unwrap();
        assert_eq!((answer.text().as_str(), answer.header("x-a")), ("{}", Some("b")));
        let asked = asked.await.unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /debug/x?y=z http/1.1\r\n") && asked.contains("authorization: bearer abc\r\n"));
        for (text, code) in [
            ("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", FORBIDDEN),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", NEGATIVE),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell", UNREACHABLE),
            ("SSH-2.0-x\r\n", UNREACHABLE),
        ] {
            let failure = says(text).await.0.good("/").await.unwrap_err();
            assert_eq!(failure.code, std::process::ExitCode::from(code), "{text:?}: {}", failure.message);
        }
        let (server, _) = says("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnone").await;
        assert!(server.json("/").await.unwrap_err().message.contains("not answer with JSON"));
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_what_to_do() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let failure = Server::admin(&free.to_string()).good("/").await.unwrap_err();
        assert_eq!(failure.code, std::process::ExitCode::from(UNREACHABLE));
        assert!(failure.message.contains("admin server?"), "{}", failure.message);
    }
}
