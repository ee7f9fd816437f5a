//! How fast each pair of a head's values turns with its position, as transformers computes it: plain,
//! `linear`, `llama3` and `yarn`.

use super::config::Config;
use crate::shard::error::{ShardError, ensure, unfit};
use serde_json::Value;
use std::f64::consts::TAU;

/// The angles of a rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// Radians a position, by pair of values.
    pub radians: Vec<f32>,
    /// What cosines and sines are multiplied with.
    pub scale: f32,
}

/// What is said of one kind of layer.
#[derive(Clone, Copy)]
pub struct Rope<'a> {
    /// The object that names the type and its numbers, where there is one.
    scaling: Option<Config<'a>>,
    base: f64,
}

impl<'a> Rope<'a> {
    /// What `config` says: in `rope_parameters`, or in `rope_scaling` and `rope_theta`.
    pub fn of(config: &Config<'a>, default_base: f64) -> Result<Rope<'a>, ShardError> {
        let parameters = config.section("rope_parameters")?;
        let base = config.number("rope_theta", default_base)?;
        match parameters {
            Some(parameters) => Rope::of_section(&parameters, base),
            None => Ok(Rope { scaling: config.section("rope_scaling")?, base }),
        }
    }

    /// What an object says that has the base, too.
    pub fn of_section(section: &Config<'a>, default_base: f64) -> Result<Rope<'a>, ShardError> {
        Ok(Rope { scaling: Some(*section), base: section.number("rope_theta", default_base)? })
    }

    /// Without scaling.
    pub fn plain(base: f64) -> Rope<'a> {
        Rope { scaling: None, base }
    }

    /// The angles of heads whose first `width` values are turned, of a model for `positions`.
    ///
    /// # Errors
    /// A type that is not computed, or lacks a number.
    pub fn frequencies(&self, width: u64, positions: u64) -> Result<Frequencies, ShardError> {
        let pairs = width / 2;
        let plain = |pair: u64| self.base.powf(-((2 * pair) as f64) / width as f64);
        let of = |radians: Vec<f64>, scale: f64| Frequencies {
            radians: radians.into_iter().map(|radians| radians as f32).collect(),
            scale: scale as f32,
        };
        let plain: Vec<f64> = (0..pairs).map(plain).collect();
        let Some(scaling) = self.scaling else { return Ok(of(plain, 1.0)) };
        ensure!(
            scaling.is_flat(),
            "{}: the rope's numbers are given by kind of layer, which is not computed for this model",
            scaling.file()
        );
        scaling.only("partial_rotary_factor", &[1.0.into(), 1.into()])?;
        let kind = match scaling.given_text("rope_type")? {
            Some(kind) => Some(kind),
            None => scaling.given_text("type")?,
        };
        match kind {
            None if scaling.get("factor").is_none() => Ok(of(plain, 1.0)),
            Some("default") => Ok(of(plain, 1.0)),
            Some("linear") => {
                let factor = needed(&scaling, "factor")?;
                Ok(of(plain.into_iter().map(|radians| radians / factor).collect(), 1.0))
            }
            Some("llama3") => Ok(of(llama3(&scaling, plain)?, 1.0)),
            Some("yarn") => {
                let (radians, scale) = yarn(&scaling, self.base, plain, positions)?;
                Ok(of(radians, scale))
            }
            other => Err(unfit!(
                "{}: the rope type {:?} is not computed\nthere are default, linear, llama3 and yarn",
                scaling.file(),
                other.unwrap_or_default()
            )),
        }
    }
}

fn needed(scaling: &Config, key: &str) -> Result<f64, ShardError> {
    scaling.given_number(key)?.ok_or_else(|| {
        unfit!("{}: {key} is missing in what is said of the rope scaling", scaling.file())
    })
}

/// A number that is as good as left out where it is 0: so transformers takes it.
fn unless_zero(scaling: &Config, key: &str) -> Result<Option<f64>, ShardError> {
    match scaling.get(key).and_then(Value::as_f64) {
        Some(0.0) => Ok(None),
        _ => scaling.given_number(key),
    }
}

/// Slow pairs are slowed by the factor, fast ones kept, those between in parts.
fn llama3(scaling: &Config, plain: Vec<f64>) -> Result<Vec<f64>, ShardError> {
    let [factor, low, high, trained] =
        ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
            .map(|key| needed(scaling, key));
    let (factor, low, high, trained) = (factor?, low?, high?, trained?);
    let scaled = plain.into_iter().map(|radians| {
        let turns = trained * radians / TAU;
        if turns < low {
            radians / factor
        } else if turns > high || high == low {
            radians
        } else {
            let kept = (turns - low) / (high - low);
            (1.0 - kept) * radians / factor + kept * radians
        }
    });
    Ok(scaled.collect())
}

/// Pairs that turn often in the trained length are kept, those that turn seldom are slowed.
fn yarn(
    scaling: &Config,
    base: f64,
    plain: Vec<f64>,
    positions: u64,
) -> Result<(Vec<f64>, f64), ShardError> {
    let original = scaling.given_number("original_max_position_embeddings")?;
    let trained = original.unwrap_or(positions as f64);
    let factor = match scaling.given_number("factor")? {
        Some(factor) => factor,
        None => positions as f64 / trained,
    };
    let growth = |weight: f64| match factor {
        ..=1.0 => 1.0,
        _ => 0.1 * weight * factor.ln() + 1.0,
    };
    let weights = (unless_zero(scaling, "mscale")?, unless_zero(scaling, "mscale_all_dim")?);
    let scale = match (scaling.given_number("attention_factor")?, weights) {
        (Some(scale), _) => scale,
        (None, (Some(one), Some(all))) => growth(one) / growth(all),
        (None, _) => growth(1.0),
    };
    let width = 2.0 * plain.len() as f64;
    let pair_of = |turns: f64| width * (trained / (turns * TAU)).ln() / (2.0 * base.ln());
    let fast = unless_zero(scaling, "beta_fast")?.unwrap_or(32.0);
    let slow = unless_zero(scaling, "beta_slow")?.unwrap_or(1.0);
    let (mut first, mut last) = (pair_of(fast), pair_of(slow));
    if scaling.flag("truncate", true)? {
        (first, last) = (first.floor(), last.ceil());
    }
    let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
    if first == last {
        last += 0.001;
    }
    let slowed = plain.into_iter().enumerate().map(|(pair, radians)| {
        let share = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
        radians / factor * share + radians * (1.0 - share)
    });
    Ok((slowed.collect(), scale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::f32::consts::LN_2;

    fn frequencies(config: &Value, width: u64) -> Result<Frequencies, ShardError> {
        let config = Config::new(config, "config.json").unwrap();
        Rope::of(&config, 10000.0)?.frequencies(width, 128)
    }

    /// Against what transformers 4.46 and 5.2 compute.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let check = |config: Value, expected: &[f32], scale: f32| {
            let found = frequencies(&config, 2 * expected.len() as u64).unwrap();
            let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs();
            assert!(found.radians.iter().zip(expected).all(near), "{config}: {found:?}");
            assert!((found.scale - scale).abs() < 1e-6, "{config}: {found:?}");
        };
        check(json!({}), &[1.0, 0.1, 0.01, 0.001], 1.0);
        let linear = json!({"rope_scaling": {"type": "linear", "factor": 4.0}});
        check(linear, &[0.25, 0.025, 0.0025, 0.00025], 1.0);
        let parameters = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e8}});
        check(parameters, &[1.0, 0.01, 1e-4, 1e-6], 1.0);
        let llama3 = json!({"rope_theta": 10000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 100}});
        // 15.9 turns, 1.59, 0.159 and 0.0159.
        check(llama3, &[1.0, 0.1 * (0.125 + 0.875 * 0.197_183_1), 0.00125, 0.000125], 1.0);
        let yarn = json!({"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
            "original_max_position_embeddings": 32, "beta_fast": 2.0, "beta_slow": 0.25,
            "mscale": 0.707, "mscale_all_dim": 0}});
        // Pairs from 0.406 on, to 1.31: floor and ceil make it 0 and 2.
        let half = 0.1 * (0.5 + 0.5 / 8.0);
        check(yarn, &[1.0, half, 0.00125, 0.000125], 1.0 + 0.3 * LN_2);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let check = |scaling: Value, what: &str| {
            let error = frequencies(&json!({"rope_scaling": scaling}), 8).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        check(json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic");
        check(json!({"rope_type": "longrope"}), "longrope");
        check(json!({"factor": 2.0}), "rope type");
        check(json!({"type": "linear"}), "factor");
        check(json!("linear"), "rope_scaling");
        check(json!({"rope_type": "default", "partial_rotary_factor": 0.5}), "partial_rotary");
    }
}
