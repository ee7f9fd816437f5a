//! The first import of a graph, by a copy of this program within limits of memory and time: what
//! tract makes of a strange graph, computing its constants, can take any of both. How it went is
//! kept beside the version, so that nobody pays for it twice.

use super::error::EngineError;
use super::needs::{loading_bytes, trying_bytes};
use super::room::Room;
use crate::graph::{self, Lockstep, progress};
use crate::store::manifest::{Checksum, Manifest};
use crate::store::{ModelDir, Rehearsal};
use crate::stream::{Category, Ledger};
use crate::sys::child::{self, End, Limits};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::{fmt, io};

/// What a copy is asked to do; the version's folder follows.
const IMPORT: &str = "import";

/// How a copy ends that did not even come to import.
const FAILED: u8 = 2;

/// Seconds of the processor that an import may take; those of real models take less than one on a
/// board.
pub const IMPORT_CPU_S: u32 = 30;

/// How the trial of an import ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// As it should: the graph can be imported, or told why not, within what this took.
    Survived {
        /// Bytes of heap at the peak, where the import succeeded.
        peak_bytes: Option<u64>,
    },
    /// Tract does not take the graph.
    Refused(String),
    /// It did not survive it.
    Died(Death),
}

/// What a copy died of, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    end: End,
    limits: Limits,
    /// What it was about last.
    place: Option<String>,
}

impl Death {
    /// How `end` is one; `said` is what the copy wrote.
    pub fn of(end: End, limits: Limits, said: &str) -> Option<Death> {
        /// The standard library's status of a panic that nobody caught.
        const PANICKED: i32 = 101;
        let is_natural = matches!(end, End::Exit(status) if status != PANICKED);
        (!is_natural).then(|| Death { end, limits, place: place(said) })
    }

    /// Whether others ended it: whoever stops this process, the kernel where memory is short, a disk
    /// that does not answer. It says nothing of the graph then.
    pub fn is_from_outside(&self) -> bool {
        let outside = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGKILL];
        match self.end {
            End::OverClock => true,
            End::Signal(signal) => outside.contains(&signal),
            _ => false,
        }
    }
}

/// What a copy that wrote this was about last.
pub fn place(said: &str) -> Option<String> {
    said.lines().rev().find_map(|line| line.strip_prefix("at ")).map(str::to_owned)
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { heap_bytes, cpu_s, clock_s, .. } = self.limits;
        match self.end {
            End::OverMemory => write!(f, "takes more than {heap_bytes} bytes of memory")?,
            End::OverTime => write!(f, "takes more than {cpu_s} s of the processor")?,
            End::OverClock => write!(f, "takes more than {clock_s} s by the clock")?,
            End::Exit(_) => write!(f, "fails within tract")?,
            // SIGKILL is the kernel's, where memory is short.
            End::Signal(signal) => write!(f, "ends with signal {signal}")?,
        }
        match &self.place {
            Some(place) => write!(f, ", at {place}"),
            None => Ok(()),
        }
    }
}

/// Has a copy of this program import the graph of the version in `dir`.
///
/// # Errors
/// The system's, where there can be no copy; [`io::ErrorKind::Interrupted`] where `go_on` said no.
pub fn rehearse(dir: &Path, limits: Limits, go_on: impl FnMut() -> bool) -> io::Result<Trial> {
    let (end, said) = child::run(limits, &[IMPORT.into(), dir.into()], go_on)?;
    if let Some(death) = Death::of(end, limits, &said) {
        return Ok(Trial::Died(death));
    }
    let peak_bytes = said.lines().last().and_then(|line| line.strip_prefix("peak ")?.parse().ok());
    Ok(match said.split_once("\nrefused\n") {
        Some((_, why)) => Trial::Refused(why.trim_end().to_owned()),
        None => Trial::Survived { peak_bytes },
    })
}

/// Where this process is a copy that is to import a graph: does that, and returns its status. To
/// be called first of all in `main`, with what [`child::begin`] gave.
pub fn performed(arguments: Option<&[OsString]>) -> Option<ExitCode> {
    let [what, dir] = arguments? else { return None };
    (what == OsStr::new(IMPORT)).then(|| perform(Path::new(dir)))
}

fn perform(dir: &Path) -> ExitCode {
    progress::tell();
    heap::limit_arenas();
    let held_bytes = heap::live_bytes();
    match import(dir) {
        Ok(()) => {
            crate::say!("peak {}", heap::peak_bytes().saturating_sub(held_bytes));
            ExitCode::SUCCESS
        }
        Err(EngineError::Graph(error)) => {
            crate::say!("\nrefused\n{error}");
            ExitCode::FAILURE
        }
        // What is wrong with the files is told by who reads them next.
        Err(_) => ExitCode::from(FAILED),
    }
}

/// What loading makes of a graph.
fn import(dir: &Path) -> Result<(), EngineError> {
    let dir = ModelDir::open(dir)?;
    let skeleton = dir.read_file(&dir.manifest.graph)?;
    let imported = graph::import(skeleton, &dir.manifest.weights)?;
    drop(Lockstep::new(imported.plan));
    Ok(())
}

/// How imports of graphs went, where that cannot be kept beside them.
pub(super) struct Rehearsals {
    /// Whether graphs are tried at all.
    is_on: bool,
    known: Mutex<HashMap<Checksum, Rehearsal>>,
}

impl Rehearsals {
    /// Nothing was tried; nothing is where `is_on` is false.
    pub fn new(is_on: bool) -> Rehearsals {
        Rehearsals { is_on, known: Mutex::default() }
    }

    /// Tries the import of a version that is about to be installed, unless there is no room for
    /// that: then it is left to the first load.
    pub fn rehearse(
        &self,
        dir: &ModelDir,
        room: &Room,
        go_on: impl FnMut() -> bool,
    ) -> Result<(), EngineError> {
        if !self.is_on {
            return Ok(());
        }
        match self.attempt(dir, &room.ledger, 0, || room.make_room(""), go_on) {
            Err(EngineError::OverBudget(refused)) => {
                log::info!("the graph is tried when it is loaded: {refused}");
                Ok(())
            }
            tried => tried.map(drop),
        }
    }

    /// How the import of a version went, where it was tried.
    fn known(&self, dir: &ModelDir) -> Option<Rehearsal> {
        let graph = dir.manifest.graph.checksum;
        Rehearsal::read(&dir.path, graph).or_else(|| lock(&self.known).get(&graph).cloned())
    }

    /// Fails where it is known that a version cannot be loaded; tries nothing.
    pub fn check_refusal(&self, dir: &ModelDir) -> Result<(), EngineError> {
        match self.known(dir) {
            Some(Rehearsal::Refused { why }) if self.is_on => Err(unfit(dir, why)),
            _ => Ok(()),
        }
    }

    /// Forgets that a version could not be loaded: it is tried anew.
    pub fn forget_refusal(&self, dir: &ModelDir) -> Result<(), EngineError> {
        let graph = dir.manifest.graph.checksum;
        lock(&self.known).remove(&graph);
        if let Some(Rehearsal::Refused { .. }) = Rehearsal::read(&dir.path, graph) {
            Rehearsal::forget(dir)?;
        }
        Ok(())
    }

    /// Bytes that importing the graph of `dir` takes at its peak, once a copy of this program has
    /// survived it; `idle_bytes` of what that needs are granted already.
    pub fn rehearsed(
        &self,
        dir: &ModelDir,
        room: &Room,
        idle_bytes: u64,
    ) -> Result<Option<u64>, EngineError> {
        if !self.is_on {
            return Ok(None);
        }
        match self.known(dir) {
            Some(Rehearsal::Done { peak_bytes }) => Ok(Some(peak_bytes)),
            Some(Rehearsal::Refused { why }) => Err(unfit(dir, why)),
            None => {
                let go_on = || {
                    // The watchdog sees that the engine moves.
                    room.pulse.beat();
                    !room.pulse.stopping.is_cancelled()
                };
                // Who loads makes room, and tries again.
                self.attempt(dir, &room.ledger, idle_bytes, || false, go_on)
            }
        }
    }

    /// Tries the graph within half as much again as it is said to take; where the budget has no room for
    /// that, within what it is said to take, by which the smallest budget is named. A graph that takes
    /// more is no worse for that: it gets the rest, or is refused for want of memory and not for good.
    fn attempt(
        &self,
        dir: &ModelDir,
        ledger: &Arc<Ledger>,
        idle_bytes: u64,
        make_room: impl Fn() -> bool,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<u64>, EngineError> {
        let Manifest { graph, loading_bytes: measured_bytes, .. } = &*dir.manifest;
        let expected_bytes = loading_bytes(graph.bytes, *measured_bytes);
        let ample_bytes = expected_bytes.saturating_add(expected_bytes / 2);
        let mut grant = ledger.try_grant(Category::Graph, 0)?;
        let mut hold = |heap_bytes| loop {
            match grant.resize(trying_bytes(heap_bytes).saturating_sub(idle_bytes)) {
                Err(_) if make_room() => {}
                resized => break resized,
            }
        };
        let mut try_within = |heap_bytes| {
            let limits = Limits::new(heap_bytes, IMPORT_CPU_S);
            rehearse(&dir.path, limits, &mut go_on).map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted => EngineError::Cancelled,
                _ => EngineError::Thread(error),
            })
        };
        let mut trial = match hold(ample_bytes) {
            Ok(()) => try_within(ample_bytes)?,
            Err(_) => {
                hold(expected_bytes)?;
                try_within(expected_bytes)?
            }
        };
        if let Trial::Died(Death { end: End::OverMemory, limits, .. }) = &trial
            && limits.heap_bytes < ample_bytes
        {
            hold(ample_bytes)?;
            trial = try_within(ample_bytes)?;
        }
        let outcome = match trial {
            Trial::Survived { peak_bytes: None } => return Ok(None),
            Trial::Survived { peak_bytes: Some(peak_bytes) } => Rehearsal::Done { peak_bytes },
            Trial::Refused(why) => Rehearsal::Refused { why },
            Trial::Died(death) if death.is_from_outside() => {
                log::warn!("trying the graph of model {}: it {death}", dir.manifest.model);
                return Err(EngineError::Cancelled);
            }
            Trial::Died(death) => {
                Rehearsal::Refused { why: format!("importing its graph {death}") }
            }
        };
        self.keep(dir, &outcome);
        match outcome {
            Rehearsal::Done { peak_bytes } => Ok(Some(peak_bytes)),
            Rehearsal::Refused { why } => Err(unfit(dir, why)),
        }
    }

    /// Keeps the outcome beside the version, or in memory where the store is not ours to write.
    fn keep(&self, dir: &ModelDir, outcome: &Rehearsal) {
        /// More versions than a daemon ever loads.
        const MOST: usize = 256;
        let graph = dir.manifest.graph.checksum;
        if let Err(error) = outcome.write(&dir.path, graph) {
            log::debug!("how the import went is not kept: {error}");
            let mut rehearsed = lock(&self.known);
            if rehearsed.len() >= MOST {
                rehearsed.clear();
            }
            rehearsed.insert(graph, outcome.clone());
        }
    }
}

fn unfit(dir: &ModelDir, why: String) -> EngineError {
    let (model, version) = (dir.manifest.model.clone(), dir.manifest.version.clone());
    EngineError::Unfit { model, version, why }
}
