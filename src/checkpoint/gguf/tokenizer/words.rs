//! WordPiece, BERT's: GGUF files have a space before tokens that begin words, where BERT's list has
//! `##` before those that go on.

use super::document::{Document, Frame, Model};
use super::pieces::SPACE;
use super::special::Special;
use super::vocabulary::{Type, Vocabulary};
use super::{Tokenizer, frame};
use crate::checkpoint::CheckpointError;
use serde_json::json;

const GOES_ON: &str = "##";

/// Makes the tokenizer.
///
/// # Errors
/// A special token is named that is not there.
pub fn make<'a>(
    vocabulary: &Vocabulary<'a>,
    notes: &mut Vec<String>,
) -> Result<Option<Tokenizer<'a>>, CheckpointError> {
    let mut special = Special::read(vocabulary, [Some("[CLS]"), None, Some("[UNK]")], notes)?;
    let named =
        |text: &str| vocabulary.iter().find(|(_, own, _)| *own == text).map(|(id, _, _)| id);
    special.separator = special.separator.or_else(|| named("[SEP]"));
    special.end = special.separator.or(special.end);
    let ([adds_begin, adds_end], frame) = frame(vocabulary, &special, [true, true])?;
    let mut tokens: Vec<(String, u32)> = vec![];
    let mut has_capitals = false;
    for (id, text, kind) in vocabulary.iter().filter(|(_, _, kind)| *kind != Type::Unused) {
        let is_special = kind != Type::Normal || (text.starts_with('[') && text.ends_with(']'));
        has_capitals |= !is_special && text.bytes().any(|byte| byte.is_ascii_uppercase());
        let own = match text.strip_prefix(SPACE) {
            _ if is_special => text.to_owned(),
            Some(word) => word.to_owned(),
            None => format!("{GOES_ON}{text}"),
        };
        tokens.push((own, id));
    }
    let lowercase = match has_capitals {
        true => "texts keep their capitals: guessed, tokens have some",
        false => "texts become lower case: guessed, no token has a capital",
    };
    notes.push(lowercase.to_owned());
    let unknown = special.unknown.and_then(|id| vocabulary.text(id as usize)).unwrap_or("[UNK]");
    let document = Document {
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": null,
            "lowercase": !has_capitals,
        }),
        pre_tokenizer: json!({ "type": "BertPreTokenizer" }),
        decoder: json!({ "type": "WordPiece", "prefix": GOES_ON, "cleanup": true }),
        frame: Frame { tells_apart: true, ..frame },
        model: Model::Words {
            fields: json!({
                "type": "WordPiece",
                "unk_token": unknown,
                "continuing_subword_prefix": GOES_ON,
                "max_input_chars_per_word": 100,
            }),
            tokens,
        },
    };
    Ok(Some(Tokenizer { document, special, adds_begin, adds_end }))
}
