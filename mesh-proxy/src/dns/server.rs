//! The sockets that the application's questions come to, over UDP and TCP.
//!
//! Runs on the control thread. Connections, their silence and the length of questions are bounded. Decides nothing itself.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Names;
use super::answer::{HEADER, Question, Transport, Verdict, judge};
use super::forward::{Upstreams, framed};

/// Connections at once; further ones wait.
const CONNECTIONS: usize = 256;
/// How long a connection may be silent, and a client slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest question over UDP; longer ones are dropped.
const LONGEST: usize = 4096;
/// After an error of a socket.
const PAUSE: Duration = Duration::from_millis(50);

/// What answers.
#[derive(Debug)]
pub struct Responder {
    /// Names of the mesh.
    pub names: Arc<Names>,
    /// Who knows the others.
    pub upstreams: Upstreams,
    /// Before the table has arrived questions are asked further, not refused.
    pub early: bool,
    /// Counts questions.
    pub turn: AtomicUsize,
}

impl Responder {
    fn judge(&self, bytes: &[u8], transport: Transport) -> Verdict {
        self.names.stats.requests.fetch_add(1, Relaxed);
        let table = self.names.table();
        judge(bytes, transport, table.as_deref(), self.early, self.turn.fetch_add(1, Relaxed))
    }

    async fn ask(&self, question: &Question, bytes: &[u8], transport: Transport) -> Vec<u8> {
        let answer = self.upstreams.ask(question, bytes, transport, &self.names.stats).await;
        answer.unwrap_or_else(|| question.refused(ResponseCode::ServFail))
    }
}

/// Sockets at one address.
#[derive(Debug)]
pub struct Bound {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Bound {
    /// Takes an address for both transports.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn take(address: SocketAddr) -> io::Result<Self> {
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("DNS cannot be answered at {address}: {e}"));
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        tracing::info!(target: "dns", "answering at {address}");
        Ok(Self { udp, tcp })
    }

    /// Serves in the background.
    pub fn serve(self, responder: &Arc<Responder>) {
        tokio::spawn(datagrams(Arc::new(self.udp), responder.clone()));
        tokio::spawn(connections(self.tcp, responder.clone()));
    }
}

async fn datagrams(socket: Arc<UdpSocket>, responder: Arc<Responder>) {
    // One byte more shows what is too long.
    let mut buffer = vec![0; LONGEST + 1];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(target: "dns", "{error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(bytes) = buffer.get(..length).filter(|b| b.len() <= LONGEST) else { continue };
        match responder.judge(bytes, Transport::Udp) {
            Verdict::Drop => {}
            Verdict::Answer(answer) => reply(&socket, &answer, peer).await,
            Verdict::Ask(question) => {
                let (socket, responder, bytes) = (socket.clone(), responder.clone(), bytes.to_vec());
                tokio::spawn(async move {
                    let answer = responder.ask(&question, &bytes, Transport::Udp).await;
                    reply(&socket, &answer, peer).await;
                });
            }
        }
    }
}

async fn reply(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!(target: "dns", "{peer}: {error}");
    }
}

async fn connections(listener: TcpListener, responder: Arc<Responder>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let responder = responder.clone();
                tokio::spawn(async move {
                    // Clients go away when they have their answer.
                    let _ = connection(stream, &responder).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(target: "dns", "cannot accept: {error}");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One question after the other, in order.
async fn connection(mut stream: TcpStream, responder: &Responder) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let bytes = timeout(PATIENCE, read(&mut stream)).await??;
        let answer = match responder.judge(&bytes, Transport::Tcp) {
            Verdict::Drop => return Ok(()),
            Verdict::Answer(answer) => answer,
            Verdict::Ask(question) => responder.ask(&question, &bytes, Transport::Tcp).await,
        };
        timeout(PATIENCE, stream.write_all(&framed(&answer)?)).await??;
    }
}

async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if !(HEADER..=LONGEST).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
