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
    let (broken, served): (Vec<&Value>, Vec<&Value>) =
        entries.iter().partition(|entry| entry["version"] == "");
    let mut models = Vec::new();
    for entry in served {
        models.push(client.get(&format!("/v2/models/{}", segment(text(&entry["name"]))))?);
    }
    match print {
        Print::Json => Ok(json!(models.iter().chain(broken).collect::<Vec<_>>()).to_string()),
        Print::Human if entries.is_empty() => {
            Ok("no models: build one into the store with hermes-shard".to_owned())
        }
        Print::Human => Ok(describe(&models, &broken)),
    }
}

/// The models in a table, and below it what is wrong with those that cannot be served.
fn describe(models: &[Value], broken: &[&Value]) -> String {
    let head = ["MODEL", "VERSION", "STATE", "TASK", "SERVED IN", "VARIANTS"].map(str::to_owned);
    let others = broken
        .iter()
        .map(|entry| [text(&entry["name"]), "-", "broken", "-", "-", "-"].map(str::to_owned));
    let rows: Vec<[String; 6]> =
        std::iter::once(head).chain(models.iter().map(row)).chain(others).collect();
    let wrong = broken.iter().map(|entry| {
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
