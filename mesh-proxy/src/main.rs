//! Binary `mesh-proxy`.

fn main() {}
