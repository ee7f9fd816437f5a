//! Variants that are encoded by what their weights are used for: what that gains, what inputs it
//! takes, and what it leaves behind.

use super::common::python;
use super::model::{self, DEPTHS};
use super::text::place_of_words;
use super::{Place, check_refusal, files, stderr, stdout};
use hermes::shard::Player;
use hermes::store::{PRECISION_NAME, Precision, Store};
use hermes::wire::Array;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Inputs of the perceptron whose steps are of very different sizes, and lean on each other.
fn inputs(count: usize, seed: usize) -> Vec<Array> {
    let depth = DEPTHS[0];
    let input = |number: usize| {
        let rows = 6 + number % 5;
        let noise: Vec<f32> = model::noise(rows * depth, seed + number).collect();
        let row = |row: &[f32]| -> Vec<f32> {
            let shared = row[0];
            let size = |step: usize| 4f32.powi(-((step * 7 % 6) as i32));
            row.iter().enumerate().map(|(step, x)| size(step) * (x + 2.0 * shared)).collect()
        };
        let values: Vec<f32> = noise.chunks(depth).flat_map(row).collect();
        Array::from_f32(vec![1, rows, depth], &values).unwrap()
    };
    (0..count).map(input).collect()
}

/// An array as NumPy saves it.
fn npy(descr: &str, shape: &[usize], values: &[u8]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(|size| format!("{size},")).collect();
    let dict =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sizes.join(" "));
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((dict.len() as u16).to_le_bytes());
    file.extend(dict.bytes());
    file.extend(values);
    file
}

/// Arrays by name in a zip, stored by `method` (0: as they are).
fn npz(arrays: &[(&str, Vec<u8>)], method: u16) -> Vec<u8> {
    let (mut zip, mut directory) = (vec![], vec![]);
    for (name, bytes) in arrays {
        let (name, offset) = (format!("{name}.npy"), zip.len() as u32);
        let size = bytes.len() as u32;
        let mut both = vec![];
        both.extend([20, 0, 0, 0].map(|byte: u8| byte));
        both.extend(method.to_le_bytes());
        both.extend([0; 8]);
        both.extend(size.to_le_bytes());
        both.extend(size.to_le_bytes());
        both.extend((name.len() as u16).to_le_bytes());
        both.extend([0; 2]);
        zip.extend(b"PK\x03\x04");
        zip.extend(&both);
        zip.extend(name.bytes());
        zip.extend(bytes);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&both);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let (start, count) = (zip.len() as u32, arrays.len() as u16);
    zip.extend(&directory);
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    zip.extend((directory.len() as u32).to_le_bytes());
    zip.extend(start.to_le_bytes());
    zip.extend([0; 2]);
    zip
}

/// Rows of the perceptron's inputs in one array of several, as `x`.
fn rows(count: usize, seed: usize) -> Vec<u8> {
    let depth = DEPTHS[0];
    let values: Vec<u8> = (0..count)
        .flat_map(|number| inputs(1, seed + number).remove(0).bytes[..4 * 4 * depth].to_vec())
        .collect();
    npy("<f4", &[count, 4, depth], &values)
}

/// A place with the perceptron, and 24 inputs for it in `inputs.npz`.
fn place() -> Place {
    let place = Place::new();
    place.save(&model::perceptron());
    fs::write(place.path("inputs.npz"), npz(&[("x", rows(24, 100))], 0)).unwrap();
    place
}

fn path(place: &Place, name: &str) -> String {
    place.path(name).to_str().unwrap().to_owned()
}

fn precision(place: &Place, version: &str) -> Precision {
    let dir = Store::open(&place.store()).unwrap().version("small", version).unwrap();
    let json = fs::read(dir.path.join(PRECISION_NAME)).unwrap();
    Precision::parse(&json, &dir.manifest).unwrap()
}

/// How far answers in a variant are from those in f32, relative to these: the mean square.
fn off(place: &Place, version: &str, variant: &str) -> f64 {
    let dir = Store::open(&place.store()).unwrap().version("small", version).unwrap();
    let player = Player::open(dir).unwrap();
    let requests: Vec<Vec<Array>> = inputs(20, 9000).into_iter().map(|x| vec![x]).collect();
    let best = player.pass(&player.best().unwrap(), &requests, &()).unwrap();
    let choice = player.choose(&vec![variant; player.tensors().len()]).unwrap();
    let found = player.pass(&choice, &requests, &()).unwrap();
    let values = |outputs: &[Vec<Array>]| -> Vec<f32> {
        outputs.iter().flatten().flat_map(|array| array.to_f32().unwrap()).collect()
    };
    let (best, found) = (values(&best), values(&found));
    let squares =
        |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>();
    let errors = squares(&mut best.iter().zip(&found).map(|(x, y)| x - y));
    errors / squares(&mut best.iter().copied())
}

#[test]
fn what_weights_are_used_for_lowers_what_answers_are_off() {
    let place = place();
    let variants = ["--variants", "f32,q8,a4,a3,a2"];
    let given = path(&place, "inputs.npz");
    let built = place.build(&[&variants[..], &["--calibrate", &given]].concat());
    assert!(!stderr(&built).contains("encoded for"), "{}", stderr(&built));
    place.check_sound("1");
    let built = place.build(&[&variants[..], &["--version", "made-up"]].concat());
    let said = "weights are encoded for 64 made-up inputs: real inputs gain about a tenth more";
    assert!(stderr(&built).contains(said), "{}", stderr(&built));
    // Made-up inputs have steps of one size here, as if nothing were known.
    for variant in ["a4", "a3", "a2"] {
        let (known, unknown) = (off(&place, "1", variant), off(&place, "made-up", variant));
        assert!(known < 0.7 * unknown, "{variant}: {known:e}, not known {unknown:e}");
    }
    let [a4, a3, a2] = ["a4", "a3", "a2"].map(|variant| off(&place, "1", variant));
    assert!(off(&place, "1", "q8") < a4 && a4 < a3 && a3 < a2, "{a4} {a3} {a2}");

    let precision = precision(&place, "1");
    let calibration = precision.calibration.unwrap();
    assert_eq!(calibration.source, "inputs.npz, 24 inputs");
    assert_eq!((calibration.is_made_up, calibration.inputs, calibration.columns), (false, 24, 96));
    assert_eq!(precision.tensors.len(), 2);
    for tensor in &precision.tensors {
        let errors = ["f32", "q8", "a4", "a3", "a2"].map(|variant| tensor.errors[variant]);
        assert_eq!(errors[0], 0.0);
        assert!(errors.is_sorted() && errors[1] > 0.0, "{errors:?}");
        assert!(tensor.fed.iter().all(|variant| variant.starts_with('a')), "{:?}", tensor.fed);
    }
    // Errors that lean on each other are what feedback is for.
    assert!(precision.tensors.iter().any(|tensor| !tensor.fed.is_empty()));
}

/// Files and errors, whatever number of threads has made them.
#[test]
fn threads_do_not_change_what_is_written() {
    let place = place();
    let given = path(&place, "inputs.npz");
    let arguments = ["--variants", "f32,a4,a2", "--calibrate", &given, "--force"];
    let built = |threads: &str, cores: Option<&str>| {
        let command = place.command(&arguments);
        let mut build = match cores {
            None => Command::new(command.get_program()),
            Some(cores) => {
                let mut taskset = Command::new("taskset");
                taskset.args(["-c", cores]).arg(command.get_program());
                taskset
            }
        };
        let output = build.args(command.get_args()).env("RAYON_NUM_THREADS", threads).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let mut files = files(&place.store().join("small/1"));
        // These tell when, and of how much memory.
        files.retain(|path, _| !path.ends_with("manifest.json") && !path.ends_with("rehearsal"));
        files
    };
    let one = built("1", Some("0"));
    assert!(one.len() > 4);
    for (threads, cores) in [("2", None), ("4", None), ("2", Some("0"))] {
        assert!(built(threads, cores) == one, "{threads} threads have made other files");
    }
}

#[test]
fn the_best_variant_need_not_be_kept() {
    let place = place();
    place.build(&["--variants", "f32,a4,a3"]);
    place.build(&["--variants", "a4,a3", "--version", "2"]);
    place.check_sound("2");
    assert_eq!(place.inspect("2")["variants"], json!(["a4", "a3"]));
    let layers = |version: &str| files(&place.store().join("small").join(version).join("layers"));
    let names = |version: &str| -> Vec<String> {
        let layers = layers(version).into_keys();
        layers.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("2"), ["000-model.a3.layer", "000-model.a4.layer"]);
    let [with, without] = ["1", "2"].map(|version| precision(&place, version));
    for (with, without) in with.tensors.iter().zip(&without.tensors) {
        assert_eq!(with.errors["a3"], without.errors["a3"]);
        assert!(!without.errors.contains_key("f32"));
    }
    // Without them nothing is played, and nothing said of it.
    let built = place.build(&["--variants", "f32,q8", "--version", "3"]);
    assert!(!stderr(&built).contains("encoded"), "{}", stderr(&built));
    assert!(precision(&place, "3").calibration.is_none());
    place.build(&["--variants", "f32", "--version", "4"]);
    assert_eq!(place.inspect("4")["precision"], Value::Null);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let place = place();
    let depth = DEPTHS[0];
    let refuse = |name: &str, bytes: &[u8], words: &[&str]| {
        fs::write(place.path(name), bytes).unwrap();
        let given = path(&place, name);
        place.refuse(&["--variants", "f32,a4", "--calibrate", &given], words);
    };
    let arrays = |name: &str, bytes: Vec<u8>| npz(&[(name, bytes)], 0);
    let good = rows(3, 5);
    refuse("bad.npz", &arrays("y", good.clone()), &["no input \"y\"", "it has x"]);
    refuse("bad.npz", &npz(&[], 0), &["input \"x\" is missing", "numpy.savez(FILE, x=...)"]);
    refuse("bad.npz", &npz(&[("x", good.clone())], 8), &["\"x\" is compressed", "savez"]);
    refuse("bad.npz", b"PK", &["not a .npz file", "numpy.savez"]);
    refuse("bad.npz", &arrays("x", good.clone())[..600], &["not a .npz file"]);
    let wrong = npy("<f8", &[3, 1, depth], &vec![0; 24 * depth]);
    refuse("bad.npz", &arrays("x", wrong), &["it is FP64, the model takes FP32"]);
    let wrong = npy("<f4", &[3, 1, 127], &vec![0; 12 * 127]);
    refuse("bad.npz", &arrays("x", wrong), &["shape [3, 1, 127]", "takes [1, seq, 128]"]);
    let wrong = npy("<f4", &[0, 1, depth], &[]);
    refuse("bad.npz", &arrays("x", wrong), &["has no inputs"]);
    let mut odd = good.clone();
    let end = odd.len() - 4;
    odd[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    refuse("bad.npz", &arrays("x", odd), &["input 2", "\"x\"", "not a number"]);
    let same = npy("<f4", &[3, 1, depth], &vec![0; 12 * depth]);
    refuse("bad.npz", &arrays("x", same), &["all of its inputs are the same", "that differ"]);
    refuse("bad.npy", &good[..40], &["bad.npy", "header"]);
    refuse("bad.txt", b"some words\n", &["is of texts", "no tokenizer", "x=..."]);
    let missing = path(&place, "missing.npz");
    let words = ["cannot open", "missing.npz", "No such file"];
    place.refuse(&["--variants", "a4", "--calibrate", &missing], &words);
    let given = path(&place, "inputs.npz");
    let words = ["--calibrate is for variants a2 to a6", "--variants auto"];
    place.refuse(&["--variants", "f32,q8", "--calibrate", &given], &words);
    // One array of the one input needs no name.
    fs::write(place.path("good.npy"), good).unwrap();
    place.build(&["--variants", "a4", "--calibrate", &path(&place, "good.npy")]);
}

#[test]
fn texts_are_read_line_by_line() {
    let place = place_of_words();
    let tokenizer = path(&place, "text.json");
    let given = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        path(&place, name)
    };
    let arguments = ["--variants", "f32,a4", "--tokenizer", &tokenizer, "--calibrate"];
    let refuse = |name: &str, bytes: &[u8], words: &[&str]| {
        let file = given(name, bytes);
        place.refuse(&[&arguments[..], &[&file]].concat(), words);
    };
    refuse("empty.txt", b"", &["empty.txt has no texts"]);
    refuse("blank.txt", b"\n \n\n", &["blank.txt has no texts"]);
    refuse("one.txt", b"cat dog\ncat dog\n\ncat dog", &["all of its texts are the same"]);
    refuse("bytes.txt", b"cat\ndog\n\xff\xfe\n", &["bytes.txt, line 3: it is not UTF-8"]);
    refuse(
        "a.jsonl",
        b"{\"text\": \"cat\"}\n{\"txt\": 1}\n",
        &["line 2", "no object with \"text\""],
    );
    refuse("b.jsonl", b"{\"text\": \"cat\"}\n{\"text\"\n", &["line 2: it is no JSON"]);
    let long = vec![b'x'; 2 << 20];
    refuse("long.txt", &long, &["line 1: it is longer than 1 MiB", "one text on each line"]);
    let texts = |version: &str, file: &str| {
        place.build(&[&arguments[..], &[file, "--version", version]].concat());
        precision(&place, version).calibration.unwrap()
    };
    // The tokenizer cuts at six tokens.
    let file = given("good.txt", b"cat\r\ndog car\n\ncat dog car cat dog car cat dog\n");
    let calibration = texts("1", &file);
    assert_eq!((calibration.source.as_str(), calibration.inputs), ("good.txt, 3 texts", 3));
    let file = given("good.jsonl", b"{\"text\": \"cat\"}\n\n{\"text\": \"dog\", \"id\": 7}\n");
    assert_eq!(texts("2", &file).source, "good.jsonl, 2 texts");
    let lines: String = (0..500).map(|i| format!("{}\n", "cat dog ".repeat(i + 1))).collect();
    let file = given("many.txt", lines.as_bytes());
    assert_eq!(texts("3", &file).inputs, 64);
}

/// Names of layer files in the folders that versions are built in.
fn staged(place: &Place) -> Vec<PathBuf> {
    let is_staged = |path: &PathBuf| {
        path.components().any(|part| part.as_os_str().to_string_lossy().starts_with(".staging"))
    };
    let found = std::fs::read_dir(place.store()).into_iter().flatten().flatten();
    let folders = found.map(|entry| entry.path()).filter(is_staged);
    let layers = folders.flat_map(|folder| fs::read_dir(folder.join("version/layers")));
    layers.flatten().flatten().map(|entry| entry.path()).collect()
}

#[test]
fn an_interrupted_sweep_leaves_nothing() {
    let place = Place::with_synth(&["bert-tiny"]);
    let interrupt = |version: &str| {
        let mut command = place.command(&["--version", version, "--variants", "a6,a5,a4,a3,a2"]);
        let mut build = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while build.try_wait().unwrap().is_none() {
            if staged(&place).iter().any(|path| path.to_string_lossy().contains(".a6.")) {
                let id = build.id().to_string();
                Command::new("kill").args(["-INT", &id]).status().unwrap();
                break;
            }
        }
        let output = build.wait_with_output().unwrap();
        assert!(staged(&place).is_empty(), "{output:?}");
        let is_interrupted = output.status.code() == Some(1);
        if is_interrupted {
            check_refusal(&output, &["interrupted; what was written is removed"]);
        }
        is_interrupted && !place.store().join("small").join(version).exists()
    };
    // A signal may come too late.
    assert!((0..5).any(|round| interrupt(&format!("v{round}"))), "no build was interrupted");
}

#[test]
fn the_ladder_is_chosen_and_its_sizes_are_said_before() {
    let place = Place::with_synth(&["bert-tiny", "--layers", "1"]);
    let built = place.build(&["--variants", "auto"]);
    let said = stderr(&built);
    let sizes = said.lines().find(|line| line.starts_with("writes f32 ")).expect("sizes are said");
    for variant in [", q8 ", ", a5 ", ", a4 ", ", a3 ", ", a2 ", " MiB in all"] {
        assert!(sizes.contains(variant), "{sizes}");
    }
    assert!(said.contains("64 rows of random token ids"), "{said}");
    assert_eq!(place.inspect("1")["variants"], json!(["f32", "q8", "a5", "a4", "a3", "a2"]));
    assert!(precision(&place, "1").is_measured());
    let words = ["variant \"auto\" is unknown", "and auto by itself"];
    place.refuse(&["--version", "2", "--variants", "auto,q4"], &words);
    assert!(stdout(&built).contains("  a2 "), "{}", stdout(&built));
}

/// NumPy's own file, and what it compresses.
#[test]
fn files_of_numpy_s_are_read() {
    let place = place();
    let save = |call: &str, name: &str| python::run("savez.py", &[call, &path(&place, name)]);
    save("savez", "own.npz");
    place.build(&["--variants", "a4", "--calibrate", &path(&place, "own.npz")]);
    assert_eq!(precision(&place, "1").calibration.unwrap().inputs, 9);
    save("savez_compressed", "small.npz");
    let given = path(&place, "small.npz");
    let words = ["\"x\" is compressed", "numpy.savez"];
    place.refuse(&["--variants", "a4", "--force", "--calibrate", &given], &words);
}
