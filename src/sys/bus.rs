//! Pages of mapped files that are lost while they are mapped: the file was cut short, or its disk
//! fails when the kernel reads a page again that it had dropped.
//!
//! A touch of such a page raises SIGBUS, which would end the process. Here a page of zeros takes
//! its place instead and the mapping is marked, so that whoever computed with it can tell that the
//! result is none.

use super::page::page_size;
use std::ops::Range;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// A mapping whose lost pages are replaced, for as long as this lives.
pub struct Watched(&'static Mapping);

/// One mapping that is watched, or a place for one. Places are never freed, so that the handler may
/// walk them at any time; their number is that of the most mappings at once.
struct Mapping {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0 where nothing is watched: written last when a place is taken, first when it is left.
    end: AtomicUsize,
    lost: AtomicBool,
    next: AtomicPtr<Mapping>,
}

/// All places.
static FIRST: AtomicPtr<Mapping> = AtomicPtr::new(ptr::null_mut());

/// What handled the signal before: the standard library, which looks for overflows of stacks.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

impl Watched {
    /// Watches the pages that hold `range` of addresses, a read-only mapping of a file.
    pub fn new(range: Range<usize>) -> Watched {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let mapping = take_place();
        mapping.lost.store(false, Ordering::SeqCst);
        mapping.start.store(range.start, Ordering::SeqCst);
        mapping.end.store(range.end.next_multiple_of(page_size()), Ordering::SeqCst);
        Watched(mapping)
    }

    /// Whether a page was lost since this is watched.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.end.store(0, Ordering::SeqCst);
        self.0.taken.store(false, Ordering::SeqCst);
    }
}

/// All places, the newest first.
fn places() -> impl Iterator<Item = &'static Mapping> {
    // SAFETY: both pointers are null or come from a box that was leaked.
    let first = unsafe { FIRST.load(Ordering::SeqCst).as_ref() };
    // SAFETY: as above.
    std::iter::successors(first, |place| unsafe { place.next.load(Ordering::SeqCst).as_ref() })
}

fn take_place() -> &'static Mapping {
    if let Some(free) = places().find(|place| !place.taken.swap(true, Ordering::SeqCst)) {
        return free;
    }
    let place: &'static Mapping = Box::leak(Box::new(Mapping {
        taken: AtomicBool::new(true),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
        next: AtomicPtr::default(),
    }));
    let mut first = FIRST.load(Ordering::SeqCst);
    loop {
        place.next.store(first, Ordering::SeqCst);
        let new = ptr::from_ref(place).cast_mut();
        match FIRST.compare_exchange(first, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return place,
            Err(other) => first = other,
        }
    }
}

fn install() {
    // Asked for here, since the handler may not initialize anything.
    page_size();
    // SAFETY: both structures are ours and all-zero is a value of the type; the handler keeps to
    // what signal handlers may do, and has the signature that SA_SIGINFO asks for.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, ptr::null(), &mut previous);
        PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::SeqCst);
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid siginfo; a positive code says that it comes from a
    // fault, of which the address is told.
    let fault = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr().addr()) };
    if !fault.is_some_and(replace) {
        pass_on(signal, info, context);
    }
}

/// Puts a page of zeros where a watched mapping lost one; whether it did. Takes no lock and no
/// memory: it reads atomics and makes one system call.
fn replace(address: usize) -> bool {
    let holds = |place: &&Mapping| {
        let end = place.end.load(Ordering::SeqCst);
        let is_inside = (place.start.load(Ordering::SeqCst)..end).contains(&address);
        // Another mapping may take the place meanwhile; never the one that was touched.
        is_inside && place.end.load(Ordering::SeqCst) == end
    };
    let Some(place) = places().find(holds) else { return false };
    place.lost.store(true, Ordering::SeqCst);
    let page = page_size();
    // SAFETY: the page lies in a mapping that is watched, hence mapped, by whoever touched it: it
    // holds the `Watched` until it is done. What it reads there from now on are zeros, which any
    // byte of a mapped file may become at any time. errno is the interrupted code's.
    unsafe {
        let errno = *libc::__errno_location();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let start = ptr::without_provenance_mut(address - address % page);
        let mapped = libc::mmap(start, page, libc::PROT_READ, flags, -1, 0);
        *libc::__errno_location() = errno;
        mapped != libc::MAP_FAILED
    }
}

/// What is not ours goes on as if nobody were here.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the pointer is null or comes from a box that was leaked, whose handler the kernel
    // would have called with these arguments. Without one the default is put back: the fault
    // comes again, and ends the process.
    unsafe {
        let previous = PREVIOUS.load(Ordering::SeqCst).as_ref();
        match previous.filter(|action| {
            action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN
        }) {
            Some(action) if action.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(action.sa_sigaction);
                handler(signal, info, context);
            }
            Some(action) => {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(action.sa_sigaction);
                handler(signal);
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
                // One that was sent, not raised by a fault, would be forgotten.
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file that is copied over while it is mapped is cut to nothing first. A touch of it ended
    /// the process.
    #[test]
    fn a_page_that_is_lost_reads_as_zeros_and_is_told() {
        let page = page_size();
        let map = |content: u8| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![content; 3 * page]).unwrap();
            // SAFETY: that the file is cut is what is tested.
            let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
            let range = map.as_ptr_range();
            (file, Watched::new(range.start.addr()..range.end.addr()), map)
        };
        for _ in 0..3 {
            let (file, watched, cut) = map(7);
            let (_other_file, other_watched, other) = map(9);
            assert_eq!((cut[page], watched.is_lost()), (7, false));
            file.set_len(page as u64).unwrap();
            let read = || std::hint::black_box(&cut)[page..].iter().map(|b| u64::from(*b)).sum();
            // On a thread of its own, as compute is.
            let sum: u64 = std::thread::scope(|scope| scope.spawn(read).join().unwrap());
            assert_eq!((sum, watched.is_lost()), (0, true));
            assert_eq!((cut[0], other[page], other_watched.is_lost()), (7, 9, false));
        }
    }
}
