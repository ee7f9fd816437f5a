//! The header of a safetensors file: a length, a JSON object, and bytes of tensors without a gap.

use super::file::open;
use super::{CheckpointError, Kind, Tensor};
use crate::wire::json::{JsonError, Scanner};
use crate::wire::quote::quote;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Limit of a header. A tensor takes some 150 bytes of it.
const MAX_HEADER_BYTES: u64 = 32 << 20;

/// Limit of a tensor's dimensions.
const MAX_DIMENSIONS: usize = 8;

/// Bytes of the header's length.
const LENGTH_BYTES: u64 = 8;

/// What the format calls kinds, and what they are.
const KINDS: [(&str, Kind); 21] = [
    ("F32", Kind::F32),
    ("F16", Kind::F16),
    ("BF16", Kind::Bf16),
    ("F64", other("F64", 1, 8)),
    ("I64", other("I64", 1, 8)),
    ("U64", other("U64", 1, 8)),
    ("I32", other("I32", 1, 4)),
    ("U32", other("U32", 1, 4)),
    ("I16", other("I16", 1, 2)),
    ("U16", other("U16", 1, 2)),
    ("I8", other("I8", 1, 1)),
    ("U8", other("U8", 1, 1)),
    ("BOOL", other("BOOL", 1, 1)),
    ("C64", other("C64", 1, 8)),
    ("F8_E4M3", other("F8_E4M3", 1, 1)),
    ("F8_E5M2", other("F8_E5M2", 1, 1)),
    ("F8_E8M0", other("F8_E8M0", 1, 1)),
    ("F6_E2M3", other("F6_E2M3", 4, 3)),
    ("F6_E3M2", other("F6_E3M2", 4, 3)),
    ("F4", other("F4", 2, 1)),
    ("F8_E4M3FNUZ", other("F8_E4M3FNUZ", 1, 1)),
];

const fn other(name: &'static str, values: u64, bytes: u64) -> Kind {
    Kind::Other { name, values, bytes }
}

/// Why a header is none.
enum HeaderError {
    Json(JsonError),
    Tensor { name: String, what: String },
}

impl From<JsonError> for HeaderError {
    fn from(error: JsonError) -> HeaderError {
        HeaderError::Json(error)
    }
}

/// Reads the tensors of the file at `path` by name.
///
/// # Errors
/// What is there is no safetensors file, or its tensors are not what its header says.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let (file, bytes) = open(path)?;
    let damaged = |what: String| CheckpointError::damaged(path, what);
    if bytes < LENGTH_BYTES {
        return Err(damaged(format!(
            "has {bytes} bytes, too short for a safetensors file, whose header's length takes \
             {LENGTH_BYTES}"
        )));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut length, 0).map_err(CheckpointError::io(path))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES.min(bytes - LENGTH_BYTES) {
        let is = match &length {
            b"version " => "a pointer of Git LFS in place of the file (git lfs pull fetches it)",
            [0x80, 2..=5, ..] => "a Python pickle under the name of a safetensors file",
            [b'P', b'K', 3, 4, ..] => "a PyTorch file (a zip archive), not safetensors",
            _ => "not a safetensors file, or one cut short",
        };
        return Err(damaged(format!(
            "{is}: its header's length would be {header_bytes} bytes, of {bytes} in all and \
             {MAX_HEADER_BYTES} at most"
        )));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact_at(&mut header, LENGTH_BYTES).map_err(CheckpointError::io(path))?;
    let tensors = parse(&header).map_err(|error| match error {
        HeaderError::Json(error) => damaged(format!("its header is no JSON of tensors: {error}")),
        HeaderError::Tensor { name, what } => CheckpointError::tensor(path, &name, what),
    })?;
    drop(header);
    let data = LENGTH_BYTES + header_bytes;
    check_places(path, &tensors, bytes - data)?;
    let file: Arc<Path> = path.into();
    let tensor = |(name, Entry { kind, shape, begin, end })| {
        let (offset, bytes) = (data + begin, end - begin);
        (name, Tensor { file: Arc::clone(&file), offset, bytes, kind, shape })
    };
    Ok(tensors.into_iter().map(tensor).collect())
}

/// What the header says of a tensor.
struct Entry {
    kind: Kind,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

fn parse(header: &[u8]) -> Result<BTreeMap<String, Entry>, HeaderError> {
    let mut tensors = BTreeMap::new();
    let mut scanner = Scanner::new(header);
    scanner.object(|scanner, name| {
        if name == "__metadata__" {
            scanner.skip()?;
            return Ok(());
        }
        let wrong = |what: String| HeaderError::Tensor { name: name.to_owned(), what };
        let entry = entry(scanner, &wrong)?;
        match tensors.insert(name.to_owned(), entry) {
            None => Ok(()),
            Some(_) => Err(wrong("it is in the header twice".to_owned())),
        }
    })?;
    scanner.end()?;
    Ok(tensors)
}

/// Reads and checks what is said of one tensor.
fn entry(
    scanner: &mut Scanner,
    wrong: &impl Fn(String) -> HeaderError,
) -> Result<Entry, HeaderError> {
    let (mut kind, mut shape, mut offsets) = (None, None, None);
    let mut is_double = false;
    scanner.object(|scanner, key| {
        match key {
            "dtype" => {
                let name = scanner.string()?;
                let known = KINDS.iter().find(|(known, _)| *known == name);
                let (_, found) =
                    known.ok_or_else(|| wrong(format!("its type {} is unknown", quote(&name))))?;
                is_double |= kind.replace(*found).is_some();
            }
            "shape" => is_double |= shape.replace(numbers(scanner, wrong, "shape")?).is_some(),
            "data_offsets" => {
                is_double |= offsets.replace(numbers(scanner, wrong, "data_offsets")?).is_some();
            }
            _ => {
                scanner.skip()?;
            }
        }
        Ok::<_, HeaderError>(())
    })?;
    if is_double {
        return Err(wrong("its type, shape or offsets are in the header twice".to_owned()));
    }
    let (Some(kind), Some(shape), Some(offsets)) = (kind, shape, offsets) else {
        return Err(wrong("it lacks a dtype, a shape or data_offsets".to_owned()));
    };
    let &[begin, end] = &offsets[..] else {
        return Err(wrong(format!("data_offsets are {offsets:?}, expected a begin and an end")));
    };
    let values = shape.iter().try_fold(1_u64, |all, dimension| all.checked_mul(*dimension));
    let needed = values.and_then(|values| kind.bytes_of(values));
    let name = kind.name();
    let needed = needed.ok_or_else(|| {
        wrong(format!("its shape {shape:?} of {name} is too large, or no whole bytes"))
    })?;
    match end.checked_sub(begin) {
        Some(bytes) if bytes == needed => Ok(Entry { kind, shape, begin, end }),
        Some(bytes) => Err(wrong(format!(
            "its shape {shape:?} of {name} takes {needed} bytes, its offsets {begin} to {end} hold \
             {bytes}"
        ))),
        None => Err(wrong(format!("its offsets end at {end}, before they begin at {begin}"))),
    }
}

/// An array of whole numbers of at most [`MAX_DIMENSIONS`].
fn numbers(
    scanner: &mut Scanner,
    wrong: &impl Fn(String) -> HeaderError,
    what: &str,
) -> Result<Vec<u64>, HeaderError> {
    let mut numbers = Vec::new();
    scanner.array(|scanner, index| {
        if index == MAX_DIMENSIONS {
            return Err(wrong(format!("its {what} has more than {MAX_DIMENSIONS} numbers")));
        }
        let text = scanner.number()?;
        let number = text.parse().map_err(|_| {
            wrong(format!("its {what} has {}, expected a whole number of 64 bits", quote(text)))
        })?;
        numbers.push(number);
        Ok(())
    })?;
    Ok(numbers)
}

/// Each tensor begins where the one before it ends, and the last one ends with the file.
fn check_places(
    path: &Path,
    tensors: &BTreeMap<String, Entry>,
    data_bytes: u64,
) -> Result<(), CheckpointError> {
    let mut places: Vec<_> =
        tensors.iter().map(|(name, entry)| (entry.begin, entry.end, name)).collect();
    places.sort_unstable();
    let (mut at, mut before) = (0, None::<&str>);
    for (begin, end, name) in places {
        let wrong = |what: String| Err(CheckpointError::tensor(path, name, what));
        let other = before.map_or("the beginning".to_owned(), quote);
        if end > data_bytes {
            return wrong(format!(
                "it ends at byte {end} of the data, of which the file has {data_bytes}"
            ));
        }
        if begin < at {
            return wrong(format!("it begins at byte {begin} of the data and overlaps {other}"));
        }
        if begin > at {
            return wrong(format!(
                "it begins at byte {begin} of the data, and nothing holds the bytes from {at} on, \
                 behind {other}"
            ));
        }
        (at, before) = (end, Some(name.as_str()));
    }
    match data_bytes - at {
        0 => Ok(()),
        left => {
            Err(CheckpointError::damaged(path, format!("{left} bytes at its end are no tensor's")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![7; data_bytes]].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, bytes).unwrap();
        read(&path)
    }

    const SOUND: &str = r#"{"__metadata__": {"format": "pt"},
        "\u0062": {"dtype": "BF16", "shape": [3], "data_offsets": [24, 30], "more": [{}]},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "none": {"dtype": "F16", "shape": [0, 4], "data_offsets": [24, 24]},
        "ids": {"dtype": "I64", "shape": [], "data_offsets": [30, 38]}}   "#;

    #[test]
    fn tensors_are_found_where_they_lie() {
        let tensors = read_bytes(&file(SOUND, 38)).unwrap();
        assert_eq!(tensors.keys().collect::<Vec<_>>(), ["a", "b", "ids", "none"]);
        let data = 8 + SOUND.len() as u64;
        let check = |name: &str, kind: Kind, shape: &[u64], offset: u64, bytes: u64| {
            let tensor = &tensors[name];
            let found = (tensor.kind, &tensor.shape[..], tensor.offset - data, tensor.bytes);
            assert_eq!(found, (kind, shape, offset, bytes), "{name}");
        };
        check("a", Kind::F32, &[2, 3], 0, 24);
        check("b", Kind::Bf16, &[3], 24, 6);
        check("none", Kind::F16, &[0, 4], 24, 0);
        check("ids", other("I64", 1, 8), &[], 30, 8);
    }

    #[test]
    fn what_a_header_cannot_say_is_refused() {
        let check = |header: &str, data_bytes: usize, expected: &str| {
            let error = read_bytes(&file(header, data_bytes)).unwrap_err().to_string();
            assert!(error.contains("model.safetensors: "), "{error}");
            assert!(error.contains(expected), "{error}: lacks {expected:?}");
        };
        let one = |fields: &str| format!("{{\"weight\": {{{fields}}}}}");
        let a = r#""a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}"#;
        let sound = r#""dtype": "F16", "shape": [2], "data_offsets": [0, 4]"#;
        check("{a}", 0, "its header is no JSON of tensors: byte 1: expected a string");
        check("[]", 0, "expected an object");
        check(&one(sound), 5, "1 bytes at its end are no tensor's");
        check(&one(sound), 3, "tensor \"weight\": it ends at byte 4 of the data, of which");
        check(&format!("{{{a}, {a}}}"), 4, "tensor \"a\": it is in the header twice");
        check(&format!("{{{a}, \"b\": {{{sound}}}}}"), 4, "tensor \"b\": it begins at byte 0");
        check(&format!("{{{a}, \"b\": {{{sound}}}}}"), 4, "overlaps \"a\"");
        let apart = r#""dtype": "U8", "shape": [2], "data_offsets": [6, 8]"#;
        check(&format!("{{{a}, \"b\": {{{apart}}}}}"), 8, "the bytes from 4 on, behind \"a\"");
        check(&one(&sound.replace("F16", "F12")), 4, "its type \"F12\" is unknown");
        check(&one(&sound.replace("[2]", "[3]")), 4, "takes 6 bytes, its offsets 0 to 4 hold 4");
        check(&one(&sound.replace("[2]", "[-2]")), 4, "its shape has \"-2\", expected a whole");
        check(&one(&sound.replace("[2]", "[8589934592, 8589934592]")), 4, "is too large");
        check(&one(&sound.replace("[2]", "[1,1,1,1,1,1,1,1,2]")), 4, "more than 8 numbers");
        check(&one(&sound.replace("[0, 4]", "[4, 0]")), 4, "end at 0, before they begin at 4");
        check(&one(&sound.replace("[0, 4]", "[4]")), 4, "expected a begin and an end");
        check(&one(r#""dtype": "F16""#), 4, "it lacks a dtype, a shape or data_offsets");
        check(&one(&format!("{sound}, \"dtype\": \"F16\"")), 4, "in the header twice");
        let deep = format!("{{\"__metadata__\": {}{}}}", "[".repeat(1000), "]".repeat(1000));
        check(&deep, 0, "nested too deeply");
    }

    #[test]
    fn what_is_no_such_file_is_told() {
        let check = |bytes: &[u8], expected: &str| {
            let error = read_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}: lacks {expected:?}");
        };
        check(b"", "has 0 bytes, too short");
        check(b"abcde", "has 5 bytes, too short");
        check(&file(SOUND, 38)[..100], "cut short: its header's length would be");
        check(&(1_u64 << 60).to_le_bytes(), "1152921504606846976 bytes, of 8 in all");
        check(b"\x80\x02}q\x00X\x05\x00\x00\x00abc", "a Python pickle");
        check(b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS");
        check(b"PK\x03\x04\x00\x00\x00\x00", "a PyTorch file");
    }

    proptest! {
        /// Whatever is cut or flipped, there is an error or a place within the file.
        #[test]
        fn damage_is_an_error(cut in 0_usize..400, at in 0_usize..400, flip in 1_u8..=255) {
            let sound = file(SOUND, 38);
            let mut bytes = sound[..cut.min(sound.len())].to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= flip;
            }
            for tensor in read_bytes(&bytes).into_iter().flatten().map(|(_, tensor)| tensor) {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
        }
    }
}
