//! What the benchmarks share: requests a model accepts, cold files, figures of repeated times.

use anyhow::{Error, Result};
use clap::Args;
use hermes::engine::{Cancel, Request, sample_inputs};
use hermes::store::{Store, check_length};
use hermes::sys::map;
use serde_json::json;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What is measured.
#[derive(Args)]
pub struct Subject {
    /// Folder of the store
    #[arg(long)]
    pub store: PathBuf,
    /// Name of the model
    #[arg(long)]
    pub model: String,
    /// Variant; the model's best by default
    #[arg(long)]
    pub variant: Option<String>,
}

/// Median, smallest and largest of some times.
pub struct Times(pub Vec<u64>);

impl Times {
    /// In microseconds.
    pub fn median(&self) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    /// For people.
    pub fn line(&self) -> String {
        let (low, high) = (self.0.iter().min(), self.0.iter().max());
        let ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1e3);
        format!("{:8.1} ms  ({:.1} to {:.1})", self.median() as f64 / 1e3, ms(low), ms(high))
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        let (low, high) = (self.0.iter().min(), self.0.iter().max());
        json!({ "median": self.median(), "min": low, "max": high })
    }
}

/// A request for the model with every open dimension at `tokens`.
pub fn request(store: &Path, model: &str, tokens: usize) -> Result<Request> {
    let dir = Store::open(store)?.current(model)?;
    check_length(model, tokens as u64, dir.longest_text()?).map_err(Error::msg)?;
    let manifest = dir.manifest;
    let inputs = sample_inputs(&manifest.inputs, tokens)?;
    let model = model.to_string();
    Ok(Request { model, inputs, outputs: vec![], cancel: Cancel::new(), target: None, trace: None })
}

/// Drops every file of the model from the page cache.
pub fn chill(store: &Path, model: &str) -> Result<()> {
    let dir = Store::open(store)?.current(model)?;
    for entry in dir.manifest.layers.iter().flat_map(|layer| layer.files.values()) {
        let file = File::open(dir.file_path(&entry.path)?)?;
        map::drop_cached(&file, 0..entry.bytes);
    }
    Ok(())
}
