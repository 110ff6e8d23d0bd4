

pub mod xds;
