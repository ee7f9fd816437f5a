//! Profiles and plans for people to read.

use super::wish::mib;
use super::{
    Bound, CodecRate, Contention, Forecast, Kind, PinPlace, Placement, Plan, Planned, Profile,
    Skipped, Usage, Way,
};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Mapped => "mapped",
            Way::Direct => "direct",
        })
    }
}

/// A text that names no way of reading.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is unknown: there are mapped and direct")]
pub struct UnknownWay(String);

impl FromStr for Way {
    type Err = UnknownWay;

    fn from_str(name: &str) -> Result<Way, UnknownWay> {
        let named = [Way::Mapped, Way::Direct].into_iter().find(|way| way.to_string() == name);
        named.ok_or_else(|| UnknownWay(name.to_owned()))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Usage::OneShot => "one-shot",
            Usage::Cyclic => "cyclic",
        })
    }
}

/// A table of what was measured, without a line break at its end.
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { model, version, variant, board, .. } = self;
        writeln!(f, "{model} version {version} ({variant})")?;
        let cores: Vec<String> =
            board.cores.iter().map(|core| format!("{} ({:.2})", core.id, core.speed)).collect();
        writeln!(f, "processor  {}, cores (speed) {}", board.cpu, cores.join(", "))?;
        writeln!(f, "disk       {}", board.disk)?;
        writeln!(f, "\nreading    loaders  request KiB      MB/s   CPU ms/MB")?;
        for read in &self.reads {
            writeln!(
                f,
                "  {:<10}{:>6}{:>13}{:>10.0}{:>12.3}{}",
                read.way,
                read.loaders,
                read.request_bytes >> 10,
                read.bandwidth_bytes_s / 1e6,
                read.cpu_ns_per_byte,
                if read.is_scattered { "   every second block" } else { "" }
            )?;
        }
        writeln!(f, "\ncomputing  threads   tokens        ms   activations MiB")?;
        for pass in &self.passes {
            let at = self.activations.iter().find(|at| at.tokens == pass.tokens);
            let mib = at.map_or(0.0, |at| at.bytes as f64 / f64::from(1 << 20));
            let ms = pass.latency_us / 1e3;
            writeln!(f, "{:>18}{:>9}{ms:>10.1}{mib:>18.1}", pass.threads, pass.tokens)?;
        }
        writeln!(
            f,
            "\nlayer                         MiB   decode us   fixed us  us a token     error"
        )?;
        for layer in &self.layers {
            let bytes: u64 = layer.blocks.iter().map(|run| run.bytes * run.count as u64).sum();
            writeln!(
                f,
                "{:<24}{:>9.1}{:>12.0}{:>11.0}{:>12.1}{:>8.0} %",
                layer.name,
                bytes as f64 / f64::from(1 << 20),
                layer.decode_us,
                layer.fixed_us,
                layer.per_token_us,
                layer.error * 100.0
            )?;
        }
        if !self.rates.is_empty() {
            writeln!(f, "\ncodec       ns a weight")?;
        }
        for CodecRate { codec, ns_per_weight } in &self.rates {
            writeln!(f, "  {codec:<10}{ns_per_weight:>11.3}")?;
        }
        writeln!(f, "\ncontention  loader takes   compute loses   beside compute")?;
        let (mapped, direct) = (&self.mapped_contention, &self.direct_contention);
        write!(f, "  mapped  {mapped}\n  direct  {direct}")?;
        if !self.skipped.is_empty() {
            write!(f, "\n\nnot measured")?;
        }
        self.skipped.iter().try_for_each(|Skipped { what, why }| write!(f, "\n  {what}: {why}"))
    }
}

/// One line of the report's table.
impl fmt::Display for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contention { loader_slowdown, compute_loss, memory_slowdown } = self;
        write!(f, "{loader_slowdown:>12.2} x{compute_loss:>14.2} x{memory_slowdown:>15.2} x")
    }
}

/// One line: what is done.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { source, loaders, threads, window_bytes, pin_bytes, .. } = self;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        write!(f, "{source} source, {loaders} loader{} ", plural(*loaders))?;
        f.write_str(match self.placement {
            Placement::Shared => "sharing cores with",
            Placement::Apart => "on cores apart from",
        })?;
        write!(f, " {threads} compute thread{}, ", plural(*threads))?;
        write!(f, "window {}, ", mib(*window_bytes))?;
        match (pin_bytes, self.pins) {
            (0, _) => f.write_str("nothing pinned"),
            (bytes, PinPlace::Head) => write!(f, "{} pinned at the head", mib(*bytes)),
            (bytes, PinPlace::Spread) => write!(f, "{} pinned all over", mib(*bytes)),
        }
    }
}

/// One line: what a pass takes.
impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = match self.bound() {
            Bound::Disk => "the disk",
            Bound::Compute => "compute",
        };
        write!(
            f,
            "{:.1} ms a pass, bound by {bound} (reading {:.1} ms, computing {:.1}), {} read, {} held",
            self.latency_us / 1e3,
            self.io_us / 1e3,
            self.compute_us / 1e3,
            mib(self.bytes_read),
            mib(self.peak_bytes)
        )
    }
}

/// One line: the plan and its forecast.
impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fits {
            f.write_str("it fits: all of it is pinned; ")?;
        }
        write!(f, "{}; {}", self.plan, self.forecast)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Source => "another source",
            Kind::Placement => "other cores",
            Kind::Loaders => "other loaders",
            Kind::Threads => "other threads",
            Kind::Pins => "other pins",
        })
    }
}
