//! What hermes-shard says: progress while it works, reports when it is done.

use super::interrupt;
use anyhow::Result;
use hermes::engine::{Budget, budgets};
use hermes::shard::Watch;
use hermes::store::layer_file::Layout;
use hermes::store::manifest::{MAX_ROWS, Manifest};
use hermes::store::{Decoder, Demand, ModelDir};
use hermes::values::counted;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// A bar with bytes and time left on a terminal, a line for each finished layer elsewhere.
pub struct Progress {
    bar: ProgressBar,
    has_lines: bool,
    is_mute: bool,
}

impl Progress {
    /// Progress over `bytes` of source; none is shown to programs, which ask for JSON.
    pub fn new(bytes: u64, json: bool) -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let target = match is_terminal && !json {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template(
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}",
        )
        .expect("the template is valid");
        Progress {
            bar: ProgressBar::with_draw_target(Some(bytes), target).with_style(style),
            has_lines: !is_terminal && !json,
            is_mute: json,
        }
    }

    /// Bytes of source are done.
    pub fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// All is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Watch for Progress {
    fn expect(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn tell(&self, line: &str) {
        if !self.is_mute {
            self.bar.suspend(|| hermes::tell!("{line}"));
        }
    }

    fn layer(&self, name: &str) {
        self.bar.set_message(name.to_string());
    }

    fn layer_done(&self, name: &str) {
        if self.has_lines {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            hermes::tell!("{:8.1} of {:.1} MiB  {name}", mib(done), mib(all));
        }
    }

    fn advance(&self, bytes: u64) {
        Progress::advance(self, bytes);
    }

    fn goes_on(&self) -> bool {
        interrupt::check().is_ok()
    }
}

fn bytes_of(dir: &ModelDir, variant: &str) -> u64 {
    dir.manifest.layers.iter().filter_map(|l| l.files.get(variant)).map(|f| f.bytes).sum()
}

/// Relative error over a variant's layers: the largest.
fn worst_error(dir: &ModelDir, variant: &str) -> f64 {
    let files = dir.manifest.layers.iter().filter_map(|layer| layer.files.get(variant));
    files.map(|file| file.relative_error).fold(0.0, f64::max)
}

/// Says before a build what it will write.
pub fn to_be_built(variants: &[(String, u64)]) {
    let sizes = variants.iter().map(|(variant, bytes)| format!("{variant} {:.1} MiB", mib(*bytes)));
    let all: u64 = variants.iter().map(|(_, bytes)| bytes).sum();
    let sizes = sizes.collect::<Vec<_>>().join(", ");
    hermes::tell!("writes {sizes}: {:.1} MiB in all", mib(all));
}

/// Reports a finished build.
pub fn built(dir: &ModelDir, took: Duration, json: bool) -> Result<ExitCode> {
    let manifest = &dir.manifest;
    if json {
        let report = json!({
            "model": manifest.model,
            "version": manifest.version,
            "path": dir.path,
            "layers": manifest.layers,
            "task": manifest.task,
            "text": manifest.text,
            "batch": manifest.batch,
            "took_ms": took.as_millis() as u64,
        });
        hermes::say!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    let (model, version) = (&manifest.model, &manifest.version);
    hermes::say!(
        "{model} version {version}: {} in {:.1} s",
        counted(manifest.layers.len() as u64, "layer"),
        took.as_secs_f64()
    );
    hermes::say!("  graph    {:9.1} MiB", mib(manifest.graph.bytes));
    for variant in &manifest.variants {
        let (size, error) = (mib(bytes_of(dir, variant)), worst_error(dir, variant));
        hermes::say!("  {variant:8} {size:9.1} MiB  relative error of the worst layer {error:.5}");
    }
    tell_text(manifest, "  ");
    Ok(ExitCode::SUCCESS)
}

/// What was found of texts beside the model, and what was guessed.
fn tell_text(manifest: &Manifest, indent: &str) {
    for line in manifest.text.iter().flat_map(|text| &text.sources) {
        hermes::say!("{indent}text     {line}");
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Shows what a version holds, and which budgets would do where a daemon has so many bytes for itself.
pub fn inspect(dir: &ModelDir, daemon_bytes: u64, json: bool) -> Result<ExitCode> {
    let manifest = &dir.manifest;
    if json {
        hermes::say!("{}", serde_json::to_string(&**manifest)?);
        return Ok(ExitCode::SUCCESS);
    }
    hermes::say!("{} version {}", manifest.model, manifest.version);
    let from = &manifest.provenance;
    let producer = match from.producer.as_str() {
        "" => String::new(),
        producer => format!(", {producer}"),
    };
    hermes::say!("from {} ({:.1} MiB{producer})", from.source, mib(from.source_bytes));
    let inputs = manifest.given_inputs().map(|port| ("input", port));
    let outputs = manifest.answered_outputs().map(|port| ("output", port));
    for (kind, port) in inputs.chain(outputs) {
        let shape = serde_json::to_string(&port.shape)?;
        hermes::say!("{kind:8} {} {} {shape}", port.name, port.dtype);
    }
    if let Some(batch) = &manifest.batch {
        hermes::say!("batch    {}, at most {MAX_ROWS} rows a request", batch.name);
    }
    if let Ok(decoder) = Decoder::of(&manifest.inputs, &manifest.outputs) {
        let (count, kib) = (decoder.caches.len(), decoder.token_bytes() as f64 / 1024.0);
        hermes::say!(
            "text     of {} tokens, {count} keys and values, {kib:.1} KiB a token",
            decoder.vocabulary
        );
    }
    hermes::say!("graph    {:.1} MiB", mib(manifest.graph.bytes));
    tell_text(manifest, "");
    for variant in &manifest.variants {
        hermes::say!("variant  {variant:5} {:9.1} MiB", mib(bytes_of(dir, variant)));
    }
    for (name, words) in dir.precision()?.iter().flat_map(|of| of.summary().lines()) {
        hermes::say!("{name:8} {words}");
    }
    let demand = Demand::read(&dir.path).ok();
    for Budget { length, bytes } in demand.iter().flat_map(|own| budgets(own, daemon_bytes)) {
        let requests = length.map(|length| format!(" for requests of length {length}"));
        hermes::say!("budget   {} MiB would do{}", bytes >> 20, requests.unwrap_or_default());
    }
    if demand.is_some() {
        let own = daemon_bytes >> 20;
        hermes::say!(
            "         about {own} of these are for hermesd itself on this machine; hermesctl show \
             tells a board's"
        );
    }
    hermes::say!("\nlayers in tape order");
    for (index, layer) in manifest.layers.iter().enumerate() {
        hermes::say!("{index:3} {}", layer.name);
        for variant in &manifest.variants {
            let file = &layer.files[variant];
            let (size, error, max) = (mib(file.bytes), file.relative_error, file.max_error);
            hermes::say!(
                "      {variant:5} {size:9.2} MiB  relative error {error:.5}  largest {max:.3e}"
            );
        }
        let Some(variant) = manifest.variants.first() else { continue };
        for tensor in &dir.open_layer(index, variant)?.index.tensors {
            let layout = match tensor.layout {
                Layout::Panels | Layout::ColumnPanels => "linear",
                Layout::Rows => "table",
                Layout::Flat => "constant",
            };
            let (name, blocks) = (&tensor.name, tensor.block_count);
            hermes::say!(
                "        {layout:8} {name} {:?} {} in {blocks} blocks",
                tensor.dims,
                tensor.dtype
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks every checksum.
pub fn verify(dir: &ModelDir, json: bool) -> Result<ExitCode> {
    let progress = Progress::new(dir.verify_bytes(), json);
    let problems = dir.verify(|bytes| progress.advance(bytes));
    progress.finish();
    let (model, version) = (&dir.manifest.model, &dir.manifest.version);
    if json {
        let list: Vec<_> =
            problems.iter().map(|p| json!({ "path": p.path, "what": p.what })).collect();
        hermes::say!("{}", json!({ "model": model, "version": version, "problems": list }));
    } else if problems.is_empty() {
        hermes::say!("{model} version {version}: {:.1} MiB, all sound", mib(dir.verify_bytes()));
    }
    for problem in problems.iter().filter(|_| !json) {
        hermes::tell!("{problem}");
    }
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    hermes::tell!("build the version again: hermes-shard build --force");
    Ok(ExitCode::FAILURE)
}
