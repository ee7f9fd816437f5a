//! Where passes are played: threads, kernels and room.

use super::crew::Crew;
use super::error::EngineError;
use super::model::Model;
use super::pass::{Outputs, Pass, Seat};
use super::pressure::Pressure;
use super::reel::Reel;
use super::room::{Hold, Room};
use crate::graph::Kernels;
use crate::plan::{Plan, Release};
use crate::stream::{BlockMemory, Course, Flow, Keep, OwnedFlow, Trace};
use crate::sys::{affinity, panics};
use std::sync::Arc;
use tract_linalg::multithread::set_threading_panel_threshold;

/// Panels below which tract computes a product on one thread; blocks are smaller than the
/// whole matrices its default is meant for.
const PANEL_THRESHOLD: usize = 16;

/// What the engine's thread works with.
pub(super) struct Stage {
    pub hold: Hold,
    pub kernels: Arc<Kernels>,
    pub cores: Vec<usize>,
    crew: Crew,
}

/// What each seat of a pass came to.
type Results = Vec<Result<Outputs, EngineError>>;

impl Stage {
    /// Starts the threads that `plan` wants.
    pub fn new(plan: &Plan, cores: Vec<usize>, hold: Hold) -> Result<Stage, EngineError> {
        let crew = Crew::start(plan, &cores)?;
        set_threading_panel_threshold(PANEL_THRESHOLD);
        Ok(Stage { hold, kernels: Arc::new(Kernels::native()), cores, crew })
    }

    /// What may be held when.
    pub fn room(&self) -> &Room {
        &self.hold.room
    }

    /// Begins to load for a pass, as `reel` has it.
    pub fn begin_pass(
        &mut self,
        model: &Model,
        reel: &Reel,
        trace: Option<Arc<Trace>>,
    ) -> Result<OwnedFlow, EngineError> {
        let keep = match reel.plan.release {
            Release::AfterUse => self.hold.pins_wanted(reel),
            Release::AtEnd => Keep::default(),
        };
        self.begin(model, reel, &reel.pins.blocks(), keep, trace)
    }

    /// Begins to load; `pins` are there already.
    pub fn begin(
        &mut self,
        model: &Model,
        reel: &Reel,
        pins: &[Option<Arc<BlockMemory>>],
        keep: Keep,
        trace: Option<Arc<Trace>>,
    ) -> Result<OwnedFlow, EngineError> {
        let plan = &reel.plan;
        let wanted = match self.room().pressure.get() >= Pressure::Window {
            true => reel.smallest_window_bytes(),
            false => plan.window_bytes,
        };
        let window_bytes = self.hold.open_window(model, wanted, reel.largest_unit_bytes)?;
        self.gather_crew(plan)?;
        self.hold.slots.keep_within(window_bytes);
        let course = Course {
            window_bytes,
            units: &reel.units,
            turns: plan.turns,
            release: plan.release,
            repeats: 0,
            pins,
            keep,
            trace,
            beats: Arc::clone(&self.room().pulse.beats),
        };
        let flow = Flow::new(Arc::clone(&reel.source), Arc::clone(reel.blocks()), course);
        Ok(self.crew.load(flow))
    }

    /// Sets up the threads as the plan wants them, on the cores that there are now.
    fn gather_crew(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let cores = affinity::allowed_cores();
        if cores != self.cores {
            log::warn!(
                "cores {:?} were ours, now {cores:?} are: threads are pinned anew",
                self.cores
            );
            self.cores = cores;
        }
        if !self.crew.suits(plan, &self.cores) {
            self.crew.dismiss();
            self.crew = Crew::start(plan, &self.cores)?;
        }
        Ok(())
    }

    /// A pass over a flow that was begun.
    pub fn pass(
        &self,
        model: &Arc<Model>,
        reel: &Arc<Reel>,
        flow: OwnedFlow,
        trace: Option<Arc<Trace>>,
    ) -> Pass {
        let Room { pulse, ledger, .. } = self.room();
        Pass {
            model: Arc::clone(model),
            reel: Arc::clone(reel),
            flow,
            kernels: Arc::clone(&self.kernels),
            ledger: Arc::clone(ledger),
            stopping: pulse.stopping.clone(),
            trace,
            beats: Arc::clone(&pulse.beats),
        }
    }

    /// Performs a pass on the compute threads. What a panic in it said is its error.
    pub fn perform(&self, pass: &Pass, seats: Vec<Seat>) -> Result<Results, String> {
        self.crew.compute(|| pass.run(seats))
    }
}

/// Does a piece of work of which nothing is left where it panics: what it held goes by being
/// dropped, and the panic is its error.
pub(super) fn guarded<T>(
    what: &str,
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    panics::caught(work).unwrap_or_else(|text| {
        log::error!("{what} failed within: {text}");
        Err(EngineError::Internal(text))
    })
}
