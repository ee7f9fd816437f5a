//! Which units of a tape stay in memory between passes.
//!
//! A pass reads the same bytes in the same order each time. Of a tape longer than the cache, an
//! LRU then hits nothing, since whatever comes next was thrown out last; a fixed set hits its
//! share, whichever units it holds. Where they lie decides what reading overlaps with.

use super::PinPlace;

/// Which units are pinned when at most `pin_bytes` may be, by the units' bytes in memory.
///
/// `Head` takes the first units while they fit. `Spread` pins the first unit and then, as the tape
/// goes on, whenever the share of bytes pinned has fallen behind the share that may be
/// (Bresenham's line), so that loaders always have something to load ahead of compute.
pub fn pinned_units(sizes: &[u64], pin_bytes: u64, place: PinPlace) -> Vec<bool> {
    match place {
        PinPlace::Head => pinned_head(sizes, pin_bytes),
        PinPlace::Spread => pinned_spread(sizes, pin_bytes),
    }
}

fn pinned_head(sizes: &[u64], pin_bytes: u64) -> Vec<bool> {
    let ends = sizes.iter().scan(0u64, |end, size| {
        *end = end.saturating_add(*size);
        Some(*end)
    });
    ends.map(|end| end <= pin_bytes).collect()
}

fn pinned_spread(sizes: &[u64], pin_bytes: u64) -> Vec<bool> {
    let total = sizes.iter().map(|size| u128::from(*size)).sum::<u128>();
    let limit = u128::from(pin_bytes);
    let (mut passed, mut pinned) = (0u128, 0u128);
    let pin = |size: &u64| {
        let size = u128::from(*size);
        let is_behind = pinned * total <= passed * limit;
        passed += size;
        let pin = is_behind && pinned + size <= limit;
        if pin {
            pinned += size;
        }
        pin
    };
    sizes.iter().map(pin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn check(sizes: &[u64], pin_bytes: u64, place: PinPlace, expected: &str) {
        let found = pinned_units(sizes, pin_bytes, place);
        let text: String = found.iter().map(|pin| if *pin { '#' } else { '.' }).collect();
        assert_eq!(text, expected, "{sizes:?} {pin_bytes} {place:?}");
    }

    #[test]
    fn pins_are_where_the_plan_says() {
        check(&[10; 8], 40, PinPlace::Head, "####....");
        check(&[10; 8], 49, PinPlace::Head, "####....");
        check(&[10; 8], 40, PinPlace::Spread, "#.#.#.#.");
        check(&[10; 8], 20, PinPlace::Spread, "#...#...");
        check(&[10; 8], 60, PinPlace::Spread, "#.###.##");
        check(&[10, 1, 1, 10], 12, PinPlace::Spread, "#...");
        for place in [PinPlace::Head, PinPlace::Spread] {
            check(&[10; 8], 0, place, "........");
            check(&[10; 8], 80, place, "########");
            check(&[], 80, place, "");
        }
    }

    proptest! {
        #[test]
        fn pins_are_within_their_bytes_and_use_them(
            sizes in prop::collection::vec(1u64..100, 1..60),
            share in 0u64..=100,
        ) {
            let (total, largest) = (sizes.iter().sum::<u64>(), *sizes.iter().max().unwrap());
            let pin_bytes = total * share / 100;
            for place in [PinPlace::Head, PinPlace::Spread] {
                let pins = pinned_units(&sizes, pin_bytes, place);
                let pinned: u64 = sizes.iter().zip(&pins).filter(|(_, p)| **p).map(|(s, _)| s).sum();
                prop_assert!(pinned <= pin_bytes && pin_bytes < pinned + 2 * largest);
            }
        }
    }

    /// Unit numbers that an LRU of `room` bytes holds; returns how many bytes hit in one scan.
    fn scan_lru(cache: &mut VecDeque<usize>, sizes: &[u64], room: u64) -> u64 {
        let mut hit = 0;
        for (unit, size) in sizes.iter().enumerate() {
            match cache.iter().position(|held| *held == unit) {
                Some(at) => {
                    cache.remove(at);
                    hit += size;
                }
                None => {
                    while cache.iter().map(|held| sizes[*held]).sum::<u64>() + size > room {
                        cache.pop_front().unwrap();
                    }
                }
            }
            cache.push_back(unit);
        }
        hit
    }

    /// Why pins are chosen once and not by what was used last.
    #[test]
    fn a_cyclic_scan_hits_the_pinned_share_where_an_lru_hits_nothing() {
        for (units, size, share) in [(24, 50, 4), (100, 1, 2), (1152, 1, 10), (7, 3, 7)] {
            let sizes = vec![size; units];
            let total = size * units as u64;
            let room = total / share / size * size;
            let mut cache = VecDeque::new();
            for place in [PinPlace::Head, PinPlace::Spread] {
                let pins = pinned_units(&sizes, room, place);
                let hit: u64 = sizes.iter().zip(&pins).filter(|(_, p)| **p).map(|(s, _)| s).sum();
                assert_eq!(hit, room, "{units} units of {size}: the whole of the room hits");
            }
            scan_lru(&mut cache, &sizes, room);
            for _ in 0..3 {
                assert_eq!(scan_lru(&mut cache, &sizes, room), 0, "{units} units of {size}");
            }
            scan_lru(&mut cache, &sizes, total);
            assert_eq!(scan_lru(&mut cache, &sizes, total), total, "an LRU of all hits all");
        }
    }
}
