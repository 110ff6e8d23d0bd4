//! Filters of HTTP managers with everything set, and what routes override of them.

use std::time::Duration;

use mesh_api::model::*;

use super::*;

pub fn rbac() -> Rbac {
    let net = CidrRange { address: [10, 0, 0, 0].into(), prefix_len: 8 };
    let meta = |value| MetadataMatch { filter: "f".into(), path: vec!["a".into(), "b".into()], value, invert: true };
    let permissions = vec![
        Permission::Any,
        Permission::Not(Box::new(Permission::Any)),
        Permission::And(vec![
            Permission::UrlPath(StringMatcher::prefix("/a")),
            Permission::DestinationPort(80),
            Permission::DestinationPortRange(1, 1024),
        ]),
        Permission::Or(vec![Permission::DestinationIp(net), Permission::UriTemplate("/a/{*}".into())]),
        Permission::Header(header(HeaderValueMatch::Present(true), false)),
        Permission::RequestedServerName(StringMatcher::suffix(".a")),
        Permission::Metadata(meta(MetadataValue::Bool(true))),
    ];
    let one_of = MetadataValue::OneOf(vec![MetadataValue::Present(true)]);
    let principals = vec![
        Principal::Authenticated(None),
        Principal::Authenticated(Some(StringMatcher::exact("spiffe://a/ns/b/sa/c"))),
        Principal::And(vec![Principal::DirectRemoteIp(net), Principal::RemoteIp(net), Principal::SourceIp(net)]),
        Principal::Or(vec![Principal::Not(Box::new(Principal::Any)), Principal::UrlPath(StringMatcher::exact("/"))]),
        Principal::Metadata(meta(MetadataValue::ListOneOf(Box::new(MetadataValue::String(StringMatcher::exact("x")))))),
        Principal::Metadata(meta(one_of)),
        Principal::FilterState("k".into(), StringMatcher::exact("v")),
    ];
    let policy =
        |name: &str| Policy { name: name.into(), permissions: permissions.clone(), principals: principals.clone() };
    Rbac {
        action: RbacAction::Deny,
        policies: vec![policy("ns[a]-policy[b]-rule[0]"), policy("ns[a]-policy[b]-rule[1]")],
    }
}

pub fn fault() -> FaultFilter {
    FaultFilter {
        delay: Some((Fraction::from_percent(12.5), Duration::from_millis(1500))),
        abort: Some((Fraction(1), FaultAbort::Http(503))),
        max_active: Some(3),
        headers: headers(),
    }
}

pub fn rate_limit() -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "l".into(),
        max_tokens: 10,
        tokens_per_fill: 5,
        fill_interval: seconds(1),
        enabled: Fraction::ALWAYS,
        enforced: Fraction::from_percent(50.0),
        status: 429,
        response_headers: HeaderMutation { remove: vec![], ..mutation() },
    }
}

pub fn session(state: SessionState) -> StatefulSession {
    StatefulSession { state, strict: true }
}

pub fn session_cookie() -> SessionState {
    SessionState::Cookie(SessionCookie {
        name: "c".into(),
        ttl: seconds(60),
        path: "/p".into(),
        attributes: vec![("SameSite".into(), "Strict".into())],
    })
}

pub fn rate_limit_rules() -> Vec<RateLimitRule> {
    use RateLimitAction as A;
    let (key, value, name) = (Name::from("k"), Name::from("v"), Name::from("n"));
    let metadata = A::Metadata {
        key: key.clone(),
        of_route: true,
        filter: "f".into(),
        path: vec!["a".into(), "b".into()],
        default: "d".into(),
        skip_if_absent: true,
    };
    let query = vec![QueryMatcher { name: name.clone(), value: Some(StringMatcher::exact("x")) }];
    let actions = vec![
        A::SourceCluster,
        A::DestinationCluster,
        A::Header { name: name.clone(), key: key.clone(), skip_if_absent: true },
        A::Query { name, key: key.clone(), skip_if_absent: false },
        A::RemoteAddress,
        A::MaskedRemoteAddress { v4: 24, v6: 0 },
        A::Generic { key: key.clone(), value: value.clone() },
        A::HeaderMatch { key: key.clone(), value: value.clone(), expect: false, headers: headers() },
        A::QueryMatch { key, value, expect: true, query },
        metadata,
    ];
    vec![RateLimitRule { stage: 3, actions, hits: Some(2) }]
}

pub fn global_rate_limit() -> GlobalRateLimit {
    let AuthzService::Grpc(service) = authz_grpc() else { unreachable!("it is asked over gRPC") };
    GlobalRateLimit {
        stat_prefix: "g".into(),
        stage: 3,
        requests: RequestType::External,
        failure_mode_deny: true,
        resource_exhausted: true,
        limit_headers: true,
        no_envoy_header: true,
        status: 430,
        status_on_error: 503,
        response_headers: HeaderMutation { remove: vec![], ..mutation() },
        enabled: Fraction::from_percent(10.0),
        enforced: Fraction::from_percent(50.0),
        rules: rate_limit_rules(),
        metadata_namespace: "ns".into(),
        ..GlobalRateLimit::new("d", service)
    }
}

pub fn jwt_authn() -> JwtAuthn {
    let pair = |a: &str, b: &str| (Name::from(a), Name::from(b));
    let local = JwtProvider {
        audiences: vec!["a".into(), "b".into()],
        subject: Some(StringMatcher::prefix("s")),
        require_expiration: true,
        max_lifetime: Some(seconds(3600)),
        clock_skew: seconds(5),
        forward: true,
        from_headers: vec![pair("authorization", "Bearer "), pair("x-token", "")],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        forward_payload_header: "x-payload".into(),
        pad_forward_payload_header: true,
        payload_in_metadata: "payload".into(),
        header_in_metadata: "header".into(),
        space_delimited_claims: vec!["scope".into()],
        claim_to_headers: vec![pair("x-sub", "sub")],
        clear_route_cache: true,
        ..JwtProvider::new("https://issuer", JwtKeys::Local(DataSource::Inline("{\"keys\":[]}".into())))
    };
    let remote = RemoteKeys {
        uri: "https://issuer/keys".into(),
        cluster: "issuer".into(),
        timeout: seconds(3),
        cache: seconds(300),
        ahead: true,
        retry_after: seconds(2),
    };
    let file = JwtKeys::Local(DataSource::File("/keys.json".into()));
    let requires = JwtRequirement::Any(vec![
        JwtRequirement::Provider("a".into()),
        JwtRequirement::All(vec![
            JwtRequirement::ProviderWithAudiences("b".into(), vec!["x".into()]),
            JwtRequirement::AllowMissing,
        ]),
        JwtRequirement::AllowMissingOrFailed,
    ]);
    JwtAuthn {
        providers: vec![
            ("a".into(), local),
            ("b".into(), JwtProvider::new("", file)),
            ("c".into(), JwtProvider::new("c", JwtKeys::Remote(remote))),
        ],
        rules: vec![
            JwtRule { matches: RouteMatch::path(PathMatch::Exact("/open".into())), requires: None },
            JwtRule { matches: RouteMatch::any(), requires: Some(requires) },
        ],
        requirements: vec![("strict".into(), JwtRequirement::Provider("a".into()))],
        bypass_cors_preflight: true,
        strip_failure_response: true,
    }
}

pub fn authz(service: AuthzService) -> ExtAuthz {
    let value = MetadataValue::String(StringMatcher::prefix("istio-ext-authz-p-ns["));
    ExtAuthz {
        stat_prefix: "authz".into(),
        failure_mode_allow: true,
        failure_mode_allow_header: true,
        status_on_error: 503,
        body: Some(AuthzBody { max_bytes: 10, allow_partial: true, as_bytes: true }),
        clear_route_cache: true,
        enabled: Fraction::from_percent(50.0),
        deny_at_disable: true,
        enabled_metadata: Some(MetadataMatch { filter: "f".into(), path: vec!["k".into()], value, invert: false }),
        allowed_headers: vec![StringMatcher::exact("a")],
        disallowed_headers: vec![StringMatcher::exact("b")],
        include_certificate: true,
        include_tls_session: true,
        metadata_namespaces: vec!["m".into()],
        ..ExtAuthz::new(service)
    }
}

pub fn authz_grpc() -> AuthzService {
    AuthzService::Grpc(AuthzGrpc {
        cluster: "c".into(),
        authority: "a".into(),
        timeout: seconds(600),
        initial_metadata: vec![("k".into(), "v".into())],
    })
}

pub fn authz_http() -> AuthzService {
    AuthzService::Http(Box::new(AuthzHttp {
        cluster: "c".into(),
        uri: "http://a".into(),
        timeout: seconds(1),
        path_prefix: "/p".into(),
        headers_to_add: vec![("h".into(), "v".into())],
        upstream_headers: vec![StringMatcher::suffix("u")],
        upstream_headers_to_append: vec![StringMatcher::prefix("a")],
        client_headers: vec![StringMatcher::exact("c")],
        client_headers_on_success: vec![StringMatcher::exact("s")],
    }))
}

/// What of it there is for connections.
pub fn authz_tcp() -> ExtAuthz {
    ExtAuthz {
        stat_prefix: "tcp.".into(),
        failure_mode_allow: true,
        enabled_metadata: authz(authz_grpc()).enabled_metadata,
        include_certificate: true,
        include_tls_session: true,
        metadata_namespaces: vec!["m".into()],
        ..ExtAuthz::new(authz_grpc())
    }
}

pub fn overrides() -> Vec<(Name, FilterOverride)> {
    let cors = CorsPolicy {
        allow_origins: vec![StringMatcher::exact("https://a")],
        allow_methods: "GET".into(),
        allow_headers: "x".into(),
        expose_headers: "y".into(),
        max_age: "60".into(),
        allow_credentials: Some(true),
        enabled: Some(Fraction::ALWAYS),
        forward_not_matching_preflights: Some(false),
    };
    let rbac = RbacFilter { rules: Some(rbac()), ..RbacFilter::default() };
    vec![
        ("a".into(), FilterOverride::Disabled),
        (
            "authz".into(),
            FilterOverride::ExtAuthz(AuthzSettings {
                context: vec![("a".into(), "1".into()), ("b".into(), "2".into())],
                no_body: true,
                body: Some(AuthzBody { max_bytes: 1, allow_partial: false, as_bytes: false }),
            }),
        ),
        ("b".into(), FilterOverride::Enabled),
        ("cors".into(), FilterOverride::Cors(cors)),
        ("fault".into(), FilterOverride::Fault(fault())),
        (
            "global".into(),
            FilterOverride::GlobalRateLimit(RateLimitSettings {
                host_rules: HostRules::Include,
                rules: rate_limit_rules(),
                domain: "other".into(),
            }),
        ),
        ("jwt".into(), FilterOverride::JwtRequirement("strict".into())),
        ("limit".into(), FilterOverride::LocalRateLimit(rate_limit())),
        ("mutation".into(), FilterOverride::HeaderMutation { request: mutation(), response: mutation() }),
        ("rbac".into(), FilterOverride::Rbac(rbac)),
        ("session".into(), FilterOverride::StatefulSession(session(SessionState::Header("x-s".into())))),
    ]
}
