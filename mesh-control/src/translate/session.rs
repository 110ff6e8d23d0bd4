//! Sticky sessions as rules of HTTPRoutes and GRPCRoutes declare them (`sessionPersistence`).
//!
//! Owns what the client remembers and its name when nobody gave it one. Must not know where the rule leads.

use std::time::Duration;

use mesh_api::{
    crd::gateway_api::{CookieLifetime, SessionPersistence, SessionType},
    model::{FilterOverride, Name, SessionCookie, SessionState, StatefulSession},
};

use super::filter_names;

/// Beginning of names that we make.
const MADE: &str = "mesh-session-";

/// The session of a rule. `rule` tells it from every other rule; a name that is made from it stays the same over
/// restarts and replicas, so that clients are not forgotten.
pub fn filter(persistence: &SessionPersistence, rule: &str) -> (Name, FilterOverride) {
    let made = || format!("{MADE}{:016x}", xxhash_rust::xxh3::xxh3_64(rule.as_bytes()));
    let given = |own: Option<&str>| {
        let names = [own.unwrap_or_default(), persistence.session_name.as_str()];
        names.into_iter().find(|name| !name.is_empty()).map_or_else(made, str::to_owned)
    };
    let state = match persistence.kind.unwrap_or_default() {
        SessionType::Cookie => {
            let cookie = persistence.cookie.as_ref();
            let path = cookie.map(|c| c.path.as_str()).filter(|p| !p.is_empty()).unwrap_or("/");
            let permanent = persistence.lifetime() == CookieLifetime::Permanent;
            let ttl = persistence.absolute_timeout.filter(|_| permanent);
            SessionState::Cookie(SessionCookie {
                name: given(cookie.map(|c| c.name.as_str())).into(),
                ttl: ttl.map_or(Duration::ZERO, |d| d.0),
                path: path.into(),
                attributes: vec![],
            })
        }
        SessionType::Header => {
            let name = given(persistence.header.as_ref().map(|h| h.name.as_str()));
            SessionState::Header(name.to_ascii_lowercase().into())
        }
    };
    (filter_names::SESSION.into(), FilterOverride::StatefulSession(StatefulSession { state, strict: false }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(yaml: &str, rule: &str) -> SessionState {
        let (name, session) = filter(&serde_saphyr::from_str(yaml).unwrap(), rule);
        assert_eq!(&*name, "envoy.filters.http.stateful_session");
        let FilterOverride::StatefulSession(session) = session else { panic!("{session:?}") };
        assert!(!session.strict);
        session.state
    }

    fn cookie(yaml: &str) -> (String, u64, String) {
        let SessionState::Cookie(c) = state(yaml, "r") else { panic!("{yaml}") };
        (c.name.to_string(), c.ttl.as_secs(), c.path.to_string())
    }

    #[test]
    fn cookies() {
        let expected = |name: &str, ttl, path: &str| (name.to_owned(), ttl, path.to_owned());
        assert_eq!(cookie("{cookie: {name: a}}"), expected("a", 0, "/"));
        assert_eq!(cookie("{type: Cookie, cookie: {name: a, path: /x}, absoluteTimeout: 1h}"), expected("a", 0, "/x"));
        let permanent = "{cookie: {name: a, lifetimeType: Permanent}, absoluteTimeout: 1h}";
        assert_eq!(cookie(permanent), expected("a", 3600, "/"));
        let older = "{sessionName: b, cookieConfig: {lifetimeType: Permanent}, absoluteTimeout: 1m}";
        assert_eq!(cookie(older), expected("b", 60, "/"));
    }

    #[test]
    fn headers() {
        assert_eq!(state("{type: Header, header: {name: X-Session}}", "r"), SessionState::Header("x-session".into()));
        assert_eq!(state("{type: Header, sessionName: X-Old}", "r"), SessionState::Header("x-old".into()));
    }

    #[test]
    fn names_that_are_made_belong_to_one_rule() {
        let made = |rule| match state("{cookie: {}}", rule) {
            SessionState::Cookie(c) => c.name.to_string(),
            SessionState::Header(name) => name.to_string(),
        };
        assert!(made("a").starts_with(MADE) && made("a") == made("a") && made("a") != made("b"));
    }
}
