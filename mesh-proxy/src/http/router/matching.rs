//! Whether a request fits a route.

use mesh_api::model::{self, Fraction, Metadata, PathMatch};

use crate::config::ConfigError;
use crate::http::matchers::{HeaderMatch, Pattern, QueryMatch};
use crate::http::message::RequestHead;
use crate::http::metadata_match::MetadataMatch;
use crate::http::template::Template;
use crate::net::ConnInfo;

/// All conditions of a route.
#[derive(Debug)]
pub struct Matcher {
    path: Path,
    ignore_case: bool,
    headers: Box<[HeaderMatch]>,
    query: Box<[QueryMatch]>,
    grpc: bool,
    fraction: Option<Fraction>,
    tls_presented: Option<bool>,
    tls_validated: Option<bool>,
    metadata: Box<[MetadataMatch]>,
}

#[derive(Debug)]
enum Path {
    Any,
    Prefix(Box<str>),
    Exact(Box<str>),
    Separated(Box<str>),
    Regex(Pattern),
    Template(Template),
    Connect,
}

impl Matcher {
    /// Compiles patterns.
    ///
    /// # Errors
    /// A pattern that is not valid.
    pub fn compile(m: &model::RouteMatch) -> Result<Self, ConfigError> {
        let path = match &m.path {
            PathMatch::Prefix(p) if matches!(&**p, "" | "/") => Path::Any,
            PathMatch::Prefix(p) => Path::Prefix((**p).into()),
            PathMatch::Exact(p) => Path::Exact((**p).into()),
            PathMatch::PathSeparatedPrefix(p) => Path::Separated((**p).into()),
            PathMatch::Regex(r) => Path::Regex(Pattern::full(r)?),
            PathMatch::Template(t) => Path::Template(Template::compile(t)?),
            PathMatch::Connect => Path::Connect,
        };
        Ok(Self {
            path,
            ignore_case: !m.case_sensitive,
            headers: HeaderMatch::compile_all(&m.headers)?,
            query: m.query.iter().map(QueryMatch::compile).collect::<Result<_, _>>()?,
            grpc: m.grpc,
            fraction: m.fraction,
            tls_presented: m.tls_presented,
            tls_validated: m.tls_validated,
            metadata: m.dynamic_metadata.iter().map(MetadataMatch::compile).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a request fits, of which filters said this.
    pub fn matches(&self, head: &RequestHead, conn: &ConnInfo, random: u64, metadata: &Metadata) -> bool {
        self.path_matches(head)
            && self.headers.iter().all(|h| h.matches(head))
            && self.query.iter().all(|q| q.matches(head.query()))
            && (!self.grpc || head.is_grpc())
            && self.fraction.is_none_or(|f| random % 1_000_000 < u64::from(f.0))
            && self.tls_presented.is_none_or(|w| conn.tls.as_ref().is_some_and(|t| t.peer_presented()) == w)
            && self.tls_validated.is_none_or(|w| conn.tls.as_ref().is_some_and(|t| t.validated) == w)
            && self.metadata.iter().all(|m| m.matches(metadata))
    }

    fn path_matches(&self, head: &RequestHead) -> bool {
        let path = head.path();
        // CONNECT has no path; only its own matcher and the widest one take it.
        if head.method == http::Method::CONNECT {
            return matches!(self.path, Path::Connect | Path::Any);
        }
        match &self.path {
            Path::Any => true,
            Path::Prefix(prefix) => self.starts_with(head.target.as_str(), prefix),
            Path::Exact(exact) if self.ignore_case => path.eq_ignore_ascii_case(exact),
            Path::Exact(exact) => path == &**exact,
            Path::Separated(prefix) => {
                self.starts_with(path, prefix) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            Path::Regex(pattern) => pattern.is_match(path.as_bytes()),
            Path::Template(template) => template.matches(path),
            Path::Connect => false,
        }
    }

    fn starts_with(&self, path: &str, prefix: &str) -> bool {
        match path.as_bytes().get(..prefix.len()) {
            Some(start) if self.ignore_case => start.eq_ignore_ascii_case(prefix.as_bytes()),
            Some(start) => start == prefix.as_bytes(),
            None => false,
        }
    }
}
