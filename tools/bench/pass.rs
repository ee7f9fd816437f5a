//! `hermes-bench pass`: how close a streamed pass comes to its limit.
//!
//! The limit is the larger of T_io, the time the tape takes to play without computing, and
//! T_compute, the same pass with everything pinned. All three are measured in one run, in turns,
//! and compared by their medians. The plays also tell what reading asks of the kernel and the disk.

use super::reading::Reading;
use super::setup::{self, Subject, Times};
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use hermes::engine::{Config, DiskKind, Engine, Reply, Request};
use hermes::plan::Way;
use hermes::sys::cgroup::OwnCgroup;
use hermes::sys::memory;
use hermes::values::size;
use serde_json::json;
use std::time::Instant;

/// Arguments of `hermes-bench pass`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Bytes of tape ahead of and under compute
    #[arg(long, value_parser = size::parse, default_value = "16MiB")]
    window: u64,
    /// Loader threads
    #[arg(long)]
    loaders: Option<usize>,
    /// Compute threads
    #[arg(long)]
    threads: Option<usize>,
    /// Budget of the streamed engine
    #[arg(long, value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Passes of each kind
    #[arg(long, default_value_t = 7)]
    repeat: usize,
    /// Drop the model from the page cache before every pass
    #[arg(long)]
    cold: bool,
    /// How blocks are brought in, mapped where the file system has no direct reads; by default as
    /// hermesd does
    #[arg(long, value_enum)]
    source: Option<Source>,
    /// Hold the disk to this many bytes a second
    #[arg(long, value_parser = size::parse)]
    throttle: Option<u64>,
    /// Leave out the resident passes, and with them T_compute and the ratio
    #[arg(long)]
    no_resident: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Source {
    Mapped,
    Direct,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    let request =
        setup::request(&arguments.subject.store, &arguments.subject.model, arguments.tokens)?;
    let reading = Reading::of(&arguments.subject.store)?;
    let mut report = Report { reading, ..Report::default() };
    let streamed = streamed(arguments, &request, &mut report)?;
    if !arguments.no_resident {
        resident(arguments, &request, &streamed, &mut report)?;
    }
    if arguments.json {
        report.print_json(arguments)
    } else {
        report.print(arguments)
    }
    Ok(())
}

impl Arguments {
    fn chill(&self) -> Result<()> {
        if self.cold { setup::chill(&self.subject.store, &self.subject.model) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Report {
    source: &'static str,
    load_us: u64,
    latency_us: Vec<u64>,
    stall_us: Vec<u64>,
    io_us: Vec<u64>,
    reading: Reading,
    compute_us: Vec<u64>,
    bytes_read: u64,
    activation_bytes: u64,
    peak_bytes: u64,
    anonymous_bytes: u64,
    charged_bytes: Option<u64>,
    identical: Option<bool>,
}

/// Streamed passes in turns with plays of the tape; returns the last reply.
fn streamed(arguments: &Arguments, request: &Request, report: &mut Report) -> Result<Reply> {
    let mut config = config(arguments, arguments.budget);
    config.window_bytes = Some(arguments.window);
    let cgroup = OwnCgroup::enter();
    memory::reset_peak();
    let engine = Engine::start(config)?;
    let started = Instant::now();
    report.source = engine.load(&arguments.subject.model)?.source_name();
    report.load_us = started.elapsed().as_micros() as u64;
    let mut last = engine.infer(request.clone())?;
    for _ in 0..arguments.repeat {
        arguments.chill()?;
        last = engine.infer(request.clone())?;
        report.latency_us.push(last.stats.latency_us);
        report.stall_us.push(last.stats.stall_us);
        let figures = memory::process();
        report.peak_bytes = figures.peak_bytes;
        report.anonymous_bytes = figures.anonymous_bytes;
        report.charged_bytes = cgroup.as_ref().and_then(OwnCgroup::peak_bytes);
        arguments.chill()?;
        let played = report.reading.add(|| Ok(engine.play(&arguments.subject.model)?))?;
        report.io_us.push(played.latency_us);
    }
    report.bytes_read = last.stats.bytes_read;
    report.activation_bytes = last.stats.activation_bytes;
    engine.shutdown();
    Ok(last)
}

/// The same passes with the whole tape pinned.
fn resident(
    arguments: &Arguments,
    request: &Request,
    streamed: &Reply,
    report: &mut Report,
) -> Result<()> {
    let mut config = config(arguments, u64::MAX / 4);
    config.window_bytes = Some(arguments.window);
    config.pin_bytes = u64::MAX;
    config.disk = DiskKind::Board;
    let engine = Engine::start(config)?;
    let warm = engine.infer(request.clone())?;
    report.identical = Some(warm.outputs == streamed.outputs);
    for _ in 0..arguments.repeat {
        report.compute_us.push(engine.infer(request.clone())?.stats.latency_us);
    }
    engine.shutdown();
    Ok(())
}

fn config(arguments: &Arguments, budget_bytes: u64) -> Config {
    let disk = match arguments.throttle {
        Some(bytes_per_s) => DiskKind::Throttled { bytes_per_s },
        None => DiskKind::Board,
    };
    let source = arguments.source.map(|source| match source {
        Source::Mapped => Way::Mapped,
        Source::Direct => Way::Direct,
    });
    Config {
        pin_bytes: 0,
        threads: arguments.threads,
        loaders: arguments.loaders,
        variant: arguments.subject.variant.clone(),
        source,
        disk,
        ..Config::new(&arguments.subject.store, budget_bytes)
    }
}

impl Report {
    fn limit_us(&self) -> u64 {
        let (io, compute) = (Times(self.io_us.clone()), Times(self.compute_us.clone()));
        io.median().max(compute.median())
    }

    fn ratio(&self) -> Option<f64> {
        let latency = Times(self.latency_us.clone()).median() as f64;
        (!self.compute_us.is_empty()).then(|| latency / self.limit_us() as f64)
    }

    fn print(&self, arguments: &Arguments) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let times = |us: &[u64]| Times(us.to_vec()).line();
        hermes::say!(
            "{} of {} tokens, {} passes",
            arguments.subject.model,
            arguments.tokens,
            arguments.repeat
        );
        hermes::say!("source     {:>8}", self.source);
        hermes::say!("load       {:8.1} ms", self.load_us as f64 / 1e3);
        hermes::say!("latency    {}", times(&self.latency_us));
        hermes::say!("T_io       {}", times(&self.io_us));
        if let Some(ratio) = self.ratio() {
            hermes::say!("T_compute  {}", times(&self.compute_us));
            hermes::say!("ratio      {ratio:8.3}  to the larger of the two");
        }
        hermes::say!("stall      {}", times(&self.stall_us));
        self.reading.print();
        hermes::say!("bytes read {:8.1} MiB", mib(self.bytes_read));
        hermes::say!("activations{:8.1} MiB granted", mib(self.activation_bytes));
        let (peak, anonymous) = (mib(self.peak_bytes), mib(self.anonymous_bytes));
        hermes::say!("peak RSS   {peak:8.1} MiB  (anonymous after the pass {anonymous:.1})");
        if let Some(charged) = self.charged_bytes {
            hermes::say!(
                "charged    {:8.1} MiB  at the peak by the cgroup, page cache too",
                mib(charged)
            );
        }
        if let Some(identical) = self.identical {
            hermes::say!(
                "streamed and resident outputs are {}",
                if identical { "identical" } else { "DIFFERENT" }
            );
        }
    }

    fn print_json(&self, arguments: &Arguments) {
        let times = |us: &[u64]| Times(us.to_vec()).json();
        hermes::say!(
            "{}",
            json!({
                "model": arguments.subject.model,
                "variant": arguments.subject.variant,
                "tokens": arguments.tokens,
                "window_bytes": arguments.window,
                "source": self.source,
                "load_us": self.load_us,
                "latency_us": times(&self.latency_us),
                "io_us": times(&self.io_us),
                "compute_us": times(&self.compute_us),
                "reading": self.reading.json(),
                "stall_us": times(&self.stall_us),
                "ratio": self.ratio(),
                "bytes_read": self.bytes_read,
                "activation_bytes": self.activation_bytes,
                "peak_bytes": self.peak_bytes,
                "anonymous_bytes": self.anonymous_bytes,
                "charged_bytes": self.charged_bytes,
                "identical": self.identical,
            })
        );
    }
}
