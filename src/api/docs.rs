//! What can be asked of the daemon: `openapi.json` as it is, and a page made of it.

use super::envelope::OipError;
use super::error::ApiError;
use super::granted;
use super::state::Api;
use crate::stream::Category;
use crate::wire::table::wrapped;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::sync::Arc;

/// The document, which tests hold to the routes and to what they answer.
const DOCUMENT: &str = include_str!("openapi.json");

/// Heap that making the page takes for each byte of the document; measured, 12.
const HEAP_BYTES_PER_BYTE: u64 = 16;

/// Width of the page.
const COLUMNS: usize = 80;

/// What the page begins and ends with in a browser: nothing is fetched, and nothing runs.
const HEAD: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
    <meta name=\"viewport\" content=\"width=device-width\"><title>Hermes</title>\
    <style>pre{max-width:80ch;margin:2em auto;font-size:14px}a{color:inherit}</style></head>\n\
    <body><pre>\n";
const FOOT: &str = "</pre></body></html>\n";

/// `GET /openapi.json`.
pub async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}

/// `GET /docs`: a page for browsers, the same as text for others.
pub async fn page(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<Response, OipError> {
    let accepted = headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let is_browser = accepted.is_some_and(|accepted| accepted.contains("text/html"));
    let page = api.look(move |api| {
        let making_bytes = DOCUMENT.len() as u64 * HEAP_BYTES_PER_BYTE;
        let making = api.engine.room().grant(Category::Request, making_bytes)?;
        let document: Value = serde_json::from_str(DOCUMENT)
            .map_err(|error| ApiError::internal(format!("openapi.json: {error}")))?;
        let text = Page { document: &document, text: String::new(), has_links: is_browser }.made();
        drop((document, making));
        let kind =
            if is_browser { "text/html; charset=utf-8" } else { "text/plain; charset=utf-8" };
        granted::text(&api.engine, text.into_bytes(), HeaderValue::from_static(kind))
    });
    let mut response = page.await?;
    let policy = HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok(response)
}

/// The page, line by line.
struct Page<'a> {
    document: &'a Value,
    text: String,
    has_links: bool,
}

impl Page<'_> {
    fn made(mut self) -> String {
        let document = self.document;
        if self.has_links {
            self.text.push_str(HEAD);
        }
        let info = &document["info"];
        self.words(&format!("{} {}\n", word(&info["title"]), word(&info["version"])));
        self.paragraph(&info["description"], 0);
        self.words("\nThe same for programs: ");
        self.link("/openapi.json", "/openapi.json");
        self.words("\n\n");
        self.paragraph(&document["components"]["responses"]["Error"]["description"], 0);
        for (path, operations) in fields(&document["paths"]) {
            for (method, operation) in fields(operations) {
                self.words("\n");
                self.anchor(&format!("{} {path}", method.to_uppercase()), "");
                if let Some(right) = operation["x-hermes-right"].as_str() {
                    self.words(&format!("   (right: {right})"));
                }
                self.words("\n");
                self.operation(operation);
            }
        }
        self.words("\n\nWhat is sent and answered; * marks what is always there.\n");
        for (name, schema) in fields(&document["components"]["schemas"]) {
            self.words("\n");
            self.anchor(name, name);
            self.words("\n");
            self.paragraph(&schema["description"], 4);
            self.properties(schema, 4);
        }
        if self.has_links {
            self.text.push_str(FOOT);
        }
        self.text
    }

    fn operation(&mut self, operation: &Value) {
        self.paragraph(&operation["summary"], 4);
        self.paragraph(&operation["description"], 4);
        for parameter in list(&operation["parameters"]) {
            let parameter = resolved(self.document, parameter);
            // What the path is made of stands in it.
            if parameter["in"] != "path" {
                let (name, place) = (word(&parameter["name"]), word(&parameter["in"]));
                self.words(&format!("    {name} ({place})\n"));
                self.paragraph(&parameter["description"], 8);
            }
        }
        let body = resolved(self.document, &operation["requestBody"]);
        if body.is_object() {
            self.words("    takes");
            self.content(body);
        }
        // What is refused is the same everywhere, and told in front.
        let answers = fields(&operation["responses"]).filter(|(status, _)| *status != "default");
        for (status, answer) in answers {
            self.words(&format!("    {status}"));
            self.content(resolved(self.document, answer));
        }
    }

    /// Types, to the end of the line, and what is of them.
    fn content(&mut self, described: &Value) {
        let content = &described["content"];
        for (index, (kind, of)) in fields(content).enumerate() {
            self.words(if index == 0 { "  " } else { ", or " });
            self.words(kind);
            self.words(" ");
            self.kind(&of["schema"]);
        }
        self.words("\n");
        self.paragraph(&described["description"], 8);
        fields(content).for_each(|(_, of)| self.properties(&of["schema"], 8));
    }

    fn properties(&mut self, schema: &Value, indent: usize) {
        let required: Vec<&str> = list(&schema["required"]).map(word).collect();
        for (name, property) in fields(&schema["properties"]) {
            let mark = if required.contains(&name.as_str()) { "*" } else { "" };
            self.words(&format!("{:indent$}{name}{mark}  ", ""));
            self.kind(property);
            self.words("\n");
            self.paragraph(&property["description"], indent + 4);
            self.properties(property, indent + 4);
            self.properties(&property["items"], indent + 4);
        }
    }

    /// What a schema stands for, in a word or two.
    fn kind(&mut self, schema: &Value) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap_or(reference);
            return self.link(name, &format!("#{name}"));
        }
        let values: Vec<String> = list(&schema["enum"]).map(Value::to_string).collect();
        if !values.is_empty() {
            return self.words(&values.join(" | "));
        }
        match &schema["type"] {
            Value::Array(kinds) => {
                self.words(&kinds.iter().map(word).collect::<Vec<_>>().join(" or "));
            }
            Value::String(kind) if kind == "array" => {
                self.words("array of ");
                self.kind(&schema["items"]);
            }
            kind => self.words(word(kind)),
        }
    }

    fn paragraph(&mut self, text: &Value, indent: usize) {
        for line in wrapped(text.as_str().unwrap_or_default(), COLUMNS - indent).lines() {
            self.words(&format!("{:indent$}{line}\n", ""));
        }
    }

    /// What links lead to; with no name, nothing does.
    fn anchor(&mut self, text: &str, name: &str) {
        if self.has_links {
            self.text.push_str(&format!("<b id=\"{name}\">").replace(" id=\"\"", ""));
        }
        self.words(text);
        if self.has_links {
            self.text.push_str("</b>");
        }
    }

    fn link(&mut self, text: &str, target: &str) {
        if self.has_links {
            self.text.push_str(&format!("<a href=\"{target}\">"));
        }
        self.words(text);
        if self.has_links {
            self.text.push_str("</a>");
        }
    }

    fn words(&mut self, text: &str) {
        match self.has_links {
            true => text.chars().for_each(|letter| match letter {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                letter => self.text.push(letter),
            }),
            false => self.text.push_str(text),
        }
    }
}

/// What a reference stands for, or the value itself where it is none.
fn resolved<'v>(document: &'v Value, value: &'v Value) -> &'v Value {
    let pointer = value["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
    pointer.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

fn fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn list(array: &Value) -> impl Iterator<Item = &Value> {
    array.as_array().into_iter().flatten()
}

fn word(text: &Value) -> &str {
    text.as_str().unwrap_or_default()
}
