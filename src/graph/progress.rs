//! What an import is about, told on standard output: where it does not survive, the last line names
//! the node that was at hand.

use log::{LevelFilter, Log, Metadata, Record};
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

/// Who logs which node is looked at: tract's analysis, which also computes what is constant.
const ANALYSER: &str = "tract_hir::infer::analyser";

/// How its line about a node begins; id, name and operator of the node follow.
const STEP: &str = "Starting step for #";

/// Who logs which part of an import begins.
pub(super) const STAGES: &str = "hermes::graph::stage";

/// Bytes of a line: a node's name may be of any length.
const LINE_BYTES: usize = 256;

struct Teller;

/// Has this process tell on its standard output what its imports are about. It must have no other
/// log.
pub fn tell() {
    if log::set_logger(&Teller).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
}

impl Log for Teller {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        [ANALYSER, STAGES].contains(&metadata.target())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line { text: String::with_capacity(LINE_BYTES) };
        // A line that is full ends early.
        let _ = write!(line, "{}", record.args());
        let about = match (record.target(), line.text.strip_prefix(STEP)) {
            (STAGES, _) => &line.text,
            (_, Some(node)) => node.split_once(' ').map_or(node, |(_, node)| node),
            _ => return,
        };
        let mut output = io::stdout().lock();
        // Where nobody listens, nobody is told.
        let _ = writeln!(output, "at {about}").and_then(|()| output.flush());
    }

    fn flush(&self) {}
}

/// The beginning of a text, in one line.
struct Line {
    text: String,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.text.len() + c.len_utf8() > LINE_BYTES {
                return Err(fmt::Error);
            }
            self.text.push(if c.is_control() { '?' } else { c });
        }
        Ok(())
    }
}
