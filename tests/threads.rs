//! Any number of threads: the same bits, within the budget, and to everybody.
//!
//! A board has four cores or eight. A machine of two shows what more threads than cores do; what is
//! planned and pinned for more cores it shows with `HERMES_CORES`.

mod common;

use common::crews::{CREWS, Crew};
use common::daemon::{Daemon, command};
use common::programs::program;
use common::references::model_file;
use common::served::check_alive;
use common::small_store::{self, SmallModel};
use common::tiny::{config, fitting, infer, path, request, run, submit};
use hermes::engine::{Array, Cancel, Config, Engine, ErrorKind, Policy, Pressure, Request};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Requests of these lengths wait together.
const LENGTHS: [usize; 6] = [120, 3, 200, 61, 1, 90];

/// With three compute threads or more, passes of several requests once failed: see
/// `graph::lockstep`. Now they have the bits that one thread computes for each alone.
#[test]
fn answers_have_the_same_bits_with_any_crew_alone_and_together() {
    let every: Vec<Crew> = Crew::all().collect();
    let models = [("bert-tiny", "f32", &every[..]), ("gpt2-tiny", "q8", &CREWS[..])];
    for (model, variant, crews) in models {
        let config = Config { variant: Some(variant.to_string()), ..config() };
        let first = Engine::start(CREWS[0].of(config.clone())).unwrap();
        let expected = LENGTHS.map(|tokens| infer(&first, model, tokens).outputs);
        for crew in crews {
            let engine = Engine::start(crew.of(config.clone())).unwrap();
            let alone = LENGTHS.map(|tokens| infer(&engine, model, tokens).outputs);
            assert!(alone == expected, "{model} {variant} alone with {crew:?}");
            for seats in [3, LENGTHS.len()] {
                engine.set_pressure(Pressure::Hold);
                let waiting = LENGTHS[..seats]
                    .iter()
                    .map(|tokens| submit(&engine, fitting(&engine, request(model, *tokens))));
                let waiting: Vec<_> = waiting.collect();
                engine.set_pressure(Pressure::None);
                for (waiting, expected) in waiting.into_iter().zip(&expected) {
                    let found = waiting.recv().unwrap().unwrap();
                    assert_eq!(found.stats.seats, seats);
                    assert!(found.outputs == *expected, "{model} {variant}, {seats} with {crew:?}");
                }
            }
        }
    }
}

#[test]
fn every_policy_gives_the_same_bits_with_any_crew() {
    let first = Engine::start(CREWS[0].of(config())).unwrap();
    let expected = infer(&first, "bert-tiny", 61).outputs;
    let pipeload = |agents| Policy::PipeLoad { agents };
    for policy in [Policy::LoadAll, Policy::PipeSwitch, pipeload(1), pipeload(3)] {
        for crew in CREWS {
            let config = Config { policy: policy.clone(), ..crew.of(config()) };
            let found = infer(&Engine::start(config).unwrap(), "bert-tiny", 61).outputs;
            assert!(found == expected, "{policy:?} with {crew:?}");
        }
    }
}

/// A daemon that logs to a file.
fn logged(store: &Path, folder: &Path, arguments: &[String], cores: Option<&str>) -> Daemon {
    let socket = folder.join("s");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = command(store, &socket, &arguments);
    command.stderr(File::create(folder.join("log")).unwrap());
    command.envs(cores.map(|cores| ("HERMES_CORES", cores)));
    Daemon::spawn(&mut command, &socket)
}

/// The bytes that each further thread holds are granted, and 40 texts at once are answered as each
/// is alone. On 16 cores every request of 500 texts failed.
#[test]
fn many_threads_answer_many_texts_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (store, model) = (folder.path().join("store"), "paraphrase-minilm-l3");
    let file = model_file("paraphrase-minilm-l3/paraphrase-MiniLM-L3-v2.onnx");
    let mut build = vec!["build", path(&file), "--store", path(&store), "--name", model];
    build.extend(["--variants", "f32,q8"]);
    run(program("hermes-shard"), &build);
    let words = "the board reads weights from a small disk while it computes";
    let words: Vec<&str> = words.split(' ').collect();
    let text = |index: usize| {
        let word = |place: usize| words[(index * 7 + place * place) % words.len()];
        (0..[3, 10, 30, 80][index % 4]).map(word).collect::<Vec<_>>().join(" ")
    };
    let texts: Vec<String> = (0..40).map(text).collect();
    for (variant, crews) in [("f32", [CREWS[0], CREWS[2]]), ("q8", [CREWS[0], CREWS[3]])] {
        let mut expected: Vec<Value> = vec![];
        for crew in crews {
            let mut arguments = crew.arguments().to_vec();
            let fixed = ["--budget", "64MiB", "--profiles", "false", "--variant", variant];
            arguments.extend(fixed.map(str::to_string));
            let daemon = logged(&store, folder.path(), &arguments, None);
            let embed = |texts: &[String]| {
                let body = json!({ "model": model, "input": texts }).to_string();
                let (status, reply) = daemon.post("/v1/embeddings", &body);
                assert_eq!(status, 200, "{crew:?}: {reply}");
                let data = reply["data"].as_array().unwrap();
                data.iter().map(|item| item["embedding"].clone()).collect::<Vec<Value>>()
            };
            let alone: Vec<Value> = texts.chunks(1).flat_map(embed).collect();
            if expected.is_empty() {
                expected = alone.clone();
            }
            assert!(alone == expected, "{variant} alone with {crew:?}");
            assert!(embed(&texts) == expected, "{variant} together with {crew:?}");
            thread::scope(|scope| {
                for client in 0..8 {
                    let (texts, expected, embed) = (&texts, &expected, &embed);
                    scope.spawn(move || {
                        for round in 0..5 {
                            let index = (client * 11 + round * 3) % texts.len();
                            let found = embed(&texts[index..=index]);
                            assert!(found[0] == expected[index], "{variant} with {crew:?}");
                        }
                    });
                }
            });
            let peak_kib = daemon.status_kib("VmHWM:");
            println!("{variant} with {crew:?}: the peak is {peak_kib} KiB");
            assert!(peak_kib <= 64 << 10, "{crew:?}: {peak_kib} KiB of 64 MiB");
        }
    }
}

/// Threads of a process with that name, and the cores that each may run on.
fn threads_of(process: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().to_string()
    };
    let mut found: Vec<(String, String)> = tasks
        .filter_map(|task| status(task.unwrap()))
        .map(|status| (field(&status, "Name:"), field(&status, "Cpus_allowed_list:")))
        .filter(|(thread, _)| thread.starts_with(name))
        .collect();
    found.sort();
    found.into_iter().map(|(_, cores)| cores).collect()
}

/// What is done on a board of so many cores, done on this machine's.
#[test]
fn a_program_that_is_told_of_more_cores_has_their_threads() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    small_store::write(&store, small_store::linear());
    let arguments = ["--budget", "64MiB", "--profiles", "false"].map(str::to_string);
    for (cores, loaders) in [(1, 1), (4, 2), (8, 4)] {
        let daemon = logged(&store, folder.path(), &arguments, Some(&cores.to_string()));
        check_alive(&daemon);
        let compute = threads_of(daemon.id(), "compute-");
        let loading = threads_of(daemon.id(), "loader-");
        assert_eq!((compute.len(), loading.len()), (cores, loaders));
        let is_one = |cores: &String| cores.parse::<usize>().is_ok();
        assert!(compute.iter().chain(&loading).all(is_one), "{compute:?} {loading:?}");
        // Places of cores that are not there are those of the first.
        let distinct = compute.iter().collect::<BTreeSet<_>>().len();
        let wraps = |(index, core): (usize, &String)| *core == compute[index % distinct];
        assert!(compute.iter().enumerate().all(wraps), "{compute:?}");
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(!log.contains("unpinned"), "{log}");
    }
    let daemon = logged(&store, folder.path(), &arguments, Some("many"));
    check_alive(&daemon);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("HERMES_CORES: \"many\" is no number from 1 to 256"), "{log}");
}

/// One client that sent segment ids beyond a small table once made tract panic, and a third of all
/// right requests beside it got 500: whoever shared its pass.
#[test]
fn one_clients_wrong_indices_are_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    small_store::write(&store, small_store::segments());
    let infer = |ids: &[i64]| {
        let input =
            json!({"name": "ids", "datatype": "INT64", "shape": [1, ids.len()], "data": ids});
        json!({ "inputs": [input] }).to_string()
    };
    let asked = "/v2/models/segments/infer";
    for crew in [CREWS[1], CREWS[3]] {
        let mut arguments = crew.arguments().to_vec();
        arguments.extend(["--budget", "64MiB", "--profiles", "false"].map(str::to_string));
        let daemon = logged(&store, folder.path(), &arguments, None);
        let (right, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..7 {
                scope.spawn(|| {
                    while right.fetch_add(1, Ordering::Relaxed) < 1500 {
                        let (status, reply) = daemon.post(asked, &infer(&[0, 1, -1]));
                        assert_eq!(status, 200, "{reply}");
                        let rows = [20.0, 120.0, 220.0, 3.0, 13.0, 23.0, 3.0, 13.0, 23.0];
                        assert_eq!(reply["outputs"][0]["data"], json!(rows));
                    }
                });
            }
            scope.spawn(|| {
                while right.load(Ordering::Relaxed) < 1500 {
                    let (status, reply) = daemon.post(asked, &infer(&[1, 2]));
                    let message = reply["error"].as_str().unwrap_or_default();
                    assert_eq!(status, 400, "{reply}");
                    let told = "index 2 is outside a table of 2 rows (0 to 1)";
                    assert!(message.contains(told) && message.contains("node \"/x"), "{message}");
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        assert!(wrong.into_inner() > 0);
        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Whole numbers of one row.
fn row(name: &str, values: &[i64]) -> (String, Array) {
    (name.to_string(), Array::from_i64(vec![1, values.len()], values).unwrap())
}

/// What makes tract panic, or takes a number that is none, is the mistake of whoever asks.
#[test]
fn a_request_that_cannot_be_computed_is_told_by_node_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let models: [SmallModel; 3] = [
        small_store::of_two("div", "Div", "n"),
        small_store::of_two("mod", "Mod", "n"),
        small_store::of_two("nd", "GatherND", "2"),
    ];
    models.into_iter().for_each(|model| small_store::write(folder.path(), model));
    let ask = |model: &str, a: &[i64], b: &[i64]| Request {
        model: model.to_string(),
        inputs: vec![row("a", a), row("b", b)],
        outputs: vec![],
        cancel: Cancel::new(),
        target: None,
        trace: None,
    };
    for crew in CREWS {
        let engine = Engine::start(crew.of(Config::new(folder.path(), 1 << 30))).unwrap();
        let check =
            |model: &str, a: [i64; 2], right: [i64; 2], expected: &[i64], wrong, told: &str| {
                engine.load(model).unwrap();
                engine.set_pressure(Pressure::Hold);
                let asked = [right, wrong, right, wrong, right]
                    .map(|b| (b, submit(&engine, ask(model, &a, &b))));
                engine.set_pressure(Pressure::None);
                for (b, answer) in asked {
                    match answer.recv().unwrap() {
                        Ok(reply) => {
                            assert_eq!(b, right, "{model}");
                            let bytes = expected.iter().flat_map(|value| value.to_le_bytes());
                            assert!(reply.outputs[0].1.bytes.iter().copied().eq(bytes), "{model}");
                        }
                        Err(error) => {
                            assert_eq!((b, error.kind()), (wrong, ErrorKind::Invalid), "{error}");
                            let error = error.to_string();
                            assert!(error.contains(told) && error.contains("node \"/y"), "{error}");
                        }
                    }
                }
            };
        check("div", [7, -9], [2, 3], &[3, -3], [2, 0], "divide by zero");
        check("mod", [7, 9], [2, 5], &[1, 4], [0, 5], "divisor of zero");
        check("nd", [7, 9], [0, -1], &[9], [0, 2], "index 2 is outside a table of 2 rows");
        check("nd", [7, 9], [-1, 0], &[7], [0, 1 << 32], "is outside a table of 2 rows");
    }
}
