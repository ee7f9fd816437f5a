//! The daemon as its clients meet it: a real process, a real socket, good and bad bytes.

use crate::common::daemon::{Daemon, command};
use crate::common::programs::program;
use crate::common::served::{
    STORE, check_alive, check_error, hermesctl, linear_request, metric, serve, served,
    slow_request, wait_for_pass, wait_metric,
};
use crate::common::skip::skip;
use crate::common::small_store;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn metadata_and_health_follow_the_protocol() {
    let served = served();
    let daemon = &served.daemon;
    let (status, server) = daemon.get("/v2");
    assert_eq!((status, &server["name"]), (200, &json!("hermes")));
    assert!(server["extensions"].is_array());
    assert_eq!(daemon.get("/v2/health/live").0, 200);
    assert_eq!(daemon.get("/v2/health/ready").0, 200);
    for path in ["/v2/models/linear", "/v2/models/linear/versions/1"] {
        let (status, model) = daemon.get(path);
        assert_eq!(status, 200);
        assert_eq!(model["versions"], json!(["1"]));
        assert_eq!(model["inputs"][0]["name"], "x");
        assert_eq!(model["inputs"][0]["datatype"], "FP32");
        assert_eq!(model["inputs"][0]["shape"], json!([1, -1, 4]));
        assert_eq!(model["parameters"]["state"], "unloaded");
    }
    for loaded in [false, true] {
        let expected = json!({"name": "linear", "ready": true, "loaded": loaded});
        for path in ["/v2/models/linear/ready", "/v2/models/linear/versions/1/ready"] {
            assert_eq!(daemon.get(path), (200, expected.clone()));
        }
        let state = if loaded { "ready" } else { "unloaded" };
        assert_eq!(daemon.get("/v2/models/linear").1["parameters"]["state"], state);
        daemon.load("linear");
    }
    check_error(&daemon.get("/v2/models/linear/versions/2"), 404, "it serves");
    check_error(&daemon.get("/v2/models/linear/versions/2/ready"), 404, "no version");
}

#[test]
fn infer_answers() {
    let served = served();
    let daemon = &served.daemon;
    check_alive(daemon);
    let request = json!({"id": "42", "parameters": {"a": {"b": [1]}}, "outputs": [{"name": "r"}],
        "inputs": [{"data": [[[1, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 0.5]]], "shape": [1, 3, 4],
                    "parameters": {}, "datatype": "FP32", "name": "x"}]});
    for path in ["/v2/models/linear/infer", "/v2/models/linear/versions/1/infer"] {
        let (status, reply) = daemon.post(path, &request.to_string());
        assert_eq!(status, 200, "{reply}");
        assert_eq!((&reply["id"], &reply["model_name"]), (&json!("42"), &json!("linear")));
        assert_eq!(reply["model_version"], "1");
        assert_eq!(reply["outputs"].as_array().unwrap().len(), 1);
        let output = &reply["outputs"][0];
        assert_eq!((&output["name"], &output["datatype"]), (&json!("r"), &json!("FP32")));
        assert_eq!(output["shape"], json!([1, 3, 3]));
        assert_eq!(output["data"], json!([0.0, 10.0, 20.0, 0.0, 0.0, 0.0, 1.5, 6.5, 11.5]));
    }
}

/// An axis of length 0 was refused, and then taken with nobody to say what is right.
#[test]
fn no_rows_are_answered_with_no_rows() {
    let served = served();
    let daemon = &served.daemon;
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 0, 4], "data": []});
    let body = json!({"inputs": [input]}).to_string();
    let (status, reply) = daemon.post("/v2/models/linear/infer", &body);
    assert_eq!(status, 200, "{reply}");
    let output =
        |name: &str| json!({"name": name, "datatype": "FP32", "shape": [1, 0, 3], "data": []});
    assert_eq!(reply["outputs"], json!([output("y"), output("r")]));
    check_alive(daemon);
    // What has elements is not of length 0.
    let body = body.replace("[1,0,4]", "[1,0,0]");
    check_error(&daemon.post("/v2/models/linear/infer", &body), 400, "\"x\"");
    let body = body.replace("[1,0,0]", "[1,0,4]").replace("\"data\":[]", "\"data\":[1]");
    check_error(
        &daemon.post("/v2/models/linear/infer", &body),
        400,
        "data has more than 0 elements",
    );
}

#[test]
fn every_dtype_passes_exactly() {
    let served = served();
    let check = |dtype: &str, values: Value| {
        let shape = [1, values.as_array().unwrap().len()];
        let input = json!({"name": "x", "datatype": dtype, "shape": shape, "data": values});
        let path = format!("/v2/models/same-{}/infer", dtype.to_lowercase());
        let (status, reply) = served.daemon.post(&path, &json!({"inputs": [input]}).to_string());
        assert_eq!(status, 200, "{dtype}: {reply}");
        assert_eq!(reply["outputs"][0]["datatype"], dtype);
        assert_eq!(reply["outputs"][0]["data"], values, "{dtype}");
    };
    check("BOOL", json!([true, false, true]));
    check("UINT8", json!([0, 255]));
    check("UINT16", json!([0, 65535]));
    check("UINT32", json!([0, 4294967295u32]));
    check("UINT64", json!([0, u64::MAX]));
    check("INT8", json!([-128, 127]));
    check("INT16", json!([-32768, 32767]));
    check("INT32", json!([i32::MIN, i32::MAX]));
    check("INT64", json!([i64::MIN, i64::MAX, (1i64 << 53) + 1]));
    check("FP16", json!([1.5, -65504.0]));
    check("FP32", json!([1.5, -0.25, 16777216.0]));
    check("FP64", json!([0.1, 1e300, -2.2250738585072014e-308]));
}

#[test]
fn what_json_cannot_hold_is_null_and_counted() {
    let served = served();
    let request = json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 0.0, -1.0]
    }]});
    let (status, reply) = served.daemon.post("/v2/models/log/infer", &request.to_string());
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["outputs"][0]["data"], json!([0.0, null, null]));
    assert_eq!(reply["outputs"][0]["parameters"]["non_finite"], 2);
}

#[test]
fn wrong_inputs_are_named() {
    let served = served();
    let daemon = &served.daemon;
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut request = linear_request();
        change(&mut request);
        let reply = daemon.post("/v2/models/linear/infer", &request.to_string());
        check_error(&reply, 400, expected);
        check_alive(daemon);
    };
    check(&|r| r["inputs"][0]["datatype"] = json!("INT64"), "\"x\"");
    check(&|r| r["inputs"][0]["datatype"] = json!("FP64"), "FP32");
    check(&|r| r["inputs"][0]["datatype"] = json!("BYTES"), "BYTES");
    check(&|r| r["inputs"][0]["datatype"] = json!("FLOAT"), "unknown datatype");
    check(&|r| r["inputs"][0]["shape"] = json!([1, 4]), "\"x\"");
    check(&|r| r["inputs"][0]["shape"] = json!([1, 2, 2]), "\"x\"");
    check(&|r| r["inputs"][0]["shape"] = json!([1, 2, 4]), "data has 4 elements");
    check(&|r| r["inputs"][0]["shape"] = json!([1, 1, -4]), "shape [1,1,-4]");
    check(&|r| r["inputs"][0]["shape"] = json!([1u64 << 40, 1u64 << 40]), "shape");
    check(&|r| r["inputs"][0]["shape"] = json!([2, 1, 4]), "\"x\"");
    check(&|r| r["inputs"][0]["data"] = json!([1, 2, 3]), "data has 3 elements");
    check(&|r| r["inputs"][0]["data"] = json!([1, null, 3, 4]), "data[1] is null");
    check(&|r| r["inputs"][0]["data"] = json!([1, "2", 3, 4]), "data[1] is a string");
    check(&|r| r["inputs"][0]["data"] = json!([]), "data has 0 elements");
    check(&|r| r["inputs"][0]["name"] = json!("z"), "\"z\"");
    check(&|r| r["inputs"] = json!([]), "\"x\" is missing");
    check(&|r| r["inputs"] = json!([r["inputs"][0], r["inputs"][0]]), "twice");
    check(&|r| r["outputs"] = json!([{"name": "z"}]), "\"z\"");
    check(&|r| drop(r["inputs"][0].as_object_mut().unwrap().remove("shape")), "\"shape\"");
    check(&|r| drop(r["inputs"][0].as_object_mut().unwrap().remove("data")), "\"data\"");
    check(&|r| drop(r.as_object_mut().unwrap().remove("inputs")), "\"inputs\" is missing");
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let served = served();
    let daemon = &served.daemon;
    let path = "/v2/models/linear/infer";
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "null", "{\"inputs\":[{\"data\":[NaN]}]}", "\u{0}", &deep] {
        check_error(&daemon.post(path, body), 400, "not an infer request");
        check_alive(daemon);
    }
}

#[test]
fn wrong_paths_methods_and_types_are_refused() {
    let served = served();
    let daemon = &served.daemon;
    check_error(&daemon.get("/v2/models/nobody"), 404, "nobody");
    check_error(&daemon.post("/v2/models/nobody/infer", "{}"), 404, "nobody");
    for name in ["..", "..%2f..%2fetc", "a%2fb", "%2e%2e", "linear%00", "%ff", "a%20b"] {
        check_error(&daemon.get(&format!("/v2/models/{name}")), 404, "");
        check_error(&daemon.post(&format!("/v2/models/{name}/infer"), "{}"), 404, "");
    }
    check_error(&daemon.get("/v2/models/../../etc/passwd"), 404, "nothing at");
    check_error(&daemon.get("/v2/models/linear/infer"), 405, "use POST");
    check_error(&daemon.post("/v2/models/linear", "{}"), 405, "use GET");
    let request = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-type: text/plain\r\n\
                   content-length: 2\r\n\r\n{}";
    check_error(&daemon.connect().send(request).reply(), 415, "application/json");
    check_alive(daemon);
}

#[test]
fn a_body_of_a_gigabyte_is_never_held() {
    let served = served();
    let daemon = &served.daemon;
    let head =
        "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";
    let megabyte = vec![b' '; 1 << 20];

    let mut declared = daemon.connect().send(format!("{head}content-length: 1073741824\r\n\r\n"));
    check_error(&declared.reply(), 413, "1073741824 bytes; the limit is 25165824 (24 MiB)");
    assert!(declared.flood(&megabyte, 1024) < 1 << 30 || declared.is_closed());
    check_alive(daemon);

    let mut chunked = daemon.connect().send(format!("{head}transfer-encoding: chunked\r\n\r\n"));
    let chunk = [b"100000\r\n", megabyte.as_slice(), b"\r\n"].concat();
    chunked.flood(&chunk, 1024);
    check_error(&chunked.reply(), 413, "more than 25165824");
    check_alive(daemon);

    // Less than it declares, and then nothing.
    drop(daemon.connect().send(format!("{head}content-length: 1000000\r\n\r\n{{\"inputs\"")));
    check_alive(daemon);
    let peak_kib = daemon.status_kib("VmHWM");
    assert!(peak_kib < 96 << 10, "{peak_kib} KiB");
}

#[test]
fn half_a_request_hinders_nobody() {
    let served = served();
    let daemon = &served.daemon;
    let mut halves = Vec::new();
    for half in [
        "G",
        "GET /v2 HTTP/1.1\r\nhost",
        "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\n\
        content-length: 100\r\n\r\n{\"inputs\"",
    ] {
        halves.push(daemon.connect().send(half));
        check_alive(daemon);
    }
    drop(halves);
    check_alive(daemon);
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let served = served();
    let head = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{";
    let mut silent = served.daemon.connect().send(head);
    check_error(&silent.reply(), 408, "no byte of the request body for 10 s");
    check_alive(&served.daemon);
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    // Busy ones, with half a body each: of idle ones the first would make room.
    let half = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{";
    let busy = || {
        let mut connection = daemon.connect();
        connection.flood(half.as_bytes(), 1);
        connection
    };
    let mut open: Vec<_> = (0..136).map(|_| busy()).collect();
    let health = "GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n";
    let start = Instant::now();
    // One whose head was not read yet may have made room.
    loop {
        let mut one = daemon.connect();
        one.flood(health.as_bytes(), 1);
        if one.reply().0 == 503 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(8), "more are served than there may be");
        open.push(busy());
    }
    check_error(&daemon.connect().reply(), 503, "places for connections, ");
    drop(open);
    let start = Instant::now();
    while daemon.open_files() > 60 {
        assert!(start.elapsed() < Duration::from_secs(30), "connections stay open");
        std::thread::sleep(Duration::from_millis(5));
    }
    check_alive(daemon);
}

#[test]
fn broken_heads_are_refused() {
    let served = served();
    let daemon = &served.daemon;
    assert_eq!(daemon.connect().send("nonsense\r\n\r\n").reply().0, 400);
    let long = format!("GET /v2 HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    assert_eq!(daemon.connect().send(long).reply().0, 431);
    let many = format!("GET /v2 HTTP/1.1\r\nhost: h\r\n{}\r\n", "a: b\r\n".repeat(100));
    assert_eq!(daemon.connect().send(many).reply().0, 431);
    check_alive(daemon);
}

#[test]
fn pipelined_requests_are_answered_in_turn() {
    let served = served();
    let body = linear_request().to_string();
    let get = "GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut connection =
        served.daemon.connect().send(get).post("/v2/models/linear/infer", &body).send(get);
    assert_eq!(connection.reply().1["name"], "hermes");
    assert_eq!(connection.reply().1["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
    assert_eq!(connection.reply().1["name"], "hermes");
}

/// Each of these passes would take a second.
#[test]
fn a_client_that_goes_away_cancels_its_pass() {
    let served = served();
    let daemon = &served.daemon;
    let request = slow_request().to_string();
    daemon.load("slow");
    let outcomes =
        |outcome| format!("hermes_requests_total{{model=\"slow\",outcome=\"{outcome}\"}}");
    for round in 1..=4 {
        let connection = daemon.connect().post("/v2/models/slow/infer", &request);
        wait_for_pass(daemon);
        drop(connection);
        wait_metric(daemon, &outcomes("cancelled"), |count| count == f64::from(round));
    }
    assert_eq!(metric(daemon, &outcomes("answered")), 0.0, "a pass went on for nobody");
    check_alive(daemon);
}

/// The ids of a vocabulary were taken for less than their number, which they are not where there are
/// holes: the tokenizer's own tokens were refused.
#[test]
fn a_vocabulary_may_have_holes() {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::words());
    small_store::write(store.path(), small_store::words_with_holes());
    let daemon = Daemon::start(store.path(), &store.path().join("s"), &["--budget", "96MiB"]);
    let ask = |model: &str, input: Value| {
        let body = json!({"model": model, "input": input, "tokenizer": model}).to_string();
        daemon.post("/v1/embeddings", &body)
    };
    let (status, plain) = ask("words", json!("car cat"));
    assert_eq!(status, 200, "{plain}");
    for input in [json!("car cat"), json!([[9, 1]])] {
        let (status, reply) = ask("holes", input);
        assert_eq!(status, 200, "{reply}");
        assert_eq!(reply["data"], plain["data"]);
    }
    for token in [3, 8, 10, 12] {
        let (status, reply) = ask("holes", json!([[1, token]]));
        assert_eq!(status, 400, "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.contains(&format!("token {token} is none")), "{message}");
    }
}

/// A model whose vectors are of FP16 answers with floats as any other.
#[test]
fn embeddings_may_be_of_half_precision() {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::words());
    small_store::write(store.path(), small_store::words_in_half());
    let daemon = Daemon::start(store.path(), &store.path().join("s"), &["--budget", "96MiB"]);
    let ask = |model: &str| {
        let body = json!({"model": model, "input": ["car cat", "dog"]}).to_string();
        let (status, reply) = daemon.post("/v1/embeddings", &body);
        assert_eq!(status, 200, "{reply}");
        reply["data"].clone()
    };
    // 0.5 and 1 are the same in both.
    assert_eq!(ask("halves"), ask("words"));
}

#[test]
fn embeddings_follow_openai() {
    let served = served();
    let daemon = &served.daemon;
    let path = "/v1/embeddings";
    let (status, models) = daemon.get("/v1/models");
    assert_eq!((status, &models["object"]), (200, &json!("list")));
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert!(names.contains(&&json!("words")));

    let ask = |body: Value| {
        let (status, reply) = daemon.post(path, &body.to_string());
        assert_eq!(status, 200, "{reply}");
        reply
    };
    let cat = ask(json!({"model": "words", "input": "cat"}));
    assert_eq!((&cat["object"], &cat["model"]), (&json!("list"), &json!("words")));
    assert_eq!(cat["usage"], json!({"prompt_tokens": 1, "total_tokens": 1}));
    let vector: Vec<f64> = serde_json::from_value(cat["data"][0]["embedding"].clone()).unwrap();
    let expected = [0.5, 1.0, 0.5, 0.5].map(|v| v / 1.75f64.sqrt());
    assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{vector:?}");

    let four = ask(json!({"model": "words", "input": ["cat", "dog car", "bird", "cat"]}));
    let data = four["data"].as_array().unwrap();
    assert_eq!(data.len(), 4);
    assert_eq!(
        (&data[3]["index"], &data[3]["embedding"]),
        (&json!(3), &cat["data"][0]["embedding"])
    );
    assert_eq!(four["usage"]["prompt_tokens"], 5);
    let tokens = ask(json!({"model": "words", "input": [[1], [2, 3]], "tokenizer": "words"}));
    assert_eq!(tokens["data"][1]["embedding"], data[1]["embedding"]);
    let base64 = ask(json!({"model": "words", "input": "cat", "encoding_format": "base64"}));
    assert_eq!(base64["data"][0]["embedding"].as_str().unwrap().len(), 24);
    // tokenizer.json says six tokens.
    let long = ask(json!({"model": "words", "input": "cat ".repeat(50)}));
    assert_eq!(long["usage"]["prompt_tokens"], 6);
    let many = ask(json!({"model": "words", "input": vec!["dog"; 100]}));
    assert_eq!(many["data"].as_array().unwrap().len(), 100);

    let check = |body: Value, status: u16, param: Value, code: Value| {
        let reply = daemon.post(path, &body.to_string());
        let error = &reply.1["error"];
        assert_eq!((reply.0, &error["param"], &error["code"]), (status, &param, &code), "{error}");
        assert!(error["message"].is_string() && error["type"].is_string());
    };
    check(json!({"model": "nobody", "input": "a"}), 404, json!("model"), json!("model_not_found"));
    check(json!({"model": "linear", "input": "a"}), 400, json!("model"), json!(null));
    check(json!({"model": "words", "input": ""}), 400, json!("input"), json!(null));
    check(json!({"model": "words", "input": []}), 400, json!("input"), json!(null));
    check(
        json!({"model": "words", "input": [[1], [4]], "tokenizer": "words"}),
        400,
        json!("input"),
        json!(null),
    );
    let many = json!({"model": "words", "input": vec!["cat"; 2049]});
    check(many, 400, json!("input"), json!(null));
    check(json!({"model": "words", "input": "a".repeat(70_000)}), 400, json!("input"), json!(null));
    check(
        json!({"model": "words", "input": "a", "dimensions": 5}),
        400,
        json!("dimensions"),
        json!(null),
    );
    check(json!([]), 400, json!(null), json!(null));
    check_alive(daemon);
}

/// Every text was cut where tokenizer.json says, which exporters set to less than the model takes;
/// prompts, case and shorter vectors were left to the client, `dimensions` refused even where it
/// was the model's own.
#[test]
fn texts_are_treated_as_their_makers_say() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let start = |rules: Value| {
        let store = small_store::with_rules(rules);
        let daemon = Daemon::start(store.path(), &socket, &["--budget", "64MiB"]);
        (store, daemon)
    };
    let ask = |daemon: &Daemon, more: Value| {
        let mut body = json!({"model": "words"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.post("/v1/embeddings", &body.to_string())
    };
    let vector = |daemon: &Daemon, more: Value| -> Vec<f64> {
        let (status, reply) = ask(daemon, more);
        assert_eq!(status, 200, "{reply}");
        serde_json::from_value(reply["data"][0]["embedding"].clone()).unwrap()
    };
    let refused = |daemon: &Daemon, more: Value, param: &str, words: &[&str]| {
        let (status, reply) = ask(daemon, more);
        let message = reply["error"]["message"].as_str().unwrap();
        assert_eq!((status, reply["error"]["param"].as_str()), (400, Some(param)), "{reply}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    let long = "cat cat dog car dog dog car car";
    let (store, daemon) = start(json!({
        "max_tokens": 7, "truncates": false, "lowercase": true,
        "prompts": [{"name": "query", "text": "dog "}], "skips_prompt": false, "sources": [],
    }));
    refused(&daemon, json!({"input": long}), "input", &["8 tokens", "at most 7", "truncate"]);
    refused(&daemon, json!({"input": long, "truncate": false}), "input", &["8 tokens"]);
    let end = vector(&daemon, json!({"input": long, "truncate": true}));
    assert_eq!(end, vector(&daemon, json!({"input": "cat cat dog car dog dog car"})));
    let start_cut = vector(&daemon, json!({"input": long, "truncate": "START"}));
    assert_eq!(start_cut, vector(&daemon, json!({"input": "cat dog car dog dog car car"})));
    let cat = vector(&daemon, json!({"input": "cat"}));
    assert_eq!(vector(&daemon, json!({"input": "CAT"})), cat);
    let asked = vector(&daemon, json!({"input": "cat", "prompt_name": "query"}));
    assert_eq!(asked, vector(&daemon, json!({"input": "dog cat"})));
    let unknown = json!({"input": "cat", "prompt_name": "passage"});
    refused(&daemon, unknown, "prompt_name", &["no prompt \"passage\"", "query"]);
    let tokens = json!({"input": [1], "prompt_name": "query"});
    refused(&daemon, tokens, "prompt_name", &["array of tokens"]);
    assert_eq!(vector(&daemon, json!({"input": "cat", "dimensions": 4})), cat);
    let two = vector(&daemon, json!({"input": "cat", "dimensions": 2}));
    let length = cat[0].hypot(cat[1]);
    let expected = [cat[0] / length, cat[1] / length];
    assert!(two.len() == 2 && two.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
    let five = json!({"input": "cat", "dimensions": 5});
    refused(&daemon, five, "dimensions", &["5 dimensions", "have 4"]);
    let (_, metadata) = daemon.get("/v2/models/words");
    assert_eq!(metadata["parameters"]["text"]["max_tokens"], 7);
    // Terabytes were named as the least that such passes take.
    let (status, reply) = daemon.get("/v2/models/words/plan?tokens=8");
    let message = reply["error"].as_str().unwrap();
    assert!(status == 400 && message.contains("at most 7 tokens, 8 are more"), "{reply}");
    assert_eq!(daemon.get("/v2/models/words/plan?tokens=7").0, 409, "it is not measured");
    drop(daemon);
    let mut bench = Command::new(program("hermes-bench"));
    bench.args(["pass", "--model", "words", "--tokens", "8", "--store"]).arg(store.path());
    let said = String::from_utf8(bench.output().unwrap().stderr).unwrap();
    assert!(said.contains("texts of words have at most 7 tokens, 8 are more"), "{said}");

    // Cut where the makers say, which is not where tokenizer.json does; a prompt comes unasked.
    let (_store, daemon) = start(json!({
        "max_tokens": 3, "truncates": true, "lowercase": false, "default_prompt": "query",
        "prompts": [{"name": "query", "text": "dog "}], "skips_prompt": true, "sources": [],
    }));
    assert_eq!(vector(&daemon, json!({"input": "cat"})), cat);
    let (_, reply) = ask(&daemon, json!({"input": long}));
    assert_eq!(reply["usage"]["prompt_tokens"], 3, "{reply}");
}

/// Clients made of dataclasses and pydantic write null for what nobody set.
#[test]
fn null_is_left_out_of_requests() {
    let served = served();
    let daemon = &served.daemon;
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 2, 3, 4],
        "parameters": null});
    for more in [
        json!({"id": null}),
        json!({"outputs": null}),
        json!({"parameters": {"timeout": null, "binary_data_output": null}}),
        json!({"outputs": [{"name": "y", "parameters": {"binary_data": null}}], "id": null}),
    ] {
        let mut body = json!({"inputs": [input]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, reply) = daemon.post("/v2/models/linear/infer", &body.to_string());
        assert_eq!((status, reply.get("id")), (200, None), "{more}: {reply}");
    }
    let (status, reply) = daemon.post("/v2/models/linear/infer", "{\"inputs\":null}");
    assert!(status == 400 && reply["error"].as_str().unwrap().contains("missing"), "{reply}");
    for (path, body) in [
        ("/v2/repository/index", "{\"ready\":null}"),
        ("/v2/repository/models/linear/load", "{\"parameters\":null}"),
        ("/v2/repository/models/linear/unload", "{\"parameters\":null}"),
        ("/v2/repository/gc", "{\"keep\":null}"),
    ] {
        let (status, reply) = daemon.post(path, body);
        assert_eq!(status, 200, "{path}: {reply}");
    }
    check_alive(daemon);
}

#[test]
fn curl_is_a_client() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("curl is not installed");
    }
    let served = served();
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--unix-socket"]).arg(&served.daemon.socket).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(curl(&["http://hermes/v2"])["name"], "hermes");
    let body = linear_request().to_string();
    let json = "content-type: application/json";
    let reply = curl(&["-H", json, "-d", &body, "http://hermes/v2/models/linear/infer"]);
    assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
    // curl sends 30 MB and must still see why it was refused.
    let file = served.folder.path().join("large");
    std::fs::write(&file, vec![b' '; 30_000_000]).unwrap();
    let data = format!("@{}", file.display());
    let url = "http://hermes/v2/models/linear/infer";
    let reply = curl(&["-H", json, "-H", "expect:", "--data-binary", &data, url]);
    assert!(reply["error"].as_str().unwrap().contains("30000000"), "{reply}");
}

#[test]
fn the_socket_is_private_and_the_daemon_leaves_nothing() {
    let mut served = served();
    let socket = served.daemon.socket.clone();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = command(STORE.path(), &socket, &["--budget", "96MiB"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another hermesd serves"));
    check_alive(&served.daemon);
    served.daemon.signal("-TERM");
    assert!(served.daemon.wait().success());
    assert!(!socket.exists());
}

#[test]
fn a_daemon_takes_over_where_one_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let arguments = ["--budget", "96MiB"];
    let mut killed = Daemon::start(STORE.path(), &socket, &arguments);
    killed.signal("-KILL");
    killed.wait();
    assert!(socket.exists());
    check_alive(&Daemon::start(STORE.path(), &socket, &arguments));
}

#[test]
fn what_runs_is_finished_before_the_end() {
    let mut served = served();
    served.daemon.load("slow");
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 64, 1024],
                       "data": vec![0; 64 * 1024]});
    let request = json!({"inputs": [input]}).to_string();
    let mut connection = served.daemon.connect().post("/v2/models/slow/infer", &request);
    wait_for_pass(&served.daemon);
    served.daemon.signal("-TERM");
    assert_eq!(connection.reply().0, 200);
    assert!(served.daemon.wait().success());
}

#[test]
fn hermesctl_lists_infers_and_embeds() {
    let served = served();
    let socket = &served.daemon.socket;
    let (code, list, _) = hermesctl(socket, &["ls"]);
    assert_eq!(code, 0);
    assert!(list.lines().any(|line| line.starts_with("words ") && line.contains("embedding")));
    let (_, list, _) = hermesctl(socket, &["ls", "--json"]);
    assert!(serde_json::from_str::<Value>(&list).unwrap().is_array());
    // A folder that was renamed aside was in no list, nor told of.
    let store = small_store::with_rules(json!({"sources": []}));
    std::fs::rename(store.path().join("words"), store.path().join("aside")).unwrap();
    let renamed = Daemon::start(store.path(), &store.path().join("s"), &["--budget", "64MiB"]);
    let (code, list, _) = hermesctl(&renamed.socket, &["ls"]);
    assert!(code == 0 && list.contains("\naside  -        broken"), "{list}");
    assert!(list.contains("\naside: ") && list.contains("describes version 1 of words"), "{list}");
    let (_, list, _) = hermesctl(&renamed.socket, &["ls", "--json"]);
    assert!(list.contains("describes version 1 of words"), "{list}");
    drop(renamed);
    // One that had no room for the moment was called broken, too.
    std::fs::rename(store.path().join("aside"), store.path().join("words")).unwrap();
    let manifest = store.path().join("words/1/manifest.json");
    let told = std::fs::read_to_string(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    std::fs::write(&manifest, told + &" ".repeat(8 << 20)).unwrap();
    let crowded = Daemon::start(store.path(), &store.path().join("s"), &["--budget", "64MiB"]);
    let (code, list, _) = hermesctl(&crowded.socket, &["ls"]);
    assert!(code == 0 && list.contains("\nwords  1        unavailable"), "{list}");
    assert!(list.contains("\nwords: ") && list.contains("a budget of"), "{list}");
    drop(crowded);

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut npy = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    npy.extend(
        format!("{:<117}\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 4), }")
            .bytes(),
    );
    [1f32, 2.0, 3.0, 4.0].iter().for_each(|v| npy.extend(v.to_le_bytes()));
    std::fs::write(path("x.npy"), npy).unwrap();
    let (input, output) = (format!("x={}", path("x.npy")), format!("y={}", path("y.npy")));
    let arguments = ["infer", "linear", "--input", &input, "--output", &output];
    let (code, text, error) = hermesctl(socket, &arguments);
    assert_eq!(code, 0, "{error}");
    assert!(text.starts_with("y  FP32 [1, 1, 3]  20.0 120.0 220.0"), "{text}");
    let written = std::fs::read(path("y.npy")).unwrap();
    assert!(written.ends_with(&[20f32, 120.0, 220.0].map(f32::to_le_bytes).concat()));
    let (_, text, _) = hermesctl(socket, &["infer", "linear", "--input", &input, "--json"]);
    let reply: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(reply["outputs"].as_array().unwrap().len(), 2);
    let file = path("reply.json");
    let (code, text, _) =
        hermesctl(socket, &["infer", "linear", "--input", &input, "--reply", &file]);
    assert_eq!((code, &*text), (0, ""));
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written["outputs"], reply["outputs"]);
    // It took what came next for a file, and wrote over it.
    let (code, _, error) = hermesctl(socket, &["infer", "--json", "linear", "--input", &input]);
    assert_eq!(code, 0, "{error}");
    let taken = ["infer", "linear", "--input", &input, "--json", &file];
    assert_eq!(hermesctl(socket, &taken).0, 2);

    let (code, text, _) = hermesctl(socket, &["embed", "words", "cat"]);
    assert_eq!((code, text.split_whitespace().count()), (0, 4));
    let (code, text, _) = hermesctl(socket, &["embed", "words", "cat", "cat", "dog"]);
    assert_eq!(code, 0);
    assert!(text.lines().nth(1).unwrap().contains("1.000  1.000  0.857"), "{text}");

    let (code, _, error) = hermesctl(socket, &["embed", "nobody", "cat"]);
    assert_eq!(code, 1);
    assert!(error.contains("nobody"), "{error}");
    assert_eq!(hermesctl(socket, &["infer", "linear", "--input", "x=/none.npy"]).0, 2);
    assert_eq!(hermesctl(socket, &["bake"]).0, 2);
    assert_eq!(hermesctl(Path::new("/none"), &["ls"]).0, 3);
}
