//! What tract 0.23.9 computed wrongly, with the right values: those of ONNX's reference, or what
//! another way of computing the same gives.

use super::super::error::GraphError;
use super::super::import::import;
use super::draft::{int, ints, string};
use prost::Message;
use std::f32::consts::LN_2;
use tract_core::internal::*;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::{self, Value};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    NodeProto {
        op_type: op.to_string(),
        input: names(inputs),
        output: names(outputs),
        attribute,
        ..Default::default()
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    let r#type = AttributeType::Float as i32;
    AttributeProto { name: name.to_string(), r#type, f: value, ..Default::default() }
}

fn code(tensor: &Tensor) -> i32 {
    match tensor.datum_type() {
        DatumType::F32 => 1,
        DatumType::U8 => 2,
        DatumType::I8 => 3,
        DatumType::I32 => 6,
        DatumType::I64 => 7,
        DatumType::Bool => 9,
        DatumType::F16 => 10,
        other => panic!("{other:?}"),
    }
}

fn declared(name: &str, tensor: &Tensor) -> ValueInfoProto {
    let dim = |size: &usize| Dimension {
        denotation: String::new(),
        value: Some(dimension::Value::DimValue(*size as i64)),
    };
    let shape = Some(TensorShapeProto { dim: tensor.shape().iter().map(dim).collect() });
    let value = Value::TensorType(type_proto::Tensor { elem_type: code(tensor), shape });
    let r#type = Some(TypeProto { denotation: String::new(), value: Some(value) });
    ValueInfoProto { name: name.to_string(), r#type, ..Default::default() }
}

/// A model of these nodes, with inputs and constants.
fn model(
    version: i64,
    nodes: &[NodeProto],
    inputs: &[(&str, Tensor)],
    constants: &[(&str, Tensor)],
    outputs: &[&str],
) -> ModelProto {
    let tensor = |(name, tensor): &(&str, Tensor)| TensorProto {
        name: name.to_string(),
        data_type: code(tensor),
        dims: tensor.shape().iter().map(|size| *size as i64).collect(),
        raw_data: tensor.as_bytes().to_vec(),
        ..Default::default()
    };
    let output = |name: &&str| ValueInfoProto { name: name.to_string(), ..Default::default() };
    let graph = GraphProto {
        node: nodes.to_vec(),
        input: inputs.iter().map(|(name, tensor)| declared(name, tensor)).collect(),
        initializer: constants.iter().map(tensor).collect(),
        output: outputs.iter().map(output).collect(),
        ..Default::default()
    };
    let domains = [("", version), ("ai.onnx.ml", 3), ("com.microsoft", 1)];
    let import =
        |(domain, version): (&str, i64)| OperatorSetIdProto { domain: domain.to_string(), version };
    ModelProto {
        ir_version: 8,
        opset_import: domains.map(import).to_vec(),
        graph: Some(graph),
        ..Default::default()
    }
}

/// The outputs of a model.
fn run(
    version: i64,
    nodes: &[NodeProto],
    inputs: &[(&str, Tensor)],
    constants: &[(&str, Tensor)],
    outputs: &[&str],
) -> Vec<Tensor> {
    let model = model(version, nodes, inputs, constants, outputs);
    let imported = import(model.encode_to_vec(), &[]).unwrap();
    let inputs = inputs.iter().map(|(_, tensor)| tensor.clone().into_tvalue()).collect();
    let outputs = imported.plan.run(inputs).unwrap();
    outputs.into_iter().map(|output| output.into_tensor()).collect()
}

/// The output of one node of one input `x`.
fn apply(op: &str, attributes: Vec<AttributeProto>, x: Tensor) -> Tensor {
    run(24, &[node(op, &["x"], &["y"], attributes)], &[("x", x)], &[], &["y"]).remove(0)
}

/// Numbers between -1 and 1 that look like none in particular.
fn numbers(shape: &[usize], seed: f32) -> Tensor {
    let count = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..count).map(|i| ((i as f32 + seed) * 12.9898).sin()).collect();
    Tensor::from_shape(shape, &values).unwrap()
}

fn check_close(found: &Tensor, expected: &Tensor) {
    found.close_enough(expected, Approximation::Close).unwrap();
}

/// The tensor with one of its axes back to front.
fn flipped(tensor: &Tensor, axis: usize) -> Tensor {
    let slices: Vec<Tensor> =
        (0..tensor.shape()[axis]).rev().map(|i| tensor.slice(axis, i, i + 1).unwrap()).collect();
    Tensor::stack_tensors(axis, &slices).unwrap()
}

/// Static quantization makes DequantizeLinear - Softmax - QuantizeLinear of each softmax. Tract took
/// the chain for one of single values and answered 1.0 everywhere, which is the softmax of one.
#[test]
fn a_quantized_softmax_is_one_of_rows() {
    let nodes = [
        node("DequantizeLinear", &["x", "s", "z"], &["f"], vec![]),
        node("Softmax", &["f"], &["p"], vec![]),
        node("QuantizeLinear", &["p", "t", "z"], &["q"], vec![]),
    ];
    let x = tensor2(&[[10u8, 10, 10, 10], [0, 0, 0, 100]]);
    let constants = [("s", tensor0(0.1f32)), ("t", tensor0(1.0f32 / 256.0)), ("z", tensor0(0u8))];
    let q = run(17, &nodes, &[("x", x)], &constants, &["q"]).remove(0);
    assert_eq!(q, tensor2(&[[64u8, 64, 64, 64], [0, 0, 0, 255]]));
}

/// `direction` was not read: reverse recurrences were computed from the beginning.
#[test]
fn reverse_recurrences_begin_at_the_end() {
    for (op, gates, outputs) in [
        ("LSTM", 4, &["y", "h", "c"][..]),
        ("GRU", 3, &["y", "h"][..]),
        ("RNN", 1, &["y", "h"][..]),
    ] {
        let x = numbers(&[5, 1, 3], 1.0);
        let constants = [
            ("w", numbers(&[1, gates * 2, 3], 2.0)),
            ("r", numbers(&[1, gates * 2, 2], 3.0)),
            ("b", numbers(&[1, gates * 4], 4.0)),
        ];
        let answers = |direction: &str, x: &Tensor| {
            let attributes = vec![int("hidden_size", 2), string("direction", direction)];
            let nodes = [node(op, &["x", "w", "r", "b"], outputs, attributes)];
            run(17, &nodes, &[("x", x.clone())], &constants, outputs)
        };
        let reverse = answers("reverse", &x);
        let forward = answers("forward", &flipped(&x, 0));
        check_close(&reverse[0], &flipped(&forward[0], 0));
        for state in 1..outputs.len() {
            check_close(&reverse[state], &forward[state]);
        }
    }
}

/// Two states that begin as the same zeros were one value, of which tract changed the axes.
#[test]
fn states_that_begin_alike_are_two() {
    let x = numbers(&[5, 2, 3], 1.0);
    let constants = [("w", numbers(&[1, 8, 3], 2.0)), ("r", numbers(&[1, 8, 2], 3.0))];
    let answers = |x: Tensor| {
        let nodes = [node("LSTM", &["x", "w", "r"], &["y", "h", "c"], vec![int("hidden_size", 2)])];
        run(17, &nodes, &[("x", x)], &constants, &["y", "h", "c"])
    };
    let both = answers(x.clone());
    for row in 0..2 {
        let alone = answers(x.slice(1, row, row + 1).unwrap());
        check_close(&both[1].slice(1, row, row + 1).unwrap(), &alone[1]);
        check_close(&both[2].slice(1, row, row + 1).unwrap(), &alone[2]);
    }
}

/// With `layout` 1 the batch comes first; two directions were joined along the batch.
#[test]
fn recurrences_with_the_batch_first_are_transposed_ones() {
    let x = numbers(&[5, 2, 3], 1.0);
    let constants = [("w", numbers(&[2, 8, 3], 2.0)), ("r", numbers(&[2, 8, 2], 3.0))];
    let answers = |layout: i64, x: Tensor| {
        let direction = string("direction", "bidirectional");
        let attributes = vec![int("hidden_size", 2), int("layout", layout), direction];
        let nodes = [node("LSTM", &["x", "w", "r"], &["y", "h"], attributes)];
        run(17, &nodes, &[("x", x)], &constants, &["y", "h"])
    };
    let expected = answers(0, x.clone());
    let found = answers(1, x.permute_axes(&[1, 0, 2]).unwrap());
    check_close(&found[0], &expected[0].clone().permute_axes(&[2, 0, 1, 3]).unwrap());
    check_close(&found[1], &expected[1].clone().permute_axes(&[1, 0, 2]).unwrap());
}

/// Queries with a past saw as many keys as if there were none.
#[test]
fn causal_attention_sees_its_past() {
    let [q, k, v] = [1.0, 2.0, 3.0].map(|seed| numbers(&[1, 2, 6, 4], seed));
    let causal = vec![int("is_causal", 1)];
    let whole = node("Attention", &["q", "k", "v"], &["y"], causal.clone());
    let inputs = [("q", q.clone()), ("k", k.clone()), ("v", v.clone())];
    let expected = run(23, &[whole], &inputs, &[], &["y"]).remove(0);
    let step = node("Attention", &["q", "k", "v", "", "pk", "pv"], &["y"], causal);
    let part = |tensor: &Tensor, from: usize, to: usize| tensor.slice(2, from, to).unwrap();
    let inputs = [
        ("q", part(&q, 4, 6)),
        ("k", part(&k, 4, 6)),
        ("v", part(&v, 4, 6)),
        ("pk", part(&k, 0, 4)),
        ("pv", part(&v, 0, 4)),
    ];
    let found = run(23, &[step], &inputs, &[], &["y"]).remove(0);
    check_close(&found, &part(&expected, 4, 6));
}

/// A mask of booleans was refused or added as ones; a row without any key was NaN.
#[test]
fn attention_masks_of_booleans_hide_keys() {
    let [q, k, v] = [1.0, 2.0, 3.0].map(|seed| numbers(&[1, 1, 3, 4], seed));
    let attention = node("Attention", &["q", "k", "v", "m"], &["y"], vec![]);
    let mask = tensor2(&[[true, false, false], [false, false, false], [false, true, false]]);
    let inputs = [("q", q), ("k", k), ("v", v.clone()), ("m", mask)];
    let found = run(23, &[attention], &inputs, &[], &["y"]).remove(0);
    check_close(&found.slice(2, 0, 1).unwrap(), &v.slice(2, 0, 1).unwrap());
    assert_eq!(
        found.slice(2, 1, 2).unwrap(),
        tensor0(0f32).broadcast_scalar_to_shape(&[1, 1, 1, 4]).unwrap()
    );
    check_close(&found.slice(2, 2, 3).unwrap(), &v.slice(2, 1, 2).unwrap());
}

/// com.microsoft's `unidirectional` was not read.
#[test]
fn attention_in_one_direction_is_causal() {
    let [q, k, v] = [1.0, 2.0, 3.0].map(|seed| numbers(&[1, 3, 4], seed));
    let mut attention = node("MultiHeadAttention", &["q", "k", "v"], &["y"], vec![]);
    attention.domain = "com.microsoft".to_string();
    attention.attribute = vec![int("num_heads", 2), int("unidirectional", 1)];
    let inputs = [("q", q), ("k", k), ("v", v.clone())];
    let found = run(17, &[attention], &inputs, &[], &["y"]).remove(0);
    // The first query sees the first key alone.
    check_close(&found.slice(1, 0, 1).unwrap(), &v.slice(1, 0, 1).unwrap());
}

/// The product of an integer with itself became a square in f32, cut off at the type's end.
#[test]
fn squares_of_integers_are_exact_and_wrap() {
    let x = tensor1(&[70_000i32, 5_001, -46_341]);
    let squares = tensor1(&[605_032_704i32, 25_010_001, -2_147_479_015]);
    let product = node("Mul", &["x", "x"], &["y"], vec![]);
    assert_eq!(run(17, &[product], &[("x", x.clone())], &[], &["y"])[0], squares);
    let power = node("Pow", &["x", "two"], &["y"], vec![]);
    let two = [("two", tensor0(2i32))];
    assert_eq!(run(17, &[power], &[("x", x)], &two, &["y"])[0], squares);
}

/// The larger of a NaN and a number was the number.
#[test]
fn what_is_not_a_number_stays() {
    let check = |found: Tensor, expected: &[f32]| {
        found.close_enough(&tensor1(expected), Approximation::Exact).unwrap();
    };
    let nan = f32::NAN;
    let x = || tensor1(&[nan, -1.0, 2.0, f32::INFINITY]);
    check(apply("Relu", vec![], x()), &[nan, 0.0, 2.0, f32::INFINITY]);
    let two = |op: &str| {
        let z = tensor1(&[1.0, nan, 1.0, 1.0]);
        run(17, &[node(op, &["x", "z"], &["y"], vec![])], &[("x", x()), ("z", z)], &[], &["y"])
            .remove(0)
    };
    check(two("Max"), &[nan, nan, 2.0, f32::INFINITY]);
    check(two("Min"), &[nan, nan, 1.0, 1.0]);
    let by_zero = node("Mul", &["x", "zero"], &["y"], vec![]);
    let by_zero = run(17, &[by_zero], &[("x", x())], &[("zero", tensor1(&[0.0f32]))], &["y"]);
    check(by_zero[0].clone(), &[nan, -0.0, 0.0, nan]);
    let whole = vec![int("keepdims", 1)];
    check(apply("ReduceMax", whole.clone(), x()), &[nan]);
    // The largest of minus infinities was the smallest finite number.
    let least = tensor1(&[f32::NEG_INFINITY; 2]);
    check(apply("ReduceMax", whole, least), &[f32::NEG_INFINITY]);
}

/// Shifts by as many bits as there are panicked, or shifted by none.
#[test]
fn wide_shifts_leave_nothing() {
    let shift = |direction: &str| {
        let nodes = [node("BitShift", &["x", "n"], &["y"], vec![string("direction", direction)])];
        let inputs = [("x", tensor1(&[255u8, 255, 255])), ("n", tensor1(&[1u8, 8, 200]))];
        run(17, &nodes, &inputs, &[], &["y"]).remove(0)
    };
    assert_eq!(shift("LEFT"), tensor1(&[254u8, 0, 0]));
    assert_eq!(shift("RIGHT"), tensor1(&[127u8, 0, 0]));
}

/// The alphas of Swish and Celu were not read, or not all of them.
#[test]
fn alphas_are_honoured() {
    let x = || tensor1(&[-1.0f32, 0.0, 2.0]);
    let swish = |x: f32| x / (1.0 + (-0.5 * x).exp());
    check_close(
        &apply("Swish", vec![float("alpha", 0.5)], x()),
        &tensor1(&[-1.0, 0.0, 2.0].map(swish)),
    );
    let celu = |x: f32| if x > 0.0 { x } else { 0.5 * ((x / 0.5).exp() - 1.0) };
    check_close(
        &apply("Celu", vec![float("alpha", 0.5)], x()),
        &tensor1(&[-1.0, 0.0, 2.0].map(celu)),
    );
}

/// Gemm's addend was multiplied in f32, which made an f16 model's output one of f32.
#[test]
fn gemm_keeps_its_type() {
    let one = f16::from_f32(1.0);
    let ones = |shape: &[usize]| tensor0(one).broadcast_scalar_to_shape(shape).unwrap();
    let factors = vec![float("alpha", 0.5), float("beta", 3.0)];
    let nodes = [node("Gemm", &["a", "b", "c"], &["y"], factors)];
    let constants = [("b", ones(&[4, 2])), ("c", ones(&[2]))];
    let found = run(17, &nodes, &[("a", ones(&[1, 4]))], &constants, &["y"]).remove(0);
    assert_eq!(found, tensor2(&[[f16::from_f32(5.0), f16::from_f32(5.0)]]));
}

/// Exp overflows from 88 on: the logarithm of the sum was infinite.
#[test]
fn sums_of_large_exponentials_are_finite() {
    let x = tensor2(&[[1000f32, 1000.0], [f32::NEG_INFINITY, f32::NEG_INFINITY]]);
    let nodes = [node("ReduceLogSumExp", &["x"], &["y"], vec![ints("axes", &[1])])];
    let found = run(17, &nodes, &[("x", x)], &[], &["y"]).remove(0);
    check_close(&found, &tensor2(&[[1000.6931f32], [f32::NEG_INFINITY]]));
}

/// `mode` CRD was taken for DCR, blocks before channels.
#[test]
fn channels_may_come_before_blocks() {
    let x = Tensor::from_shape(&[1, 2, 2, 2], &[0f32, 1., 2., 3., 4., 5., 6., 7.]).unwrap();
    let attributes = vec![int("blocksize", 2), string("mode", "CRD")];
    let nodes = [node("SpaceToDepth", &["x"], &["y"], attributes)];
    let found = run(28, &nodes, &[("x", x)], &[], &["y"]).remove(0);
    let expected = Tensor::from_shape(&[1, 8, 1, 1], &[0f32, 1., 2., 3., 4., 5., 6., 7.]).unwrap();
    assert_eq!(found, expected);
}

/// What is too much for `output_shape` was cut from the wrong end.
#[test]
fn transposed_convolutions_are_cut_from_the_beginning() {
    let x = Tensor::from_shape(&[1, 1, 2], &[1f32, 2.0]).unwrap();
    let w = Tensor::from_shape(&[1, 1, 2], &[1f32, 10.0]).unwrap();
    // Whole it is 1, 10, 2, 20.
    let check = |size: i64, more: Option<AttributeProto>, expected: &[f32]| {
        let mut attributes = vec![ints("strides", &[2]), ints("output_shape", &[size])];
        attributes.extend(more);
        let nodes = [node("ConvTranspose", &["x", "w"], &["y"], attributes)];
        let inputs = [("x", x.clone())];
        let found = run(17, &nodes, &inputs, &[("w", w.clone())], &["y"]).remove(0);
        assert_eq!(found.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap(), expected);
    };
    check(3, None, &[10.0, 2.0, 20.0]);
    check(3, Some(string("auto_pad", "SAME_UPPER")), &[1.0, 10.0, 2.0]);
    check(5, None, &[1.0, 10.0, 2.0, 20.0, 0.0]);
}

/// A comparison with a NaN is false either way: an extreme was found wherever the last NaN was not,
/// a sort gave up, and a window of NaN or of minus infinity had the least finite number.
#[test]
fn where_elements_are_compared_nan_is_the_greatest() {
    const NAN: f32 = f32::NAN;
    const LEAST: f32 = f32::NEG_INFINITY;
    let rows = tensor2(&[[1.0, NAN, 3.0], [NAN, 1.0, NAN], [3.0, 1.0, 1.0], [LEAST; 3]]);
    for (op, last, expected) in [
        ("ArgMax", 0, [1i64, 0, 0, 0]),
        ("ArgMax", 1, [1, 2, 0, 2]),
        ("ArgMin", 0, [1, 0, 1, 0]),
        ("ArgMin", 1, [1, 2, 2, 2]),
    ] {
        let attributes = [("axis", 1), ("keepdims", 0), ("select_last_index", last)];
        let attributes = attributes.map(|(name, value)| int(name, value)).to_vec();
        for kind in [DatumType::F16, DatumType::F32] {
            let rows = rows.cast_to_dt(kind).unwrap().into_owned();
            let found = apply(op, attributes.clone(), rows);
            assert_eq!(found, tensor1(&expected), "{op} of {kind:?}, {last}");
        }
    }
    let text = |tensor: &Tensor| {
        let plain = tensor.try_as_plain_ram().unwrap();
        format!("{:?}", plain.as_slice::<f32>().unwrap())
    };
    for (largest, values, places) in [
        (1, "[NaN, 3.0, NaN, NaN, 3.0, 1.0, -inf, -inf]", [1i64, 2, 0, 2, 0, 1, 0, 1]),
        (0, "[1.0, 3.0, 1.0, NaN, 1.0, 1.0, -inf, -inf]", [0, 2, 1, 0, 1, 2, 0, 1]),
    ] {
        let top = node("TopK", &["x", "k"], &["v", "i"], vec![int("largest", largest)]);
        let constants = [("k", tensor1(&[2i64]))];
        let found = run(18, &[top], &[("x", rows.clone())], &constants, &["v", "i"]);
        assert_eq!(text(&found[0]), values);
        assert_eq!(found[1].try_as_plain_ram().unwrap().as_slice::<i64>().unwrap(), places);
    }
    for (image, expected) in [
        ([1.0, NAN, 3.0, 4.0, 5.0, 6.0], "[NaN, NaN]"),
        ([LEAST, LEAST, 3.0, LEAST, LEAST, 6.0], "[-inf, 6.0]"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "[5.0, 6.0]"),
    ] {
        let image = Tensor::from_shape(&[1, 1, 2, 3], &image).unwrap();
        let pooled = apply("MaxPool", vec![ints("kernel_shape", &[2, 2])], image);
        assert_eq!(text(&pooled), expected);
    }
}

/// Of 64-bit integers tract makes sizes, by way of 32 bits: of 10 billion it made 2,147,483,647.
#[test]
fn casts_to_64_bit_integers_keep_their_bits() {
    let check = |x: Tensor, expected: &[i64]| {
        let found = apply("Cast", vec![int("to", 7)], x);
        assert_eq!(*found.cast_to::<i64>().unwrap(), tensor1(expected));
    };
    check(tensor1(&[1e10f32, -3e9, 7.9, -7.9]), &[10_000_000_000, -3_000_000_000, 7, -7]);
    check(tensor1(&[(1i64 << 40) + 5, i64::MIN, -1]), &[(1 << 40) + 5, i64::MIN, -1]);
    check(tensor1(&[true, false]), &[1, 0]);
}

/// Kernels clamp their input, and a NaN with it: of a NaN, Tanh was -1 and Sigmoid almost 0.
#[test]
fn activations_of_nan_are_nan() {
    let mut x = vec![0.5f32; 200];
    (x[3], x[64], x[199]) = (f32::NAN, -f32::NAN, f32::NAN);
    for op in ["Sigmoid", "Tanh"] {
        for kind in [DatumType::F16, DatumType::F32] {
            let x = tensor1(&x).cast_to_dt(kind).unwrap().into_owned();
            let found = apply(op, vec![], x).cast_to::<f32>().unwrap().into_owned();
            let plain = found.try_as_plain_ram().unwrap();
            for (at, y) in plain.as_slice::<f32>().unwrap().iter().enumerate() {
                let expected = if op == "Tanh" { 0.4621 } else { 0.6225 };
                match [3, 64, 199].contains(&at) {
                    true => assert!(y.is_nan(), "{op} of {kind:?}: {y} at {at}"),
                    false => assert!((y - expected).abs() < 1e-3, "{op} of {kind:?}: {y} at {at}"),
                }
            }
        }
    }
}

/// Tract multiplied with what 1 over the scale is rounded to, which moves ties away, and added the
/// zero point to the largest integer.
#[test]
fn quantization_divides_by_its_scale() {
    let check = |x: Tensor, scale: f32, zero_point: Tensor, expected: Tensor| {
        let quantize = node("QuantizeLinear", &["x", "s", "z"], &["y"], vec![]);
        let constants = [("s", tensor0(scale)), ("z", zero_point)];
        assert_eq!(run(17, &[quantize], &[("x", x)], &constants, &["y"])[0], expected);
    };
    let x = tensor1(&[3.75f32, 6.75, 0.45, 1e20, -1e20, f32::INFINITY]);
    check(x, 0.3, tensor0(128u8), tensor1(&[140u8, 150, 129, 255, 0, 255]));
    let x = tensor1(&[0.23f32, -0.23, 1e20, -1e20]);
    check(x, 0.02, tensor0(1i8), tensor1(&[13i8, -11, 127, -128]));
    check(tensor1(&[7i32, 300, -9]), 2.0, tensor0(0u8), tensor1(&[4u8, 150, 0]));
}

/// No box at all, which a node says without that input too, was taken for all of them.
#[test]
fn a_suppression_that_selects_no_box_selects_none() {
    let boxes = Tensor::from_shape(&[1, 2, 4], &[0f32, 0., 1., 1., 5., 5., 6., 6.]).unwrap();
    let scores = Tensor::from_shape(&[1, 1, 2], &[0.5f32, 0.75]).unwrap();
    let inputs = [("b", boxes), ("s", scores)];
    let selected = |names: &[&str], most: i64| {
        let suppress = node("NonMaxSuppression", names, &["y"], vec![]);
        let constants = [("m", tensor1(&[most])), ("t", tensor1(&[0.5f32]))];
        run(17, &[suppress], &inputs, &constants, &["y"]).swap_remove(0)
    };
    let given = ["b", "s", "m", "t"];
    assert_eq!(selected(&given, 1), tensor2(&[[0i64, 0, 1]]));
    assert_eq!(selected(&given, 5), tensor2(&[[0i64, 0, 1], [0, 0, 0]]));
    for names in [&given[..], &["b", "s"], &["b", "s", "", "t"]] {
        assert_eq!(selected(names, 0).shape(), [0, 3], "{names:?}");
    }
}

#[test]
fn losses_leave_out_ignored_labels() {
    let x = tensor2(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]]);
    let labels = tensor1(&[1i64, -1, 0]);
    let loss =
        node("NegativeLogLikelihoodLoss", &["x", "l"], &["y"], vec![int("ignore_index", -1)]);
    let found = run(17, &[loss], &[("x", x), ("l", labels)], &[], &["y"]);
    assert_eq!(found[0], tensor0(-3.5f32));
}

/// A tree of one branch at 0.5 and two leaves, of which one or two classes are scored.
fn tree(mode: &str, class: i64, weights: [f32; 2], more: Vec<AttributeProto>) -> NodeProto {
    let list = |name: &str, values: &[f32]| {
        let (r#type, floats) = (AttributeType::Floats as i32, values.to_vec());
        AttributeProto { name: name.to_string(), r#type, floats, ..Default::default() }
    };
    let modes = [mode, "LEAF", "LEAF"].map(|mode| mode.as_bytes().to_vec()).to_vec();
    let modes = AttributeProto {
        name: "nodes_modes".to_string(),
        r#type: AttributeType::Strings as i32,
        strings: modes,
        ..Default::default()
    };
    let mut attributes = vec![modes, list("nodes_values", &[0.5, 0.0, 0.0])];
    attributes.push(list("class_weights", &weights));
    attributes.extend(more);
    for (name, values) in [
        ("nodes_treeids", &[0, 0, 0][..]),
        ("nodes_nodeids", &[0, 1, 2]),
        ("nodes_featureids", &[0, 0, 0]),
        ("nodes_truenodeids", &[1, 0, 0]),
        ("nodes_falsenodeids", &[2, 0, 0]),
        ("class_treeids", &[0, 0]),
        ("class_nodeids", &[1, 2]),
        ("class_ids", &[class, class]),
        ("classlabels_int64s", &[5, 7]),
    ] {
        attributes.push(ints(name, values));
    }
    let mut trees = node("TreeEnsembleClassifier", &["x"], &["y", "s"], attributes);
    trees.domain = "ai.onnx.ml".to_string();
    trees
}

fn check_tree(trees: NodeProto, labels: [i64; 2], scores: [[f32; 2]; 2]) {
    let x = tensor2(&[[0.0f32], [1.0]]);
    let found = run(17, &[trees], &[("x", x)], &[], &["y", "s"]);
    assert_eq!(found[0], tensor1(&labels));
    assert_eq!(found[1], tensor2(&scores));
}

/// scikit-learn and XGBoost score one of two classes; tract answered the other one's label, or that
/// of the second class for any probability.
#[test]
fn trees_of_two_classes_answer_the_likelier_one() {
    let plain = |class, weights| tree("BRANCH_LEQ", class, weights, vec![]);
    check_tree(plain(0, [0.25, 0.75]), [5, 7], [[0.75, 0.25], [0.25, 0.75]]);
    check_tree(plain(1, [0.25, 0.75]), [5, 7], [[0.0, 0.25], [0.0, 0.75]]);
    check_tree(plain(0, [-0.25, 0.75]), [5, 7], [[0.25, -0.25], [-0.75, 0.75]]);
    check_tree(plain(1, [-0.25, 0.25]), [5, 7], [[0.0, -0.25], [0.0, 0.25]]);
    let base = AttributeProto {
        name: "base_values".to_string(),
        r#type: AttributeType::Floats as i32,
        floats: vec![0.25, 0.25],
        ..Default::default()
    };
    check_refused(17, tree("BRANCH_LEQ", 1, [0.25, 0.75], vec![base]), &["base_values"]);
}

/// A branch by greater or equal was a leaf to tract.
#[test]
fn trees_branch_by_greater_or_equal_and_send_on_what_is_missing() {
    let x = tensor2(&[[0.0f32], [0.5], [f32::NAN]]);
    for (missing, expected) in [(0, [5i64, 7, 5]), (1, [5, 7, 7])] {
        let missing = ints("nodes_missing_value_tracks_true", &[missing, 0, 0]);
        let trees = tree("BRANCH_GTE", 0, [0.75, 0.25], vec![missing]);
        let found = run(17, &[trees], &[("x", x.clone())], &[], &["y", "s"]);
        assert_eq!(found[0], tensor1(&expected));
    }
}

/// Tract writes the score of a class where that of a class of this number would be, and walks in a
/// circle forever.
#[test]
fn trees_that_lead_nowhere_are_refused() {
    check_refused(17, tree("BRANCH_LEQ", 9, [0.25, 0.75], vec![]), &["class 9 of 2"]);
    let circle = |ids: &[i64]| {
        let mut trees = tree("BRANCH_LEQ", 0, [0.25, 0.75], vec![]);
        trees.attribute.retain(|attribute| attribute.name != "nodes_truenodeids");
        trees.attribute.push(ints("nodes_truenodeids", ids));
        trees
    };
    check_refused(17, circle(&[0, 0, 0]), &["begin with its node 0"]);
    check_refused(17, circle(&[7, 0, 0]), &["has a node 7"]);
}

/// Sums of half floats were half floats: 300 x 300 of 10 had no mean, and what follows was NaN.
#[test]
fn sums_of_half_floats_are_floats() {
    let halves = |shape: &[usize], value: f32| {
        let all = vec![f16::from_f32(value); shape.iter().product()];
        Tensor::from_shape(shape, &all).unwrap()
    };
    let x = halves(&[1, 1, 300, 300], 10.0);
    let mean = apply("GlobalAveragePool", vec![], x.clone());
    assert_eq!(mean, halves(&[1, 1, 1, 1], 10.0));
    let one = halves(&[1], 1.0);
    let normalized = node("InstanceNormalization", &["x", "one", "one"], &["y"], vec![]);
    let found = run(21, &[normalized], &[("x", x)], &[("one", one)], &["y"]);
    assert_eq!(found[0], halves(&[1, 1, 300, 300], 1.0));
    let w = halves(&[1, 4000, 1, 1], 1.0);
    let conv = node("Conv", &["x", "w"], &["y"], vec![]);
    let x = halves(&[1, 4000, 1, 1], 1.0);
    let found = run(21, &[conv], &[("x", x)], &[("w", w)], &["y"]);
    assert_eq!(found[0], halves(&[1, 1, 1, 1], 4000.0));
    let mean = node("Mean", &["x", "x"], &["y"], vec![]);
    let found = run(21, &[mean], &[("x", halves(&[1], 6e4))], &[], &["y"]);
    assert_eq!(found[0], halves(&[1], 6e4));
    let sum = node("CumSum", &["x", "axis"], &["y"], vec![]);
    let (x, axis) = (halves(&[4000], 1.0), tensor0(0i64));
    let found = run(21, &[sum], &[("x", x)], &[("axis", axis)], &["y"]);
    assert_eq!(found[0].slice(0, 3999, 4000).unwrap(), halves(&[1], 4000.0));
}

/// Sums of integers of 64 bits were taken in 32.
#[test]
fn sums_of_wide_integers_are_whole() {
    let big = 3_000_000_000i64;
    let x = || tensor2(&[[big, 1, big], [-big, 2, i64::MAX]]);
    let all = |op: &str| apply(op, vec![int("keepdims", 0)], x());
    assert_eq!(all("ReduceSum"), tensor0(i64::MIN + big + 2));
    let rows = |op: &str| {
        run(17, &[node(op, &["x"], &["y"], vec![ints("axes", &[0])])], &[("x", x())], &[], &["y"])
            .remove(0)
    };
    assert_eq!(rows("ReduceL1").slice(1, 0, 2).unwrap(), tensor2(&[[2 * big, 3]]));
    assert_eq!(rows("ReduceMean").slice(1, 0, 2).unwrap(), tensor2(&[[0i64, 1]]));
    assert_eq!(
        rows("ReduceSumSquare").slice(1, 0, 2).unwrap(),
        tensor2(&[[(big * big).wrapping_mul(2), 5]])
    );
}

/// An empty result was taken for one that is not written, which lost its ellipsis; three operands
/// were multiplied one by one.
#[test]
fn equations_are_pairs_with_a_result() {
    let a = || Tensor::from_shape(&[2, 2], &[1f32, 2.0, 3.0, 4.0]).unwrap();
    let einsum = |equation: &str, inputs: &[(&str, Tensor)]| {
        let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
        let nodes = [node("Einsum", &names, &["y"], vec![string("equation", equation)])];
        run(17, &nodes, inputs, &[], &["y"]).remove(0)
    };
    let two = || [("a", a()), ("b", a())];
    assert_eq!(einsum("ij->", &[("a", a())]), tensor0(10f32));
    assert_eq!(einsum("ii->", &[("a", a())]), tensor0(5f32));
    assert_eq!(einsum("ij,jk->", &two()), tensor0(54f32));
    assert_eq!(einsum("ij,kj", &two()), tensor2(&[[5f32, 11.0], [11.0, 25.0]]));
    let stacked = |x: Tensor| x.into_shape(&[1, 2, 2]).unwrap();
    let batches = [("a", stacked(a())), ("b", stacked(a()))];
    let product = stacked(tensor2(&[[7f32, 10.0], [15.0, 22.0]]));
    assert_eq!(einsum("...ij,...jk", &batches), product);
    let scaled = [("a", a()), ("b", tensor0(2f32))];
    assert_eq!(einsum("...,->...", &scaled), tensor2(&[[2f32, 4.0], [6.0, 8.0]]));
    assert_eq!(einsum("ij,->j", &scaled), tensor1(&[8f32, 12.0]));
    let three = || [("a", a()), ("b", a()), ("c", a())];
    assert_eq!(einsum("ij,jk,kl->il", &three()), tensor2(&[[37f32, 54.0], [81.0, 118.0]]));
    assert_eq!(einsum("ij,jk,lm->ml", &three()), tensor2(&[[54f32, 162.0], [108.0, 216.0]]));
    assert_eq!(einsum("ij,jk,ki->", &three()), tensor0(155f32));
    assert_eq!(einsum("...,...,...->...", &three()), tensor2(&[[1f32, 8.0], [27.0, 64.0]]));
}

/// The logarithm of a softmax was minus infinity where that was 0.
#[test]
fn logarithms_of_small_probabilities_are_finite() {
    let x = || tensor2(&[[0f32, -120.0, -90.0]]);
    for version in [11, 17] {
        let nodes = [node("LogSoftmax", &["x"], &["y"], vec![int("axis", 1)])];
        check_close(&run(version, &nodes, &[("x", x())], &[], &["y"])[0], &x());
    }
    // All classes of two places, of which the axes follow.
    let x = Tensor::from_shape(&[1, 2, 2], &[0f32, 0.0, -120.0, 0.0]).unwrap();
    for version in [12, 17] {
        let loss =
            node("SoftmaxCrossEntropyLoss", &["x", "l"], &["y"], vec![string("reduction", "none")]);
        let inputs = [("x", x.clone()), ("l", tensor2(&[[1i64, 1]]))];
        let found = run(version, &[loss], &inputs, &[], &["y"]).remove(0);
        check_close(&found, &tensor2(&[[120f32, LN_2]]));
    }
}

/// Exp of what is large was infinite, and its logarithm.
#[test]
fn softplus_of_large_numbers_is_finite() {
    let x = tensor1(&[1000f32, 0.0, -1000.0, f32::INFINITY]);
    let expected = tensor1(&[1000f32, LN_2, 0.0, f32::INFINITY]);
    check_close(&apply("Softplus", vec![], x), &expected);
    let twenty = tensor1(&[f16::from_f32(20.0)]);
    assert_eq!(apply("Softplus", vec![], twenty.clone()), twenty);
}

/// The nearest element was the nearer one in version 10, too.
#[test]
fn nearest_elements_were_those_before_or_after() {
    let resized = |scales: [f32; 2]| {
        let x = tensor2(&[[0f32, 1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0, 9.0]]);
        let resize = node("Resize", &["x", "s"], &["y"], vec![]);
        run(10, &[resize], &[("x", x)], &[("s", tensor1(&scales))], &["y"]).remove(0)
    };
    let wide = tensor2(&[[0f32, 0., 1., 2., 2., 3., 4.], [5., 5., 6., 7., 7., 8., 9.]]);
    assert_eq!(resized([1.0, 1.5]), wide);
    assert_eq!(resized([1.0, 0.6]), tensor2(&[[0f32, 2., 4.], [5., 7., 9.]]));
    let both = tensor2(&[
        [0f32, 2., 4.],
        [0., 2., 4.],
        [0., 2., 4.],
        [5., 7., 9.],
        [5., 7., 9.],
        [5., 7., 9.],
    ]);
    assert_eq!(resized([3.0, 0.6]), both);
}

/// A shape's constant was of f64, a norm's sum was a mean, a transform went along another axis, and
/// what is far from zero had a negative variance.
#[test]
fn what_is_left_unsaid_is_onnxs() {
    let zeros = run(
        17,
        &[node("ConstantOfShape", &["x"], &["y"], vec![])],
        &[],
        &[("x", tensor1(&[2i64]))],
        &["y"],
    );
    assert_eq!(zeros[0], tensor1(&[0f32, 0.0]));
    let x = Tensor::from_shape(&[1, 1, 2, 2], &[1f32, -5.0, 3.0, -1.0]).unwrap();
    let pooled = |x: f32| Tensor::from_shape(&[1, 1, 1, 1], &[x]).unwrap();
    check_close(&apply("GlobalLpPool", vec![], x.clone()), &pooled(6.0));
    check_close(&apply("GlobalLpPool", vec![int("p", 1)], x), &pooled(10.0));
    let x = Tensor::from_shape(&[1, 1, 2, 2], &[3000f32, 3001.0, 3002.0, 3003.0]).unwrap();
    let far = [-1.341_640_8f32, -0.447_213_6, 0.447_213_6, 1.341_640_8];
    let expected = Tensor::from_shape(&[1, 1, 2, 2], &far).unwrap();
    check_close(&apply("MeanVarianceNormalization", vec![], x), &expected);
    let x = Tensor::from_shape(&[1, 1, 2, 1], &[1f32, 3.0]).unwrap();
    let transformed = Tensor::from_shape(&[1, 1, 2, 2], &[4f32, 0.0, -2.0, 0.0]).unwrap();
    check_close(&apply("DFT", vec![], x), &transformed);
    let nodes = [node("DynamicQuantizeLinear", &["x"], &["q", "s", "z"], vec![])];
    let found = run(17, &nodes, &[("x", tensor1(&[0f32, 0.0]))], &[], &["q", "s", "z"]);
    assert_eq!(found, [tensor1(&[0u8, 0]), tensor0(1f32), tensor0(0u8)]);
}

/// The import failed: steps were moved before the axis that they go along.
#[test]
fn steps_may_go_along_a_new_axis() {
    let nodes = [
        node("Unsqueeze", &["x", "zero"], &["u"], vec![]),
        node("Slice", &["u", "zero", "end", "zero", "two"], &["v"], vec![]),
        node("Reshape", &["v", "shape"], &["w"], vec![]),
        node("Slice", &["w", "zero", "end", "one", "two"], &["y"], vec![]),
        node("Slice", &["w", "end", "zero", "one", "back"], &["z"], vec![]),
    ];
    let one = |value: i64| tensor1(&[value]);
    let constants = [
        ("zero", one(0)),
        ("one", one(1)),
        ("two", one(2)),
        ("end", one(9)),
        ("back", one(-2)),
        ("shape", tensor1(&[2i64, 3])),
    ];
    let found =
        run(17, &nodes, &[("x", tensor1(&[0f32, 1., 2., 3., 4., 5.]))], &constants, &["y", "z"]);
    assert_eq!(found[0], tensor2(&[[0f32, 2.0], [3.0, 5.0]]));
    assert_eq!(found[1], tensor2(&[[2f32], [5.0]]));
}

/// What is refused, and that the refusal names node, operator and what is wrong.
fn check_refused(version: i64, node: NodeProto, expected: &[&str]) {
    let inputs = [("x", numbers(&[3, 1, 2], 1.0))];
    let constants =
        [("w", numbers(&[1, 8, 2], 2.0)), ("r", numbers(&[1, 8, 2], 3.0)), ("n", tensor1(&[2i64]))];
    let node = NodeProto { name: "layer.3".to_string(), ..node };
    let model = model(version, &[node], &inputs, &constants, &["y"]);
    let refusal = import(model.encode_to_vec(), &[]).err().expect("it is refused").to_string();
    for part in expected {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
}

/// Each of these was computed as if the attribute were not there.
#[test]
fn attributes_that_would_not_be_honoured_are_refused_by_name() {
    let lstm = |attribute: AttributeProto| {
        node("LSTM", &["x", "w", "r"], &["y"], vec![int("hidden_size", 2), attribute])
    };
    check_refused(17, lstm(float("clip", 3.0)), &["\"layer.3\" (LSTM)", "attribute clip"]);
    check_refused(17, lstm(int("input_forget", 1)), &["input_forget is 1; only 0"]);
    let softmax = node("Softmax", &["x"], &["y"], vec![float("temperature", 2.0)]);
    check_refused(17, softmax, &["(Softmax)", "temperature"]);
    let sum = node("ReduceSum", &["x"], &["y"], vec![ints("axes", &[0])]);
    check_refused(13, sum, &["(ReduceSum)", "axes is an input"]);
    let same = vec![string("auto_pad", "SAME_UPPER"), ints("output_padding", &[1])];
    let transposed = node("ConvTranspose", &["x", "w"], &["y"], same);
    check_refused(17, transposed, &["(ConvTranspose)", "output_padding"]);
    let cubes = vec![string("mode", "cubic"), string("padding_mode", "border")];
    check_refused(20, node("GridSample", &["x", "w"], &["y"], cubes), &["(GridSample)", "border"]);
    let mut rotary = node("RotaryEmbedding", &["x", "n", "w", "r"], &["y"], vec![]);
    rotary.domain = "com.microsoft".to_string();
    check_refused(17, rotary, &["(RotaryEmbedding)", "one offset"]);
}

/// Operators were looked up by type alone: `own::Relu` was ONNX's.
#[test]
fn operators_of_unknown_domains_are_refused() {
    let mut relu = node("Relu", &["x"], &["y"], vec![]);
    relu.domain = "own".to_string();
    check_refused(17, relu.clone(), &["\"layer.3\" (Relu)", "domain \"own\""]);
    let body = |node: NodeProto| AttributeProto {
        name: "then_branch".to_string(),
        r#type: AttributeType::Graph as i32,
        g: Some(GraphProto { node: vec![node], ..Default::default() }),
        ..Default::default()
    };
    check_refused(17, node("If", &["x"], &["y"], vec![body(relu)]), &["(Relu)", "domain \"own\""]);
    let unknown = node("Relux", &["x"], &["y"], vec![]);
    check_refused(17, unknown, &["(Relux)", "no such operator"]);
}

/// Versions of operators that did not exist yet were taken without a word.
#[test]
fn versions_that_the_tables_do_not_cover_are_refused() {
    let relu = || node("Relu", &["x"], &["y"], vec![]);
    check_refused(99, relu(), &["version 99", "ai.onnx"]);
    let dropout = node("Dropout", &["x"], &["y"], vec![]);
    check_refused(6, dropout, &["(Dropout)", "before version 7"]);
    let mut model = model(17, &[relu()], &[("x", tensor1(&[1f32]))], &[], &["y"]);
    model.opset_import.clear();
    let refusal = import(model.encode_to_vec(), &[]).err();
    assert!(matches!(refusal, Some(GraphError::Unsupported { .. })), "{refusal:?}");
}
