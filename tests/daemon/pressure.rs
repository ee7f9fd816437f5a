//! What a daemon gives up while memory is short, and takes back.

use crate::common::daemon::{Daemon, command};
use crate::common::small_store;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The levels, as metrics name them.
const LEVELS: [&str; 4] = ["none", "pins", "window", "hold"];

/// A daemon that is told of memory pressure by a file of its folder.
struct Pressed {
    daemon: Daemon,
    folder: TempDir,
}

impl Pressed {
    /// Starts hermesd with `watch` as what systemd tells it to watch.
    fn start(folder: TempDir, watch: impl AsRef<OsStr>) -> Pressed {
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("store")).unwrap();
        small_store::write(&path("store"), small_store::linear());
        let arguments = ["--budget", "96MiB", "--window", "8MiB"];
        let mut command = command(&path("store"), &path("s"), &arguments);
        command.env("MEMORY_PRESSURE_WATCH", watch).env("MEMORY_PRESSURE_WRITE", "c29tZQ==");
        command.env("NOTIFY_SOCKET", path("manager")).stderr(File::create(path("log")).unwrap());
        let daemon = Daemon::spawn(&mut command, &path("s"));
        Pressed { daemon, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The one sample of the metrics that begins with `name` and is not 0.
    fn metric(&self, name: &str) -> Option<String> {
        let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
        let (status, _, body) = self.daemon.connect().send(request).response();
        assert_eq!(status, 200);
        let text = String::from_utf8(body).unwrap();
        let mut samples = text.lines().filter(|line| line.starts_with(name));
        samples.find(|line| !line.ends_with(" 0")).map(str::to_owned)
    }

    /// Index of the level that holds.
    fn level(&self) -> usize {
        let holds = self.metric("hermes_pressure{").unwrap();
        LEVELS.iter().position(|level| holds.contains(level)).unwrap()
    }

    /// Whether any block is pinned.
    fn has_pins(&self) -> bool {
        self.metric("hermes_pinned_bytes").is_some()
    }

    fn infer(&self) -> u16 {
        self.daemon.post("/v2/models/linear/infer", &request()).0
    }

    /// Waits until `done`.
    fn until(&self, done: impl Fn(&Pressed) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "it does not happen:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `text` is in the log.
    fn wait_logged(&self, text: &str) {
        self.until(|service| service.log().contains(text));
    }
}

fn request() -> String {
    json!({"inputs": [{
        "name": "x", "datatype": "FP32", "shape": [1, 1, 4], "data": [1.0, 2.0, 3.0, 4.0]
    }]})
    .to_string()
}

/// What the service manager was told of the level, in order, until the daemon stopped.
fn statuses(manager: &UnixDatagram) -> Vec<&'static str> {
    let mut buffer = [0; 4096];
    let mut found = vec![];
    loop {
        let bytes = manager.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
        if text.contains("STOPPING") {
            return found;
        }
        let ends = |level: &&str| text.trim_end().ends_with(&format!("; memory pressure: {level}"));
        found.extend(LEVELS.into_iter().find(ends));
        found.dedup();
    }
}

/// Pins go first, then the window, then requests wait; all comes back by itself.
#[test]
fn what_is_given_up_under_pressure_comes_back_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let manager = UnixDatagram::bind(folder.path().join("manager")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let manager = thread::spawn(move || statuses(&manager));
    let mut service = Pressed::start(folder, &fifo);
    service.wait_logged("memory pressure is told by");
    assert_eq!(service.level(), 0);
    assert_eq!(service.infer(), 200);
    assert!(service.has_pins());

    // Signs come as long as they are wanted, however slow this machine is.
    let mut teller = OpenOptions::new().write(true).open(&fifo).unwrap();
    let is_short = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while is_short.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                teller.write_all(&[1]).unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        service.until(|service| service.level() > 0);
        assert!(!service.has_pins());
        service.until(|service| service.level() == 3);
        let mut held = service.daemon.connect().post("/v2/models/linear/infer", &request());
        service.until(|service| service.metric("hermes_waiting_requests ").is_some());
        // The event loop is not held.
        assert_eq!(service.daemon.get("/v2/health/live").0, 200);
        is_short.store(false, Ordering::Relaxed);
        assert_eq!(held.reply().0, 200);
    });
    service.until(|service| service.level() == 0);
    assert_eq!(service.infer(), 200);
    assert!(service.has_pins());

    service.daemon.signal("-TERM");
    assert!(service.daemon.wait().success());
    assert_eq!(manager.join().unwrap(), ["pins", "window", "hold", "window", "pins"]);
    let log = service.log();
    for change in [
        "pins after none: told by",
        "window after pins: told by",
        "hold after window: told by",
        "window after hold: there is enough again",
        "pins after window: there is enough again",
        "none after pins: there is enough again",
    ] {
        assert_eq!(log.matches(change).count(), 1, "{change:?} in\n{log}");
    }
}

/// Where the other end of a socket goes, the daemon looks for itself from then on.
#[test]
fn a_teller_that_goes_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teller");
    let listener = UnixListener::bind(&path).unwrap();
    let service = Pressed::start(folder, &path);
    let (mut teller, _) = listener.accept().unwrap();
    let mut asked = [0; 4];
    teller.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"some", "MEMORY_PRESSURE_WRITE, decoded");
    teller.write_all(&[1]).unwrap();
    service.wait_logged("memory pressure: pins after none: told by");
    drop(teller);
    service.wait_logged("is looked for in the figures: ");
    assert!(service.log().contains("teller: the other end is closed"), "{}", service.log());
    assert_eq!(service.infer(), 200);
}

/// What systemd names and is of no use is told, and left as it is; another way is found.
#[test]
fn a_watch_that_cannot_be_watched_is_told_and_replaced() {
    let cases = [
        ("missing", "No such file or directory"),
        ("plain", "a file, but not one of the kernel's"),
        (".", "neither a file nor a FIFO nor a socket"),
    ];
    for (name, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { folder.path().join(name) };
        fs::write(path("plain"), "as it was").unwrap();
        let watch = path(name);
        let mut service = Pressed::start(folder, &watch);
        let found = |log: &str| {
            log.contains("memory pressure is told by")
                || log.contains("memory pressure is looked for in the figures")
        };
        service.until(|service| found(&service.log()));
        let log = service.log();
        let complaint = format!("MEMORY_PRESSURE_WATCH={}: {expected}", watch.display());
        assert!(log.contains(&complaint), "{log}");
        assert_eq!(fs::read(service.folder.path().join("plain")).unwrap(), b"as it was");
        service.daemon.signal("-TERM");
        assert!(service.daemon.wait().success());
    }
}

/// MemoryPressureWatch=off reaches services as /dev/null.
#[test]
fn systemd_can_turn_the_watch_off() {
    let service = Pressed::start(tempfile::tempdir().unwrap(), "/dev/null");
    service.wait_logged("memory pressure is not watched");
    let log = service.log();
    for otherwise in ["memory pressure is told by", "memory pressure is looked for"] {
        assert!(!log.contains(otherwise), "{log}");
    }
}
