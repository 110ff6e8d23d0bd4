//! Token authentication (`envoy.filters.http.jwt_authn`). What is not understood is refused: a provider that checks less
//! than it says would let something pass.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_api::model::{JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule, Name, RemoteKeys};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::extensions::filters::http::jwt_authn::v3 as proto;

use super::Result;
use super::at::At;
use super::route::route_match;
use super::tls::data_source;
use super::values::{duration_opt, duration_or, names, string_matcher};

/// Requirements in each other.
const MAX_DEPTH: usize = 16;

pub fn jwt_authn(at: &At<'_>, config: &proto::JwtAuthentication) -> Result<JwtAuthn> {
    if config.filter_state_rules.is_some() {
        return at.field("filter_state_rules").refuse("is not supported");
    }
    let sorted: BTreeMap<&String, &proto::JwtProvider> = config.providers.iter().collect();
    let mut providers: Vec<(Name, JwtProvider)> = Vec::with_capacity(sorted.len());
    for (name, p) in sorted {
        let at = at.field("providers");
        providers.push((name.as_str().into(), provider(&at.field(name), p)?));
    }
    let sorted: BTreeMap<&String, &proto::JwtRequirement> = config.requirement_map.iter().collect();
    let mut requirements: Vec<(Name, JwtRequirement)> = Vec::with_capacity(sorted.len());
    for (name, r) in sorted {
        let at = at.field("requirement_map");
        requirements.push((name.as_str().into(), requirement(&at.field(name), r, 0)?));
    }
    let mut rules = Vec::with_capacity(config.rules.len());
    for (i, r) in config.rules.iter().enumerate() {
        rules.push(rule(&at.item("rules", i), r, &requirements)?);
    }
    Ok(JwtAuthn {
        providers,
        rules,
        requirements,
        bypass_cors_preflight: config.bypass_cors_preflight,
        strip_failure_response: config.strip_failure_response,
    })
}

fn rule(at: &At<'_>, r: &proto::RequirementRule, named: &[(Name, JwtRequirement)]) -> Result<JwtRule> {
    use proto::requirement_rule::RequirementType as R;
    let matches = at.field("match");
    let requires = match &r.requirement_type {
        None => None,
        // One without content asks for nothing.
        Some(R::Requires(r)) if r.requires_type.is_none() => None,
        Some(R::Requires(r)) => Some(requirement(&at.field("requires"), r, 0)?),
        Some(R::RequirementName(name)) => match named.iter().find(|(n, _)| **n == **name) {
            Some((_, requirement)) => Some(requirement.clone()),
            None => return at.field("requirement_name").refuse(format!("{name:?} is not in requirement_map")),
        },
    };
    Ok(JwtRule { matches: route_match(&matches, matches.required(r.r#match.as_ref())?)?, requires })
}

fn requirement(at: &At<'_>, r: &proto::JwtRequirement, depth: usize) -> Result<JwtRequirement> {
    use proto::jwt_requirement::RequiresType as R;
    if depth > MAX_DEPTH {
        return at.refuse(format!("requirements are nested more than {MAX_DEPTH} deep"));
    }
    let all = |list: &[proto::JwtRequirement]| {
        let items = list.iter().enumerate();
        items.map(|(i, r)| requirement(&at.item("requirements", i), r, depth + 1)).collect::<Result<Vec<_>>>()
    };
    Ok(match at.required(r.requires_type.as_ref())? {
        R::ProviderName(name) => JwtRequirement::Provider(name.as_str().into()),
        R::ProviderAndAudiences(p) if p.audiences.is_empty() => {
            JwtRequirement::Provider(p.provider_name.as_str().into())
        }
        R::ProviderAndAudiences(p) => {
            JwtRequirement::ProviderWithAudiences(p.provider_name.as_str().into(), names(&p.audiences))
        }
        R::RequiresAny(list) => JwtRequirement::Any(all(&list.requirements)?),
        R::RequiresAll(list) => JwtRequirement::All(all(&list.requirements)?),
        R::AllowMissing(_) => JwtRequirement::AllowMissing,
        R::AllowMissingOrFailed(_) => JwtRequirement::AllowMissingOrFailed,
        R::ExtractOnlyWithoutValidation(_) => return at.refuse("extract_only_without_validation is not supported"),
    })
}

fn provider(at: &At<'_>, p: &proto::JwtProvider) -> Result<JwtProvider> {
    use proto::jwt_provider::JwksSourceSpecifier as S;
    if !p.failed_status_in_metadata.is_empty() {
        return at.field("failed_status_in_metadata").refuse("is not supported");
    }
    let keys = match at.required(p.jwks_source_specifier.as_ref())? {
        S::LocalJwks(source) => JwtKeys::Local(data_source(&at.field("local_jwks"), source)?),
        S::RemoteJwks(remote) => JwtKeys::Remote(remote_keys(&at.field("remote_jwks"), remote)?),
    };
    let subject = p.subjects.as_ref().map(|m| string_matcher(&at.field("subjects"), m)).transpose()?;
    let mut claim_to_headers = Vec::with_capacity(p.claim_to_headers.len());
    for (i, c) in p.claim_to_headers.iter().enumerate() {
        if !c.claim_path.is_empty() {
            return at.item("claim_to_headers", i).refuse("claim_path is not supported, use claim_name");
        }
        claim_to_headers.push((c.header_name.to_ascii_lowercase().into(), c.claim_name.as_str().into()));
    }
    let headers = p.from_headers.iter();
    Ok(JwtProvider {
        issuer: p.issuer.as_str().into(),
        audiences: names(&p.audiences),
        subject,
        require_expiration: p.require_expiration,
        max_lifetime: duration_opt(&at.field("max_lifetime"), p.max_lifetime.as_ref())?,
        clock_skew: Duration::from_secs(if p.clock_skew_seconds == 0 { 60 } else { p.clock_skew_seconds.into() }),
        keys,
        forward: p.forward,
        from_headers: headers.map(|h| (h.name.to_ascii_lowercase().into(), h.value_prefix.as_str().into())).collect(),
        from_params: names(&p.from_params),
        from_cookies: names(&p.from_cookies),
        forward_payload_header: p.forward_payload_header.to_ascii_lowercase().into(),
        pad_forward_payload_header: p.pad_forward_payload_header,
        payload_in_metadata: p.payload_in_metadata.as_str().into(),
        header_in_metadata: p.header_in_metadata.as_str().into(),
        space_delimited_claims: p
            .normalize_payload_in_metadata
            .as_ref()
            .map_or_else(Vec::new, |n| names(&n.space_delimited_claims)),
        claim_to_headers,
        clear_route_cache: p.clear_route_cache,
    })
}

fn remote_keys(at: &At<'_>, r: &proto::RemoteJwks) -> Result<RemoteKeys> {
    let uri_at = at.field("http_uri");
    let uri = uri_at.required(r.http_uri.as_ref())?;
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
        return uri_at.refuse("cluster is required");
    };
    let cache = duration_or(&at.field("cache_duration"), r.cache_duration.as_ref(), Duration::from_secs(600))?;
    if cache < Duration::from_millis(1) {
        return at.field("cache_duration").refuse("must be a millisecond or more");
    }
    let ahead = r.async_fetch.as_ref();
    let after = ahead.and_then(|a| a.failed_refetch_duration.as_ref());
    Ok(RemoteKeys {
        uri: uri.uri.as_str().into(),
        cluster: cluster.as_str().into(),
        timeout: duration_or(&uri_at.field("timeout"), uri.timeout.as_ref(), Duration::from_secs(5))?,
        cache,
        ahead: ahead.is_some(),
        retry_after: duration_or(&at.field("async_fetch.failed_refetch_duration"), after, Duration::from_secs(1))?,
    })
}
