//! Vectors of one value of each lane, in the registers that the processor has.
//!
//! A loop over [`Lanes`] is written once and compiled for each kind of them. Where values are
//! decoded and used at once the compiler finds no vectors by itself; here it is told.

use crate::codec::PANEL_ROWS;

/// A loop over vectors and what it works on.
pub(in crate::codec) trait LaneKernel {
    /// Runs it. Implementations are `#[inline(always)]`, as is everything they call.
    fn run<L: Lanes>(self);
}

/// One f32 of each of [`PANEL_ROWS`] lanes. What is stored is little-endian.
pub(in crate::codec) trait Lanes: Copy {
    /// A byte of each lane.
    type Bytes: Copy;

    fn bytes(stored: &[u8; PANEL_ROWS]) -> Self::Bytes;

    /// `byte >> shift & mask` of each, where the mask has no bits that a shift from above could fill.
    fn field(bytes: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes;

    /// `low | high << shift` of each, where no bit is lost.
    fn join(low: Self::Bytes, high: Self::Bytes, shift: usize) -> Self::Bytes;

    /// The values of bytes from 0 to 255.
    fn unsigned(bytes: Self::Bytes) -> Self;

    /// The values of bytes from -128 to 127.
    fn signed(bytes: Self::Bytes) -> Self;

    /// The floats that have the bits `(byte << shift) + least`.
    fn floats(bytes: Self::Bytes, shift: usize, least: u32) -> Self;

    /// Of f16. What is no number may have other bits than elsewhere.
    fn halves(stored: &[u8; 2 * PANEL_ROWS]) -> Self;

    /// Of bf16.
    fn uppers(stored: &[u8; 2 * PANEL_ROWS]) -> Self;

    fn singles(stored: &[u8; 4 * PANEL_ROWS]) -> Self;

    fn load(values: &[f32; PANEL_ROWS]) -> Self;

    fn store(self, values: &mut [f32; PANEL_ROWS]);

    fn splat(value: f32) -> Self;

    fn times(self, factor: Self) -> Self;

    /// `self * factor + addend`, rounded once.
    fn times_plus(self, factor: Self, addend: Self) -> Self;

    /// The same of a product that needs no rounding, so that it may be done in two operations.
    fn exactly_times_plus(self, factor: Self, addend: Self) -> Self {
        self.times_plus(factor, addend)
    }
}

/// Vectors of any processor, one value after the other: what the others are held against.
#[cfg_attr(all(target_arch = "aarch64", target_endian = "little"), allow(dead_code))]
#[derive(Clone, Copy, Debug)]
pub(in crate::codec) struct Plain([f32; PANEL_ROWS]);

impl Plain {
    #[inline(always)]
    fn of<const N: usize>(stored: &[u8], value: impl Fn([u8; N]) -> f32) -> Plain {
        let mut values = [0.0; PANEL_ROWS];
        for (to, bytes) in values.iter_mut().zip(stored.as_chunks::<N>().0) {
            *to = value(*bytes);
        }
        Plain(values)
    }

    #[inline(always)]
    fn with(mut self, other: Plain, of: impl Fn(f32, f32) -> f32) -> Plain {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value = of(*value, other);
        }
        self
    }
}

impl Lanes for Plain {
    type Bytes = [u8; PANEL_ROWS];

    #[inline(always)]
    fn bytes(stored: &[u8; PANEL_ROWS]) -> [u8; PANEL_ROWS] {
        *stored
    }

    #[inline(always)]
    fn field(bytes: [u8; PANEL_ROWS], shift: usize, mask: u8) -> [u8; PANEL_ROWS] {
        bytes.map(|byte| byte >> shift & mask)
    }

    #[inline(always)]
    fn join(mut low: [u8; PANEL_ROWS], high: [u8; PANEL_ROWS], shift: usize) -> [u8; PANEL_ROWS] {
        for (low, high) in low.iter_mut().zip(high) {
            *low |= high << shift;
        }
        low
    }

    #[inline(always)]
    fn unsigned(bytes: [u8; PANEL_ROWS]) -> Plain {
        Plain(bytes.map(f32::from))
    }

    #[inline(always)]
    fn signed(bytes: [u8; PANEL_ROWS]) -> Plain {
        Plain(bytes.map(|byte| f32::from(byte.cast_signed())))
    }

    #[inline(always)]
    fn floats(bytes: [u8; PANEL_ROWS], shift: usize, least: u32) -> Plain {
        Plain(bytes.map(|byte| f32::from_bits((u32::from(byte) << shift) + least)))
    }

    #[inline(always)]
    fn halves(stored: &[u8; 2 * PANEL_ROWS]) -> Plain {
        Plain::of(stored, |bytes| half(u16::from_le_bytes(bytes)))
    }

    #[inline(always)]
    fn uppers(stored: &[u8; 2 * PANEL_ROWS]) -> Plain {
        Plain::of(stored, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16))
    }

    #[inline(always)]
    fn singles(stored: &[u8; 4 * PANEL_ROWS]) -> Plain {
        Plain::of(stored, f32::from_le_bytes)
    }

    #[inline(always)]
    fn load(values: &[f32; PANEL_ROWS]) -> Plain {
        Plain(*values)
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; PANEL_ROWS]) {
        *values = self.0;
    }

    #[inline(always)]
    fn splat(value: f32) -> Plain {
        Plain([value; PANEL_ROWS])
    }

    #[inline(always)]
    fn times(self, factor: Plain) -> Plain {
        self.with(factor, |value, factor| value * factor)
    }

    #[inline(always)]
    fn times_plus(mut self, factor: Plain, addend: Plain) -> Plain {
        for ((value, factor), addend) in self.0.iter_mut().zip(factor.0).zip(addend.0) {
            *value = value.mul_add(factor, addend);
        }
        self
    }

    /// In two operations: one needs many instructions where the processor has none for it.
    #[inline(always)]
    fn exactly_times_plus(self, factor: Plain, addend: Plain) -> Plain {
        self.times(factor).with(addend, |product, addend| product + addend)
    }
}

/// The value of an f16. Widens in integers, without a branch and without subnormal operands, so
/// that it runs at one speed whatever the values.
#[inline(always)]
pub(in crate::codec) fn half(half: u16) -> f32 {
    const EXPONENT: u32 = 0x7c00;
    const REBIAS: u32 = 112 << 23;
    let bits = u32::from(half);
    let sign = (bits & 0x8000) << 16;
    let magnitude = bits & 0x7fff;
    let normal = (magnitude << 13) + REBIAS;
    let special = normal + REBIAS;
    let smallest_normal = f32::from_bits(REBIAS + (1 << 23));
    let subnormal = f32::from_bits(normal + (1 << 23)) - smallest_normal;
    let finite = if magnitude < 0x0400 { subnormal.to_bits() } else { normal };
    let magnitude = if magnitude >= EXPONENT { special } else { finite };
    f32::from_bits(sign | magnitude)
}
