//! Envoy protos into the plain model, one error per resource.
