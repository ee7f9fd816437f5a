use super::*;
use crate::codec::columns::tests::check_lanes;
use crate::codec::simd::Isa;
use crate::codec::{ALL, a2::A2, a3::A3, a4::A4, a5::A5, a6::A6, by_name};

/// All that are coded so, by their bits.
const BITS: [(&str, usize); 5] = [("a2", 2), ("a3", 3), ("a4", 4), ("a5", 5), ("a6", 6)];

/// Values much like a layer's: a sum of four uniform ones, by a seed.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| 0.05 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Moments of `inputs` inputs of so many columns, some of them loud, which go with each other.
fn moments(depth: usize, inputs: usize) -> Vec<f32> {
    let noise = weights(depth * inputs);
    let mut moments = vec![0.0; depth * depth];
    for input in noise.chunks(depth) {
        let loud = |i: usize| if i.is_multiple_of(7) { 60.0 } else { 10.0 };
        let input: Vec<f32> =
            (0..depth).map(|i| loud(i) * (input[i] + input[(i + 1) % depth] + input[0])).collect();
        for (row, x) in moments.chunks_mut(depth).zip(&input) {
            row.iter_mut().zip(&input).for_each(|(moment, y)| *moment += x * y / inputs as f32);
        }
    }
    moments
}

fn diagonal(moments: &[f32], depth: usize) -> Vec<f32> {
    moments.iter().step_by(depth + 1).copied().collect()
}

fn encoded(name: &str, values: &[f32], lanes: usize) -> Vec<u8> {
    let mut stored = vec![];
    by_name(name).unwrap().encode(values, lanes, &mut stored);
    stored
}

fn decoded(name: &str, stored: &[u8], lanes: usize, count: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; count];
    by_name(name).unwrap().decode(stored, lanes, &mut values);
    values
}

/// The value of a step of a lane, byte by byte as the format says.
fn value(bits: usize, stored: &[u8], lanes: usize, lane: usize, step: usize) -> f32 {
    let head = |plane: usize| {
        let at = plane * lanes * 2 + 2 * lane;
        half::bf16::from_le_bytes([stored[at], stored[at + 1]]).to_f32()
    };
    let is_small = bits <= 4;
    let (depth, heads, codes) = if is_small { (16, 2, 1) } else { (32, 1, 2) };
    let group = &stored[heads * lanes * 2..];
    let group = &group[step / depth * lanes * (codes + depth * bits / 8)..];
    let byte = |plane: usize| u32::from(group[plane * lanes + lane]);
    let step = step % depth;
    let plane = |first: usize, bits: usize| {
        let bytes = depth * bits / 8;
        byte(codes + first + step % bytes) >> (step / bytes * bits) & ((1 << bits) - 1)
    };
    let integer = match bits {
        2 => plane(0, 2),
        3 => plane(0, 2) | plane(4, 1) << 2,
        4 => plane(0, 4),
        5 => plane(0, 4) | plane(16, 1) << 4,
        _ => plane(0, 4) | plane(16, 2) << 4,
    };
    let (scale, minimum) = if is_small {
        (head(0) * (byte(0) & 15) as f32, -head(1) * (byte(0) >> 4) as f32)
    } else {
        let (exponent, mantissa) = ((byte(0) >> 4) as i32, (byte(0) & 15) as f32);
        let scale = head(0) * (1.0 + mantissa / 16.0) * 2f32.powi(exponent - 15);
        (scale, -scale * byte(1) as f32 * if bits == 5 { 0.125 } else { 0.25 })
    };
    integer as f32 * scale + minimum
}

#[test]
fn runs_lie_on_disk_as_the_format_says() {
    for (name, bits) in BITS {
        for lanes in [1, PANEL_ROWS] {
            let depth = 101;
            let stored = encoded(name, &weights(depth * lanes), lanes);
            let decoded = decoded(name, &stored, lanes, depth * lanes);
            for (index, decoded) in decoded.iter().enumerate() {
                let (step, lane) = (index / lanes, index % lanes);
                let expected = value(bits, &stored, lanes, lane, step);
                assert_eq!(*decoded, expected, "{name}: step {step} lane {lane} of {lanes}");
            }
        }
    }
}

#[test]
fn a_row_has_its_bytes_of_a_panel() {
    let depth = 75;
    let values = weights(PANEL_ROWS * depth);
    for (name, bits) in BITS {
        let panel = encoded(name, &values, PANEL_ROWS);
        let header = if bits <= 4 { 4 } else { 2 };
        let (heads, groups) = panel.split_at(header * PANEL_ROWS);
        for lane in 0..PANEL_ROWS {
            let row: Vec<f32> = values.iter().skip(lane).step_by(PANEL_ROWS).copied().collect();
            let of_lane = heads.chunks(2).skip(lane).step_by(PANEL_ROWS).flatten();
            let of_lane = of_lane.chain(groups.iter().skip(lane).step_by(PANEL_ROWS));
            assert!(of_lane.eq(&encoded(name, &row, 1)), "{name}: lane {lane}");
        }
    }
}

/// The same bits by all vectors of the decoder, and by all instruction sets of each encoder.
fn check_isas<A: Affine>() {
    let depth = 70;
    let values = weights(PANEL_ROWS * depth);
    let (steps, _) = values.as_chunks::<PANEL_ROWS>();
    let moments = moments(depth, 40);
    let feedback = Feedback::new(&moments, depth).unwrap();
    let normal = Normal::new(steps, Some(&diagonal(&moments, depth)), A::DEPTH);
    let (grid, scales) = (Grid::of::<A>(), PhantomData::<A::Scales>);
    let stored = encoded(A::NAME, &values, PANEL_ROWS);
    check_lanes::<Framed<A>>(&stored, depth);
    let mut first: Option<[Encoded<PANEL_ROWS>; 2]> = None;
    for isa in Isa::ALL.iter().copied().filter(|isa| isa.is_available()) {
        let [mut fitted, mut fed] = [(); 2].map(|()| Encoded::default());
        let encoded = &mut fitted;
        simd::run_on(isa, Fitting { normal: &normal, grid, scales, encoded });
        let (encoded, feedback) = (&mut fed, &feedback);
        simd::run_on(isa, fed::Feeding { normal: &normal, grid, feedback, scales, encoded });
        let all = [fitted, fed];
        match &first {
            Some(first) => assert!(*first == all, "{}: {isa:?}", A::NAME),
            None => first = Some(all),
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    check_isas::<A2>();
    check_isas::<A3>();
    check_isas::<A4>();
    check_isas::<A5>();
    check_isas::<A6>();
}

/// Signal to noise in dB.
fn quality(name: &str) -> f64 {
    let values = weights(PANEL_ROWS * 512);
    let decoded = decoded(name, &encoded(name, &values, PANEL_ROWS), PANEL_ROWS, values.len());
    let square = |value: f32| f64::from(value).powi(2);
    let errors: f64 = values.iter().zip(&decoded).map(|(v, d)| square(v - d)).sum();
    10.0 * (values.iter().copied().map(square).sum::<f64>() / errors).log10()
}

#[test]
fn codecs_are_as_near_as_their_bits_say() {
    let of: Vec<f64> = BITS.iter().map(|(name, _)| quality(name)).collect();
    for (quality, least) in of.iter().zip([11.9, 18.2, 24.0, 29.3, 35.1]) {
        assert!(*quality >= least, "{of:?}");
    }
    assert!(of[2] >= quality("q4") + 1.0, "{of:?}");
    let best_first: Vec<f64> = ALL.iter().map(|codec| quality(codec.name())).collect();
    assert!(best_first[3..].is_sorted_by(|a, b| a > b), "{best_first:?}");
}

#[test]
fn weights_that_are_used_more_are_nearer() {
    let depth = 96;
    let values = weights(PANEL_ROWS * depth);
    let uses: Vec<f32> = (0..depth).map(|i| if i % 5 == 0 { 1e30 } else { 1e28 }).collect();
    for (name, _) in BITS {
        let error = |stored: &[u8]| {
            let decoded = decoded(name, stored, PANEL_ROWS, values.len());
            weighted_error(&values, &decoded, PANEL_ROWS, &uses)
        };
        let codec = by_name(name).unwrap();
        let (mut weighted, mut alike) = (vec![], vec![]);
        codec.encode_weighted(&values, PANEL_ROWS, &uses, &mut weighted);
        codec.encode_weighted(&values, PANEL_ROWS, &vec![0.0; depth], &mut alike);
        let plain = encoded(name, &values, PANEL_ROWS);
        assert!(error(&weighted) < 0.8 * error(&plain), "{name}");
        let [plain, alike] = [&plain, &alike]
            .map(|stored| squares(&values, &decoded(name, stored, PANEL_ROWS, values.len())));
        assert!((alike / plain - 1.0).abs() < 0.02, "{name}: {alike} {plain}");
    }
}

fn squares(values: &[f32], decoded: &[f32]) -> f64 {
    weighted_error(values, decoded, 1, &vec![1.0; values.len()])
}

/// What errors of weights do to what is computed where inputs have these mean squares and do not go
/// with each other: one for each step.
fn weighted_error(values: &[f32], decoded: &[f32], lanes: usize, weights: &[f32]) -> f64 {
    let pairs = values.iter().zip(decoded).enumerate();
    pairs.map(|(i, (v, d))| f64::from(weights[i / lanes]) * f64::from(v - d).powi(2)).sum()
}

/// The same where they do: the sum over the lanes of `d H d^T`, `d` being a lane's errors.
fn squared_error(values: &[f32], decoded: &[f32], lanes: usize, moments: &[f32]) -> f64 {
    let depth = values.len() / lanes;
    let errors: Vec<f64> = values.iter().zip(decoded).map(|(v, d)| f64::from(v - d)).collect();
    let pair = |(index, moment): (usize, &f32)| {
        let [i, j] = [index / depth, index % depth].map(|step| &errors[step * lanes..][..lanes]);
        f64::from(*moment) * i.iter().zip(j).map(|(a, b)| a * b).sum::<f64>()
    };
    moments.iter().enumerate().map(pair).sum()
}

#[test]
fn errors_that_are_fed_forward_cancel() {
    // No whole number of groups, nor of what is computed at a time.
    let depth = 100;
    let moments = moments(depth, 60);
    let feedback = Feedback::new(&moments, depth).unwrap();
    let uses = diagonal(&moments, depth);
    for lanes in [1, PANEL_ROWS] {
        let values = weights(lanes * depth);
        for (name, _) in BITS {
            let codec = by_name(name).unwrap();
            let (mut weighted, mut fed) = (vec![], vec![]);
            codec.encode_weighted(&values, lanes, &uses, &mut weighted);
            codec.encode_fed(&values, lanes, &uses, &feedback, &mut fed);
            let [weighted, fed] = [weighted, fed].map(|stored| {
                let decoded = decoded(name, &stored, lanes, values.len());
                squared_error(&values, &decoded, lanes, &moments)
            });
            assert!(fed < 0.6 * weighted, "{name}, {lanes}: {fed} instead of {weighted}");
        }
    }
}

#[test]
fn codecs_without_minima_take_no_notice_of_uses() {
    let (values, uses) = (weights(48), vec![2.0; 48]);
    let feedback = Feedback::new(&moments(48, 50), 48).unwrap();
    let mut stored = [(); 3].map(|()| vec![]);
    let q8 = by_name("q8").unwrap();
    q8.encode(&values, 1, &mut stored[0]);
    q8.encode_weighted(&values, 1, &uses, &mut stored[1]);
    q8.encode_fed(&values, 1, &uses, &feedback, &mut stored[2]);
    assert!(stored[0] == stored[1] && stored[0] == stored[2]);
}

#[test]
#[should_panic(expected = "cannot store infinities or NaN")]
fn infinities_are_refused() {
    encoded("a4", &[1.0, f32::INFINITY], 1);
}

#[test]
#[should_panic(expected = "mean squares are finite and not negative")]
fn negative_uses_are_refused() {
    by_name("a4").unwrap().encode_weighted(&[1.0, 2.0], 1, &[1.0, -1.0], &mut vec![]);
}

#[test]
#[should_panic(expected = "feedback of each step")]
fn feedback_of_another_depth_is_refused() {
    let feedback = Feedback::new(&moments(3, 9), 3).unwrap();
    by_name("a3").unwrap().encode_fed(&[1.0, 2.0], 1, &[1.0, 1.0], &feedback, &mut vec![]);
}

#[test]
#[should_panic(expected = "stored bytes of a run in a2")]
fn runs_of_the_wrong_length_are_refused() {
    by_name("a2").unwrap().decode(&[0; 17], 1, &mut [0.0; 32]);
}
