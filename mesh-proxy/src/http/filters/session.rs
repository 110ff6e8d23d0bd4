//! Stateful sessions: a client's requests go to the endpoint that answered its first one, which the client itself
//! remembers in a cookie or a header. Knows no cluster.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use mesh_api::model::{self, SessionState};

use crate::{
    config::ConfigError,
    http::{hash::set_cookie, matchers::cookie_value, message::RequestHead},
};

/// A compiled session.
#[derive(Debug)]
pub struct Session {
    state: State,
    /// No other endpoint will do.
    pub strict: bool,
}

#[derive(Debug)]
enum State {
    Cookie(model::SessionCookie),
    Header(HeaderName),
}

/// What a cookie holds, as Envoy writes it: a message whose first field, a text, is the address.
fn held(address: &str) -> Vec<u8> {
    // An address is shorter than 128 bytes.
    let mut out = vec![ADDRESS, u8::try_from(address.len()).unwrap_or(0)];
    out.extend_from_slice(address.as_bytes());
    out
}

/// The address in it. An older form is the address alone.
fn address_in(bytes: &[u8]) -> Option<&str> {
    let text = match bytes {
        [ADDRESS, length, rest @ ..] => rest.get(..usize::from(*length))?,
        plain => plain,
    };
    std::str::from_utf8(text).ok()
}

/// Number and kind of that field.
const ADDRESS: u8 = 0x0a;

impl Session {
    /// Compiles a session.
    ///
    /// # Errors
    /// A header name that is not valid, a cookie without a name.
    pub fn compile(s: &model::StatefulSession) -> Result<Self, ConfigError> {
        let state = match &s.state {
            SessionState::Cookie(config) => {
                // Whether it can be written at all.
                set_cookie(&config.name, "", config.ttl, &config.path, &config.attributes)
                    .filter(|_| !config.name.is_empty())
                    .ok_or_else(|| ConfigError::new(format!("session: {:?} is not a cookie", config.name)))?;
                State::Cookie(config.clone())
            }
            SessionState::Header(name) => State::Header(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| ConfigError::new(format!("session: {name:?} is not a header name")))?,
            ),
        };
        Ok(Self { state, strict: s.strict })
    }

    /// Whether it is kept for this request.
    pub fn applies(&self, head: &RequestHead) -> bool {
        match &self.state {
            State::Header(_) => true,
            State::Cookie(cookie) => within(&cookie.path, head.path()),
        }
    }

    /// The endpoint that the client remembers.
    pub fn wanted(&self, head: &RequestHead) -> Option<SocketAddr> {
        match &self.state {
            State::Header(name) => text_of(head.headers.get(name)?.as_bytes())?.parse().ok(),
            State::Cookie(cookie) => {
                let bytes = STANDARD.decode(cookie_value(&head.headers, &cookie.name)?).ok()?;
                // How long it holds is the client's affair: clocks of proxies differ.
                address_in(&bytes)?.parse().ok()
            }
        }
    }

    /// Tells the client which endpoint answered.
    pub fn tell(&self, endpoint: SocketAddr, headers: &mut HeaderMap) {
        match &self.state {
            State::Header(name) => {
                if let Ok(value) = HeaderValue::from_str(&STANDARD.encode(endpoint.to_string())) {
                    headers.insert(name.clone(), value);
                }
            }
            State::Cookie(cookie) => {
                let value = STANDARD.encode(held(&endpoint.to_string()));
                if let Some(value) = set_cookie(&cookie.name, &value, cookie.ttl, &cookie.path, &cookie.attributes) {
                    headers.append(header::SET_COOKIE, value);
                }
            }
        }
    }
}

fn text_of(base64: &[u8]) -> Option<String> {
    String::from_utf8(STANDARD.decode(base64).ok()?).ok()
}

/// Whether a cookie of one path is sent for another, as browsers decide it.
fn within(cookie: &str, path: &str) -> bool {
    if cookie.is_empty() || cookie == "/" {
        return true;
    }
    let Some(rest) = path.strip_prefix(cookie) else { return false };
    rest.is_empty() || cookie.ends_with('/') || rest.starts_with('/')
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::testing;

    const ENDPOINT: &str = "10.0.0.1:8080";

    fn cookie(path: &str, ttl: u64) -> Session {
        let config = model::SessionCookie {
            name: "sticky".into(),
            ttl: Duration::from_secs(ttl),
            path: path.into(),
            attributes: vec![("SameSite".into(), "Strict".into())],
        };
        Session::compile(&model::StatefulSession { state: SessionState::Cookie(config), strict: false }).unwrap()
    }

    #[test]
    fn what_is_told_is_remembered() {
        let header = SessionState::Header("x-session".into());
        let header = Session::compile(&model::StatefulSession { state: header, strict: true }).unwrap();
        let endpoint = ENDPOINT.parse().unwrap();
        let (mut told, mut head) = (HeaderMap::new(), testing::get("a.test", "/"));
        header.tell(endpoint, &mut told);
        head.headers.insert("x-session", told["x-session"].clone());
        assert_eq!(header.wanted(&head), Some(endpoint));

        let session = cookie("/", 60);
        session.tell(endpoint, &mut told);
        let set = told[header::SET_COOKIE].to_str().unwrap();
        assert!(set.ends_with("; Max-Age=60; Path=/; SameSite=Strict; HttpOnly"), "{set}");
        let pair = set.split(';').next().unwrap();
        head.headers.insert(header::COOKIE, format!("a=b; {pair}").parse().unwrap());
        assert_eq!(session.wanted(&head), Some(endpoint));
    }

    #[test]
    fn nonsense_is_no_session() {
        let session = cookie("/", 0);
        let asked = |value: &str| {
            let mut head = testing::get("a.test", "/");
            head.headers.insert(header::COOKIE, format!("sticky={value}").parse().unwrap());
            session.wanted(&head)
        };
        assert_eq!(asked(&STANDARD.encode(ENDPOINT)), ENDPOINT.parse().ok(), "the older form");
        for bad in ["", "!", "AAAA", &STANDARD.encode("here"), &STANDARD.encode("\n\x04here")] {
            assert_eq!(asked(bad), None, "{bad:?}");
        }
        assert_eq!(session.wanted(&testing::get("a.test", "/")), None);
    }

    #[test]
    fn cookies_hold_for_their_path() {
        for (path, asked, holds) in [
            ("/", "/x", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/a", "/", false),
        ] {
            assert_eq!(cookie(path, 0).applies(&testing::get("a.test", asked)), holds, "{path} {asked}");
        }
    }

    #[test]
    fn names_are_checked_when_it_is_configured() {
        let compile = |state| Session::compile(&model::StatefulSession { state, strict: false });
        assert!(compile(SessionState::Header("a b".into())).is_err());
        let nameless =
            model::SessionCookie { name: "".into(), ttl: Duration::ZERO, path: "".into(), attributes: vec![] };
        assert!(compile(SessionState::Cookie(nameless)).is_err());
    }
}
