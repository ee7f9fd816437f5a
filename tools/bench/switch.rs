//! `hermes-bench switch`: what it costs to turn from one model to another under one budget
//! (PipeSwitch's question).

use super::setup::{self, Times};
use anyhow::{Result, ensure};
use clap::Args;
use hermes::engine::{Config, Engine, Request};
use hermes::stream::{Trace, What};
use hermes::values::size;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Arguments of `hermes-bench switch`.
#[derive(Args)]
pub struct Arguments {
    /// Folder of the store
    #[arg(long)]
    store: PathBuf,
    /// The two models
    #[arg(long, num_args = 2, required = true)]
    models: Vec<String>,
    /// Variant of both; each one's best by default
    #[arg(long)]
    variant: Option<String>,
    /// Budget that both share
    #[arg(long, value_parser = size::parse, default_value = "96MiB")]
    budget: u64,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Rounds
    #[arg(long, default_value_t = 7)]
    repeat: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Default)]
struct Figures {
    /// Passes after one of the same model.
    stay_us: Vec<u64>,
    /// Passes after one of the other.
    switch_us: Vec<u64>,
    /// Loading the first block, in those.
    first_block_us: Vec<u64>,
    /// Reading the tape alone, after the same model's and after the other's.
    stay_io_us: Vec<u64>,
    switch_io_us: Vec<u64>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { store, models, tokens, repeat, .. } = arguments;
    ensure!(*repeat > 0, "--repeat takes at least 1");
    let config = Config::new(store, arguments.budget);
    // What pins would save a pass after its own model is no cost of the switch.
    let engine =
        Engine::start(Config { variant: arguments.variant.clone(), pin_bytes: 0, ..config })?;
    let requests: Vec<Request> =
        models.iter().map(|model| setup::request(store, model, *tokens)).collect::<Result<_>>()?;
    let mut figures: Vec<Figures> = models.iter().map(|_| Figures::default()).collect();
    let mut tape_bytes = 0;
    for (model, request) in models.iter().zip(&requests) {
        engine.infer(request.clone())?;
        let stats = engine.stats();
        let loaded = stats.models.iter().find(|m| m.name == *model).and_then(|m| m.loaded.as_ref());
        tape_bytes += loaded.map_or(0, |loaded| loaded.tape_bytes);
    }
    for _ in 0..*repeat {
        for (request, figures) in requests.iter().zip(&mut figures) {
            let trace = Arc::new(Trace::begin());
            figures.switch_us.push(time(&engine, request, Some(Arc::clone(&trace)))?);
            let first = trace.events().into_iter().find_map(|event| match event.what {
                What::Load { .. } => Some(event.length_us),
                _ => None,
            });
            figures.first_block_us.push(first.unwrap_or(0));
            figures.stay_us.push(time(&engine, request, None)?);
        }
        for (model, figures) in models.iter().zip(&mut figures) {
            figures.switch_io_us.push(engine.play(model)?.latency_us);
            figures.stay_io_us.push(engine.play(model)?.latency_us);
        }
    }
    engine.shutdown();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if !arguments.json {
        hermes::say!(
            "{:.0} MiB of tapes in a budget of {:.0} MiB",
            mib(tape_bytes),
            mib(arguments.budget)
        );
    }
    for (model, figures) in models.iter().zip(figures) {
        let (stay, switch) = (Times(figures.stay_us), Times(figures.switch_us));
        let (stay_io, switch_io) = (Times(figures.stay_io_us), Times(figures.switch_io_us));
        let first = Times(figures.first_block_us);
        if arguments.json {
            let report = json!({
                "model": model, "budget_bytes": arguments.budget, "tape_bytes": tape_bytes,
                "stay_us": stay.json(), "switch_us": switch.json(), "first_block_us": first.json(),
                "stay_io_us": stay_io.json(), "switch_io_us": switch_io.json(),
            });
            hermes::say!("{report}");
        } else {
            hermes::say!("{model}");
            hermes::say!("  after itself     {}", stay.line());
            hermes::say!("  after the other  {}", switch.line());
            hermes::say!("  its first block  {}", first.line());
            hermes::say!("reading alone");
            hermes::say!("  after itself     {}", stay_io.line());
            hermes::say!("  after the other  {}", switch_io.line());
        }
    }
    Ok(())
}

/// Microseconds from a request to its reply.
fn time(engine: &Engine, request: &Request, trace: Option<Arc<Trace>>) -> Result<u64> {
    let began = Instant::now();
    engine.infer(Request { trace, ..request.clone() })?;
    Ok(began.elapsed().as_micros() as u64)
}
