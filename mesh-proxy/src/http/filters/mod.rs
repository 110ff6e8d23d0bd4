//! HTTP filters, one module each: compiled configuration and what it does to one request. `rbac` serves network
//! filters too.

pub mod rbac;
