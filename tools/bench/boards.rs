//! `hermes-bench boards`: what passes would take on boards that are not here, by the forecast.
//!
//! A profile of the model measured on this machine is carried over to each board with figures as
//! they are published (cores and their peak, what the usual storage reads) and guesses of what is
//! not. Nothing here is measured on a board.

use super::setup::Subject;
use anyhow::{Context, Result, bail};
use clap::Args;
use hermes::plan::{
    Contention, Core, Overrides, PassTime, PlanError, Profile, ReadRate, Usage, Way, Wish, plan,
};
use hermes::store::Store;
use hermes::values::size::{self, Size};

/// Arguments of `hermes-bench boards`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Rows that every weight is multiplied with: tokens of a text, patches of an image
    #[arg(long, default_value_t = 128)]
    tokens: u64,
    /// Budgets of the whole process
    #[arg(long, value_delimiter = ',', value_parser = size::parse, default_value = "64MiB,512MiB")]
    budget: Vec<u64>,
}

/// A board by its published figures.
struct BoardKind {
    name: &'static str,
    cores: usize,
    /// Peak of one core in f32: clock, times lanes, times 2 for multiplying and adding.
    core_gflops: f64,
    /// How many times as long one core is taken to need for a loader's work (page cache, checksum)
    /// as one of a server: a guess, not a published figure.
    slower: f64,
    /// What it is usually booted from or has added, and what that reads in MB/s.
    disks: &'static [(&'static str, f64)],
}

const BOARDS: [BoardKind; 5] = [
    BoardKind {
        name: "Raspberry Pi 3",
        cores: 4,
        core_gflops: 1.4 * 8.0,
        slower: 10.0,
        disks: &[("SD", 20.0)],
    },
    BoardKind {
        name: "Raspberry Pi 4",
        cores: 4,
        core_gflops: 1.8 * 8.0,
        slower: 5.0,
        disks: &[("SD", 40.0), ("USB 3 SSD", 320.0)],
    },
    BoardKind {
        name: "Raspberry Pi 5",
        cores: 4,
        core_gflops: 2.4 * 16.0,
        slower: 2.0,
        disks: &[("SD", 90.0), ("NVMe", 450.0)],
    },
    BoardKind {
        name: "Jetson Nano",
        cores: 4,
        core_gflops: 1.43 * 8.0,
        slower: 6.0,
        disks: &[("SD", 90.0), ("eMMC", 250.0)],
    },
    BoardKind {
        name: "Jetson Orin Nano",
        cores: 6,
        core_gflops: 1.5 * 16.0,
        slower: 2.5,
        disks: &[("NVMe", 1500.0)],
    },
];

/// Part of a core's peak that products of this size are taken to reach, on each of the cores. On
/// x86-64 about 0.4 were measured, and 4 threads were 1.7 to 2.6 times as fast as one.
const EFFICIENCY: f64 = 0.6;

/// CPU time of a server's loader for each byte: mapped, and past the page cache.
const LOADER_NS_PER_BYTE: [(Way, f64); 2] = [(Way::Mapped, 0.3), (Way::Direct, 0.15)];

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Subject { store, model, variant } = &arguments.subject;
    let store = Store::open(store)?;
    let manifest = store.current(model)?.manifest;
    let variant = variant.as_ref().or(manifest.variants.first()).context("it has no variant")?;
    let subject = hermes::plan::Subject { model, version: &manifest.version, variant };
    let Some(here) = Profile::read(&store.model_path(model)?, subject)? else {
        bail!("{model} ({variant}) was not measured here\nrun `hermes-bench profile` first");
    };
    let plain = manifest.layers.iter().filter_map(|layer| layer.files.get("f32"));
    let weights = plain.map(|file| file.bytes).sum::<u64>() / 4;
    if weights == 0 {
        bail!("{model} has no variant f32, whose size tells how many weights there are");
    }
    let flops = 2.0 * weights as f64 * arguments.tokens as f64;
    // What takes inputs of one size was measured with that.
    let tokens = match &here.activations[..] {
        [only] => only.tokens,
        _ => arguments.tokens,
    };
    hermes::say!("| board | storage | budget | a pass | bound by | plan |");
    hermes::say!("|---|---|---:|---:|---|---|");
    for board in &BOARDS {
        for (disk, mb_s) in board.disks {
            let there = carried(&here, board, *mb_s, flops, tokens);
            for budget_bytes in &arguments.budget {
                let budget_bytes = *budget_bytes;
                let wish = Wish { budget_bytes, tokens, usage: Usage::Cyclic };
                let budget = Size(budget_bytes);
                let start = format!("| {} | {disk}, {mb_s} MB/s | {budget} |", board.name);
                match plan(&there, &wish, &Overrides::default()) {
                    Ok(planned) => {
                        let bound = format!("{:?}", planned.forecast.bound()).to_lowercase();
                        let seconds = planned.forecast.latency_us / 1e6;
                        hermes::say!("{start} {seconds:.2} s | {bound} | {} |", planned.plan);
                    }
                    Err(PlanError::Budget { least_bytes, .. }) => {
                        hermes::say!("{start} - | - | it takes {} |", Size(least_bytes));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    hermes::say!(
        "\nProducts are taken to reach {:.0} % of each core's peak. Measured on x86-64: 40 % on one \
         thread, and 4 threads 1.7 to 2.6 times as fast as one; so what compute bounds takes two to \
         three times as long.",
        100.0 * EFFICIENCY
    );
    Ok(())
}

/// The profile that a board is taken to have.
fn carried(here: &Profile, board: &BoardKind, mb_s: f64, flops: f64, tokens: u64) -> Profile {
    let mut there = here.clone();
    there.board.cores = (0..board.cores).map(|id| Core { id, speed: 1.0 }).collect();
    let core_us = flops / (EFFICIENCY * board.core_gflops * 1e3);
    let pass = |threads: usize| PassTime { threads, tokens, latency_us: core_us / threads as f64 };
    there.passes = (1..=board.cores).map(pass).collect();
    // However many ask, the disk gives what is published.
    let bytes = here.layers.iter().flat_map(|layer| &layer.blocks).map(|run| run.bytes);
    let request_bytes = bytes.max().unwrap_or(1);
    let read = |(way, ns): (Way, f64), loaders: usize| ReadRate {
        way,
        loaders,
        request_bytes,
        is_scattered: false,
        bandwidth_bytes_s: mb_s * 1e6,
        cpu_ns_per_byte: ns * board.slower,
    };
    let both = |loaders: usize| LOADER_NS_PER_BYTE.map(|cost| read(cost, loaders));
    there.reads = [1, 2, 4].map(both).concat();
    there.mapped_contention = Contention::default();
    there.direct_contention = Contention::default();
    there
}

#[cfg(test)]
mod tests {
    use super::*;
    use hermes::plan::{BlockRun, Board, FORMAT, LayerCost};

    const MIB: u64 = 1 << 20;

    /// 48 blocks of 1 MiB.
    fn profile() -> Profile {
        let run =
            BlockRun { count: 48, bytes: MIB, mapped_bytes: MIB, direct_bytes: MIB, elements: 0 };
        Profile {
            format: FORMAT,
            hermes: String::new(),
            model: String::new(),
            version: String::new(),
            variant: String::new(),
            board: Board {
                cpu: String::new(),
                cores: vec![],
                page_bytes: 4096,
                kernel: String::new(),
                disk: String::new(),
            },
            reads: vec![],
            layers: vec![LayerCost {
                name: String::new(),
                blocks: vec![run],
                decode_us: 0.0,
                fixed_us: 1e4,
                per_token_us: 0.0,
                error: 0.0,
            }],
            layer_threads: 2,
            passes: vec![],
            process_bytes: MIB,
            graph_bytes: MIB,
            activations: vec![],
            kv_bytes_per_token: 0,
            mapped_contention: Contention::default(),
            direct_contention: Contention::default(),
            rates: vec![],
            skipped: vec![],
        }
    }

    #[test]
    fn a_pass_takes_what_the_published_figures_allow() {
        let seconds = |board: &BoardKind, mb_s: f64, flops: f64| {
            let there = carried(&profile(), board, mb_s, flops, 128);
            let wish = Wish { budget_bytes: 24 * MIB, tokens: 128, usage: Usage::Cyclic };
            plan(&there, &wish, &Overrides::default()).unwrap().forecast.latency_us / 1e6
        };
        for board in &BOARDS {
            let limit = (48 * MIB) as f64 / 20e6;
            let found = seconds(board, 20.0, 1e6);
            // Some of the budget pins some of the tape: at most what is left of 24 MiB.
            assert!(found > 0.55 * limit && found < 1.02 * limit, "{}: {found}", board.name);
            let flops = 1e9 * EFFICIENCY * board.core_gflops * board.cores as f64;
            let found = seconds(board, 2000.0, flops);
            assert!(found > 0.99 && found < 1.5, "{}: {found}", board.name);
        }
    }
}
