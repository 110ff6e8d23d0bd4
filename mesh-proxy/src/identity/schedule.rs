//! When to renew, when to try again. Pure.

use std::time::Duration;

/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause while the certificate has time.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest pause when there is none, or it ends soon: service must come back soon after the control plane.
const PAUSE_URGENT: Duration = Duration::from_secs(3);
/// "Soon".
const SOON: Duration = Duration::from_secs(120);

/// How long after it was issued a certificate with this much life is renewed: at half, or a little earlier, so that a
/// crowd does not come at once. `random` is in 0..1.
pub(super) fn renewal(life: Duration, random: f64) -> Duration {
    life.mul_f64(0.5 - 0.05 * random.clamp(0.0, 1.0))
}

/// How long to wait after the `failures`-th failure in a row, with `left` of the present certificate's life.
pub(super) fn pause(failures: u32, left: Duration, random: f64) -> Duration {
    let most = if left < SOON { PAUSE_URGENT } else { PAUSE_MAX };
    let full = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
    full.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn half_life_with_jitter() {
        assert_eq!(renewal(24 * HOUR, 0.0), 12 * HOUR);
        assert!(renewal(24 * HOUR, 1.0) >= 10 * HOUR);
        assert_eq!(renewal(Duration::from_secs(4), 0.0), Duration::from_secs(2));
        assert_eq!(renewal(Duration::ZERO, 0.5), Duration::ZERO);
    }

    #[test]
    fn pauses_grow_and_stay_short_when_it_is_urgent() {
        let far: Vec<_> = (1..=20).map(|n| pause(n, HOUR, 1.0)).collect();
        assert!(far.is_sorted());
        assert_eq!((far[0], far[19]), (PAUSE_MIN, PAUSE_MAX));
        assert_eq!(pause(u32::MAX, Duration::ZERO, 1.0), PAUSE_URGENT);
        assert_eq!(pause(0, HOUR, 0.0), PAUSE_MIN / 2);
    }
}
