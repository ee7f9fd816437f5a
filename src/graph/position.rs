//! Where an index leads.

/// The position that an index means on an axis; negative ones count from the end.
pub fn position(index: i64, length: usize) -> Result<usize, IndexOutOfRange> {
    let position = if index < 0 { index.saturating_add(length as i64) } else { index };
    match usize::try_from(position) {
        Ok(position) if position < length => Ok(position),
        _ => Err(IndexOutOfRange { index, rows: length }),
    }
}

/// An index that no row of a table answers to: the client's mistake, not the model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexOutOfRange {
    pub index: i64,
    pub rows: usize,
}

impl std::fmt::Display for IndexOutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let IndexOutOfRange { index, rows } = self;
        write!(f, "index {index} is outside a table of {rows} rows")?;
        rows.checked_sub(1).map_or(Ok(()), |last| write!(f, " (0 to {last})"))
    }
}

impl std::error::Error for IndexOutOfRange {}
