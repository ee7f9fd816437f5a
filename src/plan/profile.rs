//! The profile: what was measured on one board for one version and variant of a model, and its
//! file. The only part of `plan` that knows JSON and touches a file.

use super::{Way, board::Board};
use crate::sys::file::{self, read_regular};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Format of the file; one of another number is not read.
pub const FORMAT: u32 = 3;

/// Limit of the file. A profile of 10,000 layers takes 2 MiB.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Beyond these a figure is damage: no board has it, sums of such figures are finite, and a plan
/// that follows it does no harm.
const MAX_BLOCKS: usize = 1 << 20;
const MAX_BLOCK_BYTES: u64 = 1 << 40;
const MAX_BYTES: u64 = 1 << 50;
const MAX_TOKENS: u64 = 1 << 32;
const MAX_LOADERS: usize = 16;
const MAX_TIME_US: f64 = 1e12;
const BANDWIDTHS_BYTES_S: (f64, f64) = (1.0, 1e14);
const MAX_CPU_NS_PER_BYTE: f64 = 1e9;
const LEAST_SPEED: f64 = 1e-6;
const MAX_CONTENTION: f64 = 1e3;
const MAX_NS_PER_WEIGHT: f64 = 1e6;

/// What was measured on one board for one version and variant of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub format: u32,
    /// Version of Hermes that measured.
    pub hermes: String,
    pub model: String,
    pub version: String,
    pub variant: String,
    pub board: Board,
    /// Reading alone, nothing computed beside it.
    pub reads: Vec<ReadRate>,
    /// In the order of the tape.
    pub layers: Vec<LayerCost>,
    /// Compute threads with which `layers` were measured.
    pub layer_threads: usize,
    /// Whole passes with every block pinned.
    pub passes: Vec<PassTime>,
    /// What the process takes beside all that follows.
    pub process_bytes: u64,
    pub graph_bytes: u64,
    /// Activations of a pass; ascending token counts.
    pub activations: Vec<BytesAt>,
    /// What a token leaves for the next pass; 0 where nothing is kept.
    pub kv_bytes_per_token: u64,
    /// Of reading by each way: how much a loader computes for its bytes differs.
    pub mapped_contention: Contention,
    pub direct_contention: Contention,
    /// Of the codecs in which the version's weights are stored, for what other choices of variants
    /// take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rates: Vec<CodecRate>,
    /// What could not be measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// How fast weights of one codec are multiplied with, all of them in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecRate {
    pub codec: String,
    /// Time of one core for each weight in a product with one column: decoding it and bringing it
    /// from memory.
    pub ns_per_weight: f64,
}

/// What a skipped trial of the model's computation is called, before its tokens and threads.
pub const RESIDENT_PASS: &str = "a resident pass";

/// A trial that the model or the budget did not allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

/// How fast so many loaders bring blocks of one size in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRate {
    pub way: Way,
    /// Loaders at work at once, each with one block at a time, on the cores that a shared plan
    /// gives them.
    pub loaders: usize,
    /// Bytes of each block.
    pub request_bytes: u64,
    /// Whether every second block was left out, as where others are pinned: the kernel's read-ahead
    /// then has less to go by.
    pub is_scattered: bool,
    /// Of all loaders together, blocks verified and released.
    pub bandwidth_bytes_s: f64,
    /// CPU time of the loaders (kernel and checksum too) for each byte.
    pub cpu_ns_per_byte: f64,
}

/// What one layer takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerCost {
    pub name: String,
    /// Its blocks on the tape, in order; none where it computes without weights.
    pub blocks: Vec<BlockRun>,
    /// Time of one core for decoding its blocks once; 0 where kernels use what is stored. It is
    /// part of what computing takes.
    pub decode_us: f64,
    /// Time of its nodes, all its blocks resident: `fixed_us + tokens * per_token_us`.
    pub fixed_us: f64,
    pub per_token_us: f64,
    /// Largest relative difference between that line and a measurement.
    pub error: f64,
}

/// So many equal blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockRun {
    pub count: usize,
    /// Of one block, on the disk.
    pub bytes: u64,
    /// Of one block in memory, mapped.
    pub mapped_bytes: u64,
    /// Of one block in memory, in a slot of the direct source.
    pub direct_bytes: u64,
    /// Weights in one block, by which a layer's blocks share its computing; 0 where that is not
    /// known, and goes by their bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub elements: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl BlockRun {
    /// Runs of equal blocks joined.
    pub fn joined(blocks: impl IntoIterator<Item = BlockRun>) -> Vec<BlockRun> {
        let mut runs: Vec<BlockRun> = vec![];
        for block in blocks {
            match runs.last_mut() {
                Some(run) if (BlockRun { count: block.count, ..*run }) == block => {
                    run.count += block.count;
                }
                _ => runs.push(block),
            }
        }
        runs
    }

    /// Bytes of one block in memory.
    pub fn held_bytes(&self, way: Way) -> u64 {
        match way {
            Way::Mapped => self.mapped_bytes,
            Way::Direct => self.direct_bytes,
        }
    }
}

/// How long a pass takes with every block pinned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassTime {
    /// Compute threads, on the first cores of the board's list.
    pub threads: usize,
    pub tokens: u64,
    pub latency_us: f64,
}

/// Bytes at a token count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BytesAt {
    pub tokens: u64,
    pub bytes: u64,
}

/// How loaders and compute slow each other down, fitted to measured streamed passes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contention {
    /// Seconds of one core that compute loses for each second of CPU time that a loader takes on a
    /// core of compute's: 1 where the other threads take over what is left undone, up to the number
    /// of threads where they wait for the slowed one.
    pub compute_loss: f64,
    /// How many times as long a loader's CPU work takes on a core that computes too: 2 where the
    /// scheduler gives each one half.
    pub loader_slowdown: f64,
    /// How many times as long compute takes while one loader's CPU works without a pause on a core
    /// of its own: they share caches and memory bandwidth.
    pub memory_slowdown: f64,
}

impl Default for Contention {
    /// A fair scheduler, a pool that shares its work, and enough memory bandwidth.
    fn default() -> Contention {
        Contention { compute_loss: 1.0, loader_slowdown: 2.0, memory_slowdown: 1.0 }
    }
}

/// Why a profile could not be read or written.
#[derive(Debug, Error)]
pub enum ProfileError {
    #[error("{path}: cannot {verb} the profile: {source}\ncheck the folder's rights and its disk", path = path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{path}: the profile is damaged: {what}\nit is measured anew", path = path.display())]
    Corrupt { path: PathBuf, what: String },
    #[error("{path}: the profile has format {found}, this version of Hermes reads {FORMAT}\nit is measured anew", path = path.display())]
    Format { path: PathBuf, found: u64 },
    #[error("{path}: the profile is of {found}, not of {expected}\nit is measured anew", path = path.display())]
    Foreign { path: PathBuf, found: String, expected: String },
}

/// Which profile is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    pub model: &'a str,
    pub version: &'a str,
    pub variant: &'a str,
}

impl Subject<'_> {
    /// The file of its profile in a folder. Names of models, versions and variants are file names.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.{}.{}.profile.json", self.model, self.version, self.variant))
    }
}

impl Profile {
    /// What it is a profile of.
    pub fn subject(&self) -> Subject<'_> {
        Subject { model: &self.model, version: &self.version, variant: &self.variant }
    }

    /// Reads the profile of `subject` in `folder`; None where there is none.
    ///
    /// # Errors
    /// The system's; a file that is damaged, of another format or of another model. After all but
    /// the first, measuring anew replaces it.
    pub fn read(folder: &Path, subject: Subject) -> Result<Option<Profile>, ProfileError> {
        let path = subject.path(folder);
        let Some(profile) = read_known::<Profile>(&path, MAX_FILE_BYTES)? else { return Ok(None) };
        profile.check().map_err(|what| ProfileError::Corrupt { path: path.clone(), what })?;
        check_subject(&path, profile.subject(), subject)?;
        Ok(Some(profile))
    }

    /// Removes the profile of `subject` from `folder`, where there is one.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(folder: &Path, subject: Subject) -> Result<(), ProfileError> {
        remove(subject.path(folder))
    }

    /// Whether it is of a tape of these blocks, each with its bytes.
    pub fn is_of(&self, mut blocks: impl Iterator<Item = u64>) -> bool {
        let runs = self.layers.iter().flat_map(|layer| &layer.blocks);
        let all = runs.flat_map(|run| std::iter::repeat_n(run.bytes, run.count));
        all.into_iter().all(|bytes| blocks.next() == Some(bytes)) && blocks.next().is_none()
    }

    /// How loaders and compute slow each other where blocks come one way.
    pub fn contention(&self, way: Way) -> &Contention {
        match way {
            Way::Mapped => &self.mapped_contention,
            Way::Direct => &self.direct_contention,
        }
    }

    /// The same, to be fitted.
    pub fn contention_mut(&mut self, way: Way) -> &mut Contention {
        match way {
            Way::Mapped => &mut self.mapped_contention,
            Way::Direct => &mut self.direct_contention,
        }
    }

    /// Writes the profile into `folder`, whole or not at all: a reader finds the old one or this.
    ///
    /// # Errors
    /// The system's; [`ProfileError::Corrupt`] where a figure is none, so that what is written can
    /// be read.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, ProfileError> {
        let path = self.subject().path(folder);
        let corrupt = |what| ProfileError::Corrupt { path: path.clone(), what };
        self.check().map_err(corrupt)?;
        replace(&path, self)?;
        Ok(path)
    }

    /// Whether every figure can be reckoned with; if not, which one.
    fn check(&self) -> Result<(), String> {
        let cores = self.board.cores.len();
        if cores == 0 || !(1..=cores).contains(&self.layer_threads) {
            return Err("board.cores or layer_threads: there are none, or too many".into());
        }
        for (index, core) in self.board.cores.iter().enumerate() {
            within(core.speed, LEAST_SPEED, 1.0, || format!("board.cores[{index}].speed"))?;
        }
        self.check_reads()?;
        self.check_layers()?;
        for (index, pass) in self.passes.iter().enumerate() {
            let field = |field: &str| format!("passes[{index}].{field}");
            within(pass.latency_us, f64::MIN_POSITIVE, MAX_TIME_US, || field("latency_us"))?;
            count(pass.threads as u64, 1, cores as u64, || field("threads"))?;
            count(pass.tokens, 0, MAX_TOKENS, || field("tokens"))?;
        }
        for (index, at) in self.activations.iter().enumerate() {
            let field = |field: &str| format!("activations[{index}].{field}");
            count(at.tokens, 0, MAX_TOKENS, || field("tokens"))?;
            count(at.bytes, 0, MAX_BYTES, || field("bytes"))?;
        }
        for (index, rate) in self.rates.iter().enumerate() {
            let field = || format!("rates[{index}].ns_per_weight");
            within(rate.ns_per_weight, 0.0, MAX_NS_PER_WEIGHT, field)?;
        }
        if !self.activations.is_sorted_by(|a, b| a.tokens < b.tokens) {
            return Err("activations: token counts ascend".into());
        }
        for (name, bytes) in [
            ("process_bytes", self.process_bytes),
            ("graph_bytes", self.graph_bytes),
            ("kv_bytes_per_token", self.kv_bytes_per_token),
        ] {
            count(bytes, 0, MAX_BYTES, || name.to_owned())?;
        }
        for (name, contention) in
            [("mapped", &self.mapped_contention), ("direct", &self.direct_contention)]
        {
            let Contention { compute_loss, loader_slowdown, memory_slowdown } = *contention;
            let field = |field: &str| format!("{name}_contention.{field}");
            within(compute_loss, 0.0, MAX_CONTENTION, || field("compute_loss"))?;
            within(loader_slowdown, 1.0, MAX_CONTENTION, || field("loader_slowdown"))?;
            within(memory_slowdown, 1.0, MAX_CONTENTION, || field("memory_slowdown"))?;
        }
        Ok(())
    }

    fn check_reads(&self) -> Result<(), String> {
        if self.reads.is_empty() {
            return Err("reads: there are none".into());
        }
        let (slowest, fastest) = BANDWIDTHS_BYTES_S;
        for (index, read) in self.reads.iter().enumerate() {
            let field = |field: &str| format!("reads[{index}].{field}");
            count(read.loaders as u64, 1, MAX_LOADERS as u64, || field("loaders"))?;
            count(read.request_bytes, 1, MAX_BLOCK_BYTES, || field("request_bytes"))?;
            within(read.bandwidth_bytes_s, slowest, fastest, || field("bandwidth_bytes_s"))?;
            within(read.cpu_ns_per_byte, 0.0, MAX_CPU_NS_PER_BYTE, || field("cpu_ns_per_byte"))?;
        }
        Ok(())
    }

    fn check_layers(&self) -> Result<(), String> {
        let (mut blocks, mut bytes) = (0usize, 0u64);
        for (index, layer) in self.layers.iter().enumerate() {
            let field = |field: &str| format!("layers[{index}].{field}");
            within(layer.decode_us, 0.0, MAX_TIME_US, || field("decode_us"))?;
            within(layer.fixed_us, 0.0, MAX_TIME_US, || field("fixed_us"))?;
            within(layer.per_token_us, 0.0, MAX_TIME_US, || field("per_token_us"))?;
            within(layer.error, 0.0, MAX_TIME_US, || field("error"))?;
            for run in &layer.blocks {
                blocks = blocks.saturating_add(run.count);
                let least = run.mapped_bytes.min(run.direct_bytes);
                let most = run.mapped_bytes.max(run.direct_bytes);
                if run.bytes == 0 || run.bytes > least || most > MAX_BLOCK_BYTES {
                    return Err(format!("layers[{index}].blocks: a block holds its bytes"));
                }
                bytes = bytes.saturating_add(most.saturating_mul(run.count as u64));
            }
        }
        if !(1..=MAX_BLOCKS).contains(&blocks) {
            return Err(format!("layers: {blocks} blocks are not 1 to {MAX_BLOCKS}"));
        }
        count(bytes, 1, MAX_BYTES, || "layers: bytes of all blocks".to_owned())
    }
}

/// Reads a file of this format; None where there is none.
pub(super) fn read_known<T: DeserializeOwned>(
    path: &Path,
    limit: u64,
) -> Result<Option<T>, ProfileError> {
    let corrupt = |what: String| ProfileError::Corrupt { path: path.to_owned(), what };
    let bytes = match read_regular(path, limit) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error().is_none() => return Err(corrupt(error.to_string())),
        Err(source) => {
            return Err(ProfileError::Io { verb: "read", path: path.to_owned(), source });
        }
    };
    #[derive(Deserialize)]
    struct Head {
        format: u64,
    }
    let head: Head = serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
    if head.format != u64::from(FORMAT) {
        return Err(ProfileError::Format { path: path.to_owned(), found: head.format });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| corrupt(e.to_string()))
}

/// Whether a file is of what its name says.
pub(super) fn check_subject(
    path: &Path,
    found: Subject,
    expected: Subject,
) -> Result<(), ProfileError> {
    if found == expected {
        return Ok(());
    }
    let name = |of: Subject| format!("{} {} {}", of.model, of.version, of.variant);
    let (path, found, expected) = (path.to_owned(), name(found), name(expected));
    Err(ProfileError::Foreign { path, found, expected })
}

/// Writes a file whole or not at all: a reader finds the old one or this.
pub(super) fn replace(path: &Path, content: &impl Serialize) -> Result<(), ProfileError> {
    let corrupt = |what| ProfileError::Corrupt { path: path.to_owned(), what };
    let mut text = serde_json::to_vec_pretty(content).map_err(|e| corrupt(e.to_string()))?;
    text.push(b'\n');
    let next = path.with_extension(format!("json.{}", std::process::id()));
    file::replace(path, &next, &text)
        .and_then(|()| path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()))
        .map_err(|source| ProfileError::Io { verb: "write", path: path.to_owned(), source })
}

/// Removes a file, where it is there.
pub(super) fn remove(path: PathBuf) -> Result<(), ProfileError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ProfileError::Io { verb: "remove", path, source })
        }
        _ => Ok(()),
    }
}

fn within(value: f64, least: f64, most: f64, field: impl FnOnce() -> String) -> Result<(), String> {
    match value.is_finite() && (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{}: {value} is not {least} to {most}", field())),
    }
}

fn count(value: u64, least: u64, most: u64, field: impl FnOnce() -> String) -> Result<(), String> {
    match (least..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{}: {value} is not {least} to {most}", field())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    const SUBJECT: Subject<'static> = Subject { model: "bert", version: "1", variant: "f32" };

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Profile::read(folder.path(), SUBJECT).unwrap(), None);
        let profile = fixture::profile();
        let path = profile.write(folder.path()).unwrap();
        assert_eq!(Profile::read(folder.path(), SUBJECT).unwrap().as_ref(), Some(&profile));
        let newer = Profile { process_bytes: 1, ..profile };
        assert_eq!(newer.write(folder.path()).unwrap(), path);
        assert_eq!(Profile::read(folder.path(), SUBJECT).unwrap(), Some(newer));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_cannot_be_believed_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&fixture::profile()).unwrap();
        let check = |text: &str, expected: &str| {
            fs::write(SUBJECT.path(folder.path()), text).unwrap();
            let error = Profile::read(folder.path(), SUBJECT).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains(".profile.json") && error.contains("measured anew"), "{error}");
        };
        check("", "damaged: EOF");
        check(&good[..good.len() / 2], "damaged: EOF");
        check(&good.replace(&format!("\"format\":{FORMAT}"), "\"format\":7"), "format 7");
        check(&good.replace("\"bert\"", "\"gpt\""), "of gpt 1 f32, not of bert 1 f32");
        check(&good.replace("\"process_bytes\":", "\"process\":"), "process");
        check(
            &good.replace("\"memory_slowdown\":1.0", "\"memory_slowdown\":0.5"),
            "0.5 is not 1 to",
        );
        check(&good.replace("\"count\":12", "\"count\":99999999"), "blocks are not 1 to");
        check(&good.replace("\"loaders\":4", "\"loaders\":100000"), "loaders: 100000 is not 1 to");
        check(&good.replace("\"threads\":1,", "\"threads\":3,"), "threads: 3 is not 1 to 2");
        check(&good.replace("\"fixed_us\":1400.0", "\"fixed_us\":1e300"), "fixed_us: 1");
        check(&good.replace("\"speed\":1.0", "\"speed\":1e-300"), "speed: 0.000");
        check(
            &good.replace("\"ns_per_weight\":0.25", "\"ns_per_weight\":-1"),
            "rates[0].ns_per_weight",
        );
        let many = good.replace("\"tokens\":128", "\"tokens\":18446744073709551615");
        check(&many, "tokens: 18446744073709551615 is not");
        check(&" ".repeat(17 << 20), "expected at most 16777216");
    }

    #[test]
    fn a_figure_that_is_none_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut profile = fixture::profile();
        profile.reads[1].bandwidth_bytes_s = f64::NAN;
        let error = profile.write(folder.path()).unwrap_err().to_string();
        assert!(error.contains("reads[1].bandwidth_bytes_s"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// As versions before there were choices wrote it.
    #[test]
    fn a_profile_without_rates_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let old = Profile { rates: vec![], ..fixture::profile() };
        let path = old.write(folder.path()).unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("rates") && !text.contains("elements"), "{text}");
        assert_eq!(Profile::read(folder.path(), SUBJECT).unwrap(), Some(old));
    }

    #[test]
    fn equal_blocks_are_one_run() {
        let block = |bytes| BlockRun { direct_bytes: 99, ..fixture::blocks(1, bytes) };
        let runs = BlockRun::joined([8, 8, 8, 5, 8].map(block));
        assert_eq!(
            runs.iter().map(|run| (run.count, run.bytes)).collect::<Vec<_>>(),
            [(3, 8), (1, 5), (1, 8)]
        );
    }
}
