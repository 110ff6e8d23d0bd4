//! `mesh-proxy wait`: the hook by which Kubernetes starts applications after their proxy.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::settings::Wait;

/// Time between questions, and that an answer may take.
const STEP: Duration = Duration::from_millis(200);

/// Asks until the proxy is ready.
pub fn run(w: &Wait) -> anyhow::Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, w.status_port));
    let mut last = String::new();
    for _ in 0..=w.timeout.as_millis() / STEP.as_millis() {
        match ask(address) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return Ok(()),
            // The last line says what is waited for.
            Ok(answer) => last = answer.lines().last().unwrap_or_default().to_owned(),
            Err(error) => last = error.to_string(),
        }
        std::thread::sleep(STEP);
    }
    anyhow::bail!("the proxy is not ready after {:?}: {last}", w.timeout)
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, STEP)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // An answer of our own; whoever else is there may not fill memory.
    stream.take(16 << 10).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
