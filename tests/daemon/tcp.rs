//! Ports: what comes by them is served as what comes by the socket, within rights of its own, and
//! shows first that no page of a browser sent it.

#![allow(unsafe_code)]

use crate::common::daemon::{Connection, Daemon, command, wait_logged};
use crate::common::frozen::Frozen;
use crate::common::served::{
    STORE, Served, check_alive, check_error, hermesctl, linear_request, metric, slow_request,
    wait_for_pass, wait_metric,
};
use crate::common::skip::skip;
use serde_json::{Value, json};
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that may wait: `engine::turns` has the limit.
const QUEUE_LIMIT: usize = 256;

/// A user who is neither root nor the daemon's own.
const STRANGER: u32 = 54_321;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// The host that clients of a port name.
const HOST: (&str, &str) = ("host", "127.0.0.1:8000");

const INFER: &str = "POST /v2/models/linear/infer";

/// hermesd with a socket and a port of 127.0.0.1, and with these lines in its config.
fn serve(config: &str) -> Served {
    serve_at("tcp:127.0.0.1:0", config)
}

/// hermesd with a socket and these ports. The folder has `c.toml`, `log` and `token`.
fn serve_at(listen: &str, config: &str) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let mut command = hermesd(folder.path(), listen, config);
    let daemon = Daemon::spawn(&mut command, &folder.path().join("s"));
    Served { daemon, folder }
}

fn hermesd(folder: &Path, listen: &str, config: &str) -> Command {
    let path = |name: &str| folder.join(name);
    fs::write(path("c.toml"), config.replace("TOKEN", path("token").to_str().unwrap())).unwrap();
    set_token(folder, TOKEN);
    let mut command = command(STORE.path(), &path("s"), &["--budget", "96MiB", "--window", "8MiB"]);
    command.arg("--config").arg(path("c.toml")).args(["--listen", listen]);
    command.stderr(File::create(path("log")).unwrap());
    command
}

fn set_token(folder: &Path, token: &str) {
    fs::write(folder.join("token"), format!("{token}\n")).unwrap();
    fs::set_permissions(folder.join("token"), Permissions::from_mode(0o600)).unwrap();
}

impl Served {
    /// A connection to the first port.
    fn port(&self) -> Connection {
        self.daemon.connect_port(self.daemon.ports()[0])
    }

    fn ask(&self, request: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        self.port().ask(request, headers, body).reply()
    }

    /// Waits until the log has `text` more than `before` times; returns the log.
    fn wait_logged(&self, text: &str, before: usize) -> String {
        wait_logged(&self.folder.path().join("log"), text, before)
    }

    fn reload(&self, config: &str) {
        let before = self.wait_logged("", 0).matches("the config is reloaded").count();
        fs::write(self.folder.path().join("c.toml"), config).unwrap();
        self.daemon.signal("-HUP");
        self.wait_logged("the config is reloaded", before);
    }
}

fn infer() -> String {
    linear_request().to_string()
}

fn check_answer((status, reply): (u16, Value)) {
    assert_eq!(status, 200, "{reply}");
    assert_eq!(reply["outputs"][0]["data"], json!([20.0, 120.0, 220.0]));
}

/// What a hermesd that must not start says.
fn refusal(command: &mut Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn a_port_serves_what_the_socket_serves() {
    let listen = if has_ipv6() { "tcp:127.0.0.1:0,tcp:[::1]:0" } else { "tcp:127.0.0.1:0" };
    let served = serve_at(listen, "");
    check_alive(&served.daemon);
    check_answer(served.ask(INFER, &[HOST], &infer()));
    check_answer(served.ask(INFER, &[("host", "localhost:1")], &infer()));
    let by_port = |path: &str| served.ask(&format!("GET {path}"), &[HOST], "");
    for path in ["/v2", "/v2/health/ready", "/v2/models/words", "/v1/models", "/v2/models/none"] {
        assert_eq!(by_port(path), served.daemon.get(path), "{path}");
    }
    let embed = json!({"model": "words", "input": ["cat", "dog"]}).to_string();
    let reply = served.ask("POST /v1/embeddings", &[HOST], &embed);
    assert_eq!(reply, served.daemon.post("/v1/embeddings", &embed));
    assert_eq!(reply.0, 200);

    let ports = served.daemon.ports();
    if has_ipv6() {
        let mut connection = Connection::to(("::1", ports[1]));
        connection = connection.ask(INFER, &[("host", "[::1]:8000")], &infer());
        check_answer(connection.reply());
    }
    let log = served.wait_logged("listening on tcp:127.0.0.1:", 0);
    assert!(log.contains(&format!("listening on tcp:127.0.0.1:{}\n", ports[0])), "{log}");
    let (_, doctor, _) = hermesctl(&served.daemon.socket, &["doctor", "--store", "/proc"]);
    let expected = format!("s, tcp:127.0.0.1:{}", ports[0]);
    assert!(doctor.contains(&expected), "{doctor}");
}

/// What `*` grants to all users of a machine was not meant for whoever reaches a port.
#[test]
fn clients_of_a_port_have_rights_of_their_own() {
    let served = serve("");
    let load = "POST /v2/repository/models/linear/load";
    check_error(&served.ask(load, &[HOST], ""), 403, "by \"tcp\" in rights.load in hermesd.toml");
    for (request, right) in [
        ("POST /v2/repository/models/linear/unload", "load"),
        ("POST /v2/repository/gc", "install"),
        ("POST /v2/repository/install", "install"),
        ("DELETE /v2/repository/models/linear/versions/1", "install"),
    ] {
        check_error(&served.ask(request, &[HOST], ""), 403, &format!("the right to {right}"));
    }
    let log = served.wait_logged("has not the right to load", 0);
    assert!(log.contains("tcp 127.0.0.1:"), "{log}");
    served.reload("[rights]\ninfer = [\"*\"]\nload = [\"tcp\"]\n");
    check_error(&served.ask(INFER, &[HOST], &infer()), 403, "\"tcp\" in rights.infer");
    check_alive(&served.daemon);
    assert_eq!(served.ask(load, &[HOST], "").0, 200);
    assert_eq!(served.daemon.post("/v2/repository/models/linear/load", "").0, 403);
}

/// A page of any site that somebody opened on this machine could have models loaded and asked, and
/// by a name that was made to mean 127.0.0.1 read the answers too.
#[test]
fn pages_in_browsers_may_not_use_a_port() {
    let served = serve("");
    let port = served.daemon.ports()[0];
    let ask = |request: &str, headers: &[(&str, &str)]| {
        let (status, head, body) =
            served.daemon.connect_port(port).ask(request, headers, &infer()).response();
        assert!(!head.contains("access-control"), "{head}");
        (status, serde_json::from_slice::<Value>(&body).unwrap_or_default())
    };
    for host in ["evil.org", "evil.org:8000", "localhost.evil.org", "192.168.1.5:8000", ""] {
        check_error(&ask(INFER, &[("host", host)]), 421, "localhost, 127.0.0.1 and [::1] alone");
    }
    check_error(&ask(INFER, &[]), 421, "names no host, or several");
    check_error(&ask(INFER, &[HOST, HOST]), 421, "names no host, or several");
    let absolute = "POST http://evil/v2/models/linear/infer";
    check_error(&ask(absolute, &[HOST]), 421, "\"evil\"");
    let foreign = ["http://evil", "null", "https://127.0.0.1:8000", "http://127.0.0.1:3000"];
    for origin in foreign {
        let headers = [HOST, ("origin", origin), ("content-type", "text/plain")];
        check_error(&ask(INFER, &headers), 403, "may not use this port");
        check_error(&ask("OPTIONS /v2/models/linear/infer", &headers), 403, "may not use");
    }
    for site in ["cross-site", "same-site", "odd"] {
        check_error(&ask(INFER, &[HOST, ("sec-fetch-site", site)]), 403, "may not use this port");
    }
    // A name that was made to mean this machine: the page is of the site that it asks.
    let rebound = [("host", "evil:8000"), ("origin", "http://evil:8000")];
    check_error(&ask(INFER, &rebound), 421, "evil");
    assert_eq!(metric(&served.daemon, "hermes_loads_total{model=\"linear\"}"), 0.0);

    let own = [HOST, ("origin", "http://127.0.0.1:8000"), ("sec-fetch-site", "same-origin")];
    assert_eq!(ask(INFER, &own).0, 200);
    assert_eq!(ask("GET /v2", &[HOST, ("sec-fetch-site", "none")]).0, 200);
    // Whoever reaches the socket is known, whatever a proxy before it passes on.
    let mut socket = served.daemon.connect().ask(INFER, &rebound, &infer());
    assert_eq!(socket.reply().0, 200);
}

#[test]
fn a_token_is_asked_for_over_tcp_alone() {
    let served = serve("token-file = \"TOKEN\"\n");
    let port = served.daemon.ports()[0];
    let ask = |headers: &[(&str, &str)]| {
        let mut connection = served.daemon.connect_port(port).ask(INFER, headers, &infer());
        connection.response()
    };
    let bearer = |token: &str| format!("Bearer {token}");
    let longer = bearer(&format!("{TOKEN}0"));
    for given in ["", "Bearer", TOKEN, &bearer(""), &bearer(&TOKEN[1..]), &longer, "Basic YTpi"] {
        let (status, head, body) = ask(&[HOST, ("authorization", given)]);
        assert_eq!(status, 401, "{given}");
        assert!(head.contains("\r\nwww-authenticate: bearer realm=\"hermes\"\r\n"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        assert!(!String::from_utf8(body).unwrap().contains(TOKEN));
    }
    assert_eq!(ask(&[HOST]).0, 401);
    let right = bearer(TOKEN);
    let twice = [HOST, ("authorization", &*right), ("authorization", &*right)];
    assert_eq!(ask(&twice).0, 401);
    for path in ["/metrics", "/v2/health/live", "/v2", "/nowhere"] {
        let (status, _) = served.ask(&format!("GET {path}"), &[HOST], "");
        assert_eq!(status, 401, "{path}");
    }
    let (_, reply) = served.ask("GET /v1/models", &[HOST], "");
    assert_eq!(reply["error"]["code"], "invalid_api_key");
    // Who has it may call this machine by any name, and is no page that a browser sends.
    assert_eq!(ask(&[("host", "board.lan:8000"), ("authorization", &right)]).0, 200);
    let page = [HOST, ("authorization", &*right), ("origin", "http://evil")];
    assert_eq!(ask(&page).0, 403);
    let (status, _) = served.ask("GET /metrics", &[HOST, ("authorization", &right)], "");
    assert_eq!(status, 200);
    check_alive(&served.daemon);
    assert!(!served.wait_logged("", 0).contains(TOKEN));

    let next = TOKEN.replace('0', "f");
    set_token(served.folder.path(), &next);
    let config = fs::read_to_string(served.folder.path().join("c.toml")).unwrap();
    served.reload(&config);
    assert_eq!(ask(&[HOST, ("authorization", &right)]).0, 401);
    assert_eq!(ask(&[HOST, ("authorization", &bearer(&next))]).0, 200);
}

/// A reload that takes the token away would have opened the port to everybody.
#[test]
fn an_open_port_without_its_token_lets_nobody_in() {
    let served = serve_at("tcp:0.0.0.0:0", "token-file = \"TOKEN\"\n");
    let right = format!("Bearer {TOKEN}");
    let headers = [HOST, ("authorization", &*right)];
    assert_eq!(served.ask(INFER, &headers, &infer()).0, 200);
    fs::write(served.folder.path().join("c.toml"), "").unwrap();
    served.daemon.signal("-HUP");
    // The port is in the command line, so that this config is refused.
    let log = served.wait_logged("the old config stays in force", 0);
    assert!(log.contains("--listen: other machines may reach tcp:0.0.0.0:0"), "{log}");
    assert_eq!(served.ask(INFER, &headers, &infer()).0, 200);
    assert_eq!(served.ask(INFER, &[HOST], &infer()).0, 401);

    // Of one that was passed the config knows nothing.
    let folder = tempfile::tempdir().unwrap();
    let (socket, config) = (folder.path().join("s"), folder.path().join("c.toml"));
    set_token(folder.path(), TOKEN);
    fs::write(&config, format!("token-file = {:?}\n", folder.path().join("token"))).unwrap();
    let unix = OwnedFd::from(UnixListener::bind(&socket).unwrap());
    let open = OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap());
    let more = ["--config", config.to_str().unwrap()];
    let daemon = Daemon::spawn(&mut activated(folder.path(), &[&unix, &open], &more), &socket);
    let served = Served { daemon, folder };
    assert_eq!(served.ask(INFER, &headers, &infer()).0, 200);
    served.reload("");
    for headers in [&headers[..], &[HOST]] {
        check_error(&served.ask(INFER, headers, &infer()), 401, "while no token is set");
    }
    check_alive(&served.daemon);
}

#[test]
fn what_cannot_be_listened_on_is_told_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |listen: &str, config: &str| refusal(&mut hermesd(folder.path(), listen, config));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", taken.local_addr().unwrap());
    let said = refused(&address, "");
    let expected = format!("listen: {address}: cannot open the port: Address already in use");
    assert!(said.contains(&expected) && said.contains("ss -ltnp"), "{said}");
    assert!(!folder.path().join("s").exists(), "the socket of a daemon that did not start");

    let said = refused("tcp:0.0.0.0:0", "");
    assert!(said.contains("--listen: other machines may reach tcp:0.0.0.0:0: set token"), "{said}");
    let config = "listen = [\"unix:/x\",\n \"tcp:[::]:1\"]\n";
    fs::write(folder.path().join("c.toml"), config).unwrap();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
        command.arg("--config").arg(folder.path().join("c.toml")).arg("--check-config");
        command.arg("--store").arg(STORE.path());
        command
    };
    let said = refusal(&mut check());
    assert!(said.contains("c.toml:1: other machines may reach tcp:[::]:1"), "{said}");

    let config = format!("\ntoken-file = {:?}\n", folder.path().join("token"));
    fs::write(folder.path().join("c.toml"), config).unwrap();
    fs::set_permissions(folder.path().join("token"), Permissions::from_mode(0o644)).unwrap();
    let said = refusal(&mut check());
    assert!(said.contains("c.toml:2: ") && said.contains("(mode 0644)"), "{said}");
    set_token(folder.path(), "short");
    assert!(refusal(&mut check()).contains("is no token: it must be one line"));
    set_token(folder.path(), TOKEN);
    let good = check().args(["--listen", "unix:/a,tcp:127.0.0.1:1"]).output().unwrap();
    let said = String::from_utf8(good.stderr).unwrap();
    assert!(said.ends_with("is served at unix:/a, tcp:127.0.0.1:1\n"), "{said}");
    assert!(good.status.success());
}

#[test]
fn listen_is_shown_and_needs_a_restart() {
    let served = serve("");
    served.reload("listen = [\"unix:/elsewhere\"]\ndrain = 3\n");
    // The command line comes after the file: nothing has changed.
    assert!(!served.wait_logged("", 0).contains("listen has changed"));
    let folder = tempfile::tempdir().unwrap();
    let (socket, config) = (folder.path().join("s"), folder.path().join("c.toml"));
    fs::write(&config, format!("listen = [\"unix:{}\"]\n", socket.display())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
    command.arg("--config").arg(&config).arg("--store").arg(STORE.path());
    command.args(["--budget", "96MiB"]).stderr(File::create(folder.path().join("log")).unwrap());
    let daemon = Daemon::spawn(&mut command, &socket);
    let served = Served { daemon, folder };
    let listen = format!("listen = [\"unix:{}\", \"tcp:127.0.0.1:0\"]\n", socket.display());
    served.reload(&listen);
    let log = served.wait_logged("listen has changed", 0);
    assert!(log.contains("c.toml:1): it needs a restart, the old value stays"), "{log}");
    assert!(served.daemon.ports().is_empty());

    let printed = |listen: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hermesd"));
        command.arg("--config").arg(&config).arg("--print-config").args(["--listen", listen]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let text = printed("unix:/a,tcp:127.0.0.1:8000");
    let expected = "listen = [\"unix:/a\", \"tcp:127.0.0.1:8000\"]  # --listen\n";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("# socket: none, as listen says what is served\n"), "{text}");
    assert!(text.contains("# token-file: none, no token is asked for\n"), "{text}");
}

/// hermesd as the service manager starts it, with these sockets from descriptor 3 on.
fn activated(folder: &Path, passed: &[&OwnedFd], more: &[&str]) -> Command {
    let count = passed.len();
    let script = format!("LISTEN_PID=$$ LISTEN_FDS={count} exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_hermesd"), "--budget", "96MiB"]);
    command.arg("--store").arg(STORE.path()).args(more).stdin(Stdio::null());
    command.stderr(File::create(folder.join("log")).unwrap());
    let sockets: Vec<i32> = passed.iter().map(|socket| socket.as_raw_fd()).collect();
    // Behind all of them, however many files other tests have open.
    let high = sockets.iter().max().copied().unwrap_or(0).max(200) + 1;
    let place = move || {
        // They are moved out of the way first, since they may lie where others go to.
        let copy = |from: i32, to: i32| {
            // SAFETY: the call takes integers and is allowed between fork and exec; a copy stays
            // open in the program.
            let result = unsafe { libc::dup2(from, to) };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        (high..).zip(&sockets).try_for_each(|(high, fd)| copy(*fd, high))?;
        (3..).zip(&sockets).zip(high..).try_for_each(|((low, _), high)| copy(high, low))
    };
    // SAFETY: what runs between fork and exec allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, place) };
    command
}

#[test]
fn sockets_of_several_kinds_may_be_passed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let unix = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", port.local_addr().unwrap());
    let port = OwnedFd::from(port);
    let mut passed = vec![&unix, &port];
    let port6 = TcpListener::bind("[::1]:0").ok().map(OwnedFd::from);
    passed.extend(&port6);
    // What is passed is not opened once more, what is not passed is.
    let listen = format!("unix:{},{address},tcp:127.0.0.1:0", path.display());
    let mut command = activated(folder.path(), &passed, &["--listen", &listen]);
    let daemon = Daemon::spawn(&mut command, &path);
    let ports = daemon.ports();
    assert_eq!(ports.len(), passed.len());
    for port in &ports {
        let reached = TcpStream::connect(("127.0.0.1", *port)).is_ok();
        let host = if reached { "127.0.0.1" } else { "::1" };
        let connection = Connection::to((host, *port));
        check_answer(connection.ask(INFER, &[HOST], &infer()).reply());
    }
    check_alive(&daemon);
    drop(daemon);
    assert!(path.exists(), "a socket that was passed is not ours to remove");

    let open = OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap());
    let said = refusal(&mut activated(folder.path(), &[&unix, &open], &[]));
    assert!(said.contains("tcp:0.0.0.0:") && said.contains("set token-file"), "{said}");
}

/// Connections of another user; the kernel goes by the user of the thread that connects.
fn connect_as(uid: u32, socket: &Path) -> UnixStream {
    let connect = || {
        // SAFETY: the system call takes integers, and changes the user of this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1, uid, -1) };
        assert_eq!(changed, 0, "root may be another user");
        UnixStream::connect(socket).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(connect).join().unwrap())
}

/// The status of an answer; `None` where there is none.
fn status(mut stream: impl Read + Write) -> Option<String> {
    let request = b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    // One that is refused is answered before.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    Some(answer.split(' ').nth(1)?.to_owned())
}

/// Connections over TCP that were opened and kept, some with half a head, would have taken the
/// places of everybody else.
#[test]
fn crowds_at_a_port_shut_nobody_out() {
    let served = serve_at("tcp:127.0.0.1:0", "budget = \"96MiB\"\n");
    let daemon = &served.daemon;
    let port = daemon.ports()[0];
    let is_root = fs::metadata(served.folder.path()).unwrap().uid() == 0;
    fs::set_permissions(served.folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&daemon.socket, Permissions::from_mode(0o666)).unwrap();
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let check_others = || {
        check_alive(daemon);
        if is_root {
            let user = connect_as(STRANGER, &daemon.socket);
            user.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(status(user).as_deref(), Some("200"));
        }
    };
    let mut idle: Vec<TcpStream> = (0..600).map(|_| connect()).collect();
    for stream in idle.iter_mut().step_by(2) {
        let _ = stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: lo");
    }
    check_others();
    // The longest idle makes room.
    assert_eq!(status(connect()).as_deref(), Some("200"));
    let open = metric(daemon, "hermes_connections");
    assert!(open <= 96.0, "{open} connections are open");
    drop(idle);

    // Busy ones cannot make room: they have a share.
    let half = b"POST /v2/models/linear/infer HTTP/1.1\r\nhost: localhost\r\n\
                 content-length: 100\r\n\r\n{";
    let mut busy = Vec::new();
    let start = Instant::now();
    loop {
        let mut stream = connect();
        let _ = stream.write_all(half);
        busy.push(stream);
        if busy.len() > 100 && status(connect()).as_deref() == Some("503") {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "clients over TCP may have all connections");
    }
    check_others();
    if !is_root {
        skip("only root can be somebody else");
    }
}

/// Requests by a port took all of the queue, and whoever asked by the socket was told that it is full.
#[test]
fn requests_by_a_port_leave_half_of_the_queue() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--budget", "512MiB", "--profiles", "false", "--listen", "tcp:127.0.0.1:0"];
    let socket = folder.path().join("s");
    let daemon = Daemon::start(STORE.path(), &socket, &arguments);
    check_alive(&daemon);
    let port = daemon.ports()[0];
    let frozen = Frozen::new(daemon.id(), &["engine"]);
    let ask = || daemon.connect_port(port).ask(INFER, &[HOST], &infer());
    let mut crowd: Vec<Connection> = (0..QUEUE_LIMIT / 2).map(|_| ask()).collect();
    let waiting = "hermes_waiting_requests";
    wait_metric(&daemon, waiting, |count| count == (QUEUE_LIMIT / 2) as f64);
    let request = format!(
        "{INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{}",
        infer().len(),
        infer()
    );
    let one_more = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // Who is refused no longer reads.
        let _ = stream.write_all(request.as_bytes());
        stream
    };
    let more: Vec<TcpStream> = (0..QUEUE_LIMIT).map(one_more).collect();
    let mut ours = daemon.connect().post("/v2/models/linear/infer", &infer());
    wait_metric(&daemon, waiting, |count| count == (QUEUE_LIMIT / 2 + 1) as f64);
    drop((frozen, more));
    check_answer(ours.reply());
    crowd.iter_mut().for_each(|connection| check_answer(connection.reply()));
}

/// A client whose machine or cable was gone held its connection, and what it had asked for, for ever.
#[test]
fn a_client_that_says_nothing_is_asked_whether_it_is_there() {
    let served = serve("");
    let port = served.daemon.ports()[0];
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ends = [port, client.local_addr().unwrap().port()].map(|port| format!(":{port:04X}"));
    // The timer of the daemon's end, as the kernel tells it: 02 is the one that asks.
    let timer = || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = lines.find(|of| of[1].ends_with(&ends[0]) && of[2].ends_with(&ends[1]))?;
        Some(ours[5].split(':').next()?.to_owned())
    };
    let start = Instant::now();
    while timer().as_deref() != Some("02") {
        assert!(start.elapsed() < PATIENCE, "{:?}", timer());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Strangers held their connections for half a minute before anybody had seen a token of them.
#[test]
fn who_asks_nothing_by_a_port_is_gone_before_who_has_asked() {
    let served = serve("token-file = \"TOKEN\"\n");
    let port = served.daemon.ports()[0];
    let token = format!("Bearer {TOKEN}");
    let ask = |connection: Connection| {
        let mut asked = connection.ask("GET /v2", &[HOST, ("authorization", &token)], "");
        assert_eq!(asked.reply().0, 200);
        asked
    };
    let known = ask(served.port());
    let strangers = ["", "GET /v2 HTTP/1.1\r\nhost: lo"].map(|said| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(said.as_bytes()).unwrap();
        stream
    });
    for mut stranger in strangers {
        stranger.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stranger.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    ask(known);
}

/// A client that resets its connection has its request cancelled, and one that only stops sending
/// gets its answer or its end; nothing of either is left.
#[test]
fn connections_that_end_badly_leave_nothing() {
    let served = serve("");
    let daemon = &served.daemon;
    let port = daemon.ports()[0];
    let send = |body: &str, length: usize| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = "POST /v2/models/slow/infer HTTP/1.1\r\nhost: localhost";
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        stream
    };
    let reset = |stream: TcpStream| {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the kernel reads a structure of the length that it is told.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                std::ptr::from_ref(&linger).cast(),
                size_of_val(&linger) as u32,
            )
        };
        assert_eq!(result, 0);
    };
    let held = "hermes_ledger_bytes{category=\"request\"}";
    let before = metric(daemon, held);
    let slow = slow_request().to_string();
    let stream = send(&slow, slow.len());
    wait_for_pass(daemon);
    reset(stream);
    let cancelled = "hermes_requests_total{model=\"slow\",outcome=\"cancelled\"}";
    wait_metric(daemon, cancelled, |count| count == 1.0);
    reset(send(&slow[..1000], slow.len()));
    let half = send(&slow[..1000], slow.len());
    half.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    match (&half).read_to_string(&mut answer) {
        Ok(_) => assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    drop(half);
    wait_metric(daemon, "hermes_connections", |count| count == 1.0);
    wait_metric(daemon, held, |bytes| bytes <= before);
    check_alive(daemon);
}
