//! Forecasts against closed forms and bounds.

use super::super::fixture::{self, MIB, blocks};
use super::super::profile::{Contention, LayerCost, ReadRate};
use super::super::simulate::Doing;
use super::super::{Dealing, Grouping, PinPlace, Placement};
use super::*;
use proptest::prelude::*;

/// Equal layers of one block, each loaded in `load_us` by each of `loaders` at once and computed in
/// `compute_us`; loaders have cores of their own.
fn equal_layers(layers: usize, loaders: usize, load_us: f64, compute_us: f64) -> Profile {
    let layer = LayerCost {
        name: "layer".into(),
        blocks: vec![blocks(1, MIB)],
        decode_us: 0.0,
        fixed_us: compute_us,
        per_token_us: 0.0,
        error: 0.0,
    };
    let mut profile = Profile {
        reads: vec![ReadRate {
            way: Way::Mapped,
            loaders,
            request_bytes: MIB,
            is_scattered: false,
            bandwidth_bytes_s: loaders as f64 * MIB as f64 / load_us * 1e6,
            cpu_ns_per_byte: 0.2 * load_us * 1e3 / MIB as f64,
        }],
        layers: vec![layer; layers],
        layer_threads: 1,
        passes: vec![],
        ..fixture::profile()
    };
    profile.board.cores = vec![profile.board.cores[0]; loaders + 1];
    profile
}

fn apart(loaders: usize, window_blocks: u64) -> Plan {
    Plan {
        loaders,
        threads: 1,
        placement: Placement::Apart,
        grouping: Grouping::Layers,
        window_bytes: window_blocks * MIB,
        ..fixture::plan()
    }
}

fn latency_us(profile: &Profile, plan: &Plan) -> f64 {
    forecast(profile, plan, 1, Passing::Later).unwrap().latency_us
}

fn close(found: f64, expected: f64, what: impl std::fmt::Debug) {
    assert!((found / expected - 1.0).abs() < 0.01, "{found} instead of {expected}: {what:?}");
}

/// One loader: all loads and the last computation, or the first load and all computations.
#[test]
fn one_loader_and_equal_layers_follow_the_closed_form() {
    for (load, compute) in [(100.0, 10.0), (100.0, 100.0), (10.0, 100.0), (50.0, 49.0)] {
        let profile = equal_layers(24, 1, load, compute);
        let expected = if compute <= load { 24.0 * load + compute } else { load + 24.0 * compute };
        for window in [2, 3, 24] {
            close(latency_us(&profile, &apart(1, window)), expected, (load, compute, window));
        }
    }
}

/// PIPELOAD with m loading agents and n layers: ceil(n/m) L(m) + m C while m C <= L(m), else
/// L(m) + n C. A window of m + 1 layers is enough.
#[test]
fn loading_agents_follow_the_closed_form() {
    for agents in [1, 2, 3, 4, 6, 8] {
        for (load, compute) in [(1000.0, 100.0), (1000.0, 10.0), (100.0, 100.0), (70.0, 100.0)] {
            let profile = equal_layers(24, agents, load, compute);
            let m = agents as f64;
            let expected = match m * compute <= load {
                true => (24.0 / m).ceil() * load + m * compute,
                false => load + 24.0 * compute,
            };
            for (turns, window) in
                [(Dealing::Next, 1), (Dealing::Stride, 1), (Dealing::Stride, agents)]
            {
                let plan = Plan { turns, ..apart(agents, (agents + window) as u64) };
                close(latency_us(&profile, &plan), expected, (agents, load, compute, turns));
            }
        }
    }
}

/// A window of m layers lets an agent begin only when a layer has gone.
#[test]
fn a_smaller_window_is_slower_and_holds_less() {
    let profile = equal_layers(24, 4, 1000.0, 200.0);
    let stride = |window| Plan { turns: Dealing::Stride, ..apart(4, window) };
    let [small, large] =
        [4, 5].map(|window| forecast(&profile, &stride(window), 1, Passing::Later).unwrap());
    assert!(small.latency_us > 1.01 * large.latency_us, "{small:?} {large:?}");
    assert_eq!((small.window_peak_bytes, large.window_peak_bytes), (4 * MIB, 5 * MIB));
}

#[test]
fn the_papers_systems_are_plans() {
    let profile = fixture::profile();
    let tape = forecast(&profile, &fixture::plan(), 128, Passing::Later).unwrap();
    assert!(tape.latency_us < 1.1 * tape.io_us, "as it was measured: {tape:?}");
    let whole = Plan {
        grouping: Grouping::Whole,
        release: Release::AtEnd,
        window_bytes: 1152 * MIB,
        ..fixture::plan()
    };
    let load_all = forecast(&profile, &whole, 128, Passing::Later).unwrap();
    close(load_all.latency_us, load_all.io_us + load_all.compute_us, "one after the other");
    close(load_all.stall_us, load_all.io_us, "all of it");
    assert_eq!(load_all.window_peak_bytes, 1152 * MIB);
    let runs = Plan { grouping: Grouping::Runs(vec![1, 2, 3, 4, 5, 9]), ..whole.clone() };
    let pipeswitch = forecast(&profile, &runs, 128, Passing::Later).unwrap();
    let agents = Plan {
        loaders: 2,
        grouping: Grouping::Layers,
        turns: Dealing::Stride,
        window_bytes: 3 * 48 * MIB,
        ..fixture::plan()
    };
    let pipeload = forecast(&profile, &agents, 128, Passing::Later).unwrap();
    let two = Plan { loaders: 2, ..fixture::plan() };
    let two = forecast(&profile, &two, 128, Passing::Later).unwrap();
    assert!(two.latency_us < pipeload.latency_us, "{two:?} {pipeload:?}");
    assert!(tape.latency_us < pipeswitch.latency_us, "{tape:?} {pipeswitch:?}");
    assert!(pipeswitch.latency_us < load_all.latency_us);
    assert!(two.window_peak_bytes * 9 <= pipeload.window_peak_bytes);
    assert_eq!(tape.peak_bytes, 26 * MIB + tape.window_peak_bytes);
}

/// A fixed set at the head lets the disk idle once the window is full; spread over the tape it
/// leaves something to load all the time.
#[test]
fn spread_pins_keep_the_disk_at_work() {
    let profile = fixture::profile();
    let pinned = |pins| {
        let plan = Plan { pin_bytes: 576 * MIB, pins, ..fixture::plan() };
        forecast(&profile, &plan, 128, Passing::Later).unwrap()
    };
    let (head, spread) = (pinned(PinPlace::Head), pinned(PinPlace::Spread));
    assert_eq!(head.bytes_read, spread.bytes_read);
    assert!(spread.latency_us < 0.95 * head.latency_us, "{spread:?} {head:?}");
}

/// Where loading and computing take the same time, two blocks are enough for an even tape alone.
#[test]
fn a_rough_tape_takes_as_long_in_all_and_wants_more_window() {
    let profile = equal_layers(1152, 1, 100.0, 100.0);
    let tape = |is_rough| {
        let tape = TapeTimes::new(&profile, Way::Mapped, 1, 1).unwrap();
        if is_rough { tape.rough() } else { tape }
    };
    let latency_us = |is_rough, window| {
        tape(is_rough).pass(&apart(1, window), Passing::Later, None).unwrap().latency_us
    };
    close(latency_us(true, 1152), latency_us(false, 1152), "nothing but the first load waited for");
    close(latency_us(false, 2), latency_us(false, 1152), "even");
    assert!(latency_us(true, 2) > 1.05 * latency_us(true, 16), "rough");
}

#[test]
fn the_first_pass_reads_what_later_ones_have_pinned() {
    let profile = fixture::profile();
    let plan = Plan { pin_bytes: 2000 * MIB, ..fixture::plan() };
    let first = forecast(&profile, &plan, 128, Passing::First).unwrap();
    let later = forecast(&profile, &plan, 128, Passing::Later).unwrap();
    assert_eq!((first.bytes_read, later.bytes_read), (1152 * MIB, 0));
    assert_eq!((first.pinned_bytes, later.pinned_bytes), (1152 * MIB, 1152 * MIB));
    assert_eq!((first.bound(), later.bound()), (Bound::Disk, Bound::Compute));
    close(later.latency_us, later.compute_us, "nothing to wait for");
    assert_eq!((later.stall_us, later.window_peak_bytes), (0.0, 0));
}

#[test]
fn spans_are_the_pass() {
    let (profile, plan) = (fixture::profile(), fixture::plan());
    let (forecast, spans) = forecast_spans(&profile, &plan, 128, Passing::Later).unwrap();
    let time_us = |is_it: fn(Doing) -> bool| {
        spans.iter().filter(|span| is_it(span.what)).map(|span| span.end_us - span.start_us).sum()
    };
    close(time_us(|what| matches!(what, Doing::Wait { .. })), forecast.stall_us, "stall");
    let computed: f64 = time_us(|what| matches!(what, Doing::Compute { .. }));
    close(computed + forecast.stall_us, forecast.latency_us, "compute and stall");
    let loads = spans.iter().filter(|span| matches!(span.what, Doing::Load { loader: 0, .. }));
    assert_eq!(loads.count(), 1152);
}

#[test]
fn layers_without_blocks_are_computed_between() {
    let mut profile = equal_layers(3, 1, 100.0, 50.0);
    for place in [0, 2, 5] {
        let idle = LayerCost { blocks: vec![], ..profile.layers[0].clone() };
        profile.layers.insert(place, idle);
    }
    // The first hides in the first load, the second in the load of the block after it.
    close(latency_us(&profile, &apart(1, 3)), 400.0, "three loads, a computation, and the last");
    let whole = Plan { grouping: Grouping::Whole, ..apart(1, 3) };
    close(latency_us(&profile, &whole), 300.0 + 5.0 * 50.0, "all but the first after the loads");
}

#[test]
fn plans_that_cannot_be_played_say_why() {
    let profile = fixture::profile();
    let check = |plan: Plan, expected: &str| {
        let text = forecast(&profile, &plan, 128, Passing::Later).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    check(Plan { loaders: 0, ..fixture::plan() }, "at least one loader");
    check(Plan { threads: 0, ..fixture::plan() }, "one compute thread");
    check(Plan { grouping: Grouping::Runs(vec![9]), ..fixture::plan() }, "not those of 24 layers");
    check(Plan { grouping: Grouping::Layers, ..fixture::plan() }, "hold at once: 50331648 bytes");
    check(Plan { release: Release::AtEnd, ..fixture::plan() }, "hold at once: 1207959552 bytes");
    let mut profile = profile.clone();
    profile.reads.retain(|read| read.way == Way::Mapped);
    let direct = Plan { source: Way::Direct, ..fixture::plan() };
    let error = forecast(&profile, &direct, 128, Passing::Later).unwrap_err();
    assert_eq!(error, ForecastError::Way(Way::Direct));
}

#[derive(Clone, Debug)]
struct Case {
    profile: Profile,
    plan: Plan,
}

fn cases() -> impl Strategy<Value = Case> {
    let layer = (1usize..5, 1u64..9, 0.0f64..900.0);
    let rates = prop::collection::vec(100.0f64..900.0, 1..4);
    let crew = (1usize..5, 1usize..5, any::<bool>(), any::<bool>(), any::<bool>());
    let memory = (0u64..40, 0u64..60, any::<bool>(), 0usize..4);
    (prop::collection::vec(layer, 1..12), rates, crew, memory, 0.0f64..4.0, 1usize..5).prop_map(
        |(layers, mut rates, crew, memory, cpu, cores)| {
            // Each further loader brings less than the one before.
            rates.sort_by(|a, b| b.total_cmp(a));
            let rates = rates.iter().scan(0.0, |sum, rate| {
                *sum += rate;
                Some(*sum)
            });
            let mut profile = fixture::profile();
            let quarter = MIB / 4;
            profile.layers = layers
                .into_iter()
                .map(|(count, quarters, compute_us)| LayerCost {
                    name: String::new(),
                    blocks: vec![blocks(count, quarters * quarter)],
                    decode_us: 0.0,
                    fixed_us: compute_us,
                    per_token_us: 0.0,
                    error: 0.0,
                })
                .collect();
            profile.reads = (1..)
                .zip(rates)
                .map(|(loaders, mb_s)| ReadRate {
                    way: Way::Mapped,
                    loaders,
                    request_bytes: MIB,
                    is_scattered: false,
                    bandwidth_bytes_s: mb_s * 1e6,
                    cpu_ns_per_byte: cpu,
                })
                .collect();
            profile.passes.clear();
            profile.board.cores = vec![profile.board.cores[0]; cores];
            profile.mapped_contention =
                Contention { memory_slowdown: 1.1, ..Contention::default() };
            profile.direct_contention = profile.mapped_contention;
            let (loaders, threads, is_apart, is_stride, is_at_end) = crew;
            let (slack, pins, is_head, grouping) = memory;
            let layer_bytes: u64 = profile
                .layers
                .iter()
                .map(|layer| layer.blocks[0].count as u64 * layer.blocks[0].mapped_bytes)
                .max()
                .unwrap();
            let grouping = [
                Grouping::Blocks,
                Grouping::Layers,
                Grouping::Whole,
                Grouping::Runs(vec![1; profile.layers.len()]),
            ][grouping]
                .clone();
            let is_whole = is_at_end || grouping == Grouping::Whole;
            let least = if is_whole { profile.held_bytes(Way::Mapped) } else { layer_bytes };
            let plan = Plan {
                source: Way::Mapped,
                loaders,
                threads,
                placement: if is_apart { Placement::Apart } else { Placement::Shared },
                grouping,
                turns: if is_stride { Dealing::Stride } else { Dealing::Next },
                release: if is_at_end { Release::AtEnd } else { Release::AfterUse },
                window_bytes: least + slack * quarter,
                pin_bytes: pins * quarter,
                pins: if is_head { PinPlace::Head } else { PinPlace::Spread },
                variants: vec![],
            };
            Case { profile, plan }
        },
    )
}

proptest! {
    #[test]
    fn forecasts_are_within_their_bounds(case in cases()) {
        let Case { profile, plan } = case;
        for passing in [Passing::First, Passing::Later] {
            let found = forecast(&profile, &plan, 1, passing).unwrap();
            let least_us = found.io_us.max(found.compute_us);
            prop_assert!(found.latency_us >= least_us * 0.999_999, "{found:?}");
            prop_assert!(found.stall_us <= found.latency_us);
            prop_assert!(found.window_peak_bytes <= plan.window_bytes);
            prop_assert!(found.pinned_bytes <= plan.pin_bytes);
            let pinned = if passing == Passing::Later { found.pinned_bytes } else { 0 };
            prop_assert_eq!(found.bytes_read, profile.tape_bytes() - pinned);
        }
    }

    /// Where loaders do not disturb compute: otherwise a faster one may do its work beside compute
    /// that a slower one did while compute waited.
    #[test]
    fn a_faster_disk_is_never_slower(case in cases(), factor in 1.0f64..5.0) {
        let Case { mut profile, mut plan } = case;
        plan.placement = Placement::Apart;
        profile.board.cores.push(profile.board.cores[0]);
        profile.mapped_contention = Contention::default();
        profile.direct_contention = Contention::default();
        let mut faster = profile.clone();
        faster.reads.iter_mut().for_each(|read| read.bandwidth_bytes_s *= factor);
        let [slow, fast] = [&profile, &faster].map(|profile| {
            forecast(profile, &plan, 1, Passing::Later).unwrap()
        });
        prop_assert!(fast.io_us <= slow.io_us * 1.000_001);
        prop_assert!(fast.latency_us <= slow.latency_us * 1.01, "{fast:?} {slow:?}");
    }
}
