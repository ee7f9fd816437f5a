//! More connections, declared lengths and unread replies than a patient client has: who means no
//! harm is answered beside them, and they hold no more than the ledger says.

#![allow(unsafe_code)]

use crate::common::daemon::{Connection, Daemon, command};
use crate::common::programs::program;
use crate::common::scrape::Scrape;
use crate::common::served::{STORE, check_alive, linear_request, serve};
use crate::common::skip::skip;
use serde_json::{Value, json};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user who is neither root nor the daemon's own.
const STRANGER: u32 = 54_321;

/// Bytes that the ledger is asked for a connection: `api::connections` has the figure.
const CONNECTION_BYTES: u64 = 64 << 10;

fn scrape(daemon: &Daemon) -> Scrape {
    let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
    let (_, _, text) = daemon.connect().send(request).response();
    Scrape::parse(std::str::from_utf8(&text).unwrap()).unwrap()
}

/// Connections of another user; the kernel goes by the user of the thread that connects.
fn connect_as(uid: u32, socket: &Path, count: usize) -> Vec<UnixStream> {
    let connect = || {
        // SAFETY: the system call takes integers, and changes the user of this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
        assert_eq!(changed, 0, "root may be another user");
        (0..count).map(|_| UnixStream::connect(socket).unwrap()).collect()
    };
    thread::scope(|scope| scope.spawn(connect).join().unwrap())
}

/// The status that a connection is answered with.
fn ask(mut stream: UnixStream) -> Option<String> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    // One that is refused is answered before.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    Some(answer.split(' ').nth(1)?.to_owned())
}

/// 256 idle connections of one user shut all others out for as long as they were kept.
#[test]
fn idle_connections_shut_nobody_out() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    let idle: Vec<_> = (0..300).map(|_| daemon.connect()).collect();
    check_alive(daemon);
    drop(idle);

    if fs::metadata(served.folder.path()).unwrap().uid() != 0 {
        return skip("only root can be somebody else");
    }
    fs::set_permissions(served.folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&daemon.socket, Permissions::from_mode(0o666)).unwrap();
    let crowd = connect_as(STRANGER, &daemon.socket, 300);
    // Root, another user, and the crowd's own user, for whom the longest idle makes room.
    check_alive(daemon);
    for uid in [STRANGER + 1, STRANGER] {
        let [one] = connect_as(uid, &daemon.socket, 1).try_into().unwrap();
        assert_eq!(ask(one).as_deref(), Some("200"), "user {uid}");
    }
    let open = scrape(daemon).sum("hermes_connections");
    assert!(open <= 128.0, "{open} connections are open");
    drop(crowd);
}

/// Connections that are busy cannot make room: whoever has his share is told so, and others are not.
#[test]
fn busy_connections_leave_a_share_to_others() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    if fs::metadata(served.folder.path()).unwrap().uid() != 0 {
        return skip("only root can be somebody else");
    }
    fs::set_permissions(served.folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&daemon.socket, Permissions::from_mode(0o666)).unwrap();
    let half = b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{";
    let mut crowd = connect_as(STRANGER, &daemon.socket, 128);
    // Who is refused no longer reads.
    crowd.iter_mut().for_each(|stream| drop(stream.write_all(half)));
    check_alive(daemon);
    let start = Instant::now();
    loop {
        let [own] = connect_as(STRANGER, &daemon.socket, 1).try_into().unwrap();
        if ask(own).as_deref() == Some("503") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "one user may have all connections");
        // One whose head was not read yet has made room for it.
        let [mut next] = connect_as(STRANGER, &daemon.socket, 1).try_into().unwrap();
        let _ = next.write_all(half);
        crowd.push(next);
    }
    let [other] = connect_as(STRANGER + 1, &daemon.socket, 1).try_into().unwrap();
    assert_eq!(ask(other).as_deref(), Some("200"));
    check_alive(daemon);
}

/// Bytes that wait to be read from `stream`.
fn unread_bytes(stream: &UnixStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one integer of ours.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    assert_eq!(result, 0);
    u64::try_from(bytes).unwrap()
}

/// 120 connections that pipelined requests and read nothing held up to 55 MiB in the kernel; heads
/// without bodies were answered to memory without end.
#[test]
fn replies_that_nobody_reads_are_bounded() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    check_alive(daemon);
    let before = daemon.status_kib("VmRSS") << 10;
    const CROWD: usize = 60;
    for request in
        ["GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n", "HEAD /v2 HTTP/1.1\r\nhost: h\r\n\r\n"]
    {
        let requests = request.repeat(4000);
        let mut crowd: Vec<UnixStream> = (0..CROWD)
            .map(|_| UnixStream::connect(&daemon.socket).unwrap())
            .inspect(|stream| stream.set_nonblocking(true).unwrap())
            .collect();
        let mut sent = vec![0; CROWD];
        // Until the daemon takes nothing more of anybody.
        let mut is_quiet = false;
        while !is_quiet {
            is_quiet = true;
            for (stream, sent) in crowd.iter_mut().zip(&mut sent) {
                match stream.write(&requests.as_bytes()[(*sent % request.len())..]) {
                    Ok(bytes) => (*sent, is_quiet) = (*sent + bytes, false),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            check_alive(daemon);
        }
        for stream in &crowd {
            let unread = unread_bytes(stream);
            assert!(unread <= CONNECTION_BYTES / 2, "{unread} bytes wait in the kernel");
        }
        let grown = (daemon.status_kib("VmRSS") << 10).saturating_sub(before);
        let granted = CROWD as u64 * CONNECTION_BYTES;
        assert!(grown <= granted + (4 << 20), "{request:?}: {grown} bytes of {granted}");
    }
    check_alive(daemon);
}

/// 60 declared lengths without a byte refused a third of honest requests for eight seconds.
#[test]
fn a_declared_length_holds_nothing() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB"]);
    let daemon = &served.daemon;
    check_alive(daemon);
    let held = || scrape(daemon).of("hermes_ledger_bytes", "category", "request");
    let before = held();
    let head =
        "POST /v2/models/linear/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 8000000\r\n\r\n";
    let crowd: Vec<Connection> = (0..60).map(|_| daemon.connect().send(head)).collect();
    for _ in 0..20 {
        check_alive(daemon);
    }
    let each = (held() - before) / crowd.len() as f64;
    assert!(each <= (CONNECTION_BYTES + (16 << 10)) as f64, "{each} bytes each");
    // What they hold follows what they send, and a whole body is still a body.
    let body = linear_request().to_string() + &" ".repeat(5 << 20);
    let (status, reply) = daemon.post("/v2/models/linear/infer", &body);
    assert_eq!(status, 200, "{reply}");
}

/// What was granted with the seat holds the outputs until their client has taken them: it was given
/// back, and asked for again when they were there.
#[test]
fn outputs_are_held_until_they_are_taken() {
    let served = serve(&["--budget", "64MiB", "--window", "8MiB", "--profiles", "false"]);
    let daemon = &served.daemon;
    let of = |category: &str| scrape(daemon).of("hermes_ledger_bytes", "category", category);
    let count = 1 << 20;
    let text = format!(
        r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"x","datatype":"UINT8",
        "shape":[1,{count}],"parameters":{{"binary_data_size":{count}}}}}]}}"#
    );
    let head = format!(
        "POST /v2/models/same-uint8/infer HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\
         inference-header-content-length: {}\r\n\r\n",
        text.len() + count,
        text.len()
    );
    let ask =
        || daemon.connect().send([head.as_bytes(), text.as_bytes(), &vec![7; count]].concat());
    assert_eq!(ask().response().0, 200);
    let before = of("request");
    let wait_until = |what: &str, is_so: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    let untaken = ask();
    let is_held = || of("request") >= before + count as f64 && of("activations") == 0.0;
    wait_until("the reply is not held", &is_held);
    drop(untaken);
    wait_until("the reply stays", &|| of("request") <= before);
}

/// 20,000 of them, of a real model, are `hermes-bench soak --mixed`.
#[test]
fn right_requests_are_answered_among_wrong_ones() {
    for model in ["linear", "words"] {
        let mut soak = Command::new(program("hermes-bench"));
        soak.args(["soak", "--mixed", "--requests", "400", "--tokens", "6", "--model", model]);
        let output = soak.arg("--store").arg(STORE.path()).output().unwrap();
        let (out, error) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{model}: {error}{}", String::from_utf8_lossy(out));
    }
}

/// hermesd that may open so many files.
fn limited(files: u32, socket: &Path, log: &Path) -> Command {
    let daemon = command(STORE.path(), socket, &["--budget", "64MiB", "--window", "8MiB"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("ulimit -n {files}; exec \"$@\""), "sh"]);
    limited.arg(daemon.get_program()).args(daemon.get_args());
    limited.env("MEMORY_PRESSURE_WATCH", "/dev/null").stderr(File::create(log).unwrap());
    limited
}

/// With few files, connections took all of them: honest clients waited for 30 s and models could
/// not be loaded.
#[test]
fn the_limit_of_connections_follows_the_limit_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, log) = (folder.path().join("s"), folder.path().join("log"));
    let daemon = Daemon::spawn(&mut limited(64, &socket, &log), &socket);
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("the limit of open files (RLIMIT_NOFILE) allows"), "{text}");
    let idle: Vec<_> = (0..100).map(|_| daemon.connect()).collect();
    check_alive(&daemon);
    drop(idle);

    let socket = folder.path().join("t");
    let ended = Daemon::try_start(&mut limited(16, &socket, &log), &socket);
    assert!(ended.is_err_and(|status| status.code() == Some(1)));
    let text = fs::read_to_string(&log).unwrap();
    let told = "the limit of open files (RLIMIT_NOFILE) is 16, and hermesd needs ";
    assert!(text.contains(told), "{text}");
    // What it asks for suffices.
    let needed = text.split_once(told).unwrap().1.split(' ').next().unwrap().parse().unwrap();
    drop(Daemon::spawn(&mut limited(needed, &socket, &log), &socket));
}

/// Files may run out in mid-run, whoever took them. It costs the requests that want one, and nobody
/// after them.
#[test]
fn files_that_run_out_in_mid_run_cost_requests_and_no_more() {
    // What measures while nothing is asked opens files, and closes them when something is.
    let served = serve(&["--budget", "64MiB", "--window", "8MiB", "--profiles", "false"]);
    let daemon = &served.daemon;
    check_alive(daemon);
    let id = daemon.id().to_string();
    let limit = |files: &str| {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &id, &format!("--nofile={files}:")]);
        assert!(command.status().unwrap().success());
    };
    let body = linear_request().to_string();
    let check_refusal = |reply: &Value| {
        assert!(reply["error"].as_str().unwrap().contains("Too many open files"), "{reply}");
    };
    let check_answer_or_refusal = |(status, reply): (u16, Value)| match status {
        200 => assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0])),
        _ => check_refusal(&reply),
    };
    let mut open = daemon.connect();
    for _ in 0..3 {
        open = open.post("/v2/models/linear/infer", &body);
        let reply = open.reply();
        assert_eq!(reply.0, 200);
        limit(&daemon.open_files().to_string());
        open = open.post("/v2/models/linear/infer", &body);
        check_answer_or_refusal(open.reply());
        open = open.post("/v2/repository/models/words/load", "");
        // The limit is one of numbers: one that was closed meanwhile may be left.
        let (status, reply) = open.reply();
        if status != 200 {
            check_refusal(&reply);
        }
        limit("1000");
    }
    // Where there is no file for a new connection, an idle one makes room. The next one that was
    // accepted was ended for nobody, before its request came.
    limit(&daemon.open_files().to_string());
    let mut fresh = daemon.connect().post("/v2/models/linear/infer", &body);
    check_answer_or_refusal(fresh.reply());
    limit("1000");
    check_alive(daemon);
    daemon.load("words");
}
