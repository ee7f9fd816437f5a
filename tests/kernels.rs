//! Old and bare kernels: passes with what newer ones have taken away (`HERMES_WITHOUT`).

mod common;

use common::daemon::{Daemon, command};
use common::programs::program;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Each feature by its name, and what the log says is done without it.
const FEATURES: [(&str, &str); 6] = [
    ("populate", "weights are read into memory of our own, not mapped"),
    ("direct", "weights are read through the page cache"),
    ("dioalign", "direct reads are aligned to 4096 bytes"),
    ("exchange", "a version that is installed again is moved aside first"),
    ("psi", "how short memory is, is looked for in the figures"),
    ("cgroup", "the budget alone limits the memory"),
];

/// A store with a small BERT, built once.
fn store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
        fs::create_dir_all(&folder).unwrap();
        run(Command::new(program("hermes-bench"))
            .args(["synth", "bert-tiny", "-o"])
            .arg(folder.join("tiny.onnx")));
        run(&mut build(&folder));
        folder.join("store")
    })
}

/// The build of the model in `folder`, in the place of the one that is there.
fn build(folder: &Path) -> Command {
    let mut build = Command::new(program("hermes-shard"));
    build.arg("build").arg(folder.join("tiny.onnx")).args(["--name", "tiny", "--force"]);
    build.arg("--store").arg(folder.join("store"));
    build
}

/// What it printed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// These features beside what the environment of the tests takes away already.
fn without(names: &str) -> String {
    format!("{},{names}", std::env::var("HERMES_WITHOUT").unwrap_or_default())
}

/// What a daemon answers without these features, and what it logged until then.
fn served_without(names: &str) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let (socket, log) = (folder.path().join("s"), folder.path().join("log"));
    let mut command = command(store(), &socket, &["--budget", "80MiB", "--window", "4MiB"]);
    command.env("HERMES_WITHOUT", without(names)).env_remove("MEMORY_PRESSURE_WATCH");
    command.stderr(File::create(&log).unwrap());
    let daemon = Daemon::spawn(&mut command, &socket);
    let tensor = |name: &str, data: Vec<usize>| json!({ "name": name, "datatype": "INT64", "shape": [1, 24], "data": data });
    let inputs = json!({ "inputs": [
        tensor("input_ids", (0..24).map(|at| at * 37 % 101).collect()),
        tensor("attention_mask", vec![1; 24]),
        tensor("token_type_ids", vec![0; 24]),
    ] });
    let (status, reply) = daemon.post("/v2/models/tiny/infer", &inputs.to_string());
    assert_eq!(status, 200, "{reply}");
    (reply["outputs"].clone(), fs::read_to_string(log).unwrap())
}

#[test]
fn answers_are_the_same_without_any_feature_and_the_log_tells() {
    let (whole, log) = served_without("");
    assert!(whole[0]["data"].as_array().is_some_and(|data| data.len() > 24), "{whole}");
    assert_eq!(log.contains("HERMES_WITHOUT takes"), without("") != ",", "{log}");
    let all = FEATURES.map(|(name, _)| name).join(",");
    for names in FEATURES.iter().map(|(name, _)| *name).chain([all.as_str()]) {
        let (answer, log) = served_without(names);
        assert!(answer == whole, "another answer without {names}");
        for (name, instead) in FEATURES {
            let line = format!("HERMES_WITHOUT takes {name} away: ");
            let expected = usize::from(without(names).split(',').any(|taken| taken == name));
            assert_eq!(log.matches(&line).count(), expected, "{names}: {log}");
            assert!(expected == 0 || log.contains(instead), "{names}: {log}");
        }
        let is_looked_for = log.contains("is looked for in the figures: nobody tells");
        assert!(is_looked_for || !names.contains("psi"), "{names}: {log}");
    }
}

#[test]
fn unknown_features_are_told_with_those_there_are() {
    let (_, log) = served_without("populate,io_uring");
    let warning = "HERMES_WITHOUT: \"io_uring\" is none of populate, direct, dioalign, exchange, ";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert!(log.contains("HERMES_WITHOUT takes populate away"), "{log}");
}

/// How blocks come in where direct reads are asked for; the outputs are those of a resident pass.
fn direct_source_without(names: &str) -> String {
    let mut bench = Command::new(program("hermes-bench"));
    bench.args(["pass", "--model", "tiny", "--source", "direct", "--repeat", "1", "--json"]);
    bench.args(["--window", "4MiB", "--tokens", "24", "--store"]).arg(store());
    // Plenty: where programs are emulated, what is resident is the emulator's too.
    bench.args(["--budget", "256MiB"]);
    let report: Value =
        serde_json::from_str(&run(bench.env("HERMES_WITHOUT", without(names)))).unwrap();
    assert_eq!(report["identical"], true, "{names}: {report}");
    report["source"].as_str().unwrap().to_string()
}

#[test]
fn blocks_come_in_by_what_is_left() {
    // On a file system without direct reads the first is not "direct"; nor is any other then.
    let whole = direct_source_without("");
    assert_eq!(direct_source_without("dioalign"), whole);
    assert_eq!(
        direct_source_without("populate"),
        if whole == "direct" { "direct" } else { "read" }
    );
    assert_eq!(direct_source_without("direct,populate"), "read");
    let buffered = direct_source_without("direct");
    assert!(buffered == "mapped" || buffered == "read", "{buffered}");
}

#[test]
fn versions_are_replaced_where_folders_cannot_be_exchanged() {
    let folder = tempfile::tempdir().unwrap();
    let model = store().parent().unwrap().join("tiny.onnx");
    fs::copy(model, folder.path().join("tiny.onnx")).unwrap();
    let version = folder.path().join("store/tiny/1");
    for _ in 0..2 {
        run(build(folder.path()).env("HERMES_WITHOUT", "exchange"));
        assert!(version.join("manifest.json").is_file());
    }
    let left = fs::read_dir(folder.path().join("store")).unwrap().count();
    assert_eq!(left, 1, "nothing but the model is left");
    let mut verify = Command::new(program("hermes-shard"));
    run(verify.args(["verify", "tiny", "--store"]).arg(folder.path().join("store")));
}
