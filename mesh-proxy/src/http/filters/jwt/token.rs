//! Tokens as bytes that anybody may have sent: taken apart within limits, their claims read, nothing believed yet.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use super::{keys::Algorithm, status::Status};

/// Longest token.
pub const MAX_TOKEN: usize = 16 * 1024;

/// A token that was read but not verified.
#[derive(Debug)]
pub struct Token<'a> {
    /// Header.
    pub header: Value,
    /// Claims, a JSON object.
    pub payload: Value,
    /// The payload as it stands in the token.
    pub payload_text: &'a str,
    /// What is signed.
    pub message: &'a str,
    /// The signature.
    pub signature: Vec<u8>,
    /// How it is signed.
    pub algorithm: Algorithm,
    /// `nbf` in seconds; 0: none.
    pub not_before: u64,
    /// `exp` in seconds. Unlike in Envoy, 0 is a time that is long over.
    pub expiry: Option<u64>,
}

impl<'a> Token<'a> {
    /// Reads a token.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(text: &'a str) -> Result<Self, Status> {
        if text.len() > MAX_TOKEN {
            return Err(Status::BadFormat);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Status::BadFormat)?;
        let (header, payload_text) = message.split_once('.').ok_or(Status::BadFormat)?;
        if payload_text.contains('.') {
            return Err(Status::BadFormat);
        }
        let header = decode(header).ok_or(Status::HeaderBase64)?;
        let header: Value = serde_json::from_slice(&header).map_err(|_| Status::HeaderJson)?;
        if !header.is_object() {
            return Err(Status::HeaderJson);
        }
        let algorithm = header.get("alg").and_then(Value::as_str).ok_or(Status::HeaderAlg)?;
        let algorithm = Algorithm::of_name(algorithm).ok_or(Status::AlgNotSupported)?;
        if header.get("kid").is_some_and(|kid| !kid.is_string()) {
            return Err(Status::HeaderKid);
        }
        let payload = decode(payload_text).ok_or(Status::PayloadBase64)?;
        let payload: Value = serde_json::from_slice(&payload).map_err(|_| Status::PayloadJson)?;
        if !payload.is_object() {
            return Err(Status::PayloadJson);
        }
        let is_text = |name: &str| payload.get(name).is_none_or(Value::is_string);
        if !is_text("iss") {
            return Err(Status::IssuerNotText);
        }
        if !is_text("sub") {
            return Err(Status::SubjectNotText);
        }
        let not_before =
            seconds(&payload, "nbf", Status::NotBeforeNotNumber, Status::NotBeforeOutOfRange)?.unwrap_or(0);
        let expiry = seconds(&payload, "exp", Status::ExpiryNotNumber, Status::ExpiryOutOfRange)?;
        match payload.get("aud") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(list)) if list.iter().all(Value::is_string) => {}
            Some(_) => return Err(Status::AudienceNotText),
        }
        let signature = decode(signature).ok_or(Status::SignatureBase64)?;
        Ok(Self { header, payload, payload_text, message, signature, algorithm, not_before, expiry })
    }

    /// `iss`; empty: none.
    pub fn issuer(&self) -> &str {
        self.text("iss")
    }

    /// `sub`; empty: none.
    pub fn subject(&self) -> &str {
        self.text("sub")
    }

    /// `kid`; none when it is empty.
    pub fn key_id(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty())
    }

    fn text(&self, name: &str) -> &str {
        self.payload.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether `aud` holds one of these, a final slash and the scheme aside, as Envoy compares.
    pub fn is_for(&self, audiences: &[Box<str>]) -> bool {
        let wanted = |text: &str| audiences.iter().any(|a| **a == *audience(text));
        match self.payload.get("aud") {
            Some(Value::String(one)) => wanted(one),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(wanted),
            _ => false,
        }
    }
}

/// An audience as it is compared: without scheme and final slash.
pub fn audience(text: &str) -> &str {
    let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

/// A time; numbers with a fraction are cut down, as Envoy does.
fn seconds(payload: &Value, name: &str, not_number: Status, out_of_range: Status) -> Result<Option<u64>, Status> {
    match payload.get(name) {
        None => Ok(None),
        Some(Value::Number(n)) => match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => Ok(Some(n)),
            (None, Some(f)) if (0.0..1.8e19).contains(&f) => Ok(Some(f as u64)),
            _ => Err(out_of_range),
        },
        Some(_) => Err(not_number),
    }
}
