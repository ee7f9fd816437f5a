//! What the memory cgroup charges this process with, page cache included, and the limits on it.
//!
//! Limits nest: each cgroup is charged with what those below it hold, so that the smallest limit
//! on the way up is the one that holds.

use std::fs;
use std::path::{Path, PathBuf};

/// A memory cgroup this process is in, version 1 or 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    folder: PathBuf,
    /// Where its hierarchy is mounted.
    top: PathBuf,
    files: FigureNames,
}

/// Names of the figures in one version of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FigureNames {
    current: &'static str,
    peak: &'static str,
    /// Limits: one that is not passed, and one above which everybody is slowed down.
    limits: &'static [&'static str],
    events: &'static str,
    /// Fields of memory.stat: page cache in all, and what of it is of no use to reclaim.
    cache: &'static str,
    in_use: [&'static str; 2],
}

const V1: FigureNames = FigureNames {
    current: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
    limits: &["memory.limit_in_bytes"],
    events: "memory.failcnt",
    cache: "total_cache",
    in_use: ["total_mapped_file", "total_shmem"],
};
const V2: FigureNames = FigureNames {
    current: "memory.current",
    peak: "memory.peak",
    limits: &["memory.max", "memory.high"],
    events: "memory.events",
    cache: "file",
    in_use: ["file_mapped", "shmem"],
};

/// How full a memory cgroup with a limit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Bytes charged, without page cache that nothing maps.
    pub held_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// Times the charge came up against a limit.
    pub hits: u64,
}

impl MemoryCgroup {
    /// The cgroup of this process, from /proc/self/cgroup and mountinfo; `None` where the kernel has
    /// none, as on a stock Raspberry Pi. Whether it may be used is said by
    /// [`Capabilities`](super::capabilities::Capabilities).
    pub(super) fn find() -> Option<MemoryCgroup> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&groups, &mounts).into_iter().find_map(MemoryCgroup::counting)
    }

    /// The nearest on the way up that counts: in version 2 only those do to which the one above
    /// hands the controller on.
    fn counting(self) -> Option<MemoryCgroup> {
        let mut levels = if self.folder.is_dir() { self.levels() } else { vec![] }.into_iter();
        levels.find(|group| group.folder.join(group.files.current).exists())
    }

    /// This one, then those above it that are charged with what it holds.
    fn levels(&self) -> Vec<MemoryCgroup> {
        let MemoryCgroup { folder, top, files } = self;
        // In version 1, a cgroup may say that it counts its own processes alone.
        let is_charged = |above: &&Path| {
            above.starts_with(top) && read_text(above, "memory.use_hierarchy").trim() != "0"
        };
        let above = folder.ancestors().skip(1).take_while(is_charged);
        std::iter::once(&**folder)
            .chain(above)
            .map(|folder| MemoryCgroup {
                folder: folder.to_owned(),
                top: top.clone(),
                files: *files,
            })
            .collect()
    }

    /// memory.pressure of this process's cgroup of version 2, where the kernel has it. The root's
    /// is the whole system's, and left out; unlike all others it has no cgroup.events.
    pub(super) fn pressure_file() -> Option<PathBuf> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let version2 = candidates(&groups, &mounts).into_iter().filter(|group| group.files == V2);
        let below_root = version2.filter(|group| group.folder.join("cgroup.events").exists());
        let mut files = below_root.map(|group| group.folder.join("memory.pressure"));
        files.find(|file| file.exists())
    }

    /// How full it is and those above it are, from below; those without a limit are left out.
    pub fn fillings(&self) -> Vec<Filling> {
        self.levels().iter().filter_map(MemoryCgroup::filling).collect()
    }

    fn filling(&self) -> Option<Filling> {
        let limit_bytes = self.own_limit_bytes()?;
        let stat = self.stat()?;
        let stat = |name| field(&stat, name).unwrap_or(0);
        let in_use: u64 = self.files.in_use.into_iter().map(stat).sum();
        let unused_cache = stat(self.files.cache).saturating_sub(in_use);
        let held_bytes = self.read(self.files.current)?.saturating_sub(unused_cache);
        let hits = hits(&read_text(&self.folder, self.files.events));
        Some(Filling { held_bytes, limit_bytes, hits })
    }

    /// Largest charge on record.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.read(self.files.peak)
    }

    /// The smallest limit on the way up, `None` where there is none.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.levels().iter().filter_map(MemoryCgroup::own_limit_bytes).min()
    }

    /// Its own limit. In version 1 the kernel tells that of those above too, whether they can be
    /// seen from here or not.
    fn own_limit_bytes(&self) -> Option<u64> {
        let limits = self.files.limits.iter();
        let own = limits.filter_map(|name| parse_limit(&read_text(&self.folder, name)));
        let nested = self.stat().and_then(|stat| field(&stat, "hierarchical_memory_limit"));
        own.chain(nested.filter(is_limit)).min()
    }

    /// The text of its memory.stat.
    pub fn stat(&self) -> Option<String> {
        fs::read_to_string(self.folder.join("memory.stat")).ok()
    }

    fn read(&self, name: &str) -> Option<u64> {
        read_text(&self.folder, name).trim().parse().ok()
    }
}

/// A file of a cgroup; nothing where it is not there.
fn read_text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

/// A memory cgroup made for this process alone, so that its charge is this process's. Dropping it
/// puts the process back and removes it.
#[derive(Debug)]
pub struct OwnCgroup {
    own: MemoryCgroup,
    parent: PathBuf,
}

/// File of a cgroup that lists its processes, and takes in the one that is written to it.
const PROCESSES: &str = "cgroup.procs";

impl OwnCgroup {
    /// Moves this process into a new cgroup below its own; `None` where it may not, or where the
    /// kernel counts no memory there.
    pub fn enter() -> Option<OwnCgroup> {
        let MemoryCgroup { folder: parent, top, files } = MemoryCgroup::find()?;
        let id = std::process::id().to_string();
        let folder = parent.join(format!("hermes-{id}"));
        fs::create_dir(&folder).ok()?;
        let entered = fs::write(folder.join(PROCESSES), &id).is_ok();
        let group = OwnCgroup { own: MemoryCgroup { folder, top, files }, parent };
        (entered && group.peak_bytes().is_some()).then_some(group)
    }

    /// Largest charge since this process entered, page cache included.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.own.peak_bytes()
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let left = fs::write(self.parent.join(PROCESSES), std::process::id().to_string());
        if let Err(error) = left.and_then(|()| fs::remove_dir(&self.own.folder)) {
            log::warn!("{}: cannot remove the cgroup: {error}", self.own.folder.display());
        }
    }
}

/// A field of memory.stat or memory.events.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Version 1 has one number; of memory.events the two that come before a kill count.
fn hits(events: &str) -> u64 {
    let both = ["high", "max"].map(|name| field(events, name).unwrap_or(0));
    events.trim().parse().unwrap_or(both.iter().sum())
}

/// Folders where this process's memory cgroup may be, version 1 first where it has the
/// controller.
fn candidates(groups: &str, mounts: &str) -> Vec<MemoryCgroup> {
    let mut found = vec![];
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (kind, files) = match controllers {
            "" => ("cgroup2", V2),
            list if list.split(',').any(|c| c == "memory") => ("cgroup", V1),
            _ => continue,
        };
        for mount in mounts.lines().filter_map(|line| mount_of(line, kind, controllers)) {
            let path = Path::new(path);
            let path =
                [mount.root.as_str(), "/"].iter().find_map(|root| path.strip_prefix(root).ok());
            let top = PathBuf::from(&mount.point);
            let folder = top.join(path.unwrap_or(Path::new(""))).components().collect();
            found.push(MemoryCgroup { folder, top, files });
        }
    }
    found.sort_by_key(|group| group.files == V2);
    found
}

/// A limit as either version writes it, `None` where there is none.
pub(super) fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(is_limit)
}

/// Version 1 says "none" as the largest multiple of the page size, version 2 says "max".
fn is_limit(bytes: &u64) -> bool {
    *bytes < i64::MAX as u64 / 2
}

/// Where cgroups of `kind` with `controller` are mounted, by the text of mountinfo.
pub(super) fn mount_point(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| mount_of(line, kind, controller)).map(|found| found.point.into())
}

struct CgroupMount {
    root: String,
    point: String,
}

/// A line of mountinfo (proc_pid_mountinfo(5)) that mounts cgroups of `kind`.
fn mount_of(line: &str, kind: &str, controllers: &str) -> Option<CgroupMount> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (found, _, options) = (after.next()?, after.next()?, after.next()?);
    let memory = controllers.is_empty() || options.split(',').any(|option| option == "memory");
    if found != kind || !memory {
        return None;
    }
    let fields: Vec<&str> = before.split(' ').collect();
    Some(CgroupMount { root: (*fields.get(3)?).to_string(), point: (*fields.get(4)?).to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(groups: &str, mounts: &str, expected: &[&str]) {
        let found = candidates(groups, mounts);
        let folders: Vec<&str> = found.iter().map(|g| g.folder.to_str().unwrap()).collect();
        assert_eq!(folders, expected);
    }

    #[test]
    fn both_versions_are_found_from_their_mounts() {
        check(
            "0::/system.slice/hermesd.service\n",
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            &["/sys/fs/cgroup/system.slice/hermesd.service"],
        );
        check(
            "4:memory:/a/b\n3:cpu:/\n0::/\n",
            "31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             32 25 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             33 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            &["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/unified"],
        );
        // Of a hierarchy of which a part is mounted, the part is above all.
        check(
            "0::/pod/container\n",
            "29 23 0:26 /pod /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            &["/sys/fs/cgroup/container"],
        );
        check("", "", &[]);
        check("nonsense\n1:memory\n", "also nonsense\n", &[]);
    }

    #[test]
    fn filling_leaves_out_page_cache_that_nothing_maps() {
        let check = |files: FigureNames, texts: [&str; 4], expected| {
            let folder = tempfile::tempdir().unwrap();
            let names = [files.current, files.limits[0], files.events, "memory.stat"];
            for (name, text) in names.iter().zip(texts) {
                fs::write(folder.path().join(name), text).unwrap();
            }
            let top = folder.path().to_owned();
            let filling = MemoryCgroup { folder: top.clone(), top, files }.fillings();
            let filling = filling.first().map(|f| (f.held_bytes, f.limit_bytes, f.hits));
            assert_eq!(filling, expected);
        };
        let stat = "anon 10\nfile 60\nfile_mapped 20\nfile_dirty 1\nshmem 5\n";
        let events = "low 9\nhigh 3\nmax 4\noom 9\noom_kill 9\n";
        check(V2, ["90\n", "200\n", events, stat], Some((55, 200, 7)));
        check(V2, ["90\n", "max\n", events, stat], None);
        check(V2, ["90\n", "200\n", "", ""], Some((90, 200, 0)));
        let stat = "cache 1\ntotal_cache 60\ntotal_mapped_file 60\ntotal_shmem 0\n";
        check(V1, ["90\n", "200\n", "12\n", stat], Some((90, 200, 12)));
        check(V1, ["90\n", "9223372036854771712\n", "12\n", stat], None);
    }

    /// A unit in a slice, and a container in a pod, have no limit of their own: a daemon in a pod
    /// of 160 MiB took 8 GiB for its budget, and did not see the pod get full.
    #[test]
    fn the_smallest_limit_on_the_way_up_holds() {
        let check = |files: FigureNames, levels: &[&[(&str, &str)]], limit, fillings: &[u64]| {
            let top = tempfile::tempdir().unwrap();
            let mut folder = top.path().to_owned();
            for (depth, level) in levels.iter().enumerate() {
                folder = if depth == 0 { folder } else { folder.join("below") };
                fs::create_dir_all(&folder).unwrap();
                level.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
            }
            let group = MemoryCgroup { folder, top: top.path().to_owned(), files };
            let group = group.counting().unwrap();
            assert_eq!(group.limit_bytes(), limit);
            let held: Vec<u64> = group.fillings().iter().map(|f| f.held_bytes).collect();
            assert_eq!(held, fillings);
        };
        let held = |bytes| ("memory.current", bytes);
        let none =
            [held("7"), ("memory.max", "max\n"), ("memory.high", "max\n"), ("memory.stat", "")];
        let slice =
            [held("90"), ("memory.max", "200\n"), ("memory.high", "150\n"), ("memory.stat", "")];
        check(V2, &[&slice, &none], Some(150), &[90]);
        check(
            V2,
            &[&[], &slice, &[("memory.max", "100"), held("8"), ("memory.stat", "")]],
            Some(100),
            &[8, 90],
        );
        // Where the controller is not handed on, the one above counts.
        check(V2, &[&slice, &[]], Some(150), &[90]);
        check(V2, &[&[], &none], None, &[]);
        let held = |bytes| ("memory.usage_in_bytes", bytes);
        let limit = |bytes| ("memory.limit_in_bytes", bytes);
        let none = [held("7"), limit("9223372036854771712"), ("memory.stat", "")];
        let nested =
            [("memory.use_hierarchy", "1\n"), held("90"), limit("200"), ("memory.stat", "")];
        check(V1, &[&nested, &none], Some(200), &[90]);
        let flat = [("memory.use_hierarchy", "0\n"), held("90"), limit("200"), ("memory.stat", "")];
        check(V1, &[&nested, &flat, &none], None, &[]);
        let told = [
            held("7"),
            limit("9223372036854771712"),
            ("memory.stat", "hierarchical_memory_limit 300\n"),
        ];
        check(V1, &[&told], Some(300), &[7]);
    }
}
