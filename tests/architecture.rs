//! The invariants of ARCHITECTURE.md that can be seen in the text of the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// A part and the parts it may know.
const PARTS: [(&str, &[&str]); 10] = [
    ("sys", &[]),
    ("codec", &[]),
    ("store", &["codec", "sys"]),
    ("graph", &["codec", "store", "sys"]),
    ("shard", &["codec", "graph", "store", "sys"]),
    ("stream", &["sys"]),
    ("plan", &["stream", "sys"]),
    ("engine", &["codec", "graph", "plan", "store", "stream", "sys"]),
    ("daemon", &["codec", "engine", "plan", "sys"]),
    ("api", &["daemon", "engine", "plan", "store", "stream", "sys"]),
];

#[test]
fn parts_know_only_what_is_below_them() {
    for (part, below) in PARTS {
        let others = PARTS.map(|(other, _)| other);
        let strangers = others.iter().filter(|&&other| other != part && !below.contains(&other));
        for stranger in strangers {
            check_absent(&format!("crate::{stranger}::"), &[part], &[]);
            check_absent(&format!("crate::{stranger};"), &[part], &[]);
            check_absent(&format!("crate::{stranger},"), &[part], &[]);
        }
    }
}

#[test]
fn unsafe_is_in_its_places() {
    for word in ["unsafe {", "unsafe fn", "unsafe impl"] {
        check_absent(word, &["."], &["sys/", "codec/simd.rs", "graph/kernel.rs"]);
    }
}

#[test]
fn the_window_is_pure() {
    for word in ["std::fs", "std::io", "std::time", "std::thread", "std::sync", "crate::sys"] {
        check_absent(word, &["stream/window.rs"], &[]);
    }
}

#[test]
fn only_graph_and_engine_know_tract() {
    for word in ["tract_core::", "tract_linalg::", "tract_onnx::"] {
        check_absent(word, &["."], &["graph/", "engine/"]);
    }
}

#[test]
fn only_api_knows_http_and_only_the_manifest_json_beside_it() {
    for word in ["axum", "hyper::", "hyper_util", "http_body"] {
        check_absent(word, &["."], &["api/"]);
    }
    let store = ["store/demand.rs", "store/manifest.rs"];
    let shard = ["shard/build.rs", "shard/makers.rs"];
    let allowed = [&["api/", "plan/profile.rs"][..], &shard, &store].concat();
    check_absent("serde_json", &["."], &allowed);
    // Who calls is a program of its own.
    check_absent("hyper::client", &["."], &[]);
}

#[test]
fn binaries_hold_command_lines() {
    for file in files(&source().join("bin")) {
        let lines = fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 150, "{} has {lines} lines: move logic into the library", file.display());
    }
}

#[test]
fn every_test_that_the_specification_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = ["src", "tests", "tools"].map(|place| files(&root.join(place)));
    let code: String =
        places.iter().flatten().map(|file| fs::read_to_string(file).unwrap()).collect();
    let text = fs::read_to_string(root.join("SPECIFICATION.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let words = quoted.flat_map(|code| code.split(|c: char| !c.is_alphanumeric() && c != '_'));
    // Names of tests are sentences; names of modules and files are one or two words.
    let tests: Vec<&str> = words.filter(|word| word.matches('_').count() > 2).collect();
    assert!(tests.len() > 10, "the specification names its tests: {tests:?}");
    for test in tests {
        assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
    }
}

/// Fails where `word` stands in a file below one of `places` and not below one of `allowed`.
fn check_absent(word: &str, places: &[&str], allowed: &[&str]) {
    let source = source();
    let mut seen = 0;
    for file in places.iter().flat_map(|place| files(&source.join(place))) {
        seen += 1;
        let name = file.strip_prefix(&source).unwrap();
        let name = name.strip_prefix(".").unwrap_or(name).to_str().unwrap().to_owned();
        if allowed.iter().any(|place| name.starts_with(place)) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let line = text.lines().position(|line| line.contains(word));
        assert!(
            line.is_none(),
            "src/{name}:{}: \"{word}\" does not belong here",
            line.unwrap() + 1
        );
    }
    assert!(seen > 0, "no file in {places:?}: has the part moved?");
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| files(&path))
        .filter(|path| path.extension() == Some("rs".as_ref()))
        .collect()
}
