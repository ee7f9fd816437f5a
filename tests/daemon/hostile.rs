//! Bytes that no honest client sends, and more than a patient one asks: each gets a clear answer or
//! the end of its connection, and the next request is answered.

use crate::common::daemon::{Connection, Daemon};
use crate::common::frozen::Frozen;
use crate::common::scrape::Scrape;
use crate::common::served::{check_alive, check_error, linear_request, serve, served};
use hermes::api::routes;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that may wait: `engine::inbox` has the limit.
const QUEUE_LIMIT: usize = 256;

/// The head of an infer request, its length left open.
const INFER: &str = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\n";

/// `body` as one chunk.
fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

fn scrape(daemon: &Daemon) -> Scrape {
    let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
    let (_, _, text) = daemon.connect().send(request).response();
    Scrape::parse(std::str::from_utf8(&text).unwrap()).unwrap()
}

/// Waits until the metrics are as `is_so` wants them.
fn wait_until(daemon: &Daemon, what: &str, is_so: impl Fn(&Scrape) -> bool) {
    let start = Instant::now();
    loop {
        let now = scrape(daemon);
        if is_so(&now) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come: {now:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let served = served();
    let daemon = &served.daemon;
    let body = linear_request().to_string();
    let length = body.len();
    let refused = |head: &str, rest: &str| {
        let mut connection = daemon.connect().send(format!("{INFER}{head}\r\n{rest}"));
        assert_eq!(connection.response().0, 400, "{head}");
        assert!(connection.is_closed(), "{head}");
        check_alive(daemon);
    };
    refused(&format!("content-length: {length}\r\ncontent-length: 1\r\n"), &body);
    for wrong in ["-1", "+1", "0x10", "1, 2", "", "one", "99999999999999999999"] {
        refused(&format!("content-length: {wrong}\r\n"), &body);
    }
    refused(&format!("content-length : {length}\r\n"), &body);
    for wrong in ["gzip", "identity", "chunked, gzip", "chunked\r\n\t, identity"] {
        refused(&format!("transfer-encoding: {wrong}\r\n"), &chunked(&body));
    }
    for wrong in ["zz\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "2\r\n{}}}\r\n0\r\n\r\n"] {
        refused("transfer-encoding: chunked\r\n", wrong);
    }
    let old = "POST /v2/models/linear/infer HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(daemon.connect().send(old.to_owned() + &chunked(&body)).response().0, 400);

    // The same length twice is one length.
    let twice = format!("content-length: {length}\r\ncontent-length: {length}\r\n");
    assert_eq!(daemon.connect().send(format!("{INFER}{twice}\r\n{body}")).reply().0, 200);
}

/// A proxy that believes the one header, and a daemon that believes the other, would see different
/// requests. RFC 9112, 6.1: the transfer encoding counts, and the connection ends.
#[test]
fn no_request_is_smuggled_behind_another() {
    let served = served();
    let hidden = "GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n";
    let body = chunked(&linear_request().to_string());
    let (length, encoding) = (
        format!("content-length: {}\r\n", body.len() + hidden.len()),
        "transfer-encoding: chunked\r\n",
    );
    for head in [format!("{length}{encoding}"), format!("{encoding}{length}")] {
        let mut connection =
            served.daemon.connect().send(format!("{INFER}{head}\r\n{body}{hidden}"));
        let (status, reply) = connection.reply();
        assert_eq!((status, &reply["outputs"][0]["data"]), (200, &json!([20.0, 120.0, 220.0])));
        assert!(connection.is_closed(), "{head}");
        check_alive(&served.daemon);
    }
}

#[test]
fn heads_that_are_no_heads_are_refused() {
    let served = served();
    let check = |head: &[u8], expected: u16| {
        let mut connection = served.daemon.connect().send(head);
        assert_eq!(connection.response().0, expected, "{}", String::from_utf8_lossy(head));
        assert!(connection.is_closed());
        check_alive(&served.daemon);
    };
    check(b"GET /v2 HTTP/1.1\r\nhost: h\r\na\0b: c\r\n\r\n", 400);
    check(b"GET /v2 HTTP/1.1\r\nhost: h\r\na: b\0c\r\n\r\n", 400);
    check(b"GET /v2 HTTP/1.1\r\nhost: h\r\n: c\r\n\r\n", 400);
    check(b"GET /v2 HTTP/3.7\r\nhost: h\r\n\r\n", 400);
    check(b"GET  HTTP/1.1\r\n\r\n", 400);
    check(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400);
    let path = [b"GET /v2/".as_slice(), &[b'a'; 20_000], b" HTTP/1.1\r\nhost: h\r\n\r\n"].concat();
    check(&path, 431);
    // HTTP/2 without having asked: there is no answer that its client could read.
    let mut other = served.daemon.connect().send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    assert!(other.is_closed());
    check_alive(&served.daemon);
}

#[test]
fn small_calls_take_small_bodies() {
    let served = served();
    let long = " ".repeat(20_000);
    for path in ["models/linear/use", "models/linear/load", "models/linear/unload", "gc", "index"] {
        let reply = served.daemon.post(&format!("/v2/repository/{path}"), &long);
        check_error(&reply, 413, "the request body has 20000 bytes; the limit is ");
        check_alive(&served.daemon);
    }
}

/// What is done to a good request: bytes from some place on are dropped, and others put there.
fn damage() -> impl Strategy<Value = Vec<(Index, usize, Vec<u8>)>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        Just(b"\r\n".to_vec()),
        Just(b"\r\ncontent-length: 9\r\n".to_vec()),
        Just(b"\r\ntransfer-encoding: chunked\r\n".to_vec()),
        Just(b"99999999999999999999".to_vec()),
        Just(b"[[[[{\"".to_vec()),
    ];
    proptest::collection::vec((any::<Index>(), 0..9usize, piece), 1..4)
}

/// Whatever is sent, what is answered is HTTP and no fault of ours, and the daemon lives on.
#[test]
fn damaged_requests_do_no_damage() {
    let served = served();
    let body = linear_request().to_string();
    let good = format!("{INFER}content-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let config = ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() };
    proptest!(config, |(damages in damage())| {
        let mut request = good.clone();
        for (at, dropped, put) in damages {
            let at = at.index(request.len());
            let end = request.len().min(at + dropped);
            request.splice(at..end, put);
        }
        let answer = served.daemon.connect().send(&request).rest();
        let answer = String::from_utf8_lossy(&answer);
        prop_assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{answer}");
        prop_assert!(!answer.contains("HTTP/1.1 5"), "{answer}");
        check_alive(&served.daemon);
    });
}

#[test]
fn a_refused_request_leaves_the_next_in_its_place() {
    let served = served();
    let path = "/v2/models/linear/infer";
    let good = linear_request().to_string();
    let mut connection = served.daemon.connect();
    for _ in 0..3 {
        connection = connection.post(path, "{\"inputs\":[]}").post(path, &good);
        check_error(&connection.reply(), 400, "\"x\" is missing");
        assert_eq!(connection.reply().1["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
    }
}

#[test]
fn a_head_that_comes_byte_by_byte_is_given_up() {
    let served = served();
    let mut slow: Vec<Connection> = (0..16).map(|_| served.daemon.connect()).collect();
    let head = format!("GET /v2 HTTP/1.1\r\nhost: h\r\nx: {}", "y".repeat(300));
    for byte in head.bytes() {
        slow.retain_mut(|connection| connection.flood(&[byte], 1) > 0);
        check_alive(&served.daemon);
        if slow.is_empty() {
            return;
        }
        thread::sleep(Duration::from_millis(250));
    }
    panic!("{} heads are waited for as long as a byte comes", slow.len());
}

/// `template` with these for a model and a version.
fn path_of(template: &str, model: &str, version: &str) -> String {
    template.replace("{model}", model).replace("{version}", version)
}

#[test]
fn no_route_takes_a_name_that_is_none() {
    let served = served();
    let daemon = &served.daemon;
    let check = |method: &str, template: &str, model: &str, version: &str| {
        let path = path_of(template, model, version);
        let body = r#"{"version":"1"}"#;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, reply) = daemon.connect().send(request).reply();
        assert!(matches!(status, 400 | 404), "{method} {path}: {status} {reply}");
        let error = &reply["error"];
        let message = error["message"].as_str().or(error.as_str()).unwrap_or_default();
        assert!(!message.is_empty(), "{method} {path}: {reply}");
    };
    let long = "n".repeat(300);
    let wrong = [
        "nobody",
        "-dash",
        "..",
        "%2e%2e",
        "a%2fb",
        "..%2f..%2fetc",
        "a/b",
        "%00",
        "%ff",
        "%",
        &long,
    ];
    for (method, template, _) in routes() {
        for name in wrong {
            if template.contains("{model}") {
                check(method, template, name, "1");
            }
            if template.contains("{version}") {
                check(method, template, "linear", name);
            }
        }
        check_alive(daemon);
    }
}

#[test]
fn every_route_refuses_what_it_says_it_cannot_read() {
    let served = served();
    // These read no body.
    let takes_none =
        |path: &str| ["/profile", "/rollback", "/stats"].iter().any(|end| path.ends_with(end));
    let posts = routes().filter(|(method, path, _)| *method == "POST" && !takes_none(path));
    for (_, template, _) in posts {
        let path = path_of(template, "linear", "1");
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\
             \r\n{{}}"
        );
        let (status, reply) = served.daemon.connect().send(request).reply();
        assert_eq!(status, 415, "{path}: {reply}");
        assert!(reply.to_string().contains("text/plain"), "{path}: {reply}");
    }
    check_alive(&served.daemon);
}

/// One request whose input was called 16 MiB of control characters took 308 MiB of 64: the name was
/// owned before it was granted, and the error quoted it twice.
#[test]
fn long_names_are_neither_owned_nor_repeated() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    check_alive(daemon);
    let check = |(status, head, body): (u16, String, Vec<u8>), what: &str| {
        assert!((400..500).contains(&status), "{what}: {status}");
        assert!(head.len() + body.len() < 6 << 10, "{what}: an answer of {} bytes", body.len());
        check_alive(daemon);
    };
    // As much as a body may have, of what grows most when it is quoted.
    let long = "\\u0001".repeat((15 << 20) / 6);
    let places = [
        r#"{"id":"LONG","inputs":[]}"#,
        r#"{"LONG":1,"inputs":[]}"#,
        r#"{"inputs":[{"name":"LONG","datatype":"FP32","shape":[1],"data":[1]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"LONG","shape":[1],"data":[1]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"FP32","shape":["LONG"],"data":[1]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":["LONG"]}]}"#,
        r#"{"inputs":[],"outputs":[{"name":"LONG"}]}"#,
        r#"{"inputs":[],"parameters":{"timeout":"LONG"}}"#,
    ];
    for place in places {
        let body = place.replace("LONG", &long);
        check(daemon.connect().post("/v2/models/linear/infer", &body).response(), place);
    }
    let body = format!(r#"{{"model":"{long}","input":"cat"}}"#);
    check(daemon.connect().post("/v1/embeddings", &body).response(), "a model");
    let short = "\\u0001".repeat(2500);
    let body = format!(r#"{{"parameters":{{"{short}":1}}}}"#);
    let load = "/v2/repository/models/linear/load";
    check(daemon.connect().post(load, &body).response(), "a parameter");
    let body = format!(r#"{{"version":"{}"}}"#, &short[..3600]);
    let path = "/v2/repository/models/linear/use";
    check(daemon.connect().post(path, &body).response(), "a version");

    let long = "%01".repeat(4000);
    let odd = "\u{7f}\u{85}".repeat(4000);
    for head in [
        format!("GET /v2/models/{long} HTTP/1.1\r\n"),
        format!("GET /v2/models/linear/versions/{long} HTTP/1.1\r\n"),
        format!("GET /{long} HTTP/1.1\r\n"),
        format!("GET /v2/models/linear/plan?{long}=1 HTTP/1.1\r\n"),
        format!("GET /v2/models/linear/plan?tokens={long} HTTP/1.1\r\n"),
        format!("GET /v2/models/linear/plan?budget={long} HTTP/1.1\r\n"),
        format!("GET /v2/models/linear/plan?source={long} HTTP/1.1\r\n"),
        format!("{} /v2 HTTP/1.1\r\n", "M".repeat(8000)),
        format!("{INFER}content-type: {odd}\r\ncontent-length: 2\r\n").replace("host: h\r\n", ""),
        format!("{INFER}content-encoding: {odd}\r\ncontent-length: 2\r\n")
            .replace("host: h\r\n", ""),
        format!("{INFER}timeout: {odd}\r\ncontent-length: 2\r\n").replace("host: h\r\n", ""),
        format!("{INFER}inference-header-content-length: {odd}\r\ncontent-length: 2\r\n")
            .replace("host: h\r\n", ""),
    ] {
        let what = head.chars().take(60).collect::<String>();
        let mut connection = daemon.connect().send(format!("{head}host: h\r\n\r\n{{}}"));
        check(connection.response(), &what);
    }
    let peak_kib = daemon.status_kib("VmHWM");
    assert!(peak_kib <= 64 << 10, "{peak_kib} KiB");
}

/// 256 times the same output was answered, 113 MiB of 64, and asked of the ledger afterwards.
#[test]
fn an_output_is_answered_once() {
    let served = served();
    let mut request = linear_request();
    request["outputs"] = json!(vec![json!({"name": "y"}); 256]);
    let reply = served.daemon.post("/v2/models/linear/infer", &request.to_string());
    check_error(&reply, 400, "output \"y\" is wanted twice");
    check_alive(&served.daemon);
}

/// 60 who asked at once whether a model is ready loaded it 61 times, while nobody else was served;
/// HEAD, which changes nothing, loaded it too. Later it was loaded once, by a question.
#[test]
fn whether_a_model_is_ready_is_asked_by_many_and_loads_nothing() {
    let served = serve(&["--budget", "96MiB", "--window", "8MiB", "--profiles", "false"]);
    let daemon = &served.daemon;
    let loads = || scrape(daemon).of("hermes_loads_total", "model", "linear");
    let ask = |method: &str| {
        let close = if method == "HEAD" { "connection: close\r\n" } else { "" };
        let path = "/v2/models/linear/ready";
        daemon.connect().send(format!("{method} {path} HTTP/1.1\r\nhost: h\r\n{close}\r\n"))
    };
    let head = |connection: Connection| String::from_utf8(connection.all()).unwrap();
    assert!(head(ask("HEAD")).starts_with("HTTP/1.1 200 "));
    let asking: Vec<Connection> = (0..60).map(|_| ask("GET")).collect();
    for mut connection in asking {
        let expected = json!({"name": "linear", "ready": true, "loaded": false});
        assert_eq!(connection.reply(), (200, expected));
    }
    assert_eq!(loads(), 0.0);
    check_alive(daemon);
    assert_eq!(ask("GET").reply().1["loaded"], true);
    assert_eq!(loads(), 1.0);
}

/// 60 explicit loads of one model at once loaded it 60 times. One load answers all that wait when it
/// begins, and those that come meanwhile are the next.
#[test]
fn loads_that_many_ask_for_are_few() {
    let served = serve(&["--budget", "96MiB", "--window", "8MiB", "--profiles", "false"]);
    let daemon = &served.daemon;
    let held = Frozen::new(daemon.id(), &["engine"]);
    let path = "/v2/repository/models/linear/load";
    let asking: Vec<Connection> = (0..60).map(|_| daemon.connect().post(path, "")).collect();
    assert_eq!(daemon.get("/v2/models/linear").0, 200);
    drop(held);
    for mut connection in asking {
        let (status, reply) = connection.reply();
        assert_eq!(status, 200, "{reply}");
    }
    let loads = scrape(daemon).of("hermes_loads_total", "model", "linear");
    assert!(loads <= 3.0, "it was loaded {loads} times");
    check_alive(daemon);
}

/// Everybody loads, unloads and asks at once.
#[test]
fn loads_unloads_and_requests_at_once_do_no_harm() {
    let served = served();
    let daemon = &served.daemon;
    let models = ["linear", "words"];
    let ask = |model: &str| {
        if model == "linear" {
            return check_alive(daemon);
        }
        let body = json!({"model": "words", "input": ["cat", "dog"]}).to_string();
        let (status, reply) = daemon.post("/v1/embeddings", &body);
        assert_eq!(status, 200, "{reply}");
        let mean = [0.5, 0.5, 1.0, 0.5].map(|value: f64| value / 1.75f64.sqrt());
        let vector = reply["data"][1]["embedding"].as_array().unwrap();
        let is_near = |(a, b): (&Value, f64)| (a.as_f64().unwrap() - b).abs() < 1e-6;
        assert!(vector.iter().zip(mean).all(is_near), "{reply}");
    };
    let change = |model: &str, verb: &str| {
        let reply = daemon.post(&format!("/v2/repository/models/{model}/{verb}"), "");
        assert_eq!(reply.0, 200, "{}", reply.1);
    };
    let at_rest = || {
        models.iter().for_each(|model| change(model, "unload"));
        wait_until(daemon, "rest", |now| now.sum("hermes_connections") == 1.0);
        let held = scrape(daemon);
        let held = held.named("hermes_ledger_bytes");
        held.map(|s| (s.labels["category"].clone(), s.value as u64)).collect::<BTreeMap<_, _>>()
    };
    models.iter().for_each(|model| ask(model));
    let before = at_rest();
    thread::scope(|scope| {
        for model in models {
            for work in 0..4 {
                scope.spawn(move || {
                    for _ in 0..40 {
                        match work {
                            0 => change(model, "load"),
                            1 => change(model, "unload"),
                            _ => ask(model),
                        }
                    }
                });
            }
        }
    });
    assert_eq!(at_rest(), before);
    models.iter().for_each(|model| ask(model));
}

#[test]
fn who_finds_the_queue_full_is_told_when_to_come_again() {
    // Trials would have threads of their own beside those that are to stand still.
    let served = serve(&["--budget", "160MiB", "--window", "8MiB", "--profiles", "false"]);
    let daemon = &served.daemon;
    check_alive(daemon);
    let frozen = Frozen::new(daemon.id(), &["engine"]);
    let path = "/v2/models/linear/infer";
    let body = linear_request().to_string();
    let waits = |count: usize| {
        wait_until(daemon, "the queue", |now| now.sum("hermes_waiting_requests") == count as f64);
    };
    let mut waiting: Vec<_> =
        (0..QUEUE_LIMIT).map(|_| daemon.connect().post(path, &body)).collect();
    waits(QUEUE_LIMIT);
    let (status, head, reply) = daemon.connect().post(path, &body).response();
    assert_eq!(status, 503);
    assert!(head.contains("retry-after: 1\r\n"), "{head}");
    let reply = serde_json::from_slice(&reply).unwrap();
    check_error(&(status, reply), 503, "the queue of 256 requests is full");
    // What is no request of the engine is answered all the same.
    assert_eq!(daemon.get("/v2/health/ready").0, 200);

    // Who goes away leaves room for another. The one that asks for the metrics is counted too.
    drop(waiting.pop());
    wait_until(daemon, "the end", |now| now.sum("hermes_connections") == QUEUE_LIMIT as f64);
    let next = daemon.connect().post(path, &body);
    wait_until(daemon, "room", |now| {
        now.of("hermes_requests_total", "outcome", "cancelled") == 1.0
    });
    waits(QUEUE_LIMIT);
    waiting.push(next);
    drop(frozen);
    for mut connection in waiting {
        let (status, reply) = connection.reply();
        assert_eq!((status, &reply["outputs"][0]["data"]), (200, &json!([20.0, 120.0, 220.0])));
    }
}
