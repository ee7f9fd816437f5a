//! `hermes-bench sti`: the experiment of the STI paper, on this disk and on imitated ones.
//!
//! A latency is asked for, and what counts is how close answers come to those of full precision, in
//! which memory. The paper's baselines take as long as they take; its two stages and Hermes choose a
//! precision for each tensor from the same files, importance, profile and memory. `pass` is what
//! runs in processes of their own, `figures` and `plot` what is made of it; `trials` asks whether
//! times that were promised are kept.

mod figures;
pub mod pass;
mod plot;
mod systems;
mod trials;

use super::paper::disks::Disk;
use super::paper::file_part;
use super::paper::output::{Progress, write};
use anyhow::{Context, Result, ensure};
use clap::Args;
use figures::{Outcome, Played, Record};
use hermes::shard::Player;
use hermes::shard::importance::Accuracy;
use hermes::store::Store;
use hermes::values::size;
use pass::{Drawn, Job, Looked, Took};
use plot::Against;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use systems::System;

/// Arguments of `hermes-bench sti`.
#[derive(Args)]
pub struct Arguments {
    /// Folder of the store
    #[arg(long)]
    store: PathBuf,
    /// Name of the model, built with --variants auto
    #[arg(long)]
    model: String,
    /// Disks: real, sd, emmc, sata, nvme
    #[arg(long, value_delimiter = ',', default_value = "sd,emmc")]
    disk: Vec<Disk>,
    /// Times that are asked for, in milliseconds
    #[arg(long, value_delimiter = ',', default_value = "150,200,400")]
    latency: Vec<f64>,
    /// Systems
    #[arg(long, value_delimiter = ',', default_value = systems::SYSTEMS)]
    systems: Vec<System>,
    /// Memory for weights of both that choose: the paper's working and preload buffers, Hermes's
    /// window and pins
    #[arg(long, value_parser = size::parse, default_value = "24MiB")]
    weights: u64,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Passes of each
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Inputs whose answers are compared, as for hermes-shard's --calibrate; made up without
    #[arg(long)]
    inputs: Option<PathBuf>,
    /// Instead: so many random times, memories and disks, and whether what was promised is kept
    #[arg(long)]
    trials: Option<usize>,
    /// Seed of the trials
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for sti.csv, sti.md, the pictures and the profiles
    #[arg(long)]
    out: PathBuf,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut bench = Bench::prepare(arguments)?;
    if let Some(trials) = arguments.trials {
        return trials::run(&mut bench, trials);
    }
    for disk in &arguments.disk {
        bench.measure(*disk)?;
    }
    bench.progress.finish();
    bench.report()
}

/// The experiment under way.
struct Bench<'a> {
    arguments: &'a Arguments,
    variants: Vec<String>,
    accuracy: Accuracy,
    /// Of choices that were compared, by their variants.
    compared: HashMap<Vec<String>, f64>,
    records: Vec<Record>,
    progress: Progress,
}

impl<'a> Bench<'a> {
    fn prepare(arguments: &'a Arguments) -> Result<Bench<'a>> {
        ensure!(arguments.repeat > 0, "--repeat takes at least 1");
        let dir = Store::open(&arguments.store)?.current(&arguments.model)?;
        let variants = dir.manifest.variants.clone();
        let player = Player::open(dir)?;
        let inputs = player.inputs(arguments.inputs.as_deref())?;
        let accuracy = Accuracy::new(player, inputs, &())?;
        fs::create_dir_all(&arguments.out)
            .with_context(|| format!("cannot make {}", arguments.out.display()))?;
        let targets = |system: &System| match system.follows_target() {
            true => arguments.latency.len(),
            false => 1,
        };
        let steps = arguments.disk.len() * arguments.systems.iter().map(targets).sum::<usize>();
        let progress = Progress::new(steps as u64);
        progress.say(&format!("answers are compared on {}", accuracy.told()));
        let (compared, records) = (HashMap::new(), vec![]);
        Ok(Bench { arguments, variants, accuracy, compared, records, progress })
    }

    /// What runs on a disk, once the model is measured there.
    fn on(&self, disk: Disk) -> Result<pass::Arguments> {
        let profiles = self.arguments.out.join("profiles").join(file_part(disk));
        let is_measured = fs::read_dir(&profiles).is_ok_and(|mut files| files.next().is_some());
        fs::create_dir_all(&profiles)
            .with_context(|| format!("cannot make {}", profiles.display()))?;
        let Arguments { store, model, tokens, .. } = self.arguments;
        let (store, model, tokens) = (store.clone(), model.clone(), *tokens);
        let job = String::new();
        let process = pass::Arguments { store, model, disk, tokens, profiles, job };
        if !is_measured {
            self.progress
                .say(&format!("{} on {disk}: measuring its profile", self.arguments.model));
            process.spawn::<()>(&Job::Profile)?;
        }
        Ok(process)
    }

    fn measure(&mut self, disk: Disk) -> Result<()> {
        let process = self.on(disk)?;
        let looked: Looked = process.spawn(&Job::Look)?;
        for system in &self.arguments.systems {
            if !system.follows_target() {
                let outcome = self.follow(&process, system, &looked);
                self.note(disk, system, None, outcome);
                continue;
            }
            for latency_ms in &self.arguments.latency {
                let outcome = self.target(&process, system, *latency_ms);
                self.note(disk, system, Some(*latency_ms), outcome);
            }
        }
        // A run that is cut off leaves what it has measured.
        write(&self.arguments.out.join("sti.csv"), &figures::csv(&self.records))
    }

    fn note(
        &mut self,
        disk: Disk,
        system: &System,
        target_ms: Option<f64>,
        outcome: Result<Outcome>,
    ) {
        let outcome = outcome.unwrap_or_else(|error| Outcome::Refused(format!("{error:#}")));
        let name = format!("{system} on {disk}");
        match &outcome {
            Outcome::Played(played) => {
                self.progress.step(&name, (played.latency_ms() * 1e3) as u64);
            }
            Outcome::Refused(why) => self.progress.say(&format!("{name}: {why}")),
        }
        let (model, system) = (self.arguments.model.clone(), system.clone());
        self.records.push(Record { model, disk, system, target_ms, outcome });
    }

    /// A baseline, in one variant.
    fn follow(
        &mut self,
        process: &pass::Arguments,
        system: &System,
        looked: &Looked,
    ) -> Result<Outcome> {
        let variant = system.variant(&self.variants).context("it has no variant")?.to_owned();
        ensure!(self.variants.contains(&variant), "the model has no variant {variant}");
        let passes = self.arguments.repeat;
        let job = Job::Follow { system: system.to_string(), variant: variant.clone(), passes };
        let took: Took = process.spawn(&job)?;
        let variants = vec![variant; looked.tensors];
        let accuracy = self.accuracy_of(&variants)?;
        let (expected, bits) = self.accuracy.expect(&variants)?;
        Ok(Outcome::Played(played(took, accuracy, expected, bits, None)))
    }

    /// A plan for a latency and so much memory for weights.
    fn target(
        &mut self,
        process: &pass::Arguments,
        system: &System,
        latency_ms: f64,
    ) -> Result<Outcome> {
        let weights_bytes = self.arguments.weights;
        let by_stages = *system == System::TwoStages;
        let drawn = process.spawn(&Job::Plan { latency_ms, weights_bytes, by_stages })?;
        match drawn {
            Drawn::Refused(why) => Ok(Outcome::Refused(why)),
            Drawn::Plan { plan, expected, bits, forecast_ms } => {
                let accuracy = self.accuracy_of(&plan.variants)?;
                let passes = self.arguments.repeat;
                let took = process.spawn(&Job::Play { plan, passes })?;
                Ok(Outcome::Played(played(took, accuracy, expected, bits, Some(forecast_ms))))
            }
        }
    }

    /// How close answers by a choice come to those of the best variants.
    fn accuracy_of(&mut self, variants: &[String]) -> Result<f64> {
        if let Some(known) = self.compared.get(variants) {
            return Ok(*known);
        }
        let accuracy = self.accuracy.measure(variants, &())?;
        self.compared.insert(variants.to_vec(), accuracy);
        Ok(accuracy)
    }

    /// Writes tables and pictures.
    fn report(&self) -> Result<()> {
        let out = &self.arguments.out;
        let text = figures::markdown(&self.records);
        write(&out.join("sti.md"), &text)?;
        for disk in &self.arguments.disk {
            let of = self.records.iter().filter(|record| record.disk == *disk).cloned();
            let records: Vec<Record> = of.collect();
            let title = format!("{} on {}", self.arguments.model, disk.title());
            for (name, against) in [("latency", Against::Latency), ("memory", Against::Memory)] {
                let svg = plot::accuracy(&title, &records, against)?;
                write(&out.join(format!("sti-{name}-{}.svg", file_part(*disk))), &svg)?;
            }
        }
        hermes::say!("{}", text.trim_end());
        Ok(())
    }
}

fn played(took: Took, accuracy: f64, expected: f64, bits: f64, forecast_ms: Option<f64>) -> Played {
    let Took { latency_us, window_bytes, pinned_bytes, peak_bytes, bytes_read } = took;
    Played {
        bits,
        expected,
        accuracy,
        forecast_ms,
        latency_us,
        window_bytes,
        pinned_bytes,
        peak_bytes,
        bytes_read,
    }
}
