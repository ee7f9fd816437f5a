//! `hermes-shard build`: from an ONNX file or a checkpoint to an installed version.

use super::interrupt;
use super::rehearsal;
use super::report::{self, Progress};
use super::store::StoreOption;
use anyhow::{Result, bail};
use clap::Args;
use hermes::graph::skim::THRESHOLD_BYTES;
use hermes::shard::importance::{self, Measured};
use hermes::shard::{LADDER, Named, Order, Player, ShardError, Source};
use hermes::store::{self, ModelDir};
use hermes::values::size;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `hermes-shard build`.
#[derive(Args)]
pub struct Options {
    /// The ONNX model, a GGUF file, or the folder of a repository with an ONNX file or safetensors;
    /// external data is looked for beside the model, the tokenizer and the configs there or above
    /// `onnx`
    model: PathBuf,
    #[command(flatten)]
    store: StoreOption,
    /// Name of the model; by default the file's, or its repository's where the file is `model.onnx`
    #[arg(long)]
    name: Option<String>,
    /// Name of this version
    #[arg(long, default_value = "1")]
    version: String,
    /// Precisions to store, best first: f32 (the source's own), f16, q8, a6, a5, a4, a3, a2; auto for
    /// those that are worth their bytes, with the importance of each tensor
    #[arg(long, value_delimiter = ',', default_value = "f32")]
    variants: Vec<String>,
    /// Inputs that tell the encoders of a6 to a2 what weights are used for: texts, one a line (.jsonl:
    /// as "text"), or arrays by the inputs' names (.npz, .npy); by default they are made up
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Size from which a tensor is streamed, such as 4096 or 64K; smaller ones stay in the graph, as
    /// axes and shapes must
    #[arg(long, value_name = "SIZE", default_value_t = THRESHOLD_BYTES, value_parser = threshold)]
    threshold: u64,
    /// tokenizer.json of a text model; by default the one beside the model
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Output that is the embedding of a text, OUTPUT, or OUTPUT:POOLING with how its tokens are
    /// pooled; by default as the files beside the model say
    #[arg(long)]
    embedding: Option<String>,
    /// How the vectors of a text's tokens become one: mean, cls, max, lasttoken, mean_sqrt_len or
    /// weightedmean; by default as 1_Pooling/config.json says
    #[arg(long)]
    pooling: Option<Named>,
    /// Size of an open dimension of the inputs, as NAME=SIZE; may be given several times
    #[arg(long = "dim", value_parser = parse_dim)]
    dims: Vec<(String, u64)>,
    /// Dimension of the inputs along which a request brings rows that are computed each by itself,
    /// or none; by default one that is called so and proves to be one
    #[arg(long, value_name = "NAME|none")]
    batch_axis: Option<String>,
    /// Compute nothing with made-up inputs: for models that only real inputs suit
    #[arg(long)]
    no_trial: bool,
    /// Replace the version where it is there already
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Options {
    /// Whether the precisions are chosen here.
    fn is_auto(&self) -> bool {
        self.variants == ["auto"]
    }

    /// What they ask for.
    pub fn order(&self) -> Order {
        Order {
            model: self.model.clone(),
            store: self.store.path(),
            name: self.name.clone(),
            version: self.version.clone(),
            variants: match self.is_auto() {
                true => LADDER.map(str::to_owned).to_vec(),
                false => self.variants.clone(),
            },
            calibrate: self.calibrate.clone(),
            threshold_bytes: self.threshold,
            tokenizer: self.tokenizer.clone(),
            embedding: self.embedding.clone(),
            pooling: self.pooling.map(|Named(pooling)| pooling),
            dims: self.dims.clone(),
            batch_axis: self.batch_axis.clone(),
            trial: !self.no_trial,
            force: self.force,
        }
    }
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    interrupt::begin()?;
    let order = options.order();
    order.check()?;
    options.store.writable()?;
    let draft = rehearsal::of_build()?;
    draft.notes.iter().filter(|_| !options.json).for_each(|note| hermes::tell!("{note}"));
    let source = Source::read(&order)?;
    if options.is_auto() && !options.json {
        report::to_be_built(&draft.variant_bytes(&source));
    }
    interrupt::writing();
    let progress = Progress::new(0, options.json);
    let mut installed = draft.write(&order, source, &progress)?;
    progress.finish();
    if options.is_auto() {
        installed = weighed(&order, installed, options.json)?;
    }
    report::built(&installed, started.elapsed(), options.json)
}

/// A version that is installed, with the importance of its tensors where that can be measured.
fn weighed(order: &Order, installed: ModelDir, json: bool) -> Result<ModelDir> {
    const LATER: &str = "hermes-shard importance measures it";
    let progress = Progress::new(0, json);
    let measured = Player::open(installed.clone()).and_then(|player| {
        let inputs = player.inputs(order.calibrate.as_deref())?;
        importance::measure(&player, &inputs, &progress)
    });
    progress.finish();
    match measured {
        Ok(Measured { precision, notes }) => {
            notes.iter().filter(|_| !json).for_each(|note| hermes::tell!("{note}"));
            Ok(store::amend(&order.store, &installed, &precision)?)
        }
        Err(ShardError::Interrupted) => {
            bail!("interrupted: the version is installed, but not what matters in it\n{LATER}")
        }
        Err(error) => {
            hermes::tell!("what matters in it is not known: {error}\n{LATER}");
            Ok(installed)
        }
    }
}

/// Below the least, axes and shapes would leave the graph, which cannot be run without them.
fn threshold(text: &str) -> Result<u64, String> {
    const LEAST_BYTES: u64 = 1024;
    match size::parse(text).map_err(|error| error.to_string())? {
        bytes if bytes >= LEAST_BYTES => Ok(bytes),
        bytes => {
            Err(format!("{bytes} bytes are less than {LEAST_BYTES}, the least that is allowed"))
        }
    }
}

fn parse_dim(text: &str) -> Result<(String, u64), String> {
    let parsed = text.split_once('=').and_then(|(name, size)| Some((name, size.parse().ok()?)));
    match parsed {
        Some((name, size)) if !name.is_empty() && size > 0 => Ok((name.to_string(), size)),
        _ => Err("expected NAME=SIZE, such as height=224".to_string()),
    }
}
