//! A tunnel through a forward proxy: `CONNECT` in HTTP/1.1, then the bytes are the connection's own.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest head of an answer.
const MAX_HEAD: usize = 16 << 10;
/// How long the forward proxy may take.
const LIMIT: Duration = Duration::from_secs(15);

/// Asks for a tunnel to `host` (`name:port`). What came behind the answer's head belongs to the tunnel.
///
/// # Errors
/// When the answer is not a 2xx in time.
pub(super) async fn open<S: AsyncRead + AsyncWrite + Unpin>(io: &mut S, host: &str) -> io::Result<Vec<u8>> {
    let talk = async {
        let request = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        io.write_all(request.as_bytes()).await?;
        io.flush().await?;
        let mut head = Vec::new();
        loop {
            if io.read_buf(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut answer = httparse::Response::new(&mut headers);
            match answer.parse(&head).map_err(io::Error::other)? {
                httparse::Status::Complete(end) => {
                    let status = answer.code.unwrap_or_default();
                    if !(200..300).contains(&status) {
                        return Err(io::Error::other(format!("the forward proxy answered {status}")));
                    }
                    return Ok(head.split_off(end));
                }
                httparse::Status::Partial if head.len() > MAX_HEAD => {
                    return Err(io::Error::other("the forward proxy's answer is too large"));
                }
                httparse::Status::Partial => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, talk).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn asks_and_keeps_what_follows() {
        let (mut ours, mut proxy) = tokio::io::duplex(1024);
        let other = tokio::spawn(async move {
            let mut seen = vec![0; 64];
            let n = proxy.read(&mut seen).await.unwrap();
            proxy.write_all(b"HTTP/1.1 200 OK\r\nvia: x\r\n\r\nhello").await.unwrap();
            String::from_utf8(seen[..n].to_vec()).unwrap()
        });
        assert_eq!(open(&mut ours, "db.example:5432").await.unwrap(), b"hello");
        assert_eq!(other.await.unwrap(), "CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n");
        let (mut ours, mut proxy) = tokio::io::duplex(1024);
        proxy.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
        assert!(open(&mut ours, "a:1").await.unwrap_err().to_string().contains("403"));
    }
}
