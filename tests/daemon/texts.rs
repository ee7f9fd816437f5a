//! Texts of embeddings: whose tokens they are, what their vectors are scaled to, and many at once.

use crate::common::daemon::Daemon;
use crate::common::frozen::Frozen;
use crate::common::served::{metric, wait_metric};
use crate::common::small_store;
use serde_json::{Value, json};

/// Tokens of another tokenizer, which clients of OpenAI send unasked, were taken for this model's
/// wherever they were below its vocabulary's size: vectors of other words, without a word.
#[test]
fn tokens_are_taken_where_they_say_whose_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store::with_rules(json!({}));
    let framed = small_store::words();
    let tokenizer = framed.tokenizer.unwrap().replace(
        "\"post_processor\":null",
        "\"post_processor\":{\"type\":\"BertProcessing\",\"sep\":[\"car\",3],\"cls\":[\"dog\",2]}",
    );
    small_store::write(
        store.path(),
        small_store::SmallModel {
            name: "framed",
            tokenizer: Some(tokenizer),
            ..small_store::words()
        },
    );
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &["--budget", "64MiB"]);
    let ask = |model: &str, input: Value, tokenizer: Value| {
        let body = json!({"model": model, "input": input, "tokenizer": tokenizer});
        daemon.post("/v1/embeddings", &body.to_string())
    };
    let taken = |model: &str, input: Value, tokenizer: Value, text: &str| {
        let (status, reply) = ask(model, input, tokenizer);
        let (_, expected) = ask(model, json!(text), Value::Null);
        assert_eq!((status, &reply["data"]), (200, &expected["data"]), "{reply}");
    };
    let refused = |model: &str, input: Value, tokenizer: Value, param: &str, words: &str| {
        let (status, reply) = ask(model, input, tokenizer);
        let message = reply["error"]["message"].as_str().unwrap();
        assert_eq!((status, reply["error"]["param"].as_str()), (400, Some(param)), "{reply}");
        assert!(message.contains(words), "{message}");
    };
    taken("framed", json!([2, 1, 3]), Value::Null, "cat");
    taken("framed", json!([[2, 1, 1, 3]]), json!("framed"), "cat cat");
    taken("framed", json!([[2, 1, 1, 3]]), json!("framed/1"), "cat cat");
    refused("framed", json!([[2, 1, 3]]), json!("framed/2"), "tokenizer", "version 1");
    refused("framed", json!([1, 1]), Value::Null, "input", "begin with [2] and end with [3]");
    refused("framed", json!([2]), Value::Null, "input", "\"tokenizer\"");
    refused("framed", json!([[2, 1, 3]]), json!("words"), "tokenizer", "another tokenizer");
    refused("words", json!([1, 2]), Value::Null, "input", "\"tokenizer\"");
    taken("words", json!([1, 2]), json!("words"), "cat dog");
    let (status, _) = ask("framed", json!([1, 1]), json!("framed"));
    assert_eq!(status, 200, "whoever says so knows better");
}

/// Vectors of models that are compared by their dot product have no length of one; they were given
/// one whatever their makers say.
#[test]
fn vectors_have_the_length_that_their_makers_give_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store::with_rules(json!({"keeps_length": true}));
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &["--budget", "64MiB"]);
    let check = |more: Value, expected: &[f64]| {
        let mut body = json!({"model": "words", "input": "cat"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, reply) = daemon.post("/v1/embeddings", &body.to_string());
        assert_eq!(status, 200, "{reply}");
        let vector: Vec<f64> =
            serde_json::from_value(reply["data"][0]["embedding"].clone()).unwrap();
        assert_eq!(vector.len(), expected.len());
        assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{vector:?}");
    };
    check(json!({}), &[0.5, 1.0, 0.5, 0.5]);
    check(json!({"dimensions": 2}), &[0.5, 1.0]);
    check(json!({"normalize": null}), &[0.5, 1.0, 0.5, 0.5]);
    check(json!({"normalize": true}), &[0.5, 1.0, 0.5, 0.5].map(|v| v / 1.75f64.sqrt()));
    check(json!({"normalize": true, "dimensions": 1}), &[1.0]);
}

/// Texts of one to six words, and the vector that each is to have.
fn texts(count: usize) -> (Vec<String>, Vec<[f64; 4]>) {
    let words = ["cat", "dog", "car"];
    let text = |index: usize| {
        let picked: Vec<usize> = (0..1 + index % 6).map(|at| (index / 6 + at * at) % 3).collect();
        let sum = |at| picked.iter().map(|word| if word + 1 == at { 1.0 } else { 0.5 }).sum();
        let sum: [f64; 4] = std::array::from_fn(sum);
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        let text = picked.iter().map(|word| words[*word]).collect::<Vec<_>>().join(" ");
        (text, sum.map(|value| value / length))
    };
    (0..count).map(text).unzip()
}

fn check_vectors(reply: &Value, expected: &[[f64; 4]]) {
    let data = reply["data"].as_array().unwrap_or_else(|| panic!("{reply}"));
    assert_eq!(data.len(), expected.len());
    for (index, (item, expected)) in data.iter().zip(expected).enumerate() {
        let vector: Vec<f64> = serde_json::from_value(item["embedding"].clone()).unwrap();
        let is_same = vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(is_same && item["index"] == index, "input[{index}]: {item}, not {expected:?}");
    }
}

/// Many texts were computed 16 at a time in the order in which they came, and the passes of several
/// such requests filled the queue: others were refused, and they themselves halfway.
#[test]
fn many_texts_are_answered_in_the_order_asked_beside_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store::with_rules(json!({}));
    let arguments = ["--budget", "64MiB", "--profiles", "false"];
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    let (texts, vectors) = texts(2048);
    let ask = |texts: &[String]| {
        let body = json!({"model": "words", "input": texts}).to_string();
        daemon.connect().post("/v1/embeddings", &body)
    };
    ask(&texts[..1]).reply();
    let frozen = Frozen::new(daemon.id(), &["engine"]);
    let mut many: Vec<_> = (0..5).map(|_| ask(&texts)).collect();
    wait_metric(&daemon, "hermes_waiting_requests", |waiting| waiting == 128.0);
    let mut few: Vec<_> = (0..8).map(|at| ask(&texts[at..at + 32])).collect();
    wait_metric(&daemon, "hermes_waiting_requests", |waiting| waiting == 192.0);
    drop(frozen);
    for (at, connection) in few.iter_mut().enumerate() {
        let (status, reply) = connection.reply();
        assert_eq!(status, 200, "{reply}");
        check_vectors(&reply, &vectors[at..at + 32]);
    }
    for connection in &mut many {
        let (status, reply) = connection.reply();
        assert_eq!(status, 200, "{reply}");
        check_vectors(&reply, &vectors);
    }
    assert_eq!(metric(&daemon, "hermes_requests_total{model=\"words\",outcome=\"refused\"}"), 0.0);
    let mut more = texts.clone();
    more.push("cat".to_string());
    let (status, reply) = ask(&more).reply();
    assert_eq!((status, reply["error"]["param"].as_str()), (400, Some("input")), "{reply}");
    assert!(reply["error"]["message"].as_str().unwrap().contains("2048"), "{reply}");
}

/// Who leaves in the middle of many texts leaves nothing behind.
#[test]
fn many_texts_go_with_their_client() {
    let folder = tempfile::tempdir().unwrap();
    let store = small_store::with_rules(json!({}));
    let arguments = ["--budget", "64MiB", "--profiles", "false"];
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    let (texts, vectors) = texts(2048);
    let body = json!({"model": "words", "input": texts}).to_string();
    let first = json!({"model": "words", "input": texts[0]}).to_string();
    assert_eq!(daemon.post("/v1/embeddings", &first).0, 200);
    let held = "hermes_ledger_bytes{category=\"request\"}";
    // Of the connection that asks.
    let before = metric(&daemon, held);
    for round in 1..=3 {
        let frozen = Frozen::new(daemon.id(), &["engine"]);
        let connection = daemon.connect().post("/v1/embeddings", &body);
        wait_metric(&daemon, "hermes_waiting_requests", |waiting| waiting == 64.0);
        drop(connection);
        wait_metric(&daemon, held, |bytes| bytes == before);
        drop(frozen);
        wait_metric(&daemon, "hermes_waiting_requests", |waiting| waiting == 0.0);
        let cancelled = "hermes_requests_total{model=\"words\",outcome=\"cancelled\"}";
        wait_metric(&daemon, cancelled, |count| count == f64::from(64 * round));
    }
    let (status, reply) = daemon.post("/v1/embeddings", &body);
    assert_eq!(status, 200, "{reply}");
    check_vectors(&reply, &vectors);
}
