//! The incremental protocol's requests: what they say of subscriptions and of what the client already has. Sans-io.
//!
//! Owns the reading of `DeltaDiscoveryRequest` into a [`Subscription`]. Must not know when a response is sent.

use mesh_api::xds::discovery::DeltaDiscoveryRequest;

use super::{
    encoded::Name,
    generator::Names,
    nack::{Outcome, Refused, Request},
    subscription::{Has, MAX_NAME_BYTES, MAX_NAMES, Resources, Subscription, WILDCARD},
};

/// Reads one request of the subscription's type.
///
/// # Errors
/// When a limit is exceeded; the stream is to be ended.
pub fn request(sub: &mut Subscription, req: &DeltaDiscoveryRequest, res: &dyn Resources) -> Result<Request, Refused> {
    let mut seen = Request { first: !sub.opened, ..Request::default() };
    sub.opened = true;
    if !req.response_nonce.is_empty() && !seen.first {
        let error = req.error_detail.as_ref().map(|e| e.message.as_str());
        seen.outcome = Some(Outcome::settle(sub, &req.response_nonce, error));
        // The subscription part of a request is a difference: it counts even when its acknowledgement comes too late.
    }
    let presented = if seen.first { Some(&req.initial_resource_versions) } else { None };
    let known = presented.is_some_and(|p| !p.is_empty());
    if seen.first {
        sub.fresh = !known;
        if req.resource_names_subscribe.is_empty() && sub.has_legacy_wildcard() {
            sub.legacy = true;
            seen.wildcard = Some(true);
            sub.set_wildcard(true);
        }
    }
    for name in &req.resource_names_subscribe {
        subscribe(sub, name, &mut seen, |name| presented.is_none_or(|p| !p.contains_key(name)))?;
    }
    if let Some(presented) = presented.filter(|p| !p.is_empty()) {
        let mut stale: Vec<Name> = Vec::new();
        for (name, version) in presented {
            if !sub.wants(name) {
                continue;
            }
            if sub.looks_at_all() {
                sub.present_unseen(name, version);
            } else if sub.present(name, version, res.get(sub.ty(), name)) != Has::This {
                stale.push(name.as_str().into());
            }
        }
        sub.mark(Names::Some(stale));
        if sub.wildcard {
            // Nothing need be said when all is as the client has it.
            sub.respond = false;
        }
    }
    for name in &req.resource_names_unsubscribe {
        if name == WILDCARD {
            sub.legacy = false;
            seen.wildcard = Some(false);
            sub.set_wildcard(false);
        } else if sub.unask(name) {
            seen.unasked.push(name.as_str().into());
        }
    }
    Ok(seen)
}

fn subscribe(
    sub: &mut Subscription,
    name: &str,
    seen: &mut Request,
    answer: impl Fn(&str) -> bool,
) -> Result<(), Refused> {
    if name == WILDCARD {
        if !sub.wildcard {
            // Not for a client that says what it has: `request` takes this back.
            sub.fresh |= !seen.first;
            seen.wildcard = Some(true);
            sub.set_wildcard(true);
        }
        return Ok(());
    }
    if name.len() > MAX_NAME_BYTES || sub.len() >= MAX_NAMES {
        return Err(Refused::TooManyNames(sub.ty()));
    }
    let (shared, news) = sub.ask(name);
    if news {
        seen.asked.push(shared.clone());
    }
    if answer(name) {
        sub.answer(shared);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
