//! The program of the package starts.

#[path = "../tests/common/programs.rs"]
mod programs;

use std::process::Command;

#[test]
fn it_tells_its_name_and_version() {
    let name = env!("CARGO_PKG_NAME");
    let output = Command::new(programs::program(name)).arg("--version").output().unwrap();
    let expected = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}
