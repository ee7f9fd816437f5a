//! `hermes-bench embed`: many documents, their rate and the most memory that they take, by
//! `hermesctl embed` and by ONNX Runtime on the same threads.
//!
//! Each run is a daemon, or a Python process, of its own, and begins once its model is loaded. Turns
//! are taken, so that what else the machine does falls on all.

mod documents;
mod figures;
mod plot;

use super::daemon::{self, Daemon};
use super::paper::output::{Progress, write};
use super::setup::Subject;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use figures::{BATCHES, Figures, System};
use hermes::sys::affinity;
use hermes::values::size;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Arguments of `hermes-bench embed`.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    subject: Subject,
    /// How many documents
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    documents: Vec<usize>,
    /// Budget of the daemon
    #[arg(long, value_parser = size::parse, default_value = "64MiB")]
    budget: u64,
    /// Compute threads of both; by default as many as cores
    #[arg(long)]
    threads: Option<usize>,
    /// Times that each is measured, as far as 3,000 documents in all
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// The model's ONNX file, for ONNX Runtime; it is left out without
    #[arg(long, requires = "tokenizer")]
    onnx: Option<PathBuf>,
    /// The model's tokenizer.json, for ONNX Runtime
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Tokens that the model's texts are cut to, for ONNX Runtime
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Documents up to which every batch is measured; of more the fastest, and the largest of up to
    /// 3,000
    #[arg(long, default_value_t = 1000)]
    every_batch: usize,
    /// Python with onnxruntime, tokenizers and numpy
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Seed of the documents
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for embed.md and memory-embed.svg
    #[arg(long, short, default_value = "embed")]
    out: PathBuf,
}

/// The program that has ONNX Runtime embed a file of texts.
const ONNX_PROGRAM: &str = include_str!("onnxruntime_embed.py");

/// Documents after which nothing is measured again, nor what is slowest.
const ENOUGH_DOCUMENTS: usize = 3000;

/// One run.
struct Run {
    seconds: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
    passes_s: Option<(f64, f64)>,
}

/// What the program prints.
#[derive(Deserialize)]
struct Printed {
    seconds: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
    tokens: u64,
    version: String,
}

/// A benchmark that is under way.
struct Bench<'a> {
    arguments: &'a Arguments,
    threads: usize,
    /// What the runs leave.
    folder: PathBuf,
    progress: Progress,
    figures: Vec<Figures>,
    /// Tokens of all documents by their number, and ONNX Runtime's version.
    tokens: Vec<(usize, u64)>,
    version: String,
    /// The least cosine of two vectors of the same document.
    agreement: Option<f64>,
    left_out: Vec<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat takes at least 1");
    ensure!(!arguments.documents.contains(&0), "--documents takes at least 1");
    fs::create_dir_all(&arguments.out).with_context(|| arguments.out.display().to_string())?;
    let folder = std::env::temp_dir().join(format!("hermes-bench-embed-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let threads = arguments.threads.unwrap_or_else(|| affinity::allowed_cores().len());
    let mut bench = Bench {
        arguments,
        threads,
        folder: folder.clone(),
        progress: Progress::new(runs(arguments)),
        figures: vec![],
        tokens: vec![],
        version: String::new(),
        agreement: None,
        left_out: vec![],
    };
    let measured = bench.measure();
    bench.progress.finish();
    // Whatever came of it, what it wrote on its way is of no more use.
    let _ = fs::remove_dir_all(&folder);
    measured?;
    let report = bench.report();
    write(&arguments.out.join("embed.md"), &report)?;
    let budget_mib = arguments.budget as f64 / f64::from(1 << 20);
    let svg = plot::memory(&arguments.subject.model, &bench.figures, budget_mib)?;
    write(&arguments.out.join("memory-embed.svg"), &svg)?;
    hermes::say!("{}", report.trim_end());
    Ok(())
}

/// Times that each is measured of so many documents.
fn repeats(arguments: &Arguments, count: usize) -> usize {
    (ENOUGH_DOCUMENTS / count).clamp(1, arguments.repeat)
}

/// Runs of all, of ONNX Runtime the most that there may be.
fn runs(arguments: &Arguments) -> u64 {
    let systems = |count: usize| match (&arguments.onnx, count <= arguments.every_batch) {
        (None, _) => 1,
        (Some(_), true) => 2 * BATCHES.len(),
        (Some(_), false) if count <= ENOUGH_DOCUMENTS => 3,
        (Some(_), false) => 2,
    };
    let of = |count: &usize| systems(*count) * repeats(arguments, *count);
    arguments.documents.iter().map(of).sum::<usize>() as u64
}

impl Bench<'_> {
    fn measure(&mut self) -> Result<()> {
        for count in self.arguments.documents.clone() {
            let texts = documents::documents(count, self.arguments.seed).join("\n") + "\n";
            fs::write(self.folder.join("texts.txt"), texts)?;
            let repeat = repeats(self.arguments, count);
            let mut systems = vec![System::Hermes];
            systems.extend(self.batches(count));
            for _ in 0..repeat {
                for system in systems.clone() {
                    if self.left_out.is_empty() || system == System::Hermes {
                        self.turn(system, count)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What ONNX Runtime is given of so many documents.
    fn batches(&mut self, count: usize) -> Vec<System> {
        if self.arguments.onnx.is_none() {
            self.leave_out("ONNX Runtime: --onnx and --tokenizer say of what".to_owned());
            return vec![];
        }
        let all = BATCHES.into_iter().flat_map(|batch| {
            // One is as long as itself, in whatever order.
            let orders = if batch == 1 { &[false][..] } else { &[false, true] };
            orders.iter().map(move |sorted| System::Onnx { batch, sorted: *sorted })
        });
        if count <= self.arguments.every_batch {
            return all.collect();
        }
        let largest = System::Onnx { batch: BATCHES[BATCHES.len() - 1], sorted: false };
        let fastest = self.fastest(self.arguments.every_batch);
        let largest = (count <= ENOUGH_DOCUMENTS || fastest.is_none()).then_some(largest);
        let is_other = |system: &System| Some(*system) != fastest;
        fastest.into_iter().chain(largest.filter(is_other)).collect()
    }

    /// The batch with the best rate of the most documents that are no more than `most`.
    fn fastest(&self, most: usize) -> Option<System> {
        let is_onnx = |figures: &&Figures| figures.system != System::Hermes;
        let few = self.figures.iter().filter(is_onnx).filter(|figures| figures.documents <= most);
        let rank = |figures: &&Figures| (figures.documents, figures.rates()[0]);
        let best = few.max_by(|a, b| rank(a).partial_cmp(&rank(b)).expect("rates are numbers"));
        best.map(|figures| figures.system)
    }

    fn turn(&mut self, system: System, count: usize) -> Result<()> {
        let run = match system {
            System::Hermes => self.hermes()?,
            System::Onnx { batch, sorted } => match self.onnx(batch, sorted, count) {
                Ok(run) => run,
                Err(error) => {
                    let why = format!("{error:#}").replace('\n', "; ");
                    self.leave_out(format!("ONNX Runtime: {why}"));
                    return Ok(());
                }
            },
        };
        let name = format!("{count} documents, {system}");
        self.progress.step(&name, (run.seconds * 1e6) as u64);
        let is_same =
            |figures: &&mut Figures| (figures.system, figures.documents) == (system, count);
        match self.figures.iter_mut().find(is_same) {
            Some(figures) => {
                figures.seconds.push(run.seconds);
                figures.cpu_seconds.push(run.cpu_seconds);
                figures.peak_bytes = figures.peak_bytes.max(run.peak_bytes);
                figures.passes_s = run.passes_s;
            }
            None => self.figures.push(Figures {
                system,
                documents: count,
                seconds: vec![run.seconds],
                cpu_seconds: vec![run.cpu_seconds],
                peak_bytes: run.peak_bytes,
                passes_s: run.passes_s,
            }),
        }
        Ok(())
    }

    /// A daemon of its own, and hermesctl.
    fn hermes(&self) -> Result<Run> {
        let Subject { store, model, variant } = &self.arguments.subject;
        let threads = self.threads.to_string();
        let daemon = Daemon::start_with(
            store,
            self.arguments.budget,
            variant.as_deref(),
            &["--threads", &threads],
        )?;
        let client = daemon.client()?;
        let one = json!({ "model": model, "input": "one text, so that all is loaded" });
        client.post("/v1/embeddings", one.to_string().into_bytes())?;
        let path = format!("/v2/models/{model}/stats");
        let passes_s = |stats: &Value| -> (f64, f64) {
            let us = |name: &str| stats["model_stats"][0]["hermes"][name].as_f64().unwrap_or(0.0);
            (us("pass_us") / 1e6, us("stall_us") / 1e6)
        };
        let before = passes_s(&client.get(&path)?);
        let mut command = Command::new(daemon::beside_us("hermesctl")?);
        command.arg("--socket").arg(&daemon.socket).args(["embed", model, "--truncate", "--file"]);
        command.arg(self.folder.join("texts.txt"));
        command.arg("--output").arg(self.folder.join("hermes.npy"));
        let (began, worked) = (Instant::now(), daemon.cpu_seconds());
        let output = command.output()?;
        let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), daemon.cpu_seconds() - worked);
        if !output.status.success() {
            bail!("hermesctl: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let after = passes_s(&client.get(&path)?);
        let passes_s = Some((after.0 - before.0, after.1 - before.1));
        Ok(Run { seconds, cpu_seconds, peak_bytes: daemon.peak_bytes(), passes_s })
    }

    /// A Python of its own; its vectors are compared with those of the last run of Hermes.
    fn onnx(&mut self, batch: usize, sorted: bool, count: usize) -> Result<Run> {
        let Arguments { onnx, tokenizer, python, tokens, .. } = self.arguments;
        let program = self.folder.join("embed.py");
        fs::write(&program, ONNX_PROGRAM)?;
        let vectors = self.folder.join("onnx.npy");
        let mut command = Command::new(python);
        command.arg("-B").arg(program).args(onnx).args(tokenizer);
        command.arg(self.folder.join("texts.txt"));
        command.args([tokens, &self.threads, &batch].map(usize::to_string));
        command.arg(if sorted { "length" } else { "file" }).arg(&vectors);
        let output = command.output().with_context(|| python.display().to_string())?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{}", error.trim().lines().last().unwrap_or("it says nothing"));
        }
        let printed: Printed = serde_json::from_slice(&output.stdout)?;
        if !self.tokens.contains(&(count, printed.tokens)) {
            self.tokens.push((count, printed.tokens));
        }
        let Printed { seconds, cpu_seconds, peak_bytes, version, .. } = printed;
        self.version = version;
        let cosine = least_cosine(&self.folder.join("hermes.npy"), &vectors)?;
        self.agreement = Some(self.agreement.map_or(cosine, |least| least.min(cosine)));
        Ok(Run { seconds, cpu_seconds, peak_bytes, passes_s: None })
    }

    fn leave_out(&mut self, sentence: String) {
        if !self.left_out.contains(&sentence) {
            self.progress.say(&format!("left out: {sentence}"));
            self.left_out.push(sentence);
        }
    }

    /// The figures as Markdown.
    fn report(&self) -> String {
        let Arguments { subject, budget, .. } = self.arguments;
        let variant = subject.variant.as_deref().unwrap_or("the best variant");
        let mut text = format!(
            "{}, {variant}, {} threads, a budget of {}\n\n",
            subject.model,
            self.threads,
            size::Size(*budget)
        );
        text += &figures::table(&self.figures);
        text += "\n\n";
        for (count, tokens) in &self.tokens {
            let mean = *tokens as f64 / *count as f64;
            text += &format!("{count} documents have {tokens} tokens, {mean:.1} each.\n");
        }
        text += &figures::ratios(&self.figures, &self.arguments.documents);
        if let Some(cosine) = self.agreement {
            let version = &self.version;
            text += &format!(
                "ONNX Runtime {version}'s vectors have a cosine of {cosine:.6} with Hermes's, or \
                 more.\n"
            );
        }
        for sentence in &self.left_out {
            text += &format!("Left out: {sentence}\n");
        }
        text
    }
}

/// The least cosine of rows of two .npy files of f32, whose vectors have length one.
fn least_cosine(a: &Path, b: &Path) -> Result<f64> {
    let values = |path: &Path| -> Result<(usize, Vec<f32>)> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let length = bytes.get(8..10).context("no header")?;
        let start = 10 + usize::from(u16::from_le_bytes([length[0], length[1]]));
        let header = String::from_utf8_lossy(bytes.get(10..start).context("no header")?);
        let shape = header.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next());
        let width = shape.and_then(|shape| shape.split(',').nth(1)?.trim().parse().ok());
        let values = bytes[start..].as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        Ok((width.context("not of two dimensions")?, values.collect()))
    };
    let ((width, a), (other, b)) = (values(a)?, values(b)?);
    ensure!(width == other && a.len() == b.len() && width > 0, "vectors differ in number or width");
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    let cosine = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(product).sum::<f64>();
    Ok(a.chunks(width).zip(b.chunks(width)).map(cosine).fold(f64::INFINITY, f64::min))
}
