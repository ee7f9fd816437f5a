//! Lanes in four registers of NEON.

use super::lanes::Lanes;
use crate::codec::PANEL_ROWS;
use std::arch::aarch64::*;

/// Four quarters of four.
#[derive(Clone, Copy)]
pub(super) struct Vectors([float32x4_t; 4]);

/// Evaluates intrinsics. Macros, here and below: closures might not be inlined.
macro_rules! neon {
    ($value:expr) => {
        // SAFETY: every aarch64 processor that Linux runs on has these instructions. Pointers are
        // those of references to as many bytes as are read or written, at any alignment.
        unsafe { $value }
    };
}

/// Vectors of what intrinsics give for each quarter.
macro_rules! quarters {
    ($quarter:ident => $value:expr) => {
        Vectors([
            quarters!($quarter = 0 => $value),
            quarters!($quarter = 1 => $value),
            quarters!($quarter = 2 => $value),
            quarters!($quarter = 3 => $value),
        ])
    };
    ($quarter:ident = $index:literal => $value:expr) => {{
        let $quarter: usize = $index;
        neon!($value)
    }};
}

/// A quarter of what is stored.
#[inline(always)]
fn quarter<const N: usize, T>(stored: &[T], quarter: usize) -> &[T; N] {
    &stored.as_chunks().0[quarter]
}

/// Bytes as integers of each quarter.
#[inline(always)]
fn widened(bytes: uint8x16_t) -> [uint32x4_t; 4] {
    let (low, high) = neon!((vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)));
    neon!([
        vmovl_u16(vget_low_u16(low)),
        vmovl_high_u16(low),
        vmovl_u16(vget_low_u16(high)),
        vmovl_high_u16(high),
    ])
}

/// Four f16 as f32: the intrinsic for it is not stable.
#[inline(always)]
fn of_halves(stored: &[u8; 8]) -> float32x4_t {
    let halves = neon!(vld1_u8(stored.as_ptr()));
    let values: float32x4_t;
    // SAFETY: every aarch64 processor that Linux runs on has this instruction, which reads one
    // register and writes another.
    unsafe {
        std::arch::asm!(
            "fcvtl {values:v}.4s, {halves:v}.4h",
            values = lateout(vreg) values,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    values
}

impl Lanes for Vectors {
    type Bytes = uint8x16_t;

    #[inline(always)]
    fn bytes(stored: &[u8; PANEL_ROWS]) -> uint8x16_t {
        neon!(vld1q_u8(stored.as_ptr()))
    }

    #[inline(always)]
    fn field(bytes: uint8x16_t, shift: usize, mask: u8) -> uint8x16_t {
        let shifted = neon!(vshlq_u8(bytes, vdupq_n_s8(-(shift as i8))));
        neon!(vandq_u8(shifted, vdupq_n_u8(mask)))
    }

    #[inline(always)]
    fn join(low: uint8x16_t, high: uint8x16_t, shift: usize) -> uint8x16_t {
        neon!(vorrq_u8(low, vshlq_u8(high, vdupq_n_s8(shift as i8))))
    }

    #[inline(always)]
    fn unsigned(bytes: uint8x16_t) -> Vectors {
        let integers = widened(bytes);
        quarters!(i => vcvtq_f32_u32(integers[i]))
    }

    #[inline(always)]
    fn signed(bytes: uint8x16_t) -> Vectors {
        let bytes = neon!(vreinterpretq_s8_u8(bytes));
        let (low, high) = neon!((vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)));
        let integers = neon!([
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]);
        quarters!(i => vcvtq_f32_s32(integers[i]))
    }

    #[inline(always)]
    fn floats(bytes: uint8x16_t, shift: usize, least: u32) -> Vectors {
        let integers = widened(bytes);
        let (count, least) = neon!((vdupq_n_s32(shift as i32), vdupq_n_u32(least)));
        quarters!(i => vreinterpretq_f32_u32(vaddq_u32(vshlq_u32(integers[i], count), least)))
    }

    #[inline(always)]
    fn halves(stored: &[u8; 2 * PANEL_ROWS]) -> Vectors {
        quarters!(i => of_halves(quarter(stored, i)))
    }

    #[inline(always)]
    fn uppers(stored: &[u8; 2 * PANEL_ROWS]) -> Vectors {
        quarters!(i => {
            let bits = vreinterpret_u16_u8(vld1_u8(quarter::<8, u8>(stored, i).as_ptr()));
            vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
        })
    }

    #[inline(always)]
    fn singles(stored: &[u8; 4 * PANEL_ROWS]) -> Vectors {
        quarters!(i => vreinterpretq_f32_u8(vld1q_u8(quarter::<16, u8>(stored, i).as_ptr())))
    }

    #[inline(always)]
    fn load(values: &[f32; PANEL_ROWS]) -> Vectors {
        quarters!(i => vld1q_f32(quarter::<4, f32>(values, i).as_ptr()))
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; PANEL_ROWS]) {
        for (to, from) in values.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            neon!(vst1q_f32(to.as_mut_ptr(), from));
        }
    }

    #[inline(always)]
    fn splat(value: f32) -> Vectors {
        Vectors([neon!(vdupq_n_f32(value)); 4])
    }

    #[inline(always)]
    fn times(self, factor: Vectors) -> Vectors {
        quarters!(i => vmulq_f32(self.0[i], factor.0[i]))
    }

    #[inline(always)]
    fn times_plus(self, factor: Vectors, addend: Vectors) -> Vectors {
        quarters!(i => vfmaq_f32(addend.0[i], self.0[i], factor.0[i]))
    }
}
