//! What a tokenizer has to know where its model writes texts: which tokens only templates may write,
//! and which bytes each token stands for.

use crate::store::Generation;
use crate::text::chat::{Controls, Prompt};
use crate::text::detokenizer::Detokenizer;
use serde_json::Value;
use tokenizers::{
    AddedToken, AddedVocabulary, Model, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

/// A language model's side of its tokenizer.
pub struct Language {
    pub generation: Generation,
    pub controls: Controls,
    /// Or why its tokens make no text.
    pub detokenizer: Result<Detokenizer, String>,
    /// The added tokens, of which those that only templates may write are text.
    literal: AddedVocabulary,
}

impl Language {
    /// For a tokenizer with these added tokens and this decoder.
    ///
    /// # Errors
    ///
    /// Where an added token cannot be normalized.
    pub fn new(
        generation: Generation,
        tokenizer: &Tokenizer,
        added: &[AddedToken],
        decoder: &Value,
    ) -> tokenizers::Result<Language> {
        let ends = |token: &AddedToken| {
            let id = tokenizer.token_to_id(&token.content);
            id.is_some_and(|id| generation.end_tokens.contains(&id))
        };
        let told = added.iter().map(|token| (token.content.as_str(), token.special || ends(token)));
        let controls = Controls::new(told, &generation);
        let mut literal = AddedVocabulary::new();
        // In their order and all of them: ids hang on it.
        let tokens = added.iter().cloned().map(|token| {
            let is_control = controls.contains(&token.content);
            token.special(is_control)
        });
        literal.add_tokens(tokens, tokenizer.get_model(), tokenizer.get_normalizer())?;
        literal.set_encode_special_tokens(true);
        let detokenizer = Detokenizer::read(decoder);
        Ok(Language { generation, controls, detokenizer, literal })
    }

    /// The tokens of a rendered chat: control tokens where the template wrote them, text elsewhere.
    ///
    /// # Errors
    ///
    /// What the tokenizer cannot read.
    pub fn encode(&self, tokenizer: &Tokenizer, prompt: &Prompt) -> tokenizers::Result<Vec<u32>> {
        let added = tokenizer.get_added_vocabulary();
        let cut = added.extract_and_normalize(tokenizer.get_normalizer(), &prompt.text);
        let (mut ids, mut text) = (vec![], String::new());
        for (_, (start, end), tokens) in
            cut.get_splits(OffsetReferential::Original, OffsetType::Byte)
        {
            let control = tokens.iter().flatten().find(|token| {
                let content = added.simple_id_to_token(token.id);
                content.is_some_and(|content| self.controls.contains(&content))
            });
            match control {
                Some(token) => {
                    self.encode_text(tokenizer, &std::mem::take(&mut text), &mut ids)?;
                    ids.push(token.id);
                }
                None => {
                    let part = prompt.text.get(start..end).unwrap_or_default();
                    text.extend(part.chars().filter(|c| Some(*c) != prompt.mark));
                }
            }
        }
        self.encode_text(tokenizer, &text, &mut ids)?;
        Ok(ids)
    }

    /// Adds the tokens of a text in which nothing is a control token.
    fn encode_text(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let mut pieces: PreTokenizedString =
            self.literal.extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(cutter) = tokenizer.get_pre_tokenizer() {
            cutter.pre_tokenize(&mut pieces)?;
        }
        tokenizer.get_model().tokenize_in_pretokenized(&mut pieces, None)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The text of a token as its tokenizer has it, and whether it is a special one, which no text
    /// shows. None for an id that is none.
    pub fn token(&self, tokenizer: &Tokenizer, id: u32) -> Option<(String, bool)> {
        let added = tokenizer.get_added_vocabulary();
        match added.get_added_tokens_decoder().get(&id) {
            Some(token) => Some((token.content.clone(), token.special)),
            None => Some((tokenizer.get_model().id_to_token(id)?, false)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::detokenizer::Bytes;
    use crate::text::whole::Whole;
    use std::fs;
    use std::path::PathBuf;

    const KINDS: [&str; 5] = [
        "byte-level",
        "byte-level-split",
        "sentencepiece-llama",
        "sentencepiece-gemma",
        "sentencepiece-metaspace",
    ];

    fn read(name: &str) -> Vec<u8> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/text/tokenizers");
        fs::read(folder.join(name)).unwrap()
    }

    fn load(kind: &str) -> (Tokenizer, Language, Value) {
        let json = read(&format!("{kind}.tokenizer.json"));
        let tokenizer = Tokenizer::from_bytes(&json).unwrap();
        let file: Value = serde_json::from_slice(&json).unwrap();
        let added = serde_json::from_value::<Vec<AddedToken>>(file["added_tokens"].clone());
        let language =
            Language::new(Generation::default(), &tokenizer, &added.unwrap(), &file["decoder"]);
        let cases = serde_json::from_slice(&read(&format!("{kind}.json"))).unwrap();
        (tokenizer, language.unwrap(), cases)
    }

    fn ids(value: &Value) -> Vec<u32> {
        let ids = value.as_array().unwrap().iter();
        ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
    }

    /// The bytes that tokens add to a text, and its chunks.
    struct Stream<'a> {
        tokenizer: &'a Tokenizer,
        language: &'a Language,
        bytes: Bytes,
        whole: Whole,
        shows_special: bool,
    }

    impl Stream<'_> {
        fn push(&mut self, id: u32) -> String {
            match self.language.token(self.tokenizer, id) {
                Some((token, is_special)) if self.shows_special || !is_special => {
                    self.whole.push(&self.bytes.push(&token))
                }
                _ => String::new(),
            }
        }
    }

    fn stream<'a>(
        tokenizer: &'a Tokenizer,
        language: &'a Language,
        shows_special: bool,
    ) -> Stream<'a> {
        let bytes = Bytes::new(language.detokenizer.clone().unwrap());
        Stream { tokenizer, language, bytes, whole: Whole::default(), shows_special }
    }

    /// One that ends the model's texts, and that the tokenizer's file calls a plain one.
    #[test]
    fn what_ends_texts_is_a_control_token() {
        let (tokenizer, _, _) = load("byte-level");
        let token = AddedToken::from("<end_of_turn>", false);
        let mut tokenizer = tokenizer;
        tokenizer.add_tokens([token.clone()]).unwrap();
        let end = tokenizer.token_to_id("<end_of_turn>").unwrap();
        let generation = Generation { end_tokens: vec![end], ..Generation::default() };
        let language = Language::new(generation, &tokenizer, &[token], &Value::Null).unwrap();
        assert!(language.controls.contains("<end_of_turn>"));
    }

    #[test]
    fn what_users_write_is_no_control_token() {
        for kind in KINDS {
            let (tokenizer, language, cases) = load(kind);
            for case in cases["injection"].as_array().unwrap() {
                let about = format!("{kind}: {}", case["about"]);
                let mut text = String::new();
                for piece in case["pieces"].as_array().unwrap() {
                    let part = piece[1].as_str().unwrap();
                    match piece[0].as_str().unwrap() {
                        "control" => text.push_str(part),
                        // As the chat marks it, at each character.
                        _ => part.chars().for_each(|c| text.extend([c, '\u{fdd0}'])),
                    }
                }
                let prompt = Prompt { text, mark: Some('\u{fdd0}') };
                let encoded = language.encode(&tokenizer, &prompt).unwrap();
                assert_eq!(encoded, ids(&case["ids"]), "{about}");
                let is_special = |id: &u32| {
                    language.token(&tokenizer, *id).is_some_and(|(_, is_special)| is_special)
                };
                let controls: Vec<u32> = encoded.iter().copied().filter(is_special).collect();
                assert_eq!(controls, ids(&case["control_ids"]), "{about}");
            }
        }
    }

    #[test]
    fn texts_come_as_soon_as_they_are_whole() {
        for kind in KINDS {
            let (tokenizer, language, cases) = load(kind);
            for case in cases["stream"].as_array().unwrap() {
                let about = format!("{kind}: {}", case["about"]);
                let shows = !case["skip_special"].as_bool().unwrap();
                let mut stream = stream(&tokenizer, &language, shows);
                let prompt: String =
                    ids(&case["prompt"]).iter().map(|id| stream.push(*id)).collect();
                stream.whole = Whole::default();
                let chunks =
                    ids(&case["ids"]).iter().map(|id| stream.push(*id)).collect::<Vec<_>>();
                let right = case["chunks"].as_array().unwrap().iter();
                let right: Vec<&str> = right.map(|chunk| chunk.as_str().unwrap()).collect();
                assert_eq!(chunks, right, "{about} after {prompt:?}");
                assert_eq!(stream.whole.end(), case["end"].as_str().unwrap(), "{about}");
            }
        }
    }

    #[test]
    fn texts_are_read_and_written_as_the_tokenizers_crate_does() {
        for kind in KINDS {
            let (tokenizer, language, cases) = load(kind);
            for case in cases["encode"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let plain = |adds| tokenizer.encode_fast(text, adds).unwrap().get_ids().to_vec();
                assert_eq!(plain(true), ids(&case["ids"]), "{kind}: {text:?}");
                assert_eq!(plain(false), ids(&case["without_special"]), "{kind}: {text:?}");
            }
            for case in cases["decode"].as_array().unwrap() {
                for (shows, right) in [(true, &case["kept"]), (false, &case["skipped"])] {
                    let mut stream = stream(&tokenizer, &language, shows);
                    let mut text: String =
                        ids(&case["ids"]).iter().map(|id| stream.push(*id)).collect();
                    text += &stream.whole.end();
                    let library = case["library"].as_str();
                    let is_right = Some(text.as_str()) == right.as_str();
                    assert!(is_right || Some(text.as_str()) == library, "{kind}: {case}: {text:?}");
                }
            }
        }
    }

    /// Those of encoders are read alone.
    #[test]
    fn texts_for_encoders_are_read_as_the_tokenizers_crate_does() {
        for kind in ["unigram", "wordpiece"] {
            let (tokenizer, _, cases) = load(kind);
            for case in cases["encode"].as_array().unwrap() {
                let text = case["text"].as_str().unwrap();
                let ids_of = |adds| tokenizer.encode_fast(text, adds).unwrap().get_ids().to_vec();
                assert_eq!(ids_of(true), ids(&case["ids"]), "{kind}: {text:?}");
            }
        }
    }
}
