//! A text as a model writes it, token by token: drawn, made text, and ended where it should.

use super::error::ApiError;
use super::speed::Speed;
use super::tokenizer::TextEncoder;
use crate::engine::{Cancel, Decide, Engine, Next};
use crate::stream::{Category, Grant, OverBudget};
use crate::text::detokenizer::Bytes;
use crate::text::sampler::{Sampler, logprobs};
use crate::text::stops::Stops;
use crate::text::whole::Whole;
use axum::http::StatusCode;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::Sender;

/// What becomes of a text.
#[derive(Debug)]
pub enum Event {
    /// It goes on.
    Piece(Piece),
    /// It ends, and why; what is left of it is the piece.
    End(Piece, Finish, usize),
    /// It cannot go on.
    Failed(ApiError),
}

/// A piece of a text.
#[derive(Debug, Default)]
pub struct Piece {
    pub text: String,
    /// The tokens since the piece before, where they are asked for.
    pub tokens: Vec<Told>,
    /// For all of it, and for its place in a list.
    pub _grant: Option<Grant>,
}

/// What a piece takes beside its text and tokens: its place in a list that grows by doubling, and a
/// string's least.
const PIECE_BYTES: usize = 3 * size_of::<Piece>() + 32;

/// What a token that is told takes beside its bytes, as part of a list, and as a string's least.
const NAMED_BYTES: usize = 2 * size_of::<Named>() + 32;

impl Piece {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string did.
    Stop,
    /// It has as many tokens as it may.
    Length,
}

impl Finish {
    /// As OpenAI calls it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// How a text ended, and what it took.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub completion_tokens: usize,
}

/// A token, and how likely it was.
#[derive(Debug)]
pub struct Told {
    pub token: Named,
    /// Where in the text it begins, in characters.
    pub offset: usize,
    /// The likeliest ones, best first.
    pub top: Vec<Named>,
}

/// A token with its bytes and the logarithm of its probability.
#[derive(Debug)]
pub struct Named {
    pub bytes: Vec<u8>,
    pub logprob: f64,
}

/// Decides what a text's next token is, and sends on what becomes of it.
pub struct Writing {
    encoder: Arc<TextEncoder>,
    sampler: Sampler,
    ends: HashSet<u32>,
    /// Most tokens, and how many there are.
    max_tokens: usize,
    count: usize,
    bytes: Bytes,
    whole: Whole,
    stops: Stops,
    logprobs: Option<usize>,
    /// Tokens whose text is held back.
    told: Vec<Told>,
    /// For these.
    told_grant: Grant,
    engine: Engine,
    cancel: Cancel,
    events: Sender<Event>,
    speed: Arc<Speed>,
    model: Arc<str>,
    /// When it was asked for, then when the last token came.
    before: Instant,
}

/// What a text is written by.
pub struct Manner {
    pub sampler: Sampler,
    pub stops: Stops,
    pub max_tokens: usize,
    pub logprobs: Option<usize>,
    /// Whether anybody still waits for it.
    pub cancel: Cancel,
}

impl Writing {
    /// Writes after a prompt of these tokens.
    ///
    /// # Errors
    ///
    /// 400 for a model whose tokens make no text.
    pub fn new(
        engine: &Engine,
        encoder: Arc<TextEncoder>,
        prompt: &[u32],
        manner: Manner,
        events: Sender<Event>,
        (speed, model): (Arc<Speed>, Arc<str>),
    ) -> Result<Writing, ApiError> {
        let language = encoder.language().ok_or_else(|| ApiError::internal("no language"))?;
        let detokenizer = language.detokenizer.clone();
        let detokenizer = detokenizer.map_err(|what| {
            ApiError::invalid(format!("model {model:?} writes no texts: {what}")).about("model")
        })?;
        let ends = language.generation.end_tokens.iter().copied().collect();
        let mut bytes = Bytes::new(detokenizer);
        // A space at the start is only lost where no text stands before.
        for id in prompt {
            if let Some((token, false)) = encoder.token(language, *id) {
                bytes.push(&token);
            }
        }
        let Manner { sampler, stops, max_tokens, logprobs, cancel } = manner;
        Ok(Writing {
            sampler,
            ends,
            max_tokens,
            count: 0,
            bytes,
            whole: Whole::default(),
            stops,
            logprobs,
            told: vec![],
            told_grant: engine.ledger().try_grant(Category::Request, 0)?,
            engine: engine.clone(),
            cancel,
            events,
            speed,
            model,
            before: Instant::now(),
            encoder,
        })
    }

    /// The bytes of a token by itself.
    fn bytes_of(&self, id: u32) -> Vec<u8> {
        let Some(language) = self.encoder.language() else { return vec![] };
        match (self.encoder.token(language, id), &language.detokenizer) {
            (Some((token, true)), _) => token.into_bytes(),
            (Some((token, false)), Ok(detokenizer)) => detokenizer.bytes(&token),
            _ => vec![],
        }
    }

    /// Has so many bytes more granted for what is told or sent next.
    fn hold(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let all_bytes = self.told_grant.bytes() + bytes as u64;
        self.engine.room().enlarge_in_time(&mut self.told_grant, all_bytes, 0, &self.cancel)
    }

    fn tell(&mut self, id: u32, offset: usize, logits: &[f32]) -> Result<(), OverBudget> {
        let Some(count) = self.logprobs else { return Ok(()) };
        let (logprob, top) = logprobs(logits, Some(id), count);
        let ids = top.iter().map(|(id, _)| *id).chain([id]);
        let bytes = ids.map(|id| NAMED_BYTES + self.bytes_of(id).len()).sum::<usize>();
        self.hold(2 * size_of::<Told>() + bytes)?;
        let named = |id: u32, logprob: f64| Named { bytes: self.bytes_of(id), logprob };
        let token = named(id, logprob.unwrap_or(f64::NEG_INFINITY));
        let top = top.into_iter().map(|(id, logprob)| named(id, logprob)).collect();
        self.told.push(Told { token, offset, top });
        Ok(())
    }

    /// What goes out of a text, with the tokens that wait for it.
    fn piece(&mut self, text: String) -> Result<Piece, OverBudget> {
        self.hold(PIECE_BYTES + text.capacity())?;
        let tokens = std::mem::take(&mut self.told);
        Ok(Piece { text, tokens, _grant: Some(self.told_grant.split(u64::MAX)) })
    }

    fn time(&mut self) {
        let now = Instant::now();
        let us = u64::try_from((now - self.before).as_micros()).unwrap_or(u64::MAX);
        match self.count {
            1 => self.speed.first(&self.model, us),
            _ => self.speed.next(&self.model, us),
        }
        self.before = now;
    }

    /// Sends an event; false where nobody waits for it.
    fn send(&self, event: Event) -> bool {
        self.events.blocking_send(event).is_ok()
    }

    /// The rest of a text, which goes on no more.
    fn end(
        &mut self,
        mut text: String,
        finish: Finish,
        is_stopped: bool,
    ) -> Result<(), OverBudget> {
        if !is_stopped {
            let left = self.whole.end();
            let passed = self.stops.push(&left);
            text += &passed.text;
            if passed.stop.is_none() {
                text += &self.stops.end();
            }
        }
        let piece = self.piece(text)?;
        self.send(Event::End(piece, finish, self.count));
        Ok(())
    }

    /// Sends on what a token makes of the text.
    fn write(&mut self, id: u32, logits: &[f32]) -> Result<Next, OverBudget> {
        self.count += 1;
        self.time();
        if self.ends.contains(&id) {
            self.end(String::new(), Finish::Stop, false)?;
            return Ok(Next::End);
        }
        let token = self.encoder.language().and_then(|of| self.encoder.token(of, id));
        let bytes = match token {
            Some((token, false)) => self.bytes.push(&token),
            _ => vec![],
        };
        self.tell(id, self.whole.place(&bytes), logits)?;
        let whole = self.whole.push(&bytes);
        let passed = self.stops.push(&whole);
        if passed.stop.is_some() {
            self.end(passed.text, Finish::Stop, true)?;
            return Ok(Next::End);
        }
        if self.count >= self.max_tokens {
            self.end(passed.text, Finish::Length, false)?;
            return Ok(Next::Token(id));
        }
        if passed.text.is_empty() {
            return Ok(Next::Token(id));
        }
        let piece = self.piece(passed.text)?;
        match self.send(Event::Piece(piece)) {
            true => Ok(Next::Token(id)),
            false => Ok(Next::End),
        }
    }

    /// Ends where the text cannot go on.
    fn fail(&mut self, error: ApiError) -> Next {
        self.send(Event::Failed(error));
        Next::End
    }
}

impl Decide for Writing {
    fn next(&mut self, logits: &[f32]) -> Next {
        let id = match self.sampler.next(logits) {
            Ok(id) => id,
            Err(error) => {
                let message = format!("the text cannot go on: {error}");
                return self.fail(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message));
            }
        };
        self.write(id, logits).unwrap_or_else(|refused| self.fail(refused.into()))
    }
}
