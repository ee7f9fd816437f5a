//! A request for texts once its prompts are tokens, and the texts while they are being written.

use super::embeddings_json::Input;
use super::error::ApiError;
use super::generation_json::{Asked, GenerationRequest};
use super::openai;
use super::state::Api;
use super::tokenizer::{Asker, TextEncoder};
use super::writing::{Ending, Event, Finish, Manner, Piece, Writing};
use crate::engine::{Cancel, Described, Ended, EngineError, Generated, Prompt};
use crate::plan::Target;
use crate::store::manifest::Manifest;
use crate::stream::{Category, Grant};
use crate::text::chat::{Chat, ChatError};
use crate::text::random;
use crate::text::sampler::{Sampler, Sampling};
use crate::text::template::most_bytes;
use axum::http::StatusCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// Tokens of an answer where a request says nothing: OpenAI's for completions. A chat's answer goes as
/// far as the context does, and no further than what few answers need.
const COMPLETION_TOKENS: usize = 16;
const CHAT_TOKENS: usize = 1024;

/// The context of a model whose files say nothing of it.
const UNKNOWN_CONTEXT: usize = 4096;

/// Texts of a request that are written side by side.
pub const SIDE_BY_SIDE: usize = 4;

/// What drawing a token takes for each that there is: scores, and likelihoods to be told.
const DRAWING_BYTES: usize = 32;

/// What a token of a prompt takes while its text is written: as read by the session, twice, and in
/// what is known to be said.
const PROMPT_BYTES: usize = 40;

/// Pieces that wait for whoever takes them: then the text waits.
const PIECES: usize = 64;

/// A request whose prompts are tokens.
pub struct Job {
    pub model: Arc<str>,
    pub prompts: Vec<Vec<u32>>,
    /// The field that they came in.
    param: &'static str,
    pub streams: bool,
    pub includes_usage: bool,
    pub logprobs: Option<usize>,
    version: String,
    encoder: Arc<TextEncoder>,
    request: GenerationRequest,
    sampling: Sampling,
    /// Tokens of an answer where the request says nothing.
    usual_tokens: usize,
    context: usize,
    target: Option<Target>,
    deadline: Option<Instant>,
    /// For what came with the request and is made of it.
    grant: Grant,
}

impl Job {
    /// The job of a request, for which `grant` is held.
    ///
    /// # Errors
    ///
    /// 400 for what is no prompt of the model, 404 for no model, 503 where there is no room.
    pub async fn prepare(
        api: &Arc<Api>,
        request: GenerationRequest,
        grant: Grant,
    ) -> Result<Job, ApiError> {
        let named = request.model.clone();
        let manifest = api.look(move |api| openai::manifest(api, &named)).await?;
        check_writes(&manifest)?;
        let own_bytes = grant.bytes();
        let got = api.tokenizers.get((&api.helpers, &api.engine), &manifest, own_bytes);
        let encoder = got.await?;
        let work = move |api: &Arc<Api>, cancel: &Cancel| {
            let asker = Asker { engine: &api.engine, own_bytes, cancel };
            Job::tokenize(manifest, encoder, request, grant, asker)
        };
        api.help(work).await
    }

    /// The same to be done within a time, by weights of such precision.
    pub fn within(self, target: Option<Target>, deadline: Option<Instant>) -> Job {
        Job { target, deadline, ..self }
    }

    /// What it holds as long as it lasts.
    fn held_bytes(&self) -> u64 {
        self.grant.bytes() + self.encoder.held_bytes()
    }

    fn tokenize(
        manifest: Described,
        encoder: Arc<TextEncoder>,
        mut request: GenerationRequest,
        mut grant: Grant,
        asker: Asker,
    ) -> Result<Job, ApiError> {
        let language = encoder.language().ok_or_else(|| writes_none(&manifest))?;
        let generation = &language.generation;
        let context = generation.context.and_then(|context| usize::try_from(context).ok());
        let context = context.unwrap_or(UNKNOWN_CONTEXT);
        let asked = std::mem::replace(&mut request.asked, Asked::Prompts(vec![]));
        let (prompts, param, usual_tokens) = match asked {
            Asked::Prompts(prompts) => {
                let prompts = prompts.into_iter().map(|prompt| match prompt {
                    Input::Text(text) => encoder.encode_prompt(&text, asker),
                    Input::Tokens(ids) => Ok(ids),
                });
                (prompts.collect::<Result<Vec<_>, _>>()?, "prompt", COMPLETION_TOKENS)
            }
            Asked::Chat(chat, bytes) => {
                (vec![render(&encoder, &chat, bytes, asker)?], "messages", CHAT_TOKENS)
            }
        };
        for ids in &prompts {
            if ids.is_empty() {
                let message = "the prompt has no tokens, and the model has none that begins texts";
                return Err(ApiError::invalid(message).about(param));
            }
            encoder.check_ids(ids, param)?;
            if ids.len() >= context {
                return Err(ApiError::too_long(param, &ids.len().to_string(), context as u64));
            }
        }
        let sampling = request.sampling(&generation.sampling, encoder.vocabulary())?;
        let kept = |ids: &Vec<u32>| ids.capacity() * size_of::<u32>() + ids.len() * PROMPT_BYTES;
        let held: usize = prompts.iter().map(kept).sum();
        let drawing = prompts.len().min(SIDE_BY_SIDE) * encoder.vocabulary() * DRAWING_BYTES;
        let bytes = (held + drawing) as u64;
        match bytes > grant.bytes() {
            true => asker.engine.room().enlarge_in_time(&mut grant, bytes, 0, asker.cancel)?,
            false => grant.resize(bytes)?,
        }
        Ok(Job {
            model: manifest.model.as_str().into(),
            version: manifest.version.clone(),
            prompts,
            param,
            streams: request.streams,
            includes_usage: request.includes_usage,
            logprobs: request.logprobs,
            encoder,
            request,
            sampling,
            usual_tokens,
            context,
            target: None,
            deadline: None,
            grant,
        })
    }
}

/// The tokens of a chat.
fn render(
    encoder: &TextEncoder,
    chat: &Chat,
    bytes: usize,
    asker: Asker,
) -> Result<Vec<u32>, ApiError> {
    let language = encoder.language().ok_or_else(|| ApiError::internal("no language"))?;
    let rendering = asker.grant(Category::Request, most_bytes(bytes))?;
    let prompt = chat.prompt(&language.generation, &language.controls, bytes);
    let prompt = prompt.map_err(|error| {
        let param = match &error {
            ChatError::ToolsUnseen => "tools",
            ChatError::NoTemplate => "model",
            _ => "messages",
        };
        ApiError::invalid(error.to_string()).about(param)
    })?;
    let own_bytes = asker.own_bytes + rendering.bytes();
    encoder.encode_chat(language, &prompt, Asker { own_bytes, ..asker })
}

fn check_writes(manifest: &Manifest) -> Result<(), ApiError> {
    match manifest.generation.is_some() && manifest.tokenizer.is_some() {
        true => Ok(()),
        false => Err(writes_none(manifest)),
    }
}

fn writes_none(manifest: &Manifest) -> ApiError {
    let message = format!(
        "model {:?} writes no texts: it has no inputs for past keys and values, or no tokenizer.json",
        manifest.model
    );
    ApiError::invalid(message).about("model")
}

/// A text that is being written; dropping it, as when the client goes away, ends it.
pub struct Session {
    events: mpsc::Receiver<Event>,
    done: oneshot::Receiver<Result<Generated, EngineError>>,
    cancel: Cancel,
    model: Arc<str>,
    /// The field that the prompt came in.
    param: &'static str,
    is_over: bool,
    ending: Ending,
}

impl Session {
    /// Begins to write after one of a request's prompts.
    ///
    /// # Errors
    ///
    /// 400 for a model whose tokens make no text.
    pub fn begin(api: &Arc<Api>, job: &Job, index: usize) -> Result<Session, ApiError> {
        let ids = job.prompts[index].clone();
        let wanted = job.request.max_tokens;
        let max_tokens = wanted.unwrap_or(job.usual_tokens).min(job.context - ids.len());
        let seed = job.request.seed.unwrap_or_else(random::any_seed);
        let cancel = Cancel::new();
        let manner = Manner {
            sampler: Sampler::new(job.sampling.clone(), Some(seed), &ids),
            stops: job.request.stops.clone(),
            max_tokens,
            logprobs: job.logprobs,
            cancel: cancel.clone(),
        };
        let (sender, events) = mpsc::channel(PIECES);
        let speed = (Arc::clone(&api.speed), Arc::clone(&job.model));
        let writing =
            Writing::new(&api.engine, Arc::clone(&job.encoder), &ids, manner, sender, speed)?;
        let (finish, cached_tokens, completion_tokens) = (Finish::Length, 0, 0);
        let ending = Ending { finish, prompt_tokens: ids.len(), cached_tokens, completion_tokens };
        let prompt = Prompt {
            model: job.model.to_string(),
            version: Some(job.version.clone()),
            ids,
            max_tokens,
            is_usual: wanted.is_none(),
            context: Some(job.context),
            target: job.target,
            decide: Box::new(writing),
            own_bytes: job.held_bytes(),
            cancel: cancel.clone(),
            deadline: job.deadline,
        };
        let (sender, done) = oneshot::channel();
        // The receiver is gone if the client is.
        api.engine.generate(prompt, move |generated| drop(sender.send(generated)));
        let (model, param, is_over) = (Arc::clone(&job.model), job.param, false);
        Ok(Session { events, done, cancel, model, param, is_over, ending })
    }

    /// The next piece of the text; none once it has ended.
    ///
    /// # Errors
    ///
    /// Why it cannot go on.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        if self.is_over {
            return Ok(None);
        }
        match self.events.recv().await {
            Some(Event::Piece(piece)) => Ok(Some(piece)),
            Some(Event::Failed(error)) => Err(error),
            Some(Event::End(piece, finish, count)) => {
                (self.ending.finish, self.ending.completion_tokens) = (finish, count);
                // What breaks from here on changes nothing of the text.
                if let Ok(Ok(generated)) = (&mut self.done).await {
                    self.ending.cached_tokens = generated.stats.cached_tokens;
                }
                self.is_over = true;
                Ok(Some(piece))
            }
            None => self.give_up().await.map(|()| None),
        }
    }

    /// Finds out why no more comes.
    async fn give_up(&mut self) -> Result<(), ApiError> {
        self.is_over = true;
        let stopping = || ApiError::unavailable("the daemon is stopping");
        let generated = (&mut self.done).await.map_err(|_| stopping())?;
        let generated = generated.map_err(|error| self.refused(error))?;
        self.ending.completion_tokens = generated.ids.len();
        self.ending.cached_tokens = generated.stats.cached_tokens;
        match generated.ended {
            // It had room for no more than that.
            Ended::Decided | Ended::Length => Ok(()),
            ended => Err(broken(ended, &self.model)),
        }
    }

    /// Why the prompt is not taken: what a pass refuses came with it.
    fn refused(&self, error: EngineError) -> ApiError {
        let error = ApiError::from(error);
        match error.status == StatusCode::BAD_REQUEST && error.param.is_none() {
            true => error.about(self.param),
            false => error,
        }
    }

    /// How it ended.
    pub fn ending(&self) -> Ending {
        self.ending
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Why a text that was begun goes on no more, where that is no end of it.
fn broken(ended: Ended, model: &str) -> ApiError {
    match ended {
        Ended::Failed(error) => error.into(),
        Ended::Deadline => {
            let message = "the time that the request gave is over";
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, message)
        }
        other => {
            let message = format!("model {model:?}: the text was broken off: {}", other.name());
            ApiError::unavailable(message)
        }
    }
}
