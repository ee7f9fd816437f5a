//! ONNX files: none panics the walk over them, none takes more memory than its bytes justify, and
//! a skim names only what lies in the model's files.

#![no_main]

use hermes::graph::dims::settle;
use hermes::graph::skim::{SkimError, skim};
use hermes::sys::heap::{self, CountingAllocator};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Bytes from which tensors are weights here: few, so that inputs stay short.
const THRESHOLD_BYTES: u64 = 16;

/// Memory that a byte of the file may cost: two bytes are an empty message in a list that grows.
const BYTES_A_BYTE: u64 = 2048;

/// A folder with external data.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("hermes-fuzz-skim-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for temporary files");
    fs::write(folder.join("w"), [7; 512]).expect("its disk has room");
    folder
});

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.join("model.onnx");
    fs::write(&path, bytes).expect("the disk has room");
    let before = heap::live_bytes();
    heap::reset_peak();
    let result = skim(&path, THRESHOLD_BYTES);
    let taken = heap::peak_bytes().saturating_sub(before);
    assert!(taken <= (64 << 10) + BYTES_A_BYTE * bytes.len() as u64, "{taken} bytes of memory");
    match result {
        Err(SkimError::Malformed { offset, .. }) => assert!(offset <= bytes.len() as u64),
        Err(SkimError::Tensor { .. } | SkimError::Node { .. }) => {}
        Err(other) => panic!("a small file that can be read: {other}"),
        Ok(skim) => {
            for weight in &skim.weights {
                for location in weight.elements.locations() {
                    assert!(location.path.starts_with(&*FOLDER));
                    let file_bytes = fs::metadata(&location.path).expect("it was opened").len();
                    let end = location.offset.checked_add(location.bytes);
                    assert!(end.is_some_and(|end| end <= file_bytes), "{weight:?}");
                }
            }
            settle(&skim.skeleton, &BTreeMap::new()).expect("a skeleton is a model");
        }
    }
});
