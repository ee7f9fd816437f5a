//! What an experiment shows while it runs, and files that are there whole or not at all.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// A bar on a terminal, a line for each pass elsewhere.
pub struct Progress {
    bar: ProgressBar,
    has_lines: bool,
}

impl Progress {
    /// Progress over this many passes.
    pub fn new(passes: u64) -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let target = match is_terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} left  {msg}")
            .expect("the template is valid");
        let bar = ProgressBar::with_draw_target(Some(passes), target).with_style(style);
        Progress { bar, has_lines: !is_terminal }
    }

    /// A pass is done.
    pub fn step(&self, name: &str, latency_us: u64) {
        self.bar.inc(1);
        let text = format!("{name}: {:.1} ms", latency_us as f64 / 1e3);
        if self.has_lines {
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
            hermes::tell!("{done:4} of {all}  {text}");
        }
        self.bar.set_message(text);
    }

    /// Something to know that is no pass.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| hermes::tell!("{text}"));
    }

    /// All is done.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a file beside `path`, and renames it when it is on the disk.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    let written = File::create(&partial)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write(&folder.path().join("missing/a.svg"), "three").unwrap_err();
        assert!(format!("{error:#}").contains("missing/a.svg"), "{error:#}");
    }
}
