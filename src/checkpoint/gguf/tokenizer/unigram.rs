//! SentencePiece's unigrams, of T5 and XLM-R: the likeliest way to cut a text into tokens.

use super::document::{Document, Model};
use super::pieces::SPACE;
use super::special::Special;
use super::vocabulary::{Type, Vocabulary};
use super::{Tokenizer, frame};
use crate::checkpoint::CheckpointError;
use serde_json::{Value, json};

/// Makes the tokenizer.
///
/// # Errors
/// There are no scores.
pub fn make<'a>(
    vocabulary: &Vocabulary<'a>,
    notes: &mut Vec<String>,
) -> Result<Option<Tokenizer<'a>>, CheckpointError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    const CHARACTERS: &str = "tokenizer.ggml.precompiled_charsmap";
    let keys = vocabulary.keys();
    let missing = || CheckpointError::key(keys.path(), SCORES, "it is missing");
    let scores = vocabulary.scores().ok_or_else(missing)?;
    let special = Special::read(vocabulary, [Some("<s>"), Some("</s>"), Some("<unk>")], notes)?;
    let ([adds_begin, adds_end], frame) = frame(vocabulary, &special, [false, true])?;
    let normalizer = match keys.wholes(CHARACTERS)? {
        Some(bytes) if !bytes.is_empty() => {
            let byte =
                |byte: &i64| u8::try_from(*byte).or(i8::try_from(*byte).map(i8::cast_unsigned));
            let bytes: Result<Vec<u8>, _> = bytes.iter().map(byte).collect();
            let wrong = |_| CheckpointError::key(keys.path(), CHARACTERS, "it has more than bytes");
            let map = base64::encode(bytes.map_err(wrong)?);
            json!({ "type": "Precompiled", "precompiled_charsmap": map })
        }
        _ => Value::Null,
    };
    let adds_space = keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let spaces = json!({
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": if adds_space { "always" } else { "never" },
        "split": true,
    });
    let removes = keys.flag("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
    let pre_tokenizer = match removes {
        true => {
            json!({ "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, spaces] })
        }
        false => spaces.clone(),
    };
    // Rows without a token keep their places: this kind goes by them.
    let tokens = (0..vocabulary.len()).filter_map(|id| Some((vocabulary.text(id)?, scores[id])));
    let has_bytes = vocabulary.iter().any(|(_, _, kind)| kind == Type::Byte);
    let document = Document {
        normalizer,
        pre_tokenizer,
        decoder: spaces,
        frame,
        model: Model::Unigram {
            fields: json!({
                "type": "Unigram",
                "unk_id": special.unknown,
                "byte_fallback": has_bytes,
            }),
            tokens: tokens.collect(),
        },
    };
    Ok(Some(Tokenizer { document, special, adds_begin, adds_end }))
}
