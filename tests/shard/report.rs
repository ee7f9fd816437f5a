//! What `build`, `inspect` and `verify` say, to people and to programs.

use super::common::daemon::{Daemon, command};
use super::common::served::hermesctl;
use super::{Place, check_refusal, stderr, stdout, tool};
use hermes::store::layer_file::LayerFile;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

#[test]
fn a_build_tells_size_and_error_of_each_variant() {
    let place = Place::with_synth(&["bert-tiny"]);
    let built = place.build(&["--variants", "f32,q8,a4"]);
    let report = stdout(&built);
    assert!(report.starts_with("small version 1: 3 layers in "), "{report}");
    for line in ["  graph ", "  f32 ", "  q8 ", "  a4 "] {
        assert!(report.lines().any(|l| l.starts_with(line)), "no line of {line}: {report}");
    }
    let one = stdout(&Place::with_linear().build(&[]));
    assert!(one.starts_with("small version 1: 1 layer in "), "{one}");
    let built = place.build(&["--force", "--json"]);
    let report: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!((&report["model"], &report["version"]), (&json!("small"), &json!("1")));
    let names: Vec<&Value> =
        report["layers"].as_array().unwrap().iter().map(|layer| &layer["name"]).collect();
    assert_eq!(names, ["embeddings", "encoder.0", "encoder.1"]);
    assert_eq!(report["layers"][0]["files"]["f32"]["relative_error"], 0.0);
}

#[test]
fn errors_of_variants_are_in_their_order() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,f16,q8,a4"]);
    let manifest = place.inspect("1");
    for layer in manifest["layers"].as_array().unwrap() {
        let [f32, f16, q8, a4] = ["f32", "f16", "q8", "a4"].map(|variant| {
            let file = &layer["files"][variant];
            let error = file["relative_error"].as_f64().unwrap();
            (error, file["bytes"].as_u64().unwrap())
        });
        assert_eq!(f32.0, 0.0);
        assert!(f16.0 > 0.0 && f16.0 < q8.0 && q8.0 <= a4.0, "{layer}");
        assert!(f32.1 > f16.1 && f16.1 > q8.1 && q8.1 >= a4.1, "{layer}");
    }
}

#[test]
fn help_tells_what_the_tool_is_and_its_exit_codes() {
    let output = tool().arg("--help").output().unwrap();
    let help = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        help.starts_with("Cuts ONNX models and checkpoints into layer files for hermesd\n"),
        "{help}"
    );
    assert!(help.contains("Exit codes: 0 done, 1 refused or failed, 2 usage"), "{help}");
    let code = |arguments: &[&str]| tool().args(arguments).output().unwrap().status;
    assert_eq!(code(&["inspect", "nobody", "--store", "/none"]).code(), Some(1));
    assert_eq!(code(&["inspect"]).code(), Some(2));
    assert_eq!(code(&[]).code(), Some(2));
}

/// Bars and colours are for terminals: a log that takes the output gets whole lines.
#[test]
fn lines_are_quiet_where_there_is_no_terminal() {
    let place = Place::with_synth(&["bert-tiny"]);
    for output in [place.build(&[]), place.tool("inspect", &[]), place.tool("verify", &[])] {
        for text in [stdout(&output), stderr(&output)] {
            assert!(!text.contains(['\x1b', '\r']), "{text:?}");
            assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        }
    }
    let lines = stderr(&place.build(&["--force"]));
    let (decided, lines) = lines.split_once('\n').expect("what is a batch comes first");
    assert!(decided.contains("is taken for the batch"), "{decided}");
    let lines: Vec<(&str, &str)> =
        lines.lines().map(|line| line.split_once(" MiB  ").expect("done of all")).collect();
    let layers: Vec<&str> = lines.iter().map(|(_, layer)| *layer).collect();
    assert_eq!(layers, ["embeddings", "encoder.0", "encoder.1"]);
    let (done, all) = lines[2].0.trim().split_once(" of ").unwrap();
    assert!(done == all && all != "0.0", "the last line is the end: {lines:?}");
    assert_eq!(stderr(&place.build(&["--force", "--json"])), "");
    assert_eq!(stderr(&place.tool("verify", &[])), "");
}

#[test]
fn inspect_shows_layers_and_tensors_in_tape_order() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,q8"]);
    let shown = stdout(&place.tool("inspect", &[]));
    let mut rest = &shown[..];
    for word in [
        "small version 1\n",
        "from model.onnx",
        "input    input_ids INT64 [\"batch_size\",\"sequence_length\"]",
        "output   last_hidden_state FP32 [\"batch_size\",\"sequence_length\",128]",
        "layers in tape order",
        "  0 embeddings",
        "f32",
        "q8",
        "table    embeddings.word_embeddings.weight [1000, 128] FP32 in 1 blocks",
        "  1 encoder.0",
        "linear   ",
        "[128, 512] FP32 in 1 blocks",
    ] {
        let at = rest.find(word).unwrap_or_else(|| panic!("{word:?} is missing: {shown}"));
        rest = &rest[at..];
    }
    let manifest = place.inspect("1");
    assert_eq!(manifest["variants"], json!(["f32", "q8"]));
    assert_eq!(manifest["layers"][1]["name"], "encoder.0");
}

#[test]
fn what_is_not_in_the_store_is_told() {
    let place = Place::with_linear();
    place.build(&[]);
    for command in ["inspect", "verify"] {
        let output = place.tool(command, &["--version", "2"]);
        check_refusal(&output, &["has no version 2 of small", "hermesctl versions small"]);
        let output = place.tool(command, &["--version", "../1"]);
        check_refusal(&output, &["\"../1\" is no name", "use letters"]);
    }
    let nobody = ["inspect", "nobody", "--store"];
    let output = tool().args(nobody).arg(place.store()).output().unwrap();
    check_refusal(&output, &["has no model nobody", "hermesctl ls"]);
}

/// Flips one byte of a file.
fn flip(path: &PathBuf, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn verify_names_the_bad_block_and_its_file() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,q8"]);
    place.check_sound("1");
    let version = place.store().join("small/1");
    let path = version.join("layers/001-encoder.0.q8.layer");
    let layer = LayerFile::open(&path, None).unwrap();
    let block = &layer.index.blocks[3];
    flip(&path, block.offset + block.bytes - 1);
    let output = place.tool("verify", &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    let name = &layer.index.tensors[block.tensor].name;
    let place_of_block = format!(
        "{}: wrong checksum of block 3 at byte {} (rows {:?} of {name:?})\n",
        path.display(),
        block.offset,
        block.row_start..block.row_start + block.row_count
    );
    assert!(said.contains(&place_of_block), "{said}");
    assert!(said.contains("hermes-shard build --force"), "it says what to do: {said}");
    assert_eq!(said.lines().count(), 2, "one problem, one advice: {said}");
    assert_eq!(stdout(&output), "");

    let output = place.tool("verify", &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    assert_eq!(report["problems"][0]["path"], path.to_str().unwrap());
    assert!(report["problems"][0]["what"].as_str().unwrap().contains("block 3"), "{report}");
}

#[test]
fn verify_goes_on_after_a_bad_file_and_names_them_all() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,q8"]);
    let version = place.store().join("small/1");
    flip(&version.join("graph.onnx"), 100);
    fs::remove_file(version.join("layers/000-embeddings.f32.layer")).unwrap();
    let cut = version.join("layers/001-encoder.0.f32.layer");
    let bytes = fs::read(&cut).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 1]).unwrap();
    let output = place.tool("verify", &[]);
    let said = stderr(&output);
    let problems = [
        ("graph.onnx: ", "checksum"),
        ("000-embeddings.f32.layer: ", "No such file"),
        ("001-encoder.0.f32.layer: ", "the manifest says"),
    ];
    for (file, what) in problems {
        let line = said.lines().find(|line| line.contains(file));
        assert!(line.is_some_and(|line| line.contains(what)), "{file}{what}: {said}");
    }
    place.build(&["--force", "--variants", "f32,q8"]);
    place.check_sound("1");
}

/// A reader that goes before all is printed (`| head`) made the tool panic.
#[test]
fn what_nobody_reads_is_printed_quietly() {
    let place = Place::with_linear();
    place.build(&[]);
    let store = place.store();
    for arguments in [&["inspect"][..], &["inspect", "--json"], &["verify"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = super::tool();
        command.args(&arguments[..1]).args(["small", "--store", store.to_str().unwrap()]);
        let output = command.args(&arguments[1..]).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), super::stderr(&output).as_str()), (Some(0), ""));
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut build = place.command(&["--force"]);
    build.stdout(writer.try_clone().unwrap()).stderr(writer);
    assert_eq!(build.status().unwrap().code(), Some(0));
}

/// A daemon that was told to serve a4 refused each model without it, and what is known of a model was
/// spread over five commands and a manifest.
#[test]
fn hermesctl_shows_what_was_built_and_in_what_it_is_served() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&["--variants", "f32,q8"]);
    let socket = place.path("s");
    let log = fs::File::create(place.path("log")).unwrap();
    let mut command = command(&place.store(), &socket, &["--budget", "96MB", "--variant", "a4"]);
    let daemon = Daemon::spawn(command.stderr(log), &socket);
    daemon.load("small");
    let said = |arguments: &[&str]| {
        let (code, output, error) = hermesctl(&socket, arguments);
        assert_eq!(code, 0, "{arguments:?}: {error}");
        output
    };
    let warning = "model small has no variant a4: it is served in f32, its best";
    assert!(fs::read_to_string(place.path("log")).unwrap().contains(warning));
    for command in ["ls", "ps"] {
        assert!(said(&[command]).contains("f32 (no a4)"), "{command}: {}", said(&[command]));
    }
    let text = said(&["show", "small"]);
    let inspected = stdout(&place.tool("inspect", &[]));
    let of = |word: &str| inspected.lines().filter(|line| line.starts_with(word)).count();
    let lines = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    assert!(text.starts_with("small version 1: ready, served in f32 (no a4)\n"), "{text}");
    for word in ["input ", "output ", "batch ", "budget "] {
        assert_eq!(lines(word), of(word), "{word}: {text}\n{inspected}");
    }
    let has = |line: &str| text.lines().any(|told| told.trim_start().starts_with(line));
    for line in [
        "from      model.onnx (",
        "variant   f32 ",
        "variant   q8 ",
        "graph.onnx ",
        "6 files of 3 layers",
    ] {
        assert!(has(line), "{line:?} is not in {text}");
    }
    assert!(has("version   1 ("), "{text}");

    let shown: Value = serde_json::from_str(&said(&["show", "small/1", "--json"])).unwrap();
    assert_eq!((&shown["variant"], &shown["wanted_variant"]), (&json!("f32"), &json!("a4")));
    assert_eq!((&shown["state"], &shown["role"]), (&json!("ready"), &json!("current")));
    let manifest = place.inspect("1");
    let files = shown["files"].as_array().unwrap();
    assert_eq!(files[0]["bytes"], manifest["graph"]["bytes"]);
    // Graph, layers, and what these lose.
    assert_eq!(files.len(), 2 + 2 * manifest["layers"].as_array().unwrap().len());
    let on_disk = |file: &Value| {
        let path = place.store().join("small/1").join(file["path"].as_str().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), file["bytes"], "{path:?}");
    };
    files.iter().for_each(on_disk);
    assert_eq!(shown["versions"][0]["bytes"], shown["bytes"]);
    for (what, words) in [("small/2", "no version 2"), ("nobody", "no model nobody")] {
        let (code, _, error) = hermesctl(&socket, &["show", what]);
        assert!(code == 1 && error.contains(words), "{error}");
    }
}
