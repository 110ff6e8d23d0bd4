//! Client connections: which HTTP is spoken on them, their limits and their end.

pub mod h1;

use std::{rc::Rc, sync::Arc};

use super::manager::HttpManager;
use crate::{drain, net, runtime::Worker};

/// Serves one connection to its end.
pub async fn serve(
    _worker: Rc<Worker>,
    _io: net::Io,
    _info: Rc<net::ConnInfo>,
    _manager: Arc<HttpManager>,
    _drain: drain::Watch,
) {
}
