//! `hermesctl embed --file`: many texts, from a file to a file, whatever comes between.

use crate::common::daemon::Daemon;
use crate::common::programs::program;
use crate::common::served::{STORE, Served, hermesctl, metric, serve, served};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Length of the header of a .npy file.
const HEADER_BYTES: usize = 128;

/// The vector of some words.
fn vector(text: &str) -> Vec<f32> {
    let words: Vec<usize> = text
        .split(' ')
        .map(|word| {
            ["cat", "dog", "car"]
                .iter()
                .position(|known| *known == word)
                .map_or(0, |index| index + 1)
        })
        .collect();
    let sum: Vec<f32> = (0..4)
        .map(|place| words.iter().map(|word| if *word == place { 1.0 } else { 0.5 }).sum())
        .collect();
    let length = sum.iter().map(|value| value * value).sum::<f32>().sqrt();
    sum.iter().map(|value| value / length).collect()
}

fn check_vector(found: &[f32], text: &str) {
    let expected = vector(text);
    assert_eq!(found.len(), expected.len());
    let is_near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(is_near, "{text}: {found:?}, not {expected:?}");
}

/// The header's shape and the rows of a .npy file of four values a row.
fn rows(path: &Path) -> (String, Vec<Vec<f32>>) {
    let bytes = fs::read(path).unwrap();
    let header = String::from_utf8_lossy(&bytes[10..HEADER_BYTES]).into_owned();
    let shape = header.split("'shape': ").nth(1).unwrap().split(')').next().unwrap().to_owned();
    let values: Vec<f32> = bytes[HEADER_BYTES..]
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    (shape + ")", values.chunks(4).map(<[f32]>::to_vec).collect())
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        Files { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// Names of what is there.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Runs `hermesctl embed words --file .. --output ..`: exit code, standard error.
fn embed(socket: &Path, file: &Path, output: &Path, more: &[&str]) -> (i32, String) {
    let (file, output) = (file.to_str().unwrap(), output.to_str().unwrap());
    let arguments = [&["embed", "words", "--file", file, "--output", output], more].concat();
    let (code, printed, error) = hermesctl(socket, &arguments);
    assert_eq!(printed, "", "nothing is printed");
    (code, error)
}

/// hermesctl with standard input, which embeds that into `output`.
fn piped(socket: &Path, output: &Path) -> Child {
    let mut command = Command::new(program("hermesctl"));
    command.arg("--socket").arg(socket).args(["embed", "words", "-", "--output"]).arg(output);
    command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until so many lines are done of what will be `output`.
fn wait_for_lines(output: &Path, lines: u64) {
    let note = PathBuf::from(format!("{}.partial.json", output.display()));
    let start = Instant::now();
    loop {
        let text = fs::read(&note).unwrap_or_default();
        let note: Value = serde_json::from_slice(&text).unwrap_or_default();
        if note["input"]["lines"].as_u64().is_some_and(|done| done >= lines) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{note}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Texts that the daemon has embedded.
fn embedded(served: &Served) -> f64 {
    metric(&served.daemon, "hermes_pass_requests_total{model=\"words\"}")
}

#[test]
fn a_file_of_texts_becomes_a_file_of_vectors() {
    let (served, files) = (served(), Files::new());
    let socket = &served.daemon.socket;
    let texts: Vec<String> =
        (0..600).map(|n| ["cat", "dog car", "car car cat"][n % 3].to_owned()).collect();
    let file = files.write("texts.txt", texts.join("\n"));
    let (code, error) = embed(socket, &file, &files.path("v.npy"), &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    let (shape, vectors) = rows(&files.path("v.npy"));
    assert_eq!((shape.as_str(), vectors.len()), ("(600, 4,)", 600));
    vectors.iter().zip(&texts).for_each(|(vector, text)| check_vector(vector, text));

    let lines =
        "\"cat\"\n{\"text\":\"dog\",\"id\":\"d\\u00e9\"}\n{\"id\":12345678901,\"input\":\"car\"}\n";
    let file = files.write("texts.jsonl", lines);
    let output = files.path("v.jsonl");
    assert_eq!(embed(socket, &file, &output, &["--dimensions", "2"]).0, 0);
    let text = fs::read_to_string(&output).unwrap();
    let objects: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 3);
    assert!(objects[0].get("id").is_none());
    assert_eq!(
        (&objects[1]["id"], &objects[2]["id"]),
        (&json!("d\u{e9}"), &json!(12_345_678_901u64))
    );
    for (object, expected) in objects.iter().zip([[0.5f64, 1.0], [0.5, 0.5], [0.5, 0.5]]) {
        let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
        let values: Vec<f64> = serde_json::from_value(object["embedding"].clone()).unwrap();
        assert_eq!(values.len(), 2);
        assert!(
            values.iter().zip(expected).all(|(a, b)| (a - b / length).abs() < 1e-6),
            "{object}"
        );
    }
    assert_eq!(files.names(), ["texts.jsonl", "texts.txt", "v.jsonl", "v.npy"]);
    assert_eq!(embed(socket, &file, &output, &["--normalize=false"]).0, 0);
    let text = fs::read_to_string(&output).unwrap();
    assert!(text.starts_with("{\"line\":1,\"embedding\":[0.5,1.0,0.5,0.5]}\n"), "{text}");
    // The same again replaces what was there.
    let file = files.write("texts.txt", "");
    assert_eq!(embed(socket, &file, &files.path("v.npy"), &[]).0, 0);
    assert_eq!(rows(&files.path("v.npy")), ("(0, 0,)".to_owned(), vec![]));
}

#[test]
fn texts_come_from_standard_input() {
    let served = served();
    let ask = |arguments: &[&str], input: &str| -> (i32, String, String) {
        let mut command = Command::new(program("hermesctl"));
        command.arg("--socket").arg(&served.daemon.socket).args(["embed", "words"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let given = hermesctl(&served.daemon.socket, &["embed", "words", "cat"]);
    assert_eq!(ask(&["-"], "cat\n"), given);
    let given = hermesctl(&served.daemon.socket, &["embed", "words", "cat", "dog", "--json"]);
    assert_eq!(ask(&["-", "--json"], "cat\r\ndog"), given);
    let (code, _, error) = ask(&["-"], "cat\n\ndog\n");
    assert!(code == 2 && error.contains("line 2 is empty"), "{code}: {error}");
    assert_eq!(ask(&["-"], "").0, 2);
    assert_eq!(ask(&["cat", "--output", "v.npy"], "").0, 2);
    assert_eq!(ask(&["--file", "texts.txt"], "").0, 2);
    assert_eq!(ask(&["--file", "/none", "--output", "v.npy"], "").0, 2);
    assert_eq!(ask(&["-", "--output", "v.txt"], "").0, 2);
}

/// Whoever has a line that cannot be embedded wants to know which, and the vectors of all others.
#[test]
fn a_line_without_a_vector_is_named_and_loses_no_other() {
    let (served, files) = (served(), Files::new());
    let socket = &served.daemon.socket;
    let long = "cat ".repeat(7);
    let mut text = format!("\ncat\n{long}\n").into_bytes();
    text.extend(b"\xff\xfe\ndog\n");
    text.extend("x".repeat(70_000).bytes());
    text.extend(b"\ncar\n");
    let file = files.write("texts.txt", text);
    let (code, error) = embed(socket, &file, &files.path("v.npy"), &["--truncate=none"]);
    assert_eq!(code, 4, "{error}");
    let said: Vec<&str> = error.lines().collect();
    for (line, expected) in [
        "hermesctl: line 1 is empty",
        "hermesctl: line 3 ",
        "hermesctl: line 4 is not UTF-8",
        "hermesctl: line 6 ",
        "hermesctl: 4 of 7 lines have no vector",
    ]
    .iter()
    .enumerate()
    {
        assert!(said[line].starts_with(expected), "{error}");
    }
    assert!(said[1].contains("7 tokens; the model takes at most 6"), "{error}");
    assert!(said[3].contains("70000 bytes"), "{error}");
    let (shape, vectors) = rows(&files.path("v.npy"));
    assert_eq!(shape, "(7, 4,)");
    for (row, text) in
        [None, Some("cat"), None, None, Some("dog"), None, Some("car")].iter().enumerate()
    {
        match text {
            Some(text) => check_vector(&vectors[row], text),
            None => assert!(vectors[row].iter().all(|value| value.is_nan()), "row {row}"),
        }
    }
    // The makers' own rule cuts the long one.
    assert!(!embed(socket, &file, &files.path("v.npy"), &[]).1.contains("line 3 "));

    let file = files.write("texts.jsonl", "{\"id\":1,\"text\":\"\"}\n{\"id\":2\n\"cat\"\n");
    let output = files.path("v.jsonl");
    assert_eq!(embed(socket, &file, &output, &[]).0, 4);
    let text = fs::read_to_string(&output).unwrap();
    let objects: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects[0], json!({"id": 1, "line": 1, "error": "is empty"}));
    assert!(objects[1]["error"].as_str().unwrap().starts_with("is not JSON"));
    assert_eq!(
        (&objects[2]["line"], objects[2]["embedding"].as_array().unwrap().len()),
        (&json!(3), 4)
    );
}

/// What is asked wrongly is no line's fault: nothing is written, and nothing is left.
#[test]
fn a_request_that_is_wrong_leaves_nothing() {
    let (served, files) = (served(), Files::new());
    let socket = &served.daemon.socket;
    let file = files.write("texts.txt", "cat\n");
    let output = files.path("v.npy");
    for more in [&["--dimensions", "9"][..], &["--prompt-name", "query"]] {
        let (code, error) = embed(socket, &file, &output, more);
        assert!(code == 1 && error.contains(&more[0][2..5]), "{code}: {error}");
        assert_eq!(files.names(), ["texts.txt"]);
    }
    let (code, error) = embed(Path::new("/none"), &file, &output, &[]);
    assert!(code == 3 && error.contains("is it running?"), "{code}: {error}");
    let (code, error) = embed(socket, &file, &file, &[]);
    assert!(code == 2 && error.contains("replace the texts"), "{code}: {error}");
    assert_eq!(files.names(), ["texts.txt"]);
}

/// Killed in the middle, the same command goes on after what was done, and the file is the same to
/// the bit as if nothing had happened.
#[test]
fn what_was_interrupted_goes_on() {
    let (served, files) = (served(), Files::new());
    let socket = &served.daemon.socket;
    let texts: Vec<&str> = (0..40).map(|n| ["cat", "dog car", ""][n % 3]).collect();
    let text = texts.join("\n") + "\n";
    let file = files.write("texts.txt", &text);
    // Who is started in the background ignores an interrupt from the keyboard.
    for signal in ["-TERM", "-KILL"] {
        let output = files.path("v.npy");
        let mut child = piped(socket, &output);
        let mut input = child.stdin.take().unwrap();
        let first: String = texts[..20].iter().map(|text| format!("{text}\n")).collect();
        input.write_all(first.as_bytes()).unwrap();
        // Requests of 1, 2, 4 and 8 lines; the fifth waits for what never comes.
        wait_for_lines(&output, 15);
        let id = child.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert!(child.wait().unwrap().code().is_none(), "it was killed");
        assert!(!output.exists() && files.path("v.npy.partial").exists());
        let before = embedded(&served);
        assert_eq!(embed(socket, &file, &output, &[]).0, 4, "the lines before count too");
        let again = texts[15..].iter().filter(|text| !text.is_empty()).count();
        assert_eq!(embedded(&served) - before, again as f64);
        assert_eq!(embed(socket, &file, &files.path("whole.npy"), &[]).0, 4);
        assert_eq!(fs::read(&output).unwrap(), fs::read(files.path("whole.npy")).unwrap());
        fs::remove_file(output).unwrap();
    }
    assert_eq!(files.names(), ["texts.txt", "whole.npy"]);
}

/// Ctrl-C ended it without a word.
#[test]
fn an_interrupt_says_what_is_done_and_how_to_go_on() {
    let (served, files) = (served(), Files::new());
    let output = files.path("v.npy");
    // As from a keyboard: who is started in the background ignores it.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(program("hermesctl"));
    command.arg("--socket").arg(&served.daemon.socket);
    command.args(["embed", "words", "-", "--output"]).arg(&output);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"cat\ndog\ncar\n").unwrap();
    wait_for_lines(&output, 3);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(130), "{error}");
    assert!(
        error.contains("3 lines are in") && error.contains("the same command goes on"),
        "{error}"
    );
    assert!(files.path("v.npy.partial").exists() && !output.exists());
}

/// Vectors of another text, model, version or manner are never put beside those that are there.
#[test]
fn what_was_interrupted_is_not_gone_on_with_otherwise() {
    let (mut first, files) = (served(), Files::new());
    let (socket, output) = (first.daemon.socket.clone(), files.path("v.npy"));
    let mut child = piped(&socket, &output);
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"cat\ndog\ncar\n").unwrap();
    wait_for_lines(&output, 3);
    // The daemon goes away.
    first.daemon.signal("-TERM");
    first.daemon.wait();
    input.write_all(b"cat\ncat\ncat\ncat\n").unwrap();
    drop(input);
    let ended = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{error}");
    assert!(
        error.contains("3 lines are in") && error.contains("the same command goes on"),
        "{error}"
    );

    let daemon = Daemon::start(STORE.path(), &socket, &["--budget", "96MiB", "--window", "8MiB"]);
    let left = fs::read(files.path("v.npy.partial")).unwrap();
    let refused = |file: &Path, more: &[&str], expected: &str| {
        let (code, error) = embed(&daemon.socket, file, &output, more);
        assert!(code == 2 && error.contains(expected), "{code}: {error}");
        assert!(error.contains("v.npy.partial.json"), "{error}");
        assert_eq!(fs::read(files.path("v.npy.partial")).unwrap(), left);
    };
    let other = files.write("other.txt", "cat\ndog\ncat\ncar\n");
    refused(&other, &[], "first 3 lines are others");
    let shorter = files.write("shorter.txt", "cat\ndog\n");
    refused(&shorter, &[], "first 3 lines are others");
    let file = files.write("texts.txt", "cat\ndog\ncar\ndog dog\n");
    refused(&file, &["--dimensions", "2"], "{\"dimensions\":2}");
    refused(&file, &["--truncate"], "{\"truncate\":\"END\"}");
    refused(&file, &["--lines", "json"], "--lines was Text");
    assert_eq!(embed(&daemon.socket, &file, &output, &[]).0, 0);
    let (shape, vectors) = rows(&output);
    assert_eq!(shape, "(4, 4,)");
    for (vector, text) in vectors.iter().zip(["cat", "dog", "car", "dog dog"]) {
        check_vector(vector, text);
    }
}

/// Something that answers as `answer` says to a request's path: the status line with headers, the
/// body.
fn fake(socket: &Path, mut answer: impl FnMut(&str) -> (String, Value) + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    let mut serve = move |mut stream: UnixStream| {
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).unwrap();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let (head, body) = answer(request.split(' ').nth(1).unwrap());
        let body = body.to_string();
        let length = body.len();
        let reply = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(reply.as_bytes()).unwrap();
    };
    std::thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
}

/// One vector, as a reply to one text.
fn one_vector() -> (String, Value) {
    let vector = json!({"index": 0, "embedding": "AACAPwAAAAAAAAAAAAAAAA=="});
    ("200 OK".to_owned(), json!({"data": [vector]}))
}

fn described(version: &str) -> (String, Value) {
    ("200 OK".to_owned(), json!({"versions": [version]}))
}

/// A daemon that has no room says when to ask again, and is asked again then.
#[test]
fn who_has_no_room_is_asked_again() {
    let (files, asked) = (Files::new(), Arc::new(AtomicU64::new(0)));
    let (socket, count) = (files.path("s"), Arc::clone(&asked));
    fake(&socket, move |path| match path {
        "/v1/embeddings" if count.fetch_add(1, Ordering::Relaxed) < 2 => {
            let refusal = json!({"error": {"message": "no room"}});
            ("503 Busy\r\nretry-after: 0".to_owned(), refusal)
        }
        "/v1/embeddings" => one_vector(),
        _ => described("1"),
    });
    let file = files.write("texts.txt", "cat\n");
    let (code, error) = embed(&socket, &file, &files.path("v.npy"), &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(rows(&files.path("v.npy")).1, [[1.0, 0.0, 0.0, 0.0]]);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

/// Another version that is served meanwhile ends it: what may be of either is not kept.
#[test]
fn a_version_that_changes_meanwhile_ends_it() {
    let (files, asked) = (Files::new(), Arc::new(AtomicU64::new(0)));
    let (socket, count) = (files.path("s"), Arc::clone(&asked));
    let versions = Arc::clone(&asked);
    fake(&socket, move |path| match path {
        "/v1/embeddings" => {
            count.fetch_add(1, Ordering::Relaxed);
            one_vector()
        }
        _ => described(if versions.load(Ordering::Relaxed) < 2 { "1" } else { "2" }),
    });
    // Requests of at most one text: the first is empty, and then there are two.
    let file = files.write("texts.txt", "cat\n\ndog\ncar\n");
    let (code, error) = embed(&socket, &file, &files.path("v.npy"), &[]);
    assert!(code == 2 && error.contains("was 1, now it is 2"), "{code}: {error}");
    assert!(error.contains("1 line is in"), "{error}");
    assert_eq!(files.names(), ["s", "texts.txt", "v.npy.partial", "v.npy.partial.json"]);
}

/// hermesctl holds a request's texts and vectors, not the file's.
#[test]
fn what_hermesctl_holds_does_not_grow_with_the_file() {
    let (served, files) = (serve(&["--budget", "96MiB"]), Files::new());
    let output = files.path("v.jsonl");
    let mut child = piped(&served.daemon.socket, &output);
    let mut input = child.stdin.take().unwrap();
    let mut peak_kib = |lines: usize, all: u64| {
        input.write_all("cat dog\n".repeat(lines).as_bytes()).unwrap();
        wait_for_lines(&output, all);
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let first = peak_kib(2_000, 1_500);
    let last = peak_kib(18_000, 19_500);
    println!("{first} KiB after 2,000 lines, {last} after 20,000");
    assert!(last < first + 512, "{first} KiB after 2,000 lines, {last} after 20,000");
    drop(input);
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(output).unwrap().lines().count(), 20_000);
}
