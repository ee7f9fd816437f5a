//! Prometheus' text format 0.0.4, as far as hermesd writes it, read again.

use std::collections::BTreeMap;

/// The samples of `/metrics` at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Scrape {
    /// Reads a text.
    ///
    /// # Errors
    ///
    /// The line that is none of the format.
    pub fn parse(text: &str) -> Result<Scrape, String> {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).ok_or_else(|| line.to_owned()));
        Ok(Scrape { samples: samples.collect::<Result<_, _>>()? })
    }

    /// All samples.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The sum of a metric's samples whose label `label` is `value`.
    pub fn of(&self, name: &str, label: &str, value: &str) -> f64 {
        let is_of = |sample: &&Sample| sample.labels.get(label).is_some_and(|found| found == value);
        self.named(name).filter(is_of).map(|sample| sample.value).sum()
    }

    /// The sum of a metric's samples.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|sample| sample.value).sum()
    }

    /// A metric's samples.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value);
            match after.strip_prefix(',') {
                Some(after) => rest = after,
                None => {
                    rest = after.strip_prefix('}')?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = !name.is_empty() && name.chars().all(is_name);
    good.then(|| Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_labels_and_values() {
        let text = "# HELP m of it\n# TYPE m gauge\nm 1.5\nm{a=\"x\\\"\\\\\\ny\",b=\"\"} 2e3\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!((scrape.sum("m"), scrape.of("m", "a", "x\"\\\ny")), (2001.5, 2000.0));
        assert_eq!(scrape.samples().len(), 2);
        for wrong in ["m", "m x", "m{a=\"1\" 1", "m{a=1} 1", "m{} 1", "m-n 1", "{a=\"1\"} 1"] {
            assert_eq!(Scrape::parse(wrong), Err(wrong.to_owned()));
        }
    }
}
