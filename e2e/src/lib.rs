//! What the end-to-end tests are made of. Nothing here is linked into the product.

pub mod borders;
pub mod foreign;
pub mod interop;
pub mod python;
pub mod schemas;
