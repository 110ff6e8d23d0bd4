//! What crosses the wire between pods: frames as the node sees them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::super::Context;

/// Reads frames of all interfaces until its input ends, and tells whether a text was in one.
const LISTENER: &str = r#"
import select, socket, sys, time
marker = sys.argv[1].lower().encode()
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
print("listening", flush=True)
count, seen, until = 0, False, None
while until is None or time.monotonic() < until:
    ready, _, _ = select.select([frames] + ([sys.stdin] if until is None else []), [], [], 0.1)
    if sys.stdin in ready:
        # What was sent before the end may still wait.
        until = time.monotonic() + 1
    if frames in ready:
        frame, (interface, *_) = frames.recvfrom(65536)
        # Commands for containers pass here, in clear.
        if interface != "lo":
            count += 1
            seen = seen or marker in frame.lower()
print(count, "seen" if seen else "not seen", flush=True)
"#;

/// Whether a text crosses the wire in the node's network while something happens.
pub(super) async fn saw(
    context: &Context<'_>,
    marker: &str,
    meanwhile: impl Future<Output = Result<()>>,
) -> Result<bool> {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
    let mut command = context.cluster().node_command(&["python3", "-c", LISTENER, marker])?;
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut listener = command.spawn().context("cannot listen on the node")?;
    let mut lines = BufReader::new(listener.stdout.take().context("no output")?);
    let mut first = String::new();
    lines.read_line(&mut first).await?;
    ensure!(first.trim() == "listening", "the listener said {first:?}");
    let result = meanwhile.await;
    drop(listener.stdin.take());
    let mut rest = String::new();
    let end = async {
        lines.read_to_string(&mut rest).await?;
        listener.wait().await
    };
    tokio::time::timeout(Duration::from_secs(20), end).await.context("the listener does not end")??;
    result?;
    let (count, word) = rest.trim().split_once(' ').with_context(|| format!("the listener said {rest:?}"))?;
    ensure!(count.parse::<u32>().is_ok_and(|n| n > 0), "no frame was seen");
    Ok(word == "seen")
}
