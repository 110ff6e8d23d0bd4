//! The path of a request, normalised ONCE before anything looks at it: policy, routes, logs and the upstream all see
//! the same bytes. Knows no configuration beyond the four options it is given.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use mesh_api::model::EscapedSlashes;

/// What to do to paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Resolve dot segments, decode unreserved characters, `\` becomes `/`.
    pub normalize: bool,
    /// Collapse `//`.
    pub merge_slashes: bool,
    /// `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
}

/// Outcome of [`normalize`].
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to change.
    Unchanged,
    /// Go on with this one.
    Changed(PathAndQuery),
    /// Send the client there.
    Redirect(PathAndQuery),
    /// 400.
    Reject,
}

/// Normalises a request target of origin form.
pub fn normalize(target: &PathAndQuery, options: &Options) -> Outcome {
    let path = target.path();
    if !path.starts_with('/') || !needs_work(path.as_bytes(), options) {
        return if path.starts_with('/') { Outcome::Unchanged } else { Outcome::Reject };
    }
    let mut redirect = false;
    let mut path = Cow::Borrowed(path);
    if options.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(path.as_bytes()) {
        match options.escaped_slashes {
            EscapedSlashes::Reject => return Outcome::Reject,
            EscapedSlashes::UnescapeAndRedirect => redirect = true,
            _ => {}
        }
        path = Cow::Owned(unescape_slashes(&path));
    }
    if options.normalize {
        match canonical(&path) {
            Some(p) => path = Cow::Owned(p),
            None => return Outcome::Reject,
        }
    }
    if options.merge_slashes {
        path = Cow::Owned(merge_slashes(&path));
    }
    if path == target.path() {
        return Outcome::Unchanged;
    }
    let text = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    match PathAndQuery::try_from(text) {
        Ok(target) if redirect => Outcome::Redirect(target),
        Ok(target) => Outcome::Changed(target),
        Err(_) => Outcome::Reject,
    }
}

/// One pass that lets the usual path through untouched.
fn needs_work(path: &[u8], options: &Options) -> bool {
    let mut previous = 0u8;
    for &b in path {
        match b {
            b'%' if options.normalize || options.escaped_slashes != EscapedSlashes::Keep => return true,
            b'\\' | 0x80.. if options.normalize => return true,
            b'.' if options.normalize && previous == b'/' => return true,
            b'/' if options.merge_slashes && previous == b'/' => return true,
            _ => {}
        }
        previous = b;
    }
    false
}

fn has_escaped_slash(path: &[u8]) -> bool {
    path.windows(3).any(|w| matches!(w, [b'%', b'2', b'f' | b'F'] | [b'%', b'5', b'c' | b'C']))
}

fn unescape_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        match after.as_bytes() {
            [b'2', b'f' | b'F', ..] => {
                out.push('/');
                rest = after.get(2..).unwrap_or_default();
            }
            [b'5', b'c' | b'C', ..] => {
                out.push('\\');
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push('%');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// RFC 3986 and the WHATWG path state, as Chromium's canonicaliser (which Envoy uses) does it: backslashes are slashes,
/// unreserved characters are decoded, others are left as they are escaped, bytes that may not stand in a path are
/// escaped, `.` and `..` (also `%2e`) segments are resolved. `%00` is refused.
fn canonical(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    let mut decoded: Vec<u8> = Vec::with_capacity(bytes.len() + 8);
    let mut i = 0;
    while let Some(&b) = bytes.get(i) {
        match b {
            b'%' => {
                let value = hex(bytes.get(i + 1)).zip(hex(bytes.get(i + 2))).map(|(h, l)| h << 4 | l);
                match value {
                    Some(0) => return None,
                    Some(c) if c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b'~') => {
                        decoded.push(c);
                        i += 3;
                        continue;
                    }
                    Some(_) => {
                        decoded.extend_from_slice(bytes.get(i..i + 3)?);
                        i += 3;
                        continue;
                    }
                    None => decoded.push(b'%'),
                }
            }
            b'\\' => decoded.push(b'/'),
            0 => return None,
            0x80.. => {
                decoded.extend_from_slice(format!("%{b:02X}").as_bytes());
            }
            other => decoded.push(other),
        }
        i += 1;
    }
    let text = String::from_utf8(decoded).ok()?;
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = text.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." if last => segments.push(""),
            "." => {}
            ".." => {
                // Above the root is the root, as browsers and Envoy's canonicaliser have it.
                segments.pop();
                if last {
                    segments.push("");
                }
            }
            other => segments.push(other),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

fn hex(b: Option<&u8>) -> Option<u8> {
    char::from(*b?).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(target: &str, options: Options) -> String {
        let target: PathAndQuery = target.parse().unwrap();
        match normalize(&target, &options) {
            Outcome::Unchanged => target.to_string(),
            Outcome::Changed(t) => t.to_string(),
            Outcome::Redirect(t) => format!("redirect {t}"),
            Outcome::Reject => "reject".to_owned(),
        }
    }

    #[test]
    fn base_normalisation() {
        let base = Options { normalize: true, ..Options::default() };
        for (from, to) in [
            ("/a/b", "/a/b"),
            ("/a/../b?q=/../x", "/b?q=/../x"),
            ("/a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/../..", "/"),
            ("/%2e%2E/%61dmin", "/admin"),
            ("/a%2fb", "/a%2fb"),
            ("/a\\b\\..\\c", "/a/c"),
            ("/a//b", "/a//b"),
            ("//../a", "/a"),
            ("/a%00", "reject"),
            ("/a%", "/a%"),
            ("/a%zz", "/a%zz"),
            ("/.well-known/x", "/.well-known/x"),
            ("/..;/admin", "/..;/admin"),
            ("/%252e%252e/x", "/%252e%252e/x"),
        ] {
            assert_eq!(run(from, base), to, "{from}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        let all = Options { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::UnescapeAndForward };
        for path in ["/a/%2e%2e/b", "/x//y/../z", "/a%2f..%2fb", "/%5c..%5cadmin", "/%2f%2fa"] {
            let once = run(path, all);
            assert_eq!(run(&once, all), once, "{path}");
        }
    }

    #[test]
    fn slashes() {
        let merge = Options { normalize: true, merge_slashes: true, ..Options::default() };
        assert_eq!(run("/a//b///c/..", merge), "/a/b/");
        let with = |escaped_slashes| Options { normalize: true, escaped_slashes, ..Options::default() };
        assert_eq!(run("/a%2fb", with(EscapedSlashes::Reject)), "reject");
        assert_eq!(run("/a%2Fb%5cc", with(EscapedSlashes::UnescapeAndForward)), "/a/b/c");
        assert_eq!(run("/a%2f..%2fb?x", with(EscapedSlashes::UnescapeAndRedirect)), "redirect /b?x");
        assert_eq!(run("/a%2fb", Options::default()), "/a%2fb");
    }
}
