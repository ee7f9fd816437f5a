//! What a graph may do with a weight: use it in several ways, cast it, move it about.

use super::*;
use common::small_store::{self, SmallModel};

const FLOAT: i64 = 1;
const INT32: i64 = 6;

/// Products with a weight and with its transpose: the second got the panels of the first. A square
/// one gave wrong numbers, an oblong one was never answered. The same weight may be a table, too.
#[test]
fn a_weight_and_its_transpose_are_both_multiplied_with() {
    for [depth, outputs] in [[32, 32], [24, 40], [40, 24]] {
        let w = wave(depth * outputs, 0.37);
        let (x, array) = activations(depth);
        let nodes = vec![
            node("MatMul", &["x", "W"], "h", &[]),
            node("Transpose", &["W"], "T", &[("perm", &[1, 0])]),
            node("MatMul", &["h", "T"], "y", &[]),
            node("Gather", &["W", "row"], "table", &[]),
        ];
        let row = raw("row", 7, &[1], 7i64.to_le_bytes().to_vec());
        let tensors = vec![f32s("W", &[depth, outputs], &w), row];
        let model = model(depth, nodes, tensors, &["h", "y", "table"]);
        let h = product(&x, &w, depth);
        let y = product(&h, &transposed(&w, outputs), outputs);
        let table = rows(&w, outputs, &[7]);
        check(&model, &[("x", array)], &[("h", h), ("y", y), ("table", table)]);
    }
}

/// The same in Gemm's words, the transposed use first.
#[test]
fn a_transposed_use_may_come_first() {
    let size = 32;
    let w = wave(size * size, 0.37);
    let nodes = vec![
        node("Gemm", &["x", "W"], "h", &[("transB", &[1])]),
        node("Gemm", &["h", "W"], "y", &[]),
    ];
    let x = port("x", Dtype::Fp32, &["n", &size.to_string()]);
    let outputs = vec![output("y", Dtype::Fp32)];
    let graph = graph_of(vec![x], nodes, outputs);
    let model = onnx(GraphProto { initializer: vec![f32s("W", &[size, size], &w)], ..graph });
    let values = wave(size, 0.61);
    let y = product(&product(&values, &transposed(&w, size), size), &w, size);
    let array = Array::from_f32(vec![1, size], &values).unwrap();
    check(&model, &[("x", array)], &[("y", y)]);
}

/// A store that an older program made of such a model has one of the two ways only. It is refused
/// when it is loaded, and one in which all products use the weight the same way is not.
#[test]
fn a_store_with_one_way_of_two_is_refused() {
    let graph = |second: [NodeProto; 2]| {
        let [turn, product] = second;
        let nodes = vec![node("MatMul", &["x", "W"], "y", &[]), turn, product];
        let inputs =
            vec![port("x", Dtype::Fp32, &["1", "seq", "4"]), port("W", Dtype::Fp32, &["4", "4"])];
        graph_of(inputs, nodes, vec![output("y", Dtype::Fp32), output("z", Dtype::Fp32)])
    };
    let same = graph([node("Identity", &["W"], "V", &[]), node("MatMul", &["x", "V"], "z", &[])]);
    let turned = graph([
        node("Transpose", &["W"], "V", &[("perm", &[1, 0])]),
        node("MatMul", &["x", "V"], "z", &[]),
    ]);
    let place = Place::new();
    let store = place.folder.path().join("store");
    fs::create_dir(&store).unwrap();
    let w = wave(16, 0.37);
    let small = SmallModel {
        name: "m",
        graph: same,
        weights: vec![("W", [4, 4], w.clone())],
        tokenizer: None,
        task: None,
    };
    small_store::write(&store, small);
    let (x, array) = activations(4);
    let inputs = [("x", array)];
    let y = product(&x, &w, 4);
    check_answers(&place, &[("f32", 1e-5)], &inputs, &[("y", y.clone()), ("z", y)]);

    let version = store.join("m/1");
    let skeleton = onnx(turned).encode_to_vec();
    fs::write(version.join("graph.onnx"), &skeleton).unwrap();
    let text = fs::read(version.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    manifest["graph"]["bytes"] = skeleton.len().into();
    let checksum = xxhash_rust::xxh3::xxh3_64(&skeleton);
    manifest["graph"]["checksum"] = format!("{checksum:016x}").into();
    fs::write(version.join("manifest.json"), manifest.to_string()).unwrap();
    let engine = Engine::start(Config::new(store, 256 << 20)).unwrap();
    let error = engine.load("m").err().expect("it lacks a way").to_string();
    for word in ["weight \"W\" as ColumnPanels", "shard the model again"] {
        assert!(error.contains(word), "{error}");
    }
}

/// One weight in a product, in elementwise use, as an output and as a bias.
#[test]
fn a_weight_may_be_anything_at_once() {
    let size = 32;
    let w = wave(size * size, 0.37);
    let bias = wave(512, 0.2);
    let (x, array) = activations(size);
    let nodes = vec![
        node("MatMul", &["x", "W"], "y", &[]),
        node("Mul", &["W", "W"], "square", &[]),
        node("Identity", &["W"], "same", &[]),
        node("Reshape", &["W", "long"], "flat", &[]),
        node("MatMul", &["flat", "one"], "column", &[]),
        node("Slice", &["W", "from", "to"], "part", &[]),
        node("Concat", &["W", "part"], "both", &[("axis", &[0])]),
        node("Unsqueeze", &["W", "from"], "more", &[]),
        node("MatMul", &["x", "more"], "again", &[]),
        node("Expand", &["bias", "shape"], "wide", &[]),
    ];
    let longs = |name: &str, values: &[i64]| {
        raw(name, 7, &[values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    let tensors = vec![
        f32s("W", &[size, size], &w),
        f32s("one", &[1, 1], &[2.0]),
        f32s("bias", &[512], &bias),
        longs("long", &[-1, 1]),
        longs("from", &[0]),
        longs("to", &[2]),
        longs("shape", &[1, 512]),
    ];
    let outs = ["y", "square", "same", "column", "both", "again", "wide"];
    let model = model(size, nodes, tensors, &outs);
    let y = product(&x, &w, size);
    let both: Vec<f32> = w.iter().chain(&w[..2 * size]).copied().collect();
    let expected = [
        ("y", y.clone()),
        ("square", w.iter().map(|v| v * v).collect()),
        ("same", w.clone()),
        ("column", w.iter().map(|v| v * 2.0).collect()),
        ("both", both),
        ("again", y),
        ("wide", bias),
    ];
    check(&model, &[("x", array)], &expected);
}

/// A cast between a weight and a product or gather counts: the bits of integers were taken for
/// floats, and a cast to INT32 and back was skipped.
#[test]
fn casts_of_weights_count() {
    let size = 32;
    let (x, array) = activations(size);
    let floats = wave(size * size, 0.37);
    let truncated: Vec<f32> = floats.iter().map(|value| value.trunc()).collect();
    let bytes = |bytes: fn(f32) -> Vec<u8>| floats.iter().flat_map(|v| bytes(v.trunc())).collect();
    let once: &[i64] = &[FLOAT];
    let back: &[i64] = &[INT32, FLOAT];
    let signs: Vec<f32> = floats.iter().map(|v| f32::from(u8::from(*v > 0.0))).collect();
    let sign_bytes = floats.iter().map(|v| u8::from(*v > 0.0) * 3).collect();
    let dims = [size, size];
    let cases = [
        (raw("W", 3, &dims, bytes(|v| vec![(v as i8).cast_unsigned()])), once, &truncated),
        (raw("W", 6, &dims, bytes(|v| (v as i32).to_le_bytes().to_vec())), once, &truncated),
        (raw("W", 7, &dims, bytes(|v| (v as i64).to_le_bytes().to_vec())), once, &truncated),
        (raw("W", 11, &dims, bytes(|v| f64::from(v).to_le_bytes().to_vec())), once, &truncated),
        (raw("W", 9, &dims, sign_bytes), once, &signs),
        (f32s("W", &dims, &floats), once, &floats),
        (f32s("W", &dims, &floats), back, &truncated),
    ];
    for (w, casts, expected) in cases {
        let names: Vec<String> = (0..=casts.len()).map(|i| format!("w{i}")).collect();
        let mut nodes = vec![node("Identity", &["W"], &names[0], &[])];
        for (step, to) in casts.iter().enumerate() {
            nodes.push(node("Cast", &[&names[step]], &names[step + 1], &[("to", &[*to])]));
        }
        let last = &names[casts.len()];
        let mut linear = nodes.clone();
        linear.push(node("MatMul", &["x", last], "y", &[]));
        let model = model(size, linear, vec![w.clone()], &["y"]);
        let check = if casts.len() > 1 { check_exact } else { check };
        check(&model, &[("x", array.clone())], &[("y", product(&x, expected, size))]);
        nodes.push(node("Gather", &[last, "ids"], "y", &[]));
        let picked = [0, 31, 7, 7];
        let expected = rows(expected, size, &picked);
        check(&lookup(nodes, vec![w], &["y"]), &[("ids", ids(&picked))], &[("y", expected)]);
    }
}

/// Nodes may share a name, with each other and with tensors: tract refused them.
#[test]
fn nodes_may_share_a_name() {
    let size = 32;
    let w = wave(size * size, 0.37);
    let (x, array) = activations(size);
    let named = |name: &str, node: NodeProto| NodeProto { name: name.to_string(), ..node };
    let nodes = vec![
        named("same", node("MatMul", &["x", "W"], "h", &[])),
        named("same", node("MatMul", &["h", "W"], "g", &[])),
        named("W", node("Neg", &["g"], "same", &[])),
        named("", node("Neg", &["same"], "x_", &[])),
        named("x", node("Identity", &["x_"], "y", &[])),
    ];
    let model = model(size, nodes, vec![f32s("W", &[size, size], &w)], &["y"]);
    let y = product(&product(&x, &w, size), &w, size);
    check(&model, &[("x", array)], &[("y", y)]);
}

/// A product whose output only tells its shape is not computed: its op has a slot and no place on
/// the tape.
#[test]
fn a_product_that_nobody_needs_is_no_harm() {
    let size = 32;
    let w = wave(size * size, 0.37);
    let (x, array) = activations(size);
    let nodes = vec![
        node("MatMul", &["x", "W"], "unused", &[]),
        node("Shape", &["unused"], "shape", &[]),
        node("Reshape", &["x", "shape"], "z", &[]),
        node("MatMul", &["z", "W"], "y", &[]),
    ];
    let model = model(size, nodes, vec![f32s("W", &[size, size], &w)], &["y"]);
    check(&model, &[("x", array)], &[("y", product(&x, &w, size))]);
}
