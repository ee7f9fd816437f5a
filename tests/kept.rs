//! Texts of models whose graphs are drawn here: keys and values are appended where they lie, windows
//! let go of what is out of sight, and tokens that are proposed change no bit.

mod common;

use common::crews::CREWS;
use common::made;
use common::programs::program;
use common::tiny::{path, run};
use hermes::engine::{
    Array, Cancel, Config, Decide, Ended, Engine, Generated, Next, Prompt, Request,
};
use hermes::store::Dtype;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A store with models that see so many tokens, or all.
fn store(windows: &[(&str, Option<u64>)]) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    for (name, window) in windows {
        let folder = tempfile::tempdir().unwrap();
        made::write_mistral(folder.path(), *window);
        let store = ["--store", path(store.path()), "--name", name];
        let arguments = [&["build", path(folder.path())][..], &store, &["--threshold", "1K"]];
        run(program("hermes-shard"), &arguments.concat());
    }
    store
}

fn config(store: &Path) -> Config {
    Config { pin_bytes: 0, ..Config::new(store, 256 << 20) }
}

/// Words of chance, each with its number.
fn words(count: usize) -> Vec<u32> {
    (0..count as u64)
        .map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % 40)
        .collect()
}

/// What was decided on: each row of logits.
type Seen = Arc<Mutex<Vec<Vec<f32>>>>;

/// Decides on the words that it is given, whatever the model makes of them.
struct Script {
    words: VecDeque<u32>,
    seen: Seen,
}

impl Decide for Script {
    fn next(&mut self, logits: &[f32]) -> Next {
        self.seen.lock().unwrap().push(logits.to_vec());
        self.words.pop_front().map_or(Next::End, Next::Token)
    }
}

/// Has a text go on with these words; what was decided on.
fn write(engine: &Engine, model: &str, text: &[u32], words: &[u32]) -> (Generated, Vec<Vec<f32>>) {
    let seen = Seen::default();
    let script = Script { words: words.iter().copied().collect(), seen: Arc::clone(&seen) };
    let prompt = Prompt {
        model: model.to_string(),
        version: None,
        ids: text.to_vec(),
        max_tokens: words.len(),
        is_usual: false,
        context: None,
        target: None,
        decide: Box::new(script),
        own_bytes: 0,
        cancel: Cancel::new(),
        deadline: None,
    };
    let (sender, receiver) = channel();
    engine.generate(prompt, move |generated| drop(sender.send(generated)));
    let generated = receiver.recv().unwrap().unwrap();
    assert!(matches!(generated.ended, Ended::Length), "{:?}", generated.ended);
    assert_eq!(generated.ids, words);
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (generated, seen)
}

/// The logits behind a text that a pass reads as a whole, nothing being past.
fn read_whole(engine: &Engine, model: &str, text: &[u32]) -> Vec<f32> {
    let ids: Vec<i64> = text.iter().map(|id| i64::from(*id)).collect();
    let ids = Array::from_i64(vec![1, text.len()], &ids).unwrap();
    let mut inputs = vec![("input_ids".to_string(), ids)];
    for layer in 0..2 {
        for part in ["key", "value"] {
            let empty = Array::new(Dtype::Fp32, vec![1, 2, 0, 8], vec![]).unwrap();
            inputs.push((format!("past_key_values.{layer}.{part}"), empty));
        }
    }
    let (model, outputs) = (model.to_string(), vec!["logits".to_string()]);
    let cancel = Cancel::new();
    let reply = engine.infer(Request { model, inputs, outputs, cancel, target: None, trace: None });
    let mut logits = reply.unwrap().outputs[0].1.to_f32().unwrap();
    logits.split_off(logits.len() - 40)
}

fn nearly_equal(one: &[f32], other: &[f32]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-4)
}

/// Longer than what is kept of them, some times over.
#[test]
fn texts_longer_than_windows_go_on_as_where_all_is_read_again() {
    let store = store(&[("near", Some(5)), ("far", None)]);
    for model in ["near", "far"] {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for crew in CREWS {
            let engine = Engine::start(crew.of(config(store.path()))).unwrap();
            let text = words(900);
            let (_, seen) = write(&engine, model, &text[..860], &text[860..]);
            for (index, found) in seen.iter().enumerate().step_by(13) {
                let expected = read_whole(&engine, model, &text[..860 + index]);
                assert!(nearly_equal(found, &expected), "{model}, {index}, {crew:?}");
            }
            let is_equal = first.get_or_insert_with(|| seen.clone()) == &seen;
            assert!(is_equal, "{model}: other bits by {crew:?}");
        }
    }
}

/// A session's keys and values take what they are, and of windows what is in sight.
#[test]
fn a_session_holds_what_it_keeps() {
    let store = store(&[("near", Some(5)), ("far", None)]);
    let engine = Engine::start(config(store.path())).unwrap();
    let held = |model, tokens| {
        let text = words(tokens);
        write(&engine, model, &text[..tokens - 1], &text[tokens - 1..]).0.stats.held_bytes
    };
    let token_bytes = 2 * 2 * 2 * 8 * 4;
    let grown = held("far", 3000) - held("far", 1000);
    assert!(grown >= 2000 * token_bytes && grown <= 2000 * (token_bytes * 9 / 8 + 96), "{grown}");
    let grown = held("near", 3000) - held("near", 1000);
    // The ids, and what whoever decides knows of them.
    assert!(grown < 2000 * 96, "{grown}");
}

/// A pass looks at tokens that are proposed: what is decided on is what it would have been.
#[test]
fn what_is_proposed_changes_no_bit() {
    let store = store(&[("near", Some(5)), ("far", None)]);
    for model in ["near", "far"] {
        for crew in CREWS {
            let engine = Engine::start(crew.of(config(store.path()))).unwrap();
            // It says again what it said, with another word now and then.
            let mut text = words(23).repeat(5);
            for place in [34, 41, 60, 77, 78, 96] {
                text[place] = (text[place] + 1) % 40;
            }
            let (generated, seen) = write(&engine, model, &text[..30], &text[30..]);
            let stats = generated.stats;
            assert!(stats.accepted_tokens > 0, "{stats:?}");
            assert!(stats.accepted_tokens < stats.proposed_tokens, "{stats:?}");
            let read = stats.passes as usize + stats.accepted_tokens;
            assert_eq!(read, seen.len(), "{stats:?}");
            let counted = engine.stats().models[0].counted;
            assert_eq!(counted.proposed_tokens, stats.proposed_tokens as u64);
            assert_eq!(counted.accepted_tokens, stats.accepted_tokens as u64);
            // All that it read is kept but the last token: what begins as it does reads one.
            for (index, found) in seen.iter().enumerate().skip(1) {
                let place = 30 + index;
                let (alone, other) = write(&engine, model, &text[..place], &text[place..=place]);
                assert_eq!(alone.stats.cached_tokens, place - 1);
                assert!(other[0] == *found, "{model}, {place}, {crew:?}: other bits");
            }
        }
    }
}

/// Where a window has let go of what a beginning sees, that is read again.
#[test]
fn beginnings_that_windows_let_go_of_are_read_again() {
    let store = store(&[("near", Some(5))]);
    let engine = Engine::start(config(store.path())).unwrap();
    let text = words(900);
    write(&engine, "near", &text[..860], &text[860..]);
    let cached = |length: usize| {
        let (generated, seen) = write(&engine, "near", &text[..length], &[1]);
        assert!(nearly_equal(&seen[0], &read_whole(&engine, "near", &text[..length])), "{length}");
        generated.stats.cached_tokens
    };
    assert_eq!(cached(900), 899);
    assert_eq!(cached(700), 699);
    assert_eq!(cached(300), 0);
}
