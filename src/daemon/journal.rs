//! The log: plain text for people, `<N>` priorities (sd-daemon(3)) for the journal.

use crate::sys::{panics, terminal};
use log::{Level, LevelFilter};
use nix::sys::stat::fstat;
use std::io::{self, Write};

/// Starts logging to standard error, up to `info` until [`set_level`] says otherwise.
pub fn init() {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Trace);
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let is_journal = stream.is_some_and(|stream| is_standard_error(&stream));
    builder.format(move |out, record| {
        let message = record.args().to_string();
        let (message, level) = (terminal::tame(&message), record.level());
        match is_journal {
            true => out.write_all(prefixed(level, &message).as_bytes()),
            false => {
                let (time, message) = (out.timestamp(), message.replace('\n', "\n    "));
                writeln!(out, "[{time} {level:<5} {}] {message}", record.target())
            }
        }
    });
    builder.init();
    set_level(LevelFilter::Info);
    // A backtrace would be told by the debug information, which then stays in memory: tens of MiB.
    panics::log_them();
}

/// Logs what is at least as grave as `level` from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Whether `stream`, the value of JOURNAL_STREAM (systemd.exec(5)), names standard error's file.
fn is_standard_error(stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(stat) = fstat(io::stderr()) else { return false };
    (device.parse(), inode.parse()) == (Ok(stat.st_dev), Ok(stat.st_ino))
}

/// Each line of a message with its priority.
fn prefixed(level: Level, message: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    message.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_priority() {
        assert_eq!(prefixed(Level::Error, "no\nway"), "<3>no\n<3>way\n");
        assert_eq!(prefixed(Level::Warn, "a"), "<4>a\n");
        assert_eq!(prefixed(Level::Info, "a"), "<6>a\n");
        assert_eq!(prefixed(Level::Trace, "a"), "<7>a\n");
    }

    #[test]
    fn another_stream_is_not_ours() {
        for stream in ["", "1", "1:", ":", "a:b", "0:0"] {
            assert!(!is_standard_error(stream), "{stream:?}");
        }
        let stat = fstat(io::stderr()).unwrap();
        assert!(is_standard_error(&format!("{}:{}", stat.st_dev, stat.st_ino)));
    }
}
