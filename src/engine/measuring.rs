//! Measures models, a trial at a time: for whoever asks, or while nothing waits.

use super::config::Policy;
use super::error::EngineError;
use super::model::Model;
use super::planning::Planner;
use super::pressure::Pressure;
use super::profiler::Profiler;
use super::request::{Answer, Cancel};
use super::room::Room;
use super::stage::{Stage, guarded};
use super::turns::Left;
use crate::plan::Profile;
use std::sync::{Arc, Weak};

/// Who waits for a profile.
type Asked = Answer<Arc<Profile>>;

/// Measuring under way, if it is.
#[derive(Default)]
pub(super) struct Measuring(Option<UnderWay>);

/// A model that is measured. It may be unloaded between two trials, or loaded anew.
struct UnderWay {
    name: String,
    model: Weak<Model>,
    /// None where nothing was tried yet.
    profiler: Option<Box<Profiler>>,
    asked: Option<Asked>,
}

/// How far measuring has come.
enum Trying {
    More(Box<Profiler>),
    Done(Arc<Profile>),
}

impl UnderWay {
    fn of(model: &Arc<Model>, profiler: Option<Box<Profiler>>, asked: Option<Asked>) -> UnderWay {
        let name = model.name().to_string();
        UnderWay { name, model: Arc::downgrade(model), profiler, asked }
    }

    /// The model and what was tried with it; none where it is no longer loaded.
    fn resume(&mut self, room: &Room) -> Option<(Arc<Model>, Option<Box<Profiler>>)> {
        let model = room.residents.get(&self.name)?;
        let is_same = self.model.ptr_eq(&Arc::downgrade(&model));
        Some((model, self.profiler.take().filter(|_| is_same)))
    }
}

impl Measuring {
    /// Begins to measure a model for somebody who waits for that.
    pub fn begin(&mut self, model: &Arc<Model>, asked: Asked) {
        if model.reel().blocks().is_empty() {
            let what = "has no weights to stream: there is nothing to measure";
            let text = format!("model \"{}\" {what}", model.name());
            return asked.give(Err(EngineError::Invalid(text)));
        }
        self.0 = Some(UnderWay::of(model, None, Some(asked)));
    }

    /// Makes the next trial that somebody waits for. A model that was loaded anew meanwhile is
    /// measured anew, too.
    pub fn go_on(&mut self, stage: &mut Stage, planner: &mut Planner) {
        let Some(mut measuring) = self.0.take() else { return };
        let resumed = measuring.resume(stage.room());
        let UnderWay { name, asked: Some(asked), .. } = measuring else { return };
        let Some((model, profiler)) = resumed else {
            return asked.give(Err(EngineError::NotMeasured { model: name }));
        };
        model.unpin();
        let stopping = stage.room().pulse.stopping.clone();
        match trial(stage, planner, &model, profiler, &stopping) {
            Ok(Trying::More(profiler)) => {
                self.0 = Some(UnderWay::of(&model, Some(profiler), Some(asked)));
            }
            Ok(Trying::Done(profile)) => asked.give(Ok(profile)),
            Err(error) => asked.give(Err(error)),
        }
    }

    /// Does what can be done while nothing waits: one trial of a model that was not measured yet,
    /// else nothing; whether it was one.
    pub fn use_leisure(&mut self, stage: &mut Stage, planner: &mut Planner) -> bool {
        // Before the level is looked at: a sign that comes later ends it.
        let cancel = stage.room().inbox.leisure();
        if stage.room().pressure.get() > Pressure::None {
            stage.hold.rest();
            return false;
        }
        let resumed = self.0.take().and_then(|mut measuring| measuring.resume(stage.room()));
        if resumed.is_none() {
            stage.hold.rest();
        }
        let next = || next_to_measure(stage, planner).map(|model| (model, None));
        let Some((model, profiler)) = resumed.or_else(next) else { return false };
        if let Ok(Trying::More(profiler)) = trial(stage, planner, &model, profiler, &cancel) {
            self.0 = Some(UnderWay::of(&model, Some(profiler), None));
        }
        true
    }

    /// What was tried was for another budget: it is tried anew.
    pub fn restart(&mut self) {
        if let Some(measuring) = &mut self.0 {
            measuring.profiler = None;
        }
    }

    /// What is left to be tried after a turn, where `went_on` says whether that was a trial which
    /// nobody waits for.
    pub fn left(&self, went_on: bool) -> Left {
        match &self.0 {
            Some(UnderWay { asked: Some(_), .. }) => Left::Trials,
            _ if went_on => Left::Leisure,
            _ => Left::Nothing,
        }
    }

    /// Tells whoever waits that the engine stops.
    pub fn refuse(&mut self) {
        if let Some(UnderWay { asked: Some(asked), .. }) = self.0.take() {
            asked.give(Err(EngineError::Cancelled));
        }
    }
}

/// Makes the next trial of a model, the first where nothing was tried, and concludes after the last.
/// The model is given up where one fails.
fn trial(
    stage: &mut Stage,
    planner: &mut Planner,
    model: &Arc<Model>,
    profiler: Option<Box<Profiler>>,
    cancel: &Cancel,
) -> Result<Trying, EngineError> {
    let tried = guarded("measuring", || {
        let base = || planner.base_plan(stage);
        let begun = || Box::new(Profiler::new(model, base(), stage.cores.len()));
        model.play_plain()?;
        let mut profiler = profiler.unwrap_or_else(begun);
        match profiler.advance(stage, model, cancel)? {
            true => Ok(Trying::Done(planner.conclude(stage, model, *profiler))),
            false => Ok(Trying::More(profiler)),
        }
    });
    tried.inspect_err(|error| {
        if !matches!(error, EngineError::Cancelled) {
            planner.give_up(stage, model, error);
        }
    })
}

fn next_to_measure(stage: &Stage, planner: &Planner) -> Option<Arc<Model>> {
    if !planner.config.profiles || planner.config.policy != Policy::Tape {
        return None;
    }
    let unknown = |model: &Arc<Model>| {
        let is_wanted = model.is_to_be_measured(&stage.cores) || planner.lacks_rates(model);
        is_wanted && model.check_service().is_ok()
    };
    stage.room().residents.all().into_iter().find(unknown)
}
