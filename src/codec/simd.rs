//! Runs a plain loop compiled for the best vector instructions of this processor.
//!
//! The loop is written once, as a [`Kernel`] whose `run` is `#[inline(always)]`, and inlined into a
//! function per instruction set, where the compiler vectorizes it. On aarch64 NEON is the
//! baseline, so the plain build is the fast one.

#![allow(unsafe_code)]

/// A loop and what it works on.
pub trait Kernel {
    /// Runs it. Implementations are `#[inline(always)]`, as is everything they call.
    fn run(self);
}

/// An instruction set that [`run_on`] can compile a kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// What every processor of this architecture has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Every instruction set of this architecture, slowest first.
    #[cfg(target_arch = "x86_64")]
    pub(super) const ALL: &'static [Isa] = &[Isa::Baseline, Isa::Avx2, Isa::Avx512];

    /// Every instruction set of this architecture, slowest first.
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const ALL: &'static [Isa] = &[Isa::Baseline];

    /// Whether this processor has it; the standard library probes once and remembers.
    #[inline]
    pub(super) fn is_available(self) -> bool {
        match self {
            Isa::Baseline => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
        }
    }
}

/// The processor's own conversion of halves, which it proves to be there.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub(super) struct HalfConversion(());

#[cfg(target_arch = "x86_64")]
impl HalfConversion {
    /// The conversion, if there is one that [`run`] can inline.
    #[inline(always)]
    pub(super) fn detect() -> Option<HalfConversion> {
        Isa::Avx2.is_available().then_some(HalfConversion(()))
    }

    /// The values of 16 halves, little-endian. Fast within a [`Kernel`] that [`run`] runs.
    #[inline(always)]
    pub(super) fn widen(self, halves: &[u8; 32]) -> [f32; 16] {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
        let mut values = [0.0; 16];
        for (values, halves) in
            values.as_chunks_mut::<8>().0.iter_mut().zip(halves.as_chunks::<16>().0)
        {
            // SAFETY: whoever has a `HalfConversion` found f16c and avx2 on this processor; 16 bytes
            // are read from 16 of `halves`, and 8 values written to 8 of `values`.
            unsafe {
                let halves = _mm_loadu_si128(halves.as_ptr().cast());
                _mm256_storeu_ps(values.as_mut_ptr(), _mm256_cvtph_ps(halves));
            }
        }
        values
    }
}

/// There is none that can be used on stable Rust.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy, Debug)]
pub(super) enum HalfConversion {}

#[cfg(not(target_arch = "x86_64"))]
impl HalfConversion {
    #[inline(always)]
    pub(super) fn detect() -> Option<HalfConversion> {
        None
    }

    #[inline(always)]
    pub(super) fn widen(self, _: &[u8; 32]) -> [f32; 16] {
        match self {}
    }
}

/// Runs `kernel` with the best instructions there are.
#[inline]
pub fn run<K: Kernel>(kernel: K) {
    let best = Isa::ALL.iter().rev().find(|isa| isa.is_available());
    run_on(*best.expect("the baseline is always available"), kernel);
}

/// Runs `kernel` with the instructions of `isa`; panics where this processor lacks them.
#[inline]
pub(super) fn run_on<K: Kernel>(isa: Isa, kernel: K) {
    assert!(isa.is_available(), "{isa:?} is not available on this processor");
    match isa {
        Isa::Baseline => kernel.run(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above found avx2, fma and f16c on this processor.
        Isa::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above found avx512f, avx512bw, avx512vl and what `Avx2` has.
        Isa::Avx512 => unsafe { run_avx512(kernel) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K) {
    kernel.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K) {
    kernel.run();
}
