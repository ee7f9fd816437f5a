//! What strangers' files may do to a program, tried by a copy of it within limits: tract computes
//! a graph's constants while it imports it, and those may take any memory and time.

use super::{Arguments, Command, interrupt, told};
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use hermes::engine::rehearsal::{self, Death, Trial};
use hermes::graph::{GraphError, progress};
use hermes::shard;
use hermes::store::{ModelDir, Rehearsal};
use hermes::sys::child::{self, Limits};
use std::env;
use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

/// What reading and importing a model may take.
const LIMITS: Limits = Limits { heap_bytes: 1 << 30, cpu_s: 60 };

/// How a copy ends that was refused something: its caller finds that out too, and tells it.
const REFUSED: u8 = 1;

/// Has a copy of this program do what a build begins with: reading and importing the model.
/// Returns what it was about last.
///
/// # Errors
/// What the copy died of.
pub fn of_build() -> Result<Option<String>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let (end, said) = child::run(LIMITS, &arguments, goes_on).context("cannot try the model")?;
    match Death::of(end, LIMITS, &said) {
        Some(death) => bail!("{}", why(&death)),
        None => Ok(rehearsal::place(&said)),
    }
}

/// Adds to what made tract panic, which names no node, the one at which the copy met it.
pub fn placed(error: anyhow::Error, place: Option<String>) -> anyhow::Error {
    match (error.downcast_ref::<GraphError>(), place) {
        (Some(GraphError::Panicked(_)), Some(place)) => anyhow!("{error}\nit was at {place}"),
        _ => error,
    }
}

/// What the copy does, with the arguments of its caller.
pub fn perform(arguments: Vec<OsString>) -> ExitCode {
    progress::tell();
    let arguments = Arguments::try_parse_from(iter::once("hermes-shard".into()).chain(arguments));
    let tried = match arguments.map(|arguments| arguments.command) {
        Ok(Command::Build(options)) => shard::begin(&options.order()).map(drop),
        _ => return ExitCode::from(REFUSED),
    };
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            hermes::say!("{}", told(&error));
            ExitCode::from(REFUSED)
        }
    }
}

/// Has a copy import the graph of a version that is about to be installed, and notes in its folder
/// how that went.
///
/// # Errors
/// What the copy died of, or was refused for.
pub fn of_version(dir: &ModelDir) -> Result<()> {
    let trial = rehearsal::rehearse(&dir.path, LIMITS, goes_on).context("cannot try the graph")?;
    let graph = dir.manifest.graph.checksum;
    match trial {
        Trial::Survived { peak_bytes: Some(peak_bytes) } => {
            Ok(Rehearsal::Done { peak_bytes }.write(&dir.path, graph)?)
        }
        Trial::Survived { peak_bytes: None } => Ok(()),
        Trial::Refused(refusal) => bail!("{refusal}"),
        Trial::Died(death) => bail!("{}", why(&death)),
    }
}

/// Until somebody wants it to end.
fn goes_on() -> bool {
    interrupt::check().is_ok()
}

fn why(death: &Death) -> String {
    format!(
        "the graph cannot be imported: that {death}\nexport the model without that node, or leave \
         the passes on made-up inputs out by --no-trial"
    )
}
