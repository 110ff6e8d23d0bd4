//! Zone-aware routing: as much as possible to endpoints of the own zone, the rest to zones with capacity to spare.
//! What share of this service's proxies is in the own zone is not known here; it is taken to be equal over zones.

use mesh_api::model::{Locality, ZoneAware};

use super::{Cumulative, Random, table::Part};
use crate::upstream::stats::ClusterStats;

/// Shares of one tier's zones.
#[derive(Debug)]
pub(super) struct Zones {
    enabled: u32,
    own: usize,
    /// Parts per million of the requests that stay.
    stay: u64,
    /// Capacity beyond their own needs, by part; the own one has none.
    others: Cumulative,
    spare: bool,
}

impl Zones {
    /// `None` when the conditions are not met: too few endpoints, none in the own zone, or only one zone.
    pub(super) fn new(cfg: &ZoneAware, parts: &[Part], own: &Locality) -> Option<Self> {
        let total: usize = parts.iter().map(|p| p.endpoints.len()).sum();
        if parts.len() < 2 || (total as u64) < cfg.min_cluster_size {
            return None;
        }
        let same = |l: &Locality| l.region == own.region && l.zone == own.zone;
        let at = parts.iter().position(|p| same(&p.zone))?;
        let ppm = |n: usize| n as u64 * 1_000_000 / total as u64;
        let fair = 1_000_000 / parts.len() as u64;
        let here = ppm(parts.get(at)?.endpoints.len());
        let spare = |i: usize, p: &Part| if i == at { 0 } else { ppm(p.endpoints.len()).saturating_sub(fair) };
        let others: Vec<u64> = parts.iter().enumerate().map(|(i, p)| spare(i, p)).collect();
        Some(Self {
            enabled: cfg.enabled.0,
            own: at,
            stay: (here * 1_000_000 / fair).min(1_000_000),
            spare: others.iter().sum::<u64>() > 0,
            others: Cumulative::new(others.into_iter()),
        })
    }

    /// The part to use; `None`: zones do not matter for this request.
    pub(super) fn draw(&self, random: &impl Random, stats: &ClusterStats) -> Option<usize> {
        if random.below(1_000_000) >= u64::from(self.enabled) {
            return None;
        }
        if self.stay >= 1_000_000 || !self.spare {
            stats.lb_zone_routing_all_directly.inc();
            return Some(self.own);
        }
        if random.below(1_000_000) < self.stay {
            stats.lb_zone_routing_sampled.inc();
            return Some(self.own);
        }
        stats.lb_zone_routing_cross_zone.inc();
        Some(self.others.draw(random))
    }
}
