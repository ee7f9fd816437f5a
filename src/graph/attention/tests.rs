//! Heads that the operator turns, against the nodes that graphs drawn before had for it.

use super::*;
use crate::graph::lockstep::tests::run;
use crate::graph::writer::{DataType, Dim, Graph, Scope, Value, float, int};
use crate::graph::{Lockstep, import};
use prost::Message;

/// Heads of queries and of keys, and values of one.
const HEADS: [i64; 2] = [6, 2];
const WIDTH: i64 = 8;

/// A graph of one layer's attention, heads of which so many pairs are turned.
fn graph(rotation: Option<Rotation>, pairs: i64, is_old: bool) -> Lockstep {
    let mut graph = Graph::<()>::default();
    let [queries, keys] = HEADS;
    let dim = |size: i64| Dim::Is(size.unsigned_abs());
    let (new, past) = (Dim::Any("new"), Dim::Any("past"));
    for (name, heads) in [("query", queries), ("key", keys), ("value", keys)] {
        graph.input(name, DataType::Float, &[Dim::Is(1), new, dim(heads * WIDTH)]);
    }
    for name in ["past_key", "past_value"] {
        graph.input(name, DataType::Float, &[Dim::Is(1), dim(keys), past, dim(WIDTH)]);
    }
    if rotation.is_some() {
        graph.input("angles", DataType::Float, &[new, dim(pairs)]);
    }
    let mut scope = graph.root();
    let angles = rotation.map(|_| ["Cos", "Sin"].map(|function| scope.op(function, &["angles"])));
    let mut attributes = vec![float("scale", 0.3), int("window", 7)];
    let parts = [("query", queries), ("key", keys), ("value", keys)].map(|(name, heads)| {
        if !is_old {
            return name.to_string();
        }
        let shape = scope.constant_ints(&[0, 0, heads, WIDTH]);
        let split = scope.reshape(name, &shape);
        let by_head = scope.transpose(&split, &[0, 2, 1, 3]);
        match (rotation, &angles) {
            (Some(rotation), Some(angles)) if name != "value" => {
                turned(&mut scope, &by_head, heads, rotation, pairs, angles)
            }
            _ => by_head,
        }
    });
    let mut inputs: Vec<&str> = parts.each_ref().map(String::as_str).to_vec();
    inputs.extend(["past_key", "past_value"]);
    if let (Some(rotation), Some(angles), false) = (rotation, &angles, is_old) {
        inputs.extend(angles.each_ref().map(String::as_str));
        attributes.push(int("interleaved", i64::from(rotation == Rotation::Interleaved)));
    }
    let operator = if is_old { OLD_OPERATOR } else { OPERATOR };
    let outputs = scope.own(operator, &inputs, attributes, 3);
    let seen = Dim::Any("past + new");
    graph.output(&outputs[0], "mixed", &[Dim::Is(1), new, dim(queries * WIDTH)]);
    for (from, name) in outputs[1..].iter().zip(["keys", "values"]) {
        graph.output(from, name, &[Dim::Is(1), dim(keys), seen, dim(WIDTH)]);
    }
    let skeleton = graph.proto("test", 23).encode_to_vec();
    Lockstep::new(import(skeleton, &[]).unwrap().plan)
}

/// Heads `[1, heads, new, width]` turned by nodes.
fn turned(
    scope: &mut Scope<()>,
    x: &str,
    heads: i64,
    rotation: Rotation,
    pairs: i64,
    angles: &[Value; 2],
) -> Value {
    let part = |scope: &mut Scope<()>, x: &str, axis: i64, from: i64, to: i64| {
        let [from, to, axis] = [from, to, axis].map(|number| scope.constant_ints(&[number]));
        scope.op("Slice", &[x, &from, &to, &axis])
    };
    let (pair_shape, axis) = match rotation {
        Rotation::Halves => ([2, pairs], 3),
        Rotation::Interleaved => ([pairs, 2], 4),
    };
    let [cosines, sines] =
        angles.each_ref().map(|angle| scope.unsqueeze(angle, if axis == 3 { 1 } else { 2 }));
    let first = part(scope, x, 3, 0, 2 * pairs);
    let shape = scope.constant_ints(&[1, heads, -1, pair_shape[0], pair_shape[1]]);
    let paired = scope.reshape(&first, &shape);
    let (one, other) = (part(scope, &paired, axis, 0, 1), part(scope, &paired, axis, 1, 2));
    let (a, b) = (scope.op("Mul", &[&one, &cosines]), scope.op("Mul", &[&other, &sines]));
    let left = scope.op("Sub", &[&a, &b]);
    let (a, b) = (scope.op("Mul", &[&other, &cosines]), scope.op("Mul", &[&one, &sines]));
    let right = scope.op("Add", &[&a, &b]);
    let joined = scope.concat(&[&left, &right], axis);
    let shape = scope.constant_ints(&[1, heads, -1, 2 * pairs]);
    let joined = scope.reshape(&joined, &shape);
    let rest = part(scope, x, 3, 2 * pairs, WIDTH);
    scope.concat(&[&joined, &rest], 3)
}

fn numbers(shape: &[i64], seed: usize) -> TValue {
    let shape: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
    let number = |index: usize| ((index + seed) * 7919 % 1009) as f32 / 250.0 - 2.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    Tensor::from_shape(&shape, &values).unwrap().into_tvalue()
}

fn inputs(new: i64, past: i64, pairs: Option<i64>) -> TVec<TValue> {
    let [queries, keys] = HEADS;
    let by_token = [queries, keys, keys].map(|heads| vec![1, new, heads * WIDTH]);
    let pasts = [0, 1].map(|_| vec![1, keys, past, WIDTH]);
    let angles = pairs.map(|pairs| vec![new, pairs]);
    let shapes = by_token.into_iter().chain(pasts).chain(angles).enumerate();
    shapes.map(|(index, shape)| numbers(&shape, 31 * index)).collect()
}

fn bits(values: &[TValue]) -> Vec<(Vec<usize>, Vec<u32>)> {
    let of = |value: &TValue| {
        let plain = value.try_as_plain_ram().unwrap();
        let bits = plain.as_slice::<f32>().unwrap().iter().map(|number| number.to_bits());
        (value.shape().to_vec(), bits.collect())
    };
    values.iter().map(of).collect()
}

#[test]
fn heads_are_turned_with_the_bits_that_nodes_gave_them() {
    let rotations = [Rotation::Halves, Rotation::Interleaved].map(Some);
    let turned =
        rotations.into_iter().flat_map(|rotation| [1, 3, 4].map(|pairs| (rotation, pairs)));
    for (rotation, pairs) in turned.chain([(None, 0)]) {
        let [old, own] = [true, false].map(|is_old| graph(rotation, pairs, is_old));
        for (new, past) in [(1, 0), (1, 9), (3, 4), (8, 0), (21, 5)] {
            let inputs = inputs(new, past, rotation.map(|_| pairs));
            let requests = [inputs.clone(), inputs];
            for threads in [1, 2, 4, 8] {
                let [old, own] = [&old, &own].map(|plan| run(plan, threads, &requests));
                for (old, own) in old.iter().zip(&own) {
                    let (old, own) = (old.as_ref().unwrap(), own.as_ref().unwrap());
                    assert_eq!(bits(old), bits(own), "{rotation:?}, {pairs} pairs, {new} new");
                }
            }
        }
    }
}
