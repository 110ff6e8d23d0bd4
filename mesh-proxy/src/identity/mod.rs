//! Workload certificates.
