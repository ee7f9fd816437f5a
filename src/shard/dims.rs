//! What becomes of the open dimensions of a model's inputs: a batch is fixed at one row, what the
//! graph leaves no choice about as it has to be, and the others stay open. Each choice is tried.

use super::error::{ShardError, ensure, unfit};
use super::order::Order;
use super::trial::{Doubt, Lengths, Trials};
use super::uneven::ROWS;
use crate::graph::dims::{self, DimSize, OpenShape};
use crate::graph::skim::Skim;
use crate::graph::{self, GraphError, Imported};
use crate::store::manifest::{Batch, Dim, MAX_ROWS, Port, Weight};
use crate::sys::{child, heap};
use std::collections::{BTreeMap, BTreeSet};

/// A model whose dimensions are as they will be served.
pub struct Settled {
    pub skeleton: Vec<u8>,
    pub imported: Imported,
    /// What every open dimension became that is none any more.
    pub sizes: Sizes,
    /// What importing took of the heap; none where nobody counts it.
    pub loading_bytes: Option<u64>,
    /// What the graph holds of it, in whole pages.
    pub graph_bytes: Option<u64>,
    pub batch: Option<Batch>,
    /// What was decided, to be told.
    pub notes: Vec<String>,
}

/// Sizes by dimension.
pub type Sizes = BTreeMap<String, DimSize>;

/// More open dimensions than any model has.
const ROUNDS: usize = 64;

/// Settles the dimensions of `skim`, with what is to be told of it.
pub fn settle(skim: &Skim, weights: &[Weight], order: &Order) -> Result<Settled, ShardError> {
    let open = dims::open_shapes(&skim.skeleton).map_err(ShardError::Unfit)?;
    let names: BTreeSet<String> =
        open.iter().flat_map(|s| s.dims.iter().flatten()).cloned().collect();
    let mut sizes = Sizes::new();
    for (given, size) in &order.dims {
        let name = known(given, &names)?;
        ensure!(
            sizes.insert(name, DimSize::Is(*size)).is_none(),
            "dimension {given} is given twice"
        );
    }
    let trials = Trials::new(skim, order.trial);
    let settling = Settling { skim, weights, open, names, trials };
    settling.choose(&sizes, order.batch_axis.as_deref())
}

/// The dimension that is called `given`, in the model or here.
fn known(given: &str, names: &BTreeSet<String>) -> Result<String, ShardError> {
    let known = [given.to_string(), dims::identifier(given)];
    if let Some(name) = known.into_iter().find(|name| names.contains(name)) {
        return Ok(name);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let others = match names.is_empty() {
        true => "all are fixed".into(),
        false => format!("there is {}", names.join(", ")),
    };
    Err(unfit!("no input has an open dimension \"{given}\"\n{others}"))
}

struct Settling<'a> {
    skim: &'a Skim,
    weights: &'a [Weight],
    open: Vec<OpenShape>,
    names: BTreeSet<String>,
    trials: Trials,
}

/// A choice that can be run.
struct Attempt {
    settled: Settled,
    lengths: Lengths,
}

impl Settling<'_> {
    /// The first choice that can be run, and whose batch is one.
    fn choose(&self, given: &Sizes, batch_axis: Option<&str>) -> Result<Settled, ShardError> {
        let mut doubtful = None;
        let mut refused = None;
        let mut untold = None;
        for batch in self.choices(given, batch_axis)? {
            let mut sizes = given.clone();
            sizes.extend(batch.iter().map(|name| (name.clone(), DimSize::Is(1))));
            let mut attempt = match self.attempt(sizes) {
                Ok(attempt) => attempt,
                Err(error) => {
                    refused = refused.or(Some(error));
                    continue;
                }
            };
            if batch.is_empty() {
                attempt.settled.notes.extend(untold);
                return Ok(attempt.settled);
            }
            let found = match self.batch_of(&attempt, &batch) {
                Ok((found, None)) => Ok(found),
                // Whoever names a batch knows what nobody could try.
                Ok((found, Some(why))) if batch_axis.is_some() => {
                    attempt.settled.notes.push(why);
                    Ok(found)
                }
                Ok((_, Some(why))) => {
                    untold = untold.or(Some(format!(
                        "dimension {} is no batch: {why} (--batch-axis NAME takes one for it all \
                         the same)",
                        list(&batch)
                    )));
                    Err(format!("{why}, which --batch-axis NAME takes for it all the same"))
                }
                Err(why) => Err(why),
            };
            match found {
                Ok(found) => {
                    attempt.settled.notes.push(format!(
                        "dimension {} is taken for the batch: a request may have up to {MAX_ROWS} \
                         rows, each computed by itself (--batch-axis none leaves it open)",
                        found.name
                    ));
                    attempt.settled.batch = Some(found);
                    return Ok(attempt.settled);
                }
                Err(why) if batch_axis.is_some() => {
                    return Err(unfit!(
                        "dimension {} is no batch: {why}\ngive another --batch-axis, or none",
                        list(&batch)
                    ));
                }
                Err(why) => {
                    attempt.settled.notes.push(format!(
                        "dimension {} is fixed at 1, and is no batch: {why} \
                         (--dim NAME=SIZE fixes another size)",
                        list(&batch)
                    ));
                    doubtful = doubtful.or(Some(attempt));
                }
            }
        }
        match (doubtful, refused) {
            (Some(attempt), _) => Ok(attempt.settled),
            (None, Some(error)) => Err(error),
            (None, None) => Err(unfit!("nothing can be made of the open dimensions")),
        }
    }

    /// Which dimensions may be the batch, most likely first: what is called so; none; what is the
    /// first of its inputs, where it cannot be left open.
    fn choices(
        &self,
        given: &Sizes,
        batch_axis: Option<&str>,
    ) -> Result<Vec<BTreeSet<String>>, ShardError> {
        let free = |names: BTreeSet<String>| -> BTreeSet<String> {
            names.into_iter().filter(|name| !given.contains_key(name)).collect()
        };
        match batch_axis {
            Some("none") => Ok(vec![BTreeSet::new()]),
            Some(name) => {
                let name = known(name, &self.names)?;
                ensure!(!given.contains_key(&name), "dimension {name} is given a size by --dim");
                let twice = self.open.iter().find(|shape| shape.repeated().any(|n| *n == name));
                if let Some(OpenShape { input, .. }) = twice {
                    return Err(unfit!(
                        "dimension {name} is no batch: input \"{input}\" has it twice"
                    ));
                }
                Ok(vec![[name].into()])
            }
            None => {
                let named = free(dims::named_batch(&self.open));
                let mut leading = free(dims::leading(&self.open));
                leading.extend(named.clone());
                let mut choices = vec![named, BTreeSet::new(), leading];
                if choices[0].is_empty() {
                    choices.remove(0);
                }
                choices.dedup();
                Ok(choices)
            }
        }
    }

    /// Imports and tries the graph, whose open dimensions become what it needs them to be.
    fn attempt(&self, mut sizes: Sizes) -> Result<Attempt, ShardError> {
        let mut notes = vec![];
        for _ in 0..ROUNDS {
            let skeleton = dims::settle(&self.skim.skeleton, &sizes).map_err(ShardError::Unfit)?;
            child::begin_step();
            let (imported, took) = heap::measured(|| graph::import(&skeleton, self.weights));
            let imported = match imported {
                Ok(imported) => imported,
                Err(error) => {
                    notes.push(self.give_way(&mut sizes, error)?);
                    continue;
                }
            };
            let counted = |bytes| (heap::live_bytes() > 0).then_some(bytes);
            let loading_bytes = counted(took.heap.peak_bytes);
            let graph_bytes = counted(took.resident_bytes());
            let lengths = self.trials.run(&imported, self.weights, &mut notes)?;
            let settled = Settled {
                skeleton,
                imported,
                sizes,
                loading_bytes,
                graph_bytes,
                batch: None,
                notes,
            };
            return Ok(Attempt { settled, lengths });
        }
        Err(unfit!("the inputs have too many open dimensions: fix some with --dim NAME=SIZE"))
    }

    /// Makes of a dimension what `error` says it has to be, and tells it, or gives the error back.
    fn give_way(&self, sizes: &mut Sizes, error: GraphError) -> Result<String, ShardError> {
        let is_free =
            |name: &String, sizes: &Sizes| self.names.contains(name) && !sizes.contains_key(name);
        match &error {
            GraphError::Pinned { symbol, size } if is_free(symbol, sizes) => {
                sizes.insert(symbol.clone(), DimSize::Is(*size));
                Ok(format!("dimension {symbol} can only be {size}: it is fixed"))
            }
            GraphError::Same { symbol, other }
                if is_free(symbol, sizes) && is_free(other, sizes) =>
            {
                sizes.insert(other.clone(), DimSize::As(symbol.clone()));
                Ok(format!("dimension {other} can only be the same as {symbol}"))
            }
            _ => Err(error.into()),
        }
    }

    /// The batch of a graph in which `names` are 1, where each row comes to what it comes to by
    /// itself, and why where nobody could try that.
    fn batch_of(
        &self,
        attempt: &Attempt,
        names: &BTreeSet<String>,
    ) -> Result<(Batch, Option<String>), String> {
        let Attempt { settled: Settled { imported, sizes, .. }, lengths } = attempt;
        let mut doubled = sizes.clone();
        doubled.extend(names.iter().map(|name| (name.clone(), DimSize::Is(ROWS))));
        let skeleton = dims::settle(&self.skim.skeleton, &doubled)?;
        child::begin_step();
        let first_line =
            |error: GraphError| error.to_string().lines().next().unwrap_or_default().to_string();
        let several = graph::import(&skeleton, self.weights).map_err(first_line)?;
        let axis =
            |port: &Port| dims::axis_of(&self.open, &port.name, names).map(|axis| axis as u32);
        let outputs = imported.outputs.iter().zip(&several.outputs);
        let batch = Batch {
            name: match names.first() {
                Some(name) if names.len() == 1 => name.clone(),
                _ => "batch".to_string(),
            },
            inputs: imported.inputs.iter().map(axis).collect(),
            outputs: outputs
                .map(|(one, several)| grown_axis(one, several))
                .collect::<Result<_, _>>()?,
        };
        match self.trials.compare(imported, &several, self.weights, &batch, lengths) {
            Ok(()) => Ok((batch, None)),
            Err(Doubt::Untried(why)) => Ok((batch, Some(why))),
            Err(Doubt::Depends(why)) => Err(why),
        }
    }
}

/// The one axis that is 1 in an output of one row, and longer in the same of several.
fn grown_axis(one: &Port, several: &Port) -> Result<u32, String> {
    let dims = one.shape.iter().zip(&several.shape);
    let differ: Vec<usize> =
        dims.enumerate().filter(|(_, (a, b))| a != b).map(|(axis, _)| axis).collect();
    match differ[..] {
        [axis] if one.shape[axis] == Dim::Fixed(1) && several.shape[axis] == Dim::Fixed(ROWS) => {
            Ok(axis as u32)
        }
        _ => Err(format!("output \"{}\" has no axis of it", one.name)),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
