//! What the planner chooses, against every plan of a grid.

use super::super::board::Core;
use super::super::fixture::{self, MIB};
use super::super::profile::PassTime;
use super::*;
use proptest::prelude::*;

fn wish(budget_mib: u64, tokens: u64) -> Wish {
    Wish { budget_bytes: budget_mib * MIB, tokens, usage: Usage::Cyclic }
}

fn planned(profile: &Profile, budget_mib: u64, tokens: u64) -> Planned {
    plan(profile, &wish(budget_mib, tokens), &Overrides::default()).unwrap()
}

#[test]
fn a_model_that_fits_is_pinned() {
    let found = planned(&fixture::profile(), 1300, 128);
    assert!(found.fits && found.forecast.bytes_read == 0);
    assert_eq!(found.forecast.pinned_bytes, 1152 * MIB);
    assert!(found.granted_bytes <= 1300 * MIB);
    assert!(!planned(&fixture::profile(), 1152, 128).fits);
}

#[test]
fn memory_is_taken_only_where_it_helps() {
    let mut profile = fixture::profile();
    // Compute is the bound by far.
    profile.passes.iter_mut().for_each(|pass| pass.latency_us *= 10.0);
    let found = planned(&profile, 600, 128);
    assert!(found.granted_bytes < 100 * MIB, "pins only spare loaders' work: {found:?}");
    assert_eq!(found.plan.loaders, 1);
    let disk_bound = planned(&fixture::profile(), 600, 128);
    assert!(disk_bound.granted_bytes > 300 * MIB, "{disk_bound:?}");
    assert!(disk_bound.forecast.latency_us < found.forecast.latency_us);
}

#[test]
fn more_budget_is_never_slower() {
    let profile = fixture::profile();
    let latencies = [32, 48, 64, 128, 256, 512, 1024, 1300]
        .map(|budget| planned(&profile, budget, 128).forecast.latency_us);
    for pair in latencies.windows(2) {
        assert!(pair[1] <= pair[0] * SLACK, "{latencies:?}");
    }
}

#[test]
fn the_faster_source_is_chosen_and_the_other_is_an_alternative() {
    let mut profile = fixture::profile();
    let found = planned(&profile, 64, 128);
    assert_eq!(found.plan.source, Way::Mapped);
    assert_eq!(found.alternatives.len(), 2);
    assert!(found.alternatives[0].differs_in != found.alternatives[1].differs_in);
    for alternative in &found.alternatives {
        assert!(alternative.forecast.latency_us * SLACK >= found.forecast.latency_us);
    }
    profile.reads.iter_mut().filter(|read| read.way == Way::Direct).for_each(|read| {
        read.bandwidth_bytes_s *= 3.0;
    });
    assert_eq!(planned(&profile, 64, 128).plan.source, Way::Direct);
}

#[test]
fn what_is_set_by_hand_stays() {
    let profile = fixture::profile();
    let fixed = Overrides {
        source: Some(Way::Direct),
        loaders: Some(3),
        threads: Some(1),
        placement: Some(Placement::Shared),
        grouping: Some(Grouping::Layers),
        turns: Some(Dealing::Stride),
        release: Some(Release::AfterUse),
        window_bytes: Some(200 * MIB),
        pin_bytes: Some(10 * MIB),
        pins: Some(PinPlace::Head),
    };
    let found = plan(&profile, &wish(600, 128), &fixed).unwrap().plan;
    let expected = Plan {
        source: Way::Direct,
        loaders: 3,
        threads: 1,
        placement: Placement::Shared,
        grouping: Grouping::Layers,
        turns: Dealing::Stride,
        release: Release::AfterUse,
        window_bytes: 200 * MIB,
        pin_bytes: 10 * MIB,
        pins: PinPlace::Head,
        variants: vec![],
    };
    assert_eq!(found, expected);
    let at_end = Overrides { release: Some(Release::AtEnd), ..Overrides::default() };
    let found = plan(&profile, &wish(1300, 128), &at_end).unwrap();
    assert!(found.plan.window_bytes >= 1152 * MIB, "{found:?}");
}

#[test]
fn a_budget_that_is_too_small_names_the_least_that_is_not() {
    let profile = fixture::profile();
    let error = plan(&profile, &wish(20, 128), &Overrides::default()).unwrap_err();
    let PlanError::Budget { least_bytes, .. } = error else { panic!("{error}") };
    // Process, graph and activations, and two blocks.
    assert_eq!(least_bytes, 28 * MIB);
    let text = error.to_string();
    assert!(text.contains("20.0 MiB is too small for bert (f32) with 128 tokens"), "{text}");
    assert!(text.contains("the least that would do is 28.0 MiB"), "{text}");
    assert!(planned(&profile, 28, 128).granted_bytes <= 28 * MIB);
    let layers = Overrides { grouping: Some(Grouping::Layers), ..Overrides::default() };
    let text = plan(&profile, &wish(100, 128), &layers).unwrap_err().to_string();
    assert!(text.contains("122.0 MiB"), "two layers of 48 MiB: {text}");
}

#[test]
fn what_is_set_by_hand_and_cannot_be_played_is_told() {
    let profile = fixture::profile();
    let check = |fixed: Overrides, expected: &str| {
        let text = plan(&profile, &wish(64, 128), &fixed).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    check(Overrides { loaders: Some(0), ..Overrides::default() }, "at least one loader");
    check(Overrides { threads: Some(0), ..Overrides::default() }, "one compute thread");
    check(Overrides { window_bytes: Some(1), ..Overrides::default() }, "hold at once");
    let runs = Some(Grouping::Runs(vec![1]));
    check(Overrides { grouping: runs, ..Overrides::default() }, "not those of 24 layers");
}

/// All cores of a larger board have something to do, and none has a thread that was not planned.
#[test]
fn four_and_eight_cores_are_all_used() {
    for cores in [4, 8] {
        let mut profile = fixture::profile();
        profile.layers.truncate(6);
        profile.board.cores = (0..cores).map(|id| Core { id, speed: 1.0 }).collect();
        profile.layer_threads = cores;
        let measured = [(cores, 1.0), (cores - 1, 1.2), (cores / 2, 1.8)];
        let pass = |(threads, times): (usize, f64)| PassTime {
            threads,
            tokens: 128,
            latency_us: 366_000.0 * times,
        };
        profile.passes = measured.map(pass).to_vec();
        for budget_mib in [48, 200, 600] {
            let plan = planned(&profile, budget_mib, 128).plan;
            let Plan { threads, loaders, placement, .. } = plan;
            // Where compute shares them, loaders have the last cores.
            let used = match placement {
                Placement::Apart => threads + loaders.min(cores - 1),
                Placement::Shared => cores.min(threads + loaders),
            };
            assert_eq!(used, cores, "{budget_mib} MiB: {plan:?}");
            assert!(threads <= cores, "{plan:?}");
            assert!(loaders <= cores, "{loaders} loaders on {cores} cores");
        }
    }
}

/// Every plan of a grid, of the tape's grouping, that the budget has room for.
fn grid(profile: &Profile, wish: &Wish) -> Vec<Plan> {
    let room = wish.budget_bytes - profile.fixed_bytes(wish.tokens);
    let cores = profile.board.cores.len();
    let mut plans = vec![];
    for source in [Way::Mapped, Way::Direct] {
        for placement in [Placement::Shared, Placement::Apart] {
            for loaders in [1, 2, 3, 4] {
                for window_mib in [2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256] {
                    for pins in [PinPlace::Head, PinPlace::Spread] {
                        let threads = match placement {
                            Placement::Apart => cores - loaders.min(cores - 1),
                            Placement::Shared => cores,
                        };
                        let window_bytes = window_mib * (MIB + 4096);
                        let pin_bytes = room.saturating_sub(window_bytes);
                        if window_bytes <= room {
                            let base = fixture::plan();
                            plans.push(Plan {
                                source,
                                loaders,
                                threads,
                                placement,
                                window_bytes,
                                pin_bytes,
                                pins,
                                ..base
                            });
                        }
                    }
                }
            }
        }
    }
    plans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_plan_of_a_grid_is_clearly_faster(
        budget_mib in 40u64..700,
        tokens in 1u64..200,
        disk in 0.05f64..2.0,
        cores in 2usize..9,
    ) {
        let mut profile = fixture::profile();
        profile.layers.truncate(6);
        profile.reads.iter_mut().for_each(|read| read.bandwidth_bytes_s *= disk);
        profile.board.cores = vec![profile.board.cores[0]; cores];
        let wish = wish(budget_mib + 40, tokens);
        let found = plan(&profile, &wish, &Overrides::default()).unwrap();
        prop_assert!(found.granted_bytes <= wish.budget_bytes);
        let rough_us = |plan: &Plan| {
            let tape = TapeTimes::new(&profile, plan.source, plan.threads, tokens).unwrap().rough();
            rough_pass(&tape, plan).unwrap().latency_us
        };
        let found_us = rough_us(&found.plan);
        for other in grid(&profile, &wish) {
            prop_assert!(found_us <= 1.03 * rough_us(&other), "{found:?} {other:?}");
            let other_us = forecast(&profile, &other, tokens, Passing::Later).unwrap().latency_us;
            prop_assert!(found.forecast.latency_us <= 1.2 * other_us, "{found:?} {other:?}");
        }
    }
}
