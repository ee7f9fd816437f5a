//! The bodies of OpenAI's embeddings call: the request read, the reply written.

use super::embed::Vectors;
use super::error::ApiError;
use crate::wire::PIECE_BYTES;
use crate::wire::infer_tensor::Reserve;
use crate::wire::json::{JsonError, Scanner};
use hyper::body::Bytes;
use serde_json::json;

/// Most inputs of a request, as with OpenAI.
const MAX_INPUTS: usize = 2048;

/// Fields of other servers that would change the vectors, and what says the same here.
const UNHEEDED: [(&str, &str); 7] = [
    ("input_type", "name a prompt of the model by \"prompt_name\""),
    ("task", "name a prompt of the model by \"prompt_name\""),
    ("prompt", "put it before the texts, or name one of the model by \"prompt_name\""),
    ("instruction", "put it before the texts, or name a prompt by \"prompt_name\""),
    ("truncate_prompt_tokens", "\"truncate\" cuts texts where the model ends"),
    ("truncation_direction", "\"truncate\" may be \"START\" or \"END\""),
    ("add_special_tokens", "send tokens where texts are not to have them"),
];

/// Most digits of a number that are repeated in an error.
const MAX_NUMBER: usize = 40;

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// As it was written.
    Text(String),
    /// As the client's tokenizer made it, special tokens included.
    Tokens(Vec<u32>),
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As JSON numbers.
    Float,
    /// As base64 of little-endian f32.
    Base64,
}

impl Input {
    /// Bytes that it holds.
    pub fn held_bytes(&self) -> u64 {
        let inner = match self {
            Input::Text(text) => text.capacity(),
            Input::Tokens(tokens) => tokens.capacity() * size_of::<u32>(),
        };
        (inner + size_of::<Input>()) as u64
    }
}

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingsRequest {
    /// The model's name.
    pub model: String,
    /// The texts.
    pub inputs: Vec<Input>,
    /// How vectors are wanted.
    pub encoding: Encoding,
    /// How many values of each vector; all where it is none.
    pub dimensions: Option<usize>,
    /// Whether vectors are scaled to length one; as the makers say where it is none.
    pub normalize: Option<bool>,
    /// What happens to a text that is too long; as the makers say where it is none.
    pub cut: Option<Cut>,
    /// Name of the prompt that goes before each text; the makers' default where it is none.
    pub prompt_name: Option<String>,
    /// Name of the model whose tokenizer made the inputs that are tokens, where that is said.
    pub tokenizer: Option<String>,
}

/// What happens to a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It is refused.
    Refuse,
    /// Its end goes.
    End,
    /// Its beginning goes.
    Start,
}

/// Asked, before memory is taken, with the bytes of one more input.
type Ask<'a> = dyn FnMut(usize) -> Result<(), InputRefusal> + 'a;

/// An error on the way through the body.
struct InputRefusal(ApiError);

impl From<JsonError> for InputRefusal {
    fn from(error: JsonError) -> InputRefusal {
        InputRefusal(ApiError::invalid(format!(
            "the request body is not an embeddings request: {error}"
        )))
    }
}

fn refuse(param: &'static str, message: impl Into<String>) -> InputRefusal {
    InputRefusal(ApiError::invalid(message).about(param))
}

impl EmbeddingsRequest {
    /// Reads a request body; never panics, whatever `text` is.
    ///
    /// # Errors
    ///
    /// 400, naming the field and what was expected; what `reserve` makes of bytes that there are
    /// not.
    pub fn parse(text: &[u8], reserve: &mut Reserve<'_>) -> Result<EmbeddingsRequest, ApiError> {
        let mut total_bytes = 0;
        let mut ask = |bytes: usize| {
            total_bytes += (bytes + size_of::<Input>()) as u64;
            reserve(total_bytes).map_err(|error| InputRefusal(error.into()))
        };
        Self::read(text, &mut ask).map_err(|refusal| refusal.0)
    }

    fn read(text: &[u8], ask: &mut Ask<'_>) -> Result<EmbeddingsRequest, InputRefusal> {
        let mut scanner = Scanner::new(text);
        let (mut model, mut inputs, mut encoding) = (None, None, Encoding::Float);
        let (mut dimensions, mut normalize, mut cut) = (None, None, None);
        let (mut prompt_name, mut tokenizer) = (None, None);
        scanner.object(|scanner, key| -> Result<(), InputRefusal> {
            match key {
                "model" => model = Some(scanner.string()?.into_owned()),
                "input" => inputs = Some(read_inputs(scanner, ask)?),
                "encoding_format" => encoding = read_encoding(scanner)?,
                "dimensions" => dimensions = Some(read_dimensions(scanner)?),
                "normalize" => normalize = Some(read_flag(scanner)?),
                "truncate" => cut = Some(read_cut(scanner)?),
                "prompt_name" => prompt_name = Some(scanner.string()?.into_owned()),
                "tokenizer" => tokenizer = Some(scanner.string()?.into_owned()),
                key => match UNHEEDED.into_iter().find(|(name, _)| *name == key) {
                    Some((name, instead)) => {
                        return Err(refuse(name, format!("\"{name}\" is not heeded: {instead}")));
                    }
                    None => drop(scanner.skip()?),
                },
            }
            Ok(())
        })?;
        scanner.end()?;
        let model = model.ok_or_else(|| refuse("model", "\"model\" is missing"))?;
        let inputs = inputs.ok_or_else(|| refuse("input", "\"input\" is missing"))?;
        Ok(EmbeddingsRequest {
            model,
            inputs,
            encoding,
            dimensions,
            normalize,
            cut,
            prompt_name,
            tokenizer,
        })
    }
}

fn read_encoding(scanner: &mut Scanner<'_>) -> Result<Encoding, InputRefusal> {
    match scanner.skip()? {
        b"\"float\"" => Ok(Encoding::Float),
        b"\"base64\"" => Ok(Encoding::Base64),
        _ => Err(refuse("encoding_format", "\"encoding_format\" is neither float nor base64")),
    }
}

fn read_dimensions(scanner: &mut Scanner<'_>) -> Result<usize, InputRefusal> {
    let text = std::str::from_utf8(scanner.skip()?).unwrap_or_default();
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| refuse("dimensions", "\"dimensions\" is not a whole number from 1 on"))
}

fn read_flag(scanner: &mut Scanner<'_>) -> Result<bool, InputRefusal> {
    match scanner.skip()? {
        b"true" => Ok(true),
        b"false" => Ok(false),
        _ => Err(refuse("normalize", "\"normalize\" is neither true nor false")),
    }
}

/// As the servers of others have it: a boolean, or which end goes.
fn read_cut(scanner: &mut Scanner<'_>) -> Result<Cut, InputRefusal> {
    match scanner.skip()? {
        b"true" | b"\"END\"" => Ok(Cut::End),
        b"\"START\"" => Ok(Cut::Start),
        b"false" | b"\"NONE\"" => Ok(Cut::Refuse),
        _ => Err(refuse("truncate", "\"truncate\" is none of true, false, NONE, END and START")),
    }
}

/// A string, strings, tokens, or arrays of tokens.
fn read_inputs(scanner: &mut Scanner<'_>, ask: &mut Ask<'_>) -> Result<Vec<Input>, InputRefusal> {
    const EXPECTED: &str =
        "\"input\" is not a string, strings, an array of tokens or arrays of tokens";
    if scanner.peek() == Some(b'"') {
        return Ok(vec![read_text(scanner, 0, ask)?]);
    }
    let is_tokens = {
        let mut ahead = scanner.clone();
        ahead.take(b'[') && matches!(ahead.peek(), Some(b'0'..=b'9' | b'-'))
    };
    if is_tokens {
        return Ok(vec![read_tokens(scanner, ask)?]);
    }
    if scanner.peek() != Some(b'[') {
        return Err(refuse("input", EXPECTED));
    }
    let mut inputs = Vec::new();
    scanner.array(|scanner, index| -> Result<(), InputRefusal> {
        if index == MAX_INPUTS {
            return Err(refuse("input", format!("\"input\" has more than {MAX_INPUTS} texts")));
        }
        inputs.push(match scanner.peek() {
            Some(b'"') => read_text(scanner, index, ask)?,
            Some(b'[') => read_tokens(scanner, ask)?,
            _ => return Err(refuse("input", EXPECTED)),
        });
        Ok(())
    })?;
    if inputs.is_empty() {
        return Err(refuse("input", "\"input\" is empty"));
    }
    Ok(inputs)
}

fn read_text(
    scanner: &mut Scanner<'_>,
    index: usize,
    ask: &mut Ask<'_>,
) -> Result<Input, InputRefusal> {
    let text = scanner.long_string(ask)?;
    if text.is_empty() {
        return Err(refuse("input", format!("input[{index}] is an empty string")));
    }
    Ok(Input::Text(text.into_owned()))
}

/// Tokens are counted before they are read: a vector that grows would hold three times as much.
fn read_tokens(scanner: &mut Scanner<'_>, ask: &mut Ask<'_>) -> Result<Input, InputRefusal> {
    let mut count = 0;
    scanner.clone().array(|scanner, index| {
        count = index + 1;
        scanner.number().map(drop)
    })?;
    ask(count * size_of::<u32>())?;
    let mut tokens = Vec::with_capacity(count);
    scanner.array(|scanner, _| -> Result<(), InputRefusal> {
        let number = scanner.number()?;
        let wrong = |_| {
            let number = &number[..number.len().min(MAX_NUMBER)];
            refuse("input", format!("{number} is not a token"))
        };
        tokens.push(number.parse().map_err(wrong)?);
        Ok(())
    })?;
    Ok(Input::Tokens(tokens))
}

/// A reply body, piece by piece.
#[derive(Debug)]
pub struct EmbeddingPieces {
    vectors: Vectors,
    /// The next.
    index: usize,
    encoding: Encoding,
    model: String,
    token_count: usize,
    head: &'static str,
    ended: bool,
}

impl EmbeddingPieces {
    /// The body for the vectors of a request.
    pub fn new(
        vectors: Vectors,
        encoding: Encoding,
        model: String,
        token_count: usize,
    ) -> EmbeddingPieces {
        let head = "{\"object\":\"list\",\"data\":[";
        EmbeddingPieces { vectors, index: 0, encoding, model, token_count, head, ended: false }
    }

    fn step(&mut self, text: &mut Vec<u8>) {
        let index = self.index;
        let Some(vector) = self.vectors.get(index) else {
            self.ended = true;
            let (model, count) = (json!(self.model), self.token_count);
            let tail = format!(
                "],\"model\":{model},\"usage\":{{\"prompt_tokens\":{count},\"total_tokens\":{count}}}}}"
            );
            return text.extend(tail.bytes());
        };
        self.index += 1;
        let comma = if index > 0 { "," } else { "" };
        let head = format!("{comma}{{\"object\":\"embedding\",\"index\":{index},\"embedding\":");
        text.extend(head.bytes());
        match self.encoding {
            Encoding::Float => {
                serde_json::to_writer(&mut *text, vector).expect("a vector takes every write");
            }
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                text.push(b'"');
                let start = text.len();
                text.resize(start + bytes.len().div_ceil(3) * 4, 0);
                base64::encode_config_slice(&bytes, base64::STANDARD, &mut text[start..]);
                text.push(b'"');
            }
        }
        text.push(b'}');
    }
}

impl Iterator for EmbeddingPieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut text = std::mem::take(&mut self.head).as_bytes().to_vec();
        while text.len() < PIECE_BYTES / 2 && !self.ended {
            self.step(&mut text);
        }
        Some(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Category, Ledger};
    use proptest::prelude::*;

    #[test]
    fn inputs_come_in_four_shapes() {
        let check = |input: &str, expected: Vec<Input>| {
            let body = format!("{{\"input\":{input},\"model\":\"m\",\"user\":\"u\"}}");
            let request = EmbeddingsRequest::parse(body.as_bytes(), &mut |_| Ok(())).unwrap();
            assert_eq!(request.inputs, expected, "{input}");
            assert_eq!((request.model.as_str(), request.encoding), ("m", Encoding::Float));
        };
        let text = |text: &str| Input::Text(text.to_owned());
        check("\"a b\"", vec![text("a b")]);
        check("[\"a\", \"\\u00e9\"]", vec![text("a"), text("\u{e9}")]);
        check("[1, 2]", vec![Input::Tokens(vec![1, 2])]);
        check("[[1], [2, 3]]", vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]);
    }

    /// Two bodies of "1,1,1,..." took several times what they were granted.
    #[test]
    fn inputs_are_asked_for_before_they_are_held() {
        let check = |input: &str, least_bytes: u64| {
            let body = format!("{{\"model\":\"m\",\"input\":{input}}}");
            let mut asked = 0;
            let mut reserve = |bytes| {
                asked = bytes;
                Ok(())
            };
            let request = EmbeddingsRequest::parse(body.as_bytes(), &mut reserve).unwrap();
            let held: u64 = request.inputs.iter().map(Input::held_bytes).sum();
            assert!(held >= least_bytes && asked >= held, "{held} of {asked}");

            let ledger = Ledger::new(asked - 1);
            let mut grant = ledger.try_grant(Category::Request, 0).unwrap();
            let mut reserve = |bytes| grant.resize(bytes);
            let refused = EmbeddingsRequest::parse(body.as_bytes(), &mut reserve).unwrap_err();
            assert!(matches!(refused.status.as_u16(), 413 | 503), "{refused}");
        };
        let tokens = format!("[{}1]", "1,".repeat(9_999));
        check(&tokens, 40_000);
        check(&format!("[{tokens},{tokens}]"), 80_000);
        check(&format!("\"{}\"", "a".repeat(10_000)), 10_000);
        check(&format!("[\"{}\"]", "\\u00e9".repeat(10_000)), 20_000);
    }

    #[test]
    fn refusals_name_the_field() {
        let check = |body: &str, param: Option<&str>, message: &str| {
            let error = EmbeddingsRequest::parse(body.as_bytes(), &mut |_| Ok(())).unwrap_err();
            assert_eq!(error.param, param, "{body}");
            assert!(error.message.contains(message), "{body}: {}", error.message);
        };
        check("", None, "expected an object");
        check("{\"model\":\"m\"}", Some("input"), "is missing");
        check("{\"input\":\"a\"}", Some("model"), "is missing");
        check("{\"model\":\"m\",\"input\":[]}", Some("input"), "is empty");
        check("{\"model\":\"m\",\"input\":\"\"}", Some("input"), "empty string");
        check("{\"model\":\"m\",\"input\":{}}", Some("input"), "is not a string");
        check("{\"model\":\"m\",\"input\":[\"a\",1]}", Some("input"), "is not a string");
        check("{\"model\":\"m\",\"input\":[1,\"a\"]}", None, "expected a number");
        check("{\"model\":\"m\",\"input\":[-1]}", Some("input"), "-1 is not a token");
        check("{\"model\":\"m\",\"dimensions\":0}", Some("dimensions"), "from 1 on");
        check("{\"model\":\"m\",\"dimensions\":\"5\"}", Some("dimensions"), "from 1 on");
        check("{\"model\":\"m\",\"truncate\":1}", Some("truncate"), "is none of");
        check("{\"model\":\"m\",\"input\":null}", Some("input"), "is missing");
        check("{\"encoding_format\":\"hex\"}", Some("encoding_format"), "neither");
        check("{\"input_type\":\"query\"}", Some("input_type"), "prompt_name");
        check("{\"normalize\":1}", Some("normalize"), "neither true nor false");
    }

    /// Clients made of dataclasses write `null` for each field that nobody set.
    #[test]
    fn null_is_left_out() {
        let parse =
            |text: &str| EmbeddingsRequest::parse(text.as_bytes(), &mut |_| Ok(())).unwrap();
        let bare = parse(r#"{"model":"m","input":"a"}"#);
        let nulls = r#"{"model":"m","input":"a","encoding_format":null,"dimensions":null,
            "truncate":null,"prompt_name":null,"tokenizer":null,"user":null,"normalize":null}"#;
        assert_eq!(parse(nulls), bare);
        assert_eq!((bare.encoding, bare.dimensions, bare.cut), (Encoding::Float, None, None));
    }

    #[test]
    fn what_happens_to_long_texts_is_said_in_several_ways() {
        let check = |truncate: &str, expected: Cut| {
            let body = format!("{{\"model\":\"m\",\"input\":\"a\",\"truncate\":{truncate}}}");
            let request = EmbeddingsRequest::parse(body.as_bytes(), &mut |_| Ok(())).unwrap();
            assert_eq!(request.cut, Some(expected));
        };
        check("true", Cut::End);
        check("\"END\"", Cut::End);
        check("\"START\"", Cut::Start);
        check("false", Cut::Refuse);
        check("\"NONE\"", Cut::Refuse);
    }

    #[test]
    fn replies_are_json() {
        let mut vectors = Vectors::new(3000, 2);
        (0..3000).for_each(|index| vectors.put(index, &[0.5, -1.0]).unwrap());
        assert!(vectors.put(0, &[1.0]).is_err());
        let pieces = EmbeddingPieces::new(vectors, Encoding::Float, "m".to_owned(), 7);
        let text: Vec<u8> = pieces.flatten().collect();
        let reply: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(reply["data"].as_array().unwrap().len(), 3000);
        assert_eq!(reply["data"][2999]["embedding"][1], -1.0);
        assert_eq!(reply["usage"]["prompt_tokens"], 7);
    }

    /// A body that is nearly a request.
    fn body() -> impl Strategy<Value = String> {
        let text = "\"([a-z ]|\\\\u00e9|\\\\ud83d|\\\\n){0,12}\"";
        let tokens = "\\[(-?[0-9]{1,11}(\\.5)?,?){0,6}\\]";
        let one = prop_oneof![text, tokens, "null|true|[0-9]{1,4}|\\{\\}"];
        let several = prop::collection::vec(one.clone(), 0..4);
        let input = prop_oneof![one, several.prop_map(|some| format!("[{}]", some.join(",")))];
        let rest =
            "(,\"(truncate|dimensions|encoding_format|prompt_name|user|input)\":.{0,6}){0,2}";
        (input, rest)
            .prop_map(|(input, rest)| format!("{{\"model\":\"m\",\"input\":{input}{rest}}}"))
    }

    proptest! {
        #[test]
        fn what_is_held_was_asked_for(body in body()) {
            let mut asked = 0;
            let mut reserve = |bytes| {
                asked = bytes;
                Ok(())
            };
            if let Ok(request) = EmbeddingsRequest::parse(body.as_bytes(), &mut reserve) {
                let held: u64 = request.inputs.iter().map(Input::held_bytes).sum();
                prop_assert!(held <= asked, "{held} of {asked}: {body}");
            }
        }

        #[test]
        fn no_body_panics(body in "[\\[\\]{}:,\"a1\\\\ .-]{0,24}|\\{\"(input|model)\":.{0,16}\\}") {
            let _ = EmbeddingsRequest::parse(body.as_bytes(), &mut |_| Ok(()));
        }
    }
}
