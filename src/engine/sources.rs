//! A model's files, and the ways in which its blocks come from them.

use super::config::DiskKind;
use crate::graph::READ_AHEAD_BYTES;
use crate::plan::Way;
use crate::stream::{
    DirectSource, FaultySource, MappedSource, ReadSource, Slots, StreamError, ThrottledSource,
    WeightSource,
};
use crate::sys::direct::DirectFile;
use crate::sys::map;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// The sources of one model. A way is opened when it is first asked for.
pub(super) struct Sources {
    disk: DiskKind,
    files: Arc<MappedSource>,
    slots: Arc<Slots>,
    mapped: Arc<dyn WeightSource>,
    /// None where the file system has no direct reads.
    direct: OnceLock<Option<Arc<dyn WeightSource>>>,
}

impl Sources {
    /// Maps the files; nothing is read.
    pub fn open(
        files: Vec<(PathBuf, File)>,
        disk: DiskKind,
        slots: &Arc<Slots>,
    ) -> Result<Sources, StreamError> {
        let slots = Arc::clone(slots);
        let files = Arc::new(MappedSource::new(files, READ_AHEAD_BYTES, Arc::clone(&slots))?);
        let mapped: Arc<dyn WeightSource> = if map::populate_supported() {
            Arc::clone(&files) as _
        } else {
            Arc::new(ReadSource::new(Arc::clone(&files)))
        };
        let mapped = on(disk, mapped);
        Ok(Sources { disk, files, slots, mapped, direct: OnceLock::new() })
    }

    /// What brings blocks in; mapped where direct reads are asked for and there are none.
    pub fn by(&self, way: Way) -> &Arc<dyn WeightSource> {
        match way {
            Way::Mapped => &self.mapped,
            Way::Direct => self.direct().unwrap_or(&self.mapped),
        }
    }

    /// What reads past the page cache, where the file system lets us.
    pub fn direct(&self) -> Option<&Arc<dyn WeightSource>> {
        self.direct.get_or_init(|| self.open_direct()).as_ref()
    }

    /// What reads rows of tables.
    pub fn tables(&self) -> &Arc<dyn WeightSource> {
        &self.mapped
    }

    /// None where one of the files refuses.
    fn open_direct(&self) -> Option<Arc<dyn WeightSource>> {
        let reopen = |(path, file): (&PathBuf, &File)| {
            DirectFile::reopen(file).inspect_err(|error| {
                let path = path.display();
                log::info!("{path}: no direct reads here ({error}): the file is mapped instead");
            })
        };
        let files = self.files.files().map(reopen).collect::<Result<_, _>>().ok()?;
        let (rows, slots) = (Arc::clone(&self.files), Arc::clone(&self.slots));
        Some(on(self.disk, Arc::new(DirectSource::new(files, rows, READ_AHEAD_BYTES, slots))))
    }
}

/// A source as it is on this disk.
fn on(disk: DiskKind, source: Arc<dyn WeightSource>) -> Arc<dyn WeightSource> {
    match disk {
        DiskKind::Board => source,
        DiskKind::Throttled { bytes_per_s } => Arc::new(ThrottledSource::new(source, bytes_per_s)),
        DiskKind::Faulty(faults) => Arc::new(FaultySource::new(source, faults)),
    }
}
