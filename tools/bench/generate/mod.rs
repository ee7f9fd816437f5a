//! `hermes-bench generate`: how fast a language model writes, and in which memory, on this disk and
//! on imitated ones, against what the disk and the processor allow.
//!
//! A token takes no less than its bytes take to be read, nor than a step takes with the whole model
//! in memory. Both are measured in the same run: the tape is played without computing, and texts are
//! written with everything pinned. `pass` is what runs in processes of their own.

mod figures;
pub mod pass;
mod plot;

use super::paper::disks::Disk;
use super::paper::file_part;
use super::paper::output::{Progress, write};
use super::setup::Subject;
use anyhow::{Context, Result, ensure};
use clap::Args;
use figures::{Limits, Record};
use hermes::values::size;
use pass::{Job, Wrote};
use std::fs;
use std::path::PathBuf;

/// Arguments of `hermes-bench generate`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// Disks: real, sd, emmc, sata, nvme
    #[arg(long, value_delimiter = ',', default_value = "real,emmc")]
    disk: Vec<Disk>,
    /// Budgets; by default five from the smallest in which a text is written to the whole model's
    #[arg(long, value_delimiter = ',', value_parser = size::parse)]
    budgets: Vec<u64>,
    /// Tokens that are read before any is written
    #[arg(long, default_value_t = 16)]
    prompt: usize,
    /// Tokens that are written
    #[arg(long, default_value_t = 32)]
    tokens: usize,
    /// Texts that are written at once
    #[arg(long, default_value_t = 1)]
    texts: usize,
    /// Compute threads; by default as many as cores
    #[arg(long)]
    threads: Option<usize>,
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Folder for generate.csv, generate.md and the pictures
    #[arg(long)]
    out: PathBuf,
}

/// Budgets that are tried where none is given.
const BUDGETS: usize = 5;

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.prompt > 0 && arguments.texts > 0, "--prompt and --texts take at least 1");
    ensure!(arguments.tokens > 1, "--tokens takes at least 2: what is measured is the next one");
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let least_bytes: u64 = process(arguments, Disk::Real).spawn(&Job::Least)?;
    let resident = process(arguments, Disk::Real).spawn_best(arguments.repeat, None)?;
    let budgets = match arguments.budgets.is_empty() {
        true => spread(least_bytes, resident.peak_bytes.max(least_bytes)),
        false => arguments.budgets.clone(),
    };
    let progress = Progress::new((arguments.disk.len() * budgets.len()) as u64);
    let mut records = vec![];
    for disk in &arguments.disk {
        let process = process(arguments, *disk);
        let tape_bytes_per_s: f64 = process.spawn(&Job::Play)?;
        let limits = Limits { tape_bytes_per_s, step_us: resident.step_us };
        for budget_bytes in &budgets {
            let name = format!("{} on {disk}", size::Size(*budget_bytes));
            match process.spawn_best(arguments.repeat, Some(*budget_bytes)) {
                Ok(wrote) => {
                    progress.step(&name, wrote.step_us as u64);
                    let budget_bytes = *budget_bytes;
                    records.push(Record { disk: *disk, budget_bytes, limits, wrote });
                }
                Err(error) => progress.say(&format!("{name}: {error:#}")),
            }
            // A run that is cut off leaves what it has measured.
            write(&out.join("generate.csv"), &figures::csv(&records))?;
        }
        let of = records.iter().filter(|record| record.disk == *disk).cloned();
        let title = format!("{} on {}", arguments.subject.model, disk.title());
        let svg = plot::rates(&title, &of.collect::<Vec<_>>())?;
        write(&out.join(format!("generate-{}.svg", file_part(*disk))), &svg)?;
    }
    progress.finish();
    let text = figures::markdown(&records);
    write(&out.join("generate.md"), &text)?;
    hermes::say!("{}", text.trim_end());
    Ok(())
}

fn process(arguments: &Arguments, disk: Disk) -> pass::Arguments {
    let Subject { store, model, variant } = &arguments.subject;
    pass::Arguments {
        store: store.clone(),
        model: model.clone(),
        variant: variant.clone(),
        disk,
        prompt: arguments.prompt,
        tokens: arguments.tokens,
        texts: arguments.texts,
        threads: arguments.threads,
        job: String::new(),
    }
}

impl pass::Arguments {
    /// The run of several whose steps took the median.
    fn spawn_best(&self, repeat: usize, budget_bytes: Option<u64>) -> Result<Wrote> {
        let runs = (0..repeat).map(|_| self.spawn(&Job::Write { budget_bytes }));
        let mut runs = runs.collect::<Result<Vec<Wrote>>>()?;
        runs.sort_by(|one, other| one.step_us.total_cmp(&other.step_us));
        Ok(runs.swap_remove(runs.len() / 2))
    }
}

/// Budgets from one to the other, each the last by the same factor.
fn spread(least: u64, most: u64) -> Vec<u64> {
    let factor = most as f64 / least.max(1) as f64;
    let at = |index: usize| factor.powf(index as f64 / (BUDGETS - 1) as f64) * least as f64;
    (0..BUDGETS).map(|index| at(index).ceil() as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_spread_by_a_factor() {
        assert_eq!(spread(16, 256), [16, 32, 64, 128, 256]);
        assert_eq!(spread(7, 7), [7; BUDGETS]);
    }
}
