//! How much each tensor of a version matters, as a sweep over it measures.

use super::{Place, check_refusal, files, stderr, stdout};
use hermes::graph::sample_inputs;
use hermes::shard::importance::{self, Accuracy, Measured};
use hermes::shard::{Inputs, Player, ShardError, Watch};
use hermes::store::{self, Measure, ModelDir, Precision, Store, TensorPrecision};
use hermes::wire::Array;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const UNFINISHED: &str = "importance.part";

fn version(place: &Place) -> ModelDir {
    Store::open(&place.store()).unwrap().current("small").unwrap()
}

/// A small model in two variants, which says what they lose: of the first tensor nothing.
fn built(model: &str) -> Place {
    let place = Place::with_synth(&[model]);
    place.build(&["--variants", "f32,a4"]);
    let player = Player::open(version(&place)).unwrap();
    let weights = &player.dir().manifest.weights;
    let tensors = player.tensors().iter().enumerate().map(|(index, tensor)| TensorPrecision {
        weight: weights[tensor.weight].name.clone(),
        layout: tensor.layout,
        layer: tensor.layer,
        node: tensor.node.clone(),
        elements: tensor.rows * tensor.depth,
        errors: BTreeMap::from([("f32".to_string(), 0.0), ("a4".to_string(), index as f64)]),
        fed: vec![],
        divergence: None,
    });
    let tensors = tensors.collect();
    let precision = Precision { format: 1, calibration: None, probe: None, tensors };
    store::amend(&place.store(), player.dir(), &precision).unwrap();
    place
}

fn inputs(dir: &ModelDir, lengths: &[usize]) -> Inputs {
    let arrays = |length: &usize| -> Vec<Array> {
        let arrays = sample_inputs(&dir.manifest.inputs, *length).unwrap();
        arrays.into_iter().map(|(_, array)| array).collect()
    };
    let requests = lengths.iter().map(arrays).collect();
    Inputs { source: "a test".to_string(), is_made_up: true, requests }
}

fn divergences(measured: &Measured) -> Vec<f64> {
    measured.precision.tensors.iter().map(|tensor| tensor.divergence.unwrap()).collect()
}

/// The same but for what a text leaves of a figure's last bits.
fn assert_near(found: &Precision, expected: &Precision) {
    let [a, b] = [found, expected].map(|precision| precision.probe.as_ref().unwrap());
    assert_eq!((&a.variant, a.measure, a.inputs), (&b.variant, b.measure, b.inputs));
    assert!(a.together.keys().eq(b.together.keys()));
    let pairs = a.together.values().zip(b.together.values());
    assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= 1e-12 * b), "{pairs:?}");
    for (found, expected) in found.tensors.iter().zip(&expected.tensors) {
        let [a, b] = [found, expected].map(|tensor| tensor.divergence.unwrap());
        assert!((a - b).abs() <= 1e-12 * b, "{a} and {b} of {}", found.weight);
    }
}

/// Counts the steps of passes, and ends before one of them.
struct Steps {
    taken: AtomicUsize,
    last: usize,
}

impl Steps {
    fn until(last: usize) -> Steps {
        Steps { taken: AtomicUsize::new(0), last }
    }
}

impl Watch for Steps {
    fn goes_on(&self) -> bool {
        self.taken.fetch_add(1, Ordering::Relaxed) < self.last
    }
}

/// One less the cosine of all outputs together, the plain way.
fn off(best: &[Array], other: &[Array]) -> f64 {
    let values = |arrays: &[Array]| -> Vec<f64> {
        arrays.iter().flat_map(|array| array.to_f32().unwrap()).map(f64::from).collect()
    };
    let (a, b) = (values(best), values(other));
    let product = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(x, y)| x * y).sum() };
    1.0 - product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

#[test]
fn a_sweep_measures_each_tensor_alone() {
    let place = built("bert-tiny");
    let player = Player::open(version(&place)).unwrap();
    let inputs = inputs(player.dir(), &[5, 1, 9]);
    let measured = importance::measure(&player, &inputs, &()).unwrap();
    let best = player.best().unwrap();
    let answers = player.pass(&best, &inputs.requests, &()).unwrap();
    let found = divergences(&measured);
    for (tensor, found) in found.iter().enumerate() {
        let choice = player.with(&best, tensor, "a4").unwrap();
        let others = player.pass(&choice, &inputs.requests, &()).unwrap();
        let offs = answers.iter().zip(&others).map(|(best, other)| off(best, other));
        let expected = match tensor {
            // Nothing is lost of it, as the version says.
            0 => 0.0,
            _ => offs.sum::<f64>() / 3.0,
        };
        assert!((found - expected).abs() < 1e-12, "tensor {tensor}: {found}, not {expected}");
    }
    assert!(found.iter().filter(|divergence| **divergence > 0.0).count() > 5, "{found:?}");
    let probe = measured.precision.probe.as_ref().unwrap();
    assert_eq!((&*probe.variant, probe.measure, probe.inputs), ("a4", Measure::Cosine, 3));
    assert!(measured.notes[0].contains("3 of a test: 1 - cosine"), "{:?}", measured.notes);

    // What answers are off all together is near the sum of that.
    let all = player.choose(&vec!["a4"; found.len()]).unwrap();
    let others = player.pass(&all, &inputs.requests, &()).unwrap();
    let together: f64 = answers.iter().zip(&others).map(|(best, other)| off(best, other)).sum();
    let (together, sum) = (together / 3.0, found.iter().sum::<f64>());
    assert!(together < 3.0 * sum && sum < 3.0 * together, "{together} and {sum}");

    store::amend(&place.store(), player.dir(), &measured.precision).unwrap();
    let kept = version(&place).precision().unwrap().unwrap();
    assert!(kept.is_measured());
    assert_near(&kept, &measured.precision);
    place.check_sound("1");
}

#[test]
fn language_models_are_measured_by_the_next_token() {
    let place = built("gpt2-tiny");
    let player = Player::open(version(&place)).unwrap();
    let inputs = inputs(player.dir(), &[6, 3]);
    let measured = importance::measure(&player, &inputs, &()).unwrap();
    let probe = measured.precision.probe.as_ref().unwrap();
    assert_eq!(probe.measure, Measure::Kl, "{:?}", measured.notes);
    assert!(divergences(&measured).iter().any(|divergence| *divergence > 0.0));
}

/// With one tensor alone in the probe's variant, what is measured of a choice is what the sweep found
/// of that tensor, and with all of them in one what is expected.
#[test]
fn a_choice_is_as_accurate_as_its_tensors() {
    let place = built("bert-tiny");
    let dir = version(&place);
    let inputs = inputs(&dir, &[5, 9, 3]);
    let player = Player::open(dir.clone()).unwrap();
    let Measured { precision, .. } = importance::measure(&player, &inputs, &()).unwrap();
    let dir = store::amend(&place.store(), &dir, &precision).unwrap();
    let accuracy = Accuracy::new(Player::open(dir).unwrap(), inputs, &()).unwrap();
    let mut variants = vec!["f32".to_string(); precision.tensors.len()];
    assert_eq!(accuracy.measure(&variants, &()).unwrap(), 1.0);
    assert_eq!(accuracy.expect(&variants).unwrap().0, 1.0);
    let together = precision.probe.as_ref().unwrap().together["a4"];
    for index in [1, precision.tensors.len() - 1] {
        variants[index] = "a4".to_string();
        let lost = precision.tensors[index].divergence.unwrap();
        let measured = accuracy.measure(&variants, &()).unwrap();
        assert!((1.0 - measured - lost).abs() < 1e-9, "{measured}, lost {lost}");
        let (expected, bits) = accuracy.expect(&variants).unwrap();
        let off = (1.0 - expected - lost * together).abs();
        assert!(off < 1e-12 && bits < 40.0, "{expected}, {bits} bits");
        variants[index] = "f32".to_string();
    }
    let all = vec!["a4".to_string(); precision.tensors.len()];
    let (expected, _) = accuracy.expect(&all).unwrap();
    let measured = accuracy.measure(&all, &()).unwrap();
    assert!(measured < 1.0 && (expected - measured).abs() < 1e-9, "{expected}, {measured}");
    variants.pop();
    assert!(accuracy.measure(&variants, &()).is_err());
}

/// What encoders had learnt from lost half as much as what they had not, and that was promised for
/// all.
#[test]
fn importance_is_measured_with_what_encoders_did_not_see() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,a4,a2"]);
    let player = Player::open(version(&place)).unwrap();
    let calibration = player.dir().precision().unwrap().unwrap().calibration.unwrap();
    assert_eq!((calibration.inputs, calibration.learnt.len()), (64, 48));
    let inputs = player.inputs(None).unwrap();
    let measured = importance::measure(&player, &inputs, &()).unwrap();
    let probe = measured.precision.probe.as_ref().unwrap();
    assert_eq!(probe.inputs, 16, "{:?}", measured.notes);
    assert!(measured.notes[1].contains("48 that the encoders learnt from"), "{:?}", measured.notes);
    // Its own words: what is expected of all in a variant is what comes of it with these inputs.
    let unseen = Inputs { requests: inputs.requests[48..].to_vec(), ..inputs.clone() };
    let again = importance::measure(&player, &unseen, &()).unwrap();
    assert_near(&again.precision, &measured.precision);
    let dir = store::amend(&place.store(), player.dir(), &measured.precision).unwrap();
    let player = Player::open(dir.clone()).unwrap();
    let accuracy = Accuracy::new(Player::open(dir).unwrap(), unseen, &()).unwrap();
    for variant in ["a4", "a2"] {
        let all = vec![variant.to_string(); player.tensors().len()];
        let (expected, _) = accuracy.expect(&all).unwrap();
        let found = accuracy.measure(&all, &()).unwrap();
        assert!((expected - found).abs() < 1e-9, "{variant}: {expected} and {found}");
    }
    // There may be no others: better than nothing, and said.
    let seen = Inputs { requests: inputs.requests[..4].to_vec(), ..inputs };
    let measured = importance::measure(&player, &seen, &()).unwrap();
    assert_eq!(measured.precision.probe.unwrap().inputs, 4);
    assert!(measured.notes[1].contains("learnt from all of them"), "{:?}", measured.notes);
}

#[test]
fn an_interrupted_sweep_is_gone_on_with() {
    let place = built("bert-tiny");
    let player = Player::open(version(&place)).unwrap();
    let inputs = inputs(player.dir(), &[4, 7]);
    let whole = Steps::until(usize::MAX);
    let expected = importance::measure(&player, &inputs, &whole).unwrap();
    let all = whole.taken.into_inner();

    let before = files(&place.store());
    let ended = importance::measure(&player, &inputs, &Steps::until(all / 2));
    assert!(matches!(ended, Err(ShardError::Interrupted)), "{ended:?}");
    let left = player.dir().path.join(UNFINISHED);
    let after = files(&place.store());
    assert!(after.iter().all(|(path, text)| before.get(path) == Some(text) || *path == left));
    let rest = Steps::until(usize::MAX);
    let measured = importance::measure(&player, &inputs, &rest).unwrap();
    assert_near(&measured.precision, &expected.precision);
    assert!(measured.notes[1].contains("there already"), "{:?}", measured.notes);
    assert!(rest.taken.into_inner() < all);

    // Of other inputs nothing is there, nor of what is damaged.
    let others = Inputs { requests: inputs.requests[..1].to_vec(), ..inputs.clone() };
    assert_eq!(importance::measure(&player, &others, &()).unwrap().notes.len(), 1);
    std::fs::write(&left, "{\"key\"").unwrap();
    let anew = importance::measure(&player, &inputs, &()).unwrap();
    assert_near(&anew.precision, &expected.precision);
    store::amend(&place.store(), player.dir(), &anew.precision).unwrap();
    assert!(!left.exists(), "what is measured is not measured again");
}

#[test]
fn the_paper_s_way_raises_one_tensor_at_a_time() {
    let place = built("gpt2-tiny");
    let player = Player::open(version(&place)).unwrap();
    let inputs = inputs(player.dir(), &[8]);
    let found = importance::by_accuracy(&player, &inputs, &()).unwrap();
    assert_eq!(found.len(), player.tensors().len());
    // Shares of eight tokens.
    assert!(found.iter().all(|share| (share * 8.0).fract() == 0.0 && *share <= 1.0), "{found:?}");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let place = built("bert-tiny");
    let player = Player::open(version(&place)).unwrap();
    let fit = inputs(player.dir(), &[4]);
    let check = |player: &Player, inputs: &Inputs, words: &[&str]| {
        let error = importance::measure(player, inputs, &()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in {error}");
    };
    check(&player, &Inputs { requests: vec![], ..fit.clone() }, &["a test", "no input"]);
    let mut few = fit.clone();
    few.requests[0].pop();
    check(&player, &few, &["input 0", "arrays"]);

    // Of other files than the version has.
    let precision = player.dir().precision().unwrap().unwrap();
    let mut other = precision.clone();
    other.tensors.pop();
    store::amend(&place.store(), player.dir(), &other).unwrap();
    let player = Player::open(version(&place)).unwrap();
    check(&player, &fit, &["other layer files", "build it again"]);
    store::amend(&place.store(), player.dir(), &precision).unwrap();

    // A block of the tensor that is lowered.
    let player = Player::open(version(&place)).unwrap();
    let streamed = &player.tensors()[4];
    let name = &player.dir().manifest.weights[streamed.weight].name;
    let layer = player.dir().open_layer(streamed.layer, "a4").unwrap();
    let (_, entry) = layer.index.tensor(name, streamed.layout).unwrap();
    let mut bytes = std::fs::read(&layer.path).unwrap();
    bytes[layer.index.blocks[entry.first_block].offset as usize] ^= 1;
    std::fs::write(&layer.path, bytes).unwrap();
    check(&player, &fit, &["a4.layer", name, "checksum"]);
    std::fs::remove_file(&layer.path).unwrap();
    check(&Player::open(version(&place)).unwrap(), &fit, &["a4.layer"]);

    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32"]);
    let player = Player::open(version(&place)).unwrap();
    check(&player, &fit, &["does not say what its weights lose"]);
    let none = Precision { tensors: vec![], ..precision };
    store::amend(&place.store(), player.dir(), &none).unwrap();
    check(&Player::open(version(&place)).unwrap(), &fit, &["other layer files"]);
}

#[test]
fn the_command_measures_prints_and_keeps() {
    let place = built("bert-tiny");
    let show = place.tool("importance", &["--show"]);
    check_refusal(&show, &["nothing was measured of small yet"]);
    let measured = place.tool("importance", &["--json"]);
    assert!(measured.status.success(), "{}", stderr(&measured));
    let measured: Value = serde_json::from_slice(&measured.stdout).unwrap();
    let tensors = measured["tensors"].as_array().unwrap();
    assert!(tensors.iter().any(|tensor| tensor["divergence"].as_f64().unwrap() > 0.0));
    assert_eq!(measured["probe"]["source"], "64 rows of random token ids");
    let kept = version(&place).precision().unwrap().unwrap();
    assert!(kept.is_measured());
    let shown = place.tool("importance", &["--show", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["tensors"].as_array().unwrap().len(), tensors.len());
    let table = stdout(&place.tool("importance", &["--show"]));
    let words = ["one less the cosine", "in a4", "divergence  per million  kind", "share"];
    assert!(words.iter().all(|word| table.contains(word)), "{table}");

    let ranked = place.tool("importance", &["--by-accuracy", "--json"]);
    let ranked: Value = serde_json::from_slice(&ranked.stdout).unwrap();
    assert_eq!((&ranked["raised"], &ranked["others"]), (&"f32".into(), &"a4".into()));
    assert_eq!(ranked["tensors"].as_array().unwrap().len(), tensors.len());
    let table = stdout(&place.tool("importance", &["--by-accuracy"]));
    assert!(table.contains("agreement  tensor"), "{table}");
    assert_eq!(version(&place).precision().unwrap().unwrap().probe, kept.probe, "it is not kept");

    let texts = place.path("texts.txt");
    std::fs::write(&texts, "one\ntwo\n").unwrap();
    let refused = place.tool("importance", &["--calibrate", texts.to_str().unwrap()]);
    check_refusal(&refused, &["no tokenizer"]);
}
