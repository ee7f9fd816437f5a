//! A copy of this program that does one thing within limits of memory and time: whatever it is
//! given can end the copy, and nobody else.

use super::heap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, ptr};

/// The first argument of a copy; its limits follow, then what it is to do.
const FLAG: &str = "--within";

/// How a copy ends that asks its heap for too much.
const OVER_MEMORY_STATUS: i32 = 77;

/// How many times the processor's time a copy may take by the clock, where others keep the processor
/// from it or it waits for a disk.
const PATIENCE: u32 = 4;

/// Bytes of the end of what a copy says that are kept.
const TAIL_BYTES: usize = 4096;

/// Bytes of what a copy says that are read at once.
const PIECE_BYTES: usize = 4096;

/// Seconds of the processor that a step of this copy may take; 0 where this process is none.
static STEP_CPU_S: AtomicU32 = AtomicU32::new(0);

/// Milliseconds after which the caller is asked whether to go on.
const TICK_MS: u16 = 500;

/// What a copy may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of its heap.
    pub heap_bytes: u64,
    /// Seconds of the processor, for each of its steps (see [`begin_step`]).
    pub cpu_s: u32,
    /// Seconds by the clock for all of it, those included in which it only waits.
    pub clock_s: u32,
    /// Bytes of what it says; the last ones are kept.
    pub said_bytes: usize,
}

impl Limits {
    /// Of heap and processor, with four times as long by the clock, for a copy that says little.
    pub const fn new(heap_bytes: u64, cpu_s: u32) -> Limits {
        Limits { heap_bytes, cpu_s, clock_s: PATIENCE * cpu_s, said_bytes: TAIL_BYTES }
    }
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Exit(i32),
    /// It wanted more memory than it may have.
    OverMemory,
    /// It took more of the processor's time than it may have.
    OverTime,
    /// It took longer than it may, however much of that it waited.
    OverClock,
    /// By another signal.
    Signal(i32),
}

/// Runs a copy of this program, whose `main` must begin with [`begin`], for what `arguments` say.
/// Returns how it ended, and the end of what it wrote to its standard output. `go_on` is asked
/// twice a second; where it says no, the copy is killed.
///
/// # Errors
/// The system's, where there can be no copy; [`io::ErrorKind::Interrupted`] where `go_on` said no.
pub fn run(
    limits: Limits,
    arguments: &[OsString],
    mut go_on: impl FnMut() -> bool,
) -> io::Result<(End, String)> {
    let mut child = again()
        .arg(FLAG)
        .arg(limits.heap_bytes.to_string())
        .arg(limits.cpu_s.to_string())
        .arg(limits.clock_s.to_string())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // What a terminal sends is for the caller, who then ends the copy.
        .process_group(0)
        .spawn()?;
    let said = match child.stdout.take() {
        Some(output) => listen(output, limits.said_bytes, &mut go_on),
        None => Ok(Vec::new()),
    };
    let said = said.inspect_err(|_| kill(&mut child))?;
    let end = end_of(child.wait()?);
    Ok((end, String::from_utf8_lossy(&said).into_owned()))
}

/// This program once more, by the name that it was called by: a file of several names does what its
/// name says. The file goes by its path, which an emulator knows too, and where that was replaced by
/// what runs.
pub fn again() -> Command {
    let path = env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(path.unwrap_or_else(|| "/proc/self/exe".into()));
    if let Some(name) = env::args_os().next() {
        command.arg0(name);
    }
    command
}

/// Reads to the end, which comes with the copy's own; keeps what came last.
fn listen(
    mut output: ChildStdout,
    said_bytes: usize,
    go_on: &mut impl FnMut() -> bool,
) -> io::Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut piece = [0; PIECE_BYTES];
    loop {
        let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let is_silent = match poll(&mut ready, PollTimeout::from(TICK_MS)) {
            Ok(count) => count == 0,
            Err(nix::errno::Errno::EINTR) => true,
            Err(error) => return Err(error.into()),
        };
        if !go_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if is_silent {
            continue;
        }
        let count = output.read(&mut piece)?;
        said.extend(&piece[..count]);
        // Not each time, since what is kept is moved.
        if count == 0 || said.len() > 2 * said_bytes {
            said.drain(..said.len().saturating_sub(said_bytes));
        }
        if count == 0 {
            return Ok(said);
        }
    }
}

fn kill(child: &mut Child) {
    // It may have ended meanwhile; then there is nothing to kill, and it is only collected.
    let _ = child.kill();
    let _ = child.wait();
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(OVER_MEMORY_STATUS), _) => End::OverMemory,
        (Some(code), _) => End::Exit(code),
        (None, Some(signal)) if signal == Signal::SIGPROF as i32 => End::OverTime,
        (None, Some(signal)) if signal == Signal::SIGALRM as i32 => End::OverClock,
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}

/// Where this process is a copy: takes its limits on, and returns what it is to do. To be called
/// first of all.
pub fn begin() -> Option<Vec<OsString>> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != FLAG {
        return None;
    }
    let mut number = || arguments.next()?.to_str()?.parse().ok();
    let heap_bytes = number()?;
    let mut seconds = || u32::try_from(number()?).ok();
    let cpu_s = seconds()?;
    hold(Limits { clock_s: seconds()?, ..Limits::new(heap_bytes, cpu_s) });
    Some(arguments.collect())
}

/// Begins a step of what a copy does, which may take the processor's time anew: one that takes many
/// steps is not held for one that does not end. Nothing where this process is no copy.
pub fn begin_step() {
    match STEP_CPU_S.load(Ordering::Relaxed) {
        0 => {}
        cpu_s => end_after(libc::ITIMER_PROF, cpu_s),
    }
}

/// Each of these is a courtesy but the first two: where the system refuses one, the copy does
/// without.
fn hold(limits: Limits) {
    heap::exit_beyond(limits.heap_bytes, OVER_MEMORY_STATUS);
    STEP_CPU_S.store(limits.cpu_s, Ordering::Relaxed);
    begin_step();
    end_after(libc::ITIMER_REAL, limits.clock_s);
    // It goes with whoever waits for it, is the first to go where memory is short, and leaves no
    // image of itself.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let _ = prctl::set_dumpable(false);
}

/// Has a signal end the process, as nobody handles it, once the timer has counted so many seconds.
fn end_after(timer: libc::c_int, seconds: u32) {
    let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let then = libc::timeval { tv_sec: seconds as libc::time_t, tv_usec: 0 };
    let value = libc::itimerval { it_interval: never, it_value: then };
    // SAFETY: the timer exists, `value` outlives the call, and the old value may be null
    // (setitimer(2)).
    #[allow(clippy::unnecessary_cast)]
    unsafe {
        libc::setitimer(timer as _, &value, ptr::null_mut());
    }
}
