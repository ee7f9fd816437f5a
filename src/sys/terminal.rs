//! The terminal, for a program that draws frames on it and waits for keys (termios(3)).

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether SIGTERM or SIGHUP came.
static ENDED: AtomicBool = AtomicBool::new(false);

/// A terminal that hands out keys as they are typed, without echo; dropping it restores the
/// terminal. Ctrl-C is a key too.
pub struct Keys {
    before: libc::termios,
}

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// A byte was typed.
    Key(u8),
    /// The time is over.
    Time,
    /// The terminal or its user is gone, or asks the program to end.
    End,
}

extern "C" fn note_end(_: libc::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

impl Keys {
    /// Takes the terminal; `None` where standard input or output is none.
    pub fn take() -> io::Result<Option<Keys>> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Ok(None);
        }
        let input = io::stdin().as_raw_fd();
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the settings where it returns 0, and only then are they read.
        let before = unsafe {
            if libc::tcgetattr(input, settings.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            settings.assume_init()
        };
        let mut raw = before;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        for signal in [libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler does nothing but store to an atomic. `signal` restarts reads,
            // but poll(2) is never restarted, so that the wait below ends.
            unsafe { libc::signal(signal, note_end as extern "C" fn(libc::c_int) as usize) };
        }
        // SAFETY: `raw` is a whole termios.
        match unsafe { libc::tcsetattr(input, libc::TCSADRAIN, &raw) } {
            0 => Ok(Some(Keys { before })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for a key for at most `time`.
    pub fn wait(&self, time: Duration) -> Woken {
        let mut poll =
            libc::pollfd { fd: io::stdin().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let time_ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, alive during the call.
        let ready = unsafe { libc::poll(&mut poll, 1, time_ms) };
        if ENDED.load(Ordering::Relaxed) {
            return Woken::End;
        }
        if ready <= 0 {
            return Woken::Time;
        }
        let mut byte = 0u8;
        // SAFETY: one byte of our own.
        match unsafe { libc::read(poll.fd, (&raw mut byte).cast(), 1) } {
            1 => Woken::Key(byte),
            _ => Woken::End,
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // SAFETY: the settings are those that tcgetattr gave. Where this fails there is no
        // terminal any more.
        unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSADRAIN, &self.before) };
    }
}

/// Prints a line, as `println!` does. A reader that has gone, as of `| head`, is no failure.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::sys::terminal::print_line(format_args!($($text)*)) };
}

/// Tells a line on standard error, as `eprintln!` does, where anybody listens.
#[macro_export]
macro_rules! tell {
    ($($text:tt)*) => { $crate::sys::terminal::tell_line(format_args!($($text)*)) };
}

/// A text as a terminal may be given it, which obeys control characters: names of files and what
/// files say may have any. Lines and tabs stay.
pub fn tame(text: &str) -> Cow<'_, str> {
    let is_wild = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_wild) {
        return Cow::Borrowed(text);
    }
    let mut tamed = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_wild(c) {
            true => tamed.extend(c.escape_default()),
            false => tamed.push(c),
        }
    }
    Cow::Owned(tamed)
}

/// What [`crate::say`] does. Ends the program where the line cannot be written for another reason
/// than that nobody reads: what was asked for is not there.
pub fn print_line(text: std::fmt::Arguments) {
    // What reads in the place of a person gets it as it is.
    let printed = match io::stdout().is_terminal() {
        true => writeln!(io::stdout(), "{}", tame(&text.to_string())),
        false => writeln!(io::stdout(), "{text}"),
    };
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tell_line(format_args!("cannot print: {error}"));
            std::process::exit(1);
        }
        _ => {}
    }
}

/// What [`crate::tell`] does.
pub fn tell_line(text: std::fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{}", tame(&text.to_string()));
}

/// Columns and rows of the terminal on standard output; 80 by 24 where it does not say.
pub fn size() -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills a winsize.
    let done = unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    match (done, size.ws_col, size.ws_row) {
        (0, columns @ 1.., rows @ 1..) => (usize::from(columns), usize::from(rows)),
        _ => (80, 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file's name with an escape sequence changed the terminal's colours, by the error about it.
    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let check = |text: &str, expected: &str| assert_eq!(tame(text), expected);
        check("two\n\tlines, \u{e9}", "two\n\tlines, \u{e9}");
        check("\u{1b}[31mred\r\u{7f}\u{9b}", "\\u{1b}[31mred\\r\\u{7f}\\u{9b}");
        assert!(matches!(tame("as it is"), Cow::Borrowed(_)));
    }
}
