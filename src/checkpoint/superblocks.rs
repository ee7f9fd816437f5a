//! GGML's superblocks of 256 values: a scale, in some kinds another for minima, and for each group
//! of 16 or 32 values what multiplies them. In planes of codes a byte holds values far apart.

use super::blocks::float;

const VALUES: usize = 256;

/// 16 groups: scale and minimum of 4 bits each, codes of 2 bits.
pub fn q2_k(block: &[u8; 84], values: &mut Vec<f32>) {
    let (groups, rest) = block.split_at(16);
    let (codes, rest) = rest.split_at(64);
    let (scale, min) = (float([rest[0], rest[1]]), float([rest[2], rest[3]]));
    values.extend((0..VALUES).map(|index| {
        let group = groups[index / 16];
        let code = two_bits(codes, index);
        scale * f32::from(group & 15) * f32::from(code) - min * f32::from(group >> 4)
    }));
}

/// 16 groups: scale of 6 bits less 32, codes of 3 bits less 4, of which the third lies apart.
pub fn q3_k(block: &[u8; 110], values: &mut Vec<f32>) {
    let (thirds, rest) = block.split_at(32);
    let (codes, rest) = rest.split_at(64);
    let (groups, rest) = rest.split_at(12);
    let scale = float([rest[0], rest[1]]);
    values.extend((0..VALUES).map(|index| {
        let group = index / 16;
        let low = groups[group % 8] >> (group / 8 * 4) & 15;
        let high = groups[8 + group % 4] >> (group / 4 * 2) & 3;
        let third = thirds[index % 32] >> (index / 32) & 1;
        let code = two_bits(codes, index) | third << 2;
        scale * (f32::from(low | high << 4) - 32.0) * (f32::from(code) - 4.0)
    }));
}

/// 8 groups: scale and minimum of 6 bits each, codes of 4 bits.
pub fn q4_k(block: &[u8; 144], values: &mut Vec<f32>) {
    let (scale, min) = (float([block[0], block[1]]), float([block[2], block[3]]));
    let (groups, codes) = block[4..].split_at(12);
    values.extend((0..VALUES).map(|index| {
        let (group_scale, group_min) = scale_and_min(groups, index / 32);
        let code = four_bits(codes, index);
        scale * group_scale * f32::from(code) - min * group_min
    }));
}

/// 8 groups: scale and minimum of 6 bits each, codes of 5 bits, of which the fifth lies apart.
pub fn q5_k(block: &[u8; 176], values: &mut Vec<f32>) {
    let (scale, min) = (float([block[0], block[1]]), float([block[2], block[3]]));
    let (groups, rest) = block[4..].split_at(12);
    let (fifths, codes) = rest.split_at(32);
    values.extend((0..VALUES).map(|index| {
        let (group_scale, group_min) = scale_and_min(groups, index / 32);
        let fifth = fifths[index % 32] >> (index / 32) & 1;
        let code = four_bits(codes, index) | fifth << 4;
        scale * group_scale * f32::from(code) - min * group_min
    }));
}

/// 16 groups: scale of 8 bits, codes of 6 bits less 32, of which the upper two lie apart.
pub fn q6_k(block: &[u8; 210], values: &mut Vec<f32>) {
    let (codes, rest) = block.split_at(128);
    let (upper, rest) = rest.split_at(64);
    let (groups, rest) = rest.split_at(16);
    let scale = float([rest[0], rest[1]]);
    values.extend((0..VALUES).map(|index| {
        let (half, place) = (index / 128, index % 128);
        let low = codes[half * 64 + place % 64] >> (place / 64 * 4) & 15;
        let code = low | two_bits(upper, index) << 4;
        scale * f32::from(groups[index / 16].cast_signed()) * (f32::from(code) - 32.0)
    }));
}

/// The code of a plane of 2 bits: a byte holds four values that are 32 apart.
fn two_bits(codes: &[u8], index: usize) -> u8 {
    codes[index / 128 * 32 + index % 32] >> (index % 128 / 32 * 2) & 3
}

/// The code of a plane of 4 bits: a byte holds two values that are 32 apart.
fn four_bits(codes: &[u8], index: usize) -> u8 {
    codes[index / 64 * 32 + index % 32] >> (index % 64 / 32 * 4) & 15
}

/// Scale and minimum of a group, of 6 bits each: those of the last four groups are spread over what
/// the first four leave.
fn scale_and_min(groups: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = match group {
        0..4 => (groups[group] & 63, groups[group + 4] & 63),
        _ => {
            let shared = groups[group + 4];
            let (scale, min) = (groups[group - 4] >> 6, groups[group] >> 6);
            (shared & 15 | scale << 4, shared >> 4 | min << 4)
        }
    };
    (f32::from(scale), f32::from(min))
}
