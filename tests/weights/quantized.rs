//! Quantized weights: decoded when the model is sharded, exactly.

use super::*;
use half::f16;

/// Numbers from 0 on below `limit`, well mixed.
fn codes(count: usize, limit: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 131 % 257 % limit) as u8).collect()
}

fn scales(count: usize) -> Vec<f32> {
    (0..count).map(|i| 0.01 + (i % 13) as f32 * 0.003).collect()
}

/// Integers of `bits` in bytes, each of `rows` rows filled up to whole bytes.
fn pack(codes: &[u8], bits: usize, rows: usize) -> Vec<u8> {
    let row = codes.chunks(codes.len() / rows);
    let byte = |some: &[u8]| some.iter().rev().fold(0u8, |byte, code| byte << (bits % 8) | code);
    row.flat_map(|row| row.chunks(8 / bits).map(byte)).collect()
}

/// `MatMulNBits` of `[outputs, depth]` in blocks.
struct Blocks {
    bits: usize,
    depth: usize,
    outputs: usize,
    block: usize,
    has_zeros: bool,
    is_half: bool,
    has_bias: bool,
}

impl Blocks {
    fn check(&self) {
        let Blocks { bits, depth, outputs, block, has_zeros, is_half, has_bias } = *self;
        let (blocks, limit) = (depth.div_ceil(block), 1 << bits);
        let codes = codes(outputs * blocks * block, limit);
        let round = |value: &f32| if is_half { f16::from_f32(*value).to_f32() } else { *value };
        let scales: Vec<f32> = scales(outputs * blocks).iter().map(round).collect();
        let zeros = self::codes(outputs * blocks, limit);
        let value = |row: usize, column: usize| {
            let at = row * blocks + column / block;
            let zero = if has_zeros { f32::from(zeros[at]) } else { (limit / 2) as f32 };
            (f32::from(codes[row * blocks * block + column]) - zero) * scales[at]
        };
        let w: Vec<f32> =
            (0..outputs).flat_map(|row| (0..depth).map(move |c| value(row, c))).collect();
        let bias: Vec<f32> = wave(outputs, 0.4).iter().map(round).collect();
        let (x, array) = activations(depth);
        let x: Vec<f32> = x.iter().map(round).collect();
        let mut y = product(&x, &transposed(&w, depth), depth);
        if has_bias {
            y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % outputs]);
        }
        let float = |name: &str, values: &[f32]| match is_half {
            true => raw(
                name,
                10,
                &[values.len()],
                values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            ),
            false => f32s(name, &[values.len()], values),
        };
        let packed = pack(&codes, bits, outputs * blocks);
        let mut tensors = vec![
            raw("B", 2, &[outputs, blocks, packed.len() / outputs / blocks], packed),
            float("scales", &scales),
            float("bias", &bias),
        ];
        let packed = pack(&zeros, bits, outputs);
        tensors.push(raw("zeros", 2, &[packed.len()], packed));
        let zeros = if has_zeros { "zeros" } else { "" };
        let bias = if has_bias { "bias" } else { "" };
        let (input, result) = if is_half { ("half", "result") } else { ("x", "y") };
        let attributes: &[(&str, &[i64])] = &[
            ("K", &[depth as i64]),
            ("N", &[outputs as i64]),
            ("bits", &[bits as i64]),
            ("block_size", &[block as i64]),
            ("accuracy_level", &[4]),
        ];
        let product =
            node("MatMulNBits", &[input, "B", "scales", zeros, "", bias], result, attributes);
        let mut nodes = vec![NodeProto { domain: "com.microsoft".to_string(), ..product }];
        if is_half {
            nodes.insert(0, node("Cast", &["x"], "half", &[("to", &[10])]));
            nodes.push(node("Cast", &["result"], "y", &[("to", &[1])]));
        }
        let inputs = [("x", array)];
        let model = model(depth, nodes, tensors, &["y"]);
        match is_half {
            // The answer itself is rounded to f16.
            true => {
                let place = Place::new();
                assert!(place.shard(&model, "f32").status.success());
                check_answers(&place, &[("f32", 1e-3)], &inputs, &[("y", y)]);
            }
            false => check(&model, &inputs, &[("y", y)]),
        }
    }
}

/// tract takes such weights as constants only, of 4 bits only, and rounds their scales to f16; as
/// streamed weights they were refused.
#[test]
fn products_with_weights_of_few_bits_are_those_of_their_values() {
    let case = Blocks {
        bits: 4,
        depth: 64,
        outputs: 40,
        block: 32,
        has_zeros: false,
        is_half: false,
        has_bias: false,
    };
    case.check();
    for bits in [4, 8, 2] {
        Blocks { bits, has_zeros: true, has_bias: true, ..case }.check();
        // An odd number of blocks, the last one short.
        Blocks { bits, has_zeros: true, depth: 72, block: 16, ..case }.check();
        Blocks { bits, depth: 80, ..case }.check();
    }
    Blocks { is_half: true, has_zeros: true, has_bias: true, ..case }.check();
    // Less than the threshold, packed and not.
    Blocks { outputs: 3, ..case }.check();
}

#[test]
fn an_order_of_columns_is_refused_by_name() {
    let attributes: &[(&str, &[i64])] =
        &[("K", &[64]), ("N", &[40]), ("bits", &[4]), ("block_size", &[32])];
    let product = node("MatMulNBits", &["x", "B", "scales", "", "order"], "y", attributes);
    let nodes = vec![NodeProto { domain: "com.microsoft".to_string(), ..product }];
    let tensors = vec![
        raw("B", 2, &[40, 2, 16], vec![0; 40 * 32]),
        f32s("scales", &[80], &scales(80)),
        raw("order", 6, &[64], vec![0; 256]),
    ];
    let built = Place::new().shard(&model(64, nodes, tensors, &["y"]), "f32");
    let said = String::from_utf8_lossy(&built.stderr);
    assert_eq!(built.status.code(), Some(1), "{said}");
    for word in ["node \"/y\" (MatMulNBits)", "g_idx"] {
        assert!(said.contains(word), "{word:?} is not in {said}");
    }
}

/// `DequantizeLinear` of a weight, with scales for all of it, for each place of an axis, or for
/// blocks along one; in a product, and as a table.
struct Scaled {
    data_type: i32,
    dims: [usize; 2],
    axis: usize,
    block: Option<usize>,
    has_zeros: bool,
}

impl Scaled {
    fn check(&self) {
        let Scaled { data_type, dims: [rows, columns], axis, block, has_zeros } = *self;
        let limit = if matches!(data_type, 21 | 22) { 16 } else { 256 };
        let is_signed = matches!(data_type, 3 | 22);
        let number = |code: u8| match (is_signed, limit) {
            (true, 16) => f32::from((code << 4).cast_signed() >> 4),
            (true, _) => f32::from(code.cast_signed()),
            (false, _) => f32::from(code),
        };
        let grid = match (block, axis) {
            (None, 2) => vec![],
            (None, _) => vec![[rows, columns][axis]],
            (Some(block), 0) => vec![rows.div_ceil(block), columns],
            (Some(block), _) => vec![rows, columns.div_ceil(block)],
        };
        let count = grid.iter().product();
        let at = |row: usize, column: usize| match (block, axis) {
            (None, 0) => row,
            (None, 1) => column,
            (None, _) => 0,
            (Some(block), 0) => row / block * columns + column,
            (Some(block), _) => row * columns.div_ceil(block) + column / block,
        };
        let (codes, zeros, scales) =
            (codes(rows * columns, limit), codes(count, limit), scales(count));
        let value = |row: usize, column: usize| {
            let zero = if has_zeros { number(zeros[at(row, column)]) } else { 0.0 };
            (number(codes[row * columns + column]) - zero) * scales[at(row, column)]
        };
        let w: Vec<f32> =
            (0..rows).flat_map(|row| (0..columns).map(move |c| value(row, c))).collect();
        let stored = |codes: &[u8]| if limit == 16 { pack(codes, 4, 1) } else { codes.to_vec() };
        let tensors = vec![
            raw("Q", data_type, &[rows, columns], stored(&codes)),
            raw("zeros", data_type, &grid, stored(&zeros)),
            f32s("scales", &grid, &scales),
            raw("row", 7, &[1], 5i64.to_le_bytes().to_vec()),
        ];
        let zeros = if has_zeros { "zeros" } else { "" };
        let (axis, block) = ([axis as i64 % 2], [block.unwrap_or(0) as i64]);
        let attributes: &[(&str, &[i64])] = &[("axis", &axis), ("block_size", &block)];
        let nodes = vec![
            node("DequantizeLinear", &["Q", "scales", zeros], "W", attributes),
            node("MatMul", &["x", "W"], "y", &[]),
            node("Gather", &["W", "row"], "table", &[]),
        ];
        let (x, array) = activations(rows);
        let y = product(&x, &w, rows);
        let table = w[5 * columns..6 * columns].to_vec();
        check(
            &model(rows, nodes, tensors, &["y", "table"]),
            &[("x", array)],
            &[("y", y), ("table", table)],
        );
    }
}

/// Scales by block and integers of 4 bits were refused.
#[test]
fn dequantized_weights_are_their_values() {
    let case = Scaled { data_type: 3, dims: [48, 40], axis: 2, block: None, has_zeros: false };
    for data_type in [2, 3, 21, 22] {
        for axis in [0, 1, 2] {
            Scaled { data_type, axis, has_zeros: true, ..case }.check();
        }
        for (axis, block) in [(0, 16), (1, 16), (0, 32), (1, 8)] {
            Scaled { data_type, axis, block: Some(block), has_zeros: axis == 0, ..case }.check();
        }
    }
    // Less than the threshold.
    Scaled { data_type: 22, dims: [16, 8], axis: 0, block: Some(8), has_zeros: true }.check();
    Scaled { data_type: 2, dims: [16, 8], axis: 1, block: None, has_zeros: true }.check();
}
