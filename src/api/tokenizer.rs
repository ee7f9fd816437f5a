//! A tokenizer: held in the ledger, bounded in what a text may cost.

use super::embeddings_json::Cut;
use super::error::ApiError;
use super::language::Language;
use crate::engine::{Cancel, Engine};
use crate::store::manifest::{FileEntry, Manifest, TextRules};
use crate::store::{GENERATION_HEAP_BYTES_PER_BYTE, Generation, ModelDir};
use crate::stream::{Category, Grant, OverBudget};
use crate::sys::{heap, panics};
use crate::text::chat::Prompt;
use crate::text::vocabulary::Survey;
use crate::tokens::{self, Assembled, AssemblyError, Growth, Manner};
use std::path::PathBuf;
use tokenizers::{Encoding, Token, Tokenizer, TruncationDirection};

/// Heap at the peak of encoding per byte of text; measured: 92 for prose, 406 for one token a byte.
const ENCODING_PER_BYTE: u64 = 512;

/// Longest text in bytes, whatever the budget: some 16,000 tokens of prose.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Whoever has texts tokenized: what it needs more waits for room as requests do.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    pub engine: &'a Engine,
    /// What it holds meanwhile.
    pub own_bytes: u64,
    /// Whether it still waits.
    pub cancel: &'a Cancel,
}

impl Asker<'_> {
    fn enlarge(&self, grant: &mut Grant, bytes: u64) -> Result<(), OverBudget> {
        self.engine.room().enlarge_in_time(grant, bytes, self.own_bytes, self.cancel)
    }

    /// A grant for it.
    ///
    /// # Errors
    ///
    /// Where there comes to be no room in time.
    pub fn grant(&self, category: Category, bytes: u64) -> Result<Grant, OverBudget> {
        self.engine.room().grant_in_time(category, bytes, self.own_bytes, self.cancel)
    }
}

/// A model's tokenizer.
pub struct TextEncoder {
    /// The file that it was made of.
    path: PathBuf,
    tokenizer: Tokenizer,
    /// Tokens of the longest text that the model takes, where that is known.
    limit: Option<usize>,
    /// What happens to longer ones, as the makers say.
    cut: Cut,
    rules: TextRules,
    frame: Frame,
    growth: Growth,
    vocabulary: usize,
    language: Option<Language>,
    grant: Grant,
}

/// The special tokens that go before and behind a text.
struct Frame {
    before: Vec<u32>,
    behind: Vec<u32>,
}

impl Frame {
    fn of(tokenizer: &Tokenizer) -> tokenizers::Result<Frame> {
        // Of no vocabulary: whatever is beside it was put there.
        const TEXT: u32 = u32::MAX;
        let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
        let framed = tokenizer.post_process(text, None, true)?;
        let ids = framed.get_ids();
        let texts = ids.iter().filter(|id| **id == TEXT).count();
        if texts != 1 {
            return Err(format!("post_processor makes {texts} of a text").into());
        }
        let at = ids.iter().position(|id| *id == TEXT).unwrap_or(ids.len());
        Ok(Frame { before: ids[..at].to_vec(), behind: ids[ids.len().min(at + 1)..].to_vec() })
    }

    fn tokens(&self) -> usize {
        self.before.len() + self.behind.len()
    }
}

/// A text's tokens.
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Which segment each is of; empty where all are of the first.
    pub segments: Vec<u32>,
    /// Tokens that were cut off the beginning.
    pub lost_in_front: usize,
}

impl TextEncoder {
    /// Loads the tokenizer that `entry` of `dir` is: what that may take is granted before, then
    /// what it took.
    ///
    /// # Errors
    ///
    /// 500 for a broken file; 503 where the ledger comes to have no room in time.
    pub fn load(dir: &ModelDir, entry: &FileEntry, asker: Asker) -> Result<TextEncoder, ApiError> {
        let rules = dir.manifest.text.clone().unwrap_or_default();
        let path = dir.path.join(&entry.path);
        let telling = generation_bytes(&dir.manifest);
        let surveying = Survey::own_bytes(entry.bytes).saturating_add(telling);
        let mut grant = asker.grant(Category::Tokenizer, surveying)?;
        let (built, took) = heap::metered(|| {
            let told = (dir.generation()?, rules.lowercase);
            build(dir, entry, told, &mut grant, asker)
        });
        let Built { mut tokenizer, language, growth, frame } = built?;
        let granted_bytes = grant.bytes();
        if took.peak_bytes > granted_bytes {
            log::warn!(
                "{}: loading took {} bytes, {granted_bytes} were granted",
                path.display(),
                took.peak_bytes
            );
        }
        // What loading took must be the system's again before the ledger grants it to others.
        heap::trim();
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            asker.enlarge(&mut grant, took.held_bytes)?;
        }
        let manifest = &dir.manifest;
        let own = tokenizer.get_truncation().map(|own| (own.max_length, own.direction));
        let turned_off = tokenizer.with_truncation(None).map(drop);
        turned_off.map_err(|error| ApiError::internal(format!("{}: {error}", path.display())))?;
        let said = rules.max_tokens.and_then(|most| usize::try_from(most).ok());
        let limits = [said.or(own.map(|(most, _)| most)), position_limit(manifest)];
        let limit = limits.into_iter().flatten().min();
        let cut = match (&manifest.text, own) {
            (Some(rules), _) if !rules.truncates => Cut::Refuse,
            (Some(rules), _) if rules.cuts_start => Cut::Start,
            (None, Some((_, TruncationDirection::Left))) => Cut::Start,
            (None, None) => Cut::Refuse,
            _ => Cut::End,
        };
        let vocabulary = tokenizer.get_vocab_size(true);
        Ok(TextEncoder {
            path,
            tokenizer,
            limit,
            cut,
            rules,
            frame,
            growth,
            vocabulary,
            language,
            grant,
        })
    }

    /// Bytes that are granted for it.
    pub fn held_bytes(&self) -> u64 {
        self.grant.bytes()
    }

    /// The text of the prompt that `name` asks for, or of the one that comes unasked.
    ///
    /// # Errors
    ///
    /// 400 for a name that the model has no prompt of.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str, ApiError> {
        let Some(name) = name.or(self.rules.default_prompt.as_deref()) else { return Ok("") };
        self.rules.prompt(name).ok_or_else(|| {
            let known: Vec<&str> = self.rules.prompts.iter().map(|p| p.name.as_str()).collect();
            let known = match known[..] {
                [] => "none".to_owned(),
                _ => known.join(", "),
            };
            let name: String = name.chars().take(64).collect();
            let message = format!("there is no prompt {name:?}: the model has {known}");
            ApiError::invalid(message).about("prompt_name")
        })
    }

    /// How many tokens at the beginning of a text are its prompt's and not pooled.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::encode`].
    pub fn skipped(&self, prompt: &str, asker: Asker) -> Result<usize, ApiError> {
        if !self.rules.skips_prompt || prompt.is_empty() {
            return Ok(0);
        }
        let tokens = self.encode(prompt, Some(Cut::End), asker)?.ids;
        // A special token at the end follows the text, not the prompt.
        let special = self.tokenizer.get_added_tokens_decoder();
        let is_closed =
            tokens.last().is_some_and(|last| special.get(last).is_some_and(|token| token.special));
        Ok(tokens.len() - usize::from(is_closed))
    }

    /// The tokens of `text`. One that is too long is cut as the caller says, else as the makers do.
    ///
    /// # Errors
    ///
    /// 400 for a text longer than the model takes; 503 where the ledger has no room to encode it.
    pub fn encode(&self, text: &str, cut: Option<Cut>, asker: Asker) -> Result<Encoded, ApiError> {
        if text.len() > MAX_TEXT_BYTES {
            let message =
                format!("the text has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
            return Err(ApiError::invalid(message).about("input"));
        }
        let own_bytes = asker.own_bytes + self.grant.bytes();
        let _grant = Asker { own_bytes, ..asker }.grant(Category::Request, self.scratch(text))?;
        let encode = || self.tokenizer.encode_fast(text, false);
        let mut encoding = self.guarded("input", encode)?;
        let length = encoding.len() + self.frame.tokens();
        let mut lost_in_front = 0;
        if let Some(limit) = self.limit.filter(|limit| length > *limit) {
            let direction = match cut.unwrap_or(self.cut) {
                Cut::End => TruncationDirection::Right,
                Cut::Start => TruncationDirection::Left,
                Cut::Refuse => return Err(self.too_long(length, limit)),
            };
            if direction == TruncationDirection::Left {
                lost_in_front = length - limit;
            }
            encoding.truncate(limit.saturating_sub(self.frame.tokens()), 0, direction);
        }
        let finish = || self.tokenizer.post_process(encoding, None, true);
        let encoding = self.guarded("input", finish)?;
        let (ids, segments) = (encoding.get_ids().to_vec(), encoding.get_type_ids());
        self.check(&ids)?;
        let is_one = segments.iter().all(|segment| *segment == 0);
        let segments = if is_one { vec![] } else { segments.to_vec() };
        Ok(Encoded { ids, segments, lost_in_front })
    }

    /// What is to be known to have the model write texts.
    pub fn language(&self) -> Option<&Language> {
        self.language.as_ref()
    }

    /// The tokens of a plain prompt, with those that the tokenizer adds.
    ///
    /// # Errors
    ///
    /// 400 for a text that is too long; 503 where the ledger has no room to encode it.
    pub fn encode_prompt(&self, text: &str, asker: Asker) -> Result<Vec<u32>, ApiError> {
        let encode = || {
            let encoding = self.tokenizer.encode_fast(text, false)?;
            Ok(self.tokenizer.post_process(encoding, None, true)?.get_ids().to_vec())
        };
        self.encode_by(text, "prompt", asker, encode)
    }

    /// The tokens of a rendered chat.
    ///
    /// # Errors
    ///
    /// As [`TextEncoder::encode_prompt`].
    pub fn encode_chat(
        &self,
        language: &Language,
        prompt: &Prompt,
        asker: Asker,
    ) -> Result<Vec<u32>, ApiError> {
        let encode = || language.encode(&self.tokenizer, prompt);
        self.encode_by(&prompt.text, "messages", asker, encode)
    }

    fn encode_by(
        &self,
        text: &str,
        param: &'static str,
        asker: Asker,
        encode: impl FnOnce() -> tokenizers::Result<Vec<u32>>,
    ) -> Result<Vec<u32>, ApiError> {
        let own_bytes = asker.own_bytes + self.grant.bytes();
        let asker = Asker { own_bytes, ..asker };
        if text.len() <= MAX_TEXT_BYTES {
            let _grant = asker.grant(Category::Request, self.scratch(text))?;
            return self.guarded(param, encode);
        }
        // Counted in pieces, as far as it takes to tell that it is too long.
        let context = self.language.as_ref().and_then(|language| language.generation.context);
        let (mut rest, mut tokens) = (text, 0);
        while let Some(context) = context.filter(|_| !rest.is_empty()) {
            let at = rest.floor_char_boundary(MAX_TEXT_BYTES / 2);
            let (piece, behind) = rest.split_at(at);
            let _grant = asker.grant(Category::Request, self.scratch(piece))?;
            let encode = || self.tokenizer.encode_fast(piece, false);
            tokens += self.guarded(param, encode)?.len() as u64;
            if tokens > context {
                return Err(ApiError::too_long(param, &format!("at least {tokens}"), context));
            }
            rest = behind;
        }
        let message = format!("the text has {} bytes; the limit is {MAX_TEXT_BYTES}", text.len());
        Err(ApiError::invalid(message).about(param))
    }

    /// Cuts a text, or part of one. A text that the tokenizer refuses is its client's error; where
    /// the library panics, the file is at fault.
    fn guarded<T>(
        &self,
        param: &'static str,
        work: impl FnOnce() -> tokenizers::Result<T>,
    ) -> Result<T, ApiError> {
        match panics::caught(work) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                let message = format!("cannot tokenize the text: {error}");
                Err(ApiError::invalid(message).about(param))
            }
            Err(panic) => {
                let path = self.path.display();
                Err(ApiError::internal(format!("{path}: it fails over a text: {panic}")))
            }
        }
    }

    /// Most that encoding a text takes of the heap.
    fn scratch(&self, text: &str) -> u64 {
        let frame = self.frame.tokens() as u64;
        self.growth.bytes(text).saturating_add(frame).saturating_mul(ENCODING_PER_BYTE)
    }

    /// Refuses ids that are no tokens.
    ///
    /// # Errors
    ///
    /// 400, with the first of them.
    pub fn check_ids(&self, ids: &[u32], param: &'static str) -> Result<(), ApiError> {
        let is_none = |id: &&u32| self.tokenizer.id_to_token(**id).is_none();
        match ids.iter().find(is_none) {
            None => Ok(()),
            Some(id) => {
                let count = self.vocabulary;
                let message = format!("token {id} is none of the model's vocabulary of {count}");
                Err(ApiError::invalid(message).about(param))
            }
        }
    }

    /// A token as its tokenizer has it, and whether no text shows it.
    pub fn token(&self, language: &Language, id: u32) -> Option<(String, bool)> {
        language.token(&self.tokenizer, id)
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Special tokens that a text gets.
    pub fn frame_tokens(&self) -> usize {
        self.frame.tokens()
    }

    /// Refuses tokens that do not begin and end as texts do here: those of another tokenizer mean
    /// other words.
    ///
    /// # Errors
    ///
    /// 400, with what would do.
    pub fn check_frame(&self, tokens: &[u32]) -> Result<(), ApiError> {
        let Frame { before, behind } = &self.frame;
        let is_framed = self.frame.tokens() > 0
            && tokens.len() >= self.frame.tokens()
            && tokens.starts_with(before)
            && tokens.ends_with(behind);
        if is_framed {
            return Ok(());
        }
        let looks = match self.frame.tokens() {
            0 => String::new(),
            _ => format!(", as those do that begin with {before:?} and end with {behind:?}"),
        };
        let message = format!(
            "these tokens do not say that they are of this model's tokenizer{looks}\n\
             send texts, or the model's name as \"tokenizer\" where they are"
        );
        Err(ApiError::invalid(message).about("input"))
    }

    fn too_long(&self, length: usize, limit: usize) -> ApiError {
        let message = format!(
            "{length} tokens; the model takes at most {limit}\n\
             shorten the text, or send \"truncate\": true"
        );
        ApiError::invalid(message).about("input")
    }

    /// Checks tokens, from a text or from the client.
    pub fn check(&self, tokens: &[u32]) -> Result<(), ApiError> {
        let refuse = |message: String| Err(ApiError::invalid(message).about("input"));
        if let Some(limit) = self.limit.filter(|limit| tokens.len() > *limit) {
            return Err(self.too_long(tokens.len(), limit));
        }
        // Ids are no count: a vocabulary may have holes, and ids above its size.
        let is_none = |token: &&u32| self.tokenizer.id_to_token(**token).is_none();
        match tokens.iter().find(is_none) {
            Some(token) => refuse(format!(
                "token {token} is none of the model's vocabulary of {}",
                self.vocabulary
            )),
            None if tokens.is_empty() => refuse("the input has no tokens".to_owned()),
            None => Ok(()),
        }
    }
}

/// Most that reading generation.json takes, and what is read holds.
fn generation_bytes(manifest: &Manifest) -> u64 {
    let entry = manifest.generation.as_ref();
    entry.map_or(0, |entry| entry.bytes.saturating_mul(GENERATION_HEAP_BYTES_PER_BYTE))
}

/// A tokenizer, and what it is to know where its model writes texts.
struct Built {
    tokenizer: Tokenizer,
    language: Option<Language>,
    growth: Growth,
    frame: Frame,
}

/// Reads and builds a tokenizer. `grant` covers surveying it, then building it.
fn build(
    dir: &ModelDir,
    entry: &FileEntry,
    (generation, lowercase): (Option<Generation>, bool),
    grant: &mut Grant,
    asker: Asker,
) -> Result<Built, ApiError> {
    let path = dir.path.join(&entry.path);
    let failed = |what: String| ApiError::internal(format!("{}: {what}", path.display()));
    let json = dir.read_file(entry)?;
    let beside_bytes = generation_bytes(&dir.manifest);
    let manner = Manner { writes_texts: generation.is_some(), lowercase };
    let assembled = tokens::assemble(&json, manner, |bytes| {
        asker.enlarge(grant, bytes.saturating_add(beside_bytes))
    });
    let Assembled { tokenizer, added, decoder, growth, .. } =
        assembled.map_err(|error| match error {
            AssemblyError::Room(refused) => refused.into(),
            AssemblyError::Unfit(what) => failed(what),
            AssemblyError::Rule(rule) => failed(rule.to_string()),
        })?;
    let language = generation.map(|told| Language::new(told, &tokenizer, &added, &decoder));
    let language = language.transpose().map_err(|error| failed(error.to_string()))?;
    let frame = panics::caught(|| Frame::of(&tokenizer));
    let frame = frame.map_err(|panic| failed(format!("it fails over a text: {panic}")))?;
    let frame = frame.map_err(|error| failed(error.to_string()))?;
    Ok(Built { tokenizer, language, growth, frame })
}

/// Rows of the table of learned positions, where the model has one among its big weights.
fn position_limit(manifest: &Manifest) -> Option<usize> {
    let table = manifest.weights.iter().find(|weight| {
        weight.shape.len() == 2
            && (weight.name.contains("position_embeddings") || weight.name.ends_with("wpe.weight"))
    })?;
    usize::try_from(table.shape[0]).ok()
}
