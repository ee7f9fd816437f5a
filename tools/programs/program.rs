//! One file is several programs, by the name that it is called by.

#[path = "../../tests/common/programs.rs"]
mod programs;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with a link of that name to the program.
fn link(folder: &Path, name: &str) -> PathBuf {
    let link = folder.join(name);
    symlink(programs::program("hermes-programs"), &link).unwrap();
    link
}

fn run(program: &Path, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    (output, String::from_utf8(said).unwrap())
}

#[test]
fn it_is_the_program_that_its_name_says() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hermesd", "hermes-shard", "hermes-bench"] {
        let (_, said) = run(&link(folder.path(), name), &["--version"]);
        assert_eq!(said, format!("{name} {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn by_another_name_it_is_none_and_says_which_there_are() {
    let folder = tempfile::tempdir().unwrap();
    for program in [link(folder.path(), "hermes"), programs::program("hermes-programs").into()] {
        let (output, said) = run(&program, &["--version"]);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("hermesd, hermes-shard and hermes-bench"), "{said}");
    }
}

/// Models are tried, and budgets measured, by copies of the program, which have to be what it is: a
/// copy that goes by the file's own name would be hermesd.
#[test]
fn copies_of_it_are_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (shard, bench) = (link(folder.path(), "hermes-shard"), link(folder.path(), "hermes-bench"));
    let (model, store) = (path("tiny.onnx"), path("store"));
    for (program, arguments) in [
        (&bench, &["synth", "bert-tiny", "--output", &model][..]),
        (&shard, &["build", &model, "--store", &store, "--name", "tiny"]),
        (&bench, &["smallest", "--store", &store, "--model", "tiny", "--tokens", "8"]),
    ] {
        let (output, said) = run(program, arguments);
        assert!(output.status.success(), "{said}");
    }
    assert!(fs::read_dir(store).unwrap().next().is_some());
}
