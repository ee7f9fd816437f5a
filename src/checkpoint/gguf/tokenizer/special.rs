//! The tokens that stand for no text: where texts begin and end, and what ends a reply.

use super::vocabulary::Vocabulary;
use crate::checkpoint::CheckpointError;
use std::collections::BTreeSet;

/// Ids of special tokens.
#[derive(Debug, Default)]
pub struct Special {
    pub begin: Option<u32>,
    pub end: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    /// What stands between two texts, and behind the last one.
    pub separator: Option<u32>,
    /// All that end what is generated.
    pub ends: Vec<u32>,
}

/// What ends a turn in chats of several makers, for files that name the end of a text alone.
const ENDS_OF_TURNS: [&str; 6] =
    ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|eom_id|>", "<|endofturn|>"];

impl Special {
    /// Reads what a file says of its special tokens. Those of `defaults`, begin, end and unknown,
    /// are meant where it says nothing.
    ///
    /// # Errors
    /// A token is named that is not there.
    pub fn read(
        vocabulary: &Vocabulary,
        defaults: [Option<&str>; 3],
        notes: &mut Vec<String>,
    ) -> Result<Special, CheckpointError> {
        let id = |name: &str| vocabulary.id(&format!("tokenizer.ggml.{name}_token_id"));
        let or_default = |id: Option<u32>, default: Option<&str>| {
            let named = || vocabulary.iter().find(|(_, text, _)| Some(*text) == default);
            id.or_else(|| named().map(|(id, _, _)| id))
        };
        let [begin, end, unknown] = defaults;
        let mut special = Special {
            begin: or_default(id("bos")?.or(id("cls")?), begin),
            end: or_default(id("eos")?, end),
            unknown: or_default(id("unknown")?, unknown),
            padding: id("padding")?,
            separator: id("separator")?.or(id("seperator")?),
            ends: vec![],
        };
        for end in [special.end, id("eot")?, id("eom")?].into_iter().flatten() {
            if !special.ends.contains(&end) {
                special.ends.push(end);
            }
        }
        special.guess_ends(vocabulary, notes)?;
        Ok(special)
    }

    /// What the template of a chat ends turns with ends replies.
    fn guess_ends(
        &mut self,
        vocabulary: &Vocabulary,
        notes: &mut Vec<String>,
    ) -> Result<(), CheckpointError> {
        let template = vocabulary.keys().text("tokenizer.chat_template")?.unwrap_or_default();
        let used = ENDS_OF_TURNS.into_iter().filter(|end| template.contains(end));
        for id in vocabulary.named(&used.collect::<BTreeSet<_>>()) {
            if !self.ends.contains(&id) {
                self.ends.push(id);
                let text = vocabulary.text(id as usize).unwrap_or_default();
                notes.push(format!("{text} ends replies too: guessed, the chat's template has it"));
            }
        }
        Ok(())
    }
}
