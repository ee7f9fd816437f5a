//! What of `precision.json` is worth a few lines: what encoders and importance were measured with, and
//! which tensors matter most.

use super::precision::{Calibration, Measure, Precision, Probe};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tensors that are told.
const LOUDEST: usize = 3;

/// The same in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionSummary {
    /// Inputs that the encoders were told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// How importance was measured, once it was of every tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// The tensors without whose precision answers are off most, the first most.
    pub loudest: Vec<Loud>,
}

/// A tensor that matters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loud {
    pub weight: String,
    /// How far answers are off with it alone in the probe's variant.
    pub divergence: f64,
}

impl Precision {
    /// What is worth a few lines of it.
    pub fn summary(&self) -> PrecisionSummary {
        let probe = self.probe.clone().filter(|_| self.is_measured());
        let measured = self.tensors.iter().filter(|_| probe.is_some());
        let mut loudest: Vec<Loud> = measured
            .filter_map(|tensor| {
                Some(Loud { weight: tensor.weight.clone(), divergence: tensor.divergence? })
            })
            .collect();
        loudest.sort_by(|a, b| b.divergence.total_cmp(&a.divergence));
        loudest.truncate(LOUDEST);
        // Digests and factors tell people nothing.
        let calibration =
            self.calibration.clone().map(|told| Calibration { learnt: vec![], ..told });
        let probe = probe.map(|probe| Probe { together: BTreeMap::new(), ..probe });
        PrecisionSummary { calibration, probe, loudest }
    }
}

impl PrecisionSummary {
    /// Lines for people, each without the word that it begins with.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let encoded = match &self.calibration {
            None => "by the weights alone".to_owned(),
            Some(Calibration { source, is_made_up, columns, .. }) => {
                let made_up = if *is_made_up { "made-up inputs: " } else { "" };
                format!("for {made_up}{source}, {columns} columns")
            }
        };
        let mut lines = vec![("encoded", encoded)];
        let Some(Probe { variant, measure, inputs, source, .. }) = &self.probe else {
            lines.push(("tensors", "which of them matter was not measured".to_owned()));
            return lines;
        };
        let measure = match measure {
            Measure::Cosine => "1 - cosine",
            Measure::Kl => "divergence",
        };
        let by =
            format!("matter by {measure}, each alone in {variant}, {inputs} inputs of {source}");
        lines.push(("tensors", by));
        let loud = |Loud { weight, divergence }: &Loud| format!("{weight} {divergence:.1e}");
        lines.extend(self.loudest.iter().map(|tensor| ("", loud(tensor))));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::super::layer_file::Layout;
    use super::super::manifest::Checksum;
    use super::super::precision::{PRECISION_FORMAT, TensorPrecision};
    use super::*;

    fn precision(divergences: &[Option<f64>]) -> Precision {
        let tensor = |(index, divergence): (usize, &Option<f64>)| TensorPrecision {
            weight: format!("w{index}"),
            layout: Layout::Panels,
            layer: 0,
            node: String::new(),
            elements: 16,
            errors: BTreeMap::new(),
            fed: vec![],
            divergence: *divergence,
        };
        Precision {
            format: PRECISION_FORMAT,
            calibration: Some(Calibration {
                source: "64 rows of random token ids".into(),
                is_made_up: true,
                inputs: 64,
                columns: 1530,
                learnt: vec![Checksum(7)],
            }),
            probe: Some(Probe {
                variant: "a3".into(),
                measure: Measure::Cosine,
                inputs: 64,
                source: "docs.txt".into(),
                together: BTreeMap::from([("a3".to_owned(), 2.0)]),
            }),
            tensors: divergences.iter().enumerate().map(tensor).collect(),
        }
    }

    #[test]
    fn the_loudest_come_first() {
        let summary = precision(&[0.01, 0.04, 0.02, 0.03].map(Some)).summary();
        let names: Vec<&str> = summary.loudest.iter().map(|loud| loud.weight.as_str()).collect();
        assert_eq!(names, ["w1", "w3", "w2"]);
        let (calibration, probe) = (summary.calibration.as_ref(), summary.probe.as_ref());
        assert!(calibration.is_some_and(|told| told.learnt.is_empty()));
        assert!(probe.is_some_and(|told| told.together.is_empty()));
        let lines: Vec<String> =
            summary.lines().into_iter().map(|(word, words)| format!("{word} {words}")).collect();
        let expected = [
            "encoded for made-up inputs: 64 rows of random token ids, 1530 columns",
            "tensors matter by 1 - cosine, each alone in a3, 64 inputs of docs.txt",
            " w1 4.0e-2",
            " w3 3.0e-2",
            " w2 2.0e-2",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_was_measured_of_some_is_told_of_none() {
        let summary = precision(&[Some(0.01), None]).summary();
        assert_eq!((&summary.probe, summary.loudest.len()), (&None, 0));
        assert_eq!(summary.lines()[1].1, "which of them matter was not measured");
    }
}
