//! The command line of hermesd: serves a store of models on a Unix socket within one byte budget.

use crate::api;
use crate::daemon::config::{self, ConfigSources, Effective, Flags};
use crate::daemon::listen::Listening;
use crate::daemon::{Lifecycle, journal};
use crate::engine::{Engine, EngineError, rehearsal};
use crate::manual;
use crate::sys::capabilities::Capabilities;
use crate::sys::{child, code, file, heap, panics};
use crate::values::counted;
use anyhow::{Result, anyhow, bail};
use clap::{CommandFactory, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Time for the engine's threads to end once everything is cancelled.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(10);

/// Serves neural networks from a store, streaming their weights through a small window.
#[derive(Parser)]
#[command(
    name = "hermesd",
    version,
    allow_negative_numbers = true,
    after_help = "Each setting can also stand in the config file, its drop-ins (FILE.d/*.conf) and \
                  the environment (HERMES_STORE, HERMES_LOG=debug, ...). --print-config shows all."
)]
struct Args {
    /// Config file [default: /etc/hermes/hermesd.toml, where it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the config, the store and the budget, and end: status 0 where the daemon would start.
    #[arg(long)]
    check_config: bool,
    /// Print the settings in force as TOML, with the origin of each, and end.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    flags: Flags,
}

/// The daemon's `main`, for programs whose allocator is [`heap::CountingAllocator`].
pub fn main() -> ExitCode {
    heap::limit_arenas();
    if let Some(code) = rehearsal::performed(child::begin().as_deref()) {
        return code;
    }
    if let Some(code) = manual::written(Args::command(), "8") {
        return code;
    }
    let args = Args::parse();
    file::ignore_size_signal();
    journal::init();
    panics::log_them();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The library's errors tell their causes themselves.
            let advice = error.downcast_ref::<EngineError>().and_then(EngineError::advice);
            let advice = advice.map_or(String::new(), |advice| format!("\n{advice}"));
            log::error!("{error}{advice}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let sources = ConfigSources::new(args.config.clone(), &args.flags)?;
    let effective = sources.read()?;
    effective.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if args.print_config {
        crate::say!("{}", config::show(&effective).trim_end());
    }
    if args.check_config {
        let (files, models) = (effective.files.len(), effective.settings.try_engine()?);
        let addresses: Vec<String> =
            effective.settings.addresses().iter().map(ToString::to_string).collect();
        crate::tell!(
            "the config is good: {} read, the store has {}; without passed sockets it is served at {}",
            counted(files as u64, "file"),
            counted(models as u64, "model"),
            addresses.join(", ")
        );
    }
    if args.print_config || args.check_config {
        return Ok(());
    }
    journal::set_level(effective.settings.log.filter());
    Capabilities::get().shortcomings().iter().for_each(|lacking| log::warn!("{lacking}"));
    serve(sources, effective)
}

fn serve(sources: ConfigSources, effective: Effective) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("hermes-api")
        .max_blocking_threads(api::HELPER_THREADS)
        .build()
        .map_err(|error| anyhow!("cannot start the event loop: {error}"))?;
    let settings = effective.settings.clone();
    let engine = Engine::start(settings.engine())?;
    settings.tell_missing_models(&engine);
    // Until here a signal ends the process, as nothing has to be drained.
    let context = runtime.enter();
    let mut lifecycle = Lifecycle::new(sources, effective)?;
    drop(context);
    let Listening { listeners, files } = settings.listen()?;
    let control = lifecycle.control();
    // Of the code that was needed to start, most will not be needed again.
    code::release();
    file::renounce();
    runtime.block_on(async {
        tokio::select! {
            // The server first: the lifecycle begins by saying that it serves.
            biased;
            served = api::serve(listeners, engine.clone(), control) => served,
            () = lifecycle.run(&engine) => Ok(()),
        }
    })?;
    drop(files);
    // Beside the helper threads, whatever they do.
    runtime.shutdown_background();
    let (ended, end) = std::sync::mpsc::channel();
    let stop = move || {
        engine.shutdown();
        // Nobody waits where it took too long.
        let _ = ended.send(());
    };
    std::thread::Builder::new()
        .name("shutdown".to_owned())
        .spawn(stop)
        .map_err(|error| anyhow!("cannot start a thread: {error}"))?;
    if end.recv_timeout(SHUTDOWN_PATIENCE).is_err() {
        bail!("the engine does not end within {} s", SHUTDOWN_PATIENCE.as_secs());
    }
    log::info!("stopped");
    Ok(())
}
