//! hermes-shard: cuts an ONNX model or a checkpoint into layer files that hermesd streams.

mod build;
mod importance;
mod install;
mod interrupt;
mod rehearsal;
mod report;
mod store;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use hermes::engine::{self, Config};
use hermes::manual;
use hermes::shard::ShardError;
use hermes::store::StoreError;
use hermes::sys::child;
use hermes::sys::file::ignore_size_signal;
use std::path::PathBuf;
use std::process::ExitCode;
use store::StoreOption;

/// The last line of the help.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 usage (arguments).";

/// Cuts ONNX models and checkpoints into layer files for hermesd.
#[derive(Parser)]
#[command(name = "hermes-shard", version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shard a model and install it in a store
    Build(build::Options),
    /// Install a version that was built elsewhere, once every checksum is right
    Install {
        /// Folder of a version, or a tar of one with manifest.json first
        #[arg(value_name = "DIR|TAR")]
        source: PathBuf,
        #[command(flatten)]
        store: StoreOption,
        /// Replace a version of the same name
        #[arg(long)]
        force: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Measure how much each tensor of a version matters to its answers
    Importance(importance::Options),
    /// Show layers, weights, variants and their errors
    Inspect {
        /// Name of the model
        model: String,
        #[command(flatten)]
        store: StoreOption,
        /// Version; the current one by default
        #[arg(long)]
        version: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check every checksum of a model; exit 1 where one is wrong
    Verify {
        /// Name of the model
        model: String,
        #[command(flatten)]
        store: StoreOption,
        /// Version; the current one by default
        #[arg(long)]
        version: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// The `main` of hermes-shard, for programs whose allocator is
/// [`hermes::sys::heap::CountingAllocator`].
pub fn main() -> ExitCode {
    let asked = child::begin();
    if let Some(code) = engine::rehearsal::performed(asked.as_deref()) {
        return code;
    }
    if let Some(arguments) = asked {
        return rehearsal::perform(arguments);
    }
    if let Some(code) = manual::written(Arguments::command(), "1") {
        return code;
    }
    ignore_size_signal();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            hermes::tell!("hermes-shard: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, each said once: many of ours say their cause themselves; on a line of its
/// own, what to do.
fn told(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let said = causes.fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    });
    let advice = error.chain().find_map(|cause| match cause.downcast_ref::<ShardError>() {
        Some(error) => error.advice(),
        None => cause.downcast_ref::<StoreError>()?.advice(),
    });
    advice.map_or(said.clone(), |advice| format!("{said}\n{advice}"))
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build(options) => build::run(&options),
        Command::Importance(options) => importance::run(&options),
        Command::Install { source, store, force, json } => {
            install::run(&source, &store.writable()?, force, json)
        }
        Command::Inspect { model, store, version, json } => {
            // Before anything is read: a daemon has read nothing when it starts.
            let daemon_bytes = engine::daemon_bytes(&Config::new("", 0));
            report::inspect(&store.open(&model, version.as_deref())?, daemon_bytes, json)
        }
        Command::Verify { model, store, version, json } => {
            report::verify(&store.open(&model, version.as_deref())?, json)
        }
    }
}
