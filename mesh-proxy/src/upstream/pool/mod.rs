//! Upstream connections of one worker.

/// Pools by endpoint.
#[derive(Debug, Default)]
pub struct Pools {}

impl Pools {
    /// Empty.
    pub fn new() -> Self {
        Self {}
    }
}
