//! The texts of a request in a model's tokens. Many are encoded a few at a time, so that others'
//! texts are encoded in between.

use super::embeddings_json::{Cut, EmbeddingsRequest, Input};
use super::error::ApiError;
use super::helpers;
use super::state::Api;
use super::tokenizer::{Asker, Encoded, TextEncoder};
use crate::engine::{Cancel, Described};
use crate::store::manifest::Manifest;
use crate::stream::Grant;
use std::iter::Enumerate;
use std::sync::Arc;
use std::vec;

/// Bytes of texts after which others have a turn: some ten milliseconds.
const TURN_BYTES: u64 = 32 << 10;

/// A text in the model's tokens.
#[derive(Debug, Default)]
pub struct Text {
    pub tokens: Vec<u32>,
    /// Which segment each token is of; empty where all are of the first.
    pub segments: Vec<u32>,
    /// Tokens at the beginning that are not pooled.
    pub skipped: usize,
}

impl Text {
    fn held_bytes(&self) -> u64 {
        ((self.tokens.capacity() + self.segments.capacity()) * size_of::<u32>()) as u64
    }
}

/// The tokens of all inputs. The grant goes along: what is held for a client that has left is held
/// until the thread is told.
///
/// # Errors
///
/// 400 for an input that is no text of the model, with its number; 503 where there is no room.
pub async fn tokenize(
    api: &Arc<Api>,
    manifest: Described,
    request: EmbeddingsRequest,
    grant: Grant,
) -> Result<(Vec<Text>, Grant), ApiError> {
    let own_bytes = grant.bytes();
    let encoder = api.tokenizers.get((&api.helpers, &api.engine), &manifest, own_bytes).await?;
    let place = api.helpers.place()?;
    let mut encoding = Encoding::new(encoder, request, &manifest, grant)?;
    while encoding.inputs.len() > 0 {
        let api = Arc::clone(api);
        let work = move |cancel: &Cancel| {
            encoding.go_on(&api, cancel)?;
            Ok(encoding)
        };
        encoding = place.run(work).await?;
    }
    Ok((encoding.texts, encoding.grant))
}

/// A request whose inputs become tokens one after the other.
struct Encoding {
    encoder: Arc<TextEncoder>,
    prompt: String,
    /// Tokens of the prompt that are not pooled, once they were counted.
    prompt_tokens: Option<usize>,
    cut: Option<Cut>,
    has_prompt_name: bool,
    /// Whether the client says that its tokens are of this model.
    knows_tokens: bool,
    inputs: Enumerate<vec::IntoIter<Input>>,
    texts: Vec<Text>,
    /// What is held by now.
    held_bytes: u64,
    grant: Grant,
}

impl Encoding {
    fn new(
        encoder: Arc<TextEncoder>,
        request: EmbeddingsRequest,
        manifest: &Manifest,
        grant: Grant,
    ) -> Result<Encoding, ApiError> {
        let EmbeddingsRequest { model, inputs, cut, prompt_name, tokenizer, .. } = request;
        // Another version of a model may have another tokenizer.
        let version = &manifest.version;
        let is_own = |name: &String| *name == model || *name == format!("{model}/{version}");
        if !tokenizer.as_ref().is_none_or(is_own) {
            let message = format!(
                "tokens of another tokenizer mean nothing to model {model:?} version {version}"
            );
            return Err(ApiError::invalid(message).about("tokenizer"));
        }
        Ok(Encoding {
            prompt: encoder.prompt(prompt_name.as_deref())?.to_owned(),
            prompt_tokens: None,
            cut,
            has_prompt_name: prompt_name.is_some(),
            knows_tokens: tokenizer.is_some(),
            inputs: inputs.into_iter().enumerate(),
            texts: vec![],
            held_bytes: grant.bytes(),
            encoder,
            grant,
        })
    }

    /// Encodes the next inputs.
    fn go_on(&mut self, api: &Api, cancel: &Cancel) -> Result<(), ApiError> {
        if self.texts.capacity() == 0 {
            self.held_bytes += (self.inputs.len() * size_of::<Text>()) as u64;
            self.enlarge(api, cancel, 0)?;
            self.texts.reserve_exact(self.inputs.len());
        }
        let mut turn_bytes = 0;
        while turn_bytes < TURN_BYTES
            && let Some((index, input)) = self.inputs.next()
        {
            if cancel.is_cancelled() {
                return Err(helpers::left());
            }
            let input_bytes = input.held_bytes();
            turn_bytes += input_bytes;
            let text = self.encode(api, cancel, input).map_err(|error| ApiError {
                message: format!("input[{index}]: {}", error.message),
                ..error
            })?;
            self.held_bytes += text.held_bytes();
            // The list of inputs stays until its end.
            self.held_bytes -= input_bytes - size_of::<Input>() as u64;
            self.texts.push(text);
        }
        // Shrinking is always granted.
        self.grant.resize(self.held_bytes.min(self.grant.bytes()))?;
        Ok(())
    }

    /// Has so much more granted than is held.
    fn enlarge(&mut self, api: &Api, cancel: &Cancel, more_bytes: u64) -> Result<(), ApiError> {
        let (bytes, room) = (self.held_bytes + more_bytes, api.engine.room());
        match bytes > self.grant.bytes() {
            true => Ok(room.enlarge_in_time(&mut self.grant, bytes, 0, cancel)?),
            false => Ok(()),
        }
    }

    fn encode(&mut self, api: &Api, cancel: &Cancel, input: Input) -> Result<Text, ApiError> {
        let text = match input {
            Input::Text(text) => text,
            Input::Tokens(_) if self.has_prompt_name => {
                let message = "a prompt goes before texts, and this is an array of tokens";
                return Err(ApiError::invalid(message).about("prompt_name"));
            }
            Input::Tokens(tokens) => {
                self.encoder.check(&tokens)?;
                if !self.knows_tokens {
                    self.encoder.check_frame(&tokens)?;
                }
                return Ok(Text { tokens, ..Text::default() });
            }
        };
        // The text with its prompt; and a token of it is at least one of its bytes, with a segment.
        let most = text.len() + self.prompt.len() + self.encoder.frame_tokens();
        self.enlarge(api, cancel, (most * (1 + 2 * size_of::<u32>())) as u64)?;
        let asker = Asker { engine: &api.engine, own_bytes: self.grant.bytes(), cancel };
        let prompt_tokens = match self.prompt_tokens {
            Some(count) => count,
            None => *self.prompt_tokens.insert(self.encoder.skipped(&self.prompt, asker)?),
        };
        let text = if self.prompt.is_empty() { text } else { format!("{}{text}", self.prompt) };
        let Encoded { ids, segments, lost_in_front } =
            self.encoder.encode(&text, self.cut, asker)?;
        let skipped = prompt_tokens.saturating_sub(lost_in_front);
        if skipped > 0 && skipped >= ids.len() {
            let message = format!("the prompt fills the {} tokens that the model takes", ids.len());
            return Err(ApiError::invalid(message).about("prompt_name"));
        }
        Ok(Text { tokens: ids, segments, skipped })
    }
}
