//! What the Open Inference Protocol's extensions promise: binary tensor data, deadlines, the model
//! repository.

use crate::common::daemon::Connection;
use crate::common::served::{
    check_alive, check_error, hermesctl, linear_request, serve, served, slow_request,
};
use hermes::store::Dtype;
use serde_json::{Value, json};

/// An `infer` request of which `binary` follows the JSON, and its reply: JSON and binary data.
fn ask_binary(
    connection: Connection,
    model: &str,
    request: &Value,
    binary: &[u8],
) -> (u16, Value, Vec<u8>) {
    let text = request.to_string();
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: h\r\n\
         content-type: application/octet-stream\r\ninference-header-content-length: {}\r\n\
         content-length: {}\r\n\r\n",
        text.len(),
        text.len() + binary.len()
    );
    let body = [head.as_bytes(), text.as_bytes(), binary].concat();
    let (status, head, mut body) = connection.send(body).response();
    let length =
        head.lines().find_map(|line| line.strip_prefix("inference-header-content-length: "));
    let kind = if length.is_some() { "application/octet-stream" } else { "application/json" };
    assert!(head.contains(&format!("content-type: {kind}\r\n")), "{head}");
    let binary = body.split_off(length.map_or(body.len(), |length| length.parse().unwrap()));
    (status, serde_json::from_slice(&body).unwrap(), binary)
}

/// A request for `linear` of which `size` bytes are said to follow.
fn binary_request(size: Value) -> Value {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 4],
                       "parameters": {"binary_data_size": size}}]})
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn tensors_come_and_go_as_binary_data() {
    let served = served();
    let ask = |request: &Value, binary: &[u8]| {
        let (status, reply, binary) =
            ask_binary(served.daemon.connect(), "linear", request, binary);
        assert_eq!(status, 200, "{reply}");
        (reply, binary)
    };
    let x = bytes(&[1.0, 2.0, 3.0, 4.0]);
    let y = bytes(&[20.0, 120.0, 220.0]);

    let (reply, binary) = ask(&binary_request(json!(16)), &x);
    assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
    assert!(binary.is_empty());

    let mut request = binary_request(json!(16));
    request["outputs"] = json!([{"name": "y", "parameters": {"binary_data": true}}]);
    let (reply, binary) = ask(&request, &x);
    let output = json!({"name": "y", "datatype": "FP32", "shape": [1, 1, 3],
                        "parameters": {"binary_data_size": 12}});
    assert_eq!((&reply["outputs"], binary), (&json!([output]), y.clone()));

    // All outputs but the one that is wanted as JSON, and in the order of the request.
    request["parameters"] = json!({"binary_data_output": true});
    request["outputs"] =
        json!([{"name": "r", "parameters": {"binary_data": false}}, {"name": "y"}]);
    let (reply, binary) = ask(&request, &x);
    assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
    assert_eq!((&reply["outputs"][1], binary), (&output, y.clone()));
    request.as_object_mut().unwrap().remove("outputs");
    let (reply, binary) = ask(&request, &x);
    assert_eq!((&reply["outputs"][0], binary), (&output, [y.clone(), y.clone()].concat()));

    // JSON in, binary data out.
    let mut request = linear_request();
    request["outputs"] = json!([{"name": "y", "parameters": {"binary_data": true}}]);
    let (_, head, body) =
        served.daemon.connect().post("/v2/models/linear/infer", &request.to_string()).response();
    assert!(head.contains("inference-header-content-length: "), "{head}");
    assert!(body.ends_with(&y));
}

/// There are models without inputs: a request to one was refused for having none.
#[test]
fn a_model_without_inputs_is_asked_without_inputs() {
    let served = served();
    for body in ["{}", r#"{"inputs":[]}"#, r#"{"inputs":null,"outputs":null,"id":null}"#] {
        let (status, reply) = served.daemon.post("/v2/models/constant/infer", body);
        assert_eq!(status, 200, "{body}: {reply}");
        assert_eq!(reply["outputs"][0]["data"], json!([1.0, 0.0, 3.0, 0.0]), "{body}");
        assert!(reply.get("id").is_none(), "{reply}");
    }
    let reply = served.daemon.post("/v2/models/linear/infer", "{}");
    check_error(&reply, 400, "\"inputs\" is missing or empty: \"x\" is missing");
    let reply = served.daemon.post("/v2/models/constant/infer", &linear_request().to_string());
    check_error(&reply, 400, "input \"x\" is unknown");
}

#[test]
fn every_dtype_passes_as_binary_data() {
    let served = served();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| *dtype != Dtype::Bf16) {
        // NaN, infinities and denormals too: what JSON cannot hold passes here.
        let pattern = [0u8, 0xff, 0x7f, 0x80, 1, 0xf0, 0x3c, 0xaa];
        let size = 4000 * dtype.size();
        let is_bool = dtype == Dtype::Bool;
        let value = |i: usize| if is_bool { (i % 2) as u8 } else { pattern[i * 7 % 8] ^ i as u8 };
        let binary: Vec<u8> = (0..size).map(value).collect();
        let request = json!({
            "parameters": {"binary_data_output": true},
            "inputs": [{"name": "x", "datatype": dtype.name(), "shape": [1, 4000],
                        "parameters": {"binary_data_size": size}}],
        });
        let model = format!("same-{dtype}").to_lowercase();
        let (status, reply, back) = ask_binary(served.daemon.connect(), &model, &request, &binary);
        assert_eq!(status, 200, "{reply}");
        assert_eq!(reply["outputs"][0]["datatype"], dtype.name());
        assert!(back == binary, "{dtype}");
    }
}

#[test]
fn binary_sizes_that_lie_are_refused() {
    let served = served();
    let daemon = &served.daemon;
    let check = |request: Value, binary: &[u8], expected: &str| {
        let (status, reply, _) = ask_binary(daemon.connect(), "linear", &request, binary);
        check_error(&(status, reply), 400, expected);
        check_alive(daemon);
    };
    let x = bytes(&[1.0, 2.0, 3.0, 4.0]);
    check(binary_request(json!(16)), &x[1..], "\"x\": binary_data_size is 16, and 15 bytes");
    check(binary_request(json!(16)), &[&x[..], &[0]].concat(), "\"x\": 1 bytes of the body");
    check(binary_request(json!(u64::MAX)), &x, "\"x\": binary_data_size");
    check(binary_request(json!(-16)), &x, "\"x\": binary_data_size -16");
    check(binary_request(json!("16")), &x, "\"x\": binary_data_size \"16\"");
    check(binary_request(json!(12)), &x[4..], "\"x\": shape [1, 1, 4] of FP32 takes 16 bytes");
    check(linear_request(), &x, "16 bytes follow the JSON");
    let mut both = binary_request(json!(16));
    both["inputs"][0]["data"] = json!([1, 2, 3, 4]);
    check(both, &x, "\"x\": has both");

    // A length of the JSON that is no length, or not of this body.
    let check = |length: &str, expected: &str| {
        let request = format!(
            "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\
             {length}\r\n{{}}"
        );
        check_error(&daemon.connect().send(request).reply(), 400, expected);
        check_alive(daemon);
    };
    let header = "inference-header-content-length";
    check(&format!("{header}: 3\r\n"), "Inference-Header-Content-Length is 3, and the body has 2");
    check(&format!("{header}: -1\r\n"), "\"-1\" is not one length");
    check(&format!("{header}: 2\r\n{header}: 1\r\n"), "is not one length");
    check(&format!("{header}: 0\r\n"), "not an infer request");
    check("", "\"inputs\" is missing");
    let octets = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\
                  content-type: application/octet-stream\r\n\r\n{}";
    check_error(&daemon.connect().send(octets).reply(), 415, "Inference-Header-Content-Length");
}

#[test]
fn json_is_taken_with_the_types_that_clients_send() {
    let served = served();
    let daemon = &served.daemon;
    let body = linear_request().to_string();
    let check = |kind: &str, expected: u16| {
        let request = format!(
            "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\n{kind}content-length: {}\r\n\
             \r\n{body}",
            body.len()
        );
        assert_eq!(daemon.connect().send(request).reply().0, expected, "{kind}");
    };
    check("", 200);
    check("content-type: application/json\r\n", 200);
    check("content-type: Application/JSON; charset=utf-8\r\n", 200);
    // curl -d says so.
    check("content-type: application/x-www-form-urlencoded\r\n", 200);
    for wrong in ["text/plain", "text/json", "multipart/form-data; boundary=b", "application", ""] {
        check(&format!("content-type: {wrong}\r\n"), 415);
    }
    check("content-encoding: gzip\r\n", 415);
    let form = "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\na=b";
    check_error(&daemon.connect().send(form).reply(), 400, "not an infer request");
}

#[test]
fn a_request_is_given_up_at_its_deadline() {
    let served = served();
    let daemon = &served.daemon;
    let path = "/v2/models/slow/infer";
    daemon.load("slow");
    let with_header = |path: &str, timeout: &str, body: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ntimeout: {timeout}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        daemon.connect().send(head + body).reply()
    };
    let body = slow_request().to_string();
    check_error(&with_header(path, "1ms", &body), 504, "within its timeout of 1000 us");
    // A bare number was taken for microseconds by a daemon, and meant in seconds by its client.
    check_error(&with_header(path, "5", &body), 400, "\"5\" is not a time: write a whole number");
    let mut request = slow_request();
    request["parameters"] = json!({"timeout": 1000});
    check_error(&daemon.post(path, &request.to_string()), 504, "within its timeout of 1000 us");
    check_error(&with_header(path, "1h", &request.to_string()), 400, "\"1h\" is not a time");
    check_alive(daemon);
    // Zero is for ever, and there are minutes enough.
    let linear = linear_request().to_string();
    assert_eq!(with_header("/v2/models/linear/infer", "0", &linear).0, 200);
    assert_eq!(with_header("/v2/models/linear/infer", "600s", &linear).0, 200);
    let mut request = linear_request();
    request["parameters"] = json!({"timeout": -1});
    let reply = daemon.post("/v2/models/linear/infer", &request.to_string());
    check_error(&reply, 400, "timeout -1 is not a whole number");
    let late = json!({"model": "words", "input": vec!["cat dog"; 2000]}).to_string();
    let (status, reply) = with_header("/v1/embeddings", "1us", &late);
    assert_eq!((status, reply["error"]["type"].as_str()), (504, Some("server_error")), "{reply}");
    check_alive(daemon);
}

#[test]
fn models_are_loaded_and_unloaded_on_request() {
    let served = served();
    let daemon = &served.daemon;
    let entry = |index: &Value, name: &str| {
        let entries = index.as_array().unwrap();
        entries.iter().find(|entry| entry["name"] == name).cloned().unwrap_or_default()
    };
    let unloaded =
        json!({"name": "linear", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"});
    let ready = json!({"name": "linear", "version": "1", "state": "READY", "reason": ""});
    let index = "/v2/repository/index";
    assert_eq!(entry(&daemon.get(index).1, "linear"), unloaded);
    assert_eq!(daemon.post(index, r#"{"ready":true}"#), (200, json!([])));
    let load = "/v2/repository/models/linear/load";
    let unload = "/v2/repository/models/linear/unload";
    for _ in 0..2 {
        assert_eq!(daemon.post(load, ""), (200, ready.clone()));
    }
    assert_eq!(daemon.post(index, r#"{"ready":true}"#), (200, json!([ready])));
    assert_eq!(entry(&daemon.post(index, "").1, "linear"), ready);
    let dependents = r#"{"parameters":{"unload_dependents":false}}"#;
    for _ in 0..2 {
        assert_eq!(daemon.post(unload, dependents), (200, unloaded.clone()));
    }
    assert_eq!(daemon.post(index, r#"{"ready":true}"#), (200, json!([])));
    // What is unloaded is loaded again by the first request.
    check_alive(daemon);
    assert_eq!(entry(&daemon.get(index).1, "linear"), ready);

    for verb in ["load", "unload"] {
        for name in ["nobody", "..", "%2e%2e%2fetc", "a%2fb", "%ff"] {
            check_error(&daemon.post(&format!("/v2/repository/models/{name}/{verb}"), ""), 404, "");
        }
        check_error(&daemon.get(&format!("/v2/repository/models/linear/{verb}")), 405, "use POST");
        let path = format!("/v2/repository/models/linear/{verb}");
        check_error(&daemon.post(&path, "["), 400, "the request body");
        check_error(&daemon.post(&path, &" ".repeat(20_000)), 413, "the limit is 16384");
    }
    let config = r#"{"parameters":{"config":"{}"}}"#;
    check_error(&daemon.post(load, config), 400, "parameter \"config\" is not supported");
    check_error(&daemon.post(index, r#"{"ready":1}"#), 400, "the request body");
    let (_, head, _) =
        daemon.connect().send(format!("PUT {index} HTTP/1.1\r\nhost: h\r\n\r\n")).response();
    assert!(head.contains("allow: get, post\r\n"), "{head}");
    check_alive(daemon);
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_with_the_reason() {
    let served = serve(&["--budget", "44MiB", "--window", "64KiB"]);
    let daemon = &served.daemon;
    let reply = daemon.post("/v2/repository/models/slow/load", "");
    check_error(&reply, 500, "is smaller than a block of");
    assert_eq!(daemon.get("/v2/health/live").0, 200);
}

#[test]
fn hermesctl_loads_unloads_and_shows() {
    let served = served();
    let socket = &served.daemon.socket;
    let check = |arguments: &[&str], expected_code: i32, expected: &str| {
        let (code, output, error) = hermesctl(socket, arguments);
        assert_eq!(code, expected_code, "{arguments:?}: {error}");
        let text = if code == 0 { output } else { error };
        assert!(text.contains(expected), "{arguments:?}: {text}");
        text
    };
    check(&["ps"], 0, "no model is loaded");
    check(&["load", "linear"], 0, "linear 1 is ready");
    let table = check(&["ps"], 0, "linear");
    assert_eq!(table.lines().count(), 2, "{table}");
    let list: Value = serde_json::from_str(&check(&["ps", "--json"], 0, "")).unwrap();
    assert_eq!(list[0]["name"], "linear");
    let entry: Value = serde_json::from_str(&check(&["load", "linear", "--json"], 0, "")).unwrap();
    assert_eq!(entry["state"], "READY");
    check(&["unload", "linear"], 0, "linear 1 is unloaded");
    check(&["ps"], 0, "no model is loaded");
    check(&["load", "nobody"], 1, "nobody");
    check(&["unload", "../linear"], 1, "there is no model");
    check(&["load"], 2, "Usage");
}
