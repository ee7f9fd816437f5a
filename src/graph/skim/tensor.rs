//! A tensor of an ONNX file: what it is, and where its elements lie.

use super::elements::{Elements, Location};
use super::wire::{Value, WireFile};
use super::{SkimError, field};
use crate::store::Dtype;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use tract_onnx::pb::TensorProto;

/// Most dimensions and entries that are taken of a tensor's small fields.
const DIMS_LIMIT: usize = 64;

/// A tensor's fields, as far as they decide where its elements lie.
#[derive(Default)]
pub struct TensorFields {
    pub name: String,
    pub dims: Vec<u64>,
    pub data_type: u64,
    raw: Option<Range<u64>>,
    /// Fields of numbers, by their number in onnx.proto3.
    typed: Vec<(u64, Range<u64>)>,
    external: Vec<(String, String)>,
    pub is_external: bool,
}

/// An element type of ONNX, as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ElementType {
    /// What an element is in a layer file; integers of a few bits become bytes.
    pub dtype: Dtype,
    pub bits: u32,
}

impl ElementType {
    /// That of a code in onnx.proto3's TensorProto.DataType; none where a layer file cannot hold it.
    pub fn of(code: u64) -> Option<ElementType> {
        let (dtype, bits) = match code {
            21 => (Dtype::Uint8, 4),
            22 => (Dtype::Int8, 4),
            25 => (Dtype::Uint8, 2),
            26 => (Dtype::Int8, 2),
            _ => {
                let dtype = dtype_of_onnx(code)?;
                (dtype, dtype.size() as u32 * 8)
            }
        };
        Some(ElementType { dtype, bits })
    }

    /// Elements that lie in `bytes` packed to its bits, seen as elements of its dtype.
    pub fn unpacked(self, bytes: Elements) -> Elements {
        match self.bits {
            bits @ ..8 => {
                let is_signed = self.dtype == Dtype::Int8;
                Elements::Packed { bytes: Box::new(bytes), bits, is_signed }
            }
            _ => bytes,
        }
    }
}

/// Element types of onnx.proto3's TensorProto.DataType that a layer file can hold.
fn dtype_of_onnx(code: u64) -> Option<Dtype> {
    Some(match code {
        1 => Dtype::Fp32,
        2 => Dtype::Uint8,
        3 => Dtype::Int8,
        4 => Dtype::Uint16,
        5 => Dtype::Int16,
        6 => Dtype::Int32,
        7 => Dtype::Int64,
        9 => Dtype::Bool,
        10 => Dtype::Fp16,
        11 => Dtype::Fp64,
        12 => Dtype::Uint32,
        13 => Dtype::Uint64,
        16 => Dtype::Bf16,
        _ => return None,
    })
}

/// The code of an element type in onnx.proto3's TensorProto.DataType, as the skeleton has it: tract
/// has no bf16, whose values f32 holds too.
pub fn onnx_of_dtype(dtype: Dtype) -> i32 {
    let codes = 1..=13;
    codes.into_iter().find(|code| dtype_of_onnx(*code) == Some(dtype)).map_or(1, |code| code as i32)
}

impl TensorFields {
    /// Reads the fields of the tensor that lies at `range`, but for its elements.
    pub fn read(wire: &WireFile, range: Range<u64>) -> Result<TensorFields, SkimError> {
        let mut tensor = TensorFields::default();
        let start = range.start;
        for part in wire.fields(range)? {
            match (part.number, part.value) {
                (field::TENSOR_DIMS, Value::Number(dim)) => tensor.dims.push(dim),
                (field::TENSOR_DIMS, Value::Bytes(range)) => {
                    tensor.dims.extend(wire.packed_numbers(range, DIMS_LIMIT)?);
                }
                (field::TENSOR_DATA_TYPE, Value::Number(code)) => tensor.data_type = code,
                (field::TENSOR_NAME, Value::Bytes(range)) => tensor.name = wire.text(range)?,
                (field::TENSOR_RAW_DATA, Value::Bytes(range)) => tensor.raw = Some(range),
                (field::TENSOR_DATA_LOCATION, Value::Number(place)) => {
                    tensor.is_external = place == 1;
                }
                (field::TENSOR_EXTERNAL_DATA, Value::Bytes(range)) => {
                    tensor.external.push(entry(wire, range)?);
                }
                (number, Value::Bytes(range)) if tensor.typed.len() < DIMS_LIMIT => {
                    tensor.typed.push((number, range));
                }
                _ => {}
            }
            if tensor.dims.len() > DIMS_LIMIT || tensor.external.len() > DIMS_LIMIT {
                return Err(wire.malformed(start, "a tensor of absurd rank".to_string()));
            }
        }
        Ok(tensor)
    }

    /// The fields of a parsed tensor whose elements are external.
    pub fn of_external(tensor: &TensorProto) -> TensorFields {
        let external = tensor.external_data.iter().take(DIMS_LIMIT);
        TensorFields {
            name: tensor.name.clone(),
            dims: tensor.dims.iter().map(|dim| dim.cast_unsigned()).collect(),
            data_type: u64::from(tensor.data_type.cast_unsigned()),
            external: external.map(|entry| (entry.key.clone(), entry.value.clone())).collect(),
            is_external: true,
            ..TensorFields::default()
        }
    }

    /// The same under the name of the node that makes it.
    pub fn called(self, name: String) -> TensorFields {
        TensorFields { name, ..self }
    }

    /// The field that holds its elements one by one.
    fn typed(&self) -> Option<&Range<u64>> {
        let number = typed_field(self.data_type)?;
        self.typed.iter().rfind(|(found, _)| *found == number).map(|(_, range)| range)
    }
}

/// The field of a tensor that holds elements of a type one by one.
fn typed_field(data_type: u64) -> Option<u64> {
    Some(match data_type {
        1 => field::TENSOR_FLOAT_DATA,
        7 => field::TENSOR_INT64_DATA,
        11 => field::TENSOR_DOUBLE_DATA,
        12 | 13 => field::TENSOR_UINT64_DATA,
        _ => {
            ElementType::of(data_type)?;
            field::TENSOR_INT32_DATA
        }
    })
}

fn entry(wire: &WireFile, range: Range<u64>) -> Result<(String, String), SkimError> {
    let mut entry = (String::new(), String::new());
    for part in wire.fields(range)? {
        match (part.number, part.value) {
            (field::ENTRY_KEY, Value::Bytes(range)) => entry.0 = wire.text(range)?,
            (field::ENTRY_VALUE, Value::Bytes(range)) => entry.1 = wire.text(range)?,
            _ => {}
        }
    }
    Ok(entry)
}

/// The model's file and the folder in which its external data lies.
pub struct Files {
    pub path: PathBuf,
    folder: PathBuf,
    /// Those of external data that were met.
    external: BTreeSet<PathBuf>,
}

impl Files {
    /// Those of the model at `path`.
    pub fn of(path: &Path) -> Files {
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Files { path: path.to_path_buf(), folder, external: BTreeSet::new() }
    }

    /// Bytes of the tensor's elements; 0 for an element type that stays inline.
    pub fn data_bytes(&self, tensor: &TensorFields) -> Result<u64, SkimError> {
        let Some(element) = ElementType::of(tensor.data_type) else { return Ok(0) };
        tensor
            .dims
            .iter()
            .try_fold(1u64, |count, dim| count.checked_mul(*dim))
            .and_then(|count| count.checked_mul(u64::from(element.bits)))
            .map(|bits| bits.div_ceil(8))
            .filter(|bytes| *bytes <= i64::MAX as u64)
            .ok_or_else(|| {
                let shape: Vec<i64> = tensor.dims.iter().map(|dim| dim.cast_signed()).collect();
                self.error(tensor, format!("shape {shape:?} is absurd"))
            })
    }

    /// Where the elements lie; none where there are none in the fields of their type.
    pub fn locate(
        &mut self,
        wire: &WireFile,
        tensor: &TensorFields,
        bytes: u64,
    ) -> Result<Option<Elements>, SkimError> {
        let Some(element) = ElementType::of(tensor.data_type) else { return Ok(None) };
        if tensor.is_external {
            return self.locate_external(tensor, bytes).map(Some);
        }
        let typed = tensor.typed();
        let is_plain = tensor.raw.is_some() || matches!(tensor.data_type, 1 | 11);
        let Some(range) = tensor.raw.as_ref().or(typed).cloned() else { return Ok(None) };
        let size = element.dtype.size() as u64;
        let found = match is_plain {
            true => range.end - range.start,
            false => wire.count_numbers(range.clone())?.saturating_mul(size),
        };
        if found != bytes {
            let what = format!("shape {:?} takes {bytes} bytes, the file has {found}", tensor.dims);
            return Err(self.error(tensor, what));
        }
        let location = Location {
            path: self.path.clone(),
            offset: range.start,
            bytes: range.end - range.start,
        };
        let stored = match is_plain {
            true => Elements::Plain(location),
            false => Elements::Varints(location, element.dtype),
        };
        Ok(Some(element.unpacked(stored)))
    }

    /// Where the elements lie in a file of their own, as the tensor says.
    pub fn locate_external(
        &mut self,
        tensor: &TensorFields,
        bytes: u64,
    ) -> Result<Elements, SkimError> {
        let location = self.external_location(tensor, bytes)?;
        self.external.insert(location.path.clone());
        let stored = Elements::Plain(location);
        Ok(match ElementType::of(tensor.data_type) {
            Some(element) => element.unpacked(stored),
            None => stored,
        })
    }

    fn external_location(&self, tensor: &TensorFields, bytes: u64) -> Result<Location, SkimError> {
        let value = |key: &str| tensor.external.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        let number = |key: &str| match value(key) {
            None => Ok(None),
            Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
                self.error(tensor, format!("external {key} \"{text}\" is not a number"))
            }),
        };
        let name = value("location")
            .ok_or_else(|| self.error(tensor, "external data has no location".into()))?;
        let Some(inner) = inside(name) else {
            let what = format!("external data \"{name}\" lies outside the model's folder");
            return Err(self.error(tensor, what));
        };
        let path = self.folder.join(inner);
        let (offset, found) = (number("offset")?.unwrap_or(0), number("length")?.unwrap_or(bytes));
        if found != bytes {
            let what = format!(
                "shape {:?} takes {bytes} bytes, its external data has {found}",
                tensor.dims
            );
            return Err(self.error(tensor, what));
        }
        let length = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => {
                let what = format!("external data \"{name}\" is not a file");
                return Err(self.error(tensor, what));
            }
            Err(error) => {
                let what = format!("external data \"{name}\": {error}");
                return Err(self.error(tensor, what));
            }
        };
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let is = if is_pointer(&path) {
                " and is a pointer of Git LFS in place of the file: fetch it by git lfs pull"
            } else {
                ""
            };
            let what = format!(
                "it takes {bytes} bytes at offset {offset} of \"{name}\", which has {length}{is}"
            );
            return Err(self.error(tensor, what));
        }
        Ok(Location { path, offset, bytes })
    }

    /// Reads elements that are few, as `dtype`.
    pub fn read(
        &self,
        elements: &Elements,
        dtype: Dtype,
        bytes: u64,
    ) -> Result<Vec<u8>, SkimError> {
        let mut data = vec![];
        let read = elements.read(dtype).and_then(|from| from.take(bytes).read_to_end(&mut data));
        read.map_err(|error| {
            let path = elements.locations().first().map_or(&self.path, |at| &at.path).clone();
            SkimError::Io { path, error }
        })?;
        Ok(data)
    }

    /// Bytes of the model, external data included.
    pub fn total_bytes(&self) -> u64 {
        let bytes = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        self.external.iter().chain([&self.path]).map(bytes).sum()
    }

    /// What is wrong with a tensor.
    pub fn error(&self, tensor: &TensorFields, what: String) -> SkimError {
        SkimError::Tensor { path: self.path.clone(), tensor: tensor.name.clone(), what }
    }
}

/// Whether a repository was copied without what Git LFS keeps elsewhere.
fn is_pointer(path: &Path) -> bool {
    const START: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut head = [0; START.len()];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut head, 0));
    read.is_ok() && head == START
}

/// The path within a folder that a name comes to; none where it leads out or names no file.
fn inside(name: &str) -> Option<PathBuf> {
    let mut inner = PathBuf::new();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => inner.push(part),
            Component::CurDir => {}
            Component::ParentDir if inner.pop() => {}
            _ => return None,
        }
    }
    let names_file = Path::new(name).file_name().is_some() && inner.file_name().is_some();
    names_file.then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_within_the_folder_may_go_up_in_it() {
        for name in ["w.bin", "./sub/../w.bin", "sub/../sub/./../w.bin"] {
            assert_eq!(inside(name), Some("w.bin".into()), "{name}");
        }
        for name in ["", ".", "/w.bin", "../w.bin", "sub/../../w.bin", "sub/..", "../sub/../w.bin"]
        {
            assert_eq!(inside(name), None, "{name}");
        }
    }
}
