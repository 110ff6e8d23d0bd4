//! Host names as Istio's objects write them: exact, or with a leading `*`.
//!
//! Owns matching and specificity. Must not know what a host stands for.

use std::cmp::Ordering;

/// Whether a host of an object is a pattern.
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// Whether `host` (itself possibly a pattern) lies within `pattern`. Case is ignored.
pub fn within(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            let host = host.strip_prefix('*').unwrap_or(host);
            ends_with_ignore_case(host, suffix)
        }
        None => pattern.eq_ignore_ascii_case(host),
    }
}

/// Whether the two have a host in common.
pub fn overlap(a: &str, b: &str) -> bool {
    within(a, b) || within(b, a)
}

/// Most specific first: exact before patterns, longer before shorter, then by name.
pub fn by_specificity(a: &str, b: &str) -> Ordering {
    is_wildcard(a).cmp(&is_wildcard(b)).then_with(|| b.len().cmp(&a.len())).then_with(|| a.cmp(b))
}

fn ends_with_ignore_case(text: &str, suffix: &str) -> bool {
    let (text, suffix) = (text.as_bytes(), suffix.as_bytes());
    text.len()
        .checked_sub(suffix.len())
        .and_then(|at| text.get(at..))
        .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!(within("*", "a.b"));
        assert!(within("*.b", "a.b"));
        assert!(within("*.b", "*.a.b"));
        assert!(!within("*.a.b", "*.b"));
        assert!(!within("*.b", "b"));
        assert!(within("A.b", "a.B"));
        assert!(overlap("*.a.b", "*.b"));
        assert!(!overlap("a.b", "c.b"));
        let mut hosts = vec!["*", "*.b", "a.b", "*.a.b", "c.d.e"];
        hosts.sort_by(|a, b| by_specificity(a, b));
        assert_eq!(hosts, ["c.d.e", "a.b", "*.a.b", "*.b", "*"]);
    }
}
