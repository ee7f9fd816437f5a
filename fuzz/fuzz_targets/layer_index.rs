//! Headers and indexes of layer files: none panics, none takes more memory than its bytes
//! justify, and what is parsed is written back to the same bytes.

#![no_main]

use hermes::store::layer_file::{HEADER_BYTES, LayerIndex, MAGIC, VERSION};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|bytes: &[u8]| {
    let _ = LayerIndex::parse(bytes, 1 << 32);
    if let Some(prefix) = bytes.first_chunk() {
        let _ = LayerIndex::header_bytes(prefix);
    }
    let file_bytes = blocks_end(bytes);
    let head = sealed(bytes, file_bytes);
    if let Ok(index) = LayerIndex::parse(&head, file_bytes) {
        assert_eq!(index.to_bytes(), head);
    }
});

/// Where the last block ends, if its entry is as long as it should be.
fn blocks_end(index: &[u8]) -> u64 {
    let fields: Vec<u64> = index
        .rchunks_exact(8)
        .take(3)
        .map(|f| f.iter().rfold(0, |n, b| n << 8 | *b as u64))
        .collect();
    let [_checksum, bytes, offset] = fields[..] else { return 0 };
    offset.wrapping_add(bytes)
}

/// `index` behind a header that is right, so that the fuzzer gets past the checksum.
fn sealed(index: &[u8], file_bytes: u64) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    for field in [VERSION, file_bytes, index.len() as u64, xxh3_64(index)] {
        head.extend(field.to_le_bytes());
    }
    head.resize(HEADER_BYTES as usize, 0);
    head.extend(index);
    head
}
