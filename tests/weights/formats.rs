//! How a file may keep its tensors.

use super::*;
use half::{bf16, f16};
use tract_onnx::pb::StringStringEntryProto;

const SIZE: usize = 32;
const DIMS: [usize; 2] = [SIZE, SIZE];

fn words<const N: usize>(values: &[f32], word: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| word(*value)).collect()
}

/// `y = x Cast(W)`, and rows of `W`, whatever W is.
fn check_weight(w: TensorProto, expected: &[f32]) {
    check_weight_in(&Place::new(), w, expected);
}

fn check_weight_in(place: &Place, w: TensorProto, expected: &[f32]) {
    let (x, array) = activations(SIZE);
    let row = raw("row", 7, &[2], [7i64, 31].iter().flat_map(|id| id.to_le_bytes()).collect());
    let name = w.name.clone();
    let nodes = vec![
        node("Gather", &[&name, "row"], "some", &[]),
        node("Cast", &["some"], "rows", &[("to", &[1])]),
        node("Cast", &[&name], "floats", &[("to", &[1])]),
        node("MatMul", &["x", "floats"], "y", &[]),
    ];
    let model = model(SIZE, nodes, vec![w, row], &["y", "rows"]);
    let y = product(&x, expected, SIZE);
    let rows = rows(expected, expected.len() / SIZE, &[7, 31]);
    check_in(place, &model, &[("x", array)], &[("y", y), ("rows", rows)]);
}

/// bf16 weights were refused, though the codec was there; those in `int32_data` too, and f16 there
/// stayed in the graph.
#[test]
fn floats_of_two_bytes_are_taken_from_wherever_they_lie() {
    let values = wave(SIZE * SIZE, 0.37);
    let halves: Vec<f32> = values.iter().map(|value| f16::from_f32(*value).to_f32()).collect();
    let brains: Vec<f32> = values.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
    check_weight(raw("W", 10, &DIMS, words(&halves, |v| f16::from_f32(v).to_le_bytes())), &halves);
    check_weight(raw("W", 16, &DIMS, words(&brains, |v| bf16::from_f32(v).to_le_bytes())), &brains);
    let numbers = |bits: &dyn Fn(f32) -> u16| values.iter().map(|v| i32::from(bits(*v))).collect();
    let int32_data = numbers(&|v| f16::from_f32(v).to_bits());
    check_weight(TensorProto { int32_data, ..empty("W", 10, &DIMS) }, &halves);
    let int32_data = numbers(&|v| bf16::from_f32(v).to_bits());
    check_weight(TensorProto { int32_data, ..empty("W", 16, &DIMS) }, &brains);
}

/// Each element type has a field of its own; large ones there were parsed whole, and small ones of
/// uint32 and uint64 looked for in another's.
#[test]
fn every_type_is_taken_from_its_own_field() {
    let values: Vec<f32> = wave(SIZE * SIZE, 0.37).iter().map(|v| (v * 30.0).trunc()).collect();
    let natural: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    let signs: Vec<f32> = values.iter().map(|value| f32::from(u8::from(*value > 0.0))).collect();
    let ints = |values: &[f32]| values.iter().map(|value| *value as i32).collect::<Vec<i32>>();
    let longs = values.iter().map(|value| *value as i64).collect::<Vec<i64>>();
    let doubles = values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
    let naturals = natural.iter().map(|value| *value as u64).collect::<Vec<u64>>();
    for name in ["W", "small"] {
        // Below the threshold a tensor stays in the graph.
        let (dims, count) = if name == "W" { (DIMS, SIZE * SIZE) } else { ([SIZE, 1], SIZE) };
        let typed = |data_type, ints: Vec<i32>| TensorProto {
            int32_data: ints[..count].to_vec(),
            ..empty(name, data_type, &dims)
        };
        let cases = [
            (typed(2, ints(&natural)), &natural),
            (typed(3, ints(&values)), &values),
            (typed(4, ints(&natural)), &natural),
            (typed(5, ints(&values)), &values),
            (typed(6, ints(&values)), &values),
            (typed(9, ints(&signs)), &signs),
            (TensorProto { int64_data: longs[..count].to_vec(), ..empty(name, 7, &dims) }, &values),
            (
                TensorProto { double_data: doubles[..count].to_vec(), ..empty(name, 11, &dims) },
                &values,
            ),
            (
                TensorProto { uint64_data: naturals[..count].to_vec(), ..empty(name, 12, &dims) },
                &natural,
            ),
            (
                TensorProto { uint64_data: naturals[..count].to_vec(), ..empty(name, 13, &dims) },
                &natural,
            ),
            (
                TensorProto { float_data: values[..count].to_vec(), ..empty(name, 1, &dims) },
                &values,
            ),
        ];
        for (tensor, expected) in cases {
            check_weight(tensor, &expected[..count]);
        }
    }
}

/// Integers of 4 bits lie two to a byte; none of tract's types holds them.
#[test]
fn integers_of_four_bits_are_read_one_by_one() {
    let codes: Vec<i8> = (0..SIZE * SIZE).map(|i| (i * 7 % 16) as i8 - 8).collect();
    let nibbles = |codes: &[i8]| -> Vec<u8> {
        let pairs = codes.chunks(2);
        pairs.map(|pair| pair[0].cast_unsigned() & 15 | pair[1].cast_unsigned() << 4).collect()
    };
    let signed: Vec<f32> = codes.iter().map(|code| f32::from(*code)).collect();
    let unsigned: Vec<f32> =
        codes.iter().map(|code| f32::from(code.cast_unsigned() & 15)).collect();
    check_weight(raw("W", 22, &DIMS, nibbles(&codes)), &signed);
    check_weight(raw("W", 21, &DIMS, nibbles(&codes)), &unsigned);
    let int32_data = nibbles(&codes).into_iter().map(i32::from).collect();
    check_weight(TensorProto { int32_data, ..empty("W", 22, &DIMS) }, &signed);
    check_weight(raw("small", 22, &[SIZE, 1], nibbles(&codes[..SIZE])), &signed[..SIZE]);
}

/// External data, `bytes` from the start of `location`.
fn outside(tensor: TensorProto, location: &str, offset: usize) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_string(), value };
    TensorProto {
        data_location: Some(1),
        external_data: vec![
            entry("location", location.to_string()),
            entry("offset", offset.to_string()),
        ],
        ..tensor
    }
}

/// Tensors in other files: `./` was refused, constants of nodes were looked for by tract, which has
/// no path, and so were those of four bits.
#[test]
fn external_data_may_be_of_constants_and_in_folders() {
    let values = wave(SIZE * SIZE, 0.37);
    let content = [vec![9; 8], words(&values, f32::to_le_bytes)].concat();
    for location in ["weights.bin", "./weights.bin", "data/deep/weights.bin", "data/./weights.bin"]
    {
        let place = Place::new();
        place.put(location, &content);
        check_weight_in(&place, outside(empty("W", 1, &DIMS), location, 8), &values);
        let (x, array) = activations(SIZE);
        let constant = |name: &str, dims: &[usize], offset| NodeProto {
            attribute: vec![AttributeProto {
                name: "value".to_string(),
                r#type: AttributeType::Tensor as i32,
                t: Some(outside(empty("", 1, dims), location, offset)),
                ..AttributeProto::default()
            }],
            ..node("Constant", &[], name, &[])
        };
        let nodes = vec![
            constant("W", &DIMS, 8),
            constant("bias", &[SIZE], 12),
            node("MatMul", &["x", "W"], "h", &[]),
            node("Add", &["h", "bias"], "y", &[]),
        ];
        let model = model(SIZE, nodes, vec![], &["y"]);
        let h = product(&x, &values, SIZE);
        let y = h.chunks(SIZE).flat_map(|row| row.iter().zip(&values[1..]).map(|(h, b)| h + b));
        check_in(&place, &model, &[("x", array)], &[("y", y.collect())]);
    }
}

/// bf16 is held as f32 and four bits as bytes: what would be rounded or saturated otherwise than the
/// type says is refused by node.
#[test]
fn nothing_is_computed_in_types_that_are_only_stored() {
    let refuse = |nodes: Vec<NodeProto>, tensors: Vec<TensorProto>, words: &[&str]| {
        let place = Place::new();
        let built = place.shard(&model(SIZE, nodes, tensors, &["y"]), "f32");
        let said = String::from_utf8_lossy(&built.stderr);
        assert_eq!(built.status.code(), Some(1), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in {said}"));
    };
    for size in [SIZE, 2] {
        let brains = raw("B", 16, &[size, SIZE], vec![0; size * SIZE * 2]);
        let nodes = vec![
            node("Transpose", &["B"], "T", &[("perm", &[1, 0])]),
            node("Mul", &["T", "T"], "square", &[]),
            node("Cast", &["square"], "floats", &[("to", &[1])]),
            node("MatMul", &["x", "floats"], "y", &[]),
        ];
        refuse(nodes, vec![brains], &["node \"/square\" (Mul)", "\"T\"", "bf16"]);
        let zero = raw("zero", 22, &[2], vec![0x11]);
        let nodes = vec![
            node("QuantizeLinear", &["x", "scale", "zero"], "q", &[("axis", &[0])]),
            node("Cast", &["q"], "y", &[("to", &[1])]),
        ];
        let scale = f32s("scale", &[2], &[0.5, 0.5]);
        refuse(nodes, vec![zero, scale], &["node \"/q\" (QuantizeLinear)", "\"zero\""]);
    }
}
