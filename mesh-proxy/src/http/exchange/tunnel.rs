//! Upgraded connections: bytes in both directions after both ends have agreed, within the deadlines of the exchange that
//! they are, and counted as they move.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tokio::time::{Instant, sleep_until};

use super::super::local_reply::{Reason, Reset};
use super::super::server::h1::{PendingTunnel, Tunnel};
use super::body::{Deadlines, Recorder};
use crate::tcp::copy::Direction;

/// When a tunnel without deadlines is looked at, if nothing moves.
const FAR: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Joins the two ends until both are done, one breaks or time is over, then records the exchange. It runs where the
/// client's end says: as a part of its connection, when it is all of that.
pub fn join(mut downstream: PendingTunnel, upstream: PendingTunnel, mut recorder: Recorder, deadlines: Deadlines) {
    let home = downstream.take_home();
    // A client of HTTP/1 that ends its side is gone, as in any exchange; a stream may end one side.
    let alone = home.is_some();
    let whole = async move {
        let (down, up) = tokio::join!(downstream.open(), upstream.open());
        let (Ok(down), Ok(up)) = (down, up) else { return };
        if let Some(reason) = copy(down, up, &mut recorder, deadlines, alone).await {
            recorder.stats().end_with(reason);
        }
        recorder.finish();
    };
    match home {
        Some(home) => home.put(whole),
        None => drop(tokio::task::spawn_local(whole)),
    }
}

/// Copies; why it ended, unless both ends are done. `alone`: the client's end is all of its connection.
async fn copy(
    mut down: Tunnel,
    mut up: Tunnel,
    recorder: &mut Recorder,
    deadlines: Deadlines,
    alone: bool,
) -> Option<Reason> {
    let (mut request, mut answer) = (Direction::default(), Direction::default());
    let mut left = false;
    let mut quiet = Instant::now();
    let due = |quiet: Instant| {
        let idle = deadlines.idle.and_then(|idle| quiet.checked_add(idle));
        [idle, deadlines.end].into_iter().flatten().min()
    };
    let timer = sleep_until(due(quiet).unwrap_or_else(|| quiet + FAR));
    tokio::pin!(timer);
    let closing = recorder.stats().endpoint.as_ref().map(|e| e.state.closing());
    let closing = async {
        match closing {
            Some(closing) => closing.await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(closing);
    poll_fn(|cx| {
        let before = (request.moved, answer.moved);
        let up_to_down = answer.poll_move(cx, &mut up, &mut down);
        let down_to_up = request.poll_move(cx, &mut down, &mut up);
        recorder.request.add(request.moved - before.0);
        recorder.stats().bytes_sent += answer.moved - before.1;
        if (request.moved, answer.moved) != before {
            quiet = Instant::now();
        }
        let cut = Some(Reason::UpstreamResetLate { reset: Reset::ConnectionTermination });
        match (up_to_down, down_to_up) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) if down.is_broken() => {
                return Poll::Ready(Some(Reason::DownstreamDisconnect));
            }
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => return Poll::Ready(cut),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return Poll::Ready(left.then_some(Reason::DownstreamDisconnect));
            }
            (Poll::Pending, Poll::Ready(Ok(()))) => left = alone,
            _ => {}
        }
        if closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(cut);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            match due(quiet) {
                Some(at) if at > now => timer.as_mut().reset(at),
                None => timer.as_mut().reset(now + FAR),
                Some(_) if deadlines.end.is_some_and(|end| end <= now) => {
                    return Poll::Ready(Some(Reason::MaxDuration));
                }
                Some(_) => return Poll::Ready(Some(Reason::StreamIdle { request_complete: false })),
            }
        }
        Poll::Pending
    })
    .await
}
