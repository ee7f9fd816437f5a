//! The engine on models of the papers' architectures: exact, within its budget, and clear when
//! the disk or the request is at fault.

use hermes::engine::{
    Array, Cancel, Config, Engine, EngineError, ErrorKind, Reply, Request, SourceKind,
};
use hermes::stream::{Category, Faults, StreamError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

const BUDGET_BYTES: u64 = 1 << 30;

/// Smallest window that holds a block of the tiny models.
const WINDOW_BYTES: u64 = 2 << 20;

/// A store with bert-tiny, gpt2-tiny and vit-tiny in f32, q8 and q4, made once.
fn store() -> &'static Path {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    STORE
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            for model in ["bert-tiny", "gpt2-tiny", "vit-tiny"] {
                let file = folder.path().join(format!("{model}.onnx"));
                run(env!("CARGO_BIN_EXE_hermes-bench"), &["synth", model, "-o", path(&file)]);
                let store = folder.path().join("store");
                let arguments =
                    ["build", path(&file), "--store", path(&store), "--variants", "f32,q8,q4"];
                run(env!("CARGO_BIN_EXE_hermes-shard"), &arguments);
            }
            folder
        })
        .path()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn config() -> Config {
    let window_bytes = Some(WINDOW_BYTES);
    Config { window_bytes, ..Config::new(store().join("store"), BUDGET_BYTES) }
}

fn ids(name: &str, count: usize) -> (String, Array) {
    let values: Vec<i64> = (0..count as i64).map(|i| i * 37 % 211 + 1).collect();
    (name.to_string(), Array::from_i64(vec![1, count], &values).unwrap())
}

fn ones(name: &str, count: usize, value: i64) -> (String, Array) {
    (name.to_string(), Array::from_i64(vec![1, count], &vec![value; count]).unwrap())
}

fn request(model: &str, tokens: usize) -> Request {
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
    Request { model: model.to_string(), inputs, outputs: vec![], cancel: Cancel::new() }
}

/// The request with the inputs that the model does not have left out.
fn fitting(engine: &Engine, mut request: Request) -> Request {
    let manifest = engine.manifest(&request.model).unwrap();
    request.inputs.retain(|(name, _)| manifest.inputs.iter().any(|port| port.name == *name));
    request
}

fn infer(engine: &Engine, model: &str, tokens: usize) -> Reply {
    engine.infer(fitting(engine, request(model, tokens))).unwrap()
}

fn last_rows(reply: &Reply, rows: usize) -> Vec<f32> {
    let (_, array) = &reply.outputs[0];
    let values = array.to_f32().unwrap();
    let width = *array.shape.last().unwrap();
    values[..rows * width].to_vec()
}

#[test]
fn streamed_outputs_are_the_resident_ones_to_the_bit() {
    for variant in ["f32", "q8", "q4"] {
        let config = Config { variant: Some(variant.to_string()), ..config() };
        let streamed = Engine::start(config.clone()).unwrap();
        let resident = Engine::start(Config { pin_bytes: u64::MAX, ..config.clone() }).unwrap();
        let half =
            Engine::start(Config { pin_bytes: 1 << 20, threads: Some(1), ..config }).unwrap();
        for model in ["bert-tiny", "gpt2-tiny"] {
            for tokens in [1, 3, 16, 61] {
                let expected = infer(&resident, model, tokens);
                assert_eq!(expected.stats.bytes_read, 0, "all is pinned");
                let found = infer(&streamed, model, tokens);
                assert!(found.stats.bytes_read > 0, "nothing is pinned");
                assert!(found.outputs == expected.outputs, "{model} {variant}, {tokens} tokens");
                let found = infer(&half, model, tokens);
                assert!(found.outputs == expected.outputs, "{model} {variant}, half pinned");
            }
        }
    }
}

/// A causal model's first rows do not depend on what follows. tract's own passes folded the mask
/// to a constant and got this wrong from two tokens on.
#[test]
fn a_decoder_is_causal_at_every_length() {
    let engine = Engine::start(config()).unwrap();
    let whole = infer(&engine, "gpt2-tiny", 40);
    for tokens in [1, 2, 7, 39] {
        let short = infer(&engine, "gpt2-tiny", tokens);
        let pairs = last_rows(&short, tokens).into_iter().zip(last_rows(&whole, tokens));
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{tokens} tokens differ by {worst}");
    }
}

#[test]
fn unloading_gives_every_byte_back() {
    let engine = Engine::start(config()).unwrap();
    let before = engine.ledger().free_bytes();
    for _ in 0..3 {
        infer(&engine, "bert-tiny", 8);
        infer(&engine, "gpt2-tiny", 8);
        assert!(engine.ledger().free_bytes() < before);
        engine.unload("bert-tiny").unwrap();
        engine.unload("gpt2-tiny").unwrap();
        assert_eq!(engine.ledger().free_bytes(), before);
    }
}

fn error_of(engine: &Engine, request: Request) -> EngineError {
    let error = engine.infer(request).expect_err("the request is wrong");
    let sound = engine.infer(fitting(engine, self::request("bert-tiny", 4)));
    assert!(sound.is_ok(), "the next request is answered after: {error}");
    error
}

#[test]
fn wrong_requests_are_told_what_was_expected() {
    let engine = Engine::start(config()).unwrap();
    let with = |name: &str, array: Array| {
        let mut request = fitting(&engine, request("bert-tiny", 4));
        request.inputs.retain(|(n, _)| n != name);
        request.inputs.push((name.to_string(), array));
        request
    };
    let i64s = |shape: &[usize], value: i64| {
        Array::from_i64(shape.to_vec(), &vec![value; shape.iter().product()]).unwrap()
    };
    let f32s = Array::from_f32(vec![1, 4], &[0.0; 4]).unwrap();
    let mut missing = fitting(&engine, request("bert-tiny", 4));
    missing.inputs.pop();
    let mut unknown_output = fitting(&engine, request("bert-tiny", 4));
    unknown_output.outputs.push("nothing".to_string());
    let cases = [
        (with("input_ids", f32s), "input \"input_ids\" is FP32: expected INT64 [1, "),
        (
            with("input_ids", i64s(&[4], 1)),
            "input \"input_ids\" has shape [4]: expected INT64 [1, ",
        ),
        (with("input_ids", i64s(&[2, 4], 1)), "input \"input_ids\" has shape [2, 4]"),
        (with("input_ids", i64s(&[1, 5], 1)), "input \"input_ids\" has "),
        (with("input_ids", i64s(&[1, 0], 1)), "has length 0 in axis 1"),
        (with("input_ids", i64s(&[1, 4], 1 << 40)), "is outside a table of"),
        (with("words", i64s(&[1, 4], 1)), "input \"words\" is unknown"),
        (missing, "is missing: expected INT64"),
        (unknown_output, "output \"nothing\" is unknown"),
    ];
    for (request, expected) in cases {
        let error = error_of(&engine, request);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(expected), "{error}\nlacks {expected}");
    }
    let unknown = Request { model: "nobody".to_string(), ..request("bert-tiny", 4) };
    assert_eq!(error_of(&engine, unknown).kind(), ErrorKind::NotFound);
    let too_long = fitting(&engine, request("bert-tiny", 100_000));
    let error = error_of(&engine, too_long);
    assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::TooLarge), "{error}");
}

#[test]
fn too_small_a_budget_is_refused_with_the_one_that_would_do() {
    let small = Config { budget_bytes: 4 << 20, ..config() };
    let Err(EngineError::OverBudget(refused)) = Engine::start(small) else {
        panic!("a budget of 4 MiB cannot hold the process")
    };
    assert_eq!(refused.category, Category::Process);
    let mut budget_bytes = refused.smallest_budget_bytes();
    // Each refusal names a budget that gets one step further, until all fits.
    for _ in 0..8 {
        let config = Config { budget_bytes, ..config() };
        let refused = match Engine::start(config) {
            Err(EngineError::OverBudget(refused)) => refused,
            Ok(engine) => match engine.infer(fitting(&engine, request("bert-tiny", 64))) {
                Err(EngineError::OverBudget(refused)) => refused,
                Err(error) => panic!("{error}"),
                Ok(_) => return,
            },
            Err(error) => panic!("{error}"),
        };
        assert!(refused.smallest_budget_bytes() > budget_bytes, "{refused}");
        budget_bytes = refused.smallest_budget_bytes();
    }
    panic!("{budget_bytes} bytes still do not do");
}

#[test]
fn a_window_smaller_than_a_block_is_refused() {
    let engine = Engine::start(Config { window_bytes: Some(4096), ..config() }).unwrap();
    let error = engine.infer(fitting(&engine, request("bert-tiny", 4))).unwrap_err();
    assert!(matches!(error, EngineError::WindowTooSmall { window_bytes: 4096, .. }), "{error}");
}

#[test]
fn an_unknown_variant_is_refused_with_those_there_are() {
    let engine = Engine::start(Config { variant: Some("q3".to_string()), ..config() }).unwrap();
    let error = engine.infer(fitting(&engine, request("bert-tiny", 4))).unwrap_err();
    assert!(error.to_string().contains("it has f32, q8, q4"), "{error}");
}

/// Whatever the disk does, a pass gives the right answer or an error, and the model is out of
/// service after an error until it is loaded anew.
#[test]
fn a_failing_disk_gives_errors_and_never_wrong_answers() {
    let sound = Engine::start(config()).unwrap();
    let expected = infer(&sound, "bert-tiny", 16).outputs;
    let mut failed = 0;
    for seed in 0..24 {
        let faults = Faults {
            seed,
            error_every: 30,
            short_every: 30,
            corrupt_every: 30,
            delay_every: 7,
            delay: Duration::from_millis(1),
        };
        let engine =
            Engine::start(Config { source: SourceKind::Faulty(faults), ..config() }).unwrap();
        for _ in 0..4 {
            match engine.infer(fitting(&engine, request("bert-tiny", 16))) {
                Ok(reply) => assert!(reply.outputs == expected, "seed {seed}"),
                Err(EngineError::Stream(error)) => {
                    failed += 1;
                    let text = error.to_string();
                    assert!(text.contains(".layer") && text.contains("offset"), "{text}");
                    let next = engine.infer(fitting(&engine, request("bert-tiny", 16)));
                    assert!(matches!(next, Err(EngineError::OutOfService { .. })));
                    engine.load("bert-tiny").unwrap();
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
    assert!(failed > 0, "no fault struck");
}

#[test]
fn a_cancelled_pass_ends_and_the_next_is_answered() {
    let slow = SourceKind::Throttled { bytes_per_s: 2 << 20 };
    let engine = Engine::start(Config { source: slow, ..config() }).unwrap();
    engine.load("bert-tiny").unwrap();
    let request = fitting(&engine, request("bert-tiny", 4));
    let cancel = request.cancel.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    engine.submit(request, move |result| sender.send(result.map(drop)).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    cancel.cancel();
    let result = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(matches!(result, Err(EngineError::Cancelled)), "{result:?}");
    assert!(engine.infer(fitting(&engine, self::request("bert-tiny", 4))).is_ok());
}

/// A copy of the store in which one thing is broken.
fn broken(damage: impl FnOnce(&Path)) -> (tempfile::TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    run("cp", &["-r", path(&store().join("store")), path(&folder.path().join("store"))]);
    let version = folder.path().join("store/bert-tiny/1");
    damage(&version);
    let engine = Engine::start(Config { store: folder.path().join("store"), ..config() }).unwrap();
    (folder, engine)
}

fn layers(version: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(version.join("layers")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().contains(".f32."));
    paths.sort();
    paths
}

fn check_broken(damage: impl FnOnce(&Path), expected: &str) {
    let (_folder, engine) = broken(damage);
    let mut request = request("bert-tiny", 4);
    request.inputs.retain(|(name, _)| name != "nothing");
    let sound = Engine::start(config()).unwrap();
    let request = fitting(&sound, request);
    let error = engine.infer(request).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}\nlacks {expected}");
}

#[test]
fn a_broken_store_is_told_by_file() {
    check_broken(|v| std::fs::remove_file(&layers(v)[1]).unwrap(), "encoder.0.f32.layer");
    check_broken(
        |v| {
            let file = std::fs::OpenOptions::new().write(true).open(&layers(v)[1]).unwrap();
            file.set_len(100_000).unwrap();
        },
        "has 100000 bytes, the manifest says",
    );
    check_broken(
        |v| {
            let layers = layers(v);
            std::fs::rename(&layers[1], v.join("aside")).unwrap();
            std::fs::rename(&layers[2], &layers[1]).unwrap();
            std::fs::rename(v.join("aside"), &layers[2]).unwrap();
        },
        "encoder.",
    );
    check_broken(|v| std::fs::write(v.join("graph.onnx"), "no graph").unwrap(), "graph.onnx");
    check_broken(|v| std::fs::write(v.join("manifest.json"), "{}").unwrap(), "manifest.json");
}

/// A flipped bit in a block is found by the loader, in the middle of the pass.
#[test]
fn a_damaged_block_is_found_in_the_pass() {
    use std::os::unix::fs::FileExt;
    let (_folder, engine) = broken(|version| {
        let path = &layers(version)[1];
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = 65_536 + 1000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    });
    let error = engine.infer(fitting(&engine, request("bert-tiny", 4))).unwrap_err();
    let EngineError::Stream(StreamError::Damaged { path, offset: 65_536, .. }) = &error else {
        panic!("{error}")
    };
    assert!(path.to_str().unwrap().contains("encoder.0.f32.layer"));
}
