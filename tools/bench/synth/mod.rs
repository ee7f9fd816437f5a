//! `hermes-bench synth`: ONNX models of known architectures with random weights.
//!
//! A family's file says which nodes its exporter writes, `modules` builds the graph of them and `file`
//! streams it to the disk. Weights exist a chunk at a time; nothing here ever holds a tensor.

mod bert;
mod file;
mod gpt2;
mod modules;
pub mod random;
mod vit;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use file::Weights;
use modules::Graph;
use std::path::PathBuf;
use std::time::Instant;

/// Command line of `synth`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Architecture.
    #[arg(value_parser = PossibleValuesParser::new(MODELS.iter().map(|m| m.name)))]
    model: String,
    /// File to write; weights of 2 GB and more go to FILE_data beside it.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Number of layers, instead of the architecture's own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    layers: Option<u64>,
    /// Seed of the weights: the same seed gives the same file on every machine.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Give a decoder inputs and outputs for past keys and values.
    #[arg(long)]
    past: bool,
    /// Put weights into FILE_data whatever their size.
    #[arg(long)]
    external: bool,
}

/// An architecture's family, with what only that family has.
#[derive(Clone, Copy)]
enum Family {
    Bert { vocabulary: u64, positions: u64 },
    Vit { image: u64, patch: u64, labels: u64 },
    Gpt2 { vocabulary: u64, positions: u64 },
}

/// Dimensions that every transformer has.
#[derive(Clone, Copy)]
struct Dims {
    layers: u64,
    /// Width of a token.
    width: u64,
    heads: u64,
    /// Width of the feed-forward part.
    inner: u64,
}

impl Dims {
    const fn of(layers: u64, width: u64, heads: u64) -> Dims {
        let inner = 4 * width;
        Dims { layers, width, heads, inner }
    }

    /// Width of one head.
    fn head(self) -> u64 {
        self.width / self.heads
    }
}

struct Model {
    name: &'static str,
    family: Family,
    dims: Dims,
}

const BERT: Family = Family::Bert { vocabulary: 30522, positions: 512 };
const VIT: Family = Family::Vit { image: 224, patch: 16, labels: 1000 };
const GPT2: Family = Family::Gpt2 { vocabulary: 50257, positions: 1024 };

/// Every architecture there is. The tiny ones are for tests and nobody else's.
#[rustfmt::skip]
const MODELS: &[Model] = &[
    Model { name: "bert-tiny", family: Family::Bert { vocabulary: 1000, positions: 512 }, dims: Dims::of(2, 128, 2) },
    Model { name: "bert-base", family: BERT, dims: Dims::of(12, 768, 12) },
    Model { name: "bert-large", family: BERT, dims: Dims::of(24, 1024, 16) },
    Model { name: "vit-tiny", family: Family::Vit { image: 64, patch: 16, labels: 100 }, dims: Dims::of(2, 128, 2) },
    Model { name: "vit-base", family: VIT, dims: Dims::of(12, 768, 12) },
    Model { name: "vit-large", family: VIT, dims: Dims::of(24, 1024, 16) },
    Model { name: "gpt2-tiny", family: Family::Gpt2 { vocabulary: 1000, positions: 256 }, dims: Dims::of(2, 128, 2) },
    Model { name: "gpt2", family: GPT2, dims: Dims::of(12, 768, 12) },
    Model { name: "gpt2-medium", family: GPT2, dims: Dims::of(24, 1024, 16) },
    Model { name: "gpt2-large", family: GPT2, dims: Dims::of(36, 1280, 20) },
    Model { name: "gpt2-xl", family: GPT2, dims: Dims::of(48, 1600, 25) },
];

/// Write the model and report what was written.
///
/// # Errors
/// Fails when a file cannot be written, or when `--past` is asked of an encoder.
pub fn run(arguments: &Arguments) -> Result<()> {
    let model = MODELS
        .iter()
        .find(|m| m.name == arguments.model)
        .expect("the command line admits only names of the table");
    let graph = build(model, arguments)?;
    let started = Instant::now();
    let weights = if arguments.external { Weights::External } else { Weights::fitting(&graph) };
    let written = file::write(&graph, &arguments.output, weights, arguments.seed)?;
    let seconds = started.elapsed().as_secs_f64();
    hermes::say!(
        "{}: {:.1} M parameters, {:.1} MB in {seconds:.1} s, {}",
        arguments.output.display(),
        written.parameters as f64 / 1e6,
        written.bytes as f64 / 1e6,
        match weights {
            Weights::Inline => "weights inline",
            Weights::External => "weights as external data",
        },
    );
    Ok(())
}

fn build(model: &Model, arguments: &Arguments) -> Result<Graph> {
    let mut dims = model.dims;
    dims.layers = arguments.layers.unwrap_or(dims.layers);
    let decoder = matches!(model.family, Family::Gpt2 { .. });
    anyhow::ensure!(
        decoder || !arguments.past,
        "{} has no past keys and values; leave out --past",
        model.name
    );
    Ok(match model.family {
        Family::Bert { vocabulary, positions } => bert::build(dims, vocabulary, positions),
        Family::Vit { image, patch, labels } => vit::build(dims, image, patch, labels),
        Family::Gpt2 { vocabulary, positions } => {
            let cache = if arguments.past { gpt2::Cache::Ports } else { gpt2::Cache::None };
            gpt2::build(dims, vocabulary, positions, cache)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_divide_widths() {
        for model in MODELS {
            assert_eq!(model.dims.head() * model.dims.heads, model.dims.width, "{}", model.name);
        }
    }
}
