//! Runs a plain loop compiled for the best vector instructions of this processor.
//!
//! The loop is written once, as a [`Kernel`] whose `run` is `#[inline(always)]`, and inlined into a
//! function per instruction set, where the compiler vectorizes it. On aarch64 NEON is the
//! baseline, so the plain build is the fast one. Where the compiler finds no vectors by itself, a
//! loop is written over `lanes`.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod avx2;
pub(super) mod lanes;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;

use lanes::LaneKernel;

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

/// Runs `kernel` over the best vectors there are.
pub(super) fn run_lanes<K: LaneKernel>(kernel: K) {
    #[cfg(target_arch = "x86_64")]
    match Isa::Avx2.is_available() {
        // SAFETY: avx2, fma and f16c have just been found on this processor.
        true => unsafe { avx2::run(kernel) },
        false => kernel.run::<lanes::Plain>(),
    }
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    kernel.run::<neon::Vectors>();
    #[cfg(not(any(
        target_arch = "x86_64",
        all(target_arch = "aarch64", target_endian = "little")
    )))]
    kernel.run::<lanes::Plain>();
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
