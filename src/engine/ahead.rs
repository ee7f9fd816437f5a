//! A text that is written, and what was read of it: the last token is to be read, or some that were
//! proposed are read already and wait to be decided on.

use super::past::Past;
use super::speculation::{Speculation, proposed};
use super::step::Stepped;
use std::time::Duration;
use tract_core::internal::*;

/// A text under way.
pub(super) struct Ahead {
    /// The prompt, and what was decided on.
    pub text: Vec<u32>,
    /// How many of its tokens were read.
    read: usize,
    /// Keys and values of what was read, proposals that were wrong among it; none while a pass has it.
    past: Option<Past>,
    /// Tokens that the last step read behind the text, of which the first ones were right.
    proposals: Vec<u32>,
    right: usize,
    /// Logits behind the text as it was and behind each proposal.
    logits: Vec<f32>,
    speculation: Speculation,
    /// What the last step took, if one was a token's.
    took: Option<Duration>,
    pub proposed_tokens: usize,
    pub accepted_tokens: usize,
}

impl Ahead {
    /// A prompt whose last part came to that, of a model that gives the logits of so many tokens.
    pub fn of(prompt: &[u32], stepped: Stepped, most_rows: usize) -> Ahead {
        Ahead {
            text: prompt.to_vec(),
            read: prompt.len(),
            past: Some(stepped.past),
            proposals: vec![],
            right: 0,
            logits: stepped.logits,
            speculation: Speculation::new(most_rows),
            took: None,
            proposed_tokens: 0,
            accepted_tokens: 0,
        }
    }

    /// The logits behind the text.
    pub fn logits(&self) -> &[f32] {
        let vocabulary = self.logits.len() / (self.proposals.len() + 1);
        &self.logits[self.right * vocabulary..(self.right + 1) * vocabulary]
    }

    /// Goes on with a token; whether it is read already.
    pub fn goes_on(&mut self, id: u32) -> bool {
        self.text.push(id);
        let is_read = self.proposals.get(self.right) == Some(&id);
        if is_read {
            self.right += 1;
            self.read += 1;
            self.accepted_tokens += 1;
        }
        is_read
    }

    /// What is to be read next: the text's last token, and proposals where they pay, `most` of them at
    /// most.
    pub fn next_step(&mut self, most: usize) -> TractResult<(Vec<u32>, Past)> {
        if let Some(took) = self.took.take() {
            self.speculation.note(self.proposals.len(), self.right, took);
        }
        self.proposals = proposed(&self.text, self.speculation.most().min(most)).to_vec();
        self.right = 0;
        self.proposed_tokens += self.proposals.len();
        let past = self.past.take().context("a pass has the past")?.cut(self.read)?;
        let ids = [&self.text[self.read..], &self.proposals].concat();
        Ok((ids, past))
    }

    /// The step was computed.
    pub fn was_read(&mut self, stepped: Stepped, took: Duration) {
        self.read = self.text.len();
        (self.past, self.logits) = (Some(stepped.past), stepped.logits);
        self.took = Some(took);
    }

    /// What was read of the text, and keys and values of that.
    pub fn finish(mut self) -> Option<(Vec<u32>, Past)> {
        let past = self.past.take()?.cut(self.read).ok()?;
        self.text.truncate(self.read);
        Some((self.text, past))
    }
}
