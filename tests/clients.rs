//! Real clients: shells, man, Python's packages, hermesctl.

mod common;

use common::served::{check_error, served};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where tools/fetch_clients.sh put Python's packages, or an end that says how to get them.
fn python_packages() -> PathBuf {
    let default = || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python");
    let folder = std::env::var_os("HERMES_PYTHON").map_or_else(default, PathBuf::from);
    assert!(
        folder.join("fetched").is_file(),
        "{} has not Python's packages; fetch them with tools/fetch_clients.sh {}",
        folder.display(),
        folder.display()
    );
    folder
}

/// What a program of `tests/python` prints about the daemon at `socket`.
fn python(program: &str, socket: &Path) -> Value {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new("python3")
        .arg("-B")
        .arg(programs.join(program))
        .arg(socket)
        .env("PYTHONPATH", python_packages())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn openais_python_client_is_a_client() {
    let served = served();
    let seen = python("openai_client.py", &served.daemon.socket);
    let models: Vec<&str> =
        seen["models"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(models.contains(&"words") && models.contains(&"linear"), "{models:?}");
    assert_eq!((&seen["words"], &seen["usage"]), (&json!("hermes"), &json!(2)));
    let vector = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
    // Its floats come as base64 unless it is told otherwise.
    for cat in [&seen["cat"], &seen["floats"], &seen["both"][1]] {
        let expected = [0.5, 1.0, 0.5, 0.5].map(|value| value / 1.75f64.sqrt());
        let cat = vector(cat);
        assert_eq!(cat.len(), 4);
        assert!(cat.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{cat:?}");
    }
    assert_eq!(seen["tokens"], json!([0, 1]));
    let unknown = json!({"status": 404, "code": "model_not_found", "param": "model"});
    assert_eq!(seen["unknown"], unknown);
    assert_eq!(seen["empty"], json!({"status": 400, "code": null, "param": "input"}));
    assert_eq!(seen["slow"], json!({"status": 504, "code": null, "param": null}));
}

#[test]
fn python_sends_and_takes_binary_tensors() {
    let served = served();
    let seen = python("binary_tensors.py", &served.daemon.socket);
    assert_eq!(seen["server"], "hermes");
    assert_eq!((&seen["load"], &seen["unload"]), (&json!("READY"), &json!("UNAVAILABLE")));
    assert_eq!(seen["one"], json!({"shape": [1, 1, 3], "data": [20.0, 120.0, 220.0]}));
    let row = [0.0, 10.0, 20.0];
    assert_eq!(seen["many"], json!({"shape": [1, 5000, 3], "data": row.repeat(5000)}));
    check_error(&(400, json!({"error": seen["wrong"][1]})), 400, "\"x\" is missing");
    assert_eq!((&seen["wrong"][0], &seen["unknown"]), (&json!(400), &json!(404)));
}

#[test]
fn bash_completes_commands_and_options() {
    let output = Command::new(env!("CARGO_BIN_EXE_hermesctl"))
        .args(["completions", "bash"])
        .output()
        .unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let check = |words: &str, expected: &str| {
        let last = words.split(' ').count() - 1;
        let line = format!(
            "{script}\nCOMP_WORDS=({words} '') COMP_CWORD={last}\nset -- {words}\n\
             _hermesctl hermesctl \"${{COMP_WORDS[COMP_CWORD]}}\" x; echo \"${{COMPREPLY[*]}}\""
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let completed = String::from_utf8(output.stdout).unwrap();
        assert!(completed.split_whitespace().any(|word| word == expected), "{words}: {completed}");
    };
    check("hermesctl unl", "unload");
    check("hermesctl infer --inp", "--input");
    check("hermesctl ps --js", "--json");
}

#[test]
fn every_command_has_a_man_page() {
    let pages = |program: &str, expected: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(program).arg("--man-pages").arg(folder.path()).status().unwrap();
        assert!(status.success());
        for name in expected {
            let page = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
        std::fs::read_to_string(folder.path().join(expected[0])).unwrap()
    };
    let page = pages(env!("CARGO_BIN_EXE_hermesd"), &["hermesd.8"]);
    assert!(page.contains("budget"), "{page}");
    let page = pages(env!("CARGO_BIN_EXE_hermesctl"), &["hermesctl.1", "hermesctl-infer.1"]);
    assert!(page.contains("hermesctl\\-infer(1)") && page.contains("Exit codes"), "{page}");
    pages(env!("CARGO_BIN_EXE_hermes-shard"), &["hermes-shard.1", "hermes-shard-build.1"]);
    let folder = tempfile::tempdir().unwrap().path().join("none");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesctl"));
    let output = command.arg("--man-pages").arg(&folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("none: No such file"));
}
