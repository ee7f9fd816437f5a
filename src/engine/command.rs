//! What the engine is told to do between passes.

use super::error::EngineError;
use super::known::Known;
use super::model::Model;
use super::opening::{Opened, Opening};
use super::request::{Answer, PassStats};
use crate::plan::Profile;
use std::sync::Arc;

/// Something to be done with a model, and who is told how it went.
pub enum Command {
    /// Loads a model, anew where it is loaded.
    Load(String, Answer<Arc<Model>>),
    /// Unloads a model; every byte it held is given back.
    Unload(String, Answer<()>),
    /// Plays a model's tape, computing nothing.
    Play(String, Answer<PassStats>),
    /// Measures a model from beginning to end, one after the other; what else is to be done is done
    /// between the trials.
    Profile(String, Answer<Arc<Profile>>),
    /// Tells what is known of a model, which is not loaded for it.
    Recall(String, Answer<Known>),
    /// Opens a session, loading its model where it is not loaded: what it will hold is granted.
    Open(Opening, Answer<Opened>),
    /// Follows a new budget: comes before all else, and nobody waits for it.
    Replan,
    /// Follows other targets, or another level of memory pressure, where there are targets; nobody
    /// waits for it.
    Retarget,
    /// Has the window give way to those who wait for room and ask again; nobody waits for it.
    Narrow,
}

impl Command {
    /// Answers it with an error.
    pub fn refuse(self, error: EngineError) {
        match self {
            Command::Load(_, answer) => answer.give(Err(error)),
            Command::Unload(_, answer) => answer.give(Err(error)),
            Command::Play(_, answer) => answer.give(Err(error)),
            Command::Profile(_, answer) => answer.give(Err(error)),
            Command::Recall(_, answer) => answer.give(Err(error)),
            Command::Open(_, answer) => answer.give(Err(error)),
            Command::Replan | Command::Retarget | Command::Narrow => {}
        }
    }
}
