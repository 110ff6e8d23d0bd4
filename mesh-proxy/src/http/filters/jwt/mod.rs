//! Tokens of requests, checked as Envoy's `jwt_authn` does: which requests need one, where it stands, whether it is
//! good, and what of it goes on. Knows no codec and no upstream connection: keys that must be fetched first are named,
//! whoever asks fetches them and asks again.
//!
//! Stricter than Envoy: every token that stands where a provider looks must be good, also where tokens may be missing;
//! a parameter or cookie that stands twice counts twice.

mod claims;
pub mod keys;
pub mod place;
pub mod remote;
pub mod status;
#[cfg(test)]
mod tests;
pub mod token;

use std::{borrow::Cow, sync::Arc};

use http::{HeaderName, HeaderValue, Method, header};
use mesh_api::model::{self, DataSource, JwtKeys, Metadata, Name};
use serde_json::Value;
use tokio::time::Instant;

use self::{
    keys::KeySet,
    place::{Place, header_name, put},
    remote::{Known, Remote},
    status::Status,
    token::{Token, audience},
};
use crate::{
    config::ConfigError,
    http::{
        local_reply::{LocalReply, Reason},
        matchers::StringMatch,
        message::RequestHead,
        router::Matcher,
    },
    net::ConnInfo,
};

/// What of a URL is repeated in `www-authenticate`.
const MAX_REALM: usize = 256;

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    providers: Box<[Provider]>,
    rules: Box<[(Matcher, Option<Requirement>)]>,
    named: Box<[(Name, Requirement)]>,
    bypass_preflight: bool,
    silent: bool,
    /// Headers that say something of tokens; nobody else may.
    outputs: Box<[HeaderName]>,
}

/// What a request needs; providers by their place in the list.
#[derive(Debug)]
pub enum Requirement {
    /// A token of this provider, for these audiences when there are any.
    Provider(usize, Option<Box<[Box<str>]>>),
    /// One of these; `missing`: or no token; `failed`: or anything.
    Any {
        /// The alternatives.
        of: Box<[Requirement]>,
        /// No token is fine.
        missing: bool,
        /// A bad one too.
        failed: bool,
    },
    /// All of these.
    All(Box<[Requirement]>),
    /// No token, or good ones of any provider; `failed`: or bad ones.
    Optional {
        /// Bad ones are fine.
        failed: bool,
    },
}

#[derive(Debug)]
struct Provider {
    issuer: Box<str>,
    audiences: Box<[Box<str>]>,
    subject: Option<StringMatch>,
    require_expiration: bool,
    max_lifetime: Option<u64>,
    clock_skew: u64,
    keys: Keys,
    places: Box<[Place]>,
    forward: bool,
    payload_header: Option<(HeaderName, bool)>,
    payload_key: Name,
    header_key: Name,
    lists: Box<[Name]>,
    claim_headers: Box<[(HeaderName, Name)]>,
    reroute: bool,
}

#[derive(Debug)]
enum Keys {
    Local(KeySet),
    Remote(Arc<Remote>),
}

/// Tokens that were found good.
#[derive(Debug, Default)]
pub struct Passed<'f> {
    good: Vec<Good<'f>>,
    /// Keys to fetch in the background.
    pub renew: Vec<Arc<Remote>>,
}

#[derive(Debug)]
struct Good<'f> {
    provider: &'f Provider,
    place: &'f Place,
    header: Value,
    payload: Value,
    payload_text: String,
}

/// Why a check ended without passing.
#[derive(Debug)]
pub enum Stop {
    /// The request is refused.
    Refused(Status),
    /// These keys have to be fetched; then it is to be asked again.
    Fetch(Arc<Remote>),
}

/// Now, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Seconds since 1970.
    pub unix: u64,
    /// For caches.
    pub instant: Instant,
}

impl Now {
    /// Of this moment.
    pub fn read() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self { unix: since.map_or(0, |d| d.as_secs()), instant: Instant::now() }
    }
}

impl Filter {
    /// Reads keys and names.
    ///
    /// # Errors
    /// A header name or pattern that is none, a provider that does not exist, a file that cannot be read. A key set
    /// without a usable key is no error: tokens of its issuer are refused.
    pub fn compile(config: &model::JwtAuthn) -> Result<Self, ConfigError> {
        let mut outputs = Vec::new();
        let mut providers = Vec::with_capacity(config.providers.len());
        for (name, provider) in &config.providers {
            let compiled =
                Provider::compile(name, provider).map_err(|e| e.within(format_args!("provider {name:?}")))?;
            outputs.extend(compiled.payload_header.iter().map(|(name, _)| name.clone()));
            outputs.extend(compiled.claim_headers.iter().map(|(name, _)| name.clone()));
            providers.push(compiled);
        }
        let requirement = |r: &model::JwtRequirement| Requirement::compile(r, config);
        let rules = config
            .rules
            .iter()
            .map(|rule| Ok((Matcher::compile(&rule.matches)?, rule.requires.as_ref().map(requirement).transpose()?)));
        let named = config.requirements.iter().map(|(name, r)| Ok((name.clone(), requirement(r)?)));
        Ok(Self {
            rules: rules.collect::<Result<_, ConfigError>>()?,
            named: named.collect::<Result<_, ConfigError>>()?,
            providers: providers.into(),
            bypass_preflight: config.bypass_cors_preflight,
            silent: config.strip_failure_response,
            outputs: outputs.into(),
        })
    }

    /// Takes away what only this filter may say, also of requests that need no token.
    pub fn sanitize(&self, head: &mut RequestHead) {
        for name in &self.outputs {
            head.headers.remove(name);
        }
    }

    /// What a request needs. `named`: the requirement that its route names.
    ///
    /// # Errors
    /// The route names a requirement that does not exist.
    pub fn requirement(
        &self,
        head: &RequestHead,
        conn: &ConnInfo,
        random: u64,
        named: Option<&Name>,
    ) -> Result<Option<&Requirement>, LocalReply> {
        if self.bypass_preflight && is_preflight(head) {
            return Ok(None);
        }
        if let Some(wanted) = named {
            return match self.named.iter().find(|(name, _)| name == wanted) {
                Some((_, requirement)) => Ok(Some(requirement)),
                None => Err(Reason::TokenRefused { code: 403, text: "Wrong requirement_name" }.into()),
            };
        }
        let nothing = Metadata::new();
        let rule = self.rules.iter().find(|(matcher, _)| matcher.matches(head, conn, random, &nothing));
        Ok(rule.and_then(|(_, requirement)| requirement.as_ref()))
    }

    /// Checks the tokens of a request.
    ///
    /// # Errors
    /// The request is refused, or keys must be fetched first.
    pub fn check(&self, requirement: &Requirement, head: &RequestHead, now: Now) -> Result<Passed<'_>, Stop> {
        let mut passed = Passed::default();
        self.eval(requirement, head, now, &mut passed)?;
        Ok(passed)
    }

    /// Writes what good tokens say into the request and its metadata. Whether the route has to be looked for again.
    pub fn apply(&self, passed: Passed<'_>, head: &mut RequestHead, metadata: &mut Metadata) -> bool {
        let mut reroute = false;
        for good in passed.good {
            reroute |= good.provider.apply(good, head, metadata);
        }
        reroute
    }

    /// The answer to a request that is refused.
    pub fn refusal(&self, status: Status, head: &RequestHead) -> LocalReply {
        let mut reply = LocalReply::from(Reason::TokenRefused { code: status.code(), text: status.text() });
        if self.silent {
            reply.body = bytes::Bytes::new();
            return reply;
        }
        let error = if status == Status::Missing { "" } else { ", error=\"invalid_token\"" };
        let path: String = head.target.as_str().chars().take(MAX_REALM).collect();
        let realm = format!("{}://{}{path}", head.scheme.as_str(), head.authority.as_str());
        match HeaderValue::from_str(&format!("Bearer realm=\"{realm}\"{error}")) {
            Ok(value) => reply.with_header(header::WWW_AUTHENTICATE, value),
            Err(_) => reply,
        }
    }

    fn eval<'f>(
        &'f self,
        requirement: &Requirement,
        head: &RequestHead,
        now: Now,
        passed: &mut Passed<'f>,
    ) -> Result<(), Stop> {
        match requirement {
            Requirement::Provider(i, audiences) => match self.providers.get(*i) {
                Some(provider) => provider.check(audiences.as_deref(), head, now, passed),
                None => Err(Stop::Refused(Status::UnknownIssuer)),
            },
            Requirement::All(of) => of.iter().try_for_each(|r| self.eval(r, head, now, passed)),
            Requirement::Any { of, missing, failed } => {
                let mut worst = Status::Missing;
                for one in of {
                    let before = passed.good.len();
                    match self.eval(one, head, now, passed) {
                        Err(Stop::Refused(status)) => {
                            passed.good.truncate(before);
                            // What says more than "not here" and "not mine" is what the client is told.
                            if !matches!(status, Status::Missing | Status::UnknownIssuer) || worst == Status::Missing {
                                worst = status;
                            }
                        }
                        other => return other,
                    }
                }
                if *failed || (*missing && worst == Status::Missing) { Ok(()) } else { Err(Stop::Refused(worst)) }
            }
            Requirement::Optional { failed } => self.optional(*failed, head, now, passed),
        }
    }

    /// Whatever tokens there are must be good (or are left alone); the issuer says whose they are.
    fn optional<'f>(&'f self, failed: bool, head: &RequestHead, now: Now, passed: &mut Passed<'f>) -> Result<(), Stop> {
        let mut seen: Vec<&Place> = Vec::new();
        for place in self.providers.iter().flat_map(|p| p.places.iter()) {
            if seen.contains(&place) {
                continue;
            }
            seen.push(place);
            let mut texts = Vec::new();
            place.tokens(head, &mut texts);
            for text in texts {
                let result = Token::parse(&text).map_err(Stop::Refused).and_then(|token| {
                    let here = |p: &&Provider| p.places.contains(place);
                    let by = |issuer: &str| self.providers.iter().filter(here).find(|p| *p.issuer == *issuer);
                    let provider = by(token.issuer()).or_else(|| by("")).ok_or(Stop::Refused(Status::UnknownIssuer))?;
                    provider.verify(token, place, None, now, passed)
                });
                match result {
                    Err(Stop::Refused(_)) if failed => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn compile(requirement: &model::JwtRequirement, config: &model::JwtAuthn) -> Result<Self, ConfigError> {
        use model::JwtRequirement as R;
        let index = |name: &Name| {
            let found = config.providers.iter().position(|(n, _)| n == name);
            found.ok_or_else(|| ConfigError::new(format!("there is no provider {name:?}")))
        };
        let all = |list: &[R]| list.iter().map(|r| Self::compile(r, config)).collect::<Result<Box<[_]>, _>>();
        Ok(match requirement {
            R::Provider(name) => Self::Provider(index(name)?, None),
            R::ProviderWithAudiences(name, audiences) => Self::Provider(index(name)?, Some(compared(audiences))),
            R::All(list) => Self::All(all(list)?),
            R::Any(list) => {
                let missing = list.contains(&R::AllowMissing);
                let failed = list.contains(&R::AllowMissingOrFailed);
                let plain: Vec<R> =
                    list.iter().filter(|r| !matches!(r, R::AllowMissing | R::AllowMissingOrFailed)).cloned().collect();
                Self::Any { of: all(&plain)?, missing, failed }
            }
            R::AllowMissing => Self::Optional { failed: false },
            R::AllowMissingOrFailed => Self::Optional { failed: true },
        })
    }
}

fn compared(audiences: &[Name]) -> Box<[Box<str>]> {
    audiences.iter().map(|a| audience(a).into()).collect()
}

impl Provider {
    fn compile(name: &str, config: &model::JwtProvider) -> Result<Self, ConfigError> {
        let header = |name: &Name| if name.is_empty() { Ok(None) } else { header_name(name).map(Some) };
        let claim_headers = config.claim_to_headers.iter().map(|(h, claim)| Ok((header_name(h)?, claim.clone())));
        Ok(Self {
            issuer: (*config.issuer).into(),
            audiences: compared(&config.audiences),
            subject: config.subject.as_ref().map(StringMatch::compile).transpose()?,
            require_expiration: config.require_expiration,
            max_lifetime: config.max_lifetime.map(|d| d.as_secs()),
            clock_skew: config.clock_skew.as_secs(),
            keys: Keys::compile(name, &config.keys)?,
            places: Place::of(config)?,
            forward: config.forward,
            payload_header: header(&config.forward_payload_header)?.map(|h| (h, config.pad_forward_payload_header)),
            payload_key: config.payload_in_metadata.clone(),
            header_key: config.header_in_metadata.clone(),
            lists: config.space_delimited_claims.clone().into(),
            claim_headers: claim_headers.collect::<Result<_, ConfigError>>()?,
            reroute: config.clear_route_cache,
        })
    }

    /// Every token where this provider looks must be good, and there must be one.
    fn check<'f>(
        &'f self,
        audiences: Option<&[Box<str>]>,
        head: &RequestHead,
        now: Now,
        passed: &mut Passed<'f>,
    ) -> Result<(), Stop> {
        let mut any = false;
        for place in &self.places {
            let mut texts: Vec<Cow<'_, str>> = Vec::new();
            place.tokens(head, &mut texts);
            for text in texts {
                any = true;
                let token = Token::parse(&text).map_err(Stop::Refused)?;
                if !self.issuer.is_empty() && *self.issuer != *token.issuer() {
                    return Err(Stop::Refused(Status::UnknownIssuer));
                }
                self.verify(token, place, audiences, now, passed)?;
            }
        }
        if any { Ok(()) } else { Err(Stop::Refused(Status::Missing)) }
    }

    fn verify<'f>(
        &'f self,
        token: Token<'_>,
        place: &'f Place,
        audiences: Option<&[Box<str>]>,
        now: Now,
        passed: &mut Passed<'f>,
    ) -> Result<(), Stop> {
        let refused = |status| Err(Stop::Refused(status));
        if self.subject.as_ref().is_some_and(|s| !s.matches(token.subject().as_bytes())) {
            return refused(Status::VerificationFails);
        }
        let life = token.expiry.map(|expiry| expiry.saturating_sub(now.unix));
        if self.require_expiration && life.is_none() {
            return refused(Status::VerificationFails);
        }
        // What never ends lives too long.
        if self.max_lifetime.is_some_and(|most| life.is_none_or(|life| life > most)) {
            return refused(Status::VerificationFails);
        }
        if now.unix.saturating_add(self.clock_skew) < token.not_before {
            return refused(Status::NotYetValid);
        }
        if token.expiry.is_some_and(|expiry| now.unix > expiry.saturating_add(self.clock_skew)) {
            return refused(Status::Expired);
        }
        let audiences = audiences.unwrap_or(&self.audiences);
        if !audiences.is_empty() && !token.is_for(audiences) {
            return refused(Status::AudienceNotAllowed);
        }
        let signed =
            |keys: &KeySet| keys.verify(token.algorithm, token.key_id(), token.message.as_bytes(), &token.signature);
        match &self.keys {
            Keys::Local(keys) => signed(keys).map_err(Stop::Refused)?,
            Keys::Remote(remote) => match remote.known(now.instant) {
                Known::Fetch => return Err(Stop::Fetch(remote.clone())),
                Known::Failed => return refused(Status::FetchFailed),
                Known::Keys { keys, renew } => {
                    signed(&keys).map_err(Stop::Refused)?;
                    if renew {
                        passed.renew.push(remote.clone());
                    }
                }
            },
        }
        let Token { header, payload, payload_text, .. } = token;
        passed.good.push(Good { provider: self, place, header, payload, payload_text: payload_text.to_owned() });
        Ok(())
    }

    fn apply(&self, mut good: Good<'_>, head: &mut RequestHead, metadata: &mut Metadata) -> bool {
        if let Some((name, padded)) = &self.payload_header {
            let missing = (4 - good.payload_text.len() % 4) % 4;
            let tail = if *padded { "=".repeat(missing) } else { String::new() };
            put(head, name, &format!("{}{tail}", good.payload_text));
        }
        for (name, claim) in &self.claim_headers {
            if let Some(text) = claims::text(&good.payload, claim) {
                put(head, name, &text);
            }
        }
        if !self.forward {
            good.place.clear(head);
        }
        let mut facts = Vec::new();
        if !self.header_key.is_empty() {
            facts.push((&self.header_key, good.header));
        }
        if !self.payload_key.is_empty() {
            claims::split(&mut good.payload, &self.lists);
            facts.push((&self.payload_key, good.payload));
        }
        if !facts.is_empty() {
            let slot =
                metadata.entry(model::JWT_FILTER.to_owned()).or_insert_with(|| Value::Object(Default::default()));
            if let Value::Object(slot) = slot {
                slot.extend(facts.into_iter().map(|(key, value)| (key.to_string(), value)));
            }
        }
        self.reroute
    }
}

impl Keys {
    fn compile(name: &str, keys: &JwtKeys) -> Result<Self, ConfigError> {
        let parsed = |text: &[u8]| {
            let keys = KeySet::parse(text);
            if keys.as_ref().map_or(true, KeySet::is_empty) {
                let why = keys.as_ref().err().map_or("no usable key", |e| e.as_str());
                tracing::warn!("key set of token provider {name:?}: {why}; its tokens are refused");
            }
            Self::Local(keys.unwrap_or_default())
        };
        Ok(match keys {
            JwtKeys::Local(DataSource::Inline(text)) => parsed(text.as_bytes()),
            JwtKeys::Local(DataSource::File(path)) => {
                let read = std::fs::read(path);
                parsed(&read.map_err(|e| ConfigError::new(format!("{}: {e}", path.display())))?)
            }
            JwtKeys::Remote(remote) => Self::Remote(Arc::new(Remote::compile(remote)?)),
        })
    }
}

fn is_preflight(head: &RequestHead) -> bool {
    let filled = |name: HeaderName| head.headers.get(name).is_some_and(|v| !v.is_empty());
    head.method == Method::OPTIONS && filled(header::ORIGIN) && filled(header::ACCESS_CONTROL_REQUEST_METHOD)
}
