//! Whether passes still take what was forecast. Where they do not, the board is no longer the one
//! that was measured: another disk, a slower clock, a neighbour that stays.

use super::model::Model;
use super::pressure::Pressure;
use super::service::Shared;
use super::worker::Worker;
use crate::plan::{Forecast, Passing, Way, forecast};
use crate::stream::FlowCounters;

/// How many times its forecast a slow pass takes, and how much longer it is at least: less is a
/// hiccup of the scheduler.
const SLOW_FACTOR: f64 = 2.0;
const SLOW_US: f64 = 20e3;

/// Slow passes in a row after which a profile is not believed; twice as many each time that
/// measuring anew was in vain.
const SLOW_PASSES: u32 = 3;

/// A model's passes against their forecasts.
#[derive(Debug)]
pub(super) struct Doubt {
    slow_passes: u32,
    limit: u32,
}

impl Default for Doubt {
    fn default() -> Doubt {
        Doubt { slow_passes: 0, limit: SLOW_PASSES }
    }
}

impl Doubt {
    /// Notes a pass; whether the profile is not to be believed from now on.
    fn note(&mut self, took_us: f64, expected_us: f64) -> bool {
        let is_slow = took_us > SLOW_FACTOR * expected_us && took_us - expected_us > SLOW_US;
        self.slow_passes = if is_slow { self.slow_passes + 1 } else { 0 };
        if self.slow_passes < self.limit {
            return false;
        }
        *self = Doubt { slow_passes: 0, limit: self.limit.saturating_mul(2) };
        true
    }
}

impl Worker {
    /// Compares a pass with its forecast. A profile that forecasts another board is dropped: the
    /// model is measured anew when there is time.
    pub(super) fn judge(
        &self,
        shared: &Shared,
        model: &Model,
        tokens: u64,
        latency_us: u64,
        counted: FlowCounters,
    ) {
        if !self.config.profiles || shared.pressure.get() > Pressure::None {
            return;
        }
        let Some(expected) = self.expected(model, tokens, counted) else { return };
        let (took_us, expected_us) = (latency_us as f64, expected.latency_us);
        if !model.doubt().note(took_us, expected_us) {
            return;
        }
        // Bytes in a microsecond are MB in a second.
        let read = match counted.bytes_read {
            0 => "nothing was read".to_string(),
            bytes => format!(
                "the disk gave {:.0} MB/s of {:.0}",
                bytes as f64 / took_us,
                expected.bytes_read as f64 / expected.io_us.max(1.0)
            ),
        };
        log::warn!(
            "model {}: the pass took {:.1} ms where {:.1} were forecast: {read}: it is measured \
             anew when there is time",
            model.name(),
            took_us / 1e3,
            expected_us / 1e3,
        );
        model.drop_profile();
    }

    /// The forecast of a pass that has read so much; none where the profile says nothing of such.
    fn expected(&self, model: &Model, tokens: u64, counted: FlowCounters) -> Option<Forecast> {
        let profile = model.profile()?;
        let mut plan = model.playing().plan.clone();
        // Attention grows faster than the lines that were measured.
        let measured = profile.passes.iter().any(|pass| pass.tokens >= tokens);
        if !measured || self.granted_window_bytes() < plan.window_bytes {
            return None;
        }
        // What falls back to mapped files was measured so.
        if !profile.has(plan.source) {
            plan.source = Way::Mapped;
        }
        let later = forecast(&profile, &plan, tokens, Passing::Later).ok()?;
        match counted.bytes_read <= later.bytes_read {
            true => Some(later),
            false => forecast(&profile, &plan, tokens, Passing::First).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_slow_passes_in_a_row_are_doubted_and_twice_as_many_the_next_time() {
        let mut doubt = Doubt::default();
        let mut slow = |times: usize| {
            let found: Vec<bool> = (0..times).map(|_| doubt.note(210e3, 100e3)).collect();
            found.iter().position(|doubted| *doubted)
        };
        assert_eq!(slow(4), Some(2));
        // One is left of before.
        assert_eq!(slow(5), Some(4));
        assert_eq!(slow(11), None);
        assert!(!doubt.note(190e3, 100e3), "not twice as long");
        assert!((0..11).all(|_| !doubt.note(210e3, 100e3)), "it begins anew");
        assert!(doubt.note(210e3, 100e3));
        let mut doubt = Doubt::default();
        assert!((0..99).all(|_| !doubt.note(19e3, 0.1e3)), "hiccups");
    }
}
