//! The store through real files: what is written is read, what is damaged is named.

use hermes::codec;
use hermes::store::layer_file::{
    BlockEntry, LayerFile, LayerWriter, Layout, TensorEntry, TensorPlan, open_row, seal_row,
};
use hermes::store::manifest::{
    Checksum, FORMAT, FileEntry, Layer, LayerEntry, MANIFEST_NAME, Manifest, Port, Provenance,
    Weight,
};
use hermes::store::{Dtype, ModelDir, Store, StoreError, install, staging};
use proptest::prelude::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

const VARIANTS: [&str; 2] = ["f32", "q8"];

/// Rows and depth of a layer's matrix: three blocks in f32.
const MATRIX: [u64; 2] = [600, 1000];
/// Rows and depth of its table.
const TABLE: [u64; 2] = [300, 40];
/// Elements of its flat tensor.
const VECTOR: u64 = 77;

fn value(layer: usize, index: usize) -> f32 {
    ((index * 7919 + layer * 104_729) % 2003) as f32 / 2003.0 - 0.5
}

fn weights(layer: usize) -> Vec<Weight> {
    let weight = |name: &str, shape: &[u64]| Weight {
        name: format!("layer.{layer}.{name}"),
        dtype: Dtype::Fp32,
        shape: shape.to_vec(),
    };
    vec![weight("matrix", &MATRIX), weight("table", &TABLE), weight("vector", &[VECTOR])]
}

fn plans(layer: usize, variant: &str) -> Vec<TensorPlan> {
    let layouts = [
        (Layout::Panels, MATRIX[0], MATRIX[1]),
        (Layout::Rows, TABLE[0], TABLE[1]),
        (Layout::Flat, VECTOR, 1),
    ];
    let weights = weights(layer).into_iter().zip(layouts);
    let plans = weights.map(|(weight, (layout, rows, depth))| TensorPlan {
        name: weight.name,
        layout,
        codec: codec::by_name(variant).unwrap().code(),
        dtype: weight.dtype,
        dims: weight.shape,
        rows,
        depth,
    });
    plans.collect()
}

/// The bytes of one block of layer `layer`.
fn block_bytes(layer: usize, tensor: &TensorEntry, block: &BlockEntry) -> Vec<u8> {
    let codec = codec::by_code(tensor.codec).unwrap();
    let depth = tensor.depth as usize;
    let rows = block.row_start as usize..(block.row_start + block.row_count) as usize;
    let mut stored = Vec::new();
    match tensor.layout {
        Layout::Flat => {
            let values: Vec<f32> = rows.map(|index| value(layer, index)).collect();
            codec.encode(&values, 1, &mut stored);
        }
        Layout::Rows => {
            for row in rows {
                let values: Vec<f32> =
                    (0..depth).map(|step| value(layer, row * depth + step)).collect();
                let start = stored.len();
                codec.encode(&values, 1, &mut stored);
                seal_row(&mut stored, start);
            }
        }
        Layout::Panels | Layout::ColumnPanels => {
            for panel in rows.clone().step_by(16) {
                let cell = |step: usize, row: usize| {
                    if row < rows.end { value(layer, row * depth + step) } else { 0.0 }
                };
                let values: Vec<f32> = (0..depth)
                    .flat_map(|step| (panel..panel + 16).map(move |row| cell(step, row)))
                    .collect();
                codec.encode(&values, 16, &mut stored);
            }
        }
    }
    stored
}

fn layer_path(layer: usize, variant: &str) -> String {
    format!("layers/{layer:03}-layer.{variant}.layer")
}

fn write_layer(folder: &Path, layer: usize, variant: &str) -> LayerEntry {
    let path = layer_path(layer, variant);
    let writer = LayerWriter::create(&folder.join(&path), plans(layer, variant)).unwrap();
    for (number, block) in writer.blocks().iter().enumerate().rev() {
        let bytes = block_bytes(layer, &writer.tensors()[block.tensor], block);
        writer.write_block(number, &bytes).unwrap();
    }
    let summary = writer.finish().unwrap();
    LayerEntry {
        path,
        bytes: summary.bytes,
        index_checksum: summary.index_checksum,
        relative_error: 0.0,
        max_error: 0.0,
    }
}

fn write_file(folder: &Path, path: &str, bytes: &[u8]) -> FileEntry {
    fs::write(folder.join(path), bytes).unwrap();
    let checksum = Checksum(xxh3_64(bytes));
    FileEntry { path: path.to_owned(), bytes: bytes.len() as u64, checksum }
}

/// Writes a version of two layers in two variants into `folder`.
fn write_version(folder: &Path, model: &str, version: &str) {
    fs::create_dir(folder.join("layers")).unwrap();
    let layers = (0..2).map(|layer| Layer {
        name: format!("layer.{layer}"),
        files: VARIANTS
            .iter()
            .map(|variant| (variant.to_string(), write_layer(folder, layer, variant)))
            .collect(),
    });
    let manifest = Manifest {
        format: FORMAT,
        model: model.to_owned(),
        version: version.to_owned(),
        inputs: vec![],
        outputs: vec![Port { name: "y".to_owned(), dtype: Dtype::Fp32, shape: vec![] }],
        layers: layers.collect(),
        graph: write_file(folder, "graph.onnx", b"a graph"),
        weights: (0..2).flat_map(weights).collect(),
        variants: VARIANTS.map(str::to_owned).to_vec(),
        tokenizer: Some(write_file(folder, "tokenizer.json", b"{}")),
        task: None,
        text: None,
        precision: None,
        generation: None,
        batch: None,
        loading_bytes: None,
        needs: None,
        provenance: Provenance {
            source: "m.onnx".to_owned(),
            source_bytes: 1,
            producer: "test".to_owned(),
            tool: "test".to_owned(),
            created_s: 0,
        },
    };
    write_manifest(folder, &manifest);
}

fn write_manifest(folder: &Path, manifest: &Manifest) {
    fs::write(folder.join(MANIFEST_NAME), serde_json::to_vec(manifest).unwrap()).unwrap();
}

fn build(store: &Path, model: &str, version: &str, force: bool) -> Result<ModelDir, StoreError> {
    let folder = staging(store).unwrap();
    write_version(folder.path(), model, version);
    install(store, folder.path(), model, version, force)
}

/// A store with one version, and the folder of that.
fn sample() -> (TempDir, ModelDir) {
    let store = tempfile::tempdir().unwrap();
    let dir = build(store.path(), "tiny", "1", false).unwrap();
    (store, dir)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn has_all(text: &str, words: &[&str]) -> bool {
    words.iter().all(|word| text.contains(word))
}

// Reading what was written.

#[test]
fn what_is_installed_is_read_back() {
    let (store, dir) = sample();
    assert_eq!(names(store.path()), ["tiny"]);
    assert_eq!(names(&store.path().join("tiny")), ["1", "current"]);
    let store = Store::open(store.path()).unwrap();
    assert_eq!(store.models().unwrap(), ["tiny"]);
    assert_eq!(store.versions("tiny").unwrap(), ["1"]);
    assert_eq!(store.current("tiny").unwrap().manifest, dir.manifest);
    assert_eq!(store.version("tiny", "1").unwrap().path, dir.path);
    assert_eq!(dir.read_file(&dir.manifest.graph).unwrap(), b"a graph");
    let mut bytes = Vec::new();
    for (layer, variant) in [(0, "f32"), (0, "q8"), (1, "f32"), (1, "q8")] {
        let file = dir.open_layer(layer, variant).unwrap();
        for (number, block) in file.index.blocks.iter().enumerate() {
            file.read_block(number, &mut bytes).unwrap();
            assert!(bytes == block_bytes(layer, &file.index.tensors[block.tensor], block));
        }
    }
    let mut read_bytes = 0;
    assert_eq!(dir.verify(|bytes| read_bytes += bytes), []);
    assert!(read_bytes > 0 && read_bytes <= dir.verify_bytes());
}

#[test]
fn rows_of_a_table_stand_alone() {
    let (_store, dir) = sample();
    let file = dir.open_layer(1, "q8").unwrap();
    let (_, tensor) = file.index.tensor("layer.1.table", Layout::Rows).unwrap();
    let block = &file.index.blocks[tensor.first_block];
    let row = 123;
    let mut stored = vec![0; tensor.row_stride()];
    let offset = block.offset + row * stored.len() as u64;
    file.file.read_exact_at(&mut stored, offset).unwrap();
    let mut values = vec![0.0; TABLE[1] as usize];
    let codec = codec::by_name("q8").unwrap();
    codec.decode(open_row(&stored).unwrap(), 1, &mut values);
    for (step, decoded) in values.iter().enumerate() {
        let expected = value(1, (row * TABLE[1]) as usize + step);
        assert!((decoded - expected).abs() <= codec.error_bound(0.5, 0.5));
    }
    stored[3] ^= 1;
    assert!(open_row(&stored).is_none());
}

#[test]
fn threads_write_blocks_of_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.layer");
    let writer = LayerWriter::create(&path, plans(0, "f32")).unwrap();
    std::thread::scope(|scope| {
        for part in 0..3 {
            let writer = &writer;
            scope.spawn(move || {
                let blocks = writer.blocks().iter().enumerate();
                for (number, block) in blocks.filter(|(number, _)| number % 3 == part) {
                    let bytes = block_bytes(0, &writer.tensors()[block.tensor], block);
                    writer.write_block(number, &bytes).unwrap();
                }
            });
        }
    });
    let summary = writer.finish().unwrap();
    let file = LayerFile::open(&path, None).unwrap();
    assert_eq!(file.index.file_bytes, summary.bytes);
    let mut bytes = Vec::new();
    (0..file.index.blocks.len()).for_each(|number| file.read_block(number, &mut bytes).unwrap());
}

#[test]
fn writers_are_held_to_their_plan() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.layer");
    let writer = LayerWriter::create(&path, plans(0, "q8")).unwrap();
    let bytes = vec![0; writer.blocks()[0].bytes as usize];
    let check = |result: Result<(), StoreError>, word: &str| {
        let error = result.unwrap_err().to_string();
        assert!(has_all(&error, &["x.layer", word]), "{error}");
    };
    check(writer.write_block(0, &bytes[1..]), "block 0 takes");
    writer.write_block(0, &bytes).unwrap();
    check(writer.write_block(0, &bytes), "was written before");
    check(writer.finish().map(|_| ()), "block 1 was not written");
    check(LayerWriter::create(&path, plans(0, "q8")).map(|_| ()), "create");
    let refused = |change: fn(&mut Vec<TensorPlan>), word: &str| {
        let mut plans = plans(0, "q8");
        change(&mut plans);
        check(LayerWriter::create(&folder.path().join("y-x.layer"), plans).map(|_| ()), word);
    };
    refused(|plans| plans[0].rows = 7, "600, 1000");
    refused(|plans| plans[0].codec = codec::RAW, "raw");
    refused(|plans| plans[0].codec = 99, "codec 99");
    refused(|plans| plans[0].dtype = Dtype::Int8, "INT8");
    refused(|plans| plans[1] = plans[0].clone(), "twice");
    refused(|plans| plans[0].name.clear(), "name");
    refused(|plans| (plans[0].rows, plans[0].dims) = (u64::MAX, vec![u64::MAX, 1000]), "shape");
    assert_eq!(names(folder.path()), ["x.layer"]);
}

// Damaged files.

/// What happened, and what to do about it, as users are told.
fn told(error: &StoreError) -> String {
    let advice = error.advice().unwrap_or_default();
    assert!(![&error.to_string(), &advice].iter().any(|text| text.contains('\n')), "{error}");
    format!("{error}: {advice}")
}

/// Damages a fresh store's version and expects `verify` to name `file` with all of `words`, and
/// nothing else.
fn check(damage: impl Fn(&Path), file: &str, words: &[&str]) {
    let (_store, dir) = sample();
    damage(&dir.path);
    let problems = dir.verify(|_| ());
    let [problem] = &problems[..] else { panic!("expected one problem: {problems:?}") };
    assert_eq!(problem.path, dir.path.join(file));
    assert!(has_all(&problem.what, words), "{problem} lacks one of {words:?}");
    let is_layer = file.ends_with(".layer");
    let opened = (0..2)
        .find_map(|layer| VARIANTS.iter().find_map(|variant| dir.open_layer(layer, variant).err()));
    let is_in_a_block = words.contains(&"block");
    assert_eq!(opened.is_some(), is_layer && !is_in_a_block, "opening looks at the index");
    if let Some(error) = opened {
        let error = error.to_string();
        assert!(error.contains(file), "{error}");
    }
}

/// Offset of a block of layer 1 in f32.
fn block_offset(number: usize) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let writer = LayerWriter::create(&folder.path().join("x"), plans(1, "f32")).unwrap();
    writer.blocks()[number].offset
}

#[test]
fn damaged_blocks_are_named_with_tensor_and_rows() {
    let file = layer_path(1, "f32");
    let flip_at = |offset: u64| {
        let file = file.clone();
        move |folder: &Path| flip(&folder.join(&file), offset)
    };
    let words = ["wrong checksum", "block", "1 at byte", "rows 256..512", "layer.1.matrix"];
    check(flip_at(block_offset(1) + 5), &file, &words);
    let words = ["wrong checksum", "block", "rows 0..300", "layer.1.table"];
    check(flip_at(block_offset(3) + 777), &file, &words);
    let words = ["wrong checksum", "block", "rows 0..77", "layer.1.vector"];
    check(flip_at(block_offset(4) + 4 * VECTOR - 1), &file, &words);
}

/// Where a disk was unmounted under a daemon, the next install filled the folder below, and versions
/// of a store below were served, taken back and removed.
#[test]
fn a_store_whose_folder_is_another_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::create_dir(&path).unwrap();
    let store = Store::open(&path).unwrap();
    store.confirm().unwrap();
    fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    assert!(store.confirm().is_err());
    fs::create_dir(&path).unwrap();
    let error = told(&store.confirm().unwrap_err());
    assert!(has_all(&error, &["store is another folder", "mount its disk again"]), "{error}");

    for version in ["1", "2", "3"] {
        build(&path, "tiny", version, false).unwrap();
    }
    let replaced = |error| matches!(error, StoreError::Replaced { .. });
    assert!(replaced(store.use_version("tiny", "1").unwrap_err()));
    assert!(replaced(store.roll_back("tiny").unwrap_err()));
    assert!(replaced(store.remove("tiny", "1").unwrap_err()));
    assert!(replaced(store.collect(0).unwrap_err()));
    assert_eq!(names(&path), ["tiny"]);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.versions("tiny").unwrap(), ["1", "2", "3"]);
    assert_eq!(store.served("tiny").unwrap().current, "3");
}

/// Of 100 bytes that were flipped in a version, 36 lay between blocks: no checksum knew of them.
#[test]
fn padding_that_is_not_zero_is_named() {
    let file = layer_path(1, "f32");
    let (_store, dir) = sample();
    let layer = dir.open_layer(1, "f32").unwrap();
    let gaps: Vec<_> = layer.padding().collect();
    assert!(gaps.len() >= 3, "{gaps:?}");
    for gap in gaps {
        for at in [gap.start, gap.end - 1] {
            let place = format!("byte {at} lies between blocks");
            check(|folder: &Path| flip(&folder.join(&file), at), &file, &[&place, "block"]);
        }
    }
}

#[test]
fn reading_a_damaged_block_fails_with_its_place() {
    let (_store, dir) = sample();
    flip(&dir.path.join(layer_path(1, "f32")), block_offset(1));
    let file = dir.open_layer(1, "f32").unwrap();
    let mut bytes = Vec::new();
    file.read_block(0, &mut bytes).unwrap();
    let error = told(&file.read_block(1, &mut bytes).unwrap_err());
    let words =
        ["001-layer.f32.layer", "block 1 at byte", "rows 256..512", "layer.1.matrix", "--force"];
    assert!(has_all(&error, &words), "{error}");
}

#[test]
fn damaged_indexes_and_lengths_are_named() {
    let file = layer_path(0, "q8");
    let path = |folder: &Path| folder.join(layer_path(0, "q8"));
    let flip_at = |offset| move |folder: &Path| flip(&path(folder), offset);
    check(flip_at(0), &file, &["magic"]);
    check(flip_at(8), &file, &["version"]);
    check(flip_at(16), &file, &["length of the file"]);
    check(flip_at(24), &file, &["of the index"]);
    check(flip_at(31), &file, &["length of the index", "over the limit"]);
    check(flip_at(32), &file, &["checksum of the index"]);
    check(flip_at(50), &file, &["reserved"]);
    check(flip_at(100), &file, &["checksum of the index"]);
    let resize = |change: fn(u64) -> u64| {
        move |folder: &Path| {
            let file = OpenOptions::new().write(true).open(path(folder)).unwrap();
            file.set_len(change(file.metadata().unwrap().len())).unwrap();
        }
    };
    for change in [|_| 0, |_| 63, |_| 100, |bytes| bytes - 1, |bytes| bytes + 4096] {
        check(resize(change), &file, &["bytes, the manifest says"]);
    }
}

#[test]
fn missing_and_odd_files_are_named() {
    let file = layer_path(0, "f32");
    let path = |folder: &Path| folder.join(layer_path(0, "f32"));
    check(|folder| fs::remove_file(path(folder)).unwrap(), &file, &["cannot open", "No such file"]);
    let make_folder = |folder: &Path| {
        fs::remove_file(path(folder)).unwrap();
        fs::create_dir(path(folder)).unwrap();
    };
    check(make_folder, &file, &["is not a regular file"]);
    let make_pipe = |folder: &Path| {
        fs::remove_file(path(folder)).unwrap();
        nix::unistd::mkfifo(&path(folder), nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    check(make_pipe, &file, &["is not a regular file"]);
    let make_link = |folder: &Path| {
        let aside = folder.join("aside");
        fs::rename(path(folder), &aside).unwrap();
        symlink(&aside, path(folder)).unwrap();
    };
    check(make_link, &file, &["is a link"]);
    let graph = |folder: &Path| fs::write(folder.join("graph.onnx"), "a graxh").unwrap();
    check(graph, "graph.onnx", &["has checksum", "the manifest says"]);
    let graph = |folder: &Path| fs::write(folder.join("graph.onnx"), "a gra").unwrap();
    check(graph, "graph.onnx", &["has 5 bytes, the manifest says 7"]);
    let tokenizer = |folder: &Path| fs::remove_file(folder.join("tokenizer.json")).unwrap();
    check(tokenizer, "tokenizer.json", &["No such file"]);
}

#[test]
fn a_linked_folder_leads_nowhere() {
    let (store, dir) = sample();
    let aside = store.path().join("aside");
    fs::rename(dir.path.join("layers"), &aside).unwrap();
    symlink(&aside, dir.path.join("layers")).unwrap();
    let error = dir.open_layer(0, "f32").unwrap_err().to_string();
    assert!(has_all(&error, &["layers", "is a link"]), "{error}");
    assert_eq!(dir.verify(|_| ()).len(), 4);
}

/// A model whose folder had another name was told to be damaged, and to be built again.
#[test]
fn a_renamed_model_is_told_to_be_one() {
    let (store, _) = sample();
    fs::rename(store.path().join("tiny"), store.path().join("small")).unwrap();
    let error = Store::open(store.path()).unwrap().current("small").unwrap_err();
    let error = told(&error);
    assert!(has_all(&error, &["version 1 of tiny", "rename the folder back to tiny/1"]), "{error}");
}

/// A model on another disk behind a link was said not to be in the store, and the advice was to build
/// it again, which went through the link.
#[test]
fn a_linked_model_is_told_to_be_one() {
    let (store, dir) = sample();
    let (model, elsewhere) = (store.path().join("tiny"), tempfile::tempdir().unwrap());
    let aside = elsewhere.path().join("tiny");
    fs::rename(&model, &aside).unwrap();
    symlink(&aside, &model).unwrap();
    let opened = Store::open(store.path()).unwrap();
    let staged = staging(store.path()).unwrap();
    write_version(staged.path(), "tiny", "2");
    let errors = [
        opened.current("tiny").unwrap_err(),
        opened.versions("tiny").unwrap_err(),
        install(store.path(), staged.path(), "tiny", "2", false).unwrap_err(),
    ];
    for error in errors {
        let error = told(&error);
        assert!(has_all(&error, &["tiny is a link", "move the folder itself"]), "{error}");
    }
    assert!(!aside.join("2").exists());
    let (version, model) = (aside.join("1"), store.path().join("tiny"));
    fs::remove_file(&model).unwrap();
    fs::create_dir(&model).unwrap();
    symlink(&version, dir.path).unwrap();
    let error = opened.version("tiny", "1").unwrap_err().to_string();
    assert!(has_all(&error, &["tiny/1 is a link"]), "{error}");
}

#[test]
fn swapped_layer_files_are_noticed() {
    let (_store, dir) = sample();
    let path = |layer| dir.path.join(layer_path(layer, "f32"));
    let aside = dir.path.join("aside");
    fs::rename(path(0), &aside).unwrap();
    fs::rename(path(1), path(0)).unwrap();
    fs::rename(&aside, path(1)).unwrap();
    let problems = dir.verify(|_| ());
    let found: Vec<PathBuf> = problems.iter().map(|problem| problem.path.clone()).collect();
    assert_eq!(found, [path(0), path(1)]);
    let words = ["its index has checksum", "the manifest says"];
    assert!(problems.iter().all(|problem| has_all(&problem.what, &words)), "{problems:?}");
}

/// The checksums of a row and of its block can disagree only where a writer was wrong.
#[test]
fn a_wrong_row_checksum_inside_a_sealed_block_is_found() {
    let folder = tempfile::tempdir().unwrap();
    write_version(folder.path(), "tiny", "1");
    let path = layer_path(0, "f32");
    fs::remove_file(folder.path().join(&path)).unwrap();
    let writer = LayerWriter::create(&folder.path().join(&path), plans(0, "f32")).unwrap();
    for (number, block) in writer.blocks().iter().enumerate() {
        let tensor = &writer.tensors()[block.tensor];
        let mut bytes = block_bytes(0, tensor, block);
        if tensor.layout == Layout::Rows {
            bytes[200 * tensor.row_stride()] ^= 1;
        }
        writer.write_block(number, &bytes).unwrap();
    }
    let summary = writer.finish().unwrap();
    let mut dir = ModelDir::open(folder.path()).unwrap();
    let manifest = std::sync::Arc::make_mut(&mut dir.manifest);
    let entry = manifest.layers[0].files.get_mut("f32").unwrap();
    entry.index_checksum = summary.index_checksum;
    let problems = dir.verify(|_| ());
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(has_all(&problems[0].what, &["wrong checksum of a row", "layer.0.table"]));
}

// Manifests that lie.

/// Changes the manifest of a fresh version and expects opening it, or opening its files, to fail
/// with all of `words`.
fn check_manifest(change: impl Fn(&mut Manifest), words: &[&str]) {
    let (store, mut dir) = sample();
    change(std::sync::Arc::make_mut(&mut dir.manifest));
    write_manifest(&dir.path, &dir.manifest);
    let opened = Store::open(store.path()).unwrap().current("tiny");
    let error = told(&opened.and_then(|dir| dir.check_files()).unwrap_err());
    assert!(has_all(&error, words), "{error:?} lacks one of {words:?}");
}

#[test]
fn lying_manifests_are_refused() {
    let entry = |manifest: &mut Manifest, change: fn(&mut LayerEntry)| {
        change(manifest.layers[0].files.get_mut("q8").unwrap());
    };
    check_manifest(|m| m.format = 2, &["manifest.json", "format is 2"]);
    check_manifest(|m| m.model = "other".into(), &["version 1 of other", "rename the folder"]);
    check_manifest(|m| m.version = "2".into(), &["version 2 of tiny", "rename the folder"]);
    check_manifest(|m| entry(m, |e| e.bytes += 1), &["000-layer.q8.layer", "manifest says"]);
    check_manifest(|m| entry(m, |e| e.index_checksum.0 ^= 1), &["000-layer.q8", "checksum"]);
    check_manifest(|m| entry(m, |e| e.path = "../x".into()), &["layers[0].files.q8.path"]);
    check_manifest(|m| entry(m, |e| e.path = "/etc/passwd".into()), &["layers[0].files.q8.path"]);
    check_manifest(|m| m.graph.path = "../graph.onnx".into(), &["graph.path", "--force"]);
    check_manifest(|m| m.graph.bytes += 1, &["graph.onnx", "has 7 bytes"]);
    check_manifest(|m| m.weights[0].shape[0] = 601, &["layer.0.matrix", "[600, 1000]", "601"]);
    check_manifest(|m| m.weights[0].shape[0] = u64::MAX, &["weights[0].shape"]);
    check_manifest(|m| m.weights[0].dtype = Dtype::Fp16, &["layer.0.matrix", "FP16"]);
    check_manifest(|m| m.weights[0].name = "other".into(), &["layer.0.matrix", "no weight"]);
}

#[test]
fn broken_manifests_are_refused() {
    for text in ["", "{", "[]", "{\"format\": 1}", "\u{0}"] {
        let (_store, dir) = sample();
        fs::write(dir.path.join(MANIFEST_NAME), text).unwrap();
        let error = told(&ModelDir::open(&dir.path).unwrap_err());
        assert!(has_all(&error, &["manifest.json", "not a manifest", "--force"]), "{error}");
    }
    let (_store, dir) = sample();
    let file = File::create(dir.path.join(MANIFEST_NAME)).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = ModelDir::open(&dir.path).unwrap_err().to_string();
    assert!(has_all(&error, &["manifest.json", "expected at most"]), "{error}");
}

#[test]
fn names_cannot_climb_out_of_the_store() {
    let (store, dir) = sample();
    let opened = Store::open(store.path()).unwrap();
    let error = install(store.path(), &dir.path, "stats", "1", true).unwrap_err();
    assert!(matches!(error, StoreError::Name { .. }), "{error}");
    for name in ["..", ".", "", "a/b", "/etc", ".staging-1", "-x", "tiny\0"] {
        assert!(matches!(opened.current(name), Err(StoreError::Name { .. })), "{name:?}");
        assert!(matches!(opened.version("tiny", name), Err(StoreError::Name { .. })), "{name:?}");
        let error = install(store.path(), &dir.path, name, "1", true).unwrap_err();
        assert!(matches!(error, StoreError::Name { .. }), "{name:?}");
    }
    let current = store.path().join("tiny/current");
    for version in ["../../etc", "", "2", "\u{fffd}"] {
        fs::write(&current, version).unwrap();
        let error = opened.current("tiny").unwrap_err().to_string();
        assert!(error.contains(version), "{error}");
    }
    assert!(matches!(opened.current("absent"), Err(StoreError::Missing { .. })));
    symlink(store.path().join("tiny"), store.path().join("linked")).unwrap();
    assert!(matches!(opened.current("linked"), Err(StoreError::Link { .. })));
    assert!(Store::open(&store.path().join("absent")).is_err());
}

// Installing.

#[test]
fn a_version_is_installed_once_unless_forced() {
    let (store, dir) = sample();
    let marker = dir.path.join("marker");
    fs::write(&marker, "old").unwrap();
    let error = build(store.path(), "tiny", "1", false).unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert!(told(&error).contains("--force"));
    assert!(marker.exists());
    build(store.path(), "tiny", "1", true).unwrap();
    assert!(!marker.exists());
    assert_eq!(dir.verify(|_| ()), []);
    assert_eq!(names(store.path()), ["tiny"]);
    assert_eq!(names(&store.path().join("tiny")), ["1", "current"]);
}

#[test]
fn the_newest_version_is_served_and_the_old_one_stays() {
    let (store, _dir) = sample();
    build(store.path(), "tiny", "2", false).unwrap();
    let opened = Store::open(store.path()).unwrap();
    assert_eq!(opened.versions("tiny").unwrap(), ["1", "2"]);
    assert_eq!(opened.current("tiny").unwrap().manifest.version, "2");
    assert_eq!(opened.version("tiny", "1").unwrap().verify(|_| ()), []);
    assert_eq!(fs::read_to_string(store.path().join("tiny/current")).unwrap(), "2\n1\n");
}

#[test]
fn what_cannot_be_believed_is_not_installed() {
    let store = tempfile::tempdir().unwrap();
    let check = |damage: &dyn Fn(&Path)| {
        let folder = staging(store.path()).unwrap();
        write_version(folder.path(), "tiny", "1");
        damage(folder.path());
        assert!(install(store.path(), folder.path(), "tiny", "1", false).is_err());
        drop(folder);
        assert_eq!(Store::open(store.path()).unwrap().models().unwrap(), [""; 0]);
        assert_eq!(names(store.path()), [""; 0]);
    };
    check(&|folder| fs::remove_file(folder.join(MANIFEST_NAME)).unwrap());
    check(&|folder| fs::write(folder.join(MANIFEST_NAME), "{}").unwrap());
    check(&|folder| fs::remove_file(folder.join(layer_path(1, "q8"))).unwrap());
    check(&|folder| flip(&folder.join(layer_path(1, "q8")), 70));
    check(&|folder| fs::remove_file(folder.join("graph.onnx")).unwrap());
    check(&|folder| symlink("/etc/passwd", folder.join("linked")).unwrap());
}

/// An interrupted build leaves a folder whose lock nobody holds: it is no model, and the next
/// build removes it, while folders of builds that still run stay.
#[test]
fn interrupted_builds_are_invisible_and_cleaned() {
    let (store, _dir) = sample();
    let left = store.path().join(".staging-1-0");
    fs::create_dir_all(left.join("version/layers")).unwrap();
    fs::write(left.join(".lock"), "").unwrap();
    fs::write(left.join("version").join(MANIFEST_NAME), "{}").unwrap();
    assert_eq!(Store::open(store.path()).unwrap().models().unwrap(), ["tiny"]);
    let running = staging(store.path()).unwrap();
    assert!(!left.exists());
    let other = staging(store.path()).unwrap();
    assert!(running.path().exists() && other.path().exists());
    drop((running, other));
    assert_eq!(names(store.path()), ["tiny"]);
}

#[test]
fn a_model_without_a_served_version_is_not_listed() {
    let (store, _dir) = sample();
    fs::create_dir_all(store.path().join("half/1")).unwrap();
    fs::write(store.path().join("file"), "").unwrap();
    let opened = Store::open(store.path()).unwrap();
    assert_eq!(opened.models().unwrap(), ["tiny"]);
    assert_eq!(opened.versions("half").unwrap(), [""; 0]);
    assert!(opened.current("half").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever byte of a layer file changes, it is noticed where it is loaded, unless it is one of
    /// the zeros between blocks, which only verifying reads.
    #[test]
    fn any_changed_byte_is_noticed(place in any::<prop::sample::Index>(), mask in 1u8..) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("layers")).unwrap();
        let entry = write_layer(folder.path(), 0, "q8");
        let path = folder.path().join(&entry.path);
        let index = LayerFile::open(&path, Some(&entry)).unwrap().index;
        let mut bytes = fs::read(&path).unwrap();
        let at = place.index(bytes.len());
        bytes[at] ^= mask;
        fs::write(&path, &bytes).unwrap();
        let is_noticed = match LayerFile::open(&path, Some(&entry)) {
            Err(_) => true,
            Ok(file) => {
                let mut bytes = Vec::new();
                (0..file.index.blocks.len()).any(|n| file.read_block(n, &mut bytes).is_err())
            }
        };
        let is_used = at < index.to_bytes().len()
            || index.blocks.iter().any(|b| (b.offset..b.offset + b.bytes).contains(&(at as u64)));
        prop_assert_eq!(is_noticed, is_used);
        if !is_used {
            let file = LayerFile::open(&path, Some(&entry)).unwrap();
            prop_assert!(file.padding().any(|gap| gap.contains(&(at as u64))));
        }
    }
}
