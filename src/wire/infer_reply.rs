//! The body of a reply to `infer`: written piece by piece as the client takes it, and read again
//! by our own client. Outputs are JSON, or binary data behind the JSON where that is wanted.

use super::PIECE_BYTES;
use super::infer_tensor::{RequestError, TensorReader, Tensors, put, put_binary, put_head};
use super::json::Scanner;
use super::tensor_json::{self, Nulls};
use crate::wire::Array;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplyParameters {
    /// From the first node to the last, in microseconds.
    pub latency_us: u64,
    /// Of which compute waited for the disk, in microseconds.
    pub stall_us: u64,
    /// Bytes of weights read from disk.
    pub bytes_read: u64,
}

/// An output on its way out.
#[derive(Debug)]
struct Output {
    name: String,
    /// Its bytes have moved to the binary data where there is a size.
    array: Array,
    binary_size: Option<usize>,
}

/// Where in the JSON a reply is.
#[derive(Debug, Default)]
struct Cursor {
    /// The output, and its next element once its head is written.
    output: usize,
    element: Option<usize>,
    nulls: u64,
    ended: bool,
}

/// A reply body, piece by piece.
#[derive(Debug)]
pub struct ReplyPieces {
    head: Vec<u8>,
    outputs: Vec<Output>,
    cursor: Cursor,
    binary: VecDeque<Bytes>,
}

impl ReplyPieces {
    /// The body for `head` and the outputs; those that `is_binary` picks are binary data.
    pub fn new(
        head: &ReplyHead,
        outputs: Tensors,
        is_binary: impl Fn(&str) -> bool,
    ) -> ReplyPieces {
        let mut text = Vec::new();
        put(&mut text, head);
        text.pop();
        text.extend(b",\"outputs\":[");
        let mut binary = VecDeque::new();
        let take = |(name, mut array): (String, Array)| {
            let binary_size = is_binary(&name).then(|| {
                binary.push_back(Bytes::from(std::mem::take(&mut array.bytes)));
                binary[binary.len() - 1].len()
            });
            Output { name, array, binary_size }
        };
        let outputs = outputs.into_iter().map(take).collect();
        ReplyPieces { head: text, outputs, cursor: Cursor::default(), binary }
    }

    /// Bytes of the JSON in front of binary data; `None` where there is no binary output. JSON
    /// outputs beside binary ones are written twice, once to be measured.
    pub fn json_bytes(&self) -> Option<usize> {
        self.outputs.iter().any(|output| output.binary_size.is_some()).then(|| {
            let (mut cursor, mut text, mut length) = (Cursor::default(), Vec::new(), 0);
            while !cursor.ended {
                text.clear();
                self.step(&mut cursor, &mut text);
                length += text.len();
            }
            self.head.len() + length
        })
    }

    /// Appends the next run of elements, or the head of the next tensor, or the end.
    fn step(&self, cursor: &mut Cursor, text: &mut Vec<u8>) {
        let Some(Output { name, array, binary_size }) = self.outputs.get(cursor.output) else {
            text.extend(b"]}");
            cursor.ended = true;
            return;
        };
        let Some(first) = cursor.element else {
            text.extend(if cursor.output > 0 { b",".as_slice() } else { b"" });
            put_head(text, name, array.dtype, &array.shape);
            if let Some(size) = binary_size {
                put_binary(text, *size);
                cursor.output += 1;
            } else {
                text.extend(b",\"data\":[");
                cursor.element = Some(0);
            }
            return;
        };
        let count = array.bytes.len() / array.dtype.size();
        let end = count.min(first + PIECE_BYTES / 32);
        text.extend(if first > 0 && end > first { b",".as_slice() } else { b"" });
        cursor.nulls += tensor_json::write(array, first, end, text);
        cursor.element = Some(end);
        if end == count {
            text.push(b']');
            if cursor.nulls > 0 {
                let nulls = cursor.nulls;
                text.extend(format!(",\"parameters\":{{\"non_finite\":{nulls}}}").bytes());
            }
            text.push(b'}');
            *cursor = Cursor { output: cursor.output + 1, ..Cursor::default() };
        }
    }
}

impl Iterator for ReplyPieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut cursor = std::mem::take(&mut self.cursor);
        if !cursor.ended {
            let mut text = std::mem::take(&mut self.head);
            while text.len() < PIECE_BYTES / 2 && !cursor.ended {
                self.step(&mut cursor, &mut text);
            }
            self.cursor = cursor;
            return Some(text.into());
        }
        self.cursor = cursor;
        let data = self.binary.iter_mut().find(|data| !data.is_empty())?;
        Some(data.split_to(data.len().min(PIECE_BYTES)))
    }
}

/// A reply as a client reads it.
#[derive(Debug, PartialEq)]
pub struct InferReply {
    /// What the pass took.
    pub parameters: ReplyParameters,
    /// The outputs by name; `null` has become NaN.
    pub outputs: Tensors,
}

impl InferReply {
    /// Reads a reply's JSON and the binary data behind it.
    ///
    /// # Errors
    ///
    /// [`RequestError`] for a body that is no reply.
    pub fn parse(text: &[u8], binary: &[u8]) -> Result<InferReply, RequestError> {
        let mut reply = InferReply { parameters: ReplyParameters::default(), outputs: Vec::new() };
        let mut reader = TensorReader {
            kind: "output",
            nulls: Nulls::AreNan,
            binary,
            last_binary: None,
            reserve: &mut |_| Ok(()),
        };
        Scanner::new(text).object(|scanner, key| -> Result<(), RequestError> {
            match key {
                "outputs" => reply.outputs = reader.read(scanner)?,
                "parameters" => {
                    let text = scanner.skip()?;
                    reply.parameters = serde_json::from_slice(text).unwrap_or_default();
                }
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        reader.end()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dtype;

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        let values = (0..50_000u32).flat_map(|v| (v as f32 / 7.0).to_le_bytes()).collect();
        let large = Array::new(Dtype::Fp32, vec![5, 10_000], values).unwrap();
        let none = Array::new(Dtype::Int64, vec![0, 3], vec![]).unwrap();
        let bytes = Array::new(Dtype::Uint8, vec![3], vec![1, 2, 3]).unwrap();
        let outputs = vec![
            ("large \"\u{e9}\"".to_owned(), large),
            ("none".to_owned(), none),
            ("bytes".to_owned(), bytes),
        ];
        let check = |is_binary: &dyn Fn(&str) -> bool, binary_bytes: usize| {
            let parameters = ReplyParameters { latency_us: 1, stall_us: 2, bytes_read: 3 };
            let (model_name, model_version) = ("m".to_owned(), "1".to_owned());
            let head = ReplyHead { model_name, model_version, id: None, parameters };
            let reply = ReplyPieces::new(&head, outputs.clone(), is_binary);
            let json_bytes = reply.json_bytes();
            let pieces: Vec<Bytes> = reply.collect();
            assert!(pieces.iter().all(|piece| piece.len() <= 2 * PIECE_BYTES));
            let body = pieces.concat();
            let (text, binary) = body.split_at(json_bytes.unwrap_or(body.len()));
            assert!(serde_json::from_slice::<serde_json::Value>(text).is_ok());
            assert_eq!(binary.len(), binary_bytes);
            let read = InferReply::parse(text, binary).unwrap();
            assert_eq!(read, InferReply { parameters, outputs: outputs.clone() });
        };
        check(&|_| false, 0);
        check(&|_| true, 200_003);
        check(&|name| name == "bytes", 3);
        check(&|name| name == "none", 0);
        check(&|name| name != "bytes", 200_000);
    }
}
