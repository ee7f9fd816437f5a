//! What all decoders have: the inputs and outputs of a language model with a cache, the places of its
//! tokens, rotation by place, and attention over what is past and what is new.
//!
//! A pass takes the ids of S new tokens and the keys and values of the P tokens before them, P from 0
//! on. All that depends on places is computed from these two lengths. Attention is one operator, which
//! `graph::attention` computes.

use super::module::{Graph, Module};
use super::rope::Frequencies;
use crate::checkpoint::Rotation;
use crate::graph::OLD_OPERATOR;
use crate::graph::skim::Stored;
use crate::graph::writer::{DataType, Dim, Scope, Value, float, float_tensor, int};

const NEW: Dim = Dim::Any("sequence_length");
const PAST: Dim = Dim::Any("past_sequence_length");
const LAST: Dim = Dim::Any("logits_length");
const SEEN: Dim = Dim::Any("past_sequence_length + sequence_length");

/// Most new tokens whose logits come out, the last ones.
const LAST_LOGITS: i64 = 8;

/// How many heads there are, and what they are like.
#[derive(Clone, Copy)]
pub struct Heads {
    pub queries: u64,
    /// Heads of keys and of values, each for equally many of queries.
    pub keys: u64,
    /// Values of a head.
    pub width: u64,
}

/// A decoder under construction.
pub struct Decoder {
    heads: Heads,
    /// Places of the new tokens, int64 `[S]`.
    places: Value,
    /// Keys and values of the layers so far, `[1, keys, P + S, width]`.
    presents: Vec<[Value; 2]>,
}

impl Decoder {
    /// Declares the inputs of a decoder with as many layers.
    pub fn begin(graph: &mut Graph, layers: u64, heads: Heads) -> Decoder {
        graph.input("input_ids", DataType::Int64, &[Dim::Is(1), NEW]);
        let shape = [Dim::Is(1), Dim::Is(heads.keys), PAST, Dim::Is(heads.width)];
        for layer in 0..layers {
            for part in ["key", "value"] {
                graph.input(&past(layer, part), DataType::Float, &shape);
            }
        }
        let mut root = graph.root();
        let past = root.size(&past(0, "key"), 2);
        let new = root.size("input_ids", 1);
        let seen = root.op("Add", &[&past, &new]);
        let one = root.constant_int(1);
        let places = root.op("Range", &[&past, &seen, &one]);
        Decoder { heads, places, presents: vec![] }
    }

    /// Places of the new tokens, int64 `[S]`.
    pub fn places(&self) -> &str {
        &self.places
    }

    /// Splits `[1, S, heads * width]` into its heads: `[1, S, heads, width]`.
    pub fn split(&self, scope: &mut Scope<Stored>, x: &str, heads: u64) -> Value {
        let shape = [0, 0, heads.cast_signed(), self.heads.width.cast_signed()];
        let shape = scope.constant_ints(&shape);
        scope.reshape(x, &shape)
    }

    /// Attention of the next layer: `[1, S, queries * width]` of queries, keys and values of the new
    /// tokens, `[1, heads, S, width]`. Scores are multiplied by `scale`. A token sees itself and those
    /// before it; with a window of n, the n - 1 next before it.
    pub fn attend(
        &mut self,
        scope: &mut Scope<Stored>,
        [query, key, value]: [&str; 3],
        window: Option<u64>,
        scale: f64,
    ) -> Value {
        let layer = self.presents.len() as u64;
        let [past_key, past_value] = ["key", "value"].map(|part| past(layer, part));
        let mut attributes = vec![float("scale", scale as f32)];
        attributes.extend(window.map(|window| int("window", window.cast_signed())));
        let inputs = [query, key, value, &past_key, &past_value];
        let mut values = scope.own(OLD_OPERATOR, &inputs, attributes, 3).into_iter();
        let [mixed, key, value] = [(); 3].map(|()| values.next().unwrap_or_default());
        self.presents.push([key, value]);
        mixed
    }

    /// What comes of the last new tokens: the next one's logits need the last alone, and whoever
    /// proposes some has these looked at.
    pub fn last(scope: &mut Scope<Stored>, x: &str) -> Value {
        let numbers = [-LAST_LOGITS, i64::MAX, 1];
        let [start, end, axis] = numbers.map(|number| scope.constant_ints(&[number]));
        scope.op("Slice", &[x, &start, &end, &axis])
    }

    /// Declares the outputs.
    pub fn finish(self, graph: &mut Graph, logits: &str, vocabulary: u64) {
        graph.output(logits, "logits", &[Dim::Is(1), LAST, Dim::Is(vocabulary)]);
        let shape = [Dim::Is(1), Dim::Is(self.heads.keys), SEEN, Dim::Is(self.heads.width)];
        for (layer, present) in self.presents.iter().enumerate() {
            for (value, part) in present.iter().zip(["key", "value"]) {
                graph.output(value, &format!("present.{layer}.{part}"), &shape);
            }
        }
    }
}

fn past(layer: u64, part: &str) -> String {
    format!("past_key_values.{layer}.{part}")
}

/// `[1, S, heads, width]` with the axis of heads before that of tokens.
pub fn by_head(scope: &mut Scope<Stored>, x: &str) -> Value {
    scope.transpose(x, &[0, 2, 1, 3])
}

/// Rotation of queries and keys by their places.
pub struct Rotary {
    /// Cosines and sines by place and pair, in the shape that they are multiplied in.
    cosines: Value,
    sines: Value,
    rotation: Rotation,
    /// Pairs of a head that are turned; the rest of it stays.
    pairs: i64,
    heads: Heads,
}

impl Rotary {
    /// Rotation of heads by places of the decoder.
    pub fn new(
        module: &mut Module,
        decoder: &Decoder,
        frequencies: &Frequencies,
        rotation: Rotation,
    ) -> Rotary {
        let scope = &mut module.scope;
        let pairs = frequencies.radians.len() as i64;
        let radians = scope.constant(float_tensor(&[1, pairs], &frequencies.radians));
        let places = scope.cast(&decoder.places, DataType::Float);
        let places = scope.unsqueeze(&places, 1);
        let mut angles = scope.op("Mul", &[&places, &radians]);
        let axis = match rotation {
            Rotation::Halves => 1,
            Rotation::Interleaved => 2,
        };
        angles = scope.unsqueeze(&angles, axis);
        let [cosines, sines] = ["Cos", "Sin"].map(|function| {
            let values = scope.op(function, &[&angles]);
            match frequencies.scale {
                1.0 => values,
                scale => {
                    let scale = scope.constant_float(scale);
                    scope.op("Mul", &[&values, &scale])
                }
            }
        });
        Rotary { cosines, sines, rotation, pairs, heads: decoder.heads }
    }

    /// Turns `[1, heads, S, width]`.
    pub fn turn(&self, scope: &mut Scope<Stored>, x: &str, heads: u64) -> Value {
        let width = self.heads.width.cast_signed();
        let turned = 2 * self.pairs;
        let part = |scope: &mut Scope<Stored>, x: &str, axis: i64, from: i64, to: i64| {
            let [from, to, axis] = [from, to, axis].map(|number| scope.constant_ints(&[number]));
            scope.op("Slice", &[x, &from, &to, &axis])
        };
        let first = match turned == width {
            true => x.to_string(),
            false => part(scope, x, 3, 0, turned),
        };
        let (pair_shape, axis) = match self.rotation {
            Rotation::Halves => ([2, self.pairs], 3),
            Rotation::Interleaved => ([self.pairs, 2], 4),
        };
        let heads = heads.cast_signed();
        let shape = scope.constant_ints(&[1, heads, -1, pair_shape[0], pair_shape[1]]);
        let paired = scope.reshape(&first, &shape);
        let one = part(scope, &paired, axis, 0, 1);
        let other = part(scope, &paired, axis, 1, 2);
        let product = |scope: &mut Scope<Stored>, a: &str, b: &str| scope.op("Mul", &[a, b]);
        let (a, b) = (product(scope, &one, &self.cosines), product(scope, &other, &self.sines));
        let left = scope.op("Sub", &[&a, &b]);
        let (a, b) = (product(scope, &other, &self.cosines), product(scope, &one, &self.sines));
        let right = scope.op("Add", &[&a, &b]);
        let joined = scope.concat(&[&left, &right], axis);
        let shape = scope.constant_ints(&[1, heads, -1, turned]);
        let joined = scope.reshape(&joined, &shape);
        match turned == width {
            true => joined,
            false => {
                let rest = part(scope, x, 3, turned, width);
                scope.concat(&[&joined, &rest], 3)
            }
        }
    }
}
