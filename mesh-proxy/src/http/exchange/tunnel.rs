//! Upgraded connections: bytes in both directions after both ends have agreed.

use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};

use super::super::server::h1::PendingTunnel;
use super::body::Recorder;

/// Bytes a direction.
const BUFFER: usize = 16 << 10;

/// Joins the two ends until one of them is done, then records the exchange.
pub fn join(downstream: PendingTunnel, upstream: PendingTunnel, mut recorder: Recorder) {
    tokio::task::spawn_local(async move {
        let (down, up) = tokio::join!(downstream.open(), upstream.open());
        let (Ok(mut down), Ok(mut up)) = (down, up) else { return };
        let copied = copy_bidirectional_with_sizes(&mut down, &mut up, BUFFER, BUFFER).await;
        let _ = tokio::join!(down.shutdown(), up.shutdown());
        if let Ok((received, sent)) = copied {
            recorder.request.add(received);
            recorder.stats().bytes_sent += sent;
        }
        recorder.finish();
    });
}
