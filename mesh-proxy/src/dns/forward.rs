//! Asks the system's resolvers what the mesh does not know, and hands their answers on as they are.
//!
//! Each try has a number and a port of its own, which nobody can foresee, and only the answer to its question counts. What
//! waits is bounded. Knows no table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::answer::{HEADER, Question, Transport};
use super::stats::DnsStats;

/// How long one resolver has. Clients wait five seconds as a rule: the second one is asked within that.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that wait for resolvers at once, each with a socket; further ones fail at once.
pub const MOST_WAITING: usize = 256;
/// Longest message.
const LONGEST: usize = u16::MAX as usize;
/// Codes with which a resolver says that another should be asked: SERVFAIL, NOTIMP, REFUSED.
const UNABLE: [u8; 3] = [2, 4, 5];

/// The system's resolvers.
#[derive(Debug)]
pub struct Upstreams {
    servers: Vec<SocketAddr>,
    /// All are asked together, the first answer counts.
    together: bool,
    slots: Semaphore,
    /// The one that answered last.
    first: AtomicUsize,
}

impl Upstreams {
    /// Asks these, one after the other, or all together.
    pub fn new(servers: Vec<SocketAddr>, together: bool) -> Self {
        Self { servers, together, slots: Semaphore::new(MOST_WAITING), first: AtomicUsize::new(0) }
    }

    /// The answer to a question, given as it came; `None`: nobody has one.
    pub async fn ask(
        &self,
        question: &Question,
        bytes: &[u8],
        transport: Transport,
        stats: &DnsStats,
    ) -> Option<Vec<u8>> {
        stats.upstream_requests.fetch_add(1, Relaxed);
        let begun = Instant::now();
        let answer = match self.slots.try_acquire() {
            Ok(_slot) if self.together => self.ask_all(question, bytes, transport).await,
            Ok(_slot) => self.ask_in_turn(question, bytes, transport).await,
            Err(_) => None,
        };
        stats.asked_further(begun.elapsed());
        if answer.is_none() {
            stats.upstream_failures.fetch_add(1, Relaxed);
        }
        let answer = answer?;
        Some(if answer.len() > question.limit() { question.cut() } else { answer })
    }

    /// From the one that answered last on.
    async fn ask_in_turn(&self, question: &Question, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let first = self.first.load(Relaxed);
        let mut unable = None;
        let all = self.servers.iter().enumerate();
        for (place, server) in all.clone().skip(first).chain(all.take(first)) {
            match try_one(*server, question, bytes, transport).await {
                Ok(answer) if is_unable(&answer) => unable = unable.or(Some(answer)),
                Ok(answer) => {
                    self.first.store(place, Relaxed);
                    return Some(answer);
                }
                Err(error) => tracing::debug!(target: "dns", "{server}: {error}"),
            }
        }
        unable
    }

    async fn ask_all(&self, question: &Question, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let mut unable = None;
        let mut tries: FuturesUnordered<_> =
            self.servers.iter().map(|server| try_one(*server, question, bytes, transport)).collect();
        while let Some(done) = tries.next().await {
            match done {
                Ok(answer) if is_unable(&answer) => unable = unable.or(Some(answer)),
                Ok(answer) => return Some(answer),
                Err(error) => tracing::debug!(target: "dns", "{error}"),
            }
        }
        unable
    }
}

fn is_unable(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| UNABLE.contains(&(flags & 0x0f)))
}

/// Asks one resolver; the answer has the number of the question again.
async fn try_one(server: SocketAddr, question: &Question, bytes: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let id: u16 = rand::random();
    let message = numbered(bytes, &id.to_be_bytes())?;
    let exchange = async {
        match transport {
            Transport::Udp => over_udp(server, &message, |answer| question.is_answered_by(id, answer)).await,
            Transport::Tcp => {
                let answer = over_tcp(server, &message).await?;
                let fits = question.is_answered_by(id, &answer);
                if fits {
                    Ok(answer)
                } else {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to the question"))
                }
            }
        }
    };
    let answer = timeout(PATIENCE, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    numbered(&answer, bytes)
}

/// The message with the number at the beginning of `of`.
fn numbered(message: &[u8], of: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = message.to_vec();
    match (out.first_chunk_mut::<2>(), of.first_chunk::<2>()) {
        (Some(to), Some(from)) => *to = *from,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    Ok(out)
}

async fn over_udp(server: SocketAddr, message: &[u8], fits: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Only this server's messages arrive, and that nobody listens there is heard at once.
    socket.connect(server).await?;
    socket.send(message).await?;
    loop {
        // Memory is taken for what comes, not for what might.
        let mut answer = Vec::with_capacity(LONGEST);
        socket.recv_buf(&mut answer).await?;
        if fits(&answer) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&framed(message)?).await?;
    let length = usize::from(stream.read_u16().await?);
    if length < HEADER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A message with its length before it, as it goes over TCP.
///
/// # Errors
/// When it is longer than 65,535 bytes.
pub fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut out = Vec::with_capacity(message.len() + 2);
    out.extend(length.to_be_bytes());
    out.extend(message);
    Ok(out)
}

#[cfg(test)]
mod tests;
