//! What was measured of each number of documents, and the tables that are made of it.

use crate::setup::Times;
use hermes::wire::table;
use std::fmt;

/// Texts that ONNX Runtime is given at once.
pub const BATCHES: [usize; 4] = [1, 8, 32, 256];

/// Who embeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    Hermes,
    Onnx { batch: usize, sorted: bool },
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            System::Hermes => f.write_str("Hermes"),
            System::Onnx { batch, sorted: false } => write!(f, "ONNX, {batch} at once"),
            System::Onnx { batch, sorted: true } => write!(f, "ONNX, {batch} sorted"),
        }
    }
}

/// What was measured of a number of documents.
#[derive(Clone, Debug)]
pub struct Figures {
    pub system: System,
    pub documents: usize,
    pub seconds: Vec<f64>,
    /// Of processors, of all threads together.
    pub cpu_seconds: Vec<f64>,
    pub peak_bytes: u64,
    /// Time in passes, and of that waiting for the disk, of the last run.
    pub passes_s: Option<(f64, f64)>,
}

impl Figures {
    /// In MiB.
    pub fn peak_mib(&self) -> f64 {
        self.peak_bytes as f64 / f64::from(1 << 20)
    }

    /// Documents a second: of the median, and from the slowest to the fastest.
    pub fn rates(&self) -> [f64; 3] {
        let slowest = self.seconds.iter().copied().fold(0.0, f64::max);
        let fastest = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        [median(&self.seconds), slowest, fastest].map(|seconds| self.documents as f64 / seconds)
    }

    /// Documents a second of a processor's time.
    pub fn cpu_rate(&self) -> f64 {
        self.documents as f64 / median(&self.cpu_seconds)
    }
}

fn median(seconds: &[f64]) -> f64 {
    Times(seconds.iter().map(|seconds| (seconds * 1e6) as u64).collect()).median() as f64 / 1e6
}

/// A row for each.
pub fn table(all: &[Figures]) -> String {
    let head = [
        "documents",
        "by",
        "a second",
        "slowest to fastest",
        "a CPU second",
        "peak MiB",
        "in passes",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for figures in all {
        let [median, slowest, fastest] = figures.rates();
        let last = figures.seconds.last().copied().unwrap_or(1.0);
        let share = |(pass, stall): (f64, f64)| {
            let percent = |seconds: f64| 100.0 * seconds / last;
            format!("{:.0} %, {:.0} % stall", percent(pass), percent(stall))
        };
        rows.push([
            figures.documents.to_string(),
            figures.system.to_string(),
            format!("{median:.1}"),
            format!("{slowest:.1} to {fastest:.1} ({})", figures.seconds.len()),
            format!("{:.1}", figures.cpu_rate()),
            format!("{:.1}", figures.peak_mib()),
            figures.passes_s.map_or(String::new(), share),
        ]);
    }
    table::lines(&rows)
}

/// Hermes's rates beside ONNX Runtime's best of as many documents.
pub fn ratios(all: &[Figures], counts: &[usize]) -> String {
    let mut text = String::new();
    for count in counts {
        let of = |is_hermes: bool, rate: fn(&Figures) -> f64| {
            let of = all.iter().filter(|figures| figures.documents == *count);
            let of = of.filter(|figures| (figures.system == System::Hermes) == is_hermes);
            of.map(rate).fold(0.0, f64::max)
        };
        let ratio = |rate| of(true, rate) / of(false, rate);
        if of(false, Figures::cpu_rate) > 0.0 {
            let (wall, cpu) = (ratio(|figures| figures.rates()[0]), ratio(Figures::cpu_rate));
            text += &format!(
                "{count} documents: {wall:.2} of ONNX Runtime's best rate, {cpu:.2} by CPU \
                 time.\n"
            );
        }
    }
    text
}
