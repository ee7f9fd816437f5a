//! Lanes in two registers of AVX2.

use super::lanes::{LaneKernel, Lanes};
use crate::codec::PANEL_ROWS;
use std::arch::x86_64::*;

/// Two halves of eight. Only [`run`] has kernels use them.
#[derive(Clone, Copy)]
struct Vectors([__m256; 2]);

/// Runs `kernel` over [`Vectors`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: LaneKernel>(kernel: K) {
    kernel.run::<Vectors>();
}

/// Evaluates intrinsics. Macros, here and below: closures might not be inlined.
macro_rules! avx2 {
    ($value:expr) => {
        // SAFETY: `Vectors` are private to this module, where only `run` has them used: whoever
        // called it vouched for avx2, fma and f16c. Pointers are those of references to as many
        // bytes as are read or written, at any alignment.
        unsafe { $value }
    };
}

/// Vectors of what intrinsics give for either half.
macro_rules! halves {
    ($half:ident => $value:expr) => {
        Vectors([halves!($half = 0 => $value), halves!($half = 1 => $value)])
    };
    ($half:ident = $index:literal => $value:expr) => {{
        let $half: usize = $index;
        avx2!($value)
    }};
}

/// A half of what is stored.
#[inline(always)]
fn half<const N: usize, T>(stored: &[T], half: usize) -> &[T; N] {
    &stored.as_chunks().0[half]
}

/// Bytes of either half, lowest.
#[inline(always)]
fn split(bytes: __m128i) -> [__m128i; 2] {
    [bytes, avx2!(_mm_unpackhi_epi64(bytes, bytes))]
}

#[inline(always)]
fn count(shift: usize) -> __m128i {
    avx2!(_mm_cvtsi32_si128(shift as i32))
}

impl Lanes for Vectors {
    type Bytes = __m128i;

    #[inline(always)]
    fn bytes(stored: &[u8; PANEL_ROWS]) -> __m128i {
        avx2!(_mm_loadu_si128(stored.as_ptr().cast()))
    }

    #[inline(always)]
    fn field(bytes: __m128i, shift: usize, mask: u8) -> __m128i {
        let mask = avx2!(_mm_set1_epi8(mask.cast_signed()));
        avx2!(_mm_and_si128(_mm_srl_epi16(bytes, count(shift)), mask))
    }

    #[inline(always)]
    fn join(low: __m128i, high: __m128i, shift: usize) -> __m128i {
        avx2!(_mm_or_si128(low, _mm_sll_epi16(high, count(shift))))
    }

    #[inline(always)]
    fn unsigned(bytes: __m128i) -> Vectors {
        let bytes = split(bytes);
        halves!(i => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes[i])))
    }

    #[inline(always)]
    fn signed(bytes: __m128i) -> Vectors {
        let bytes = split(bytes);
        halves!(i => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes[i])))
    }

    #[inline(always)]
    fn floats(bytes: __m128i, shift: usize, least: u32) -> Vectors {
        let bytes = split(bytes);
        let least = avx2!(_mm256_set1_epi32(least.cast_signed()));
        halves!(i => {
            let shifted = _mm256_sll_epi32(_mm256_cvtepu8_epi32(bytes[i]), count(shift));
            _mm256_castsi256_ps(_mm256_add_epi32(shifted, least))
        })
    }

    #[inline(always)]
    fn halves(stored: &[u8; 2 * PANEL_ROWS]) -> Vectors {
        halves!(i => _mm256_cvtph_ps(Self::bytes(half(stored, i))))
    }

    #[inline(always)]
    fn uppers(stored: &[u8; 2 * PANEL_ROWS]) -> Vectors {
        halves!(i => {
            let bits = _mm256_cvtepu16_epi32(Self::bytes(half(stored, i)));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    fn singles(stored: &[u8; 4 * PANEL_ROWS]) -> Vectors {
        halves!(i => _mm256_loadu_ps(half::<32, u8>(stored, i).as_ptr().cast()))
    }

    #[inline(always)]
    fn load(values: &[f32; PANEL_ROWS]) -> Vectors {
        halves!(i => _mm256_loadu_ps(half::<8, f32>(values, i).as_ptr()))
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; PANEL_ROWS]) {
        for (to, from) in values.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            avx2!(_mm256_storeu_ps(to.as_mut_ptr(), from));
        }
    }

    #[inline(always)]
    fn splat(value: f32) -> Vectors {
        Vectors([avx2!(_mm256_set1_ps(value)); 2])
    }

    #[inline(always)]
    fn times(self, factor: Vectors) -> Vectors {
        halves!(i => _mm256_mul_ps(self.0[i], factor.0[i]))
    }

    #[inline(always)]
    fn times_plus(self, factor: Vectors, addend: Vectors) -> Vectors {
        halves!(i => _mm256_fmadd_ps(self.0[i], factor.0[i], addend.0[i]))
    }
}
