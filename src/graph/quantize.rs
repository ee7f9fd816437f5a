//! Floats as the nearest of 256 levels, of two that are as near the even one.
//!
//! Tract multiplies with what 1 over the scale is rounded to, so that ties are none any more, and
//! adds the zero point to what may be the largest integer already.

use tract_core::element_wise_oop;
use tract_core::internal::*;

/// A level before it is cast to its type, which saturates.
fn level(x: f32, scale: f32, zero_point: f32) -> f32 {
    (x / scale).round_ties_even() + zero_point
}

macro_rules! quantize {
    ($function:ident, $op:ident, $level:ident) => {
        element_wise_oop!($function, $op { scale: f32, zero_point: f32 },
            [f16] => $level |op, xs, ys| {
                let level = |x: &f16| level(x.to_f32(), op.scale, op.zero_point) as $level;
                xs.iter().zip(ys).for_each(|(x, y)| *y = level(x));
                Ok(())
            },
            [f32] => $level |op, xs, ys| {
                let level = |x: &f32| level(*x, op.scale, op.zero_point) as $level;
                xs.iter().zip(ys).for_each(|(x, y)| *y = level(x));
                Ok(())
            },
            [i32] => $level |op, xs, ys| {
                let level = |x: &i32| level(*x as f32, op.scale, op.zero_point) as $level;
                xs.iter().zip(ys).for_each(|(x, y)| *y = level(x));
                Ok(())
            }
        );
    };
}

quantize!(to_u8, ToU8, u8);
quantize!(to_i8, ToI8, i8);
