//! Compiled matchers of strings, headers and query parameters. All of them compare bytes, so what is not UTF-8 is
//! compared too instead of slipping through. Knows no routes and no policies.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock, Weak},
};

use http::{HeaderName, HeaderValue, header};
use mesh_api::model::{self, HeaderValueMatch, Name, StringPattern};
use parking_lot::Mutex;
use regex::bytes::{Regex, RegexBuilder};

use super::message::RequestHead;
use crate::config::ConfigError;

/// Longest pattern that is accepted, as Istio's validation.
pub const MAX_PATTERN: usize = 1024;
const MAX_PROGRAM: usize = 4 << 20;

static PATTERNS: LazyLock<Mutex<HashMap<String, Weak<Regex>>>> = LazyLock::new(Mutex::default);

/// A regular expression; equal patterns share one program.
#[derive(Debug, Clone)]
pub struct Pattern(Arc<Regex>);

impl Pattern {
    /// A pattern that must match the whole text.
    ///
    /// # Errors
    /// Too long, too large when compiled, or not a pattern.
    pub fn full(pattern: &str) -> Result<Self, ConfigError> {
        Self::compile(pattern, true)
    }
    /// A pattern that is searched for (for substitutions).
    ///
    /// # Errors
    /// As [`Pattern::full`].
    pub fn search(pattern: &str) -> Result<Self, ConfigError> {
        Self::compile(pattern, false)
    }
    fn compile(pattern: &str, whole: bool) -> Result<Self, ConfigError> {
        if pattern.len() > MAX_PATTERN {
            return Err(ConfigError::new(format!("regex of {} bytes: at most {MAX_PATTERN} allowed", pattern.len())));
        }
        let source = if whole { format!(r"\A(?:{pattern})\z") } else { pattern.to_owned() };
        let mut known = PATTERNS.lock();
        if let Some(regex) = known.get(&source).and_then(Weak::upgrade) {
            return Ok(Self(regex));
        }
        // The pattern alone must be valid, so that `a)(b` does not become valid between our parentheses.
        let build = |p: &str| RegexBuilder::new(p).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).build();
        let regex = build(pattern).and_then(|alone| if whole { build(&source) } else { Ok(alone) });
        let regex = Arc::new(regex.map_err(|e| ConfigError::new(format!("regex {pattern:?}: {e}")))?);
        if known.len() >= 64 && known.len().is_power_of_two() {
            known.retain(|_, weak| weak.strong_count() > 0);
        }
        known.insert(source, Arc::downgrade(&regex));
        Ok(Self(regex))
    }
    /// Whether it matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
    /// RE2's global replace with `\1` groups in `substitution`.
    pub fn replace_all(&self, text: &str, substitution: &Substitution) -> String {
        let mut out = Vec::with_capacity(text.len() + 16);
        let mut last = 0;
        let bytes = text.as_bytes();
        for captures in self.0.captures_iter(bytes) {
            let Some(whole) = captures.get(0) else { continue };
            out.extend_from_slice(bytes.get(last..whole.start()).unwrap_or_default());
            for part in &substitution.0 {
                match part {
                    SubstitutionPart::Text(t) => out.extend_from_slice(t.as_bytes()),
                    SubstitutionPart::Group(n) => {
                        out.extend_from_slice(captures.get(*n).map(|m| m.as_bytes()).unwrap_or_default());
                    }
                }
            }
            last = whole.end();
        }
        out.extend_from_slice(bytes.get(last..).unwrap_or_default());
        String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
    }
    /// Number of groups, the whole match included.
    pub fn groups(&self) -> usize {
        self.0.captures_len()
    }
}

/// A replacement text with `\0` to `\9` for groups and `\\` for a backslash.
#[derive(Debug, Clone)]
pub struct Substitution(Vec<SubstitutionPart>);

#[derive(Debug, Clone)]
enum SubstitutionPart {
    Text(String),
    Group(usize),
}

impl Substitution {
    /// Parses and checks it against the groups of `pattern`.
    ///
    /// # Errors
    /// A group that the pattern does not have, or a backslash before anything else.
    pub fn parse(text: &str, pattern: &Pattern) -> Result<Self, ConfigError> {
        let bad = |what: &str| ConfigError::new(format!("regex substitution {text:?}: {what}"));
        let (mut parts, mut literal) = (Vec::new(), String::new());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                literal.push(c);
                continue;
            }
            match chars.next() {
                Some('\\') => literal.push('\\'),
                Some(d) if d.is_ascii_digit() => {
                    let group = d.to_digit(10).unwrap_or(0) as usize;
                    if group >= pattern.groups() {
                        return Err(bad(&format!("the pattern has no group {group}")));
                    }
                    if !literal.is_empty() {
                        parts.push(SubstitutionPart::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(SubstitutionPart::Group(group));
                }
                _ => return Err(bad("a backslash must be followed by a digit or a backslash")),
            }
        }
        if !literal.is_empty() {
            parts.push(SubstitutionPart::Text(literal));
        }
        Ok(Self(parts))
    }
}

/// A compiled [`model::StringMatcher`].
#[derive(Debug, Clone)]
pub struct StringMatch {
    kind: Kind,
    ignore_case: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Exact(Name),
    Prefix(Name),
    Suffix(Name),
    Contains(Name),
    Regex(Pattern),
}

impl StringMatch {
    /// Compiles it.
    ///
    /// # Errors
    /// A regular expression that is not valid.
    pub fn compile(matcher: &model::StringMatcher) -> Result<Self, ConfigError> {
        let kind = match &matcher.pattern {
            StringPattern::Exact(s) => Kind::Exact(s.clone()),
            StringPattern::Prefix(s) => Kind::Prefix(s.clone()),
            StringPattern::Suffix(s) => Kind::Suffix(s.clone()),
            StringPattern::Contains(s) => Kind::Contains(s.clone()),
            StringPattern::Regex(s) => Kind::Regex(Pattern::full(s)?),
        };
        Ok(Self { kind, ignore_case: matcher.ignore_case })
    }
    /// Whether `value` matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        let eq = |a: &[u8], b: &[u8]| if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b };
        match &self.kind {
            Kind::Exact(s) => eq(value, s.as_bytes()),
            Kind::Prefix(s) => value.get(..s.len()).is_some_and(|v| eq(v, s.as_bytes())),
            Kind::Suffix(s) => {
                value.len().checked_sub(s.len()).and_then(|at| value.get(at..)).is_some_and(|v| eq(v, s.as_bytes()))
            }
            Kind::Contains(s) => s.is_empty() || value.windows(s.len()).any(|v| eq(v, s.as_bytes())),
            Kind::Regex(r) => r.is_match(value),
        }
    }
}

/// A header or pseudo-header by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// `:method`.
    Method,
    /// `:path`, query included.
    Path,
    /// `:authority` or `host`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// Any other.
    Header(HeaderName),
}

impl Field {
    /// By its name as it stands in configuration.
    ///
    /// # Errors
    /// Not a header name.
    pub fn parse(name: &str) -> Result<Self, ConfigError> {
        Ok(match name.to_ascii_lowercase().as_str() {
            ":method" => Field::Method,
            ":path" => Field::Path,
            ":authority" | "host" => Field::Authority,
            ":scheme" => Field::Scheme,
            lower => Field::Header(
                HeaderName::from_bytes(lower.as_bytes())
                    .map_err(|_| ConfigError::new(format!("{name:?} is not a header name")))?,
            ),
        })
    }
    /// Its value in a request: several values comma-joined, as Envoy compares them.
    pub fn value<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Field::Header(name) => joined(&head.headers, name),
            pseudo => pseudo.pseudo_value(head).map(Cow::Borrowed),
        }
    }
    fn pseudo_value<'a>(&self, head: &'a RequestHead) -> Option<&'a [u8]> {
        match self {
            Field::Method => Some(head.method.as_str().as_bytes()),
            Field::Path => Some(head.target.as_str().as_bytes()),
            Field::Authority => (!head.authority.is_empty()).then(|| head.authority.as_str().as_bytes()),
            Field::Scheme => Some(head.scheme.as_str().as_bytes()),
            Field::Header(name) => head.headers.get(name).map(HeaderValue::as_bytes),
        }
    }
}

/// All values of a header, joined by commas; borrowed when there is only one.
pub fn joined<'a>(headers: &'a http::HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first.as_bytes())) };
    let mut all = Vec::from(first.as_bytes());
    for value in std::iter::once(second).chain(values) {
        all.push(b',');
        all.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(all))
}

/// How a header with several values is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Several {
    /// Envoy's way: the comma-joined text counts.
    Joined,
    /// One matching value is enough (conditions whose match refuses).
    Any,
    /// Every value must match (conditions whose match admits).
    All,
}

/// A compiled [`model::HeaderMatcher`].
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// Which header.
    pub field: Field,
    value: ValueMatch,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug, Clone)]
enum ValueMatch {
    Present(bool),
    String(StringMatch),
    Range(i64, i64),
}

impl ValueMatch {
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            ValueMatch::Present(_) => true,
            ValueMatch::String(s) => s.matches(value),
            ValueMatch::Range(start, end) => std::str::from_utf8(value)
                .ok()
                .and_then(|v| v.parse::<i64>().ok())
                .is_some_and(|v| (*start..*end).contains(&v)),
        }
    }
}

impl HeaderMatch {
    /// Compiles it.
    ///
    /// # Errors
    /// A header name or pattern that is not valid.
    pub fn compile(matcher: &model::HeaderMatcher) -> Result<Self, ConfigError> {
        let value = match &matcher.value {
            HeaderValueMatch::Present(p) => ValueMatch::Present(*p),
            HeaderValueMatch::String(s) => ValueMatch::String(StringMatch::compile(s)?),
            HeaderValueMatch::Range { start, end } => ValueMatch::Range(*start, *end),
        };
        Ok(Self {
            field: Field::parse(&matcher.name)?,
            value,
            invert: matcher.invert,
            missing_is_empty: matcher.treat_missing_as_empty,
        })
    }
    /// Compiles all of them.
    ///
    /// # Errors
    /// As [`HeaderMatch::compile`].
    pub fn compile_all(matchers: &[model::HeaderMatcher]) -> Result<Box<[Self]>, ConfigError> {
        matchers.iter().map(Self::compile).collect()
    }
    /// Against a request, several values joined.
    pub fn matches(&self, head: &RequestHead) -> bool {
        self.judge(self.field.value(head).as_deref())
    }
    /// Against headers of an answer or trailers.
    pub fn matches_headers(&self, headers: &http::HeaderMap) -> bool {
        match &self.field {
            Field::Header(name) => self.judge(joined(headers, name).as_deref()),
            _ => self.judge(None),
        }
    }
    /// Against a request, several values judged as told. The joined text always counts as one more value.
    pub fn matches_several(&self, head: &RequestHead, several: Several) -> bool {
        let Field::Header(name) = &self.field else { return self.matches(head) };
        let mut values = head.headers.get_all(name).iter();
        if several == Several::Joined || values.next().is_none() || values.next().is_none() {
            return self.matches(head);
        }
        let mut each = head.headers.get_all(name).iter().map(|v| self.judge(Some(v.as_bytes())));
        match several {
            Several::All => each.all(|m| m) || self.matches(head),
            _ => each.any(|m| m) || self.matches(head),
        }
    }
    fn judge(&self, value: Option<&[u8]>) -> bool {
        match (&self.value, value) {
            (ValueMatch::Present(wanted), found) => {
                let present = found.is_some() || self.missing_is_empty;
                (present == *wanted) != self.invert
            }
            (_, None) if !self.missing_is_empty => false,
            (matcher, found) => matcher.matches(found.unwrap_or_default()) != self.invert,
        }
    }
}

/// A compiled [`model::QueryMatcher`].
#[derive(Debug, Clone)]
pub struct QueryMatch {
    name: Name,
    value: Option<StringMatch>,
}

impl QueryMatch {
    /// Compiles it.
    ///
    /// # Errors
    /// A pattern that is not valid.
    pub fn compile(matcher: &model::QueryMatcher) -> Result<Self, ConfigError> {
        let value = matcher.value.as_ref().map(StringMatch::compile).transpose()?;
        Ok(Self { name: matcher.name.clone(), value })
    }
    /// Against a query; the first parameter of that name counts.
    pub fn matches(&self, query: Option<&str>) -> bool {
        match (query.and_then(|q| query_value(q, &self.name)), &self.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(value), Some(matcher)) => matcher.matches(value.as_bytes()),
        }
    }
}

/// The first value of a query parameter, as it stands there; `Some("")` for a bare name.
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

/// A cookie's value, without quotes.
pub fn cookie_value<'a>(headers: &'a http::HeaderMap, name: &str) -> Option<&'a str> {
    headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::message::Authority;

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::new(
            http::Method::GET,
            Authority::parse("Shop.test:80").unwrap(),
            http::uri::PathAndQuery::from_static("/a?x=1&y"),
        );
        for (k, v) in headers {
            head.headers.append(HeaderName::from_bytes(k.as_bytes()).unwrap(), v.parse().unwrap());
        }
        head
    }

    fn matcher(name: &str, value: HeaderValueMatch) -> model::HeaderMatcher {
        model::HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false }
    }

    #[test]
    fn strings() {
        let ci = |pattern| StringMatch::compile(&model::StringMatcher { pattern, ignore_case: true }).unwrap();
        assert!(ci(StringPattern::Exact("ABC".into())).matches(b"abc"));
        assert!(ci(StringPattern::Suffix("Bc".into())).matches(b"abc"));
        assert!(ci(StringPattern::Contains("B".into())).matches(b"abc"));
        assert!(!ci(StringPattern::Prefix("abcd".into())).matches(b"abc"));
        let re = StringMatch::compile(&model::StringMatcher::regex("a|b+")).unwrap();
        assert!(re.matches(b"bb") && !re.matches(b"ab") && !re.matches(b"bb\n"));
        assert!(StringMatch::compile(&model::StringMatcher::regex("a)(b")).is_err());
        assert!(StringMatch::compile(&model::StringMatcher::regex("x".repeat(1025))).is_err());
        assert!(StringMatch::compile(&model::StringMatcher::regex("((a{500}){500}){500}")).is_err());
    }

    #[test]
    fn equal_patterns_share_a_program() {
        let (a, b) = (Pattern::full("share[d]+").unwrap(), Pattern::full("share[d]+").unwrap());
        assert!(Arc::ptr_eq(&a.0, &b.0));
    }

    #[test]
    fn missing_headers_follow_envoy() {
        let exact = |v: &str| HeaderValueMatch::String(model::StringMatcher::exact(v));
        let h = head(&[("a", "1")]);
        let mut m = matcher("b", exact("1"));
        m.invert = true;
        assert!(!HeaderMatch::compile(&m).unwrap().matches(&h));
        m.treat_missing_as_empty = true;
        assert!(HeaderMatch::compile(&m).unwrap().matches(&h));
        let absent = matcher("b", HeaderValueMatch::Present(false));
        assert!(HeaderMatch::compile(&absent).unwrap().matches(&h));
        let authority = matcher("host", exact("Shop.test:80"));
        assert!(HeaderMatch::compile(&authority).unwrap().matches(&h));
        let range = matcher("a", HeaderValueMatch::Range { start: 1, end: 2 });
        assert!(HeaderMatch::compile(&range).unwrap().matches(&h));
    }

    #[test]
    fn several_values() {
        let exact = matcher("a", HeaderValueMatch::String(model::StringMatcher::exact("admin")));
        let m = HeaderMatch::compile(&exact).unwrap();
        let h = head(&[("a", "user"), ("a", "admin")]);
        assert!(!m.matches(&h));
        assert!(m.matches_several(&h, Several::Any));
        assert!(!m.matches_several(&h, Several::All));
        assert!(m.matches_several(&head(&[("a", "admin"), ("a", "admin")]), Several::All));
    }

    #[test]
    fn query_and_cookies() {
        assert_eq!(query_value("x=1&y&x=2", "x"), Some("1"));
        assert_eq!(query_value("x=1&y", "y"), Some(""));
        assert_eq!(query_value("x=1", "z"), None);
        let h = head(&[("cookie", "a=1; b=\"2\"")]);
        assert_eq!(cookie_value(&h.headers, "b"), Some("2"));
    }

    #[test]
    fn substitutions() {
        let p = Pattern::search("^/service/([^/]+)(/.*)$").unwrap();
        let s = Substitution::parse(r"\2/instance/\1", &p).unwrap();
        assert_eq!(p.replace_all("/service/foo/v1/api", &s), "/v1/api/instance/foo");
        assert!(Substitution::parse(r"\3", &p).is_err());
    }
}
