//! HTTP: one exchange from head to record.

pub mod router;
