//! Panels step by step: one definition of how a codec decodes them, for whoever writes values out and
//! for whoever uses them at once.

use super::PANEL_ROWS;
use super::simd::{
    self,
    lanes::{self, LaneKernel, Lanes},
};
use std::marker::PhantomData;

/// How a codec's panels are decoded. Implementations are `#[inline(always)]`.
pub(super) trait Steps {
    /// Steps that are stored as one group; the last one of a run is padded.
    const DEPTH: usize;
    /// Stored bytes of a panel's group.
    const BYTES: usize;
    /// What stands before the groups, ready for use.
    type Head<L: Lanes>;
    /// What the steps of a group are made of.
    type Group<'a, L: Lanes>;

    /// Takes the header off a panel.
    fn open<L: Lanes>(stored: &[u8]) -> (Self::Head<L>, &[u8]);

    /// Reads a group of [`Steps::BYTES`].
    fn group<'a, L: Lanes>(head: &Self::Head<L>, stored: &'a [u8]) -> Self::Group<'a, L>;

    /// One step of a group.
    fn step<L: Lanes>(group: &Self::Group<'_, L>, index: usize) -> L;
}

/// [`Steps`] of values of so many bytes that are stored one after the other, as `Lanes::$load`
/// takes them.
macro_rules! steps_of_values {
    ($codec:ident, $bytes:literal, $load:ident) => {
        impl $crate::codec::steps::Steps for $codec {
            const DEPTH: usize = 1;
            const BYTES: usize = $crate::codec::PANEL_ROWS * $bytes;
            type Head<L: $crate::codec::simd::lanes::Lanes> = ();
            type Group<'a, L: $crate::codec::simd::lanes::Lanes> = L;

            #[inline(always)]
            fn open<L: $crate::codec::simd::lanes::Lanes>(stored: &[u8]) -> ((), &[u8]) {
                ((), stored)
            }

            #[inline(always)]
            fn group<L: $crate::codec::simd::lanes::Lanes>((): &(), stored: &[u8]) -> L {
                L::$load(&stored.as_chunks().0[0])
            }

            #[inline(always)]
            fn step<L: $crate::codec::simd::lanes::Lanes>(group: &L, _: usize) -> L {
                *group
            }
        }
    };
}
pub(super) use steps_of_values;

/// Decodes a panel.
///
/// # Panics
/// Where `stored` is not of as many steps as `values`.
pub(super) fn decode<S: Steps>(stored: &[u8], values: &mut [f32]) {
    simd::run_lanes(Decode::<S>::new(stored, values));
}

/// Checks that a panel has as many steps.
pub(super) fn check_depth<S: Steps>(stored: &[u8], depth: usize) {
    let bytes = S::open::<lanes::Plain>(stored).1.len();
    assert_eq!(bytes, depth.div_ceil(S::DEPTH) * S::BYTES, "stored bytes of {depth} steps");
}

/// Reads each stored byte once and writes 4 per value; bound by the conversion, then by the stores.
pub(super) struct Decode<'a, S> {
    stored: &'a [u8],
    values: &'a mut [[f32; PANEL_ROWS]],
    steps: PhantomData<S>,
}

impl<'a, S: Steps> Decode<'a, S> {
    pub fn new(stored: &'a [u8], values: &'a mut [f32]) -> Self {
        let (values, rest) = values.as_chunks_mut();
        assert!(rest.is_empty(), "a panel has whole steps of {PANEL_ROWS} values");
        check_depth::<S>(stored, values.len());
        Decode { stored, values, steps: PhantomData }
    }
}

impl<S: Steps> LaneKernel for Decode<'_, S> {
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (head, groups) = S::open::<L>(self.stored);
        for (values, stored) in self.values.chunks_mut(S::DEPTH).zip(groups.chunks_exact(S::BYTES))
        {
            let group = S::group::<L>(&head, stored);
            for (index, values) in values.iter_mut().enumerate() {
                S::step::<L>(&group, index).store(values);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the vectors of this processor give is what plain loops do.
    pub fn check_lanes<S: Steps>(stored: &[u8], depth: usize) {
        let [mut plain, mut native] = [(); 2].map(|()| vec![f32::NAN; depth * PANEL_ROWS]);
        Decode::<S>::new(stored, &mut plain).run::<lanes::Plain>();
        decode::<S>(stored, &mut native);
        assert_eq!(plain, native);
    }
}
