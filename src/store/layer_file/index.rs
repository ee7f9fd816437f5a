use super::{
    BLOCK_ALIGN, BLOCK_ENTRY_BYTES, HEADER_BYTES, Layout, MAGIC, MAX_DEPTH, MAX_FILE_BYTES,
    MAX_INDEX_BYTES, MAX_RANK, MAX_TENSOR_NAME_BYTES, MIN_TENSOR_BYTES, VERSION, block_bytes,
    entries::{BlockEntry, TensorEntry, TensorPlan},
};
use crate::codec;
use crate::store::{Dtype, FormatError};
use std::collections::HashSet;
use xxhash_rust::xxh3::xxh3_64;

/// A parsed and checked index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// Tensors in the order of their blocks.
    pub tensors: Vec<TensorEntry>,
    /// Blocks in the order of their offsets.
    pub blocks: Vec<BlockEntry>,
    /// Length of the file.
    pub file_bytes: u64,
}

impl LayerIndex {
    /// Bytes of header and index, from a file's first 64 bytes; what [`LayerIndex::parse`] takes.
    ///
    /// # Errors
    /// Not a layer file of this version, or an index over [`MAX_INDEX_BYTES`].
    pub fn header_bytes(prefix: &[u8; HEADER_BYTES as usize]) -> Result<u64, FormatError> {
        Header::parse(prefix).map(|header| HEADER_BYTES + header.index_bytes)
    }

    /// Parses header and index; `head` is a file's start of [`LayerIndex::header_bytes`] bytes,
    /// `file_bytes` the length that the file really has.
    ///
    /// # Errors
    /// The first field that cannot be believed.
    pub fn parse(head: &[u8], file_bytes: u64) -> Result<LayerIndex, FormatError> {
        let prefix = head.first_chunk().ok_or(FormatError::Truncated {
            field: "header",
            offset: 0,
            needed: HEADER_BYTES,
            left: head.len() as u64,
        })?;
        let header = Header::parse(prefix)?;
        header.check(head, file_bytes)?;
        let mut fields = Fields { bytes: head, at: prefix.len() };
        let tensor_count = fields.count("tensor count", MIN_TENSOR_BYTES)?;
        let block_count = fields.count("block count", BLOCK_ENTRY_BYTES)?;

        let mut tensors = Vec::with_capacity(tensor_count);
        let mut keys = HashSet::with_capacity(tensor_count);
        let mut blocks_named = 0;
        for _ in 0..tensor_count {
            let at = fields.offset();
            let tensor = fields.tensor(blocks_named, block_count)?;
            if !keys.insert((tensor.name.clone(), tensor.layout)) {
                return Err(invalid(
                    "tensor name",
                    at,
                    format!("{:?} is there twice", tensor.name),
                ));
            }
            blocks_named += tensor.block_count;
            tensors.push(tensor);
        }
        if blocks_named != block_count {
            let what = format!("is {block_count}, the tensors have {blocks_named}");
            return Err(invalid("block count", HEADER_BYTES + 8, what));
        }

        let mut blocks = Vec::with_capacity(block_count);
        let mut free_from = head.len() as u64;
        for (index, tensor) in tensors.iter().enumerate() {
            let mut row = 0;
            for _ in tensor.blocks() {
                let block = fields.block(index, tensor, row, free_from, file_bytes)?;
                row += block.row_count;
                free_from = block.offset + block.bytes;
                blocks.push(block);
            }
            if row != tensor.rows {
                let what = format!("cover {row} of the {} rows of {:?}", tensor.rows, tensor.name);
                return Err(invalid("blocks", fields.offset(), what));
            }
        }
        fields.end()?;
        if file_bytes - free_from >= BLOCK_ALIGN {
            let what = format!("is {file_bytes}, the blocks end at {free_from}");
            return Err(invalid("length of the file", 16, what));
        }
        Ok(LayerIndex { tensors, blocks, file_bytes })
    }

    /// The tensor of a name and layout, with its index.
    pub fn tensor(&self, name: &str, layout: Layout) -> Option<(usize, &TensorEntry)> {
        let is_it = |(_, t): &(usize, &TensorEntry)| t.layout == layout && t.name == name;
        self.tensors.iter().enumerate().find(is_it)
    }

    /// Header and index as they stand at the file's start; the inverse of [`LayerIndex::parse`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = vec![0; HEADER_BYTES as usize];
        let mut put = |value: u64| head.extend(value.to_le_bytes());
        put(self.tensors.len() as u64);
        put(self.blocks.len() as u64);
        for tensor in &self.tensors {
            tensor.write(&mut head);
        }
        for block in &self.blocks {
            block.write(&mut head);
        }
        let (header, index) = head.split_at_mut(HEADER_BYTES as usize);
        header[..8].copy_from_slice(&MAGIC);
        let fields = [VERSION, self.file_bytes, index.len() as u64, xxh3_64(index)];
        for (bytes, field) in header[8..].chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        head
    }
}

impl TensorEntry {
    fn write(&self, head: &mut Vec<u8>) {
        let name = self.name.as_bytes();
        head.extend((name.len() as u64).to_le_bytes());
        head.extend(name);
        head.resize(head.len().next_multiple_of(8), 0);
        let codes = [self.layout.code(), self.codec, self.dtype.code(), self.dims.len() as u64];
        let blocks = [self.first_block as u64, self.block_count as u64];
        let sizes = [self.rows, self.depth];
        for value in codes.iter().chain(&self.dims).chain(&sizes).chain(&blocks) {
            head.extend(value.to_le_bytes());
        }
    }
}

impl BlockEntry {
    fn write(&self, head: &mut Vec<u8>) {
        let place = [self.tensor as u64, self.row_start, self.row_count];
        let depth = [self.depth_start, self.depth_count];
        for value in place.iter().chain(&depth).chain(&[self.offset, self.bytes, self.checksum]) {
            head.extend(value.to_le_bytes());
        }
    }
}

fn invalid(field: &'static str, offset: u64, what: String) -> FormatError {
    FormatError::Field { field, offset, what }
}

struct Header {
    file_bytes: u64,
    index_bytes: u64,
    index_checksum: u64,
}

impl Header {
    fn parse(prefix: &[u8; HEADER_BYTES as usize]) -> Result<Header, FormatError> {
        let field = |index: usize| u64::from_le_bytes(prefix.as_chunks().0[index]);
        if prefix[..8] != MAGIC {
            return Err(FormatError::Magic);
        }
        if field(1) != VERSION {
            return Err(FormatError::Version { found: field(1), expected: VERSION });
        }
        let header =
            Header { file_bytes: field(2), index_bytes: field(3), index_checksum: field(4) };
        if header.file_bytes > MAX_FILE_BYTES {
            let what = format!("is {}, over the limit of {MAX_FILE_BYTES}", header.file_bytes);
            return Err(invalid("length of the file", 16, what));
        }
        if header.index_bytes > MAX_INDEX_BYTES {
            let what = format!("is {}, over the limit of {MAX_INDEX_BYTES}", header.index_bytes);
            return Err(invalid("length of the index", 24, what));
        }
        if let Some(at) = (5..8).find(|index| field(*index) != 0) {
            return Err(invalid("reserved field", at as u64 * 8, "is not zero".into()));
        }
        Ok(header)
    }

    /// Compares it with the bytes it describes.
    fn check(&self, head: &[u8], file_bytes: u64) -> Result<(), FormatError> {
        if self.file_bytes != file_bytes {
            let what = format!("is {}, the file has {file_bytes}", self.file_bytes);
            return Err(invalid("length of the file", 16, what));
        }
        let index = &head[HEADER_BYTES as usize..];
        if self.index_bytes != index.len() as u64 || head.len() as u64 > file_bytes {
            let what = format!("is {}, there are {} bytes", self.index_bytes, index.len());
            return Err(invalid("length of the index", 24, what));
        }
        let found = xxh3_64(index);
        if self.index_checksum != found {
            let what = format!("is {:016x}, the index has {found:016x}", self.index_checksum);
            return Err(invalid("checksum of the index", 32, what));
        }
        Ok(())
    }
}

/// Takes fields from header and index, in order.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn offset(&self) -> u64 {
        self.at as u64
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn truncated(&self, field: &'static str, needed: u64) -> FormatError {
        FormatError::Truncated { field, offset: self.offset(), needed, left: self.left() }
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, FormatError> {
        let rest = &self.bytes[self.at..];
        let bytes = rest.first_chunk().ok_or_else(|| self.truncated(field, 8))?;
        self.at += 8;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A field that must have one value.
    fn exactly(&mut self, field: &'static str, expected: u64) -> Result<u64, FormatError> {
        self.within(field, expected..=expected)
    }

    /// A field that must lie in a range.
    fn within(
        &mut self,
        field: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, FormatError> {
        let at = self.offset();
        let value = self.u64(field)?;
        if range.contains(&value) {
            return Ok(value);
        }
        let (first, last) = range.into_inner();
        let what = match first == last {
            true => format!("is {value}, expected {first}"),
            false => format!("is {value}, expected {first} to {last}"),
        };
        Err(invalid(field, at, what))
    }

    /// A count of entries that take at least `entry_bytes` each of what is left.
    fn count(&mut self, field: &'static str, entry_bytes: u64) -> Result<usize, FormatError> {
        let at = self.offset();
        let count = self.u64(field)?;
        let limit = self.left() / entry_bytes;
        if count > limit {
            return Err(invalid(field, at, format!("is {count}, there is room for {limit}")));
        }
        Ok(usize::try_from(count).expect("bounded by bytes in memory"))
    }

    fn name(&mut self) -> Result<String, FormatError> {
        let bytes = self.within("length of a tensor name", 1..=MAX_TENSOR_NAME_BYTES)?;
        let padded = bytes.next_multiple_of(8);
        if padded > self.left() {
            return Err(self.truncated("tensor name", padded));
        }
        let at = self.offset();
        let (bytes, padded) = (bytes as usize, padded as usize);
        let (name, padding) = self.bytes[self.at..self.at + padded].split_at(bytes);
        self.at += padded;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(invalid("padding of a tensor name", at, "is not zero".into()));
        }
        let name = std::str::from_utf8(name);
        let name = name.map_err(|e| invalid("tensor name", at, format!("is not UTF-8: {e}")))?;
        Ok(name.to_owned())
    }

    fn code<T>(
        &mut self,
        field: &'static str,
        known: impl Fn(u64) -> Option<T>,
    ) -> Result<T, FormatError> {
        let at = self.offset();
        let code = self.u64(field)?;
        known(code).ok_or_else(|| invalid(field, at, format!("{code} is not known")))
    }

    fn tensor(
        &mut self,
        first_block: usize,
        block_count: usize,
    ) -> Result<TensorEntry, FormatError> {
        let start = self.offset();
        let name = self.name()?;
        let layout = self.code("layout code", Layout::from_code)?;
        let codec = self.code("codec code", |code| {
            (code == codec::RAW || codec::by_code(code).is_some()).then_some(code)
        })?;
        let dtype = self.code("dtype code", Dtype::from_code)?;
        let rank = self.within("rank", 0..=MAX_RANK)?;
        let mut dims = Vec::with_capacity(rank as usize);
        for _ in 0..rank {
            dims.push(self.within("dimension", 1..=MAX_FILE_BYTES)?);
        }
        let at = self.offset();
        let rows = self.within("row count", 1..=MAX_FILE_BYTES)?;
        let depth = self.within("depth", 1..=MAX_DEPTH)?;
        let plan = TensorPlan { name, layout, codec, dtype, dims, rows, depth };
        plan.check().map_err(|what| invalid("rows and depth", at, what))?;
        self.exactly("first block", first_block as u64)?;
        let left = (block_count - first_block) as u64;
        let count = self.within("block count of a tensor", 1..=left.max(1))?;
        if count > left {
            return Err(invalid("tensor", start, "has blocks beyond the block count".into()));
        }
        Ok(plan.into_entry(first_block, count as usize))
    }

    fn block(
        &mut self,
        tensor_index: usize,
        tensor: &TensorEntry,
        row_start: u64,
        free_from: u64,
        file_bytes: u64,
    ) -> Result<BlockEntry, FormatError> {
        self.exactly("tensor of a block", tensor_index as u64)?;
        self.exactly("row start of a block", row_start)?;
        let at = self.offset();
        let row_count =
            self.within("row count of a block", 1..=(tensor.rows - row_start).max(1))?;
        let row_end = row_start + row_count;
        let is_whole = row_count.is_multiple_of(tensor.layout.row_step());
        if row_end > tensor.rows || !(is_whole || row_end == tensor.rows) {
            let what = format!("is {row_count}, not a multiple of {}", tensor.layout.row_step());
            return Err(invalid("row count of a block", at, what));
        }
        self.exactly("depth start of a block", 0)?;
        self.exactly("depth count of a block", tensor.depth)?;
        let at = self.offset();
        let offset = self.u64("offset of a block")?;
        if offset < free_from || !offset.is_multiple_of(BLOCK_ALIGN) || offset >= file_bytes {
            let what = format!(
                "is {offset}, expected a multiple of {BLOCK_ALIGN} from {free_from} on, below \
                 {file_bytes}"
            );
            return Err(invalid("offset of a block", at, what));
        }
        let at = self.offset();
        let expected =
            block_bytes(tensor.layout, tensor.codec, tensor.dtype, tensor.depth, row_count);
        let expected = expected.filter(|bytes| *bytes <= file_bytes - offset);
        let expected = expected.ok_or_else(|| {
            invalid("length of a block", at, "would lie beyond the file's end".into())
        })?;
        let bytes = self.exactly("length of a block", expected)?;
        let checksum = self.u64("checksum of a block")?;
        Ok(BlockEntry {
            tensor: tensor_index,
            row_start,
            row_count,
            depth_start: 0,
            depth_count: tensor.depth,
            offset,
            bytes,
            checksum,
        })
    }

    fn end(&self) -> Result<(), FormatError> {
        match self.left() {
            0 => Ok(()),
            left => Err(invalid("index", self.offset(), format!("has {left} bytes too many"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writer::lay_out;
    use super::super::{BLOCK_BYTES, FILE_ALIGN, ROW_CHECKSUM_BYTES, TAIL_BYTES};
    use super::*;
    use proptest::prelude::*;

    fn plan(name: &str, layout: Layout, codec: &str, rows: u64, depth: u64) -> TensorPlan {
        let codec = codec::by_name(codec).map_or(codec::RAW, |codec| codec.code());
        let dtype = if codec == codec::RAW { Dtype::Int64 } else { Dtype::Fp32 };
        let dims = vec![rows, depth];
        TensorPlan { name: name.to_owned(), layout, codec, dtype, dims, rows, depth }
    }

    /// Four tensors, one of each kind; the first has three blocks.
    fn index() -> LayerIndex {
        let plans = vec![
            plan("query", Layout::Panels, "f32", 600, 1024),
            plan("words", Layout::Rows, "q8", 70, 40),
            plan("kernel", Layout::Flat, "q4", 77, 1),
            plan("ids", Layout::Rows, "raw", 5, 3),
        ];
        lay_out(plans).unwrap()
    }

    fn parse(index: &LayerIndex) -> Result<LayerIndex, FormatError> {
        LayerIndex::parse(&index.to_bytes(), index.file_bytes)
    }

    #[test]
    fn what_is_written_is_parsed() {
        let index = index();
        assert_eq!(parse(&index), Ok(index));
    }

    /// Compute read past the end of the mapping where a block of 1 MiB was a file's last: its end
    /// is a page's, and the file was padded to pages only.
    #[test]
    fn bytes_follow_the_last_block() {
        let index = lay_out(vec![plan("query", Layout::Panels, "f32", 512, 1024)]).unwrap();
        let end = index.blocks.last().map(|block| block.offset + block.bytes).unwrap();
        assert_eq!(end % FILE_ALIGN, 0, "the case is the one of the story");
        assert_eq!(index.file_bytes, end + FILE_ALIGN);
        assert_eq!(parse(&index), Ok(index.clone()));
        let older = LayerIndex { file_bytes: end, ..index };
        assert_eq!(parse(&older), Ok(older), "files without the tail stay readable");
    }

    #[test]
    fn blocks_have_the_bytes_that_the_format_says() {
        let index = index();
        let panel = 16 * 1024 * 4;
        let bytes: Vec<u64> = index.blocks.iter().map(|block| block.bytes).collect();
        let row = 2 * (2 + 32) + ROW_CHECKSUM_BYTES;
        let expected =
            [BLOCK_BYTES, BLOCK_BYTES, 6 * panel, 70 * row, 3 * (2 + 16), 5 * (3 * 8 + 8)];
        assert_eq!(bytes, expected);
        assert_eq!(index.blocks[2].row_start, 512);
        assert_eq!(index.blocks[2].row_count, 88);
        assert_eq!(index.tensors[0].panel_bytes() as u64, panel);
        assert_eq!(index.tensors[1].row_stride() as u64, row);
        assert_eq!(index.tensor("words", Layout::Rows).map(|(number, _)| number), Some(1));
        assert_eq!(index.tensor("words", Layout::Flat), None);
    }

    /// Changes one field of the sample and expects an error that has all of `words`.
    fn check(change: impl Fn(&mut LayerIndex), words: &[&str]) {
        let mut index = index();
        change(&mut index);
        let error = parse(&index).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error:?} lacks one of {words:?}");
    }

    #[test]
    fn lies_are_named_with_field_and_offset() {
        check(|i| i.tensors[0].rows = 601, &["rows and depth at byte", "601 x 1024"]);
        check(|i| i.tensors[0].rows = u64::MAX, &["row count at byte", "expected 1 to"]);
        check(|i| i.tensors[0].rows = 0, &["row count at byte", "is 0"]);
        check(|i| i.tensors[1].depth = 0, &["depth at byte", "is 0"]);
        check(|i| i.tensors[1].depth = 1 << 40, &["depth at byte"]);
        check(|i| i.tensors[1].dims = vec![u64::MAX, u64::MAX], &["dimension at byte"]);
        check(|i| i.tensors[1].dims = vec![1 << 40, 1 << 40], &["rows and depth", "shape"]);
        check(|i| i.tensors[1].dims = vec![1; 17], &["rank at byte", "17"]);
        check(|i| i.tensors[1].codec = 77, &["codec code at byte", "77 is not known"]);
        check(|i| i.tensors[0].codec = codec::RAW, &["of panels cannot be raw"]);
        check(|i| i.tensors[1].dtype = Dtype::Int64, &["of dtype INT64 can only be raw"]);
        check(|i| i.tensors[2].layout = Layout::Rows, &["length of a block at byte"]);
        check(|i| i.tensors[1].name = String::new(), &["length of a tensor name at byte"]);
        check(|i| i.tensors[1].name = "n".repeat(5000), &["length of a tensor name", "5000"]);
        check(|i| i.tensors[1].first_block = 2, &["first block at byte", "is 2, expected 3"]);
        check(|i| i.tensors[0].block_count = 2, &["first block at byte", "is 3, expected 2"]);
        check(|i| i.tensors[3].block_count = usize::MAX, &["block count of a tensor"]);
        check(|i| i.blocks[1].tensor = 1, &["tensor of a block at byte", "is 1, expected 0"]);
        check(|i| i.blocks[1].row_start = 0, &["row start of a block", "is 0, expected 256"]);
        check(|i| i.blocks[1].row_count = 255, &["row count of a block", "not a multiple of 16"]);
        check(|i| i.blocks[2].row_count = 87, &["row count of a block", "87"]);
        check(|i| i.blocks[2].row_count = u64::MAX, &["row count of a block"]);
        check(|i| i.blocks[2].row_count = 80, &["length of a block"]);
        check(|i| i.blocks[0].depth_start = 1, &["depth start of a block"]);
        check(|i| i.blocks[0].depth_count = 512, &["depth count of a block"]);
        check(|i| i.blocks[0].offset = 0, &["offset of a block", "is 0"]);
        check(|i| i.blocks[1].offset += 8, &["offset of a block"]);
        check(|i| i.blocks[1].offset = i.blocks[0].offset, &["offset of a block"]);
        check(|i| i.blocks[5].offset = 1 << 40, &["offset of a block"]);
        check(|i| i.blocks[5].offset = 1 << 63, &["offset of a block"]);
        check(|i| i.blocks[1].bytes -= 1, &["length of a block"]);
        check(|i| i.blocks[1].bytes = u64::MAX, &["length of a block"]);
        check(|i| i.file_bytes += 1 << 20, &["length of the file", "blocks end at"]);
        check(|i| i.file_bytes -= 4090, &["length of a block", "beyond the file's end"]);
        check(|i| i.file_bytes = 1 << 60, &["length of the file", "over the limit"]);
    }

    #[test]
    fn a_tensor_is_there_once_in_a_layout() {
        check(
            |i| {
                i.tensors[3].name = "words".to_owned();
            },
            &["tensor name at byte", "is there twice"],
        );
    }

    /// Changes bytes of the sample's head and expects an error that has all of `words`.
    fn check_bytes(change: impl Fn(&mut Vec<u8>), words: &[&str]) {
        let index = index();
        let mut head = index.to_bytes();
        change(&mut head);
        let error = LayerIndex::parse(&head, index.file_bytes).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error:?} lacks one of {words:?}");
    }

    fn seal(head: &mut [u8]) {
        let checksum = xxh3_64(&head[64..]);
        head[32..40].copy_from_slice(&checksum.to_le_bytes());
    }

    fn put(head: &mut [u8], at: usize, value: u64) {
        head[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn damaged_headers_are_named() {
        check_bytes(|head| head.truncate(10), &["header at byte 0", "10 are left"]);
        check_bytes(|head| head[0] ^= 1, &["magic"]);
        check_bytes(|head| put(head, 8, 2), &["version at byte 8 is 2", "reads 1"]);
        check_bytes(|head| put(head, 16, 5), &["length of the file at byte 16 is 5"]);
        check_bytes(|head| put(head, 24, 5), &["length of the index at byte 24 is 5"]);
        check_bytes(|head| put(head, 24, u64::MAX), &["length of the index", "over the limit"]);
        check_bytes(|head| put(head, 32, 5), &["checksum of the index at byte 32"]);
        check_bytes(|head| head[48] = 1, &["reserved field at byte 48"]);
        check_bytes(|head| *head.last_mut().unwrap() ^= 1, &["checksum of the index"]);
        check_bytes(|head| head.truncate(100), &["length of the index"]);
        check_bytes(|head| head.push(0), &["length of the index"]);
    }

    #[test]
    fn counts_are_checked_before_memory_is_taken() {
        let change = |at: usize| {
            move |head: &mut Vec<u8>| {
                put(head, at, u64::MAX / 80);
                seal(head);
            }
        };
        check_bytes(change(64), &["tensor count at byte 64", "there is room for"]);
        check_bytes(change(72), &["block count at byte 72", "there is room for"]);
        let grow = |head: &mut Vec<u8>| {
            head.extend([0; 8]);
            let bytes = head.len() as u64 - 64;
            put(head, 24, bytes);
            seal(head);
        };
        check_bytes(grow, &["index at byte", "8 bytes too many"]);
        let pad = |head: &mut Vec<u8>| {
            head[95] = 1;
            seal(head);
        };
        check_bytes(pad, &["padding of a tensor name at byte 88"]);
        let name = |head: &mut Vec<u8>| {
            head[88] = 0xff;
            seal(head);
        };
        check_bytes(name, &["tensor name at byte 88 is not UTF-8"]);
    }

    /// What every parsed index promises, checked without the parser's code.
    fn assert_sound(index: &LayerIndex, head_bytes: u64) {
        let mut end = head_bytes;
        for (number, tensor) in index.tensors.iter().enumerate() {
            let blocks = &index.blocks[tensor.blocks()];
            assert_eq!(blocks.iter().map(|block| block.row_count).sum::<u64>(), tensor.rows);
            let mut row = 0;
            for block in blocks {
                assert_eq!((block.tensor, block.row_start), (number, row));
                assert_eq!((block.depth_start, block.depth_count), (0, tensor.depth));
                assert!(block.offset >= end && block.offset % BLOCK_ALIGN == 0);
                row += block.row_count;
                end = block.offset + block.bytes;
                let expected = match tensor.layout {
                    Layout::Panels | Layout::ColumnPanels => {
                        block.row_count.div_ceil(16) * tensor.panel_bytes() as u64
                    }
                    Layout::Rows => block.row_count * tensor.row_stride() as u64,
                    Layout::Flat => continue,
                };
                assert_eq!(block.bytes, expected);
            }
        }
        assert!(end <= index.file_bytes);
        assert_eq!(index.tensors.iter().map(|t| t.block_count).sum::<usize>(), index.blocks.len());
    }

    fn tensor_plan(number: usize) -> impl Strategy<Value = TensorPlan> {
        let layout = prop::sample::select(Layout::ALL.to_vec());
        let codec = prop::sample::select(vec!["f32", "f16", "bf16", "q8", "q4", "raw"]);
        (layout, codec, 1u64..5000, 1u64..3000).prop_map(move |(layout, codec, rows, depth)| {
            let depth = if layout == Layout::Flat { 1 } else { depth };
            let is_panels = layout.is_panels();
            let codec = if is_panels && codec == "raw" { "f32" } else { codec };
            plan(&format!("tensor.{number}"), layout, codec, rows, depth)
        })
    }

    fn any_index() -> impl Strategy<Value = LayerIndex> {
        let plans = (0..5usize).prop_map(|count| (0..count).map(tensor_plan).collect::<Vec<_>>());
        plans.prop_flat_map(|plans| plans).prop_map(|plans| lay_out(plans).unwrap())
    }

    fn odd_value() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            0u64..100,
            (0u32..64).prop_map(|shift| 1 << shift),
            (0u64..100).prop_map(|below| u64::MAX - below),
            (0u64..40).prop_map(|blocks| blocks * BLOCK_ALIGN),
        ]
    }

    proptest! {
        #[test]
        fn any_layout_is_parsed_back(index in any_index()) {
            assert_sound(&index, index.to_bytes().len() as u64);
            let end = index.blocks.last().map_or(0, |block| block.offset + block.bytes);
            prop_assert!(index.file_bytes >= end + TAIL_BYTES);
            prop_assert_eq!(parse(&index), Ok(index));
        }

        #[test]
        fn mutated_indexes_are_refused_or_sound(
            index in any_index(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4),
        ) {
            let mut head = index.to_bytes();
            for (place, value) in changes {
                let field = 2 + place.index(head.len() / 8 - 2);
                if field != 3 {
                    put(&mut head, field * 8, value);
                }
            }
            seal(&mut head);
            for file_bytes in [index.file_bytes, u64::MAX, 0] {
                if let Ok(parsed) = LayerIndex::parse(&head, file_bytes) {
                    assert_sound(&parsed, head.len() as u64);
                }
            }
        }

        #[test]
        fn any_bytes_are_refused_or_sound(mut head in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Some(prefix) = head.first_chunk_mut::<64>() {
                prefix[..8].copy_from_slice(&MAGIC);
                put(prefix, 8, VERSION);
                put(prefix, 16, 1 << 20);
                prefix[40..].fill(0);
                let index_bytes = head.len() as u64 - 64;
                put(&mut head, 24, index_bytes);
                seal(&mut head);
            }
            if let Ok(parsed) = LayerIndex::parse(&head, 1 << 20) {
                assert_sound(&parsed, head.len() as u64);
            }
        }
    }
}
