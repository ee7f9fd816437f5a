//! What the daemon is asked for: the vectors of some texts, and which model they are of.

use crate::client::{Client, ClientError, segment};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use std::thread;
use std::time::{Duration, Instant};

/// Most texts that a request may have.
pub const MAX_INPUTS: usize = 2048;

/// Longest time for which a daemon that has no room is asked again.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a daemon that has no room is asked again after, where it does not say.
const PAUSE: Duration = Duration::from_secs(1);

/// What a request says beside its texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<String>,
}

/// What vectors are of. Two are the same model where nothing that both know differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub model: String,
    pub version: String,
    /// When the version was built, in seconds since 1970.
    pub created_s: u64,
    /// Unknown while it is not loaded.
    pub variant: Option<String>,
}

impl Served {
    /// What differs, in words.
    pub fn difference(&self, now: &Served) -> Option<String> {
        let other = |what: &str, then: &str, now: &str| {
            (then != now).then(|| format!("{what} was {then}, now it is {now}"))
        };
        let built = (self.created_s != now.created_s)
            .then(|| format!("version {} is another build now", now.version));
        let variants = self.variant.as_ref().zip(now.variant.as_ref());
        other("the model", &self.model, &now.model)
            .or_else(|| other("the version that is served", &self.version, &now.version))
            .or(built)
            .or_else(|| variants.and_then(|(then, now)| other("the variant", then, now)))
    }
}

/// A caller that has texts of one model embedded in one way.
pub struct Embedder<'a> {
    pub client: &'a Client,
    pub model: &'a str,
    pub options: Options,
}

/// The body of a request.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [&'a str],
    #[serde(flatten)]
    options: &'a Options,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

/// What of a reply is used.
#[derive(Deserialize)]
struct Reply {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    index: usize,
    embedding: String,
}

impl Embedder<'_> {
    /// The reply with vectors as numbers.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn numbers(&self, texts: &[&str]) -> Result<Bytes, ClientError> {
        self.post(texts, None)
    }

    /// The vector of each text, or why that text has none. A request that is refused for one of its
    /// texts is asked again in halves, until each that is at fault is alone.
    ///
    /// # Errors
    ///
    /// [`ClientError`]: what is not about a text.
    pub fn vectors(&self, texts: &[&str]) -> Result<Vec<Result<Vec<f32>, String>>, ClientError> {
        let refused = match self.patiently(|| self.post(texts, Some("base64"))) {
            Ok(reply) => return Ok(parse(&reply, texts.len())?.into_iter().map(Ok).collect()),
            Err(error) => error,
        };
        match (refused, texts.len()) {
            (ClientError::Refused { status: 400 | 413, message, param, .. }, count)
                if param.as_deref().is_none_or(|param| param == "input") =>
            {
                if count == 1 {
                    let message = message.strip_prefix("input[0]: ").unwrap_or(&message);
                    return Ok(vec![Err(message.to_owned())]);
                }
                let (first, second) = texts.split_at(count / 2);
                let mut vectors = self.vectors(first)?;
                vectors.extend(self.vectors(second)?);
                Ok(vectors)
            }
            (error, _) => Err(error),
        }
    }

    /// What is served now.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn served(&self) -> Result<Served, ClientError> {
        let model = segment(self.model);
        let get = |path: String| self.patiently(|| self.client.get(&path));
        let metadata = get(format!("/v2/models/{model}"))?;
        let listed = get(format!("/v1/models/{model}"))?;
        let stats = get(format!("/v2/models/{model}/stats"))?;
        let variant = &stats["model_stats"][0]["hermes"]["variant"];
        Ok(Served {
            model: self.model.to_owned(),
            version: metadata["versions"][0].as_str().unwrap_or_default().to_owned(),
            created_s: listed["created"].as_u64().unwrap_or(0),
            variant: variant.as_str().map(str::to_owned),
        })
    }

    fn post(&self, texts: &[&str], format: Option<&'static str>) -> Result<Bytes, ClientError> {
        let Embedder { client, model, options } = self;
        let body = Body { model, input: texts, options, encoding_format: format };
        let body = serde_json::to_vec(&body).expect("a request is JSON");
        client.post("/v1/embeddings", body).map_err(ClientError::for_flags)
    }

    /// Asks again where the daemon has no room now.
    fn patiently<T>(&self, ask: impl Fn() -> Result<T, ClientError>) -> Result<T, ClientError> {
        let began = Instant::now();
        loop {
            match ask() {
                Err(ClientError::Refused { status: 503, retry_after, .. })
                    if began.elapsed() < PATIENCE =>
                {
                    thread::sleep(retry_after.unwrap_or(PAUSE).min(PATIENCE));
                }
                answer => return answer,
            }
        }
    }
}

/// The vectors of a reply to so many texts.
fn parse(reply: &[u8], count: usize) -> Result<Vec<Vec<f32>>, ClientError> {
    let broken = |what: &str| ClientError::Broken(format!("the answer is not one: {what}"));
    let reply: Reply = serde_json::from_slice(reply).map_err(|error| broken(&error.to_string()))?;
    if !reply.data.iter().map(|entry| entry.index).eq(0..count) {
        return Err(broken("it has other vectors than were asked for"));
    }
    let vector = |entry: &Entry| floats(entry.embedding.as_bytes());
    let vectors: Option<Vec<Vec<f32>>> = reply.data.iter().map(vector).collect();
    vectors.ok_or_else(|| broken("a vector is not base64 of floats"))
}

/// Little-endian floats from base64; from `None` of what is not.
fn floats(text: &[u8]) -> Option<Vec<f32>> {
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for piece in digits.chunks(4) {
        let mut bits = 0;
        for digit in piece {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - piece.len());
        bytes.extend(&bits.to_be_bytes()[1..piece.len()]);
    }
    let (floats, rest) = bytes.as_chunks();
    rest.is_empty().then(|| floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_from_base64() {
        assert_eq!(floats(b"AACAPw==").unwrap(), [1.0]);
        assert_eq!(floats(b"AACAPwAAAMA=").unwrap(), [1.0, -2.0]);
        assert_eq!(floats(b"AACAPwAAAMAAAAA/").unwrap(), [1.0, -2.0, 0.5]);
        assert_eq!(floats(b"").unwrap(), [0.0; 0]);
        assert!(floats(b"/////w==").unwrap()[0].is_nan());
        for broken in ["AACAPw", "AACA", "AAC*Pw==", "AACAPw==="] {
            let read = floats(broken.as_bytes());
            assert_eq!(read.is_some(), broken == "AACAPw", "{broken}: {read:?}");
        }
    }

    #[test]
    fn a_reply_has_a_vector_for_each_text_in_order() {
        let reply = |indices: &[usize]| {
            let entry = |index| format!("{{\"index\":{index},\"embedding\":\"AACAPw==\"}}");
            let entries: Vec<String> = indices.iter().map(entry).collect();
            format!("{{\"data\":[{}]}}", entries.join(","))
        };
        assert_eq!(parse(reply(&[0, 1]).as_bytes(), 2).unwrap(), [[1.0], [1.0]]);
        for (indices, count) in [(&[0][..], 2), (&[1, 0], 2), (&[0, 1, 2], 2)] {
            assert!(parse(reply(indices).as_bytes(), count).is_err());
        }
        assert!(parse(b"{\"data\":[{\"index\":0,\"embedding\":[1.0]}]}", 1).is_err());
    }

    #[test]
    fn what_differs_is_said() {
        let then = Served {
            model: "m".to_owned(),
            version: "1".to_owned(),
            created_s: 7,
            variant: Some("q8".to_owned()),
        };
        let check = |now: Served, expected: Option<&str>| {
            let said = then.difference(&now);
            assert_eq!(said.is_some(), expected.is_some());
            assert!(said.is_none_or(|said| said.contains(expected.unwrap())));
        };
        check(then.clone(), None);
        check(Served { variant: None, ..then.clone() }, None);
        let variant = Some("f32".to_owned());
        check(Served { variant, ..then.clone() }, Some("variant was q8, now it is f32"));
        check(Served { version: "2".to_owned(), ..then.clone() }, Some("was 1, now it is 2"));
        check(Served { created_s: 8, ..then.clone() }, Some("another build"));
    }
}
