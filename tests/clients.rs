//! Real clients: shells, man, Python's packages, hermesctl.

mod common;

use std::process::Command;

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
