//! What several resources share: metadata, matchers, header operations, where configuration comes from.

use mesh_api::model::{
    AppendAction, CommonTls, HeaderMatcher, HeaderMutation, HeaderValueMatch, HeaderValueOption, ISTIO_METADATA,
    Metadata, Origin, SdsRef, SdsSource, StringMatcher, StringPattern,
};
use serde_json::Value;

use super::wire::{Message, structure};

/// `Metadata` with the cause under `istio.config`.
pub fn metadata(metadata: &Metadata, origin: &Origin) -> Message {
    let mut message = Message::new();
    let mut put = |name: &str, value: &Value| {
        message = std::mem::take(&mut message).entry(1, name, structure(value));
    };
    if origin.config.is_empty() {
        for (name, value) in metadata {
            put(name, value);
        }
        return message;
    }
    let mut all = metadata.clone();
    let istio = all.entry(ISTIO_METADATA.to_owned()).or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(object) = istio.as_object_mut() {
        object.insert("config".to_owned(), Value::String(origin.config.to_string()));
    }
    for (name, value) in &all {
        put(name, value);
    }
    message
}

/// `envoy.type.matcher.v3.StringMatcher`.
pub fn string_matcher(matcher: &StringMatcher) -> Message {
    let message = match &matcher.pattern {
        StringPattern::Exact(s) => Message::new().str_always(1, s),
        StringPattern::Prefix(s) => Message::new().str_always(2, s),
        StringPattern::Suffix(s) => Message::new().str_always(3, s),
        StringPattern::Regex(s) => Message::new().msg(5, regex(s)),
        StringPattern::Contains(s) => Message::new().str_always(7, s),
    };
    message.bool(6, matcher.ignore_case)
}

/// `envoy.type.matcher.v3.RegexMatcher`.
pub fn regex(pattern: &str) -> Message {
    Message::new().str(2, pattern)
}

/// `envoy.type.matcher.v3.RegexMatchAndSubstitute`.
pub fn substitution(pattern: &str, substitution: &str) -> Message {
    Message::new().msg(1, regex(pattern)).str(2, substitution)
}

/// `envoy.config.route.v3.HeaderMatcher`.
pub fn header_matcher(matcher: &HeaderMatcher) -> Message {
    let message = Message::new().str(1, &matcher.name);
    let message = match &matcher.value {
        HeaderValueMatch::Present(present) => message.bool_always(7, *present),
        HeaderValueMatch::String(m) => message.msg(13, string_matcher(m)),
        // Int64Range
        HeaderValueMatch::Range { start, end } => message.msg(6, Message::new().int(1, *start).int(2, *end)),
    };
    message.bool(8, matcher.invert).bool(14, matcher.treat_missing_as_empty)
}

/// `envoy.config.core.v3.HeaderValueOption`.
pub fn header_value(option: &HeaderValueOption) -> Message {
    let action = match option.append {
        AppendAction::AppendIfExistsOrAdd => 0,
        AppendAction::AddIfAbsent => 1,
        AppendAction::OverwriteIfExistsOrAdd => 2,
        AppendAction::OverwriteIfExists => 3,
    };
    let header = Message::new().str(1, &option.name).str(2, &option.value);
    Message::new().msg(1, header).uint(3, action).bool(4, option.keep_empty)
}

/// `repeated envoy.config.common.mutation_rules.v3.HeaderMutation`.
pub fn mutations(mutation: &HeaderMutation) -> impl Iterator<Item = Message> {
    let removals = mutation.remove.iter().map(|name| Message::new().str_always(1, name));
    removals.chain(mutation.add.iter().map(|option| Message::new().msg(2, header_value(option))))
}

/// `envoy.config.core.v3.ConfigSource` for ADS, v3.
pub fn ads(initial_fetch_timeout: Option<std::time::Duration>) -> Message {
    Message::new().msg(3, Message::new()).duration_maybe(4, initial_fetch_timeout).uint(6, 2)
}

/// `SdsSecretConfig`.
pub fn sds(secret: &SdsRef) -> Message {
    let source = match &secret.source {
        SdsSource::Ads => Some(ads(None)),
        SdsSource::Cluster(cluster) => {
            // ApiConfigSource { api_type GRPC, grpc_services { envoy_grpc { cluster_name } }, version v3,
            // set_node_on_first_message_only }
            let service = Message::new().msg(1, Message::new().str(1, cluster));
            let api = Message::new().uint(1, 2).msg(4, service).bool(7, true).uint(8, 2);
            Some(Message::new().msg(2, api).duration(4, std::time::Duration::ZERO).uint(6, 2))
        }
        SdsSource::Path(path) => {
            // path_config_source { path }
            let path = Message::new().str(1, &path.to_string_lossy());
            Some(Message::new().msg(8, path).uint(6, 2))
        }
        SdsSource::Bootstrap => None,
    };
    Message::new().str(1, &secret.name).maybe(2, source)
}

/// Whether a TLS context is plain defaults, so that nothing has to be said.
pub fn has_tls_params(tls: &CommonTls) -> bool {
    tls.min_version.is_some()
        || tls.max_version.is_some()
        || !tls.cipher_suites.is_empty()
        || !tls.ecdh_curves.is_empty()
}
