//! Disks that are full or cannot be written to, and builds that are killed.

use super::common::skip::skip;
use super::{Place, files, stderr, tool};
use hermes::store::Store;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A file system in memory that only root can mount; gone with its guard.
struct Mount {
    path: PathBuf,
}

impl Mount {
    /// `None` where this process may not mount, or the machine forbids it.
    fn new(path: PathBuf, options: &str) -> Option<Mount> {
        std::fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(&path).stderr(Stdio::null());
        let is_mounted = mount.status().is_ok_and(|status| status.success());
        if !is_mounted {
            skip("no file system can be mounted here");
        }
        is_mounted.then_some(Mount { path })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// How many bytes a refusal says are needed.
fn needed_bytes(said: &str) -> u64 {
    let (_, rest) = said.split_once("bytes free, ").unwrap_or_else(|| panic!("{said}"));
    rest.split_once(' ').unwrap().0.parse().unwrap()
}

#[test]
fn a_disk_too_small_is_noticed_before_writing() {
    let place = Place::with_synth(&["bert-tiny"]);
    let Some(_small) = Mount::new(place.store(), "size=1m") else { return };
    let words = [
        "bytes",
        "free",
        "free some room (hermesctl gc removes old versions) or give another store",
    ];
    place.refuse(&["--variants", "f32,q8"], &words);
    let output = place.command(&["--variants", "f32,q8"]).output().unwrap();
    let needed = needed_bytes(&stderr(&output));

    // What was asked for is enough, and not far more than enough.
    let Some(_enough) = Mount::new(place.path("enough"), &format!("size={needed}")) else { return };
    let mut command = tool();
    command.arg("build").arg(place.model()).arg("--store").arg(place.path("enough"));
    let output = command.args(["--variants", "f32,q8"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let used: u64 = files(&place.path("enough")).values().map(|bytes| bytes.len() as u64).sum();
    assert!(needed < 3 * used, "{needed} bytes were asked for, {used} taken");
}

/// A limit on the size of files stands for a disk that fills up during a build: writes fail in the
/// same places. The shell ignores the signal that would come with the error.
#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    let place = Place::with_synth(&["bert-tiny"]);
    let limited = |blocks: u32, arguments: &[&str]| {
        let build = place.command(arguments);
        let mut command = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(build.get_program()).args(build.get_args());
        command
    };
    let words = ["cannot write", "File too large"];
    // Before the graph, within it, within the first and within a later layer file.
    for blocks in [0, 64, 512, 1500] {
        place.refuse_command(limited(blocks, &[]), &words);
    }
    place.build(&[]);
    place.refuse_command(limited(512, &["--force", "--variants", "f32,q8"]), &words);
    place.check_sound("1");
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    let place = Place::with_linear();
    std::fs::write(place.store(), "a file").unwrap();
    let store = place.store();
    let store = store.to_str().unwrap();
    place.refuse(&[], &["cannot write to", store]);
    std::fs::remove_file(store).unwrap();
    let Some(_mount) = Mount::new(place.store(), "size=8m,ro") else { return };
    place.refuse(&[], &["cannot write to", store, "Read-only file system"]);
}

/// Names in the store's folder that belong to builds.
fn leftovers(store: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(store).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

/// Ctrl-C left the staging folder, as large as the model, until the next build.
#[test]
fn an_interrupted_build_removes_what_it_wrote() {
    let place = Place::with_synth(&["bert-tiny"]);
    let interrupt = |version: &str| {
        let mut command = place.command(&["--version", version, "--variants", "f32,q8,a4"]);
        let mut build = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while build.try_wait().unwrap().is_none() {
            if place.store().is_dir() && !leftovers(&place.store()).is_empty() {
                let id = build.id().to_string();
                Command::new("kill").args(["-INT", &id]).status().unwrap();
                break;
            }
        }
        let output = build.wait_with_output().unwrap();
        assert!(leftovers(&place.store()).is_empty(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        said.contains("interrupted; what was written is removed")
            && output.status.code() == Some(1)
            && !place.store().join("small").join(version).exists()
    };
    // A signal may come too late.
    assert!((0..20).any(|round| interrupt(&format!("v{round}"))), "no build was interrupted");
}

/// A build may end at any moment. What is served before is served after, what is new is there
/// whole or not at all, and the next build works and clears away what was left.
#[test]
fn a_killed_build_leaves_nothing_that_looks_finished() {
    let place = Place::with_synth(&["bert-tiny"]);
    place.build(&[]);
    let started = Instant::now();
    place.build(&["--version", "timed", "--variants", "f32,q8"]);
    let build_us = started.elapsed().as_micros() as u64;

    let (mut killed, mut random) = (0, 7u64);
    for round in 0..20 {
        // Half of the builds replace the served version, half add one.
        let new = format!("new{round}");
        let arguments = match round % 2 {
            0 => vec!["--force", "--variants", "q8,f32"],
            _ => vec!["--version", &new, "--variants", "f32,q8"],
        };
        let mut command = place.command(&arguments);
        let mut build = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round);
        sleep(Duration::from_micros((random >> 33) % build_us));
        build.kill().unwrap();
        killed += usize::from(!build.wait().unwrap().success());

        let store = Store::open(&place.store()).unwrap();
        assert_eq!(store.models().unwrap(), ["small"]);
        for version in store.versions("small").unwrap() {
            place.check_sound(&version);
        }
        let version = if round % 2 == 0 { "1" } else { &new };
        place.build(&["--force", "--version", version, "--variants", "f32,q8"]);
        place.check_sound(version);
        assert_eq!(store.current("small").unwrap().manifest.version, version);
        // A folder without its lock is a build's that may just be starting: it stays a minute.
        let mut left = leftovers(&place.store());
        left.retain(|name| place.store().join(name).join(".lock").exists());
        assert!(left.is_empty(), "round {round} left {left:?}");
    }
    assert!(killed > 0, "every build was faster than its end");
}
