//! The state-of-the-world protocol's requests: complete lists of names. Sans-io.
//!
//! Owns the reading of `DiscoveryRequest` into a [`Subscription`]. Must not know when a response is sent.

use mesh_api::xds::{TypeUrl, discovery::DiscoveryRequest};

use super::{
    encoded::version_text,
    generator::Names,
    nack::{Outcome, Refused, Request},
    subscription::{MAX_NAME_BYTES, MAX_NAMES, Subscription, WILDCARD},
};

/// Reads one request of the subscription's type.
///
/// # Errors
/// When a limit is exceeded; the stream is to be ended.
pub fn request(sub: &mut Subscription, req: &DiscoveryRequest) -> Result<Request, Refused> {
    let mut seen = Request { first: !sub.opened, ..Request::default() };
    sub.opened = true;
    let again = !seen.first && req.response_nonce.is_empty();
    if !seen.first && !again {
        let error = req.error_detail.as_ref().map(|e| e.message.as_str());
        let outcome = Outcome::settle(sub, &req.response_nonce, error);
        let stale = outcome == Outcome::Stale;
        seen.outcome = Some(outcome);
        if stale {
            // Its list of names may be old, too: the one that follows the newest response counts.
            return Ok(seen);
        }
    }
    if seen.first {
        sub.fresh = req.version_info.is_empty();
        sub.presented = Some(req.version_info.clone()).filter(|v| !v.is_empty());
    }
    let list = &req.resource_names;
    if list.len() > MAX_NAMES || list.iter().any(|n| n.len() > MAX_NAME_BYTES) {
        return Err(Refused::TooManyNames(sub.ty()));
    }
    let legacy = list.is_empty() && sub.has_legacy_wildcard() && (seen.first || sub.legacy);
    let wildcard = legacy || list.iter().any(|n| n == WILDCARD);
    sub.legacy = legacy;
    if wildcard != sub.wildcard {
        seen.wildcard = Some(wildcard);
        sub.set_wildcard(wildcard);
    }
    sub.begin_list();
    for name in list.iter().filter(|n| *n != WILDCARD) {
        let (shared, news) = sub.ask(name);
        if news {
            seen.asked.push(shared.clone());
            if sub.presented.is_none() {
                sub.answer(shared);
            }
        }
    }
    seen.unasked = sub.end_list();
    if again {
        // A client that forgot its nonce starts over.
        sub.answer_all();
    }
    if seen.first {
        sub.respond = true;
        sub.mark(Names::All);
    }
    Ok(seen)
}

/// Whether a response of this type must hold everything the client wants, changed or not.
pub fn is_complete(ty: TypeUrl) -> bool {
    matches!(ty, TypeUrl::Cluster | TypeUrl::Listener | TypeUrl::NameTable)
}

/// Version of all that the client has of one type: a hash that does not depend on the order.
pub fn version(sub: &Subscription) -> String {
    version_text(sub.held().fold(0u64, |sum, enc| {
        let name = xxhash_rust::xxh3::xxh3_64_with_seed(enc.name().as_bytes(), enc.hash());
        sum.wrapping_add(name)
    }))
}

#[cfg(test)]
mod tests;
