//! Bytes in both directions between two streams, each direction ending by itself (half-close). An idle connection owns
//! no buffer: a thread reads into one of its own and keeps only what the other side does not take at once.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Direction {
    /// Read and not written yet.
    rest: Vec<u8>,
    at: usize,
    state: State,
    unflushed: bool,
    /// Bytes written to the other side.
    pub(crate) moved: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended, the writer is to be told.
    Ending,
    Done,
}

impl Direction {
    /// Moves what can be moved; ready when the reader has ended and the writer knows.
    pub(crate) fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while let Some(rest) = self.rest.get(self.at..).filter(|r| !r.is_empty()) {
                let n = ready!(Pin::new(&mut *writer).poll_write(cx, rest))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.at += n;
                self.moved += n as u64;
                self.unflushed = true;
            }
            if self.at > 0 {
                (self.rest, self.at) = (Vec::new(), 0);
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Open => match self.pass(cx, reader, writer)? {
                    Poll::Ready(()) => {}
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    /// Reads once and offers it to the writer; pending when there is nothing to read.
    fn pass<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            if Pin::new(&mut *reader).poll_read(cx, &mut buf)?.is_pending() {
                return Ok(Poll::Pending);
            }
            let read = buf.filled();
            if read.is_empty() {
                self.state = State::Ending;
                return Ok(Poll::Ready(()));
            }
            let written = match Pin::new(&mut *writer).poll_write(cx, read)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(n) => {
                    self.unflushed = true;
                    n
                }
                Poll::Pending => 0,
            };
            self.moved += written as u64;
            if let Some(rest) = read.get(written..).filter(|r| !r.is_empty()) {
                self.rest = rest.to_vec();
            }
            Ok(Poll::Ready(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_slow_writer_gets_everything_in_order_and_then_the_end() {
        let (mut source, mut reader) = duplex(1 << 20);
        let (mut writer, mut sink) = duplex(7);
        let data: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let sent = data.clone();
        tokio::spawn(async move {
            source.write_all(&sent).await.unwrap();
            source.shutdown().await.unwrap();
        });
        let moving = tokio::spawn(async move {
            let mut direction = Direction { rest: b"first".to_vec(), ..Direction::default() };
            poll_fn(|cx| direction.poll_move(cx, &mut reader, &mut writer)).await.unwrap();
            direction.moved
        });
        let mut got = Vec::new();
        sink.read_to_end(&mut got).await.unwrap();
        assert_eq!(&got[..5], b"first");
        assert!(got[5..] == data);
        assert_eq!(moving.await.unwrap(), 200_005);
    }
}
