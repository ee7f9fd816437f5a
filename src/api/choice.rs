//! What was chosen for a target: the precision of each tensor, what it comes to, and what more time or
//! memory would give.

use super::kinds::{LayerBits, bits_table, kinds, telling};
use crate::engine::{AnsweredChoice, ChosenTensor, More};
use crate::values::size::Size;
use serde_json::{Value, json};

/// What more of something must give for it to be worth a word: what four digits show.
const LEAST_GAIN: f64 = 5e-5;

/// The choice for programs: `choice` of a plan.
pub fn choice_json(choice: &AnsweredChoice) -> Value {
    let tensor = |(of, kind): (&ChosenTensor, String)| {
        json!({
            "name": of.name,
            "layer": of.layer,
            "kind": kind,
            "variant": of.variant,
            "bits": bits(of),
            "bytes": of.bytes,
            "divergence": of.divergence,
        })
    };
    let tensors = layers(choice).flat_map(with_kinds).map(tensor);
    json!({
        "digest": choice.digest,
        "accuracy": choice.accuracy,
        "bits": choice.bits,
        "bytes": choice.bytes,
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

/// What more would give: `more` of a plan.
pub fn more_json(choice: &AnsweredChoice) -> Value {
    let more = |More { what, accuracy }: &More| json!({ "what": what, "accuracy": accuracy });
    choice.more.iter().map(more).collect()
}

/// The same for people: layers by kinds, in bits.
pub fn choice_text(choice: &AnsweredChoice) -> String {
    let AnsweredChoice { digest, accuracy, bits, bytes, more, .. } = choice;
    let layer = |tensors: &[ChosenTensor]| LayerBits {
        layer: tensors[0].layer.clone(),
        cells: with_kinds(tensors).map(|(of, kind)| (kind, self::bits(of))).collect(),
    };
    let table = bits_table(&layers(choice).map(layer).collect::<Vec<_>>());
    let mut text = format!(
        "Choice {digest}: {bits:.2} bits a weight, {}, expected accuracy {accuracy:.4}.\n\n{table}\n\n",
        Size(*bytes),
    );
    for More { what, accuracy: then } in more {
        text += &match *then > accuracy + LEAST_GAIN {
            true => format!("{what} would give an expected accuracy of {then:.4}.\n"),
            false => format!("{what} would make it no more accurate.\n"),
        };
    }
    if !more.is_empty() {
        text.push('\n');
    }
    text
}

/// Bits that a weight takes.
fn bits(tensor: &ChosenTensor) -> f64 {
    8.0 * tensor.bytes as f64 / tensor.elements.max(1) as f64
}

fn layers(choice: &AnsweredChoice) -> impl Iterator<Item = &[ChosenTensor]> {
    choice.tensors.chunk_by(|a, b| a.layer == b.layer)
}

/// The tensors of a layer, each with its kind.
fn with_kinds(tensors: &[ChosenTensor]) -> impl Iterator<Item = (&ChosenTensor, String)> {
    let names: Vec<&str> = tensors.iter().map(|of| telling(&of.name, &of.node)).collect();
    tensors.iter().zip(kinds(&names))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Target;

    fn choice() -> AnsweredChoice {
        let tensor = |layer: usize, kind: &str, variant: &str, bytes| ChosenTensor {
            name: format!("encoder.layer.{layer}.{kind}.weight"),
            node: String::new(),
            layer: format!("layer.{layer}"),
            variant: variant.to_owned(),
            elements: 1 << 20,
            bytes,
            divergence: 5e-4,
        };
        AnsweredChoice {
            target: Target { latency_us: Some(4e5), accuracy: None },
            digest: "0123456789abcdef".to_owned(),
            accuracy: 0.9912,
            bits: 4.03,
            bytes: 2 << 20,
            tensors: vec![
                tensor(0, "query", "a3", 466_000),
                tensor(0, "up", "a4", 597_000),
                tensor(1, "query", "a4", 597_000),
                tensor(1, "up", "a2", 335_000),
            ],
            more: vec![
                More { what: "2 x the time", accuracy: 0.998 },
                More { what: "2 x the memory", accuracy: 0.9912 },
            ],
        }
    }

    /// The weights of a folded transposition are called `onnx::MatMul_497`, and their kinds were `#1`.
    #[test]
    fn weights_that_an_exporter_named_are_called_by_their_nodes() {
        let mut choice = choice();
        for (tensor, kind) in choice.tensors.iter_mut().zip(["query", "up", "query", "up"]) {
            tensor.node = format!("/encoder/layer.0/{kind}/MatMul");
            tensor.name = "onnx::MatMul_497".to_owned();
        }
        let json = choice_json(&choice);
        assert_eq!(
            (&json["tensors"][0]["kind"], &json["tensors"][3]["kind"]),
            (&"query".into(), &"up".into())
        );
        assert!(choice_text(&choice).contains("query    up\nlayer.0    3.6   4.6\n"));
    }

    #[test]
    fn a_choice_is_told_by_layer_and_kind() {
        let text = choice_text(&choice());
        let expected = "Choice 0123456789abcdef: 4.03 bits a weight, 2 MiB, expected accuracy \
                        0.9912.\n\n         query    up\nlayer.0    3.6   4.6\nlayer.1    4.6   2.6\n\n\
                        2 x the time would give an expected accuracy of 0.9980.\n\
                        2 x the memory would make it no more accurate.\n\n";
        assert_eq!(text, expected);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let json = choice_json(&choice());
        let first = &json["tensors"][0];
        assert_eq!(
            [&first["layer"], &first["kind"], &first["variant"]],
            ["layer.0", "query", "a3"]
        );
        assert!((first["bits"].as_f64().unwrap() - 3.555).abs() < 0.001, "{first}");
        assert_eq!(more_json(&choice())[0]["what"], "2 x the time");
    }
}
