//! Checks that several kinds share: names, hosts, ports, addresses, patterns.

use mesh_api::crd::networking::StringMatch;
use mesh_api::labels::Labels;

use super::Finding;
use crate::source::object::ObjectKey;

/// Collects findings.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<Finding>,
}

/// Longest regular expression, as the data plane takes it.
pub(super) const MAX_REGEX: usize = 1024;

impl Report {
    pub(super) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::error(field, message));
    }

    pub(super) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::warning(field, message));
    }

    /// One with a code of its own.
    pub(super) fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(super) fn name(&mut self, key: &ObjectKey) {
        if !dns_subdomain(&key.name) {
            self.error("metadata.name", format!("{:?} is not a DNS name (a-z, 0-9, '-', '.')", key.name));
        }
        if !key.namespace.is_empty() && !dns_label(&key.namespace) {
            self.error("metadata.namespace", format!("{:?} is not a DNS label", key.namespace));
        }
    }

    /// A host: short name, DNS name, `*`, `*.suffix` or an IP address.
    pub(super) fn host(&mut self, field: &str, host: &str) {
        let bare = host.strip_prefix("*.").unwrap_or(host);
        let ip = host.parse::<std::net::IpAddr>().is_ok();
        if host.is_empty() {
            self.error(field, "is empty");
        } else if host != "*" && !ip && !dns_host(bare) {
            self.error(field, format!("{host:?} is not a host: a DNS name, *.SUFFIX, * or an IP address is expected"));
        }
    }

    /// A host that names one service (or a wildcard of services).
    pub(super) fn destination_host(&mut self, field: &str, host: &str) {
        if host == "*" {
            self.error(field, "\"*\" does not name a service");
        } else {
            self.host(field, host);
        }
    }

    pub(super) fn port(&mut self, field: &str, port: u16) {
        if port == 0 {
            self.error(field, "must be 1 to 65535");
        }
    }

    pub(super) fn cidr(&mut self, field: &str, block: &str) {
        let ok = match block.split_once('/') {
            None => block.parse::<std::net::IpAddr>().is_ok(),
            Some(_) => block.parse::<ipnet::IpNet>().is_ok(),
        };
        if !ok {
            self.error(field, format!("{block:?} is not an IP address or CIDR block"));
        }
    }

    pub(super) fn regex(&mut self, field: &str, pattern: &str) {
        if pattern.len() > MAX_REGEX {
            self.error(field, format!("is {} bytes long, {MAX_REGEX} are allowed", pattern.len()));
        } else if let Err(error) = regex::bytes::RegexBuilder::new(pattern).size_limit(1 << 20).build() {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim();
            self.error(field, format!("is not a regular expression: {reason}"));
        }
    }

    pub(super) fn string_match(&mut self, field: &str, m: &StringMatch) {
        let given = [&m.exact, &m.prefix, &m.regex].into_iter().flatten().count();
        if given > 1 {
            self.error(field, "only one of exact, prefix and regex is allowed");
        }
        if m.prefix.as_deref() == Some("") {
            self.error(format!("{field}.prefix"), "must not be empty");
        }
        if let Some(pattern) = &m.regex {
            if pattern.is_empty() {
                self.error(format!("{field}.regex"), "must not be empty");
            } else {
                self.regex(&format!("{field}.regex"), pattern);
            }
        }
    }

    pub(super) fn header_name(&mut self, field: &str, name: &str) {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        // A colon is the first character of a pseudo-header and stands nowhere else.
        let bare = name.strip_prefix(':').unwrap_or(name);
        if bare.is_empty() || !bare.bytes().all(token) {
            self.error(field, format!("{name:?} is not a header name"));
        }
    }

    /// A value to write: what no proxy takes would cost every route of a port its change.
    pub(super) fn header_value(&mut self, field: &str, value: &str) {
        if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            self.error(field, format!("{value:?} holds a control character"));
        }
        let mut rest = value;
        while let Some((_, after)) = rest.split_once('%') {
            let operator = after.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit());
            let closed = match operator.strip_prefix('(') {
                Some(argument) => argument.split_once(')').and_then(|(_, tail)| tail.split_once('%')),
                None => operator.split_once('%').filter(|(length, _)| length.is_empty() || length.starts_with(':')),
            };
            let Some((_, tail)) = closed else {
                self.error(
                    field,
                    format!("{value:?}: '%' begins an operator like %REQ(x)%; by itself it is written %%"),
                );
                return;
            };
            rest = tail;
        }
    }

    /// What a match of a regular expression is replaced with: `\\1` is its first group.
    pub(super) fn substitution(&mut self, field: &str, text: &str, pattern: &str) {
        let groups = regex::bytes::Regex::new(pattern).map_or(usize::MAX, |r| r.captures_len());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                continue;
            }
            match chars.next() {
                Some('\\') => {}
                Some(d) if d.to_digit(10).is_some_and(|d| (d as usize) < groups) => {}
                Some(d) if d.is_ascii_digit() => self.error(field, format!("the expression has no group {d}")),
                _ => self.error(field, "a backslash is followed by the number of a group or a backslash"),
            }
        }
    }

    pub(super) fn percent(&mut self, field: &str, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(field, format!("{value} is not a percentage from 0 to 100"));
        }
    }

    pub(super) fn labels(&mut self, field: &str, labels: &Labels) {
        for (key, value) in labels {
            let name = key.rsplit_once('/').map_or(key.as_str(), |(_, n)| n);
            if name.is_empty() || name.len() > 63 || !label_chars(name) {
                self.error(field, format!("{key:?} is not a label name"));
            }
            if value.len() > 63 || !label_chars(value) {
                self.error(field, format!("{value:?} is not a label value"));
            }
        }
    }

    pub(super) fn export_to(&mut self, field: &str, export_to: &[String]) {
        for (i, to) in export_to.iter().enumerate() {
            if !matches!(to.as_str(), "." | "*" | "~") && !dns_label(to) {
                self.error(format!("{field}[{i}]"), format!("{to:?} is not '.', '*', '~' or a namespace"));
            }
        }
        let all = export_to.iter().any(|e| e == "*");
        if export_to.len() > 1 && (all || export_to.iter().any(|e| e == "~")) {
            self.error(field, "'*' and '~' stand alone");
        }
    }
}

fn label_chars(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// RFC 1123 label.
pub(super) fn dns_label(s: &str) -> bool {
    s.len() <= 63 && is_label_of_any_length(s)
}

fn is_label_of_any_length(s: &str) -> bool {
    !s.is_empty()
        && !s.starts_with('-')
        && !s.ends_with('-')
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// RFC 1123 subdomain, as Kubernetes has it: what is between dots may be of any length.
pub(super) fn dns_subdomain(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(is_label_of_any_length)
}

/// A DNS name as hosts use it: upper case and a final dot are fine.
fn dns_host(s: &str) -> bool {
    let s = s.strip_suffix('.').unwrap_or(s);
    !s.is_empty()
        && s.len() <= 255
        && s.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}
