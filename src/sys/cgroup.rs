//! What the memory cgroup charges this process with, page cache included.

use super::capabilities::{Capabilities, Feature};
use std::fs;
use std::path::{Path, PathBuf};

/// A memory cgroup this process is in, version 1 or 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryCgroup {
    folder: PathBuf,
    files: Files,
}

/// Names of the figures in one version of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Files {
    current: &'static str,
    peak: &'static str,
    limit: &'static str,
    events: &'static str,
    /// Fields of memory.stat: page cache in all, and what of it is of no use to reclaim.
    cache: &'static str,
    in_use: [&'static str; 2],
}

const V1: Files = Files {
    current: "memory.usage_in_bytes",
    peak: "memory.max_usage_in_bytes",
    limit: "memory.limit_in_bytes",
    events: "memory.failcnt",
    cache: "total_cache",
    in_use: ["total_mapped_file", "total_shmem"],
};
const V2: Files = Files {
    current: "memory.current",
    peak: "memory.peak",
    limit: "memory.max",
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
    /// The cgroup of this process; `None` where the kernel has none, as on a stock Raspberry Pi.
    pub fn of_self() -> Option<MemoryCgroup> {
        Capabilities::get().has(Feature::Cgroup).then(MemoryCgroup::find).flatten()
    }

    /// The cgroup of this process, from /proc/self/cgroup and mountinfo.
    pub(super) fn find() -> Option<MemoryCgroup> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        candidates(&groups, &mounts)
            .into_iter()
            .find(|group| group.folder.join(group.files.current).exists())
    }

    /// memory.pressure of this process's cgroup of version 2, where the kernel has it. The root's
    /// is the whole system's, and left out; unlike all others it has no cgroup.events.
    pub fn pressure_file() -> Option<PathBuf> {
        if !Capabilities::get().has(Feature::Cgroup) {
            return None;
        }
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let version2 = candidates(&groups, &mounts).into_iter().filter(|group| group.files == V2);
        let below_root = version2.filter(|group| group.folder.join("cgroup.events").exists());
        let mut files = below_root.map(|group| group.folder.join("memory.pressure"));
        files.find(|file| file.exists())
    }

    /// How full it is; `None` where it has no limit.
    pub fn filling(&self) -> Option<Filling> {
        let limit_bytes = self.limit_bytes()?;
        let stat = self.stat()?;
        let stat = |name| field(&stat, name).unwrap_or(0);
        let in_use: u64 = self.files.in_use.into_iter().map(stat).sum();
        let unused_cache = stat(self.files.cache).saturating_sub(in_use);
        let held_bytes = self.read(self.files.current)?.saturating_sub(unused_cache);
        let events = fs::read_to_string(self.folder.join(self.files.events)).unwrap_or_default();
        Some(Filling { held_bytes, limit_bytes, hits: hits(&events) })
    }

    /// Largest charge on record.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.read(self.files.peak)
    }

    /// The limit, `None` where there is none.
    pub fn limit_bytes(&self) -> Option<u64> {
        parse_limit(&fs::read_to_string(self.folder.join(self.files.limit)).ok()?)
    }

    /// The text of its memory.stat.
    pub fn stat(&self) -> Option<String> {
        fs::read_to_string(self.folder.join("memory.stat")).ok()
    }

    fn read(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()
    }
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
        let MemoryCgroup { folder: parent, files } = MemoryCgroup::of_self()?;
        let id = std::process::id().to_string();
        let folder = parent.join(format!("hermes-{id}"));
        fs::create_dir(&folder).ok()?;
        let entered = fs::write(folder.join(PROCESSES), &id).is_ok();
        let group = OwnCgroup { own: MemoryCgroup { folder, files }, parent };
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
            let path = path.strip_prefix(&mount.root).unwrap_or(path);
            let folder: PathBuf =
                Path::new(&mount.point).join(path.trim_start_matches('/')).components().collect();
            found.push(MemoryCgroup { folder, files });
        }
    }
    found.sort_by_key(|group| group.files == V2);
    found
}

/// A limit as either version writes it, `None` where there is none.
pub(super) fn parse_limit(text: &str) -> Option<u64> {
    // Version 1 says "none" as the largest multiple of the page size, version 2 says "max".
    text.trim().parse().ok().filter(|limit| *limit < i64::MAX as u64 / 2)
}

/// Where cgroups of `kind` with `controller` are mounted, by the text of mountinfo.
pub(super) fn mount_point(mounts: &str, kind: &str, controller: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| mount_of(line, kind, controller)).map(|found| found.point.into())
}

struct Mount {
    root: String,
    point: String,
}

/// A line of mountinfo (proc_pid_mountinfo(5)) that mounts cgroups of `kind`.
fn mount_of(line: &str, kind: &str, controllers: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let (found, _, options) = (after.next()?, after.next()?, after.next()?);
    let memory = controllers.is_empty() || options.split(',').any(|option| option == "memory");
    if found != kind || !memory {
        return None;
    }
    let fields: Vec<&str> = before.split(' ').collect();
    Some(Mount { root: (*fields.get(3)?).to_string(), point: (*fields.get(4)?).to_string() })
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
        check("", "", &[]);
        check("nonsense\n1:memory\n", "also nonsense\n", &[]);
    }

    #[test]
    fn filling_leaves_out_page_cache_that_nothing_maps() {
        let check = |files: Files, texts: [&str; 4], expected| {
            let folder = tempfile::tempdir().unwrap();
            let names = [files.current, files.limit, files.events, "memory.stat"];
            for (name, text) in names.iter().zip(texts) {
                fs::write(folder.path().join(name), text).unwrap();
            }
            let group = MemoryCgroup { folder: folder.path().to_owned(), files };
            let filling = group.filling();
            assert_eq!(filling.map(|f| (f.held_bytes, f.limit_bytes, f.hits)), expected);
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
}
