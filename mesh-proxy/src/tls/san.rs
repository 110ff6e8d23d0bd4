//! Subject alternative names: reading them from a certificate and matching them.

use std::net::IpAddr;

use mesh_api::model::{Name, SanKind, SanMatcher, StringMatcher, StringPattern};
use x509_parser::prelude::{GeneralName, X509Certificate, X509Name};

use super::TlsError;

/// Longest SPIFFE id (SPIFFE ID specification, section 2.3).
const SPIFFE_MAX: usize = 2048;
/// Longest regular expression.
const REGEX_MAX: usize = 1024;

/// All names of a certificate that matchers may look at. The common name is not among them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) uri: Vec<Name>,
    pub(crate) dns: Vec<Name>,
    pub(crate) ip: Vec<IpAddr>,
    pub(crate) email: Vec<Name>,
}

impl Names {
    /// Reads the names; names that cannot be read (control characters, wrong lengths) make the certificate unusable.
    pub(crate) fn of(cert: &X509Certificate<'_>) -> Result<Self, String> {
        let mut names = Self::default();
        let san = cert.subject_alternative_name().map_err(|e| format!("subject alternative names: {e}"))?;
        for name in san.iter().flat_map(|s| &s.value.general_names) {
            match name {
                GeneralName::URI(s) => names.uri.push(printable(s)?.into()),
                GeneralName::DNSName(s) => names.dns.push(printable(s)?.into()),
                GeneralName::RFC822Name(s) => names.email.push(printable(s)?.into()),
                GeneralName::IPAddress(bytes) => names.ip.push(ip(bytes)?),
                GeneralName::Invalid(tag, _) => return Err(format!("unreadable subject alternative name ({tag})")),
                _ => {}
            }
        }
        Ok(names)
    }

    /// The SPIFFE id: exactly one URI name, well formed.
    pub(crate) fn spiffe_id(&self) -> Option<Name> {
        match self.uri.as_slice() {
            [one] if spiffe_trust_domain(one).is_some() => Some(one.clone()),
            _ => None,
        }
    }
}

fn printable(s: &str) -> Result<&str, String> {
    if s.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        Ok(s)
    } else {
        Err("subject alternative name with a control or non-ASCII character".to_owned())
    }
}

fn ip(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(v4.into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(v6.into())
    } else {
        Err(format!("IP address name of {} bytes", bytes.len()))
    }
}

/// The trust domain of a well-formed SPIFFE id with a path (not necessarily Istio's form of path).
pub(crate) fn spiffe_trust_domain(uri: &str) -> Option<&str> {
    let rest = uri.strip_prefix("spiffe://").filter(|_| uri.len() <= SPIFFE_MAX)?;
    let (domain, path) = rest.split_once('/')?;
    let domain_ok = (1..=255).contains(&domain.len())
        && domain.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    let segment_ok = |s: &str| {
        !matches!(s, "" | "." | "..") && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    (domain_ok && path.split('/').all(segment_ok)).then_some(domain)
}

/// A compiled [`SanMatcher`].
#[derive(Debug)]
pub(crate) struct SanCheck {
    kind: SanKind,
    how: How,
}

#[derive(Debug)]
enum How {
    Pattern(StringPattern, bool),
    Regex(regex::bytes::Regex),
}

impl SanCheck {
    pub(crate) fn compile(m: &SanMatcher) -> Result<Self, TlsError> {
        let how = match &m.matcher {
            StringMatcher { pattern: StringPattern::Regex(re), .. } => How::Regex(compile_regex(re)?),
            StringMatcher { pattern, ignore_case } => How::Pattern(pattern.clone(), *ignore_case),
        };
        Ok(Self { kind: m.kind, how })
    }

    /// Whether this asks for a SPIFFE id.
    pub(crate) fn is_spiffe(&self) -> bool {
        self.kind == SanKind::Uri
            && match &self.how {
                How::Pattern(StringPattern::Exact(s) | StringPattern::Prefix(s), _) => s.starts_with("spiffe://"),
                How::Regex(re) => re.as_str().contains("spiffe://"),
                How::Pattern(..) => false,
            }
    }

    /// Whether one of the names satisfies this condition.
    pub(crate) fn matches(&self, names: &Names) -> bool {
        let uri = || names.uri.iter().any(|n| self.text(n));
        let dns = || names.dns.iter().any(|n| self.dns(n));
        let ip = || names.ip.iter().any(|n| self.ip(*n));
        let email = || names.email.iter().any(|n| self.text(n));
        match self.kind {
            SanKind::Uri => uri(),
            SanKind::Dns => dns(),
            SanKind::Ip => ip(),
            SanKind::Email => email(),
            SanKind::Any => dns() || uri() || email() || ip(),
        }
    }

    fn text(&self, value: &str) -> bool {
        match &self.how {
            How::Regex(re) => re.is_match(value.as_bytes()),
            How::Pattern(p, false) => match p {
                StringPattern::Exact(s) => **s == *value,
                StringPattern::Prefix(s) => value.starts_with(&**s),
                StringPattern::Suffix(s) => value.ends_with(&**s),
                StringPattern::Contains(s) => value.contains(&**s),
                StringPattern::Regex(_) => false,
            },
            How::Pattern(p, true) => {
                let value = value.to_ascii_lowercase();
                match p {
                    StringPattern::Exact(s) => s.eq_ignore_ascii_case(&value),
                    StringPattern::Prefix(s) => value.starts_with(&s.to_ascii_lowercase()),
                    StringPattern::Suffix(s) => value.ends_with(&s.to_ascii_lowercase()),
                    StringPattern::Contains(s) => value.contains(&s.to_ascii_lowercase()),
                    StringPattern::Regex(_) => false,
                }
            }
        }
    }

    fn dns(&self, presented: &str) -> bool {
        match &self.how {
            How::Pattern(StringPattern::Exact(wanted), _) => dns_name_matches(wanted, presented),
            _ => self.text(presented),
        }
    }

    fn ip(&self, presented: IpAddr) -> bool {
        match &self.how {
            How::Pattern(StringPattern::Exact(wanted), _) => wanted.parse() == Ok(presented),
            _ => self.text(&presented.to_string()),
        }
    }
}

/// Whether the certificate's DNS name (which may start with `*.`) covers `wanted`. Case does not matter; the wildcard
/// stands for exactly one whole left-most label.
pub(crate) fn dns_name_matches(wanted: &str, presented: &str) -> bool {
    let wanted = wanted.strip_suffix('.').unwrap_or(wanted);
    let presented = presented.strip_suffix('.').unwrap_or(presented);
    match presented.strip_prefix("*.") {
        // `*.com` would cover a whole top-level domain.
        Some(parent) if parent.contains('.') && !parent.contains('*') => wanted
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && label != "*" && rest.eq_ignore_ascii_case(parent)),
        Some(_) => false,
        None => !presented.contains('*') && !presented.is_empty() && presented.eq_ignore_ascii_case(wanted),
    }
}

fn compile_regex(re: &str) -> Result<regex::bytes::Regex, TlsError> {
    if re.len() > REGEX_MAX {
        return Err(TlsError::config(format!("regular expression of {} bytes, {REGEX_MAX} are allowed", re.len())));
    }
    // The pattern alone first: `a)|(b` must not become valid by being wrapped.
    regex::bytes::RegexBuilder::new(re)
        .size_limit(1 << 20)
        .build()
        .and_then(|_| regex::bytes::RegexBuilder::new(&format!("^(?:{re})$")).size_limit(1 << 20).build())
        .map_err(|e| TlsError::config(format!("regular expression {re:?}: {e}")))
}

/// A distinguished name as RFC 2253 and Envoy write it: most specific part first.
pub(crate) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = vec![];
    for rdn in name.iter() {
        let attributes: Vec<String> = rdn
            .iter()
            .map(|attr| {
                let oid = attr.attr_type();
                let key = match oid.to_id_string().as_str() {
                    "2.5.4.3" => "CN".to_owned(),
                    "2.5.4.6" => "C".to_owned(),
                    "2.5.4.7" => "L".to_owned(),
                    "2.5.4.8" => "ST".to_owned(),
                    "2.5.4.9" => "street".to_owned(),
                    "2.5.4.10" => "O".to_owned(),
                    "2.5.4.11" => "OU".to_owned(),
                    "2.5.4.5" => "serialNumber".to_owned(),
                    "1.2.840.113549.1.9.1" => "emailAddress".to_owned(),
                    "0.9.2342.19200300.100.1.1" => "UID".to_owned(),
                    "0.9.2342.19200300.100.1.25" => "DC".to_owned(),
                    other => other.to_owned(),
                };
                format!("{key}={}", escape(attr.as_str().unwrap_or("?")))
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

fn escape(value: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => {
                out.push('\\');
                out.push(c);
            }
            '#' if i == 0 => out.push_str("\\#"),
            ' ' if i == 0 || i == last => out.push_str("\\ "),
            c if c.is_control() => {
                let _ = write!(out, "\\{:02X}", u32::from(c) & 0xff);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_cover_one_label() {
        assert!(dns_name_matches("a.example.com", "*.example.com"));
        assert!(dns_name_matches("A.Example.com", "a.eXample.com"));
        for (wanted, presented) in [
            ("a.b.example.com", "*.example.com"),
            ("example.com", "*.example.com"),
            (".example.com", "*.example.com"),
            ("foo.com", "f*o.com"),
            ("a.com", "*.com"),
            ("a.b.com", "*.*.com"),
            ("", ""),
        ] {
            assert!(!dns_name_matches(wanted, presented), "{wanted} {presented}");
        }
    }

    #[test]
    fn spiffe_shapes() {
        assert_eq!(spiffe_trust_domain("spiffe://td.test/ns/a/sa/b"), Some("td.test"));
        assert_eq!(spiffe_trust_domain("spiffe://td.test/workload"), Some("td.test"));
        let long = format!("spiffe://td/{}", "a".repeat(3000));
        for bad in [
            "spiffe://td",
            "spiffe://td/",
            "spiffe://TD/a",
            "spiffe://td/a/../b",
            "spiffe://td/a b",
            "https://td/a",
            &long,
        ] {
            assert_eq!(spiffe_trust_domain(bad), None, "{bad}");
        }
    }

    #[test]
    fn matchers_by_kind() {
        let names = Names {
            uri: vec!["spiffe://td/ns/a/sa/b".into()],
            dns: vec!["*.example.com".into()],
            ip: vec!["::1".parse().unwrap()],
            email: vec!["a@b.test".into()],
        };
        let check = |kind, matcher| SanCheck::compile(&SanMatcher { kind, matcher }).unwrap().matches(&names);
        assert!(check(SanKind::Uri, StringMatcher::exact("spiffe://td/ns/a/sa/b")));
        assert!(check(SanKind::Uri, StringMatcher::prefix("spiffe://td/")));
        assert!(!check(SanKind::Uri, StringMatcher::exact("spiffe://td/ns/a/sa/bb")));
        assert!(!check(SanKind::Dns, StringMatcher::prefix("spiffe://td/")));
        assert!(check(SanKind::Dns, StringMatcher::exact("x.example.com")));
        assert!(!check(SanKind::Dns, StringMatcher::exact("x.y.example.com")));
        assert!(check(SanKind::Ip, StringMatcher::exact("0:0::1")));
        assert!(check(SanKind::Email, StringMatcher::suffix("@b.test")));
        assert!(check(SanKind::Any, StringMatcher::regex("spiffe://td/.*")));
        assert!(!check(SanKind::Any, StringMatcher::regex("piffe://td/.*")));
        assert!(SanCheck::compile(&SanMatcher { kind: SanKind::Uri, matcher: StringMatcher::regex("a)|(b") }).is_err());
    }
}
