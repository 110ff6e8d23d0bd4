//! Outlier detection.

/// How an attempt went, as passive health checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream answered with this HTTP status (gRPC statuses mapped).
    Status(u16),
    /// A connection could be made (TCP proxy).
    ConnectSuccess,
    /// Connect refused, failed or TLS broken.
    ConnectFailure,
    /// Connect or response took too long.
    Timeout,
    /// Reset before the answer was complete.
    Reset,
}

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub struct Record {}
