//! The vectors of a request's texts: a pass for each, which it shares with others. A request of many
//! texts has them wait in a line of their own, the longest first: texts of like length share passes,
//! and one that cannot fit is told before anything else is computed.

use super::embed::{Embedding, Vectors};
use super::error::ApiError;
use super::granted;
use super::state::{Api, Submitted};
use super::texts::Text;
use crate::engine::{Class, LONG_PATIENCE, Reply, TICK};
use crate::stream::Grant;
use crate::wire::pooling::Measure;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// Most texts of a request that wait as others' requests do, and most tokens of them together.
const FEW_TEXTS: usize = 32;
const FEW_TOKENS: usize = 1024;

/// The vectors of all texts, in their order; dropping the future cancels the passes under way.
///
/// # Errors
///
/// Those of the first text that cannot be served. What does not fit now is tried again as long as
/// others are served.
pub async fn embed(
    api: &Arc<Api>,
    embedding: Embedding,
    texts: Vec<Text>,
    dimensions: Option<usize>,
    grant: &mut Grant,
) -> Result<Vectors, ApiError> {
    let embedding = Arc::new(embedding);
    let tokens = texts.iter().map(|text| text.tokens.len()).sum::<usize>();
    let class = match texts.len() {
        1 => Class::Interactive,
        2..=FEW_TEXTS if tokens <= FEW_TOKENS => Class::Interactive,
        _ => Class::Bulk,
    };
    let share = match (class, texts.len()) {
        (Class::Bulk, _) => Some(api.many_places.share()),
        (_, 1) => None,
        // Nine requests of 32 texts had all that may wait.
        (_, _) => Some(api.few_places.share()),
    };
    let mut waiting = longest_first(&texts);
    let longest = waiting.front().map_or(0, |index| texts[*index].tokens.len());
    let at_once = share.as_ref().map_or(texts.len(), |share| share.most().min(texts.len()));
    let own_bytes = at_once * embedding.request_bytes(longest) + waiting.len() * size_of::<usize>();
    let base_bytes = grant.bytes() + own_bytes as u64;
    granted::enlarge(api, grant, base_bytes).await?;

    let mut vectors = Vectors::default();
    let mut in_flight = VecDeque::new();
    let mut patience = Instant::now() + LONG_PATIENCE;
    loop {
        while let Some(index) = waiting.front().copied() {
            let place = match &share {
                None => None,
                // No more than was granted, though others have left since.
                Some(_) if in_flight.len() >= at_once => break,
                Some(share) => match share.place(in_flight.len()).await {
                    None => break,
                    place => place,
                },
            };
            waiting.pop_front();
            let text = &texts[index];
            let request = embedding.request(&text.tokens, &text.segments)?;
            let measure = Measure { tokens: text.tokens.len(), skipped: text.skipped };
            let embedding = Arc::clone(&embedding);
            // Pooled on the engine's thread: of a pass's rows only the one vector is kept.
            let digest = move |reply: Reply| {
                Ok((embedding.vector(&reply, measure, dimensions)?, reply.choice))
            };
            let submitted = Submitted::new(&api.engine, class, request, digest);
            in_flight.push_back((index, submitted, place));
        }
        let Some((index, submitted, place)) = in_flight.pop_front() else {
            grant.resize(vectors.held_bytes())?;
            return Ok(vectors);
        };
        let (vector, choice) = match submitted.wait().await {
            Err(error) if error.may_pass() && Instant::now() < patience => {
                drop(place);
                waiting.push_front(index);
                sleep(TICK).await;
                continue;
            }
            waited => waited.and_then(|vector| vector).map_err(|error| at(index, &texts, error))?,
        };
        patience = Instant::now() + LONG_PATIENCE;
        if vectors.is_empty() {
            let all_bytes = Vectors::bytes_of(texts.len(), vector.len());
            granted::enlarge(api, grant, base_bytes + all_bytes).await?;
            vectors = Vectors::new(texts.len(), vector.len());
        }
        vectors.put(index, &vector)?;
        vectors.note(choice);
    }
}

/// The texts' numbers, those of the longest first.
fn longest_first(texts: &[Text]) -> VecDeque<usize> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(texts[*index].tokens.len()));
    order.into()
}

/// An error with the text that it is about, where there are several.
fn at(index: usize, texts: &[Text], error: ApiError) -> ApiError {
    match texts {
        [_] => error,
        texts => ApiError {
            message: format!(
                "input[{index}], of {} tokens: {}",
                texts[index].tokens.len(),
                error.message
            ),
            ..error
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_texts_come_first_and_equals_keep_their_order() {
        let text = |length| Text { tokens: vec![0; length], ..Text::default() };
        let texts: Vec<Text> = [2, 9, 2, 5].map(text).into_iter().collect();
        assert_eq!(longest_first(&texts), [1, 3, 0, 2]);
    }
}
