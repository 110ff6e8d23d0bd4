//! Preference by locality: which endpoints of a cluster come first for a proxy somewhere.
//!
//! Owns `localityLbSetting` (distribute, failover, failoverPriority) and `trafficDistribution`, and which facts of a
//! proxy they look at: those are the only ones its endpoints may depend on. Must not know how endpoints are found.

use std::collections::BTreeMap;

use mesh_api::{
    crd::networking::{LoadBalancer, LocalityDistribute, LocalityFailover, ZoneAwareLb},
    labels::{self, Labels},
    meshconfig::MeshConfig,
    model::{self, Locality, LocalityEndpoints, Name},
};

use crate::{
    index::{Nearness, Service, Workload},
    view::ProxyView,
};

/// Label of the node's name.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// How localities are preferred.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Preference {
    /// Not at all.
    #[default]
    None,
    /// Fixed shares.
    Distribute(Vec<LocalityDistribute>),
    /// The nearest that is healthy.
    Failover {
        /// Labels that make near; empty: region, zone, sub-zone.
        priority: Vec<String>,
        /// Regions to fail over to.
        regions: Vec<LocalityFailover>,
        /// How near localities are, below labels.
        tiers: Tiers,
    },
}

/// What of localities makes some nearer than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tiers {
    /// Nothing: labels alone do.
    None,
    /// Sub-zone, zone and region.
    Locality,
    /// The region: within it the proxy balances zones itself.
    Region,
}

/// The zone-aware setting that holds: the rule's, or the mesh's where neither rule nor service say anything of localities.
pub fn zone_aware<'a>(
    mesh: &'a MeshConfig,
    service: &Service,
    lb: Option<&'a LoadBalancer>,
) -> Option<&'a ZoneAwareLb> {
    let said = lb.is_some_and(|l| l.locality_lb_setting.is_some()) || service.prefer_near.is_some();
    let of_mesh = || mesh.zone_aware_lb_setting.as_ref().filter(|_| !said);
    lb.and_then(|l| l.zone_aware_lb_setting.as_ref()).or_else(of_mesh)
}

/// The facts of a proxy that a cluster's endpoints depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// Its locality, when preference goes by it.
    pub locality: Option<Locality>,
    /// Its values of the labels that preference goes by.
    pub labels: Vec<Option<Name>>,
    /// Its node, when only that node's endpoints count.
    pub node: Option<Name>,
    /// Its address families, when endpoints are of both.
    pub families: Option<crate::view::Families>,
}

impl Preference {
    /// What the rule, the service and the mesh say. `detects`: there is outlier detection; without it the proxy would
    /// never leave the nearest endpoints.
    pub fn of(mesh: &MeshConfig, service: &Service, lb: Option<&LoadBalancer>, detects: bool) -> Self {
        if let Some(zone) = zone_aware(mesh, service, lb) {
            if zone.enabled == Some(false) {
                return Self::None;
            }
            return Self::Failover {
                priority: zone.failover_priority.clone(),
                regions: zone.failover.clone(),
                tiers: Tiers::Region,
            };
        }
        let own = lb.and_then(|l| l.locality_lb_setting.as_ref());
        let near = own.is_none().then_some(service.prefer_near).flatten();
        if let Some(near) = near {
            let mut priority: Vec<String> = vec![labels::NETWORK.into()];
            priority.extend([labels::REGION.into(), labels::ZONE.into(), labels::SUBZONE.into()]);
            if near == Nearness::Node {
                priority.push(HOSTNAME.into());
            }
            return Self::Failover { priority, regions: vec![], tiers: Tiers::None };
        }
        let Some(setting) = own.or(mesh.locality_lb_setting.as_ref()) else {
            return if detects { Self::failover(&[], &[]) } else { Self::None };
        };
        if setting.enabled == Some(false) {
            Self::None
        } else if !setting.distribute.is_empty() {
            Self::Distribute(setting.distribute.clone())
        } else if detects {
            Self::failover(&setting.failover_priority, &setting.failover)
        } else {
            Self::None
        }
    }

    fn failover(priority: &[String], regions: &[LocalityFailover]) -> Self {
        let tiers = if priority.is_empty() || !regions.is_empty() { Tiers::Locality } else { Tiers::None };
        Self::Failover { priority: priority.to_vec(), regions: regions.to_vec(), tiers }
    }

    /// Weights of localities matter, not only those of endpoints.
    pub fn weighs_localities(&self) -> bool {
        match self {
            Self::None => false,
            Self::Distribute(_) => true,
            Self::Failover { priority, regions, .. } => !priority.is_empty() || !regions.is_empty(),
        }
    }

    /// What it looks at of a proxy.
    pub fn place(&self, view: &ProxyView) -> Place {
        let mut out = Place::default();
        match self {
            Self::None => {}
            Self::Distribute(_) => out.locality = Some(view.locality.clone()),
            Self::Failover { priority, tiers, .. } => {
                out.labels = priority.iter().map(|p| proxy_value(view, p)).collect();
                out.locality = match tiers {
                    Tiers::None => None,
                    Tiers::Locality => Some(view.locality.clone()),
                    Tiers::Region => Some(Locality { region: view.locality.region.clone(), ..Locality::default() }),
                };
            }
        }
        out
    }

    /// Weighs or orders groups of endpoints. `workloads` are those of the endpoints, group by group.
    pub fn apply(&self, place: &Place, groups: Vec<Group>) -> Vec<LocalityEndpoints> {
        let here = place.locality.clone().unwrap_or_default();
        match self {
            Self::None => groups.into_iter().map(|g| g.finish(0)).collect(),
            Self::Distribute(rules) => distribute(&here, rules, groups),
            Self::Failover { priority, regions, tiers } => {
                let mut ranked = by_labels(priority, &place.labels, groups);
                for (rank, group) in &mut ranked {
                    // At most five ranks by locality, below those by labels.
                    *rank = match tiers {
                        Tiers::None => *rank,
                        Tiers::Locality => *rank * 5 + distance(&here, &group.locality, regions),
                        Tiers::Region => *rank * 5 + region_distance(&here, &group.locality, regions),
                    };
                }
                compact(ranked)
            }
        }
    }
}

/// Endpoints of one locality, with what runs there.
#[derive(Debug, Default)]
pub struct Group {
    /// Where.
    pub locality: Locality,
    /// Endpoints, with the labels that failover by labels compares.
    pub members: Vec<(model::Endpoint, Option<EndpointLabels>)>,
}

/// Labels of an endpoint and what stands for labels.
#[derive(Debug, Clone)]
pub struct EndpointLabels {
    /// What runs there.
    pub workload: std::sync::Arc<Workload>,
    /// Its locality.
    pub locality: Locality,
    /// Its network.
    pub network: Name,
    /// Its cluster.
    pub cluster: Name,
}

impl EndpointLabels {
    fn value(&self, label: &str) -> Option<&str> {
        value(label, &self.workload.labels, &self.locality, &self.network, &self.cluster, &self.workload.node)
    }
}

impl Group {
    fn weight(&self) -> u32 {
        self.members.iter().fold(0, |sum, (e, _)| sum.saturating_add(e.weight))
    }

    fn finish(self, priority: u32) -> LocalityEndpoints {
        let weight = Some(self.weight());
        let endpoints = self.members.into_iter().map(|(e, _)| e).collect();
        LocalityEndpoints { locality: self.locality, priority, weight, endpoints }
    }
}

/// Value of a label, where locality, network, cluster and node count as labels.
fn value<'a>(
    label: &str,
    all: &'a Labels,
    locality: &'a Locality,
    network: &'a str,
    cluster: &'a str,
    node: &'a str,
) -> Option<&'a str> {
    let told = match label {
        labels::REGION => &*locality.region,
        labels::ZONE => &*locality.zone,
        labels::SUBZONE => &*locality.sub_zone,
        labels::NETWORK => network,
        labels::CLUSTER => cluster,
        HOSTNAME => node,
        _ => "",
    };
    if told.is_empty() { all.get(label).map(String::as_str) } else { Some(told) }
}

/// `key`, or `key=value` which overrides the proxy's own value.
fn key_of(priority: &str) -> (&str, Option<&str>) {
    match priority.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (priority, None),
    }
}

fn proxy_value(view: &ProxyView, priority: &str) -> Option<Name> {
    match key_of(priority) {
        (_, Some(fixed)) => Some(fixed.into()),
        (key, None) => {
            value(key, &view.labels, &view.locality, &view.network, &view.cluster, &view.node).map(Name::from)
        }
    }
}

/// Splits groups by how many of the labels, from the first on, fit the proxy's.
fn by_labels(priority: &[String], own: &[Option<Name>], groups: Vec<Group>) -> Vec<(u32, Group)> {
    if priority.is_empty() {
        return groups.into_iter().map(|g| (0, g)).collect();
    }
    let mut out = Vec::new();
    for group in groups {
        let mut ranks: BTreeMap<u32, Group> = BTreeMap::new();
        for (endpoint, facts) in group.members {
            let fitting = priority
                .iter()
                .zip(own)
                .take_while(|(p, own)| facts.as_ref().and_then(|f| f.value(key_of(p).0)) == own.as_deref())
                .count();
            let rank = u32::try_from(priority.len() - fitting).unwrap_or(u32::MAX);
            let split =
                ranks.entry(rank).or_insert_with(|| Group { locality: group.locality.clone(), members: vec![] });
            split.members.push((endpoint, facts));
        }
        out.extend(ranks);
    }
    out
}

/// 0: the same sub-zone, 1: zone, 2: region, 3: elsewhere, 4: elsewhere and not where failover goes.
fn distance(here: &Locality, there: &Locality, failover: &[LocalityFailover]) -> u32 {
    if here.region != there.region {
        return match failover.iter().find(|f| f.from == *here.region) {
            Some(f) if f.to != *there.region => 4,
            _ => 3,
        };
    }
    if here.zone != there.zone {
        2
    } else if here.sub_zone != there.sub_zone {
        1
    } else {
        0
    }
}

/// 0: the same region, 1: where failover goes, 2: elsewhere.
fn region_distance(here: &Locality, there: &Locality, failover: &[LocalityFailover]) -> u32 {
    if here.region == there.region {
        return 0;
    }
    match failover.iter().find(|f| f.from == *here.region) {
        Some(f) if f.to == *there.region => 1,
        _ => 2,
    }
}

/// Ranks to priorities without gaps, near ones first.
fn compact(mut ranked: Vec<(u32, Group)>) -> Vec<LocalityEndpoints> {
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.locality.cmp(&b.1.locality)));
    let mut out = Vec::with_capacity(ranked.len());
    let mut last: Option<u32> = None;
    let mut priority = 0;
    for (rank, group) in ranked {
        if last.is_some_and(|l| l != rank) {
            priority += 1;
        }
        last = Some(rank);
        out.push(group.finish(priority));
    }
    out
}

/// Whether a locality lies within a pattern such as `region/zone/*`.
fn locality_matches(locality: &Locality, pattern: &str) -> bool {
    let mut parts = pattern.splitn(3, '/');
    let fits = |part: Option<&str>, own: &str| match part {
        None | Some("*" | "") => true,
        Some(p) => p == own,
    };
    fits(parts.next(), &locality.region) && fits(parts.next(), &locality.zone) && fits(parts.next(), &locality.sub_zone)
}

/// How exact a pattern is.
fn exactness(pattern: &str) -> usize {
    pattern.split('/').filter(|p| *p != "*" && !p.is_empty()).count()
}

fn distribute(here: &Locality, rules: &[LocalityDistribute], groups: Vec<Group>) -> Vec<LocalityEndpoints> {
    let Some(rule) = rules.iter().find(|r| locality_matches(here, &r.from)) else {
        return groups.into_iter().map(|g| g.finish(0)).collect();
    };
    let mut to: Vec<(&str, u32)> = rule.to.iter().map(|(p, w)| (p.as_str(), *w)).collect();
    // A locality belongs to the most exact pattern it fits.
    to.sort_by_key(|(p, _)| std::cmp::Reverse(exactness(p)));
    let target = |g: &Group| to.iter().position(|(p, _)| locality_matches(&g.locality, p));
    let mut totals = vec![0u64; to.len()];
    for group in &groups {
        if let Some(total) = target(group).and_then(|t| totals.get_mut(t)) {
            *total += u64::from(group.weight());
        }
    }
    let mut out = Vec::new();
    for group in groups {
        let Some(t) = target(&group) else { continue };
        let (Some((_, share)), Some(total)) = (to.get(t), totals.get(t)) else { continue };
        // Several localities under one pattern divide its share by their weights.
        let weight = (u64::from(group.weight()) * u64::from(*share)).div_ceil((*total).max(1));
        if weight > 0 {
            let mut done = group.finish(0);
            done.weight = Some(u32::try_from(weight).unwrap_or(u32::MAX));
            out.push(done);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::testing::World;

    fn service(annotations: &str) -> World {
        World::new(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop{annotations}}}\nspec: {{clusterIP: 10.1.0.1, ports: [{{name: http, port: 80}}]}}\n"
        ))
    }

    #[test]
    fn zone_awareness_of_the_mesh_holds_where_nobody_else_speaks_of_localities() {
        let mesh: MeshConfig = serde_saphyr::from_str("zoneAwareLbSetting: {minClusterSize: 3}").unwrap();
        let size = |annotations: &str, lb: Option<&str>| {
            let world = service(annotations);
            let entry = world.index().service("web.shop.svc.cluster.local", "shop").unwrap();
            let lb: Option<LoadBalancer> = lb.map(|lb| serde_saphyr::from_str(lb).unwrap());
            zone_aware(&mesh, entry.service.arc(), lb.as_ref()).map(|z| z.min_cluster_size)
        };
        assert_eq!(size("", None), Some(Some(3)));
        assert_eq!(size("", Some("{simple: RANDOM}")), Some(Some(3)));
        assert_eq!(size("", Some("{zoneAwareLbSetting: {}}")), Some(None), "replaced as a whole");
        assert_eq!(size("", Some("{localityLbSetting: {enabled: false}}")), None);
        let near = ", annotations: {networking.istio.io/traffic-distribution: PreferClose}";
        assert_eq!(size(near, None), None);
    }

    #[test]
    fn regions_are_apart_zones_are_not() {
        let here = Locality { region: "eu".into(), zone: "a".into(), sub_zone: "1".into() };
        let at = |region: &str, zone: &str| Locality { region: region.into(), zone: zone.into(), ..here.clone() };
        let to = [LocalityFailover { from: "eu".into(), to: "us".into() }];
        let rank = |there: &Locality| region_distance(&here, there, &to);
        assert_eq!((rank(&at("eu", "a")), rank(&at("eu", "b"))), (0, 0));
        assert_eq!((rank(&at("us", "a")), rank(&at("asia", "a"))), (1, 2));
        assert_eq!(region_distance(&here, &at("us", "a"), &[]), 2);
    }
}
