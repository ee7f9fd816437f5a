//! The papers' experiment from end to end, on a tiny model: every policy, every file, and the same
//! outputs whatever the flow.

mod common;

use common::programs::program;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A store with bert-tiny, made once.
fn store() -> PathBuf {
    static STORE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = STORE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bert-tiny.onnx");
        let bench = program("hermes-bench");
        check(&run(bench, &["synth", "bert-tiny", "-o", file.to_str().unwrap()]));
        let store = folder.path().join("store");
        let paths = [file.to_str().unwrap(), "--store", store.to_str().unwrap()];
        let shard = program("hermes-shard");
        check(&run(shard, &["build", paths[0], paths[1], paths[2]]));
        folder
    });
    folder.path().join("store")
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect("the program starts")
}

fn check(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `hermes-bench COMMAND` with the store, `out` and more.
fn bench(command: &str, out: &Path, more: &[&str]) -> Output {
    let store = store();
    let places = ["--store", store.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let arguments: Vec<&str> = [command].iter().chain(&places).chain(more).copied().collect();
    run(program("hermes-bench"), &arguments)
}

/// The lines of a CSV below its head, each as its fields, after a look at the head.
fn rows(path: &Path, head: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(head));
    lines.map(|line| line.split(',').map(str::to_string).collect()).collect()
}

const STEPS: [&str; 9] = [
    "load-all",
    "pipeswitch",
    "pipeload-1",
    "pipeload-2",
    "pipeload-4",
    "pipeload-6",
    "tape",
    "T_io",
    "T_compute",
];

#[test]
fn every_policy_is_measured_on_every_disk_and_gives_the_same_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/paper");
    let disks = ["--models", "bert-tiny", "--disk", "real,sata", "--quick", "--tokens", "16"];
    let output = bench("paper", &out, &disks);
    check(&output);
    let head = "model,disk,policy,repeat,tokens,window_bytes,load_us,latency_us,stall_us,\
                bytes_read,window_peak_bytes,peak_rss_bytes,charged_bytes,digest,plan";
    let rows = rows(&out.join("paper.csv"), head);
    assert_eq!(rows.len(), 2 * STEPS.len());
    for disk in ["real", "sata"] {
        let here = rows.iter().filter(|row| row[0] == "bert-tiny" && row[1] == disk);
        let steps: Vec<&str> = here.map(|row| row[2].as_str()).collect();
        assert_eq!(steps, STEPS);
    }
    let passes = || rows.iter().filter(|row| row[2] != "T_io");
    let digests: BTreeSet<&str> = passes().map(|row| row[13].as_str()).collect();
    assert_eq!(digests.len(), 1, "{digests:?}");
    let number = |row: &[String], field: usize| row[field].parse::<u64>().unwrap();
    let streamed = || passes().filter(|row| row[2] != "T_compute");
    let read: BTreeSet<u64> = streamed().map(|row| number(row, 9)).collect();
    assert_eq!(read.len(), 1, "every policy reads the whole tape: {read:?}");
    for row in streamed() {
        let (whole, peak) = (number(row, 9), number(row, 10));
        // Blocks count in whole pages.
        assert!(peak > 0 && peak <= whole + whole / 16, "{row:?}");
        assert!(number(row, 7) > 0 && number(row, 11) > peak, "{row:?}");
        let keeps_all = matches!(row[2].as_str(), "load-all" | "pipeswitch");
        assert!(!keeps_all || peak >= whole, "{row:?}");
    }
    let text = fs::read_to_string(out.join("paper.md")).unwrap();
    assert!(text.contains("The outputs of all 16 passes are identical."), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), text.trim_end());
    let mut names: Vec<String> = fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let expected = [
        "gantt-bert-tiny-sata.svg",
        "memory-bert-tiny-real.svg",
        "memory-bert-tiny-sata.svg",
        "memory-bert-tiny.svg",
        "paper.csv",
        "paper.md",
        "profiles",
    ];
    assert_eq!(names, expected);
    let gantt = fs::read_to_string(out.join("gantt-bert-tiny-sata.svg")).unwrap();
    for policy in &STEPS[..7] {
        assert!(gantt.contains(&format!("{policy}\n")), "{policy} is not in the picture");
    }

    // More is added to it, and nothing is measured for what is there.
    let more = ["--models", "bert-tiny", "--disk", "nvme", "--quick", "--tokens", "16"];
    check(&bench("paper", &out, &[&more[..], &["--policies", "tape,pipeload-2"]].concat()));
    let again = bench("paper", &out, &["--repeat", "0", "--tokens", "16"]);
    check(&again);
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(text.contains("The outputs of all 19 passes are identical."), "{text}");
    assert!(text.contains("bert-tiny on nvme") && text.contains("bert-tiny on sata"), "{text}");
    let other = bench("paper", &out, &["--repeat", "0", "--tokens", "17"]);
    let text = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && text.contains("line 2: a pass of 16 tokens"), "{text}");
}

#[test]
fn a_sweep_begins_at_the_smallest_budget_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--model", "bert-tiny", "--disk", "real", "--quick", "--budgets", "3"];
    let output = bench("sweep", folder.path(), &more);
    check(&output);
    let head = "model,disk,budget_bytes,repeat,pass,latency_us,stall_us,bytes_read,\
                window_peak_bytes,pinned_bytes,peak_rss_bytes,charged_bytes,digest";
    let rows = rows(&folder.path().join("sweep-bert-tiny.csv"), head);
    assert_eq!(rows.len(), 3 * 2, "two passes in each of three budgets");
    let budget = |row: &[String]| row[2].parse::<u64>().unwrap();
    assert!(budget(&rows[0]) < budget(&rows[2]) && budget(&rows[2]) < budget(&rows[4]));
    let last = rows.last().unwrap();
    assert_eq!((last[4].as_str(), last[7].as_str()), ("2", "0"), "everything was pinned: {last:?}");
    for end in ["md", "svg"] {
        assert!(folder.path().join(format!("sweep-bert-tiny.{end}")).exists());
    }
}

#[test]
fn what_cannot_be_measured_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |more: &[&str], wanted: &str| {
        let output = bench("paper", folder.path(), more);
        assert!(!output.status.success(), "{more:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    };
    refuse(&["--models", "bert-huge"], "make it with `hermes-bench synth bert-huge");
    refuse(&["--disk", "floppy"], "give real, sd, emmc, sata, nvme, or blkio:MB");
    refuse(&["--policies", "pipeload"], "pipeload-N with N agents");
    refuse(&["--repeat", "0"], "paper.csv has no passes, and none were measured");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
