//! How far a file of texts is, for who watches: nothing is drawn where nobody does.

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Lines that are named on standard error for having no vector.
const NAMED: u64 = 20;

/// Texts done, their rate, and the time left where the number of all is known.
pub struct Progress {
    bar: ProgressBar,
    named: u64,
}

impl Progress {
    /// Progress through a file, of which some lines were done before.
    pub fn new(file: &Path, done: u64) -> Progress {
        let bar = ProgressBar::no_length().with_position(done);
        if bar.is_hidden() {
            return Progress { bar, named: 0 };
        }
        let all = fs::metadata(file).ok().filter(fs::Metadata::is_file);
        let all = all.and_then(|_| count_lines(file).ok());
        let template = match all {
            Some(_) => "{bar:30} {pos} of {len} texts  {rate}  {eta} left",
            None => "{spinner} {pos} texts  {rate}",
        };
        let rate = |state: &ProgressState, text: &mut dyn Write| {
            // What cannot be drawn is nobody's loss.
            let _ = write!(text, "{:.1} a second", state.per_sec());
        };
        let style = ProgressStyle::with_template(template).expect("the template is valid");
        bar.set_style(style.with_key("rate", rate));
        if let Some(all) = all {
            bar.set_length(all);
        }
        bar.reset_eta();
        if done > 0 {
            bar.println(format!("going on after {done} texts"));
        }
        Progress { bar, named: 0 }
    }

    /// So many texts more are done.
    pub fn add(&self, texts: usize) {
        self.bar.inc(texts as u64);
    }

    /// Names a line that has no vector.
    pub fn name(&mut self, line: u64, what: &str) {
        self.named += 1;
        self.bar.suspend(|| match self.named {
            ..=NAMED => hermes_base::tell!("hermesctl: line {line} {what}"),
            number if number == NAMED + 1 => hermes_base::tell!("hermesctl: and more"),
            _ => {}
        });
    }

    /// What is drawn.
    pub fn bar(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Nothing more comes.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Lines of a file; the last need not end.
fn count_lines(path: &Path) -> io::Result<u64> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut count, mut last, mut piece) = (0, b'\n', vec![0; 64 << 10]);
    loop {
        match reader.read(&mut piece)? {
            0 => return Ok(count + u64::from(last != b'\n')),
            length => {
                count += piece[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
                last = piece[length - 1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_need_not_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [("", 0), ("a", 1), ("a\n", 1), ("a\n\nb", 3)] {
            fs::write(file.path(), text).unwrap();
            assert_eq!(count_lines(file.path()).unwrap(), expected);
        }
    }
}
