//! The balancer's table: endpoints by priority, health and locality, with the share of load each priority gets. Built
//! whole whenever membership or health changes, read without locks.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::model::{Cluster, EndpointSet, LbPolicy, Locality, LocalityEndpoints};

use super::{Ask, Cumulative, LbContext, Picker, Random, zone::Zones};
use crate::upstream::{Endpoint, PickError, endpoint::Health, stats::ClusterStats};

/// Percent of the endpoints that must be healthy for a priority to take all its load is 100 / this.
const OVERPROVISIONING: u32 = 140;

/// Everything a choice needs.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Table {
    /// All endpoints in order of configuration.
    pub(in crate::upstream) all: Vec<Arc<Endpoint>>,
    tiers: Vec<Tier>,
    loads: Loads,
    drops: Vec<(mesh_api::model::Name, mesh_api::model::Fraction)>,
    fail_on_panic: bool,
    hashing: bool,
}

/// One priority.
#[derive(Debug)]
struct Tier {
    healthy: Groups,
    degraded: Groups,
    /// Everyone, for panic.
    everyone: Groups,
    counts: Counts,
}

/// Endpoints of a tier by locality.
#[derive(Debug, Default)]
struct Groups {
    pickers: Vec<Picker>,
    /// Weighted choice among `pickers`; `None`: there is only the first.
    weights: Option<Cumulative>,
    zones: Option<Zones>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    healthy: u32,
    degraded: u32,
    total: u32,
}

/// Percent of the load by priority.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
    /// Percent that each priority could take, healthy and degraded.
    able: Vec<(u32, u32)>,
}

impl Table {
    /// Builds the table from what the set says and what is known of its endpoints. `zone`: where this proxy is.
    pub(in crate::upstream) fn build(
        cluster: &Cluster,
        set: &EndpointSet,
        members: &[Vec<Arc<Endpoint>>],
        zone: Option<&Locality>,
        random: &impl Random,
    ) -> Self {
        let mut tiers: BTreeMap<u32, Vec<(&LocalityEndpoints, &[Arc<Endpoint>])>> = BTreeMap::new();
        for (group, endpoints) in set.localities.iter().zip(members) {
            tiers.entry(group.priority).or_default().push((group, endpoints));
        }
        let factor = set.overprovisioning.unwrap_or(OVERPROVISIONING).max(100);
        let tiers: Vec<Tier> =
            tiers.values().map(|groups| Tier::build(cluster, groups, factor, zone, random)).collect();
        let counts: Vec<Counts> = tiers.iter().map(|t| t.counts).collect();
        Self {
            all: members.iter().flatten().cloned().collect(),
            loads: Loads::new(&counts, factor, cluster.lb_common.panic_threshold.0),
            tiers,
            drops: set.drops.clone(),
            fail_on_panic: cluster.lb_common.fail_on_panic,
            hashing: matches!(cluster.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. }),
        }
    }

    /// (healthy, degraded) over all priorities.
    pub(in crate::upstream) fn healthy(&self) -> (u32, u32) {
        self.tiers.iter().fold((0, 0), |(h, d), t| (h + t.counts.healthy, d + t.counts.degraded))
    }

    /// Chooses; `stats` learns of panics and drops.
    pub(in crate::upstream) fn pick(
        &self,
        ctx: &LbContext<'_>,
        random: &impl Random,
        stats: &ClusterStats,
    ) -> Result<Arc<Endpoint>, PickError> {
        for (category, share) in &self.drops {
            if random.below(1_000_000) < u64::from(share.0) {
                stats.upstream_rq_dropped.inc();
                return Err(PickError::Dropped(category.clone()));
            }
        }
        if let Some(wanted) = ctx.override_host {
            let there = |e: &&Arc<Endpoint>| e.socket_addr() == Some(wanted) && e.health() != Health::Unhealthy;
            if let Some(e) = self.all.iter().find(there) {
                return Ok(e.clone());
            }
        }
        if ctx.tried.is_empty() {
            return self.choose(ctx, ctx.attempt, random, stats).cloned();
        }
        let mut drawn = self.choose(ctx, ctx.attempt, random, stats)?;
        for extra in 1..=ctx.selection_attempts.max(1) {
            if !ctx.tried.iter().any(|t| t.state.id == drawn.state.id) {
                break;
            }
            drawn = self.choose(ctx, ctx.attempt + extra, random, stats)?;
        }
        Ok(drawn.clone())
    }

    fn choose(
        &self,
        ctx: &LbContext<'_>,
        attempt: u32,
        random: &impl Random,
        stats: &ClusterStats,
    ) -> Result<&Arc<Endpoint>, PickError> {
        let hash = ctx.hash.unwrap_or_else(|| if self.hashing { random.next_u64() } else { 0 });
        // One healthy priority takes everything: the common case draws no number for it.
        let (tier, degraded) = match (self.tiers.as_slice(), ctx.avoid_priorities) {
            ([_], _) if self.loads.healthy.first() == Some(&100) => (0, false),
            (_, Some(every)) if !ctx.tried.is_empty() => {
                let avoid = avoided(ctx.tried, every);
                let loads = self.loads.without(&avoid);
                loads.as_ref().unwrap_or(&self.loads).draw(self.point(hash, random)).ok_or(PickError::NoHealthy)?
            }
            _ => self.loads.draw(self.point(hash, random)).ok_or(PickError::NoHealthy)?,
        };
        let panic = self.loads.panic.get(tier).copied().unwrap_or(false);
        let tier = self.tiers.get(tier).ok_or(PickError::NoHealthy)?;
        let groups = if panic {
            if self.fail_on_panic {
                return Err(PickError::Panic);
            }
            stats.lb_healthy_panic.inc();
            &tier.everyone
        } else if degraded {
            &tier.degraded
        } else {
            &tier.healthy
        };
        groups.pick(Ask { hash, attempt }, random, stats).ok_or(PickError::NoHealthy)
    }

    /// Which percent of the load this request is: by hash where the same hash must stay at its endpoint.
    fn point(&self, hash: u64, random: &impl Random) -> u32 {
        (if self.hashing { hash % 100 } else { random.below(100) }) as u32
    }
}

/// Priorities to avoid: those of the tries up to the last multiple of `every`, as Envoy's `update_frequency`.
fn avoided(tried: &[Arc<Endpoint>], every: u32) -> Vec<u32> {
    let every = every.max(1) as usize;
    tried.iter().take(tried.len() / every * every).map(|e| e.priority).collect()
}

impl Tier {
    fn build(
        cluster: &Cluster,
        groups: &[(&LocalityEndpoints, &[Arc<Endpoint>])],
        factor: u32,
        zone: Option<&Locality>,
        random: &impl Random,
    ) -> Self {
        let select = |health: Option<Health>| {
            let parts: Vec<Part> = groups
                .iter()
                .map(|(group, all)| {
                    let chosen: Vec<Arc<Endpoint>> =
                        all.iter().filter(|e| health.is_none_or(|h| e.health() == h)).cloned().collect();
                    let available =
                        (chosen.len() as f64 * f64::from(factor) / 100.0 / all.len().max(1) as f64).min(1.0);
                    let weight = f64::from(group.weight.unwrap_or(0)) * if health.is_none() { 1.0 } else { available };
                    Part { zone: group.locality.clone(), endpoints: chosen, weight }
                })
                .filter(|p| !p.endpoints.is_empty())
                .collect();
            Groups::build(cluster, parts, zone, random)
        };
        let mut counts = Counts::default();
        for e in groups.iter().flat_map(|(_, all)| all.iter()) {
            counts.total += 1;
            match e.health() {
                Health::Healthy => counts.healthy += 1,
                Health::Degraded => counts.degraded += 1,
                Health::Unhealthy => {}
            }
        }
        Self {
            healthy: select(Some(Health::Healthy)),
            degraded: if counts.degraded > 0 { select(Some(Health::Degraded)) } else { Groups::default() },
            // Panic is impossible while everyone is healthy, or when it is switched off.
            everyone: if counts.healthy < counts.total && cluster.lb_common.panic_threshold.0 > 0 {
                select(None)
            } else {
                Groups::default()
            },
            counts,
        }
    }
}

/// Endpoints of one locality, and its weight after what its health takes off.
pub(super) struct Part {
    pub(super) zone: Locality,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    weight: f64,
}

impl Groups {
    fn build(cluster: &Cluster, parts: Vec<Part>, zone: Option<&Locality>, random: &impl Random) -> Self {
        let hashing = matches!(cluster.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
        let weighted = cluster.lb_common.locality_weighted && parts.iter().any(|p| p.weight > 0.0);
        if hashing || !weighted {
            // One ring over all localities: an endpoint's share is its share of the locality's weight.
            let mut weights = Vec::new();
            for p in &parts {
                let sum: f64 = p.endpoints.iter().map(|e| f64::from(e.weight())).sum();
                let scale = if weighted { p.weight / sum } else { 1.0 };
                weights.extend(p.endpoints.iter().map(|e| f64::from(e.weight()) * scale));
            }
            if let (false, Some(cfg), Some(own)) = (hashing, cluster.lb_common.zone_aware, zone)
                && let Some(zones) = Zones::new(&cfg, &parts, own)
            {
                return Self {
                    pickers: parts.into_iter().map(|p| Picker::new(cluster, p.endpoints, &[], random)).collect(),
                    weights: None,
                    zones: Some(zones),
                }
                .with_all_first(cluster, random);
            }
            let endpoints: Vec<Arc<Endpoint>> = parts.into_iter().flat_map(|p| p.endpoints).collect();
            let pickers =
                if endpoints.is_empty() { vec![] } else { vec![Picker::new(cluster, endpoints, &weights, random)] };
            return Self { pickers, weights: None, zones: None };
        }
        // A locality of weight 0 gets nothing.
        let parts: Vec<Part> = parts.into_iter().filter(|p| p.weight > 0.0).collect();
        let weights = Cumulative::new(parts.iter().map(|p| (p.weight * 1000.0).round().max(1.0) as u64));
        Self {
            pickers: parts.into_iter().map(|p| Picker::new(cluster, p.endpoints, &[], random)).collect(),
            weights: Some(weights),
            zones: None,
        }
    }

    /// Puts a picker over everyone in front, for requests that zone awareness does not apply to.
    fn with_all_first(mut self, cluster: &Cluster, random: &impl Random) -> Self {
        let all = self.pickers.iter().flat_map(|p| p.endpoints().iter().cloned()).collect();
        self.pickers.insert(0, Picker::new(cluster, all, &[], random));
        self
    }

    fn pick(&self, ask: Ask, random: &impl Random, stats: &ClusterStats) -> Option<&Arc<Endpoint>> {
        let at = match (&self.weights, &self.zones) {
            (Some(w), _) => w.draw(random),
            (None, Some(zones)) => zones.draw(random, stats).map_or(0, |i| i + 1),
            (None, None) => 0,
        };
        self.pickers.get(at)?.pick(ask, random)
    }
}

impl Loads {
    /// Envoy's rules: a priority takes what its health (times the overprovisioning factor) allows, the rest spills to the
    /// next; degraded endpoints come after all healthy ones; too few healthy endpoints in sum are panic.
    fn new(tiers: &[Counts], factor: u32, panic_ppm: u32) -> Self {
        let percent = |n: u32, total: u32| match total {
            0 => 0,
            t => (u64::from(n) * u64::from(factor) / u64::from(t)).min(100) as u32,
        };
        let healthy: Vec<u32> = tiers.iter().map(|t| percent(t.healthy, t.total)).collect();
        let degraded: Vec<u32> = tiers.iter().map(|t| percent(t.degraded, t.total)).collect();
        let able: Vec<(u32, u32)> = healthy.iter().copied().zip(degraded.iter().copied()).collect();
        let available = (healthy.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
        let panic: Vec<bool> = tiers
            .iter()
            .map(|t| {
                let usable = u64::from(t.healthy + t.degraded) * 1_000_000;
                available < 100 && t.total > 0 && panic_ppm > 0 && usable < u64::from(panic_ppm) * u64::from(t.total)
            })
            .collect();
        let populated = tiers.iter().filter(|t| t.total > 0).count();
        if populated > 0 && panic.iter().filter(|p| **p).count() == populated {
            // Everyone panics: by numbers of endpoints.
            let total: u32 = tiers.iter().map(|t| t.total).sum();
            let mut shares: Vec<u32> =
                tiers.iter().map(|t| (u64::from(t.total) * 100 / u64::from(total.max(1))) as u32).collect();
            let rest = 100 - shares.iter().sum::<u32>();
            if let Some(first) = shares.iter_mut().find(|s| **s > 0) {
                *first += rest;
            }
            return Self { healthy: shares, degraded: vec![0; tiers.len()], panic, able };
        }
        let (healthy, degraded) = Self::distribute(&healthy, &degraded, available);
        Self { healthy, degraded, panic, able }
    }

    fn distribute(healthy: &[u32], degraded: &[u32], available: u32) -> (Vec<u32>, Vec<u32>) {
        if available == 0 {
            return (vec![0; healthy.len()], vec![0; degraded.len()]);
        }
        let mut left = 100;
        let mut take = |h: &u32| {
            let load = (h * 100 / available).min(left);
            left -= load;
            load
        };
        let mut loads: Vec<u32> = healthy.iter().map(&mut take).collect();
        let mut spare: Vec<u32> = degraded.iter().map(&mut take).collect();
        // What rounding left goes to the first that has any.
        if let Some(first) = loads.iter_mut().chain(spare.iter_mut()).find(|l| **l > 0) {
            *first += left;
        }
        (loads, spare)
    }

    /// Without these priorities; `None` when nobody else could take anything.
    fn without(&self, avoid: &[u32]) -> Option<Self> {
        let (healthy, degraded): (Vec<u32>, Vec<u32>) =
            self.able.iter().zip(0u32..).map(|(able, p)| if avoid.contains(&p) { (0, 0) } else { *able }).unzip();
        let available = (healthy.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
        if available == 0 {
            return None;
        }
        let (healthy, degraded) = Self::distribute(&healthy, &degraded, available);
        Some(Self { healthy, degraded, panic: self.panic.clone(), able: self.able.clone() })
    }

    /// The priority that this percent of the load goes to, and whether to its degraded endpoints.
    fn draw(&self, point: u32) -> Option<(usize, bool)> {
        let mut sum = 0;
        let all = self.healthy.iter().map(|l| (l, false)).enumerate();
        for (i, (load, degraded)) in all.chain(self.degraded.iter().map(|l| (l, true)).enumerate()) {
            sum += load;
            if point < sum {
                return Some((i, degraded));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use mesh_api::model::{Address, Discovery, Fraction, HealthStatus, ZoneAware};

    use super::*;
    use crate::upstream::{balance::tests::Seeded, endpoint::EndpointState};

    /// One group: priority, locality, weight, and a port and health for each endpoint.
    type Group<'a> = (u32, &'a str, Option<u32>, &'a [(u16, HealthStatus)]);
    use HealthStatus::{Degraded as D, Healthy as H, Unhealthy as U};

    fn table(tune: impl FnOnce(&mut Cluster), groups: &[Group<'_>], own: Option<&str>) -> Table {
        let mut cluster = Cluster::new("c", Discovery::Eds { service: "".into() });
        tune(&mut cluster);
        let mut set = EndpointSet::default();
        let mut members = vec![];
        for (priority, zone, weight, endpoints) in groups {
            let locality = Locality::parse(zone);
            let list: Vec<_> = endpoints
                .iter()
                .map(|(port, health)| {
                    let mut e = mesh_api::model::Endpoint::at(Address::Socket(([10, 0, 0, 1], *port).into()));
                    e.health = *health;
                    e
                })
                .collect();
            members.push(
                list.iter()
                    .map(|config| {
                        Endpoint::new(config.clone(), Arc::new(locality.clone()), *priority, None, EndpointState::new())
                    })
                    .collect(),
            );
            set.localities.push(LocalityEndpoints { locality, priority: *priority, weight: *weight, endpoints: list });
        }
        Table::build(&cluster, &set, &members, own.map(Locality::parse).as_ref(), &Seeded::new(1))
    }

    fn shares(t: &Table, ctx: &LbContext<'_>) -> HashMap<u16, f64> {
        let (random, stats) = (Seeded::new(9), ClusterStats::default());
        let mut counts: HashMap<u16, f64> = HashMap::new();
        for _ in 0..20_000 {
            if let Ok(e) = t.pick(ctx, &random, &stats) {
                *counts.entry(e.socket_addr().unwrap().port()).or_default() += 1.0 / 20_000.0;
            }
        }
        counts
    }

    fn close(got: &HashMap<u16, f64>, want: &[(u16, f64)]) {
        for (port, share) in want {
            let g = got.get(port).copied().unwrap_or(0.0);
            assert!((g - share).abs() < 0.02, "{port}: {g} instead of {share} in {got:?}");
        }
        let sum: f64 = want.iter().map(|w| w.1).sum();
        assert!((got.values().sum::<f64>() - sum).abs() < 0.02, "{got:?}");
    }

    fn no_panic(c: &mut Cluster) {
        c.lb_common.panic_threshold = Fraction(0);
    }

    #[test]
    fn load_spills_to_the_next_priority_as_health_goes() {
        let ctx = LbContext::default();
        let second: Group<'_> = (1, "b", None, &[(9, H)]);
        let t = table(no_panic, &[(0, "a", None, &[(1, H), (2, H), (3, H), (4, U)]), second], None);
        let want = 1.0 / 3.0;
        close(&shares(&t, &ctx), &[(1, want), (2, want), (3, want)]); // 75 % x 1.4 >= 100
        let t = table(no_panic, &[(0, "a", None, &[(1, H), (2, U)]), second], None);
        close(&shares(&t, &ctx), &[(1, 0.70), (9, 0.30)]);
        let t = table(no_panic, &[(0, "a", None, &[(1, U), (2, U)]), second], None);
        close(&shares(&t, &ctx), &[(9, 1.0)]);
    }

    #[test]
    fn degraded_come_after_healthy_ones_and_nothing_healthy_is_an_error() {
        let ctx = LbContext::default();
        let t = table(no_panic, &[(0, "a", None, &[(1, H), (2, D)])], None);
        close(&shares(&t, &ctx), &[(1, 0.70), (2, 0.30)]);
        let t = table(no_panic, &[(0, "a", None, &[(1, U), (2, U)])], None);
        assert_eq!(t.pick(&ctx, &Seeded::new(1), &ClusterStats::default()).unwrap_err(), PickError::NoHealthy);
        let empty = table(no_panic, &[], None);
        assert_eq!(empty.pick(&ctx, &Seeded::new(1), &ClusterStats::default()).unwrap_err(), PickError::NoHealthy);
    }

    #[test]
    fn panic_uses_everyone_or_fails() {
        let ctx = LbContext::default();
        let groups: &[Group<'_>] = &[(0, "a", None, &[(1, H), (2, U), (3, U), (4, U)])];
        close(&shares(&table(|_| (), groups, None), &ctx), &[(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25)]);
        close(&shares(&table(no_panic, groups, None), &ctx), &[(1, 1.0)]);
        let t = table(|c| c.lb_common.fail_on_panic = true, groups, None);
        assert_eq!(t.pick(&ctx, &Seeded::new(1), &ClusterStats::default()).unwrap_err(), PickError::Panic);
    }

    #[test]
    fn localities_by_weight_and_by_what_their_health_leaves() {
        let ctx = LbContext::default();
        let weighted = |c: &mut Cluster| c.lb_common.locality_weighted = true;
        let t = table(weighted, &[(0, "a", Some(1), &[(1, H)]), (0, "b", Some(3), &[(2, H)])], None);
        close(&shares(&t, &ctx), &[(1, 0.25), (2, 0.75)]);
        // Half of b is gone: 3 x 0.7.
        let t = table(weighted, &[(0, "a", Some(1), &[(1, H)]), (0, "b", Some(3), &[(2, H), (3, U)])], None);
        close(&shares(&t, &ctx), &[(1, 1.0 / 3.1), (2, 2.1 / 3.1)]);
        // Without locality weighting only numbers count.
        let t = table(|_| (), &[(0, "a", Some(1), &[(1, H)]), (0, "b", Some(3), &[(2, H), (3, H)])], None);
        let third = 1.0 / 3.0;
        close(&shares(&t, &ctx), &[(1, third), (2, third), (3, third)]);
    }

    #[test]
    fn hashing_keeps_locality_weights_and_stays() {
        let ring = |c: &mut Cluster| {
            c.lb = LbPolicy::RingHash { minimum: 4096, maximum: 8 << 20 };
            c.lb_common.locality_weighted = true;
        };
        let groups: &[Group<'_>] = &[(0, "a", Some(1), &[(1, H), (2, H)]), (0, "b", Some(1), &[(3, H)])];
        let t = table(ring, groups, None);
        let got = shares(&t, &LbContext::default());
        assert!((got[&3] - 0.5).abs() < 0.05, "{got:?}");
        let pinned = shares(&t, &LbContext { hash: Some(77), ..LbContext::default() });
        assert_eq!(pinned.len(), 1);
    }

    #[test]
    fn retries_avoid_hosts_and_priorities() {
        let t = table(no_panic, &[(0, "a", None, &[(1, H)]), (1, "b", None, &[(2, H)])], None);
        let tried = [t.all[0].clone()];
        close(
            &shares(&t, &LbContext { tried: &tried, avoid_priorities: Some(1), ..LbContext::default() }),
            &[(2, 1.0)],
        );
        // After two tries of priority 0 with a frequency of 2 as well, after one not yet.
        close(
            &shares(&t, &LbContext { tried: &tried, avoid_priorities: Some(2), ..LbContext::default() }),
            &[(1, 1.0)],
        );
        // Everything tried: begin anew.
        let all = [t.all[0].clone(), t.all[1].clone()];
        close(&shares(&t, &LbContext { tried: &all, avoid_priorities: Some(1), ..LbContext::default() }), &[(1, 1.0)]);

        let t = table(no_panic, &[(0, "a", None, &[(1, H), (2, H)])], None);
        let tried = [t.all[0].clone()];
        let ctx = LbContext { tried: &tried, selection_attempts: 5, attempt: 1, ..LbContext::default() };
        close(&shares(&t, &ctx), &[(2, 1.0)]);
    }

    #[test]
    fn pinned_endpoints_and_drops() {
        let t = table(no_panic, &[(0, "a", None, &[(1, H), (2, U)])], None);
        let pin = |port: u16| LbContext { override_host: Some(([10, 0, 0, 1], port).into()), ..LbContext::default() };
        close(&shares(&t, &pin(1)), &[(1, 1.0)]);
        close(&shares(&t, &pin(2)), &[(1, 1.0)]);
        let mut t = table(no_panic, &[(0, "a", None, &[(1, H)])], None);
        t.drops = vec![("lb".into(), Fraction::from_percent(25.0))];
        close(&shares(&t, &LbContext::default()), &[(1, 0.75)]);
    }

    #[test]
    fn zones_keep_what_they_can() {
        let aware = |c: &mut Cluster| {
            c.lb_common.zone_aware = Some(ZoneAware { enabled: Fraction::ALWAYS, min_cluster_size: 3 });
        };
        // Two of four in a zone of two: everything stays.
        let groups: &[Group<'_>] = &[(0, "r/a", None, &[(1, H), (2, H)]), (0, "r/b", None, &[(3, H), (4, H)])];
        close(&shares(&table(aware, groups, Some("r/a")), &LbContext::default()), &[(1, 0.5), (2, 0.5)]);
        // One of four: half of our load fits.
        let groups: &[Group<'_>] = &[(0, "r/a", None, &[(1, H)]), (0, "r/b", None, &[(2, H), (3, H), (4, H)])];
        let got = shares(&table(aware, groups, Some("r/a")), &LbContext::default());
        assert!((got[&1] - 0.5).abs() < 0.02, "{got:?}");
        // Another zone than ours: evenly.
        close(
            &shares(&table(aware, groups, Some("r/x")), &LbContext::default()),
            [(1, 0.25), (2, 0.25)]
                .map(|x| x)
                .iter()
                .copied()
                .chain([(3, 0.25), (4, 0.25)])
                .collect::<Vec<_>>()
                .as_slice(),
        );
    }
}
