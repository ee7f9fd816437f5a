//! GGML's blocks of 32 values: a scale, in some kinds a minimum, and a code for each value. Where
//! codes share a byte, the first half of a block has the low bits.

use half::f16;

/// Scale, 32 codes of 8 bits.
pub fn q8_0(block: &[u8; 34], values: &mut Vec<f32>) {
    let [low, high, codes @ ..] = block;
    let scale = float([*low, *high]);
    values.extend(codes.iter().map(|code| scale * f32::from(code.cast_signed())));
}

/// Scale, 32 codes of 4 bits less 8.
pub fn q4_0(block: &[u8; 18], values: &mut Vec<f32>) {
    let [low, high, codes @ ..] = block;
    let scale = float([*low, *high]);
    values.extend(nibbles(codes).map(|code| scale * (f32::from(code) - 8.0)));
}

/// Scale, minimum, 32 codes of 4 bits.
pub fn q4_1(block: &[u8; 20], values: &mut Vec<f32>) {
    let [low, high, min_low, min_high, codes @ ..] = block;
    let (scale, min) = (float([*low, *high]), float([*min_low, *min_high]));
    values.extend(nibbles(codes).map(|code| scale * f32::from(code) + min));
}

/// Scale, the fifth bits, 32 codes of 5 bits less 16.
pub fn q5_0(block: &[u8; 22], values: &mut Vec<f32>) {
    let [low, high, a, b, c, d, codes @ ..] = block;
    let scale = float([*low, *high]);
    let codes = with_fifth([*a, *b, *c, *d], codes);
    values.extend(codes.map(|code| scale * (f32::from(code) - 16.0)));
}

/// Scale, minimum, the fifth bits, 32 codes of 5 bits.
pub fn q5_1(block: &[u8; 24], values: &mut Vec<f32>) {
    let [low, high, min_low, min_high, a, b, c, d, codes @ ..] = block;
    let (scale, min) = (float([*low, *high]), float([*min_low, *min_high]));
    let codes = with_fifth([*a, *b, *c, *d], codes);
    values.extend(codes.map(|code| scale * f32::from(code) + min));
}

/// Scale, 32 indexes into a table of steps that are finer about 0.
pub fn iq4_nl(block: &[u8; 18], values: &mut Vec<f32>) {
    const STEPS: [i8; 16] =
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let [low, high, codes @ ..] = block;
    let scale = float([*low, *high]);
    values.extend(nibbles(codes).map(|code| scale * f32::from(STEPS[usize::from(code)])));
}

/// A half float.
pub fn float(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).into()
}

/// The low halves of all bytes, then the high ones.
fn nibbles(codes: &[u8; 16]) -> impl Iterator<Item = u8> {
    codes.iter().map(|byte| byte & 15).chain(codes.iter().map(|byte| byte >> 4))
}

/// The same with a fifth bit each.
fn with_fifth(bits: [u8; 4], codes: &[u8; 16]) -> impl Iterator<Item = u8> {
    let bits = u32::from_le_bytes(bits);
    let fifth = move |index: usize| if bits >> index & 1 == 1 { 16 } else { 0 };
    nibbles(codes).enumerate().map(move |(index, code)| code | fifth(index))
}
