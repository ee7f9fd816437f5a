//! What the daemon says of itself: every declared metric moves while it works, its text is of
//! Prometheus' format, and the statistics of Triton's shape agree with what was done.

use crate::common::daemon::{Daemon, command};
use crate::common::frozen::Frozen;
use crate::common::programs::program;
use crate::common::scrape::{Sample, Scrape};
use crate::common::served::{check_alive, check_error, linear_request, served, slow_request};
use crate::common::small_store::{self, SmallModel};
use crate::common::tiny::{path, run};
use crate::common::{made, writer};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests that may wait: `engine::inbox` has the limit.
const QUEUE_LIMIT: usize = 256;

/// Texts of one request that wait at once: `api::openai` has the number.
const IN_FLIGHT: usize = 16;

/// Where a small layer file's blocks begin.
const FIRST_BLOCK: u64 = 64 << 10;

/// Metrics that stand for a setting, and stay.
const SETTINGS: [&str; 6] = [
    "hermes_build_info",
    "hermes_listening",
    "hermes_budget_bytes",
    "hermes_waiting_requests_limit",
    "hermes_window_bytes",
    "process_start_time_seconds",
];

/// Metrics that only the kernel's or the machine's memory moves.
const MACHINE: [&str; 2] = ["hermes_pressure", "hermes_refaults_total"];

/// The text of `/metrics`.
fn text(daemon: &Daemon) -> String {
    let request = "GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
    let (status, head, body) = daemon.connect().send(request).response();
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    String::from_utf8(body).unwrap()
}

/// A metric's name and its labels.
type Key = (String, BTreeMap<String, String>);

/// Every value that each sample has had; one that came later was 0 before.
#[derive(Default)]
struct Seen(BTreeMap<Key, BTreeSet<u64>>);

impl Seen {
    fn look(&mut self, daemon: &Daemon) -> Scrape {
        let scrape = Scrape::parse(&text(daemon)).unwrap();
        let is_first = self.0.is_empty();
        for sample in scrape.samples() {
            let key = (sample.name.clone(), sample.labels.clone());
            let before = if is_first { BTreeSet::new() } else { BTreeSet::from([0]) };
            self.0.entry(key).or_insert(before).insert(sample.value.to_bits());
        }
        scrape
    }

    /// Looks until the metrics are as `is_so` wants them.
    fn look_until(&mut self, daemon: &Daemon, what: &str, is_so: impl Fn(&Scrape) -> bool) {
        let start = Instant::now();
        while !is_so(&self.look(daemon)) {
            assert!(start.elapsed() < PATIENCE, "{what} is not seen");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether a sample of `name` moved, of those that have the label `label` if one is given.
    fn moved(&self, name: &str, label: Option<(&str, &str)>) -> bool {
        let is_of = |labels: &BTreeMap<String, String>| {
            label.is_none_or(|(label, value)| labels.get(label).is_some_and(|v| v == value))
        };
        let mut samples = self.0.iter().filter(|((n, labels), _)| n == name && is_of(labels));
        samples.any(|(_, values)| values.len() > 1)
    }
}

/// A store with `linear`, `words`, `slow` and `broken`, a `linear` whose weight is damaged.
fn store() -> tempfile::TempDir {
    let store = tempfile::tempdir().unwrap();
    small_store::write(store.path(), small_store::linear());
    small_store::write(store.path(), small_store::words());
    small_store::write(store.path(), small_store::slow(30));
    writer::build(store.path(), "writer", Some(writer::TEMPLATE));
    write_repeats(store.path());
    small_store::write(store.path(), SmallModel { name: "broken", ..small_store::linear() });
    let layers = fs::read_dir(store.path().join("broken/1/layers")).unwrap();
    for layer in layers {
        let file = fs::File::options().write(true).open(layer.unwrap().path()).unwrap();
        file.write_all_at(&[0x55; 16], FIRST_BLOCK).unwrap();
    }
    store
}

/// `repeats`, whose graph is drawn here: what its texts go on with is guessed.
fn write_repeats(store: &Path) {
    let folder = tempfile::tempdir().unwrap();
    made::write_mistral_of(folder.path(), None, 512);
    let tokenizer = include_str!("../data/text/tokenizers/byte-level.tokenizer.json");
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    // Guessing wants all products streamed.
    let arguments = ["build", path(folder.path()), "--store", path(store), "--name", "repeats"];
    run(program("hermes-shard"), &[&arguments[..], &["--threshold", "1K"]].concat());
}

fn serve(store: &Path, folder: &Path) -> Daemon {
    // Too little for pins: blocks are read and released anew in each pass. Trials would have threads
    // of their own beside those that are to stand still.
    let arguments = ["--budget", "48MiB", "--window", "8MiB", "--profiles", "false"];
    Daemon::start(store, &folder.join("s"), &arguments)
}

/// As many wait as may: the budget is one in which that many connect.
#[test]
fn what_finds_the_queue_full_is_counted() {
    let (store, folder) = (store(), tempfile::tempdir().unwrap());
    let arguments = ["--budget", "160MiB", "--window", "8MiB", "--profiles", "false"];
    let daemon = Daemon::start(store.path(), &folder.path().join("s"), &arguments);
    check_alive(&daemon);
    let mut seen = Seen::default();
    seen.look(&daemon);
    let frozen = Frozen::new(daemon.id(), &["engine"]);
    let (path, request) = ("/v2/models/linear/infer", linear_request().to_string());
    let mut waiting: Vec<_> =
        (0..QUEUE_LIMIT).map(|_| daemon.connect().post(path, &request)).collect();
    seen.look_until(&daemon, "a full queue", |now| {
        now.sum("hermes_waiting_requests") == QUEUE_LIMIT as f64
    });
    check_error(&daemon.post(path, &request), 503, "is full");
    seen.look(&daemon);
    drop(frozen);
    waiting.iter_mut().for_each(|connection| assert_eq!(connection.reply().0, 200));
    assert!(seen.moved("hermes_requests_total", Some(("outcome", "refused"))));
}

#[test]
fn every_declared_metric_moves() {
    let (store, folder) = (store(), tempfile::tempdir().unwrap());
    let daemon = serve(store.path(), folder.path());
    let mut seen = Seen::default();
    let look = |seen: &mut Seen| drop(seen.look(&daemon));
    look(&mut seen);

    // Answered, in one pass and in several.
    check_alive(&daemon);
    look(&mut seen);
    check_alive(&daemon);
    let words = json!({"model": "words", "input": ["cat", "dog"]}).to_string();
    assert_eq!(daemon.post("/v1/embeddings", &words).0, 200);
    // Twice: the second one begins as the first did.
    let asked = json!({"model": "writer", "prompt": vec![5; 64], "max_tokens": 3}).to_string();
    for _ in 0..2 {
        assert_eq!(daemon.post("/v1/completions", &asked).0, 200);
        look(&mut seen);
    }
    // One that says the same again and again.
    let asked = json!({"model": "repeats", "prompt": [5], "max_tokens": 40,
        "logit_bias": {"7": 100}});
    let (status, reply) = daemon.post("/v1/completions", &asked.to_string());
    assert_eq!(status, 200, "{reply}");
    look(&mut seen);
    // A text that nobody reads goes on until somebody leaves.
    let asked = json!({"model": "writer", "prompt": [5], "max_tokens": 200, "logprobs": 5,
        "stream": true, "logit_bias": {"502": -100}});
    let unread = daemon.connect().post("/v1/completions", &asked.to_string());
    seen.look_until(&daemon, "a session", |now| now.sum("hermes_sessions") > 0.0);
    drop(unread);

    // Failed: a wrong request, and a weight that is damaged.
    let mut wrong = linear_request();
    wrong["inputs"][0]["name"] = json!("z");
    let reply = daemon.post("/v2/models/linear/infer", &wrong.to_string());
    check_error(&reply, 400, "\"z\"");
    daemon.load("broken");
    look(&mut seen);
    let request = linear_request().to_string();
    let reply = daemon.post("/v2/models/broken/infer", &request);
    check_error(&reply, 500, "broken");
    check_error(&daemon.get("/v2/models/broken/ready"), 503, "\"broken\" is not ready");
    look(&mut seen);

    // A pass long enough to be seen from outside.
    let slow = slow_request().to_string();
    thread::scope(|scope| {
        let pass = scope.spawn(|| daemon.post("/v2/models/slow/infer", &slow).0);
        seen.look_until(&daemon, "a pass", |now| {
            now.of("hermes_ledger_bytes", "category", "activations") > 0.0
        });
        assert_eq!(pass.join().unwrap(), 200);
    });
    look(&mut seen);

    // Waiting and cancelled.
    let frozen = Frozen::new(daemon.id(), &["engine"]);
    let path = "/v2/models/linear/infer";
    let late = format!(
        "POST {path} HTTP/1.1\r\nhost: h\r\ntimeout: 1ms\r\ncontent-length: {}\r\n\r\n{request}",
        request.len()
    );
    check_error(&daemon.connect().send(late).reply(), 504, "timeout");
    let texts = json!({"model": "words", "input": vec!["cat"; IN_FLIGHT]}).to_string();
    let mut waiting: Vec<_> =
        (0..4).map(|_| daemon.connect().post("/v1/embeddings", &texts)).collect();
    seen.look_until(&daemon, "a queue", |now| {
        now.sum("hermes_waiting_requests") >= 4.0 * IN_FLIGHT as f64
    });
    drop(frozen);
    waiting.iter_mut().for_each(|connection| assert_eq!(connection.reply().0, 200));
    drop(waiting);
    for model in ["linear", "words", "slow", "writer", "repeats"] {
        assert_eq!(daemon.post(&format!("/v2/repository/models/{model}/unload"), "").0, 200);
    }
    seen.look_until(&daemon, "rest", |now| now.sum("hermes_connections") == 1.0);

    let text = text(&daemon);
    let declared: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(declared.len() > 20, "{declared:?}");
    let moving = declared.iter().map(|line| line.split(' ').next().unwrap());
    let unmoved: Vec<_> = moving
        .filter(|name| !SETTINGS.contains(name) && !MACHINE.contains(name))
        .filter(|name| !seen.moved(name, None) && !seen.moved(&format!("{name}_count"), None))
        .collect();
    assert!(unmoved.is_empty(), "these never moved: {unmoved:?}");
    for outcome in ["answered", "failed", "cancelled"] {
        assert!(seen.moved("hermes_requests_total", Some(("outcome", outcome))), "{outcome}");
    }
    for category in ["graph", "tokenizer", "pins", "activations", "request"] {
        assert!(seen.moved("hermes_ledger_bytes", Some(("category", category))), "{category}");
    }
    let last = Scrape::parse(&text).unwrap();
    assert_eq!(last.of("hermes_model_ready", "model", "broken"), 0.0);
    for name in SETTINGS {
        assert!(last.sum(name) > 0.0 && !seen.moved(name, None), "{name}");
    }
    assert_eq!(last.sum("hermes_budget_bytes"), f64::from(48 << 20));
    assert_eq!(last.sum("hermes_pressure"), 1.0);
    // The kernel of a test machine tells at least the whole system's.
    assert_eq!(last.named("hermes_refaults_total").count(), 1);
    let held: f64 = last.named("hermes_ledger_bytes").map(|sample| sample.value).sum();
    assert!(held > 0.0 && held <= last.sum("hermes_budget_bytes"), "{held}");
}

#[test]
fn the_metrics_are_of_prometheus_format() {
    let served = served();
    check_alive(&served.daemon);
    let text = text(&served.daemon);
    assert!(text.ends_with('\n'));
    let mut families = BTreeSet::new();
    let mut lines = text.lines().peekable();
    while let Some(help) = lines.next() {
        let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
        assert!(!help.is_empty() && families.insert(name), "{name}");
        let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{name} is a {kind}");
        let parts: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let mut samples = BTreeSet::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().unwrap() >= 0.0, "{line}");
            let part = sample.split('{').next().unwrap().strip_prefix(name);
            assert!(part.is_some_and(|part| parts.contains(&part)), "{line}");
            assert!(samples.insert(sample), "{line} is there twice");
        }
    }
    let scrape = Scrape::parse(&text).unwrap();
    let family = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|part| {
            name.strip_suffix(part).filter(|name| families.contains(name)).map(str::to_owned)
        })
    };
    for sample in scrape.samples() {
        let is_known = families.contains(&*sample.name) || family(&sample.name).is_some();
        assert!(is_known, "{sample:?}");
    }
    check_histogram(&scrape, TIMES);
}

/// Buckets rise with their bounds up to the last, which has all.
fn check_histogram(scrape: &Scrape, name: &str) {
    let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
    for sample in scrape.named(&format!("{name}_bucket")) {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").unwrap();
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
        buckets.entry(labels).or_default().push((bound, sample.value));
    }
    assert!(!buckets.is_empty());
    for (labels, buckets) in &buckets {
        let is_rising = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(buckets.windows(2).all(is_rising), "{labels:?}: {buckets:?}");
        let value = |part: &str| {
            let name = format!("{name}_{part}");
            let mut samples = scrape.named(&name).filter(|sample| sample.labels == *labels);
            samples.next().unwrap().value
        };
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, value("count"))), "{labels:?}");
        assert!(value("sum") > 0.0, "{labels:?}");
    }
}

/// The metric of requests' times.
const TIMES: &str = "hermes_http_request_duration_seconds";

/// A sample of the answers' and times' metrics: its value by its labels.
fn of_route(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
    };
    scrape.named(name).filter(has).map(|sample| sample.value).sum()
}

/// Paths and names that clients invent are no labels: each would be a series for ever.
#[test]
fn requests_are_counted_and_timed_by_route_and_model() {
    let (store, folder) = (store(), tempfile::tempdir().unwrap());
    let log = folder.path().join("log");
    let mut command = command(store.path(), &folder.path().join("s"), &["--budget", "48MiB"]);
    command.env("HERMES_LOG", "debug").stderr(fs::File::create(&log).unwrap());
    let daemon = Daemon::spawn(&mut command, &folder.path().join("s"));
    (0..3).for_each(|_| check_alive(&daemon));
    let words = json!({"model": "words", "input": ["cat", "dog"]}).to_string();
    assert_eq!(daemon.post("/v1/embeddings", &words).0, 200);
    check_error(&daemon.post("/v2/models/linear/infer", "{}"), 400, "inputs");
    for number in 0..50 {
        assert_eq!(daemon.get(&format!("/invented-{number}")).0, 404);
        assert_eq!(daemon.get(&format!("/v2/models/invented-{number}")).0, 404);
        assert_eq!(daemon.post(&format!("/v2/models/invented-{number}/infer"), "{}").0, 404);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let text = text(&daemon);
    assert!(!text.contains("invented"), "{text}");
    let scrape = Scrape::parse(&text).unwrap();
    let answers = |method: &str, route: &str, status: &str| {
        let labels = [("method", method), ("route", route), ("status", status)];
        of_route(&scrape, "hermes_http_responses_total", &labels)
    };
    let infer = "/v2/models/{model}/infer";
    assert_eq!(answers("POST", infer, "200"), 3.0);
    assert_eq!(answers("POST", infer, "400"), 1.0);
    assert_eq!(answers("POST", infer, "404"), 50.0);
    assert_eq!(answers("GET", "/v2/models/{model}", "404"), 50.0);
    assert_eq!(answers("other", "other", "404"), 50.0);
    assert_eq!(answers("POST", "/v1/embeddings", "200"), 1.0);
    let times = |part: &str, route: &str, model: &str| {
        let labels = [("route", route), ("model", model)];
        of_route(&scrape, &format!("{TIMES}_{part}"), &labels)
    };
    assert_eq!(times("count", infer, "linear"), 3.0);
    assert_eq!(times("count", infer, ""), 51.0);
    assert_eq!(times("count", "/v1/embeddings", "words"), 1.0);
    assert!(times("sum", infer, "linear") > 0.0);
    check_histogram(&scrape, TIMES);
    let start = scrape.sum("process_start_time_seconds");
    assert!(start <= now && start > now - PATIENCE.as_secs_f64(), "{start} of {now}");

    let log = fs::read_to_string(log).unwrap();
    let line = log.lines().find(|line| line.contains("POST /v2/models/{model}/infer 200 "));
    let line = line.unwrap_or_else(|| panic!("no request is in the log:\n{log}"));
    let words: Vec<&str> = line.split_whitespace().rev().collect();
    assert!(line.contains(" bytes ") && words[1] == "(pid" && words[4] == "us", "{line}");
}

#[test]
fn statistics_have_tritons_shape_and_what_was_done() {
    let served = served();
    let daemon = &served.daemon;
    assert_eq!(daemon.get("/v2/models/stats").1, json!({"model_stats": []}));
    let of = |path: &str| {
        let (status, stats) = daemon.get(path);
        assert_eq!(status, 200, "{stats}");
        stats["model_stats"].as_array().unwrap().clone()
    };
    let before = of("/v2/models/linear/stats");
    assert_eq!((before.len(), &before[0]["inference_count"]), (1, &json!(0)));
    assert_eq!(before[0]["hermes"]["state"], "unloaded");
    (0..3).for_each(|_| check_alive(daemon));
    let wrong = linear_request().to_string().replace("FP32", "FP64");
    check_error(&daemon.post("/v2/models/linear/infer", &wrong), 400, "FP32");

    let stats = &of("/v2/models/linear/versions/1/stats")[0];
    assert_eq!((&stats["name"], &stats["version"]), (&json!("linear"), &json!("1")));
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(3), &json!(3)));
    let times = &stats["inference_stats"];
    assert_eq!((&times["success"]["count"], &times["fail"]["count"]), (&json!(3), &json!(1)));
    for part in ["queue", "compute_input", "compute_infer", "compute_output"] {
        assert!(times[part]["count"].is_u64() && times[part]["ns"].is_u64(), "{part}: {times}");
    }
    let number = |value: &Value| value.as_u64().unwrap();
    let spent = number(&times["queue"]["ns"]) + number(&times["compute_infer"]["ns"]);
    assert_eq!(number(&times["success"]["ns"]), spent);
    assert!(number(&times["compute_infer"]["ns"]) > 0);
    assert_eq!(
        (&stats["hermes"]["state"], &stats["hermes"]["loads"]),
        (&json!("ready"), &json!(1))
    );
    assert_eq!(of("/v2/models/stats"), std::slice::from_ref(stats));
    let reply = daemon.get("/v2/models/linear/versions/2/stats");
    check_error(&reply, 404, "it serves");
}
