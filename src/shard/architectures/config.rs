//! The keys of a config.json, read by name: what is left out or null has a default, what is there is
//! what it has to be or refused, and what would change the model and is not computed is refused too.

use crate::shard::error::{ShardError, ensure, unfit};
use serde_json::{Map, Value};

/// An object of a config, and where it stands.
#[derive(Clone, Copy)]
pub struct Config<'a> {
    keys: &'a Map<String, Value>,
    /// The file that it is in.
    file: &'a str,
}

impl<'a> Config<'a> {
    /// The config in `value`, of which errors say that `file` has it.
    pub fn new(value: &'a Value, file: &'a str) -> Result<Config<'a>, ShardError> {
        match value {
            Value::Object(keys) => Ok(Config { keys, file }),
            _ => Err(unfit!("{file}: the config is no JSON object")),
        }
    }

    /// The file that it is in.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// What a key holds; null is as good as nothing.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// The name under which a config has a key that transformers knows by two; it takes `other` where
    /// both are there.
    pub fn named(&self, own: &'static str, other: &'static str) -> &'static str {
        if self.get(other).is_some() { other } else { own }
    }

    /// Whether no key holds an object.
    pub fn is_flat(&self) -> bool {
        !self.keys.values().any(Value::is_object)
    }

    /// Whether a key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A count from 1 on; none where it is left out.
    pub fn given_size(&self, key: &str) -> Result<Option<u64>, ShardError> {
        /// More than any size of a model, and few enough that products of two are no concern.
        const MAX: u64 = 1 << 31;
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.as_u64().or_else(|| {
            let float = value.as_f64().filter(|float| float.fract() == 0.0 && *float >= 0.0)?;
            (float <= MAX as f64).then_some(float as u64)
        });
        match whole {
            Some(size) if (1..=MAX).contains(&size) => Ok(Some(size)),
            _ => Err(self.wrong(key, "a whole number from 1 on")),
        }
    }

    /// The same, or `default`.
    pub fn size(&self, key: &str, default: u64) -> Result<u64, ShardError> {
        Ok(self.given_size(key)?.unwrap_or(default))
    }

    /// A count from 0 on, or `default`.
    pub fn count(&self, key: &str, default: u64) -> Result<u64, ShardError> {
        match self.get(key).map(Value::as_u64) {
            None => Ok(default),
            Some(Some(count)) => Ok(count),
            Some(None) => Err(self.wrong(key, "a whole number from 0 on")),
        }
    }

    /// By layer, whether it sees a window only; none where `layer_types` is left out.
    pub fn layer_types(&self, layers: u64) -> Result<Option<Vec<bool>>, ShardError> {
        const KEY: &str = "layer_types";
        let types = match self.get(KEY) {
            None => return Ok(None),
            Some(Value::Array(types)) if types.len() as u64 == layers => types,
            Some(_) => return Err(self.wrong(KEY, &format!("a list of {layers}"))),
        };
        let slides = types.iter().map(|of_layer| match of_layer.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.wrong(KEY, "of full_attention and sliding_attention")),
        });
        slides.collect::<Result<_, _>>().map(Some)
    }

    /// A positive number; none where it is left out.
    pub fn given_number(&self, key: &str) -> Result<Option<f64>, ShardError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "a number above 0")),
        }
    }

    /// The same, or `default`.
    pub fn number(&self, key: &str, default: f64) -> Result<f64, ShardError> {
        Ok(self.given_number(key)?.unwrap_or(default))
    }

    /// True or false; none where it is left out.
    pub fn given_flag(&self, key: &str) -> Result<Option<bool>, ShardError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// The same, or `default`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ShardError> {
        Ok(self.given_flag(key)?.unwrap_or(default))
    }

    /// A text; none where it is left out.
    pub fn given_text(&self, key: &str) -> Result<Option<&'a str>, ShardError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// An object within; none where it is left out.
    pub fn section(&self, key: &str) -> Result<Option<Config<'a>>, ShardError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Config { keys, file: self.file })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// Refuses a key whose value changes what is computed: `harmless` are those that do not.
    pub fn only(&self, key: &str, harmless: &[Value]) -> Result<(), ShardError> {
        match self.get(key) {
            Some(value) if !harmless.contains(value) => Err(unfit!(
                "{}: {key} is {}, which is not computed\nthis model cannot be built",
                self.file,
                shown(value)
            )),
            _ => Ok(()),
        }
    }

    /// What is wrong with a key: it is not `what`.
    pub fn wrong(&self, key: &str, what: &str) -> ShardError {
        let value = self.keys.get(key).map_or("left out".to_string(), shown);
        unfit!("{}: {key} is {value}, not {what}", self.file)
    }

    /// How often `parts` go into `whole`, both keys with what they come to.
    pub fn share(&self, whole: (&str, u64), parts: (&str, u64)) -> Result<u64, ShardError> {
        let ((whole, size), (parts, count)) = (whole, parts);
        ensure!(
            size.is_multiple_of(count),
            "{}: {parts} {count} does not divide {whole} {size}: each head must be as wide",
            self.file
        );
        Ok(size / count)
    }
}

/// A value in an error, never a long one.
fn shown(value: &Value) -> String {
    const LIMIT: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_what_they_have_to_be_or_refused_by_name() {
        let value = json!({"a": 3, "b": -16, "c": null, "d": 2.0, "e": "x", "f": 1e30, "g": 0});
        let config = Config::new(&value, "config.json").unwrap();
        assert_eq!(config.size("a", 1).unwrap(), 3);
        assert_eq!(config.size("c", 7).unwrap(), 7);
        assert_eq!(config.size("d", 7).unwrap(), 2);
        assert_eq!(config.size("z", 7).unwrap(), 7);
        let names =
            [("z", "a"), ("z", "c"), ("d", "a")].map(|(own, other)| config.named(own, other));
        assert_eq!(names, ["a", "z", "a"]);
        for key in ["b", "e", "f", "g"] {
            let error = config.size(key, 1).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {key} is ")), "{error}");
        }
        assert!(config.flag("a", true).is_err() && config.given_text("a").is_err());
        assert!(config.number("b", 1.0).is_err());
        assert!(config.only("e", &[json!("x")]).is_ok() && config.only("z", &[]).is_ok());
        let error = config.only("e", &[json!("y")]).unwrap_err().to_string();
        assert!(error.contains("e is \"x\", which is not computed"), "{error}");
    }
}
