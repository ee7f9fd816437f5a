//! `hermes-shard importance`: which tensors of a version matter to its answers.

use super::interrupt;
use super::report::Progress;
use super::store::StoreOption;
use anyhow::{Context, Result};
use clap::Args;
use hermes::shard::importance::{self, Measured};
use hermes::shard::{Player, ShardError, Streamed};
use hermes::store::manifest::Manifest;
use hermes::store::{self, Measure, Precision, Probe};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Loudest tensors that are listed one by one.
const LISTED: usize = 24;

/// Arguments of `hermes-shard importance`.
#[derive(Args)]
pub struct Options {
    /// Name of the model
    model: String,
    #[command(flatten)]
    store: StoreOption,
    /// Version; the current one by default
    #[arg(long)]
    version: Option<String>,
    /// Inputs to measure with, such as the model will be asked: texts, one a line (.txt), objects
    /// with "text" (.jsonl), or its inputs as NumPy saves them (.npz); made up by default
    #[arg(long, value_name = "FILE")]
    calibrate: Option<PathBuf>,
    /// Print what was measured before, and measure nothing
    #[arg(long, conflicts_with = "calibrate")]
    show: bool,
    /// Rank tensors by the way of the STI paper instead: all are in the least variant, one at a time
    /// is raised to the best, and what counts is how far answers agree then; printed and not kept
    #[arg(long, conflicts_with = "show")]
    by_accuracy: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> Result<ExitCode> {
    interrupt::begin()?;
    let dir = options.store.open(&options.model, options.version.as_deref())?;
    let player = Player::open(dir.clone())?;
    if options.show {
        let precision = dir.precision()?.filter(Precision::is_measured);
        let name = &dir.manifest.model;
        let precision = precision.with_context(|| format!("nothing was measured of {name} yet"))?;
        return report(&player, &precision, options.json);
    }
    if options.by_accuracy {
        return rank(&player, options);
    }
    let store = options.store.writable()?;
    let inputs = player.inputs(options.calibrate.as_deref())?;
    interrupt::writing();
    let progress = Progress::new(0, options.json);
    let measured = importance::measure(&player, &inputs, &progress);
    progress.finish();
    let Measured { precision, notes } = measured.map_err(told)?;
    notes.iter().filter(|_| !options.json).for_each(|note| hermes::tell!("{note}"));
    store::amend(&store, &dir, &precision)?;
    report(&player, &precision, options.json)
}

/// The tensors as the paper ranks them, the first first.
fn rank(player: &Player, options: &Options) -> Result<ExitCode> {
    let manifest = &player.dir().manifest;
    let inputs = player.inputs(options.calibrate.as_deref())?;
    let progress = Progress::new(0, options.json);
    let agreements = importance::by_accuracy(player, &inputs, &progress);
    progress.finish();
    let mut rows: Vec<(f64, &Streamed)> = agreements?.into_iter().zip(player.tensors()).collect();
    rows.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let variants = &manifest.variants;
    let (raised, others) = (&variants[0], &variants[variants.len() - 1]);
    if options.json {
        let tensors = rows.iter().map(|(agreement, streamed)| {
            json!({
                "name": manifest.weights[streamed.weight].name, "layout": streamed.layout,
                "node": streamed.node, "layer": manifest.layers[streamed.layer].name,
                "agreement": agreement,
            })
        });
        let tensors: Vec<_> = tensors.collect();
        let (model, source) = (&manifest.model, &inputs.source);
        let report = json!({
            "model": model, "version": manifest.version, "source": source, "raised": raised,
            "others": others, "tensors": tensors,
        });
        hermes::say!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    hermes::say!(
        "{}: agreement of answers with one tensor in {raised} and all others in {others}\n\n\
         agreement  tensor",
        manifest.model
    );
    for (agreement, streamed) in &rows {
        let layer = &manifest.layers[streamed.layer].name;
        hermes::say!("{agreement:9.6}  {layer}: {}", named(streamed, manifest));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a tensor is called: by the node that uses it, where there is one.
fn named<'a>(streamed: &'a Streamed, manifest: &'a Manifest) -> &'a str {
    match streamed.node.is_empty() {
        true => &manifest.weights[streamed.weight].name,
        false => &streamed.node,
    }
}

/// An interruption loses nothing here.
fn told(error: ShardError) -> anyhow::Error {
    match error {
        ShardError::Interrupted => anyhow::anyhow!(
            "interrupted; what was measured is kept\nthe same command goes on from there"
        ),
        error => error.into(),
    }
}

/// A tensor and how far answers are off with it alone in the probe.
struct Row<'a> {
    layer: &'a str,
    weight: &'a str,
    streamed: &'a Streamed,
    divergence: f64,
}

/// The loudest tensors first, by themselves, by layer and by kind.
fn report(player: &Player, precision: &Precision, json: bool) -> Result<ExitCode> {
    let manifest = &player.dir().manifest;
    let probe = precision.probe.as_ref().context("nothing was measured")?;
    let tensors = precision.tensors.iter().zip(player.tensors());
    let mut rows: Vec<Row> = tensors
        .map(|(measured, streamed)| Row {
            layer: &manifest.layers[streamed.layer].name,
            weight: &manifest.weights[streamed.weight].name,
            streamed,
            divergence: measured.divergence.unwrap_or(0.0),
        })
        .collect();
    if json {
        let tensors = rows.iter().map(|row| {
            json!({
                "name": row.weight, "layout": row.streamed.layout, "node": row.streamed.node,
                "layer": row.layer, "elements": row.streamed.rows * row.streamed.depth,
                "divergence": row.divergence,
            })
        });
        let tensors: Vec<_> = tensors.collect();
        let (model, version) = (&manifest.model, &manifest.version);
        let report =
            json!({ "model": model, "version": version, "probe": probe, "tensors": tensors });
        hermes::say!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    rows.sort_by(|a, b| b.divergence.total_cmp(&a.divergence));
    let all: f64 = rows.iter().map(|row| row.divergence).sum();
    hermes::say!("{}", told_probe(manifest.model.as_str(), probe, all));
    tell_sums("layer", &rows, |row| row.layer.to_owned());
    tell_sums("kind", &rows, |row| kind(&row.streamed.node));
    hermes::say!("\ndivergence    share  per million  tensor");
    for row in rows.iter().take(LISTED) {
        let Row { layer, streamed, divergence, .. } = row;
        let millions = (streamed.rows * streamed.depth) as f64 / 1e6;
        let (share, each) =
            (100.0 * divergence / all.max(f64::MIN_POSITIVE), divergence / millions);
        let name = named(streamed, manifest);
        hermes::say!("{divergence:10.6}  {share:5.1} %  {each:11.6}  {layer}: {name}");
    }
    if rows.len() > LISTED {
        hermes::say!("and {} more, which --json has", rows.len() - LISTED);
    }
    Ok(ExitCode::SUCCESS)
}

fn told_probe(model: &str, probe: &Probe, all: f64) -> String {
    let measure = match probe.measure {
        Measure::Cosine => "one less the cosine of answers",
        Measure::Kl => "divergence of the next token's probabilities",
    };
    let Probe { variant, inputs, source, .. } = probe;
    format!(
        "{model}: {measure} with one tensor in {variant}, {inputs} of {source}\n\
         all of them: {all:.6}"
    )
}

/// Sums over rows that have something in common, the largest first.
fn tell_sums(what: &str, rows: &[Row], key: impl Fn(&Row) -> String) {
    let mut sums: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    for row in rows {
        let (sum, elements) = sums.entry(key(row)).or_default();
        *sum += row.divergence;
        *elements += row.streamed.rows * row.streamed.depth;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|(_, (a, _)), (_, (b, _))| b.total_cmp(a));
    hermes::say!("\ndivergence  per million  {what}");
    for (name, (sum, elements)) in sums.iter().take(LISTED) {
        hermes::say!("{sum:10.6}  {:11.6}  {name}", sum / (*elements as f64 / 1e6));
    }
}

/// What a node of every layer is, by its name: `/encoder/layer.3/attention/self/query/MatMul` is
/// `attention/self/query`.
fn kind(node: &str) -> String {
    let is_number = |part: &&str| part.split('_').any(|word| word.parse::<u32>().is_ok());
    // The last part is the operator's, which exporters number too.
    let path = node.rsplit_once('/').map_or("", |(path, _)| path);
    let parts: Vec<&str> = path.split(['/', '.']).filter(|part| !part.is_empty()).collect();
    let start = parts.iter().rposition(is_number).map_or(0, |at| at + 1);
    match parts[start..].join("/") {
        name if name.is_empty() => node.to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_what_layers_have_in_common() {
        let check = |node: &str, expected: &str| assert_eq!(kind(node), expected);
        check("/encoder/layer.3/attention/self/query/MatMul", "attention/self/query");
        check("/h.11/mlp/c_fc/MatMul_1", "mlp/c_fc");
        check("/blocks/blocks.2/attn/qkv/MatMul", "attn/qkv");
        check("encoder.layer.5.attention.self.query/matmul", "attention/self/query");
        check("/pooler/dense/Gemm", "pooler/dense");
        check("/MatMul_7", "/MatMul_7");
        check("", "");
    }
}
