//! What is done in processes of their own, whose peak memory is that of nothing else.

use crate::paper::disks::Disk;
use crate::setup::Times;
use anyhow::{Context, Result, ensure};
use clap::Args;
use hermes::engine::{Cancel, Config, Decide, Engine, Generated, Next, Prompt};
use hermes::sys::{child, memory};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limit of an engine that is to be limited by nothing.
const NO_BUDGET: u64 = u64::MAX / 4;

/// Plays of the tape, of which the median counts.
const PLAYS: usize = 3;

/// Arguments of `hermes-bench generate-pass`.
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
    pub prompt: usize,
    #[arg(long)]
    pub tokens: usize,
    #[arg(long)]
    pub texts: usize,
    #[arg(long)]
    pub threads: Option<usize>,
    /// What is done, in JSON
    #[arg(long)]
    pub job: String,
}

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    /// Find the smallest budget in which the model writes, in bytes.
    Least,
    /// Play the tape with nothing computed: its bytes a second.
    Play,
    /// Write texts within a budget; without one, all weights are pinned.
    Write { budget_bytes: Option<u64> },
}

/// What [`Job::Write`] measures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wrote {
    /// Time until each text's first token.
    pub first_us: Vec<u64>,
    /// Time of a pass behind the first token, which gives one token, and those that were proposed
    /// rightly: the mean.
    pub step_us: f64,
    /// Tokens of all texts from the last first one on, and the time that they took.
    pub tokens: usize,
    pub seconds: f64,
    /// Bytes of tape that a pass read.
    pub pass_bytes: u64,
    pub pinned_bytes: u64,
    /// Of the process.
    pub peak_bytes: u64,
}

impl Arguments {
    /// Has a process of its own do it.
    pub fn spawn<T: DeserializeOwned>(&self, job: &Job) -> Result<T> {
        let mut command = child::again();
        // What it says on an error becomes one line.
        command.env("RUST_BACKTRACE", "0").arg("generate-pass").arg("--store").arg(&self.store);
        command.args(["--model", &self.model, "--disk", &self.disk.to_string()]);
        command.args(self.variant.iter().flat_map(|variant| ["--variant", variant]));
        for (option, value) in [
            ("--prompt", Some(self.prompt)),
            ("--tokens", Some(self.tokens)),
            ("--texts", Some(self.texts)),
            ("--threads", self.threads),
        ] {
            command.args(value.iter().flat_map(|value| [option.to_owned(), value.to_string()]));
        }
        let output = command.arg("--job").arg(serde_json::to_string(job)?).output();
        let output = output.context("cannot start a process to measure in")?;
        let failed = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {}", output.status, failed.trim_end());
        serde_json::from_slice(&output.stdout).context("the process wrote no result")
    }

    fn engine(&self, budget_bytes: u64, pin_bytes: u64) -> Result<Engine> {
        Ok(Engine::start(Config {
            disk: self.disk.kind(),
            variant: self.variant.clone(),
            threads: self.threads,
            pin_bytes,
            ..Config::new(&self.store, budget_bytes)
        })?)
    }
}

/// Runs `hermes-bench generate-pass`: does one job, and prints its result as JSON.
pub fn run(arguments: &Arguments) -> Result<()> {
    let text = match serde_json::from_str(&arguments.job).context("--job is no job")? {
        Job::Least => {
            let engine = arguments.engine(NO_BUDGET, 0)?;
            let least_bytes = engine.least_budget_for_texts_bytes(&arguments.model, 0);
            engine.shutdown();
            serde_json::to_string(&least_bytes)
        }
        Job::Play => serde_json::to_string(&play(arguments)?),
        Job::Write { budget_bytes } => serde_json::to_string(&texts(arguments, budget_bytes)?),
    };
    hermes::say!("{}", text?);
    Ok(())
}

fn play(arguments: &Arguments) -> Result<f64> {
    let engine = arguments.engine(NO_BUDGET, 0)?;
    engine.load(&arguments.model)?;
    let mut took = Times(vec![]);
    let mut bytes_read = 0;
    for _ in 0..PLAYS {
        let stats = engine.play(&arguments.model)?;
        took.0.push(stats.latency_us);
        bytes_read = stats.bytes_read;
    }
    engine.shutdown();
    Ok(bytes_read as f64 * 1e6 / took.median().max(1) as f64)
}

/// Writes what is likeliest, and notes when each token was decided on.
struct Clock {
    decided: Arc<Mutex<Vec<Instant>>>,
}

impl Decide for Clock {
    fn next(&mut self, logits: &[f32]) -> Next {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        likeliest.map_or(Next::End, |(id, _)| Next::Token(id as u32))
    }
}

/// Writes one short text, so that what is to be pinned is, and then those that count.
fn texts(arguments: &Arguments, budget_bytes: Option<u64>) -> Result<Wrote> {
    memory::reset_peak();
    let engine = arguments.engine(budget_bytes.unwrap_or(NO_BUDGET), u64::MAX)?;
    let model = engine.load(&arguments.model)?;
    generate(&engine, arguments, 1, 2)?;
    let began = Instant::now();
    let (generated, decided) = generate(&engine, arguments, arguments.texts, arguments.tokens)?;
    let first_us =
        decided.iter().map(|times| times[0].duration_since(began).as_micros() as u64).collect();
    let mut wrote = Wrote { first_us, ..Wrote::default() };
    let began = decided.iter().map(|times| times[0]).max().context("no text was written")?;
    let ended = decided.iter().filter_map(|times| times.last()).max().copied().unwrap_or(began);
    wrote.tokens = decided.iter().flatten().filter(|time| **time > began).count();
    wrote.seconds = ended.duration_since(began).as_secs_f64();
    // A pass that texts share is counted by each of them alike.
    let sum = |figure: fn(&Generated) -> u64| generated.iter().map(figure).sum::<u64>();
    let right = sum(|text| text.stats.accepted_tokens as u64);
    let next = decided.iter().map(|times| times.len() as u64 - 1).sum::<u64>();
    let spent = decided.iter().filter_map(|times| Some(times.last()?.duration_since(times[0])));
    let spent_us = spent.sum::<Duration>().as_secs_f64() * 1e6;
    wrote.step_us = spent_us / next.saturating_sub(right).max(1) as f64;
    wrote.pass_bytes = sum(|text| text.stats.bytes_read) / sum(|text| text.stats.passes).max(1);
    wrote.pinned_bytes = model.pinned_bytes();
    wrote.peak_bytes = memory::process().peak_bytes;
    engine.shutdown();
    Ok(wrote)
}

/// Has texts written at once, each of other tokens: none begins as another did.
fn generate(
    engine: &Engine,
    arguments: &Arguments,
    texts: usize,
    tokens: usize,
) -> Result<(Vec<Generated>, Vec<Vec<Instant>>)> {
    let (sender, receiver) = mpsc::channel();
    let mut clocks = vec![];
    for text in 0..texts as u32 {
        let decided = Arc::<Mutex<Vec<Instant>>>::default();
        clocks.push(Arc::clone(&decided));
        let ids =
            (0..arguments.prompt as u32).map(|index| 1 + (tokens as u32 + text + 7 * index) % 97);
        let prompt = Prompt {
            model: arguments.model.clone(),
            version: None,
            ids: ids.collect(),
            max_tokens: tokens,
            is_usual: false,
            context: None,
            target: None,
            decide: Box::new(Clock { decided }),
            own_bytes: 0,
            cancel: Cancel::new(),
            deadline: None,
        };
        let sender = sender.clone();
        engine.generate(prompt, move |generated| drop(sender.send(generated)));
    }
    drop(sender);
    let generated = receiver.iter().collect::<Result<Vec<Generated>, _>>()?;
    let times = |clock: &Arc<Mutex<Vec<Instant>>>| {
        clock.lock().unwrap_or_else(PoisonError::into_inner).clone()
    };
    let decided: Vec<Vec<Instant>> = clocks.iter().map(times).collect();
    ensure!(
        decided.iter().all(|times| times.len() == tokens),
        "a text ended early: {:?}",
        generated.iter().map(|text| text.ended.name()).collect::<Vec<_>>()
    );
    Ok((generated, decided))
}
