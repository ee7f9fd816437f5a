//! `src/api/openapi.json` describes what hermesd answers: every route and nothing else, and the
//! answers of a running daemon are as it says.

use crate::common::daemon::Daemon;
use crate::common::schema::Schemas;
use crate::common::served::{linear_request, served};
use crate::common::small_store;
use crate::common::writer;
use hermes::api::routes;
use hermes::store::Package;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read;
use std::sync::LazyLock;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../src/api/openapi.json")).unwrap());

/// Method and path of everything that is described, in capitals as HTTP has methods.
fn described() -> BTreeSet<(String, String)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().keys();
        methods.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

fn operation(method: &str, path: &str) -> &'static Value {
    &DOCUMENT["paths"][path][method.to_lowercase()]
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let served = routes().map(|(method, path, _)| (method.to_owned(), path.to_owned()));
    let (served, described) = (served.collect::<BTreeSet<_>>(), described());
    let undescribed: Vec<_> = served.difference(&described).collect();
    assert!(undescribed.is_empty(), "not in openapi.json: {undescribed:?}");
    let unserved: Vec<_> = described.difference(&served).collect();
    assert!(unserved.is_empty(), "only in openapi.json: {unserved:?}");

    let mut ids = BTreeSet::new();
    for (method, path, right) in routes() {
        let operation = operation(method, path);
        let right = right.map_or(Value::Null, |right| json!(right.to_string()));
        assert_eq!(operation["x-hermes-right"], right, "{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let parameters = parameters.map(|parameter| Schemas(&DOCUMENT).resolve(parameter).clone());
        let named: BTreeSet<_> = parameters
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| format!("{{{}}}", parameter["name"].as_str().unwrap()))
            .collect();
        let open: BTreeSet<_> =
            path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
        assert_eq!(named, open, "{method} {path}");
    }
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
}

/// A daemon, and the calls that it has answered well.
struct Caller {
    daemon: Daemon,
    answered: BTreeSet<(String, String)>,
}

impl Caller {
    /// Calls with `linear` for the model, and checks the answer against its description.
    fn call(&mut self, method: &str, path: &str, body: impl AsRef<[u8]>, expected: u16) -> Value {
        self.call_with(method, path, ["linear", "1"], "application/json", body, expected)
    }

    fn call_with(
        &mut self,
        method: &str,
        path: &str,
        [model, version]: [&str; 2],
        kind: &str,
        body: impl AsRef<[u8]>,
        expected: u16,
    ) -> Value {
        let target = path.replace("{model}", model).replace("{version}", version);
        let body = body.as_ref();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: h\r\ncontent-type: {kind}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let (status, head, reply) = self.daemon.connect().send(head).send(body).response();
        assert_eq!(status, expected, "{method} {target}: {}", String::from_utf8_lossy(&reply));
        let schemas = Schemas(&DOCUMENT);
        let responses = &operation(method, path)["responses"];
        let response = responses.get(status.to_string()).unwrap_or(&responses["default"]);
        let content = &schemas.resolve(response)["content"];
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
        let schema = &content[kind.split(';').next().unwrap()]["schema"];
        assert!(schema.is_object(), "{method} {target}: {kind} is not described");
        if !kind.starts_with("application/json") {
            self.answered.insert((method.to_owned(), path.to_owned()));
            return Value::Null;
        }
        let value: Value = serde_json::from_slice(&reply).unwrap();
        let checked = schemas.check(schema, &value, "answer");
        checked.unwrap_or_else(|wrong| panic!("{method} {target}: {wrong}"));
        if status == 200 {
            self.answered.insert((method.to_owned(), path.to_owned()));
        }
        value
    }
}

#[test]
fn answers_are_as_described() {
    let (store, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    small_store::write(store.path(), small_store::linear());
    small_store::write(store.path(), small_store::words());
    small_store::write(store.path(), small_store::log());
    writer::build(store.path(), "writer", Some(writer::TEMPLATE));
    for version in ["2", "3"] {
        let model = small_store::scaled_linear(2.0);
        small_store::write_version(other.path(), model, version);
    }
    let mut tars = ["2", "3"].map(|version| {
        let mut tar = Vec::new();
        let folder = other.path().join("linear").join(version);
        Package::open(&folder).unwrap().read_to_end(&mut tar).unwrap();
        tar
    });
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--budget", "96MiB", "--window", "8MiB"];
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    let mut caller = Caller { daemon, answered: BTreeSet::new() };
    let infer = linear_request().to_string();
    let reads = caller.daemon.event_loop_reads();

    for path in ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index"] {
        caller.call("GET", path, "", 200);
    }
    let model = "/v2/models/{model}";
    for path in [model.to_owned(), format!("{model}/versions/{{version}}")] {
        caller.call("GET", &path, "", 200);
        caller.call_with("GET", &path, ["words", "1"], "application/json", "", 200);
        caller.call("GET", &format!("{path}/ready"), "", 200);
        caller.call("POST", &format!("{path}/infer"), &infer, 200);
        caller.call("GET", &format!("{path}/stats"), "", 200);
        // Refusals: no such model or version, and a request that is none.
        for last in ["", "/ready", "/stats"] {
            let path = format!("{path}{last}");
            caller.call_with("GET", &path, ["nobody", "9"], "application/json", "", 404);
        }
        caller.call("POST", &format!("{path}/infer"), "[]", 400);
        caller.call_with("POST", &format!("{path}/infer"), ["linear", "1"], "text/plain", "", 415);
    }
    let mut binary = linear_request();
    binary["id"] = json!("7");
    binary["parameters"] = json!({"binary_data_output": true, "timeout": 60_000_000});
    caller.call("POST", "/v2/models/{model}/infer", binary.to_string(), 200);
    // What JSON cannot hold is counted.
    let log = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [0]}]});
    let infer_path = "/v2/models/{model}/infer";
    let args = ["log", "1"];
    caller.call_with("POST", infer_path, args, "application/json", log.to_string(), 200);
    caller.call("POST", "/v2/models/{model}/trace", &infer, 200);
    caller.call("POST", "/v2/models/{model}/trace", "[]", 400);
    caller.call("GET", "/v2/models/stats", "", 200);

    let repository = "/v2/repository/models/{model}";
    caller.call("POST", "/v2/repository/index", r#"{"ready":true}"#, 200);
    let (profile, plan) = (format!("{repository}/profile"), format!("{model}/plan"));
    let args = ["words", "1"];
    caller.call_with("POST", &profile, args, "application/json", "", 400);
    caller.call_with("GET", &plan, args, "application/json", "", 409);
    caller.call("POST", &profile, "", 200);
    caller.call("GET", &plan, "", 200);
    for verb in ["unload", "load"] {
        let path = format!("{repository}/{verb}");
        caller.call("POST", &path, "", 200);
        caller.call_with("POST", &path, ["nobody", "1"], "application/json", "", 404);
    }
    let tar = "application/x-tar";
    let install = "/v2/repository/install";
    for tar_bytes in &mut tars {
        caller.call_with("POST", install, ["", ""], tar, &*tar_bytes, 200);
    }
    caller.call_with("POST", install, ["", ""], tar, &tars[0], 409);
    caller.call_with("POST", install, ["", ""], tar, "no tar", 400);
    let versions = caller.call("GET", &format!("{repository}/versions"), "", 200);
    assert_eq!(versions["versions"].as_array().unwrap().len(), 3);
    caller.call("POST", &format!("{repository}/rollback"), "", 200);
    caller.call("POST", &format!("{repository}/use"), r#"{"version":"3"}"#, 200);
    caller.call("POST", &format!("{repository}/use"), r#"{"version":"9"}"#, 404);
    let version = format!("{repository}/versions/{{version}}");
    for args in [["linear", "1"], ["linear", "3"], ["words", "1"]] {
        caller.call_with("GET", &version, args, "application/json", "", 200);
    }
    caller.call_with("GET", &version, ["linear", "9"], "application/json", "", 404);
    caller.call("DELETE", &version, "", 200);
    caller.call("DELETE", &version, "", 404);
    caller.call_with("DELETE", &version, ["linear", "3"], "application/json", "", 409);
    caller.call("POST", "/v2/repository/gc", r#"{"keep":0}"#, 200);
    caller.call("POST", "/v2/repository/gc", r#"{"kep":0}"#, 400);

    caller.call("GET", "/v1/models", "", 200);
    caller.call("GET", "/v1/models/{model}", "", 200);
    caller.call_with("GET", "/v1/models/{model}", ["nobody", "1"], "application/json", "", 404);
    for encoding in ["float", "base64"] {
        let body = json!({"model": "words", "input": ["cat", "dog"], "encoding_format": encoding});
        caller.call("POST", "/v1/embeddings", body.to_string(), 200);
    }
    caller.call("POST", "/v1/embeddings", r#"{"model":"words","input":""}"#, 400);
    caller.call("POST", "/v1/embeddings", r#"{"model":"nobody","input":"cat"}"#, 404);
    for (path, text) in [
        ("/v1/completions", r#""prompt":"cat""#),
        ("/v1/chat/completions", r#""messages":[{"role":"user","content":"cat"}]"#),
    ] {
        caller.call("POST", path, format!(r#"{{"model":"writer","max_tokens":2,{text}}}"#), 200);
        caller.call("POST", path, format!(r#"{{"model":"words",{text}}}"#), 400);
        caller.call("POST", path, format!(r#"{{"model":"nobody",{text}}}"#), 404);
    }
    for path in ["/metrics", "/docs", "/openapi.json"] {
        caller.call("GET", path, "", 200);
    }
    caller.call("DELETE", repository, "", 200);
    caller.call("DELETE", repository, "", 404);

    let forgotten: Vec<_> = described().difference(&caller.answered).cloned().collect();
    assert!(forgotten.is_empty(), "not tried: {forgotten:?}");
    // Each request had the event loop read files of the store, the list of models all manifests; the
    // figures of the machine's memory were read there four times a second.
    // The C library itself looks once whether memory is overcommitted, when it first gives some back.
    let more = caller.daemon.event_loop_reads().zip(reads).map_or(0, |(now, then)| now - then);
    assert!(more <= 1, "the event loop reads files: {more} times");
}

#[test]
fn requests_are_as_described() {
    let schemas = Schemas(&DOCUMENT);
    let schema = |name: &str| &DOCUMENT["components"]["schemas"][name];
    schemas.check(schema("InferRequest"), &linear_request(), "request").unwrap();
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut request = linear_request();
        change(&mut request);
        let wrong = schemas.check(schema("InferRequest"), &request, "request").unwrap_err();
        assert!(wrong.contains(expected), "{wrong}");
    };
    check(&|r| r["inputs"][0]["datatype"] = json!("FLOAT"), "request.inputs[0].datatype");
    check(&|r| r["inputs"][0]["shape"] = json!([1, -1, 4]), "request.inputs[0].shape[1]");
    check(&|r| r["inputs"][0]["shape"] = json!("4"), "request.inputs[0].shape");
    check(&|r| r["inputs"][0]["x"] = json!(1), "request.inputs[0].x is not described");
    check(&|r| drop(r.as_object_mut().unwrap().remove("inputs")), "request lacks \"inputs\"");
    let embeddings = json!({"model": "words", "input": [1, 2], "encoding_format": "base64"});
    schemas.check(schema("EmbeddingsRequest"), &embeddings, "request").unwrap();
}

/// What could be asked was known to those alone who had the sources.
#[test]
fn the_description_is_served_to_people_and_programs() {
    let served = served();
    let get = |path: &str, accept: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\naccept: {accept}\r\n\r\n");
        let (status, head, body) = served.daemon.connect().send(request).response();
        assert_eq!(status, 200, "{head}");
        (head, String::from_utf8(body).unwrap())
    };
    let (_, document) = get("/openapi.json", "*/*");
    assert_eq!(serde_json::from_str::<Value>(&document).unwrap(), *DOCUMENT);
    let (head, text) = get("/docs", "*/*");
    assert!(head.contains("content-type: text/plain"), "{head}");
    for (method, path, right) in routes() {
        let right = right.map_or(String::new(), |right| format!("   (right: {right})"));
        assert!(text.contains(&format!("\n{method} {path}{right}\n")), "{method} {path}");
    }
    assert!(!text.contains('<') && text.is_ascii());
    assert!(text.lines().all(|line| line.len() <= 80), "{text}");

    let (head, page) = get("/docs", "text/html,application/xhtml+xml,*/*;q=0.8");
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("<script") && !page.contains("src="));
    for link in page.split("href=\"").skip(1) {
        let target = link.split('"').next().unwrap();
        let is_there = match target.strip_prefix('#') {
            Some(name) => page.contains(&format!("id=\"{name}\"")),
            None => target == "/openapi.json",
        };
        assert!(is_there, "{target}");
    }
    let (status, unknown) = served.daemon.get("/v2/modles");
    assert!(status == 404 && unknown.to_string().contains("GET /docs lists"), "{unknown}");
}
