//! Load assignments.

use std::collections::BTreeMap;

use mesh_api::model::{Address, Endpoint, EndpointSet, HealthStatus, Locality, LocalityEndpoints, Metadata};
use mesh_api::xds::envoy::config::core::v3 as core;
use mesh_api::xds::envoy::config::endpoint::v3 as proto;
use serde_json::Value;

use super::Result;
use super::at::At;
use super::values::{address, fraction, plain_metadata};

/// Where endpoints say which TLS context they want.
const TLS_LABELS: &str = "envoy.transport_socket_match";

/// What an endpoint may have for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// A name as well: the cluster resolves it.
    Named,
    /// Nothing that needs to be resolved: nobody would, and nobody would be told.
    Numeric,
}

pub fn endpoint_set(at: &At<'_>, assignment: &proto::ClusterLoadAssignment, hosts: Hosts) -> Result<EndpointSet> {
    let groups = assignment.endpoints.iter().enumerate();
    let localities = groups.map(|(i, l)| locality(&at.item("endpoints", i), l, hosts)).collect::<Result<Vec<_>>>()?;
    let mut priorities: Vec<u32> = localities.iter().map(|l| l.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    if priorities.iter().zip(0u32..).any(|(p, expected)| *p != expected) {
        return at.refuse("priorities must start at 0 and have no gap");
    }
    let policy = assignment.policy.as_ref();
    let drops = policy.map(|p| p.drop_overloads.as_slice()).unwrap_or_default().iter().enumerate();
    let drop = |(i, d): (usize, &proto::cluster_load_assignment::policy::DropOverload)| {
        let at = at.item("policy.drop_overloads", i);
        Ok((d.category.as_str().into(), fraction(&at, at.required(d.drop_percentage.as_ref())?)?))
    };
    Ok(EndpointSet {
        cluster: assignment.cluster_name.as_str().into(),
        localities,
        overprovisioning: policy.and_then(|p| p.overprovisioning_factor).map(|v| v.value),
        drops: drops.map(drop).collect::<Result<_>>()?,
    })
}

fn locality(at: &At<'_>, group: &proto::LocalityLbEndpoints, hosts: Hosts) -> Result<LocalityEndpoints> {
    let place = group.locality.clone().unwrap_or_default();
    let locality = Locality { region: place.region.into(), zone: place.zone.into(), sub_zone: place.sub_zone.into() };
    if group.priority > 128 {
        return at.field("priority").refuse("must not be above 128");
    }
    let members = group.lb_endpoints.iter().enumerate();
    Ok(LocalityEndpoints {
        locality,
        priority: group.priority,
        weight: group.load_balancing_weight.map(|w| w.value),
        endpoints: members.map(|(i, e)| endpoint(&at.item("lb_endpoints", i), e, hosts)).collect::<Result<_>>()?,
    })
}

fn endpoint(at: &At<'_>, member: &proto::LbEndpoint, hosts: Hosts) -> Result<Endpoint> {
    use proto::lb_endpoint::HostIdentifier;
    let Some(HostIdentifier::Endpoint(host)) = &member.host_identifier else {
        return at.refuse("is not an endpoint with an address");
    };
    let place = at.field("endpoint.address");
    let address = address(&place, host.address.as_ref())?;
    if let (Address::Host(name, _), Hosts::Numeric) = (&address, hosts) {
        return place.refuse(format!("{name:?} is not an IP address, and only a DNS cluster resolves names"));
    }
    let health = match core::HealthStatus::try_from(member.health_status) {
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => HealthStatus::Healthy,
        Ok(core::HealthStatus::Unhealthy) => HealthStatus::Unhealthy,
        Ok(core::HealthStatus::Draining) => HealthStatus::Draining,
        Ok(core::HealthStatus::Timeout) => HealthStatus::Timeout,
        Ok(core::HealthStatus::Degraded) => HealthStatus::Degraded,
        Err(_) => return at.field("health_status").refuse("does not exist"),
    };
    let mut metadata = plain_metadata(member.metadata.as_ref());
    let tls_labels = take_labels(&mut metadata);
    let workload = take_workload(&mut metadata);
    Ok(Endpoint {
        address,
        hostname: host.hostname.as_str().into(),
        weight: member.load_balancing_weight.map_or(1, |w| w.value.max(1)),
        health,
        tls_labels,
        workload: workload.into(),
        metadata,
    })
}

fn take_labels(metadata: &mut Metadata) -> BTreeMap<String, String> {
    match metadata.remove(TLS_LABELS) {
        Some(Value::Object(labels)) => {
            labels.into_iter().map(|(k, v)| (k, v.as_str().map_or_else(|| v.to_string(), str::to_owned))).collect()
        }
        _ => BTreeMap::new(),
    }
}

fn take_workload(metadata: &mut Metadata) -> String {
    let Some(Value::Object(istio)) = metadata.get_mut("istio") else { return String::new() };
    let workload = match istio.remove("workload") {
        Some(Value::String(workload)) => workload,
        _ => String::new(),
    };
    if istio.is_empty() {
        metadata.remove("istio");
    }
    workload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_for_those_who_resolve_them() {
        let assignment = |host: &str| {
            let socket = core::SocketAddress { address: host.to_owned(), ..Default::default() };
            let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
            let host = proto::lb_endpoint::HostIdentifier::Endpoint(proto::Endpoint {
                address: Some(address),
                ..Default::default()
            });
            let member = proto::LbEndpoint { host_identifier: Some(host), ..Default::default() };
            let group = proto::LocalityLbEndpoints { lb_endpoints: vec![member], ..Default::default() };
            proto::ClusterLoadAssignment { endpoints: vec![group], ..Default::default() }
        };
        let at = At::resource("c");
        let refused = endpoint_set(&at, &assignment("a.example"), Hosts::Numeric).unwrap_err();
        assert_eq!(refused.path, "endpoints[0].lb_endpoints[0].endpoint.address");
        assert!(refused.message.contains("a.example"), "{refused}");
        assert!(endpoint_set(&at, &assignment("a.example"), Hosts::Named).is_ok());
        assert!(endpoint_set(&at, &assignment("127.0.0.1"), Hosts::Numeric).is_ok());
    }
}
