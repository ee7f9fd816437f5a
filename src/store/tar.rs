//! tar as far as a version needs it: regular files and their folders, read entry by entry from a
//! stream and written as ustar (POSIX.1-1988), with pax records (POSIX.1-2001) for long names.
//!
//! Read by hand because an archive may be hostile: links, devices, sparse files and everything
//! else that a version cannot hold is refused here by its type, and the records that hold long
//! names are bounded before they are read.

use super::StoreError;
use std::io::{self, Read};

/// The unit of the format: a head is one record, a file's bytes are padded to whole ones.
pub(super) const RECORD_BYTES: usize = 512;

/// Limit of the records that hold a long name or what pax adds to an entry.
const MAX_EXTRA_BYTES: u64 = 64 << 10;

/// How many such records may precede an entry.
const MAX_EXTRAS: usize = 8;

/// How much of a name an error shows, which goes to logs and clients.
const MAX_SHOWN_CHARS: usize = 200;

/// Zeros that may follow the archive's end: tar pads to whole tapes' blocks.
const MAX_PADDING_BYTES: u64 = 1 << 20;

/// Largest size that eleven octal digits hold.
const MAX_OCTAL: u64 = (1 << 33) - 1;

/// Where the fields of a head are (tar(5)).
mod field {
    use std::ops::Range;
    pub const NAME: Range<usize> = 0..100;
    pub const MODE: Range<usize> = 100..108;
    pub const OWNER: Range<usize> = 108..116;
    pub const GROUP: Range<usize> = 116..124;
    pub const SIZE: Range<usize> = 124..136;
    pub const TIME: Range<usize> = 136..148;
    pub const CHECKSUM: Range<usize> = 148..156;
    pub const KIND: usize = 156;
    pub const MAGIC: Range<usize> = 257..265;
    pub const PREFIX: Range<usize> = 345..500;
}

/// POSIX's magic and version, and GNU's.
const USTAR: &[u8] = b"ustar\x0000";
const GNU: &[u8] = b"ustar  \0";

/// First bytes of what people may take for a tar file.
const COMPRESSED: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2")];

/// An entry's name and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the archive has it, but for a leading `./`; a folder's ends with a slash or is empty.
    pub name: String,
    /// Length of its content; 0 for a folder.
    pub bytes: u64,
    /// Whether it is a folder, else it is a regular file.
    pub is_folder: bool,
}

/// Reads an archive entry by entry.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Where the current entry's head is.
    entry_offset: u64,
    /// Bytes of the current entry that are left, and zeros behind them.
    left: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    /// A reader at the archive's start.
    pub fn new(input: R) -> TarReader<R> {
        TarReader { input, offset: 0, entry_offset: 0, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the archive's end, which has been read whole then.
    ///
    /// # Errors
    /// [`StoreError::Archive`]; [`StoreError::Io`] where the stream breaks off.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, StoreError> {
        let mut extra = Extra::default();
        for _ in 0..=MAX_EXTRAS {
            self.skip()?;
            let at = self.offset;
            let mut record = [0; RECORD_BYTES];
            self.fill(&mut record)?;
            if record.iter().all(|byte| *byte == 0) {
                self.finish()?;
                return Ok(None);
            }
            let head = Head::parse(&record).map_err(|what| refused(at, "", what))?;
            self.left = head.bytes;
            self.padding = pad(head.bytes);
            match head.kind {
                b'L' => extra.name = Some(text(trim(&self.extra(at, &head)?))),
                b'x' => extra.read(&self.extra(at, &head)?).map_err(|w| refused(at, "", w))?,
                // What holds for the whole archive, such as git's commit, says nothing of files.
                b'g' => drop(self.extra(at, &head)?),
                _ => return self.entry(at, head, extra).map(Some),
            }
        }
        Err(refused(self.offset, "", format!("has more than {MAX_EXTRAS} records before an entry")))
    }

    fn entry(&mut self, at: u64, head: Head, extra: Extra) -> Result<Entry, StoreError> {
        let name = extra.name.unwrap_or(head.name);
        let is_folder = match head.kind {
            b'0' | 0 => false,
            b'5' => true,
            kind => return Err(refused(at, &name, kind_text(kind))),
        };
        self.entry_offset = at;
        self.left = extra.bytes.unwrap_or(head.bytes);
        self.padding = pad(self.left);
        if is_folder && self.left > 0 {
            return Err(refused(at, &name, "is a folder with content"));
        }
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        Ok(Entry { name, bytes: self.left, is_folder })
    }

    /// Refuses the current entry, `entry`.
    pub fn refuse(&self, entry: &Entry, what: String) -> StoreError {
        refused(self.entry_offset, &entry.name, what)
    }

    /// Refuses the archive for what it lacks.
    pub fn refuse_all(&self, what: String) -> StoreError {
        refused(self.offset, "", what)
    }

    /// Reads some of the current entry's content; 0 at its end.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the stream breaks off.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StoreError> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.fill(&mut buffer[..wanted])?;
        self.left -= wanted as u64;
        Ok(wanted)
    }

    /// Skips what is left of the current entry.
    fn skip(&mut self) -> Result<(), StoreError> {
        let mut buffer = [0; RECORD_BYTES];
        while self.read(&mut buffer)? > 0 {}
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.fill(&mut buffer[..padding])
    }

    /// Reads the content of a record that only describes the next entry.
    fn extra(&mut self, at: u64, head: &Head) -> Result<Vec<u8>, StoreError> {
        if head.bytes > MAX_EXTRA_BYTES {
            let what = format!(
                "has {} bytes of name and attributes, the limit is {MAX_EXTRA_BYTES}",
                head.bytes
            );
            return Err(refused(at, &head.name, what));
        }
        let mut content = vec![0; usize::try_from(head.bytes).expect("checked against the limit")];
        let read = self.read(&mut content)?;
        debug_assert_eq!(read, content.len());
        Ok(content)
    }

    /// Reads the end: a second record of zeros and padding. A whole stream is taken, so that its
    /// writer is not cut off, and so that nothing can hide behind the end.
    fn finish(&mut self) -> Result<(), StoreError> {
        let start = self.offset;
        let mut buffer = [0; RECORD_BYTES];
        loop {
            let count = match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            self.offset += count as u64;
            let is_zero = buffer[..count].iter().all(|byte| *byte == 0);
            if !is_zero || self.offset - start > MAX_PADDING_BYTES {
                return Err(refused(start, "", "goes on behind its end"));
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                refused(self.offset, "", "is cut short: it ends within an entry or without its end")
            }
            _ => broken(error),
        })?;
        self.offset += buffer.len() as u64;
        Ok(())
    }
}

fn broken(error: io::Error) -> StoreError {
    StoreError::io("read", "the archive".as_ref(), error)
}

fn refused(offset: u64, name: &str, what: impl Into<String>) -> StoreError {
    let mut entry: String = name.chars().take(MAX_SHOWN_CHARS).collect();
    if entry.len() < name.len() {
        entry.push_str("...");
    }
    StoreError::Archive { entry, offset, what: what.into() }
}

/// Zeros behind `bytes` of content.
fn pad(bytes: u64) -> u64 {
    let record = RECORD_BYTES as u64;
    (record - bytes % record) % record
}

/// What records before an entry say of it.
#[derive(Default)]
struct Extra {
    name: Option<String>,
    bytes: Option<u64>,
}

impl Extra {
    /// Reads pax records: `LENGTH KEY=VALUE\n`, the length counting all of it.
    fn read(&mut self, mut records: &[u8]) -> Result<(), String> {
        let odd = || "has pax records that cannot be read".to_owned();
        while !records.is_empty() {
            let digits = records.iter().position(|byte| *byte == b' ').ok_or_else(odd)?;
            let length = std::str::from_utf8(&records[..digits]).ok();
            let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or_else(odd)?;
            if length <= digits + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(odd());
            }
            let record = &records[digits + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(odd)?;
            let (key, value) = (&record[..equals], text(&record[equals + 1..]));
            match key {
                b"path" => self.name = Some(value),
                b"size" => self.bytes = Some(value.parse().map_err(|_| odd())?),
                _ if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" => {
                    return Err(kind_text(b'S'));
                }
                // Times, owners and attributes.
                _ => {}
            }
            records = &records[length..];
        }
        Ok(())
    }
}

/// One record before a content.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    name: String,
    bytes: u64,
    kind: u8,
}

impl Head {
    fn parse(record: &[u8; RECORD_BYTES]) -> Result<Head, String> {
        if let Some((_, name)) = COMPRESSED.iter().find(|(magic, _)| record.starts_with(magic)) {
            return Err(format!("is compressed with {name}: uncompress it before"));
        }
        let magic = &record[field::MAGIC];
        if magic != USTAR && magic != GNU {
            return Err("is no head of a tar archive".to_owned());
        }
        if number(&record[field::CHECKSUM]) != Some(checksum(record)) {
            return Err("has a head with a wrong checksum".to_owned());
        }
        let bytes = number(&record[field::SIZE]).ok_or("has a size that is no number")?;
        let mut name = text(trim(&record[field::NAME]));
        let prefix = trim(&record[field::PREFIX]);
        if magic == USTAR && !prefix.is_empty() {
            name = format!("{}/{name}", text(prefix));
        }
        Ok(Head { name, bytes, kind: record[field::KIND] })
    }

    fn write(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        record[field::NAME][..self.name.len()].copy_from_slice(self.name.as_bytes());
        let octal = |value: u64, width: usize| format!("{value:0width$o}\0");
        for (field, value) in [
            (field::MODE, 0o644),
            (field::OWNER, 0),
            (field::GROUP, 0),
            (field::SIZE, self.bytes),
            (field::TIME, 0),
        ] {
            let width = field.len() - 1;
            match value <= MAX_OCTAL {
                true => record[field].copy_from_slice(octal(value, width).as_bytes()),
                false => {
                    // GNU's form for what octal digits do not hold.
                    record[field.start] = 0x80;
                    record[field.end - 8..field.end].copy_from_slice(&value.to_be_bytes());
                }
            }
        }
        record[field::KIND] = self.kind;
        record[field::MAGIC].copy_from_slice(USTAR);
        let sum = format!("{:06o}\0 ", checksum(&record));
        record[field::CHECKSUM].copy_from_slice(sum.as_bytes());
        record
    }
}

/// The records before a regular file's content.
pub(super) fn file_head(name: &str, bytes: u64) -> Vec<u8> {
    let head = |name: &str, bytes, kind| Head { name: name.to_owned(), bytes, kind }.write();
    if name.len() <= field::NAME.len() {
        return head(name, bytes, b'0').to_vec();
    }
    let record = pax_record("path", name);
    let mut records = head("pax", record.len() as u64, b'x').to_vec();
    records.extend(record.as_bytes());
    records.resize(records.len().next_multiple_of(RECORD_BYTES), 0);
    records.extend(head("long-name", bytes, b'0'));
    records
}

/// Bytes with which a content of `bytes` is padded.
pub(super) fn padding(bytes: u64) -> usize {
    usize::try_from(pad(bytes)).expect("less than a record")
}

fn pax_record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// The sum of a head's bytes, its own field taken as blanks.
fn checksum(record: &[u8; RECORD_BYTES]) -> u64 {
    let bytes = record.iter().enumerate();
    bytes.map(|(at, b)| u64::from(if field::CHECKSUM.contains(&at) { b' ' } else { *b })).sum()
}

/// A number in octal digits between blanks, or in GNU's binary form.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let (high, low) = field[1..].split_at(field.len() - 9);
        let value = u64::from_be_bytes(low.try_into().ok()?);
        return high.iter().all(|byte| *byte == 0).then_some(value);
    }
    let digits = std::str::from_utf8(trim(field)).ok()?.trim_matches(' ');
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}

/// The bytes before the first NUL.
fn trim(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// What is not UTF-8 is no name of a version's file and will be refused as such.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kind_text(kind: u8) -> String {
    let what = match kind {
        b'1' => "is a hard link",
        b'2' => "is a symbolic link",
        b'3' | b'4' => "is a device",
        b'6' => "is a pipe",
        b'S' => "is a sparse file",
        _ => "is of a kind that a version cannot hold",
    };
    format!("{what}: only regular files are taken")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in entries {
            bytes.extend(file_head(name, content.len() as u64));
            bytes.extend(*content);
            bytes.resize(bytes.len() + padding(content.len() as u64), 0);
        }
        bytes.resize(bytes.len() + 2 * RECORD_BYTES, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, String> {
        let mut reader = TarReader::new(bytes);
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
            let mut content = Vec::new();
            let mut buffer = [0; 100];
            loop {
                match reader.read(&mut buffer).map_err(|error| error.to_string())? {
                    0 => break,
                    count => content.extend(&buffer[..count]),
                }
            }
            found.push((entry, content));
        }
        Ok(found)
    }

    #[test]
    fn numbers_are_read_in_both_forms() {
        let check = |field: &[u8], expected| assert_eq!(number(field), expected, "{field:?}");
        check(b"00000000017\0", Some(15));
        check(b"      17 \0\0\0", Some(15));
        check(b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(2 << 32));
        check(b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None);
        check(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None);
        check(b"0000000001+\0", None);
        check(b"-0000000001\0", None);
        check(b"\0\0\0\0\0\0\0\0\0\0\0\0", None);
    }

    #[test]
    fn large_sizes_are_written_as_they_are_read() {
        for bytes in [0, 1, MAX_OCTAL, MAX_OCTAL + 1, u64::MAX] {
            let head = Head { name: "a".to_owned(), bytes, kind: b'0' };
            assert_eq!(Head::parse(&head.write()), Ok(head));
        }
    }

    /// A name may have 64 KiB, each byte of which takes eight characters where it is quoted.
    #[test]
    fn errors_show_no_more_of_a_name_than_a_line() {
        let name = "\u{1}".repeat(60_000);
        let error = TarReader::new(&b""[..])
            .refuse(&Entry { name, bytes: 0, is_folder: false }, "is odd".to_owned());
        assert!(error.to_string().len() < 2000, "{error}");
    }

    #[test]
    fn sizes_that_overflow_are_cut_short_and_no_more() {
        let error = read(&file_head("a", u64::MAX)).unwrap_err();
        assert!(error.contains("cut short"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            entries in prop::collection::vec(
                ("[a-z/]{1,300}", prop::collection::vec(any::<u8>(), 0..1500)), 0..5),
        ) {
            let written: Vec<_> = entries.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
            let found = read(&archive(&written)).unwrap();
            let found: Vec<_> =
                found.iter().map(|(e, c)| (e.name.as_str(), c.as_slice())).collect();
            prop_assert_eq!(found, written);
        }

        #[test]
        fn changed_archives_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            end in any::<prop::sample::Index>(),
        ) {
            let name = "n".repeat(150);
            let mut bytes = archive(&[("manifest.json", b"{}"), (&name, &[7; 700]), ("c", b"")]);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
                // Get past the checksum, or nothing but it would be tested.
                let start = at / RECORD_BYTES * RECORD_BYTES;
                let record: &mut [u8; RECORD_BYTES] =
                    (&mut bytes[start..start + RECORD_BYTES]).try_into().unwrap();
                if &record[field::MAGIC] == USTAR {
                    let sum = format!("{:06o}\0 ", checksum(record));
                    record[field::CHECKSUM].copy_from_slice(sum.as_bytes());
                }
            }
            let length = bytes.len();
            if let Ok(found) = read(&bytes[..=end.index(length)]) {
                let sum: usize = found.iter().map(|(_, content)| content.len()).sum();
                prop_assert!(sum <= length);
            }
        }
    }
}
