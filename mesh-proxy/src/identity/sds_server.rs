//! The Unix socket on which a local Envoy gets our secrets, keys included: for this user only.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;

use super::{Settings, Status, keep};
use crate::{
    tls::{SecretStore, watch_files},
    xds::services::sds,
};

/// How often files are looked at.
const FILES: Duration = Duration::from_secs(1);
/// How long streams get to end.
const GRACE: Duration = Duration::from_millis(500);

/// Serves the secrets of this process on a socket, until `stop` ends. What lay at the path before is replaced when it is
/// a socket.
///
/// # Errors
/// When the socket cannot be made, or the server fails.
pub async fn serve_secrets(
    path: &Path,
    store: Arc<SecretStore>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let listener = bind(path).with_context(|| format!("socket {}", path.display()))?;
    tracing::info!(target: "identity", "secrets are served on {}", path.display());
    let (told, telling) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder().add_service(sds::service(store)).serve_with_incoming_shutdown(
        UnixListenerStream::new(listener),
        async move {
            stop.await;
            let _ = told.send(());
        },
    );
    // Streams do not end by themselves.
    let given_up = async {
        let _ = telling.await;
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        result = server => result,
        () = given_up => Ok(()),
    };
    let _ = fs::remove_file(path);
    Ok(result?)
}

/// Everything that a stock Envoy needs beside it: keeps an identity and serves it on a socket until `stop` ends
/// (`mesh-proxy agent`).
///
/// # Errors
/// As [`serve_secrets`].
pub async fn agent(
    settings: Settings,
    socket: &Path,
    status: Arc<watch::Sender<Status>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let store = SecretStore::with_local_identity();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keep(settings, store.clone(), status));
    tasks.spawn(watch_files(Arc::downgrade(&store), FILES));
    // The tasks end with the set.
    serve_secrets(socket, store, stop).await
}

/// Nobody else can connect at any moment: the socket is made in a folder of our own and moved when its mode is set.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there"));
        }
        _ => {}
    }
    let parent = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let private = parent.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&private);
    fs::DirBuilder::new().create(&private)?;
    let made = (|| {
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
        let first = private.join("s");
        let listener = UnixListener::bind(&first)?;
        fs::set_permissions(&first, fs::Permissions::from_mode(0o600))?;
        fs::rename(&first, path)?;
        Ok(listener)
    })();
    let _ = fs::remove_dir_all(&private);
    made
}
