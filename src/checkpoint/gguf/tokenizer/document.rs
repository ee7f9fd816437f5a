//! tokenizer.json, written from front to back: a tree of it would take ten times the vocabulary.

use super::vocabulary::{Type, Vocabulary};
use serde_json::{Value, json};

/// What a tokenizer does, but for its tokens.
#[derive(Debug)]
pub struct Document<'a> {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub frame: Frame,
    pub model: Model<'a>,
}

/// The tokens that stand round a text by itself.
#[derive(Debug)]
pub struct Frame {
    pub begin: Option<u32>,
    pub end: Option<u32>,
    /// Whether the second text of a pair is of another type, and nothing begins it.
    pub tells_apart: bool,
}

/// How words become tokens.
#[derive(Debug)]
pub enum Model<'a> {
    Pairs {
        /// The fields before the tokens.
        fields: Value,
        tokens: Vec<(&'a str, u32)>,
        /// What is merged, first what comes first.
        merges: Vec<(&'a str, &'a str)>,
    },
    Words {
        fields: Value,
        tokens: Vec<(String, u32)>,
    },
    Unigram {
        fields: Value,
        tokens: Vec<(&'a str, f32)>,
    },
}

impl Document<'_> {
    /// The text of the file.
    pub fn write(&self, vocabulary: &Vocabulary) -> Vec<u8> {
        let added = vocabulary.added().map(|(id, text, kind)| {
            json!({
                "id": id,
                "content": text,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind != Type::UserDefined,
            })
        });
        let mut out =
            br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":"#.to_vec();
        list(&mut out, added, |out, token| out.extend(token.to_string().bytes()));
        let parts = [
            ("normalizer", &self.normalizer),
            ("pre_tokenizer", &self.pre_tokenizer),
            ("post_processor", &self.frame.processor(vocabulary)),
            ("decoder", &self.decoder),
        ];
        for (name, part) in parts {
            out.extend(format!(",\"{name}\":{part}").bytes());
        }
        out.extend(b",\"model\":");
        self.model.write(&mut out);
        out.push(b'}');
        out
    }
}

impl Frame {
    fn processor(&self, vocabulary: &Vocabulary) -> Value {
        let text = |id: u32| vocabulary.text(id as usize).unwrap_or_default();
        let special =
            |id: u32, kind: u32| json!({ "SpecialToken": { "id": text(id), "type_id": kind } });
        let sequence =
            |name: &str, kind: u32| json!({ "Sequence": { "id": name, "type_id": kind } });
        let ids: Vec<u32> = [self.begin, self.end].into_iter().flatten().collect();
        if ids.is_empty() {
            return Value::Null;
        }
        let second = u32::from(self.tells_apart);
        let begin = |kind: u32| self.begin.map(|id| special(id, kind));
        let end = |kind: u32| self.end.map(|id| special(id, kind));
        let first = [begin(0), Some(sequence("A", 0)), end(0)];
        let single: Vec<Value> = first.into_iter().flatten().collect();
        let begins_again = begin(0).filter(|_| !self.tells_apart);
        let other = [begins_again, Some(sequence("B", second)), end(second)];
        let pair: Vec<Value> = single.iter().cloned().chain(other.into_iter().flatten()).collect();
        let tokens = ids.into_iter().map(|id| {
            let text = text(id);
            (text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))
        });
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
        })
    }
}

impl Model<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let fields = |out: &mut Vec<u8>, fields: &Value| {
            out.extend(fields.to_string().bytes());
            // What follows stands within the object.
            out.pop();
            out.extend(b",\"vocab\":");
        };
        match self {
            Model::Pairs { fields: own, tokens, merges } => {
                fields(out, own);
                map(out, tokens.iter().map(|(text, id)| (*text, *id)));
                out.extend(b",\"merges\":");
                list(out, merges.iter(), |out, (left, right)| {
                    out.push(b'[');
                    string(out, left);
                    out.push(b',');
                    string(out, right);
                    out.push(b']');
                });
            }
            Model::Words { fields: own, tokens } => {
                fields(out, own);
                map(out, tokens.iter().map(|(text, id)| (text.as_str(), *id)));
            }
            Model::Unigram { fields: own, tokens } => {
                fields(out, own);
                list(out, tokens.iter(), |out, (text, score)| {
                    out.push(b'[');
                    string(out, text);
                    // All digits that the score has: whole ones need a point in no reader.
                    out.extend(format!(",{score}]").bytes());
                });
            }
        }
        out.push(b'}');
    }
}

fn map<'a>(out: &mut Vec<u8>, entries: impl Iterator<Item = (&'a str, u32)>) {
    out.push(b'{');
    for (index, (text, id)) in entries.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        string(out, text);
        out.extend(format!(":{id}").bytes());
    }
    out.push(b'}');
}

fn list<T>(out: &mut Vec<u8>, entries: impl Iterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (index, entry) in entries.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, entry);
    }
    out.push(b']');
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a text is written into memory");
}
