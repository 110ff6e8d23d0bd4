//! Levels of a proxy's own messages, by its admin server.

use std::process::ExitCode;

use futures_util::future::join_all;
use serde_json::{Map, Value};

use crate::args::{Format, LogArgs};
use crate::client::Server;
use crate::client::cluster::{Cluster, block_on};
use crate::client::mesh::pods;
use crate::exit::{Failure, Outcome, USAGE};
use crate::output::{print, structured};

/// Level of proxies that nobody told another.
const DEFAULT: &str = "warning";

/// Changes levels, if that is asked for, and lists them.
pub fn run(args: &LogArgs) -> Outcome {
    let query = query(args)?;
    let path = if query.is_empty() { "/logging".to_owned() } else { format!("/logging?{query}") };
    let answers = block_on(async {
        let servers = match &args.admin {
            Some(admin) => vec![Server::admin(admin)],
            None => {
                let word = args.proxy.as_deref().unwrap_or_default();
                let cluster = Cluster::connect(&args.kube).await?;
                let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
                let port = args.port_of_admin.proxy_admin_port;
                let pods = pods(Some(&cluster), word, namespace).await?;
                pods.iter().map(|pod| Server::pod(&cluster, pod, port)).collect()
            }
        };
        let asked = servers.iter().map(async |server| Ok((server.name(), server.post(&path).await?.text())));
        join_all(asked).await.into_iter().collect::<Result<Vec<_>, Failure>>()
    })?;
    if args.output == Format::Short {
        for (name, text) in &answers {
            print(&format!("{name}:\n{}", text.trim_end()));
        }
    } else {
        let all: Map<String, Value> = answers.iter().map(|(name, text)| (name.clone(), levels(text))).collect();
        structured(&all, args.output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What Envoy's admin server is told.
fn query(args: &LogArgs) -> Result<String, Failure> {
    let Some(level) = &args.level else {
        return Ok(if args.reset { format!("level={DEFAULT}") } else { String::new() });
    };
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if word(level) {
        return Ok(format!("level={level}"));
    }
    let pairs: Option<Vec<String>> = level
        .split(',')
        .map(|pair| {
            let (logger, level) = pair.split_once(':').filter(|(logger, level)| word(logger) && word(level))?;
            Some(format!("{logger}:{level}"))
        })
        .collect();
    let pairs = pairs.ok_or_else(|| {
        Failure::new(
            USAGE,
            format!("--level {level:?} is neither LEVEL nor LOGGER:LEVEL,LOGGER:LEVEL, e.g. http:debug"),
        )
    })?;
    // `all` is every logger.
    let (all, single): (Vec<String>, Vec<String>) = pairs.into_iter().partition(|pair| pair.starts_with("all:"));
    let all = all.iter().filter_map(|pair| Some(format!("level={}", pair.strip_prefix("all:")?)));
    let single = Some(single.join(",")).filter(|s| !s.is_empty()).map(|s| format!("paths={s}"));
    Ok(all.chain(single).collect::<Vec<_>>().join("&"))
}

/// `LOGGER: LEVEL` in lines.
fn levels(text: &str) -> Value {
    let pairs = text.lines().filter_map(|line| line.trim().split_once(": "));
    pairs.map(|(logger, level)| (logger.to_owned(), Value::from(level))).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Args, Command, ConfigArgs, Part};

    fn asked(words: &[&str]) -> Result<String, String> {
        let words = ["meshctl", "pc", "log", "web.shop"].iter().chain(words);
        match Args::try_parse_from(words).unwrap().command {
            Command::ProxyConfig(ConfigArgs { part: Part::Log(args) }) => query(&args).map_err(|f| f.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn levels_as_envoy_is_told_them() {
        assert_eq!(asked(&[]).unwrap(), "");
        assert_eq!(asked(&["--level", "debug"]).unwrap(), "level=debug");
        assert_eq!(asked(&["--level", "http:debug,rbac:trace"]).unwrap(), "paths=http:debug,rbac:trace");
        assert_eq!(asked(&["--level", "all:info,http:debug"]).unwrap(), "level=info&paths=http:debug");
        assert_eq!(asked(&["-r"]).unwrap(), "level=warning");
        assert!(asked(&["--level", "http=debug&level=x"]).unwrap_err().contains("http:debug"));
        assert_eq!(levels("active loggers:\n  http: debug\n  rbac: info\n")["rbac"], "info");
    }
}
