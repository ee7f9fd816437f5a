//! A version played without an engine gives the engine's very answers, from wherever a pass is gone
//! on with, and says what is wrong with its files.

use super::Place;
use hermes::engine::{Cancel, Config, Engine, Request};
use hermes::graph::sample_inputs;
use hermes::shard::{Player, ShardError, Watch};
use hermes::store::{ModelDir, Store};
use hermes::wire::Array;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const LENGTHS: [usize; 3] = [5, 1, 9];

fn open(place: &Place) -> Player {
    Player::open(version(place)).unwrap()
}

fn version(place: &Place) -> ModelDir {
    Store::open(&place.store()).unwrap().current("small").unwrap()
}

fn requests(dir: &ModelDir) -> Vec<Vec<Array>> {
    let arrays = |length: usize| sample_inputs(&dir.manifest.inputs, length).unwrap();
    LENGTHS.map(|length| arrays(length).into_iter().map(|(_, array)| array).collect()).to_vec()
}

/// A small model of each kind, in three variants.
fn built(model: &str) -> Place {
    let place = Place::with_synth(&[model]);
    place.build(&["--variants", "f32,q8,a4"]);
    place
}

/// Ends once it was asked so often.
struct After(AtomicUsize);

impl Watch for After {
    fn goes_on(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) > 1
    }
}

#[test]
fn a_player_gives_the_engine_s_very_answers() {
    for model in ["bert-tiny", "gpt2-tiny", "vit-tiny"] {
        let place = built(model);
        let player = open(&place);
        let requests = requests(player.dir());
        // Rows of tables are the best variant's here, and may be another's in an engine.
        let has_tables = model != "vit-tiny";
        for variant in if has_tables { &["f32"][..] } else { &["f32", "q8", "a4"] } {
            let config = Config {
                variant: Some(variant.to_string()),
                pin_bytes: 0,
                ..Config::new(place.store(), 1 << 30)
            };
            let engine = Engine::start(config).unwrap();
            let choice = player.choose(&vec![*variant; player.tensors().len()]).unwrap();
            let played = player.pass(&choice, &requests, &()).unwrap();
            for (inputs, outputs) in requests.iter().zip(played) {
                let ports = &player.dir().manifest.inputs;
                let names = ports.iter().map(|port| port.name.clone());
                let request = Request {
                    model: "small".to_string(),
                    inputs: names.zip(inputs.iter().cloned()).collect(),
                    outputs: vec![],
                    target: None,
                    cancel: Cancel::new(),
                    trace: None,
                };
                let answered = engine.infer(request).unwrap().outputs;
                let answered: Vec<Array> = answered.into_iter().map(|(_, array)| array).collect();
                assert_eq!(answered, outputs, "{model}");
            }
        }
    }
}

#[test]
fn a_pass_that_is_gone_on_with_gives_what_a_whole_one_gives() {
    let place = built("bert-tiny");
    let player = open(&place);
    let requests = requests(player.dir());
    let best = player.best().unwrap();
    let whole = player.pass(&best, &requests, &()).unwrap();
    for (request, outputs) in requests.iter().zip(&whole) {
        let alone = player.pass(&best, std::slice::from_ref(request), &()).unwrap();
        assert_eq!(alone[0], *outputs);
    }
    let mut tensors: Vec<usize> = (0..player.tensors().len()).collect();
    tensors.sort_by_key(|tensor| player.step_of(*tensor));
    let mut walk = player.begin(&requests).unwrap();
    let mut changed = 0;
    for tensor in tensors {
        player.go(&mut walk, player.step_of(tensor).unwrap(), &best, &()).unwrap();
        let choice = player.with(&best, tensor, "a4").unwrap();
        let gone_on = player.finish(walk.fork(), &choice, &()).unwrap();
        assert_eq!(gone_on, player.pass(&choice, &requests, &()).unwrap(), "tensor {tensor}");
        changed += usize::from(gone_on != whole);
        assert!(player.stored_bytes(&choice) < player.stored_bytes(&best));
    }
    assert!(changed > 5, "{changed} tensors have changed the outputs");
    assert_eq!(player.finish(walk, &best, &()).unwrap(), whole);
}

#[test]
fn an_observer_sees_each_product_s_columns() {
    let place = built("bert-tiny");
    let player = open(&place);
    let requests = requests(player.dir());
    let seen: Arc<Mutex<BTreeMap<usize, usize>>> = Arc::default();
    let all = Arc::clone(&seen);
    let depths: Vec<u64> = player.tensors().iter().map(|tensor| tensor.depth).collect();
    let observer = Arc::new(move |tensor: usize, values: &[f32], depth: usize| {
        assert_eq!(depth as u64, depths[tensor]);
        assert!(values.iter().all(|value| value.is_finite()));
        *all.lock().unwrap().entry(tensor).or_default() += values.len() / depth;
    });
    let best = player.best().unwrap();
    let observed = player.observe(&best, &requests, observer, &()).unwrap();
    assert_eq!(observed, player.pass(&best, &requests, &()).unwrap());
    let seen = seen.lock().unwrap();
    let linears = player.tensors().iter().enumerate().filter(|(_, t)| t.layout.is_panels());
    for (tensor, _) in linears {
        let columns = seen.get(&tensor).copied().unwrap_or(0);
        assert!(columns == 15 || columns == 3, "tensor {tensor}: {columns}");
    }
    let groups = player.groups(&requests);
    assert_eq!(groups.len(), 1, "small requests are played together");
}

#[test]
fn what_is_wrong_with_a_version_is_told() {
    let place = built("bert-tiny");
    let player = open(&place);
    let requests = requests(player.dir());
    let best = player.best().unwrap();
    let ended = player.pass(&best, &requests, &After(AtomicUsize::new(20)));
    assert!(matches!(ended, Err(ShardError::Interrupted)), "{ended:?}");
    let check = |result: Result<(), ShardError>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let count = player.tensors().len();
    check(player.choose(&vec!["a3"; count]).map(|_| ()), "variant a3");
    check(player.choose(&["a4"]).map(|_| ()), "a choice of 1 variants");
    let mut few = requests.clone();
    few[1].pop();
    check(player.pass(&best, &few, &()).map(|_| ()), "cannot be computed");

    // A bit of a block of the tensor that is played in a4.
    let (tensor, variant) = (3, "a4");
    let streamed = &player.tensors()[tensor];
    let layer = version(&place).open_layer(streamed.layer, variant).unwrap();
    let name = &player.dir().manifest.weights[streamed.weight].name;
    let (_, entry) = layer.index.tensor(name, streamed.layout).unwrap();
    let offset = layer.index.blocks[entry.first_block].offset;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&layer.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    let choice = player.with(&best, tensor, variant).unwrap();
    check(player.pass(&choice, &requests, &()).map(|_| ()), name);
    player.pass(&best, &requests, &()).unwrap();
}
