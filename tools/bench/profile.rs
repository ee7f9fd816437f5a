//! `hermes-bench profile`: what reading and computing take on this board.

use super::setup::Subject;
use anyhow::Result;
use clap::Args;
use hermes::engine::{Config, DiskKind, Engine};
use hermes::values::size;
use std::time::Instant;

/// Arguments of `hermes-bench profile`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Budget of the engine
    #[arg(long, value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// Hold the disk to this many bytes a second
    #[arg(long, value_parser = size::parse)]
    throttle: Option<u64>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Subject { store, model, variant } = &arguments.subject;
    let disk = match arguments.throttle {
        Some(bytes_per_s) => DiskKind::Throttled { bytes_per_s },
        None => DiskKind::Board,
    };
    let config = Config::new(store, arguments.budget);
    let engine = Engine::start(Config { variant: variant.clone(), disk, ..config })?;
    engine.load(model)?;
    let began = Instant::now();
    hermes::say!("{}", engine.profile(model)?);
    hermes::say!("measured in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}
