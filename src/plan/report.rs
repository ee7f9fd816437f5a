//! Profiles for people to read.

use super::{Profile, Way};
use std::fmt;

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Mapped => "mapped",
            Way::Direct => "direct",
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
                "  {:<10}{:>6}{:>13}{:>10.0}{:>12.3}",
                read.way,
                read.loaders,
                read.request_bytes >> 10,
                read.bandwidth_bytes_s / 1e6,
                read.cpu_ns_per_byte
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
            "\nlayer                               MiB     fixed us   us a token    error"
        )?;
        for layer in &self.layers {
            let bytes: u64 = layer.blocks.iter().map(|run| run.bytes * run.count as u64).sum();
            writeln!(
                f,
                "{:<30}{:>9.1}{:>13.0}{:>13.1}{:>8.0} %",
                layer.name,
                bytes as f64 / f64::from(1 << 20),
                layer.fixed_us,
                layer.per_token_us,
                layer.error * 100.0
            )?;
        }
        let contention = &self.contention;
        write!(
            f,
            "\na loader on a core that computes takes {:.1} x as long and costs compute {:.1} x its \
             own time;\nbeside compute on other cores it slows it {:.2} x",
            contention.loader_slowdown, contention.compute_loss, contention.memory_slowdown
        )
    }
}
