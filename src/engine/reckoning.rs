//! What a session takes: reckoned by the model's plan, and granted before it begins.

use super::error::EngineError;
use super::generation::SAID_BYTES;
use super::library::Library;
use super::model::Model;
use super::needs::needed_to_write;
use super::opening::{Opened, Opening, SessionNeeds};
use super::past::{Decoding, Past};
use super::room::Hold;
use crate::graph::{Footprint, MOST_NEW};
use crate::store::Cache;
use crate::stream::OverBudget;
use std::sync::Arc;

/// Most tokens of a prompt that a pass reads: where more share it, reading the tape costs no time.
const MOST_CHUNK: usize = MOST_NEW;

/// Share of the budget that a part of a prompt may take, if one token does not take more.
const CHUNK_SHARE: u64 = 8;

/// Fewest tokens of an answer that are worth beginning where nobody said how many.
const LEAST_USUAL: usize = 16;

/// What is reckoned with.
struct Reckoning<'a> {
    model: &'a Model,
    decoding: &'a Decoding,
    budget_bytes: u64,
}

impl Reckoning<'_> {
    /// What a pass takes beside keys and values that reads the last `new` of so many tokens and gives
    /// the logits of the last `rows` of these.
    fn work_bytes(&self, tokens: usize, new: usize, rows: usize) -> u64 {
        let decoder = &self.decoding.decoder;
        let shapes = decoder.shapes(tokens.saturating_sub(new), new);
        let footprint = self.model.footprint_of_rows(&shapes, rows);
        // Where it shares the pass, another one's grant may have what threads decode blocks into.
        let together_bytes = footprint.together_bytes + self.model.decoding_bytes();
        let held_bytes = footprint.alone_bytes.max(together_bytes);
        let logits_bytes = (rows * decoder.vocabulary * size_of::<f32>()) as u64;
        // The plan counts keys and values of all tokens, whatever is kept of them.
        let taken = |cache: &Cache| Footprint::taken_bytes(cache.bytes_of(tokens));
        let present_bytes: u64 = decoder.caches.iter().map(taken).sum();
        held_bytes.saturating_sub(present_bytes) + logits_bytes
    }

    /// How many tokens of a prompt a pass reads, how many it looks at that are proposed, and what the
    /// session holds. It goes by the budget and by nobody else's needs: how a prompt is cut may change
    /// the last bits of what comes of it.
    fn needs(&self, prompt: usize, tokens: usize) -> ([usize; 2], SessionNeeds) {
        let one_bytes = self.work_bytes(tokens, 1, 1);
        let limit_bytes = one_bytes.max(self.budget_bytes / CHUNK_SHARE);
        // As many as fit in that, halved from the most.
        let fitting = |most: usize, work_bytes: &dyn Fn(usize) -> u64| {
            let halves =
                std::iter::successors(Some(most), |new| Some(new / 2).filter(|new| *new > 1));
            let found = halves.map(|new| (new, work_bytes(new))).find(|(_, b)| *b <= limit_bytes);
            found.unwrap_or((1, one_bytes))
        };
        let most = if self.decoding.decoder.is_single { 1 } else { MOST_CHUNK };
        let prefill = |new: usize| self.work_bytes(tokens, new.min(prompt), 1);
        let (chunk, prefill_bytes) = fitting(most.min(prompt.next_power_of_two()), &prefill);
        let step = |new: usize| self.work_bytes(tokens, new.min(tokens), new);
        let (rows, step_bytes) = fitting(self.decoding.most_rows, &step);
        let said_bytes = (tokens as u64).saturating_mul(size_of::<u32>() as u64 + SAID_BYTES);
        let kept_bytes = self.decoding.kept_bytes(tokens).saturating_add(said_bytes);
        ([chunk, rows], SessionNeeds { kept_bytes, prefill_bytes, step_bytes })
    }

    /// How many tokens would fit where so many, of which the first are a prompt, do not.
    fn most_tokens(&self, prompt: usize, tokens: usize, refused: &OverBudget) -> usize {
        let others_bytes = refused.smallest_budget_bytes().saturating_sub(refused.need_bytes);
        let room = self.budget_bytes.saturating_sub(others_bytes);
        let fits = |tokens: usize| {
            let (_, needs) = self.needs(prompt.min(tokens), tokens);
            needs.opening_bytes() <= room
        };
        let (mut most, mut beyond) = (0, tokens);
        while beyond - most > 1 {
            let middle = most + (beyond - most) / 2;
            match fits(middle) {
                true => most = middle,
                false => beyond = middle,
            }
        }
        most
    }
}

/// Grants what a session of `model` takes, where there is room for it once all has given way that
/// nobody uses.
///
/// # Errors
/// What never fits, with the numbers; what does not fit now ([`OverBudget::can_fit`]); a model that
/// generates no text, a prompt that is none.
pub fn open(hold: &mut Hold, model: &Arc<Model>, opening: &Opening) -> Result<Opened, EngineError> {
    let Opening { max_tokens, context, .. } = *opening;
    let prompt = opening.ids.len();
    model.check_service()?;
    let version = model.dir.manifest.version.clone();
    if let Some(wanted) = opening.version.as_ref().filter(|wanted| **wanted != version) {
        let (model, wanted) = (opening.model.clone(), wanted.clone());
        return Err(EngineError::OtherVersion { model, wanted, version });
    }
    let decoding = model.decoding()?;
    let invalid = |text: String| Err(EngineError::Invalid(text));
    if prompt == 0 {
        return invalid("the prompt has no tokens: give one at least".to_string());
    }
    let room = context.map_or(usize::MAX, |context| context.saturating_sub(prompt));
    if room == 0 && max_tokens > 0 {
        let context = context.unwrap_or_default();
        return invalid(format!(
            "the prompt has {prompt} tokens of the {context} that the model can look at: give fewer"
        ));
    }
    let mut tokens = prompt.saturating_add(max_tokens.min(room));
    let budget_bytes = hold.room.ledger.budget_bytes();
    let reckoning = Reckoning { model, decoding, budget_bytes };
    // What is found may go to make room: it is counted as the session's own from here on.
    let tenancy = model.tenancy.clone();
    let kept = hold.room.texts.find(&tenancy.tenant(), opening.target, &opening.ids);
    let (past, cached_tokens) = match kept {
        Some(kept) => kept,
        None => {
            let none = Past::none(decoding);
            (none.map_err(|error| EngineError::Internal(format!("{error:#}")))?, 0)
        }
    };
    let ([chunk, most_rows], needs, grant) = loop {
        let (cut, needs) = reckoning.needs(prompt, tokens);
        let refused = match hold.grant_session(model, needs.opening_bytes()) {
            Ok(grant) => break (cut, needs, grant),
            Err(refused) => refused.beside(opening.own_bytes),
        };
        if refused.can_fit() {
            return Err(refused.into());
        }
        let most_tokens = reckoning.most_tokens(prompt, tokens, &refused);
        if !opening.is_usual || most_tokens < prompt + LEAST_USUAL {
            return Err(too_long(&reckoning, tokens, most_tokens, &refused));
        }
        tokens = most_tokens;
    };
    Ok(Opened {
        version,
        tenancy,
        past,
        cached_tokens,
        max_tokens: tokens - prompt,
        chunk,
        most_rows,
        needs,
        grant,
        queue_us: 0,
    })
}

/// Why a session cannot be opened whose model was not loaded. A budget that is named is one in which its
/// text is written, too.
pub fn refuse(library: &Library, error: EngineError, opening: &Opening) -> EngineError {
    let EngineError::OverBudget(refused) = error else { return error };
    let refused = refused.beside(opening.own_bytes);
    if refused.can_fit() {
        return refused.into();
    }
    let tokens = opening.ids.len().saturating_add(opening.max_tokens);
    let tokens = tokens.min(opening.context.unwrap_or(usize::MAX)) as u64;
    let needed = |demand: &_| needed_to_write(demand, tokens).saturating_add(opening.own_bytes);
    let least_bytes = library.least_budget_bytes(&opening.model, needed);
    refused.at_least(least_bytes).into()
}

/// Tells how many tokens would fit.
fn too_long(
    reckoning: &Reckoning,
    tokens: usize,
    most_tokens: usize,
    refused: &OverBudget,
) -> EngineError {
    EngineError::TextTooLong {
        model: reckoning.model.name().to_string(),
        tokens,
        most_tokens,
        budget_bytes: reckoning.budget_bytes,
        needed_bytes: refused.named_budget_bytes(),
    }
}
