//! What is done in processes of their own: planning, and passes by a plan, whose peak memory is that
//! of nothing else.

use super::systems::System;
use crate::paper::disks::Disk;
use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hermes::engine::{Config, Engine, Inquiry, Policy};
use hermes::plan::{
    Ladder, Overrides, Plan, Profile, Target, Usage, Wish, plan, plan_sti, plan_target,
};
use hermes::sys::{child, memory};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Limit of an engine that is to be limited by nothing.
const NO_BUDGET: u64 = u64::MAX / 4;

/// Arguments of `hermes-bench sti-pass`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[arg(long)]
    pub store: PathBuf,
    #[arg(long)]
    pub model: String,
    #[arg(long)]
    pub disk: Disk,
    #[arg(long)]
    pub tokens: usize,
    /// Folder that the model's profile is kept in
    #[arg(long)]
    pub profiles: PathBuf,
    /// What is done, in JSON
    #[arg(long)]
    pub job: String,
}

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    /// Measure the model's profile.
    Profile,
    /// Say what precisions there are.
    Look,
    /// Make a plan for a latency and so much memory for weights, by the paper's two stages or ours.
    Plan { latency_ms: f64, weights_bytes: u64, by_stages: bool },
    /// Play passes by a plan.
    Play { plan: Box<Plan>, passes: usize },
    /// Play passes by a policy, in one variant.
    Follow { system: String, variant: String, passes: usize },
}

/// What [`Job::Look`] finds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Looked {
    /// How many tensors a choice is of.
    pub tensors: usize,
    /// What a pass by each is forecast to take with nothing pinned, in milliseconds.
    pub best_ms: f64,
    pub least_ms: f64,
    /// Bytes of the tape by the best.
    pub best_bytes: u64,
}

/// What [`Job::Plan`] finds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Drawn {
    Plan { plan: Box<Plan>, expected: f64, bits: f64, forecast_ms: f64 },
    Refused(String),
}

/// What passes took.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Took {
    pub latency_us: Vec<u64>,
    pub window_bytes: u64,
    pub pinned_bytes: u64,
    pub peak_bytes: u64,
    pub bytes_read: u64,
}

impl Arguments {
    /// Has a process of its own do it.
    pub fn spawn<T: DeserializeOwned>(&self, job: &Job) -> Result<T> {
        let mut command = child::again();
        // What it says on an error becomes one line of a table.
        command.env("RUST_BACKTRACE", "0").arg("sti-pass").arg("--store").arg(&self.store);
        command.args(["--model", &self.model, "--disk", &self.disk.to_string()]);
        command.args(["--tokens", &self.tokens.to_string()]);
        command.arg("--profiles").arg(&self.profiles).arg("--job");
        let output = command.arg(serde_json::to_string(job)?).output();
        let output = output.context("cannot start a process to measure in")?;
        let failed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, failed.trim_end());
        serde_json::from_slice(&output.stdout).context("the process wrote no result")
    }

    fn config(&self) -> Config {
        Config {
            disk: self.disk.kind(),
            tokens: self.tokens as u64,
            profile_folder: Some(self.profiles.clone()),
            ..Config::new(&self.store, NO_BUDGET)
        }
    }
}

/// Runs `hermes-bench sti-pass`: does one job, and prints its result as JSON.
pub fn run(arguments: &Arguments) -> Result<()> {
    let text = match serde_json::from_str(&arguments.job).context("--job is no job")? {
        Job::Profile => {
            let engine = Engine::start(arguments.config())?;
            engine.profile(&arguments.model)?;
            engine.shutdown();
            serde_json::to_string(&())
        }
        Job::Look => serde_json::to_string(&look(arguments)?),
        Job::Plan { latency_ms, weights_bytes, by_stages } => {
            serde_json::to_string(&draw(arguments, latency_ms, weights_bytes, by_stages)?)
        }
        Job::Play { plan, passes } => {
            serde_json::to_string(&play(arguments, Policy::Fixed(*plan), None, passes)?)
        }
        Job::Follow { system, variant, passes } => {
            let (policy, pins) = match system.parse() {
                Ok(System::LoadAll) => (Policy::LoadAll, 0),
                Ok(System::Pipeline { .. }) => (Policy::PipeLoad { agents: 1 }, 0),
                Ok(System::Preload { .. }) => (Policy::Tape, u64::MAX),
                _ => bail!("{system} follows no policy"),
            };
            serde_json::to_string(&play(arguments, policy, Some((variant, pins)), passes)?)
        }
    };
    hermes::say!("{}", text?);
    Ok(())
}

/// What was measured of the model, and its precisions.
fn known(arguments: &Arguments) -> Result<(Profile, Ladder)> {
    let engine = Engine::start(arguments.config())?;
    let model = engine.load(&arguments.model)?;
    let answered = engine.plan(&arguments.model, Inquiry::default())?;
    let ladder = model.ladder()?;
    engine.shutdown();
    Ok((Profile::clone(&answered.profile), Ladder::clone(&ladder)))
}

fn wish(profile: &Profile, tokens: usize, weights_bytes: u64) -> Wish {
    let tokens = tokens as u64;
    let budget_bytes = profile.fixed_bytes(tokens).saturating_add(weights_bytes);
    Wish { budget_bytes, tokens, usage: Usage::Cyclic }
}

fn look(arguments: &Arguments) -> Result<Looked> {
    let (profile, ladder) = known(arguments)?;
    let best = ladder.best();
    let least: Vec<usize> = ladder.tensors.iter().map(|tensor| tensor.rungs.len() - 1).collect();
    let time_ms = |choice: &[usize]| -> Result<f64> {
        let profile = profile.with_choice(&ladder, choice)?;
        let wish = wish(&profile, arguments.tokens, NO_BUDGET / 2);
        // What streaming all of it takes.
        let fixed = Overrides { pin_bytes: Some(0), ..Overrides::default() };
        Ok(plan(&profile, &wish, &fixed)?.forecast.latency_us / 1e3)
    };
    Ok(Looked {
        best_ms: time_ms(&best)?,
        least_ms: time_ms(&least)?,
        best_bytes: ladder.bytes(&best),
        tensors: ladder.tensors.len(),
    })
}

/// A plan within a time and so much memory for weights.
fn draw(
    arguments: &Arguments,
    latency_ms: f64,
    weights_bytes: u64,
    by_stages: bool,
) -> Result<Drawn> {
    let (profile, ladder) = known(arguments)?;
    let target = Target { latency_us: Some(latency_ms * 1e3), accuracy: None };
    let wish = wish(&profile, arguments.tokens, weights_bytes);
    let plan = if by_stages { plan_sti } else { plan_target };
    let chosen = match plan(&profile, &ladder, &wish, &target, &Overrides::default()) {
        Ok(chosen) => chosen,
        Err(error) => return Ok(Drawn::Refused(error.to_string())),
    };
    let choice = ladder.choice_of(&chosen.planned.plan.variants)?;
    let forecast_ms = chosen.planned.forecast.latency_us / 1e3;
    let (expected, bits) = (chosen.accuracy, ladder.bits(&choice));
    Ok(Drawn::Plan { plan: Box::new(chosen.planned.plan), expected, bits, forecast_ms })
}

/// Passes with a cold page cache, after one that pins what is to be pinned.
fn play(
    arguments: &Arguments,
    policy: Policy,
    variant: Option<(String, u64)>,
    passes: usize,
) -> Result<Took> {
    let request = setup::request(&arguments.store, &arguments.model, arguments.tokens)?;
    let mut config = Config { policy, ..arguments.config() };
    if let Some((variant, pin_bytes)) = variant {
        (config.variant, config.pin_bytes) = (Some(variant), pin_bytes);
    }
    memory::reset_peak();
    let engine = Engine::start(config)?;
    let model = engine.load(&arguments.model)?;
    let mut took = Took::default();
    for pass in 0..=passes {
        setup::chill(&arguments.store, &arguments.model)?;
        let stats = engine.infer(request.clone())?.stats;
        if pass > 0 {
            took.latency_us.push(stats.latency_us);
        }
        took.window_bytes = took.window_bytes.max(stats.window_peak_bytes);
        took.bytes_read = stats.bytes_read;
    }
    took.pinned_bytes = model.pinned_bytes();
    took.peak_bytes = memory::process().peak_bytes;
    engine.shutdown();
    Ok(took)
}
