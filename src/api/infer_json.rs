//! The bodies of the Open Inference Protocol's `infer` call: the request read, the reply written.
//!
//! A request's tensors are scanned twice, first past and then into, so that `data` may come
//! before `datatype`. A reply is written piece by piece as the client takes it.

use super::json::{JsonError, Scanner};
use super::pieces::PIECE_BYTES;
use super::tensor_json::{self, DataError, MAX_RANK, Nulls};
use crate::engine::Array;
use crate::store::Dtype;
use crate::stream::OverBudget;
use hyper::body::Bytes;
use serde::Serialize;
use thiserror::Error;

/// Most tensors of a request, and most outputs it may name.
pub const MAX_TENSORS: usize = 256;

/// What a request's tensors may weigh: asked with the total of bytes before each is read.
pub type Reserve<'a> = dyn FnMut(u64) -> Result<(), OverBudget> + 'a;

/// The body of an `infer` request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// Echoed in the reply.
    pub id: Option<String>,
    /// Inputs by name, in the order of the request.
    pub inputs: Vec<(String, Array)>,
    /// Names of the outputs that are wanted; all if empty.
    pub outputs: Vec<String>,
}

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

impl InferRequest {
    /// Reads a request body.
    ///
    /// # Errors
    ///
    /// [`RequestError`], naming the input and what was expected; never panics, whatever `text` is.
    pub fn parse(text: &[u8], reserve: &mut Reserve<'_>) -> Result<InferRequest, RequestError> {
        let mut scanner = Scanner::new(text);
        let mut request = InferRequest { id: None, inputs: Vec::new(), outputs: Vec::new() };
        let mut has_inputs = false;
        scanner.object(|scanner, key| match key {
            "id" => {
                request.id = Some(scanner.string()?.into_owned());
                Ok(())
            }
            "inputs" => {
                has_inputs = true;
                request.inputs = tensors(scanner, "input", Nulls::Refuse, reserve)?;
                Ok(())
            }
            "outputs" => {
                request.outputs = output_names(scanner)?;
                Ok(())
            }
            _ => scanner.skip().map(|_| ()).map_err(RequestError::from),
        })?;
        scanner.end()?;
        if !has_inputs {
            return Err(field("\"inputs\" is missing: send {\"inputs\": [{\"name\": .., ..}]}"));
        }
        Ok(request)
    }

    /// Writes a request body, as a client sends it.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = b"{".to_vec();
        if let Some(id) = &self.id {
            text.extend(b"\"id\":");
            put(&mut text, id);
            text.push(b',');
        }
        if !self.outputs.is_empty() {
            text.extend(b"\"outputs\":[");
            for (index, name) in self.outputs.iter().enumerate() {
                text.extend(if index > 0 { b",".as_slice() } else { b"" });
                put(&mut text, &Named { name });
            }
            text.extend(b"],");
        }
        text.extend(b"\"inputs\":[");
        for (index, (name, array)) in self.inputs.iter().enumerate() {
            text.extend(if index > 0 { b",".as_slice() } else { b"" });
            put_head(&mut text, name, array);
            tensor_json::write(array, 0, element_count(array), &mut text);
            text.extend(b"]}");
        }
        text.extend(b"]}");
        text
    }
}

/// Reads the outputs of a reply, as a client does; `null` becomes NaN.
///
/// # Errors
///
/// [`RequestError`] for a body that is no reply.
pub fn parse_reply(text: &[u8]) -> Result<Vec<(String, Array)>, RequestError> {
    let mut scanner = Scanner::new(text);
    let mut outputs = Vec::new();
    scanner.object(|scanner, key| match key {
        "outputs" => {
            outputs = tensors(scanner, "output", Nulls::AreNan, &mut |_| Ok(()))?;
            Ok(())
        }
        _ => scanner.skip().map(|_| ()).map_err(RequestError::from),
    })?;
    Ok(outputs)
}

fn field(what: impl Into<String>) -> RequestError {
    RequestError::Field(what.into())
}

fn tensors(
    scanner: &mut Scanner<'_>,
    kind: &str,
    nulls: Nulls,
    reserve: &mut Reserve<'_>,
) -> Result<Vec<(String, Array)>, RequestError> {
    let mut tensors: Vec<(String, Array)> = Vec::new();
    let mut total_bytes = 0u64;
    scanner.array(|scanner, index| {
        if index == MAX_TENSORS {
            return Err(field(format!("more than {MAX_TENSORS} {kind}s")));
        }
        let header = TensorHeader::read(scanner, kind, index)?;
        if tensors.iter().any(|(name, _)| *name == header.name) {
            return Err(field(format!("{kind} {:?} is given twice", header.name)));
        }
        let (name, array) = header.values(kind, nulls, &mut total_bytes, reserve)?;
        tensors.push((name, array));
        Ok(())
    })?;
    Ok(tensors)
}

/// A tensor whose elements are not read yet.
struct TensorHeader<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> TensorHeader<'a> {
    fn read(
        scanner: &mut Scanner<'a>,
        kind: &str,
        index: usize,
    ) -> Result<TensorHeader<'a>, RequestError> {
        let (mut name, mut datatype, mut shape, mut data) = (None, None, None, None);
        scanner.object(|scanner, key| -> Result<(), RequestError> {
            match key {
                "name" => name = Some(scanner.string()?.into_owned()),
                "datatype" => datatype = Some(scanner.string()?.into_owned()),
                "shape" => shape = Some(scanner.skip()?),
                "data" => data = Some(scanner.skip()?),
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| field(format!("{kind}s[{index}]: \"name\" is missing")))?;
        let missing = |what: &str| field(format!("{kind} {name:?}: {what}"));
        let datatype = datatype.ok_or_else(|| missing("\"datatype\" is missing"))?;
        let dtype = parse_dtype(&datatype).map_err(|what| missing(&what))?;
        let shape = shape.ok_or_else(|| missing("\"shape\" is missing"))?;
        let shape = parse_shape(shape).map_err(|what| missing(&what))?;
        let data = data.ok_or_else(|| {
            missing("\"data\" is missing (binary tensor data is not supported: send JSON data)")
        })?;
        Ok(TensorHeader { name, dtype, shape, data })
    }

    fn values(
        self,
        kind: &str,
        nulls: Nulls,
        total_bytes: &mut u64,
        reserve: &mut Reserve<'_>,
    ) -> Result<(String, Array), RequestError> {
        let TensorHeader { name, dtype, shape, data } = self;
        let wrong = |what: String| field(format!("{kind} {name:?}: {what}"));
        let count = tensor_json::element_count(&shape)
            .ok_or_else(|| wrong(format!("shape {shape:?} has more elements than 2^64")))?;
        // What cannot be in the text is not asked of the budget; parse() will say that it lacks.
        let elements = count.min(data.len() / 2 + 1) as u64;
        *total_bytes = total_bytes.saturating_add(elements * dtype.size() as u64);
        reserve(*total_bytes)?;
        let bytes = tensor_json::parse(data, dtype, &shape, count, nulls).map_err(|e| match e {
            DataError::Json(e) => wrong(format!("in data, {e}")),
            e => wrong(e.to_string()),
        })?;
        let array = Array::new(dtype, shape, bytes).map_err(|e| wrong(e.to_string()))?;
        Ok((name, array))
    }
}

fn parse_dtype(name: &str) -> Result<Dtype, String> {
    if let Some(dtype) = Dtype::ALL.into_iter().find(|dtype| dtype.name() == name) {
        return Ok(dtype);
    }
    if name == "BYTES" {
        return Err("datatype BYTES (strings) is not supported: no model here takes it".to_owned());
    }
    let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
    Err(format!("unknown datatype {name:?}; expected one of {}", known.join(", ")))
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

fn output_names(scanner: &mut Scanner<'_>) -> Result<Vec<String>, RequestError> {
    let mut names = Vec::new();
    scanner.array(|scanner, index| -> Result<(), RequestError> {
        if index == MAX_TENSORS {
            return Err(field(format!("more than {MAX_TENSORS} outputs")));
        }
        let mut name = None;
        scanner.object(|scanner, key| -> Result<(), RequestError> {
            match key {
                "name" => name = Some(scanner.string()?.into_owned()),
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        names.push(name.ok_or_else(|| field(format!("outputs[{index}]: \"name\" is missing")))?);
        Ok(())
    })?;
    Ok(names)
}

/// The fields of a reply that come before its tensors.
#[derive(Debug, Serialize)]
pub struct ReplyHead {
    /// Name of the model.
    pub model_name: String,
    /// The version that answered.
    pub model_version: String,
    /// The request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the pass took.
    pub parameters: ReplyParameters,
}

/// What the pass took, as the reply's `parameters`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ReplyParameters {
    /// From the first node to the last, in microseconds.
    pub latency_us: u64,
    /// Of which compute waited for the disk, in microseconds.
    pub stall_us: u64,
    /// Bytes of weights read from disk.
    pub bytes_read: u64,
}

/// A reply body, piece by piece.
#[derive(Debug)]
pub struct ReplyPieces {
    head: Option<Vec<u8>>,
    outputs: std::vec::IntoIter<(String, Array)>,
    open: Option<(Array, usize, u64)>,
    written: usize,
    ended: bool,
}

impl ReplyPieces {
    /// The body for `head` and the outputs.
    pub fn new(head: &ReplyHead, outputs: Vec<(String, Array)>) -> ReplyPieces {
        let mut text = Vec::new();
        put(&mut text, head);
        text.pop();
        text.extend(b",\"outputs\":[");
        let outputs = outputs.into_iter();
        ReplyPieces { head: Some(text), outputs, open: None, written: 0, ended: false }
    }

    /// Appends the next run of elements, or the head of the next tensor, or the end.
    fn step(&mut self, text: &mut Vec<u8>) {
        if let Some((array, first, nulls)) = &mut self.open {
            let count = element_count(array);
            let end = count.min(*first + PIECE_BYTES / 32);
            text.extend(if *first > 0 && end > *first { b",".as_slice() } else { b"" });
            *nulls += tensor_json::write(array, *first, end, text);
            *first = end;
            if end == count {
                text.push(b']');
                if *nulls > 0 {
                    text.extend(format!(",\"parameters\":{{\"non_finite\":{nulls}}}").bytes());
                }
                text.push(b'}');
                self.open = None;
            }
        } else if let Some((name, array)) = self.outputs.next() {
            text.extend(if self.written > 0 { b",".as_slice() } else { b"" });
            put_head(text, &name, &array);
            self.written += 1;
            self.open = Some((array, 0, 0));
        } else {
            text.extend(b"]}");
            self.ended = true;
        }
    }
}

impl Iterator for ReplyPieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut text = self.head.take().unwrap_or_default();
        while text.len() < PIECE_BYTES / 2 && !self.ended {
            self.step(&mut text);
        }
        Some(text.into())
    }
}

#[derive(Serialize)]
struct Named<'a> {
    name: &'a str,
}

fn put(text: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(text, value).expect("a vector takes every write");
}

/// Appends a tensor's object up to and with the bracket that opens its data.
fn put_head(text: &mut Vec<u8>, name: &str, array: &Array) {
    text.extend(b"{\"name\":");
    put(text, &name);
    text.extend(format!(",\"datatype\":\"{}\",\"shape\":", array.dtype).bytes());
    put(text, &array.shape);
    text.extend(b",\"data\":[");
}

fn element_count(array: &Array) -> usize {
    array.bytes.len() / array.dtype.size()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Category, Ledger};
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<InferRequest, RequestError> {
        InferRequest::parse(text.as_bytes(), &mut |_| Ok(()))
    }

    #[test]
    fn fields_come_in_any_order() {
        let request = parse(
            r#"{"outputs":[{"parameters":{"binary_data":true},"name":"y"}],"parameters":{"a":[1]},
                "inputs":[{"data":[1,2],"parameters":{},"shape":[2],"name":"x",
                "datatype":"UINT8"}],"id":"i"}"#,
        )
        .unwrap();
        assert_eq!(request.id.as_deref(), Some("i"));
        assert_eq!(request.outputs, ["y"]);
        assert_eq!(request.inputs[0].1.bytes, [1, 2]);
    }

    #[test]
    fn tensors_are_asked_for_before_they_are_read() {
        let ledger = Ledger::new(100);
        let mut grant = ledger.try_grant(Category::Request, 0).unwrap();
        let tensor = |name: &str, count: usize| {
            let data = vec!["1"; count].join(",");
            format!(
                "{{\"name\":\"{name}\",\"datatype\":\"FP64\",\"shape\":[{count}],\"data\":[{data}]}}"
            )
        };
        let mut check = |counts: [usize; 2], fits: bool| {
            let text =
                format!("{{\"inputs\":[{},{}]}}", tensor("a", counts[0]), tensor("b", counts[1]));
            let read = InferRequest::parse(text.as_bytes(), &mut |bytes| grant.resize(bytes));
            assert_eq!(!matches!(read, Err(RequestError::OverBudget(_))), fits);
        };
        check([6, 6], true);
        check([6, 7], false);
        check([13, 1], false);
    }

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        let values = (0..50_000u32).flat_map(|v| (v as f32 / 7.0).to_le_bytes()).collect();
        let large = Array::new(Dtype::Fp32, vec![5, 10_000], values).unwrap();
        let none = Array::new(Dtype::Int64, vec![0, 3], vec![]).unwrap();
        let outputs = vec![("large \"\u{e9}\"".to_owned(), large), ("none".to_owned(), none)];
        let parameters = ReplyParameters { latency_us: 1, stall_us: 2, bytes_read: 3 };
        let (model_name, model_version) = ("m".to_owned(), "1".to_owned());
        let head = ReplyHead { model_name, model_version, id: None, parameters };
        let pieces: Vec<Bytes> = ReplyPieces::new(&head, outputs.clone()).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= 2 * PIECE_BYTES));
        let text = pieces.concat();
        assert!(serde_json::from_slice::<serde_json::Value>(&text).is_ok());
        assert_eq!(parse_reply(&text).unwrap(), outputs);
    }

    fn arrays() -> impl Strategy<Value = Array> {
        let shape = prop::collection::vec(0usize..4, 0..4);
        let dtypes = prop::sample::select(vec![Dtype::Uint8, Dtype::Int64, Dtype::Uint64]);
        (dtypes, shape, any::<u64>()).prop_map(|(dtype, shape, seed)| {
            let count = shape.iter().product::<usize>() * dtype.size();
            let bytes = (0..count).map(|i| (seed >> (i % 57)) as u8).collect();
            Array::new(dtype, shape, bytes).unwrap()
        })
    }

    proptest! {
        #[test]
        fn requests_round_trip(
            id in prop::option::of(".*"),
            outputs in prop::collection::vec(".*", 0..3),
            arrays in prop::collection::vec(arrays(), 0..3),
        ) {
            let name = |index: usize| format!("{index} \"\\\n");
            let inputs = arrays.into_iter().enumerate().map(|(i, a)| (name(i), a)).collect();
            let request = InferRequest { id, inputs, outputs };
            let text = request.to_json();
            prop_assert_eq!(InferRequest::parse(&text, &mut |_| Ok(())).unwrap(), request);
        }

        /// Requests with a few bytes changed: refused or read, never a panic.
        #[test]
        fn no_request_panics(
            arrays in prop::collection::vec(arrays(), 1..3),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let inputs = arrays.into_iter().map(|array| ("x".to_owned(), array)).collect();
            let mut text = InferRequest { id: None, inputs, outputs: vec![] }.to_json();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            let _ = InferRequest::parse(&text, &mut |_| Ok(()));
        }
    }
}
