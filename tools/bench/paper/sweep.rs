//! `hermes-bench sweep`: what a pass costs within a budget, from the smallest that works to one
//! that holds the whole model (Fig. 7 of the PIPELOAD paper).
//!
//! The engine is left alone within each budget. A first pass finds nothing in memory; the ones
//! after it find what was pinned. The page cache is cold before each.

use super::chart::Chart;
use super::disks::{Disk, Limit};
use super::file_part;
use super::ink::{self, Area};
use super::measure::{self, Measured, Outcome};
use super::output::{Progress, write};
use super::policy::{Policy, Shape, Step};
use super::results::Spread;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use hermes::store::Store;
use plotters::prelude::*;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Arguments of `hermes-bench sweep`.
#[derive(Args)]
pub struct Arguments {
    /// Folder of the store
    #[arg(long)]
    store: PathBuf,
    /// Model
    #[arg(long, default_value = "bert-large")]
    model: String,
    /// Variant; the model's best by default
    #[arg(long)]
    variant: Option<String>,
    /// Disks, as for `paper`
    #[arg(long, value_delimiter = ',', default_value = "sd,sata,real")]
    disk: Vec<Disk>,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Budgets, the smallest and the largest among them
    #[arg(long, default_value_t = 8)]
    budgets: usize,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// One round
    #[arg(long, conflicts_with = "repeat")]
    quick: bool,
    /// Folder for sweep-MODEL.csv, .md, .svg and the profiles; made where it is missing
    #[arg(long)]
    out: PathBuf,
}

/// Passes one after another in each process: the first, and one that finds pins.
const PASSES: usize = 2;

const MIB: u64 = 1 << 20;

/// A process's passes within one budget.
#[derive(Clone, Debug)]
struct Record {
    disk: Disk,
    budget_bytes: u64,
    repeat: usize,
    passes: Vec<Measured>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let repeats = if arguments.quick { 1 } else { arguments.repeat };
    ensure!(repeats > 0 && arguments.budgets > 1, "--repeat takes at least 1, --budgets 2");
    std::fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let mut limits = vec![];
    for disk in &arguments.disk {
        limits.push(match disk {
            Disk::Limited { mb_s } => Some(Limit::set(&arguments.store, *mb_s)?),
            Disk::Real | Disk::Imitated { .. } => None,
        });
    }
    for (disk, limit) in arguments.disk.iter().zip(&limits) {
        hermes::tell!("{disk}: measuring the profile");
        arguments.profile(*disk, limit.as_ref().map(Limit::folder))?;
    }
    let budgets = arguments.find_budgets()?;
    let progress = Progress::new((budgets.len() * limits.len() * repeats) as u64);
    let mut records = vec![];
    for repeat in 1..=repeats {
        for (disk, limit) in arguments.disk.iter().zip(&limits) {
            for &budget_bytes in &budgets {
                let folder = limit.as_ref().map(Limit::folder);
                let passes = match arguments.pass(*disk, folder, budget_bytes, PASSES)? {
                    Ok(passes) => passes,
                    Err(why) => bail!("a budget of {} MiB: {why}", budget_bytes / MIB),
                };
                let last = passes.last().map_or(0, |pass| pass.latency_us);
                progress.step(&format!("{disk}, {} MiB, round {repeat}", budget_bytes / MIB), last);
                records.push(Record { disk: *disk, budget_bytes, repeat, passes });
            }
        }
    }
    progress.finish();
    let file = |end: &str| arguments.out.join(format!("sweep-{}.{end}", arguments.model));
    write(&file("csv"), &csv(&arguments.model, &records))?;
    let text = markdown(&arguments.model, arguments.tokens, &records);
    write(&file("md"), &text)?;
    write(&file("svg"), &plot(&arguments.model, &records)?)?;
    hermes::say!("{}", text.trim_end());
    ensure!(agree(&records), "passes gave different outputs: see the digests in the CSV");
    Ok(())
}

impl Arguments {
    /// Passes within a budget in a process of their own, or why the budget does not do.
    fn pass(
        &self,
        disk: Disk,
        join: Option<&Path>,
        budget_bytes: u64,
        passes: usize,
    ) -> Result<std::result::Result<Vec<Measured>, String>> {
        let child = self.child(disk, join, budget_bytes, passes);
        Ok(match child.spawn()? {
            Outcome::Measured(passes) => Ok(passes.into_iter().map(|(pass, _)| pass).collect()),
            Outcome::Refused(why) => Err(why),
        })
    }

    fn child(
        &self,
        disk: Disk,
        join: Option<&Path>,
        budget_bytes: u64,
        passes: usize,
    ) -> measure::Arguments {
        measure::Arguments {
            store: self.store.clone(),
            model: self.model.clone(),
            variant: self.variant.clone(),
            disk,
            step: Step::Pass(Policy::Tape),
            window: None,
            loaders: None,
            tokens: self.tokens,
            budget: Some(budget_bytes),
            passes,
            profiles: Some(self.profiles(disk)),
            profile: false,
            trace: false,
            join: join.map(Path::to_owned),
        }
    }

    /// Has the model's profile measured on a disk, by which passes are planned.
    fn profile(&self, disk: Disk, join: Option<&Path>) -> Result<()> {
        let folder = self.profiles(disk);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let profiled = self.child(disk, join, 0, 0).spawn_profile();
        profiled.with_context(|| format!("the profile of {} on {disk}", self.model))
    }

    fn profiles(&self, disk: Disk) -> PathBuf {
        self.out.join("profiles").join(file_part(disk))
    }

    /// From the smallest budget that works to one in which everything is pinned, each larger than
    /// the one before by the same factor.
    fn find_budgets(&self) -> Result<Vec<u64>> {
        let dir = Store::open(&self.store)?.current(&self.model)?;
        let whole = Shape::of(&dir, self.variant.as_deref())?.whole_bytes / MIB;
        // Pins leave a quarter of the budget free for requests; the process takes some, too.
        let most = (whole + 96) * 4 / 3;
        let works = |mib: u64| Ok(self.pass(Disk::Real, None, mib * MIB, 1)?.is_ok());
        ensure!(works(most)?, "model {} does not work in {most} MiB", self.model);
        let least = bisect(most, works)?;
        hermes::tell!("the smallest budget that works is {least} MiB");
        Ok(geometric(least, most, self.budgets).into_iter().map(|mib| mib * MIB).collect())
    }
}

/// The smallest of 1 to `most` that works, if `most` does and what works goes on working.
fn bisect(most: u64, works: impl Fn(u64) -> Result<bool>) -> Result<u64> {
    let (mut fails, mut least) = (0, most);
    while least - fails > 1 {
        let middle = fails + (least - fails) / 2;
        if works(middle)? {
            least = middle;
        } else {
            fails = middle;
        }
    }
    Ok(least)
}

/// `count` whole numbers from `least` to `most`, each larger by about the same factor.
fn geometric(least: u64, most: u64, count: usize) -> Vec<u64> {
    let factor = most as f64 / least as f64;
    let share = |index: usize| index as f64 / (count - 1) as f64;
    let inner = (1..count - 1).map(|i| (least as f64 * factor.powf(share(i))).round() as u64);
    let mut all: Vec<u64> = [least].into_iter().chain(inner).chain([most]).collect();
    all.dedup();
    all
}

fn agree(records: &[Record]) -> bool {
    let mut digests = records.iter().flat_map(|r| &r.passes).map(|pass| pass.digest);
    let first = digests.next();
    digests.all(|digest| Some(digest) == first)
}

fn csv(model: &str, records: &[Record]) -> String {
    let mut text = String::from(
        "model,disk,budget_bytes,repeat,pass,latency_us,stall_us,bytes_read,window_peak_bytes,\
         pinned_bytes,peak_rss_bytes,charged_bytes,digest\n",
    );
    for Record { disk, budget_bytes, repeat, passes } in records {
        for (index, m) in passes.iter().enumerate() {
            let charged = m.charged_bytes.map_or(String::new(), |bytes| bytes.to_string());
            let (pass, latency, stall, read) = (index + 1, m.latency_us, m.stall_us, m.bytes_read);
            let (peak, pinned, rss) = (m.window_peak_bytes, m.pinned_bytes, m.peak_rss_bytes);
            writeln!(
                text,
                "{model},{disk},{budget_bytes},{repeat},{pass},{latency},{stall},{read},{peak},\
                 {pinned},{rss},{charged},{:016x}",
                m.digest
            )
            .expect("a string takes all");
        }
    }
    text
}

/// What one budget gave on one disk, over its rounds.
struct Point {
    budget_mib: f64,
    /// The first pass, and one after it.
    ms: [Spread; PASSES],
    read_mb: f64,
    pinned_mb: f64,
    rss_mib: f64,
}

fn points(records: &[Record], disk: Disk) -> Vec<Point> {
    let here = || records.iter().filter(move |record| record.disk == disk);
    let mut budgets: Vec<u64> = here().map(|record| record.budget_bytes).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let points = budgets.into_iter().map(|budget| {
        let rounds = || here().filter(move |record| record.budget_bytes == budget);
        let times = |pass: usize| rounds().map(|r| r.passes[pass].latency_us).collect();
        let most = |figure: fn(&Measured) -> u64| {
            rounds().map(|r| figure(&r.passes[PASSES - 1])).max().unwrap_or(0) as f64
        };
        Point {
            budget_mib: budget as f64 / MIB as f64,
            ms: [0, 1].map(|pass| Spread::of(times(pass))),
            read_mb: most(|m| m.bytes_read) / 1e6,
            pinned_mb: most(|m| m.pinned_bytes) / 1e6,
            rss_mib: most(|m| m.peak_rss_bytes) / MIB as f64,
        }
    });
    points.collect()
}

fn disks(records: &[Record]) -> Vec<Disk> {
    let mut disks = vec![];
    for record in records {
        if !disks.contains(&record.disk) {
            disks.push(record.disk);
        }
    }
    disks
}

fn markdown(model: &str, tokens: usize, records: &[Record]) -> String {
    let mut text = format!(
        "# {model} within a budget\n\n\
         {tokens} tokens where the model takes tokens, cold page cache; the smallest budget is the \
         least whole MiB that works. The first pass finds nothing in memory, the next one finds \
         what is pinned. Medians (least to most). Outputs are {}.\n",
        if agree(records) { "identical in all passes" } else { "DIFFERENT" }
    );
    for disk in disks(records) {
        let title = disk.title();
        write!(
            text,
            "\n## {title}\n\n| budget MiB | first pass ms | next pass ms | it reads MB | pinned MB | \
             peak RSS MiB |\n|---:|---:|---:|---:|---:|---:|\n"
        )
        .expect("a string takes all");
        for Point { budget_mib, ms, read_mb, pinned_mb, rss_mib } in points(records, disk) {
            let [first, next] =
                ms.map(|ms| format!("{:.1} ({:.1} to {:.1})", ms.median, ms.low, ms.high));
            writeln!(
                text,
                "| {budget_mib:.0} | {first} | {next} | {read_mb:.1} | {pinned_mb:.1} | {rss_mib:.1} |"
            )
            .expect("a string takes all");
        }
    }
    text
}

/// A panel for each disk: time of both passes against the budget.
fn plot(model: &str, records: &[Record]) -> Result<String> {
    let disks = disks(records);
    let width = 400 * disks.len().max(2) as i32;
    ink::picture((width as u32, 420), |area| {
        let title = format!("{model}: time of a pass against the budget of the whole process");
        ink::write(area, &title, (20, 24), ink::TITLE)?;
        let (body, foot) = area.margin(40, 0, 0, 0).split_vertically(310);
        for (disk, cell) in disks.iter().zip(body.split_evenly((1, disks.len()))) {
            ink::write_around(&cell, &disk.title(), (225, 16), ink::LABEL)?;
            panel(&cell.margin(28, 0, 4, 10), &points(records, *disk))?;
        }
        ink::write_around(&foot, "budget, MiB", (width / 2, 12), ink::LABEL)?;
        for (pass, name, x) in [(0, "first pass", 40), (1, "next pass, some pinned", 170)] {
            ink::stroke(&foot, vec![(x - 14, 44), (x + 14, 44)], style(pass))?;
            dot(&foot, pass, (x, 44))?;
            ink::write(&foot, name, (x + 22, 44), ink::LABEL)?;
        }
        Ok(())
    })
}

fn style(pass: usize) -> ShapeStyle {
    [ink::ORANGE, ink::BLUE][pass].stroke_width(2)
}

/// Hollow for the first pass, full for the next.
fn dot(area: &Area, pass: usize, at: (i32, i32)) -> Result<()> {
    let inside = if pass == 0 { WHITE.into() } else { style(pass).color };
    area.draw(&Circle::new(at, 5, inside.filled())).map_err(ink::failed)?;
    area.draw(&Circle::new(at, 5, style(pass))).map_err(ink::failed)
}

fn panel<'a>(area: &Area<'a>, points: &[Point]) -> Result<()> {
    let highs = points.iter().flat_map(|point| point.ms).map(|ms| ms.high);
    let most_ms = highs.fold(1e-3, f64::max) * 1.1;
    let least = points.first().map_or(1.0, |point| point.budget_mib) / 1.3;
    let most = points.last().map_or(2.0, |point| point.budget_mib) * 1.3;
    let mut chart = Chart::new(area, least..most, most_ms)?;
    for pass in 0..PASSES {
        let median = |point: &Point| (point.budget_mib, point.ms[pass].median);
        chart.line(points.iter().map(median), style(pass))?;
        for point in points {
            let ms = point.ms[pass];
            chart.line([ms.low, ms.high].map(|ms| (point.budget_mib, ms)), style(pass))?;
            dot(area, pass, chart.place(median(point)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<Record> {
        let mut records = vec![];
        for name in ["sd", "real"] {
            for (index, mib) in [32u64, 128, 512].into_iter().enumerate() {
                for repeat in 1..=2 {
                    let pass = |latency_us: u64| Measured {
                        latency_us: latency_us + repeat as u64 * 1000,
                        bytes_read: 1_000_000_000 / (index as u64 + 1),
                        pinned_bytes: index as u64 * 300_000_000,
                        peak_rss_bytes: mib * MIB - MIB / 2,
                        digest: 7,
                        ..Measured::default()
                    };
                    let passes = vec![pass(900_000), pass(800_000 / (index as u64 + 1))];
                    let disk = name.parse().unwrap();
                    records.push(Record { disk, budget_bytes: mib * MIB, repeat, passes });
                }
            }
        }
        records
    }

    #[test]
    fn the_smallest_that_works_is_found() {
        for least in [1, 2, 37, 1499, 1500] {
            assert_eq!(bisect(1500, |mib| Ok(mib >= least)).unwrap(), least);
        }
    }

    #[test]
    fn budgets_grow_by_one_factor() {
        assert_eq!(geometric(32, 512, 5), [32, 64, 128, 256, 512]);
        assert_eq!(geometric(3, 4, 8), [3, 4]);
        assert_eq!(geometric(32, 512, 2), [32, 512]);
    }

    #[test]
    fn tables_and_plot_show_both_passes() {
        let records = example();
        let lines = csv("bert", &records);
        assert_eq!(lines.lines().count(), 1 + 12 * PASSES);
        let head = lines.lines().next().unwrap();
        assert!(lines.lines().all(|line| line.matches(',').count() == head.matches(',').count()));
        let text = markdown("bert", 128, &records);
        let row =
            "| 128 | 902.0 (901.0 to 902.0) | 402.0 (401.0 to 402.0) | 500.0 | 300.0 | 127.5 |";
        assert!(text.contains(row) && text.contains("identical in all passes"), "{text}");
        let svg = plot("bert", &records).unwrap();
        assert!(svg.contains("sd (imitated, 90 MB/s)") && svg.contains("next pass, some pinned"));
        assert!(!svg.contains("NaN") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn one_digest_that_differs_is_told() {
        let mut records = example();
        records[1].passes[1].digest = 8;
        assert!(!agree(&records));
        assert!(markdown("bert", 128, &records).contains("DIFFERENT"));
    }
}
