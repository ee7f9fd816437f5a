//! Text that a model generates: with keys and values kept as without, beside others as alone, and
//! nothing held once it has ended, whatever ended it.

mod common;

use common::programs::program;
use common::small_store::{self, SmallModel, graph_of, node, output, port};
use common::tiny::{WINDOW_BYTES, path, run};
use hermes::engine::{
    Array, Cancel, Config, Decide, DiskKind, Ended, Engine, EngineError, ErrorKind, Generated,
    Next, Pressure, Prompt, Request,
};
use hermes::store::Dtype;
use hermes::stream::{Category, Faults};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

const MODEL: &str = "gpt2-tiny";

/// A store with a decoder of two layers that takes and gives keys and values.
fn store() -> &'static Path {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    STORE.get_or_init(build).path()
}

fn build() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gpt2-tiny.onnx");
    run(program("hermes-bench"), &["synth", MODEL, "--past", "-o", path(&file)]);
    let arguments = ["build", path(&file), "--store", path(folder.path()), "--variants", "f32"];
    run(program("hermes-shard"), &arguments);
    folder
}

fn config() -> Config {
    let window_bytes = Some(WINDOW_BYTES);
    Config { window_bytes, pin_bytes: 0, ..Config::new(store(), 256 << 20) }
}

fn ids(count: usize, step: usize) -> Vec<u32> {
    (0..count).map(|index| (index * step % 997) as u32 + 1).collect()
}

/// What was decided on: each row of logits.
type Seen = Arc<Mutex<Vec<Vec<f32>>>>;

/// Takes what is likeliest, and tells before.
struct Greedy {
    seen: Seen,
    told: Option<Sender<usize>>,
    /// What it waits for before it decides, and until when it does not.
    go_on: Option<Receiver<()>>,
    end_after: usize,
}

impl Decide for Greedy {
    fn next(&mut self, logits: &[f32]) -> Next {
        let mut seen = self.seen.lock().unwrap();
        seen.push(logits.to_vec());
        let count = seen.len();
        drop(seen);
        // The test may have ended.
        if let Some(told) = &self.told {
            let _ = told.send(count);
        }
        if let Some(go_on) = &self.go_on {
            let _ = go_on.recv();
        }
        match count > self.end_after {
            true => Next::End,
            false => Next::Token(likeliest(logits)),
        }
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    best.unwrap() as u32
}

fn prompt(ids: Vec<u32>, max_tokens: usize) -> (Prompt, Seen) {
    let seen = Seen::default();
    let decide = Greedy { seen: Arc::clone(&seen), told: None, go_on: None, end_after: usize::MAX };
    (prompt_of(ids, max_tokens, decide), seen)
}

fn prompt_of(ids: Vec<u32>, max_tokens: usize, decide: Greedy) -> Prompt {
    Prompt {
        model: MODEL.to_string(),
        version: None,
        ids,
        max_tokens,
        is_usual: false,
        context: Some(256),
        target: None,
        decide: Box::new(decide),
        own_bytes: 0,
        cancel: Cancel::new(),
        deadline: None,
    }
}

type Told = Receiver<Result<Generated, EngineError>>;

fn begin(engine: &Engine, prompt: Prompt) -> Told {
    let (sender, receiver) = channel();
    engine.generate(prompt, move |generated| drop(sender.send(generated)));
    receiver
}

fn generate(engine: &Engine, prompt: Prompt) -> Generated {
    begin(engine, prompt).recv().unwrap().unwrap()
}

/// The logits behind a text that is read as a whole, nothing being past.
fn logits_without_cache(engine: &Engine, text: &[u32]) -> Vec<f32> {
    let count = text.len();
    let integers = |values: Vec<i64>| Array::from_i64(vec![1, count], &values).unwrap();
    let mut inputs = vec![
        ("input_ids".to_string(), integers(text.iter().map(|id| i64::from(*id)).collect())),
        ("attention_mask".to_string(), integers(vec![1; count])),
        ("position_ids".to_string(), integers((0..count as i64).collect())),
    ];
    for layer in 0..2 {
        for part in ["key", "value"] {
            let empty = Array::new(Dtype::Fp32, vec![1, 2, 0, 64], vec![]).unwrap();
            inputs.push((format!("past_key_values.{layer}.{part}"), empty));
        }
    }
    let outputs = vec!["logits".to_string()];
    let (model, cancel) = (MODEL.to_string(), Cancel::new());
    let reply = engine.infer(Request { model, inputs, outputs, cancel, target: None, trace: None });
    let logits = reply.unwrap().outputs[0].1.to_f32().unwrap();
    logits[(count - 1) * 1000..].to_vec()
}

fn nearly_equal(one: &[f32], other: &[f32]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// What sessions and passes hold, when the engine's thread has taken its turn.
fn held(engine: &Engine) -> [u64; 3] {
    engine.unload("nothing").unwrap();
    let held = |category| engine.ledger().held_bytes(category);
    let kept_bytes = engine.stats().kept_text_bytes;
    let session_bytes = held(Category::Session) - kept_bytes;
    [session_bytes, held(Category::Activations), held(Category::Request)]
}

#[test]
fn a_text_goes_on_as_it_does_where_all_of_it_is_read_again() {
    for threads in [1, 2, 4] {
        let engine = Engine::start(Config { threads: Some(threads), ..config() }).unwrap();
        for length in [1, 2, 17, 61] {
            let (prompt, seen) = prompt(ids(length, 37), 9);
            let mut text = prompt.ids.clone();
            let generated = generate(&engine, prompt);
            assert!(matches!(generated.ended, Ended::Length), "{:?}", generated.ended);
            assert_eq!((generated.ids.len(), generated.version.as_str()), (9, "1"));
            assert_eq!(generated.stats.prompt_tokens, length);
            for (found, id) in seen.lock().unwrap().iter().zip(&generated.ids) {
                let expected = logits_without_cache(&engine, &text);
                assert!(nearly_equal(found, &expected), "{} tokens", text.len());
                assert_eq!(*id, likeliest(&expected));
                text.push(*id);
            }
            assert_eq!(held(&engine), [0; 3]);
        }
    }
}

/// What a pass reads is shared by all who are there; what comes of it is not touched by that.
#[test]
fn texts_beside_each_other_have_the_bits_that_they_have_alone() {
    let prompts = [(1, 3, 20), (7, 5, 14), (33, 11, 9), (200, 37, 12), (90, 17, 30)];
    let one = |of: (usize, usize, usize)| prompt(ids(of.0, of.1), of.2);
    let alone = Engine::start(Config { threads: Some(1), ..config() }).unwrap();
    let expected: Vec<Vec<Vec<f32>>> = prompts
        .iter()
        .map(|of| {
            let (prompt, seen) = one(*of);
            generate(&alone, prompt);
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), of.2);
            seen.clone()
        })
        .collect();
    for threads in [1, 2, 4] {
        for count in [1, 2, 5] {
            // One that starts from what is kept of another is cut otherwise.
            let engine = Engine::start(Config { threads: Some(threads), ..config() }).unwrap();
            let begun: Vec<(Told, Seen)> = prompts[..count]
                .iter()
                .map(|of| {
                    let (prompt, seen) = one(*of);
                    (begin(&engine, prompt), seen)
                })
                .collect();
            for (index, (told, seen)) in begun.into_iter().enumerate() {
                told.recv().unwrap().unwrap();
                let is_equal = *seen.lock().unwrap() == expected[index];
                assert!(is_equal, "text {index} of {count}, {threads} threads");
            }
            assert_eq!(held(&engine), [0; 3]);
        }
    }
}

/// One that is decided on slowly holds up nobody else, and the others share their passes.
#[test]
fn sessions_share_passes_and_a_slow_one_holds_up_nobody() {
    let engine = Engine::start(config()).unwrap();
    let (told, is_told) = channel();
    let (go_on, gate) = channel();
    let slow = Greedy { seen: Seen::default(), told: Some(told), go_on: Some(gate), end_after: 1 };
    let slow = begin(&engine, prompt_of(ids(3, 5), 9, slow));
    is_told.recv().unwrap();
    let begun = [5, 40].map(|length| begin(&engine, prompt(ids(length, 3), 60).0));
    begun.iter().for_each(|told| assert_eq!(told.recv().unwrap().unwrap().ids.len(), 60));
    drop(go_on);
    let generated = slow.recv().unwrap().unwrap();
    assert!(matches!(generated.ended, Ended::Decided), "{:?}", generated.ended);
    assert_eq!(generated.ids.len(), 1);
    let stats = engine.stats();
    let counted = stats.models[0].counted;
    assert_eq!((counted.sessions, counted.answered), (3, 3));
    assert_eq!((counted.prompt_tokens, counted.generated_tokens), (48, 121));
    assert!(counted.seats > counted.passes, "passes were shared");
    assert_eq!((stats.sessions, stats.session_bytes), (0, stats.kept_text_bytes));
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let engine = Engine::start(config()).unwrap();
    let refused = |prompt: Prompt| begin(&engine, prompt).recv().unwrap().unwrap_err();
    let endless = |tokens: usize| Prompt { context: None, ..prompt(ids(4, 3), tokens).0 };
    let error = refused(endless(10_000_000));
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let EngineError::TextTooLong { tokens, most_tokens, budget_bytes, needed_bytes, .. } = error
    else {
        panic!("{error}")
    };
    assert_eq!((tokens, budget_bytes), (10_000_004, 256 << 20));
    // Two layers' keys and values of 128 floats each.
    assert!(needed_bytes > 10_000_000 * 2 * 2 * 128 * 4);
    assert!((1000..150_000).contains(&most_tokens), "{most_tokens}");
    // What is named fits, and no more.
    let error = refused(endless(most_tokens - 3));
    assert!(matches!(error, EngineError::TextTooLong { .. }), "{error}");
    let ends = Greedy { seen: Seen::default(), told: None, go_on: None, end_after: 2 };
    let fits = prompt_of(ids(4, 3), most_tokens - 4, ends);
    let generated = generate(&engine, Prompt { context: None, ..fits });
    assert!(matches!(generated.ended, Ended::Decided));
    let error = refused(prompt(vec![], 3).0).to_string();
    assert!(error.contains("no tokens"), "{error}");
    let error = refused(prompt(ids(256, 3), 3).0).to_string();
    assert!(error.contains("256 tokens of the 256"), "{error}");
    let error = refused(prompt(vec![5, 1000], 3).0).to_string();
    assert!(error.contains("1000"), "{error}");
    let error = refused(Prompt { version: Some("7".to_string()), ..prompt(ids(4, 3), 3).0 });
    assert!(matches!(error, EngineError::OtherVersion { .. }), "{error}");
    let error = refused(Prompt { model: "none".to_string(), ..prompt(ids(4, 3), 3).0 });
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // The context is the end of what is generated.
    let generated = generate(&engine, prompt(ids(250, 3), 30).0);
    assert_eq!(generated.ids.len(), 6);
    assert_eq!(held(&engine), [0; 3]);
}

/// What a request holds itself was taken for what others would give back: a text that did not fit
/// beside its own tokenizer waited for ever, and its model was loaded again and again.
#[test]
fn what_a_request_holds_itself_is_not_waited_for() {
    let engine = Engine::start(config()).unwrap();
    generate(&engine, prompt(ids(4, 3), 1).0);
    engine.unload(MODEL).unwrap();
    let ledger = engine.ledger();
    let own = ledger.try_grant(Category::Tokenizer, ledger.free_bytes() - (64 << 10)).unwrap();
    let asked = |tokens: usize| {
        let own_bytes = own.bytes();
        let prompt = Prompt { own_bytes, context: None, ..prompt(ids(4, 3), tokens).0 };
        begin(&engine, prompt).recv().unwrap().unwrap_err()
    };
    // Whether it is the model that has no room, or the text.
    for tokens in [1, 100_000] {
        let error = asked(tokens);
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
}

/// A session that does not fit beside another one waits for its end.
#[test]
fn what_does_not_fit_now_waits_for_room() {
    let engine = Engine::start(config()).unwrap();
    let (told, is_told) = channel();
    let (go_on, gate) = channel();
    let endless = Prompt { context: None, ..prompt(ids(4, 3), 10_000_000).0 };
    let refused = begin(&engine, endless).recv().unwrap().unwrap_err();
    let EngineError::TextTooLong { most_tokens, .. } = refused else { panic!("{refused}") };
    let large = most_tokens / 10 * 7;
    let first = Greedy { seen: Seen::default(), told: Some(told), go_on: Some(gate), end_after: 1 };
    let first = Prompt { context: None, ..prompt_of(ids(4, 3), large, first) };
    let first = begin(&engine, first);
    is_told.recv().unwrap();
    let again = Greedy { seen: Seen::default(), told: None, go_on: None, end_after: 1 };
    let again = Prompt { context: None, ..prompt_of(ids(4, 3), large, again) };
    let cancelled = Prompt { context: None, ..prompt(ids(4, 3), large).0 };
    let cancel = cancelled.cancel.clone();
    let (again, cancelled) = (begin(&engine, again), begin(&engine, cancelled));
    cancel.cancel();
    let error = cancelled.recv().unwrap().unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error}");
    assert!(again.try_recv().is_err(), "it waits");
    drop(go_on);
    assert_eq!(first.recv().unwrap().unwrap().ids.len(), 1);
    assert_eq!(again.recv().unwrap().unwrap().ids.len(), 1);
    assert_eq!(held(&engine), [0; 3]);
}

/// A chat that goes on reads what is new; what it says is what it would have said.
#[test]
fn a_text_that_begins_as_a_kept_one_starts_from_it() {
    let engine = Engine::start(config()).unwrap();
    let first = generate(&engine, prompt(ids(40, 7), 9).0);
    assert_eq!(first.stats.cached_tokens, 0);
    let kept_bytes = engine.stats().kept_text_bytes;
    assert!(kept_bytes >= 48 * 2 * 2 * 128 * 4, "{kept_bytes}");
    let check = |text: Vec<u32>, cached_tokens: usize| {
        let (prompt, seen) = prompt(text.clone(), 5);
        let generated = generate(&engine, prompt);
        assert_eq!(generated.stats.cached_tokens, cached_tokens);
        let mut text = text;
        for (found, id) in seen.lock().unwrap().iter().zip(&generated.ids) {
            assert!(nearly_equal(found, &logits_without_cache(&engine, &text)));
            text.push(*id);
        }
    };
    // Of what was generated the last token was not read.
    let goes_on = [ids(40, 7), first.ids.clone(), vec![5, 6, 7]].concat();
    check(goes_on.clone(), 48);
    check(goes_on[..30].to_vec(), 29);
    check([&goes_on[..35], &[900; 9]].concat(), 35);
    check(ids(20, 3), 0);
    let counted = engine.stats().models[0].counted;
    assert_eq!((counted.prefix_hits, counted.cached_tokens), (3, 48 + 29 + 35));
    assert_eq!(held(&engine), [0; 3]);
    // It is the first to give way, and goes with its model.
    engine.set_pressure(Pressure::Pins);
    assert_eq!(engine.stats().kept_text_bytes, 0);
    engine.set_pressure(Pressure::None);
    generate(&engine, prompt(ids(40, 7), 9).0);
    assert!(engine.stats().kept_text_bytes > 0);
    engine.unload(MODEL).unwrap();
    assert_eq!(engine.stats().session_bytes, 0);
    generate(&engine, prompt(ids(40, 7), 9).0);
    while engine.room().spare_room("") {}
    assert_eq!(engine.stats().session_bytes, 0);
}

/// Begins a session, does `meanwhile` when it has decided three times, and returns what it came to.
fn disturbed(engine: &Engine, meanwhile: impl FnOnce(&Cancel)) -> Generated {
    let (told, is_told) = channel();
    let (go_on, gate) = channel();
    let decide =
        Greedy { seen: Seen::default(), told: Some(told), go_on: Some(gate), end_after: 200 };
    let prompt = prompt_of(ids(5, 3), 200, decide);
    let cancel = prompt.cancel.clone();
    let result = begin(engine, prompt);
    for _ in 0..2 {
        is_told.recv().unwrap();
        go_on.send(()).unwrap();
    }
    is_told.recv().unwrap();
    meanwhile(&cancel);
    drop(go_on);
    let generated = result.recv().unwrap().unwrap();
    assert!((2..=200).contains(&generated.ids.len()), "{}", generated.ids.len());
    assert_eq!(held(engine), [0; 3], "{:?}", generated.ended);
    generated
}

#[test]
fn a_session_that_is_cut_off_ends_with_what_there_is_and_a_reason() {
    let store = build();
    let engine = Engine::start(Config { store: store.path().into(), ..config() }).unwrap();
    let generated = disturbed(&engine, Cancel::cancel);
    assert!(matches!(generated.ended, Ended::Cancelled), "{:?}", generated.ended);
    let generated = disturbed(&engine, |_| engine.unload(MODEL).unwrap());
    assert!(matches!(generated.ended, Ended::Unloaded), "{:?}", generated.ended);
    assert_eq!(engine.ledger().held_bytes(Category::Graph), 0, "it is not loaded again for that");
    let generated = disturbed(&engine, |_| drop(engine.load(MODEL).unwrap()));
    assert!(matches!(generated.ended, Ended::Replaced), "{:?}", generated.ended);
    let generated = disturbed(&engine, |_| {
        let file = store.path().join("gpt2-tiny.onnx");
        let arguments = ["build", path(&file), "--store", path(store.path()), "--variants", "f32"];
        run(program("hermes-shard"), &[&arguments[..], &["--version", "2"]].concat());
    });
    assert!(matches!(generated.ended, Ended::Replaced), "{:?}", generated.ended);
    let (late, _) = prompt(ids(4, 3), 200);
    let generated = begin(&engine, Prompt { deadline: Some(Instant::now()), ..late });
    assert!(matches!(generated.recv().unwrap(), Err(EngineError::Cancelled)));
    // New sessions wait under pressure, running ones go on.
    let generated = disturbed(&engine, |_| {
        engine.set_pressure(Pressure::Hold);
        let waits = begin(&engine, prompt(ids(4, 3), 2).0);
        assert!(waits.try_recv().is_err());
        drop(waits);
    });
    assert!(matches!(generated.ended, Ended::Length), "{:?}", generated.ended);
    assert_eq!(generated.ids.len(), 200);
}

#[test]
fn a_disk_that_fails_ends_texts_with_what_there_is() {
    let faults = Faults { error_every: 30, seed: 3, ..Faults::default() };
    let mut cut_off = 0;
    for seed in 0..12 {
        let disk = DiskKind::Faulty(Faults { seed, ..faults });
        let engine = Engine::start(Config { disk, ..config() }).unwrap();
        let begun = [3, 30].map(|length| begin(&engine, prompt(ids(length, 3), 40).0));
        for told in begun {
            match told.recv().unwrap() {
                Ok(Generated { ended: Ended::Failed(error), .. }) => {
                    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
                    cut_off += 1;
                }
                Ok(generated) => assert_eq!(generated.ids.len(), 40),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Internal, "{error}"),
            }
        }
        assert_eq!(held(&engine), [0; 3]);
    }
    assert!(cut_off > 0, "faults came in the middle of texts");
}

/// Two hundred sessions that are begun and cut off by chance leave nothing behind.
#[test]
fn sessions_that_are_cut_off_by_chance_leave_the_ledger_where_it_was() {
    let engine = Engine::start(config()).unwrap();
    engine.load(MODEL).unwrap();
    let mut random = 7u64;
    let mut below = move |end: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % end
    };
    let mut begun: Vec<(Told, Cancel)> = vec![];
    let (mut whole, mut cut_off) = (0, 0);
    let mut end = |(told, cancel): (Told, Cancel), is_cut: bool| {
        if is_cut {
            cancel.cancel();
        }
        match told.recv().unwrap() {
            Ok(Generated { ended: Ended::Length, .. }) => whole += 1,
            Ok(Generated { ended: Ended::Cancelled, .. }) | Err(EngineError::Cancelled) => {
                cut_off += 1;
            }
            other => panic!("{other:?}"),
        }
    };
    for _ in 0..200 {
        let (prompt, _) = prompt(ids(1 + below(40), 3), 1 + below(12));
        let cancel = prompt.cancel.clone();
        begun.push((begin(&engine, prompt), cancel));
        if begun.len() > 8 {
            let index = below(begun.len());
            end(begun.swap_remove(index), below(2) == 0);
        }
    }
    begun.into_iter().for_each(|begun| end(begun, false));
    assert!(whole > 0 && cut_off > 0, "{whole} were whole, {cut_off} cut off");
    assert_eq!(held(&engine), [0; 3]);
    engine.shutdown();
}

fn with_int(mut node: NodeProto, name: &str, i: i64) -> NodeProto {
    let r#type = AttributeType::Int.into();
    node.attribute.push(AttributeProto { name: name.to_string(), i, r#type, ..Default::default() });
    node
}

fn with_ints(mut node: NodeProto, name: &str, ints: &[i64]) -> NodeProto {
    let (name, ints, r#type) = (name.to_string(), ints.to_vec(), AttributeType::Ints.into());
    node.attribute.push(AttributeProto { name, ints, r#type, ..Default::default() });
    node
}

/// Floats of 4 for each of 8 tokens that f16 holds exactly.
fn embedding(token: usize) -> [f32; 4] {
    [0, 1, 2, 3].map(|axis| ((token * 5 + axis * 3) % 7) as f32 / 8.0)
}

/// The mean of all tokens' embeddings, times a weight of 4 by 8: keys and values in
/// f16, logits of the last position alone, neither mask nor positions.
fn means() -> SmallModel {
    let table = TensorProto {
        name: "table".to_string(),
        dims: vec![8, 4],
        data_type: 1,
        float_data: (0..8).flat_map(embedding).collect(),
        ..TensorProto::default()
    };
    let axis = TensorProto {
        name: "axis".to_string(),
        dims: vec![1],
        data_type: 7,
        int64_data: vec![1],
        ..TensorProto::default()
    };
    let past = ["1", "1", "P", "4"];
    let inputs = vec![
        port("input_ids", Dtype::Int64, &["1", "S"]),
        port("past_key_values.0.key", Dtype::Fp16, &past),
        port("past_key_values.0.value", Dtype::Fp16, &past),
        port("W", Dtype::Fp32, &["4", "8"]),
    ];
    let concat =
        |past: &str, present: &str| with_int(node("Concat", &[past, "half"], present), "axis", 2);
    let nodes = vec![
        node("Gather", &["table", "input_ids"], "x"),
        node("Unsqueeze", &["x", "axis"], "one"),
        with_int(node("Cast", &["one"], "half"), "to", 10),
        concat("past_key_values.0.key", "present.0.key"),
        concat("past_key_values.0.value", "present.0.value"),
        with_int(node("Cast", &["present.0.key"], "all"), "to", 1),
        with_ints(node("ReduceMean", &["all"], "mean"), "axes", &[2]),
        node("Squeeze", &["mean", "axis"], "y"),
        node("MatMul", &["y", "W"], "logits"),
    ];
    let half = |name| output(name, Dtype::Fp16);
    let outputs =
        vec![output("logits", Dtype::Fp32), half("present.0.key"), half("present.0.value")];
    let mut graph = graph_of(inputs, nodes, outputs);
    graph.initializer.extend([table, axis]);
    let weights = vec![("W", [4, 8], (0..32).map(|i| (i * 7 % 11) as f32).collect())];
    SmallModel { name: "means", graph, weights, tokenizer: None, task: None }
}

/// Keys and values may be of f16, and masks and positions be none of the caller's.
#[test]
fn keys_and_values_of_two_bytes_are_kept_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    small_store::write(folder.path(), means());
    let engine = Engine::start(Config::new(folder.path(), 64 << 20)).unwrap();
    let (prompt, seen) = prompt(vec![1, 6, 3, 3, 0], 4);
    let mut text: Vec<usize> = prompt.ids.iter().map(|id| *id as usize).collect();
    generate(&engine, Prompt { model: "means".to_string(), ..prompt });
    for found in &*seen.lock().unwrap() {
        let sum = |axis: usize| text.iter().map(|token| embedding(*token)[axis]).sum::<f32>();
        let mean = [0, 1, 2, 3].map(|axis| sum(axis) / text.len() as f32);
        let weight = |axis: usize, logit: usize| ((axis * 8 + logit) * 7 % 11) as f32;
        let logit = |logit| (0..4).map(|axis| mean[axis] * weight(axis, logit)).sum::<f32>();
        let expected: Vec<f32> = (0..8).map(logit).collect();
        assert!(nearly_equal(found, &expected), "{text:?}");
        text.push(likeliest(found) as usize);
    }
    assert_eq!(seen.lock().unwrap().len(), 4);
}

/// What is measured of texts is there for each budget, and one in which nothing fits is told.
#[test]
fn texts_are_measured_within_budgets() {
    let out = tempfile::tempdir().unwrap();
    let arguments = ["--disk", "sd", "--budgets", "1K,256M", "--tokens", "3", "--repeat", "1"];
    let fixed = ["generate", "--store", path(store()), "--model", MODEL, "--out", path(out.path())];
    run(program("hermes-bench"), &[fixed.as_slice(), &arguments, &["--texts", "2"]].concat());
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let csv = read("generate.csv");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 2, "1K is left out: {csv}");
    assert!(lines[1].starts_with("sd,268435456,2,"), "{csv}");
    assert!(read("generate.md").contains("| 256.0 | "));
    assert!(read("generate-sd.svg").starts_with("<svg "));
}
