//! Real clients: shells, man, Python's packages, hermesctl.

use crate::common::programs::program;
use crate::common::python;
use crate::common::served::{check_alive, check_error, hermesctl, serve, served};
use crate::common::skip::skip;
use hermes::stream::Category;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn openais_python_client_is_a_client() {
    let served = served();
    let seen = python::run("openai_client.py", &[&served.daemon.socket]);
    let models: Vec<&str> =
        seen["models"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(models.contains(&"words") && models.contains(&"linear"), "{models:?}");
    assert_eq!((&seen["words"], &seen["usage"]), (&json!("hermes"), &json!(2)));
    let vector = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
    // Its floats come as base64 unless it is told otherwise.
    for cat in [&seen["cat"], &seen["floats"], &seen["both"][1]] {
        let expected = [0.5, 1.0, 0.5, 0.5].map(|value| value / 1.75f64.sqrt());
        let cat = vector(cat);
        assert_eq!(cat.len(), 4);
        assert!(cat.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{cat:?}");
    }
    assert_eq!(seen["tokens"], json!([0, 1]));
    let unknown = json!({"status": 404, "code": "model_not_found", "param": "model"});
    assert_eq!(seen["unknown"], unknown);
    assert_eq!(seen["empty"], json!({"status": 400, "code": null, "param": "input"}));
    assert_eq!(seen["slow"], json!({"status": 504, "code": null, "param": null}));
}

/// Only the Unix socket was served, which most programs that take a URL cannot reach.
#[test]
fn programs_that_know_only_a_url_are_clients() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let token = "0123456789abcdef";
    std::fs::write(&path, token).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let arguments = ["--budget", "96MiB", "--window", "8MiB", "--listen", "tcp:127.0.0.1:0"];
    let with_token = [&arguments[..], &["--token-file", path.to_str().unwrap()]].concat();
    for (arguments, token) in [(&arguments[..], None), (&with_token, Some(token))] {
        let served = serve(arguments);
        let url = format!("http://127.0.0.1:{}", served.daemon.ports()[0]);
        let given: Vec<&str> = [&*url].into_iter().chain(token).collect();
        let seen = python::run("port_clients.py", &given);
        assert_eq!(seen["cat"].as_array().unwrap().len(), 4);
        assert_eq!(seen["ready"], json!([true, true, true]));
        assert_eq!((&seen["server"], &seen["inputs"]), (&json!("hermes"), &json!("x")));
        let expected = json!([[[20.0, 120.0, 220.0]]]);
        assert_eq!((&seen["y"], &seen["y_in_text"]), (&expected, &expected));
        let load = seen["load"].as_str().unwrap();
        assert!(load.contains("has not the right to load"), "{load}");
        assert_eq!(seen["kind"], "text/plain; version=0.0.4; charset=utf-8");
        let types = &seen["types"];
        assert_eq!(types["hermes_http_request_duration_seconds"], "histogram");
        assert_eq!(types["hermes_http_responses"], "counter");
        assert_eq!(types["process_start_time_seconds"], "gauge");
        assert!(seen["timed"].as_f64().unwrap() > 4.0);
    }
}

#[test]
fn python_sends_and_takes_binary_tensors() {
    let served = served();
    let seen = python::run("binary_tensors.py", &[&served.daemon.socket]);
    assert_eq!(seen["server"], "hermes");
    assert_eq!((&seen["load"], &seen["unload"]), (&json!("READY"), &json!("UNAVAILABLE")));
    assert_eq!(seen["one"], json!({"shape": [1, 1, 3], "data": [20.0, 120.0, 220.0]}));
    let row = [0.0, 10.0, 20.0];
    assert_eq!(seen["many"], json!({"shape": [1, 5000, 3], "data": row.repeat(5000)}));
    check_error(&(400, json!({"error": seen["wrong"][1]})), 400, "\"x\" is missing");
    assert_eq!((&seen["wrong"][0], &seen["unknown"]), (&json!(400), &json!(404)));
}

#[test]
fn bash_completes_commands_and_options() {
    let output = Command::new(program("hermesctl")).args(["completions", "bash"]).output().unwrap();
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
    for (program, section) in [
        (env!("CARGO_BIN_EXE_hermesd"), 8),
        (program("hermesctl"), 1),
        (program("hermes-shard"), 1),
    ] {
        let name = Path::new(program).file_name().unwrap().to_str().unwrap();
        let help = Command::new(program).arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let commands = commands.map_while(|line| line.split_whitespace().next());
        let commands: Vec<_> = commands.filter(|command| *command != "help").collect();
        assert_eq!(commands.is_empty(), name == "hermesd", "{help}");

        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(program).arg("--man-pages").arg(folder.path()).status().unwrap();
        assert!(status.success());
        let page = |name: &str| {
            let page = folder.path().join(format!("{name}.{section}"));
            let text = std::fs::read_to_string(&page).unwrap_or_default();
            assert!(text.contains(".TH ") && text.contains(".SH SYNOPSIS"), "{page:?}: {text}");
            text
        };
        let whole = page(name);
        for command in &commands {
            let text = page(&format!("{name}-{command}"));
            let listed = format!("{name}-{command}({section})").replace('-', "\\-");
            assert!(whole.contains(&listed), "{whole}");
            assert_eq!(text.contains("Exit codes: 0 "), name == "hermesctl", "{text}");
        }
        let pages = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(pages, 1 + commands.len());
    }
    let folder = tempfile::tempdir().unwrap().path().join("none");
    let mut command = Command::new(program("hermesctl"));
    let output = command.arg("--man-pages").arg(&folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("none: No such file"));
}

/// Runs hermesctl to a good end; what it prints.
fn printed(socket: &Path, arguments: &[&str]) -> String {
    let (code, output, error) = hermesctl(socket, arguments);
    assert_eq!(code, 0, "{arguments:?}: {error}");
    output
}

/// A table's row of that name, by the names of its head; columns are two spaces apart.
fn row(table: &str, name: &str) -> BTreeMap<String, String> {
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let head = cells(table.lines().find(|line| line.starts_with("MODEL")).unwrap());
    let line = table.lines().find(|line| line.split(' ').next() == Some(name));
    let line = cells(line.unwrap_or_else(|| panic!("{name} is not in {table}")));
    assert_eq!(head.len(), line.len(), "{table}");
    head.into_iter().zip(line).collect()
}

#[test]
fn hermesctl_shows_what_models_did() {
    let served = served();
    let socket = &served.daemon.socket;
    assert_eq!(printed(socket, &["stats"]).lines().count(), 1);
    (0..3).for_each(|_| check_alive(&served.daemon));
    printed(socket, &["embed", "words", "cat"]);
    printed(socket, &["unload", "words"]);

    let table = printed(socket, &["stats"]);
    let linear = row(&table, "linear");
    assert_eq!((&*linear["STATE"], &*linear["ANSWERED"], &*linear["PASSES"]), ("ready", "3", "3"));
    assert!(linear["PASS"].ends_with(" ms") && linear["STALL"].ends_with(" %"), "{table}");
    assert_eq!((&*linear["FAILED"], &*row(&table, "words")["STATE"]), ("0", "unloaded"));
    assert_eq!(printed(socket, &["stats", "linear"]).lines().count(), 2);
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&printed(socket, arguments)).unwrap()
    };
    let stats = json(&["stats", "linear", "--json"]);
    assert_eq!(stats, served.daemon.get("/v2/models/linear/stats").1);
    assert_eq!(json(&["stats", "--json"]), served.daemon.get("/v2/models/stats").1);
    let loaded = json(&["ps", "--json"]);
    assert_eq!(loaded, json!([stats["model_stats"][0]]));
    assert_eq!(row(&printed(socket, &["ps"]), "linear")["VARIANT"], "f32");
    let (code, _, error) = hermesctl(socket, &["stats", "nobody"]);
    assert!(code == 1 && error.contains("nobody"), "{code}: {error}");
}

#[test]
fn hermesctl_top_shows_one_frame_where_nobody_looks() {
    let served = served();
    check_alive(&served.daemon);
    for arguments in [&["top"][..], &["top", "--once"]] {
        let frame = printed(&served.daemon.socket, arguments);
        let budget = format!("hermesd {}  budget 96 MiB", env!("CARGO_PKG_VERSION"));
        assert!(frame.starts_with(&budget), "{frame}");
        assert!(frame.contains("waiting 0 of 256"), "{frame}");
        assert!(frame.is_ascii() && !frame.contains('\x1b'), "{frame}");
        for category in Category::ALL {
            let bars = frame.lines().filter(|line| line.starts_with(category.name()));
            assert_eq!(bars.count(), 1, "{frame}");
        }
        let linear = row(&frame, "linear");
        assert_eq!((&*linear["STATE"], &*linear["ANSWERED"]), ("ready", "1"), "{frame}");
    }
}

#[test]
fn hermesctl_top_prints_one_frame_as_json() {
    let served = served();
    check_alive(&served.daemon);
    let text = printed(&served.daemon.socket, &["top", "--json"]);
    let frame: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(frame["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&frame["budget_bytes"], &frame["waiting_limit"]), (&json!(96 << 20), &json!(256)));
    let ledger = frame["ledger_bytes"].as_object().unwrap();
    assert_eq!(ledger.len(), Category::ALL.len());
    let held = |category: &Category| ledger[category.name()].as_u64().unwrap();
    let held: u64 = Category::ALL.iter().map(held).sum();
    assert!(held > 0 && held <= 96 << 20, "{frame}");
    let models = frame["models"].as_array().unwrap();
    let linear = models.iter().find(|model| model["name"] == "linear").unwrap();
    let stats = &served.daemon.get("/v2/models/linear/stats").1["model_stats"][0]["hermes"];
    let same = [
        "variant",
        "state",
        "answered",
        "passes",
        "pass_requests",
        "pass_us",
        "stall_us",
        "bytes_read",
        "pinned_bytes",
    ];
    assert_eq!((&linear["answered"], &linear["state"]), (&json!(1), &json!("ready")));
    for name in same {
        assert_eq!(linear[name], stats[name], "{name}: {frame}");
    }
}

/// `top` on a terminal draws until it is told to end, and leaves the terminal as it was.
#[test]
fn hermesctl_top_ends_at_a_key() {
    if Command::new("script").arg("--version").output().is_err() {
        return skip("script is not installed");
    }
    let served = served();
    check_alive(&served.daemon);
    let program = program("hermesctl");
    let line = format!("{program} --socket {} top; stty -a", served.daemon.socket.display());
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    let mut output = script.stdout.take().unwrap();
    while !String::from_utf8_lossy(&seen).contains("linear") {
        let count = output.read(&mut piece).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&piece[..count]);
    }
    script.stdin.take().unwrap().write_all(b"q").unwrap();
    output.read_to_end(&mut seen).unwrap();
    assert!(script.wait().unwrap().success());
    let seen = String::from_utf8_lossy(&seen);
    let (screen, after) = seen.split_once("\x1b[?25h\x1b[?1049l").expect("the screen is left");
    assert!(screen.contains("\x1b[?1049h\x1b[?25l"), "{seen}");
    assert!(after.contains(" icanon") && after.contains(" echo "), "{after}");
}

#[test]
fn a_trace_tells_what_happened_in_a_pass() {
    let served = served();
    let socket = &served.daemon.socket;
    let file = served.folder.path().join("trace.json");
    let arguments = ["trace", "slow", "--tokens", "64", "--output", file.to_str().unwrap()];
    let said = printed(socket, &arguments);
    let trace: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let count = format!("{} events of a pass of ", events.len());
    assert!(said.contains(&count) && said.contains("chrome://tracing"), "{said}");

    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value} is no number"));
    let about = &trace["otherData"];
    assert_eq!((&about["model"], &about["version"]), (&json!("slow"), &json!("1")));
    let (latency_us, stall_us) = (number(&about["latency_us"]), number(&about["stall_us"]));
    let thread = |event: &Value| {
        let names = events.iter().filter(|other| other["name"] == "thread_name");
        let mut names = names.filter(|other| other["tid"] == event["tid"]);
        names.next().unwrap()["args"]["name"].as_str().unwrap().to_owned()
    };
    let of = |kind: &str| -> Vec<&Value> {
        let of_kind = events.iter().filter(|event| event["ph"] == "X" && event["cat"] == kind);
        let found: Vec<_> = of_kind.collect();
        found.iter().for_each(|event| assert!(number(&event["dur"]) <= latency_us, "{event}"));
        found
    };
    let (loads, leases, nodes) = (of("load"), of("lease"), of("node"));
    assert!(loads.iter().all(|event| thread(event).starts_with("loader-")));
    assert!(leases.iter().chain(&nodes).all(|event| !thread(event).starts_with("loader-")));
    assert!(nodes.iter().any(|node| number(&node["dur"]) > 0));
    let bytes: u64 = loads.iter().map(|load| number(&load["args"]["bytes"])).sum();
    assert!(bytes > 0 && bytes == number(&about["bytes_read"]), "{bytes} of {about}");
    let leased: BTreeSet<_> = leases.iter().map(|lease| number(&lease["args"]["block"])).collect();
    let loaded: BTreeSet<_> = loads.iter().map(|load| number(&load["args"]["block"])).collect();
    assert_eq!(leased, loaded);
    // Nodes follow each other, and waits are within.
    let total = |events: &[&Value]| events.iter().map(|event| number(&event["dur"])).sum::<u64>();
    assert!(total(&nodes) <= latency_us, "{} of {latency_us} us", total(&nodes));
    assert!(total(&of("wait")) <= latency_us && stall_us <= latency_us, "{about}");
    let begin = events.iter().filter(|event| event["ph"] == "X");
    let begin = begin.clone().map(|event| number(&event["ts"])).min().unwrap();
    let ends = nodes.iter().map(|node| number(&node["ts"]) + number(&node["dur"]));
    assert!(ends.max().unwrap() - begin <= latency_us);

    let in_json: Vec<_> = arguments.into_iter().chain(["--json"]).collect();
    let said: Value = serde_json::from_str(&printed(socket, &in_json)).unwrap();
    let trace: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let report = json!({
        "model": "slow",
        "output": file,
        "events": trace["traceEvents"].as_array().unwrap().len(),
        "latency_us": trace["otherData"]["latency_us"],
    });
    assert_eq!(said, report);

    // Nothing is written where the daemon refuses, nor where nothing can be made up.
    std::fs::remove_file(&file).unwrap();
    let refused = ["trace", "nobody", "--output", file.to_str().unwrap()];
    assert_eq!(hermesctl(socket, &refused).0, 1);
    assert_eq!(hermesctl(socket, &["trace", "slow", "--output", "/none/t"]).0, 2);
    assert!(!file.exists());
}

#[test]
fn every_command_tells_its_exit_codes_and_keeps_them() {
    let served = served();
    let socket = &served.daemon.socket;
    let help = printed(socket, &["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .map_while(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.len() >= 15, "{help}");
    let readme: Vec<&str> = include_str!("../../README.md").split_whitespace().collect();
    let readme = readme.join(" ");
    for code in ["0 done", "1 refused by the daemon", "2 usage", "3 the daemon cannot be"] {
        assert!(help.contains(code), "{help}");
        assert!(readme.contains(code), "README.md does not tell of {code:?}");
    }
    for command in commands {
        let help = printed(socket, &[command, "--help"]);
        assert!(help.contains("Exit codes: 0 "), "{command}: {help}");
        assert_eq!(hermesctl(socket, &[command, "--no-such-option"]).0, 2, "{command}");
    }
    let nobody = Path::new("/none/s");
    for arguments in [&["ps"][..], &["stats"], &["top"], &["load", "linear"], &["gc"]] {
        let (code, _, error) = hermesctl(nobody, arguments);
        assert_eq!(code, 3, "{arguments:?}: {error}");
        assert!(error.contains("/none/s: cannot reach hermesd"), "{error}");
    }
}
