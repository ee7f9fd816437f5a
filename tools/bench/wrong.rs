//! Requests that are wrong, each in its own way, as bytes, and how they are to be answered.

use super::mixed::json_body;
use hermes::engine::{Array, sample_inputs};
use hermes::store::manifest::Manifest;
use hermes::wire::infer_json::InferRequest;
use serde_json::{Value, json};

/// A request that is wrong.
pub struct Wrong {
    /// In which way.
    pub what: &'static str,
    /// All that is sent, head and body.
    pub bytes: Vec<u8>,
    /// The statuses of which one is right; none where its client does not wait for an answer.
    pub statuses: &'static [u16],
}

/// Bytes of a name that nobody has.
const LONG_NAME: usize = 64 << 10;

/// Tokens of a text that no board attends to.
const ENDLESS_TOKENS: usize = 20_000;

/// Elements of a weight that makes a model no toy.
const LARGE_WEIGHT: u64 = 1 << 20;

/// Every way, for a model that takes `inputs`, of a daemon with such a budget.
pub fn all(manifest: &Manifest, inputs: &[(String, Array)], budget_bytes: u64) -> Vec<Wrong> {
    let model = &manifest.model;
    let path = format!("/v2/models/{model}/infer");
    let good: Value = serde_json::from_slice(&json_body(inputs)).expect("it was written as JSON");
    let mut all = Vec::new();
    let mut add = |what, bytes, statuses| all.push(Wrong { what, bytes, statuses });
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        post(&path, "", body.to_string().as_bytes())
    };
    let bad: &[u16] = &[400];

    add("unknown model", post("/v2/models/nobody/infer", "", b"{}"), &[404]);
    add(
        "unknown version",
        post(&format!("/v2/models/{model}/versions/none/infer"), "", b"{}"),
        &[404],
    );
    add("unknown input", changed(&|body| body["inputs"][0]["name"] = json!("nobody")), bad);
    add("unknown datatype", changed(&|body| body["inputs"][0]["datatype"] = json!("F32")), bad);
    add("other datatype", changed(&|body| body["inputs"][0]["datatype"] = json!("UINT16")), bad);
    add("no shape", changed(&|body| body["inputs"][0]["shape"] = json!("wide")), bad);
    add(
        "shape of another rank",
        changed(&|body| body["inputs"][0]["shape"] = json!([1, 1, 1, 1, 1, 1, 1, 7])),
        bad,
    );
    add(
        "shape beyond all",
        changed(&|body| body["inputs"][0]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        bad,
    );
    add("shape that lies", changed(&|body| body["inputs"][0]["data"] = json!([])), bad);
    add("data of another kind", changed(&|body| body["inputs"][0]["data"] = json!(["one"])), bad);
    add("no inputs", changed(&|body| body["inputs"] = json!([])), bad);
    add(
        "input twice",
        changed(&|body| body["inputs"] = json!([body["inputs"][0], body["inputs"][0]])),
        bad,
    );
    add("unknown output", changed(&|body| body["outputs"] = json!([{"name": "nobody"}])), bad);
    add(
        "output twice",
        changed(&|body| {
            let name = &manifest.outputs[0].name;
            body["outputs"] = json!([{ "name": name }, { "name": name }]);
        }),
        bad,
    );
    let long = "\u{1}".repeat(LONG_NAME);
    add("long input name", changed(&|body| body["inputs"][0]["name"] = json!(long)), bad);
    add("long output name", changed(&|body| body["outputs"] = json!([{ "name": long }])), bad);
    add("long id", changed(&|body| body["id"] = json!(long)), bad);
    add("long key", changed(&|body| body[&long] = json!(1)), bad);
    add("negative timeout", changed(&|body| body["parameters"] = json!({"timeout": -1})), bad);
    add("timeout of a word", post(&path, "timeout: soon\r\n", good.to_string().as_bytes()), bad);
    // Fast enough where the daemon is idle.
    add("short timeout", post(&path, "timeout: 1us\r\n", good.to_string().as_bytes()), &[504, 200]);
    add("no JSON", post(&path, "", b"{\"inputs\":["), bad);
    add("nested too deeply", post(&path, "", &[b'['; 10_000]), bad);
    add(
        "binary size that lies",
        changed(&|body| {
            body["inputs"][0]["parameters"] = json!({"binary_data_size": 1u64 << 40});
            body["inputs"][0].as_object_mut().expect("an input").remove("data");
        }),
        bad,
    );
    for (name, _) in inputs.iter().filter(|(name, _)| is_index(name)) {
        add("index beyond the table", changed(&|body| fill(body, name, json!(1_000_000_000))), bad);
        add(
            "index before the table",
            changed(&|body| fill(body, name, json!(-1_000_000_000))),
            bad,
        );
    }
    // A pass over so many tokens holds the square of them, where the model attends to each.
    let count = |shape: &[u64]| shape.iter().product::<u64>();
    let is_large = manifest.weights.iter().any(|weight| count(&weight.shape) > LARGE_WEIGHT);
    if let (true, Ok(inputs)) = (is_large, sample_inputs(&manifest.inputs, ENDLESS_TOKENS)) {
        let request = InferRequest { inputs, ..InferRequest::default() };
        let (body, json_bytes) = request.encode();
        let headers = format!("inference-header-content-length: {json_bytes}\r\n");
        add("pass too large for all", post(&path, &headers, &body), &[400, 413]);
    }
    add(
        "body too large for all",
        head(&path, &format!("content-length: {budget_bytes}\r\n")),
        &[413],
    );

    add(
        "unknown path",
        b"GET /nobody HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".to_vec(),
        &[404],
    );
    add("wrong method", post("/v2", "", b"{}"), &[405]);
    add("wrong type", post(&path, "content-type: text/plain\r\n", b"{}"), &[415]);
    add("no head", b"nonsense\r\n\r\n".to_vec(), bad);
    add("two lengths", head(&path, "content-length: 2\r\ncontent-length: 3\r\n"), bad);
    add("length that is none", head(&path, "content-length: -1\r\n"), bad);
    add("coding that is none", head(&path, "transfer-encoding: gzip\r\n"), bad);
    let hidden = "0\r\n\r\nGET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n";
    let smuggled = head(&path, "content-length: 5\r\ntransfer-encoding: chunked\r\n");
    add("smuggled behind another", [smuggled, hidden.into()].concat(), bad);

    let whole = changed(&|_| {});
    let half = whole[..whole.len() - good.to_string().len() / 2].to_vec();
    add("half a head, and gone", b"POST /v2/mod".to_vec(), &[]);
    add("half a body, and gone", half, &[]);
    add("whole, and gone", whole, &[]);
    add("declared, and gone", head(&path, "content-length: 1000000\r\n"), &[]);

    let embeddings = |body: Value| post("/v1/embeddings", "", body.to_string().as_bytes());
    add("embeddings of nobody", embeddings(json!({"model": "nobody", "input": "a"})), &[404]);
    add("embeddings of nothing", embeddings(json!({"model": model, "input": []})), bad);
    add("embeddings of a number", embeddings(json!({"model": model, "input": 1.5})), bad);
    add("embeddings without a model", embeddings(json!({"input": "a"})), bad);
    if manifest.tokenizer.is_some() {
        let beyond = json!({"model": model, "tokenizer": model, "input": [4_000_000_000u32]});
        add("tokens of whom", embeddings(json!({"model": model, "input": [1]})), bad);
        add("token of no vocabulary", embeddings(beyond), bad);
        add(
            "texts, and gone",
            embeddings(json!({"model": model, "input": vec!["cat dog"; 500]})),
            &[],
        );
    }
    all
}

/// Whether an input picks rows of a table, by the names that exporters give.
fn is_index(name: &str) -> bool {
    name.ends_with("_ids")
}

/// Has every element of an input be `value`.
fn fill(body: &mut Value, name: &str, value: Value) {
    let inputs = body["inputs"].as_array_mut().expect("inputs are an array");
    for input in inputs.iter_mut().filter(|input| input["name"] == name) {
        let data = input["data"].as_array_mut().expect("data is an array");
        data.iter_mut().for_each(|element| *element = value.clone());
    }
}

/// A request whose connection ends with the answer.
fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    [head(path, &format!("{headers}content-length: {length}\r\n")), body.to_vec()].concat()
}

fn head(path: &str, headers: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}
