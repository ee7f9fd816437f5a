//! `hermesctl show`: all that is known of a model, or of one of its versions.

use super::client::{Client, ClientError, segment};
use super::embed::Print;
use super::list::served_in;
use super::versions::{date, model_and_version, version_path};
use hermes_base::store::PrecisionSummary;
use hermes_base::values::counted;
use hermes_base::values::size::Size;
use serde_json::{Value, json};

/// Asks for `MODEL` or `MODEL/VERSION` and returns what is to be printed.
///
/// # Errors
///
/// [`ClientError`].
pub fn run(client: &Client, what: &str, print: Print) -> Result<String, ClientError> {
    let (model, version) = model_and_version(what);
    let path = format!("/v2/repository/models/{}/versions", segment(model));
    let list = client.get(&path)?;
    let versions = list["versions"].as_array().cloned().unwrap_or_default();
    let served = versions.iter().find(|version| version["role"] == "current");
    let served = served.and_then(|version| version["version"].as_str());
    let Some(version) = version.or(served) else {
        let text = format!("{model} serves no version: name one of hermesctl versions {model}");
        return Err(ClientError::Usage(text));
    };
    let mut shown = client.get(&version_path(model, version))?;
    match print {
        Print::Json => {
            shown["versions"] = json!(versions);
            Ok(shown.to_string())
        }
        Print::Human => Ok(describe(&shown, &versions)),
    }
}

fn describe(shown: &Value, versions: &[Value]) -> String {
    let mut lines = vec![headline(shown)];
    let mut tell = |name: &str, words: String| lines.push(format!("{name:<9} {words}"));
    let from = &shown["provenance"];
    let (source, bytes) = (text(&from["source"]), size(&from["source_bytes"]));
    // Not all exporters give their name.
    let producer = from["producer"].as_str().filter(|name| !name.is_empty());
    let producer = producer.map_or_else(String::new, |name| format!(", {name}"));
    let built = date(from["created_s"].as_u64().unwrap_or(0));
    tell("from", format!("{source} ({bytes}{producer}), {built} UTC"));
    for (name, ports) in [("input", "inputs"), ("output", "outputs")] {
        let ports: Vec<&Value> = each(&shown[ports]).collect();
        ports.chunk_by(|a, b| is_of_one_cache(a, b)).for_each(|alike| {
            let more = match alike.len() - 1 {
                0 => String::new(),
                more => format!(" and {more} more to {}", text(&alike[more]["name"])),
            };
            tell(name, describe_port(alike[0]) + &more);
        });
    }
    if let Some(name) = shown["batch"]["name"].as_str() {
        tell("batch", format!("{name}, at most {} rows a request", shown["batch"]["limit"]));
    }
    if let Some(kind) = shown["task"]["kind"].as_str() {
        let (output, pooling) = (text(&shown["task"]["output"]), text(&shown["task"]["pooling"]));
        tell("task", format!("{kind} of {output}, pooling {pooling}"));
    }
    describe_text(&shown["text"]).into_iter().for_each(|(name, words)| tell(name, words));
    for variant in each(&shown["variants"]) {
        let error = variant["relative_error"].as_f64().unwrap_or(0.0);
        let (name, size) = (text(&variant["name"]), size(&variant["bytes"]).to_string());
        let mark = if variant["name"] == shown["variant"] { ", served" } else { "" };
        tell("variant", format!("{name:5} {size:>10}, error of the worst layer {error:.5}{mark}"));
    }
    let precision = serde_json::from_value::<PrecisionSummary>(shown["precision"].clone());
    for (name, words) in precision.into_iter().flat_map(|precision| precision.lines()) {
        tell(name, words);
    }
    for budget in each(&shown["budgets"]) {
        let length = budget["length"].as_u64();
        let requests = length.map(|length| format!(" for requests of length {length}"));
        let bytes = size(&budget["bytes"]);
        tell("budget", format!("{bytes} would do{}", requests.unwrap_or_default()));
    }
    tell("files", format!("{} in all", size(&shown["bytes"])));
    let is_layer = |file: &&Value| text(&file["path"]).starts_with("layers/");
    for file in each(&shown["files"]).filter(|file| !is_layer(file)) {
        tell("", format!("{} {}", text(&file["path"]), size(&file["bytes"])));
    }
    let count = each(&shown["files"]).filter(is_layer).count();
    let layers = counted(shown["layers"].as_u64().unwrap_or(0), "layer");
    let files = counted(count as u64, "file");
    tell("", format!("{files} of {layers}, one for each variant"));
    for version in versions {
        let role = match text(&version["role"]) {
            "spare" => String::new(),
            role => format!(", {role}"),
        };
        let (name, size) = (text(&version["version"]), size(&version["bytes"]));
        tell("version", format!("{name} ({size}){role}"));
    }
    lines.join("\n")
}

fn headline(shown: &Value) -> String {
    let (model, version) = (text(&shown["model"]), text(&shown["version"]));
    let state = text(&shown["state"]);
    match text(&shown["role"]) {
        "current" => format!("{model} version {version}: {state}, served in {}", served_in(shown)),
        "previous" => format!("{model} version {version}: served before"),
        _ => format!("{model} version {version}: not served"),
    }
}

/// Whether two ports are of the keys and values that a decoder has by the dozen: of one shape, and
/// with names that differ in nothing but numbers and which of the two it is.
fn is_of_one_cache(a: &Value, b: &Value) -> bool {
    let stem = |port: &Value| -> Option<String> {
        let name = text(&port["name"]);
        let stem = name.strip_suffix(".key").or_else(|| name.strip_suffix(".value"))?;
        Some(stem.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned())
    };
    let rest = |port: &Value| (port["datatype"].clone(), port["parameters"].clone());
    stem(a).is_some() && stem(a) == stem(b) && rest(a) == rest(b)
}

fn describe_port(port: &Value) -> String {
    let dims = each(&port["parameters"]["symbolic_shape"]);
    let dims: Vec<String> =
        dims.map(|dim| dim.as_str().map_or_else(|| dim.to_string(), str::to_owned)).collect();
    format!("{} {} [{}]", text(&port["name"]), text(&port["datatype"]), dims.join(", "))
}

/// What the makers say of texts, and what of it was guessed.
fn describe_text(rules: &Value) -> Vec<(&'static str, String)> {
    let mut lines = vec![];
    if let Some(most) = rules["max_tokens"].as_u64() {
        let longer = match rules["truncates"].as_bool() {
            Some(true) => "longer ones are cut",
            _ => "longer ones are refused",
        };
        lines.push(("text", format!("at most {most} tokens, {longer}")));
    }
    for prompt in each(&rules["prompts"]) {
        let is_default = prompt["name"] == rules["default_prompt"];
        let mark = if is_default { ", by default" } else { "" };
        lines.push(("prompt", format!("{} {}{mark}", text(&prompt["name"]), prompt["text"])));
    }
    lines.extend(each(&rules["sources"]).map(|line| ("text", text(line).to_owned())));
    lines
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn size(value: &Value) -> Size {
    Size(value.as_u64().unwrap_or(0))
}
