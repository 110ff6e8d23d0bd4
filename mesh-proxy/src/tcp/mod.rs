//! Forwarding of bytes.
