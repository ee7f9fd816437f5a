//! Programs of `tests/python`, with the packages that they are made of.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where tools/fetch_clients.sh put Python's packages, or an end that says how to get them.
fn packages() -> PathBuf {
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

/// What a program prints, given these arguments.
pub fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> Value {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python");
    let output = Command::new("python3")
        .arg("-B")
        .arg(programs.join(program))
        .args(arguments)
        .env("PYTHONPATH", packages())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
