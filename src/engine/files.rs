//! The layer files that a choice of variants takes, and where its tensors lie in them.

use super::choice::{Choice, Variants, name_of};
use super::error::EngineError;
use crate::graph::GraphError;
use crate::store::layer_file::{LayerFile, Layout, TensorEntry};
use crate::store::{ModelDir, StoreError};
use std::collections::HashMap;
use std::slice;

/// A version's layer files in some variants, open.
pub(super) struct LayerFiles {
    pub files: Vec<LayerFile>,
    /// Layer and variant of each.
    pub parts: Vec<Part>,
    /// What tells the choice from others.
    pub choice: Choice,
    /// By weight and layout: the file, and the tensor in its index.
    places: HashMap<(String, Layout), (usize, usize)>,
}

/// Which layer file of a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    /// Index of its layer.
    pub layer: usize,
    pub variant: String,
}

impl LayerFiles {
    /// Opens every file that is needed, once; no block is read.
    ///
    /// # Errors
    /// The store's; [`EngineError::Invalid`] where there are not as many variants as tensors.
    pub fn open(dir: &ModelDir, variants: &Variants) -> Result<LayerFiles, EngineError> {
        let (files, parts, places) = (vec![], vec![], HashMap::new());
        let mut opening = Opening { dir, files, parts, places, chosen: vec![] };
        let layers = dir.manifest.layers.len();
        let best = dir.manifest.variants[0].as_str();
        let tables = match variants {
            Variants::Alike(variant) => {
                (0..layers).try_for_each(|layer| opening.add_alike(layer, variant))?;
                Some(variant.as_str()).filter(|variant| *variant != best)
            }
            Variants::Each(variants) => {
                let mut rest = variants.iter();
                (0..layers).try_for_each(|layer| opening.add_each(layer, &mut rest))?;
                let (found, wanted) = (opening.chosen.len(), variants.len());
                if found != wanted {
                    let text = format!("a plan of {wanted} tensors for {found}");
                    return Err(EngineError::Invalid(text));
                }
                None
            }
        };
        let Opening { files, parts, places, chosen, .. } = opening;
        let tensors = chosen.iter().map(|(name, variant)| (name.as_str(), variant.as_str()));
        let choice = Choice::of(tensors, tables);
        Ok(LayerFiles { files, parts, choice, places })
    }

    /// The file that has a weight in a layout, and the tensor in its index.
    pub fn place(&self, weight: &str, layout: Layout) -> Option<(usize, usize)> {
        self.places.get(&(weight.to_owned(), layout)).copied()
    }
}

/// Layer files being opened.
struct Opening<'a> {
    dir: &'a ModelDir,
    files: Vec<LayerFile>,
    parts: Vec<Part>,
    places: HashMap<(String, Layout), (usize, usize)>,
    /// Name and variant of each tensor so far that has one of its own.
    chosen: Vec<(String, String)>,
}

impl Opening<'_> {
    fn add_alike(&mut self, layer: usize, variant: &str) -> Result<(), EngineError> {
        let file = self.dir.open_layer(layer, variant)?;
        let chosen = file.index.tensors.iter().filter(|tensor| tensor.is_chosen());
        self.chosen.extend(chosen.map(|tensor| (name_of(tensor), variant.to_owned())));
        let number = self.files.len();
        for (index, tensor) in file.index.tensors.iter().enumerate() {
            self.places.insert((tensor.name.clone(), tensor.layout), (number, index));
        }
        self.push(layer, variant, file);
        Ok(())
    }

    /// Adds a layer whose tensors have the variants that come next, the best where none are left.
    fn add_each(
        &mut self,
        layer: usize,
        rest: &mut slice::Iter<String>,
    ) -> Result<(), EngineError> {
        let (best, file) = reference(self.dir, layer)?;
        let tensors = file.index.tensors.clone();
        let mut reference = Some(file);
        // Numbers of the layer's files so far, by variant.
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for (index, tensor) in tensors.into_iter().enumerate() {
            let variant = match tensor.is_chosen() {
                true => rest.next().map_or(best, String::as_str),
                false => best,
            };
            if tensor.is_chosen() {
                self.chosen.push((name_of(&tensor), variant.to_owned()));
            }
            let number = match numbers.get(variant) {
                Some(number) => *number,
                None => {
                    let own = reference.take_if(|_| variant == best);
                    let file = own.map_or_else(|| self.dir.open_layer(layer, variant), Ok)?;
                    numbers.insert(variant, self.files.len());
                    self.push(layer, variant, file)
                }
            };
            let file = &self.files[number];
            let is_same = |t: &TensorEntry| (&t.name, t.layout) == (&tensor.name, tensor.layout);
            if !file.index.tensors.get(index).is_some_and(is_same) {
                let path = file.path.display();
                let what = format!("{path}: its tensors, which are not those of variant {best}");
                return Err(GraphError::Mismatch { what }.into());
            }
            self.places.insert((tensor.name, tensor.layout), (number, index));
        }
        Ok(())
    }

    /// The number of a file that is added.
    fn push(&mut self, layer: usize, variant: &str, file: LayerFile) -> usize {
        self.files.push(file);
        self.parts.push(Part { layer, variant: variant.to_owned() });
        self.files.len() - 1
    }
}

/// A layer's file in the best variant, and that variant. Where it cannot be used and nothing but
/// tensors of other variants is played, any other tells as well which there are.
fn reference(dir: &ModelDir, layer: usize) -> Result<(&str, LayerFile), StoreError> {
    let variants = &dir.manifest.variants;
    dir.open_layer(layer, &variants[0]).map(|file| (variants[0].as_str(), file)).or_else(|error| {
        let mut others = variants[1..].iter();
        let other = others.find_map(|v| Some((v.as_str(), dir.open_layer(layer, v).ok()?)));
        let is_enough =
            |(_, file): &(&str, LayerFile)| file.index.tensors.iter().all(TensorEntry::is_chosen);
        other.filter(is_enough).ok_or(error)
    })
}
