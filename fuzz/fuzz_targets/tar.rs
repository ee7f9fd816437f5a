//! Archives: none panics, and what is read of an archive is no longer than it.

#![no_main]

use hermes::store::tar::TarReader;
use libfuzzer_sys::fuzz_target;

/// Where a head has its checksum, and the bytes by which it is known.
const RECORD_BYTES: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

fuzz_target!(|bytes: &[u8]| {
    let mut archive = bytes.to_vec();
    archive.chunks_exact_mut(RECORD_BYTES).for_each(seal);
    for archive in [bytes, &archive] {
        read(archive);
    }
});

fn read(archive: &[u8]) {
    let mut reader = TarReader::new(archive);
    let mut buffer = [0; 100];
    let mut content_bytes = 0;
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut entry_bytes = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break assert_eq!(entry_bytes, entry.bytes),
                Ok(count) => entry_bytes += count as u64,
                Err(_) => return,
            }
        }
        content_bytes += entry_bytes;
    }
    assert!(content_bytes <= archive.len() as u64);
}

/// Gives what looks like a head the right checksum, or the fuzzer would not get past it.
fn seal(record: &mut [u8]) {
    if &record[MAGIC] == b"ustar" {
        record[CHECKSUM].fill(b' ');
        let sum: u64 = record.iter().map(|byte| u64::from(*byte)).sum();
        record[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
