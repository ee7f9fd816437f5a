//! What may be asked of a build, and what may not.

use super::text::place_of_words;
use super::{Place, check_refusal, files, stderr, stdout, tool};
use serde_json::json;
use std::fs;

#[test]
fn names_that_are_none_are_refused() {
    let place = Place::with_linear();
    for name in ["a/b", "..", "../up", ".hidden", "-dash", "", "a b", &"n".repeat(129)] {
        let words = [&format!("{name:?} is no name"), "use letters, digits"];
        place.refuse(&[&format!("--version={name}")], &words);
        let mut command = tool();
        command.arg("build").arg(place.model()).arg("--store").arg(place.store());
        command.arg(format!("--name={name}"));
        place.refuse_command(command, &words);
    }
    assert!(!place.store().exists());
}

#[test]
fn a_name_is_made_of_the_files() {
    let place = Place::with_linear();
    let build = |file: &str| {
        let path = place.path(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(place.model(), &path).unwrap();
        let mut command = tool();
        let built = command.arg("build").arg(path).arg("--store").arg(place.store()).output();
        let built = built.unwrap();
        assert!(built.status.success(), "{}", stderr(&built));
        stdout(&built)
    };
    assert!(build("plain.onnx").starts_with("plain version 1:"));
    assert!(build("my-model/model.onnx").starts_with("my-model version 1:"));
    assert!(build(".odd name.onnx").starts_with("odd_name version 1:"));
}

#[test]
fn variants_that_are_none_are_refused() {
    let place = Place::with_linear();
    let check = |variants, words: &[&str]| place.refuse(&["--variants", variants], words);
    check("q9", &["variant \"q9\" is unknown", "there are f32, f16, q8, a6, a5, a4, a3, a2"]);
    check("f32,Q8", &["variant \"Q8\" is unknown"]);
    check("bf16", &["variant \"bf16\" is unknown"]);
    check("f32,q4", &["variant q4 is still read, but no longer written", "take a4"]);
    check("", &["variant \"\" is unknown"]);
    check("q8,f32,q8", &["variant q8 is given twice"]);
}

#[test]
fn a_version_is_replaced_by_force_only() {
    let place = Place::with_linear();
    place.build(&[]);
    let first = files(&place.store());
    let words = ["version 1 of small is in the store already", "--version", "--force"];
    place.refuse(&[], &words);
    place.refuse(&["--variants", "q8"], &words);

    // A build that fails leaves the old version, forced or not.
    place.save(&super::model::linear_with(0, 0, f32::NAN));
    place.refuse(&["--force", "--variants", "q8"], &["weight \"W\""]);
    place.check_sound("1");

    place.save(&super::model::linear());
    place.build(&["--force", "--variants", "q8"]);
    place.check_sound("1");
    assert_eq!(place.inspect("1")["variants"], json!(["q8"]));
    assert!(files(&place.store()) != first);
    place.build(&["--version", "2"]);
    assert_eq!(place.inspect("1")["variants"], json!(["q8"]), "the other version stays");
    assert_eq!(place.inspect("2")["variants"], json!(["f32"]));
}

#[test]
fn open_dimensions_are_fixed_by_name() {
    let place = Place::with_linear();
    place.build(&[]);
    assert_eq!(place.inspect("1")["inputs"][0]["shape"], json!([1, "seq", 64]));
    place.build(&["--version", "2", "--dim", "seq=7"]);
    assert_eq!(place.inspect("2")["inputs"][0]["shape"], json!([1, 7, 64]));
    assert_eq!(place.inspect("2")["outputs"][0]["shape"], json!([1, 7, 256]));
    let refuse = |dims: &[&str], words: &[&str]| {
        place.refuse(&[&["--version", "3"], dims].concat(), words);
    };
    let words = ["no input has an open dimension \"sequence\"", "there is seq"];
    refuse(&["--dim", "sequence=7"], &words);
    refuse(&["--dim", "seq=7", "--dim", "seq=8"], &["dimension seq is given twice"]);
    for wrong in ["seq", "seq=", "seq=0", "seq=-1", "seq=1.5", "=3"] {
        let output = place.command(&["--version", "3", "--dim", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong} is wrong usage");
        assert!(stderr(&output).contains("expected NAME=SIZE"), "{}", stderr(&output));
    }
}

#[test]
fn the_threshold_decides_what_is_streamed() {
    let place = Place::with_synth(&["bert-tiny", "--layers", "1"]);
    let count = |threshold: &str| {
        place.build(&["--version", threshold, "--threshold", threshold]);
        place.check_sound(threshold);
        let manifest = place.inspect(threshold);
        let weights = manifest["weights"].as_array().unwrap();
        let bytes = |weight: &serde_json::Value| -> u64 {
            weight["shape"].as_array().unwrap().iter().map(|dim| dim.as_u64().unwrap()).product()
        };
        let least: u64 = threshold.parse().unwrap();
        assert!(weights.iter().all(|weight| 8 * bytes(weight) >= least));
        weights.len()
    };
    let (all, some, none) = (count("1024"), count("65536"), count("1000000000"));
    assert!(all >= some && some > 0 && none == 0, "{all} {some} {none}");
    place.build(&["--version", "64K", "--threshold", "64K"]);
    assert_eq!(place.inspect("64K")["weights"].as_array().unwrap().len(), some);
    // Below, axes and shapes would leave the graph, which cannot be run without them.
    for (least, why) in [("1023", "1023 bytes are less than 1024"), ("1Kb/s", "is not a size")] {
        let output = place.command(&["--threshold", least]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

#[test]
fn a_tokenizer_that_is_none_is_refused() {
    let place = place_of_words();
    let refuse = |file: &str, words: &[&str]| {
        let path = place.path(file);
        let path = path.to_str().unwrap();
        place.refuse(&["--tokenizer", path], &[&[path], words].concat());
    };
    refuse("missing.json", &["cannot read", "No such file"]);
    fs::write(place.path("cut.json"), "{\"version\":\"1.0\",\"model\":{").unwrap();
    refuse("cut.json", &["is no tokenizer.json", "line 1"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 711661\n";
    fs::write(place.path("pointer.json"), pointer).unwrap();
    refuse("pointer.json", &["is no tokenizer.json: it is a pointer of Git LFS", "git lfs pull"]);
    fs::write(place.path("other.json"), "{\"vocab_size\": 30522}").unwrap();
    refuse("other.json", &["is no tokenizer.json"]);
    fs::write(place.path("binary.json"), [0xff; 64]).unwrap();
    refuse("binary.json", &["is no tokenizer.json"]);

    // The one beside the model is taken without being asked for, and no less checked.
    fs::write(place.path("tokenizer.json"), "[]").unwrap();
    place.refuse(&[], &["tokenizer.json is no tokenizer.json: ", "line 1", "--tokenizer FILE"]);
    fs::copy(place.path("text.json"), place.path("tokenizer.json")).unwrap();
    place.build(&[]);
    assert_eq!(place.inspect("1")["tokenizer"]["path"], "tokenizer.json");
}

#[test]
fn an_embedding_is_an_output_that_fits() {
    let place = place_of_words();
    let tokenizer = place.path("text.json");
    let tokenizer = tokenizer.to_str().unwrap();
    let refuse = |embedding: &str, words: &[&str]| {
        place.refuse(&["--tokenizer", tokenizer, "--embedding", embedding], words);
    };
    refuse("nothing", &["the model has no output \"nothing\"", "it has hidden"]);
    refuse("nothing:mean", &["the model has no output \"nothing\"", "it has hidden"]);
    refuse("hidden:min", &["pooling \"min\" is unknown", "mean, cls, max, lasttoken", "and none"]);
    refuse("hidden:none", &["output \"hidden\" has 3 axes", "use mean, cls"]);
    place.refuse(&["--embedding", "hidden"], &["--embedding needs a tokenizer", "--tokenizer"]);
    let check = |version: &str, embedding: &str, pooling: &str| {
        let given = ["--tokenizer", tokenizer, "--version", version, "--embedding", embedding];
        place.build(&given);
        let task = &place.inspect(version)["task"];
        assert!(
            task.to_string().contains("hidden") && task.to_string().contains(pooling),
            "{task}"
        );
    };
    check("1", "hidden", "mean");
    check("2", "hidden:mean", "mean");
    check("3", "hidden:cls", "cls");
    check("4", "hidden:mean_sqrt_len", "mean_sqrt_len");
}

#[test]
fn wrong_usage_has_exit_code_2() {
    for arguments in [&["build"][..], &["cut"], &["inspect"], &["verify", "--store", "s"]] {
        let output = tool().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
    let place = Place::new();
    let output = place.tool("inspect", &[]);
    check_refusal(&output, &[place.store().to_str().unwrap(), "No such file"]);
}

/// Each command wanted --store, also where there is but one store, and a build that was not to write
/// there said so at its end.
#[test]
fn the_store_is_the_variables_or_the_services() {
    let place = Place::with_linear();
    let run = |store: Option<&str>, arguments: &[&str]| {
        let mut command = tool();
        command.args(arguments).env_remove("HERMES_STORE");
        command.envs(store.map(|store| ("HERMES_STORE", store))).output().unwrap()
    };
    let (model, store) = (place.model(), place.store());
    let (model, store) = (model.to_str().unwrap(), store.to_str().unwrap());
    let built = run(Some(store), &["build", model, "--name", "small"]);
    assert!(built.status.success(), "{}", stderr(&built));
    place.check_sound("1");
    for command in ["inspect", "verify"] {
        let output = run(Some(store), &[command, "small"]);
        assert!(output.status.success(), "{}", stderr(&output));
        // What the command line says counts more.
        let output = run(Some(store), &[command, "small", "--store", "/none/other"]);
        check_refusal(&output, &["/none/other: No such file"]);
        assert!(!stderr(&output).contains("that HERMES_STORE"), "{}", stderr(&output));
        let output = run(Some("/none/store"), &[command, "small"]);
        check_refusal(
            &output,
            &["/none/store", "that HERMES_STORE names", "--store or HERMES_STORE"],
        );
    }
    let help = run(None, &["build", "--help"]);
    assert!(stdout(&help).contains("[default: $HERMES_STORE or /var/lib/hermes]"));
    // Not even root makes a folder below a file.
    let below = format!("{model}/store");
    for command in ["build", "install"] {
        let output = run(Some(&below), &[command, model, "--force"]);
        let words =
            ["cannot write to ", &below, "Not a directory", "HERMES_STORE", "sudo -u hermes"];
        check_refusal(&output, &words);
    }
}
