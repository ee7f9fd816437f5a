//! `hermes-bench smallest`: the smallest budget within which a model answers.
//!
//! Each budget is tried in a process of its own: it does where the pass is granted, and where the
//! kernel has seen no more resident than the budget.

use super::setup::Subject;
use anyhow::{Context, Result, ensure};
use clap::Args;
use hermes::sys::child;
use hermes::values::size;
use serde_json::Value;
use std::process::Stdio;

/// Arguments of `hermes-bench smallest`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Bytes of tape ahead of and under compute
    #[arg(long, value_parser = size::parse, default_value = "4MiB")]
    window: u64,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// How blocks are brought in, as for `pass`
    #[arg(long)]
    source: Option<String>,
    /// Passes with each budget
    #[arg(long, default_value_t = 2)]
    repeat: usize,
    /// Largest budget that is tried
    #[arg(long, value_parser = size::parse, default_value = "1GiB")]
    most: u64,
}

/// Budgets that differ by less are the same.
const STEP_BYTES: u64 = 1 << 20;

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    // `none` MiB do not do, `most` MiB do.
    let (mut none, mut most) = (0, arguments.most / STEP_BYTES);
    ensure!(tried(arguments, most)?.is_some(), "{most} MiB do not do: give a larger --most");
    while most - none > 1 {
        let middle = none.midpoint(most);
        match tried(arguments, middle)? {
            Some(figures) => {
                let figure = |name: &str| mib(figures[name].as_u64().unwrap_or(0));
                let (peak, charged) = (figure("peak_bytes"), figure("charged_bytes"));
                hermes::say!("{middle:6} MiB do: {peak:.1} resident, {charged:.1} charged");
                most = middle;
            }
            None => {
                hermes::say!("{middle:6} MiB do not");
                none = middle;
            }
        }
    }
    hermes::say!(
        "smallest {most} MiB, {} tokens, window {:.1}",
        arguments.tokens,
        mib(arguments.window)
    );
    Ok(())
}

/// The figures of passes within `budget` MiB; `None` where they are refused or hold more.
fn tried(arguments: &Arguments, budget: u64) -> Result<Option<Value>> {
    let budget_bytes = budget * STEP_BYTES;
    let Subject { store, model, variant } = &arguments.subject;
    let mut command = child::again();
    command.arg("pass").arg("--store").arg(store).args(["--model", model]);
    command.args(variant.iter().flat_map(|variant| ["--variant", variant]));
    for (option, value) in [
        ("--budget", budget_bytes),
        ("--window", arguments.window),
        ("--tokens", arguments.tokens as u64),
        ("--repeat", arguments.repeat as u64),
    ] {
        command.arg(option).arg(value.to_string());
    }
    command.args(arguments.source.iter().flat_map(|source| ["--source", source]));
    command.args(["--no-resident", "--json"]);
    let ended = command.stderr(Stdio::piped()).output()?;
    if !ended.status.success() {
        let message = String::from_utf8_lossy(&ended.stderr);
        ensure!(message.contains("of the budget of"), "{message}");
        return Ok(None);
    }
    let figures: Value = serde_json::from_slice(&ended.stdout).context("the pass's figures")?;
    let peak_bytes = figures["peak_bytes"].as_u64().context("the pass's peak")?;
    Ok((peak_bytes <= budget_bytes).then_some(figures))
}
