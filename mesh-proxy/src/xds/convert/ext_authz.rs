//! External authorization. What would change who is let through and is not supported is refused.

use std::time::Duration;

use mesh_api::model::{
    AuthzBody, AuthzGrpc, AuthzHttp, AuthzService, AuthzSettings, ExtAuthz, FilterOverride, Fraction, Name,
};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::extensions::filters::http::ext_authz::v3 as proto;
use mesh_api::xds::envoy::extensions::filters::network::ext_authz::v3 as network;
use mesh_api::xds::envoy::r#type::matcher::v3::ListStringMatcher;

use super::Result;
use super::at::At;
use super::rbac::metadata;
use super::values::{bool_or, duration_or, names, runtime_fraction, sent_headers, string_matchers};

/// As Envoy, for the service of a filter that says nothing.
const GRPC_TIMEOUT: Duration = Duration::from_millis(200);

/// Of requests.
pub fn http(at: &At<'_>, f: &proto::ExtAuthz) -> Result<ExtAuthz> {
    use proto::ext_authz::Services as S;
    if f.shadow_mode {
        return at.field("shadow_mode").refuse("is not supported");
    }
    if f.encode_raw_headers {
        return at.field("encode_raw_headers").refuse("is not supported");
    }
    if f.decoder_header_mutation_rules.is_some() {
        return at.field("decoder_header_mutation_rules").refuse("is not supported");
    }
    if !f.typed_metadata_context_namespaces.is_empty()
        || !f.route_metadata_context_namespaces.is_empty()
        || !f.route_typed_metadata_context_namespaces.is_empty()
    {
        return at.refuse("typed metadata and metadata of routes are not supported");
    }
    let service = match at.required(f.services.as_ref())? {
        S::GrpcService(service) => AuthzService::Grpc(grpc(&at.field("grpc_service"), service)?),
        S::HttpService(service) => AuthzService::Http(Box::new(http_service(&at.field("http_service"), service)?)),
    };
    // The older place of the same list.
    let older = match &f.services {
        #[allow(deprecated)] // still sent
        Some(S::HttpService(s)) => s.authorization_request.as_ref().and_then(|r| r.allowed_headers.as_ref()),
        _ => None,
    };
    let status = f.status_on_error.as_ref().map_or(403, |s| s.code);
    let status_on_error = match u16::try_from(status) {
        Ok(status @ 200..=599) => status,
        _ => return at.field("status_on_error").refuse(format!("{status} is not the status of an answer")),
    };
    let enabled = f.filter_enabled.as_ref();
    let body = f.with_request_body.as_ref();
    let condition = f.filter_enabled_metadata.as_ref();
    Ok(ExtAuthz {
        stat_prefix: f.stat_prefix.as_str().into(),
        service,
        failure_mode_allow: f.failure_mode_allow,
        failure_mode_allow_header: f.failure_mode_allow_header_add,
        status_on_error,
        body: body.map(|b| body_settings(&at.field("with_request_body"), b)).transpose()?,
        clear_route_cache: f.clear_route_cache,
        enabled: enabled.map_or(Ok(Fraction::ALWAYS), |e| runtime_fraction(&at.field("filter_enabled"), e))?,
        deny_at_disable: f.deny_at_disable.as_ref().is_some_and(|d| bool_or(d.default_value, false)),
        enabled_metadata: condition.map(|m| metadata(&at.field("filter_enabled_metadata"), m)).transpose()?,
        allowed_headers: matchers(at, "allowed_headers", f.allowed_headers.as_ref().or(older))?,
        disallowed_headers: matchers(at, "disallowed_headers", f.disallowed_headers.as_ref())?,
        include_certificate: f.include_peer_certificate,
        include_tls_session: f.include_tls_session,
        metadata_namespaces: names(&f.metadata_context_namespaces),
    })
}

/// Of connections.
pub fn connection(at: &At<'_>, f: &network::ExtAuthz) -> Result<ExtAuthz> {
    if f.shadow_mode {
        return at.field("shadow_mode").refuse("is not supported");
    }
    if !f.typed_metadata_context_namespaces.is_empty() {
        return at.refuse("typed metadata is not supported");
    }
    let service = at.field("grpc_service");
    let service = AuthzService::Grpc(grpc(&service, service.required(f.grpc_service.as_ref())?)?);
    let condition = f.filter_enabled_metadata.as_ref();
    Ok(ExtAuthz {
        stat_prefix: f.stat_prefix.as_str().into(),
        failure_mode_allow: f.failure_mode_allow,
        enabled_metadata: condition.map(|m| metadata(&at.field("filter_enabled_metadata"), m)).transpose()?,
        include_certificate: f.include_peer_certificate,
        include_tls_session: f.include_tls_session,
        metadata_namespaces: names(&f.metadata_context_namespaces),
        ..ExtAuthz::new(service)
    })
}

/// Of a route.
pub fn per_route(at: &At<'_>, o: &proto::ExtAuthzPerRoute) -> Result<FilterOverride> {
    use proto::ext_authz_per_route::Override as O;
    let check = match at.required(o.r#override.as_ref())? {
        O::Disabled(true) => return Ok(FilterOverride::Disabled),
        O::Disabled(false) => return at.field("disabled").refuse("must be true"),
        O::CheckSettings(check) => check,
    };
    if check.service_override.is_some() {
        return at.field("check_settings.service_override").refuse("is not supported");
    }
    let mut context: Vec<(Name, Name)> =
        check.context_extensions.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
    context.sort();
    let body = check.with_request_body.as_ref();
    Ok(FilterOverride::ExtAuthz(AuthzSettings {
        context,
        no_body: check.disable_request_body_buffering,
        body: body.map(|b| body_settings(&at.field("check_settings.with_request_body"), b)).transpose()?,
    }))
}

pub(super) fn grpc(at: &At<'_>, s: &core::GrpcService) -> Result<AuthzGrpc> {
    use core::grpc_service::TargetSpecifier as T;
    let target = match at.required(s.target_specifier.as_ref())? {
        T::EnvoyGrpc(target) => target,
        T::GoogleGrpc(_) => return at.field("google_grpc").refuse("is not supported, use envoy_grpc"),
    };
    if target.cluster_name.is_empty() {
        return at.field("envoy_grpc.cluster_name").refuse("is required");
    }
    Ok(AuthzGrpc {
        cluster: target.cluster_name.as_str().into(),
        authority: target.authority.as_str().into(),
        timeout: duration_or(&at.field("timeout"), s.timeout.as_ref(), GRPC_TIMEOUT)?,
        initial_metadata: sent_headers(&s.initial_metadata),
    })
}

fn http_service(at: &At<'_>, s: &proto::HttpService) -> Result<AuthzHttp> {
    use core::http_uri::HttpUpstreamType as U;
    if !s.path_override.is_empty() {
        return at.field("path_override").refuse("is not supported");
    }
    if s.retry_policy.is_some() {
        return at.field("retry_policy").refuse("is not supported");
    }
    let server = at.field("server_uri");
    let uri = server.required(s.server_uri.as_ref())?;
    let cluster = match &uri.http_upstream_type {
        Some(U::Cluster(name)) if !name.is_empty() => name.as_str().into(),
        _ => return server.field("cluster").refuse("is required"),
    };
    if !s.path_prefix.is_empty() && !s.path_prefix.starts_with('/') {
        return at.field("path_prefix").refuse("must begin with /");
    }
    let timeout = server.field("timeout");
    timeout.required(uri.timeout.as_ref())?;
    let answer = s.authorization_response.clone().unwrap_or_default();
    if answer.dynamic_metadata_from_headers.is_some() {
        return at.field("authorization_response.dynamic_metadata_from_headers").refuse("is not supported");
    }
    let at = at.field("authorization_response");
    Ok(AuthzHttp {
        cluster,
        uri: uri.uri.as_str().into(),
        timeout: duration_or(&timeout, uri.timeout.as_ref(), Duration::ZERO)?,
        path_prefix: s.path_prefix.as_str().into(),
        headers_to_add: sent_headers(s.authorization_request.iter().flat_map(|r| &r.headers_to_add)),
        upstream_headers: matchers(&at, "allowed_upstream_headers", answer.allowed_upstream_headers.as_ref())?,
        upstream_headers_to_append: matchers(
            &at,
            "allowed_upstream_headers_to_append",
            answer.allowed_upstream_headers_to_append.as_ref(),
        )?,
        client_headers: matchers(&at, "allowed_client_headers", answer.allowed_client_headers.as_ref())?,
        client_headers_on_success: matchers(
            &at,
            "allowed_client_headers_on_success",
            answer.allowed_client_headers_on_success.as_ref(),
        )?,
    })
}

fn matchers(at: &At<'_>, field: &str, list: Option<&ListStringMatcher>) -> Result<Vec<mesh_api::model::StringMatcher>> {
    list.map_or(Ok(vec![]), |l| string_matchers(at, field, &l.patterns))
}

fn body_settings(at: &At<'_>, b: &proto::BufferSettings) -> Result<AuthzBody> {
    if b.max_request_bytes == 0 {
        return at.field("max_request_bytes").refuse("must be 1 or more");
    }
    Ok(AuthzBody { max_bytes: b.max_request_bytes, allow_partial: b.allow_partial_message, as_bytes: b.pack_as_bytes })
}
