//! A few texts to a vector, or to how alike they are.

use super::Print;
use super::ask::Embedder;
use crate::client::{ClientError, parse};
use serde_json::Value;

/// Characters of a text that the table shows.
const SHOWN_CHARACTERS: usize = 40;

/// Sends the texts and returns what is to be printed: the reply with `json`, the vector of a
/// single text, the table of cosines of several.
///
/// # Errors
///
/// [`ClientError`].
pub fn run(embedder: &Embedder, texts: &[String], print: Print) -> Result<String, ClientError> {
    let reply = embedder.numbers(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
    if print == Print::Json {
        return Ok(String::from_utf8_lossy(&reply).into_owned());
    }
    let vectors = vectors(&parse(&reply)?)
        .filter(|vectors| vectors.len() == texts.len())
        .ok_or_else(|| ClientError::Broken("the answer is not one of embeddings".to_owned()))?;
    match vectors.as_slice() {
        [vector] => Ok(vector.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")),
        _ => Ok(table(texts, &vectors)),
    }
}

fn vectors(reply: &Value) -> Option<Vec<Vec<f64>>> {
    let vector = |entry: &Value| -> Option<Vec<f64>> {
        entry["embedding"].as_array()?.iter().map(Value::as_f64).collect()
    };
    reply["data"].as_array()?.iter().map(vector).collect()
}

fn table(texts: &[String], vectors: &[Vec<f64>]) -> String {
    let labels: Vec<String> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let short: String = text.chars().take(SHOWN_CHARACTERS).collect();
            format!("{:>2} {short}", index + 1)
        })
        .collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut lines = vec![" ".repeat(width)];
    (1..=texts.len()).for_each(|index| lines[0].push_str(&format!(" {index:>6}")));
    for (label, a) in labels.iter().zip(vectors) {
        let mut line = format!("{label:width$}");
        for b in vectors {
            line.push_str(&format!(" {:>6.3}", cosine(a, b)));
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// Of vectors of any length: not all makers want theirs to have length one.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors that the model's makers do not scale had their products in the table, 40 and more.
    #[test]
    fn the_table_holds_cosines() {
        let texts = ["left".to_owned(), "right".to_owned()];
        let table = table(&texts, &[vec![7.0, 0.0], vec![0.6, 0.8]]);
        let expected = "              1      2\n 1 left   1.000  0.600\n 2 right  0.600  1.000";
        assert_eq!(table, expected);
    }
}
