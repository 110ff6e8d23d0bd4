//! What crosses the wire between pods: frames as the node sees them.

use anyhow::{Context as _, Result, ensure};

use super::super::Context;

/// Reads frames of all interfaces until its input ends, and tells whether a text was in one.
const LISTENER: &str = r#"
import select, socket, sys
marker = sys.argv[1].lower().encode()
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
frames.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
print("listening", flush=True)
count, seen = 0, False
while True:
    ready, _, _ = select.select([frames, sys.stdin], [], [])
    if frames in ready:
        count += 1
        seen = seen or marker in frames.recv(65536).lower()
        continue
    if sys.stdin in ready:
        break
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
    lines.read_to_string(&mut rest).await?;
    listener.wait().await?;
    result?;
    let (count, word) = rest.trim().split_once(' ').with_context(|| format!("the listener said {rest:?}"))?;
    ensure!(count.parse::<u32>().is_ok_and(|n| n > 0), "no frame was seen");
    Ok(word == "seen")
}
