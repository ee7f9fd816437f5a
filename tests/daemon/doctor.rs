//! `hermesctl doctor` on the machine that runs the tests, whatever that offers.

use crate::common::programs::program;
use crate::common::served::{hermesctl, serve};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const STATES: [&str; 3] = ["ok", "note", "problem"];

/// The report on `store`, without a daemon. The exit code is held against it.
fn report(store: &Path) -> Value {
    let nowhere = store.join("no-socket");
    let arguments = ["doctor", "--json", "--store", store.to_str().unwrap()];
    let (code, text, error) = hermesctl(&nowhere, &arguments);
    assert_eq!(error, "");
    let report: Value = serde_json::from_str(&text).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let has_problem = checks.iter().any(|check| check["state"] == "problem");
    assert_eq!((code, report["well"].as_bool()), (i32::from(has_problem), Some(!has_problem)));
    report
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let mut checks = report["checks"].as_array().unwrap().iter();
    checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
}

fn found<'a>(report: &'a Value, name: &str) -> &'a str {
    check(report, name)["found"].as_str().unwrap()
}

#[test]
fn a_machine_is_described_check_by_check() {
    let store = tempfile::tempdir().unwrap();
    let report = report(store.path());
    for entry in report["checks"].as_array().unwrap() {
        assert!(STATES.contains(&entry["state"].as_str().unwrap()), "{entry}");
        assert!(!entry["found"].as_str().unwrap().is_empty(), "{entry}");
        let is_problem = entry["state"] == "problem";
        assert!(!is_problem || entry["fix"].is_string(), "a problem comes with its fix: {entry}");
    }
    let names = ["board", "kernel", "page size", "cores", "governor", "memory", "swap"];
    names.iter().chain(&["MemoryMax=", "PSI", "store", "disk"]).for_each(|name| {
        check(&report, name);
    });
    assert!(found(&report, "page size").ends_with("KiB"));
    assert_eq!(check(&report, "daemon")["state"], "note");
    // A folder of memory is a problem of its own, and not measured.
    if check(&report, "disk")["state"] != "problem" {
        assert!(found(&report, "bandwidth").contains("MB/s"), "{report}");
    }
    assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn a_store_in_memory_is_a_problem() {
    let report = report("/dev/shm".as_ref());
    let disk = check(&report, "disk");
    assert_eq!(disk["state"], "problem", "{disk}");
    assert!(disk["fix"].as_str().unwrap().contains("on a disk"), "{disk}");
    let (code, text, _) = hermesctl("none".as_ref(), &["doctor", "--store", "/dev/shm"]);
    assert_eq!(code, 1);
    assert!(text.contains("disk") && text.contains("PROBLEM") && text.contains("\n\n# disk\n"));
}

#[test]
fn where_nothing_can_be_read_or_written_nothing_is_measured() {
    let report = report("/proc".as_ref());
    let bandwidth = check(&report, "bandwidth");
    assert_eq!(bandwidth["state"], "note");
    assert!(bandwidth["found"].as_str().unwrap().contains("not measured"), "{bandwidth}");
}

#[test]
fn a_store_that_is_not_there_is_named() {
    let (code, text, error) = hermesctl("none".as_ref(), &["doctor", "--store", "/none/store"]);
    assert_eq!((code, text.as_str()), (2, ""));
    assert!(error.contains("/none/store: no such folder"), "{error}");
}

#[test]
fn the_store_of_the_environment_is_looked_at() {
    let store = tempfile::tempdir().unwrap();
    let doctor = |store: &Path| {
        let mut command = Command::new(program("hermesctl"));
        command.args(["--socket", "none", "doctor", "--json"]).env("HERMES_STORE", store);
        command.output().unwrap()
    };
    let report: Value = serde_json::from_slice(&doctor(store.path()).stdout).unwrap();
    let seen = Path::new(found(&report, "store"));
    assert_eq!(seen, store.path().canonicalize().unwrap());
    let refused = doctor("/none/store".as_ref());
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("HERMES_STORE"));
}

#[test]
fn a_daemon_that_answers_is_told_with_its_budget() {
    let served = serve(&["--budget", "96MiB", "--window", "8MiB"]);
    let socket = served.folder.path().join("s");
    let (_, text, _) = hermesctl(&socket, &["doctor", "--json", "--store", "/proc"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let daemon = check(&report, "daemon");
    assert_eq!(daemon["state"], "ok");
    let words = daemon["found"].as_str().unwrap();
    assert!(words.contains(env!("CARGO_PKG_VERSION")) && words.contains("96 MiB"), "{words}");
    assert!(words.ends_with(&format!("it serves unix:{}", socket.display())), "{words}");
}
