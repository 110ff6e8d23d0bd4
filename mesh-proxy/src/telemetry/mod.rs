//! Metrics, access logs, traces.
