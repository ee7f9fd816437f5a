//! How positions are rotated, in the words of transformers: `rope_theta` and `rope_scaling`.

use super::keys::Keys;
use super::sizes::Sizes;
use crate::checkpoint::CheckpointError;
use crate::wire::quote::quote;
use serde_json::{Map, Value, json};

/// The base where a file has none.
const BASE: f64 = 10_000.0;

/// Inserts what the keys of the architecture `name` say.
///
/// # Errors
/// They ask for what is not computed here.
pub fn insert(
    keys: &Keys,
    name: &str,
    sizes: &Sizes,
    config: &mut Map<String, Value>,
) -> Result<(), CheckpointError> {
    let key = |end: &str| format!("{name}.rope.{end}");
    let base = keys.float(&key("freq_base"))?.unwrap_or(BASE);
    config.insert("rope_theta".to_owned(), json!(base));
    // Files of before 2024 have the factor alone.
    let old = keys.float(&key("scale_linear"))?;
    let factor = keys.float(&key("scaling.factor"))?.or(old).filter(|factor| *factor != 0.0);
    let kind_key = key("scaling.type");
    let kind = match keys.text(&kind_key)? {
        None if factor.is_some() => "linear",
        None => "none",
        Some(kind) => kind,
    };
    let scaling = match (kind, factor) {
        ("none", _) | ("linear" | "yarn", None) => return Ok(()),
        ("linear", Some(factor)) => json!({ "rope_type": "linear", "factor": factor }),
        ("yarn", Some(factor)) => yarn(keys, &key, sizes, factor)?,
        (other, _) => {
            let what = format!("{} is not computed here, only linear and yarn", quote(other));
            return Err(CheckpointError::unknown(keys.path(), &kind_key, what));
        }
    };
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(())
}

fn yarn(
    keys: &Keys,
    key: &impl Fn(&str) -> String,
    sizes: &Sizes,
    factor: f64,
) -> Result<Value, CheckpointError> {
    let original = keys.number(&key("scaling.original_context_length"))?.unwrap_or(sizes.positions);
    let mut scaling = json!({
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    });
    for (own, end) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(beta) = keys.float(&key(&format!("scaling.{end}")))? {
            scaling[own] = json!(beta);
        }
    }
    for end in ["scaling.yarn_ext_factor", "scaling.yarn_attn_factor"] {
        if keys.float(&key(end))?.is_some_and(|value| value != 1.0) {
            let what = "another factor than 1 is not computed here";
            return Err(CheckpointError::unknown(keys.path(), &key(end), what));
        }
    }
    // It multiplies there what it replaces here.
    if let Some(more) = keys.float(&key("scaling.attn_factor"))?.filter(|more| *more != 1.0) {
        scaling["attention_factor"] = json!(more * (1.0 + 0.1 * factor.ln()));
    }
    Ok(scaling)
}
