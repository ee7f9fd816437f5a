//! Operations on single numbers that tract has otherwise: NaN stays, integers wrap, and shifts
//! may be as wide as the integer.

use tract_core::internal::*;
use tract_core::{bin_to_super_type, element_wise};

/// How far to shift, where that can be said.
fn bits<T: TryInto<u32>>(count: T) -> Option<u32> {
    count.try_into().ok()
}

element_wise!(at_least, AtLeast { bound: f64 },
    [f16] => |op, xs| {
        let bound = f16::from_f64(op.bound);
        xs.iter_mut().for_each(|x| if *x < bound { *x = bound });
        Ok(())
    },
    [f32] => |op, xs| {
        let bound = op.bound as f32;
        xs.iter_mut().for_each(|x| if *x < bound { *x = bound });
        Ok(())
    },
    [f64] => |op, xs| {
        xs.iter_mut().for_each(|x| if *x < op.bound { *x = op.bound });
        Ok(())
    }
);

element_wise!(at_most, AtMost { bound: f64 },
    [f16] => |op, xs| {
        let bound = f16::from_f64(op.bound);
        xs.iter_mut().for_each(|x| if *x > bound { *x = bound });
        Ok(())
    },
    [f32] => |op, xs| {
        let bound = op.bound as f32;
        xs.iter_mut().for_each(|x| if *x > bound { *x = bound });
        Ok(())
    },
    [f64] => |op, xs| {
        xs.iter_mut().for_each(|x| if *x > op.bound { *x = op.bound });
        Ok(())
    }
);

element_wise!(times, Times { factor: f64 },
    [f16] => |op, xs| {
        let factor = f16::from_f64(op.factor);
        xs.iter_mut().for_each(|x| *x *= factor);
        Ok(())
    },
    [f32] => |op, xs| {
        let factor = op.factor as f32;
        xs.iter_mut().for_each(|x| *x *= factor);
        Ok(())
    },
    [f64] => |op, xs| {
        xs.iter_mut().for_each(|x| *x *= op.factor);
        Ok(())
    }
);

element_wise!(whole_square, WholeSquare {},
    [i8, i16, i32, i64, u8, u16, u32, u64] => |_, xs| {
        xs.iter_mut().for_each(|x| *x = x.wrapping_mul(*x));
        Ok(())
    }
);

// A comparison with a NaN is false, so the first of the two is asked for one.
bin_to_super_type!(larger, Larger,
    [f16, f32, f64] => |c, a, b| *c = if a.is_nan() || *a > *b { *a } else { *b });

bin_to_super_type!(smaller, Smaller,
    [f16, f32, f64] => |c, a, b| *c = if a.is_nan() || *a < *b { *a } else { *b });

bin_to_super_type!(shifted_up, ShiftedUp,
is_commutative: false,
[u8, u16, u32, u64, i8, i16, i32, i64] => |c, a, b| {
    *c = bits(*b).and_then(|bits| a.checked_shl(bits)).unwrap_or(0);
});

bin_to_super_type!(shifted_down, ShiftedDown,
is_commutative: false,
// What is shifted in is the sign, so that -1 or 0 is left of all bits.
[i8, i16, i32, i64] => |c, a, b| {
    let sign = if *a < 0 { -1 } else { 0 };
    *c = bits(*b).and_then(|bits| a.checked_shr(bits)).unwrap_or(sign);
},
[u8, u16, u32, u64] => |c, a, b| {
    *c = bits(*b).and_then(|bits| a.checked_shr(bits)).unwrap_or(0);
});
