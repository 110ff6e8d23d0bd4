//! Client connections: which HTTP is spoken on them, their limits and their end.

mod framing;
pub mod h1;
mod h2;
mod patience;
mod service;

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use mesh_api::model::Codec;

use super::{exchange::Session, manager::HttpManager};
use crate::{drain, net, runtime::Worker};

/// A client connection, as its requests see it.
struct Client {
    worker: Rc<Worker>,
    conn: Rc<net::ConnInfo>,
    /// The manager in force; it may change while the connection lives.
    live: Arc<ArcSwap<HttpManager>>,
    /// Of the last request.
    session: RefCell<Rc<Session>>,
}

impl Client {
    fn new(worker: Rc<Worker>, conn: Rc<net::ConnInfo>, live: Arc<ArcSwap<HttpManager>>) -> Self {
        let manager = live.load_full();
        let session = RefCell::new(Rc::new(Session { worker: worker.clone(), conn: conn.clone(), manager }));
        Self { worker, conn, live, session }
    }

    /// For one request: each meets the newest policies and filters.
    fn session(&self) -> Rc<Session> {
        let manager = self.live.load();
        let mut session = self.session.borrow_mut();
        if !Arc::ptr_eq(&session.manager, &manager) {
            let (worker, conn) = (self.worker.clone(), self.conn.clone());
            *session = Rc::new(Session { worker, conn, manager: Arc::clone(&manager) });
        }
        session.clone()
    }
}

/// A request that was on its way when draining began is waited for so long.
const LAST_WORD: Duration = Duration::from_millis(100);

/// Returns after this time; zero: never.
async fn silence(limit: Duration) {
    if limit.is_zero() { std::future::pending().await } else { tokio::time::sleep(limit).await }
}

/// Returns when draining has begun and a client that has said nothing yet will not be asked to any more.
async fn last_word(drain: &drain::Watch) {
    drain.draining().await;
    tokio::time::sleep(LAST_WORD).await;
}

/// Serves one connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    io: net::Io,
    info: Rc<net::ConnInfo>,
    live: Arc<ArcSwap<HttpManager>>,
    drain: drain::Watch,
) {
    let manager = live.load_full();
    let negotiated = info.tls.as_ref().and_then(|t| t.alpn.as_deref());
    let codec = match (manager.config.codec, negotiated) {
        (Codec::Http1, _) => Codec::Http1,
        (Codec::Http2, _) => Codec::Http2,
        (Codec::Auto, Some(name)) if name == "h2" || name.ends_with("-h2") => Codec::Http2,
        (Codec::Auto, _) => Codec::Auto,
    };
    let client = Client::new(worker, info, live);
    match codec {
        Codec::Http1 => h1::serve(client, io, drain).await,
        Codec::Http2 => h2::serve(client, io, drain).await,
        Codec::Auto => {
            let times = &manager.config.timeouts;
            let seen = tokio::select! {
                biased;
                seen = h2::preface(io) => seen,
                // Who says nothing is let go as who says nothing more.
                () = silence(times.head()) => return,
                () = last_word(&drain) => return,
            };
            match seen {
                Ok((io, true)) => h2::serve(client, io, drain).await,
                Ok((io, false)) => h1::serve(client, io, drain).await,
                // Closed before it was clear.
                Err(_) => {}
            }
        }
    }
}
