//! What all decoders have: the inputs and outputs of a language model with a cache, the places of its
//! tokens, rotation by place, and attention over what is past and what is new.
//!
//! A pass takes the ids of S new tokens and the keys and values of the P tokens before them, P from 0
//! on. All that depends on places is computed from these two lengths. Attention is one operator, which
//! `graph::attention` computes.

use super::module::{Graph, Module};
use super::rope::Frequencies;
use crate::checkpoint::Rotation;
use crate::graph::OPERATOR;
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

/// What a layer's attention sees, and how.
#[derive(Clone, Copy)]
pub struct Sight {
    /// A token sees itself and those before it; with a window of n, the n - 1 next before it.
    pub window: Option<u64>,
    /// What scores are multiplied by.
    pub scale: f64,
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
    /// tokens, `[1, S, heads * width]` or split into heads. Queries and keys are turned by `rotary`.
    pub fn attend(
        &mut self,
        scope: &mut Scope<Stored>,
        [query, key, value]: [&str; 3],
        rotary: Option<&Rotary>,
        Sight { window, scale }: Sight,
    ) -> Value {
        let layer = self.presents.len() as u64;
        let [past_key, past_value] = ["key", "value"].map(|part| past(layer, part));
        let mut attributes = vec![float("scale", scale as f32)];
        attributes.extend(window.map(|window| int("window", window.cast_signed())));
        let mut inputs = vec![query, key, value, &past_key, &past_value];
        if let Some(Rotary { cosines, sines, rotation }) = rotary {
            inputs.extend([&**cosines, sines]);
            attributes.push(int("interleaved", i64::from(*rotation == Rotation::Interleaved)));
        }
        let mut values = scope.own(OPERATOR, &inputs, attributes, 3).into_iter();
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

/// Rotation of queries and keys by their places.
pub struct Rotary {
    /// Cosines and sines by place and pair, `[S, pairs]`.
    cosines: Value,
    sines: Value,
    rotation: Rotation,
}

impl Rotary {
    /// Rotation of heads by places of the decoder: of as many pairs, the first ones, as there are
    /// frequencies.
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
        let angles = scope.op("Mul", &[&places, &radians]);
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
        Rotary { cosines, sines, rotation }
    }
}
