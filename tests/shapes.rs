//! Dimensions and batches: what hermes-shard makes of the open dimensions of a model's inputs, and
//! how requests of several rows are answered.

mod common;

use common::programs::program;
use common::small_store::{graph_of, node, output, port};
use hermes::engine::{Array, Cancel, Config, Engine, EngineError, Reply, Request};
use hermes::store::{Dtype, Store};
use prost::Message;
use std::fs;
use std::process::{Command, Output};
use tract_onnx::pb::{
    AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType,
};

/// Most models have one weight: `W` of 32 by 48, streamed.
const DEPTH: usize = 32;
const WIDTH: usize = 48;

/// A folder with a model and the store that it is sharded into.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    /// `hermes-shard build` of a graph.
    fn try_build(&self, model: &ModelProto, arguments: &[&str]) -> Output {
        let path = self.0.path().join("model.onnx");
        fs::write(&path, model.encode_to_vec()).unwrap();
        let mut command = Command::new(program("hermes-shard"));
        command.arg("build").arg(path).arg("--store").arg(self.0.path().join("store"));
        command.args(["--name", "m", "--threshold", "1024", "--force"]).args(arguments);
        command.output().unwrap()
    }

    /// The same, which succeeds; what it said.
    fn build(&self, model: &ModelProto, arguments: &[&str]) -> String {
        let output = self.try_build(model, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    /// The same, which is refused; why.
    fn refuse(&self, model: &ModelProto, arguments: &[&str]) -> String {
        let output = self.try_build(model, arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }

    fn engine(&self) -> Engine {
        Engine::start(Config::new(self.0.path().join("store"), 256 << 20)).unwrap()
    }
}

fn model_of(
    inputs: Vec<ValueInfoProto>,
    nodes: Vec<NodeProto>,
    outputs: Vec<ValueInfoProto>,
    tensors: Vec<TensorProto>,
    opset: i64,
) -> ModelProto {
    let mut graph = graph_of(inputs, nodes, outputs);
    graph.initializer = tensors;
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims = dims.to_vec();
    TensorProto { name: name.to_string(), data_type: 1, dims, raw_data, ..TensorProto::default() }
}

fn integers(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    let raw_data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims = dims.to_vec();
    TensorProto { name: name.to_string(), data_type: 7, dims, raw_data, ..TensorProto::default() }
}

fn wave(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * step).sin()).collect()
}

/// The weight `W`.
fn weight() -> TensorProto {
    floats("W", &[DEPTH as i64, WIDTH as i64], &wave(DEPTH * WIDTH, 0.37))
}

fn x(dims: &[&str]) -> ValueInfoProto {
    port("x", Dtype::Fp32, dims)
}

/// `y = x W`, with `x` of these dimensions.
fn product(dims: &[&str]) -> ModelProto {
    let nodes = vec![node("MatMul", &["x", "W"], "y")];
    model_of(vec![x(dims)], nodes, vec![output("y", Dtype::Fp32)], vec![weight()], 17)
}

fn with_ints(mut node: NodeProto, name: &str, ints: &[i64]) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Ints as i32,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    });
    node
}

fn with_int(mut node: NodeProto, name: &str, i: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Int as i32,
        i,
        ..AttributeProto::default()
    });
    node
}

fn with_text(mut node: NodeProto, name: &str, text: &str) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::String as i32,
        s: text.as_bytes().to_vec(),
        ..AttributeProto::default()
    });
    node
}

fn array(shape: &[usize], step: f32) -> Array {
    Array::from_f32(shape.to_vec(), &wave(shape.iter().product(), step)).unwrap()
}

fn infer(engine: &Engine, inputs: &[(&str, Array)]) -> Result<Reply, EngineError> {
    let inputs = inputs.iter().map(|(name, array)| (name.to_string(), array.clone())).collect();
    engine.infer(Request {
        model: "m".to_string(),
        inputs,
        outputs: vec![],
        cancel: Cancel::new(),
        target: None,
        trace: None,
    })
}

/// Output `index` of a request that is answered.
fn answer(engine: &Engine, inputs: &[(&str, Array)], index: usize) -> Array {
    infer(engine, inputs).unwrap().outputs[index].1.clone()
}

fn refusal(engine: &Engine, inputs: &[(&str, Array)]) -> String {
    infer(engine, inputs).unwrap_err().to_string()
}

/// `x W` by hand, rows of `x` one after the other.
fn multiplied(x: &Array) -> Vec<f32> {
    let (x, w) = (x.to_f32().unwrap(), wave(DEPTH * WIDTH, 0.37));
    let row = |row: &[f32], column: usize| -> f32 {
        row.iter().enumerate().map(|(k, value)| value * w[k * WIDTH + column]).sum()
    };
    x.chunks(DEPTH)
        .flat_map(|values| (0..WIDTH).map(move |c| (values, c)))
        .map(|(v, c)| row(v, c))
        .collect()
}

fn check_near(found: &Array, shape: &[usize], expected: &[f32]) {
    assert_eq!(found.shape, shape);
    let found = found.to_f32().unwrap();
    assert_eq!(found.len(), expected.len());
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
    assert!(found.iter().zip(expected).all(near), "{:?}, not {:?}", &found[..4], &expected[..4]);
}

/// The first open axis of every input became 1 without a word, whatever it was: tables of rows,
/// images of height, width and colour, sequences with time in front were refused at each request.
#[test]
fn what_is_no_batch_stays_open() {
    for dims in [&["num_boxes", "32"][..], &["height", "width", "32"], &["time", "1", "32"]] {
        let place = Place::new();
        assert_eq!(place.build(&product(dims), &[]).matches("dimension").count(), 0);
        let shape: Vec<usize> = dims.iter().map(|dim| dim.parse().unwrap_or(6)).collect();
        let x = array(&shape, 0.11);
        let mut expected = shape.clone();
        *expected.last_mut().unwrap() = WIDTH;
        check_near(&answer(&place.engine(), &[("x", x.clone())], 0), &expected, &multiplied(&x));
    }
}

/// A mask [seq, seq] fixed the sequence at one token, since its name was that of a leading axis.
#[test]
fn a_square_mask_leaves_the_sequence_open() {
    let place = Place::new();
    let nodes = vec![
        node("MatMul", &["x", "W"], "h"),
        with_ints(node("Transpose", &["h"], "t"), "perm", &[0, 2, 1]),
        node("MatMul", &["h", "t"], "s"),
        node("Add", &["s", "mask"], "y"),
    ];
    let inputs = vec![x(&["batch", "seq", "32"]), port("mask", Dtype::Fp32, &["seq", "seq"])];
    let model = model_of(inputs, nodes, vec![output("y", Dtype::Fp32)], vec![weight()], 17);
    assert!(place.build(&model, &[]).contains("dimension batch is taken for the batch"));
    let engine = place.engine();
    let ask = |rows: usize| {
        let inputs = [("x", array(&[rows, 5, DEPTH], 0.3)), ("mask", array(&[5, 5], 0.7))];
        answer(&engine, &inputs, 0)
    };
    assert_eq!(ask(1).shape, [1, 5, 5]);
    assert_eq!(ask(3).shape, [3, 5, 5]);
    let wrong = [("x", array(&[1, 5, DEPTH], 0.3)), ("mask", array(&[4, 4], 0.7))];
    assert!(refusal(&engine, &wrong).contains("has seq = 4 in axis 0"));
}

/// Two dimensions called "?" became one, so that only squares were taken.
#[test]
fn dimensions_without_a_name_are_different() {
    let place = Place::new();
    place.build(&product(&["?", "?", "32"]), &[]);
    let x = array(&[2, 5, DEPTH], 0.2);
    check_near(&answer(&place.engine(), &[("x", x.clone())], 0), &[2, 5, WIDTH], &multiplied(&x));
}

/// A request with several rows was refused: clients that send batches were never answered.
#[test]
fn a_batch_has_the_bits_of_its_rows_alone() {
    // With the batch in front, behind the sequence, and moved by the model.
    for (dims, axis, perm) in [
        (["batch_size", "seq", "32"], 0, [0, 1, 2]),
        (["seq", "batch_size", "32"], 1, [0, 1, 2]),
        (["batch_size", "seq", "32"], 0, [1, 2, 0]),
    ] {
        let place = Place::new();
        let nodes = vec![
            node("MatMul", &["x", "W"], "h"),
            with_ints(node("Transpose", &["h"], "y"), "perm", &perm),
        ];
        let outputs = vec![output("y", Dtype::Fp32), output("h", Dtype::Fp32)];
        let said = place.build(&model_of(vec![x(&dims)], nodes, outputs, vec![weight()], 17), &[]);
        assert!(said.contains("dimension batch_size is taken for the batch"), "{said}");
        let engine = place.engine();
        // More than a pass has seats for several requests.
        for rows in [1, 2, 7, 40, 256] {
            let mut shape = [3, 3, DEPTH];
            shape[axis] = rows;
            let x = array(&shape, 0.013);
            let reply = infer(&engine, &[("x", x.clone())]).unwrap();
            assert_eq!(reply.stats.seats, 1, "one request has the pass to itself");
            for (name, all) in &reply.outputs {
                let along = if name == "y" {
                    perm.iter().position(|a| *a == axis as i64).unwrap()
                } else {
                    axis
                };
                let index = usize::from(name == "h");
                for row in [0, rows / 2, rows - 1] {
                    let alone = answer(&engine, &[("x", x.row(axis, row))], index);
                    assert!(all.row(along, row) == alone, "row {row} of {rows}, {name}");
                }
            }
        }
        for rows in [0, 257] {
            let mut shape = [3, 3, DEPTH];
            shape[axis] = rows;
            let refused = refusal(&engine, &[("x", array(&shape, 0.1))]);
            let why = format!("batch_size is {rows}: a request has 1 to 256 rows in its batch");
            assert!(refused.contains(&why), "{refused}");
        }
    }
}

/// Inputs that have the batch are cut, the others are the same for each row.
#[test]
fn inputs_without_a_batch_are_shared_by_its_rows() {
    let place = Place::new();
    let nodes = vec![node("MatMul", &["x", "W"], "h"), node("Add", &["h", "bias"], "y")];
    let inputs = vec![x(&["batch", "4", "32"]), port("bias", Dtype::Fp32, &["4", "48"])];
    let model = model_of(inputs, nodes, vec![output("y", Dtype::Fp32)], vec![weight()], 17);
    place.build(&model, &[]);
    let (x, bias) = (array(&[3, 4, DEPTH], 0.2), array(&[4, WIDTH], 0.5));
    let bias_values = bias.to_f32().unwrap();
    let expected: Vec<f32> =
        multiplied(&x).iter().zip(bias_values.iter().cycle()).map(|(a, b)| a + b).collect();
    let found = answer(&place.engine(), &[("x", x), ("bias", bias)], 0);
    check_near(&found, &[3, 4, WIDTH], &expected);
}

/// Two inputs with batches of different names are one batch where their rows belong together.
#[test]
fn batches_of_two_names_are_one_where_their_rows_are() {
    let place = Place::new();
    let nodes = vec![node("MatMul", &["x", "W"], "h"), node("Add", &["h", "z"], "y")];
    let inputs = vec![x(&["batch_x", "2", "32"]), port("z", Dtype::Fp32, &["batch_z", "2", "48"])];
    let model = model_of(inputs, nodes, vec![output("y", Dtype::Fp32)], vec![weight()], 17);
    place.build(&model, &[]);
    let engine = place.engine();
    let ask =
        |rows: usize| [("x", array(&[3, 2, DEPTH], 0.2)), ("z", array(&[rows, 2, WIDTH], 0.1))];
    assert_eq!(answer(&engine, &ask(3), 0).shape, [3, 2, WIDTH]);
    assert!(refusal(&engine, &ask(2)).contains("input \"z\""));
}

/// Rows that depend on each other are no batch, whatever the dimension is called: each was computed
/// as if it were alone.
#[test]
fn rows_that_depend_on_each_other_are_no_batch() {
    let softmax = with_int(node("Softmax", &["h"], "y"), "axis", 0);
    let mean = with_ints(node("ReduceMean", &["h"], "y"), "axes", &[0]);
    let first = with_ints(node("Slice", &["h"], "y"), "axes", &[0]);
    let first = with_ints(with_ints(first, "starts", &[0]), "ends", &[2]);
    for (last, opset, rows) in [(softmax, 17, 4), (mean, 17, 1), (first, 9, 2)] {
        let place = Place::new();
        let nodes = vec![node("MatMul", &["x", "W"], "h"), last];
        let outputs = vec![output("y", Dtype::Fp32)];
        let model = model_of(vec![x(&["batch", "32"])], nodes, outputs, vec![weight()], opset);
        assert!(!place.build(&model, &[]).contains("taken for the batch"));
        let x = array(&[4, DEPTH], 0.2);
        let found = answer(&place.engine(), &[("x", x.clone())], 0);
        assert_eq!(found.shape, [rows, WIDTH]);
        if rows == 1 {
            let all = multiplied(&x);
            let mean: Vec<f32> =
                (0..WIDTH).map(|c| (0..4).map(|r| all[r * WIDTH + c]).sum::<f32>() / 4.0).collect();
            check_near(&found, &[1, WIDTH], &mean);
        }
        if rows == 4 {
            let values = found.to_f32().unwrap();
            let column: f32 = (0..4).map(|row| values[row * WIDTH]).sum();
            assert!((column - 1.0).abs() < 1e-5, "{column}");
        }
    }
}

/// What made-up inputs could not try was taken for a batch by its name.
#[test]
fn what_cannot_be_compared_is_a_batch_where_it_is_named() {
    let place = Place::new();
    // No index that is made up lies in the table, times a hundred.
    let nodes =
        vec![node("Mul", &["ids", "hundred"], "far"), node("Gather", &["rows", "far"], "y")];
    let rows = floats("rows", &[3, 128], &wave(3 * 128, 0.1));
    let tensors = vec![rows, integers("hundred", &[1], &[100])];
    let ids = vec![port("ids", Dtype::Int64, &["batch", "seq"])];
    let model = model_of(ids, nodes, vec![output("y", Dtype::Fp32)], tensors, 17);
    let said = place.build(&model, &[]);
    assert!(
        said.contains("dimension batch is no batch") && said.contains("--batch-axis"),
        "{said}"
    );
    let said = place.build(&model, &["--batch-axis", "batch"]);
    assert!(said.contains("were not compared") && said.contains("taken for the batch"), "{said}");
}

#[test]
fn the_batch_is_what_one_is_told() {
    let place = Place::new();
    let batch = product(&["batch", "seq", "32"]);
    let shape = |place: &Place| place.engine().manifest("m").unwrap().inputs[0].shape.clone();
    let shown = |place: &Place| serde_json::to_value(shape(place)).unwrap().to_string();
    place.build(&batch, &["--batch-axis", "none"]);
    assert_eq!(shown(&place), r#"["batch","seq",32]"#);
    place.build(&batch, &["--dim", "batch=2"]);
    assert_eq!(shown(&place), r#"[2,"seq",32]"#);
    place.build(&product(&["rows", "seq", "32"]), &["--batch-axis", "rows"]);
    assert_eq!(shown(&place), r#"[1,"seq",32]"#);
    let manifest = place.engine().manifest("m").unwrap();
    let given = serde_json::to_value(&manifest.given_inputs().next().unwrap().shape).unwrap();
    assert_eq!(given.to_string(), r#"["rows","seq",32]"#);
    let unknown = place.refuse(&batch, &["--batch-axis", "rows"]);
    assert!(unknown.contains("no input has an open dimension \"rows\""), "{unknown}");
    let twice = place.refuse(&product(&["n", "n", "32"]), &["--batch-axis", "n"]);
    assert!(twice.contains("input \"x\" has it twice"), "{twice}");
}

/// Axes of length 0 were refused whatever the model does with them: an empty past, no token at all.
#[test]
fn axes_of_length_0_are_taken_where_the_graph_computes_them() {
    let place = Place::new();
    let nodes = vec![
        with_int(node("Concat", &["past", "x"], "all"), "axis", 1),
        node("MatMul", &["all", "W"], "y"),
    ];
    let inputs =
        vec![port("past", Dtype::Fp32, &["batch", "past", "32"]), x(&["batch", "seq", "32"])];
    let model = model_of(inputs, nodes, vec![output("y", Dtype::Fp32)], vec![weight()], 17);
    place.build(&model, &[]);
    let engine = place.engine();
    let past = |rows: usize| Array::from_f32(vec![rows, 0, DEPTH], &[]).unwrap();
    let x = array(&[2, 3, DEPTH], 0.2);
    let found = answer(&engine, &[("past", past(2)), ("x", x.clone())], 0);
    check_near(&found, &[2, 3, WIDTH], &multiplied(&x));
    let none = [("past", past(1)), ("x", past(1))];
    assert_eq!(answer(&engine, &none, 0).shape, [1, 0, WIDTH]);
}

#[test]
fn an_axis_of_length_0_that_cannot_be_computed_is_named() {
    let place = Place::new();
    let last = with_ints(node("Slice", &["h"], "y"), "axes", &[1]);
    let last = with_ints(with_ints(last, "starts", &[-1]), "ends", &[i64::MAX]);
    let nodes = vec![node("MatMul", &["x", "W"], "h"), last];
    let model = model_of(
        vec![x(&["1", "seq", "32"])],
        nodes,
        vec![output("y", Dtype::Fp32)],
        vec![weight()],
        9,
    );
    place.build(&model, &[]);
    let refused =
        refusal(&place.engine(), &[("x", Array::from_f32(vec![1, 0, DEPTH], &[]).unwrap())]);
    assert!(refused.contains("input \"x\" has length 0 in axis 1, with which"), "{refused}");
}

/// A bound beyond the end of an open axis was accepted and refused at each request, and with an old
/// opset not even accepted.
#[test]
fn slices_end_where_their_axis_does() {
    for opset in [9, 17] {
        let place = Place::new();
        let (mut cut, mut tensors) = (node("Slice", &["h"], "y"), vec![weight()]);
        if opset == 9 {
            cut = with_ints(cut, "axes", &[1]);
            cut = with_ints(with_ints(cut, "starts", &[-512]), "ends", &[512]);
        } else {
            for (name, value) in [("starts", -512), ("ends", 512), ("axes", 1)] {
                cut.input.push(name.to_string());
                tensors.push(integers(name, &[1], &[value]));
            }
        }
        let nodes = vec![node("MatMul", &["x", "W"], "h"), cut];
        let outputs = vec![output("y", Dtype::Fp32)];
        let model = model_of(vec![x(&["1", "seq", "32"])], nodes, outputs, tensors, opset);
        place.build(&model, &[]);
        let engine = place.engine();
        for length in [1, 5, 512] {
            let x = array(&[1, length, DEPTH], 0.2);
            let found = answer(&engine, &[("x", x.clone())], 0);
            check_near(&found, &[1, length, WIDTH], &multiplied(&x));
        }
        // Of 600, the last 512 begin at 88 and the first end at 512.
        let x = array(&[1, 600, DEPTH], 0.2);
        let all = multiplied(&x);
        let found = answer(&engine, &[("x", x)], 0);
        check_near(&found, &[1, 424, WIDTH], &all[88 * WIDTH..512 * WIDTH]);
    }
}

/// A slice of an old opset that takes nothing away gave its own name to the input.
#[test]
fn a_slice_that_does_nothing_renames_nothing() {
    let place = Place::new();
    let cut = with_ints(node("Slice", &["x"], "s"), "axes", &[0]);
    let cut = with_ints(with_ints(cut, "starts", &[0]), "ends", &[1]);
    let nodes = vec![cut, node("MatMul", &["s", "W"], "y")];
    let outputs = vec![output("y", Dtype::Fp32)];
    let model = model_of(vec![x(&["1", "5", "32"])], nodes, outputs, vec![weight()], 9);
    place.build(&model, &[]);
    let x = array(&[1, 5, DEPTH], 0.2);
    check_near(&answer(&place.engine(), &[("x", x.clone())], 0), &[1, 5, WIDTH], &multiplied(&x));
}

/// Outputs that no node makes: tract forgot the type of such an input or constant. A shape that is
/// an output left the engine as an expression, which it cannot.
#[test]
fn inputs_weights_and_shapes_may_be_outputs() {
    let place = Place::new();
    let nodes = vec![node("MatMul", &["x", "W"], "y"), node("Shape", &["y"], "s")];
    let outputs = vec![
        output("y", Dtype::Fp32),
        output("x", Dtype::Fp32),
        output("W", Dtype::Fp32),
        output("s", Dtype::Int64),
    ];
    let model = model_of(vec![x(&["1", "seq", "32"])], nodes, outputs, vec![weight()], 17);
    place.build(&model, &[]);
    let x = array(&[1, 5, DEPTH], 0.2);
    let reply = infer(&place.engine(), &[("x", x.clone())]).unwrap();
    check_near(&reply.outputs[0].1, &[1, 5, WIDTH], &multiplied(&x));
    assert_eq!(reply.outputs[1], ("x".to_string(), x));
    let weight = Array::from_f32(vec![DEPTH, WIDTH], &wave(DEPTH * WIDTH, 0.37)).unwrap();
    assert_eq!(reply.outputs[2], ("W".to_string(), weight));
    let shape = Array::from_i64(vec![3], &[1, 5, WIDTH as i64]).unwrap();
    assert_eq!(reply.outputs[3], ("s".to_string(), shape));
}

/// A detector's neck: two roads halve the height, one more often, and meet again. Tract does not see
/// that the heights are equal, and height was fixed at nonsense.
#[test]
fn sizes_that_only_look_different_meet() {
    let place = Place::new();
    let halve = |mut node: NodeProto| {
        node = with_ints(node, "pads", &[1, 1, 1, 1]);
        with_ints(node, "strides", &[2, 2])
    };
    let resize = with_text(node("Resize", &["b", "", "scales"], "u"), "mode", "nearest");
    let resize = with_text(resize, "coordinate_transformation_mode", "asymmetric");
    let nodes = vec![
        halve(node("Conv", &["x", "w"], "a")),
        halve(node("Conv", &["a", "v"], "b")),
        with_text(resize, "nearest_mode", "floor"),
        with_int(node("Concat", &["a", "u"], "y"), "axis", 1),
    ];
    let tensors = vec![
        floats("w", &[4, 3, 3, 3], &wave(108, 0.3)),
        floats("v", &[4, 4, 3, 3], &wave(144, 0.3)),
        floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]),
    ];
    let inputs = vec![x(&["batch", "3", "height", "width"])];
    place.build(&model_of(inputs, nodes, vec![output("y", Dtype::Fp32)], tensors, 17), &[]);
    let engine = place.engine();
    for (height, width) in [(32, 32), (64, 20), (3, 8)] {
        let ask = |rows| [("x", array(&[rows, 3, height, width], 0.05))];
        let shape = [2, 8, height.div_ceil(2), width.div_ceil(2)];
        assert_eq!(answer(&engine, &ask(2), 0).shape, shape);
    }
    let refused = refusal(&engine, &[("x", array(&[1, 3, 34, 32], 0.05))]);
    assert!(refused.contains("other sizes of the inputs may do"), "{refused}");
}

/// Tract has no kernel for products of 64-bit integers, and panicked.
#[test]
fn products_of_64_bit_integers_are_exact() {
    let place = Place::new();
    let weights: Vec<i64> = (0..32 * 48).map(|i| i % 17 - 8).collect();
    let nodes = vec![node("MatMul", &["x", "W"], "y")];
    let inputs = vec![port("x", Dtype::Int64, &["batch", "seq", "32"])];
    let tensors = vec![integers("W", &[32, 48], &weights)];
    place.build(&model_of(inputs, nodes, vec![output("y", Dtype::Int64)], tensors, 17), &[]);
    let values: Vec<i64> = (0..2 * 3 * 32).map(|i| (i - 90) << 52).collect();
    let x = Array::from_i64(vec![2, 3, 32], &values).unwrap();
    let expected: Vec<i64> = (0..2 * 3 * 48)
        .map(|at| {
            let (row, column) = (at / 48, at % 48);
            let product = |k: usize| values[row * 32 + k].wrapping_mul(weights[k * 48 + column]);
            (0..32).map(product).fold(0, i64::wrapping_add)
        })
        .collect();
    let expected = Array::from_i64(vec![2, 3, 48], &expected).unwrap();
    assert!(answer(&place.engine(), &[("x", x)], 0) == expected);
}

/// A mask made of the input's length is of sizes, which tract does not sum up.
#[test]
fn a_cumulative_sum_over_an_open_length_is_computed() {
    let place = Place::new();
    let nodes = vec![
        node("Shape", &["x"], "all"),
        node("Slice", &["all", "zero", "two"], "sizes"),
        node("Expand", &["one", "sizes"], "ones"),
        node("CumSum", &["ones", "axis"], "y"),
    ];
    let tensors = vec![
        integers("zero", &[1], &[0]),
        integers("two", &[1], &[2]),
        integers("one", &[1], &[1]),
        integers("axis", &[], &[1]),
    ];
    let model =
        model_of(vec![x(&["1", "seq", "32"])], nodes, vec![output("y", Dtype::Int64)], tensors, 17);
    place.build(&model, &[]);
    let found = answer(&place.engine(), &[("x", array(&[1, 4, DEPTH], 0.2))], 0);
    assert_eq!(found, Array::from_i64(vec![1, 4], &[1, 2, 3, 4]).unwrap());
}

/// What tract accepts and cannot compute was refused at each request, not when it was sharded.
#[test]
fn what_cannot_be_computed_is_refused_by_a_trial() {
    let place = Place::new();
    // Whatever the length, it is not 7.
    let nodes = vec![node("MatMul", &["x", "W"], "h"), node("Reshape", &["h", "sizes"], "y")];
    let tensors = vec![weight(), integers("sizes", &[2], &[7, 11])];
    let model =
        model_of(vec![x(&["1", "seq", "32"])], nodes, vec![output("y", Dtype::Fp32)], tensors, 17);
    let refused = place.refuse(&model, &[]);
    assert!(refused.contains("\"/y\"") && refused.contains("--dim"), "{refused}");
    // A table of three rows is too small for ids that are made up: that says nothing.
    let rows = floats("rows", &[3, 128], &wave(3 * 128, 0.1));
    let ids = vec![port("ids", Dtype::Int64, &["1", "seq"])];
    let gather = vec![node("Gather", &["rows", "ids"], "y")];
    let model = model_of(ids, gather, vec![output("y", Dtype::Fp32)], vec![rows], 17);
    for arguments in [&[][..], &["--no-trial"]] {
        place.build(&model, arguments);
        let ids = Array::from_i64(vec![1, 2], &[2, 0]).unwrap();
        assert_eq!(answer(&place.engine(), &[("ids", ids)], 0).shape, [1, 2, 128]);
    }
}

/// A mask over what is past and new that is not as long as both was refused for 79 terabytes, and so
/// did a pass of such a decoder take by its manifest: a size that cannot be counted as the largest.
#[test]
fn lengths_that_do_not_go_together_are_told_as_that() {
    let place = Place::new();
    let inputs = vec![
        x(&["1", "new", "32"]),
        port("past", Dtype::Fp32, &["1", "past_length", "48"]),
        port("mask", Dtype::Fp32, &["1", "all", "1"]),
    ];
    let nodes = vec![
        node("MatMul", &["x", "W"], "y"),
        with_int(node("Concat", &["past", "y"], "joined"), "axis", 1),
        node("Mul", &["joined", "mask"], "masked"),
    ];
    let outputs = vec![output("masked", Dtype::Fp32)];
    for arguments in [&[][..], &["--no-trial"]] {
        place.build(
            &model_of(inputs.clone(), nodes.clone(), outputs.clone(), vec![weight()], 17),
            arguments,
        );
        let store = Store::open(&place.0.path().join("store")).unwrap();
        let passes = store.current("m").unwrap().manifest.needs.clone().unwrap().passes;
        let longest = passes.last().unwrap();
        // Four values of 48 floats a token at once, of which there are twice as many.
        let tokens_bytes = longest.length * 2 * 48 * 4;
        assert!((tokens_bytes..8 * tokens_bytes).contains(&longest.bytes), "{longest:?}");
        let engine = place.engine();
        let mask = |length| ("mask", array(&[1, length, 1], 0.1));
        let others = [("x", array(&[1, 2, 32], 0.3)), ("past", array(&[1, 3, 48], 0.2))];
        let with = |length| [others[0].clone(), others[1].clone(), mask(length)];
        assert_eq!(answer(&engine, &with(5), 0).shape, [1, 5, 48]);
        for length in [2, 4, 9] {
            let refused = refusal(&engine, &with(length));
            assert!(
                refused.contains("/masked") && refused.contains(&length.to_string()),
                "{refused}"
            );
        }
    }
}

/// Booleans in a mask of Attention were added to scores.
#[test]
fn an_attention_takes_a_mask_of_booleans() {
    let place = Place::new();
    let attention = || node("Attention", &["q", "q", "q", "mask"], "y");
    let inputs = |mask| {
        let q = port("q", Dtype::Fp32, &["batch", "2", "seq", "8"]);
        vec![q, port("mask", mask, &["seq", "seq"])]
    };
    let model = |mask| {
        model_of(inputs(mask), vec![attention()], vec![output("y", Dtype::Fp32)], vec![], 23)
    };
    let q = array(&[2, 2, 4, 8], 0.7);
    let seen = |row: usize, column: usize| column <= row;
    let places = || (0..4).flat_map(|row| (0..4).map(move |column| (row, column)));
    place.build(&model(Dtype::Bool), &[]);
    let bytes = places().map(|(row, column)| u8::from(seen(row, column))).collect();
    let mask = Array::new(Dtype::Bool, vec![4, 4], bytes).unwrap();
    let found = answer(&place.engine(), &[("q", q.clone()), ("mask", mask)], 0);
    place.build(&model(Dtype::Fp32), &[]);
    let value = |(row, column)| if seen(row, column) { 0.0 } else { f32::NEG_INFINITY };
    let mask = Array::from_f32(vec![4, 4], &places().map(value).collect::<Vec<_>>()).unwrap();
    let expected = answer(&place.engine(), &[("q", q), ("mask", mask)], 0);
    check_near(&found, &[2, 2, 4, 8], &expected.to_f32().unwrap());
}
