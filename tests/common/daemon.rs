//! A real hermesd, and raw bytes to and from its socket.

use super::programs::program;
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen, on an emulated core too.
const PATIENCE: Duration = Duration::from_secs(180);

/// How `/metrics` tells a port.
const LISTENING: &str = "hermes_listening{address=\"tcp:";

/// A running daemon, killed on drop.
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts hermesd and waits until it answers.
    pub fn start(store: &Path, socket: &Path, arguments: &[&str]) -> Daemon {
        Daemon::spawn(&mut command(store, socket, arguments), socket)
    }

    /// Starts `command`, a hermesd that will serve `socket`, and waits until it answers.
    pub fn spawn(command: &mut Command, socket: &Path) -> Daemon {
        Daemon::try_start(command, socket).expect("hermesd ended at its start")
    }

    /// Starts a hermesd and waits until it answers, or has ended.
    pub fn try_start(command: &mut Command, socket: &Path) -> Result<Daemon, ExitStatus> {
        let child = command.spawn().expect("hermesd starts");
        let mut daemon = Daemon { child, socket: socket.to_owned() };
        let start = Instant::now();
        while answers(socket).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                return Err(status);
            }
            assert!(start.elapsed() < PATIENCE, "hermesd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// A new connection.
    pub fn connect(&self) -> Connection {
        let stream = UnixStream::connect(&self.socket).expect("hermesd accepts");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream) }
    }

    /// A new connection to a port of the daemon.
    pub fn connect_port(&self, port: u16) -> Connection {
        Connection::to(("127.0.0.1", port))
    }

    /// The ports that the daemon serves, in the order of their addresses' text.
    pub fn ports(&self) -> Vec<u16> {
        let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
        let (_, _, body) = self.connect().send(request).response();
        let text = String::from_utf8(body).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix(LISTENING));
        let port = |line: &str| line.split('"').next()?.rsplit(':').next()?.parse().ok();
        let mut lines: Vec<&str> = lines.collect();
        lines.sort_unstable();
        lines.into_iter().filter_map(port).collect()
    }

    /// One request on a connection of its own.
    pub fn get(&self, path: &str) -> (u16, Value) {
        self.connect().send(format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n")).reply()
    }

    /// One JSON request on a connection of its own.
    pub fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.connect().post(path, body).reply()
    }

    /// Has a model loaded.
    pub fn load(&self, model: &str) {
        let (status, reply) = self.post(&format!("/v2/repository/models/{model}/load"), "");
        assert_eq!(status, 200, "{reply}");
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "hermesd does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// File descriptors that the daemon holds.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Files that the event loop's thread has read from, by its calls; what comes over sockets is no
    /// such call. `None` where the kernel does not count.
    pub fn event_loop_reads(&self) -> Option<u64> {
        let id = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/io")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("syscr: "))?;
        Some(line.parse().unwrap())
    }

    /// A figure of /proc/self/status, in KiB.
    pub fn status_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a daemon answers: one that has bound its socket may still end.
fn answers(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")?;
    stream.read_exact(&mut [0; 4])
}

/// hermesd with these arguments, and blind for how short memory is on this machine.
pub fn command(store: &Path, socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("hermesd"));
    command.arg("--store").arg(store).arg("--socket").arg(socket);
    command.args(arguments).stdin(Stdio::null()).env("MEMORY_PRESSURE_WATCH", "/dev/null");
    command
}

/// A connection to the daemon.
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// A connection to a port: it is read from and written to by the calls of any other.
    pub fn to(address: impl ToSocketAddrs) -> Connection {
        let stream = TcpStream::connect(address).expect("hermesd accepts");
        let stream = UnixStream::from(OwnedFd::from(stream));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream) }
    }

    /// What a browser, a program or nobody in particular sends: a method and a path, headers.
    pub fn ask(self, request: &str, headers: &[(&str, &str)], body: &str) -> Connection {
        let length = ("content-length", &*body.len().to_string());
        let lines = headers.iter().chain([&length]).map(|(name, value)| format!("{name}: {value}"));
        let lines = lines.collect::<Vec<_>>().join("\r\n");
        self.send(format!("{request} HTTP/1.1\r\n{lines}\r\n\r\n{body}"))
    }

    /// Sends bytes as they are.
    pub fn send(mut self, bytes: impl AsRef<[u8]>) -> Connection {
        self.reader.get_mut().write_all(bytes.as_ref()).expect("hermesd reads");
        self
    }

    /// Sends bytes until the daemon takes no more; returns how many it took.
    pub fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        let mut sent = 0;
        while sent < times && self.reader.get_mut().write_all(bytes).is_ok() {
            sent += 1;
        }
        sent * bytes.len()
    }

    /// Sends a JSON request.
    pub fn post(self, path: &str, body: &str) -> Connection {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        ))
    }

    /// Reads so many bytes, or what there is until the end, and leaves.
    pub fn leave_after(self, bytes: u64) {
        std::io::copy(&mut self.reader.take(bytes), &mut std::io::sink()).unwrap();
    }

    /// Waits for the beginning of what is answered.
    pub fn wait_answer(&mut self) {
        self.reader.fill_buf().expect("hermesd answers in time");
    }

    /// Reads a response; a body that is not JSON is null.
    pub fn reply(&mut self) -> (u16, Value) {
        let (status, _, body) = self.response();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Reads a response: status, head, body.
    pub fn response(&mut self) -> (u16, String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let count = self.reader.read_line(&mut head).expect("hermesd answers in time");
            assert!(count > 0, "the connection ended within a head: {head:?}");
        }
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = Vec::new();
        if let Some(length) = header(&head, "content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body).unwrap();
        } else if header(&head, "transfer-encoding") == Some("chunked") {
            self.chunks(&mut body);
        }
        (status, head, body)
    }

    /// Sends no more.
    pub fn half_close(self) -> Connection {
        // A daemon that has given up takes nothing more, and may say so by a reset.
        let _ = self.reader.get_ref().shutdown(Shutdown::Write);
        self
    }

    /// Sends no more and reads everything until the daemon closes the connection.
    pub fn rest(self) -> Vec<u8> {
        self.half_close().all()
    }

    /// Reads everything until the daemon closes the connection.
    pub fn all(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => rest,
        }
    }

    /// Whether the daemon closes the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).is_ok() && rest.is_empty()
    }

    fn chunks(&mut self, body: &mut Vec<u8>) {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let start = body.len();
            body.resize(start + length, 0);
            self.reader.read_exact(&mut body[start..]).unwrap();
            self.reader.read_line(&mut line).unwrap();
            if length == 0 {
                return;
            }
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Waits until a log has `text` more than `before` times; returns the log.
pub fn wait_logged(path: &Path, text: &str, before: usize) -> String {
    let start = Instant::now();
    loop {
        let log = std::fs::read_to_string(path).unwrap();
        if log.matches(text).count() > before {
            return log;
        }
        assert!(start.elapsed() < PATIENCE, "{text:?} is not in the log:\n{log}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
