//! The disk below a folder: what it is, and how fast it reads.

use super::board::{below, line, text};
use super::map::{MappedFile, populate_supported, start_writeback};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is read at once, as long as a block of the tape.
const PIECE_BYTES: usize = 1 << 20;

/// What is read in all: enough to be past a fast disk's first requests.
const READ_BYTES: usize = 64 * PIECE_BYTES;

/// Fewer bytes tell nothing.
const MIN_BYTES: usize = 4 * PIECE_BYTES;

/// How long writing and reading may take, each; begun pieces are finished.
const TIME: Duration = Duration::from_millis(900);

/// Limits of the search for files that are large enough.
const MAX_DEPTH: usize = 4;
const MAX_ENTRIES: usize = 10_000;

/// The file system of a folder and what it lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Type of the file system, such as `ext4`.
    pub file_system: String,
    /// The block device, such as `mmcblk0`; none for a file system without one.
    pub device: Option<Device>,
}

/// A whole block device, by its folder in /sys/block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name.
    pub name: String,
    /// The maker's name; `SD` or `MMC` for those.
    pub model: Option<String>,
    /// Whether it has to seek.
    pub is_rotational: bool,
    /// What the kernel reads ahead, in KiB.
    pub read_ahead_kib: Option<u64>,
}

impl Disk {
    /// The disk of `folder`, an absolute path without links on the machine whose /proc and /sys
    /// are below `root`; `None` where the kernel does not tell.
    pub fn of(root: &Path, folder: &Path) -> Option<Disk> {
        let mounts = text(&root.join("proc/self/mountinfo"));
        let mounts = mounts.lines().filter_map(Mount::parse);
        // Of those at one place the last hides the others.
        let mount = mounts.filter(|mount| folder.starts_with(&mount.point)).enumerate();
        let mount = mount.max_by_key(|(at, mount)| (mount.point.components().count(), *at))?.1;
        let device = mount.device(root).map(|folder| Device::read(&folder));
        Some(Disk { file_system: mount.file_system, device })
    }

    /// The disk below a folder here, whose path may have links.
    pub fn below(folder: &Path) -> Option<Disk> {
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Disk::of(Path::new("/"), &folder)
    }

    /// Whether what lies there is in memory.
    pub fn is_memory(&self) -> bool {
        ["tmpfs", "ramfs", "rootfs"].contains(&self.file_system.as_str())
            || self.device.as_ref().is_some_and(|device| device.name.starts_with("zram"))
    }
}

/// What a device was asked to read since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub count: u64,
    pub bytes: u64,
}

/// Bytes of a sector in the kernel's counts, whatever the device's own are.
const SECTOR_BYTES: u64 = 512;

impl Device {
    /// Requests that it has answered, by stat in its folder of /sys/block; `None` where the kernel
    /// does not tell.
    pub fn requests(&self, root: &Path) -> Option<Requests> {
        let text = line(&root.join("sys/block").join(&self.name).join("stat"))?;
        let mut fields = text.split_whitespace().map(str::parse);
        // What was merged lies between.
        let (count, sectors) = (fields.next()?.ok()?, fields.nth(1)?.ok()?);
        Some(Requests { count, bytes: SECTOR_BYTES.checked_mul(sectors)? })
    }

    fn read(folder: &Path) -> Device {
        let kind =
            || line(&folder.join("device/type")).filter(|kind| kind == "SD" || kind == "MMC");
        Device {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            model: line(&folder.join("device/model")).or_else(kind),
            is_rotational: line(&folder.join("queue/rotational")).as_deref() == Some("1"),
            read_ahead_kib: line(&folder.join("queue/read_ahead_kb"))
                .and_then(|kib| kib.parse().ok()),
        }
    }
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    number: String,
    point: PathBuf,
    file_system: String,
    source: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Mount> {
        let (before, after) = line.split_once(" - ")?;
        let (before, after): (Vec<_>, Vec<_>) =
            (before.split(' ').collect(), after.split(' ').collect());
        Some(Mount {
            number: (*before.get(2)?).to_owned(),
            point: before.get(4)?.replace("\\040", " ").into(),
            file_system: (*after.first()?).to_owned(),
            source: (*after.get(1)?).to_owned(),
        })
    }

    /// The folder of the whole device in /sys. File systems of many devices have a number of
    /// their own and name one of them as their source.
    fn device(&self, root: &Path) -> Option<PathBuf> {
        let by_number = below(root, "/sys/dev/block".as_ref()).join(&self.number);
        let name = self.source.strip_prefix("/dev/").unwrap_or("none");
        let by_name = below(root, "/sys/class/block".as_ref()).join(name);
        let folder = fs::canonicalize(by_number).or_else(|_| fs::canonicalize(by_name)).ok()?;
        match folder.join("partition").exists() {
            true => folder.parent().map(Path::to_owned),
            false => Some(folder),
        }
    }
}

/// How fast a disk was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadSpeed {
    /// Bytes that were read.
    pub bytes: u64,
    /// How long it took.
    pub time: Duration,
}

impl ReadSpeed {
    /// Megabytes a second.
    pub fn mb_s(self) -> f64 {
        self.bytes as f64 / 1e6 / self.time.as_secs_f64()
    }
}

/// Reads what lies in `folder` with so many readers, as the loaders do, and nothing that is in
/// memory already. Where there is too little of that it writes a file of 64 MiB at most and
/// removes it again. Takes two seconds or so.
///
/// # Errors
///
/// The system's, where there is too little to read and no file can be written.
pub fn read_speed(folder: &Path, readers: usize) -> io::Result<ReadSpeed> {
    let mut pieces = cold_pieces(found_files(folder))?;
    if pieces.len() * PIECE_BYTES < MIN_BYTES {
        pieces = cold_pieces(vec![written_file(folder)?])?;
    }
    if pieces.len() * PIECE_BYTES < MIN_BYTES {
        return Err(io::Error::other("what was written there does not leave the memory"));
    }
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let read = || -> io::Result<()> {
        let mut buffer = vec![];
        while start.elapsed() < TIME
            && let Some((file, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let range = *at..*at + PIECE_BYTES;
            if populate_supported() {
                file.populate(range.clone())?;
            } else {
                buffer.resize(PIECE_BYTES, 0);
                file.read_at(&mut buffer, *at as u64)?;
            }
            file.release(range);
            bytes.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers.max(1)).map(|_| scope.spawn(read)).collect();
        readers.into_iter().try_for_each(|r| r.join().expect("a reader does not panic"))
    })?;
    Ok(ReadSpeed { bytes: bytes.into_inner(), time: start.elapsed() })
}

/// The pieces of `files`, as many as are read, which the kernel does not hold once it was asked
/// to drop them.
fn cold_pieces(files: Vec<File>) -> io::Result<Vec<(Arc<MappedFile>, usize)>> {
    let mut pieces = vec![];
    for file in files {
        let file = Arc::new(MappedFile::new(file)?);
        file.drop_cached(0..file.len() as u64);
        let starts = (0..file.len() / PIECE_BYTES).map(|index| index * PIECE_BYTES);
        let cold = starts.filter(|at| file.resident_pages(*at..at + PIECE_BYTES) == 0);
        pieces.extend(cold.map(|at| (Arc::clone(&file), at)));
    }
    pieces.truncate(READ_BYTES / PIECE_BYTES);
    Ok(pieces)
}

/// Files below `folder` that may be read and are larger than a piece, until they suffice. Links
/// are not followed.
fn found_files(folder: &Path) -> Vec<File> {
    let (mut files, mut found_bytes, mut seen) = (vec![], 0, 0);
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if found_bytes >= READ_BYTES as u64 || seen > MAX_ENTRIES {
                return files;
            }
            let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
            if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file()
                && let Ok(bytes) = entry.metadata().map(|metadata| metadata.len())
                && bytes >= PIECE_BYTES as u64
                && let Ok(file) = File::open(path)
            {
                found_bytes += bytes;
                files.push(file);
            }
        }
    }
    files
}

/// A file of noise, which file systems that compress cannot make smaller. It has lost its name
/// already: whatever happens, nothing of it stays.
fn written_file(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!(".hermes-doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    let (start, mut written, mut state) = (Instant::now(), 0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut piece = vec![0; PIECE_BYTES];
    while written < MIN_BYTES || (written < READ_BYTES && start.elapsed() < TIME) {
        for word in piece.chunks_exact_mut(8) {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&piece)?;
        written += PIECE_BYTES;
        if written.is_multiple_of(MIN_BYTES) {
            start_writeback(&file);
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine with these mounts and an SD card of two partitions, 179:1 and 179:2.
    fn disk_of(mounts: &str, folder: &str) -> Option<Disk> {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let card = root.join("sys/devices/mmc/block/mmcblk0");
        for (name, content) in [
            ("device/type", "SD\n"),
            ("queue/rotational", "0\n"),
            ("queue/read_ahead_kb", "128\n"),
            ("mmcblk0p2/partition", "2\n"),
        ] {
            fs::create_dir_all(card.join(name).parent().unwrap()).unwrap();
            fs::write(card.join(name), content).unwrap();
        }
        for folder in ["proc/self", "sys/dev/block", "sys/class/block"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink(card.join("mmcblk0p2"), root.join("sys/dev/block/179:2")).unwrap();
        symlink(card.join("mmcblk0p2"), root.join("sys/class/block/mmcblk0p2")).unwrap();
        fs::write(root.join("proc/self/mountinfo"), mounts).unwrap();
        Disk::of(root, folder.as_ref())
    }

    #[test]
    fn requests_are_counted_by_the_kernel() {
        let check = |stat: &str, expected| {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join("sys/block/vda");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("stat"), stat).unwrap();
            let device = Device { name: "vda".to_owned(), ..Device::default() };
            assert_eq!(device.requests(root.path()), expected, "{stat}");
        };
        check("   7   2   24   5 1 1 1 1\n", Some(Requests { count: 7, bytes: 24 * 512 }));
        check("7 2", None);
        check("7 2 x", None);
        check(&format!("7 2 {}", u64::MAX), None);
        assert_eq!(Device::default().requests("/nowhere".as_ref()), None);
    }

    #[test]
    fn the_disk_is_that_of_the_innermost_mount() {
        let mounts = "22 1 179:2 / / rw - ext4 /dev/root rw\n\
                      23 22 0:20 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      24 22 0:31 /@ /srv/my\\040store rw - btrfs /dev/mmcblk0p2 rw\n\
                      25 22 0:32 / /mnt rw - ext4 /dev/sdz rw\n\
                      26 22 0:33 / /mnt rw - nfs4 host:/export rw\n";
        let card = Device {
            name: "mmcblk0".to_owned(),
            model: Some("SD".to_owned()),
            is_rotational: false,
            read_ahead_kib: Some(128),
        };
        let check = |folder, file_system: &str, device| {
            let expected = Disk { file_system: file_system.to_owned(), device };
            assert_eq!(disk_of(mounts, folder), Some(expected), "{folder}");
        };
        check("/var/lib/hermes", "ext4", Some(card.clone()));
        check("/tmpfile", "ext4", Some(card.clone()));
        check("/srv/my store/hermes", "btrfs", Some(card));
        check("/tmp/a/b", "tmpfs", None);
        check("/mnt/a", "nfs4", None);
        assert!(disk_of(mounts, "/tmp").unwrap().is_memory());
        assert_eq!(disk_of("nonsense\n1 2 - \n", "/"), None);
    }

    #[test]
    fn what_is_written_to_be_read_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = written_file(folder.path()).unwrap();
        assert!(file.metadata().unwrap().len() >= MIN_BYTES as u64);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(written_file(&folder.path().join("none")).is_err());
    }

    #[test]
    fn large_files_are_found_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: u64| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_len(bytes).unwrap();
        };
        file("m/1/layers/a.layer", 2 << 20);
        file("m/1/graph.onnx", 1 << 10);
        symlink(folder.path().join("m"), folder.path().join("link")).unwrap();
        let found = found_files(folder.path());
        assert_eq!(found.iter().map(|f| f.metadata().unwrap().len()).sum::<u64>(), 2 << 20);
        file("huge", 1 << 30);
        assert!(found_files(folder.path()).len() <= 2, "no more than needed");
    }
}
