//! A tensor of the Open Inference Protocol in a body: its elements in the JSON as `data`, or
//! behind the JSON as binary data (`binary_data_size`, as Triton's binary tensor data extension
//! has it: little-endian, row-major, without padding, in the order of the tensors).
//!
//! A tensor's `data` is scanned twice, first past and then into, so that it may come before
//! `datatype`.

use super::json::{JsonError, Scanner};
use super::quote::quote;
use super::tensor_json::{self, DataError, MAX_RANK, Nulls};
use crate::store::Dtype;
use crate::stream::OverBudget;
use crate::wire::Array;
use serde::Serialize;
use thiserror::Error;

/// Most tensors of a request, and most outputs it may name.
pub const MAX_TENSORS: usize = 256;

/// Tensors by name, in the order of the body.
pub type Tensors = Vec<(String, Array)>;

/// What a request's tensors may weigh: asked with the total of bytes before each is read.
pub type Reserve<'a> = dyn FnMut(u64) -> Result<(), OverBudget> + 'a;

/// A body that is no `infer` request.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Not JSON, or JSON of another shape.
    #[error("the request body is not an infer request: {0}")]
    Json(#[from] JsonError),
    /// A field that is missing or wrong.
    #[error("{0}")]
    Field(String),
    /// Tensors that the budget cannot hold.
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
}

/// An error about a field.
pub fn field(what: impl Into<String>) -> RequestError {
    RequestError::Field(what.into())
}

/// Reads an array of tensors and takes what of `binary` is theirs.
pub struct TensorReader<'a, 'r> {
    /// "input" or "output".
    pub kind: &'static str,
    /// What `null` is.
    pub nulls: Nulls,
    /// What is left of the binary data.
    pub binary: &'a [u8],
    /// The last tensor that took some.
    pub last_binary: Option<String>,
    /// Asked before memory is taken.
    pub reserve: &'r mut Reserve<'r>,
}

impl<'a> TensorReader<'a, '_> {
    /// Reads the array that `scanner` is at.
    pub fn read(&mut self, scanner: &mut Scanner<'a>) -> Result<Tensors, RequestError> {
        let kind = self.kind;
        let mut tensors: Tensors = Vec::new();
        let mut total_bytes = 0u64;
        scanner.array(|scanner, index| {
            if index == MAX_TENSORS {
                return Err(field(format!("more than {MAX_TENSORS} {kind}s")));
            }
            let header = TensorHeader::read(scanner, kind, index)?;
            if tensors.iter().any(|(name, _)| *name == header.name) {
                return Err(field(format!("{kind} {} is given twice", quote(&header.name))));
            }
            tensors.push(self.values(header, &mut total_bytes)?);
            Ok(())
        })?;
        Ok(tensors)
    }

    /// Checks that all of the binary data was some tensor's.
    pub fn end(&self) -> Result<(), RequestError> {
        let (kind, left) = (self.kind, self.binary.len());
        match &self.last_binary {
            _ if left == 0 => Ok(()),
            Some(name) => Err(field(format!(
                "{kind} {}: {left} bytes of the body are left after its binary data",
                quote(name)
            ))),
            None => Err(field(format!(
                "{left} bytes follow the JSON, and no {kind} has a \"binary_data_size\""
            ))),
        }
    }

    fn values(
        &mut self,
        header: TensorHeader<'a>,
        total_bytes: &mut u64,
    ) -> Result<(String, Array), RequestError> {
        let TensorHeader { name, dtype, shape, data } = header;
        let kind = self.kind;
        let wrong = |what: String| field(format!("{kind} {}: {what}", quote(&name)));
        let count = tensor_json::element_count(&shape)
            .ok_or_else(|| wrong(format!("shape {shape:?} has more elements than 2^64")))?;
        let bytes = match data {
            Data::Json(text) => {
                // What cannot be in the text is not asked of the budget; parse() will say that it
                // lacks.
                let elements = count.min(text.len() / 2 + 1) as u64;
                *total_bytes = total_bytes.saturating_add(elements * dtype.size() as u64);
                (self.reserve)(*total_bytes)?;
                tensor_json::parse(text, dtype, &shape, count, self.nulls).map_err(|e| match e {
                    DataError::Json(e) => wrong(format!("in data, {e}")),
                    e => wrong(e.to_string()),
                })?
            }
            Data::Binary(size) => {
                let left = self.binary.len();
                let Some((bytes, rest)) = self.binary.split_at_checked(size) else {
                    return Err(wrong(format!(
                        "binary_data_size is {size}, and {left} bytes of the body are left for it \
                         (Inference-Header-Content-Length says where binary data begins)"
                    )));
                };
                *total_bytes = total_bytes.saturating_add(size as u64);
                (self.reserve)(*total_bytes)?;
                self.binary = rest;
                self.last_binary = Some(name.clone());
                bytes.to_vec()
            }
        };
        let array = Array::new(dtype, shape, bytes).map_err(|e| wrong(e.to_string()))?;
        Ok((name, array))
    }
}

/// A tensor whose elements are not read yet.
struct TensorHeader<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Data<'a>,
}

/// Where the elements are.
enum Data<'a> {
    Json(&'a [u8]),
    Binary(usize),
}

impl<'a> TensorHeader<'a> {
    fn read(
        scanner: &mut Scanner<'a>,
        kind: &str,
        index: usize,
    ) -> Result<TensorHeader<'a>, RequestError> {
        let (mut name, mut datatype, mut shape) = (None, None, None);
        let (mut data, mut binary) = (None, None);
        scanner.object(|scanner, key| -> Result<(), RequestError> {
            let is_second = match key {
                "name" => name.is_some(),
                "datatype" => datatype.is_some(),
                "shape" => shape.is_some(),
                "data" => data.is_some(),
                _ => false,
            };
            if is_second {
                return Err(field(format!("{kind}s[{index}]: \"{key}\" is given twice")));
            }
            match key {
                "name" => name = Some(scanner.string()?.into_owned()),
                "datatype" => datatype = Some(scanner.string()?),
                "shape" => shape = Some(scanner.skip()?),
                "data" => data = Some(scanner.skip()?),
                "parameters" => parameters(scanner, |scanner, key| {
                    let value = scanner.skip()?;
                    if key == "binary_data_size" {
                        binary = Some(value);
                    }
                    Ok(())
                })?,
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| field(format!("{kind}s[{index}]: \"name\" is missing")))?;
        let wrong = |what: &str| field(format!("{kind} {}: {what}", quote(&name)));
        let datatype = datatype.ok_or_else(|| wrong("\"datatype\" is missing"))?;
        let dtype = parse_dtype(&datatype).map_err(|what| wrong(&what))?;
        let shape = shape.ok_or_else(|| wrong("\"shape\" is missing"))?;
        let shape = parse_shape(shape).map_err(|what| wrong(&what))?;
        let data = match (data, binary) {
            (Some(text), None) => Data::Json(text),
            (None, Some(size)) => Data::Binary(parse_size(size).map_err(|what| wrong(&what))?),
            (Some(_), Some(_)) => {
                return Err(wrong("has both \"data\" and \"binary_data_size\": send one"));
            }
            (None, None) => return Err(wrong("\"data\" is missing")),
        };
        Ok(TensorHeader { name, dtype, shape, data })
    }
}

/// Reads an object of parameters, or `null`; `member` must consume each value.
pub fn parameters<'a>(
    scanner: &mut Scanner<'a>,
    member: impl FnMut(&mut Scanner<'a>, &str) -> Result<(), RequestError>,
) -> Result<(), RequestError> {
    match scanner.peek() {
        Some(b'n') => Ok(scanner.literal().map(|_| ())?),
        _ => scanner.object(member),
    }
}

/// Reads a parameter that is a whole number and not negative.
pub fn parse_number(name: &str, text: &[u8]) -> Result<u64, String> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        let text = String::from_utf8_lossy(&text[..text.len().min(40)]);
        format!("{name} {text} is not a whole number from 0 on")
    })
}

fn parse_size(text: &[u8]) -> Result<usize, String> {
    let size = parse_number("binary_data_size", text)?;
    usize::try_from(size).map_err(|_| format!("binary_data_size {size} is too large"))
}

fn parse_dtype(name: &str) -> Result<Dtype, String> {
    if let Some(dtype) = Dtype::ALL.into_iter().find(|dtype| dtype.name() == name) {
        return Ok(dtype);
    }
    if name == "BYTES" {
        return Err("datatype BYTES (strings) is not supported: no model here takes it".to_owned());
    }
    let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
    Err(format!("unknown datatype {}; expected one of {}", quote(name), known.join(", ")))
}

fn parse_shape(text: &[u8]) -> Result<Vec<usize>, String> {
    let mut shape = Vec::new();
    let read = Scanner::new(text).array(|scanner, index| -> Result<(), JsonError> {
        if index == MAX_RANK {
            return Err(scanner.error("too many dimensions"));
        }
        let size = scanner.number()?.parse();
        shape.push(size.map_err(|_| scanner.error("not a size"))?);
        Ok(())
    });
    read.map(|()| shape).map_err(|_| {
        let text = String::from_utf8_lossy(&text[..text.len().min(60)]);
        format!("shape {text} is not an array of at most {MAX_RANK} sizes")
    })
}

/// Appends a value as JSON.
pub fn put(text: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(text, value).expect("a vector takes every write");
}

/// Appends a tensor's object up to and with its shape.
pub fn put_head(text: &mut Vec<u8>, name: &str, dtype: Dtype, shape: &[usize]) {
    text.extend(b"{\"name\":");
    put(text, &name);
    text.extend(format!(",\"datatype\":\"{dtype}\",\"shape\":").bytes());
    put(text, &shape);
}

/// Appends the rest of the object of a tensor whose elements are binary data.
pub fn put_binary(text: &mut Vec<u8>, size: usize) {
    text.extend(format!(",\"parameters\":{{\"binary_data_size\":{size}}}}}").bytes());
}
