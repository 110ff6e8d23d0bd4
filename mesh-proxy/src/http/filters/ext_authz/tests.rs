use mesh_api::model::{AuthzGrpc, AuthzHttp, StringMatcher};

use super::*;
use crate::http::testing;

fn over_http(change: impl FnOnce(&mut model::ExtAuthz, &mut AuthzHttp)) -> ExtAuthz {
    let mut service = AuthzHttp {
        cluster: "authz".into(),
        uri: "http://authz".into(),
        timeout: std::time::Duration::from_secs(1),
        path_prefix: "".into(),
        headers_to_add: vec![],
        upstream_headers: vec![],
        upstream_headers_to_append: vec![],
        client_headers: vec![],
        client_headers_on_success: vec![],
    };
    let grpc =
        AuthzGrpc { cluster: "".into(), authority: "".into(), timeout: service.timeout, initial_metadata: vec![] };
    let mut config = model::ExtAuthz::new(AuthzService::Grpc(grpc));
    change(&mut config, &mut service);
    config.service = AuthzService::Http(Box::new(service));
    ExtAuthz::compile(&config).unwrap()
}

fn head(headers: &[(&'static str, &'static [u8])]) -> RequestHead {
    let mut head = testing::get("a.test", "/p?q=1&r=2");
    for (name, value) in headers {
        head.headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    head
}

fn raw(name: &str, value: &str) -> RawHeader {
    (name.to_owned(), value.as_bytes().to_vec())
}

#[test]
fn over_http_the_least_is_told() {
    let filter = over_http(|_, _| {});
    let head = head(&[("authorization", b"t"), ("x-a", b"1"), ("cookie", b"c")]);
    let asked = filter.http_request(&head, None).unwrap();
    let names: Vec<&str> = asked.headers.keys().map(|n| n.as_str()).collect();
    assert_eq!(names, ["authorization"]);
    assert_eq!((asked.target.as_str(), asked.authority.as_str()), ("/p?q=1&r=2", "a.test"));
    let filter = over_http(|config, service| {
        config.allowed_headers = vec![StringMatcher::prefix("x-"), StringMatcher::exact("content-length")];
        config.disallowed_headers = vec![StringMatcher::exact("x-secret")];
        service.path_prefix = "/check".into();
        service.headers_to_add = vec![("x-a".into(), "mesh".into())];
    });
    let head = self::head(&[("x-a", b"1"), ("x-b", b"\xff"), ("x-secret", b"s"), ("content-length", b"9")]);
    let asked = filter.http_request(&head, Some(true)).unwrap();
    assert_eq!(asked.target.as_str(), "/check/p?q=1&r=2");
    assert_eq!(
        (&asked.headers["x-a"], asked.headers["x-b"].as_bytes()),
        (&HeaderValue::from_static("mesh"), &b"\xff"[..])
    );
    assert_eq!(asked.headers[PARTIAL], "true");
    assert!(!asked.headers.contains_key("x-secret") && !asked.headers.contains_key("content-length"));
    let mut connect = testing::get("a.test", "/");
    connect.method = Method::CONNECT;
    assert!(filter.http_request(&connect, None).is_err(), "nothing can be asked, so it is refused");
}

#[test]
fn over_grpc_everything_is_told_that_may_be() {
    let grpc = AuthzGrpc {
        cluster: "authz".into(),
        authority: "".into(),
        timeout: std::time::Duration::ZERO,
        initial_metadata: vec![],
    };
    let mut config = model::ExtAuthz::new(AuthzService::Grpc(grpc));
    let head = head(&[("x-a", b"1"), ("x-a", b"2"), ("x-bytes", b"\xffa")]);
    let all = ExtAuthz::compile(&config)
        .unwrap()
        .told(&head)
        .into_iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>();
    assert_eq!(
        all,
        [":authority=a.test", ":method=GET", ":path=/p?q=1&r=2", ":scheme=http", "x-a=1,2", "x-bytes=\u{fffd}a"]
    );
    config.allowed_headers = vec![StringMatcher::exact("x-b")];
    let some = ExtAuthz::compile(&config).unwrap();
    assert_eq!(some.told(&head).len(), 4, "what makes the request is always told");
}

#[test]
fn answers_over_http() {
    let filter = over_http(|_, service| {
        service.upstream_headers = vec![StringMatcher::prefix("x-user"), StringMatcher::exact("content-length")];
        service.client_headers = vec![StringMatcher::exact("x-why")];
        service.client_headers_on_success = vec![StringMatcher::exact("set-cookie")];
    });
    let headers: HeaderMap = [
        ("x-user", "u"),
        ("x-why", "w"),
        ("x-other", "o"),
        ("set-cookie", "c"),
        ("location", "/login"),
        ("content-length", "3"),
        ("x-envoy-auth-headers-to-remove", "cookie, x-b"),
    ]
    .into_iter()
    .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
    .collect();
    let Ok(Answer::Allowed(changes)) = filter.http_answer(200, &headers, Bytes::new()) else { panic!() };
    let mut request = head(&[("cookie", b"c"), ("content-length", b"7")]);
    let response = changes.apply(&mut request).unwrap();
    assert_eq!(request.headers["x-user"], "u");
    assert_eq!(request.headers["content-length"], "7", "nobody else says how long a body is");
    assert!(!request.headers.contains_key("cookie"));
    assert_eq!(response.len(), 1);
    let Ok(Answer::Denied(denial)) = filter.http_answer(302, &headers, "no".into()) else { panic!() };
    let reply = denial.reply().unwrap();
    let names: Vec<&str> = reply.headers.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!((reply.status, names, &*reply.body), (302, vec!["x-why", "location"], &b"no"[..]));
    assert_eq!((reply.reason.flag().text(), reply.reason.details()), ("UAEX".into(), "ext_authz_denied".into()));
    // Only 200 lets pass; what went wrong there says nothing.
    assert!(matches!(filter.http_answer(204, &headers, Bytes::new()), Ok(Answer::Denied(_))));
    assert!(filter.http_answer(503, &headers, Bytes::new()).is_err());
}

#[test]
fn changes_of_a_request() {
    let changes = Changes {
        set: vec![
            raw(":path", "/new?x=1"),
            raw("Host", "b.test"),
            raw("x-a", "2"),
            raw("transfer-encoding", "chunked"),
        ],
        append: vec![raw("x-a", "3"), raw("x-absent", "4")],
        add: vec![raw("x-new", "5")],
        remove: vec!["x-gone".to_owned(), ":path".to_owned(), "host".to_owned()],
        query_set: vec![("y".to_owned(), "2".to_owned())],
        query_remove: vec!["x".to_owned()],
        ..Changes::default()
    };
    let mut request = head(&[("x-a", b"1"), ("x-gone", b"g")]);
    changes.apply(&mut request).unwrap();
    assert_eq!((request.target.as_str(), request.authority.as_str()), ("/new?y=2", "b.test"));
    let values: Vec<_> = request.headers.get_all("x-a").iter().collect();
    assert_eq!(values, ["2", "3"]);
    assert_eq!(request.headers["x-new"], "5");
    for name in ["x-absent", "x-gone", "transfer-encoding"] {
        assert!(!request.headers.contains_key(name), "{name}");
    }
    for bad in [
        raw(":path", "no"),
        raw(":authority", "a b"),
        raw("x y", "1"),
        raw("x-a", "a\r\nb: c"),
        raw(":method", "CONNECT"),
    ] {
        let changes = Changes { set: vec![bad.clone()], ..Changes::default() };
        assert!(changes.apply(&mut head(&[])).is_err(), "{bad:?}");
    }
}

#[test]
fn refusals_stay_refusals() {
    let denial = |status, headers| Denial { status, headers, ..Denial::default() };
    assert_eq!(denial(0, vec![]).reply().unwrap().status, 403);
    assert_eq!(denial(101, vec![]).reply().unwrap().status, 403);
    let reply =
        denial(401, vec![(raw("x", "1"), false), (raw("x", "2"), true), (raw("x", "3"), false)]).reply().unwrap();
    assert_eq!(reply.headers.len(), 1);
    assert!(denial(401, vec![(raw("x", "\n"), false)]).reply().is_err());
}

#[test]
fn failures_close_unless_they_are_to_open() {
    let closed = over_http(|config, _| config.status_on_error = 503);
    let reply = closed.failed(None).unwrap();
    assert_eq!((reply.status, reply.reason.details()), (503, "ext_authz_error".into()));
    let open = over_http(|config, _| (config.failure_mode_allow, config.failure_mode_allow_header) = (true, true));
    let mut request = head(&[]);
    assert!(open.failed(Some(&mut request)).is_none());
    assert_eq!(request.headers["x-envoy-auth-failure-mode-allowed"], "true");
}

#[test]
fn asks_only_where_shadow_rules_say_so() {
    let condition = model::MetadataMatch {
        filter: super::super::rbac::HTTP_METADATA.into(),
        path: vec!["istio_ext_authz_shadow_effective_policy_id".into()],
        value: model::MetadataValue::String(StringMatcher::prefix("istio-ext-authz-p-ns[")),
        invert: false,
    };
    let filter = over_http(|config, _| config.enabled_metadata = Some(condition));
    let mut metadata = model::Metadata::new();
    assert!(!filter.applies(&metadata, || 0));
    let mut say = |policy: Option<&str>| {
        let verdict = super::super::rbac::Verdict { allowed: policy.is_none(), policy: policy.map(Name::from) };
        super::super::rbac::note_shadow(&mut metadata, super::super::rbac::HTTP_METADATA, "istio_ext_authz_", &verdict);
        filter.applies(&metadata, || 0)
    };
    assert!(!say(Some("istio-ext-authz-p2-ns[a]-policy[b]-rule[0]")));
    assert!(say(Some("istio-ext-authz-p-ns[a]-policy[b]-rule[0]")));
}

#[test]
fn names_of_clusters_become_hosts() {
    let service = AuthzGrpc {
        cluster: "outbound|80||a.b".into(),
        authority: "".into(),
        timeout: std::time::Duration::from_secs(600),
        initial_metadata: vec![],
    };
    let head = grpc_head(&service, CHECK).unwrap();
    assert_eq!(
        (head.authority.as_str(), &head.headers["grpc-timeout"]),
        ("outbound_.80_._.a.b", &HeaderValue::from_static("600000m"))
    );
}

#[test]
fn a_call_that_cannot_be_made_is_refused_when_it_is_configured() {
    let service = |authority: &str, name: &str| AuthzGrpc {
        cluster: "authz".into(),
        authority: authority.into(),
        timeout: std::time::Duration::from_secs(1),
        initial_metadata: vec![(name.into(), "v".into())],
    };
    let compile = |service| {
        let filter = over_http(|_, _| ());
        ExtAuthz::compile(&model::ExtAuthz { service: AuthzService::Grpc(service), ..filter.config })
    };
    assert!(compile(service("a.test", "x-a")).unwrap().grpc_call().is_some());
    assert!(compile(service("a test", "x-a")).is_err());
    assert!(compile(service("a.test", "x a")).is_err());
}
