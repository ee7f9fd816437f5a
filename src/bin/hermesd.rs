//! The daemon: serves a store of models on a Unix socket within one byte budget.

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use hermes::api::client::default_socket;
use hermes::api::{self, size, socket};
use hermes::engine::{Config, Engine};
use hermes::manual;
use hermes::sys::heap;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: heap::CountingAllocator = heap::CountingAllocator;

/// Helper threads beside the event loop: parsing large bodies, tokenizing, loading.
const HELPER_THREADS: usize = 2;

/// Serves neural networks from a store, streaming their weights through a small window.
#[derive(Parser)]
#[command(
    name = "hermesd",
    version,
    after_help = "Log level: HERMES_LOG=error|warn|info|debug (default info)."
)]
struct Args {
    /// Folder that hermes-shard built models into.
    #[arg(long)]
    store: PathBuf,
    /// Unix socket to serve [default: $HERMES_SOCKET or /run/hermes/hermes.sock].
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Bytes that the whole process may hold: 64MiB, 1GiB.
    #[arg(long, value_parser = size::parse)]
    budget: u64,
    /// Bytes of weights in memory ahead of and under compute [default: chosen from the budget].
    #[arg(long, value_parser = size::parse)]
    window: Option<u64>,
    /// Compute threads [default: one a core].
    #[arg(long)]
    threads: Option<usize>,
    /// Threads that read from disk [default: chosen].
    #[arg(long)]
    loaders: Option<usize>,
    /// Variant of the weights to serve, such as f32 or q8 [default: the best the model has].
    #[arg(long)]
    variant: Option<String>,
}

fn main() -> ExitCode {
    heap::limit_arenas();
    if let Some(code) = manual::written(Args::command(), "8") {
        return code;
    }
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("HERMES_LOG", "info")).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    let path = args.socket.unwrap_or_else(default_socket);
    let (listener, socket) = socket::bind(&path)?;
    let engine = Engine::start(Config {
        window_bytes: args.window,
        threads: args.threads,
        loaders: args.loaders,
        variant: args.variant,
        ..Config::new(args.store, args.budget)
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("hermes-api")
        .max_blocking_threads(HELPER_THREADS)
        .build()
        .context("cannot start the event loop")?;
    log::info!("listening on {}", path.display());
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot take SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot take SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => log::info!("SIGTERM"),
                _ = interrupt.recv() => log::info!("SIGINT"),
            }
        };
        api::serve(listener, engine.clone(), stop).await?;
        anyhow::Ok(())
    })?;
    drop(socket);
    runtime.shutdown_background();
    engine.shutdown();
    log::info!("stopped");
    Ok(())
}
