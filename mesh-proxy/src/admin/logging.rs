//! `/logging`: levels of own messages, the whole process's and those of single parts of it. Knows Envoy's names for the
//! parts that we have too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::ValueEnum as _;
use http::StatusCode;
use parking_lot::Mutex;

use super::{Answer, answer, parameters, text};
use crate::settings::LogLevel;

/// Loggers, and the `tracing` targets behind each.
const LOGGERS: [(&str, &[&str]); 17] = [
    ("access_log", &["access_log", "mesh_proxy::telemetry::access_log"]),
    ("admin", &["admin", "mesh_proxy::admin"]),
    ("ads", &["xds", "mesh_proxy::xds"]),
    ("config", &["mesh_proxy::config", "cluster"]),
    ("connection", &["mesh_proxy::net::connection"]),
    ("conn_handler", &["mesh_proxy::net", "listener"]),
    ("dns", &["mesh_proxy::upstream::dns"]),
    ("filter", &["mesh_proxy::net::inspect", "mesh_proxy::tcp"]),
    ("hc", &["mesh_proxy::upstream::health"]),
    ("http", &["mesh_proxy::http", "http1"]),
    ("http2", &["http2", "h2"]),
    ("identity", &["identity", "mesh_proxy::identity"]),
    ("rbac", &["mesh_proxy::http::filters::rbac"]),
    ("router", &["mesh_proxy::http::exchange"]),
    ("secret", &["mesh_proxy::tls"]),
    ("tracing", &["tracing"]),
    ("upstream", &["mesh_proxy::upstream"]),
];

/// Levels in force.
pub struct Logging {
    levels: Mutex<Levels>,
    /// Puts directives (`info,target=debug`) in force.
    apply: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Logging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logging").field("levels", &self.levels).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Levels {
    all: LogLevel,
    /// By name of the logger.
    single: BTreeMap<&'static str, LogLevel>,
}

fn name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warning",
        LogLevel::Error => "error",
        LogLevel::Critical => "critical",
    }
}

impl Levels {
    fn directives(&self) -> String {
        let known = |level| match level {
            LogLevel::Warning => "warn",
            LogLevel::Critical => "error",
            level => name(level),
        };
        let mut out = known(self.all).to_owned();
        let single = self.single.iter().flat_map(|(logger, level)| targets(logger).iter().map(move |t| (t, level)));
        for (target, level) in single {
            // Writing into a String cannot fail.
            let _ = write!(out, ",{target}={}", known(*level));
        }
        out
    }
}

fn targets(logger: &str) -> &'static [&'static str] {
    LOGGERS.iter().find(|(name, _)| *name == logger).map_or(&[], |(_, targets)| targets)
}

impl Logging {
    /// All at one level, which `apply` puts in force now.
    pub fn new(all: LogLevel, apply: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let levels = Levels { all, single: BTreeMap::new() };
        apply(&levels.directives());
        Self { levels: Mutex::new(levels), apply: Box::new(apply) }
    }

    /// Changes everything that `query` asks for, or nothing.
    fn change(&self, query: &str) -> Result<(), String> {
        let mut all = None;
        let mut single = Vec::new();
        let level = |text: &str| {
            LogLevel::from_str(text, true)
                .map_err(|_| format!("{text:?} is not a level: trace, debug, info, warning, error, critical"))
        };
        let logger = |wanted: &str| {
            let known = LOGGERS.iter().find(|(name, _)| *name == wanted).map(|(name, _)| *name);
            let names = || LOGGERS.map(|(name, _)| name).join(", ");
            known.ok_or_else(|| format!("there is no logger {wanted:?}, only {}", names()))
        };
        for (key, value) in parameters(query) {
            match key.as_str() {
                "level" => all = Some(level(&value)?),
                "paths" => {
                    for pair in value.split(',') {
                        let (name, text) = pair.split_once(':').ok_or_else(|| format!("{pair:?} is not NAME:LEVEL"))?;
                        single.push((logger(name)?, level(text)?));
                    }
                }
                name => single.push((logger(name)?, level(&value)?)),
            }
        }
        let mut levels = self.levels.lock();
        if let Some(all) = all {
            *levels = Levels { all, single: BTreeMap::new() };
        }
        levels.single.extend(single);
        (self.apply)(&levels.directives());
        Ok(())
    }

    fn list(&self) -> String {
        let levels = self.levels.lock();
        let lines = LOGGERS.iter().map(|(logger, _)| {
            let level = levels.single.get(logger).copied().unwrap_or(levels.all);
            format!("  {logger}: {}\n", name(level))
        });
        format!("active loggers:\n{}", lines.collect::<String>())
    }
}

/// The page: changes levels and lists them.
pub(super) fn page(logging: &Logging, query: &str) -> Answer {
    match logging.change(query) {
        Ok(()) => text(logging.list()),
        Err(why) => {
            let usage = "level=LEVEL sets all, NAME=LEVEL or paths=NAME:LEVEL,NAME:LEVEL single ones";
            answer(StatusCode::BAD_REQUEST, "text/plain", format!("{why}\n{usage}\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn single_loggers_have_levels_of_their_own() {
        let seen = Arc::new(Mutex::new(String::new()));
        let into = seen.clone();
        let logging = Logging::new(LogLevel::Warning, move |d| d.clone_into(&mut into.lock()));
        assert_eq!(*seen.lock(), "warn");
        assert_eq!(page(&logging, "http=debug").status(), 200);
        assert_eq!(*seen.lock(), "warn,mesh_proxy::http=debug,http1=debug");
        assert!(logging.list().contains("  http: debug\n") && logging.list().contains("  upstream: warning\n"));
        assert_eq!(page(&logging, "paths=http:info,tracing:trace").status(), 200);
        assert_eq!(*seen.lock(), "warn,mesh_proxy::http=info,http1=info,tracing=trace");
        for bad in ["nope=debug", "http=loud", "paths=http", "paths=http:debug,nope:info", "level=", "http"] {
            assert_eq!(page(&logging, bad).status(), 400, "{bad}");
        }
        assert!(seen.lock().starts_with("warn,mesh_proxy::http=info"), "what is wrong changes nothing");
        assert_eq!(page(&logging, "").status(), 200);
        assert_eq!(page(&logging, "level=debug").status(), 200);
        assert_eq!(*seen.lock(), "debug");
    }

    #[test]
    fn directives_are_ones() {
        let all: Vec<String> = LOGGERS.iter().map(|(name, _)| format!("{name}:trace")).collect();
        let logging = Logging::new(LogLevel::Critical, |d| drop(tracing_subscriber::EnvFilter::try_new(d).unwrap()));
        assert_eq!(logging.change(&format!("paths={}", all.join(","))), Ok(()));
    }
}
