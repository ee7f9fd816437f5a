//! ONNX's own node tests: each is answered rightly, or refused when it is sharded.

use crate::common::python;
use serde_json::Value;
use std::path::Path;

/// Of how many tests the package has, the least that are right. It is raised with what is gained,
/// never lowered.
const TESTS: u64 = 1884;
const RIGHT: u64 = 1361;

#[test]
fn node_tests_are_right_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_hermesd")).parent().unwrap();
    let seen = python::run("node_tests.py", &[programs, folder.path()]);
    let count = |verdict: &str| seen[verdict].as_u64().unwrap_or(0);
    assert_eq!(seen["alive"], Value::Bool(true), "hermesd died: {seen:#}");
    assert_eq!(count("tests"), TESTS, "another version of the package onnx");
    assert_eq!((count("wrong"), count("failed")), (0, 0), "{seen:#}");
    assert!(count("right") >= RIGHT, "{} are right: {seen:#}", count("right"));
}
