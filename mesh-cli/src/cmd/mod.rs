//! Commands, one a module.

pub mod analyze;
pub mod completion;
pub mod inject;
pub mod proxy_config;
pub mod proxy_status;
pub mod validate;
pub mod version;
