//! Small models of the papers' architectures, and requests to them.

use super::programs::program;
use hermes::engine::{Array, Cancel, Config, Engine, EngineError, Reply, Request};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::Receiver;

const BUDGET_BYTES: u64 = 1 << 30;

/// Smallest window that holds a block of the tiny models.
pub const WINDOW_BYTES: u64 = 2 << 20;

/// A store with bert-tiny, gpt2-tiny and vit-tiny in f32, q8 and a4, made once.
pub fn store() -> &'static Path {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    STORE
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            for model in ["bert-tiny", "gpt2-tiny", "vit-tiny"] {
                let file = folder.path().join(format!("{model}.onnx"));
                run(program("hermes-bench"), &["synth", model, "-o", path(&file)]);
                let store = folder.path().join("store");
                let arguments =
                    ["build", path(&file), "--store", path(&store), "--variants", "f32,q8,a4"];
                run(program("hermes-shard"), &arguments);
            }
            folder
        })
        .path()
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub fn config() -> Config {
    let window_bytes = Some(WINDOW_BYTES);
    Config { window_bytes, pin_bytes: 0, ..Config::new(store().join("store"), BUDGET_BYTES) }
}

pub fn ids(name: &str, count: usize) -> (String, Array) {
    let values: Vec<i64> = (0..count as i64).map(|i| i * 37 % 211 + 1).collect();
    (name.to_string(), Array::from_i64(vec![1, count], &values).unwrap())
}

pub fn ones(name: &str, count: usize, value: i64) -> (String, Array) {
    (name.to_string(), Array::from_i64(vec![1, count], &vec![value; count]).unwrap())
}

pub fn request(model: &str, tokens: usize) -> Request {
    let inputs = match model {
        "bert-tiny" => vec![
            ids("input_ids", tokens),
            ones("attention_mask", tokens, 1),
            ones("token_type_ids", tokens, 0),
        ],
        "gpt2-tiny" => {
            let positions: Vec<i64> = (0..tokens as i64).collect();
            let positions = Array::from_i64(vec![1, tokens], &positions).unwrap();
            vec![
                ids("input_ids", tokens),
                ones("attention_mask", tokens, 1),
                ("position_ids".to_string(), positions),
            ]
        }
        _ => unreachable!("no such model"),
    };
    Request {
        model: model.to_string(),
        inputs,
        outputs: vec![],
        cancel: Cancel::new(),
        target: None,
        trace: None,
    }
}

/// The request with the inputs that the model does not have left out.
pub fn fitting(engine: &Engine, mut request: Request) -> Request {
    let manifest = engine.manifest(&request.model).unwrap();
    request.inputs.retain(|(name, _)| manifest.inputs.iter().any(|port| port.name == *name));
    request
}

pub fn infer(engine: &Engine, model: &str, tokens: usize) -> Reply {
    engine.infer(fitting(engine, request(model, tokens))).unwrap()
}

/// Submits `request` and returns where its result comes.
pub fn submit(engine: &Engine, request: Request) -> Receiver<Result<Reply, EngineError>> {
    let (sender, receiver) = std::sync::mpsc::channel();
    // The test may have failed by then.
    engine.submit(request, move |result| drop(sender.send(result)));
    receiver
}
