//! Messages of `envoy.service.ratelimit.v3.RateLimitService` behind plain facts.

use mesh_api::xds::envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use mesh_api::xds::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit};
use mesh_api::xds::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use mesh_api::xds::google::protobuf::UInt64Value;
use prost::Message as _;

use super::raw;
use crate::{
    http::filters::{
        descriptors::{Descriptor, Quota},
        global_limit::{Answer, Codec},
    },
    xds::convert::structure,
};

/// The protocol.
#[derive(Debug, Clone, Copy, Default)]
pub struct RateLimitV3;

impl Codec for RateLimitV3 {
    fn question(&self, domain: &str, descriptors: &[Descriptor<'_>]) -> Vec<u8> {
        let one = |d: &Descriptor<'_>| RateLimitDescriptor {
            entries: d.entries.iter().map(|(k, v)| Entry { key: (*k).to_owned(), value: v.to_string() }).collect(),
            hits_addend: d.hits.map(|value| UInt64Value { value }),
            ..RateLimitDescriptor::default()
        };
        let descriptors = descriptors.iter().map(one).collect();
        RateLimitRequest { domain: domain.to_owned(), descriptors, ..RateLimitRequest::default() }.encode_to_vec()
    }

    fn answer(&self, message: &[u8]) -> Result<Answer, String> {
        let answer = RateLimitResponse::decode(message).map_err(|e| e.to_string())?;
        let over = match Code::try_from(answer.overall_code) {
            Ok(Code::OverLimit) => true,
            Ok(Code::Ok) => false,
            _ => return Err(format!("the service answered with code {}", answer.overall_code)),
        };
        Ok(Answer {
            over,
            quotas: answer.statuses.iter().filter_map(quota).collect(),
            request: answer.request_headers_to_add.into_iter().map(raw).collect(),
            response: answer.response_headers_to_add.into_iter().map(raw).collect(),
            body: answer.raw_body.into(),
            metadata: answer.dynamic_metadata.as_ref().map(structure),
        })
    }
}

fn quota(status: &DescriptorStatus) -> Option<Quota> {
    let limit = status.current_limit.as_ref()?;
    let reset = status.duration_until_reset.as_ref().and_then(|d| u64::try_from(d.seconds).ok());
    Some(Quota {
        requests: limit.requests_per_unit,
        window: window(limit.unit),
        name: limit.name.clone(),
        remaining: status.limit_remaining,
        reset: reset.unwrap_or(0),
    })
}

/// Seconds, with months of 30 days as Envoy counts them.
fn window(unit: i32) -> u32 {
    const DAY: u32 = 24 * 60 * 60;
    match Unit::try_from(unit) {
        Ok(Unit::Second) => 1,
        Ok(Unit::Minute) => 60,
        Ok(Unit::Hour) => 60 * 60,
        Ok(Unit::Day) => DAY,
        Ok(Unit::Week) => 7 * DAY,
        Ok(Unit::Month) => 30 * DAY,
        Ok(Unit::Year) => 365 * DAY,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::xds::envoy::service::ratelimit::v3::rate_limit_response::RateLimit;

    use super::*;

    #[test]
    fn asks_by_descriptors() {
        let descriptor = Descriptor { entries: vec![("k", "v".into())], hits: Some(3) };
        let bytes = RateLimitV3.question("d", &[descriptor]);
        let asked = RateLimitRequest::decode(&bytes[..]).unwrap();
        assert_eq!((asked.domain.as_str(), asked.hits_addend), ("d", 0));
        let [one] = &asked.descriptors[..] else { panic!("{asked:?}") };
        assert_eq!(one.entries, [Entry { key: "k".to_owned(), value: "v".to_owned() }]);
        assert_eq!(one.hits_addend, Some(UInt64Value { value: 3 }));
    }

    #[test]
    fn understands_answers_and_nothing_else() {
        let limit = RateLimit { requests_per_unit: 5, unit: Unit::Week as i32, name: "n".to_owned() };
        let status = DescriptorStatus { current_limit: Some(limit), limit_remaining: 2, ..Default::default() };
        let answer = RateLimitResponse {
            overall_code: Code::OverLimit as i32,
            statuses: vec![status, DescriptorStatus::default()],
            raw_body: b"no".to_vec(),
            ..Default::default()
        };
        let understood = RateLimitV3.answer(&answer.encode_to_vec()).unwrap();
        assert!(understood.over && understood.body == "no");
        let quota = Quota { requests: 5, window: 604_800, name: "n".to_owned(), remaining: 2, reset: 0 };
        assert_eq!(understood.quotas, [quota]);
        assert!(RateLimitV3.answer(b"").is_err(), "no code");
        assert!(RateLimitV3.answer(b"\xff").is_err());
    }
}
