//! Commands, one a module.

pub mod analyze;
pub mod check;
pub mod check_inject;
pub mod completion;
pub mod create;
pub mod describe;
pub mod diff;
pub mod inject;
pub mod install;
pub mod manifest;
pub mod proxy_config;
pub mod proxy_status;
pub mod tag;
pub mod uninstall;
pub mod validate;
pub mod version;
