//! One measurement in a process of its own, so that its peak resident size and what its cgroup
//! charges are its own: `run` is that process, `Child` starts it and reads what it found.

use super::disks::{self, Disk};
use super::policy::{Policy, Step};
use super::trace::Traced;
use crate::setup;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hermes::engine::{Config, Engine, EngineError, Reply, Request};
use hermes::stream::Trace;
use hermes::sys::cgroup::OwnCgroup;
use hermes::sys::{child, memory};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// Limit of an engine that is to be limited by nothing.
const NO_BUDGET: u64 = u64::MAX / 4;

/// Window of the engine that warms the program up: the least that there is.
const WARM_WINDOW_BYTES: u64 = 4 << 20;

/// Arguments of `hermes-bench paper-pass`.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    #[arg(long)]
    pub store: PathBuf,
    #[arg(long)]
    pub model: String,
    #[arg(long)]
    pub variant: Option<String>,
    #[arg(long)]
    pub disk: Disk,
    #[arg(long)]
    pub step: Step,
    /// Bytes; by default what the engine finds best
    #[arg(long)]
    pub window: Option<u64>,
    /// Of the tape; by default what suits the cores
    #[arg(long)]
    pub loaders: Option<usize>,
    #[arg(long)]
    pub tokens: usize,
    /// Bytes; none by default
    #[arg(long)]
    pub budget: Option<u64>,
    /// Passes in turn, each with a cold page cache
    #[arg(long, default_value_t = 1)]
    pub passes: usize,
    /// Folder that the model's profile is kept in
    #[arg(long)]
    pub profiles: Option<PathBuf>,
    /// Measure the profile, and nothing else
    #[arg(long, requires = "profiles")]
    pub profile: bool,
    /// Trace the passes
    #[arg(long)]
    pub trace: bool,
    /// Folder of a cgroup to join
    #[arg(long)]
    pub join: Option<PathBuf>,
}

/// What a pass was found to cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Loading the graph, before the pass.
    pub load_us: u64,
    pub latency_us: u64,
    pub stall_us: u64,
    pub bytes_read: u64,
    /// Most bytes of streamed weights held at once.
    pub window_peak_bytes: u64,
    pub pinned_bytes: u64,
    /// Of the process, from the engine's start to the end of the pass.
    pub peak_rss_bytes: u64,
    /// Of the process's own cgroup where it can have one, page cache included.
    pub charged_bytes: Option<u64>,
    /// XXH3-64 of the outputs; of a play, 0.
    pub digest: u64,
    /// By which it was played.
    pub plan: String,
}

/// A line that the process writes for each pass.
#[derive(Serialize, Deserialize)]
enum Line {
    Measured(Measured, Option<Traced>),
    /// The budget or the window does not suffice.
    Refused(String),
}

/// What came of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// One entry a pass.
    Measured(Vec<(Measured, Option<Traced>)>),
    /// The budget or the window does not suffice.
    Refused(String),
}

impl Arguments {
    /// Has a process of its own measure the model's profile, and keep it in `profiles`.
    pub fn spawn_profile(self) -> Result<()> {
        let step = Step::Pass(Policy::Tape);
        let child = Arguments { step, budget: None, passes: 0, profile: true, ..self };
        match child.spawn()? {
            Outcome::Measured(_) => Ok(()),
            Outcome::Refused(why) => bail!("{why}"),
        }
    }

    /// Measures in a process of its own, and waits for it.
    pub fn spawn(&self) -> Result<Outcome> {
        let mut command = child::again();
        // What it says on an error becomes one line of a table.
        command.env("RUST_BACKTRACE", "0");
        command.arg("paper-pass").arg("--store").arg(&self.store);
        command.args(["--model", &self.model]);
        command.args(["--disk", &self.disk.to_string(), "--step", &self.step.to_string()]);
        command.args(["--tokens", &self.tokens.to_string(), "--passes", &self.passes.to_string()]);
        let numbers = [("--budget", self.budget), ("--window", self.window)];
        for (name, bytes) in numbers.into_iter().filter_map(|(name, n)| Some((name, n?))) {
            command.args([name, &bytes.to_string()]);
        }
        if let Some(loaders) = self.loaders {
            command.args(["--loaders", &loaders.to_string()]);
        }
        if let Some(variant) = &self.variant {
            command.args(["--variant", variant]);
        }
        if let Some(folder) = &self.join {
            command.arg("--join").arg(folder);
        }
        if let Some(folder) = &self.profiles {
            command.arg("--profiles").arg(folder);
        }
        for (flag, is_set) in [("--trace", self.trace), ("--profile", self.profile)] {
            if is_set {
                command.arg(flag);
            }
        }
        let output = command.output().context("cannot start a process to measure in")?;
        let failed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, failed.trim_end());
        let text = std::str::from_utf8(&output.stdout).context("the process wrote no text")?;
        let mut passes = vec![];
        for line in text.lines() {
            match serde_json::from_str(line).context("the process wrote no measurement")? {
                Line::Measured(measured, traced) => passes.push((measured, traced)),
                Line::Refused(why) => return Ok(Outcome::Refused(why)),
            }
        }
        ensure!(passes.len() == self.passes, "{} of {} passes", passes.len(), self.passes);
        Ok(Outcome::Measured(passes))
    }
}

/// Runs `hermes-bench paper-pass`: measures, and prints a line of JSON for each pass.
pub fn run(arguments: &Arguments) -> Result<()> {
    let request = setup::request(&arguments.store, &arguments.model, arguments.tokens)?;
    let mut cgroup = OwnCgroup::enter();
    // Within a budget what the program has in memory counts, and a fresh one has least.
    if arguments.budget.is_none() {
        warm_up(arguments, &request)?;
    }
    if let Some(folder) = &arguments.join {
        // In version 2 a process is in one cgroup: the one that limits takes the place of its own.
        cgroup = cgroup.filter(|_| !disks::is_unified(folder));
        disks::join(folder)?;
    }
    if arguments.profile {
        return profile(arguments);
    }
    memory::reset_peak();
    let session = match Session::start(arguments, &request) {
        Ok(session) => session,
        Err(error) => return refuse_or_fail(error),
    };
    for _ in 0..arguments.passes {
        setup::chill(&arguments.store, &arguments.model)?;
        let trace = arguments.trace.then(|| Arc::new(Trace::begin()));
        let request = Request { trace: trace.clone(), ..request.clone() };
        let mut measured = match session.pass(request) {
            Ok(measured) => measured,
            Err(error) => return refuse_or_fail(error),
        };
        measured.peak_rss_bytes = memory::process().peak_bytes;
        measured.charged_bytes = cgroup.as_ref().and_then(OwnCgroup::peak_bytes);
        let traced = trace.map(|trace| Traced::of(&trace.events()));
        print(&Line::Measured(measured, traced))?;
    }
    session.engine.shutdown();
    Ok(())
}

/// A pass through a small window in an engine that goes again, so that a measured first pass does
/// not pay for pages of the program and for finding out which kernels are fast.
fn warm_up(arguments: &Arguments, request: &Request) -> Result<()> {
    let config = Config {
        window_bytes: Some(WARM_WINDOW_BYTES),
        pin_bytes: 0,
        variant: arguments.variant.clone(),
        ..Config::new(&arguments.store, NO_BUDGET)
    };
    let engine = Engine::start(config)?;
    engine.infer(request.clone())?;
    engine.shutdown();
    Ok(())
}

/// Measures the model's profile, which is kept for the engines that follow.
fn profile(arguments: &Arguments) -> Result<()> {
    let engine = Engine::start(config(arguments))?;
    engine.profile(&arguments.model)?;
    engine.shutdown();
    Ok(())
}

/// An engine with the model loaded.
struct Session {
    engine: Engine,
    model: Arc<hermes::engine::Model>,
    step: Step,
    load_us: u64,
}

impl Session {
    fn start(arguments: &Arguments, request: &Request) -> Result<Session, EngineError> {
        let engine = Engine::start(config(arguments))?;
        let began = Instant::now();
        let model = engine.load(&arguments.model)?;
        let load_us = began.elapsed().as_micros() as u64;
        if arguments.step == Step::Resident {
            engine.infer(request.clone())?;
        }
        Ok(Session { engine, model, step: arguments.step, load_us })
    }

    fn pass(&self, request: Request) -> Result<Measured, EngineError> {
        let (stats, digest) = match self.step {
            Step::Play => (self.engine.play(&request.model)?, 0),
            Step::Pass(_) | Step::Resident => {
                let reply = self.engine.infer(request)?;
                (reply.stats, digest(&reply))
            }
        };
        Ok(Measured {
            load_us: self.load_us,
            latency_us: stats.latency_us,
            stall_us: stats.stall_us,
            bytes_read: stats.bytes_read,
            window_peak_bytes: stats.window_peak_bytes,
            pinned_bytes: self.model.pinned_bytes(),
            digest,
            plan: self.model.plan().to_string(),
            ..Measured::default()
        })
    }
}

fn config(arguments: &Arguments) -> Config {
    let policy = match arguments.step {
        Step::Pass(policy) => policy,
        Step::Play | Step::Resident => Policy::Tape,
    };
    // Within a budget the engine is left alone: it is to make the best of it.
    let pin_bytes = match (arguments.step, arguments.budget) {
        (Step::Resident, _) | (_, Some(_)) => u64::MAX,
        (Step::Pass(_) | Step::Play, None) => 0,
    };
    Config {
        policy: policy.engine(),
        variant: arguments.variant.clone(),
        disk: arguments.disk.kind(),
        window_bytes: arguments.window,
        loaders: arguments.loaders,
        pin_bytes,
        tokens: arguments.tokens as u64,
        profile_folder: arguments.profiles.clone(),
        ..Config::new(&arguments.store, arguments.budget.unwrap_or(NO_BUDGET))
    }
}

/// A digest of every output's name, shape and bytes.
fn digest(reply: &Reply) -> u64 {
    let mut hash = Xxh3::new();
    for (name, array) in &reply.outputs {
        hash.update(name.as_bytes());
        array.shape.iter().for_each(|dim| hash.update(&(*dim as u64).to_le_bytes()));
        hash.update(&array.bytes);
    }
    hash.digest()
}

/// Says that the memory does not suffice, which is a result; anything else is an error.
fn refuse_or_fail(error: EngineError) -> Result<()> {
    match error {
        EngineError::OverBudget(_) | EngineError::WindowTooSmall { .. } => {
            print(&Line::Refused(error.to_string()))
        }
        error => Err(error.into()),
    }
}

fn print(line: &Line) -> Result<()> {
    hermes::say!("{}", serde_json::to_string(line)?);
    Ok(())
}
