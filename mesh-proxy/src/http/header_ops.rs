//! Header operations of routes, hosts, tables and filters: names and values parsed once, removals before additions.

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_api::model::{self, AppendAction};

use super::{
    format::{Format, View},
    message::{Authority, RequestHead},
    stats::{ExchangeStats, Needs},
};
use crate::config::ConfigError;

/// Compiled operations on one head.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    remove: Box<[HeaderName]>,
    add: Box<[Add]>,
}

#[derive(Debug, Clone)]
struct Add {
    target: Target,
    value: Value,
    append: AppendAction,
    keep_empty: bool,
}

#[derive(Debug, Clone)]
enum Target {
    Authority,
    Path,
    Method,
    Header(HeaderName),
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(HeaderValue),
    Computed(Format),
}

impl HeaderOps {
    /// Compiles operations.
    ///
    /// # Errors
    /// A name that is not a header's, a value or operator that is not valid.
    pub fn compile(mutation: &model::HeaderMutation) -> Result<Self, ConfigError> {
        let name = |n: &str| {
            HeaderName::from_bytes(n.to_ascii_lowercase().as_bytes())
                .map_err(|_| ConfigError::new(format!("{n:?} is not a header name")))
        };
        let mut remove = Vec::new();
        for n in &mutation.remove {
            // Envoy refuses to remove what routing needs.
            if n.starts_with(':') || n.eq_ignore_ascii_case("host") {
                return Err(ConfigError::new(format!(":-prefixed or host headers may not be removed: {n}")));
            }
            remove.push(name(n)?);
        }
        let mut add = Vec::new();
        for option in &mutation.add {
            let target = match option.name.to_ascii_lowercase().as_str() {
                ":authority" | "host" => Target::Authority,
                ":path" => Target::Path,
                ":method" => Target::Method,
                other => Target::Header(name(other)?),
            };
            let format = Format::parse(&option.value).map_err(|e| e.within(format!("header {}", option.name)))?;
            let value = match format.as_literal() {
                Some(text) => Value::Fixed(HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
                    ConfigError::new(format!("header {}: {text:?} is not a header value", option.name))
                })?),
                None => Value::Computed(format),
            };
            add.push(Add { target, value, append: option.append, keep_empty: option.keep_empty });
        }
        Ok(Self { remove: remove.into(), add: add.into() })
    }
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
    /// Adds the headers that its values read.
    pub fn needs(&self, needs: &mut Needs) {
        for add in &self.add {
            if let Value::Computed(format) = &add.value {
                format.needs(needs);
            }
        }
    }
    /// On a request on its way up.
    pub fn apply_request(&self, head: &mut RequestHead, stats: &ExchangeStats) {
        for name in &self.remove {
            head.headers.remove(name);
        }
        for add in &self.add {
            let Some(value) = add.value(|f| f.header_value(&View::request(stats, head))) else { continue };
            match &add.target {
                Target::Header(name) => add.apply(&mut head.headers, name, value),
                Target::Authority => {
                    if let Some(authority) = Authority::new(value).filter(|a| !a.is_empty()) {
                        head.authority = authority;
                    }
                }
                Target::Path => {
                    if let Ok(target) = value.as_bytes().try_into() {
                        head.target = target;
                    }
                }
                Target::Method => {
                    if let Ok(method) = http::Method::from_bytes(value.as_bytes()) {
                        head.method = method;
                    }
                }
            }
        }
    }
    /// On an answer on its way down.
    pub fn apply_response(&self, headers: &mut HeaderMap, stats: &ExchangeStats) {
        for name in &self.remove {
            headers.remove(name);
        }
        for add in &self.add {
            let Target::Header(name) = &add.target else { continue };
            if let Some(value) = add.value(|f| f.header_value(&View::response(stats, headers))) {
                add.apply(headers, name, value);
            }
        }
    }
}

impl Add {
    fn value(&self, compute: impl FnOnce(&Format) -> Option<HeaderValue>) -> Option<HeaderValue> {
        let value = match &self.value {
            Value::Fixed(value) => value.clone(),
            Value::Computed(format) => compute(format)?,
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }
    fn apply(&self, headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
        append(headers, name, value, self.append);
    }
}

/// Adds a header in one of the ways.
pub(super) fn append(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, action: AppendAction) {
    // A map that is full stays as it is; the limit is far above what a head may hold.
    let result = match action {
        AppendAction::AppendIfExistsOrAdd => headers.try_append(name.clone(), value).map(drop),
        AppendAction::AddIfAbsent if headers.contains_key(name) => Ok(()),
        AppendAction::OverwriteIfExists if !headers.contains_key(name) => Ok(()),
        AppendAction::AddIfAbsent | AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => {
            headers.try_insert(name.clone(), value).map(drop)
        }
    };
    drop(result);
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use mesh_api::model::HeaderValueOption;

    use super::*;
    use crate::http::testing;

    fn option(name: &str, value: &str, append: AppendAction) -> HeaderValueOption {
        HeaderValueOption { name: name.into(), value: value.into(), append, keep_empty: false }
    }

    #[test]
    fn removals_come_first_and_values_are_computed() {
        let mutation = model::HeaderMutation {
            remove: vec!["X-Gone".into(), "x-again".into()],
            add: vec![
                option("x-again", "new", AppendAction::AppendIfExistsOrAdd),
                option("x-from", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", AppendAction::OverwriteIfExistsOrAdd),
                option("x-keep", "no", AppendAction::AddIfAbsent),
                option("x-absent", "no", AppendAction::OverwriteIfExists),
                option("x-empty", "%REQ(nothing)%", AppendAction::AppendIfExistsOrAdd),
                option("host", "other.test", AppendAction::OverwriteIfExistsOrAdd),
            ],
        };
        let ops = HeaderOps::compile(&mutation).unwrap();
        let mut head = testing::get("a.test", "/");
        for name in ["x-gone", "x-again", "x-keep"] {
            head.headers.insert(name, HeaderValue::from_static("old"));
        }
        let stats = ExchangeStats::new(Rc::new(testing::conn()), &head);
        ops.apply_request(&mut head, &stats);
        let get = |n: &str| head.headers.get(n).map(|v| v.to_str().unwrap());
        assert_eq!(get("x-gone"), None);
        assert_eq!(get("x-again"), Some("new"));
        assert_eq!(get("x-from"), Some("10.0.0.1"));
        assert_eq!(get("x-keep"), Some("old"));
        assert_eq!((get("x-absent"), get("x-empty")), (None, None));
        assert_eq!(head.authority.as_str(), "other.test");
    }

    #[test]
    fn refuses_what_envoy_refuses() {
        for name in [":path", "Host"] {
            let mutation = model::HeaderMutation { remove: vec![name.into()], add: vec![] };
            assert!(HeaderOps::compile(&mutation).is_err());
        }
    }
}
