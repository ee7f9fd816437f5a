//! A loss of power, imitated: of what was not synced any part may be gone, a name without its file
//! and a file without its bytes. Killing a process shows none of it, since the page cache stays.

use super::layer_file::{LayerWriter, Layout, TensorPlan};
use super::manifest::{
    Checksum, FORMAT, FileEntry, Layer, LayerEntry, MANIFEST_NAME, Manifest, Port, Provenance,
    Weight,
};
use super::{Dtype, Store, install, staging};
use crate::codec;
use crate::sys::file::{self, BEFORE_SYNC};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// How often each moment is tried, with another part surviving.
const SEEDS: u64 = 12;

/// What folders and files hold, by inode.
#[derive(Default)]
struct Content {
    folders: HashMap<u64, BTreeMap<OsString, u64>>,
    files: HashMap<u64, Vec<u8>>,
}

impl Content {
    /// Everything below `root`; what is open in `held` keeps its inode's number for itself.
    fn below(root: &Path, held: &mut Vec<File>) -> Content {
        let mut content = Content::default();
        content.look(root, held);
        content
    }

    fn look(&mut self, path: &Path, held: &mut Vec<File>) -> u64 {
        held.push(File::open(path).unwrap());
        let metadata = fs::symlink_metadata(path).unwrap();
        if metadata.is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            let entries = entries.map(|entry| (entry.file_name(), self.look(&entry.path(), held)));
            let entries = entries.collect();
            self.folders.insert(metadata.ino(), entries);
        } else {
            self.files.insert(metadata.ino(), fs::read(path).unwrap());
        }
        metadata.ino()
    }
}

/// What decides what survives.
struct Luck(u64);

impl Luck {
    /// Whether a change that was not synced is on the disk: none with the first seed, all with the
    /// second, all names and no bytes with the third.
    fn keeps(&mut self, is_name: bool) -> bool {
        match self.0 {
            0 => false,
            1 => true,
            2 => is_name,
            _ => {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1 << 32 | 1);
                self.0 >> 62 != 0
            }
        }
    }
}

/// A disk of which is known what is synced.
struct Disk {
    root: PathBuf,
    synced: Content,
    held: Vec<File>,
}

impl Disk {
    /// All of `root` is on the disk.
    fn new(root: &Path) -> Disk {
        let mut held = vec![];
        let synced = Content::below(root, &mut held);
        Disk { root: root.to_owned(), synced, held }
    }

    /// Calls `check` with what may be left, were the power lost now.
    fn lose_power(&mut self, check: &dyn Fn(&Path)) {
        let now = Content::below(&self.root, &mut self.held);
        for seed in 0..SEEDS {
            let place = tempfile::tempdir().unwrap();
            let left = place.path().join("left");
            let root = fs::metadata(&self.root).unwrap().ino();
            self.restore(&now, root, &left, &mut Luck(seed));
            check(&left);
        }
    }

    fn restore(&self, now: &Content, inode: u64, to: &Path, luck: &mut Luck) {
        let Content { folders, files } = &self.synced;
        if folders.contains_key(&inode) || now.folders.contains_key(&inode) {
            fs::create_dir(to).unwrap();
            let none = BTreeMap::new();
            let old = folders.get(&inode).unwrap_or(&none);
            let new = now.folders.get(&inode).unwrap_or(&none);
            let names: BTreeSet<&OsString> = old.keys().chain(new.keys()).collect();
            for name in names {
                let (old, new) = (old.get(name), new.get(name));
                let left = if old == new || luck.keeps(true) { new } else { old };
                if let Some(inode) = left {
                    self.restore(now, *inode, &to.join(name), luck);
                }
            }
            return;
        }
        let (old, new) = (files.get(&inode), now.files.get(&inode));
        let left = if old == new || luck.keeps(false) { new.or(old) } else { old };
        fs::write(to, left.map_or(&[][..], Vec::as_slice)).unwrap();
    }

    /// `path` is on the disk as it is now.
    fn sync(&mut self, path: &Path) {
        let inode = fs::metadata(path).unwrap().ino();
        let Content { mut folders, mut files } = Content::below(path, &mut self.held);
        if let Some(entries) = folders.remove(&inode) {
            self.synced.folders.insert(inode, entries);
        }
        if let Some(bytes) = files.remove(&inode) {
            self.synced.files.insert(inode, bytes);
        }
    }
}

/// Does `work` and loses power at each moment of it: `during` checks what is left then, `after` what
/// is left when the work has said that it is done.
fn lose_power_in(
    root: &Path,
    work: impl FnOnce(),
    during: impl Fn(&Path) + 'static,
    after: impl Fn(&Path),
) {
    let disk = std::rc::Rc::new(std::cell::RefCell::new(Disk::new(root)));
    let watched = std::rc::Rc::clone(&disk);
    let root = root.to_owned();
    BEFORE_SYNC.set(Some(Box::new(move |path: &Path| {
        if path.starts_with(&root) {
            watched.borrow_mut().lose_power(&during);
            watched.borrow_mut().sync(path);
        }
    })));
    work();
    BEFORE_SYNC.set(None);
    disk.borrow_mut().lose_power(&after);
}

/// Installs version `version`, whose files tell of `fill`.
fn install_version(root: &Path, version: &str, fill: u8) {
    let store = root.join("store");
    let folder = staging(&store).unwrap();
    let entry = |name: &str, bytes: &[u8]| {
        fs::write(folder.path().join(name), bytes).unwrap();
        let checksum = Checksum(xxh3_64(bytes));
        FileEntry { path: name.to_string(), bytes: bytes.len() as u64, checksum }
    };
    let graph = entry("graph.onnx", &[fill; 100]);
    let weight = Weight { name: "w".to_string(), dtype: Dtype::Fp32, shape: vec![64] };
    let plan = TensorPlan {
        name: "w".to_string(),
        layout: Layout::Flat,
        codec: codec::by_name("f32").unwrap().code(),
        dtype: Dtype::Fp32,
        dims: vec![64],
        rows: 64,
        depth: 1,
    };
    fs::create_dir(folder.path().join("layers")).unwrap();
    let path = "layers/000-l.f32.layer".to_string();
    let writer = LayerWriter::create(&folder.path().join(&path), vec![plan]).unwrap();
    writer.write_block(0, &f32::from(fill).to_le_bytes().repeat(64)).unwrap();
    let summary = writer.finish().unwrap();
    let file = LayerEntry {
        path,
        bytes: summary.bytes,
        index_checksum: summary.index_checksum,
        relative_error: 0.0,
        max_error: 0.0,
    };
    let manifest = Manifest {
        format: FORMAT,
        model: "m".to_string(),
        version: version.to_string(),
        inputs: vec![],
        outputs: vec![Port { name: "y".to_string(), dtype: Dtype::Fp32, shape: vec![] }],
        batch: None,
        graph,
        loading_bytes: None,
        needs: None,
        weights: vec![weight],
        layers: vec![Layer { name: "l".to_string(), files: [("f32".to_string(), file)].into() }],
        variants: vec!["f32".to_string()],
        tokenizer: None,
        task: None,
        text: None,
        precision: None,
        generation: None,
        provenance: Provenance {
            source: "test".to_string(),
            source_bytes: 0,
            producer: "test".to_string(),
            tool: "test".to_string(),
            created_s: 1,
        },
    };
    entry(MANIFEST_NAME, &serde_json::to_vec(&manifest).unwrap());
    install(&store, folder.path(), "m", version, true).unwrap();
}

/// What the files of the served version tell of, all of them; none where nothing is served. Whatever
/// else is left, another build can begin.
fn served(root: &Path) -> Option<u8> {
    let store = root.join("store");
    if !store.join("m/current").exists() {
        return None;
    }
    let dir = Store::open(&store).unwrap().current("m").unwrap();
    assert_eq!(dir.verify(|_| ()), []);
    let graph = dir.read_file(&dir.manifest.graph).unwrap();
    drop(staging(&store).unwrap());
    Some(graph[0])
}

/// The folder of a new store was not synced by anybody: with it went the version that was said to be
/// installed.
#[test]
fn a_first_install_is_lost_whole_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let work = || install_version(root.path(), "1", 1);
    let during = |left: &Path| assert!(matches!(served(left), None | Some(1)));
    lose_power_in(root.path(), work, during, |left| assert_eq!(served(left), Some(1)));
}

#[test]
fn the_old_version_is_served_or_the_new() {
    let root = tempfile::tempdir().unwrap();
    install_version(root.path(), "1", 1);
    // One of another name, and one of the same.
    for (version, old, new) in [("2", 1, 2), ("2", 2, 3)] {
        let work = || install_version(root.path(), version, new);
        let during = move |left: &Path| {
            let served = served(left);
            assert!(served == Some(old) || served == Some(new), "{served:?}");
        };
        lose_power_in(root.path(), work, during, |left| assert_eq!(served(left), Some(new)));
    }
    let store = Store::open(&root.path().join("store")).unwrap();
    let work = || drop(store.roll_back("m").unwrap());
    let during = |left: &Path| assert!(matches!(served(left), Some(1 | 3)));
    lose_power_in(root.path(), work, during, |left| assert_eq!(served(left), Some(1)));
    let work = || drop(store.remove("m", "2").unwrap());
    let during = |left: &Path| assert_eq!(served(left), Some(1));
    lose_power_in(root.path(), work, during, |left| {
        assert_eq!(served(left), Some(1));
        assert!(!left.join("store/m/2").exists(), "what was removed is gone");
    });
}

#[test]
fn a_file_is_replaced_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = |root: &Path| root.join("profile");
    fs::write(path(root.path()), "old").unwrap();
    let work = || file::replace(&path(root.path()), &root.path().join("next"), b"new").unwrap();
    let check = move |left: &Path| {
        let text = fs::read_to_string(path(left)).unwrap();
        assert!(text == "old" || text == "new", "{text:?}");
    };
    lose_power_in(root.path(), work, check, check);
}
