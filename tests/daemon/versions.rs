//! Versions as an administrator meets them: the real programs install, switch, go back and clean
//! up, whatever they are given and whenever they die.

use crate::common::daemon::Daemon;
use crate::common::frozen::Frozen;
use crate::common::programs::program;
use crate::common::served::wait_for_pass;
use crate::common::small_store::{self, SmallModel};
use crate::common::tar::{self, Entry};
use hermes::store::{Archive, Package, Role, Store};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Products of a pass that takes about a second.
const SLOW_PRODUCTS: usize = 60;

/// A store and a daemon that serves it.
struct Board {
    daemon: Daemon,
    store: TempDir,
    _folder: TempDir,
}

fn board(store: TempDir) -> Board {
    board_with(store, &[])
}

fn board_with(store: TempDir, more: &[&str]) -> Board {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&["--budget", "96MiB", "--window", "8MiB"], more].concat();
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    Board { daemon, store, _folder: folder }
}

/// A store with versions 1 to `count` of `linear`, of which number N answers N times.
fn linear_store(count: usize) -> TempDir {
    let store = tempfile::tempdir().unwrap();
    for number in 1..=count {
        write_linear(store.path(), number);
    }
    store
}

fn write_linear(store: &Path, number: usize) {
    let model = small_store::scaled_linear(number as f32);
    small_store::write_version(store, model, &number.to_string());
}

/// A version's folder in a store of its own.
fn folder_of(model: SmallModel, version: &str) -> (TempDir, PathBuf) {
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join(model.name).join(version);
    small_store::write_version(elsewhere.path(), model, version);
    (elsewhere, path)
}

/// The tar of a version's folder.
fn packed(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    Package::open(folder).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn shard_install(store: &Path, source: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(program("hermes-shard"));
    command.arg("install").arg(source).arg("--store").arg(store).args(more);
    command.stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every path below `folder`, with its length; sorted. Without what a version's first load notes
/// beside it, and what a daemon removes meanwhile.
fn tree(folder: &Path) -> Vec<(String, u64)> {
    fn walk(folder: &Path, found: &mut Vec<(String, u64)>) {
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let entries = match fs::read_dir(folder) {
            Err(error) if is_gone(&error) => return,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let entry = entry.unwrap();
            let metadata = match entry.metadata() {
                Err(error) if is_gone(&error) => continue,
                metadata => metadata.unwrap(),
            };
            if metadata.is_dir() {
                walk(&entry.path(), found);
            }
            if entry.file_name() == "rehearsal" {
                continue;
            }
            let bytes = if metadata.is_file() { metadata.len() } else { 0 };
            found.push((entry.path().display().to_string(), bytes));
        }
    }
    let mut found = Vec::new();
    walk(folder, &mut found);
    found.sort();
    found
}

fn version_bytes(store: &Path, version: &str) -> u64 {
    tree(&store.join("linear").join(version)).iter().map(|(_, bytes)| bytes).sum()
}

impl Board {
    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("hermesctl"));
        command.arg("--socket").arg(&self.daemon.socket).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs hermesctl and returns what it prints.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.says(arguments)).unwrap()
    }

    /// Runs hermesctl, which must be refused in these words.
    fn refuses(&self, arguments: &[&str], code: i32, words: &[&str]) {
        let output = self.ctl(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
    }

    /// Which version of `linear` answers.
    fn answers(&self) -> f64 {
        let request = json!({"inputs": [{
            "name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1.0, 2.0, 3.0, 4.0]
        }]});
        let (status, reply) = self.daemon.post("/v2/models/linear/infer", &request.to_string());
        assert_eq!(status, 200, "{reply}");
        reply["outputs"][0]["data"][0].as_f64().unwrap() / 20.0
    }
}

fn installed(store: &Path) -> Vec<(String, Role)> {
    let list = Store::open(store).unwrap().list("linear").unwrap();
    let mut list: Vec<_> = list.into_iter().map(|info| (info.version, info.role)).collect();
    list.sort_by(|one, other| one.0.cmp(&other.0));
    list
}

fn check_installed(store: &Path, expected: &[(&str, Role)]) {
    let expected: Vec<_> = expected.iter().map(|(name, role)| (name.to_string(), *role)).collect();
    assert_eq!(installed(store), expected);
}

#[test]
fn the_next_request_is_answered_by_the_version_in_use() {
    let board = board(linear_store(3));
    assert_eq!(board.answers(), 3.0);
    assert_eq!(board.says(&["use", "linear", "1"]), "linear serves version 1\n");
    assert_eq!(board.answers(), 1.0);
    let reply = board.json(&["rollback", "linear", "--json"]);
    assert_eq!(reply, json!({"model": "linear", "version": "3", "state": "ready"}));
    assert_eq!(board.answers(), 3.0);
    // Going back from going back is going forward.
    board.says(&["rollback", "linear"]);
    assert_eq!(board.answers(), 1.0);
    let text = board.says(&["versions", "linear"]);
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..2], ["VERSION", "SERVED"]);
    assert_eq!(lines[1][..2], ["3", "previous"]);
    assert_eq!(lines[3][..2], ["1", "current"]);
    let listed = board.json(&["versions", "linear", "--json"]);
    let bytes = version_bytes(board.store.path(), "2");
    let manifest = fs::read(board.store.path().join("linear/2/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let created_s = manifest["provenance"]["created_s"].as_u64().unwrap();
    assert_eq!(
        listed["versions"][1],
        json!({"version": "2", "role": "spare", "bytes": bytes, "created_s": created_s})
    );
}

#[test]
fn versions_that_are_not_there_are_not_used() {
    let store = linear_store(2);
    fs::write(store.path().join("linear/1/graph.onnx"), "short").unwrap();
    small_store::write(store.path(), small_store::log());
    let board = board(store);
    board.refuses(&["use", "linear", "9"], 1, &["has no version 9", "404"]);
    board.refuses(&["use", "absent", "1"], 1, &["has no model absent", "404"]);
    for name in ["../2", "..", "a/b", "", "-x"] {
        board.refuses(&["use", "linear", "--", name], 1, &["is no name of", "400"]);
    }
    board.refuses(&["use", "..%2f..", "1"], 1, &["is no name of"]);
    board.refuses(&["use", "linear", "1"], 1, &["graph.onnx", "has 5 bytes"]);
    board.refuses(&["rollback", "log"], 1, &["no version to go back to", "409"]);
    board.refuses(&["versions", "absent"], 1, &["has no model absent", "404"]);
    assert_eq!(board.answers(), 2.0);
    let post = |path: &str, body: &str| board.daemon.post(path, body);
    let (status, reply) = post("/v2/repository/models/linear/use", "{\"verison\": \"1\"}");
    assert_eq!(status, 400);
    assert!(reply["error"].as_str().unwrap().contains("expected `version`"), "{reply}");
    assert_eq!(post("/v2/repository/models/linear/use", "").0, 400);
    assert_eq!(post("/v2/repository/gc", "{\"keep\": -1}").0, 400);
    let (status, reply) = board.daemon.get("/v2/repository/gc");
    assert_eq!(status, 405);
    assert!(reply["error"].as_str().unwrap().contains("use POST"), "{reply}");
    assert_eq!(board.answers(), 2.0);
}

#[test]
fn collecting_leaves_what_is_served_and_what_was() {
    let board = board(linear_store(5));
    let store = board.store.path();
    // As a build leaves it that was killed.
    let abandoned = store.join(".staging-1-0");
    fs::create_dir_all(abandoned.join("version")).unwrap();
    fs::write(abandoned.join(".lock"), "").unwrap();
    fs::write(abandoned.join("version/graph.onnx"), "0123456789").unwrap();
    board.says(&["use", "linear", "2"]);
    let bytes = version_bytes(store, "1") + version_bytes(store, "3");
    let reply = board.json(&["gc", "--keep", "2", "--json"]);
    let names: Vec<_> =
        reply["removed"].as_array().unwrap().iter().map(|r| &r["version"]).collect();
    assert_eq!(names, [&json!("3"), &json!("1")]);
    assert_eq!((&reply["abandoned"], &reply["abandoned_bytes"]), (&json!(1), &json!(10)));
    assert_eq!(reply["bytes"], json!(bytes + 10));
    check_installed(store, &[("2", Role::Current), ("4", Role::Spare), ("5", Role::Previous)]);
    assert!(board.says(&["gc"]).starts_with("removed linear version 4 ("));
    assert_eq!(board.says(&["gc"]), "nothing to remove\n");
    check_installed(store, &[("2", Role::Current), ("5", Role::Previous)]);
    board.says(&["rollback", "linear"]);
    assert_eq!(board.answers(), 5.0);
    let names: Vec<_> = fs::read_dir(store).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["linear"]);
}

/// A model whose file `current` is lost may have one good version left: which, nobody knows.
#[test]
fn nothing_is_collected_where_nothing_is_served() {
    let store = linear_store(3);
    let current = store.path().join("linear/current");
    fs::write(&current, "not a name\n").unwrap();
    let opened = Store::open(store.path()).unwrap();
    assert_eq!(opened.collect(0).unwrap().removed, []);
    assert_eq!(installed(store.path()).len(), 3);
    opened.use_version("linear", "2").unwrap();
    assert_eq!(fs::read_to_string(&current).unwrap(), "2\n");
    assert_eq!(opened.collect(0).unwrap().removed.len(), 2);
}

/// The file `current` was whole and its version gone or damaged: the others were taken for spare
/// and removed, the good ones among them.
#[test]
fn nothing_is_collected_where_the_served_version_is_lost() {
    let store = linear_store(4);
    let opened = Store::open(store.path()).unwrap();
    let served = store.path().join("linear/4");
    fs::write(served.join("manifest.json"), "{").unwrap();
    assert_eq!(opened.collect(0).unwrap().removed, []);
    fs::remove_dir_all(&served).unwrap();
    assert_eq!(opened.collect(0).unwrap().removed, []);
    assert_eq!(installed(store.path()).len(), 3);
}

/// Every block of what was received may be wrong: a list of them all would take more memory than
/// was granted.
#[test]
fn what_was_received_is_read_up_to_the_first_problem() {
    let store = tempfile::tempdir().unwrap();
    let mut entries = good_entries();
    entries[1].content[9] ^= 1;
    entries[2].content[65536] ^= 1;
    let archive = Archive::open(std::io::Cursor::new(tar::archive(&entries))).unwrap();
    let received = archive.receive(store.path(), false, |_| ()).unwrap();
    let mut read_bytes = 0;
    let error = received.verify(|bytes| read_bytes += bytes).unwrap_err();
    assert!(error.to_string().starts_with("graph.onnx has checksum"), "{error}");
    assert_eq!(read_bytes, entries[1].content.len() as u64, "the layer file was not read");
}

/// A version called `current` was taken: with force it changed places with the file that says which
/// version is served. The model was unusable from then on, and the file, in a staging folder that
/// nobody could remove, made every later build, install and collection fail.
#[test]
fn a_version_cannot_take_the_name_of_a_file_of_the_store() {
    let store = linear_store(2);
    let (_elsewhere, folder) = folder_of(small_store::scaled_linear(3.0), "3");
    let renamed = |version: &str| {
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        manifest["version"] = json!(version);
        let copy = tempfile::tempdir().unwrap();
        let path = copy.path().join("version");
        assert!(Command::new("cp").arg("-r").arg(&folder).arg(&path).status().unwrap().success());
        fs::write(path.join("manifest.json"), manifest.to_string()).unwrap();
        (copy, path)
    };
    let board = board(store);
    for name in ["current", "CURRENT", "linear.2.f32.profile.json", ".staging-1-0", "-x"] {
        let (_copy, path) = renamed(name);
        for force in [&[][..], &["--force"]] {
            let output = shard_install(board.store.path(), &path, force);
            assert_eq!(output.status.code(), Some(1), "{name}");
            assert!(stderr(&output).contains("field version is no version name"), "{name}");
            let path = path.to_str().unwrap();
            board.refuses(&[&["install", path], force].concat(), 2, &["no version name"]);
        }
    }
    assert_eq!(board.answers(), 2.0);
    board.says(&["use", "linear", "1"]);
    assert_eq!(board.answers(), 1.0);
}

/// Whatever lies in a version's place and is no version stays there, force or not; and what an
/// earlier mistake left in a staging folder keeps nobody from installing.
#[test]
fn only_versions_change_places_and_leftovers_hinder_nobody() {
    let store = linear_store(2);
    let odd = store.path().join("linear/3");
    fs::write(&odd, "a file").unwrap();
    let left = store.path().join(".staging-1-0");
    fs::create_dir(&left).unwrap();
    fs::write(left.join(".lock"), "").unwrap();
    fs::write(left.join("version"), "a file that was exchanged").unwrap();
    let (_elsewhere, folder) = folder_of(small_store::scaled_linear(3.0), "3");
    let output = shard_install(store.path(), &folder, &["--force"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("something that is no version"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&odd).unwrap(), "a file");
    assert!(!left.exists(), "the leftover is removed");
    fs::remove_file(&odd).unwrap();
    let output = shard_install(store.path(), &folder, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    check_installed(
        store.path(),
        &[("1", Role::Spare), ("2", Role::Previous), ("3", Role::Current)],
    );
}

#[test]
fn the_served_version_cannot_be_removed() {
    let board = board(linear_store(3));
    let remove = |version: &str| {
        let path = format!("/v2/repository/models/linear/versions/{version}");
        let request = format!("DELETE {path} HTTP/1.1\r\nhost: h\r\n\r\n");
        board.daemon.connect().send(request).reply()
    };
    let (status, reply) = remove("3");
    assert_eq!(status, 409);
    assert!(reply["error"].as_str().unwrap().contains("is the served version"), "{reply}");
    let bytes = version_bytes(board.store.path(), "2");
    assert_eq!(remove("2"), (200, json!({"model": "linear", "version": "2", "bytes": bytes})));
    assert_eq!(remove("2").0, 404);
    assert_eq!(remove("..%2f3").0, 400);
    // The version to go back to is gone, and nothing says that it was there.
    board.refuses(&["rollback", "linear"], 1, &["no version to go back to"]);
    check_installed(board.store.path(), &[("1", Role::Spare), ("3", Role::Current)]);
    assert_eq!(board.answers(), 3.0);
}

#[test]
fn folders_and_tars_are_installed_without_a_daemon() {
    let store = linear_store(1);
    let (_two, folder) = folder_of(small_store::scaled_linear(2.0), "2");
    let output = shard_install(store.path(), &folder, &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = version_bytes(store.path(), "2");
    assert_eq!(report, json!({"model": "linear", "version": "2", "bytes": bytes}));
    check_installed(store.path(), &[("1", Role::Previous), ("2", Role::Current)]);

    // A tar of tar's own making, with folders and its padding.
    let (elsewhere, folder) = folder_of(small_store::scaled_linear(3.0), "3");
    let tar = elsewhere.path().join("three.tar");
    let mut command = Command::new("tar");
    command.arg("-cf").arg(&tar).arg("-C").arg(&folder);
    assert!(command.args(["./manifest.json", "graph.onnx", "layers"]).status().unwrap().success());
    let output = shard_install(store.path(), &tar, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let three = Store::open(store.path()).unwrap().current("linear").unwrap();
    assert_eq!((three.manifest.version.as_str(), three.verify(|_| ())), ("3", vec![]));

    let output = shard_install(store.path(), &tar, &[]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("exists already"), "{}", stderr(&output));
    let output = shard_install(store.path(), &tar, &["--force"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // Replaced by itself, it still can go back to the one before.
    assert_eq!(fs::read_to_string(store.path().join("linear/current")).unwrap(), "3\n2\n");
    for missing in ["absent", "absent.tar"] {
        let output = shard_install(store.path(), &elsewhere.path().join(missing), &[]);
        assert!(stderr(&output).contains(missing), "{}", stderr(&output));
    }
    let output = shard_install(store.path(), elsewhere.path(), &[]);
    assert!(stderr(&output).contains("manifest.json"), "{}", stderr(&output));
}

#[test]
fn folders_and_tars_are_installed_through_the_daemon() {
    let board = board(linear_store(1));
    assert_eq!(board.answers(), 1.0);
    let (_two, folder) = folder_of(small_store::scaled_linear(2.0), "2");
    let folder = folder.to_str().unwrap();
    let reply = board.json(&["install", folder, "--json"]);
    let bytes = version_bytes(board.store.path(), "2");
    let expected = json!({"model": "linear", "version": "2", "state": "ready", "bytes": bytes});
    assert_eq!(reply, expected);
    assert_eq!(board.answers(), 2.0);
    board.refuses(&["install", folder], 1, &["exists already", "--force", "409"]);
    board.says(&["install", folder, "--force"]);
    assert_eq!(board.answers(), 2.0);

    let (elsewhere, folder) = folder_of(small_store::scaled_linear(3.0), "3");
    let tar = elsewhere.path().join("three.tar");
    fs::write(&tar, packed(&folder)).unwrap();
    let says = board.says(&["install", tar.to_str().unwrap()]);
    assert!(says.starts_with("linear serves version 3, just installed ("), "{says}");
    assert_eq!(board.answers(), 3.0);
    board.refuses(&["install", "/absent"], 2, &["/absent"]);

    // curl needs no hermesctl, and a pipe no length.
    let url = "http://h/v2/repository/install?force=true";
    let mut command = Command::new("curl");
    command.arg("-sS").arg("--unix-socket").arg(&board.daemon.socket);
    command.args(["-H", "content-type: application/x-tar", "-X", "POST", "-T", "-", url]);
    let mut curl = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    curl.stdin.take().unwrap().write_all(&fs::read(&tar).unwrap()).unwrap();
    let reply: Value = serde_json::from_slice(&curl.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(reply["version"], json!("3"), "{reply}");
    assert_eq!(board.answers(), 3.0);
}

/// The entries of a good archive of version 2 of `linear`; its manifest is on one line.
fn good_entries() -> Vec<Entry> {
    let (_two, folder) = folder_of(small_store::scaled_linear(2.0), "2");
    let names = ["manifest.json", "graph.onnx", "layers/000-model.f32.layer"];
    let mut entries = names.map(|name| Entry::file(name, fs::read(folder.join(name)).unwrap()));
    let lines = String::from_utf8(entries[0].content.clone()).unwrap();
    let line: String = lines.lines().map(str::trim_start).collect();
    entries[0] = Entry::file(names[0], line.replace("\": ", "\":"));
    entries.to_vec()
}

/// Archives that must be refused, and a word of why.
fn hostile_archives() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = good_entries();
    let with = |entry: Entry| tar::archive(&[&good[..], &[entry]].concat());
    let changed = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = good.clone();
        change(&mut entries);
        tar::archive(&entries)
    };
    let manifest_with = |from: &str, to: &str| {
        changed(&|entries| {
            let text = String::from_utf8(entries[0].content.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            entries[0] = Entry::file("manifest.json", text.replace(from, to));
        })
    };
    let x = || b"x".to_vec();
    let graph_bytes = format!("\"graph.onnx\",\"bytes\":{}", good[1].content.len());
    let whole = tar::archive(&good);
    let mut gzip = b"\x1f\x8b\x08\0".to_vec();
    gzip.resize(1024, 0);
    vec![
        ("absolute path", with(Entry::file("/tmp/evil", x())), "not in the manifest"),
        ("path that climbs", with(Entry::file("../evil", x())), "not in the manifest"),
        ("climbing in layers", with(Entry::file("layers/../../e", x())), "not in the manifest"),
        ("deeper path", with(Entry::file("layers/a/b", x())), "not in the manifest"),
        ("hidden lock", with(Entry::file(".lock", x())), "not in the manifest"),
        ("another folder", with(Entry::kind("evil/", b'5', "")), "is a folder"),
        ("a climbing folder", with(Entry::kind("../evil/", b'5', "")), "is a folder"),
        ("symbolic link", with(Entry::kind("layers/l", b'2', "/etc/passwd")), "symbolic link"),
        ("link for a folder", with(Entry::kind("layers", b'2', "/tmp")), "symbolic link"),
        ("hard link", with(Entry::kind("graph.onnx", b'1', "/etc/passwd")), "hard link"),
        ("character device", with(Entry::kind("graph.onnx", b'3', "")), "device"),
        ("block device", with(Entry::kind("graph.onnx", b'4', "")), "device"),
        ("pipe", with(Entry::kind("graph.onnx", b'6', "")), "pipe"),
        ("sparse file", with(Entry::kind("graph.onnx", b'S', "")), "sparse"),
        ("multiple volumes", with(Entry::kind("graph.onnx", b'M', "")), "of a kind"),
        ("sparse by pax", with(Entry::pax("GNU.sparse.realsize", "9999999999")), "sparse"),
        (
            "climbing by pax",
            tar::archive(
                &[&good[..], &[Entry::pax("path", "../e"), Entry::file("graph.onnx", x())]]
                    .concat(),
            ),
            "../e",
        ),
        ("file twice", with(good[1].clone()), "there twice"),
        ("manifest twice", with(good[0].clone()), "not in the manifest"),
        ("no manifest", tar::archive(&good[1..]), "manifest.json must be"),
        ("manifest not first", changed(&|entries| entries.swap(0, 1)), "manifest.json must be"),
        ("no entry", tar::archive(&[]), "has no manifest.json"),
        ("a file is missing", tar::archive(&good[..2]), "has no layers/000-model.f32.layer"),
        ("longer than declared", changed(&|e| e[1].content.push(0)), "the manifest says"),
        ("shorter than declared", changed(&|e| e[1].content.truncate(9)), "the manifest says"),
        ("a bomb", changed(&|e| e[1].declared = 1 << 40), "has 1099511627776 bytes"),
        ("a manifest bomb", changed(&|e| e[0].declared = 1 << 40), "has 1099511627776 bytes"),
        ("a name bomb", with(Entry { declared: 1 << 40, ..Entry::kind("n", b'L', "") }), "limit"),
        ("a pax bomb", with(Entry { declared: 1 << 40, ..Entry::kind("n", b'x', "") }), "limit"),
        (
            "endless names",
            changed(&|e| e.splice(0..0, (0..99).map(|_| Entry::pax("a", "b"))).for_each(drop)),
            "more than 8 records",
        ),
        (
            "endless folders",
            changed(&|e| e.extend((0..99).map(|_| Entry::kind("layers/", b'5', "")))),
            "more folders",
        ),
        (
            "a larger disk",
            manifest_with(&graph_bytes, "\"graph.onnx\",\"bytes\":9007199254740992"),
            "bytes free",
        ),
        ("wrong checksum", changed(&|e| e[1].content[9] ^= 1), "graph.onnx has checksum"),
        ("damaged index", changed(&|e| e[2].content[70] ^= 1), "layers/000-model.f32.layer"),
        ("damaged block", changed(&|e| e[2].content[65536] ^= 1), "wrong checksum"),
        ("name with a slash", manifest_with("\"linear\"", "\"../linear\""), "no model name"),
        (
            "version with a slash",
            manifest_with("\"version\":\"2\"", "\"version\":\"a/b\""),
            "no version name",
        ),
        ("other file names", manifest_with("graph.onnx", "current"), "expected \"graph.onnx\""),
        ("other folders", manifest_with("layers/000", "lay/000"), "expected a file in layers"),
        ("no JSON", changed(&|e| e[0] = Entry::file("manifest.json", "{")), "not a manifest"),
        ("cut short in a head", whole[..700].to_vec(), "cut short"),
        ("cut short in a file", whole[..whole.len() - 1500].to_vec(), "cut short"),
        ("without its end", whole[..whole.len() - 1024].to_vec(), "cut short"),
        ("data behind the end", [&whole[..], b"more"].concat(), "behind its end"),
        ("endless zeros", [&whole[..], &[0; 2 << 20]].concat(), "behind its end"),
        ("gzip", gzip, "compressed with gzip"),
        ("no tar", vec![b'a'; 4096], "no head of a tar archive"),
        ("nothing", vec![], "cut short"),
    ]
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let store = linear_store(1);
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("archive.tar");
    let before = tree(store.path());
    for (what, bytes, word) in hostile_archives() {
        fs::write(&path, bytes).unwrap();
        let output = shard_install(store.path(), &path, &["--force"]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{what}: {text}");
        assert!(text.contains(word), "{what}: {text:?} lacks {word:?}");
        assert_eq!(tree(store.path()), before, "{what} left something");
    }
    assert_eq!(tree(elsewhere.path()).len(), 1, "nothing was written beside the store");
    fs::write(&path, tar::archive(&good_entries())).unwrap();
    let output = shard_install(store.path(), &path, &[]);
    assert!(output.status.success(), "the archive they were made of: {}", stderr(&output));
}

#[test]
fn the_daemon_refuses_hostile_archives_and_serves_on() {
    // A profile written meanwhile would be something left.
    let board = board_with(linear_store(1), &["--profiles", "false"]);
    let before = tree(board.store.path());
    let held = |board: &Board| board.daemon.open_files();
    assert_eq!(board.answers(), 1.0);
    let files = held(&board);
    for (what, bytes, word) in hostile_archives() {
        let (status, reply) = upload(&board, &bytes, &[]);
        let text = reply["error"].as_str().unwrap_or_default();
        let expected = if what == "a larger disk" { 507 } else { 400 };
        assert_eq!(status, expected, "{what}: {reply}");
        assert!(text.contains(word), "{what}: {text:?} lacks {word:?}");
        assert_eq!(tree(board.store.path()), before, "{what} left something");
    }
    assert_eq!(board.answers(), 1.0);
    assert!(held(&board) <= files + 1, "every file is closed");
    let good = tar::archive(&good_entries());
    assert_eq!(upload(&board, &good, &["content-type: application/zip"]).0, 415);
    assert_eq!(upload(&board, &good, &["content-encoding: gzip"]).0, 415);
    assert_eq!(upload(&board, &good, &[]).0, 200);
    assert_eq!(board.answers(), 2.0);
}

/// Sends an archive by hand, as far as the daemon takes it.
fn upload(board: &Board, bytes: &[u8], headers: &[&str]) -> (u16, Value) {
    let mut head = format!(
        "POST /v2/repository/install?force=true HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n",
        bytes.len()
    );
    if !headers.iter().any(|header| header.starts_with("content-type")) {
        head += "content-type: application/x-tar\r\n";
    }
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    let mut connection = board.daemon.connect().send(head + "\r\n");
    connection.flood(bytes, 1);
    connection.reply()
}

/// The daemon answers before the body has come, and closes: the answer must reach the client.
#[test]
fn a_refusal_reaches_a_client_that_still_sends() {
    let board = board(linear_store(1));
    let mut entries = good_entries();
    entries.push(Entry::file("more", vec![0; 64 << 20]));
    let elsewhere = tempfile::tempdir().unwrap();
    let path = elsewhere.path().join("long.tar");
    fs::write(&path, tar::archive(&entries)).unwrap();
    for _ in 0..3 {
        board.refuses(&["install", path.to_str().unwrap()], 1, &["\"more\"", "400"]);
    }
    // What was on its way was never held.
    assert!(board.daemon.status_kib("VmHWM:") < 80 << 10);
}

/// Sends the head of an install and `bytes` of an archive that is longer.
fn begin_install(board: &Board, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(&board.daemon.socket).unwrap();
    let length = bytes.len() + 1;
    let head = format!(
        "POST /v2/repository/install HTTP/1.1\r\nhost: h\r\ncontent-type: application/x-tar\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let board = board(linear_store(1));
    let before = tree(board.store.path());
    let good = tar::archive(&good_entries());
    // Nothing but the last byte is missing: a zero of the archive's end.
    for length in [0, 100, 600, good.len() / 2, good.len() - 1] {
        let stream = begin_install(&board, &good[..length]);
        if length > 4096 {
            wait_until("receiving", || tree(board.store.path()) != before);
            // One install at a time.
            let (status, reply) = upload(&board, &good, &[]);
            assert_eq!(status, 503, "{reply}");
            assert!(reply["error"].as_str().unwrap().contains("another install"), "{reply}");
        }
        drop(stream);
        wait_until("cleaning", || tree(board.store.path()) == before);
        wait_until("its thread's end", || upload(&board, b"", &[]).0 == 400);
    }
    assert_eq!(upload(&board, &good, &[]).0, 200);
    assert_eq!(board.answers(), 2.0);
}

/// Ctrl-C left the staging folder, as large as the model, until the next install.
#[test]
fn an_interrupted_install_removes_what_it_wrote() {
    let store = linear_store(1);
    let before = tree(store.path());
    let (_two, folder) = folder_of(small_store::scaled_linear(2.0), "2");
    let tar = packed(&folder);
    let mut command = Command::new(program("hermes-shard"));
    command.args(["install", "/dev/stdin", "--store"]).arg(store.path());
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let (first, rest) = tar.split_at(tar.len() / 2);
    pipe.write_all(first).unwrap();
    let is_staging = |(path, _): &(String, u64)| path.contains("/.staging-");
    let start = Instant::now();
    while !tree(store.path()).iter().any(is_staging) {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing is received");
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    // It reads on, until it sees that it was asked to end.
    for byte in rest {
        if child.try_wait().unwrap().is_some() || pipe.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("interrupted; what was written is removed"), "{output:?}");
    assert_eq!(tree(store.path()), before);
}

/// Kills `hermes-shard install` anywhere in its work. A rename is all that makes a version, and
/// another what serves it: whatever is there must be whole.
#[test]
fn a_killed_install_leaves_the_old_version_or_the_new() {
    let store = tempfile::tempdir().unwrap();
    let named = |factor: f32| {
        let mut model = small_store::slow(1);
        model.weights[0].2[0] = factor;
        model
    };
    small_store::write_version(store.path(), named(1.0), "1");
    let (_two, folder) = folder_of(named(2.0), "2");
    let start = Instant::now();
    assert!(shard_install(store.path(), &folder, &[]).status.success());
    let whole_us = start.elapsed().as_micros() as u64;
    let opened = Store::open(store.path()).unwrap();
    opened.use_version("slow", "1").unwrap();
    opened.remove("slow", "2").unwrap();
    let (mut old, mut new, mut random) = (0, 0, 0x9e37_79b9_7f4a_7c15u64);
    for round in 0..24 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut command = Command::new(program("hermes-shard"));
        command.arg("install").arg(&folder).arg("--store").arg(store.path());
        // Half of the rounds replace a version of the same name.
        command.args((round % 2 == 1).then_some("--force"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros((random >> 33) % whole_us));
        child.kill().unwrap();
        child.wait().unwrap();
        let served = opened.current("slow").unwrap();
        assert_eq!(served.verify(|_| ()), [], "round {round}");
        match served.manifest.version.as_str() {
            "1" => old += 1,
            _ => new += 1,
        }
        for info in opened.list("slow").unwrap() {
            let dir = opened.version("slow", &info.version).unwrap();
            assert_eq!(dir.verify(|_| ()), [], "round {round}: version {}", info.version);
        }
        opened.use_version("slow", "1").unwrap();
        if round % 4 == 0 && opened.versions("slow").unwrap().len() > 1 {
            opened.remove("slow", "2").unwrap();
        }
    }
    assert!(old > 0, "some were killed before their end: {old} old, {new} new");
    opened.collect(9).unwrap();
    let root = format!("{}/", store.path().display());
    let names = tree(store.path()).into_iter().map(|(path, _)| path.replacen(&root, "", 1));
    let left: Vec<_> = names.filter(|name| name.split('/').any(|p| p.starts_with('.'))).collect();
    // A folder that was made and not yet locked when its builder died: the next minute's
    // collection removes it.
    let is_young = |name: &String| match name.split_once('/') {
        None => name.starts_with(".staging-"),
        Some((folder, file)) => folder.starts_with(".staging-") && file == ".lock-next",
    };
    assert!(left.iter().all(is_young), "of what was killed there is left {left:?}");
    assert!(shard_install(store.path(), &folder, &["--force"]).status.success());
    assert_eq!(opened.current("slow").unwrap().manifest.version, "2");
    let board = board(store);
    board.daemon.load("slow");
}

/// A pass has its layer files open. They are unlinked under it, by the other version's coming, by
/// its removal, and by a version of the same name.
#[test]
fn a_pass_ends_with_the_version_that_it_began_with() {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::slow_identity(SLOW_PRODUCTS));
    let board = board(store);
    let ones = vec![1.0; 1024 * 16];
    let request = json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, 16, 1024], "data": ones
    }]});
    let request = request.to_string();
    let path = "/v2/models/slow/infer";
    let first = |reply: &(u16, Value)| reply.1["outputs"][0]["data"][0].as_f64();
    // Loads it.
    assert_eq!(first(&board.daemon.post(path, &request)), Some(1.0));
    let (_zeros, zeros) = folder_of(small_store::slow(SLOW_PRODUCTS), "2");
    let (_same, same) = folder_of(small_store::slow(SLOW_PRODUCTS), "1");
    let mut running = board.daemon.connect().post(path, &request);
    wait_for_pass(&board.daemon);
    let pass = Frozen::new(board.daemon.id(), &["engine", "compute"]);
    assert!(shard_install(board.store.path(), &same, &["--force"]).status.success());
    assert!(shard_install(board.store.path(), &zeros, &[]).status.success());
    drop(pass);
    assert_eq!(board.json(&["gc", "--json"])["removed"], json!([]));
    Store::open(board.store.path()).unwrap().remove("slow", "1").unwrap();
    assert_eq!(first(&running.reply()), Some(1.0), "the first version's answer");
    // Offline installs are met by a load; those through the daemon at once.
    board.says(&["use", "slow", "2"]);
    let mut running = board.daemon.connect().post(path, &request);
    wait_for_pass(&board.daemon);
    let (_one, one) = folder_of(small_store::slow_identity(SLOW_PRODUCTS), "3");
    board.says(&["install", one.to_str().unwrap()]);
    assert_eq!(first(&running.reply()), Some(0.0), "the second version's answer");
    assert_eq!(first(&board.daemon.post(path, &request)), Some(1.0), "the third's");
}

/// A model that nobody wanted any more had to be removed by hand, below a daemon that had it loaded.
#[test]
fn a_model_is_removed_with_all_that_is_of_it() {
    let store = linear_store(2);
    small_store::write(store.path(), small_store::log());
    fs::create_dir(store.path().join("backup")).unwrap();
    fs::write(store.path().join("backup/file"), "not a model's").unwrap();
    let board = board(store);
    let store = board.store.path();
    assert_eq!(board.answers(), 2.0);
    let advice = ["is the served version", "hermesctl use linear VERSION", "hermesctl rm linear"];
    board.refuses(&["rm", "linear/2"], 1, &[&advice[..], &["409"]].concat());
    // What was measured of a version goes with it, and nothing of another's.
    let measured = |version: &str| store.join(format!("linear/linear.{version}.profile.json"));
    for version in ["1.f32", "1.q8", "1.2.f32", "2.f32"] {
        fs::write(measured(version), "{}").unwrap();
    }
    assert!(board.says(&["rm", "linear/1"]).starts_with("removed linear version 1 ("));
    let left = ["1.f32", "1.q8", "1.2.f32", "2.f32"].map(|version| measured(version).exists());
    assert_eq!(left, [false, false, true, true]);
    board.refuses(&["rm", "linear/1"], 1, &["no version 1", "404"]);
    assert_eq!(board.answers(), 2.0);
    let bytes = tree(&store.join("linear")).iter().map(|(_, bytes)| bytes).sum::<u64>();
    let reply = board.json(&["rm", "linear", "--json"]);
    assert_eq!((&reply["model"], &reply["versions"]), (&json!("linear"), &json!(["2"])));
    assert!(reply["bytes"].as_u64().unwrap() >= bytes, "{reply}");
    assert_eq!(board.says(&["ps"]), "no model is loaded\n");
    assert_eq!(board.daemon.get("/v2/models/linear").0, 404);
    assert_eq!(board.daemon.post("/v2/models/linear/infer", "{}").0, 404);
    board.refuses(&["rm", "linear"], 1, &["no model linear", "404"]);
    // Whatever else lies in the store's folder stays.
    board.refuses(&["rm", "backup"], 1, &["no model backup", "404"]);
    for name in ["..", "%2e%2e", ".staging-1-0", "log/..", "log/current"] {
        board.refuses(&["rm", name], 1, &["is no name of"]);
    }
    board.refuses(&["rm", "log/1"], 1, &["is the served version"]);
    let mut names: Vec<_> = fs::read_dir(store).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["backup", "log"]);
    // It may come again.
    let (_elsewhere, folder) = folder_of(small_store::scaled_linear(3.0), "2");
    board.says(&["install", folder.to_str().unwrap()]);
    assert_eq!(board.answers(), 3.0);
    assert!(board.says(&["rm", "linear"]).starts_with("removed linear with its versions: 2 ("));
}

/// A pass has its files open: it ends as it began, and whoever waits behind it is told.
#[test]
fn a_model_may_be_removed_under_a_pass() {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::slow_identity(SLOW_PRODUCTS));
    let board = board(store);
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 16, 1024],
                       "data": vec![1.0; 1024 * 16]});
    let request = json!({ "inputs": [input] }).to_string();
    let path = "/v2/models/slow/infer";
    board.daemon.load("slow");
    let mut running = board.daemon.connect().post(path, &request);
    wait_for_pass(&board.daemon);
    let pass = Frozen::new(board.daemon.id(), &["engine", "compute"]);
    let asked = "DELETE /v2/repository/models/slow HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut removing = board.daemon.connect().send(asked);
    let start = Instant::now();
    while board.store.path().join("slow").exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it stays");
        std::thread::yield_now();
    }
    let mut late = board.daemon.connect().post(path, &request);
    drop(pass);
    assert_eq!(running.reply().1["outputs"][0]["data"][0], 1.0);
    assert_eq!(removing.reply().0, 200);
    // The pass may not have its first block yet; nobody gets a seat in it all the same.
    assert_eq!(late.reply().0, 404);
    assert_eq!(board.says(&["ps"]), "no model is loaded\n");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done to an archive, what is installed of it is what its manifest says, and
    /// nothing lies beside it.
    #[test]
    fn changed_archives_are_installed_whole_or_not_at_all(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        order in Just((0..3).collect::<Vec<usize>>()).prop_shuffle(),
        left_out in prop::option::weighted(0.2, 0..3usize),
        end in prop::option::weighted(0.3, any::<prop::sample::Index>()),
    ) {
        let store = tempfile::tempdir().unwrap();
        let good = good_entries();
        let order = order.into_iter().filter(|index| Some(*index) != left_out);
        let entries: Vec<Entry> = order.map(|index| good[index].clone()).collect();
        let mut bytes = tar::archive(&entries);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(end) = end {
            bytes.truncate(end.index(bytes.len()));
        }
        let installed = Archive::open(bytes.as_slice())
            .and_then(|archive| archive.receive(store.path(), false, |_| ()))
            .and_then(|received| received.verify(|_| ()))
            .and_then(|verified| verified.install(false));
        let names: Vec<_> = fs::read_dir(store.path()).unwrap().map(|e| e.unwrap()).collect();
        match installed {
            Ok(dir) => {
                prop_assert_eq!(names.len(), 1);
                prop_assert_eq!(dir.verify(|_| ()), []);
                let current = Store::open(store.path()).unwrap().current(&dir.manifest.model);
                prop_assert_eq!(&current.unwrap().manifest.version, &dir.manifest.version);
            }
            Err(_) => prop_assert_eq!(names.len(), 0),
        }
    }
}
