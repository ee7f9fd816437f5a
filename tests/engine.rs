//! The engine on models of the papers' architectures: exact, within its budget, and clear when
//! the disk or the request is at fault.

mod common;

use common::programs::program;
use common::skip::skip;
use common::tiny::{WINDOW_BYTES, config, fitting, infer, path, request, run, store, submit};
use hermes::engine::{
    Array, Config, DiskKind, Engine, EngineError, ErrorKind, Policy, Pressure, Reply, Request,
};
use hermes::plan::{Grouping, Plan, Release, Way};
use hermes::store::ModelDir;
use hermes::store::layer_file::TensorEntry;
use hermes::stream::{Category, Faults, StreamError, Trace, What};
use hermes::sys::capabilities::{Capabilities, Feature};
use hermes::sys::disk::Disk;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

fn last_rows(reply: &Reply, rows: usize) -> Vec<f32> {
    let (_, array) = &reply.outputs[0];
    let values = array.to_f32().unwrap();
    let width = *array.shape.last().unwrap();
    values[..rows * width].to_vec()
}

#[test]
fn streamed_outputs_are_the_resident_ones_to_the_bit() {
    for variant in ["f32", "q8", "a4"] {
        let config = Config { variant: Some(variant.to_string()), ..config() };
        let streamed = Engine::start(config.clone()).unwrap();
        let resident = Engine::start(Config { pin_bytes: u64::MAX, ..config.clone() }).unwrap();
        let half = Config { pin_bytes: 1 << 20, threads: Some(1), ..config.clone() };
        let half = Engine::start(half).unwrap();
        let direct = Config { source: Some(Way::Direct), ..config.clone() };
        let half_direct = Engine::start(Config { pin_bytes: 1 << 20, ..direct.clone() }).unwrap();
        let direct = Engine::start(direct).unwrap();
        for model in ["bert-tiny", "gpt2-tiny"] {
            for tokens in [1, 3, 16, 61] {
                infer(&resident, model, tokens);
                let expected = infer(&resident, model, tokens);
                assert_eq!(expected.stats.bytes_read, 0, "all is pinned");
                let found = infer(&streamed, model, tokens);
                assert!(found.stats.bytes_read > 0, "nothing is pinned");
                assert!(found.outputs == expected.outputs, "{model} {variant}, {tokens} tokens");
                let found = infer(&half, model, tokens);
                assert!(found.outputs == expected.outputs, "{model} {variant}, half pinned");
                for engine in [&direct, &half_direct] {
                    let found = infer(engine, model, tokens);
                    assert!(found.outputs == expected.outputs, "{model} {variant}, direct");
                }
            }
        }
    }
}

/// The papers' systems and the tape differ in what is in memory when, and in nothing else.
#[test]
fn every_policy_gives_the_same_bits() {
    let engine = |policy| Engine::start(Config { policy, ..config() }).unwrap();
    let tape = engine(Policy::Tape);
    for model in ["bert-tiny", "gpt2-tiny"] {
        let expected = infer(&tape, model, 9);
        let (bytes, window) = (expected.stats.bytes_read, expected.stats.window_peak_bytes);
        assert!(window <= WINDOW_BYTES, "{window}");
        for (policy, all_at_once) in [
            (Policy::LoadAll, true),
            (Policy::PipeSwitch, true),
            (Policy::PipeLoad { agents: 1 }, false),
            (Policy::PipeLoad { agents: 4 }, false),
        ] {
            let engine = engine(policy.clone());
            // Blocks that are not mapped are held in whole pages.
            let room = engine.load(model).unwrap().plan().window_bytes;
            assert!(room >= bytes || !all_at_once, "{model} by {policy:?}: {room}");
            // The second pass finds nothing of the first.
            for _ in 0..2 {
                let found = infer(&engine, model, 9);
                assert!(found.outputs == expected.outputs, "{model} by {policy:?}");
                assert_eq!(found.stats.bytes_read, bytes, "{model} by {policy:?}");
                let held = found.stats.window_peak_bytes;
                assert!(held <= room, "{model} by {policy:?}: {held}");
                assert!(held == room || !all_at_once, "{model} by {policy:?}: {held}");
            }
        }
    }
}

/// The variants of a choice that takes others from tensor to tensor.
fn mixed_choice(dir: &ModelDir) -> Vec<String> {
    let kinds = ["q8", "f32", "a4"];
    let layers = 0..dir.manifest.layers.len();
    let chosen = layers.flat_map(|layer| {
        let tensors = dir.open_layer(layer, "f32").unwrap().index.tensors;
        tensors.into_iter().filter(TensorEntry::is_chosen)
    });
    chosen.enumerate().map(|(index, _)| kinds[index % kinds.len()].to_string()).collect()
}

/// Each tensor may have another variant: how such a tape is played changes no bit either.
#[test]
fn tensors_of_mixed_variants_give_the_bits_of_a_resident_pass() {
    let engine = |plan: &Plan| {
        Engine::start(Config { policy: Policy::Fixed(plan.clone()), ..config() }).unwrap()
    };
    for model in ["bert-tiny", "gpt2-tiny"] {
        let all_alike = Engine::start(config()).unwrap();
        let base = all_alike.load(model).unwrap();
        let variants = mixed_choice(&base.dir);
        let count = variants.len();
        assert!(count > base.dir.manifest.layers.len(), "{count}");
        let streamed = Plan { variants, ..base.plan() };
        let resident = Plan {
            grouping: Grouping::Whole,
            release: Release::AtEnd,
            window_bytes: 256 << 20,
            ..streamed.clone()
        };
        let pinned = Plan { pin_bytes: u64::MAX, ..streamed.clone() };
        let layers =
            Plan { grouping: Grouping::Layers, window_bytes: 64 << 20, ..streamed.clone() };
        let (resident, pinned) = (engine(&resident), engine(&pinned));
        let mut others = vec![engine(&streamed), engine(&layers)];
        others.extend([(1, 2), (2, 1), (4, 3), (8, 4)].map(|(threads, loaders)| {
            let source = if threads == 2 { Way::Direct } else { Way::Mapped };
            engine(&Plan { threads, loaders, source, ..streamed.clone() })
        }));
        infer(&pinned, model, 3);
        for tokens in [1, 9] {
            let expected = infer(&resident, model, tokens);
            let plain = infer(&all_alike, model, tokens);
            assert!(expected.outputs != plain.outputs, "{model}");
            assert_ne!(expected.choice, plain.choice, "answers tell their choice");
            let found = infer(&pinned, model, tokens);
            assert_eq!(found.stats.bytes_read, 0, "all is pinned");
            assert!(found.outputs == expected.outputs, "{model}, pinned, {tokens} tokens");
            for engine in &others {
                let found = infer(engine, model, tokens);
                assert_eq!(found.stats.bytes_read, expected.stats.bytes_read);
                assert_eq!(found.choice, expected.choice);
                assert!(found.outputs == expected.outputs, "{model}, {tokens} tokens");
            }
        }
        // A choice that has all in the best variant is the plain model.
        let best = vec!["f32".to_string(); count];
        let found = infer(&engine(&Plan { variants: best, ..base.plan() }), model, 9);
        let plain = infer(&all_alike, model, 9);
        assert!(found.choice == plain.choice && found.outputs == plain.outputs, "{model}");
        for (variants, expected) in [
            (vec!["f32".to_string()], "a plan of 1 tensors"),
            (vec!["f32".to_string(); count + 1], "tensors for"),
            (vec!["q1".to_string(); count], "no variant \"q1\""),
        ] {
            let error = engine(&Plan { variants, ..base.plan() }).load(model).err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}

/// Which source brings a model's blocks in where direct reads are asked for.
fn source_asked_direct(store: &Path) -> (&'static str, Reply) {
    let source = Some(Way::Direct);
    let engine = Engine::start(Config { source, store: store.to_owned(), ..config() }).unwrap();
    let name = engine.load("bert-tiny").unwrap().source_name();
    (name, infer(&engine, "bert-tiny", 9))
}

#[test]
fn direct_reads_fall_back_where_they_are_refused() {
    let store = store().join("store");
    let (on_disk, expected) = source_asked_direct(&store);
    let in_memory = Disk::of("/".as_ref(), &store).is_some_and(|disk| disk.is_memory());
    if !in_memory && Capabilities::get().has(Feature::Direct) {
        assert_eq!(on_disk, "direct", "the file system of {} refuses direct reads", path(&store));
    }
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return skip("there is no /dev/shm") };
    run("cp", &["-r", path(&store), path(memory.path())]);
    let (in_memory, found) = source_asked_direct(&memory.path().join("store"));
    assert_ne!(in_memory, "direct");
    assert!(found.outputs == expected.outputs);
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
        (with("input_ids", f32s), "input \"input_ids\" is FP32: expected INT64 [batch_size, "),
        (
            with("input_ids", i64s(&[4], 1)),
            "input \"input_ids\" has shape [4]: expected INT64 [batch_size, ",
        ),
        (
            with("input_ids", i64s(&[2, 4], 1)),
            "has batch_size = 1 in axis 0 where input \"input_ids\" has 2",
        ),
        (with("input_ids", i64s(&[1, 5], 1)), "input \"input_ids\" has "),
        (with("input_ids", i64s(&[1, 0], 1)), "in axis 1 where input \"input_ids\" has 0"),
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
fn a_window_smaller_than_a_block_is_refused() {
    let engine = Engine::start(Config { window_bytes: Some(4096), ..config() }).unwrap();
    let error = engine.infer(fitting(&engine, request("bert-tiny", 4))).unwrap_err();
    assert!(matches!(error, EngineError::WindowTooSmall { window_bytes: 4096, .. }), "{error}");
}

#[test]
fn an_unknown_variant_is_refused_with_those_there_are() {
    let engine = Engine::start(Config { variant: Some("q3".to_string()), ..config() }).unwrap();
    let error = engine.infer(fitting(&engine, request("bert-tiny", 4))).unwrap_err();
    assert!(error.to_string().contains("it has f32, q8, a4"), "{error}");
}

/// Requests of any lengths that wait together take one pass, and each gets what it would get
/// alone, to the bit; one that fails or is cancelled among them is alone in that.
#[test]
fn requests_that_wait_share_a_pass() {
    for (model, variant) in [("bert-tiny", "f32"), ("gpt2-tiny", "q8")] {
        let engine =
            Engine::start(Config { variant: Some(variant.to_string()), ..config() }).unwrap();
        let lengths = [5, 1, 33, 16, 16];
        let alone = lengths.map(|tokens| infer(&engine, model, tokens));
        engine.set_pressure(Pressure::Hold);
        let waiting =
            lengths.map(|tokens| submit(&engine, fitting(&engine, request(model, tokens))));
        let mut wrong = fitting(&engine, request(model, 4));
        wrong.inputs[0].1 = Array::from_i64(vec![1, 4], &[1, 1 << 40, 2, 3]).unwrap();
        let wrong = submit(&engine, wrong);
        let left = fitting(&engine, request(model, 7));
        let cancel = left.cancel.clone();
        let left = submit(&engine, left);
        cancel.cancel();
        assert_eq!(engine.stats().waiting, 7, "nothing is served while held");
        engine.set_pressure(Pressure::None);
        for (alone, waiting) in alone.iter().zip(waiting) {
            let together = waiting.recv().unwrap().unwrap();
            assert_eq!((alone.stats.seats, together.stats.seats), (1, 6), "{model}");
            assert!(together.outputs == alone.outputs, "{model} {variant}");
        }
        let error = wrong.recv().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(matches!(left.recv().unwrap(), Err(EngineError::Cancelled)));
        let stats = engine.stats();
        let counted = stats.models[0].counted;
        assert_eq!((counted.passes, counted.seats), (6, 11));
        assert_eq!((counted.answered, counted.failed, counted.cancelled), (10, 1, 1));
    }
}

/// A trace has the whole of its request's pass, whoever waits beside it.
/// While a model was measured, a smaller budget and an unload waited for the whole profile.
#[test]
fn commands_are_served_between_the_trials_of_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { profile_folder: Some(folder.path().to_owned()), ..config() };
    let engine = Engine::start(config.clone()).unwrap();
    let (sender, profiles) = std::sync::mpsc::channel();
    let profile = |model: &str| {
        let sender = sender.clone();
        engine.request_profile(model, move |profile| sender.send(profile).unwrap());
    };
    profile("bert-tiny");
    engine.unload("gpt2-tiny").unwrap();
    engine.set_budget(config.budget_bytes - (4 << 20)).unwrap();
    infer(&engine, "gpt2-tiny", 3);
    engine.unload("bert-tiny").unwrap();
    assert!(matches!(profiles.recv().unwrap(), Err(EngineError::NotMeasured { .. })));
    // One that is loaded anew is measured anew, and one model after the other.
    profile("bert-tiny");
    profile("gpt2-tiny");
    engine.load("bert-tiny").unwrap();
    let measured = || profiles.recv().unwrap().unwrap().model.clone();
    assert_eq!([measured(), measured()], ["bert-tiny", "gpt2-tiny"]);
}

#[test]
fn traced_requests_take_passes_of_their_own() {
    let engine = Engine::start(config()).unwrap();
    let traced = || {
        let trace = Arc::new(Trace::begin());
        let request = fitting(&engine, request("bert-tiny", 5));
        (Arc::clone(&trace), submit(&engine, Request { trace: Some(trace), ..request }))
    };
    let plain = || submit(&engine, fitting(&engine, request("bert-tiny", 5)));
    engine.set_pressure(Pressure::Hold);
    let (first, second) = (plain(), plain());
    let (one, two) = (traced(), traced());
    let last = plain();
    engine.set_pressure(Pressure::None);
    let seats = |waiting: Receiver<Result<Reply, EngineError>>| {
        waiting.recv().unwrap().unwrap().stats.seats
    };
    assert_eq!([seats(first), seats(second)], [2, 2]);
    for (trace, waiting) in [one, two] {
        assert_eq!(seats(waiting), 1);
        let events = trace.events();
        let nodes = events.iter().filter(|event| matches!(event.what, What::Node(_))).count();
        let loads = events.iter().filter(|event| matches!(event.what, What::Load { .. })).count();
        assert!(nodes > 20 && loads > 2, "{nodes} nodes, {loads} loads");
    }
    assert_eq!(seats(last), 1);
}

/// What passes stays as far as the ledger grants it, and goes when memory is short.
#[test]
fn pins_come_with_a_pass_and_give_way_to_pressure() {
    let engine = Engine::start(Config { pin_bytes: u64::MAX, ..config() }).unwrap();
    let first = infer(&engine, "bert-tiny", 16);
    let model = engine.load("bert-tiny").unwrap();
    let tape_bytes = model.tape_bytes();
    drop(model);
    assert_eq!(first.stats.bytes_read, tape_bytes);
    let pinned = || engine.ledger().held_bytes(Category::Pins);
    assert_eq!(pinned(), 0, "loading anew begins anew");
    for level in [Pressure::None, Pressure::Pins, Pressure::Window, Pressure::None] {
        engine.set_pressure(level);
        let expected = if level == Pressure::None { tape_bytes } else { 0 };
        assert!(level == Pressure::None || pinned() == 0, "pins go at once");
        let reply = infer(&engine, "bert-tiny", 16);
        // What stays is held in whole pages, which count.
        let held = if expected == 0 { pinned() } else { pinned().min(expected) };
        assert_eq!(held, expected, "{level:?}");
        assert_eq!(reply.stats.bytes_read, tape_bytes);
        assert!(reply.outputs == first.outputs);
    }
    assert_eq!(infer(&engine, "bert-tiny", 16).stats.bytes_read, 0);
    // Another model's activations come before this one's pins.
    engine.unload("bert-tiny").unwrap();
    assert_eq!(pinned(), 0);
}

/// Where nothing is released before the end, the window under pressure was two units all the same:
/// loaders waited for room, and compute for loaders, for ever.
#[test]
fn what_is_released_at_the_end_fits_the_window_under_pressure() {
    let whole = Engine::start(Config { policy: Policy::PipeSwitch, ..config() }).unwrap();
    let expected = infer(&whole, "bert-tiny", 16).outputs;
    let plan = Plan { grouping: Grouping::Blocks, ..whole.load("bert-tiny").unwrap().plan() };
    let engine = Engine::start(Config { policy: Policy::Fixed(plan), ..config() }).unwrap();
    engine.set_pressure(Pressure::Window);
    assert!(infer(&engine, "bert-tiny", 16).outputs == expected);
}

/// A pass that was told to keep its blocks when memory still sufficed once brought the pins back
/// that had just been dropped.
#[test]
fn a_pass_under_way_pins_nothing_once_memory_is_short() {
    let slow = DiskKind::Throttled { bytes_per_s: 4 << 20 };
    let config = Config { disk: slow, pin_bytes: u64::MAX, ..config() };
    let engine = Engine::start(config).unwrap();
    engine.load("bert-tiny").unwrap();
    let pinned = || engine.ledger().held_bytes(Category::Pins);
    let waiting = submit(&engine, fitting(&engine, request("bert-tiny", 16)));
    while pinned() == 0 {
        std::thread::yield_now();
    }
    engine.set_pressure(Pressure::Pins);
    waiting.recv().unwrap().unwrap();
    assert_eq!(pinned(), 0);
}

/// A version that is installed while the daemon runs is served from the next request on.
#[test]
fn another_version_is_served_once_the_store_says_so() {
    let (folder, engine) = broken(|_| ());
    let before = infer(&engine, "bert-tiny", 8);
    let file = folder.path().join("other.onnx");
    let seed = ["synth", "bert-tiny", "--seed", "7", "-o", path(&file)];
    run(program("hermes-bench"), &seed);
    let store = folder.path().join("store");
    let build =
        ["build", path(&file), "--store", path(&store), "--name", "bert-tiny", "--version", "2"];
    run(program("hermes-shard"), &build);
    assert_eq!(engine.manifest("bert-tiny").unwrap().version, "2");
    let after = infer(&engine, "bert-tiny", 8);
    assert!(after.outputs != before.outputs, "other weights, other answers");
    assert_eq!(engine.stats().models[0].loaded.as_ref().unwrap().version, "2");
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
            panic_every: 0,
            corrupt_every: 30,
            delay_every: 7,
            delay: Duration::from_millis(1),
            slow_us: None,
        };
        let engine = Engine::start(Config { disk: DiskKind::Faulty(faults), ..config() }).unwrap();
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
    let slow = DiskKind::Throttled { bytes_per_s: 2 << 20 };
    let engine = Engine::start(Config { disk: slow, ..config() }).unwrap();
    engine.load("bert-tiny").unwrap();
    let request = fitting(&engine, request("bert-tiny", 4));
    let cancel = request.cancel.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    engine.submit(request, move |result| sender.send(result.map(drop)).unwrap());
    let held = || engine.ledger().held_bytes(Category::Activations);
    while held() == 0 {
        assert!(receiver.try_recv().is_err(), "it ends before it was seen to begin");
        std::thread::yield_now();
    }
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
