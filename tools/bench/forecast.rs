//! `hermes-bench forecast`: what the forecast says of a grid of plans, against passes.

use super::setup::{self, Subject, Times};
use anyhow::{Result, ensure};
use clap::Args;
use hermes::engine::{Config, DiskKind, Engine, Policy};
use hermes::plan::{
    Dealing, Grouping, Overrides, Passing, PinPlace, Placement, Plan, Profile, Release, Usage, Way,
    Wish, forecast, plan,
};
use hermes::values::size;

/// Arguments of `hermes-bench forecast`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Size of every open dimension of the inputs; several, separated by commas
    #[arg(long, default_value = "16,128", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Passes by each plan
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Hold the disk to this many bytes a second
    #[arg(long, value_parser = size::parse)]
    throttle: Option<u64>,
}

/// What an engine may hold while plans are tried: not what is in question.
const BUDGET_BYTES: u64 = 1 << 40;

/// How often the planner's choice and the best plan of the grid are measured, in turns.
const TURNS: usize = 3;

/// What the planner chose for some tokens and some memory.
struct Choice {
    tokens: usize,
    /// Bytes for window and pins.
    room: u64,
    plan: Plan,
    measured_us: u64,
    /// Of the fastest plan of the grid.
    best_us: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    let Subject { store, model, variant } = &arguments.subject;
    let disk = match arguments.throttle {
        Some(bytes_per_s) => DiskKind::Throttled { bytes_per_s },
        None => DiskKind::Board,
    };
    let base = Config { variant: variant.clone(), disk, ..Config::new(store, BUDGET_BYTES) };
    let profile = {
        let window_bytes = Some(16 << 20);
        let engine = Engine::start(Config { window_bytes, ..base.clone() })?;
        engine.profile(model)?
    };
    hermes::say!("{profile}\n");
    hermes::say!(
        "source loaders threads      window    pinned  tokens   forecast ms   measured ms    off"
    );
    let mut errors = vec![];
    let mut choices = vec![];
    for tokens in &arguments.tokens {
        let mut tried = vec![];
        for plan in grid(&profile) {
            let measured = Times(measure(arguments, &base, &plan, *tokens)?).median();
            let forecast = forecast(&profile, &plan, *tokens as u64, Passing::Later)?;
            let off = forecast.latency_us / measured as f64 - 1.0;
            errors.push(off.abs());
            hermes::say!(
                "{:<7}{:>7} {:>2} {:<6} {:>7} MiB {:>5} MiB {tokens:>7} {:>13.1} {:>13.1} {:>5.1} %",
                plan.source,
                plan.loaders,
                plan.threads,
                if plan.placement == Placement::Apart { "apart" } else { "" },
                plan.window_bytes >> 20,
                plan.pin_bytes >> 20,
                forecast.latency_us / 1e3,
                measured as f64 / 1e3,
                off * 100.0,
            );
            tried.push((plan, measured));
        }
        // For what each of the tried plans holds, the planner's choice against the best of them.
        let mut rooms: Vec<u64> = tried.iter().map(|(plan, _)| room_bytes(plan)).collect();
        rooms.sort_unstable();
        rooms.dedup();
        for room in rooms {
            let tokens = *tokens;
            let budget_bytes = profile.fixed_bytes(tokens as u64) + room;
            let wish = Wish { budget_bytes, tokens: tokens as u64, usage: Usage::Cyclic };
            let plan = plan(&profile, &wish, &Overrides::default())?.plan;
            let within = tried.iter().filter(|(plan, _)| room_bytes(plan) <= room);
            let best = within.min_by_key(|(_, measured)| *measured).map(|(plan, _)| plan);
            let rivals = [&plan, best.unwrap_or(&plan)];
            // Anew, in turns: the fastest of many was also the luckiest.
            let mut times = [vec![], vec![]];
            for turn in 0..2 * TURNS {
                times[turn % 2].extend(measure(arguments, &base, rivals[turn % 2], tokens)?);
            }
            let [measured_us, best_us] = times.map(|times| Times(times).median());
            hermes::say!(
                "{tokens:>4} tokens, {:>4} MiB: the planner's choice is tried",
                room >> 20
            );
            choices.push(Choice { tokens, room, plan, measured_us, best_us });
        }
    }
    hermes::say!("\nthe planner's choices, against the best of the plans above in the same memory");
    for Choice { tokens, room, plan, measured_us, best_us } in &choices {
        hermes::say!(
            "{tokens:>4} tokens, {:>4} MiB {:>9.1} ms, best {:>9.1} ms {:>6.1} %   {plan}",
            room >> 20,
            *measured_us as f64 / 1e3,
            *best_us as f64 / 1e3,
            (*measured_us as f64 / *best_us as f64 - 1.0) * 100.0
        );
    }
    let near = choices.iter().filter(|c| c.measured_us as f64 <= 1.05 * c.best_us as f64).count();
    hermes::say!("{near} of {} choices within 5 % of the best", choices.len());
    errors.sort_by(f64::total_cmp);
    let within = errors.iter().filter(|error| **error <= 0.1).count();
    hermes::say!(
        "\n{} plans: {within} within 10 %, median {:.1} %, worst {:.1} %",
        errors.len(),
        errors[errors.len() / 2] * 100.0,
        errors[errors.len() - 1] * 100.0
    );
    Ok(())
}

/// Plans that differ in all that matters.
fn grid(profile: &Profile) -> Vec<Plan> {
    let cores = profile.board.cores.len();
    let tape: u64 =
        profile.layers.iter().flat_map(|l| &l.blocks).map(|r| r.bytes * r.count as u64).sum();
    let mut plans = vec![];
    let mut crews = vec![(1, Placement::Shared), (2, Placement::Shared)];
    if cores > 1 {
        crews.push((1, Placement::Apart));
    }
    for source in [Way::Mapped, Way::Direct] {
        if !profile.reads.iter().any(|read| read.way == source) {
            continue;
        }
        for (loaders, placement) in &crews {
            for (window_bytes, pinned, pins) in [
                (4 << 20, 0, PinPlace::Spread),
                (16 << 20, 0, PinPlace::Spread),
                (64 << 20, 0, PinPlace::Spread),
                (16 << 20, 2, PinPlace::Spread),
                (16 << 20, 2, PinPlace::Head),
            ] {
                plans.push(Plan {
                    source,
                    loaders: *loaders,
                    threads: if *placement == Placement::Apart { cores - 1 } else { cores },
                    placement: *placement,
                    grouping: Grouping::Blocks,
                    turns: Dealing::Next,
                    release: Release::AfterUse,
                    window_bytes,
                    pin_bytes: tape.checked_div(pinned).unwrap_or(0),
                    pins,
                    variants: vec![],
                });
            }
        }
    }
    plans
}

/// Bytes that a plan holds of the tape.
fn room_bytes(plan: &Plan) -> u64 {
    plan.window_bytes + plan.pin_bytes
}

/// Times of some passes by a plan, each with a cold page cache, in microseconds.
fn measure(arguments: &Arguments, base: &Config, plan: &Plan, tokens: usize) -> Result<Vec<u64>> {
    let Subject { store, model, .. } = &arguments.subject;
    let request = setup::request(store, model, tokens)?;
    let engine = Engine::start(Config { policy: Policy::Fixed(plan.clone()), ..base.clone() })?;
    // What is to be pinned stays as the first one passes.
    engine.infer(request.clone())?;
    let mut times = vec![];
    for _ in 0..arguments.repeat {
        setup::chill(store, model)?;
        times.push(engine.infer(request.clone())?.stats.latency_us);
    }
    Ok(times)
}
