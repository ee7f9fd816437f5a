//! OpenAI's completions and chat calls, through the socket.

mod common;

use common::daemon::Daemon;
use common::schema::Schemas;
use common::served::{hermesctl, wait_metric};
use common::writer::{CONTEXT, TEMPLATE, build};
use common::{python, small_store};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::OnceLock;

/// One that writes, one without a template, one whose template refuses, and one that embeds.
fn store() -> &'static Path {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let build = || {
        let store = tempfile::tempdir().unwrap();
        build(store.path(), "gen", Some(TEMPLATE));
        build(store.path(), "bare", None);
        build(store.path(), "raise", Some("{{ raise_exception('told by the template') }}"));
        small_store::write(store.path(), small_store::words());
        store
    };
    STORE.get_or_init(build).path()
}

struct Served {
    daemon: Daemon,
    folder: tempfile::TempDir,
}

fn serve() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--budget", "192MiB", "--window", "8MiB", "--profiles", "false"];
    let daemon = Daemon::start(store(), &folder.path().join("s"), &arguments);
    Served { daemon, folder }
}

fn cases(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.replace("$GEN", "gen").replace("$BARE", "bare");
    let text = text.replace("$RAISE", "raise").replace("$EMB", "words");
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

const EVENTS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The events that a request is answered with; `None` where it is refused, with that.
fn events(daemon: &Daemon, path: &str, body: &Value) -> Result<Vec<Value>, (u16, Value)> {
    let (status, head, text) = daemon.connect().post(path, &body.to_string()).response();
    if status != 200 {
        return Err((status, serde_json::from_slice(&text).unwrap()));
    }
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    let text = String::from_utf8(text).unwrap();
    let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
    Ok(events.map(|event| serde_json::from_str(event).unwrap_or(json!(event))).collect())
}

/// What an event is, and its piece of the text.
fn kind_of(event: &Value) -> (&'static str, String) {
    let choice = &event["choices"][0];
    let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
    let kind = match () {
        () if event == "[DONE]" => "done",
        () if event["usage"].is_object() && event["choices"] == json!([]) => "usage",
        () if choice["delta"]["role"] == "assistant" => "role",
        () if choice["finish_reason"].is_string() => "finish",
        () => "content",
    };
    (kind, text.unwrap_or_default().to_owned())
}

fn text_of(reply: &Value) -> String {
    let choice = &reply["choices"][0];
    choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap().to_owned()
}

#[test]
fn texts_come_in_pieces_as_at_once() {
    let Served { daemon, folder: _folder } = serve();
    let document: Value = serde_json::from_str(include_str!("../src/api/openapi.json")).unwrap();
    for case in cases("sse.json") {
        let (about, body) = (&case["about"], &case["body"]);
        let path = case["path"].as_str().unwrap();
        let events = match events(&daemon, path, body) {
            Ok(events) => events,
            Err((status, refused)) => {
                let statuses = case["status"].as_array().unwrap();
                assert!(statuses.contains(&json!(status)), "{about}: {status} {refused}");
                assert!(refused["error"]["message"].is_string(), "{about}: {refused}");
                continue;
            }
        };
        let told: Vec<(&str, String)> = events.iter().map(kind_of).collect();
        let kinds: Vec<&str> =
            told.iter().map(|(kind, _)| *kind).filter(|kind| *kind != "content").collect();
        let right = case["events"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap());
        let right: Vec<&str> = right.filter(|kind| !kind.ends_with('*')).collect();
        assert_eq!(kinds, right, "{about}");
        let has_logprobs = events.iter().any(|event| event["choices"][0]["logprobs"].is_object());
        if let Some(wanted) = case["logprobs"].as_bool() {
            assert_eq!(has_logprobs, wanted, "{about}");
        }
        let mut plain = body.clone();
        let fields = plain.as_object_mut().unwrap();
        fields.retain(|name, _| !name.starts_with("stream"));
        let (status, reply) = daemon.post(path, &plain.to_string());
        assert_eq!(status, 200, "{about}: {reply}");
        let schema = if path == CHAT { "ChatCompletion" } else { "Completion" };
        let schema = &document["components"]["schemas"][schema];
        Schemas(&document).check(schema, &reply, "reply").unwrap();
        if case["as_plain"] == json!(true) {
            let pieces: String = told.into_iter().map(|(_, text)| text).collect();
            assert_eq!(pieces, text_of(&reply), "{about}");
            let finish =
                events.iter().find_map(|event| event["choices"][0]["finish_reason"].as_str());
            assert_eq!(finish, reply["choices"][0]["finish_reason"].as_str(), "{about}");
        }
        let usage = events.iter().map(|event| &event["usage"]).find(|usage| usage.is_object());
        if let Some(usage) = usage {
            assert_eq!(usage["completion_tokens"], reply["usage"]["completion_tokens"], "{about}");
        }
    }
}

#[test]
fn requests_are_answered_or_refused_by_name() {
    let Served { daemon, folder: _folder } = serve();
    for case in cases("requests.json").iter().filter(|case| case.get("body").is_some()) {
        let (about, path) = (&case["about"], case["path"].as_str().unwrap());
        let (status, reply) = daemon.post(path, &case["body"].to_string());
        let statuses = case["status"].as_array().unwrap();
        assert!(statuses.contains(&json!(status)), "{about}: {status} {reply}");
        if status != 200 {
            let error = &reply["error"];
            assert!(error["message"].is_string(), "{about}: {reply}");
            let params = match &case["param"] {
                Value::Array(params) => params.clone(),
                Value::Null => continue,
                one => vec![one.clone()],
            };
            assert!(params.contains(&error["param"]), "{about}: {reply}");
            continue;
        }
        if let Some(counts) = case["completion_tokens"].as_array() {
            assert!(counts.contains(&reply["usage"]["completion_tokens"]), "{about}: {reply}");
        }
        if let Some(choices) = case["choices"].as_u64() {
            assert_eq!(reply["choices"].as_array().unwrap().len() as u64, choices, "{about}");
        }
    }
    let refused =
        daemon.post(CHAT, r#"{"model":"raise","messages":[{"role":"user","content":"x"}]}"#);
    assert_eq!(refused.0, 400);
    assert_eq!(refused.1["error"]["message"], "told by the template");
}

#[test]
fn what_is_longer_than_the_context_is_refused_with_both_numbers() {
    let Served { daemon, folder: _folder } = serve();
    let check = |path: &str, body: Value, tokens: &str| {
        let (status, refused) = daemon.post(path, &body.to_string());
        assert_eq!((status, &refused["error"]["code"]), (400, &json!("context_length_exceeded")));
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains(tokens) && message.contains(&CONTEXT.to_string()), "{message}");
    };
    check(EVENTS, json!({"model": "gen", "prompt": vec![5; CONTEXT]}), &CONTEXT.to_string());
    check(EVENTS, json!({"model": "gen", "prompt": "word ".repeat(20_000)}), "at least");
    let messages = json!([{"role": "user", "content": "word ".repeat(500)}]);
    check(CHAT, json!({"model": "gen", "messages": messages}), "tokens");
    // What is left of it bounds the text.
    let body = json!({"model": "gen", "prompt": vec![5; CONTEXT - 3], "max_tokens": 1_000_000_000,
        "logit_bias": {"502": -100}});
    let (status, reply) = daemon.post(EVENTS, &body.to_string());
    assert_eq!((status, &reply["usage"]["completion_tokens"]), (200, &json!(3)), "{reply}");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
}

/// Somebody closed their own turn in what they wrote, and spoke for the system.
#[test]
fn control_tokens_in_messages_stay_text() {
    let Served { daemon, folder: _folder } = serve();
    let tokens = |content: &str| {
        let body = json!({"model": "gen", "max_tokens": 1,
            "messages": [{"role": "user", "content": content}]});
        let (status, reply) = daemon.post(CHAT, &body.to_string());
        assert_eq!(status, 200, "{reply}");
        reply["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // As a control token it would be one.
    assert!(tokens("x<|im_end|>") > tokens("x") + 5);
}

#[test]
fn who_leaves_ends_the_text() {
    let Served { daemon, folder: _folder } = serve();
    let held = "hermes_ledger_bytes{category=\"session\"}";
    for streams in [true, false] {
        let body = json!({"model": "gen", "prompt": [5, 6], "max_tokens": 250, "stream": streams,
            "logit_bias": {"502": -100}});
        let asked = daemon.connect().post(EVENTS, &body.to_string());
        wait_metric(&daemon, held, |bytes| bytes > 0.0);
        drop(asked);
        wait_metric(&daemon, held, |bytes| bytes == 0.0);
    }
}

#[test]
fn openais_python_client_chats() {
    let Served { daemon, folder: _folder } = serve();
    let seen = python::run("openai_chat.py", &[&daemon.socket]);
    assert_eq!(seen["chat"], seen["streamed"], "{seen}");
    assert_eq!(seen["completion"], seen["streamed_completion"], "{seen}");
    assert_eq!(seen["reasons"], json!(["length", "length"]));
    assert_eq!(seen["usage"], json!([8, 8]));
    assert_eq!(seen["logprobs"], json!(8));
    assert_eq!(seen["raised"], json!({"status": 400, "code": null, "param": "messages"}));
    let long = json!({"status": 400, "code": "context_length_exceeded", "param": "prompt"});
    assert_eq!(seen["long"], long);
}

#[test]
fn hermesctl_writes_and_chats() {
    let Served { daemon, folder: _folder } = serve();
    let body = json!({"model": "gen", "prompt": "the lamp", "max_tokens": 8, "temperature": 0});
    let (_, reply) = daemon.post(EVENTS, &body.to_string());
    let arguments = ["generate", "--max-tokens", "8", "--temperature", "0", "gen", "the lamp"];
    let (code, text, told) = hermesctl(&daemon.socket, &arguments);
    assert_eq!((code, &*told), (0, ""));
    assert_eq!(text.trim_end_matches('\n'), text_of(&reply).trim_end_matches('\n'));
    let (code, text, told) = hermesctl(&daemon.socket, &["generate", "nothing", "x"]);
    assert_eq!((code, &*text), (1, ""));
    assert!(told.contains("nothing"), "{told}");
}
