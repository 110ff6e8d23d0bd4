//! The demo's applications: one small HTTP server in three parts. Each answers with its own part of the *journey* of a
//! request and with that of the service it calls, over plain HTTP through its sidecar. No application knows of TLS.

mod page;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{Html, IntoResponse, Json, Response};
use axum::routing::get;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};

/// Flags of an application.
#[derive(Debug, Parser)]
struct Flags {
    /// Its service.
    #[arg(long)]
    name: String,
    /// Its version.
    #[arg(long)]
    version: String,
    /// Where it listens.
    #[arg(long)]
    listen: SocketAddr,
    /// Service it calls.
    #[arg(long)]
    calls: Option<String>,
    /// HTTP proxy for its calls: its sidecar. Without, it calls the service itself, and traffic is redirected or not.
    #[arg(long)]
    proxy: Option<SocketAddr>,
}

/// What one service did for a request, and what those behind it did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journey {
    /// Service.
    pub service: String,
    /// Version.
    pub version: String,
    /// Identity of the caller, as its certificate proved it to this service's sidecar.
    pub caller: Option<String>,
    /// Identity of this service, as its sidecar presented it.
    pub own: Option<String>,
    /// The caller came over mutual TLS.
    pub encrypted: bool,
    /// What it has to say.
    pub data: Vec<String>,
    /// The service behind it.
    pub next: Option<Box<Journey>>,
    /// Why there is none though there should be.
    pub problem: Option<String>,
}

/// Headers that applications hand on, so that traces hang together and routing by user works behind the first hop.
const HANDED_ON: [&str; 9] = [
    "x-user",
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
];

/// Runs an application until it is told to end.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let flags = match Flags::try_parse_from(args) {
        Ok(flags) => flags,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(crate::exit::USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(serve(flags))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(crate::exit::NEGATIVE)
        }
    }
}

#[derive(Debug)]
struct App {
    flags: Flags,
    connection: tokio::sync::Mutex<Vec<Sender>>,
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn serve(flags: Flags) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(flags.listen).await?;
    let app = Arc::new(App { flags, connection: tokio::sync::Mutex::default() });
    let router = Router::new().route("/", get(show)).route("/journey", get(journey)).with_state(app);
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let ending = async move {
        term.recv().await;
    };
    tokio::select! {
        served = axum::serve(listener, router).into_future() => served?,
        () = ending => {}
    }
    Ok(())
}

async fn show() -> Html<&'static str> {
    Html(page::PAGE)
}

async fn journey(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let peer = Peer::read(&headers);
    let mut journey = Journey {
        service: app.flags.name.clone(),
        version: app.flags.version.clone(),
        encrypted: peer.caller.is_some(),
        caller: peer.caller,
        own: peer.own,
        data: page::data(&app.flags.name, &app.flags.version),
        next: None,
        problem: None,
    };
    let mut status = StatusCode::OK;
    if let Some(service) = &app.flags.calls {
        match app.call(service, &headers).await {
            Ok(next) => {
                // A problem further down is this request's problem too.
                if next.problem.is_some() {
                    status = StatusCode::BAD_GATEWAY;
                }
                journey.problem = next.problem.as_ref().map(|_| format!("{service} has a problem"));
                journey.next = Some(Box::new(next));
            }
            Err(why) => {
                status = StatusCode::BAD_GATEWAY;
                journey.problem = Some(why);
            }
        }
    }
    (status, Json(journey)).into_response()
}

/// Who is at the two ends of the connection, as the sidecar tells in `x-forwarded-client-cert`.
struct Peer {
    caller: Option<String>,
    own: Option<String>,
}

impl Peer {
    fn read(headers: &HeaderMap) -> Self {
        let text = headers.get("x-forwarded-client-cert").and_then(|v| v.to_str().ok()).unwrap_or_default();
        // The last element is what the nearest proxy added.
        let last = text.rsplit(',').next().unwrap_or_default();
        let field = |name: &str| {
            let value = last.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
            value.map(|v| v.trim_matches('"').to_owned()).filter(|v| !v.is_empty())
        };
        Self { caller: field("URI"), own: field("By") }
    }
}

impl App {
    /// GET /journey of a service.
    async fn call(&self, service: &str, headers: &HeaderMap) -> Result<Journey, String> {
        // A proxy is asked for the whole URL, a server for the path.
        let target = match self.flags.proxy {
            Some(_) => format!("http://{service}/journey"),
            None => "/journey".to_owned(),
        };
        let mut request = http::Request::get(target).header("host", service);
        for name in HANDED_ON {
            if let Some(value) = headers.get(name) {
                request = request.header(HeaderName::from_static(name), value);
            }
        }
        let request = request.body(Empty::new()).map_err(|e| e.to_string())?;
        let answer = tokio::time::timeout(Duration::from_secs(15), self.send(service, request)).await;
        let (status, body) = answer.map_err(|_| format!("{service} did not answer within 15 s"))??;
        let parsed = serde_json::from_slice::<Journey>(&body);
        match parsed {
            Ok(journey) => Ok(journey),
            Err(_) => Err(format!("{service} answered {status}: {}", String::from_utf8_lossy(&body))),
        }
    }

    async fn send(&self, service: &str, request: http::Request<Empty<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let next_hop = if self.flags.proxy.is_some() { "sidecar" } else { service };
        let failed = |e: &dyn std::fmt::Display| format!("{next_hop}: {e}");
        let mut sender = self.sender(service, failed).await?;
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 1 << 20).collect().await.map_err(|e| failed(&e))?;
        self.connection.lock().await.push(sender);
        Ok((status, body.to_bytes()))
    }

    /// A connection to the sidecar, or else to the service, that is free, or a new one.
    async fn sender(&self, service: &str, failed: impl Fn(&dyn std::fmt::Display) -> String) -> Result<Sender, String> {
        while let Some(mut sender) = self.connection.lock().await.pop() {
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = match self.flags.proxy {
            Some(proxy) => {
                let connected = tokio::net::TcpStream::connect(proxy).await;
                connected.map_err(|e| format!("sidecar {proxy}: {e}"))?
            }
            None => {
                // As in a URL: a service without a port is on 80.
                let place = if service.contains(':') { service.to_owned() } else { format!("{service}:80") };
                tokio::net::TcpStream::connect(place).await.map_err(|e| failed(&e))?
            }
        };
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_identities_from_the_last_element() {
        let mut headers = HeaderMap::new();
        let value = "By=a;URI=b,By=spiffe://c/ns/n/sa/own;Hash=00;Subject=\"\";URI=spiffe://c/ns/n/sa/peer";
        headers.insert("x-forwarded-client-cert", value.parse().unwrap());
        let peer = Peer::read(&headers);
        assert_eq!(peer.caller.as_deref(), Some("spiffe://c/ns/n/sa/peer"));
        assert_eq!(peer.own.as_deref(), Some("spiffe://c/ns/n/sa/own"));
        assert_eq!(Peer::read(&HeaderMap::new()).caller, None);
    }
}
