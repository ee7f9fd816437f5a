//! What all codecs with a scale per group share: the frame of a group, and the quantizer.
//!
//! A group is [`GROUP_DEPTH`] steps of a run: a bf16 scale per lane, then the packed integers. The
//! last group of a run is padded with zeros. A value is its integer times its lane's scale.

use super::{
    Codec, GROUP_DEPTH, PANEL_ROWS, Sums,
    columns::{self, Columns},
    first_non_finite,
    simd::{
        self, Kernel,
        lanes::{LaneKernel, Lanes},
    },
    steps::{self, Steps},
};
use std::fmt;

/// Bytes of a scale.
const SCALE_BYTES: usize = 2;

/// Groups whose largest magnitude is below this (2^-112) are stored as zeros: their scales would
/// leave bf16's normal range.
const FLUSH: f32 = 1.925_93e-34;

/// Larger magnitudes are stored as this one (just below 2^127), so that none decodes to infinity.
const LARGEST: f32 = 1.701_411_7e38;

/// Values that are decoded at a time.
pub(super) const VECTOR: usize = PANEL_ROWS;

/// One value of each lane.
type Step = [f32; PANEL_ROWS];

/// The integers of a group of 16 lanes, k-major.
type Integers = [[i8; PANEL_ROWS]; GROUP_DEPTH];

/// How one codec packs the integers of a group; [`Codec`] follows from it.
pub(super) trait Grouped: Send + Sync + fmt::Debug + 'static {
    /// The name users write.
    const NAME: &'static str;
    /// The code that stands for it in a layer file.
    const CODE: u64;
    /// Bits of an integer.
    const BITS: usize;
    /// Smallest integer.
    const LOWEST: f32;
    /// Largest integer.
    const HIGHEST: f32;
    /// What the value of largest magnitude may become; each is tried as a scale. The first must
    /// keep every error of the group within `1 / HIGHEST` of that magnitude.
    const TARGETS: &'static [f32];

    /// Packs one lane's integers, or those of 16 lanes, after the scales in `stored`.
    fn pack<const LANES: usize>(integers: &[[i8; LANES]; GROUP_DEPTH], stored: &mut Vec<u8>);

    /// Sixteen integers of a group, as its bytes lie: those of a step, or 16 steps of a single lane.
    /// `#[inline(always)]`.
    fn vector<L: Lanes>(packed: &[[u8; VECTOR]], index: usize) -> L;
}

impl<G: Grouped> Codec for G {
    fn name(&self) -> &'static str {
        G::NAME
    }

    fn code(&self) -> u64 {
        G::CODE
    }

    fn stored_bytes(&self, depth: usize, lanes: usize) -> usize {
        depth.div_ceil(GROUP_DEPTH) * group_bytes::<G>(lanes)
    }

    fn encode(&self, values: &[f32], lanes: usize, stored: &mut Vec<u8>) {
        let bad = first_non_finite(values);
        assert_eq!(bad, None, "{} cannot store infinities or NaN", G::NAME);
        match lanes {
            1 => encode_line::<G>(values, stored),
            PANEL_ROWS => encode_panel::<G>(values, stored),
            _ => panic!("a run has 1 or {PANEL_ROWS} lanes, not {lanes}"),
        }
    }

    fn decode(&self, stored: &[u8], lanes: usize, values: &mut [f32]) {
        match lanes {
            1 => simd::run_lanes(Decode::<G>::new(stored, values)),
            PANEL_ROWS => steps::decode::<G>(stored, values),
            _ => panic!("a run has 1 or {PANEL_ROWS} lanes, not {lanes}"),
        }
    }

    fn multiply(&self, stored: &[u8], columns: &Columns, sums: &mut Sums) {
        columns::multiply::<G>(stored, columns, sums);
    }

    fn error_bound(&self, max_abs: f32, _: f32) -> f32 {
        const ROUNDING: f32 = 1.0 + 1e-6;
        let excess = (max_abs - LARGEST).max(0.0).next_up();
        max_abs.min(LARGEST) / G::HIGHEST * ROUNDING + (FLUSH + excess)
    }
}

impl<G: Grouped> Steps for G {
    const DEPTH: usize = GROUP_DEPTH;
    const BYTES: usize = group_bytes::<G>(PANEL_ROWS);
    type Head<L: Lanes> = ();
    type Group<'a, L: Lanes> = (L, &'a [[u8; VECTOR]]);

    #[inline(always)]
    fn open<L: Lanes>(stored: &[u8]) -> ((), &[u8]) {
        ((), stored)
    }

    #[inline(always)]
    fn group<'a, L: Lanes>((): &(), stored: &'a [u8]) -> (L, &'a [[u8; VECTOR]]) {
        let (scales, packed) = stored.split_at(PANEL_ROWS * SCALE_BYTES);
        (L::uppers(&scales.as_chunks().0[0]), packed.as_chunks().0)
    }

    #[inline(always)]
    fn step<L: Lanes>((scales, packed): &(L, &[[u8; VECTOR]]), index: usize) -> L {
        G::vector::<L>(packed, index).times(*scales)
    }
}

/// Stored bytes of a group.
const fn group_bytes<G: Grouped>(lanes: usize) -> usize {
    lanes * (SCALE_BYTES + GROUP_DEPTH * G::BITS / 8)
}

/// Decodes a run of one lane, 16 steps at a time.
struct Decode<'a, G> {
    stored: &'a [u8],
    values: &'a mut [f32],
    codec: std::marker::PhantomData<G>,
}

impl<'a, G: Grouped> Decode<'a, G> {
    fn new(stored: &'a [u8], values: &'a mut [f32]) -> Self {
        let bytes = values.len().div_ceil(GROUP_DEPTH) * group_bytes::<G>(1);
        assert_eq!(stored.len(), bytes, "stored bytes of a {} run", G::NAME);
        Decode { stored, values, codec: std::marker::PhantomData }
    }
}

impl<G: Grouped> LaneKernel for Decode<'_, G> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let groups = self.stored.chunks_exact(group_bytes::<G>(1));
        for (values, stored) in self.values.chunks_mut(GROUP_DEPTH).zip(groups) {
            let (scale, packed) = stored.split_at(SCALE_BYTES);
            let bits = u32::from(scale[0]) << 16 | u32::from(scale[1]) << 24;
            let scale = L::splat(f32::from_bits(bits));
            for (index, values) in values.chunks_mut(VECTOR).enumerate() {
                let vector = G::vector::<L>(packed.as_chunks().0, index).times(scale);
                match values.first_chunk_mut() {
                    Some(values) => vector.store(values),
                    None => {
                        let mut all = [0.0; VECTOR];
                        vector.store(&mut all);
                        values.copy_from_slice(&all[..values.len()]);
                    }
                }
            }
        }
    }
}

fn encode_panel<G: Grouped>(values: &[f32], stored: &mut Vec<u8>) {
    let (steps, rest) = values.as_chunks::<PANEL_ROWS>();
    assert!(rest.is_empty(), "a panel run has whole steps of {PANEL_ROWS} values");
    for steps in steps.chunks(GROUP_DEPTH) {
        let mut group = [[0.0; PANEL_ROWS]; GROUP_DEPTH];
        group[..steps.len()].copy_from_slice(steps);
        let quantized = quantize::<G>(&group);
        stored.extend(quantized.scales.iter().flat_map(|scale| scale.to_le_bytes()));
        G::pack(&quantized.integers, stored);
    }
}

/// Encodes a run of one lane, 16 groups at a time in the lanes of the quantizer.
fn encode_line<G: Grouped>(values: &[f32], stored: &mut Vec<u8>) {
    for values in values.chunks(GROUP_DEPTH * PANEL_ROWS) {
        let mut group = [[0.0; PANEL_ROWS]; GROUP_DEPTH];
        for (lane, values) in values.chunks(GROUP_DEPTH).enumerate() {
            for (step, value) in group.iter_mut().zip(values) {
                step[lane] = *value;
            }
        }
        let quantized = quantize::<G>(&group);
        for lane in 0..values.len().div_ceil(GROUP_DEPTH) {
            stored.extend(quantized.scales[lane].to_le_bytes());
            G::pack(&quantized.integers.map(|step| [step[lane]]), stored);
        }
    }
}

/// A group of 16 lanes as integers and the bits of their bf16 scales.
#[derive(Debug, Default, PartialEq, Eq)]
struct QuantizedGroup {
    scales: [u16; PANEL_ROWS],
    integers: Integers,
}

fn quantize<G: Grouped>(values: &[Step; GROUP_DEPTH]) -> QuantizedGroup {
    let mut quantized = QuantizedGroup::default();
    simd::run(Quantize::<G> { values, quantized: &mut quantized, codec: std::marker::PhantomData });
    quantized
}

/// Chooses each lane's scale by the least squared error: every target is tried with its scale
/// already rounded to bf16, then the best is refined by least squares.
///
/// Works on values brought to magnitudes below 2 by a power of two, so that squares neither
/// overflow nor vanish.
struct Quantize<'a, G> {
    values: &'a [Step; GROUP_DEPTH],
    quantized: &'a mut QuantizedGroup,
    codec: std::marker::PhantomData<G>,
}

/// Refinements by least squares after the search; more gain nothing measurable.
const REFINEMENTS: usize = 2;

impl<G: Grouped> Kernel for Quantize<'_, G> {
    #[inline(always)]
    fn run(self) {
        let peaks = peaks(self.values);
        let (mut down, mut up) = ([0.0; PANEL_ROWS], [0.0; PANEL_ROWS]);
        let mut normal_peaks = [1.0; PANEL_ROWS];
        for lane in 0..PANEL_ROWS {
            (down[lane], up[lane]) = powers(saturate(peaks[lane]));
            let peak = saturate(peaks[lane]) * down[lane];
            normal_peaks[lane] = if peak == 0.0 { 1.0 } else { peak };
        }
        let mut normal = [[0.0; PANEL_ROWS]; GROUP_DEPTH];
        for (normal, values) in normal.iter_mut().zip(self.values) {
            for lane in 0..PANEL_ROWS {
                normal[lane] = saturate(values[lane]) * down[lane];
            }
        }

        let mut best = Fit::worst();
        for target in G::TARGETS {
            best.offer::<G>(&normal, normal_peaks.map(|peak| peak / target), &normal_peaks);
        }
        for _ in 0..REFINEMENTS {
            let scales = least_squares::<G>(&normal, &best.scales);
            best.offer::<G>(&normal, scales, &normal_peaks);
        }

        for (stored, (scale, up)) in
            self.quantized.scales.iter_mut().zip(best.scales.iter().zip(up))
        {
            *stored = ((scale * up).to_bits() >> 16) as u16;
        }
        let inverses = best.scales.map(|scale| 1.0 / scale);
        for (integers, normal) in self.quantized.integers.iter_mut().zip(&normal) {
            for lane in 0..PANEL_ROWS {
                integers[lane] = round::<G>(normal[lane] * inverses[lane]).to_bits() as i8;
            }
        }
    }
}

/// The best scales found so far, with their squared errors.
struct Fit {
    scales: Step,
    errors: Step,
}

impl Fit {
    #[inline(always)]
    fn worst() -> Fit {
        Fit { scales: [1.0; PANEL_ROWS], errors: [f32::INFINITY; PANEL_ROWS] }
    }

    /// Rounds `scales` to bf16 and keeps those that fit better, unless one value's error exceeds
    /// the codec's bound.
    #[inline(always)]
    fn offer<G: Grouped>(
        &mut self,
        normal: &[Step; GROUP_DEPTH],
        scales: Step,
        normal_peaks: &Step,
    ) {
        let scales = scales.map(nearest_bf16);
        let inverses = scales.map(|scale| 1.0 / scale);
        let mut errors = [0.0; PANEL_ROWS];
        let mut largest = [0.0f32; PANEL_ROWS];
        for step in normal {
            for lane in 0..PANEL_ROWS {
                let integer = round::<G>(step[lane] * inverses[lane]) - ROUNDER;
                let error = (step[lane] - integer * scales[lane]).abs();
                errors[lane] += error * error;
                largest[lane] = if error > largest[lane] { error } else { largest[lane] };
            }
        }
        for lane in 0..PANEL_ROWS {
            let bound = normal_peaks[lane].abs() * (1.0 / G::HIGHEST);
            let is_better = (errors[lane] < self.errors[lane]) & (largest[lane] <= bound);
            self.scales[lane] = if is_better { scales[lane] } else { self.scales[lane] };
            self.errors[lane] = if is_better { errors[lane] } else { self.errors[lane] };
        }
    }
}

/// The scales that fit best the integers that `scales` give.
#[inline(always)]
fn least_squares<G: Grouped>(normal: &[Step; GROUP_DEPTH], scales: &Step) -> Step {
    let inverses = scales.map(|scale| 1.0 / scale);
    let mut products = [0.0; PANEL_ROWS];
    let mut squares = [0.0; PANEL_ROWS];
    for step in normal {
        for lane in 0..PANEL_ROWS {
            let integer = round::<G>(step[lane] * inverses[lane]) - ROUNDER;
            products[lane] += step[lane] * integer;
            squares[lane] += integer * integer;
        }
    }
    let mut refined = *scales;
    for lane in 0..PANEL_ROWS {
        let is_defined = products[lane] != 0.0;
        refined[lane] = if is_defined { products[lane] / squares[lane] } else { scales[lane] };
    }
    refined
}

/// Adding it to a small value rounds that to the nearest integer, ties to even, which then stands
/// in the sum's low bits.
const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// Clamps to the codec's integers and adds [`ROUNDER`].
#[inline(always)]
fn round<G: Grouped>(value: f32) -> f32 {
    let value = if value < G::LOWEST { G::LOWEST } else { value };
    let value = if value > G::HIGHEST { G::HIGHEST } else { value };
    value + ROUNDER
}

/// The value of largest magnitude of each lane.
#[inline(always)]
fn peaks(values: &[Step; GROUP_DEPTH]) -> Step {
    let mut peaks = [0.0f32; PANEL_ROWS];
    for step in values {
        for lane in 0..PANEL_ROWS {
            let is_larger = step[lane].abs() > peaks[lane].abs();
            peaks[lane] = if is_larger { step[lane] } else { peaks[lane] };
        }
    }
    peaks
}

/// Brings a finite value to a magnitude of at most [`LARGEST`].
#[inline(always)]
fn saturate(value: f32) -> f32 {
    let value = if value > LARGEST { LARGEST } else { value };
    if value < -LARGEST { -LARGEST } else { value }
}

/// The power of two that brings `peak`, at most [`LARGEST`], to a magnitude in 1..2, and its
/// inverse; zeros for a peak that is flushed.
#[inline(always)]
fn powers(peak: f32) -> (f32, f32) {
    let exponent = (peak.to_bits() >> 23) & 0xff;
    let is_flushed = peak.abs() < FLUSH;
    let down = if is_flushed { 0 } else { (254 - exponent) << 23 };
    let up = if is_flushed { 0 } else { exponent << 23 };
    (f32::from_bits(down), f32::from_bits(up))
}

/// Rounds a finite value to the nearest bf16, ties to even.
#[inline(always)]
fn nearest_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::super::columns::tests::check_lanes;
    use super::{
        super::{q4::Q4, q8::Q8},
        *,
    };
    use simd::Isa;

    /// Values much like a layer's: a sum of four uniform ones, by a seed.
    fn weights(count: usize) -> Vec<f32> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| 0.05 * (uniform() + uniform() + uniform() + uniform())).collect()
    }

    fn stored<G: Grouped>(codec: &G, values: &[f32], lanes: usize) -> Vec<u8> {
        let mut stored = Vec::new();
        codec.encode(values, lanes, &mut stored);
        stored
    }

    /// The loops as written, against the bytes taken one by one.
    fn check_layout<G: Grouped>(codec: &G, integer: impl Fn(&[u8], usize, usize, usize) -> i32) {
        for lanes in [1, PANEL_ROWS] {
            let depth = 3 * GROUP_DEPTH + 5;
            let stored = stored(codec, &weights(depth * lanes), lanes);
            let mut decoded = vec![0.0; depth * lanes];
            codec.decode(&stored, lanes, &mut decoded);
            for (index, value) in decoded.iter().enumerate() {
                let (step, lane) = (index / lanes, index % lanes);
                let group = &stored[step / GROUP_DEPTH * group_bytes::<G>(lanes)..];
                let scale = u16::from_le_bytes([group[2 * lane], group[2 * lane + 1]]);
                let scale = half::bf16::from_bits(scale).to_f32();
                let integer = integer(&group[2 * lanes..], step % GROUP_DEPTH, lane, lanes);
                assert_eq!(*value, integer as f32 * scale, "step {step} lane {lane} of {lanes}");
            }
        }
    }

    #[test]
    fn groups_lie_on_disk_as_the_format_says() {
        check_layout(&Q8, |packed, step, lane, lanes| {
            i32::from(packed[step * lanes + lane].cast_signed())
        });
        check_layout(&Q4, |packed, step, lane, lanes| {
            let byte = packed[step % 16 * lanes + lane];
            i32::from(if step < 16 { byte & 15 } else { byte >> 4 }) - 8
        });
    }

    fn check_isas<G: Grouped>(codec: &G) {
        let values = weights(PANEL_ROWS * 70);
        let (group, _) = values.as_chunks::<PANEL_ROWS>();
        let group = group.first_chunk().unwrap();
        let stored = stored(codec, &values, PANEL_ROWS);
        for isa in Isa::ALL.iter().copied().filter(|isa| isa.is_available()) {
            let mut quantized = QuantizedGroup::default();
            let phantom = std::marker::PhantomData;
            let kernel = Quantize::<G> { values: group, quantized: &mut quantized, codec: phantom };
            simd::run_on(isa, kernel);
            assert_eq!(quantized, quantize::<G>(group), "{isa:?}");
        }
        check_lanes::<G>(&stored, 70);
        let line = self::stored(codec, &values, 1);
        let [mut plain, mut native] = [(); 2].map(|()| vec![0.0; values.len()]);
        Decode::<G>::new(&line, &mut plain).run::<simd::lanes::Plain>();
        simd::run_lanes(Decode::<G>::new(&line, &mut native));
        assert_eq!(plain, native);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        check_isas(&Q8);
        check_isas(&Q4);
    }

    /// Root of the mean squared error over that of the values.
    fn relative_error(values: &[f32], decoded: &[f32]) -> f64 {
        let square = |value: f32| f64::from(value).powi(2);
        let errors: f64 = values.iter().zip(decoded).map(|(v, d)| square(v - d)).sum();
        (errors / values.iter().copied().map(square).sum::<f64>()).sqrt()
    }

    /// Rounds each group of one lane to the largest magnitude over `HIGHEST`, without search.
    fn naive<G: Grouped>(values: &[f32]) -> Vec<f32> {
        let rounded = values.chunks(GROUP_DEPTH).map(|group| {
            let peak = group.iter().fold(0f32, |max, value| max.max(value.abs()));
            let scale = half::bf16::from_f32(peak / G::HIGHEST).to_f32();
            let decode =
                move |value| f32::clamp(value / scale, G::LOWEST, G::HIGHEST).round() * scale;
            group.iter().map(move |value| decode(*value)).collect::<Vec<_>>()
        });
        rounded.flatten().collect()
    }

    fn check_quality<G: Grouped>(codec: &G, most_of_naive: f64, most: f64) {
        let values = weights(1 << 16);
        let mut decoded = vec![0.0; values.len()];
        codec.decode(&stored(codec, &values, 1), 1, &mut decoded);
        let error = relative_error(&values, &decoded);
        let naive = relative_error(&values, &naive::<G>(&values));
        assert!(error <= most, "{codec:?}: error {error}");
        assert!(error <= naive * most_of_naive, "{codec:?}: error {error}, without search {naive}");
    }

    #[test]
    fn searching_the_scale_pays() {
        check_quality(&Q8, 0.99, 0.005);
        check_quality(&Q4, 0.9, 0.09);
    }

    #[test]
    fn a_panel_and_its_rows_are_quantized_alike() {
        let depth = 2 * GROUP_DEPTH;
        let values = weights(PANEL_ROWS * depth);
        let mut panel = vec![0.0; values.len()];
        Q4.decode(&stored(&Q4, &values, PANEL_ROWS), PANEL_ROWS, &mut panel);
        for lane in 0..PANEL_ROWS {
            let row: Vec<f32> = values.iter().skip(lane).step_by(PANEL_ROWS).copied().collect();
            let mut decoded = vec![0.0; depth];
            Q4.decode(&stored(&Q4, &row, 1), 1, &mut decoded);
            let of_panel = panel.iter().skip(lane).step_by(PANEL_ROWS).copied();
            assert!(of_panel.eq(decoded), "lane {lane}");
        }
    }

    #[test]
    #[should_panic(expected = "cannot store infinities or NaN")]
    fn infinities_are_refused() {
        stored(&Q8, &[1.0, f32::INFINITY], 1);
    }

    #[test]
    #[should_panic(expected = "stored bytes of a q4 run")]
    fn runs_of_the_wrong_length_are_refused() {
        Q4.decode(&[0; 17], 1, &mut [0.0; 32]);
    }
}
