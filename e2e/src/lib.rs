//! What the end-to-end tests are made of. Nothing here is linked into the product.

pub mod borders;
pub mod cluster;
pub mod foreign;
pub mod images;
pub mod interop;
pub mod kubernetes;
pub mod python;
pub mod schemas;
