//! Client connections: which HTTP is spoken on them, their limits and their end.

pub mod h1;
mod h2;
mod service;

use std::{rc::Rc, sync::Arc};

use mesh_api::model::Codec;

use super::{exchange::Session, manager::HttpManager};
use crate::{drain, net, runtime::Worker};

/// Serves one connection to its end.
pub async fn serve(
    worker: Rc<Worker>,
    io: net::Io,
    info: Rc<net::ConnInfo>,
    manager: Arc<HttpManager>,
    drain: drain::Watch,
) {
    let negotiated = info.tls.as_ref().and_then(|t| t.alpn.as_deref());
    let codec = match (manager.config.codec, negotiated) {
        (Codec::Http1, _) => Codec::Http1,
        (Codec::Http2, _) => Codec::Http2,
        (Codec::Auto, Some(name)) if name == "h2" || name.ends_with("-h2") => Codec::Http2,
        (Codec::Auto, _) => Codec::Auto,
    };
    let session = Rc::new(Session { worker, conn: info, manager });
    match codec {
        Codec::Http1 => h1::serve(session, io, drain).await,
        Codec::Http2 => h2::serve(session, io, drain).await,
        Codec::Auto => match h2::preface(io).await {
            Ok((io, true)) => h2::serve(session, io, drain).await,
            Ok((io, false)) => h1::serve(session, io, drain).await,
            // Closed before a byte came.
            Err(_) => {}
        },
    }
}
