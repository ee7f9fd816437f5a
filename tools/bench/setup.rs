//! What the benchmarks share: requests a model accepts, cold files, figures of repeated times.

use anyhow::{Context, Result, bail};
use clap::Args;
use hermes::engine::{Array, Cancel, Request};
use hermes::store::manifest::{Dim, Port};
use hermes::store::{Dtype, Store};
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
    let manifest = Store::open(store)?.current(model)?.manifest;
    let inputs = manifest
        .inputs
        .iter()
        .map(|port| Ok((port.name.clone(), input(port, tokens)?)))
        .collect::<Result<_>>()?;
    let model = model.to_string();
    Ok(Request { model, inputs, outputs: vec![], cancel: Cancel::new(), trace: None })
}

/// Values a model accepts whatever they mean: small ids, ones in masks, a ramp of floats.
fn input(port: &Port, tokens: usize) -> Result<Array> {
    let shape: Vec<usize> = port
        .shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(size) => usize::try_from(*size).context("a size beyond this machine"),
            Dim::Symbol(_) => Ok(tokens),
        })
        .collect::<Result<_>>()?;
    let count: usize = shape.iter().product();
    let ids = (0..count as i64).map(|i| match port.name.as_str() {
        name if name.contains("mask") => 1,
        name if name.contains("type") => 0,
        name if name.contains("position") => i,
        _ => (i * 37 + 101) % 1000,
    });
    let floats: Vec<f32> = (0..count).map(|i| (i % 97) as f32 / 48.5 - 1.0).collect();
    Ok(match port.dtype {
        Dtype::Int64 => Array::from_i64(shape, &ids.collect::<Vec<_>>())?,
        Dtype::Int32 => {
            let bytes = ids.flat_map(|id| (id as i32).to_le_bytes()).collect();
            Array::new(Dtype::Int32, shape, bytes)?
        }
        Dtype::Fp32 => Array::from_f32(shape, &floats)?,
        other => bail!("input {} is {other}, which this benchmark does not make", port.name),
    })
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
