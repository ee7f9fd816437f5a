//! Functions of the model itself.

use super::*;

/// `FunctionProto`, with the fields that tract's own type lacks.
#[derive(Clone, PartialEq, prost::Message)]
struct Function {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    output: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    attribute: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "9")]
    opset_import: Vec<OperatorSetIdProto>,
    #[prost(string, tag = "10")]
    domain: String,
    #[prost(message, repeated, tag = "11")]
    attribute_proto: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Functions {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> Function {
    Function {
        name: name.to_string(),
        input: names(inputs),
        output: names(outputs),
        node: nodes,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 21 }],
        domain: "own".to_string(),
        ..Function::default()
    }
}

fn call(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, &[i64])]) -> NodeProto {
    let node = node(op, inputs, outputs[0], attributes);
    NodeProto { domain: "own".to_string(), output: names(outputs), ..node }
}

/// The same attribute with its value from the call.
fn given(attribute: &str, of_call: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: of_call.to_string(), ..int(attribute, 0) }
}

/// Shards a model of `x` `[1, seq, 32]` with functions.
fn place(functions: Vec<Function>) -> Place {
    Place { more: Functions { functions }.encode_to_vec(), ..Place::new() }
}

fn caller(nodes: Vec<NodeProto>, outs: &[&str]) -> ModelProto {
    let mut model = model(32, nodes, vec![f32s("W", &[32, 32], &weight())], outs);
    model.opset_import.push(OperatorSetIdProto { domain: "own".to_string(), version: 1 });
    model
}

fn weight() -> Vec<f32> {
    wave(32 * 32, 0.37)
}

/// own::Relu is the model's function, which was computed as ONNX's Relu.
#[test]
fn a_function_named_like_an_operator_is_the_function() {
    let negative = function("Relu", &["a"], &["b"], vec![node("Neg", &["a"], "b", &[])]);
    let nodes = vec![call("Relu", &["x"], &["h"], &[]), node("MatMul", &["h", "W"], "y", &[])];
    let (x, array) = activations(32);
    let x: Vec<f32> = x.iter().map(|value| -value).collect();
    let y = product(&x, &weight(), 32);
    check_in(&place(vec![negative]), &caller(nodes, &["y"]), &[("x", array)], &[("y", y)]);
}

/// Functions that call functions, twice, with several outputs, one of them left out, with attributes
/// of the call and of their own, names that the caller has too, and a product with a weight inside.
#[test]
fn functions_nest_and_keep_their_names_apart() {
    let swap =
        function("Swap", &["a", "b"], &["b", "a"], vec![node("Identity", &["a"], "unused", &[])]);
    let mut cut = node("Split", &["h", "halves"], "left", &[]);
    cut.output.push("right".to_string());
    cut.attribute.push(given("axis", "along"));
    let mut sizes = node("Constant", &[], "halves", &[]);
    sizes.attribute.push(AttributeProto {
        name: "value_ints".to_string(),
        r#type: AttributeType::Ints as i32,
        ints: vec![16, 16],
        ..AttributeProto::default()
    });
    let nodes = vec![
        node("MatMul", &["x", "W"], "h", &[]),
        sizes,
        cut,
        call("Swap", &["left", "right"], &["first", "second"], &[]),
    ];
    let halves = Function {
        attribute_proto: vec![int("along", -1)],
        ..function("Halves", &["x", "W"], &["first", "second"], nodes)
    };
    let nodes = vec![
        call("Halves", &["x", "W"], &["h", "left"], &[("along", &[2])]),
        call("Halves", &["x", "W"], &["", "other"], &[]),
        node("Sub", &["h", "left"], "y", &[]),
        node("Neg", &["other"], "z", &[]),
    ];
    let (_, array) = activations(32);
    let h = product(&activations(32).0, &weight(), 32);
    let difference = |row: &[f32]| (0..16).map(|i| row[16 + i] - row[i]).collect::<Vec<f32>>();
    let y = h.chunks(32).flat_map(difference).collect();
    let z = h.chunks(32).flat_map(|row| row[..16].iter().map(|value| -value)).collect();
    let place = place(vec![swap, halves]);
    check_in(&place, &caller(nodes, &["y", "z"]), &[("x", array)], &[("y", y), ("z", z)]);
}

/// A call within a graph of a node, whose function has such a node too and sees the values around.
#[test]
fn functions_are_called_in_graphs_of_nodes() {
    let branch = |nodes: Vec<NodeProto>, name: &str| AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Graph as i32,
        g: Some(graph_of(vec![], nodes, vec![output("out", Dtype::Fp32)])),
        ..AttributeProto::default()
    };
    let choose = |then: Vec<NodeProto>, other: Vec<NodeProto>| NodeProto {
        attribute: vec![branch(then, "then_branch"), branch(other, "else_branch")],
        ..node("If", &["yes"], "y", &[])
    };
    let inner = choose(
        vec![node("Add", &["a", "a"], "out", &[])],
        vec![node("Identity", &["a"], "out", &[])],
    );
    let truth = |name: &str| {
        let mut constant = node("Constant", &[], name, &[]);
        constant.attribute.push(AttributeProto {
            name: "value".to_string(),
            r#type: AttributeType::Tensor as i32,
            t: Some(raw("", 9, &[], vec![1])),
            ..AttributeProto::default()
        });
        constant
    };
    let double = function("Double", &["a"], &["y"], vec![truth("yes"), inner]);
    let nodes = vec![
        truth("yes"),
        node("MatMul", &["x", "W"], "h", &[]),
        choose(
            vec![call("Double", &["h"], &["out"], &[])],
            vec![node("Identity", &["h"], "out", &[])],
        ),
    ];
    let (x, array) = activations(32);
    let y = product(&x, &weight(), 32).iter().map(|value| value * 2.0).collect();
    check_in(&place(vec![double]), &caller(nodes, &["y"]), &[("x", array)], &[("y", y)]);
}

/// What cannot be meant is refused by node: functions that call themselves, of another opset, called
/// with attributes or inputs that they do not have.
#[test]
fn calls_that_mean_nothing_are_refused() {
    let refuse = |function: Function, call: NodeProto, words: &[&str]| {
        let place = place(vec![function]);
        let built = place.shard(&caller(vec![call], &["y"]), "f32");
        let said = String::from_utf8_lossy(&built.stderr);
        assert_eq!(built.status.code(), Some(1), "{said}");
        assert!(said.contains("(F)"), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in {said}"));
    };
    let plain = || function("F", &["a"], &["b"], vec![node("Neg", &["a"], "b", &[])]);
    let again = function("F", &["a"], &["b"], vec![call("F", &["a"], &["b"], &[])]);
    refuse(again, call("F", &["x"], &["y"], &[]), &["deep"]);
    let mut old = plain();
    old.opset_import[0].version = 13;
    refuse(old, call("F", &["x"], &["y"], &[]), &["opset 13", "21"]);
    refuse(plain(), call("F", &["x"], &["y"], &[("alpha", &[1])]), &["\"alpha\""]);
    refuse(plain(), call("F", &["x", "x"], &["y"], &[]), &["more inputs"]);
}
