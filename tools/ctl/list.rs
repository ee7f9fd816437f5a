//! `hermesctl ls`: the models of the daemon.

use super::client::{Client, ClientError, segment};
use super::embed::Print;
use hermes_base::values::size::Size;
use hermes_base::wire::table;
use serde_json::{Value, json};

/// Asks for every model and returns what is to be printed.
///
/// # Errors
///
/// [`ClientError`].
pub fn run(client: &Client, print: Print) -> Result<String, ClientError> {
    let list = client.get("/v1/models")?;
    let mut models = Vec::new();
    for entry in list["data"].as_array().into_iter().flatten() {
        let name = entry["id"].as_str().unwrap_or_default();
        models.push(client.get(&format!("/v2/models/{}", segment(name)))?);
    }
    match print {
        Print::Json => Ok(json!(models).to_string()),
        Print::Human if models.is_empty() => {
            Ok("no models: build one into the store with hermes-shard".to_owned())
        }
        Print::Human => Ok(describe(&models)),
    }
}

fn describe(models: &[Value]) -> String {
    let head = ["MODEL", "VERSION", "STATE", "TASK", "SERVED IN", "VARIANTS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(models.iter().map(row)).collect();
    table::lines(&rows)
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
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let parameters = &model["parameters"];
    let variants = parameters["variants"].as_array().into_iter().flatten().map(|variant| {
        let name = variant.as_str().unwrap_or_default();
        let bytes = parameters["variant_bytes"][name].as_u64().unwrap_or(0);
        format!("{name} {}", Size(bytes))
    });
    [
        text(&model["name"]),
        text(&model["versions"][0]),
        text(&parameters["state"]),
        text(&parameters["task"]["kind"]),
        served_in(parameters),
        variants.collect::<Vec<_>>().join(", "),
    ]
}
