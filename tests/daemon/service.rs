//! The daemon as an administrator meets it: config, signals, the service manager, rights.

use crate::common::daemon::{Daemon, command, wait_logged};
use crate::common::frozen::Frozen;
use crate::common::skip::skip;
use crate::common::small_store;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine's threads, as they are named.
const ENGINE_THREADS: [&str; 3] = ["engine", "compute-", "loader-"];

/// The store of all tests of this file.
static STORE: LazyLock<TempDir> = LazyLock::new(|| {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    small_store::write(store.path(), small_store::words());
    store
});

/// A daemon with its log, its config and a service manager that listens.
struct Service {
    daemon: Daemon,
    manager: UnixDatagram,
    folder: TempDir,
}

impl Service {
    /// Starts hermesd with a budget for all models after `prepare` has changed its command.
    fn start(config: &str, prepare: impl FnOnce(&mut Command)) -> Service {
        Service::start_with(&["--budget", "96MiB", "--window", "8MiB"], config, prepare)
    }

    fn start_with(arguments: &[&str], config: &str, prepare: impl FnOnce(&mut Command)) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let manager = UnixDatagram::bind(path("manager")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::write(path("c.toml"), config).unwrap();
        let socket = path("s");
        let mut command = command(STORE.path(), &socket, arguments);
        command.arg("--config").arg(path("c.toml")).env("NOTIFY_SOCKET", path("manager"));
        command.stderr(File::create(path("log")).unwrap());
        prepare(&mut command);
        let daemon = Daemon::spawn(&mut command, &socket);
        Service { daemon, manager, folder }
    }

    /// The next message to the service manager.
    fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let bytes = self.manager.recv(&mut buffer).expect("the manager is told something");
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    }

    /// Waits for a message to the service manager that has `text`; returns it.
    fn wait_told(&self, text: &str) -> String {
        loop {
            let message = self.told();
            if message.contains(text) {
                return message;
            }
        }
    }

    /// Waits until the log has `text` more than `before` times; returns the log.
    fn wait_logged(&self, text: &str, before: usize) -> String {
        wait_logged(&self.folder.path().join("log"), text, before)
    }

    fn configure(&self, config: &str) {
        fs::write(self.folder.path().join("c.toml"), config).unwrap();
        self.daemon.signal("-HUP");
    }

    /// Waits for the end of a reload, which the service manager is told of.
    fn wait_reloaded(&self) {
        self.wait_told("RELOADING=1\nMONOTONIC_USEC=");
        self.wait_told("READY=1");
    }
}

fn served() -> Service {
    Service::start("", |_| ())
}

fn request() -> String {
    json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1.0, 2.0, 3.0, 4.0]
    }]})
    .to_string()
}

fn infer(daemon: &Daemon) -> (u16, Value) {
    daemon.post("/v2/models/linear/infer", &request())
}

/// hermesd with these arguments, run to its end.
fn hermesd(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What a hermesd that must not start says.
fn refusal(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

#[test]
fn the_service_manager_is_told_of_each_phase() {
    let mut service = served();
    assert!(service.told().starts_with("STATUS=no model is loaded; "));
    assert_eq!(service.told(), "READY=1\n");
    assert_eq!(infer(&service.daemon).0, 200);
    // While it was being loaded, more was held already.
    let status = service.wait_told("STATUS=loaded: linear; ");
    assert!(status.contains(" of 96 MiB held"), "{status}");
    service.daemon.signal("-HUP");
    service.wait_reloaded();
    service.daemon.signal("-TERM");
    assert_eq!(service.wait_told("STOPPING"), "STOPPING=1\n");
    service.wait_told("STATUS=draining, 10 s at most");
    service.wait_told("EXTEND_TIMEOUT_USEC=");
    assert!(service.daemon.wait().success());
}

#[test]
fn the_socket_serves_when_the_manager_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(folder.path().join("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let socket = folder.path().join("s");
    let mut command = command(STORE.path(), &socket, &["--budget", "96MiB"]);
    let mut child = command.env("NOTIFY_SOCKET", folder.path().join("manager")).spawn().unwrap();
    let mut buffer = [0; 4096];
    while !buffer.starts_with(b"READY=1") {
        manager.recv(&mut buffer).unwrap();
    }
    assert!(UnixStream::connect(&socket).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_watchdog_is_fed_only_while_something_moves() {
    let service = Service::start("profiles = false", |command| {
        command.env("WATCHDOG_USEC", "400000");
    });
    for _ in 0..3 {
        service.wait_told("WATCHDOG=1");
    }
    assert_eq!(infer(&service.daemon).0, 200);
    let frozen = Frozen::new(service.daemon.id(), &["compute-", "loader-"]);
    let mut waiting = service.daemon.connect().post("/v2/models/linear/infer", &request());
    let silence = "the watchdog is not fed";
    // It stands still: the event loop answers, and yet the watchdog starves.
    service.wait_logged(silence, 0);
    assert_eq!(service.daemon.get("/v2/health/live").0, 200);
    service.manager.set_nonblocking(true).unwrap();
    while service.manager.recv(&mut [0; 4096]).is_ok() {}
    service.wait_logged(silence, 3);
    let mut buffer = [0; 64];
    while let Ok(bytes) = service.manager.recv(&mut buffer) {
        assert!(!buffer[..bytes].starts_with(b"WATCHDOG"), "a dead engine is called alive");
    }
    service.manager.set_nonblocking(false).unwrap();
    drop(frozen);
    assert_eq!(waiting.reply().0, 200);
    service.wait_told("WATCHDOG=1");
}

#[test]
fn a_passed_socket_is_served_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passed");
    let listener = UnixListener::bind(&path).unwrap();
    let mut daemon =
        Daemon::spawn(&mut activated(folder.path(), listener.try_clone().unwrap()), &path);
    assert_eq!(infer(&daemon).0, 200);
    assert!(!folder.path().join("own").exists());
    daemon.signal("-TERM");
    assert!(daemon.wait().success());
    // The next one is started with the same socket, which has kept who came in between.
    let mut early = UnixStream::connect(&path).unwrap();
    let next = Daemon::spawn(&mut activated(folder.path(), listener), &path);
    early.write_all(b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    early.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(next);
}

#[test]
fn what_is_passed_must_be_a_listening_socket() {
    let folder = tempfile::tempdir().unwrap();
    let null = || File::open("/dev/null").unwrap();
    let said = refusal(&mut activated(folder.path(), null()));
    assert!(said.contains("descriptor 3 is a file and no socket; hermesd.socket may"), "{said}");
    let (stream, _far) = UnixStream::pair().unwrap();
    let said = refusal(&mut activated(folder.path(), stream));
    assert!(said.contains("a socket that does not listen"), "{said}");
}

/// hermesd as the service manager starts it, with `passed` as descriptor 3.
fn activated(folder: &Path, passed: impl Into<OwnedFd>) -> Command {
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_hermesd"), "--budget", "96MiB"]);
    command.arg("--store").arg(STORE.path()).arg("--socket").arg(folder.join("own"));
    command.stdin(passed.into());
    command
}

#[test]
fn a_reload_takes_a_good_config_and_keeps_the_old_before_a_bad_one() {
    let service = served();
    service.wait_told("READY=1");
    assert_eq!(infer(&service.daemon).0, 200);
    service.configure("threads = 3\n[rights]\ninfer = []\n");
    service.wait_reloaded();
    assert_eq!(infer(&service.daemon).0, 403);
    let log = service.wait_logged("the config is reloaded", 0);
    assert!(log.contains("threads has changed"), "{log}");
    assert!(log.contains("c.toml:1): it needs a restart, the old value stays"), "{log}");
    assert!(!log.contains("drain has changed"), "{log}");
    service.configure("log = \"debug\"\n[rights]\ninfr = [\"*\"]\n");
    service.wait_reloaded();
    assert_eq!(infer(&service.daemon).0, 403);
    let log = service.wait_logged("the old config stays in force", 0);
    assert!(log.contains("c.toml:3: there is no key \"rights.infr\""), "{log}");
    assert_eq!(service.daemon.get("/v2/models/none").0, 404);
    assert!(!log.contains("DEBUG"), "the log level of a bad config: {log}");
    service.configure("log = \"debug\"\n");
    service.wait_reloaded();
    assert_eq!(infer(&service.daemon).0, 200);
    assert_eq!(service.daemon.get("/v2/models/none").0, 404);
    service.wait_logged("DEBUG", 0);
}

/// Opening it waited for a writer, and with it the event loop: no watchdog, no SIGTERM.
#[test]
fn a_config_that_is_no_file_keeps_nothing_waiting() {
    let mut service = Service::start("drain = 1\n", |_| {});
    let path = service.folder.path().join("c.toml");
    fs::remove_file(&path).unwrap();
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    service.daemon.signal("-HUP");
    service.wait_logged("the old config stays in force", 0);
    let log = service.wait_logged("it is no regular file", 0);
    assert!(log.contains("c.toml: cannot read the config"), "{log}");
    assert_eq!(service.daemon.get("/v2/health/live").0, 200);
    service.daemon.signal("-TERM");
    assert_eq!(service.daemon.wait().code(), Some(0));
}

/// 40 clients that sent long texts and left took 152 MiB of a budget of 64; nobody got embeddings
/// for minutes, and SIGTERM ended with status 1 behind what nobody waited for.
#[test]
fn texts_that_nobody_waits_for_hold_nothing() {
    let mut service = Service::start_with(&["--budget", "64MiB", "--window", "8MiB"], "", |_| {});
    let daemon = &service.daemon;
    let embed = || {
        let start = Instant::now();
        loop {
            let (status, reply) =
                daemon.post("/v1/embeddings", r#"{"model":"words","input":"cat dog"}"#);
            match status {
                200 => return,
                // While what is under way ends.
                503 => assert!(start.elapsed() < PATIENCE, "{reply}"),
                status => panic!("{status}: {reply}"),
            }
        }
    };
    embed();
    let text = "cat dog ".repeat(8000);
    let body = json!({"model": "words", "input": vec![text; 40]}).to_string();
    let ask = || {
        for _ in 0..10 {
            drop(daemon.connect().post("/v1/embeddings", &body));
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(ask))));
    embed();
    let peak_kib = daemon.status_kib("VmHWM");
    assert!(peak_kib <= 64 << 10, "{peak_kib} KiB");
    ask();
    service.daemon.signal("-TERM");
    assert_eq!(service.daemon.wait().code(), Some(0));
}

#[test]
fn a_reload_changes_the_budget_or_says_why_not() {
    let service = Service::start_with(&[], "budget = \"96MiB\"\n", |_| ());
    let budget = || {
        let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
        let (_, _, body) = service.daemon.connect().send(request).response();
        let text = String::from_utf8(body).unwrap();
        let line = text.lines().find(|line| line.starts_with("hermes_budget_bytes "));
        line.unwrap().split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    service.wait_told("READY=1");
    assert_eq!((infer(&service.daemon).0, budget()), (200, 96 << 20));
    for mib in [64, 128] {
        service.configure(&format!("budget = \"{mib}MiB\"\n"));
        service.wait_reloaded();
        let log = service.wait_logged(&format!("the budget is {mib} MiB now"), 0);
        assert!(!log.contains("budget has changed"), "{log}");
        assert_eq!((infer(&service.daemon).0, budget()), (200, mib << 20));
    }
    let status = service.wait_told(" of 128 MiB held");
    assert!(status.starts_with("STATUS=loaded: linear"), "{status}");
    service.configure("budget = \"1MiB\"\ndrain = 77\n");
    service.wait_reloaded();
    let refused = "the old budget stays in force: a budget of 1048576 bytes is too small";
    service.wait_logged(refused, 0);
    assert_eq!((infer(&service.daemon).0, budget()), (200, 128 << 20));
    // The rest of that config is taken, and the budget is tried again at the next reload.
    service.configure("budget = \"1MiB\"\ndrain = 77\n");
    service.wait_reloaded();
    service.wait_logged(refused, 1);
    service.daemon.signal("-TERM");
    service.wait_told("STATUS=draining, 77 s at most");
}

/// A request that has reached the engine, whose threads stand still. It must not be measuring:
/// trials have threads of their own, which come and go.
fn hold(service: &Service) -> (Frozen, crate::common::daemon::Connection) {
    assert_eq!(infer(&service.daemon).0, 200);
    let frozen = Frozen::new(service.daemon.id(), &ENGINE_THREADS);
    let waiting = service.daemon.connect().post("/v2/models/linear/infer", &request());
    // The event loop takes turns: when these are answered, it has read that one.
    for _ in 0..3 {
        assert_eq!(service.daemon.get("/v2/health/live").0, 200);
    }
    (frozen, waiting)
}

#[test]
fn sigterm_drains_what_runs_and_accepts_nothing_new() {
    let mut service = Service::start("drain = 3600\nprofiles = false", |_| ());
    let (frozen, mut waiting) = hold(&service);
    service.daemon.signal("-TERM");
    service.wait_told("STATUS=draining, 3600 s at most");
    // More time is asked for again and again.
    service.wait_told("EXTEND_TIMEOUT_USEC=5000000");
    service.wait_told("EXTEND_TIMEOUT_USEC=5000000");
    assert!(UnixStream::connect(&service.daemon.socket).is_err(), "it accepts");
    drop(frozen);
    assert_eq!(waiting.reply().0, 200);
    assert!(service.daemon.wait().success());
}

/// A daemon that drained said that it was ready.
#[test]
fn a_draining_daemon_is_not_ready() {
    let mut service = Service::start("drain = 3600\nprofiles = false", |_| ());
    let (frozen, mut waiting) = hold(&service);
    let asking = service.daemon.connect().send("GET /v2/health/ready HTTP/1.1\r\n");
    // As for `hold`: it has read the beginning of that question.
    for _ in 0..3 {
        assert_eq!(service.daemon.get("/v2/health/ready"), (200, json!({"ready": true})));
    }
    service.daemon.signal("-TERM");
    service.wait_told("STATUS=draining");
    let (status, reply) = asking.send("host: h\r\n\r\n").reply();
    assert_eq!((status, reply), (503, json!({"ready": false})));
    drop(frozen);
    assert_eq!(waiting.reply().0, 200);
    assert!(service.daemon.wait().success());
}

#[test]
fn a_second_sigterm_cancels_what_runs() {
    let mut service = Service::start("drain = 3600\nprofiles = false", |_| ());
    let (frozen, mut waiting) = hold(&service);
    service.daemon.signal("-TERM");
    service.wait_told("STATUS=draining");
    service.daemon.signal("-TERM");
    service.wait_logged("cutting off 1 connection", 0);
    // It found its connection closed.
    let (status, reply) = waiting.reply();
    assert_eq!((status, reply), (503, json!({"error": "the daemon is stopping"})));
    drop(frozen);
    assert!(service.daemon.wait().success());
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let mut service = Service::start("drain = 1\nprofiles = false", |_| ());
    let (frozen, mut waiting) = hold(&service);
    service.daemon.signal("-INT");
    service.wait_logged("cutting off 1 connection", 0);
    // It found its connection closed.
    let (status, reply) = waiting.reply();
    assert_eq!((status, reply), (503, json!({"error": "the daemon is stopping"})));
    drop(frozen);
    assert!(service.daemon.wait().success());
}

#[test]
fn a_wrong_config_is_told_by_file_line_and_nearest_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hermesd.toml");
    let drop_ins = folder.path().join("hermesd.toml.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(&path, "drain = 3\n").unwrap();
    fs::write(drop_ins.join("50-b.conf"), "\nbudgt = \"64MiB\"\n").unwrap();
    let path = path.to_str().unwrap();
    let expected =
        "hermesd.toml.d/50-b.conf:2: there is no key \"budgt\": did you mean \"budget\"?";
    for arguments in [&["--config", path, "--check-config"][..], &["--config", path]] {
        let output = hermesd(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

/// An address was told to be given once, and a budget of -1 to be no flag.
#[test]
fn flags_are_taken_or_told_for_what_they_are() {
    let listen = ["--listen", "tcp:127.0.0.1:1", "--listen", "tcp:127.0.0.1:2,unix:/a"];
    let output = hermesd(&[&listen[..], &["--print-config"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("[\"tcp:127.0.0.1:1\", \"tcp:127.0.0.1:2\", \"unix:/a\"]"), "{said}");
    let check = |arguments: &[&str], expected: &str| {
        let said = String::from_utf8(hermesd(arguments).stderr).unwrap();
        assert!(said.contains(expected), "{said}");
    };
    check(&["--budget", "-1"], "\"-1\" is not a size");
    check(&["--latency", "0"], "no answer takes no time");
    check(&["--accuracy", "-1"], "give more than 0 and at most 1");
    check(&["--listen", "8000"], "neither unix: nor tcp:");
    check(&["--listen", "unix:/a,unix:/a"], "--listen: unix:/a is there twice");
}

#[test]
fn a_config_is_good_where_the_daemon_would_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    small_store::write(&store, small_store::linear());
    let check = |store: &Path, budget: &str, status: i32, expected: &str| {
        let path = folder.path().join("c.toml");
        fs::write(&path, format!("store = {store:?}\nbudget = {budget:?}\n")).unwrap();
        let output = hermesd(&["--config", path.to_str().unwrap(), "--check-config"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    check(&store, "96MiB", 0, "the config is good: 1 file read, the store has 1 model; ");
    check(&store, "1MiB", 1, "give --budget at least that");
    check(&folder.path().join("none"), "96MiB", 1, "none: No such file");
}

#[test]
fn the_printed_config_names_origins_and_is_a_config() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let printed = |path: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
        command.args(["--print-config", "--config"]).arg(path).args(more);
        let output = command.env("HERMES_THREADS", "3").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    fs::write(
        &path,
        "store = '/a \"b\" # c'\nbudget = 67108864\n[rights]\nload = [\"@0\", \"7\"]\n",
    )
    .unwrap();
    let first = printed(&path, &["--window", "8MiB"]);
    for expected in [
        "budget = 67108864  # ",
        "c.toml:2\n",
        "window = \"8MiB\"  # --window\n",
        "threads = 3  # HERMES_THREADS\n",
        "# variant: the best that each model has\n",
        "drain = 10  # default\n",
        "load = [\"@0\", \"7\"]  # ",
        "install = [\"root\", \"self\"]  # default\n",
    ] {
        assert!(first.contains(expected), "{expected:?} is not in\n{first}");
    }
    let copy = folder.path().join("copy.toml");
    fs::write(&copy, &first).unwrap();
    let second = printed(&copy, &[]);
    assert_eq!(toml::from_str::<toml::Table>(&first), toml::from_str::<toml::Table>(&second));
}

#[test]
fn who_has_not_the_right_is_refused_and_logged() {
    let service = Service::start("[rights]\ninfer = [\"4294967294\"]\n", |_| ());
    let daemon = &service.daemon;
    let uid = fs::metadata(service.folder.path()).unwrap().uid();
    let (status, reply) = infer(daemon);
    assert_eq!(status, 403);
    let message = format!("uid {uid} has not the right to infer");
    assert!(reply["error"].as_str().unwrap().starts_with(&message), "{reply}");
    let (status, reply) =
        daemon.post("/v1/embeddings", &json!({"model": "words", "input": "cat"}).to_string());
    assert_eq!((status, &reply["error"]["type"]), (403, &json!("invalid_request_error")));
    assert!(reply["error"]["message"].as_str().unwrap().starts_with(&message), "{reply}");
    let log = service.wait_logged("/v1/embeddings", 0);
    let who = format!("uid {uid} (pid {}) has not the right to infer: POST", std::process::id());
    assert!(log.contains(&format!("{who} \"/v2/models/linear/infer\" is refused")), "{log}");
    // Reading needs no right, and a wrong method is told as such.
    let ready = "/v2/models/linear/ready";
    for path in ["/v2", "/v2/health/ready", "/v2/models/linear", ready, "/v1/models"] {
        assert_eq!(daemon.get(path).0, 200, "{path}");
    }
    assert_eq!(daemon.get("/v2/models/linear/infer").0, 405);
}

#[test]
fn supplementary_groups_count() {
    // Only root can become another user with groups of its choice.
    let folder = tempfile::tempdir().unwrap();
    if fs::metadata(folder.path()).unwrap().uid() != 0 {
        return skip("only root can be somebody else");
    }
    let service = Service::start("[rights]\ninfer = [\"@4242\"]\n", |_| ());
    fs::set_permissions(service.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&service.daemon.socket, fs::Permissions::from_mode(0o666)).unwrap();
    let curl = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", &format!("--groups={groups}"), "curl"]);
        command.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]);
        command.arg("--unix-socket").arg(&service.daemon.socket);
        let output = command
            .args(["http://h/v2/models/linear/infer", "--data", &request()])
            .args(["--header", "content-type: application/json"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(curl("4241"), "403");
    assert_eq!(curl("4241,4242"), "200");
}

#[test]
fn the_journal_gets_priorities_and_others_plain_text() {
    let folder = tempfile::tempdir().unwrap();
    let said = |prepare: &dyn Fn(&mut Command, &File)| {
        let path = folder.path().join("log");
        let file = File::create(&path).unwrap();
        let mut command = command(&folder.path().join("none"), &folder.path().join("s"), &[]);
        prepare(&mut command, &file);
        assert_eq!(command.stderr(file).status().unwrap().code(), Some(1));
        fs::read_to_string(&path).unwrap()
    };
    let stream = |file: &File| {
        let metadata = file.metadata().unwrap();
        format!("{}:{}", metadata.dev(), metadata.ino())
    };
    let journal = said(&|command, file| {
        command.env("JOURNAL_STREAM", stream(file));
    });
    assert!(journal.lines().any(|line| line.starts_with("<3>")), "{journal}");
    assert!(journal.lines().any(|line| line.starts_with("<6>the budget is ")), "{journal}");
    assert!(journal.lines().all(|line| line.starts_with('<')), "{journal}");
    for wrong in ["1:1", "nonsense"] {
        let plain = said(&|command, _| {
            command.env("JOURNAL_STREAM", wrong);
        });
        assert!(plain.contains("ERROR"), "{plain}");
        assert!(!plain.contains("<3>"), "{plain}");
    }
}

#[test]
fn a_socket_path_that_is_taken_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    let said = refusal(&mut command(STORE.path(), &file, &["--budget", "96MiB"]));
    assert!(said.contains("exists and is not a socket; remove it or choose another"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let live = folder.path().join("live");
    let _listener = UnixListener::bind(&live).unwrap();
    let said = refusal(&mut command(STORE.path(), &live, &["--budget", "96MiB"]));
    assert!(said.contains("another hermesd serves this socket"), "{said}");
    assert!(UnixStream::connect(&live).is_ok());
    let said = refusal(&mut command(STORE.path(), &folder.path().join("no/s"), &[]));
    let no_folder =
        format!("no/s: there is no folder {}; make it", folder.path().join("no").display());
    assert!(said.contains(&no_folder) && !said.contains(".lock"), "{said}");
}

#[test]
fn a_store_that_cannot_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o000)).unwrap();
    let socket = folder.path().join("s");
    let mut plain = command(&store, &socket, &["--budget", "96MiB"]);
    // Root reads everything, but for one without capabilities.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(plain.get_program());
    command.args(plain.get_args());
    let is_root = fs::metadata(&store).unwrap().uid() == 0;
    let said = refusal(if is_root { &mut command } else { &mut plain });
    assert!(said.contains("store: Permission denied"), "{said}");
    let nowhere = folder.path().join("none");
    let said = refusal(&mut self::command(&nowhere, &socket, &["--budget", "96MiB"]));
    assert!(said.contains("No such file") && said.contains("build makes a store"), "{said}");
    assert!(!socket.exists(), "the socket of a daemon that did not start");
}

/// The file of the project's unit, with the program where the tests have it.
fn unit(folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name);
    let text = fs::read_to_string(source).unwrap();
    let text = text.replace("/usr/local/bin/hermesd", env!("CARGO_BIN_EXE_hermesd"));
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// `systemd-analyze` with these arguments; `None`, with a note, where there is none.
fn systemd_analyze(arguments: &[&str], units: &[PathBuf]) -> Option<Output> {
    match Command::new("systemd-analyze").args(arguments).args(units).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip("systemd-analyze is not installed");
            None
        }
        output => Some(output.unwrap()),
    }
}

#[test]
fn the_unit_is_hardened_to_half_a_point() {
    let folder = tempfile::tempdir().unwrap();
    let units = [unit(folder.path(), "hermesd.service")];
    let arguments = ["security", "--offline=yes", "--no-pager", "--threshold=5"];
    let Some(output) = systemd_analyze(&arguments, &units) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let level = text.rsplit_once("hermesd.service: ").unwrap().1.split(' ').next().unwrap();
    assert!(level.parse::<f64>().unwrap() <= 0.5, "{text}");
}

/// Keys of units that systemd 237 does not know, by its NEWS.
const NEWER_THAN_237: [&str; 10] = [
    "MemoryPressureWatch",
    "PrivateMounts",
    "ProcSubset",
    "ProtectClock",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectProc",
    "RestrictFileSystems",
    "RestrictSUIDSGID",
    "NotifyReloadSignal",
];

/// Groups of system calls that systemd 237 knows.
const GROUPS_OF_237: [&str; 11] = [
    "@basic-io",
    "@file-system",
    "@io-event",
    "@ipc",
    "@network-io",
    "@privileged",
    "@process",
    "@resources",
    "@signal",
    "@sync",
    "@timer",
];

/// JetPack 4 has systemd 237. What it does not know it leaves out with a warning, and so it would be
/// with @system-service: of the list of what is allowed nothing was left but two calls.
#[test]
fn the_units_are_for_systemd_237() {
    let service = include_str!("../../systemd/hermesd.service");
    let lines = || service.lines().filter(|line| !line.starts_with('#'));
    let keys = lines().filter_map(|line| Some(line.split_once('=')?.0));
    for key in keys.filter(|key| NEWER_THAN_237.contains(key)) {
        let is_told = service.lines().any(|line| line.starts_with('#') && line.contains(key));
        assert!(is_told, "{key}= is newer than 237: the unit does not say since when");
    }
    let known: Vec<&str> = lines()
        .filter_map(|line| line.strip_prefix("SystemCallFilter="))
        .flat_map(|value| value.trim_start_matches('~').split(' '))
        .filter(|word| *word != "@system-service")
        .collect();
    for group in known.iter().filter(|word| word.starts_with('@')) {
        assert!(GROUPS_OF_237.contains(group), "{group} is not known to be in systemd 237");
    }
    // Of what a pass, a socket and a file need.
    let needed = ["@basic-io", "@file-system", "@io-event", "@network-io", "@process", "@signal"];
    for needed in needed.iter().chain(&["brk", "ioctl", "madvise", "mprotect", "getrandom"]) {
        assert!(known.contains(needed), "without @system-service {needed} is denied");
    }
}

#[test]
fn the_units_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let units = ["hermesd.service", "hermesd.socket"].map(|name| unit(folder.path(), name));
    let Some(output) = systemd_analyze(&["verify", "--man=no"], &units) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    let about_us = said.lines().filter(|line| line.contains("hermesd"));
    assert_eq!(about_us.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(output.status.success(), "{said}");
}
