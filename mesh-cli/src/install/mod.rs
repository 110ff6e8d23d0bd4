//! Installation on Kubernetes.

#[cfg(test)]
mod crds;
