//! The disks of the experiment: this one, this one slowed down by the source, and this one held
//! to a limit by the kernel's block layer.

use anyhow::{Context, Result, bail, ensure};
use hermes::engine::DiskKind;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a pass's weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Disk {
    /// The disk as it is.
    Real,
    /// The disk slowed down by the throttled source to that of a kind of disk.
    Imitated { name: &'static str, mb_s: u64 },
    /// The disk limited by the block I/O cgroup.
    Limited { mb_s: u64 },
}

/// Kinds of disk as the boards have them, with sequential MB/s.
const KINDS: [(&str, u64); 4] = [("sd", 90), ("emmc", 250), ("sata", 500), ("nvme", 2000)];

/// Prefix of a disk that the kernel limits.
const LIMITED: &str = "blkio:";

const MB: u64 = 1_000_000;

impl Disk {
    /// The engine's disk that is this one.
    pub fn kind(self) -> DiskKind {
        match self {
            Disk::Imitated { mb_s, .. } => DiskKind::Throttled { bytes_per_s: mb_s * MB },
            Disk::Real | Disk::Limited { .. } => DiskKind::Board,
        }
    }

    /// What it is, for people.
    pub fn title(self) -> String {
        match self {
            Disk::Real => "real (this disk)".to_string(),
            Disk::Imitated { name, mb_s } => format!("{name} (imitated, {mb_s} MB/s)"),
            Disk::Limited { mb_s } => format!("{LIMITED}{mb_s} (limited by the kernel)"),
        }
    }
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Disk, String> {
        if text == "real" {
            return Ok(Disk::Real);
        }
        if let Some((name, mb_s)) = KINDS.into_iter().find(|(name, _)| *name == text) {
            return Ok(Disk::Imitated { name, mb_s });
        }
        let mb_s = text.strip_prefix(LIMITED).and_then(|mb_s| mb_s.parse().ok());
        match mb_s {
            Some(mb_s) if (1..=1_000_000).contains(&mb_s) => Ok(Disk::Limited { mb_s }),
            _ => Err("give real, sd, emmc, sata, nvme, or blkio:MB with MB/s".to_string()),
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disk::Real => f.pad("real"),
            Disk::Imitated { name, .. } => f.pad(name),
            Disk::Limited { mb_s } => f.pad(&format!("{LIMITED}{mb_s}")),
        }
    }
}

/// A cgroup whose members read from one device no faster than a limit. Dropping it removes it,
/// once its members have ended.
#[derive(Debug)]
pub struct Limit {
    folder: PathBuf,
}

impl Limit {
    /// Limits the device that `store` lies on.
    ///
    /// # Errors
    /// Fails where there is no such controller, no device, or no right to do it.
    pub fn set(store: &Path, mb_s: u64) -> Result<Limit> {
        let device = device_of(store)?;
        let read = |path| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let (groups, mounts) = (read("/proc/self/cgroup")?, read("/proc/self/mountinfo")?);
        let bytes_per_s = mb_s * MB;
        let (parent, file, text) = match controller(&groups, &mounts) {
            Some((parent, Version::One)) => {
                (parent, "blkio.throttle.read_bps_device", format!("{device} {bytes_per_s}"))
            }
            Some((parent, Version::Two)) => {
                (parent, "io.max", format!("{device} rbps={bytes_per_s}"))
            }
            None => bail!("this system has no cgroup that limits block I/O"),
        };
        let folder = parent.join(format!("hermes-disk-{}-{mb_s}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let limit = Limit { folder };
        let file = limit.folder.join(file);
        ensure!(file.exists(), "{} is missing: the controller is not on here", file.display());
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(limit)
    }

    /// The cgroup's folder, for those who [`join`] it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            log::warn!("{}: cannot remove the cgroup: {error}", self.folder.display());
        }
    }
}

/// Moves this process into the cgroup of a [`Limit`].
pub fn join(folder: &Path) -> Result<()> {
    let file = folder.join("cgroup.procs");
    fs::write(&file, std::process::id().to_string())
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Whether the cgroup of a [`Limit`] is of version 2, where all controllers share one hierarchy.
pub fn is_unified(folder: &Path) -> bool {
    folder.join("cgroup.controllers").exists()
}

/// The device that limits are set for, as MAJOR:MINOR: the whole disk, where the file system is
/// on a partition of it.
fn device_of(store: &Path) -> Result<String> {
    let device = fs::metadata(store)?.dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    ensure!(major != 0, "{}: its file system has no block device of its own", store.display());
    let entry = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    if !entry.join("partition").exists() {
        return Ok(format!("{major}:{minor}"));
    }
    let disk = entry.canonicalize()?.join("../dev");
    let text = fs::read_to_string(&disk);
    Ok(text.with_context(|| format!("cannot read {}", disk.display()))?.trim().to_string())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// This process's folder in the hierarchy that limits block I/O, by the texts of /proc/self/cgroup
/// and mountinfo (cgroups(7), proc_pid_mountinfo(5)); version 1 where it has the controller.
fn controller(groups: &str, mounts: &str) -> Option<(PathBuf, Version)> {
    let group = |wanted: &dyn Fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    let mount = |kind: &str, option: Option<&str>| {
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let (found, options) = (after.next()?, after.nth(1)?);
            let has = option.is_none_or(|option| options.split(',').any(|have| have == option));
            (found == kind && has).then_some((root, point))
        })
    };
    let below = |path: &str, (root, point): (&str, &str)| {
        let path = path.strip_prefix(root).unwrap_or(path);
        PathBuf::from(point).join(path.trim_start_matches('/'))
    };
    let first = group(&|list| list.split(',').any(|name| name == "blkio"))
        .zip(mount("cgroup", Some("blkio")));
    if let Some((path, mount)) = first {
        return Some((below(path, mount), Version::One));
    }
    let (path, mount) = group(&str::is_empty).zip(mount("cgroup2", None))?;
    Some((below(path, mount), Version::Two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in ["real", "sd", "emmc", "sata", "nvme", "blkio:250"] {
            assert_eq!(name.parse::<Disk>().unwrap().to_string(), name);
        }
        for wrong in ["", "floppy", "blkio:", "blkio:0", "blkio:-1", "blkio:x"] {
            assert!(wrong.parse::<Disk>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_controller_is_found_in_both_versions() {
        let check = |groups: &str, mounts: &str, expected: Option<(&str, Version)>| {
            let expected = expected.map(|(path, version)| (PathBuf::from(path), version));
            assert_eq!(controller(groups, mounts), expected);
        };
        check(
            "7:blkio:/a\n4:memory:/b\n0::/\n",
            "31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
             38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            Some(("/sys/fs/cgroup/blkio/a", Version::One)),
        );
        check(
            "0::/user.slice/x.scope\n",
            "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            Some(("/sys/fs/cgroup/user.slice/x.scope", Version::Two)),
        );
        check("", "", None);
        check("nonsense", "nonsense - x", None);
    }

    #[test]
    fn only_imitated_disks_are_throttled_by_the_source() {
        let rate = |name: &str| match name.parse::<Disk>().unwrap().kind() {
            DiskKind::Throttled { bytes_per_s } => Some(bytes_per_s),
            _ => None,
        };
        assert_eq!((rate("sd"), rate("real"), rate("blkio:90")), (Some(90_000_000), None, None));
    }
}
