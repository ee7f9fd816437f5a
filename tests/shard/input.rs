//! Models that are broken, lie, or cannot be run.

use super::common::small_store::{node, output};
use super::model::{linear, linear_outside, linear_then, linear_with, weight};
use super::{Place, check_refusal, files, stderr, tool};
use hermes::shard::{Draft, Order, Source};
use hermes::store::Dtype;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tract_onnx::pb::{AttributeProto, TensorProto, attribute_proto::AttributeType};

#[test]
fn what_is_no_onnx_model_is_told_with_its_offset() {
    let check = |content: &[u8], words: &[&str]| {
        let place = Place::new();
        fs::write(place.model(), content).unwrap();
        place.refuse(
            &[],
            &[&["model.onnx: not an ONNX model", "export the model again"], words].concat(),
        );
    };
    check(b"#\0\x01\x02", &["wire type 3 at offset 0"]);
    check(b"\x89PNG\r\n\x1a\n", &["at offset 0"]);
    check(&[0xff; 100], &["a number that does not end at offset 0"]);
    check(&[0x08, 0x08], &["it holds no graph"]);
}

/// Beginnings of files that people have in place of an ONNX model, and what they are told.
fn foreign_files() -> Vec<(&'static str, Vec<u8>, [&'static str; 2])> {
    let zip = |name: &str| [b"PK\x03\x04\x00\x00\x08\x08", &[0; 22][..], name.as_bytes()].concat();
    let safetensors = b"{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    let length = (safetensors.len() as u64).to_le_bytes();
    let tensor = [&length[..], safetensors, &[0; 4]].concat();
    let saved_model = b"\x08\x01\x12\x14\x0a\x12\x1a\x05\x32\x05serve\x32\x05train";
    let core_ml = b"\x08\x04\x12\x30\x0a\x10com.github.apple.coremltools.version";
    let graph_def = b"\x0a\x10\x0a\x01x\x12\x0bPlaceholder";
    let page = "\n<!DOCTYPE html><html><head><title>404</title></head></html>".repeat(9);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133466304\n";
    let openvino = "<?xml version=\"1.0\"?>\n<net name=\"bert\" version=\"11\"></net>\n";
    vec![
        ("weights", tensor, ["safetensors", "config.json beside it"]),
        ("pytorch_model.bin", zip("archive/data.pkl"), ["PyTorch", "torch.onnx.export"]),
        ("script.pt", zip("net/constants.pkl"), ["TorchScript", "torch.onnx.export"]),
        ("old.pth", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j".to_vec(), ["pickle", "torch.onnx.export"]),
        ("model.tflite", b"\x1c\0\0\0TFL3\x14\0".to_vec(), ["TensorFlow Lite", "--tflite FILE"]),
        ("model.h5", b"\x89HDF\r\n\x1a\n\0\0".to_vec(), ["Keras", "--keras FILE"]),
        ("model.keras", zip("model.weights.h5"), ["Keras", "format=\"onnx\""]),
        ("saved_model.pb", saved_model.to_vec(), ["SavedModel", "--saved-model FOLDER"]),
        ("frozen.pb", graph_def.to_vec(), ["GraphDef", "--graphdef FILE"]),
        ("model.mlmodel", core_ml.to_vec(), ["Core ML", "onnxmltools"]),
        (
            "package.zip",
            zip("a.mlpackage/Data/com.apple/model.mlmodel"),
            ["Core ML", "onnxmltools"],
        ),
        ("model.xml", openvino.into(), ["OpenVINO", "export the model that it was made of"]),
        ("model.ort", b"\x18\0\0\0ORTM\0\0".to_vec(), ["ONNX Runtime's own format", "no way back"]),
        ("model.onnx", pointer.into(), ["pointer of Git LFS", "git lfs pull"]),
        ("model.onnx", page.into(), ["HTML page", "/resolve/"]),
        ("model.onnx", b"{\"error\":\"denied\"}".to_vec(), ["JSON", "download it again"]),
        ("model.onnx", b"Not Found\n".to_vec(), ["a text", "download it again"]),
        ("model.onnx", b"<ir_version: 8>\nf (x) => (y) {}\n".to_vec(), ["as text", "parse_model"]),
        ("model.onnx", b"<!-- a --><html></html>".to_vec(), ["HTML page", "/resolve/"]),
        ("model.zip", zip("arr_0.npy"), ["NumPy", "give the .onnx file"]),
        ("model.onnx", vec![], ["an empty file", "download it again"]),
        (
            "tokenizer.json",
            b"{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"added_tokens\": []".to_vec(),
            ["a tokenizer", "the folder in which both are"],
        ),
        ("model.onnx", vec![0; 4096], ["not finished", "download it again"]),
        ("model.onnx.gz", b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), ["gzip", "unpack it"]),
        ("model.zip", zip("model.onnx"), ["zip archive", "unpack it"]),
    ]
}

/// Each was refused as "wire type 7 at offset 0", with the advice to export the model again.
#[test]
fn files_of_other_kinds_are_told_with_the_way_to_an_onnx_file() {
    let place = Place::new();
    fs::create_dir(place.path("a.mlpackage")).unwrap();
    let mut command = tool();
    command.arg("build").arg(place.path("a.mlpackage")).arg("--store").arg(place.store());
    place.refuse_command(command, &["has no ONNX file", "it is a Core ML model", "onnxmltools"]);
    for (name, content, [what, advice]) in foreign_files() {
        let place = Place::new();
        fs::write(place.path(name), content).unwrap();
        let build = |model: &Path| {
            let mut command = tool();
            command.arg("build").arg(model).arg("--store").arg(place.store());
            command
        };
        let path = place.path(name);
        let words = [path.to_str().unwrap(), "not an ONNX model: it is ", what, advice];
        place.refuse_command(build(&path), &words);
        // In a folder it is found by its name, but what lies beside models.
        if !name.starts_with("model.onnx") && !["tokenizer.json", "weights"].contains(&name) {
            let words = ["has no ONNX file", name, what, advice];
            place.refuse_command(build(place.folder.path()), &words);
        }
        assert!(!place.store().exists());
    }
}

/// What is not known to be anything else is told by its offset; a model that begins like others'
/// messages is a model.
#[test]
fn models_by_exporters_of_other_frameworks_are_models() {
    let place = Place::new();
    let mut model = linear();
    model.producer_name = "tf2onnx coremltools serve".to_string();
    place.save(&model);
    place.build(&[]);
    let whole = fs::read(place.model()).unwrap();
    fs::write(place.model(), &whole[..whole.len() / 2]).unwrap();
    place
        .refuse(&["--force"], &["not an ONNX model: ", "at offset", "copy it again if it was cut"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let place = Place::new();
    place.refuse(&[], &["model.onnx", "No such file"]);
    fs::create_dir(place.model()).unwrap();
    place.refuse(&[], &["model.onnx", "has no ONNX file"]);
}

#[test]
fn a_file_that_was_cut_short_is_refused_wherever_the_cut_is() {
    let place = Place::with_synth(&["bert-tiny", "--layers", "1"]);
    let whole = fs::read(place.model()).unwrap();
    let cuts = (1..20).map(|part| whole.len() * part / 20).chain([1, 2, 100, whole.len() - 1]);
    for cut in cuts {
        fs::write(place.model(), &whole[..cut]).unwrap();
        let words = ["model.onnx: not an ONNX model", "at offset", "copy it again if it was cut"];
        place.refuse(&[], &words);
    }
    assert!(!place.store().exists(), "not even the store's folder was made");
}

#[test]
fn what_cannot_be_run_is_told_by_node_and_op() {
    let check = |op: &str, words: &[&str]| {
        let place = Place::new();
        place.save(&linear_then(op, "/head/odd"));
        place.refuse(&[], &[&["/head/odd", op, "export the model without it"], words].concat());
        assert!(files(&place.store()).is_empty());
    };
    check("FancyAttention", &["tract has no such operator"]);
    // Known, but never with one input.
    check("Concat", &[]);
    check("Conv", &[]);
}

#[test]
fn products_that_do_not_fit_are_told_by_node() {
    let place = Place::new();
    let mut model = linear();
    let tensor = weight(&mut model);
    tensor.dims.reverse();
    place.save(&model);
    place.refuse(&[], &["/y", "MatMul"]);
}

#[test]
fn names_that_nothing_makes_are_told() {
    let place = Place::new();
    let mut model = linear_then("Relu", "/head/relu");
    let graph = model.graph.as_mut().unwrap();
    graph.node[1].input[0] = "nobody".to_string();
    place.save(&model);
    place.refuse(&[], &["/head/relu", "Relu", "nothing makes its input \"nobody\""]);
    let mut model = linear();
    model.graph.as_mut().unwrap().output[0].name = "nobody".to_string();
    place.save(&model);
    place.refuse(&[], &["nothing makes the output \"nobody\""]);
}

/// Tract computes what is constant while it imports, and takes axes and borders as they are: these
/// aborted, took 17 GB or never ended.
#[test]
fn graphs_that_ask_for_what_no_model_needs_are_told_by_node_and_op() {
    let ints = |name: &str, ints: &[i64]| AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Ints as i32,
        ints: ints.to_vec(),
        ..AttributeProto::default()
    };
    let check =
        |op: &str, attributes: &[AttributeProto], second: Option<TensorProto>, why: &str| {
            let place = Place::new();
            let mut model = linear_then(op, "/head/strange");
            let graph = model.graph.as_mut().unwrap();
            graph.node[1].attribute = attributes.to_vec();
            if let Some(tensor) = second {
                let inputs = match op {
                    "ConstantOfShape" => vec!["second"],
                    "Resize" => vec!["y", "", "second"],
                    _ => vec!["y", "second"],
                };
                graph.node[1].input = inputs.into_iter().map(String::from).collect();
                graph.initializer.push(TensorProto { name: "second".to_string(), ..tensor });
            }
            place.save(&model);
            place.refuse(&[], &["/head/strange", op, why]);
            assert!(files(&place.store()).is_empty());
        };
    let numbers = |data: &[i64]| {
        let dims = vec![data.len() as i64];
        Some(TensorProto {
            data_type: 7,
            dims,
            int64_data: data.to_vec(),
            ..TensorProto::default()
        })
    };
    let scales = TensorProto {
        data_type: 1,
        dims: vec![3],
        float_data: vec![1.0, 1e6, 1e6],
        ..TensorProto::default()
    };
    check("Transpose", &[ints("perm", &[0, 2, 7])], None, "perm [0, 2, 7] is no order of axes");
    check("Transpose", &[ints("perm", &[0, 1, 1])], None, "perm [0, 1, 1] is no order of axes");
    check(
        "Expand",
        &[],
        numbers(&[1 << 16, 1 << 16, 256]),
        "a tensor of shape [65536, 65536, 256]",
    );
    check("Tile", &[], numbers(&[1, i64::MAX, 2]), "a tensor of shape");
    check("ConstantOfShape", &[], numbers(&[1 << 31, 256]), "a tensor of shape");
    check("Resize", &[], Some(scales), "a scale of 1000000 is beyond");
    let pads = ints("pads", &[1 << 40, 1 << 40]);
    check("Conv", &[ints("kernel_shape", &[1]), pads], numbers(&[1]), "pads has 1099511627776");
    check("Pad", &[], numbers(&[0, 0, 1 << 40, 0, 0, 0]), "pads has 1099511627776");
}

/// What cannot be seen before is tried by a copy of the program, which is not to take more than a
/// GiB: a product of sizes asked for 4.
#[test]
fn what_takes_any_memory_is_told_by_node() {
    let place = Place::new();
    let mut model = linear_then("Add", "/head/sum");
    let graph = model.graph.as_mut().unwrap();
    graph.node.insert(1, node("ConstantOfShape", &["shape"], "zeros"));
    graph.node[2].input = vec!["y".to_string(), "zeros".to_string()];
    graph.initializer.push(TensorProto {
        name: "shape".to_string(),
        data_type: 7,
        dims: vec![2],
        int64_data: vec![1 << 22, 256],
        ..TensorProto::default()
    });
    place.save(&model);
    place.refuse(&[], &["cannot be imported", "1073741824 bytes of memory", "zeros", "ConstantOf"]);
}

/// Tract divides by a stride of 0. Its panic is told as an error, with the node, and with no
/// backtrace.
#[test]
fn what_makes_tract_panic_is_refused() {
    let place = Place::new();
    let mut model = linear_then("MaxPool", "/head/pool");
    let ints = |name: &str, size: i64| AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Ints as i32,
        ints: vec![size],
        ..AttributeProto::default()
    };
    let pool = &mut model.graph.as_mut().unwrap().node[1];
    pool.attribute = vec![ints("kernel_shape", 1), ints("strides", 0)];
    place.save(&model);
    place
        .refuse(&[], &["graph cannot be run: tract gave up: ", "it was at \"/head/pool\" MaxPool"]);
    assert!(files(&place.store()).is_empty());
}

#[test]
fn weights_that_lie_about_their_shape_are_refused() {
    let check = |dims: &[i64], words: &[&str]| {
        let place = Place::new();
        let mut model = linear();
        weight(&mut model).dims = dims.to_vec();
        place.save(&model);
        place.refuse(
            &[],
            &[&["model.onnx: tensor \"W\"", "export the model again"], words].concat(),
        );
    };
    check(&[64, 257], &["takes 65792 bytes, the file has 65536"]);
    check(&[64, 255], &["takes 65280 bytes, the file has 65536"]);
    check(&[64], &["takes 256 bytes, the file has 65536"]);
    check(&[], &["takes 4 bytes, the file has 65536"]);
    check(&[64, 0], &["takes 0 bytes, the file has 65536"]);
    check(&[-1, 256], &["absurd"]);
    check(&[i64::MAX, i64::MAX], &["absurd"]);
}

#[test]
fn a_tensor_of_too_many_axes_is_refused() {
    let place = Place::new();
    let mut model = linear();
    weight(&mut model).dims = vec![1; 100];
    place.save(&model);
    place.refuse(&[], &["model.onnx: not an ONNX model", "absurd rank", "at offset"]);
}

#[test]
fn a_weight_of_another_type_than_its_bytes_is_refused() {
    let place = Place::new();
    let mut model = linear();
    weight(&mut model).data_type = 10;
    place.save(&model);
    place.refuse(&[], &["tensor \"W\"", "takes 32768 bytes, the file has 65536"]);
}

/// Builds a model whose weight is in another file, `weights.bin` beside it, which is `bytes` long.
fn check_outside(entries: &[(&str, &str)], bytes: usize, words: &[&str]) {
    let place = Place::new();
    let (model, mut data) = linear_outside(entries);
    place.save(&model);
    data.resize(bytes, 0);
    fs::write(place.path("weights.bin"), data).unwrap();
    if words.is_empty() {
        place.build(&[]);
        place.check_sound("1");
    } else {
        place.refuse(&[], words);
    }
}

#[test]
fn external_data_stays_in_the_models_folder() {
    for location in ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "..", "", "."] {
        let named = format!("external data \"{location}\" lies outside the model's folder");
        check_outside(&[("location", location)], 65_536, &["tensor \"W\"", &named]);
    }
    check_outside(&[("offset", "0")], 65_536, &["tensor \"W\"", "has no location"]);
}

#[test]
fn external_data_is_as_long_as_the_model_says() {
    let at = |offset| [("location", "weights.bin"), ("offset", offset)];
    check_outside(&at("0"), 65_536, &[]);
    check_outside(&at("4096"), 65_536 + 4096, &[]);
    let short = ["tensor \"W\"", "weights.bin", "copy"];
    check_outside(&at("0"), 65_535, &[&short[..], &["65536 bytes", "has 65535"]].concat());
    check_outside(&at("4"), 65_536, &[&short[..], &["at offset 4", "has 65536"]].concat());
    check_outside(&at("18446744073709551615"), 65_536, &short);
    check_outside(&at("18446744073709551616"), 65_536, &["tensor \"W\"", "is not a number"]);
    check_outside(&at("-1"), 65_536, &["external offset \"-1\" is not a number"]);
    let length = [("location", "weights.bin"), ("length", "65532")];
    check_outside(&length, 65_536, &["tensor \"W\"", "takes 65536 bytes", "65532"]);
    let place = Place::new();
    place.save(&linear_outside(&[("location", "weights.bin")]).0);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 65536\n";
    fs::write(place.path("weights.bin"), pointer).unwrap();
    place.refuse(&[], &["tensor \"W\"", "weights.bin", "pointer of Git LFS", "git lfs pull"]);
    let missing = [("location", "elsewhere.bin")];
    check_outside(&missing, 65_536, &["tensor \"W\"", "elsewhere.bin", "No such file"]);
}

#[test]
fn small_external_tensors_come_into_the_graph() {
    let place = Place::new();
    let (model, data) = linear_outside(&[("location", "weights.bin")]);
    place.save(&model);
    fs::write(place.path("weights.bin"), &data).unwrap();
    place.build(&["--threshold", "100000"]);
    fs::remove_file(place.path("weights.bin")).unwrap();
    place.check_sound("1");
    let graph = fs::read(place.store().join("small/1/graph.onnx")).unwrap();
    assert!(graph.windows(data.len()).any(|bytes| bytes == data), "the graph stands alone");
}

#[test]
fn values_that_a_variant_cannot_hold_are_told_by_weight_and_row() {
    let (row, column) = (5, 77);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let place = Place::new();
        place.save(&linear_with(row, column, value));
        for variant in ["f16", "q8", "a4"] {
            // A product's outputs are the columns of its weight.
            let words = ["weight \"W\", row 77,", "not a number", "--variants f32"];
            place.refuse(&["--variants", &format!("f32,{variant}")], &words);
        }
        place.build(&["--variants", "f32"]);
        place.check_sound("1");
    }
}

/// Masks are often the lowest f32: half precision holds its own lowest in their place.
#[test]
fn values_out_of_a_variants_range_become_its_largest_and_count_as_error() {
    let place = Place::new();
    place.save(&linear_with(5, 77, 1e6));
    place.build(&["--variants", "f32,f16,q8,a4"]);
    let files = &place.inspect("1")["layers"][0]["files"];
    assert_eq!(files["f16"]["max_error"], 1e6 - 65504.0);
    assert!(files["q8"]["max_error"].as_f64().unwrap() < 1e4);
}

/// A copy of the program that a slow disk kept from its end was told as a graph that cannot be
/// imported. Its clock is wound forward here.
#[test]
fn what_was_kept_waiting_is_not_held_against_the_model() {
    let place = Place::new();
    let mut model = linear_then("Relu", "/head/relu");
    let graph = model.graph.as_mut().unwrap();
    // So many that tract is busy with them for minutes.
    let name = |index: usize| format!("h{index}");
    graph.node.push(node("Relu", &["y"], "h0"));
    graph.node.extend((0..20_000).map(|i| node("Add", &[&name(i), &name(i)], &name(i + 1))));
    graph.output = vec![output("h20000", Dtype::Fp32)];
    place.save(&model);
    let mut command = place.command(&[]);
    let build = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", build.id());
    let start = Instant::now();
    let copy = loop {
        let text = fs::read_to_string(&children).unwrap();
        let command_line = |id: &&str| fs::read_to_string(format!("/proc/{id}/cmdline"));
        let is_copy = |id: &&str| command_line(id).is_ok_and(|line| line.contains("--within"));
        if let Some(id) = text.split_whitespace().find(is_copy) {
            break id.to_string();
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it has no copy");
        sleep(Duration::from_millis(2));
    };
    assert!(Command::new("kill").args(["-ALRM", &copy]).status().unwrap().success());
    let output = build.wait_with_output().unwrap();
    check_refusal(&output, &["not known to be sound or not", "by the clock", "try again"]);
    assert!(!stderr(&output).contains("export"), "{}", stderr(&output));
}

/// What was found out is of files that may be others by now.
#[test]
fn files_that_change_while_they_are_read_make_no_version() {
    let place = Place::with_linear();
    let order = Order::new(place.model(), place.store());
    let draft = Draft::of(&order, &Source::read(&order).unwrap()).unwrap();
    place.save(&linear_then("Relu", "/head/relu"));
    let error = draft.write(&order, Source::read(&order).unwrap(), &()).unwrap_err();
    assert!(error.to_string().contains("changed while they were read"), "{error}");
    assert!(!place.store().exists());
}
