//! The pages of the program itself: fewer at a time, and none that are no longer needed.

use super::page::page_size;
use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

/// Pieces that code is mapped in. The kernel keeps about 192 bytes for each.
const PIECE_BYTES: usize = 8 << 10;

/// Bytes that Linux maps around a page of a file that is touched, unless told otherwise by root.
const FAULT_AROUND_BYTES: usize = 64 << 10;

/// A mapping of the program or a library that is read-only and as its file is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CodeMapping {
    range: Range<usize>,
    is_executable: bool,
}

/// Gives back the pages of program code and read-only data that are in memory: parsing and
/// optimizing a graph touches most of the program, a pass a small part, which comes back piece by
/// piece from the page cache.
pub fn release() {
    for CodeMapping { range, .. } in mappings() {
        advise(range, libc::MADV_DONTNEED);
    }
}

/// Has code come in pieces of a few pages from now on. Around a page that is touched, Linux maps
/// those that the page cache holds anyway, 64 KiB of them: a pass that needs 2.3 MiB of code, a
/// function here and a function there, had 10.8 MiB resident, and has 3.6 so. What is mapped
/// around a page ends with its mapping, and a mapping ends where its flags change: every second
/// piece is left out of core dumps (madvise(2), MADV_DONTDUMP), which hold no code of files anyway.
pub fn map_in_pieces() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let piece = PIECE_BYTES.max(page_size());
        if piece >= FAULT_AROUND_BYTES {
            return;
        }
        for CodeMapping { range, .. } in mappings().iter().filter(|mapping| mapping.is_executable) {
            let mut pieces = range.clone().step_by(2 * piece);
            while let Some(start) = pieces.next()
                && advise(&(start..range.end.min(start + piece)), libc::MADV_DONTDUMP)
            {}
        }
    });
}

/// Gives advice on a part of a mapping; whether it was taken.
fn advise(range: &Range<usize>, advice: libc::c_int) -> bool {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the range is within a mapping of a file that held no page of its own when it was
    // found and is not writable, so every page that is dropped reads back from the file as it was.
    // (A debugger's breakpoints are pages of its own: they may go.) No other advice is given but
    // not to dump, which changes nothing that the program sees.
    let advised = unsafe { libc::madvise(start, range.len(), advice) };
    if advised != 0 {
        log::debug!("madvise({advice}) on code failed: {}", std::io::Error::last_os_error());
    }
    advised == 0
}

/// The program's mappings, found once: in pieces they are thousands. None where /proc is not there.
fn mappings() -> &'static [CodeMapping] {
    static MAPPINGS: OnceLock<Vec<CodeMapping>> = OnceLock::new();
    MAPPINGS.get_or_init(|| clean(&fs::read_to_string("/proc/self/smaps").unwrap_or_default()))
}

/// The mappings of smaps (proc_pid_smaps(5)) that are private, of a program or library, not
/// writable, and hold no page that differs from the file.
fn clean(smaps: &str) -> Vec<CodeMapping> {
    let mut found = vec![];
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let (first, second) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if let Some((start, end)) = first.split_once('-') {
            let bounds = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16));
            let file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
            candidate = match (bounds, second) {
                ((Ok(start), Ok(end)), "r-xp" | "r--p") if file => {
                    Some(CodeMapping { range: start..end, is_executable: second == "r-xp" })
                }
                _ => None,
            };
        } else if first == "Anonymous:"
            && second == "0"
            && let Some(mapping) = candidate.take()
        {
            found.push(mapping);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::memory::mapped_pages;
    use super::*;

    #[test]
    fn only_clean_read_only_file_mappings_are_code() {
        let smaps = "55e0-55f0 r--p 00000000 fe:00 12 /usr/bin/hermesd\nRss: 16 kB\nAnonymous: 0 kB\n\
                     5600-5610 r-xp 00001000 fe:00 12 /usr/bin/hermesd\nAnonymous: 0 kB\n\
                     5610-5620 r--p 00002000 fe:00 12 /usr/bin/hermesd\nAnonymous: 4 kB\n\
                     5620-5630 rw-p 00003000 fe:00 12 /usr/bin/hermesd\nAnonymous: 0 kB\n\
                     5640-5650 r--s 00000000 fe:00 13 /store/a.layer\nAnonymous: 0 kB\n\
                     7000-7010 r-xp 00000000 00:00 0 [vdso]\nAnonymous: 0 kB\n";
        let mapping = |range, is_executable| CodeMapping { range, is_executable };
        assert_eq!(clean(smaps), [mapping(0x55e0..0x55f0, false), mapping(0x5600..0x5610, true)]);
    }

    /// In windows of which no page is mapped, one is touched; other tests may run code there too,
    /// but not in all of them.
    #[test]
    fn code_that_is_released_comes_back_in_pieces() {
        map_in_pieces();
        release();
        let code = mappings().iter().filter(|mapping| mapping.is_executable);
        let largest = code.map(|mapping| mapping.range.clone()).max_by_key(|range| range.len());
        let Range { start, end } = largest.expect("the program has code");
        let windows = (start.next_multiple_of(FAULT_AROUND_BYTES)..end - FAULT_AROUND_BYTES)
            .step_by(FAULT_AROUND_BYTES)
            .map(|start| start..start + FAULT_AROUND_BYTES);
        let released: Vec<_> = windows.filter(|w| mapped_pages(w.clone()) == 0).take(20).collect();
        assert!(!released.is_empty(), "most of the program does not run");
        let touched = released.into_iter().map(|window| {
            // SAFETY: the address is in a mapping of the program that can be read.
            unsafe { std::ptr::with_exposed_provenance::<u8>(window.start).read_volatile() };
            mapped_pages(window)
        });
        let piece_pages = PIECE_BYTES.max(page_size()) / page_size();
        assert!((1..=piece_pages).contains(&touched.min().expect("checked above")));
    }
}
