//! `hermesctl ls`: the models of the daemon.

use super::client::{Client, ClientError, segment};
use super::embed::Print;
use hermes_base::values::size::Size;
use hermes_base::wire::table;
use serde_json::{Value, json};

/// Width of what people read.
const COLUMNS: usize = 80;

/// Asks for every model and returns what is to be printed.
///
/// # Errors
///
/// [`ClientError`].
pub fn run(client: &Client, print: Print) -> Result<String, ClientError> {
    let index = client.get("/v2/repository/index")?;
    let entries = index.as_array().map_or(&[][..], Vec::as_slice);
    let (mut models, mut others) = (Vec::new(), Vec::new());
    for entry in entries {
        if is_broken(entry) {
            others.push(entry.clone());
            continue;
        }
        match client.get(&format!("/v2/models/{}", segment(text(&entry["name"])))) {
            Ok(model) => models.push(model),
            // It is gone since, or there is no room for what is known of it.
            Err(ClientError::Refused { message, .. }) => {
                let mut other = entry.clone();
                other["reason"] = json!(message);
                others.push(other);
            }
            Err(error) => return Err(error),
        }
    }
    match print {
        Print::Json => Ok(json!(models.iter().chain(&others).collect::<Vec<_>>()).to_string()),
        Print::Human if entries.is_empty() => {
            Ok("no models: build one into the store with hermes-shard".to_owned())
        }
        Print::Human => Ok(describe(&models, &others)),
    }
}

/// Whether no version of it can be served, whatever room there is.
fn is_broken(entry: &Value) -> bool {
    entry["version"] == ""
}

/// The models in a table, and below it why the others cannot be looked at.
fn describe(models: &[Value], others: &[Value]) -> String {
    let head = ["MODEL", "VERSION", "STATE", "TASK", "SERVED IN", "VARIANTS"].map(str::to_owned);
    let unknown = others.iter().map(|entry| {
        let (version, state) = match is_broken(entry) {
            true => ("-", "broken"),
            false => (text(&entry["version"]), "unavailable"),
        };
        [text(&entry["name"]), version, state, "-", "-", "-"].map(str::to_owned)
    });
    let rows: Vec<[String; 6]> =
        std::iter::once(head).chain(models.iter().map(row)).chain(unknown).collect();
    let wrong = others.iter().map(|entry| {
        let (name, reason) = (text(&entry["name"]), text(&entry["reason"]));
        format!("\n\n{}", table::wrapped(&format!("{name}: {reason}"), COLUMNS))
    });
    table::lines(&rows) + &wrong.collect::<String>()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// The variant that a model is served in, and the one that it lacks.
pub fn served_in(told: &Value) -> String {
    let variant = told["variant"].as_str().unwrap_or("-");
    match told["wanted_variant"].as_str() {
        Some(wanted) => format!("{variant} (no {wanted})"),
        None => variant.to_owned(),
    }
}

fn row(model: &Value) -> [String; 6] {
    let parameters = &model["parameters"];
    let variants = parameters["variants"].as_array().into_iter().flatten().map(|variant| {
        let name = variant.as_str().unwrap_or_default();
        let bytes = parameters["variant_bytes"][name].as_u64().unwrap_or(0);
        format!("{name} {}", Size(bytes))
    });
    [
        text(&model["name"]).to_owned(),
        text(&model["versions"][0]).to_owned(),
        text(&parameters["state"]).to_owned(),
        text(&parameters["task"]["kind"]).to_owned(),
        served_in(parameters),
        variants.collect::<Vec<_>>().join(", "),
    ]
}
