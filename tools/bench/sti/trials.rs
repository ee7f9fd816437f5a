//! `hermes-bench sti --trials N`: random times, memories and disks, and whether a time that a plan
//! promises is kept.

use super::Bench;
use super::pass::{Drawn, Job, Looked, Took};
use crate::setup::Times;
use crate::synth::random::split_mix;
use anyhow::{Result, ensure};

/// How far from what was asked a pass may be.
const TOLERANCE: f64 = 0.10;

/// Plans for so many random targets, and plays what is planned.
pub(super) fn run(bench: &mut Bench, trials: usize) -> Result<()> {
    let mut seed = bench.arguments.seed;
    let mut unit = || (split_mix(&mut seed) >> 11) as f64 / (1u64 << 53) as f64;
    let (mut promised, mut kept) = (0, 0);
    hermes::say!("disk   within ms  weights MB  forecast ms  took ms  expected  kept");
    for _ in 0..trials {
        let disks = &bench.arguments.disk;
        let disk = disks[(unit() * disks.len() as f64) as usize];
        let process = bench.on(disk)?;
        let looked: Looked = process.spawn(&Job::Look)?;
        let between = |low: f64, high: f64, place: f64| low + (high - low) * place;
        let latency_ms = between(0.8 * looked.least_ms, 1.1 * looked.best_ms, unit());
        let (least, most) = (8e6, 8e6 + looked.best_bytes as f64 / 2.0);
        let weights_bytes = between(least, most, unit()) as u64;
        let job = Job::Plan { latency_ms, weights_bytes, by_stages: false };
        let head = format!("{disk:5}  {latency_ms:9.1}  {:10.1}", weights_bytes as f64 / 1e6);
        match process.spawn(&job)? {
            Drawn::Refused(why) => {
                hermes::say!("{head}  {}", why.lines().next().unwrap_or_default());
            }
            Drawn::Plan { plan, expected, forecast_ms, .. } => {
                let passes = bench.arguments.repeat;
                let took: Took = process.spawn(&Job::Play { plan, passes })?;
                let took_ms = Times(took.latency_us).median() as f64 / 1e3;
                let is_kept = took_ms <= latency_ms * (1.0 + TOLERANCE);
                promised += 1;
                kept += usize::from(is_kept);
                let word = if is_kept { "yes" } else { "NO" };
                hermes::say!("{head}  {forecast_ms:11.1}  {took_ms:7.1}  {expected:8.4}  {word}");
            }
        }
    }
    ensure!(promised > 0, "none of the times could be met");
    let share = 100.0 * kept as f64 / promised as f64;
    hermes::say!(
        "{kept} of {promised} plans took no more than {:.0} % beyond what was asked: {share:.0} %",
        100.0 * TOLERANCE
    );
    Ok(())
}
