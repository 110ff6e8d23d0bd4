//! What a route does, with everything parsed: targets, rewrites, redirects.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, uri::PathAndQuery};
use mesh_api::model::{self, Fraction, Name, PathMatch, PathRewrite, RedirectPath};

use super::Ops;
use crate::config::ConfigError;
use crate::http::filters::Overrides;
use crate::http::filters::descriptors::Rules;
use crate::http::hash::HashPolicies;
use crate::http::matchers::{Pattern, Substitution};
use crate::http::message::{RequestHead, Scheme, split_port};
use crate::http::retry::RetryPolicy;
use crate::http::stats::Needs;
use crate::http::template::{Template, TemplateRewrite};

/// A compiled action.
#[derive(Debug)]
pub enum Action {
    /// To a cluster.
    Forward(Box<Forward>),
    /// Elsewhere.
    Redirect(Box<Redirect>),
    /// Answered here.
    Direct {
        /// Status.
        status: u16,
        /// Body.
        body: Bytes,
    },
    /// Nothing (gRPC's inbound routes).
    NonForwarding,
}

/// Forwarding.
#[derive(Debug)]
pub struct Forward {
    /// Which cluster.
    pub target: Target,
    /// Status when the cluster does not exist.
    pub not_found_status: u16,
    rewrite: Option<Rewrite>,
    /// How the host changes.
    pub host_rewrite: Option<HostRewrite>,
    /// `x-forwarded-host` keeps the old one.
    pub keep_host: bool,
    /// The whole answer, retries included; `None`: no limit.
    pub timeout: Option<Duration>,
    /// Nothing moves for so long; `None`: the manager's.
    pub idle_timeout: Option<Duration>,
    /// Life of the stream.
    pub max_stream: Option<Duration>,
    /// `grpc-timeout` counts up to this; zero: any.
    pub grpc_timeout_max: Option<Duration>,
    /// Retries; `None`: the host's.
    pub retry: Option<RetryPolicy>,
    /// Copies.
    pub mirrors: Box<[Mirror]>,
    /// For consistent balancers.
    pub hash: HashPolicies,
    /// Upgrades that are (or are not) allowed here, lower case.
    pub upgrades: Box<[(Box<str>, bool)]>,
    /// Circuit breaker.
    pub high_priority: bool,
    /// What rate limit services are told.
    pub limits: Rules,
    /// The host's rules count too.
    pub include_host_limits: bool,
}

/// Which cluster.
#[derive(Debug)]
pub enum Target {
    /// This one.
    Cluster(Name),
    /// The one a header names.
    Header(HeaderName),
    /// By weight.
    Weighted {
        /// Sum of weights, above zero.
        total: u64,
        /// The clusters.
        clusters: Box<[Weighted]>,
    },
}

/// One of several.
#[derive(Debug)]
pub struct Weighted {
    /// Cluster.
    pub name: Name,
    weight: u64,
    /// Operations.
    pub headers: Ops,
    /// Host rewrite.
    pub host_rewrite: Option<Name>,
    /// Filter configuration.
    pub overrides: Overrides,
}

/// Host rewrites.
#[derive(Debug)]
pub enum HostRewrite {
    /// This.
    Literal(Name),
    /// The endpoint's name.
    Auto,
    /// A header's value.
    Header(HeaderName),
}

/// A copy of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Cluster.
    pub cluster: Name,
    /// Share of requests.
    pub share: Fraction,
    /// Without `-shadow` behind the host.
    pub keep_host: bool,
}

#[derive(Debug)]
enum Rewrite {
    Prefix(Box<str>),
    Full(Box<str>),
    Regex(Pattern, Substitution),
    Template(Template, TemplateRewrite),
}

impl Action {
    /// Compiles an action; `path` is the route's path condition, which prefix rewrites refer to.
    ///
    /// # Errors
    /// A pattern, header name or weight that is not valid.
    pub fn compile(
        action: &model::Action,
        path: &PathMatch,
        clusters: &mut Vec<Name>,
        needs: &mut Needs,
    ) -> Result<Self, ConfigError> {
        Ok(match action {
            model::Action::Forward(f) => Action::Forward(Box::new(Forward::compile(f, path, clusters, needs)?)),
            model::Action::Redirect(r) => Action::Redirect(Box::new(Redirect::compile(r)?)),
            model::Action::DirectResponse { status, body } => {
                Action::Direct { status: *status, body: Bytes::copy_from_slice(body) }
            }
            model::Action::NonForwarding => Action::NonForwarding,
        })
    }
}

fn header_name(name: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| ConfigError::new(format!("{name:?} is not a header name")))
}

impl Forward {
    fn compile(
        f: &model::Forward,
        path: &PathMatch,
        clusters: &mut Vec<Name>,
        needs: &mut Needs,
    ) -> Result<Self, ConfigError> {
        let target = match &f.target {
            model::Target::Cluster(name) => {
                clusters.push(name.clone());
                Target::Cluster(name.clone())
            }
            model::Target::ClusterHeader(name) => Target::Header(header_name(name)?),
            model::Target::Weighted(all) => {
                let mut compiled = Vec::with_capacity(all.len());
                for c in all {
                    clusters.push(c.name.clone());
                    compiled.push(Weighted {
                        name: c.name.clone(),
                        weight: c.weight.into(),
                        headers: Ops::compile(&c.headers, needs)?,
                        host_rewrite: c.host_rewrite.clone(),
                        overrides: Overrides::compile(&c.filter_overrides)?,
                    });
                }
                let total = compiled.iter().map(|c| c.weight).sum();
                if total == 0 {
                    return Err(ConfigError::new("weighted clusters: no weight above zero"));
                }
                Target::Weighted { total, clusters: compiled.into() }
            }
        };
        clusters.extend(f.mirrors.iter().map(|m| m.cluster.clone()));
        let rewrite = match &f.rewrite {
            None => None,
            Some(PathRewrite::Prefix(to)) => Some(Rewrite::Prefix((**to).into())),
            Some(PathRewrite::Full(to)) => Some(Rewrite::Full((**to).into())),
            Some(PathRewrite::Regex { pattern, substitution }) => {
                let pattern = Pattern::search(pattern)?;
                let substitution = Substitution::parse(substitution, &pattern)?;
                Some(Rewrite::Regex(pattern, substitution))
            }
            Some(PathRewrite::Template(to)) => {
                let PathMatch::Template(from) = path else {
                    return Err(ConfigError::new("a template rewrite needs a template match"));
                };
                let template = Template::compile(from)?;
                let rewrite = TemplateRewrite::compile(to, &template)?;
                Some(Rewrite::Template(template, rewrite))
            }
        };
        Ok(Self {
            target,
            not_found_status: f.cluster_not_found_status,
            rewrite,
            host_rewrite: match &f.host_rewrite {
                None => None,
                Some(model::HostRewrite::Literal(host)) => Some(HostRewrite::Literal(host.clone())),
                Some(model::HostRewrite::Auto) => Some(HostRewrite::Auto),
                Some(model::HostRewrite::Header(name)) => Some(HostRewrite::Header(header_name(name)?)),
            },
            keep_host: f.append_x_forwarded_host,
            timeout: Some(f.timeout.unwrap_or(Duration::from_secs(15))).filter(|t| !t.is_zero()),
            idle_timeout: f.idle_timeout,
            max_stream: f.max_stream_duration.filter(|d| !d.is_zero()),
            grpc_timeout_max: f.grpc_timeout_max,
            retry: f.retry.as_ref().map(RetryPolicy::compile).transpose()?,
            mirrors: f
                .mirrors
                .iter()
                .map(|m| Mirror { cluster: m.cluster.clone(), share: m.fraction, keep_host: m.keep_host })
                .collect(),
            hash: HashPolicies::compile(&f.hash)?,
            upgrades: f.upgrades.iter().map(|u| (u.kind.to_ascii_lowercase().into(), u.enabled)).collect(),
            limits: Rules::compile(&f.rate_limits)?,
            include_host_limits: f.include_host_rate_limits,
            high_priority: f.high_priority,
        })
    }

    /// The cluster and, of several, which.
    pub fn choose(&self, head: &RequestHead, random: u64) -> Option<(Name, Option<usize>)> {
        match &self.target {
            Target::Cluster(name) => Some((name.clone(), None)),
            Target::Header(name) => {
                let value = head.headers.get(name)?.to_str().ok()?;
                Some((value.into(), None))
            }
            Target::Weighted { total, clusters } => {
                let mut left = random % total;
                let index = clusters.iter().position(|c| {
                    let here = left < c.weight;
                    left = left.saturating_sub(c.weight);
                    here
                })?;
                Some((clusters.get(index)?.name.clone(), Some(index)))
            }
        }
    }

    /// The path as it goes upstream; `None`: unchanged.
    pub fn rewritten(&self, head: &RequestHead, matched: &PathMatch) -> Option<PathAndQuery> {
        let path = head.path();
        let new = match self.rewrite.as_ref()? {
            Rewrite::Full(to) => to.to_string(),
            Rewrite::Prefix(to) => match matched {
                PathMatch::Prefix(p) | PathMatch::PathSeparatedPrefix(p) => format!("{to}{}", path.get(p.len()..)?),
                // The whole path was matched, the whole path is replaced.
                _ => to.to_string(),
            },
            Rewrite::Regex(pattern, substitution) => pattern.replace_all(path, substitution),
            Rewrite::Template(template, rewrite) => template.rewrite(path, rewrite)?,
        };
        with_query(new, head.query())
    }
}

/// A target of a path, which may bring its own query, and a query for one that does not.
fn with_query(path: String, query: Option<&str>) -> Option<PathAndQuery> {
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    match query {
        Some(query) if !path.contains('?') => format!("{path}?{query}").parse().ok(),
        _ => path.parse().ok(),
    }
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    https: bool,
    scheme: Name,
    host: Name,
    port: Option<u16>,
    path: Option<NewPath>,
    /// Status.
    pub code: u16,
    strip_query: bool,
}

#[derive(Debug)]
enum NewPath {
    Full(Box<str>),
    Prefix(Box<str>),
    Regex(Pattern, Substitution),
}

impl Redirect {
    fn compile(r: &model::Redirect) -> Result<Self, ConfigError> {
        let path = match &r.path {
            None => None,
            Some(RedirectPath::Full(to)) => Some(NewPath::Full((**to).into())),
            Some(RedirectPath::Prefix(to)) => Some(NewPath::Prefix((**to).into())),
            Some(RedirectPath::Regex { pattern, substitution }) => {
                let pattern = Pattern::search(pattern)?;
                let substitution = Substitution::parse(substitution, &pattern)?;
                Some(NewPath::Regex(pattern, substitution))
            }
        };
        Ok(Self {
            https: r.https,
            scheme: r.scheme.clone(),
            host: r.host.clone(),
            port: r.port,
            path,
            code: r.code,
            strip_query: r.strip_query,
        })
    }

    /// `location`.
    pub fn location(&self, head: &RequestHead, matched: &PathMatch) -> String {
        let scheme = if self.https {
            "https"
        } else if self.scheme.is_empty() {
            head.scheme.as_str()
        } else {
            &self.scheme
        };
        let (old_host, old_port) = split_port(head.authority.as_str());
        let host = if self.host.is_empty() { old_host } else { &self.host };
        // The default port of the old scheme means nothing under a new one.
        let default_of_old = match head.scheme {
            Scheme::Http => "80",
            Scheme::Https => "443",
        };
        let port = match (self.port, old_port) {
            (Some(port), _) => Some(port.to_string()),
            (None, Some(port))
                if self.host.is_empty() && !(scheme != head.scheme.as_str() && port == default_of_old) =>
            {
                Some(port.to_owned())
            }
            _ => None,
        };
        let is_default = |p: &String| (scheme == "http" && p == "80") || (scheme == "https" && p == "443");
        let port = port.filter(|p| !is_default(p)).map(|p| format!(":{p}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{}", self.target(head, matched))
    }

    fn target(&self, head: &RequestHead, matched: &PathMatch) -> String {
        let path = head.path();
        let new = match &self.path {
            None => path.to_owned(),
            Some(NewPath::Full(to)) => to.to_string(),
            Some(NewPath::Prefix(to)) => match matched {
                PathMatch::Prefix(p) | PathMatch::PathSeparatedPrefix(p) => {
                    format!("{to}{}", path.get(p.len()..).unwrap_or_default())
                }
                _ => to.to_string(),
            },
            Some(NewPath::Regex(pattern, substitution)) => pattern.replace_all(path, substitution),
        };
        let new = if new.starts_with('/') { new } else { format!("/{new}") };
        match head.query() {
            Some(query) if !self.strip_query && !new.contains('?') => format!("{new}?{query}"),
            _ => new,
        }
    }
}
