//! The body of the Open Inference Protocol's `infer` request.

use super::infer_tensor::{
    MAX_TENSORS, RequestError, Reserve, TensorReader, Tensors, field, parameters, parse_number,
    put, put_binary, put_head,
};
use super::json::Scanner;
use super::quote::quote;
use super::tensor_json::Nulls;

/// The body of an `infer` request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// Echoed in the reply.
    pub id: Option<String>,
    /// Inputs by name, in the order of the request.
    pub inputs: Tensors,
    /// Outputs that are wanted; all if empty.
    pub outputs: Vec<Wanted>,
    /// Whether outputs that do not say are wanted as binary data: `binary_data_output`.
    pub binary_output: bool,
    /// The time the client will wait, in microseconds: Triton's `timeout`, where 0 is for ever.
    pub timeout_us: u64,
}

/// An output that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether it is wanted as binary data, where the request says.
    pub binary: Option<bool>,
}

impl InferRequest {
    /// Reads the JSON of a request and the binary data behind it. A request without inputs is one:
    /// there are models that take none.
    ///
    /// # Errors
    ///
    /// [`RequestError`], naming the input and what was expected; never panics, whatever the bytes
    /// are.
    pub fn parse<'a>(
        text: &'a [u8],
        binary: &'a [u8],
        reserve: &mut Reserve<'_>,
    ) -> Result<InferRequest, RequestError> {
        let mut scanner = Scanner::new(text);
        let mut request = InferRequest::default();
        let mut reader = TensorReader {
            kind: "input",
            nulls: Nulls::Refuse,
            binary,
            last_binary: None,
            reserve: &mut |bytes| reserve(bytes),
        };
        let (mut has_inputs, mut has_outputs) = (false, false);
        scanner.object(|scanner, key| -> Result<(), RequestError> {
            match key {
                "id" => request.id = Some(scanner.string()?.into_owned()),
                "inputs" if has_inputs => return Err(field("\"inputs\" is given twice")),
                "inputs" => {
                    has_inputs = true;
                    request.inputs = reader.read(scanner)?;
                }
                "outputs" if has_outputs => return Err(field("\"outputs\" is given twice")),
                "outputs" => {
                    has_outputs = true;
                    request.outputs = outputs(scanner)?;
                }
                "parameters" => parameters(scanner, |scanner, key| request.set(key, scanner))?,
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        scanner.end()?;
        reader.end()?;
        Ok(request)
    }

    fn set(&mut self, key: &str, scanner: &mut Scanner<'_>) -> Result<(), RequestError> {
        match key {
            "binary_data_output" => self.binary_output = boolean(key, scanner)?,
            "timeout" => self.timeout_us = parse_number(key, scanner.skip()?).map_err(field)?,
            CLASSIFICATION => refuse_classification(scanner)?,
            _ => drop(scanner.skip()?),
        }
        Ok(())
    }

    /// Whether the output of this name is wanted as binary data.
    pub fn wants_binary(&self, name: &str) -> bool {
        let wanted = self.outputs.iter().find(|wanted| wanted.name == name);
        wanted.and_then(|wanted| wanted.binary).unwrap_or(self.binary_output)
    }

    /// Writes a request with its inputs as binary data, as a client sends it; returns the body and
    /// how many bytes of it are the JSON.
    pub fn encode(&self) -> (Vec<u8>, usize) {
        let mut text = b"{".to_vec();
        if let Some(id) = &self.id {
            text.extend(b"\"id\":");
            put(&mut text, id);
            text.push(b',');
        }
        let (binary, timeout) = (self.binary_output, self.timeout_us);
        let parameters = format!("{{\"binary_data_output\":{binary},\"timeout\":{timeout}}}");
        text.extend(format!("\"parameters\":{parameters},\"outputs\":[").bytes());
        for (index, Wanted { name, binary }) in self.outputs.iter().enumerate() {
            text.extend(if index > 0 { b",".as_slice() } else { b"" });
            text.extend(b"{\"name\":");
            put(&mut text, name);
            if let Some(binary) = binary {
                text.extend(format!(",\"parameters\":{{\"binary_data\":{binary}}}").bytes());
            }
            text.push(b'}');
        }
        text.extend(b"],\"inputs\":[");
        for (index, (name, array)) in self.inputs.iter().enumerate() {
            text.extend(if index > 0 { b",".as_slice() } else { b"" });
            put_head(&mut text, name, array.dtype, &array.shape);
            put_binary(&mut text, array.bytes.len());
        }
        text.extend(b"]}");
        let json_bytes = text.len();
        self.inputs.iter().for_each(|(_, array)| text.extend_from_slice(&array.bytes));
        (text, json_bytes)
    }
}

/// Triton's: an output as its so many best classes, as texts; 0 for the output itself.
const CLASSIFICATION: &str = "classification";

fn refuse_classification(scanner: &mut Scanner<'_>) -> Result<(), RequestError> {
    match scanner.skip()? {
        b"0" => Ok(()),
        _ => {
            let what = "is not done here: take the output itself and rank its values";
            Err(field(format!("{CLASSIFICATION} {what}")))
        }
    }
}

fn boolean(name: &str, scanner: &mut Scanner<'_>) -> Result<bool, RequestError> {
    match scanner.skip()? {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err(field(format!("{name} is neither true nor false"))),
    }
}

fn outputs(scanner: &mut Scanner<'_>) -> Result<Vec<Wanted>, RequestError> {
    let mut outputs: Vec<Wanted> = Vec::new();
    scanner.array(|scanner, index| -> Result<(), RequestError> {
        if index == MAX_TENSORS {
            return Err(field(format!("more than {MAX_TENSORS} outputs")));
        }
        let (mut name, mut binary) = (None, None);
        scanner.object(|scanner, key| -> Result<(), RequestError> {
            match key {
                "name" => name = Some(scanner.string()?.into_owned()),
                "parameters" => parameters(scanner, |scanner, key| {
                    match key {
                        "binary_data" => binary = Some(boolean(key, scanner)?),
                        CLASSIFICATION => refuse_classification(scanner)?,
                        _ => drop(scanner.skip()?),
                    }
                    Ok(())
                })?,
                _ => drop(scanner.skip()?),
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| field(format!("outputs[{index}]: \"name\" is missing")))?;
        if outputs.iter().any(|wanted| wanted.name == name) {
            return Err(field(format!("output {} is wanted twice", quote(&name))));
        }
        outputs.push(Wanted { name, binary });
        Ok(())
    })?;
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dtype;
    use crate::stream::{Category, Ledger};
    use crate::wire::Array;
    use crate::wire::tensor_json;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<InferRequest, RequestError> {
        InferRequest::parse(text.as_bytes(), &[], &mut |_| Ok(()))
    }

    #[test]
    fn fields_come_in_any_order() {
        let request = parse(
            r#"{"outputs":[{"parameters":{"binary_data":true},"name":"y"},{"name":"z"}],
                "parameters":{"a":[1],"timeout":7},"inputs":[{"data":[1,2],"parameters":{},
                "shape":[2],"name":"x","datatype":"UINT8"}],"id":"i"}"#,
        )
        .unwrap();
        assert_eq!((request.id.as_deref(), request.timeout_us), (Some("i"), 7));
        assert!(request.wants_binary("y") && !request.wants_binary("z"));
        assert_eq!(request.inputs[0].1.bytes, [1, 2]);
        let request = parse(
            r#"{"parameters":{"binary_data_output":true},"inputs":[],
                "outputs":[{"parameters":{"binary_data":false},"name":"y"}]}"#,
        )
        .unwrap();
        assert!(!request.wants_binary("y") && request.wants_binary("z"));
    }

    /// Python's dataclasses and pydantic write fields that were left out as null: such a request
    /// was refused.
    #[test]
    fn null_stands_for_what_is_left_out() {
        let all = r#"{"id":null,"inputs":null,"outputs":null,"parameters":null}"#;
        assert_eq!(parse(all).unwrap(), InferRequest::default());
        assert_eq!(parse("{}").unwrap(), InferRequest::default());
        let inner = r#"{"inputs":[{"name":"x","datatype":"UINT8","shape":[1],"data":[1],
            "parameters":null}],"outputs":[{"name":"y","parameters":null}]}"#;
        assert_eq!(parse(inner).unwrap().outputs, [Wanted { name: "y".to_owned(), binary: None }]);
        assert!(parse(r#"{"id":nul}"#).is_err());
    }

    /// The same output named 256 times was answered 256 times, and asked of the ledger afterwards:
    /// 113 MiB of a budget of 64.
    #[test]
    fn what_is_given_twice_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let (y, z) = (r#"{"name":"y"}"#, r#"{"name":"\u0079","parameters":{"binary_data":true}}"#);
        check(&format!(r#"{{"outputs":[{y},{z}]}}"#), "output \"y\" is wanted twice");
        check(&format!(r#"{{"outputs":[{y}],"outputs":[{y}]}}"#), "\"outputs\" is given twice");
        let x = r#"{"name":"x","datatype":"UINT8","shape":[1],"data":[1]}"#;
        check(&format!(r#"{{"inputs":[{x},{x}]}}"#), "input \"x\" is given twice");
        for part in [r#""data":[2]"#, r#""shape":[1]"#, r#""name":"x""#, r#""datatype":"UINT8""#] {
            let name = part.split('"').nth(1).unwrap();
            let text = format!(r#"{{"inputs":[{},{part}}}]}}"#, &x[..x.len() - 1]);
            check(&text, &format!("inputs[0]: \"{name}\" is given twice"));
        }
    }

    #[test]
    fn classes_are_refused_where_they_are_asked_for() {
        let of_output = |count: u32| {
            parse(&format!(
                r#"{{"outputs":[{{"name":"y","parameters":{{"classification":{count}}}}}]}}"#
            ))
        };
        assert!(of_output(0).is_ok());
        assert!(of_output(3).unwrap_err().to_string().contains("classification is not done"));
        assert!(parse(r#"{"parameters":{"classification":3}}"#).is_err());
    }

    #[test]
    fn binary_sizes_that_lie_are_refused_by_name() {
        let check = |fields: &str, binary: &[u8], expected: &str| {
            let text = format!(
                r#"{{"inputs":[{{"name":"a","datatype":"UINT8","shape":[1],"parameters":
                {{"binary_data_size":1}}}},{{"name":"x","datatype":"FP32","shape":[2],{fields}}}]}}"#
            );
            let read = InferRequest::parse(text.as_bytes(), binary, &mut |_| Ok(()));
            match read {
                Ok(request) => assert_eq!(expected, format!("{:?}", request.inputs[1].1.bytes)),
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        };
        let size = |size: &str| format!(r#""parameters":{{"binary_data_size":{size}}}"#);
        check(&size("8"), &[0, 1, 2, 3, 4, 5, 6, 7, 8], "[1, 2, 3, 4, 5, 6, 7, 8]");
        check(
            &size("8"),
            &[0; 8],
            "\"x\": binary_data_size is 8, and 7 bytes of the body are left",
        );
        check(&size("8"), &[], "\"a\": binary_data_size is 1, and 0 bytes of the body are left");
        check(&size("8"), &[0; 10], "\"x\": 1 bytes of the body are left after its binary data");
        check(&size("7"), &[0; 8], "\"x\": shape [2] of FP32 takes 8 bytes, there are 7");
        check(&size("-8"), &[0; 9], "\"x\": binary_data_size -8 is not a whole number");
        check(&size("1e1"), &[0; 9], "binary_data_size 1e1 is not");
        check(&size("18446744073709551615"), &[0; 9], "\"x\": binary_data_size");
        check(&size("18446744073709551616"), &[0; 9], "\"x\": binary_data_size");
        check(&(size("8") + r#","data":[1,2]"#), &[0; 9], "\"x\": has both");
        check(r#""data":[1,2]"#, &[0; 9], "\"a\": 8 bytes of the body are left after");
        check(r#""parameters":{}"#, &[0; 9], "\"x\": \"data\" is missing");
        check(r#""parameters":[]"#, &[0; 9], "expected an object");
        let read = InferRequest::parse(br#"{"inputs":[]}"#, &[0], &mut |_| Ok(()));
        let error = read.unwrap_err().to_string();
        assert_eq!(error, "1 bytes follow the JSON, and no input has a \"binary_data_size\"");
    }

    #[test]
    fn tensors_are_asked_for_before_they_are_read() {
        let ledger = Ledger::new(100);
        let mut grant = ledger.try_grant(Category::Request, 0).unwrap();
        let mut check = |counts: [usize; 2], is_binary: bool, fits: bool| {
            let tensor = |(name, count): (&str, usize)| {
                let data = match is_binary {
                    true => format!("\"parameters\":{{\"binary_data_size\":{}}}", 8 * count),
                    false => format!("\"data\":[{}]", vec!["1"; count].join(",")),
                };
                format!("{{\"name\":\"{name}\",\"datatype\":\"FP64\",\"shape\":[{count}],{data}}}")
            };
            let (a, b) = (tensor(("a", counts[0])), tensor(("b", counts[1])));
            let text = format!("{{\"inputs\":[{a},{b}]}}");
            let binary = vec![0; if is_binary { 8 * (counts[0] + counts[1]) } else { 0 }];
            let read =
                InferRequest::parse(text.as_bytes(), &binary, &mut |bytes| grant.resize(bytes));
            assert_eq!(!matches!(read, Err(RequestError::OverBudget(_))), fits);
        };
        for is_binary in [false, true] {
            check([6, 6], is_binary, true);
            check([6, 7], is_binary, false);
            check([13, 1], is_binary, false);
        }
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
            outputs in prop::collection::btree_map(".*", any::<Option<bool>>(), 0..3),
            arrays in prop::collection::vec(arrays(), 0..3),
            (binary_output, timeout_us) in any::<(bool, u64)>(),
        ) {
            let name = |index: usize| format!("{index} \"\\\n");
            let inputs = arrays.into_iter().enumerate().map(|(i, a)| (name(i), a)).collect();
            let outputs = outputs.into_iter().map(|(name, binary)| Wanted { name, binary });
            let outputs = outputs.collect();
            let request = InferRequest { id, inputs, outputs, binary_output, timeout_us };
            let (body, json_bytes) = request.encode();
            let (text, binary) = body.split_at(json_bytes);
            prop_assert_eq!(InferRequest::parse(text, binary, &mut |_| Ok(())).unwrap(), request);
        }

        /// Requests with a few bytes changed, cut anywhere: refused or read, never a panic.
        #[test]
        fn no_request_panics(
            array in arrays(),
            is_binary in any::<bool>(),
            cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let inputs = vec![("x".to_owned(), array.clone())];
            let (mut body, mut end) = InferRequest { inputs, ..Default::default() }.encode();
            if !is_binary {
                body = b"{\"inputs\":[".to_vec();
                put_head(&mut body, "x", array.dtype, &array.shape);
                body.extend(b",\"data\":[");
                tensor_json::write(&array, 0, array.bytes.len() / array.dtype.size(), &mut body);
                body.extend(b"]}]}");
                end = body.len();
            }
            for (at, byte) in &changes {
                let at = at.index(body.len());
                body[at] = *byte;
            }
            let end = if changes.is_empty() { cut.index(body.len()) } else { end };
            let (text, binary) = body.split_at(end);
            let _ = InferRequest::parse(text, binary, &mut |_| Ok(()));
        }
    }
}
