//! What a session takes: reckoned by the model's plan, and granted before it begins.

use super::error::EngineError;
use super::model::Model;
use super::opening::{Opened, Opening, SessionNeeds};
use super::room::Hold;
use super::step::Past;
use crate::graph::Footprint;
use crate::store::{Cache, Decoder};
use crate::stream::OverBudget;
use std::sync::Arc;

/// Most tokens of a prompt that a pass reads: where more share it, reading the tape costs no time.
const MOST_CHUNK: usize = 256;

/// Share of the budget that a part of a prompt may take, if one token does not take more.
const CHUNK_SHARE: u64 = 8;

/// What is reckoned with.
struct Reckoning<'a> {
    model: &'a Model,
    decoder: &'a Decoder,
    budget_bytes: u64,
}

impl Reckoning<'_> {
    /// Bytes that keys and values of so many tokens are counted with.
    fn kept_bytes(&self, tokens: usize) -> u64 {
        let taken = |cache: &Cache| Footprint::taken_bytes(cache.bytes_of(tokens));
        self.decoder.caches.iter().map(taken).sum()
    }

    /// What a pass takes beside keys and values that reads the last `new` of so many tokens.
    fn work_bytes(&self, tokens: usize, new: usize) -> u64 {
        let shapes = self.decoder.shapes(tokens.saturating_sub(new), new);
        let footprint = self.model.footprint(&shapes);
        // Where it shares the pass, another one's grant may have what threads decode blocks into.
        let together_bytes = footprint.together_bytes + self.model.decoding_bytes();
        let held_bytes = footprint.alone_bytes.max(together_bytes);
        let logits_bytes = (self.decoder.vocabulary * size_of::<f32>()) as u64;
        held_bytes.saturating_sub(self.kept_bytes(tokens)) + logits_bytes
    }

    /// How many tokens of a prompt a pass reads, and what the session holds. It goes by the budget and
    /// by nobody else's needs: how a prompt is cut may change the last bits of what comes of it.
    fn needs(&self, prompt: usize, tokens: usize) -> (usize, SessionNeeds) {
        let step_bytes = self.work_bytes(tokens, 1);
        let most = if self.decoder.is_single { 1 } else { MOST_CHUNK };
        let mut chunk = most.min(prompt.next_power_of_two());
        loop {
            let prefill_bytes = self.work_bytes(tokens, chunk.min(prompt));
            if chunk == 1 || prefill_bytes <= step_bytes.max(self.budget_bytes / CHUNK_SHARE) {
                let kept_bytes = self.kept_bytes(tokens);
                return (chunk, SessionNeeds { kept_bytes, prefill_bytes, step_bytes });
            }
            chunk /= 2;
        }
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
    let decoder = model.decoder()?;
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
    let max_tokens = max_tokens.min(room);
    let tokens = prompt.saturating_add(max_tokens);
    let budget_bytes = hold.room.ledger.budget_bytes();
    let reckoning = Reckoning { model, decoder, budget_bytes };
    let (chunk, needs) = reckoning.needs(prompt, tokens);
    // What is found may go to make room: it is counted as the session's own from here on.
    let tenancy = model.tenancy.clone();
    let kept = hold.room.texts.find(&tenancy.tenant(), opening.target, &opening.ids);
    let (past, cached_tokens) = match kept {
        Some(kept) => kept,
        None => {
            let none = Past::none(decoder);
            (none.map_err(|error| EngineError::Internal(format!("{error:#}")))?, 0)
        }
    };
    let granted = hold.grant_session(model, needs.opening_bytes());
    let grant = granted.map_err(|refused| match refused.can_fit() {
        true => refused.into(),
        false => too_long(&reckoning, prompt, tokens, &refused),
    })?;
    Ok(Opened {
        version,
        tenancy,
        past,
        cached_tokens,
        max_tokens,
        chunk,
        needs,
        grant,
        queue_us: 0,
    })
}

/// Tells how many tokens would fit.
fn too_long(
    reckoning: &Reckoning,
    prompt: usize,
    tokens: usize,
    refused: &OverBudget,
) -> EngineError {
    let needed_bytes = refused.smallest_budget_bytes();
    let others_bytes = needed_bytes.saturating_sub(refused.need_bytes);
    let room = reckoning.budget_bytes.saturating_sub(others_bytes);
    let fits = |tokens: usize| {
        let (_, needs) = reckoning.needs(prompt.min(tokens), tokens);
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
    EngineError::TextTooLong {
        model: reckoning.model.name().to_string(),
        tokens,
        most_tokens: most,
        budget_bytes: reckoning.budget_bytes,
        needed_bytes,
    }
}
