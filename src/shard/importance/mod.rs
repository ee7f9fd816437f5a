//! How much each tensor matters: how far answers are off with it alone at few bits.
//!
//! `judge` says how far that is, `accuracy` of any choice, `sweep` plays the passes, `unfinished`
//! keeps what an interruption would lose. The way of the paper that Hermes follows is here too, to be
//! compared with.

mod accuracy;
mod judge;
mod sweep;
mod unfinished;

pub use accuracy::Accuracy;
pub use judge::{Answer, Judge};

use super::error::{ShardError, ensure, unfit};
use super::inputs::{Inputs, digest};
use super::player::Player;
use super::watch::Watch;
use crate::store::manifest::{Checksum, Manifest};
use crate::store::{Calibration, Precision, Probe};
use crate::wire::Array;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use sweep::Sweep;
use unfinished::Unfinished;

/// The variant that importance is measured with: it is far enough off to be seen, and what it makes
/// of answers still goes by the squared error.
const PROBE: &str = "a3";

/// Most requests that are played, and fewest where there are as many.
const MOST_REQUESTS: usize = 64;
const FEWEST_REQUESTS: usize = 4;

/// Products of a pass over all requests, at most where the fewest take no more: 256 columns of a
/// model of 300 million weights, 64 sentences of one of 10 million.
const MOST_PRODUCTS: f64 = 80e9;

/// What was measured, and what was decided for it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// That of the version, with the divergence of each tensor.
    pub precision: Precision,
    /// In words, line by line.
    pub notes: Vec<String>,
}

/// Measures the importance of every tensor of a version. What an interruption leaves lies beside the
/// version's files, and is gone on with.
///
/// # Errors
/// A version without several precisions, or with those of another; inputs that do not fit it, or
/// whose answers say nothing; what cannot be read; [`ShardError::Interrupted`].
pub fn measure(
    player: &Player,
    inputs: &Inputs,
    watch: &dyn Watch,
) -> Result<Measured, ShardError> {
    let (dir, manifest) = (player.dir(), &player.dir().manifest);
    let mut precision = precision_of(player)?;
    let variant = probe_of(manifest)?;
    let errors = precision.tensors.iter().map(|tensor| tensor.errors.get(variant).copied());
    let errors: Option<Vec<f64>> = errors.collect();
    let errors = errors.ok_or_else(|| {
        unfit!("precision.json lacks the errors of variant {variant}\nbuild the version again")
    })?;
    inputs.check(&manifest.inputs)?;
    let judge = Judge::of(manifest, &player.table_rows())?;
    let best = player.best()?;
    let (unseen, seen) = unseen(inputs, precision.calibration.as_ref());
    let requests = chosen(player, unseen.as_ref().unwrap_or(inputs), watch)?;
    let count = requests.len();
    // What nothing is lost of in the probe is not played.
    let mut tensors: Vec<usize> = (0..errors.len()).filter(|t| errors[*t] > 0.0).collect();
    tensors.retain(|tensor| player.step_of(*tensor).is_some());
    tensors.sort_by_key(|tensor| player.step_of(*tensor));
    let played = Inputs { requests, ..inputs.clone() };
    let key = format!("{variant} {:016x} {:016x}", played.digest(), identity(manifest));
    let mut unfinished = Unfinished::open(dir, key);
    let mut notes = vec![format!("{count} of {}: {}", inputs.source, judge.told())];
    match (seen, &unseen) {
        (0, _) => {}
        (_, Some(_)) => notes.push(format!("left out are {seen} that the encoders learnt from")),
        (_, None) => notes.push(
            "the encoders learnt from all of them: more will be lost of other inputs".to_owned(),
        ),
    }
    match unfinished.measured().len() {
        0 => {}
        done => notes.push(format!("{done} measurements are there already")),
    }
    let sweep = Sweep {
        player,
        judge: &judge,
        requests: &played.requests,
        base: &best,
        variant,
        best: &best,
        compare: Judge::divergence,
        watch,
    };
    let off = sweep.run(&tensors, &mut unfinished)?;
    precision.tensors.iter_mut().for_each(|tensor| tensor.divergence = Some(0.0));
    for (tensor, off) in tensors.iter().zip(off) {
        precision.tensors[*tensor].divergence = Some(off.mean());
    }
    let probe = Probe {
        variant: variant.to_owned(),
        measure: judge.measure(),
        inputs: count as u64,
        source: inputs.source.clone(),
        together: BTreeMap::new(),
    };
    let together = together(&sweep, &precision, &probe)?;
    precision.probe = Some(Probe { together, ..probe });
    Ok(Measured { precision, notes })
}

/// Those of the inputs that encoders did not learn from, unless that is none; and how many they did.
fn unseen(inputs: &Inputs, calibration: Option<&Calibration>) -> (Option<Inputs>, usize) {
    let learnt: HashSet<u64> =
        calibration.iter().flat_map(|told| &told.learnt).map(|Checksum(digest)| *digest).collect();
    let is_new = |request: &&Vec<Array>| !learnt.contains(&digest(*request));
    let requests: Vec<_> = inputs.requests.iter().filter(is_new).cloned().collect();
    let seen = inputs.requests.len() - requests.len();
    ((!requests.is_empty()).then(|| Inputs { requests, ..inputs.clone() }), seen)
}

/// By variant, how far answers are off with all tensors in it, for each unit of what the tensors alone
/// come to: divergence goes by the squared error, and adds up, but nearly.
fn together(
    sweep: &Sweep,
    precision: &Precision,
    probe: &Probe,
) -> Result<BTreeMap<String, f64>, ShardError> {
    let mut sums: Vec<(&str, f64)> = vec![];
    for variant in &sweep.player.dir().manifest.variants {
        let alone = precision.tensors.iter().map(|t| t.divergence_alone(variant, probe));
        if let Some(sum) = alone.sum::<Option<f64>>().filter(|sum| *sum > 0.0) {
            sums.push((variant, sum));
        }
    }
    let variants: Vec<&str> = sums.iter().map(|(variant, _)| *variant).collect();
    let offs = sweep.together(&variants)?;
    let factors = sums.iter().zip(offs).map(|((variant, sum), off)| (*variant, off.mean() / sum));
    let factors = factors.filter(|(_, factor)| factor.is_finite() && *factor > 0.0);
    Ok(factors.map(|(variant, factor)| (variant.to_owned(), factor)).collect())
}

/// The importance of each tensor by the way of STI (Guo et al., ASPLOS 2023): all are in the least
/// variant, one at a time is raised to the best, and what counts is how far the answers then agree
/// with the best ones; in the order of a choice.
///
/// # Errors
/// As [`measure`].
pub fn by_accuracy(
    player: &Player,
    inputs: &Inputs,
    watch: &dyn Watch,
) -> Result<Vec<f64>, ShardError> {
    let manifest = &player.dir().manifest;
    probe_of(manifest)?;
    inputs.check(&manifest.inputs)?;
    let judge = Judge::of(manifest, &player.table_rows())?;
    let least = manifest.variants.last().map_or("", String::as_str);
    let (best, count) = (player.best()?, player.tensors().len());
    let mut tensors: Vec<usize> = (0..count).collect();
    tensors.sort_by_key(|tensor| player.step_of(*tensor));
    let sweep = Sweep {
        player,
        judge: &judge,
        requests: &chosen(player, inputs, watch)?,
        base: &player.choose(&vec![least; count])?,
        variant: &manifest.variants[0],
        best: &best,
        compare: Judge::agreement,
        watch,
    };
    let agreements = sweep.run(&tensors, &mut Unfinished::nowhere())?;
    let mut all = vec![0.0; count];
    for (tensor, agreement) in tensors.into_iter().zip(agreements) {
        all[tensor] = agreement.mean();
    }
    Ok(all)
}

/// What the version says of its precisions, whose tensors are those that are played.
fn precision_of(player: &Player) -> Result<Precision, ShardError> {
    let (dir, manifest) = (player.dir(), &player.dir().manifest);
    let precision = dir.precision()?.ok_or_else(|| {
        unfit!(
            "version {} of {} does not say what its weights lose\n\
             build it again, with several variants",
            manifest.version,
            manifest.model
        )
    })?;
    let said = precision.tensors.iter().map(|t| (t.weight.as_str(), t.layout, t.layer));
    let played = player.tensors().iter();
    let played = played.map(|t| (manifest.weights[t.weight].name.as_str(), t.layout, t.layer));
    ensure!(
        said.eq(played),
        "precision.json is of other layer files than version {} of {} has\nbuild it again",
        manifest.version,
        manifest.model
    );
    Ok(precision)
}

/// The variant that tensors are lowered to, one at a time.
fn probe_of(manifest: &Manifest) -> Result<&str, ShardError> {
    let variants = &manifest.variants;
    ensure!(
        variants.len() > 1,
        "version {} of {} has variant {} only, which nothing can be held against\n\
         build it with several: --variants auto",
        manifest.version,
        manifest.model,
        variants[0]
    );
    let probe = variants[1..].iter().find(|variant| *variant == PROBE);
    Ok(probe.unwrap_or(&variants[variants.len() - 1]))
}

/// Requests that are played, spread over all: as many as take a few minutes.
fn chosen(
    player: &Player,
    inputs: &Inputs,
    watch: &dyn Watch,
) -> Result<Vec<Vec<Array>>, ShardError> {
    let lengths = inputs.lengths(&player.dir().manifest.inputs);
    let of_first = products(player, &inputs.requests[0], watch)?;
    let each = of_first / lengths[0] as f64;
    let all: f64 = lengths.iter().map(|length| *length as f64 * each).sum();
    let share = (MOST_PRODUCTS / all.max(1.0)).min(1.0);
    let count = inputs.requests.len();
    let wanted = ((count as f64 * share) as usize).clamp(FEWEST_REQUESTS, MOST_REQUESTS).min(count);
    Ok((0..wanted).map(|index| inputs.requests[index * count / wanted].clone()).collect())
}

/// Products of a weight and a value that a pass over one request has.
fn products(player: &Player, request: &[Array], watch: &dyn Watch) -> Result<f64, ShardError> {
    let columns: Arc<[AtomicU64]> = player.tensors().iter().map(|_| AtomicU64::new(0)).collect();
    let seen = Arc::clone(&columns);
    let observer = Arc::new(move |tensor: usize, values: &[f32], depth: usize| {
        seen[tensor].fetch_add((values.len() / depth.max(1)) as u64, Ordering::Relaxed);
    });
    player.observe(&player.best()?, &[request.to_vec()], observer, watch)?;
    let tensors = player.tensors().iter().zip(&*columns);
    Ok(tensors
        .map(|(t, columns)| (t.rows * t.depth * columns.load(Ordering::Relaxed)) as f64)
        .sum())
}

/// What tells a version's files from others.
fn identity(manifest: &Manifest) -> u64 {
    let files = manifest.layers.iter().flat_map(|layer| &layer.files);
    let checksums = files.map(|(_, file)| file.index_checksum).chain([manifest.graph.checksum]);
    let bytes: Vec<u8> = checksums.flat_map(|checksum| checksum.0.to_le_bytes()).collect();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
