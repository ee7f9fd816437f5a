//! `hermes-shard` as a user runs it: on real files, judged by its exit code, what it says and what
//! it leaves in the store.

mod calibrate;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod importance;
mod input;
mod model;
mod options;
mod player;
mod report;
mod text;

use common::programs::program;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// hermes-shard, to be given arguments.
fn tool() -> Command {
    Command::new(program("hermes-shard"))
}

/// A folder with `model.onnx` and `store`, neither of which is there at first.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    /// A place with a small model of one product.
    fn with_linear() -> Place {
        let place = Place::new();
        place.save(&model::linear());
        place
    }

    /// A place with a model that `hermes-bench synth` writes.
    fn with_synth(arguments: &[&str]) -> Place {
        let place = Place::new();
        let written = Command::new(program("hermes-bench"))
            .arg("synth")
            .args(arguments)
            .arg("-o")
            .arg(place.model())
            .output()
            .unwrap();
        assert!(written.status.success(), "{}", stderr(&written));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> PathBuf {
        self.path("model.onnx")
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn save(&self, model: &tract_onnx::pb::ModelProto) {
        fs::write(self.model(), prost::Message::encode_to_vec(model)).unwrap();
    }

    /// `hermes-shard build model.onnx --store store --name small`, ready to be run.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tool();
        command.arg("build").arg(self.model()).arg("--store").arg(self.store());
        command.args(["--name", "small"]).args(arguments);
        command
    }

    /// Builds and expects that to work.
    fn build(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    /// Builds and expects a refusal with all of `words`, which changes nothing in the store.
    fn refuse(&self, arguments: &[&str], words: &[&str]) {
        self.refuse_command(self.command(arguments), words);
    }

    fn refuse_command(&self, mut command: Command, words: &[&str]) {
        let before = files(&self.store());
        let output = command.output().unwrap();
        check_refusal(&output, words);
        assert!(output.stdout.is_empty(), "nothing was built: {}", stdout(&output));
        assert_eq!(names(&files(&self.store())), names(&before));
        assert!(files(&self.store()) == before, "files of the store have changed");
    }

    /// Runs another command on the model of the store.
    fn tool(&self, command: &str, arguments: &[&str]) -> Output {
        let store = self.store();
        tool()
            .args([command, "small", "--store", store.to_str().unwrap()])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// Expects every checksum of a version to be right.
    fn check_sound(&self, version: &str) {
        let output = self.tool("verify", &["--version", version]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stdout(&output).contains("all sound"), "{}", stdout(&output));
    }

    /// The manifest of a version, as `inspect --json` prints it.
    fn inspect(&self, version: &str) -> serde_json::Value {
        let output = self.tool("inspect", &["--json", "--version", version]);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Expects exit code 1 and a message that has all of `words`, each cause said once.
fn check_refusal(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let message = said.split_once("hermes-shard: ").expect("the program names itself").1;
    assert_eq!(message.matches("os error").count().max(1), 1, "a cause is said twice: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file below a folder, with its content; a folder that is not there has none.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
            // An empty folder is something that was left behind, too.
            found.insert(path, vec![]);
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

fn names(files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<&PathBuf> {
    files.keys().collect()
}
