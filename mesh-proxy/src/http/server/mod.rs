//! Client connections: which HTTP is spoken on them, their limits and their end.

pub mod h1;
mod h2;
mod service;

use std::{rc::Rc, sync::Arc};

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
}

impl Client {
    /// For one request: each meets the newest policies and filters.
    fn session(&self) -> Rc<Session> {
        Rc::new(Session { worker: self.worker.clone(), conn: self.conn.clone(), manager: self.live.load_full() })
    }
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
    let client = Client { worker, conn: info, live };
    match codec {
        Codec::Http1 => h1::serve(client, io, drain).await,
        Codec::Http2 => h2::serve(client, io, drain).await,
        Codec::Auto => match h2::preface(io).await {
            Ok((io, true)) => h2::serve(client, io, drain).await,
            Ok((io, false)) => h1::serve(client, io, drain).await,
            // Closed before a byte came.
            Err(_) => {}
        },
    }
}
