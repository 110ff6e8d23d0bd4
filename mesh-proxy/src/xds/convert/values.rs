//! Values that several resources share.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_api::model::{
    Address, AppendAction, CidrRange, Fraction, HeaderMatcher, HeaderMutation, HeaderOps, HeaderValueMatch,
    HeaderValueOption, ISTIO_METADATA, Metadata, Name, Origin, StringMatcher, StringPattern, TokenBucket,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::route::v3 as route;
use mesh_api::xds::envoy::r#type::matcher::v3 as matcher;
use mesh_api::xds::envoy::r#type::v3 as types;
use mesh_api::xds::google::protobuf;
use serde_json::Value;

use super::Result;
use super::at::At;

pub fn duration(at: &At<'_>, d: &protobuf::Duration) -> Result<Duration> {
    match (u64::try_from(d.seconds), u32::try_from(d.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => at.refuse("is not a duration of zero or more"),
    }
}

pub fn duration_opt(at: &At<'_>, d: Option<&protobuf::Duration>) -> Result<Option<Duration>> {
    d.map(|d| duration(at, d)).transpose()
}

pub fn duration_or(at: &At<'_>, d: Option<&protobuf::Duration>, default: Duration) -> Result<Duration> {
    Ok(duration_opt(at, d)?.unwrap_or(default))
}

pub fn u32_or(value: Option<protobuf::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |v| v.value)
}

pub fn bool_or(value: Option<protobuf::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

pub fn port(at: &At<'_>, value: u32) -> Result<u16> {
    u16::try_from(value).map_err(|_| at.error(format!("{value} is not a port")))
}

/// Percent as a `double`.
pub fn percent(value: Option<&types::Percent>, default: f64) -> Fraction {
    let value = value.map_or(default, |p| p.value);
    Fraction::from_percent(if value.is_finite() { value } else { default })
}

pub fn fraction(at: &At<'_>, value: &types::FractionalPercent) -> Result<Fraction> {
    use types::fractional_percent::DenominatorType;
    let per = match DenominatorType::try_from(value.denominator) {
        Ok(DenominatorType::Hundred) => 10_000,
        Ok(DenominatorType::TenThousand) => 100,
        Ok(DenominatorType::Million) => 1,
        Err(_) => return at.refuse("has a denominator that does not exist"),
    };
    Ok(Fraction(value.numerator.saturating_mul(per).min(1_000_000)))
}

pub fn runtime_fraction(at: &At<'_>, value: &core::RuntimeFractionalPercent) -> Result<Fraction> {
    value.default_value.as_ref().map_or(Ok(Fraction::ALWAYS), |f| fraction(at, f))
}

/// Tokens of a limit.
pub fn token_bucket(at: &At<'_>, b: &types::TokenBucket) -> Result<TokenBucket> {
    let interval = at.field("fill_interval");
    let fill_interval = duration(&interval, interval.required(b.fill_interval.as_ref())?)?;
    if fill_interval < Duration::from_millis(50) {
        return interval.refuse("must be 50 ms at least");
    }
    if b.max_tokens == 0 {
        return at.field("max_tokens").refuse("must be 1 at least");
    }
    Ok(TokenBucket { max_tokens: b.max_tokens, tokens_per_fill: u32_or(b.tokens_per_fill, 1), fill_interval })
}

pub fn ip(at: &At<'_>, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| at.error(format!("{text:?} is not an IP address")))
}

pub fn socket(at: &At<'_>, address: &core::SocketAddress) -> Result<Address> {
    use core::socket_address::PortSpecifier;
    if address.protocol != 0 {
        return at.refuse("UDP is not supported");
    }
    let port = match &address.port_specifier {
        Some(PortSpecifier::PortValue(p)) => port(at, *p)?,
        Some(PortSpecifier::NamedPort(_)) => return at.refuse("named ports are not supported"),
        None => 0,
    };
    Ok(match address.address.parse::<IpAddr>() {
        Ok(ip) => Address::Socket(SocketAddr::new(ip, port)),
        Err(_) if address.address.is_empty() => return at.refuse("has no address"),
        Err(_) => Address::Host(address.address.as_str().into(), port),
    })
}

pub fn address(at: &At<'_>, address: Option<&core::Address>) -> Result<Address> {
    use core::address::Address as A;
    use core::envoy_internal_address::AddressNameSpecifier;
    match at.required(address.and_then(|a| a.address.as_ref()))? {
        A::SocketAddress(s) => socket(&at.field("socket_address"), s),
        A::Pipe(p) => Ok(Address::Pipe(PathBuf::from(&p.path))),
        A::EnvoyInternalAddress(a) => match &a.address_name_specifier {
            Some(AddressNameSpecifier::ServerListenerName(name)) => Ok(Address::Internal(name.as_str().into())),
            None => at.refuse("names no internal listener"),
        },
    }
}

pub fn cidr(at: &At<'_>, range: &core::CidrRange) -> Result<CidrRange> {
    let address = ip(at, &range.address_prefix)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = u32_or(range.prefix_len, 0);
    match u8::try_from(prefix_len) {
        Ok(prefix_len) if prefix_len <= most => Ok(CidrRange { address, prefix_len }),
        _ => at.refuse(format!("{prefix_len} is more than {most} bits")),
    }
}

pub fn cidrs(at: &At<'_>, field: &str, ranges: &[core::CidrRange]) -> Result<Vec<CidrRange>> {
    ranges.iter().enumerate().map(|(i, r)| cidr(&at.item(field, i), r)).collect()
}

pub fn names(texts: &[String]) -> Vec<Name> {
    texts.iter().map(|t| t.as_str().into()).collect()
}

pub fn lower(texts: &[String]) -> Vec<Name> {
    texts.iter().map(|t| t.to_ascii_lowercase().into()).collect()
}

/// `google.protobuf.Struct` as JSON; whole numbers stay whole.
/// Headers that are sent as they are: names in small letters, values as text wherever they stand.
pub fn sent_headers<'a>(headers: impl IntoIterator<Item = &'a core::HeaderValue>) -> Vec<(Name, Name)> {
    let value = |h: &core::HeaderValue| -> Name {
        if h.value.is_empty() { String::from_utf8_lossy(&h.raw_value).into() } else { h.value.as_str().into() }
    };
    headers.into_iter().map(|h| (h.key.to_ascii_lowercase().into(), value(h))).collect()
}

pub fn structure(value: &protobuf::Struct) -> Value {
    Value::Object(value.fields.iter().map(|(k, v)| (k.clone(), json(v))).collect())
}

fn json(value: &protobuf::Value) -> Value {
    use protobuf::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        #[allow(clippy::cast_possible_truncation)] // checked to be whole and in range
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => Value::from(*n as i64),
        Some(Kind::NumberValue(n)) => Value::from(*n),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StructValue(s)) => structure(s),
        Some(Kind::ListValue(l)) => Value::Array(l.values.iter().map(json).collect()),
    }
}

/// Untyped metadata and, taken out of it, the cause.
pub fn metadata(metadata: Option<&core::Metadata>) -> (Metadata, Origin) {
    let Some(metadata) = metadata else { return Default::default() };
    let mut all: Metadata = metadata.filter_metadata.iter().map(|(k, v)| (k.clone(), structure(v))).collect();
    let mut origin = Origin::default();
    if let Some(Value::Object(istio)) = all.get_mut(ISTIO_METADATA)
        && let Some(Value::String(config)) = istio.remove("config")
    {
        origin.config = config.into();
        if istio.is_empty() {
            all.remove(ISTIO_METADATA);
        }
    }
    (all, origin)
}

/// Metadata whose cause is of no interest.
pub fn plain_metadata(value: Option<&core::Metadata>) -> Metadata {
    value.map(|m| m.filter_metadata.iter().map(|(k, v)| (k.clone(), structure(v))).collect()).unwrap_or_default()
}

pub fn regex(at: &At<'_>, regex: &matcher::RegexMatcher) -> Result<Name> {
    if regex.regex.is_empty() { at.refuse("is an empty regular expression") } else { Ok(regex.regex.as_str().into()) }
}

pub fn string_matcher(at: &At<'_>, m: &matcher::StringMatcher) -> Result<StringMatcher> {
    use matcher::string_matcher::MatchPattern as P;
    let text = |at: &At<'_>, s: &String| {
        if s.is_empty() { at.refuse("must not be empty") } else { Ok(Name::from(s.as_str())) }
    };
    let pattern = match at.required(m.match_pattern.as_ref())? {
        P::Exact(s) => StringPattern::Exact(s.as_str().into()),
        P::Prefix(s) => StringPattern::Prefix(text(&at.field("prefix"), s)?),
        P::Suffix(s) => StringPattern::Suffix(text(&at.field("suffix"), s)?),
        P::Contains(s) => StringPattern::Contains(text(&at.field("contains"), s)?),
        P::SafeRegex(r) => StringPattern::Regex(regex(&at.field("safe_regex"), r)?),
        P::Custom(c) => return at.refuse(format!("matcher {:?} is not supported", c.name)),
    };
    Ok(StringMatcher { pattern, ignore_case: m.ignore_case })
}

pub fn string_matchers(at: &At<'_>, field: &str, all: &[matcher::StringMatcher]) -> Result<Vec<StringMatcher>> {
    all.iter().enumerate().map(|(i, m)| string_matcher(&at.item(field, i), m)).collect()
}

pub fn header_matcher(at: &At<'_>, m: &route::HeaderMatcher) -> Result<HeaderMatcher> {
    use route::header_matcher::HeaderMatchSpecifier as S;
    if m.name.is_empty() {
        return at.field("name").refuse("is required");
    }
    #[allow(deprecated)] // still sent by control planes
    let value = match &m.header_match_specifier {
        None => HeaderValueMatch::Present(true),
        Some(S::PresentMatch(present)) => HeaderValueMatch::Present(*present),
        Some(S::StringMatch(m)) => HeaderValueMatch::String(string_matcher(&at.field("string_match"), m)?),
        Some(S::ExactMatch(s)) => HeaderValueMatch::String(StringMatcher::exact(s.as_str())),
        Some(S::PrefixMatch(s)) => HeaderValueMatch::String(StringMatcher::prefix(s.as_str())),
        Some(S::SuffixMatch(s)) => HeaderValueMatch::String(StringMatcher::suffix(s.as_str())),
        Some(S::ContainsMatch(s)) => HeaderValueMatch::String(StringMatcher {
            pattern: StringPattern::Contains(s.as_str().into()),
            ignore_case: false,
        }),
        Some(S::SafeRegexMatch(r)) => {
            HeaderValueMatch::String(StringMatcher::regex(regex(&at.field("safe_regex_match"), r)?))
        }
        Some(S::RangeMatch(r)) => HeaderValueMatch::Range { start: r.start, end: r.end },
    };
    Ok(HeaderMatcher {
        name: m.name.to_ascii_lowercase().into(),
        value,
        invert: m.invert_match,
        treat_missing_as_empty: m.treat_missing_header_as_empty,
    })
}

pub fn header_matchers(at: &At<'_>, field: &str, all: &[route::HeaderMatcher]) -> Result<Vec<HeaderMatcher>> {
    all.iter().enumerate().map(|(i, m)| header_matcher(&at.item(field, i), m)).collect()
}

pub fn header_value(at: &At<'_>, option: &core::HeaderValueOption) -> Result<HeaderValueOption> {
    use core::header_value_option::HeaderAppendAction as A;
    let header = at.required(option.header.as_ref())?;
    if header.key.is_empty() {
        return at.field("header.key").refuse("is required");
    }
    let append = match A::try_from(option.append_action) {
        Ok(A::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        Ok(A::AddIfAbsent) => AppendAction::AddIfAbsent,
        Ok(A::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        Ok(A::OverwriteIfExists) => AppendAction::OverwriteIfExists,
        Err(_) => return at.field("append_action").refuse("does not exist"),
    };
    #[allow(deprecated)] // the older way to say overwrite
    let append = match option.append {
        Some(append) if !append.value => AppendAction::OverwriteIfExistsOrAdd,
        _ => append,
    };
    let value = if header.raw_value.is_empty() {
        header.value.clone()
    } else {
        String::from_utf8(header.raw_value.clone()).map_err(|_| at.error("has a value that is not text"))?
    };
    Ok(HeaderValueOption {
        name: header.key.to_ascii_lowercase().into(),
        value: value.into(),
        append,
        keep_empty: option.keep_empty_value,
    })
}

fn header_mutation(at: &At<'_>, add: (&str, &[core::HeaderValueOption]), remove: &[String]) -> Result<HeaderMutation> {
    let (field, options) = add;
    let add = options.iter().enumerate().map(|(i, o)| header_value(&at.item(field, i), o)).collect::<Result<_>>()?;
    Ok(HeaderMutation { remove: lower(remove), add })
}

pub fn header_ops(
    at: &At<'_>,
    request: (&[core::HeaderValueOption], &[String]),
    response: (&[core::HeaderValueOption], &[String]),
) -> Result<HeaderOps> {
    Ok(HeaderOps {
        request: header_mutation(at, ("request_headers_to_add", request.0), request.1)?,
        response: header_mutation(at, ("response_headers_to_add", response.0), response.1)?,
    })
}

/// Decodes an `Any` that is known to be of a type.
pub fn unpack<M: prost::Message + Default>(at: &At<'_>, any: &protobuf::Any) -> Result<M> {
    at.decode(&any.value)
}

/// The message type of an `Any`, without the host.
pub fn type_name(any: &protobuf::Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

/// Istio wraps configurations in `udpa.type.v1.TypedStruct` or `xds.type.v3.TypedStruct`; the inner type and value.
pub fn typed_struct(at: &At<'_>, any: &protobuf::Any) -> Result<Option<(String, Value)>> {
    /// Both have the same fields.
    #[derive(Clone, PartialEq, prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
        #[prost(message, optional, tag = "2")]
        value: Option<protobuf::Struct>,
    }
    if !type_name(any).ends_with(".TypedStruct") {
        return Ok(None);
    }
    let inner: TypedStruct = at.decode(&any.value)?;
    let name = inner.type_url.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(Some((name, inner.value.as_ref().map(structure).unwrap_or_default())))
}
