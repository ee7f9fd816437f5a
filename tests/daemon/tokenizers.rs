//! Tokenizers are in the budget: what they take is granted before they are built, they give way to
//! each other, and nothing of them stays.

use crate::common::daemon::Daemon;
use crate::common::programs::program;
use crate::common::small_store;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use xxhash_rust::xxh3::xxh3_64;

/// Models of two layers, by the name and the tokenizer of each.
fn store(folder: &Path, tokenizers: &[(&str, &Value)]) -> PathBuf {
    let (model, store) = (folder.join("tiny.onnx"), folder.join("store"));
    let mut synth = Command::new(program("hermes-bench"));
    assert!(synth.args(["synth", "bert-tiny", "-o"]).arg(&model).status().unwrap().success());
    for (name, tokenizer) in tokenizers {
        let file = folder.join("tokenizer.json");
        std::fs::write(&file, tokenizer.to_string()).unwrap();
        let mut shard = Command::new(program("hermes-shard"));
        shard.arg("build").arg(&model).arg("--store").arg(&store).args(["--name", name]);
        // Whoever builds a model again means it.
        shard.args(["--force", "--embedding", "last_hidden_state:mean", "--tokenizer"]).arg(&file);
        let sharded = shard.output().unwrap();
        assert!(sharded.status.success(), "{}", String::from_utf8_lossy(&sharded.stderr));
    }
    store
}

/// Words that have little in common.
fn words(count: u64) -> Vec<String> {
    let letters = b"abcdefghijklmnopqrstuvwxyz";
    let word = |index: u64| {
        let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let letter = |_| {
            state = state.rotate_left(23).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            char::from(letters[(state >> 40) as usize % letters.len()])
        };
        (0..3 + index as usize % 9).map(letter).collect::<String>()
    };
    let mut words: Vec<String> = (0..count).map(word).collect();
    words.sort();
    words.dedup();
    words
}

fn tokenizer(model: Value) -> Value {
    json!({ "version": "1.0", "truncation": { "direction": "Right", "max_length": 64,
        "strategy": "LongestFirst", "stride": 0 }, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null,
        "decoder": null, "model": model })
}

fn unigram(count: u64) -> Value {
    let words = words(count);
    let scored = words.iter().enumerate().map(|(i, word)| json!([word, -5.0 - (i % 8) as f64]));
    let vocabulary: Vec<Value> = std::iter::once(json!(["<unk>", 0.0])).chain(scored).collect();
    tokenizer(json!({ "type": "Unigram", "unk_id": 0, "vocab": vocabulary }))
}

fn numbered(words: impl Iterator<Item = String>) -> Value {
    words
        .enumerate()
        .map(|(index, word)| (word, Value::from(index)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn word_piece(count: u64) -> Value {
    let vocabulary = numbered(std::iter::once("[UNK]".to_string()).chain(words(count)));
    tokenizer(json!({ "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocabulary }))
}

/// Letters that are merged into words.
fn bpe(count: u64) -> Value {
    let letters = ('a'..='z').map(String::from);
    let mut vocabulary: Vec<String> = std::iter::once("[UNK]".to_string()).chain(letters).collect();
    let mut known: std::collections::HashSet<String> = vocabulary.iter().cloned().collect();
    let mut merges = vec![];
    for word in words(count) {
        for end in 2..=word.len() {
            if known.insert(word[..end].to_string()) {
                merges.push(json!([word[..end - 1], word[end - 1..end]]));
                vocabulary.push(word[..end].to_string());
            }
        }
    }
    let vocabulary = numbered(vocabulary.into_iter());
    tokenizer(json!({ "type": "BPE", "unk_token": "[UNK]", "vocab": vocabulary, "merges": merges }))
}

fn embed(daemon: &Daemon, model: &str, text: &str) -> (u16, Value) {
    daemon.post("/v1/embeddings", &json!({ "model": model, "input": text }).to_string())
}

fn metric(daemon: &Daemon, name: &str) -> u64 {
    let mut connection = daemon.connect().send("GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    let metrics = String::from_utf8(connection.response().2).unwrap();
    let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

fn held_for_tokenizers(daemon: &Daemon) -> u64 {
    metric(daemon, "hermes_ledger_bytes{category=\"tokenizer\"}")
}

/// A small model under another name, with a tokenizer that nobody looked at.
fn install(store: &Path, name: &str, tokenizer: &Value) {
    let folder = store.join(name);
    small_store::write(store, small_store::words());
    std::fs::rename(store.join("words"), &folder).unwrap();
    let (text, path) = (tokenizer.to_string(), folder.join("1/manifest.json"));
    std::fs::write(folder.join("1/tokenizer.json"), &text).unwrap();
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["model"] = json!(name);
    manifest["tokenizer"]["bytes"] = json!(text.len());
    manifest["tokenizer"]["checksum"] = json!(format!("{:016x}", xxh3_64(text.as_bytes())));
    std::fs::write(&path, manifest.to_string()).unwrap();
}

/// A frame of pieces round a text.
fn frame(single: Value) -> Value {
    json!({ "type": "TemplateProcessing", "single": single, "pair": [
        { "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": {} })
}

/// A sound tokenizer with another part.
fn with(key: &str, value: Value) -> Value {
    let mut sound = bpe(40);
    sound[key] = value;
    sound
}

/// One of pairs of letters, and more of its model.
fn pairs(more: Value) -> Value {
    let mut model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": [] });
    model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    tokenizer(model)
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": pattern, "content": content })
}

/// Rules of a normalizer, one after the other.
fn steps(steps: &[Value]) -> Value {
    with("normalizer", json!({ "type": "Sequence", "normalizers": steps }))
}

/// Rules again and again.
fn again(steps: &[Value], count: usize) -> Vec<Value> {
    (0..count).flat_map(|_| steps.to_vec()).collect()
}

/// Files that were made to take memory, and how they are refused: each took a gigabyte
/// and more of a text of some hundred letters, or as it was loaded, or an hour of a text of 64 KiB.
fn hostile() -> Vec<(&'static str, Value, &'static str)> {
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let token = json!({ "SpecialToken": { "id": "s", "type_id": 0 } });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false });
    let metaspace = |c: &str| json!({ "type": "Metaspace", "replacement": c });
    let cut = |steps: Vec<Value>| {
        with("pre_tokenizer", json!({ "type": "Sequence", "pretokenizers": steps }))
    };
    let dotted = [replace(json!({ "String": "i" }), "\u{130}"), json!({ "type": "Lowercase" })];
    let ligature = [
        replace(json!({ "String": "a" }), "\u{fdfa}"),
        json!({ "type": "NFKC" }),
        replace(json!({ "Regex": "[^a]" }), "a"),
    ];
    let list = |inner: Value| json!({ "type": "Sequence", "normalizers": [inner] });
    let within = with("normalizer", (0..5).fold(json!({ "type": "NFC" }), |inner, _| list(inner)));
    let doubled = replace(json!({ "String": "a" }), "aa");
    let mut added = steps(&vec![doubled.clone(); 17]);
    added["added_tokens"] = json!([{ "id": 100, "content": "a".repeat(100), "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": true, "special": false }]);
    let special = with("post_processor", frame(json!([token, text])));
    let mut names = frame(json!([token, text]));
    names["special_tokens"] = json!({ "s": { "id": "s", "ids": vec![0; 2000],
        "tokens": vec!["a"; 2000] } });
    let mut often = frame(json!([vec![token.clone(); 600], vec![text.clone()]].concat()));
    often["special_tokens"] = json!({ "s": { "id": "s", "ids": [0, 1], "tokens": ["a", "b"] } });
    let end = |name: String| json!({ "type": "BertProcessing", "sep": [name, 0], "cls": ["a", 1] });
    let ends = |count, name: &str| json!({ "type": "Sequence", "processors": vec![end(name.to_owned()); count] });
    let mut pair = frame(json!([text]));
    pair["pair"] = json!(vec![json!({ "Sequence": { "id": "B", "type_id": 0 } }); 5000]);
    let mut first = frame(json!([token, text]));
    first["special_tokens"] = json!({ "s": { "id": "s", "ids": [0], "tokens": ["a"] } });
    let twice = json!({ "type": "Sequence", "processors": [first, pair] });
    let untyped = json!({ "pattern": { "Regex": "\\<|\\>" }, "content": "a" });
    let pattern =
        |index: usize| replace(json!({ "Regex": format!("(?!q)\\w{{{}}}x", 150 + index) }), "a");
    let piece = |more: Value| {
        let mut model = json!({ "type": "WordPiece", "unk_token": "a", "vocab": { "a": 0, "##a": 1 },
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100 });
        model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tokenizer(model)
    };
    vec![
        (
            "bytes",
            cut(vec![bytes; 22]),
            "pre_tokenizer: up to ByteLevel, 256 characters come of one",
        ),
        ("spaces", cut(again(&[metaspace("_"), metaspace("-")], 12)), "up to Metaspace, 128"),
        ("within", within, "normalizer has lists of rules within each other"),
        ("doubled", steps(&vec![doubled; 17]), "normalizer: up to Replace, 128 characters"),
        ("dotted", steps(&again(&dotted, 8)), "up to Lowercase, 128"),
        ("ligature", steps(&again(&ligature, 2)), "up to NFKC, 324"),
        (
            "prefix",
            with("normalizer", json!({ "type": "Prepend", "prepend": "a".repeat(2000) })),
            "up to Prepend, 2000",
        ),
        ("names", with("post_processor", names), "puts 2000 tokens round a text"),
        ("often", with("post_processor", often), "tokens round a text; the limit is 1024"),
        ("ends", with("post_processor", ends(70, "b")), "post_processor has 71 rules"),
        (
            "long",
            with("post_processor", ends(2, &"b".repeat(40_000))),
            "names tokens by 80002 bytes",
        ),
        ("twice", with("post_processor", twice), "post_processor has 2 templates"),
        ("untyped", steps(&vec![untyped.clone(); 70]), "normalizer has 71 rules"),
        ("ends-of-words", steps(&vec![untyped; 17]), "normalizer: up to Replace, 128 characters"),
        ("added", added, "normalizer: up to Replace, 128 characters"),
        (
            "patterns",
            steps(&(0..60).map(pattern).collect::<Vec<_>>()),
            "compiling its patterns takes",
        ),
        (
            "continued",
            pairs(json!({ "byte_fallback": true, "continuing_subword_prefix": "x".repeat(4000) })),
            "model.continuing_subword_prefix has 4000 bytes",
        ),
        (
            "ended",
            pairs(json!({ "end_of_word_suffix": "x".repeat(65) })),
            "model.end_of_word_suffix has 65",
        ),
        (
            "shared",
            pairs(json!({ "vocab": { "a": 0, "b": 1, ("b".repeat(100_000)): 0 } })),
            "a word of 100000 bytes with the id 0",
        ),
        (
            "pieces",
            piece(json!({ "max_input_chars_per_word": 100_000 })),
            "max_input_chars_per_word is 100000",
        ),
        ("merge", pairs(json!({ "merges": [["a", "b"]] })), "it cannot be a tokenizer"),
        ("chance", pairs(json!({ "dropout": 0.5 })), "model.dropout is 0.5"),
        (
            "map",
            with("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" })),
            "a table of 0 bytes in 3",
        ),
        (
            "table",
            with(
                "normalizer",
                json!({ "type": "Precompiled",
            "precompiled_charsmap": "QUFBQUFBQUE=" }),
            ),
            "a table of 1094795585 bytes in 8",
        ),
        (
            "copies",
            with("post_processor", frame(json!(vec![text; 5000]))),
            "has the text 5000 times",
        ),
        ("empty", with("post_processor", frame(json!([]))), "has the text 0 times"),
        ("special", special, "post_processor.single names \"s\", which its special_tokens lack"),
    ]
}

/// Files that were made to take memory, or over which the library panics, are refused by name before
/// anything is made of them, and nobody else is harmed. A text that stands 5,000 times in its frame
/// took 12 GB, and U+FDFA, which is 18 letters, three times what was granted.
#[test]
fn odd_rules_of_a_tokenizer_harm_nobody() {
    let long = "u".repeat(300);
    let words = json!({ "type": "WordLevel", "vocab": { (&*long): 0 }, "unk_token": long });
    let length = json!({ "type": "FixedLength", "length": 0 });
    let ligatures = "\u{fdfa}".repeat(8_000);
    let mut cases = vec![
        ("unknown", tokenizer(words), "a", 500, "model.unk_token has 300 bytes"),
        ("length", with("pre_tokenizer", length), "a", 500, "it fails over a text: "),
        ("apart", with("normalizer", json!({ "type": "NFKC" })), &*ligatures, 413, "would do"),
    ];
    cases.extend(hostile().into_iter().map(|(name, file, what)| (name, file, "aei", 500, what)));
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    std::fs::create_dir(&store).unwrap();
    for (name, tokenizer, ..) in &cases {
        install(&store, name, tokenizer);
    }
    install(&store, "sound", &bpe(40));
    let socket = folder.path().join("hermes.sock");
    let daemon = Daemon::start(&store, &socket, &["--budget", "64MiB", "--profiles", "false"]);
    for (name, _, text, expected, what) in &cases {
        let (status, reply) = embed(&daemon, name, text);
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, *expected, "{name}: {reply}");
        assert!(message.contains(what), "{name}: {message}");
        let named = message.contains(&format!("{name}/1/tokenizer.json: "));
        assert!(status != 500 || named, "{name}: {message}");
        assert_eq!(embed(&daemon, "sound", "a").0, 200, "after {name}");
    }
    let peak_kib = daemon.status_kib("VmHWM:");
    assert!(peak_kib <= 64 << 10, "{peak_kib} KiB");
}

/// Whoever builds a model is told, and not the first who asks about it.
#[test]
fn a_tokenizer_that_no_daemon_uses_is_refused_where_its_model_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let (model, file) = (folder.path().join("tiny.onnx"), folder.path().join("tokenizer.json"));
    let mut synth = Command::new(program("hermes-bench"));
    assert!(synth.args(["synth", "bert-tiny", "-o"]).arg(&model).status().unwrap().success());
    for (name, tokenizer, what) in hostile().into_iter().filter(|(name, ..)| *name != "merge") {
        std::fs::write(&file, tokenizer.to_string()).unwrap();
        let mut shard = Command::new(program("hermes-shard"));
        shard.arg("build").arg(&model).arg("--store").arg(folder.path().join("store"));
        let refused = shard.arg("--tokenizer").arg(&file).output().unwrap();
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{name}");
        for part in [&format!("{}: ", file.display()), what, "give another with --tokenizer FILE"] {
            assert!(told.contains(part), "{name}: {told}");
        }
    }
}

/// A Unigram model takes some 45 bytes a byte of its file, 11 were granted: a daemon of 72 MiB was
/// 150 MiB resident. Whatever the kind, the budget that a refusal names does, and is kept.
#[test]
fn a_tokenizer_of_any_kind_is_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizers =
        [("unigram", unigram(20_000)), ("bpe", bpe(6_000)), ("piece", word_piece(30_000))];
    let store = store(folder.path(), &tokenizers.each_ref().map(|(name, json)| (*name, json)));
    for (name, _) in tokenizers {
        let socket = folder.path().join("hermes.sock");
        let daemon = Daemon::start(&store, &socket, &["--budget", "24MiB", "--window", "4MiB"]);
        let (status, reply) = embed(&daemon, name, "?");
        assert_eq!(status, 413, "{name}: {reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        let (_, rest) = message.split_once("a budget of ").expect(message);
        let budget = rest.split_once(" would do").expect(message).0;
        drop(daemon);
        let daemon = Daemon::start(&store, &socket, &["--budget", budget, "--window", "4MiB"]);
        let (status, reply) = embed(&daemon, name, "?");
        assert_eq!(status, 200, "{name}: {reply}");
        let (peak_kib, budget_kib) =
            (daemon.status_kib("VmHWM:"), budget.parse::<u64>().unwrap() >> 10);
        let held_kib = held_for_tokenizers(&daemon) >> 10;
        println!("{name}: {held_kib} KiB held, the peak is {peak_kib} KiB of {budget_kib}");
        assert!(peak_kib <= budget_kib, "{name}: {peak_kib} KiB resident of {budget_kib}");
        let (status, reply) = daemon.post(&format!("/v2/repository/models/{name}/unload"), "{}");
        assert_eq!((status, held_for_tokenizers(&daemon)), (200, 0), "{reply}");
    }
}

/// A budget that was named took its part for the window, and was refused again, with the next: up to
/// four times.
#[test]
fn a_budget_that_is_named_for_a_tokenizer_does() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), &[("unigram", &unigram(20_000))]);
    let socket = folder.path().join("hermes.sock");
    let asked = |budget: &str| {
        let daemon = Daemon::start(&store, &socket, &["--budget", budget]);
        let (status, reply) = embed(&daemon, "unigram", "?");
        let message = reply["error"]["message"].as_str().unwrap_or_default().to_string();
        (status, message)
    };
    for budget in ["24MiB", "28MiB", "32MiB", "36MiB"] {
        let (status, message) = asked(budget);
        let Some((_, rest)) = message.split_once("a budget of ") else {
            assert_eq!(status, 200, "{budget}: {message}");
            continue;
        };
        let named = rest.split_once(" would do").expect(&message).0;
        let (status, message) = asked(named);
        assert_eq!(status, 200, "{named}, named at {budget}: {message}");
    }
}

/// Words that were seen were kept, 10,000 of them for each thread and model, in no ledger, and
/// beyond the model's end: up to 100 MiB.
#[test]
fn words_that_were_seen_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizers = [("unigram", unigram(300)), ("bpe", bpe(300))];
    let store = store(folder.path(), &tokenizers.each_ref().map(|(name, json)| (*name, json)));
    let daemon = Daemon::start(&store, &folder.path().join("hermes.sock"), &["--budget", "96MiB"]);
    for (name, _) in tokenizers {
        let text = |seed: u64| -> String {
            let word = |i: u64| format!("{:0120}", (seed * 1000 + i) * 7919);
            (0..200).map(word).collect::<Vec<_>>().join(" ")
        };
        let ask = |seeds: std::ops::Range<u64>| {
            for seed in seeds {
                assert_eq!(embed(&daemon, name, &text(seed)).0, 200);
            }
            metric(&daemon, "hermes_heap_bytes ")
        };
        let before = ask(0..5);
        let after = ask(5..30);
        println!("{name}: {before} bytes of heap, {after} after 5,000 more words");
        assert!(after < before + (512 << 10), "{name}: from {before} to {after} bytes");
    }
}

/// Eight sentence models in 64 MiB: the last four got 503 for ever beside idle tokenizers and
/// pins. What was used longest ago goes, tokenizers too.
#[test]
fn tokenizers_of_more_models_than_fit_give_way_to_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let json = word_piece(20_000);
    let names: Vec<String> = (0..6).map(|index| format!("m{index}")).collect();
    let models: Vec<(&str, &Value)> = names.iter().map(|name| (&**name, &json)).collect();
    let store = store(folder.path(), &models);
    let daemon = Daemon::start(&store, &folder.path().join("hermes.sock"), &["--budget", "40MiB"]);
    let mut most = 0;
    for round in 0..2 {
        for name in &names {
            let (status, reply) = embed(&daemon, name, "?");
            assert_eq!(status, 200, "round {round}, {name}: {reply}");
            most = most.max(held_for_tokenizers(&daemon));
        }
    }
    let one = {
        names[1..].iter().for_each(|name| {
            daemon.post(&format!("/v2/repository/models/{name}/unload"), "{}");
        });
        assert_eq!(embed(&daemon, &names[0], "?").0, 200);
        held_for_tokenizers(&daemon)
    };
    assert!(most > one && most < 6 * one, "{most} bytes at most, {one} for each");
    let peak_kib = daemon.status_kib("VmHWM:");
    assert!(peak_kib <= 40 << 10, "{peak_kib} KiB resident of 40 MiB");
}

/// Versions are called 1 unless told otherwise: one that was built anew in its place was embedded by
/// the tokens of the old one, without a word.
#[test]
fn a_version_that_is_built_anew_has_its_own_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let words = |words: [&str; 3]| {
        let vocabulary = numbered(words.into_iter().map(String::from));
        tokenizer(json!({ "type": "WordLevel", "unk_token": "[UNK]", "vocab": vocabulary }))
    };
    let (first, second) = (words(["[UNK]", "cat", "dog"]), words(["[UNK]", "dog", "cat"]));
    let place = store(folder.path(), &[("model", &first)]);
    let daemon = Daemon::start(&place, &folder.path().join("hermes.sock"), &[]);
    let vector = |text: &str| {
        let (status, reply) = embed(&daemon, "model", text);
        assert_eq!(status, 200, "{reply}");
        reply["data"][0]["embedding"].clone()
    };
    let (cat, dog) = (vector("cat"), vector("dog"));
    store(folder.path(), &[("model", &second)]);
    assert_eq!((vector("cat"), vector("dog")), (dog, cat));
}
