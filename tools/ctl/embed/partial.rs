//! Vectors on their way to a file: beside it under another name, with a note of what they are of and
//! how far they go, until all are there.
//!
//! The note is replaced whole once what it tells of is on the disk, so that whatever ends the
//! program leaves a file to go on with: what was written after the note is cut off.

use super::ask::{Options, Served};
use super::interrupt;
use super::lines::{Format, Place};
use crate::client::ClientError;
use crate::npy;
use hermes_base::store::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What vectors are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Rows of f32 behind a header.
    Npy,
    /// An object a line.
    Jsonl,
}

/// What a file's vectors are of: those of another order are never put beside them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub served: Served,
    pub options: Options,
    pub lines: Format,
}

impl Order {
    fn difference(&self, now: &Order) -> Option<String> {
        let text = |options: &Options| serde_json::to_string(options).unwrap_or_default();
        let (then, new) = (text(&self.options), text(&now.options));
        let options = (then != new).then(|| format!("the options were {then}, now they are {new}"));
        let lines = (self.lines != now.lines)
            .then(|| format!("--lines was {:?}, now it is {:?}", self.lines, now.lines));
        self.served.difference(&now.served).or(options).or(lines)
    }
}

/// How far a file is.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    order: Order,
    /// What of the input is done.
    input: Place,
    /// Lines of it that have no vector.
    without_vector: u64,
    /// Bytes of the partial file.
    bytes: u64,
    /// Values of a vector, once there is one.
    width: Option<usize>,
}

/// What came of a line.
#[derive(Debug)]
pub struct Row {
    pub line: u64,
    pub id: Option<Value>,
    pub vector: Result<Vec<f32>, String>,
}

/// A row of a .jsonl file.
#[derive(Serialize)]
struct Object<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// A file that is being written; nobody else writes it meanwhile.
pub struct Partial {
    /// Where it will be.
    path: PathBuf,
    /// Where it is.
    partial: PathBuf,
    note_path: PathBuf,
    file: File,
    kind: Kind,
    note: Note,
}

impl Partial {
    /// Begins a file, or goes on with what an interrupted run left.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`]: for a name of neither kind, a file that cannot be written or is being
    /// written, and where what was left is of another order.
    pub fn begin(path: &Path, order: Order) -> Result<Partial, ClientError> {
        let kind = match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Kind::Npy,
            Some("jsonl" | "ndjson") => Kind::Jsonl,
            _ => {
                let what = "vectors are written as .npy or .jsonl";
                return Err(ClientError::Usage(format!("{}: {what}", path.display())));
            }
        };
        if path.is_dir() {
            return Err(ClientError::Usage(format!("{}: is a folder", path.display())));
        }
        let (partial, note_path) = (beside(path, ".partial"), beside(path, ".partial.json"));
        let file = lock(&partial)?;
        let note = Note { order, input: Place::START, without_vector: 0, bytes: 0, width: None };
        let mut begun = Partial { path: path.to_owned(), partial, note_path, file, kind, note };
        begun.go_on()?;
        Ok(begun)
    }

    /// Takes the place that the note tells of, or the beginning where there is none.
    fn go_on(&mut self) -> Result<(), ClientError> {
        let length = self.file.metadata().map_err(|error| self.failed(&error))?.len();
        let text = match fs::read(&self.note_path) {
            // A note without its file is of one that took its name.
            Ok(text) if length > 0 => text,
            Ok(_) => return self.start(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.start(),
            Err(error) => return Err(self.other(&format!("its note cannot be read: {error}"))),
        };
        let note: Note = serde_json::from_slice(&text)
            .map_err(|error| self.other(&format!("its note cannot be read: {error}")))?;
        if let Some(difference) = note.order.difference(&self.note.order) {
            return Err(self.other(&difference));
        }
        if length < note.bytes {
            let bytes = note.bytes;
            return Err(self.other(&format!("it has {length} bytes; its note says {bytes}")));
        }
        self.note = note;
        self.cut(self.note.bytes)
    }

    fn start(&mut self) -> Result<(), ClientError> {
        self.cut(0)?;
        let header = match self.kind {
            Kind::Npy => vec![0; npy::HEADER_BYTES],
            Kind::Jsonl => vec![],
        };
        self.write(&header)
    }

    fn cut(&mut self, bytes: u64) -> Result<(), ClientError> {
        self.note.bytes = bytes;
        let cut = self.file.set_len(bytes).and_then(|()| self.file.seek(SeekFrom::Start(bytes)));
        cut.map(drop).map_err(|error| self.failed(&error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))?;
        self.note.bytes += bytes.len() as u64;
        Ok(())
    }

    /// What of the input is done.
    pub fn input(&self) -> Place {
        self.note.input
    }

    /// Lines of it that have no vector.
    pub fn without_vector(&self) -> u64 {
        self.note.without_vector
    }

    /// Where it is, and how to be rid of it: for who has read that it is of something else.
    pub fn other(&self, what: &str) -> ClientError {
        let (partial, note) = (self.partial.display(), self.note_path.display());
        let advice = format!("to begin anew, remove it and {note}");
        ClientError::Usage(format!("{partial} cannot be gone on with: {what}; {advice}"))
    }

    /// Ends an interrupted run: says where to go on, or leaves nothing where nothing is done.
    pub fn leave(self) {
        interrupt::tell(&self.partial, self.note.input.lines);
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.partial
    }

    /// What the rows that come are of, which must be what the others are of.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`] with what differs.
    pub fn check(&mut self, now: Served) -> Result<(), ClientError> {
        if let Some(difference) = self.note.order.served.difference(&now) {
            return Err(self.other(&difference));
        }
        let variant = &mut self.note.order.served.variant;
        *variant = now.variant.or(variant.take());
        Ok(())
    }

    /// Adds what came of the lines before `input`, on the disk.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: where it cannot be written, or vectors differ in length.
    pub fn append(&mut self, rows: &[Row], input: Place) -> Result<(), ClientError> {
        for vector in rows.iter().filter_map(|row| row.vector.as_ref().ok()) {
            let width = *self.note.width.get_or_insert(vector.len());
            if width != vector.len() {
                let message = format!("vectors have {width} values, then {}", vector.len());
                return Err(ClientError::Broken(message));
            }
        }
        match self.kind {
            Kind::Npy => self.append_values(rows, input.lines)?,
            Kind::Jsonl => self.append_objects(rows)?,
        }
        self.file.sync_data().map_err(|error| self.failed(&error))?;
        self.note.input = input;
        self.note.without_vector += rows.iter().filter(|row| row.vector.is_err()).count() as u64;
        let text = serde_json::to_vec(&self.note).expect("a note is JSON");
        let new = beside(&self.path, ".partial.new");
        let noted = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.note_path));
        noted.map_err(|error| failed(&self.note_path, &error))
    }

    /// Lines that come before the first vector have no row yet: nobody knows how long one is.
    fn append_values(&mut self, rows: &[Row], lines: u64) -> Result<(), ClientError> {
        let Some(width) = self.note.width else { return Ok(()) };
        let row_bytes = (width * size_of::<f32>()) as u64;
        let written = (self.note.bytes - npy::HEADER_BYTES as u64) / row_bytes.max(1);
        let missing = lines - rows.len() as u64 - written;
        let nothing = vec![f32::NAN; width];
        let mut file = BufWriter::new(&self.file);
        let mut put = |values: &[f32]| {
            values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
        };
        (0..missing)
            .try_for_each(|_| put(&nothing))
            .and_then(|()| {
                let mut values = |row: &Row| put(row.vector.as_ref().unwrap_or(&nothing));
                rows.iter().try_for_each(&mut values)
            })
            .and_then(|()| file.flush())
            .map_err(|error| self.failed(&error))?;
        self.note.bytes += (missing + rows.len() as u64) * row_bytes;
        Ok(())
    }

    fn append_objects(&mut self, rows: &[Row]) -> Result<(), ClientError> {
        let mut text = Vec::new();
        for Row { line, id, vector } in rows {
            let object = Object {
                id: id.as_ref(),
                line: *line,
                embedding: vector.as_deref().ok(),
                error: vector.as_ref().err().map(String::as_str),
            };
            serde_json::to_writer(&mut text, &object).expect("a vector takes every write");
            text.push(b'\n');
        }
        self.write(&text)
    }

    /// Gives the file its name.
    ///
    /// # Errors
    ///
    /// [`ClientError::Usage`] where that cannot be done.
    pub fn finish(mut self) -> Result<(), ClientError> {
        if self.kind == Kind::Npy {
            let width = self.note.width.unwrap_or(0) as u64;
            let header = npy::header(Dtype::Fp32, &[self.note.input.lines, width]);
            let written = self.file.rewind().and_then(|()| self.file.write_all(&header));
            written.map_err(|error| self.failed(&error))?;
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.partial, &self.path))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(|error| failed(&self.path, &error))?;
        match fs::remove_file(&self.note_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(&self.note_path, &error))
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, error: &io::Error) -> ClientError {
        failed(&self.partial, error)
    }
}

fn failed(path: &Path, error: &io::Error) -> ClientError {
    ClientError::Usage(format!("{}: {error}", path.display()))
}

/// The path with more at its end.
fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    name.into()
}

/// Opens a file that no other run writes.
fn lock(path: &Path) -> Result<File, ClientError> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.map_err(|error| failed(path, &error))?;
    let taken = |path: &Path| {
        ClientError::Usage(format!("{}: another hermesctl writes it", path.display()))
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(taken(path)),
        Err(TryLockError::Error(error)) => return Err(failed(path, &error)),
    }
    // The other may have given it its name between our opening and our locking.
    let is_here = || -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let (here, there) = (file.metadata()?, fs::metadata(path)?);
        Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
    };
    match is_here() {
        Ok(true) => Ok(file),
        _ => Err(taken(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(version: &str) -> Order {
        let (model, version) = ("m".to_owned(), version.to_owned());
        let served = Served { model, version, created_s: 7, variant: None };
        Order { served, options: Options::default(), lines: Format::Text }
    }

    fn row(line: u64, vector: &[f32]) -> Row {
        Row { line, id: None, vector: Ok(vector.to_vec()) }
    }

    fn without(line: u64) -> Row {
        Row { line, id: Some(Value::from("x")), vector: Err("is empty".to_owned()) }
    }

    fn after(lines: u64) -> Place {
        Place { lines, ..Place::START }
    }

    fn values(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn rows_stand_where_their_lines_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        let mut partial = Partial::begin(&path, order("1")).unwrap();
        partial.append(&[without(1)], after(1)).unwrap();
        partial.append(&[without(2), row(3, &[1.0, 2.0]), without(4)], after(4)).unwrap();
        partial.append(&[without(5)], after(5)).unwrap();
        assert!(partial.append(&[row(6, &[1.0])], after(6)).is_err(), "a shorter vector");
        assert_eq!(partial.without_vector(), 4);
        partial.finish().unwrap();
        let written = fs::read(&path).unwrap();
        assert_eq!(written[..128], npy::header(Dtype::Fp32, &[5, 2]));
        let values = values(&written[128..]);
        assert_eq!((values.len(), &values[4..6]), (10, &[1.0, 2.0][..]));
        assert!(values[..4].iter().chain(&values[6..]).all(|value| value.is_nan()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn no_vectors_have_no_width() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        let mut partial = Partial::begin(&path, order("1")).unwrap();
        partial.append(&[without(1)], after(1)).unwrap();
        partial.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), npy::header(Dtype::Fp32, &[1, 0]));
    }

    #[test]
    fn what_was_left_is_gone_on_with() {
        for name in ["v.npy", "v.jsonl"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            let mut partial = Partial::begin(&path, order("1")).unwrap();
            partial.append(&[row(1, &[1.0, 2.0]), without(2)], after(2)).unwrap();
            // Killed while it wrote more.
            partial.write(b"half a r").unwrap();
            drop(partial);
            let mut partial = Partial::begin(&path, order("1")).unwrap();
            assert_eq!((partial.input(), partial.without_vector()), (after(2), 1));
            partial.append(&[row(3, &[3.0, 4.0])], after(3)).unwrap();
            partial.finish().unwrap();
            let written = fs::read(&path).unwrap();
            match name {
                "v.npy" => {
                    let values = values(&written[128..]);
                    assert_eq!((&values[..2], &values[4..]), (&[1.0, 2.0][..], &[3.0, 4.0][..]));
                }
                _ => {
                    let expected = "{\"line\":1,\"embedding\":[1.0,2.0]}\n\
                                    {\"id\":\"x\",\"line\":2,\"error\":\"is empty\"}\n\
                                    {\"line\":3,\"embedding\":[3.0,4.0]}\n";
                    assert_eq!(String::from_utf8(written).unwrap(), expected);
                }
            }
            // A note that was left over is of the file that has its name by now.
            fs::write(beside(&path, ".partial.json"), "{}").unwrap();
            assert_eq!(Partial::begin(&path, order("2")).unwrap().input(), Place::START);
        }
    }

    #[test]
    fn nothing_is_mixed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        let refused = |order: Order| match Partial::begin(&path, order) {
            Err(ClientError::Usage(message)) => message,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it is gone on with"),
        };
        let mut partial = Partial::begin(&path, order("1")).unwrap();
        partial.append(&[row(1, &[1.0])], after(1)).unwrap();
        assert!(refused(order("1")).contains("another hermesctl writes it"));
        let served = |variant: &str| Served { variant: Some(variant.into()), ..order("1").served };
        partial.check(served("q8")).unwrap();
        assert!(partial.check(served("f32")).is_err());
        partial.append(&[row(2, &[1.0])], after(2)).unwrap();
        drop(partial);

        assert!(refused(order("2")).contains("was 1, now it is 2"));
        let options = Options { dimensions: Some(3), ..Options::default() };
        assert!(
            refused(Order { options, ..order("1") }).contains("now they are {\"dimensions\":3}")
        );
        let json = Order { lines: Format::Json, ..order("1") };
        assert!(refused(json).contains("--lines was Text"));
        let f32 = Order { served: served("f32"), ..order("1") };
        assert!(refused(f32).contains("the variant was q8"));
        assert_eq!(Partial::begin(&path, order("1")).unwrap().input(), after(2));
        let file = File::options().write(true).open(beside(&path, ".partial")).unwrap();
        file.set_len(130).unwrap();
        assert!(refused(order("1")).contains("it has 130 bytes; its note says 136"));
        fs::write(beside(&path, ".partial.json"), "{").unwrap();
        assert!(refused(order("1")).contains("note cannot be read"));
    }
}
