//! A checkpoint's tensors as weights of a graph: taken by name, of the shape that the config asks for,
//! and each of them accounted for.

use crate::checkpoint::{Checkpoint, Kind, Tensor};
use crate::graph::skim::{Elements, Location, OnnxWeight, Stored};
use crate::shard::error::{ShardError, ensure, unfit};
use crate::store::Dtype;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// Most names that an error lists.
const LISTED: usize = 5;

/// The tensors of a checkpoint, and which of them were taken.
pub struct Tensors<'a> {
    tensors: &'a BTreeMap<String, Tensor>,
    /// What errors call the checkpoint.
    place: String,
    /// The file that sizes come from.
    config: String,
    taken: RefCell<BTreeSet<String>>,
}

impl<'a> Tensors<'a> {
    /// Those of a checkpoint, of sizes that its config says.
    pub fn new(checkpoint: &'a Checkpoint) -> Tensors<'a> {
        let config = &checkpoint.config_file;
        Tensors {
            tensors: &checkpoint.tensors,
            place: files_of(checkpoint, config.parent().unwrap_or(config)),
            config: config.display().to_string(),
            taken: RefCell::default(),
        }
    }

    /// The first of `prefixes` under which there is a tensor `name`; the first of all where there is
    /// none, for errors to name.
    pub fn prefix<'p>(&self, prefixes: &[&'p str], name: &str) -> &'p str {
        let found = prefixes.iter().find(|prefix| self.has(&format!("{prefix}{name}")));
        found.copied().unwrap_or(prefixes[0])
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, where it is there.
    pub fn shape(&self, name: &str) -> Option<&'a [u64]> {
        self.tensors.get(name).map(|tensor| &*tensor.shape)
    }

    /// Whether a tensor was taken already.
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.borrow().contains(name)
    }

    /// Takes a tensor, which has to have this shape.
    ///
    /// # Errors
    /// One that is missing, or of another shape.
    pub fn take(&self, name: &str, shape: &[u64]) -> Result<Stored, ShardError> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(unfit!(
                "{}: there is no tensor {name} {shape:?}, which the model has by {}\n\
                 copy all of its files again, or convert it again",
                self.place,
                self.config
            ));
        };
        ensure!(
            tensor.shape == shape,
            "{}: tensor {name} is {:?}, and has to be {shape:?} by {}",
            tensor.file.display(),
            tensor.shape,
            self.config
        );
        ensure!(
            tensor.kind.is_decoded(),
            "{}: tensor {name} is of {}, which no weight is read from",
            tensor.file.display(),
            tensor.kind.name()
        );
        self.taken.borrow_mut().insert(name.to_string());
        Ok(stored(tensor))
    }

    /// The values of a small tensor, which has to have this shape.
    ///
    /// # Errors
    /// One that is missing, of another shape, or cannot be read.
    pub fn values(&self, name: &str, shape: &[u64]) -> Result<Vec<f32>, ShardError> {
        let Stored { dtype, elements } = self.take(name, shape)?;
        let weight = OnnxWeight { name: name.to_string(), dtype, shape: shape.to_vec(), elements };
        let mut bytes = vec![];
        let read = weight.read().and_then(|mut from| from.read_to_end(&mut bytes));
        read.map_err(ShardError::io(format!("read tensor {name} of {}", self.place)))?;
        ensure!(dtype == Dtype::Fp32, "{}: tensor {name} is not of 32-bit floats", self.place);
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
    }

    /// What the checkpoint has besides what was taken: those that `is_spare` says are of no use here
    /// become a note, any other is refused, since the model may not be what it is without it.
    ///
    /// # Errors
    /// Tensors that belong to no such model.
    pub fn rest(
        &self,
        architecture: &str,
        is_spare: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, ShardError> {
        let taken = self.taken.borrow();
        let is_left = |(name, tensor): &(&String, &Tensor)| {
            !taken.contains(*name) && tensor.shape.iter().all(|size| *size > 0)
        };
        let left = self.tensors.iter().filter(is_left).map(|(name, _)| name.as_str());
        let (spare, strange): (Vec<&str>, Vec<&str>) = left.partition(|name| is_spare(name));
        ensure!(
            strange.is_empty(),
            "{}: the model has no place for {}: a model of kind {architecture} has none such by {}\n\
             it would not be what it is without",
            self.place,
            listed(&strange),
            self.config
        );
        Ok((!spare.is_empty()).then(|| format!("left out, not needed here: {}", listed(&spare))))
    }
}

/// The files that the tensors are in, or where they should be.
fn files_of(checkpoint: &Checkpoint, place: &Path) -> String {
    let files: BTreeSet<&Path> = checkpoint.tensors.values().map(|tensor| &*tensor.file).collect();
    match files.len() {
        1 => files.first().map_or_else(String::new, |file| file.display().to_string()),
        _ => place.display().to_string(),
    }
}

fn listed(names: &[&str]) -> String {
    match names.len() {
        ..=LISTED => names.join(", "),
        count => format!("{} and {} more", names[..LISTED].join(", "), count - LISTED),
    }
}

/// Where a tensor's elements lie, and how.
fn stored(tensor: &Tensor) -> Stored {
    let Tensor { file, offset, bytes, kind, .. } = tensor;
    let location = Location { path: file.to_path_buf(), offset: *offset, bytes: *bytes };
    let (dtype, elements) = match kind {
        Kind::F32 => (Dtype::Fp32, Elements::Plain(location)),
        Kind::F16 => (Dtype::Fp16, Elements::Plain(location)),
        Kind::Bf16 => (Dtype::Bf16, Elements::Plain(location)),
        kind => (Dtype::Fp32, Elements::Blocks(location, *kind)),
    };
    Stored { dtype, elements }
}
