//! What objects select, as far as workloads are known: without a single one of a namespace nothing is said, as they may
//! be known elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::crd::networking::{CLAIMS, DestinationRule, Gateway, VirtualService};
use mesh_api::labels::{GATEWAY_NAME, Labels, selects};

use super::checker::Checker;
use super::known::{Detail, Group, OfferedPort, Topic, label, selector, words};
use crate::source::object::{Kind, Object, ObjectKey, Spec};
use crate::validate::Finding;

impl<'k> Checker<'k> {
    /// A selector that no workload fits.
    pub(super) fn selection(&mut self, object: &Object) {
        let Some(labels) = selector(object).filter(|labels| !labels.is_empty()) else { return };
        let place = self.known.scope(&object.key);
        if self.none_selected(place, &labels) {
            let field = if matches!(object.spec, Spec::Sidecar(_)) { "spec.workloadSelector" } else { "spec.selector" };
            let message = format!("no workload has the labels {}", words(&labels));
            self.found.push(Finding::warning(field, message).code("IST0127"));
        }
    }

    /// A selector for workloads that a Gateway of Gateway API made: they take what is attached by targetRefs.
    pub(super) fn of_gateway_api(&mut self, object: &Object) {
        let attachable = matches!(
            object.spec,
            Spec::AuthorizationPolicy(_) | Spec::RequestAuthentication(_) | Spec::Telemetry(_) | Spec::WasmPlugin(_)
        );
        let Some(labels) = selector(object).filter(|labels| attachable && !labels.is_empty()) else { return };
        let gateways: BTreeSet<&String> = self
            .known
            .selected(self.known.scope(&object.key), &labels)
            .filter_map(|(_, carried)| carried.get(GATEWAY_NAME))
            .collect();
        if let Some(name) = gateways.first() {
            let message = format!("selects workloads of the Gateway {name}: attach the object to it by targetRefs");
            self.found.push(Finding::warning("spec.selector", message).code("IST0166"));
        }
    }

    /// There are workloads, and none of them has these labels.
    fn none_selected(&mut self, place: &str, labels: &Labels) -> bool {
        self.uses.push(Topic::Workloads(place.to_owned()));
        self.uses.extend(labels.iter().next().map(|first| Topic::Label(place.to_owned(), label(first))));
        self.known.workloads(place) > 0 && self.known.selected(place, labels).next().is_none()
    }

    /// Subsets without a workload, of services that have some.
    pub(super) fn subsets(&mut self, host: &str, rule: &DestinationRule) {
        let Some((namespace, selected)) = self.known.selector(host) else { return };
        self.uses.extend(selected.iter().next().map(|first| Topic::Label(namespace.clone(), label(first))));
        let workloads: Vec<&Labels> = self.known.selected(namespace, selected).map(|(_, labels)| labels).collect();
        if workloads.is_empty() {
            return;
        }
        for (i, subset) in rule.subsets.iter().enumerate() {
            // Where a workload runs is added to its labels later.
            let placed = subset.labels.keys().any(|key| key.starts_with("topology."));
            if !placed && !workloads.iter().any(|labels| selects(&subset.labels, labels)) {
                let message = format!("no workload of {host} has the labels {}", words(&subset.labels));
                self.found.push(Finding::error(format!("spec.subsets[{i}].labels"), message).code("IST0173"));
            }
        }
    }

    /// Ports of servers that no Service of the gateway's workloads has.
    pub(super) fn gateway_ports(&mut self, gateway: &Gateway) {
        let services = self.services_of("", &gateway.selector);
        let of = |p: &&OfferedPort| [Some(p.number), p.target];
        let ports: BTreeSet<u16> = services.values().flat_map(|ports| *ports).flat_map(|p| of(&p)).flatten().collect();
        for (i, server) in gateway.servers.iter().enumerate() {
            if !services.is_empty() && !ports.contains(&server.port.number) {
                let message = format!("no Service of the gateway's workloads has port {}", server.port.number);
                let finding = Finding::warning(format!("spec.servers[{i}].port.number"), message);
                self.found.push(finding.code("IST0162"));
            }
        }
    }

    /// Services of the workloads with these labels, with their ports, noting that the object depends on them.
    pub(super) fn services_of(&mut self, place: &str, selector: &Labels) -> BTreeMap<&'k ObjectKey, &'k [OfferedPort]> {
        let mut out = BTreeMap::new();
        let Some(first) = selector.iter().next().map(label) else { return out };
        self.uses.push(Topic::Label(place.to_owned(), first));
        let known = self.known;
        let mut groups = BTreeSet::new();
        for (workload, labels) in known.selected(place, selector) {
            for one in labels.iter().map(label) {
                let group = Group::Selecting(Kind::Service, workload.namespace.to_string(), one);
                for (key, detail) in known.group(&group).into_iter().flatten() {
                    if let Detail::Ports(selected, ports) = detail
                        && selects(selected, labels)
                    {
                        out.insert(key, ports.as_slice());
                    }
                }
                groups.insert(group);
            }
        }
        self.uses.extend(groups.into_iter().map(Topic::Group));
        out
    }

    /// Routes by claims where no token is checked.
    pub(super) fn claims(&mut self, vs: &VirtualService) {
        let claim = |name: &String| name.starts_with(CLAIMS);
        let by_claim = vs.http.iter().enumerate().find_map(|(i, rule)| {
            let asks =
                |m: &mesh_api::crd::networking::HttpMatch| m.headers.keys().chain(m.without_headers.keys()).any(claim);
            rule.matches.iter().position(asks).map(|j| format!("spec.http[{i}].match[{j}]"))
        });
        let Some(field) = by_claim else { return };
        for gateway in vs.gateways.iter().filter(|g| *g != "mesh") {
            let (namespace, name) = gateway.split_once('/').unwrap_or((&self.key.namespace, gateway));
            let Some(found) = self.istio_gateway(namespace, name) else { continue };
            if !self.checks_tokens(found, namespace) {
                let message = format!("no RequestAuthentication checks tokens at Gateway {namespace}/{name}");
                self.found.push(Finding::error(&field, message).code("IST0149"));
            }
        }
    }

    /// Whether tokens are checked at a gateway. Without workloads its selector is all that is known of it.
    fn checks_tokens(&mut self, gateway: &Gateway, namespace: &str) -> bool {
        self.uses.extend(gateway.selector.iter().next().map(|first| Topic::Label(String::new(), label(first))));
        let mut places: BTreeSet<(String, &Labels)> = self
            .known
            .selected("", &gateway.selector)
            .map(|(workload, labels)| (workload.namespace.to_string(), labels))
            .collect();
        if places.is_empty() {
            places.insert((namespace.to_owned(), &gateway.selector));
        }
        let mut all = true;
        for (namespace, labels) in places {
            let groups = [Group::Tokens(namespace), Group::Tokens(self.known.root.clone())];
            let mut members = groups.iter().filter_map(|g| self.known.group(g)).flat_map(|m| m.values());
            all &= members.any(|d| matches!(d, Detail::Selector(selected) if selects(selected, labels)));
            self.uses.extend(groups.into_iter().map(Topic::Group));
        }
        all
    }
}
