//! `hermes-bench pass`: how close a streamed pass comes to its limit.
//!
//! The limit is the larger of T_io, the time the tape takes to play without computing, and
//! T_compute, the same pass with everything pinned. All three are measured in one run, in turns,
//! and compared by their medians.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hermes::api::size;
use hermes::engine::{Array, Cancel, Config, Engine, Reply, Request, SourceKind};
use hermes::store::manifest::{Dim, Port};
use hermes::store::{Dtype, Store};
use hermes::sys::cgroup::MemoryCgroup;
use hermes::sys::{map, memory};
use serde_json::json;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of `hermes-bench pass`.
#[derive(Args)]
pub struct Arguments {
    /// Folder of the store
    #[arg(long)]
    store: PathBuf,
    /// Name of the model
    #[arg(long)]
    model: String,
    /// Variant; the model's best by default
    #[arg(long)]
    variant: Option<String>,
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

/// Median, smallest and largest of some times.
struct Times(Vec<u64>);

impl Times {
    fn median(&self) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    fn line(&self) -> String {
        let (low, high) = (self.0.iter().min(), self.0.iter().max());
        let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1e3);
        format!("{:8.1} ms  ({:.1} to {:.1})", self.median() as f64 / 1e3, ms(low), ms(high))
    }

    fn json(&self) -> serde_json::Value {
        let (low, high) = (self.0.iter().min(), self.0.iter().max());
        json!({ "median": self.median(), "min": low, "max": high })
    }
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    let request = request(arguments)?;
    let mut report = Report::default();
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

#[derive(Default)]
struct Report {
    load_us: u64,
    latency_us: Vec<u64>,
    stall_us: Vec<u64>,
    io_us: Vec<u64>,
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
    let charge = Charge::begin();
    memory::reset_peak();
    let engine = Engine::start(config)?;
    let started = Instant::now();
    engine.load(&arguments.model)?;
    report.load_us = started.elapsed().as_micros() as u64;
    let mut last = engine.infer(request.clone())?;
    for _ in 0..arguments.repeat {
        chill(arguments)?;
        last = engine.infer(request.clone())?;
        report.latency_us.push(last.stats.latency_us);
        report.stall_us.push(last.stats.stall_us);
        let figures = memory::process();
        report.peak_bytes = figures.peak_bytes;
        report.anonymous_bytes = figures.anonymous_bytes;
        report.charged_bytes = charge.peak();
        chill(arguments)?;
        report.io_us.push(engine.play(&arguments.model)?.latency_us);
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
    config.source = SourceKind::Board;
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
    let source = match arguments.throttle {
        Some(bytes_per_s) => SourceKind::Throttled { bytes_per_s },
        None => SourceKind::Board,
    };
    Config {
        pin_bytes: 0,
        threads: arguments.threads,
        loaders: arguments.loaders,
        variant: arguments.variant.clone(),
        source,
        ..Config::new(&arguments.store, budget_bytes)
    }
}

/// A request for the model with every open dimension at `--tokens`.
fn request(arguments: &Arguments) -> Result<Request> {
    let manifest = Store::open(&arguments.store)?.current(&arguments.model)?.manifest;
    let inputs = manifest
        .inputs
        .iter()
        .map(|port| Ok((port.name.clone(), input(port, arguments.tokens)?)))
        .collect::<Result<_>>()?;
    let model = arguments.model.clone();
    Ok(Request { model, inputs, outputs: vec![], cancel: Cancel::new(), trace: None })
}

/// Values a model accepts whatever they mean: small ids, ones in masks, a ramp of floats.
fn input(port: &Port, tokens: usize) -> Result<Array> {
    let shape: Vec<usize> = port
        .shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => usize::try_from(*size).context("a size beyond this machine"),
            Dim::Symbol(_) => Ok(tokens),
        })
        .collect::<Result<_>>()?;
    let count: usize = shape.iter().product();
    let ids = (0..count as i64).map(|i| match port.name.as_str() {
        name if name.contains("mask") => 1,
        name if name.contains("type") => 0,
        name if name.contains("position") => i,
        _ => (i * 37 + 101) % 1000,
    });
    let floats: Vec<f32> = (0..count).map(|i| (i % 97) as f32 / 48.5 - 1.0).collect();
    Ok(match port.dtype {
        Dtype::Int64 => Array::from_i64(shape, &ids.collect::<Vec<_>>())?,
        Dtype::Int32 => {
            let bytes = ids.flat_map(|id| (id as i32).to_le_bytes()).collect();
            Array::new(Dtype::Int32, shape, bytes)?
        }
        Dtype::Fp32 => Array::from_f32(shape, &floats)?,
        other => bail!("input {} is {other}, which this benchmark does not make", port.name),
    })
}

/// With `--cold`, drops every file of the model from the page cache.
fn chill(arguments: &Arguments) -> Result<()> {
    if !arguments.cold {
        return Ok(());
    }
    let dir = Store::open(&arguments.store)?.current(&arguments.model)?;
    for entry in dir.manifest.layers.iter().flat_map(|layer| layer.files.values()) {
        let file = File::open(dir.file_path(&entry.path)?)?;
        map::drop_cached(&file, 0..entry.bytes);
    }
    Ok(())
}

/// The memory cgroup's charge, above what it was at the start.
struct Charge(Option<(MemoryCgroup, u64)>);

impl Charge {
    fn begin() -> Charge {
        Charge(MemoryCgroup::of_self().and_then(|group| {
            let charged = group.charged_bytes()?;
            Some((group, charged))
        }))
    }

    fn peak(&self) -> Option<u64> {
        let (group, before) = self.0.as_ref()?;
        Some(group.charged_bytes()?.saturating_sub(*before))
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
        println!("{} of {} tokens, {} passes", arguments.model, arguments.tokens, arguments.repeat);
        println!("load       {:8.1} ms", self.load_us as f64 / 1e3);
        println!("latency    {}", times(&self.latency_us));
        println!("T_io       {}", times(&self.io_us));
        if let Some(ratio) = self.ratio() {
            println!("T_compute  {}", times(&self.compute_us));
            println!("ratio      {ratio:8.3}  to the larger of the two");
        }
        println!("stall      {}", times(&self.stall_us));
        println!("bytes read {:8.1} MiB", mib(self.bytes_read));
        println!("activations{:8.1} MiB granted", mib(self.activation_bytes));
        let (peak, anonymous) = (mib(self.peak_bytes), mib(self.anonymous_bytes));
        println!("peak RSS   {peak:8.1} MiB  (anonymous after the pass {anonymous:.1})");
        if let Some(charged) = self.charged_bytes {
            println!("charged    {:8.1} MiB  by the cgroup after a pass", mib(charged));
        }
        if let Some(identical) = self.identical {
            println!(
                "streamed and resident outputs are {}",
                if identical { "identical" } else { "DIFFERENT" }
            );
        }
    }

    fn print_json(&self, arguments: &Arguments) {
        let times = |us: &[u64]| Times(us.to_vec()).json();
        println!(
            "{}",
            json!({
                "model": arguments.model,
                "variant": arguments.variant,
                "tokens": arguments.tokens,
                "window_bytes": arguments.window,
                "load_us": self.load_us,
                "latency_us": times(&self.latency_us),
                "io_us": times(&self.io_us),
                "compute_us": times(&self.compute_us),
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
