//! What is asked for when a model is sharded.

use super::encode::learns;
use super::error::{ShardError, ensure, unfit};
use super::place::Place;
use crate::codec;
use crate::graph::skim::THRESHOLD_BYTES;
use crate::store::StoreError;
use crate::store::manifest::{self, Pooling};
use std::path::PathBuf;

/// Which model becomes which version of which store, and how; the fields are what hermes-shard's
/// options of the same names say.
#[derive(Clone, Debug)]
pub struct Order {
    /// The ONNX file, or the folder of a repository with one.
    pub model: PathBuf,
    pub store: PathBuf,
    /// The model's name; none for what its files say.
    pub name: Option<String>,
    pub version: String,
    /// Precisions to store, best first.
    pub variants: Vec<String>,
    /// Inputs that tell what weights are used for; none for made-up ones.
    pub calibrate: Option<PathBuf>,
    /// Bytes from which a tensor is streamed.
    pub threshold_bytes: u64,
    /// Where tokenizer.json is; none for beside the model.
    pub tokenizer: Option<PathBuf>,
    /// `OUTPUT[:POOLING]`.
    pub embedding: Option<String>,
    pub pooling: Option<Pooling>,
    /// Sizes of open dimensions.
    pub dims: Vec<(String, u64)>,
    /// The dimension that is the batch, or "none"; none for the one that proves to be.
    pub batch_axis: Option<String>,
    /// Whether passes are tried with made-up inputs.
    pub trial: bool,
    /// Whether a version of that name is replaced.
    pub force: bool,
}

impl Order {
    /// Version 1 of the model in `model` for the store in `store`, as hermes-shard makes it that is
    /// told nothing else.
    pub fn new(model: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Order {
        Order {
            model: model.into(),
            store: store.into(),
            name: None,
            version: "1".to_string(),
            variants: vec!["f32".to_string()],
            calibrate: None,
            threshold_bytes: THRESHOLD_BYTES,
            tokenizer: None,
            embedding: None,
            pooling: None,
            dims: vec![],
            batch_axis: None,
            trial: true,
            force: false,
        }
    }

    /// The model's name, once the store can take a version of it.
    ///
    /// # Errors
    /// A name, version or variant that there cannot be, or a version that is there.
    pub fn check(&self) -> Result<String, ShardError> {
        self.check_at(&Place::of(&self.model)?)
    }

    /// Whether some variant's encoder asks what weights are used for.
    pub fn learns(&self) -> bool {
        self.variants.iter().any(|variant| learns(variant))
    }

    pub(super) fn check_at(&self, place: &Place) -> Result<String, ShardError> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => place.name()?,
        };
        let names = [
            (&name, manifest::is_model_name(&name)),
            (&self.version, manifest::is_name(&self.version)),
        ];
        if let Some((name, _)) = names.into_iter().find(|(_, is_name)| !is_name) {
            return Err(StoreError::Name { name: name.clone() }.into());
        }
        check_variants(&self.variants)?;
        ensure!(
            self.calibrate.is_none() || self.learns(),
            "--calibrate is for variants a2 to a6, and none of them is asked for\n\
             give --variants auto, or f32,a4,a3"
        );
        let target = self.store.join(&name).join(&self.version);
        if target.exists() && !self.force {
            return Err(unfit!(
                "version {} of {name} is in the store already\n\
                 give another --version, or --force to replace it",
                self.version
            ));
        }
        Ok(name)
    }
}

/// The variants that are worth their bytes: what `--variants auto` stands for. Those between have too
/// little of their own: with a6 between a5 and q8 a sum of tensors comes at best 0.0013 of cosine
/// nearer to f32, for a fifth of its bytes; without a5 it would be 0.005 farther.
pub const LADDER: [&str; 6] = ["f32", "q8", "a5", "a4", "a3", "a2"];

/// What versions of before have.
const READ_ONLY: &str = "q4";

fn check_variants(variants: &[String]) -> Result<(), ShardError> {
    // bf16 is how f32 stores what came so.
    let is_written = |name: &&str| !["bf16", READ_ONLY].contains(name);
    let known: Vec<&str> = codec::ALL.iter().map(|codec| codec.name()).filter(is_written).collect();
    for (index, variant) in variants.iter().enumerate() {
        ensure!(
            variant != READ_ONLY,
            "variant {READ_ONLY} is still read, but no longer written\n\
             take a4: it has about as many bytes, and its answers are nearer"
        );
        ensure!(
            known.contains(&variant.as_str()),
            "variant \"{variant}\" is unknown\nthere are {}, and auto by itself",
            known.join(", ")
        );
        ensure!(!variants[..index].contains(variant), "variant {variant} is given twice");
    }
    ensure!(!variants.is_empty(), "no variant is given");
    Ok(())
}
