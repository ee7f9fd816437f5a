//! Inputs as NumPy saved them: one array for each of the model's inputs.

use super::MOST_INPUTS;
use super::npz::{self, Stored};
use super::texts::keywords;
use crate::shard::error::{ShardError, ensure, unfit};
use crate::shard::inputs::spread;
use crate::store::manifest::{Dim, Manifest, Port};
use crate::wire::Array;
use crate::wire::npy::NpyHeader;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of all that are read, unless [`MOST_INPUTS`] take more.
const ALL_BYTES: usize = 32 << 20;

/// Where in a file the arrays of one input lie, one behind the other.
struct Column {
    dtype: crate::store::Dtype,
    /// Of each.
    shape: Vec<usize>,
    /// How many there are, and the first byte of the first.
    count: usize,
    offset: u64,
}

/// A pass for each of at most `most` rows of the arrays, spread over all; of large ones no more than
/// encoders are told of.
///
/// # Errors
/// What is no such file, or does not fit the model, by the input's name.
pub fn read(path: &Path, manifest: &Manifest, most: usize) -> Result<Vec<Vec<Array>>, ShardError> {
    let told = || ShardError::io(format!("read {}", path.display()));
    let mut file = File::open(path).map_err(ShardError::io(format!("open {}", path.display())))?;
    let wrong = |what: String| unfit!("{}: {what}", path.display());
    let mut start = [0; 6];
    let is_npy = file.read_exact(&mut start).is_ok() && start == *b"\x93NUMPY";
    let names: Vec<&str> = manifest.inputs.iter().map(|port| port.name.as_str()).collect();
    let stored = match is_npy {
        true => {
            let length = file.metadata().map_err(told())?.len();
            let [name] = names[..] else {
                let advice = format!("save all: numpy.savez(FILE, {})", keywords(&names));
                let count = names.len();
                return Err(wrong(format!(
                    "one array, and the model has {count} inputs\n{advice}"
                )));
            };
            vec![Stored { name: name.to_owned(), offset: 0, bytes: length }]
        }
        false => npz::entries(&mut file).map_err(wrong)?,
    };
    if let Some(stranger) = stored.iter().find(|stored| !names.contains(&stored.name.as_str())) {
        let (name, known) = (&stranger.name, names.join(", "));
        return Err(wrong(format!("the model has no input \"{name}\"\nit has {known}")));
    }
    let mut columns = vec![];
    for port in &manifest.inputs {
        let Some(entry) = stored.iter().find(|stored| stored.name == port.name) else {
            let advice = format!("numpy.savez(FILE, {})", keywords(&names));
            return Err(wrong(format!("input \"{}\" is missing\nsave all: {advice}", port.name)));
        };
        columns.push(Column::of(port, entry, &mut file).map_err(wrong)?);
    }
    let counts: Vec<usize> = columns.iter().map(|column| column.count).collect();
    let Some(count) = counts.first().copied() else { return Ok(vec![]) };
    if let Some(other) = counts.iter().position(|other| *other != count) {
        return Err(wrong(format!(
            "there are {count} of \"{}\" and {} of \"{}\"",
            names[0], counts[other], names[other]
        )));
    }
    let bytes: usize = columns.iter().map(Column::array_bytes).sum();
    let most = (ALL_BYTES / bytes.max(1)).max(MOST_INPUTS).min(most);
    let mut passes = vec![];
    for index in spread(count, most) {
        let arrays = columns.iter().map(|column| column.read(&mut file, index).map_err(wrong));
        passes.push(arrays.collect::<Result<_, _>>()?);
    }
    ensure!(!names.is_empty(), "the model has no inputs: nothing can be learnt of any");
    Ok(passes)
}

impl Column {
    /// Holds an array to the input that it is for: of its shape, or with several of them along the
    /// first axis, where that has a length of 1, or along one more.
    fn of(port: &Port, entry: &Stored, file: &mut File) -> Result<Column, String> {
        let Port { name, dtype, .. } = port;
        let told = |what: String| format!("\"{name}\": {what}");
        file.seek(SeekFrom::Start(entry.offset)).map_err(|error| told(error.to_string()))?;
        let mut reader = file.take(entry.bytes);
        let header = NpyHeader::read(&mut reader).map_err(|error| told(error.to_string()))?;
        let header_bytes = entry.bytes - reader.limit();
        let value_bytes = header.value_bytes().map_err(|error| told(error.to_string()))?;
        if value_bytes != entry.bytes - header_bytes {
            let held = entry.bytes - header_bytes;
            return Err(told(format!("holds {held} bytes of data; its header says {value_bytes}")));
        }
        if header.dtype != *dtype {
            let found = header.dtype;
            return Err(told(format!(
                "it is {found}, the model takes {dtype}\nsave x.astype(...)"
            )));
        }
        let fits = |shape: &[usize]| {
            shape.len() == port.shape.len()
                && shape.iter().zip(&port.shape).all(|(size, dim)| match dim {
                    Dim::Fixed(fixed) => *size as u64 == *fixed,
                    Dim::Symbol(_) => *size > 0,
                })
        };
        let (count, shape) = match header.shape.split_first() {
            Some((count, rest)) if fits(rest) => (*count, rest.to_vec()),
            Some((count, rest)) if port.shape.first() == Some(&Dim::Fixed(1)) => {
                (*count, [&[1], rest].concat())
            }
            _ => (1, header.shape.clone()),
        };
        if !fits(&shape) {
            let wanted: Vec<String> = port.shape.iter().map(dim_name).collect();
            return Err(told(format!(
                "it has the shape {:?}, the model takes [{}], several of them along the first axis",
                header.shape,
                wanted.join(", ")
            )));
        }
        Ok(Column { dtype: *dtype, shape, count, offset: entry.offset + header_bytes })
    }

    fn array_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    fn read(&self, file: &mut File, index: usize) -> Result<Array, String> {
        let length = self.array_bytes();
        let mut bytes = vec![0; length];
        let place = self.offset + (index * length) as u64;
        let read = file.seek(SeekFrom::Start(place)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|error| error.to_string())?;
        Array::new(self.dtype, self.shape.clone(), bytes).map_err(|error| error.to_string())
    }
}

fn dim_name(dim: &Dim) -> String {
    match dim {
        Dim::Fixed(size) => size.to_string(),
        Dim::Symbol(name) => name.clone(),
    }
}
