//! Envoy's bootstrap file: read, checked, turned into the plain model.
