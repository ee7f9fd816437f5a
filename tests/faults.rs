//! A board that changes under a running engine: profiles that cannot be believed, direct reads
//! refused, cores taken away, a disk that grows slow, another budget. Nothing breaks, answers stay
//! the same, and the log says what happened.

mod common;

use common::daemon::{Daemon, command};
use common::skip::skip;
use common::small_store;
use hermes::engine::{Array, Cancel, Config, DiskKind, Engine, EngineError, Reply, Request};
use hermes::plan::Way;
use hermes::store::manifest::HEAP_BYTES_PER_BYTE;
use hermes::stream::{Category, Faults};
use hermes::sys::affinity::allowed_cores;
use log::{LevelFilter, Log, Metadata, Record};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(120);

/// Products of `slow`, each with a weight of 4 MiB.
const PRODUCTS: usize = 6;

/// What the engines of this process have logged.
static LOG: Mutex<String> = Mutex::new(String::new());

struct Memory;

impl Log for Memory {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        *LOG.lock().unwrap_or_else(PoisonError::into_inner) +=
            &format!("{} {}\n", record.level(), record.args());
    }

    fn flush(&self) {}
}

fn keep_log() {
    static MEMORY: Memory = Memory;
    // Another test of this program was first.
    if log::set_logger(&MEMORY).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not seen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon over a store of its own, and its log.
struct Board {
    daemon: Daemon,
    store: PathBuf,
    log: PathBuf,
    _folder: TempDir,
}

impl Board {
    fn start(folder: TempDir, arguments: &[&str]) -> Board {
        let (store, log) = (folder.path().join("store"), folder.path().join("log"));
        fs::create_dir_all(&store).unwrap();
        small_store::write(&store, small_store::linear());
        small_store::write(&store, small_store::slow_identity(PRODUCTS));
        let socket = folder.path().join("s");
        let arguments = [&["--budget", "96MiB"], arguments].concat();
        let mut command = command(&store, &socket, &arguments);
        let daemon = Daemon::spawn(command.stderr(File::create(&log).unwrap()), &socket);
        Board { daemon, store, log, _folder: folder }
    }

    /// Waits until the log has `text` more than `before` times.
    fn wait_logged(&self, text: &str, before: usize) {
        let log = || fs::read_to_string(&self.log).unwrap();
        let start = Instant::now();
        while log().matches(text).count() <= before {
            assert!(start.elapsed() < PATIENCE, "{text:?} is not in the log:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn check_answer(&self) {
        let x: Vec<u32> = (0..1024).collect();
        let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1, 1, 1024], "data": x}]);
        let request = json!({ "inputs": inputs }).to_string();
        let (status, reply) = self.daemon.post("/v2/models/slow/infer", &request);
        assert_eq!(status, 200, "{reply}");
        let floats: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        assert_eq!(reply["outputs"][0]["data"], json!(floats));
    }

    /// The right answer, or an error that names `file`.
    fn check_answer_or_refusal(&self, file: &str) {
        let x: Vec<u32> = (0..1024).collect();
        let inputs = json!([{"name": "x", "datatype": "FP32", "shape": [1, 1, 1024], "data": x}]);
        let request = json!({ "inputs": inputs }).to_string();
        let (status, reply) = self.daemon.post("/v2/models/slow/infer", &request);
        match status {
            200 => self.check_answer(),
            _ => assert!(reply["error"].as_str().unwrap().contains(file), "{status} {reply}"),
        }
    }
}

/// A profile that lies beside a model is believed where all of it is as it should be; else it is
/// told, and measured anew.
#[test]
fn a_profile_that_cannot_be_believed_is_told_and_measured_anew() {
    let board = Board::start(tempfile::tempdir().unwrap(), &[]);
    let path = board.store.join("linear/linear.1.f32.profile.json");
    let load = || assert_eq!(board.daemon.post("/v2/repository/models/linear/load", "").0, 200);
    let read = || -> Option<Value> { serde_json::from_slice(&fs::read(&path).ok()?).ok() };
    load();
    wait_for("a profile", || read().is_some());
    let good = read().unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut other = good.clone();
        change(&mut other);
        other.to_string()
    };
    for (text, expected) in [
        ("{\"format\": 1,".to_string(), "the profile is damaged: EOF"),
        (with(&|p| p["reads"] = json!([])), "the profile is damaged: reads: there are none"),
        (with(&|p| p["format"] = json!(99)), "the profile has format 99"),
        (with(&|p| p["model"] = json!("other")), "the profile is of other 1 f32, not of linear"),
        (with(&|p| p["board"]["cpu"] = json!("Z80")), "stale: the processor was Z80 and is"),
        (with(&|p| p["board"]["disk"] = json!("tape")), "stale: the disk was tape and is"),
        (with(&|p| p["hermes"] = json!("0.0.1")), "stale: the version of Hermes was 0.0.1"),
    ] {
        fs::write(&path, &text).unwrap();
        load();
        board.wait_logged(expected, 0);
        let is_other = || fs::read_to_string(&path).is_ok_and(|found| found != text);
        wait_for("another profile", || is_other() && read().is_some());
        assert_eq!(read().unwrap()["board"], good["board"], "after: {expected}");
        assert_eq!(board.daemon.get("/v2/models/linear/plan").0, 200, "after: {expected}");
    }
    let log = fs::read_to_string(&board.log).unwrap();
    assert_eq!(log.matches("it is measured anew").count(), 7, "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// One figure of a profile that was off took the engine's thread along, again after each start; so
/// many loaders the whole process; and a pipe in its place was read for ever.
#[test]
fn no_figure_of_a_profile_is_believed() {
    let board = Board::start(tempfile::tempdir().unwrap(), &["--profiles", "false"]);
    let path = board.store.join("linear/linear.1.f32.profile.json");
    assert_eq!(board.daemon.post("/v2/repository/models/linear/profile", "").0, 200);
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let load = |what: &str| {
        let (status, told) = board.daemon.post("/v2/repository/models/linear/load", "");
        assert_eq!(status, 200, "{what}: {told}");
        let x = json!({"name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1, 0, 0, 0]});
        let request = json!({ "inputs": [x] }).to_string();
        let (status, reply) = board.daemon.post("/v2/models/linear/infer", &request);
        assert_eq!(
            (status, &reply["outputs"][0]["data"]),
            (200, &json!([0.0, 10.0, 20.0])),
            "{what}"
        );
    };
    let mut figures = vec![];
    numbers(&good, &mut String::new(), &mut figures);
    assert!(figures.len() > 30, "{figures:?}");
    for pointer in &figures {
        for wrong in
            [json!(0), json!(1e300), json!(1e-300), json!(u64::MAX), json!(-1), json!(99_999)]
        {
            let mut profile = good.clone();
            *profile.pointer_mut(pointer).unwrap() = wrong.clone();
            fs::write(&path, profile.to_string()).unwrap();
            load(&format!("{pointer} is {wrong}"));
        }
    }
    let other = good.to_string().replace("\"count\":1,", "\"count\":2,");
    fs::write(&path, other).unwrap();
    load("of another tape");
    board.wait_logged("the profile is of another tape", 0);
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    load("a pipe");
    board.wait_logged("the profile is damaged: is not a regular file", 0);
    let log = fs::read_to_string(&board.log).unwrap();
    assert!(!log.contains("panicked") && !log.contains("failed within"), "{log}");
}

/// Pointers to every number of a value.
fn numbers(value: &Value, at: &mut String, found: &mut Vec<String>) {
    let length = at.len();
    let mut inside = |name: &str, value: &Value| {
        at.push_str(&format!("/{name}"));
        numbers(value, at, found);
        at.truncate(length);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| inside(name, value)),
        // The first of several says it for all.
        Value::Array(items) => {
            items.first().into_iter().for_each(|value| inside("0", value));
        }
        Value::Number(_) => found.push(at.clone()),
        _ => {}
    }
}

/// Whoever copied another file over a layer's while it was mapped changed answers without a word, or
/// ended the daemon by a SIGBUS. What stays is ours, and what is cut off is told by its name.
#[test]
fn a_layer_that_is_changed_or_cut_under_the_daemon_gives_no_wrong_answer() {
    let arguments = ["--profiles", "false", "--source", "mapped"];
    let board = Board::start(tempfile::tempdir().unwrap(), &arguments);
    let layer = board.store.join("slow/1/layers/000-model.f32.layer");
    board.check_answer();
    board.check_answer();
    let good = fs::read(&layer).unwrap();
    let mut bad = good.clone();
    bad.iter_mut().skip(1 << 20).step_by(4096).for_each(|byte| *byte ^= 1);
    // As cp does it: the same file, with another content.
    let over = |content: &[u8]| {
        let mut file = File::options().write(true).open(&layer).unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
    };
    over(&bad);
    board.check_answer_or_refusal("000-model.f32.layer");
    over(&good);
    assert_eq!(board.daemon.post("/v2/repository/models/slow/load", "").0, 200);
    board.check_answer();
    File::options().write(true).open(&layer).unwrap().set_len(1 << 20).unwrap();
    board.check_answer_or_refusal("000-model.f32.layer");
    assert_eq!(board.daemon.get("/v2/health/live").0, 200);
}

/// The same in the middle of a pass that maps what is cut off, and while all of it is pinned.
#[test]
fn a_mapped_layer_may_be_cut_in_mid_pass_and_while_it_is_pinned() {
    for pin_bytes in [0, u64::MAX] {
        let store = slow_store();
        small_store::write(store.path(), small_store::scaled_linear(0.0));
        let source = Some(Way::Mapped);
        let config = Config { pin_bytes, source, ..Config::new(store.path(), 1 << 30) };
        let engine = Engine::start(config).unwrap();
        infer(&engine);
        assert_eq!(infer(&engine).stats.bytes_read == 0, pin_bytes > 0);
        let running = begin(&engine);
        let layer = store.path().join("slow/1/layers/000-model.f32.layer");
        File::options().write(true).open(&layer).unwrap().set_len(1 << 20).unwrap();
        let expected = request(16).inputs[0].1.clone();
        for result in [running.recv().unwrap(), engine.infer(request(16))] {
            match result {
                Ok(reply) => assert!(reply.outputs[0].1 == expected, "the answer is another one"),
                Err(error) => assert!(error.to_string().contains("000-model.f32.layer"), "{error}"),
            }
        }
        let x = Array::from_f32(vec![1, 1, 4], &[1.0; 4]).unwrap();
        let inputs = vec![("x".to_string(), x)];
        let other = Request { model: "linear".to_string(), inputs, ..request(1) };
        assert_eq!(engine.infer(other).unwrap().outputs[0].1.to_f32(), Some(vec![0.0; 3]));
    }
}

/// A loader that panics once kept compute waiting for ever.
#[test]
fn a_loader_that_panics_fails_the_pass_and_is_there_for_the_next() {
    keep_log();
    let store = slow_store();
    let faults = Faults { seed: 3, panic_every: 60, ..Faults::default() };
    let config = Config {
        disk: DiskKind::Faulty(faults),
        pin_bytes: 0,
        source: Some(Way::Mapped),
        ..Config::new(store.path(), 1 << 30)
    };
    let engine = Engine::start(config).unwrap();
    let expected = request(16).inputs[0].1.clone();
    let (mut failed, mut answered) = (0, 0);
    for _ in 0..40 {
        match engine.infer(request(16)) {
            Ok(reply) => {
                assert!(reply.outputs[0].1 == expected);
                answered += 1;
            }
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("a loader failed within"), "{text}");
                failed += 1;
                engine.load("slow").unwrap();
            }
        }
    }
    assert!(failed > 0 && answered > 0 && engine.is_alive(), "{failed} {answered}");
    assert!(
        LOG.lock().unwrap_or_else(PoisonError::into_inner).contains("ERROR loader"),
        "{}",
        LOG.lock().unwrap_or_else(PoisonError::into_inner)
    );
}

/// Where fewer threads were allowed than a trial or a plan needed, it panicked in the middle of it.
#[test]
fn too_few_threads_are_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::linear());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("s");
    let daemon = command(&store, &socket, &["--budget", "96MiB", "--profiles", "false"]);
    // Others may not look into the folder of whoever built the programs.
    let program = folder.path().join("hermesd");
    fs::copy(daemon.get_program(), &program).unwrap();
    // The limit of processes binds others than root, and counts all of a user's.
    let limited = |count: usize| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nproc={count}")).arg(&program);
        command.args(daemon.get_args()).uid(54_321).env("MEMORY_PRESSURE_WATCH", "/dev/null");
        command
    };
    let is_root = nix::unistd::Uid::effective().is_root();
    let mut version = Command::new(&program);
    version.arg("--version").uid(54_321).stdout(Stdio::null());
    if !is_root || !version.status().is_ok_and(|status| status.success()) {
        return skip("only root can be somebody else, who may run the programs");
    }
    let output = limited(6).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("raise TasksMax="), "{text}");
    let told = text.split("threads, ").nth(1).and_then(|rest| rest.split(' ').next());
    let needed: usize = told.unwrap().parse().unwrap();
    let daemon = Daemon::spawn(&mut limited(needed), &socket);
    assert_eq!(daemon.post("/v2/repository/models/linear/profile", "").0, 200);
}

/// A file system without direct reads is mapped, whatever the config says, and planned so.
#[test]
fn direct_reads_are_planned_only_where_there_are_any() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return skip("there is no /dev/shm") };
    let board = Board::start(folder, &["--source", "direct", "--profiles", "false"]);
    board.check_answer();
    board.wait_logged("no direct reads here", 0);
    let (status, profile) = board.daemon.post("/v2/repository/models/slow/profile", "");
    assert_eq!(status, 200, "{profile}");
    let ways: Vec<&Value> =
        profile["reads"].as_array().unwrap().iter().map(|read| &read["way"]).collect();
    assert!(ways.iter().all(|way| *way == "mapped"), "{ways:?}");
    let (status, plan) = board.daemon.get("/v2/models/slow/plan");
    assert_eq!((status, &plan["plan"]["source"]), (200, &json!("mapped")), "{plan}");
    let (status, told) = board.daemon.get("/v2/models/slow/plan?source=direct");
    assert_eq!(status, 400, "{told}");
    assert!(told["error"].as_str().unwrap().contains("no direct reads were measured"), "{told}");
    board.check_answer();
}

/// The tokenizer was read without its checksum: a changed word gave other numbers without a word,
/// and a pipe kept a helper for ever.
#[test]
fn a_tokenizer_is_what_was_installed_or_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::words());
    let path = store.join("words/1/tokenizer.json");
    let good = fs::read_to_string(&path).unwrap();
    let ask = |expected: u16, words: &str| {
        let socket = folder.path().join("s");
        let daemon = Daemon::start(&store, &socket, &["--budget", "96MiB", "--profiles", "false"]);
        let request = json!({"model": "words", "input": "a cat"}).to_string();
        let (status, reply) = daemon.post("/v1/embeddings", &request);
        assert_eq!(status, expected, "{reply}");
        assert!(reply.to_string().contains(words), "{reply}");
        assert_eq!(daemon.get("/v2/health/ready").0, 200);
    };
    ask(200, "embedding");
    fs::write(&path, good.replace("cat", "cot")).unwrap();
    ask(500, "tokenizer.json: has checksum");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    ask(500, "tokenizer.json: is not a regular file");
}

/// A limit of file sizes ended the daemon with its first line of log.
#[test]
fn a_limit_of_file_sizes_does_not_end_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::linear());
    let socket = folder.path().join("s");
    let daemon = command(&store, &socket, &["--budget", "96MiB"]);
    let mut limited = Command::new("prlimit");
    limited.arg("--fsize=0").arg(daemon.get_program()).args(daemon.get_args());
    limited.env("MEMORY_PRESSURE_WATCH", "/dev/null");
    limited.stderr(File::create(folder.path().join("log")).unwrap());
    let daemon = Daemon::spawn(&mut limited, &socket);
    assert_eq!(daemon.post("/v2/repository/models/linear/profile", "").0, 200);
    assert_eq!(daemon.get("/v2/health/ready").0, 200);
}

/// A manifest that was filled up with spaces was read into memory that nobody had granted, at each
/// load.
#[test]
fn a_manifest_is_granted_before_it_is_read() {
    let store = slow_store();
    let engine = Engine::start(Config::new(store.path(), 512 << 20)).unwrap();
    engine.load("slow").unwrap();
    let path = store.path().join("slow/1/manifest.json");
    let mut text = fs::read(&path).unwrap();
    text.resize(60 << 20, b' ');
    fs::write(&path, text).unwrap();
    let error = engine.load("slow").err().unwrap();
    assert!(matches!(error, EngineError::OverBudget(_)), "{error}");
    // Whoever asks about it is granted as much: all that is free, and a byte more than that.
    let _ = engine.unload("slow");
    let fitting = engine.ledger().free_bytes() / HEAP_BYTES_PER_BYTE;
    for (bytes, is_granted) in [(fitting + 1, false), (fitting / 2, true)] {
        File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        match engine.manifest("slow") {
            Ok(_) => assert!(is_granted, "{bytes} bytes"),
            Err(EngineError::OverBudget(refused)) => {
                assert_eq!((refused.need_bytes, is_granted), (bytes * HEAP_BYTES_PER_BYTE, false));
            }
            Err(error) => panic!("{bytes} bytes: {error}"),
        }
    }
}

/// Lets every thread of a process use these cores and no others.
fn confine(process: u32, cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core).unwrap());
    for entry in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let name = entry.unwrap().file_name();
        // A thread may end meanwhile.
        let _ = sched_setaffinity(Pid::from_raw(name.to_str().unwrap().parse().unwrap()), &set);
    }
}

#[test]
fn cores_may_be_taken_away_and_given_back() {
    let cores = allowed_cores();
    if std::env::var_os("HERMES_CORES").is_some() {
        return skip("HERMES_CORES says otherwise which cores there are");
    }
    if cores.len() < 2 {
        return skip("there is one core");
    }
    let board = Board::start(tempfile::tempdir().unwrap(), &["--profiles", "false"]);
    assert_eq!(board.daemon.post("/v2/repository/models/slow/profile", "").0, 200);
    for (turn, (was, is)) in [(&cores[..], &cores[..1]), (&cores[..1], &cores[..])]
        .into_iter()
        .cycle()
        .take(4)
        .enumerate()
    {
        confine(board.daemon.id(), is);
        board.check_answer();
        let told = format!("cores {was:?} were ours, now {is:?} are: threads are pinned anew");
        board.wait_logged(&told, turn / 2);
    }
    confine(board.daemon.id(), &cores[..1]);
    board.check_answer();
    // What was measured with more cores says nothing of fewer.
    assert_eq!(board.daemon.post("/v2/repository/models/slow/load", "").0, 200);
    board.wait_logged("the profile is stale: the list of cores was", 0);
    board.check_answer();
}

/// A store with `slow` as an identity.
fn slow_store() -> TempDir {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::slow_identity(PRODUCTS));
    store
}

fn request(tokens: usize) -> Request {
    let x: Vec<f32> = (0..tokens * 1024).map(|i| (i % 251) as f32).collect();
    let x = Array::from_f32(vec![1, tokens, 1024], &x).unwrap();
    let inputs = vec![("x".to_string(), x)];
    let (outputs, cancel) = (vec![], Cancel::new());
    Request { model: "slow".to_string(), inputs, outputs, cancel, target: None, trace: None }
}

/// The reply to a request, whose output is its input.
fn infer(engine: &Engine) -> Reply {
    let asked = request(16);
    let expected = asked.inputs[0].1.clone();
    let reply = engine.infer(asked).unwrap();
    assert!(reply.outputs[0].1 == expected, "the answer is another one");
    reply
}

/// Submits a request and returns when its pass has begun.
fn begin(engine: &Engine) -> Receiver<Result<Reply, EngineError>> {
    let before = engine.progress().beats;
    let (sender, receiver) = channel();
    engine.submit(request(16), move |result| drop(sender.send(result)));
    wait_for("a pass", || engine.progress().beats > before + 3);
    receiver
}

/// A disk that grows slow in the middle of a pass once left the planner with figures of a disk that
/// was no longer there.
#[test]
fn a_disk_that_grows_slow_is_noticed_and_measured_anew() {
    static SLOW_US: AtomicU64 = AtomicU64::new(0);
    keep_log();
    let store = slow_store();
    let faults = Faults { slow_us: Some(&SLOW_US), ..Faults::default() };
    let config = Config {
        disk: DiskKind::Faulty(faults),
        profiles: true,
        pin_bytes: 0,
        source: Some(Way::Mapped),
        ..Config::new(store.path(), 1 << 30)
    };
    let engine = Engine::start(config).unwrap();
    engine.profile("slow").unwrap();
    infer(&engine);
    let told = || {
        LOG.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .matches("model slow: the pass took")
            .count()
    };
    assert_eq!(told(), 0);
    let first = begin(&engine);
    SLOW_US.store(10_000, Ordering::Relaxed);
    let expected = request(16).inputs[0].1.clone();
    assert!(first.recv().unwrap().unwrap().outputs[0].1 == expected);
    let mut passes = 0;
    while told() == 0 {
        infer(&engine);
        passes += 1;
        assert!(passes <= 3, "{}", LOG.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let log = LOG.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let line = log.lines().find(|line| line.contains("the pass took")).unwrap();
    assert!(line.starts_with("WARN ") && line.contains(" were forecast: the disk gave "), "{line}");
    assert!(line.ends_with(": it is measured anew when there is time"), "{line}");
    // When there is time, there is another forecast, which passes keep to.
    wait_for("another profile", || {
        // Each question interrupts the measuring.
        std::thread::sleep(Duration::from_millis(200));
        engine.plan("slow", Default::default()).is_ok()
    });
    for _ in 0..4 {
        infer(&engine);
    }
    assert_eq!(told(), 1, "{}", LOG.lock().unwrap_or_else(PoisonError::into_inner));
}

/// The budget changes while a pass runs: it ends as it began, and afterwards no more is held than
/// the new one.
#[test]
fn a_budget_that_shrinks_in_a_pass_holds_after_it() {
    let store = slow_store();
    let disk = DiskKind::Throttled { bytes_per_s: 100 << 20 };
    let config = Config { disk, ..Config::new(store.path(), 1 << 30) };
    let engine = Engine::start(config).unwrap();
    let ledger = engine.ledger();
    let process_bytes = ledger.held_bytes(Category::Process);
    let tape_bytes = infer(&engine).stats.bytes_read;
    assert_eq!(infer(&engine).stats.bytes_read, 0, "all is pinned");
    // Too little for pins, and enough for a small window.
    let small_bytes = process_bytes + (24 << 20);
    assert!(ledger.held_in_all_bytes() > small_bytes, "the small budget is small");
    let running = begin(&engine);
    engine.set_budget(small_bytes).unwrap();
    let expected = request(16).inputs[0].1.clone();
    assert!(running.recv().unwrap().unwrap().outputs[0].1 == expected);
    for _ in 0..2 {
        let reply = infer(&engine);
        assert!(reply.stats.bytes_read > 0, "not all can be pinned");
        assert!(reply.stats.window_peak_bytes <= engine.stats().window_bytes);
        assert!(ledger.held_in_all_bytes() <= small_bytes, "{}", ledger.held_in_all_bytes());
    }
    let error = engine.set_budget(process_bytes).unwrap_err().to_string();
    assert!(error.contains("the smallest window take"), "{error}");
    assert_eq!(ledger.budget_bytes(), small_bytes);
    infer(&engine);
    engine.set_budget(1 << 30).unwrap();
    assert_eq!(engine.stats().waiting, 0);
    let all: u64 = [(); 3].map(|()| infer(&engine).stats.bytes_read)[2];
    assert_eq!(all, 0, "all of {tape_bytes} bytes is pinned again");
}

/// A model that was measured is planned anew for each budget.
#[test]
fn plans_follow_the_budget() {
    let store = slow_store();
    let engine = Engine::start(Config::new(store.path(), 1 << 30)).unwrap();
    engine.profile("slow").unwrap();
    let plan = || engine.plan("slow", Default::default()).unwrap();
    assert!(plan().planned.fits);
    let small_bytes = engine.ledger().held_bytes(Category::Process) + (24 << 20);
    engine.set_budget(small_bytes).unwrap();
    let small = plan();
    assert_eq!((small.budget_bytes, small.planned.fits), (small_bytes, false));
    let reply = infer(&engine);
    assert!(reply.stats.window_peak_bytes <= small.planned.plan.window_bytes);
    assert!(engine.ledger().held_in_all_bytes() <= small_bytes);
    engine.set_budget(1 << 30).unwrap();
    assert!(plan().planned.fits);
    for _ in 0..2 {
        infer(&engine);
    }
    assert_eq!(infer(&engine).stats.bytes_read, 0);
}

/// Everybody may ask for plans; it neither loads a model nor fills a queue.
#[test]
fn plans_of_nothing_are_refused() {
    let store = slow_store();
    let engine = Engine::start(Config::new(store.path(), 1 << 30)).unwrap();
    let error = engine.plan("nobody", Default::default()).unwrap_err();
    assert!(matches!(error, EngineError::UnknownModel { .. }), "{error}");
    let error = engine.plan("slow", Default::default()).unwrap_err();
    assert!(matches!(error, EngineError::NotMeasured { .. }), "{error}");
    assert!(!engine.is_ready("slow") && engine.stats().models.is_empty());
    assert!(Path::new(store.path()).join("slow").is_dir());
}
