//! What makes a model one that generates text: token ids go in and logits come out, and beside them
//! keys and values of what was read so far, which come out longer than they went in. Pure.

use super::Dtype;
use super::field::{Dim, Port};
use thiserror::Error;

/// Inputs and outputs of a model that generates text, by their indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// Token ids, `[1, new]`.
    pub ids: usize,
    /// What may be looked at, `[1, past + new]`: all of it.
    pub mask: Option<usize>,
    /// Places of the new tokens, `[1, new]` or `[new]`.
    pub positions: Option<usize>,
    /// Of how many positions logits are wanted: one.
    pub kept: Option<usize>,
    /// Output `[1, any, vocabulary]`, of which the last row counts.
    pub logits: usize,
    pub vocabulary: usize,
    /// Each layer's keys and values.
    pub caches: Vec<Cache>,
    /// Whether it reads one token at a time.
    pub is_single: bool,
    ranks: Vec<usize>,
}

/// Keys or values of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The input that takes what is past.
    pub past: usize,
    /// The output that gives the same and what is new.
    pub present: usize,
    pub dtype: Dtype,
    /// With 0 where the tokens are.
    pub shape: Vec<usize>,
    /// The axis of the tokens.
    pub axis: usize,
}

/// Why a model generates no text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct NoDecoder(String);

/// Limit of sizes that are reckoned with.
const MOST_SIZE: u64 = 1 << 24;

impl Decoder {
    /// Recognizes a decoder by its inputs and outputs, as its graph has them: by names, and where
    /// exporters differ in these by shapes and order.
    ///
    /// # Errors
    /// What is missing, or is there and not known.
    pub fn of(inputs: &[Port], outputs: &[Port]) -> Result<Decoder, NoDecoder> {
        let named = |part: &str| {
            inputs.iter().position(|port| is_integer(port.dtype) && port.name.contains(part))
        };
        let positions = named("position");
        let mask = inputs.iter().position(|port| {
            port.name.contains("mask") && (is_integer(port.dtype) || port.dtype == Dtype::Bool)
        });
        let kept = named("logits_to_keep");
        let others = [positions, mask, kept];
        let is_left = |index: &usize| !others.contains(&Some(*index));
        let integers: Vec<usize> = (0..inputs.len())
            .filter(|index| is_integer(inputs[*index].dtype))
            .filter(is_left)
            .collect();
        let ids = match (named("input_ids"), &integers[..]) {
            (Some(named), _) => named,
            (None, [only]) => *only,
            _ => return no("it has no input input_ids"),
        };
        let pasts: Vec<usize> =
            (0..inputs.len()).filter(|index| is_cache(&inputs[*index])).collect();
        if pasts.is_empty() {
            return no("it has no inputs for past keys and values");
        }
        let known = |index: &usize| *index == ids || !is_left(index) || pasts.contains(index);
        if let Some(other) = (0..inputs.len()).find(|index| !known(index)) {
            return no(format!("its input {} is not known of language models", inputs[other].name));
        }
        let is_single = match &inputs[ids].shape[..] {
            [Dim::Fixed(1), Dim::Fixed(1)] => true,
            [Dim::Fixed(1), Dim::Symbol(_)] => false,
            _ => return no(format!("its input {} is not [1, tokens]", inputs[ids].name)),
        };
        check_ranks(inputs, positions, &[1, 2])?;
        check_ranks(inputs, mask, &[2])?;
        check_ranks(inputs, kept, &[0, 1])?;
        let presents: Vec<usize> =
            (0..outputs.len()).filter(|index| is_cache(&outputs[*index])).collect();
        let caches = pair(inputs, outputs, &pasts, &presents)?;
        let is_free = |index: &usize| !presents.contains(index);
        let (logits, vocabulary) = logits_of(outputs, &is_free)?;
        let ranks = inputs.iter().map(|port| port.shape.len()).collect();
        Ok(Decoder { ids, mask, positions, kept, logits, vocabulary, caches, is_single, ranks })
    }

    /// The shapes of all inputs, where so many tokens are past and so many are new.
    pub fn shapes(&self, past: usize, new: usize) -> Vec<Vec<usize>> {
        let mut shapes: Vec<Vec<usize>> = self.ranks.iter().map(|rank| vec![1; *rank]).collect();
        let mut last = |input: usize, size: usize| {
            if let Some(axis) = shapes[input].last_mut() {
                *axis = size;
            }
        };
        last(self.ids, new);
        self.positions.into_iter().for_each(|input| last(input, new));
        self.mask.into_iter().for_each(|input| last(input, past + new));
        for cache in &self.caches {
            shapes[cache.past] = cache.shape_of(past);
        }
        shapes
    }

    /// Bytes that keys and values of one token take in all layers.
    pub fn token_bytes(&self) -> u64 {
        self.caches.iter().map(|cache| cache.bytes_of(1)).sum()
    }
}

impl Cache {
    /// Its shape with so many tokens.
    pub fn shape_of(&self, tokens: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        shape[self.axis] = tokens;
        shape
    }

    /// Bytes of so many tokens' values.
    pub fn bytes_of(&self, tokens: usize) -> u64 {
        let size = self.dtype.size() as u64;
        self.shape_of(tokens).iter().fold(size, |bytes, size| bytes.saturating_mul(*size as u64))
    }
}

fn no<T>(why: impl Into<String>) -> Result<T, NoDecoder> {
    Err(NoDecoder(why.into()))
}

fn is_integer(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Int64 | Dtype::Int32)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Fp32 | Dtype::Fp16)
}

fn check_ranks(inputs: &[Port], input: Option<usize>, ranks: &[usize]) -> Result<(), NoDecoder> {
    match input.map(|index| &inputs[index]) {
        Some(port) if !ranks.contains(&port.shape.len()) => {
            let (name, rank) = (&port.name, port.shape.len());
            no(format!("its input {name} has {rank} axes"))
        }
        _ => Ok(()),
    }
}

/// Whether a port has the shape of keys or values: floats, `[1, heads, tokens, width]` in any order,
/// of which the tokens alone are open.
fn is_cache(port: &Port) -> bool {
    let open = port.shape.iter().filter(|dim| matches!(dim, Dim::Symbol(_))).count();
    let in_limits = |dim: &Dim| !matches!(dim, Dim::Fixed(size) if *size > MOST_SIZE);
    is_float(port.dtype)
        && port.shape.len() == 4
        && open == 1
        && port.shape[0] == Dim::Fixed(1)
        && port.shape.iter().all(in_limits)
}

/// Which layer's keys or values a name tells of: the last number in it, and whether they are values.
fn place(name: &str) -> Option<(u64, bool)> {
    let digits = |c: char| !c.is_ascii_digit();
    let layer = name.rsplit(digits).find(|part| !part.is_empty())?.parse().ok()?;
    let name = name.replace("key_values", "");
    match (name.contains("key"), name.contains("value")) {
        (true, false) => Some((layer, false)),
        (false, true) => Some((layer, true)),
        _ => None,
    }
}

/// Pairs pasts and presents, by names where these tell, by order otherwise.
fn pair(
    inputs: &[Port],
    outputs: &[Port],
    pasts: &[usize],
    presents: &[usize],
) -> Result<Vec<Cache>, NoDecoder> {
    if pasts.len() != presents.len() {
        let (given, answered) = (pasts.len(), presents.len());
        return no(format!("it takes {given} pasts and gives {answered} presents"));
    }
    let places: Option<Vec<_>> =
        presents.iter().map(|index| place(&outputs[*index].name)).collect();
    let by_name = |past: usize| {
        let wanted = place(&inputs[past].name)?;
        let found = places.as_ref()?.iter().position(|place| *place == wanted)?;
        Some(presents[found])
    };
    let named: Option<Vec<usize>> = pasts.iter().map(|past| by_name(*past)).collect();
    // Two of one name would be one and the same.
    let is_unique = |named: &Vec<usize>| {
        let mut sorted = named.clone();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.len() == named.len()
    };
    let paired = named.filter(is_unique).unwrap_or_else(|| presents.to_vec());
    let cache = |(past, present): (&usize, usize)| {
        let (given, answered) = (&inputs[*past], &outputs[present]);
        let mut shape = vec![];
        let mut axis = 0;
        for (index, dims) in given.shape.iter().zip(&answered.shape).enumerate() {
            match dims {
                (Dim::Fixed(size), Dim::Fixed(other)) if size == other => {
                    shape.push(usize::try_from(*size).unwrap_or(usize::MAX));
                }
                (Dim::Symbol(_), Dim::Symbol(_)) => {
                    axis = index;
                    shape.push(0);
                }
                _ => {
                    let (given, answered) = (&given.name, &answered.name);
                    return no(format!("its output {answered} has not the shape of {given}"));
                }
            }
        }
        if given.dtype != answered.dtype {
            let (name, other) = (&answered.name, &given.name);
            return no(format!("its output {name} is {}, {other} {}", answered.dtype, given.dtype));
        }
        Ok(Cache { past: *past, present, dtype: given.dtype, shape, axis })
    };
    pasts.iter().zip(paired).map(cache).collect()
}

/// The output with logits, and how many there are of a position.
fn logits_of(
    outputs: &[Port],
    is_free: &dyn Fn(&usize) -> bool,
) -> Result<(usize, usize), NoDecoder> {
    let is_logits = |index: &usize| {
        let port = &outputs[*index];
        is_free(index) && is_float(port.dtype) && port.shape.len() == 3
    };
    let candidates: Vec<usize> = (0..outputs.len()).filter(is_logits).collect();
    let named = candidates.iter().find(|index| outputs[**index].name == "logits");
    let logits = match (named, &candidates[..]) {
        (Some(named), _) => *named,
        (None, [only]) => *only,
        _ => return no("it has no output logits of three axes"),
    };
    match outputs[logits].shape[..] {
        [Dim::Fixed(1), _, Dim::Fixed(vocabulary)] if (1..=MOST_SIZE).contains(&vocabulary) => {
            Ok((logits, usize::try_from(vocabulary).unwrap_or(usize::MAX)))
        }
        _ => no(format!("its output {} is not [1, tokens, vocabulary]", outputs[logits].name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, dtype: Dtype, shape: &[&str]) -> Port {
        let dim = |text: &&str| match text.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Symbol((*text).to_owned()),
        };
        Port { name: name.to_owned(), dtype, shape: shape.iter().map(dim).collect() }
    }

    /// A decoder of two layers whose pasts and presents have these names.
    fn ports(pasts: [&str; 4], presents: [&str; 4]) -> (Vec<Port>, Vec<Port>) {
        let mut inputs = vec![port("input_ids", Dtype::Int64, &["1", "S"])];
        let mut outputs = vec![port("logits", Dtype::Fp32, &["1", "S", "50"])];
        let cache = |name: &str, tokens| port(name, Dtype::Fp32, &["1", "3", tokens, "8"]);
        inputs.extend(pasts.map(|name| cache(name, "P")));
        outputs.extend(presents.map(|name| cache(name, "P+S")));
        inputs.push(port("attention_mask", Dtype::Int64, &["1", "P+S"]));
        inputs.push(port("position_ids", Dtype::Int64, &["1", "S"]));
        (inputs, outputs)
    }

    const OPTIMUM: [&str; 4] = [
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ];
    const PRESENT: [&str; 4] =
        ["present.0.key", "present.0.value", "present.1.key", "present.1.value"];

    #[test]
    fn decoders_are_recognized_whatever_exporters_call_their_ports() {
        let check = |pasts, presents, expected: [usize; 4]| {
            let (inputs, outputs) = ports(pasts, presents);
            let decoder = Decoder::of(&inputs, &outputs).unwrap();
            let found: Vec<usize> = decoder.caches.iter().map(|cache| cache.present).collect();
            assert_eq!(found, expected, "{presents:?}");
            assert_eq!((decoder.ids, decoder.mask, decoder.positions), (0, Some(5), Some(6)));
            assert_eq!((decoder.logits, decoder.vocabulary, decoder.is_single), (0, 50, false));
            assert_eq!(decoder.token_bytes(), 4 * 3 * 8 * 4);
        };
        check(OPTIMUM, PRESENT, [1, 2, 3, 4]);
        let dynamo = [
            "past_key_values_key_cache_0",
            "past_key_values_key_cache_1",
            "past_key_values_value_cache_0",
            "past_key_values_value_cache_1",
        ];
        check(dynamo, PRESENT, [1, 3, 2, 4]);
        let presents = [
            "present_key_values.0.value",
            "present_key_values.1.value",
            "present_key_values.0.key",
            "present_key_values.1.key",
        ];
        check(OPTIMUM, presents, [3, 1, 4, 2]);
        // Names that tell nothing stand in their order.
        check(["a", "b", "c", "d"], ["e", "f", "g", "h"], [1, 2, 3, 4]);
        check(OPTIMUM, ["0.key", "0.key", "1.key", "1.value"], [1, 2, 3, 4]);
    }

    #[test]
    fn inputs_have_the_shapes_of_past_and_new() {
        let (inputs, outputs) = ports(OPTIMUM, PRESENT);
        let decoder = Decoder::of(&inputs, &outputs).unwrap();
        let past = vec![1, 3, 7, 8];
        let cached = [past.clone(), past.clone(), past.clone(), past];
        let expected = [&[vec![1, 2]][..], &cached, &[vec![1, 9], vec![1, 2]]].concat();
        assert_eq!(decoder.shapes(7, 2), expected);
        // Ours has positions and masks within, and logits of the last position alone.
        let (mut inputs, mut outputs) = ports(OPTIMUM, PRESENT);
        inputs.truncate(5);
        outputs[0] = port("logits", Dtype::Fp32, &["1", "1", "50"]);
        let decoder = Decoder::of(&inputs, &outputs).unwrap();
        assert_eq!((decoder.mask, decoder.positions), (None, None));
        assert_eq!(decoder.shapes(0, 5)[..2], [vec![1, 5], vec![1, 3, 0, 8]]);
    }

    #[test]
    fn what_is_no_decoder_is_told_why() {
        let check = |change: &dyn Fn(&mut Vec<Port>, &mut Vec<Port>), expected: &str| {
            let (mut inputs, mut outputs) = ports(OPTIMUM, PRESENT);
            change(&mut inputs, &mut outputs);
            let error = Decoder::of(&inputs, &outputs).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&|inputs, _| drop(inputs.drain(1..5)), "no inputs for past keys");
        check(&|inputs, _| drop(inputs.remove(0)), "no input input_ids");
        check(&|_, outputs| drop(outputs.pop()), "4 pasts and gives 3");
        let strange = port("image", Dtype::Fp32, &["1", "3"]);
        check(&|inputs, _| inputs.push(strange.clone()), "input image is not known");
        let other = port("present.1.value", Dtype::Fp32, &["1", "4", "T", "8"]);
        check(&|_, outputs| outputs[4] = other.clone(), "not the shape of past_key_values.1.value");
        let other = port("present.1.value", Dtype::Fp16, &["1", "3", "T", "8"]);
        check(&|_, outputs| outputs[4] = other.clone(), "is FP16");
        check(&|_, outputs| drop(outputs.remove(0)), "no output logits");
        let open = port("logits", Dtype::Fp32, &["1", "S", "V"]);
        check(&|_, outputs| outputs[0] = open.clone(), "not [1, tokens, vocabulary]");
        let four = port("attention_mask", Dtype::Int64, &["1", "1", "S", "T"]);
        check(&|inputs, _| inputs[5] = four.clone(), "attention_mask has 4 axes");
        let batch = port("input_ids", Dtype::Int64, &["2", "S"]);
        check(&|inputs, _| inputs[0] = batch.clone(), "input_ids is not [1, tokens]");
    }
}
