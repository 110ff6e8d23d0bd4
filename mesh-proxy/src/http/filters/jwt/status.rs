//! Why a token is refused, in Envoy's words.

/// A refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is none.
    Missing,
    /// `nbf` lies ahead.
    NotYetValid,
    /// `exp` is over.
    Expired,
    /// Not three parts, or too long.
    BadFormat,
    /// The header is not Base64url.
    HeaderBase64,
    /// The header is not JSON.
    HeaderJson,
    /// `alg` is missing or no text.
    HeaderAlg,
    /// `alg` is not one that is accepted (`none` and symmetric ones never are).
    AlgNotSupported,
    /// `kid` is no text.
    HeaderKid,
    /// The payload is not Base64url.
    PayloadBase64,
    /// The payload is no JSON object.
    PayloadJson,
    /// `iss` is no text.
    IssuerNotText,
    /// `sub` is no text.
    SubjectNotText,
    /// `aud` is neither a text nor a list of texts.
    AudienceNotText,
    /// `nbf` is no number.
    NotBeforeNotNumber,
    /// `exp` is no number.
    ExpiryNotNumber,
    /// `nbf` is negative or too large.
    NotBeforeOutOfRange,
    /// `exp` is negative or too large.
    ExpiryOutOfRange,
    /// The signature is not Base64url.
    SignatureBase64,
    /// `iss` is nobody's.
    UnknownIssuer,
    /// `aud` holds none of those that are wanted.
    AudienceNotAllowed,
    /// The signature is not that of a fitting key, or subject or life are not what they may be.
    VerificationFails,
    /// No key has the token's key id and algorithm.
    NoFittingKey,
    /// The issuer has no usable key.
    NoValidKeys,
    /// The keys could not be fetched.
    FetchFailed,
}

impl Status {
    /// As the client reads it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::BadFormat => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::HeaderAlg => "Jwt header [alg] field is required and must be a string",
            Self::AlgNotSupported => "Jwt header [alg] is not supported",
            Self::HeaderKid => "Jwt header [kid] field is not a string",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::IssuerNotText => "Jwt payload [iss] field is not a string",
            Self::SubjectNotText => "Jwt payload [sub] field is not a string",
            Self::AudienceNotText => "Jwt payload [aud] field is not a string or string list",
            Self::NotBeforeNotNumber => "Jwt payload [nbf] field is not an integer",
            Self::ExpiryNotNumber => "Jwt payload [exp] field is not an integer",
            Self::NotBeforeOutOfRange => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Self::ExpiryOutOfRange => "Jwt payload [exp] field is not a positive 64 bit integer",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::VerificationFails => "Jwt verification fails",
            Self::NoFittingKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::NoValidKeys => "Jwks doesn't have any valid public key",
            Self::FetchFailed => "Jwks remote fetch is failed",
        }
    }

    /// HTTP status of the answer.
    pub fn code(self) -> u16 {
        if self == Self::AudienceNotAllowed { 403 } else { 401 }
    }
}
