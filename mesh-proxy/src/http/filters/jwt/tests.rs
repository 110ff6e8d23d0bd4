use std::time::Duration;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self as alg, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use mesh_api::model::{JwtAuthn, JwtProvider, JwtRequirement as R, JwtRule, RemoteKeys, RouteMatch, StringMatcher};
use serde_json::json;

use super::{claims, *};
use crate::http::testing;

const NOW: u64 = 1_800_000_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A key that signs, and what the world knows of it.
struct Signer {
    key: Ed25519KeyPair,
    id: &'static str,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        Self { key: Ed25519KeyPair::generate().unwrap(), id }
    }

    fn jwk(&self) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": b64(self.key.public_key())})
    }

    fn set(&self) -> String {
        json!({"keys": [self.jwk()]}).to_string()
    }

    fn token(&self, payload: Value) -> String {
        let message =
            format!("{}.{}", b64(json!({"alg": "EdDSA", "kid": self.id}).to_string()), b64(payload.to_string()));
        format!("{message}.{}", b64(self.key.sign(message.as_bytes())))
    }
}

fn provider(issuer: &str, signer: &Signer) -> JwtProvider {
    JwtProvider::new(issuer, JwtKeys::Local(DataSource::Inline(signer.set().into())))
}

fn authn(providers: Vec<JwtProvider>, requires: R) -> JwtAuthn {
    let named = |(i, p)| (Name::from(format!("p{i}")), p);
    JwtAuthn {
        providers: providers.into_iter().enumerate().map(named).collect(),
        rules: vec![JwtRule { matches: RouteMatch::any(), requires: Some(requires) }],
        ..JwtAuthn::default()
    }
}

fn p(i: usize) -> R {
    R::Provider(format!("p{i}").into())
}

fn bearer(token: &str) -> RequestHead {
    let mut head = testing::get("shop.test", "/a?b=c");
    head.headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    head
}

fn now() -> Now {
    Now { unix: NOW, instant: Instant::now() }
}

/// What becomes of a request: the refusal, or its metadata.
fn run(config: &JwtAuthn, head: &mut RequestHead) -> Result<Metadata, Status> {
    let filter = Filter::compile(config).unwrap();
    filter.sanitize(head);
    let mut metadata = Metadata::new();
    let requirement = filter.requirement(head, &testing::conn(), 0, None).unwrap();
    let Some(requirement) = requirement else { return Ok(metadata) };
    match filter.check(requirement, head, now()) {
        Ok(passed) => {
            filter.apply(passed, head, &mut metadata);
            Ok(metadata)
        }
        Err(Stop::Refused(status)) => Err(status),
        Err(Stop::Fetch(_)) => panic!("nothing is fetched here"),
    }
}

fn refused(provider: JwtProvider, token: &str) -> Option<Status> {
    run(&authn(vec![provider], p(0)), &mut bearer(token)).err()
}

#[test]
fn every_algorithm_verifies_and_only_with_its_own_key() {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = rsa.public_key();
    let rsa_jwk = json!({
        "kty": "RSA", "kid": "r",
        "n": b64(public.modulus().big_endian_without_leading_zero()),
        "e": b64(public.exponent().big_endian_without_leading_zero()),
    });
    let mut keys = vec![rsa_jwk];
    let mut tokens = Vec::new();
    let message =
        |name: &str, kid: &str| format!("{}.{}", b64(json!({"alg": name, "kid": kid}).to_string()), b64("{}"));
    let rsa_ways: [(&str, &'static dyn alg::RsaEncoding); 6] = [
        ("RS256", &alg::RSA_PKCS1_SHA256),
        ("RS384", &alg::RSA_PKCS1_SHA384),
        ("RS512", &alg::RSA_PKCS1_SHA512),
        ("PS256", &alg::RSA_PSS_SHA256),
        ("PS384", &alg::RSA_PSS_SHA384),
        ("PS512", &alg::RSA_PSS_SHA512),
    ];
    for (name, way) in rsa_ways {
        let message = message(name, "r");
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(way, &random, message.as_bytes(), &mut signature).unwrap();
        tokens.push(format!("{message}.{}", b64(signature)));
    }
    for (name, crv, way) in [
        ("ES256", "P-256", &alg::ECDSA_P256_SHA256_FIXED_SIGNING),
        ("ES384", "P-384", &alg::ECDSA_P384_SHA384_FIXED_SIGNING),
        ("ES512", "P-521", &alg::ECDSA_P521_SHA512_FIXED_SIGNING),
    ] {
        let key = EcdsaKeyPair::generate(way).unwrap();
        let point = &key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        keys.push(json!({"kty": "EC", "crv": crv, "kid": name, "x": b64(x), "y": b64(y)}));
        let message = message(name, name);
        tokens.push(format!("{message}.{}", b64(key.sign(&random, message.as_bytes()).unwrap())));
    }
    let ed = Signer::new("ed");
    keys.push(ed.jwk());
    tokens.push(ed.token(json!({})));
    let set = KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
    let verify = |text: &str| {
        let token = Token::parse(text).unwrap();
        set.verify(token.algorithm, token.key_id(), token.message.as_bytes(), &token.signature)
    };
    for token in &tokens {
        assert_eq!(verify(token), Ok(()), "{token}");
        // Another payload under the same signature.
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (head, _) = message.split_once('.').unwrap();
        let forged = format!("{head}.{}.{signature}", b64(r#"{"sub":"admin"}"#));
        assert_eq!(verify(&forged), Err(Status::VerificationFails));
    }
    // The signature of one algorithm under the name of another.
    let (rs, signature) = tokens[0].rsplit_once('.').unwrap();
    let renamed = format!("{}.{}.{signature}", b64(r#"{"alg":"PS256","kid":"r"}"#), rs.split_once('.').unwrap().1);
    assert_eq!(verify(&renamed), Err(Status::VerificationFails));
}

#[test]
fn keys_that_are_of_no_use_are_left_out() {
    let ed = Signer::new("k");
    let count = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).map(|s| !s.is_empty());
    assert_eq!(count(json!([ed.jwk()])), Ok(true));
    for bad in [
        json!({"kty": "oct", "k": b64("secret"), "alg": "HS256"}),
        json!({"kty": "RSA", "n": b64([1; 128]), "e": "AQAB"}),
        json!({"kty": "RSA", "n": "!", "e": "AQAB"}),
        json!({"kty": "RSA", "n": b64([0; 256]), "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-256", "x": b64([1; 32]), "y": b64([1; 32])}),
        json!({"kty": "EC", "crv": "P-256", "x": b64([1; 33]), "y": b64([1; 32])}),
        json!({"kty": "EC", "crv": "P-192", "x": "AQ", "y": "AQ"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": b64([1; 31])}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": b64(ed.key.public_key()), "alg": "HS256"}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": b64(ed.key.public_key()), "use": "enc"}),
        json!({"kty": 1}),
        json!(null),
    ] {
        assert_eq!(count(json!([bad.clone()])), Ok(false), "{bad}");
    }
    assert!(KeySet::parse(b"{").is_err());
    assert!(KeySet::parse(b"{\"keys\": 1}").is_err());
    assert!(count(json!(vec![json!({}); 101])).is_err());
}

#[test]
fn malformed_tokens_are_refused_by_their_fault() {
    let parse = |text: &str| Token::parse(text).map(|_| ()).unwrap_err();
    let with = |header: &str, payload: &str| format!("{}.{}.AA", b64(header), b64(payload));
    let of = |payload: &str| parse(&with(r#"{"alg":"RS256"}"#, payload));
    assert_eq!(parse(""), Status::BadFormat);
    assert_eq!(parse("a.b"), Status::BadFormat);
    assert_eq!(parse("a.b.c.d"), Status::BadFormat);
    assert_eq!(parse(&"a".repeat(token::MAX_TOKEN + 1)), Status::BadFormat);
    assert_eq!(parse("!.e30.AA"), Status::HeaderBase64);
    assert_eq!(parse("eyJ9.e30.AA"), Status::HeaderJson);
    assert_eq!(parse(&with("[]", "{}")), Status::HeaderJson);
    assert_eq!(parse(&with("{}", "{}")), Status::HeaderAlg);
    assert_eq!(parse(&with(r#"{"alg":1}"#, "{}")), Status::HeaderAlg);
    for alg in ["none", "None", "HS256", "HS384", "HS512", "rs256", ""] {
        assert_eq!(parse(&with(&json!({ "alg": alg }).to_string(), "{}")), Status::AlgNotSupported, "{alg}");
    }
    assert_eq!(parse(&with(r#"{"alg":"RS256","kid":7}"#, "{}")), Status::HeaderKid);
    assert_eq!(parse(&format!("{}.*.AA", b64(r#"{"alg":"RS256"}"#))), Status::PayloadBase64);
    assert_eq!(of("nonsense"), Status::PayloadJson);
    assert_eq!(of("[1]"), Status::PayloadJson);
    assert_eq!(of(&format!("{}{}", "[".repeat(500), "]".repeat(500))), Status::PayloadJson);
    assert_eq!(of(r#"{"iss":1}"#), Status::IssuerNotText);
    assert_eq!(of(r#"{"sub":["a"]}"#), Status::SubjectNotText);
    assert_eq!(of(r#"{"nbf":"1"}"#), Status::NotBeforeNotNumber);
    assert_eq!(of(r#"{"exp":"never"}"#), Status::ExpiryNotNumber);
    assert_eq!(of(r#"{"exp":-1}"#), Status::ExpiryOutOfRange);
    assert_eq!(of(r#"{"nbf":1e30}"#), Status::NotBeforeOutOfRange);
    assert_eq!(of(r#"{"aud":[1]}"#), Status::AudienceNotText);
    assert_eq!(of(r#"{"aud":{}}"#), Status::AudienceNotText);
    assert_eq!(parse(&format!("{}.e30.*", b64(r#"{"alg":"RS256"}"#))), Status::SignatureBase64);
}

#[test]
fn issuer_times_audience_and_signature() {
    let signer = Signer::new("k");
    let ours = || provider("us", &signer);
    let token = |more: Value| {
        let mut payload = json!({"iss": "us", "sub": "me", "exp": NOW + 100});
        payload.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        signer.token(payload)
    };
    assert_eq!(refused(ours(), &token(json!({}))), None);
    assert_eq!(refused(ours(), &token(json!({"iss": "them"}))), Some(Status::UnknownIssuer));
    assert_eq!(refused(ours(), &token(json!({"exp": NOW - 60}))), None);
    assert_eq!(refused(ours(), &token(json!({"exp": NOW - 61}))), Some(Status::Expired));
    assert_eq!(refused(ours(), &token(json!({"exp": 0}))), Some(Status::Expired));
    assert_eq!(refused(ours(), &token(json!({"nbf": NOW + 60}))), None);
    assert_eq!(refused(ours(), &token(json!({"nbf": NOW + 61}))), Some(Status::NotYetValid));
    assert_eq!(refused(ours(), &token(json!({"nbf": u64::MAX, "exp": u64::MAX}))), Some(Status::NotYetValid));
    let skewed = JwtProvider { clock_skew: Duration::from_secs(5), ..ours() };
    assert_eq!(refused(skewed, &token(json!({"exp": NOW - 6}))), Some(Status::Expired));
    let for_a = || JwtProvider { audiences: vec!["https://a.test/".into()], ..ours() };
    assert_eq!(refused(for_a(), &token(json!({}))), Some(Status::AudienceNotAllowed));
    assert_eq!(refused(for_a(), &token(json!({"aud": "b.test"}))), Some(Status::AudienceNotAllowed));
    assert_eq!(refused(for_a(), &token(json!({"aud": ["b.test", "a.test"]}))), None);
    let other = Signer::new("k");
    assert_eq!(refused(provider("us", &other), &token(json!({}))), Some(Status::VerificationFails));
    let other = Signer::new("another");
    assert_eq!(refused(provider("us", &other), &token(json!({}))), Some(Status::NoFittingKey));
    let none = JwtProvider::new("us", JwtKeys::Local(DataSource::Inline("{\"keys\":[]}".into())));
    assert_eq!(refused(none, &token(json!({}))), Some(Status::NoValidKeys));
    let broken = JwtProvider::new("us", JwtKeys::Local(DataSource::Inline("nonsense".into())));
    assert_eq!(refused(broken, &token(json!({}))), Some(Status::NoValidKeys));
}

#[test]
fn life_and_subject_may_be_demanded() {
    let signer = Signer::new("k");
    let ever = signer.token(json!({"iss": "us", "sub": "me"}));
    let soon = signer.token(json!({"iss": "us", "sub": "me", "exp": NOW + 100}));
    let must_end = || JwtProvider { require_expiration: true, ..provider("us", &signer) };
    assert_eq!(refused(must_end(), &ever), Some(Status::VerificationFails));
    assert_eq!(refused(must_end(), &soon), None);
    let short = |secs| JwtProvider { max_lifetime: Some(Duration::from_secs(secs)), ..provider("us", &signer) };
    assert_eq!(refused(short(100), &soon), None);
    assert_eq!(refused(short(99), &soon), Some(Status::VerificationFails));
    assert_eq!(refused(short(99), &ever), Some(Status::VerificationFails));
    let only = |s| JwtProvider { subject: Some(StringMatcher::exact(s)), ..provider("us", &signer) };
    assert_eq!(refused(only("me"), &soon), None);
    assert_eq!(refused(only("you"), &soon), Some(Status::VerificationFails));
}

#[test]
fn tokens_are_found_where_they_may_be_and_nowhere_else() {
    let signer = Signer::new("k");
    let good = signer.token(json!({"iss": "us"}));
    let config = |provider| authn(vec![provider], p(0));
    let ours = || provider("us", &signer);
    let head = |target: &str, headers: &[(&'static str, &str)]| {
        let mut head = testing::get("shop.test", target);
        for (name, value) in headers {
            head.headers.append(*name, value.parse().unwrap());
        }
        head
    };
    let status = |provider: JwtProvider, mut head: RequestHead| run(&config(provider), &mut head).err();
    assert_eq!(status(ours(), head("/", &[])), Some(Status::Missing));
    assert_eq!(status(ours(), head("/", &[("authorization", "Basic eDp5")])), Some(Status::Missing));
    assert_eq!(status(ours(), head("/", &[("authorization", "Bearer ")])), Some(Status::BadFormat));
    assert_eq!(status(ours(), head(&format!("/?access_token={good}"), &[])), None);
    let named = || JwtProvider { from_headers: vec![("x-token".into(), "".into())], ..ours() };
    assert_eq!(status(named(), head("/", &[("x-token", &good)])), None);
    assert_eq!(status(named(), bearer(&good)), Some(Status::Missing));
    assert_eq!(status(named(), head(&format!("/?access_token={good}"), &[])), Some(Status::Missing));
    let prefixed = JwtProvider { from_headers: vec![("x-token".into(), "JWT ".into())], ..ours() };
    assert_eq!(status(prefixed, head("/", &[("x-token", &format!("JWT {good}"))])), None);
    let param = JwtProvider { from_params: vec!["t".into()], ..ours() };
    assert_eq!(status(param.clone(), head(&format!("/?a=b&t={good}"), &[])), None);
    assert_eq!(status(param, head("/?a=b&t", &[])), Some(Status::Missing));
    let cookie = || JwtProvider { from_cookies: vec!["session".into()], ..ours() };
    assert_eq!(status(cookie(), head("/", &[("cookie", &format!("a=b; session={good}"))])), None);
    assert_eq!(status(cookie(), head("/", &[("cookie", "a=b")])), Some(Status::Missing));
    // A good token does not carry a bad one along, wherever it stands.
    let both = format!("session=x.y.z; session={good}");
    assert!(status(cookie(), head("/", &[("cookie", &both)])).is_some());
    let good_and_bad = [("authorization", format!("Bearer {good}")), ("authorization", "Bearer a.b.c".to_owned())];
    let pairs: Vec<(&'static str, &str)> = good_and_bad.iter().map(|(n, v)| (*n, v.as_str())).collect();
    assert!(status(ours(), head("/", &pairs)).is_some());
}

#[test]
fn what_goes_on_and_what_does_not() {
    let signer = Signer::new("k");
    let payload = json!({
        "iss": "us", "n": 7, "f": 1.5, "b": true, "text": "a b", "scope": "read write", "list": ["x"], "o": {"in": "deep"},
        "bad": "line\nbreak", "null": null,
    });
    let token = signer.token(payload.clone());
    let claims = ["n", "f", "b", "text", "list", "o.in", "bad", "null", "absent"];
    let ours = JwtProvider {
        claim_to_headers: claims.iter().map(|c| (format!("x-{}", c.replace('.', "-")).into(), (*c).into())).collect(),
        forward_payload_header: "x-payload".into(),
        payload_in_metadata: "payload".into(),
        header_in_metadata: "header".into(),
        space_delimited_claims: vec!["scope".into(), "n".into()],
        ..provider("us", &signer)
    };
    let config = authn(vec![ours.clone()], R::Any(vec![p(0), R::AllowMissing]));
    let mut head = bearer(&token);
    head.headers.insert("x-n", "forged".parse().unwrap());
    head.headers.insert("x-absent", "forged".parse().unwrap());
    let metadata = run(&config, &mut head).unwrap();
    let get = |head: &RequestHead, name: &str| head.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    assert_eq!(get(&head, "x-n").as_deref(), Some("7"));
    assert_eq!(get(&head, "x-f").as_deref(), Some("1.500000"));
    assert_eq!(get(&head, "x-b").as_deref(), Some("true"));
    assert_eq!(get(&head, "x-text").as_deref(), Some("a b"));
    assert_eq!(get(&head, "x-list").as_deref(), Some("WyJ4Il0="));
    assert_eq!(get(&head, "x-o-in").as_deref(), Some("deep"));
    for absent in ["x-bad", "x-null", "x-absent", "authorization"] {
        assert_eq!(get(&head, absent), None, "{absent}");
    }
    assert_eq!(get(&head, "x-payload"), Some(b64(payload.to_string())));
    let facts = metadata.get(model::JWT_FILTER).unwrap();
    assert_eq!(facts["payload"]["scope"], json!(["read", "write"]));
    assert_eq!(facts["payload"]["n"], json!(7));
    assert_eq!(facts["header"]["kid"], "k");

    // Without a token nobody says what tokens say.
    let mut head = testing::get("shop.test", "/");
    head.headers.insert("x-payload", "forged".parse().unwrap());
    head.headers.insert("x-n", "forged".parse().unwrap());
    assert!(run(&config, &mut head).unwrap().is_empty());
    assert!(head.headers.is_empty());

    let forwarded = JwtProvider { forward: true, pad_forward_payload_header: true, ..ours.clone() };
    let mut head = bearer(&token);
    run(&authn(vec![forwarded], p(0)), &mut head).unwrap();
    assert!(head.headers.contains_key("authorization"));
    assert_eq!(get(&head, "x-payload").unwrap().len() % 4, 0);

    let mut head = testing::get("shop.test", &format!("/a?x=1&access_token={token}&y=2"));
    run(&config, &mut head).unwrap();
    assert_eq!(head.target.as_str(), "/a?x=1&y=2");
}

#[test]
fn claims_as_text() {
    let payload = json!({"a.b": "flat", "a": {"b": "deep", "c": 0}, "big": 1e20, "e": ""});
    assert_eq!(claims::text(&payload, "a.b").as_deref(), Some("flat"));
    assert_eq!(claims::text(&payload, "a.c").as_deref(), Some("0"));
    assert_eq!(claims::text(&payload, "a.c.d"), None);
    assert_eq!(claims::text(&payload, "e"), None);
    assert!(claims::text(&payload, "big").is_some());
}

#[test]
fn requirements_are_combined() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let at = |issuer: &str, signer: &Signer, header: &str| JwtProvider {
        from_headers: vec![(header.into(), "".into())],
        payload_in_metadata: issuer.into(),
        ..provider(issuer, signer)
    };
    let two = || vec![at("a", &a, "x-a"), at("b", &b, "x-b")];
    let (of_a, of_b) = (a.token(json!({"iss": "a"})), b.token(json!({"iss": "b"})));
    let bad = a.token(json!({"iss": "a", "exp": 1}));
    let ask = |requires: R, headers: &[(&'static str, &str)]| {
        let mut head = testing::get("shop.test", "/");
        for (name, value) in headers {
            head.headers.insert(*name, value.parse().unwrap());
        }
        run(&authn(two(), requires), &mut head).map(|m| {
            let facts = m.get(model::JWT_FILTER).and_then(Value::as_object);
            facts.map(|f| f.keys().cloned().collect::<Vec<_>>().join("")).unwrap_or_default()
        })
    };
    let any = || R::Any(vec![p(0), p(1)]);
    assert_eq!(ask(any(), &[("x-b", &of_b)]), Ok("b".into()));
    assert_eq!(ask(any(), &[]), Err(Status::Missing));
    assert_eq!(ask(any(), &[("x-a", &bad)]), Err(Status::Expired));
    let all = || R::All(vec![p(0), p(1)]);
    assert_eq!(ask(all(), &[("x-a", &of_a), ("x-b", &of_b)]), Ok("ab".into()));
    assert_eq!(ask(all(), &[("x-a", &of_a)]), Err(Status::Missing));
    let maybe = || R::Any(vec![p(0), R::AllowMissing]);
    assert_eq!(ask(maybe(), &[]), Ok(String::new()));
    assert_eq!(ask(maybe(), &[("x-a", &bad)]), Err(Status::Expired));
    assert_eq!(ask(maybe(), &[("x-a", &of_b)]), Err(Status::UnknownIssuer));
    let whatever = || R::Any(vec![p(0), R::AllowMissingOrFailed]);
    assert_eq!(ask(whatever(), &[("x-a", &bad)]), Ok(String::new()));
    assert_eq!(ask(R::AllowMissing, &[]), Ok(String::new()));
    assert_eq!(ask(R::AllowMissing, &[("x-a", &of_a), ("x-b", &of_b)]), Ok("ab".into()));
    assert_eq!(ask(R::AllowMissing, &[("x-a", &of_a), ("x-b", "no")]), Err(Status::BadFormat));
    assert_eq!(ask(R::AllowMissingOrFailed, &[("x-a", &of_a), ("x-b", "no")]), Ok("a".into()));
    let for_x = R::ProviderWithAudiences("p0".into(), vec!["x".into()]);
    assert_eq!(ask(for_x, &[("x-a", &of_a)]), Err(Status::AudienceNotAllowed));
}

/// Istio's requirement for several issuers at one place.
#[test]
fn issuers_that_share_a_place() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let optional = |i| R::Any(vec![p(i), R::AllowMissing]);
    let requires = R::Any(vec![p(0), p(1), R::All(vec![optional(0), optional(1)])]);
    let config = authn(vec![provider("a", &a), provider("b", &b)], requires);
    let ask = |token: &str| run(&config, &mut bearer(token)).err();
    assert_eq!(ask(&a.token(json!({"iss": "a"}))), None);
    assert_eq!(ask(&b.token(json!({"iss": "b"}))), None);
    assert_eq!(ask(&b.token(json!({"iss": "b", "exp": 1}))), Some(Status::Expired));
    assert_eq!(ask(&b.token(json!({"iss": "c"}))), Some(Status::UnknownIssuer));
    assert_eq!(run(&config, &mut testing::get("shop.test", "/")).err(), None);
}

#[test]
fn rules_preflights_and_named_requirements() {
    let signer = Signer::new("k");
    let mut config = authn(vec![provider("us", &signer)], p(0));
    config.rules[0].matches = RouteMatch::path(mesh_api::model::PathMatch::Prefix("/guarded".into()));
    config.bypass_cors_preflight = true;
    config.requirements = vec![("strict".into(), p(0))];
    let mut open = testing::get("shop.test", "/open");
    assert!(run(&config, &mut open).is_ok());
    let mut guarded = testing::get("shop.test", "/guarded");
    assert_eq!(run(&config, &mut guarded).err(), Some(Status::Missing));
    guarded.method = Method::OPTIONS;
    assert_eq!(run(&config, &mut guarded).err(), Some(Status::Missing));
    guarded.headers.insert("origin", "http://a".parse().unwrap());
    guarded.headers.insert("access-control-request-method", "GET".parse().unwrap());
    assert!(run(&config, &mut guarded).is_ok());
    let filter = Filter::compile(&config).unwrap();
    let named = |name: &str| filter.requirement(&open, &testing::conn(), 0, Some(&name.into())).map(|r| r.is_some());
    assert_eq!(named("strict").ok(), Some(true));
    assert_eq!(named("other").unwrap_err().status, 403);
    config.rules[0].requires = Some(p(7));
    assert!(Filter::compile(&config).is_err());
}

#[test]
fn refusals_say_what_envoy_says() {
    let config = JwtAuthn::default();
    let filter = Filter::compile(&config).unwrap();
    let head = testing::get("shop.test:80", "/a?b");
    let reply = filter.refusal(Status::Missing, &head);
    assert_eq!((reply.status, &*reply.body), (401, &b"Jwt is missing"[..]));
    assert_eq!(reply.reason.details(), "jwt_authn_access_denied{Jwt_is_missing}");
    assert_eq!(reply.headers[0].1, "Bearer realm=\"http://shop.test:80/a?b\"");
    let reply = filter.refusal(Status::Expired, &head);
    assert_eq!(reply.headers[0].1, "Bearer realm=\"http://shop.test:80/a?b\", error=\"invalid_token\"");
    assert_eq!(filter.refusal(Status::AudienceNotAllowed, &head).status, 403);
    let silent = Filter::compile(&JwtAuthn { strip_failure_response: true, ..config }).unwrap();
    let reply = silent.refusal(Status::Expired, &head);
    assert!(reply.body.is_empty() && reply.headers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn fetched_keys_hold_for_a_while_and_outlive_failures() {
    let signer = Signer::new("k");
    let remote = Remote::compile(&RemoteKeys {
        uri: "https://issuer.test/keys?a".into(),
        cluster: "issuer".into(),
        timeout: Duration::from_secs(5),
        cache: Duration::from_secs(100),
        ahead: true,
        retry_after: Duration::from_secs(1),
    })
    .unwrap();
    assert_eq!((remote.authority.as_str(), remote.target.as_str()), ("issuer.test", "/keys?a"));
    let set = || KeySet::parse(signer.set().as_bytes());
    let known = || match remote.known(Instant::now()) {
        Known::Keys { renew: false, .. } => "keys",
        Known::Keys { .. } => "renew",
        Known::Fetch => "fetch",
        Known::Failed => "failed",
    };
    let later = |secs| tokio::time::advance(Duration::from_secs(secs));
    assert_eq!(known(), "fetch");
    remote.settle(Err("down".into()), Instant::now());
    assert_eq!(known(), "failed");
    later(1).await;
    assert_eq!(known(), "fetch");
    remote.settle(KeySet::parse(b"{\"keys\": []}"), Instant::now());
    assert_eq!(known(), "failed", "an empty set is none");
    later(1).await;
    remote.settle(set(), Instant::now());
    assert_eq!(known(), "keys");
    later(95).await;
    assert_eq!(known(), "renew");
    later(5).await;
    assert_eq!(known(), "fetch");
    remote.settle(Err("down".into()), Instant::now());
    assert_eq!(known(), "keys", "the last good ones");
    later(1).await;
    assert_eq!(known(), "fetch");
}
