//! `hermes-bench paper`: the experiment of the PIPELOAD paper, on this disk and on imitated ones.
//!
//! Every policy plays the same blocks with the same kernels; only the flow differs. Rounds go over
//! all policies in turns, each pass in a process of its own with a cold page cache. `measure` is
//! one such pass, `results` what the passes gave, `table`, `plot` and `gantt` what is made of it;
//! `sweep` asks what a budget costs. Nothing here is linked into the daemon.

mod chart;
pub mod disks;
mod gantt;
pub mod ink;
pub mod measure;
pub mod output;
mod plot;
mod policy;
mod results;
pub mod sweep;
mod table;
mod trace;

use anyhow::{Context, Result, ensure};
use clap::Args;
use disks::{Disk, Limit};
use hermes::store::{ModelDir, Store};
use hermes::sys::memory;
use hermes::values::size::{self, Size};
use measure::Outcome;
use output::{Progress, write};
use policy::{POLICIES, Policy, Shape, Step};
use results::{Agreement, Record, Results};
use std::fs;
use std::path::PathBuf;
use table::Setting;

/// Arguments of `hermes-bench paper`.
#[derive(Args)]
pub struct Arguments {
    /// Folder of the store
    #[arg(long)]
    store: PathBuf,
    /// Models; one of images has to be sharded for their size (`--dim height=224 --dim width=224`)
    #[arg(long, value_delimiter = ',', default_value = "bert-large,vit-large,gpt2")]
    models: Vec<String>,
    /// Variant; each model's best by default
    #[arg(long)]
    variant: Option<String>,
    /// Disks: real, sd, emmc, sata, nvme, and blkio:MB for a limit of MB/s by the kernel
    #[arg(long, value_delimiter = ',', default_value = "real,sd,emmc,sata,nvme,blkio:250")]
    disk: Vec<Disk>,
    /// Policies: load-all, pipeswitch, pipeload-N for N agents, tape
    #[arg(long, value_delimiter = ',', default_values_t = POLICIES)]
    policies: Vec<Policy>,
    /// Bytes of tape ahead of and under compute, for the policy `tape`
    #[arg(long, value_parser = size::parse, default_value = "16MiB")]
    window: u64,
    /// Loaders, for the policy `tape`; by default the planner's choice
    #[arg(long)]
    loaders: Option<usize>,
    /// Size of every open dimension of the inputs
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Rounds; with 0, tables and pictures are made of what is in the folder
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// One round
    #[arg(long, conflicts_with = "repeat")]
    quick: bool,
    /// Folder for paper.csv, paper.md, the pictures and the profiles; made where it is missing.
    /// What is measured is added to the paper.csv that it has
    #[arg(long)]
    out: PathBuf,
}

/// Bytes that a process needs besides weights, and that stay free for others.
const SPARE_BYTES: u64 = 256 << 20;

/// The disk whose passes are traced, where it is among those measured: there loading a layer takes
/// some ten times its computing, as in the paper.
const TRACED_DISK: &str = "sata";

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut experiment = Experiment::prepare(arguments)?;
    if arguments.repeats() > 0 {
        for model in &arguments.models {
            experiment.measure_model(model)?;
        }
    }
    experiment.progress.finish();
    experiment.report()
}

impl Arguments {
    fn csv_path(&self) -> PathBuf {
        self.out.join("paper.csv")
    }

    fn setting(&self) -> Setting {
        Setting { tokens: self.tokens, window_bytes: self.window }
    }

    fn repeats(&self) -> usize {
        if self.quick { 1 } else { self.repeat }
    }
}

/// The experiment under way.
struct Experiment<'a> {
    arguments: &'a Arguments,
    store: Store,
    /// Each disk with the cgroup that makes it, where one does.
    disks: Vec<(Disk, Option<Limit>)>,
    results: Results,
    progress: Progress,
}

impl<'a> Experiment<'a> {
    /// Looks at all that can be missing before anything is measured.
    fn prepare(arguments: &'a Arguments) -> Result<Experiment<'a>> {
        let store = Store::open(&arguments.store)?;
        let is_measured = arguments.repeats() > 0;
        for model in arguments.models.iter().filter(|_| is_measured) {
            store.current(model).with_context(|| {
                format!(
                    "model {model} is not in the store\n\
                     make it with `hermes-bench synth {model} -o {model}.onnx` and `hermes-shard build`"
                )
            })?;
        }
        fs::create_dir_all(&arguments.out)
            .with_context(|| format!("cannot make {}", arguments.out.display()))?;
        let path = arguments.csv_path();
        let mut results = Results::default();
        if path.exists() {
            let text = fs::read_to_string(&path)?;
            let name = || format!("{}: give another --out, or remove it", path.display());
            results.records = table::parse_csv(&text, &arguments.setting()).with_context(name)?;
        }
        if !is_measured {
            let none = || format!("{} has no passes, and none were measured", path.display());
            ensure!(!results.records.is_empty(), none());
            let (disks, progress) = (vec![], Progress::new(0));
            return Ok(Experiment { arguments, store, disks, results, progress });
        }
        let disks = usable(arguments, &mut results.left_out);
        ensure!(!disks.is_empty(), "none of the disks can be had: {}", results.left_out.join("; "));
        let steps = arguments.policies.len() + 2;
        let passes = arguments.models.len() * disks.len() * arguments.repeats() * steps;
        let progress = Progress::new(passes as u64);
        results.left_out.iter().for_each(|sentence| progress.say(sentence));
        Ok(Experiment { arguments, store, disks, results, progress })
    }

    fn measure_model(&mut self, model: &str) -> Result<()> {
        let dir = self.store.current(model)?;
        let shape = Shape::of(&dir, self.arguments.variant.as_deref())?;
        for index in 0..self.disks.len() {
            let disk = self.disks[index].0;
            let steps = self.steps_that_fit(model, disk, shape);
            self.measure_disk(model, index, &steps)?;
            // A run that is cut off leaves what it has measured.
            let text = table::csv(&self.results, &self.arguments.setting());
            write(&self.arguments.csv_path(), &text)?;
        }
        let traced = self.disks.iter().position(|(disk, _)| disk.to_string() == TRACED_DISK);
        let index = traced.unwrap_or(0);
        let steps = self.steps_that_fit(model, self.disks[index].0, shape);
        self.trace(&dir, model, index, &steps)
    }

    /// The steps whose weights the machine has memory for; the others are told.
    fn steps_that_fit(&mut self, model: &str, disk: Disk, shape: Shape) -> Vec<Step> {
        let passes = self.arguments.policies.iter().map(|policy| Step::Pass(*policy));
        let all: Vec<Step> = passes.chain([Step::Play, Step::Resident]).collect();
        let Some(machine) = memory::machine() else { return all };
        let (fit, large): (Vec<Step>, Vec<Step>) = all.into_iter().partition(|step| {
            let bytes = step.weight_bytes(shape, self.arguments.window);
            bytes + SPARE_BYTES <= machine.available_bytes
        });
        for step in large {
            let need = Size(step.weight_bytes(shape, self.arguments.window) + SPARE_BYTES);
            let have = Size(machine.available_bytes);
            self.leave_out(format!(
                "{model} by {step} on {disk}: it takes {need} of memory, {have} are available"
            ));
        }
        fit
    }

    fn measure_disk(&mut self, model: &str, index: usize, steps: &[Step]) -> Result<()> {
        let disk = self.disks[index].0;
        self.progress.say(&format!("{model} on {disk}: measuring its profile"));
        let folder = self.profiles(disk);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        if let Err(error) = self.child(model, index, Step::Play).spawn_profile() {
            let why = format!("{error:#}").replace('\n', "; ");
            self.leave_out(format!("the profile of {model} on {disk}, plans are the usual: {why}"));
        }
        let mut failed: Vec<Step> = vec![];
        let before = self.results.rounds(model, disk);
        for repeat in before + 1..=before + self.arguments.repeats() {
            for turn in 0..steps.len() {
                // Every round begins with another, so that none always follows the same.
                let step = steps[(turn + repeat - 1) % steps.len()];
                if failed.contains(&step) {
                    continue;
                }
                let name = format!("{model} on {disk}, {step}, round {repeat}");
                match self.child(model, index, step).spawn() {
                    Ok(Outcome::Measured(passes)) => {
                        for (measured, _) in passes {
                            self.progress.step(&name, measured.latency_us);
                            let model = model.to_string();
                            self.results.records.push(Record {
                                model,
                                disk,
                                step,
                                repeat,
                                measured,
                            });
                        }
                    }
                    Ok(Outcome::Refused(why)) => {
                        failed.push(step);
                        self.leave_out(format!("{name}: {}", why.replace('\n', "; ")));
                    }
                    Err(error) => {
                        failed.push(step);
                        self.leave_out(format!(
                            "{name}: {}",
                            format!("{error:#}").replace('\n', "; ")
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// One more pass of each policy, to be seen.
    fn trace(&mut self, dir: &ModelDir, model: &str, index: usize, steps: &[Step]) -> Result<()> {
        let mut rows = vec![];
        for step in steps.iter().filter(|step| matches!(step, Step::Pass(_))) {
            let child = measure::Arguments { trace: true, ..self.child(model, index, *step) };
            match child.spawn() {
                Ok(Outcome::Measured(passes)) => {
                    let traced = passes.into_iter().filter_map(|(_, traced)| traced);
                    let name = step.to_string();
                    rows.extend(traced.map(|traced| gantt::Row { name: name.clone(), traced }));
                }
                Ok(Outcome::Refused(why)) => self.leave_out(format!("trace of {model}: {why}")),
                Err(error) => self.leave_out(format!("trace of {model}: {error:#}")),
            }
        }
        let disk = self.disks[index].0;
        let title = format!("{model} on {}: one cold pass by each policy", disk.title());
        let layers = trace::blocks_of_layers(dir, self.arguments.variant.as_deref())?;
        let svg = gantt::picture(&title, &rows, &layers)?;
        write(&self.arguments.out.join(format!("gantt-{model}-{}.svg", file_part(disk))), &svg)
    }

    fn child(&self, model: &str, index: usize, step: Step) -> measure::Arguments {
        let (disk, limit) = &self.disks[index];
        measure::Arguments {
            store: self.arguments.store.clone(),
            model: model.to_string(),
            variant: self.arguments.variant.clone(),
            disk: *disk,
            step,
            window: Some(self.arguments.window),
            loaders: self.arguments.loaders,
            tokens: self.arguments.tokens,
            budget: None,
            passes: 1,
            profiles: Some(self.profiles(*disk)),
            profile: false,
            trace: false,
            join: limit.as_ref().map(|limit| limit.folder().to_owned()),
        }
    }

    /// Where profiles measured on a disk are kept, by which tape and pipeswitch plan.
    fn profiles(&self, disk: Disk) -> PathBuf {
        self.arguments.out.join("profiles").join(file_part(disk))
    }

    fn leave_out(&mut self, sentence: String) {
        self.progress.say(&format!("left out: {sentence}"));
        if !self.results.left_out.contains(&sentence) {
            self.results.left_out.push(sentence);
        }
    }

    /// Writes tables and pictures; an error where outputs differ.
    fn report(&self) -> Result<()> {
        let out = &self.arguments.out;
        let text = table::markdown(&self.results, &self.arguments.setting());
        write(&out.join("paper.md"), &text)?;
        for model in self.results.models() {
            for disk in self.results.disks(model) {
                let svg = plot::one_disk(&self.results, model, disk)?;
                write(&out.join(format!("memory-{model}-{}.svg", file_part(disk))), &svg)?;
            }
            let svg = plot::all_disks(&self.results, model)?;
            write(&out.join(format!("memory-{model}.svg")), &svg)?;
        }
        hermes::say!("{}", text.trim_end());
        let models = self.results.models();
        let differing: Vec<&str> = models
            .into_iter()
            .filter(|model| self.results.agreement(model) == Some(Agreement::Different))
            .collect();
        ensure!(
            differing.is_empty(),
            "the policies gave different outputs of {}: see the digests in {}",
            differing.join(", "),
            out.join("paper.csv").display()
        );
        ensure!(!self.results.records.is_empty(), "nothing could be measured");
        Ok(())
    }
}

/// The disks that can be had here; the others are told in sentences.
fn usable(arguments: &Arguments, left_out: &mut Vec<String>) -> Vec<(Disk, Option<Limit>)> {
    let disks = arguments.disk.iter().filter_map(|disk| match disk {
        Disk::Limited { mb_s } => match Limit::set(&arguments.store, *mb_s) {
            Ok(limit) => Some((*disk, Some(limit))),
            Err(error) => {
                left_out.push(format!("{disk}: the kernel's limit cannot be set: {error:#}"));
                None
            }
        },
        Disk::Real | Disk::Imitated { .. } => Some((*disk, None)),
    });
    disks.collect()
}

/// A disk's name as a part of a file's.
pub(super) fn file_part(disk: Disk) -> String {
    disk.to_string().replace(':', "-")
}
