//! Memory that vectors may be loaded from.

use std::ops::Range;

/// What buffers are aligned to: the widest vectors, and a line of the cache.
const ALIGN: usize = 64;

/// A buffer that is aligned for the widest vectors, behind which another one may be read.
pub struct AlignedBuffer {
    storage: Vec<u8>,
    range: Range<usize>,
}

impl AlignedBuffer {
    /// One of so many zero bytes.
    pub fn zeroed(bytes: usize) -> AlignedBuffer {
        let storage = vec![0; bytes + 2 * ALIGN];
        let start = storage.as_ptr().addr().next_multiple_of(ALIGN) - storage.as_ptr().addr();
        AlignedBuffer { storage, range: start..start + bytes }
    }
}

impl AsRef<[u8]> for AlignedBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.storage[self.range.clone()]
    }
}

impl AsMut<[u8]> for AlignedBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_hold_what_was_put_in() {
        for bytes in [0, 1, 63, 64, 65, 100_000] {
            let mut buffer = AlignedBuffer::zeroed(bytes);
            assert!(buffer.as_ref().as_ptr().addr().is_multiple_of(ALIGN));
            assert!(buffer.as_ref().iter().all(|byte| *byte == 0));
            buffer.as_mut().fill(7);
            assert_eq!(buffer.as_ref(), vec![7; bytes]);
        }
    }
}
