//! Models that answer within a time and as accurately as is asked: by a choice of precisions for
//! their tensors, which each answer tells and which gives the same bits however it is played.

mod common;

use common::precision::tell_precision;
use common::tiny::{self, fitting, path, request, submit};
use hermes::engine::{
    Config, Engine, ErrorKind, Inquiry, Policy, Pressure, Reply, Request, Targets,
};
use hermes::plan::{Grouping, Plan, Release, Target};
use hermes::store::layer_file::Layout;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

const MODEL: &str = "bert-tiny";

/// One of the store with a tensor that lies flat, in q8 where others have a4.
const FLAT: &str = "vit-tiny";

/// A model of the store without a word on what its precisions lose.
const PLAIN: &str = "gpt2-tiny";

/// A store whose `bert-tiny` says what its precisions lose, and what was measured of it here.
fn store() -> &'static Path {
    static STORE: OnceLock<()> = OnceLock::new();
    let store = tiny::store();
    STORE.get_or_init(|| {
        let engine = Engine::start(config()).unwrap();
        for model in [MODEL, FLAT] {
            tell_precision(&store.join("store").join(model).join("1"), true);
            let profile = engine.profile(model).unwrap();
            let codecs: Vec<&str> = profile.rates.iter().map(|rate| rate.codec.as_str()).collect();
            assert_eq!(codecs, ["a4", "f32", "q8"], "every codec's rate is measured");
            assert!(profile.rates.iter().all(|rate| rate.ns_per_weight > 0.0), "{profile:?}");
        }
    });
    store
}

fn config() -> Config {
    Config { profiles: false, ..tiny::config() }
}

/// An engine over the store, which recalls what was measured.
fn engine() -> Engine {
    let config = Config { store: store().join("store"), ..config() };
    Engine::start(config).unwrap()
}

fn accuracy(accuracy: f64) -> Target {
    Target { accuracy: Some(accuracy), ..Target::default() }
}

fn within(latency_us: f64) -> Target {
    Target { latency_us: Some(latency_us), ..Target::default() }
}

fn asking(engine: &Engine, tokens: usize, target: Option<Target>) -> Request {
    Request { target, ..fitting(engine, request(MODEL, tokens)) }
}

/// The reply to a request with this target.
fn infer(engine: &Engine, tokens: usize, target: Option<Target>) -> Reply {
    engine.infer(asking(engine, tokens, target)).unwrap()
}

/// What an engine answers that has all of these variants in memory.
fn resident(variants: &[String], tokens: usize) -> Reply {
    let plan = Engine::start(config()).unwrap().load(MODEL).unwrap().plan();
    let plan = Plan {
        variants: variants.to_vec(),
        grouping: Grouping::Whole,
        release: Release::AtEnd,
        window_bytes: 256 << 20,
        ..plan
    };
    let engine = Engine::start(Config { policy: Policy::Fixed(plan), ..config() }).unwrap();
    tiny::infer(&engine, MODEL, tokens)
}

#[test]
fn a_target_is_answered_by_its_choice_to_the_bit() {
    let engine = engine();
    let plain = infer(&engine, 9, None);
    for target in [accuracy(1.0), accuracy(0.99), accuracy(0.9), within(1e9)] {
        let inquiry = Inquiry { target, ..Inquiry::default() };
        let planned = engine.plan(MODEL, inquiry).unwrap();
        let choice = planned.choice.unwrap();
        assert!(choice.accuracy >= target.accuracy.unwrap_or(0.0), "{target:?}: {choice:?}");
        let found = infer(&engine, 9, Some(target));
        assert_eq!(found.choice.to_string(), choice.digest, "{target:?}");
        let variants: Vec<String> = choice.tensors.into_iter().map(|t| t.variant).collect();
        let expected = resident(&variants, 9);
        assert_eq!(found.choice, expected.choice, "{target:?}");
        assert!(found.outputs == expected.outputs, "{target:?}");
        // Whoever asks for nothing is answered as before.
        let again = infer(&engine, 9, None);
        assert!(again.choice == plain.choice && again.outputs == plain.outputs, "{target:?}");
    }
    let best = infer(&engine, 9, Some(accuracy(1.0)));
    assert!(best.outputs == plain.outputs && best.choice == plain.choice);
}

#[test]
fn what_cannot_be_met_is_an_error_of_that_request() {
    let engine = engine();
    let check = |model: &str, target: Target, kind: ErrorKind, words: &str| {
        let request = Request { target: Some(target), ..fitting(&engine, request(model, 5)) };
        let error = engine.infer(request).unwrap_err();
        assert!(error.to_string().contains(words), "{target:?}: {error}");
        assert_eq!(error.kind(), kind, "{error}");
        let inquiry = Inquiry { target, ..Inquiry::default() };
        let error = engine.plan(model, inquiry).err().unwrap();
        assert!(error.to_string().contains(words), "{target:?}: {error}");
    };
    check(MODEL, within(1e-3), ErrorKind::Invalid, "ms");
    check(MODEL, within(0.0), ErrorKind::Invalid, "latency");
    check(MODEL, accuracy(2.0), ErrorKind::Invalid, "accuracy");
    check(MODEL, accuracy(f64::NAN), ErrorKind::Invalid, "accuracy");
    check(PLAIN, accuracy(0.9), ErrorKind::Conflict, "not measured on this board");
    // A target that asks for nothing is none.
    let nothing = infer(&engine, 5, Some(Target::default()));
    assert_eq!(nothing.choice, infer(&engine, 5, None).choice);
    infer(&engine, 5, None);
}

/// Of a tensor that is stored alike in two variants, one is on the ladder.
#[test]
fn what_is_stored_alike_is_chosen_once() {
    let engine = engine();
    let dir = engine.load(FLAT).unwrap().dir.clone();
    let layers = 0..dir.manifest.layers.len();
    let tensors = layers.flat_map(|layer| dir.open_layer(layer, "a4").unwrap().index.tensors);
    let flat: Vec<String> =
        tensors.filter(|t| t.layout == Layout::Flat).map(|tensor| tensor.name).collect();
    assert!(!flat.is_empty(), "it has a convolution");
    let inquiry = Inquiry { target: accuracy(0.01), ..Inquiry::default() };
    for is_loaded in [true, false] {
        if !is_loaded {
            engine.unload(FLAT).unwrap();
        }
        let choice = engine.plan(FLAT, inquiry.clone()).unwrap().choice.unwrap();
        for tensor in choice.tensors.iter().filter(|tensor| flat.contains(&tensor.name)) {
            assert!(tensor.variant != "a4", "{tensor:?}, loaded: {is_loaded}");
        }
    }
}

/// Requests of one target share passes, and nobody is answered by the choice of another.
#[test]
fn targets_take_turns() {
    let engine = engine();
    let targets = [None, Some(accuracy(0.9)), Some(accuracy(1.0)), Some(within(1e9))];
    let expected = targets.map(|target| infer(&engine, 7, target));
    engine.set_pressure(Pressure::Hold);
    let waiting: Vec<_> = (0..12)
        .map(|number| submit(&engine, asking(&engine, 7, targets[number % targets.len()])))
        .collect();
    engine.set_pressure(Pressure::None);
    for (number, waiting) in waiting.into_iter().enumerate() {
        let (found, expected) =
            (waiting.recv().unwrap().unwrap(), &expected[number % targets.len()]);
        assert_eq!(found.choice, expected.choice, "request {number}");
        assert!(found.outputs == expected.outputs, "request {number}");
        assert_eq!(found.stats.seats, 3, "those of a target share a pass");
    }
}

/// Requests of new targets that come all at once, among others: each waits for its own plan, and has
/// its own choice.
#[test]
fn new_targets_keep_nobody_waiting() {
    let targets = [0.5, 0.9, 0.95, 0.99].map(|least| Some(accuracy(least)));
    let targets = [&targets[..], &[None, Some(accuracy(2.0))]].concat();
    let expected = {
        let engine = engine();
        targets.iter().map(|target| engine.infer(asking(&engine, 6, *target))).collect::<Vec<_>>()
    };
    let engine = engine();
    engine.load(MODEL).unwrap();
    engine.set_pressure(Pressure::Hold);
    let waiting: Vec<_> = (0..18)
        .map(|number| submit(&engine, asking(&engine, 6, targets[number % targets.len()])))
        .collect();
    engine.set_pressure(Pressure::None);
    for (number, waiting) in waiting.into_iter().enumerate() {
        match (waiting.recv().unwrap(), &expected[number % targets.len()]) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.choice, expected.choice, "request {number}");
                assert!(found.outputs == expected.outputs, "request {number}");
            }
            (Err(found), Err(expected)) => assert_eq!(found.to_string(), expected.to_string()),
            (found, expected) => panic!("request {number}: {found:?}, not {expected:?}"),
        }
    }
}

#[test]
fn targets_are_followed_as_they_are_set() {
    let engine = engine();
    let plain = infer(&engine, 5, None);
    let by_model = BTreeMap::from([(MODEL.to_string(), accuracy(0.9))]);
    engine.set_targets(Targets { by_model, ..Targets::default() });
    let found = infer(&engine, 5, None);
    let expected = infer(&engine, 5, Some(accuracy(0.9)));
    assert!(found.choice == expected.choice && found.outputs == expected.outputs);
    let inquiry = Inquiry::default();
    let choice = engine.plan(MODEL, inquiry).unwrap().choice.unwrap();
    assert_eq!(choice.digest, found.choice.to_string(), "a plan is of the target that is set");
    // What comes nearest to a time that cannot be kept to is the fastest.
    engine.set_targets(Targets::default());
    let fastest = infer(&engine, 5, Some(accuracy(1e-6)));
    engine.set_targets(Targets { all: within(1e-3), ..Targets::default() });
    assert_eq!(infer(&engine, 5, None).choice, fastest.choice);
    let both = Target { accuracy: Some(1.0), ..within(1e-3) };
    engine.set_targets(Targets { all: both, ..Targets::default() });
    assert_eq!(infer(&engine, 5, None).choice, plain.choice, "as accurate as is asked");
    // What cannot be asked for is said, and the model answers as without it.
    engine.set_targets(Targets { all: accuracy(2.0), ..Targets::default() });
    assert_eq!(infer(&engine, 5, None).choice, plain.choice);
    engine.set_targets(Targets::default());
    let found = infer(&engine, 5, None);
    assert!(found.choice == plain.choice && found.outputs == plain.outputs);
}

/// Blocks of tensors that both choices have in one variant are not read again.
#[test]
fn pins_of_the_same_precision_stay() {
    let config = Config { pin_bytes: u64::MAX, store: store().join("store"), ..config() };
    let engine = Engine::start(config).unwrap();
    infer(&engine, 5, None);
    assert_eq!(infer(&engine, 5, None).stats.bytes_read, 0, "all is pinned");
    let pinned = engine.pinned_bytes();
    // All in the best variant, in other words.
    let same = infer(&engine, 5, Some(accuracy(1.0)));
    assert_eq!((same.stats.bytes_read, engine.pinned_bytes()), (0, pinned));
    assert_eq!(infer(&engine, 5, None).stats.bytes_read, 0);
    engine.unload(MODEL).unwrap();
    assert_eq!(engine.pinned_bytes(), 0);
}

/// A copy of the store to be spoilt.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::run("cp", &["-r", path(&store().join("store")), path(folder.path())]);
    folder
}

#[test]
fn a_variant_that_is_missing_is_not_chosen() {
    let folder = copy();
    let version = folder.path().join("store").join(MODEL).join("1");
    let layers = fs::read_dir(version.join("layers")).unwrap();
    let files: Vec<_> = layers.map(|entry| entry.unwrap().path()).collect();
    let of = |variant: &str| -> Vec<_> {
        let end = format!(".{variant}.layer");
        files.iter().filter(|file| path(file).ends_with(&end)).collect()
    };
    let lost = of("a4");
    fs::remove_file(lost[0]).unwrap();
    fs::write(lost[1], b"HERMES").unwrap();
    let engine = Engine::start(Config { store: folder.path().join("store"), ..config() }).unwrap();
    let choice = |engine: &Engine| {
        let inquiry = Inquiry { target: accuracy(0.01), ..Inquiry::default() };
        engine.plan(MODEL, inquiry).unwrap().choice.unwrap()
    };
    let found = infer(&engine, 5, Some(accuracy(0.01)));
    assert_eq!(found.choice.to_string(), choice(&engine).digest);
    // One that goes once it was chosen, too.
    of("q8").into_iter().for_each(|file| fs::remove_file(file).unwrap());
    of("a4").into_iter().for_each(|file| drop(fs::remove_file(file)));
    engine.unload(MODEL).unwrap();
    let found = infer(&engine, 5, Some(accuracy(0.01)));
    assert!(choice(&engine).tensors.iter().all(|tensor| tensor.variant == "f32"));
    assert_eq!(found.choice.to_string(), choice(&engine).digest);
}

#[test]
fn without_importance_or_a_profile_a_target_is_refused() {
    let folder = copy();
    let models = folder.path().join("store");
    tell_precision(&models.join(MODEL).join("1"), false);
    let check = |engine: &Engine, kind: ErrorKind, words: &str| {
        let error = engine.infer(asking(engine, 5, Some(accuracy(0.9)))).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    };
    let engine = Engine::start(Config { store: models.clone(), ..config() }).unwrap();
    check(&engine, ErrorKind::Conflict, "hermes-shard importance bert-tiny");
    let nowhere = tempfile::tempdir().unwrap();
    let profile_folder = Some(nowhere.path().to_owned());
    let engine = Engine::start(Config { store: models, profile_folder, ..config() }).unwrap();
    check(&engine, ErrorKind::Conflict, "hermesctl profile bert-tiny");
    // A target that is set is followed once the model is measured.
    engine.set_targets(Targets { all: accuracy(0.9), ..Targets::default() });
    let plain = infer(&engine, 5, None);
    assert_eq!(plain.choice, resident(&[], 5).choice);
    let fixed = Policy::Fixed(engine.load(MODEL).unwrap().plan());
    let engine = Engine::start(Config { policy: fixed, ..config() }).unwrap();
    check(&engine, ErrorKind::Invalid, "policies");
}
