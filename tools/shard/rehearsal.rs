//! What strangers' files may do to a program, tried by a copy of it within limits: tract computes
//! a graph's constants while it imports it, and those may take any memory and time; so may a pass.

use super::{Arguments, Command, interrupt, told};
use anyhow::{Context, Result, bail};
use clap::Parser;
use hermes::engine::rehearsal::{self, Death, Trial};
use hermes::graph::{GraphError, progress};
use hermes::shard::{Draft, ShardError, Source};
use hermes::store::{ModelDir, Rehearsal};
use hermes::sys::child::{self, End, Limits};
use std::env;
use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

/// What reading, importing and trying a model may take: of the processor for each import and each
/// pass, by the clock for all. What a copy finds out is about as long as a manifest.
const LIMITS: Limits = Limits { clock_s: 600, said_bytes: 64 << 20, ..Limits::new(1 << 30, 60) };

/// What a copy says before what it found out, or why it was refused.
const FOUND: &str = "\nfound\n";

/// How a copy ends that was refused something.
const REFUSED: u8 = 1;

/// The same by a panic of tract, which names no node.
const PANICKED: u8 = 3;

/// Has a copy of this program do what a build begins with: reading, importing and trying the model.
/// Nothing of it is done again here.
///
/// # Errors
/// What the copy was refused, or died of.
pub fn of_build() -> Result<Draft> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let (end, said) = child::run(LIMITS, &arguments, goes_on).context("cannot try the model")?;
    if let Some(death) = Death::of(end, LIMITS, &said) {
        bail!("{}", why(&death));
    }
    let (before, found) =
        said.split_once(FOUND).context("the copy that tries the model is mute")?;
    match (end, rehearsal::place(before)) {
        (End::Exit(0), _) => Ok(Draft::parse(found)?),
        (End::Exit(status), Some(place)) if status == i32::from(PANICKED) => {
            bail!("{}\nit was at {place}", found.trim_end())
        }
        _ => bail!("{}", found.trim_end()),
    }
}

/// What the copy does, with the arguments of its caller.
pub fn perform(arguments: Vec<OsString>) -> ExitCode {
    progress::tell();
    let arguments = Arguments::try_parse_from(iter::once("hermes-shard".into()).chain(arguments));
    let Ok(Arguments { command: Command::Build(options) }) = arguments else {
        return ExitCode::from(REFUSED);
    };
    let order = options.order();
    match Source::read(&order).and_then(|source| Draft::of(&order, &source)) {
        Ok(draft) => {
            hermes::say!("{FOUND}{}", draft.to_text());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let has_panicked = matches!(error, ShardError::Graph(GraphError::Panicked(_)));
            hermes::say!("{FOUND}{}", told(&error.into()));
            ExitCode::from(if has_panicked { PANICKED } else { REFUSED })
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

/// What a death tells of the model, and what can be done.
fn why(death: &Death) -> String {
    if death.is_from_outside() {
        return format!(
            "the model is not known to be sound or not: to import and try it {death}\n\
             a disk, other programs or the system kept it from its end: try again with less beside it"
        );
    }
    format!(
        "the model cannot be imported and tried: that {death}\nexport the model without that node, \
         or leave the passes over made-up inputs out by --no-trial"
    )
}
