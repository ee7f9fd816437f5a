//! Which blocks of a tape stay in memory.

use super::PinPlace;

/// Which of the units of these sizes are pinned, if `pin_bytes` may be held for them.
pub fn pinned_units(sizes: &[u64], pin_bytes: u64, place: PinPlace) -> Vec<bool> {
    let total: u64 = sizes.iter().sum();
    if pin_bytes >= total {
        return vec![true; sizes.len()];
    }
    let (mut passed, mut pinned) = (0u64, 0u64);
    let picks = sizes.iter().map(|size| {
        passed += size;
        let due = match place {
            PinPlace::Head => pin_bytes,
            PinPlace::Spread => {
                (u128::from(passed) * u128::from(pin_bytes)).div_ceil(u128::from(total)) as u64
            }
        };
        let fits = pinned + size <= due.min(pin_bytes);
        pinned += if fits { *size } else { 0 };
        fits
    });
    picks.collect()
}
