//! What was measured before somebody interrupted it, beside the version that it is of.

use crate::shard::error::ShardError;
use crate::store::ModelDir;
use crate::store::manifest::UNFINISHED_NAME;
use crate::sys::file::read_regular;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often the file is written.
const INTERVAL: Duration = Duration::from_secs(3);

/// Limit of the file: thousands of tensors with hundreds of inputs.
const MAX_BYTES: u64 = 64 << 20;

/// How far the answers to some requests are off, or agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Off {
    pub sum: f64,
    /// Requests or tokens that it is the sum over.
    pub weight: f64,
}

impl Off {
    /// That of both.
    pub fn plus(self, other: Off) -> Off {
        Off { sum: self.sum + other.sum, weight: self.weight + other.weight }
    }

    /// Of one request or token.
    pub fn mean(self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

/// The file with what was measured so far.
pub struct Unfinished {
    /// None where it is not kept.
    path: Option<PathBuf>,
    written: Instant,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// What tells this measuring from another: of the version, its inputs, the probe.
    key: String,
    /// In the order of measuring.
    measured: Vec<Off>,
}

impl Unfinished {
    /// Opens what is there of the same measuring; begins anew where it is of another one, or cannot
    /// be read.
    pub fn open(dir: &ModelDir, key: String) -> Unfinished {
        let path = dir.path.join(UNFINISHED_NAME);
        let there = read_regular(&path, MAX_BYTES).ok();
        let there = there.and_then(|bytes| serde_json::from_slice::<Content>(&bytes).ok());
        let content = there.filter(|content| content.key == key && content.is_sound());
        let content = content.unwrap_or(Content { key, measured: vec![] });
        Unfinished { path: Some(path), written: Instant::now(), content }
    }

    /// For what is measured in one go.
    pub fn nowhere() -> Unfinished {
        let content = Content { key: String::new(), measured: vec![] };
        Unfinished { path: None, written: Instant::now(), content }
    }

    /// What was measured so far.
    pub fn measured(&self) -> &[Off] {
        &self.content.measured
    }

    /// Adds what was measured next; now and then it is written.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&mut self, off: Off) -> Result<(), ShardError> {
        self.content.measured.push(off);
        match self.written.elapsed() >= INTERVAL {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self) -> Result<(), ShardError> {
        let Some(path) = &self.path else { return Ok(()) };
        let json = serde_json::to_vec(&self.content).expect("it has no maps");
        let next = path.with_extension("next");
        fs::write(&next, json)
            .and_then(|()| fs::rename(&next, path))
            .map_err(ShardError::io(format!("write {}", path.display())))?;
        self.written = Instant::now();
        Ok(())
    }
}

impl Content {
    fn is_sound(&self) -> bool {
        self.measured.iter().all(|off| off.sum >= 0.0 && off.weight > 0.0)
    }
}
