//! Which output of a model is a text's vector, and how its tokens become one: as the user says,
//! else as the makers say, else as the outputs' own names say. Two that may both be meant are not
//! chosen between.

use super::error::{ShardError, ensure, unfit};
use super::makers::{Makers, VECTORS};
use crate::graph::Imported;
use crate::store::Dtype;
use crate::store::manifest::{Dim, Pooling, Port, Task, TextRules};

/// Names of outputs that hold the vectors of tokens.
const TOKEN_NAMES: [&str; 3] = ["last_hidden_state", "token_embeddings", "hidden_states"];

/// Names of outputs that are a text's vector, pooled within the model.
const TEXT_NAMES: [&str; 5] =
    ["sentence_embedding", "sentence_embeddings", "text_embeds", "text_embeddings", "embedding"];

/// What flags say.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// `OUTPUT[:POOLING]`.
    pub embedding: Option<&'a str>,
    /// How the tokens' vectors are pooled.
    pub pooling: Option<Pooling>,
}

/// The task of a model with a tokenizer, and the rules of its texts; no task where nothing makes it
/// an embedder. Their last lines say what was decided and by what.
///
/// # Errors
/// A wish that the model cannot fulfil.
pub fn decide(
    wish: Wish<'_>,
    makers: Makers,
    imported: &Imported,
) -> Result<(Option<Task>, TextRules), ShardError> {
    let mut rules = makers.rules.clone();
    let unfilled = imported.inputs.iter().find_map(unfilled);
    let decided = match (wish.embedding, unfilled) {
        (Some(_), Some(why)) => return Err(unfit!("it makes no embeddings of texts: {why}")),
        (Some(text), None) => Ok(named(text, wish.pooling, &makers, &imported.outputs)?),
        (None, Some(why)) if wish.pooling.is_none() => Err(why),
        (None, _) => found(wish.pooling, &makers, imported)?,
    };
    let decided = decided.and_then(|choice| suits(choice, &makers, &imported.outputs));
    match decided {
        Ok(Choice { output, pooling, by, .. }) => {
            rules.sources.push(format!("vector {output}, pooling {}: {by}", pooling.name()));
            Ok((Some(Task::Embedding { output, pooling }), rules))
        }
        Err(why) => {
            // What was found, or guessed, of vectors is of none.
            rules.sources.retain(|line| !line.starts_with(VECTORS));
            rules.sources.push(format!("no embeddings: {why}"));
            Ok((None, rules))
        }
    }
}

struct Choice {
    output: String,
    pooling: Pooling,
    by: String,
    /// Whether somebody wants it so, whatever files say.
    is_wished: bool,
}

/// Why texts alone do not fill an input, where they do not.
fn unfilled(port: &Port) -> Option<String> {
    let Port { name, dtype, .. } = port;
    match name.as_str() {
        "input_ids" | "attention_mask" | "token_type_ids" | "position_ids" => {
            let is_whole = matches!(dtype, Dtype::Int64 | Dtype::Int32);
            (!is_whole).then(|| format!("input {name:?} is {dtype}"))
        }
        _ => Some(format!("the model has an input {name:?}, which texts do not fill")),
    }
}

/// The choice, unless what was found is of vectors of another length.
fn suits(choice: Choice, makers: &Makers, outputs: &[Port]) -> Result<Choice, String> {
    let port = outputs.iter().find(|port| port.name == choice.output);
    let width = port.and_then(|port| port.shape.last());
    match (&makers.width, width) {
        (Some((said, file)), Some(Dim::Fixed(width)))
            if said != width && !choice.is_wished && choice.pooling != Pooling::None =>
        {
            Err(format!(
                "{file} is of vectors of {said} values, those of output {:?} have {width}; \
                 --embedding OUTPUT:POOLING decides otherwise",
                choice.output
            ))
        }
        _ => Ok(choice),
    }
}

/// What `--embedding` says.
fn named(
    text: &str,
    wished: Option<Pooling>,
    makers: &Makers,
    outputs: &[Port],
) -> Result<Choice, ShardError> {
    let known: Vec<&str> = outputs.iter().map(|port| port.name.as_str()).collect();
    let (output, pooling) = match text.rsplit_once(':') {
        // Names of outputs may have colons.
        Some((output, pooling)) if !known.contains(&text) => (output, Some(pooling)),
        _ => (text, None),
    };
    let Some(port) = outputs.iter().find(|port| port.name == output) else {
        return Err(unfit!("the model has no output \"{output}\"\nit has {}", known.join(", ")));
    };
    let given = pooling.map(|name| name.parse::<Named>().map_err(ShardError::Unfit));
    let given = given.transpose()?.map(|Named(pooling)| pooling).or(wished);
    let kind = kind_of(port).ok_or_else(|| {
        unfit!("output \"{output}\" is no embedding: it should be FP32 or FP16 [1, D] or [1, S, D]")
    })?;
    let (pooling, by) = match (given, &makers.pooling, kind) {
        (Some(pooling), ..) => (pooling, "as given".to_string()),
        (None, _, Kind::Text) => (Pooling::None, "as given".to_string()),
        (None, Some((pooling, file)), Kind::Tokens) => (*pooling, file.clone()),
        (None, None, Kind::Tokens) => (Pooling::Mean, "the pooling is guessed".to_string()),
    };
    ensure!(
        (kind == Kind::Text) == (pooling == Pooling::None),
        "output \"{output}\" has {} axes, which this pooling does not fit\nuse {}",
        port.shape.len(),
        if kind == Kind::Text { "none".to_string() } else { of_tokens() }
    );
    Ok(Choice { output: output.to_string(), pooling, by, is_wished: true })
}

/// What makers, or names alone, say; else why nothing is decided.
fn found(
    wished: Option<Pooling>,
    makers: &Makers,
    imported: &Imported,
) -> Result<Result<Choice, String>, ShardError> {
    let outputs = &imported.outputs;
    let of_kind = |kind| outputs.iter().filter(move |port| kind_of(port) == Some(kind));
    let tokens: Vec<&Port> = of_kind(Kind::Tokens).collect();
    let names = |ports: &[&Port]| {
        ports.iter().map(|port| format!("{:?}", port.name)).collect::<Vec<_>>().join(", ")
    };
    let of_tokens_by_name = || {
        let named = TOKEN_NAMES.iter().find_map(|name| {
            tokens
                .iter()
                .find(|port| port.name == *name || port.name.ends_with(&format!(".{name}")))
        });
        named.copied()
    };
    let only_tokens = || match tokens[..] {
        [port] => Some(port),
        _ => None,
    };
    let choice = |port: &Port, pooling: Pooling, by: &str| {
        let (output, is_wished) = (port.name.clone(), wished.is_some());
        Ok(Ok(Choice { output, pooling, by: by.to_string(), is_wished }))
    };
    if let Some(pooling) = wished {
        ensure!(pooling != Pooling::None, "--pooling none wants --embedding OUTPUT beside it");
        let port = of_tokens_by_name().or_else(only_tokens).ok_or_else(|| {
            unfit!(
                "which output holds the tokens' vectors?\ngive --embedding OUTPUT:{}",
                pooling.name()
            )
        })?;
        return choice(port, pooling, "as given");
    }
    if !imported.inputs.iter().any(|port| port.name == "input_ids") {
        return Ok(Err("the model has no input \"input_ids\"".to_string()));
    }
    if let Some(other_use) = &makers.other_use {
        return Ok(Err(format!("{other_use}; --embedding OUTPUT decides otherwise")));
    }
    let text_by_name = of_kind(Kind::Text).find(|port| TEXT_NAMES.contains(&port.name.as_str()));
    // What was pooled within has its prompt in it.
    if let Some(port) = text_by_name.filter(|_| !makers.rules.skips_prompt) {
        return choice(port, Pooling::None, "by its name");
    }
    if let Some(missing) = &makers.missing {
        return Ok(Err(format!(
            "{missing}, which is not computed here; --embedding OUTPUT:POOLING leaves it out"
        )));
    }
    let token_port = of_tokens_by_name().or_else(only_tokens);
    if let Some((pooling, file)) = &makers.pooling {
        return match token_port {
            Some(port) => choice(port, *pooling, file),
            None => Ok(Err(format!(
                "{file} pools tokens, and it is not plain which output holds their vectors; \
                 --embedding OUTPUT:{} decides",
                pooling.name()
            ))),
        };
    }
    let texts: Vec<&Port> = of_kind(Kind::Text).collect();
    match (of_tokens_by_name(), &texts[..]) {
        (None, [port]) if is_like_vector(port) => {
            choice(port, Pooling::None, "guessed, the only vector there is")
        }
        (Some(port), []) => {
            choice(port, Pooling::Mean, "guessed, no 1_Pooling/config.json says it")
        }
        (Some(port), texts) => Ok(Err(format!(
            "the vectors of tokens ({:?}) or another output ({})? --pooling mean, cls or the like decides",
            port.name,
            names(texts)
        ))),
        (None, _) => {
            Ok(Err("no output is plainly a text's vector; --embedding OUTPUT:POOLING decides"
                .to_string()))
        }
    }
}

/// Whether an output may be a text's vector by its name and width: classes are few, and called so.
fn is_like_vector(port: &Port) -> bool {
    const LEAST_WIDTH: u64 = 32;
    const OTHERS: [&str; 7] = ["logit", "prob", "score", "class", "label", "pooler", "pred"];
    let name = port.name.to_lowercase();
    let is_wide = matches!(port.shape.last(), Some(Dim::Fixed(width)) if *width >= LEAST_WIDTH);
    is_wide && !OTHERS.iter().any(|other| name.contains(other))
}

/// What an output may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A vector for each token.
    Tokens,
    /// One for the text.
    Text,
}

fn kind_of(port: &Port) -> Option<Kind> {
    match (port.dtype, port.shape.len()) {
        (Dtype::Fp32 | Dtype::Fp16, 2) => Some(Kind::Text),
        (Dtype::Fp32 | Dtype::Fp16, 3) => Some(Kind::Tokens),
        _ => None,
    }
}

/// A pooling by its name, as command lines give it.
#[derive(Clone, Copy, Debug)]
pub struct Named(pub Pooling);

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(name: &str) -> Result<Named, String> {
        Pooling::by_name(name).map(Named).ok_or_else(|| {
            format!("pooling \"{name}\" is unknown\nthere are {} and none", of_tokens())
        })
    }
}

/// Names of the poolings of tokens.
fn of_tokens() -> String {
    let names = Pooling::ALL.iter().filter(|pooling| **pooling != Pooling::None);
    names.map(|pooling| pooling.name()).collect::<Vec<_>>().join(", ")
}
