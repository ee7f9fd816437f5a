//! NumPy's .npz: a zip of .npy files, as they are. What is compressed is refused.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// An array of a zip, as it lies in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name, without `.npy`.
    pub name: String,
    pub offset: u64,
    pub bytes: u64,
}

/// Bytes of the record at a zip's end without its comment, and longest comment.
const END_BYTES: usize = 22;
const MOST_COMMENT_BYTES: usize = 0xffff;

/// Longest directory of a zip that is read: thousands of arrays.
const MOST_DIRECTORY_BYTES: u32 = 1 << 20;

/// Bytes of what stands before a file's name, in the directory and before its content.
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;

/// The arrays in a file.
///
/// # Errors
/// What is no zip of stored arrays below 4 GiB, in words.
pub fn entries(file: &mut File) -> Result<Vec<Stored>, String> {
    let foreign = || "not a .npz file\nnumpy.savez(FILE, NAME=ARRAY) writes one".to_owned();
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let tail = length.min((END_BYTES + MOST_COMMENT_BYTES) as u64);
    let tail = read(file, length - tail, tail as usize)?;
    let ends = tail.windows(4).rposition(|window| window == b"PK\x05\x06");
    let end = ends.and_then(|at| tail.get(at..at + END_BYTES)).ok_or_else(foreign)?;
    let (directory_bytes, offset) = (u32_at(end, 12), u32_at(end, 16));
    if directory_bytes > MOST_DIRECTORY_BYTES {
        return Err("its directory is too long\nsave the model's inputs only".to_owned());
    }
    let directory = read(file, u64::from(offset), directory_bytes as usize)?;
    let mut stored = vec![];
    let mut rest = &*directory;
    while !rest.is_empty() {
        let head = rest.get(..ENTRY_BYTES).filter(|head| head.starts_with(b"PK\x01\x02"));
        let head = head.ok_or_else(foreign)?;
        let [name_bytes, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(head, at)));
        let name = rest.get(ENTRY_BYTES..ENTRY_BYTES + name_bytes).ok_or_else(foreign)?;
        let name = String::from_utf8_lossy(name);
        let name = name.strip_suffix(".npy").unwrap_or(&name).to_owned();
        let (method, bytes, local) = (u16_at(head, 10), u32_at(head, 24), u32_at(head, 42));
        if method != 0 {
            let advice = "save it by numpy.savez, not by savez_compressed";
            return Err(format!("\"{name}\" is compressed\n{advice}"));
        }
        if bytes == u32::MAX || local == u32::MAX {
            return Err(format!("\"{name}\" is over 4 GiB\nsave fewer: 64 are used"));
        }
        let before = read(file, u64::from(local), LOCAL_BYTES)?;
        if !before.starts_with(b"PK\x03\x04") {
            return Err(foreign());
        }
        let between = u64::from(u16_at(&before, 26)) + u64::from(u16_at(&before, 28));
        let offset = u64::from(local) + LOCAL_BYTES as u64 + between;
        if offset + u64::from(bytes) > length {
            return Err(format!("\"{name}\" is cut short"));
        }
        stored.push(Stored { name, offset, bytes: u64::from(bytes) });
        rest = rest.get(ENTRY_BYTES + name_bytes + extra + comment..).ok_or_else(foreign)?;
    }
    Ok(stored)
}

fn read(file: &mut File, place: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    let read = file.seek(SeekFrom::Start(place)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(|error| format!("not a whole .npz file: {error}"))?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
