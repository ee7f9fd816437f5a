//! Panics that are caught, and what they say.
//!
//! Where somebody waits for a panic and answers with what it said, it is logged for debugging alone.
//! Any other one is told on standard error, or by the log, where that is there.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest text of a panic that is passed on: it may quote what a client or a file says.
const MAX_TEXT_BYTES: usize = 400;

thread_local! {
    /// How many callers on this thread's stack wait for a panic.
    static AWAITED: Cell<usize> = const { Cell::new(0) };
}

/// Whether panics that nobody waits for are told by the log.
static LOGGED: AtomicBool = AtomicBool::new(false);

/// Does `work`; what a panic in it said is its error. Whoever calls this answers for what `work`
/// may leave half done.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    watch();
    AWAITED.set(AWAITED.get() + 1);
    let done = catch_unwind(AssertUnwindSafe(work));
    AWAITED.set(AWAITED.get() - 1);
    done.map_err(|panic| text(&*panic))
}

/// Tells that every panic of the calling thread is passed on to whoever set it to work, as a thread
/// pool does.
pub fn passed_on() {
    watch();
    AWAITED.set(AWAITED.get() + 1);
}

/// Has panics that nobody waits for told by the log, in a line each, instead of on standard error.
pub fn log_them() {
    watch();
    LOGGED.store(true, Ordering::Relaxed);
}

/// What a panic said, in one line.
pub fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    shortened(text.or_else(|| panic.downcast_ref::<&str>().copied()))
}

fn shortened(said: Option<&str>) -> String {
    let mut line = said.unwrap_or("a panic that does not say why").replace('\n', ": ");
    if line.len() > MAX_TEXT_BYTES {
        line.truncate(line.floor_char_boundary(MAX_TEXT_BYTES));
        line.push_str("...");
    }
    line
}

/// Sees to it that panics are told as they ought to be, from the first call on.
fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| match AWAITED.get() {
            0 if LOGGED.load(Ordering::Relaxed) => log::error!("{}", told(panic)),
            0 => usual(panic),
            _ => log::debug!("{}", told(panic)),
        }));
    });
}

/// Who panicked, where and why, in one line.
fn told(panic: &PanicHookInfo) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    format!("thread {name} panicked{place}: {}", shortened(panic.payload_as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_of_one_short_line() {
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(caught(|| panic!("of {}\nlines", 2)), Err::<(), _>("of 2: lines".to_string()));
        assert_eq!(caught(|| panic!("plain")), Err::<(), _>("plain".to_string()));
        let long = caught(|| panic!("{}", "\u{e4}".repeat(300))).unwrap_err();
        assert_eq!(long.len(), 403);
        assert!(long.ends_with("\u{e4}..."));
        let odd = caught(|| std::panic::panic_any(7)).unwrap_err();
        assert!(odd.contains("does not say why"), "{odd}");
    }

    #[test]
    fn a_panic_is_awaited_as_long_as_somebody_waits() {
        let inner = caught(|| (caught::<()>(|| panic!("inner")), AWAITED.get()));
        assert_eq!(inner, Ok((Err("inner".to_string()), 1)));
        assert_eq!(AWAITED.get(), 0);
    }
}
