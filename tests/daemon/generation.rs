//! OpenAI's completions and chat calls, through the socket.

use crate::common::daemon::{Connection, Daemon, command};
use crate::common::frozen::Frozen;
use crate::common::programs::program;
use crate::common::schema::Schemas;
use crate::common::served::{hermesctl, metric, wait_metric};
use crate::common::tiny::{path, run};
use crate::common::writer::{CONTEXT, TEMPLATE, build, build_with};
use crate::common::{made, python, small_store};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

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
    let document: Value = serde_json::from_str(include_str!("../../src/api/openapi.json")).unwrap();
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
    let (status, refused) = daemon.get(&format!("/v2/models/gen/plan?tokens={}", CONTEXT + 1));
    let message = refused["error"].as_str().unwrap();
    let longest = format!("at most {CONTEXT} tokens");
    assert!(status == 400 && message.contains(&longest), "{message}");
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
    let cancelled = "hermes_requests_total{model=\"gen\",outcome=\"cancelled\"}";
    let begun = "hermes_sessions_total{model=\"gen\"}";
    let cases = [false, true].map(|half_closes| [(true, half_closes), (false, half_closes)]);
    for (streams, half_closes) in cases.concat() {
        let body = json!({"model": "gen", "prompt": [5, 6], "max_tokens": 250, "stream": streams,
            "logit_bias": {"502": -100}});
        let leave = || {
            let before = [cancelled, begun].map(|sample| metric(&daemon, sample));
            let asked = [(); 16].map(|()| {
                let asked = daemon.connect().post(EVENTS, &body.to_string());
                if half_closes { asked.half_close() } else { asked }
            });
            wait_metric(&daemon, begun, |texts| texts > before[1]);
            drop(asked);
            wait_metric(&daemon, SESSIONS, |texts| texts == 0.0);
            metric(&daemon, cancelled) > before[0]
        };
        // A client that the machine holds up may leave once all is written.
        assert!((0..20).any(|_| leave()), "{streams} {half_closes}");
        // What was written until then may go on, if it is worth anything.
        let held = "hermes_ledger_bytes{category=\"session\"}";
        wait_metric(&daemon, held, |bytes| bytes == metric(&daemon, "hermes_kept_text_bytes"));
    }
}

/// Who said that it sends no more, as `nc -N` and some proxies do, was taken for gone and not answered.
#[test]
fn who_sends_no_more_is_answered() {
    let Served { daemon, folder: _folder } = serve();
    for streams in [true, false] {
        let body = json!({"model": "gen", "prompt": [5, 6], "max_tokens": 100, "stream": streams,
            "logit_bias": {"502": -100}});
        let answer = daemon.connect().post(EVENTS, &body.to_string()).rest();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains(if streams { "[DONE]" } else { "\"usage\"" }), "{answer}");
    }
    // What it has not sent does not come any more.
    let begun = "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
                 content-length: 100\r\n\r\n{\"model\"";
    let answer = String::from_utf8(daemon.connect().send(begun).rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
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

/// What is told of budgets went by 64 bytes of heap for each of a tokenizer's file, and by requests
/// that nobody who wants texts makes: 114 MiB where 69 were enough.
#[test]
fn texts_are_written_in_the_budgets_that_are_named_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    build(&store, "gen", Some(TEMPLATE));
    let drawn = folder.path().join("drawn");
    fs::create_dir(&drawn).unwrap();
    made::write_mistral_of(&drawn, None, 512);
    let tokenizer = include_str!("../data/text/tokenizers/byte-level.tokenizer.json");
    fs::write(drawn.join("tokenizer.json"), tokenizer).unwrap();
    run(program("hermes-shard"), &["build", path(&drawn), "--store", path(&store)]);
    let begin = |budget: &str| {
        let arguments = ["--budget", budget, "--profiles", "false"];
        Daemon::start(&store, &folder.path().join("s"), &arguments)
    };
    for (model, appends) in [("gen", false), ("drawn", true)] {
        let manifest = fs::read_to_string(store.join(model).join("1/manifest.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["needs"]["appends"] == true, appends, "{model}");
        let shown = begin("192MiB").get(&format!("/v2/repository/models/{model}/versions/1")).1;
        let budgets = shown["budgets"].as_array().unwrap().clone();
        let lengths: Vec<u64> = budgets.iter().map(|of| of["length"].as_u64().unwrap()).collect();
        // Those beyond the context were named, too.
        let longest = if appends { 512 } else { CONTEXT as u64 };
        assert_eq!(lengths, [16, 128, longest], "{shown}");
        let ask = |daemon: &Daemon, length: u64| {
            let prompt = vec![5; length as usize - 4];
            let body = json!({"model": model, "prompt": prompt, "max_tokens": 4,
                "logit_bias": {"7": 100}});
            daemon.post(EVENTS, &body.to_string())
        };
        let is_served = |budget: &str, length: u64| {
            let (status, reply) = ask(&begin(budget), length);
            assert_eq!(status, 200, "{model}, {budget}, {length}: {reply}");
            assert_eq!(reply["usage"]["total_tokens"], length, "{reply}");
        };
        for (budget, length) in budgets.iter().zip(lengths) {
            is_served(&budget["bytes"].to_string(), length);
        }
        // It named one to two MiB less than a daemon in which that came to nothing.
        let inspect = ["inspect", model, "--store", path(&store)];
        let inspected = Command::new(program("hermes-shard")).args(inspect).output().unwrap();
        let inspected = String::from_utf8(inspected.stdout).unwrap();
        let told = inspected.lines().find(|line| line.ends_with("requests of length 128")).unwrap();
        let mib = told.split_whitespace().nth(1).unwrap();
        is_served(&format!("{mib}MiB"), 128);
        // What is refused is told one budget, and it does: 64 bytes for each of a tokenizer's were
        // named, and then another.
        let (status, reply) = ask(&begin("20MiB"), 128);
        assert_eq!(status, 413, "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        let named = message.split_once("a budget of ").unwrap().1.split_once(' ').unwrap().0;
        is_served(named, 128);
        let (named, shown): (u64, u64) =
            (named.parse().unwrap(), budgets[1]["bytes"].as_u64().unwrap());
        assert!(named.abs_diff(shown) < 2 << 20, "{named} is named, {shown} shown");
    }
}

/// Plans and benchmarks refused what completions take, where the texts of embeddings are shorter.
#[test]
fn texts_are_as_long_as_the_context_wherever_embeddings_are_cut() {
    let store = tempfile::tempdir().unwrap();
    build(store.path(), "gen", Some(TEMPLATE));
    let manifest = store.path().join("gen/1/manifest.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    told["text"] = json!({"max_tokens": 64, "truncates": true});
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, told.to_string()).unwrap();
    let arguments = ["--budget", "192MiB", "--profiles", "false"];
    let daemon = Daemon::start(store.path(), &store.path().join("s"), &arguments);
    let body = json!({"model": "gen", "prompt": vec![5; 250], "max_tokens": 6,
        "logit_bias": {"7": 100}});
    assert_eq!(daemon.post(EVENTS, &body.to_string()).0, 200);
    let plan = |tokens: usize| daemon.get(&format!("/v2/models/gen/plan?tokens={tokens}"));
    assert_eq!(plan(CONTEXT).0, 409, "it is not measured");
    let (status, reply) = plan(CONTEXT + 1);
    let message = reply["error"].as_str().unwrap();
    assert!(status == 400 && message.contains("at most 256 tokens, 257 are more"), "{reply}");
    let bench = |tokens: &str| {
        let mut bench = Command::new(program("hermes-bench"));
        bench.args(["pass", "--model", "gen", "--tokens", tokens, "--store", path(store.path())]);
        String::from_utf8(bench.output().unwrap().stderr).unwrap()
    };
    // It has fewer places than its context says.
    let said = bench("80");
    assert!(said.contains("outside a table"), "{said}");
    let said = bench("257");
    assert!(said.contains("texts of gen have at most 256 tokens, 257 are more"), "{said}");
}

/// Once an answer had come, Ctrl-C ended nothing any more.
#[test]
fn an_interrupt_ends_a_chat_where_no_answer_comes() {
    let Served { daemon, folder: _folder } = serve();
    let begin = || {
        let mut command = Command::new(program("hermesctl"));
        command.args(["--socket", path(&daemon.socket), "chat", "--max-tokens", "2", "gen"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    for interrupts in [true, false] {
        let mut chat = begin();
        let mut said = chat.stdin.take().unwrap();
        said.write_all(b"the lamp\n/what\n").unwrap();
        let mut told = String::new();
        BufReader::new(chat.stderr.take().unwrap()).read_line(&mut told).unwrap();
        assert!(told.starts_with("there is no /what"), "{told}");
        if interrupts {
            run("kill", &["-INT", &chat.id().to_string()]);
            assert_eq!(chat.wait().unwrap().code(), Some(130));
        } else {
            drop(said);
            assert_eq!(chat.wait().unwrap().code(), Some(0));
        }
    }
}

const REQUESTS: &str = "hermes_ledger_bytes{category=\"request\"}";
const SESSIONS: &str = "hermes_sessions";

/// A text of which each token is told with the 20 likeliest: 2 KB a token.
fn told(streams: bool) -> Value {
    json!({"model": "gen", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200,
        "logprobs": true, "top_logprobs": 20, "stream": streams, "logit_bias": {"502": -100}})
}

/// A text and how likely its tokens were were in no ledger until all of it was there: 10 MB of an
/// answer of 1,024 tokens.
#[test]
fn what_is_told_of_a_text_is_granted_as_it_comes() {
    let Served { daemon, folder: _folder } = serve();
    let warm = json!({"model": "gen", "prompt": [5], "max_tokens": 1});
    assert_eq!(daemon.post(EVENTS, &warm.to_string()).0, 200);
    let before = metric(&daemon, REQUESTS);
    for streams in [true, false] {
        // Nobody reads.
        let asked = daemon.connect().post(CHAT, &told(streams).to_string());
        wait_metric(&daemon, REQUESTS, |bytes| bytes > before + 100e3);
        drop(asked);
        wait_metric(&daemon, SESSIONS, |texts| texts == 0.0);
        wait_metric(&daemon, REQUESTS, |bytes| bytes == before);
    }
    let (status, whole) = daemon.post(CHAT, &told(false).to_string());
    assert_eq!(status, 200, "{whole}");
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 200);
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 20, "{token}");
        let logprobs: Vec<f64> = top.iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.is_sorted_by(|a, b| a >= b), "{token}");
    }
    wait_metric(&daemon, REQUESTS, |bytes| bytes == before);
}

/// What a model's tokenizer takes for its texts, and generation.json, were seen once they were there.
#[test]
fn what_tells_of_a_language_is_granted_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    let mut tokenizer: Value =
        serde_json::from_str(include_str!("../data/text/tokenizers/byte-level.tokenizer.json"))
            .unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let mut one = added[0].clone();
    let first = added.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap() + 1;
    for number in 0..400 {
        one["id"] = json!(first + number);
        one["content"] = json!(format!("<|unused {number}|>"));
        added.push(one.clone());
    }
    let template = format!("{{# {} #}}{TEMPLATE}", "long ".repeat(400_000));
    build_with(&store, "gen", Some(&template), &tokenizer.to_string(), CONTEXT);
    let socket = folder.path().join("s");
    let log = folder.path().join("log");
    let arguments = ["--budget", "256MiB", "--profiles", "false"];
    let mut command = command(&store, &socket, &arguments);
    command.stderr(fs::File::create(&log).unwrap());
    let daemon = Daemon::spawn(&mut command, &socket);
    let body = json!({"model": "gen", "prompt": "the lamp", "max_tokens": 2});
    let (status, reply) = daemon.post(EVENTS, &body.to_string());
    assert_eq!(status, 200, "{reply}");
    let log = fs::read_to_string(&log).unwrap();
    assert!(!log.contains("were granted"), "{log}");
}

/// Whoever leaves, and whenever, takes all along: before the first token, between two, in the middle
/// of the reply, with texts that have not begun.
#[test]
fn clients_that_leave_by_chance_leave_nothing_behind() {
    let Served { daemon, folder: _folder } = serve();
    let warm = json!({"model": "gen", "prompt": [5], "max_tokens": 1});
    assert_eq!(daemon.post(EVENTS, &warm.to_string()).0, 200);
    let before = metric(&daemon, REQUESTS);
    thread::scope(|scope| {
        for client in 0..6 {
            let daemon = &daemon;
            scope.spawn(move || {
                for round in 0..4_u64 {
                    let at = client * 4 + round;
                    let mut body = told(at % 3 > 0);
                    let mut path = CHAT;
                    if at % 4 == 0 {
                        path = EVENTS;
                        body = json!({"model": "gen", "prompt": [[5], [5, 6], [7], [8], [9]],
                            "max_tokens": 50, "stream": at % 8 == 0});
                    }
                    let asked = daemon.connect().post(path, &body.to_string());
                    asked.leave_after(at * 7919 % 4 * 200);
                }
            });
        }
    });
    wait_metric(&daemon, SESSIONS, |texts| texts == 0.0);
    wait_metric(&daemon, REQUESTS, |bytes| bytes == before);
    assert_eq!(daemon.post(EVENTS, &warm.to_string()).0, 200);
    // With the model goes what is kept of texts that have ended.
    assert_eq!(daemon.post("/v2/repository/models/gen/unload", "{}").0, 200);
    let held = "hermes_ledger_bytes{category=\"session\"}";
    wait_metric(&daemon, held, |bytes| bytes == 0.0);
}

/// A text that is broken off is no success: its last event is an error, and no end follows.
#[test]
fn streams_that_break_off_say_why() {
    let Served { daemon, folder: _folder } = serve();
    let warm = json!({"model": "gen", "prompt": [5], "max_tokens": 1});
    assert_eq!(daemon.post(EVENTS, &warm.to_string()).0, 200);
    let before = metric(&daemon, REQUESTS);
    let body = told(true).to_string();
    let start = Instant::now();
    assert_eq!(daemon.connect().post(CHAT, &body).response().0, 200);
    let took = start.elapsed();
    // What comes in the middle of some text comes before or behind others.
    let broken = |ask: &dyn Fn(i32) -> Connection, words: &str| {
        (0..100).any(|attempt| {
            let (status, _, text) = ask(attempt).response();
            let text = String::from_utf8(text).unwrap();
            let last = text.trim_end().rsplit("data: ").next().unwrap();
            let event = serde_json::from_str::<Value>(last);
            match event {
                _ if status != 200 => false,
                Err(_) => {
                    assert_eq!(last, "[DONE]");
                    false
                }
                Ok(event) => {
                    let message = event["error"]["message"].as_str().unwrap();
                    assert!(message.contains(words), "{message}");
                    true
                }
            }
        })
    };
    let begun = "hermes_first_token_duration_seconds_count{model=\"gen\"}";
    let unloaded = |_: i32| {
        let texts = metric(&daemon, begun);
        let asked = daemon.connect().post(CHAT, &body);
        wait_metric(&daemon, begun, |now| now > texts);
        assert_eq!(daemon.post("/v2/repository/models/gen/unload", "{}").0, 200);
        asked
    };
    assert!(broken(&unloaded, "broken off"));
    let late = |attempt: i32| {
        let timeout = took.mul_f64(0.8_f64.powi(attempt % 30)).as_micros();
        let timeout = format!("{timeout}us");
        let headers = [("content-type", "application/json"), ("timeout", &timeout)];
        daemon.connect().ask(&format!("POST {CHAT}"), &headers, &body)
    };
    assert!(broken(&late, "time"));
    wait_metric(&daemon, SESSIONS, |texts| texts == 0.0);
    wait_metric(&daemon, REQUESTS, |bytes| bytes == before);
}

/// Those that the end of a drain cut off just stopped.
#[test]
fn streams_that_a_stop_cuts_off_say_so() {
    let Served { daemon, folder: _folder } = serve();
    let mut asked = daemon.connect().post(CHAT, &told(true).to_string());
    asked.wait_answer();
    let _frozen = Frozen::new(daemon.id(), &["engine"]);
    daemon.signal("-TERM");
    daemon.signal("-INT");
    let (status, _, text) = asked.response();
    let text = String::from_utf8(text).unwrap();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let event: Value = serde_json::from_str(last).expect(last);
    assert_eq!((status, &event["error"]["message"]), (200, &json!("the daemon is stopping")));
}

/// A text that never fits is refused before anything of it is read, with how many tokens would.
#[test]
fn texts_that_never_fit_are_refused_with_the_tokens_that_do() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    let tokenizer = include_str!("../data/text/tokenizers/byte-level.tokenizer.json");
    build_with(&store, "gen", None, tokenizer, 1_000_000_000);
    let arguments = ["--budget", "96MiB", "--window", "8MiB", "--profiles", "false"];
    let daemon = Daemon::start(&store, &folder.path().join("s"), &arguments);
    for streams in [false, true] {
        let body = json!({"model": "gen", "prompt": [5, 6], "max_tokens": 900_000_000,
            "stream": streams});
        let (status, refused) = daemon.post(EVENTS, &body.to_string());
        assert_eq!(status, 413, "{refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("900000002") && message.contains("budget"), "{message}");
    }
    wait_metric(&daemon, SESSIONS, |texts| texts == 0.0);
}

/// Builds of language models said of vectors that there are none of: "of length one: guessed".
#[test]
fn nothing_is_said_of_vectors_where_there_are_none() {
    let manifest = fs::read_to_string(store().join("gen/1/manifest.json")).unwrap();
    assert!(manifest.contains("no embeddings") && !manifest.contains("vectors of"), "{manifest}");
}
