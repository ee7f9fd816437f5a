//! What a pass by a plan will take, by a profile: latency, stall, bytes read and held. Nothing is
//! measured or loaded. A forecast of 1,152 blocks takes a quarter of a millisecond of a server's
//! core, and one millisecond where nothing is released before the end.

use super::disk::DiskCurve;
use super::profile::{BlockRun, LayerCost, Profile};
use super::simulate::{Lapse, Stay, Unit, play};
use super::speeds::Speeds;
use super::{Plan, Release, Way, pinned_units};
use std::ops::Range;
use thiserror::Error;

/// How uneven a rough tape is: one load, and the computation with one block, in so many takes so
/// many times as long as the others; all together take as long as on an even tape. A margin for
/// windows, not a measurement.
const LOAD_BUMPS: (usize, f64) = (32, 5.0);
const COMPUTE_BUMPS: (usize, f64) = (12, 3.0);

/// Which pass is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// The first: nothing is there, and what is to be pinned stays as it passes.
    First,
    /// Any other: what is to be pinned is there.
    Later,
}

/// A pass as it will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    pub latency_us: f64,
    /// Time that compute waits for blocks.
    pub stall_us: f64,
    pub bytes_read: u64,
    /// Most bytes of streamed blocks held at once, pins not counted.
    pub window_peak_bytes: u64,
    /// Bytes of the blocks that stay.
    pub pinned_bytes: u64,
    /// Most bytes that the process holds.
    pub peak_bytes: u64,
    /// Reading alone, nothing computed beside it.
    pub io_us: f64,
    /// Computing alone, every block resident.
    pub compute_us: f64,
}

/// What a pass cannot be faster than.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Disk,
    Compute,
}

impl Forecast {
    /// Which of the two takes longer alone.
    pub fn bound(&self) -> Bound {
        match self.io_us > self.compute_us {
            true => Bound::Disk,
            false => Bound::Compute,
        }
    }
}

/// Why a plan cannot be played.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ForecastError {
    #[error("no {0} reads were measured\nprofile the model again, or choose another source")]
    Way(Way),
    #[error("a plan has at least one loader and one compute thread")]
    Crew,
    #[error(
        "the runs {runs:?} are not those of {layers} layers\ntheir sum is the number of layers"
    )]
    Runs { runs: Vec<usize>, layers: usize },
    #[error(
        "nothing is known of passes of {tokens} tokens: only one token could be computed when the model was measured\n{why}"
    )]
    Tokens { tokens: u64, why: String },
    #[error(
        "a window of {window_bytes} bytes is smaller than what it must hold at once: {least_bytes} bytes\nmake the window larger, or the grouping finer"
    )]
    Window { window_bytes: u64, least_bytes: u64 },
}

/// What a pass by `plan` over so many tokens will take.
///
/// # Errors
/// A plan that cannot be played.
pub fn forecast(
    profile: &Profile,
    plan: &Plan,
    tokens: u64,
    passing: Passing,
) -> Result<Forecast, ForecastError> {
    TapeTimes::new(profile, plan.source, plan.threads, tokens)?.pass(plan, passing, None)
}

/// The same with what everybody did when, in the order in which it ended. Units are those of the
/// plan's grouping.
///
/// # Errors
/// A plan that cannot be played.
pub fn forecast_spans(
    profile: &Profile,
    plan: &Plan,
    tokens: u64,
    passing: Passing,
) -> Result<(Forecast, Vec<Lapse>), ForecastError> {
    let mut spans = vec![];
    let tape = TapeTimes::new(profile, plan.source, plan.threads, tokens)?;
    let forecast = tape.pass(plan, passing, Some(&mut spans))?;
    Ok((forecast, spans))
}

/// A profile's tape as it is read one way and computed by so many threads: what all plans that do
/// so have in common.
pub(super) struct TapeTimes<'a> {
    profile: &'a Profile,
    /// Without gaps.
    disk: DiskCurve,
    /// By block.
    blocks: Vec<Unit>,
    bytes: Vec<u64>,
    /// Compute after the last block.
    tail_us: f64,
    compute_us: f64,
    fixed_bytes: u64,
    is_rough: bool,
}

impl<'a> TapeTimes<'a> {
    pub fn new(
        profile: &'a Profile,
        way: Way,
        threads: usize,
        tokens: u64,
    ) -> Result<TapeTimes<'a>, ForecastError> {
        if threads == 0 {
            return Err(ForecastError::Crew);
        }
        let disk = disk(profile, way, 0.0)?;
        let layers_us = profile.compute_us(threads, tokens);
        let (mut blocks, mut bytes, mut before_us) = (vec![], vec![], 0.0);
        for (layer, layer_us) in profile.layers.iter().zip(&layers_us) {
            let share = Share::of(layer);
            if share.whole == 0 {
                before_us += layer_us;
            }
            for run in &layer.blocks {
                let unit = Unit {
                    held_bytes: run.held_bytes(way),
                    work: disk.work(run.bytes),
                    before_us: 0.0,
                    compute_us: layer_us * share.of_block(run),
                    stay: Stay::Streamed,
                };
                for _ in 0..run.count {
                    blocks.push(Unit { before_us: std::mem::take(&mut before_us), ..unit });
                    bytes.push(run.bytes);
                }
            }
        }
        Ok(TapeTimes {
            profile,
            disk,
            blocks,
            bytes,
            tail_us: before_us,
            compute_us: layers_us.iter().sum(),
            fixed_bytes: profile.fixed_bytes(tokens),
            is_rough: false,
        })
    }

    /// The same tape with loads and computations that take unevenly long, as those of a real disk
    /// and a real layer do: on it, a window shows what it is good for.
    pub fn rough(mut self) -> TapeTimes<'a> {
        self.is_rough = true;
        roughen(self.blocks.iter_mut().map(|block| &mut block.compute_us), COMPUTE_BUMPS);
        self
    }

    /// What a pass by a plan of this source and so many threads will take.
    pub fn pass(
        &self,
        plan: &Plan,
        passing: Passing,
        spans: Option<&mut Vec<Lapse>>,
    ) -> Result<Forecast, ForecastError> {
        if plan.loaders == 0 {
            return Err(ForecastError::Crew);
        }
        let ranges = self.profile.units(&plan.grouping)?;
        let sizes: Vec<u64> = self.blocks.iter().map(|block| block.held_bytes).collect();
        let pins = pinned_units(&sizes, plan.pin_bytes, plan.pins);
        let pinned_bytes = sizes.iter().zip(&pins).filter(|(_, pin)| **pin).map(|(s, _)| s).sum();
        let is_there = |block: usize| pins[block] && passing == Passing::Later;
        let mut units: Vec<Unit> =
            ranges.iter().map(|range| self.unit(range, &pins, &is_there)).collect();
        check_window(&units, plan)?;
        if self.is_rough {
            // Whatever is pinned, the disk pauses as often.
            let coming = units.iter_mut().filter(|unit| unit.work > 0.0);
            roughen(coming.map(|unit| &mut unit.work), LOAD_BUMPS);
        }
        // The sum of nothing would be -0.
        let work = units.iter().map(|unit| unit.work).fold(0.0, |sum, work| sum + work);
        let coming = || (0..self.bytes.len()).filter(|block| !is_there(*block));
        let gaps = coming().filter(|block| *block > 0 && is_there(block - 1)).count();
        let speeds = match gaps {
            0 => Speeds::new(self.profile, plan, &self.disk),
            gaps => {
                let share = gaps as f64 / coming().count() as f64;
                Speeds::new(self.profile, plan, &disk(self.profile, plan.source, share)?)
            }
        };
        let bytes_read = coming().map(|block| self.bytes[block]).sum();
        let played = play(&units, self.tail_us, plan, &speeds, spans);
        Ok(Forecast {
            latency_us: played.latency_us,
            stall_us: played.stall_us,
            bytes_read,
            window_peak_bytes: played.window_peak_bytes,
            pinned_bytes,
            peak_bytes: self.fixed_bytes + pinned_bytes + played.window_peak_bytes,
            io_us: work / speeds.best_load(),
            compute_us: self.compute_us,
        })
    }

    /// Blocks that are loaded, waited for and released as one, without what is there already.
    fn unit(&self, range: &Range<usize>, pins: &[bool], is_there: &dyn Fn(usize) -> bool) -> Unit {
        let blocks = &self.blocks[range.clone()];
        let coming = range.clone().filter(|block| !is_there(*block)).map(|i| &self.blocks[i]);
        let before_us = blocks[0].before_us;
        let stay = match range.clone().all(|block| pins[block]) {
            true if is_there(range.start) => Stay::Pinned,
            true => Stay::Kept,
            false => Stay::Streamed,
        };
        Unit {
            held_bytes: coming.clone().map(|block| block.held_bytes).sum(),
            work: coming.map(|block| block.work).sum(),
            before_us,
            compute_us: blocks.iter().map(|block| block.before_us + block.compute_us).sum::<f64>()
                - before_us,
            stay,
        }
    }
}

/// How a layer's blocks share its computing: by weights, or where those are not known by bytes.
struct Share {
    by: fn(&BlockRun) -> u64,
    whole: u64,
}

impl Share {
    fn of(layer: &LayerCost) -> Share {
        let sum = |by: fn(&BlockRun) -> u64| {
            layer.blocks.iter().map(|run| run.count as u64 * by(run)).sum()
        };
        let [elements, bytes]: [fn(&BlockRun) -> u64; 2] = [|run| run.elements, |run| run.bytes];
        match sum(elements) {
            0 => Share { by: bytes, whole: sum(bytes) },
            whole => Share { by: elements, whole },
        }
    }

    fn of_block(&self, run: &BlockRun) -> f64 {
        (self.by)(run) as f64 / self.whole as f64
    }
}

/// What reads so much of a tape, where a share of its requests follows a gap.
fn disk(profile: &Profile, way: Way, gaps: f64) -> Result<DiskCurve, ForecastError> {
    let request_bytes = profile.runs().map(|run| run.bytes).max().unwrap_or(1);
    DiskCurve::new(profile, way, request_bytes, gaps).ok_or(ForecastError::Way(way))
}

/// Makes one value in so many so many times as large, and all of them so much smaller that the sum
/// stays.
fn roughen<'a>(values: impl Iterator<Item = &'a mut f64>, (every, times): (usize, f64)) {
    let mut values: Vec<&mut f64> = values.collect();
    let sum = |values: &[&mut f64]| values.iter().map(|value| **value).sum::<f64>();
    let before = sum(&values);
    values.iter_mut().skip(every / 2).step_by(every).for_each(|value| **value *= times);
    let after = sum(&values);
    if after > 0.0 {
        values.iter_mut().for_each(|value| **value *= before / after);
    }
}

fn check_window(units: &[Unit], plan: &Plan) -> Result<(), ForecastError> {
    let streamed = units.iter().filter(|unit| unit.stay != Stay::Pinned);
    let held = streamed.map(|unit| unit.held_bytes);
    let least_bytes = match plan.release {
        Release::AfterUse => held.max().unwrap_or(0),
        Release::AtEnd => held.sum(),
    };
    let window_bytes = plan.window_bytes;
    match least_bytes <= window_bytes {
        true => Ok(()),
        false => Err(ForecastError::Window { window_bytes, least_bytes }),
    }
}

#[cfg(test)]
#[path = "forecast_tests.rs"]
mod tests;
