//! What the machine offers, from /proc and /sys: read-only, without rights, and below any folder,
//! so that another machine's can be looked at.

use super::{cgroup, memory};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the units of this service are changed by an administrator, below the root.
const DROP_INS: [&str; 3] = [
    "etc/systemd/system/hermesd.service.d",
    "etc/systemd/system.control/hermesd.service.d",
    "run/systemd/system.control/hermesd.service.d",
];

/// Where a Raspberry Pi's kernel command line is, the newer place first.
const BOOT_FILES: [&str; 2] = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"];

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its name, by its device tree or its firmware.
    pub model: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// Its cores that are online.
    pub cores: Vec<MachineCore>,
    /// Memory that the kernel manages, in bytes.
    pub memory_bytes: u64,
    /// What it can give without swapping, in bytes.
    pub available_bytes: u64,
    /// Where it swaps to.
    pub swaps: Vec<Swap>,
    /// Whether memory limits work.
    pub memory_control: MemoryControl,
    /// Drop-in that gives the service a `MemoryMax=`, and the value there.
    pub unit_limit: Option<(PathBuf, String)>,
    /// The limit in force on the running service, in bytes.
    pub service_limit: ServiceLimit,
    /// Whether the kernel tells of stalls for memory (PSI, Linux 4.20, `psi=1`).
    pub has_psi: bool,
    /// The file with the kernel's command line, on a Raspberry Pi.
    pub boot_file: Option<&'static str>,
    /// The hottest thermal zone, in degrees Celsius.
    pub hottest_c: Option<i64>,
}

/// A core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineCore {
    /// Its speed against the fastest's 1024; only told where cores differ in kind (arm64).
    pub capacity: Option<u64>,
    /// What chooses its clock rate: a driver and its governor.
    pub governor: Option<(String, String)>,
}

/// A swap area of proc_swaps(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Device or file.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Swap {
    /// Whether it is compressed memory and no disk.
    pub fn is_zram(&self) -> bool {
        self.path.starts_with("/dev/zram")
    }
}

/// Whether a unit's `MemoryMax=` works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryControl {
    /// By this version of cgroups.
    Works(u8),
    /// The kernel has it, and was told to leave it off.
    Disabled,
    /// The kernel was built without it, or no cgroups are mounted.
    #[default]
    Missing,
}

/// The limit of the service's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceLimit {
    /// The service does not run, or there are no limits.
    #[default]
    NotRunning,
    /// It may take all there is.
    None,
    /// So many bytes, page cache included.
    Bytes(u64),
}

impl Machine {
    /// The machine whose /proc and /sys are below `root`. What is not told is left out.
    pub fn read(root: &Path) -> Machine {
        let meminfo = text(&root.join("proc/meminfo"));
        let kib = |name| memory::kib_field(&meminfo, name).unwrap_or(0);
        let cgroups = Cgroups::read(root);
        Machine {
            model: model(root),
            kernel: release(root),
            cores: cores(&root.join("sys/devices/system/cpu")),
            memory_bytes: kib("MemTotal:"),
            available_bytes: kib("MemAvailable:"),
            swaps: swaps(&text(&root.join("proc/swaps"))),
            memory_control: cgroups.control,
            unit_limit: DROP_INS.iter().find_map(|folder| unit_limit(root, folder)),
            service_limit: cgroups.service_limit(),
            // The file may be there and reading it refused: PSI is built in and off.
            has_psi: line(&root.join("proc/pressure/memory")).is_some(),
            boot_file: BOOT_FILES.into_iter().find(|file| root.join(&file[1..]).is_file()),
            hottest_c: hottest(&root.join("sys/class/thermal")),
        }
    }
}

/// The kernel's release below `root`, as `uname -r` prints it.
pub fn release(root: &Path) -> String {
    line(&root.join("proc/sys/kernel/osrelease")).unwrap_or_default()
}

/// What the processor calls itself below `root` (proc_cpuinfo(5)): its name, or on arm64, which
/// has none there, the numbers of its parts.
pub fn processor(root: &Path) -> String {
    let cpuinfo = text(&root.join("proc/cpuinfo"));
    let values = |key: &str| -> Vec<&str> {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let mut values: Vec<&str> =
            fields.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).collect();
        values.dedup();
        values
    };
    match values("model name").first() {
        Some(name) => (*name).to_owned(),
        None => values("CPU part").join(" "),
    }
}

/// The mounted cgroups, as far as they concern memory.
struct Cgroups {
    control: MemoryControl,
    /// Where the controller's cgroups are.
    folder: PathBuf,
}

impl Cgroups {
    fn read(root: &Path) -> Cgroups {
        let mounts = text(&root.join("proc/self/mountinfo"));
        if let Some(point) = cgroup::mount_point(&mounts, "cgroup", "memory") {
            return Cgroups { control: MemoryControl::Works(1), folder: below(root, &point) };
        }
        if let Some(point) = cgroup::mount_point(&mounts, "cgroup2", "") {
            let folder = below(root, &point);
            let controllers = text(&folder.join("cgroup.controllers"));
            if controllers.split_whitespace().any(|controller| controller == "memory") {
                return Cgroups { control: MemoryControl::Works(2), folder };
            }
        }
        let control = match is_disabled(root) {
            true => MemoryControl::Disabled,
            false => MemoryControl::Missing,
        };
        Cgroups { control, folder: PathBuf::new() }
    }

    fn service_limit(&self) -> ServiceLimit {
        let name = match self.control {
            MemoryControl::Works(1) => "memory.limit_in_bytes",
            MemoryControl::Works(_) => "memory.max",
            MemoryControl::Disabled | MemoryControl::Missing => return ServiceLimit::NotRunning,
        };
        let unit = Path::new("system.slice/hermesd.service");
        let limit = |folder: &Path| line(&self.folder.join(folder).join(name));
        if limit(unit).is_none() {
            return ServiceLimit::NotRunning;
        }
        // The slice's holds for what is in it.
        let limits = unit.ancestors().filter_map(limit);
        match limits.filter_map(|limit| cgroup::parse_limit(&limit)).min() {
            Some(bytes) => ServiceLimit::Bytes(bytes),
            None => ServiceLimit::None,
        }
    }
}

/// Why there is no memory controller: by the command line, or by /proc/cgroups, which newer
/// kernels only fill for version 1; that it says nothing means nothing.
fn is_disabled(root: &Path) -> bool {
    let by_command_line = text(&root.join("proc/cmdline")).split_whitespace().any(|word| {
        let list = word.strip_prefix("cgroup_disable=");
        list.is_some_and(|list| list.split(',').any(|controller| controller == "memory"))
    });
    let is_off = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&"memory") && fields.get(3) == Some(&"0")
    };
    by_command_line || text(&root.join("proc/cgroups")).lines().any(is_off)
}

fn model(root: &Path) -> Option<String> {
    let names = ["proc/device-tree/model", "sys/class/dmi/id/product_name"];
    names.iter().find_map(|name| line(&root.join(name)))
}

fn cores(folder: &Path) -> Vec<MachineCore> {
    let online = line(&folder.join("online")).unwrap_or_default();
    let core = |index: usize| {
        let folder = folder.join(format!("cpu{index}"));
        let scaling = |name: &str| line(&folder.join("cpufreq").join(name));
        MachineCore {
            capacity: line(&folder.join("cpu_capacity")).and_then(|text| text.parse().ok()),
            governor: scaling("scaling_driver").zip(scaling("scaling_governor")),
        }
    };
    indexes(&online).map(core).collect()
}

/// The numbers of a list as `0-3,6`.
fn indexes(list: &str) -> impl Iterator<Item = usize> {
    /// No kernel has more: what says so is no list.
    const MAX: usize = 8192;
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?.min(MAX))
        })
        .flatten()
}

fn swaps(text: &str) -> Vec<Swap> {
    let swap = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let kib: u64 = fields.get(2)?.parse().ok()?;
        Some(Swap { path: (*fields.first()?).to_owned(), bytes: kib.checked_mul(1024)? })
    };
    text.lines().skip(1).filter_map(swap).collect()
}

fn unit_limit(root: &Path, folder: &str) -> Option<(PathBuf, String)> {
    let entries = fs::read_dir(root.join(folder)).ok()?.flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    // The last one counts, as for systemd.
    names.into_iter().rev().find_map(|name| {
        let content = text(&root.join(folder).join(&name));
        let value = |line: &str| Some(line.trim().strip_prefix("MemoryMax=")?.trim().to_owned());
        let value = content.lines().rev().find_map(value)?;
        let is_limit = !value.is_empty() && value != "infinity";
        is_limit.then(|| (Path::new("/").join(folder).join(name), value))
    })
}

fn hottest(folder: &Path) -> Option<i64> {
    let zones = fs::read_dir(folder).ok()?.flatten();
    let millidegrees = |zone: fs::DirEntry| line(&zone.path().join("temp"))?.parse::<i64>().ok();
    zones.filter_map(millidegrees).max().map(|hottest| hottest / 1000)
}

/// An absolute path of the machine, below `root`.
pub(super) fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The file's text; nothing where it cannot be read.
pub(super) fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The file's first line, unless it is empty; the device tree's end with NUL.
pub(super) fn line(path: &Path) -> Option<String> {
    let text = text(path);
    let line = text.lines().next()?.trim_end_matches('\0').trim();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A machine with these files.
    fn machine(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const V2_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "22 1 0:20 / / rw - ext4 /dev/root rw\n\
         29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn a_stock_raspberry_pi_has_no_memory_limits() {
        let root = machine(&[
            V2_MOUNT,
            ("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
            ("proc/sys/kernel/osrelease", "6.6.31+rpt-rpi-2712\n"),
            ("proc/cmdline", "coherent_pool=1M cgroup_disable=memory root=PARTUUID=1-02 quiet\n"),
            ("proc/cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t80\t0\n"),
            ("proc/meminfo", "MemTotal: 8256608 kB\nMemAvailable: 7000000 kB\n"),
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524272 0 -2\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n"),
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "cpufreq-dt\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n"),
            ("sys/class/thermal/thermal_zone0/temp", "51234\n"),
            ("boot/firmware/cmdline.txt", "quiet\n"),
            ("boot/cmdline.txt", "moved\n"),
            ("etc/systemd/system/hermesd.service.d/10-none.conf", "MemoryMax=infinity\n"),
            ("etc/systemd/system/hermesd.service.d/20.conf", "[Service]\n MemoryMax= 300M\n"),
        ]);
        let governor = Some(("cpufreq-dt".to_owned(), "ondemand".to_owned()));
        let limit = PathBuf::from("/etc/systemd/system/hermesd.service.d/20.conf");
        let expected = Machine {
            model: Some("Raspberry Pi 5 Model B Rev 1.0".to_owned()),
            kernel: "6.6.31+rpt-rpi-2712".to_owned(),
            cores: vec![
                MachineCore { capacity: None, governor },
                MachineCore { capacity: None, governor: None },
            ],
            memory_bytes: 8_256_608 << 10,
            available_bytes: 7_000_000 << 10,
            swaps: vec![Swap { path: "/var/swap".to_owned(), bytes: 524_272 << 10 }],
            memory_control: MemoryControl::Disabled,
            unit_limit: Some((limit, "300M".to_owned())),
            service_limit: ServiceLimit::NotRunning,
            has_psi: false,
            boot_file: Some("/boot/firmware/cmdline.txt"),
            hottest_c: Some(51),
        };
        assert_eq!(Machine::read(root.path()), expected);
    }

    #[test]
    fn processors_have_names_or_parts() {
        let x86 = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: AMD EPYC\n";
        let arm = "CPU part\t: 0xd03\nCPU part\t: 0xd03\nCPU part\t: 0xd09\n";
        for (text, expected) in [(x86, "AMD EPYC"), (arm, "0xd03 0xd09"), ("", "")] {
            assert_eq!(processor(machine(&[("proc/cpuinfo", text)]).path()), expected);
        }
    }

    #[test]
    fn a_limit_of_version_2_is_that_of_the_service() {
        let control = ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
        let check = |more: &[(&str, &str)], limit| {
            let root = machine(&[&[V2_MOUNT, control], more].concat());
            let board = Machine::read(root.path());
            assert_eq!(board.memory_control, MemoryControl::Works(2));
            assert_eq!(board.service_limit, limit);
        };
        let file = "sys/fs/cgroup/system.slice/hermesd.service/memory.max";
        check(&[], ServiceLimit::NotRunning);
        check(&[(file, "max\n")], ServiceLimit::None);
        check(&[(file, "314572800\n")], ServiceLimit::Bytes(300 << 20));
        let slice = ("sys/fs/cgroup/system.slice/memory.max", "1048576\n");
        check(&[(file, "max\n"), slice], ServiceLimit::Bytes(1 << 20));
    }

    #[test]
    fn a_jetson_with_both_versions_limits_by_the_first() {
        let root = machine(&[
            (
                "proc/self/mountinfo",
                "31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 33 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/sys/kernel/osrelease", "4.9.337-tegra\n"),
            ("sys/fs/cgroup/unified/cgroup.controllers", "\n"),
            (
                "sys/fs/cgroup/memory/system.slice/hermesd.service/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/devices/system/cpu/online", "0,2-3\n"),
            ("sys/devices/system/cpu/cpu0/cpu_capacity", "446\n"),
            ("sys/devices/system/cpu/cpu3/cpu_capacity", "1024\n"),
            ("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 507008 0 5\n"),
        ]);
        let board = Machine::read(root.path());
        assert_eq!(board.memory_control, MemoryControl::Works(1));
        assert_eq!(board.service_limit, ServiceLimit::None);
        let capacities: Vec<_> = board.cores.iter().map(|core| core.capacity).collect();
        assert_eq!(capacities, [Some(446), None, Some(1024)]);
        assert!(board.swaps[0].is_zram());
        assert_eq!(board.kernel, "4.9.337-tegra");
    }

    #[test]
    fn what_is_not_told_is_left_out() {
        assert_eq!(Machine::read(machine(&[]).path()), Machine::default());
        let root = machine(&[
            ("proc/meminfo", "MemTotal: many\n"),
            ("proc/swaps", "Filename\n/dev/sda3 partition x\n\n"),
            ("sys/devices/system/cpu/online", "x,7-,-1\n"),
            ("proc/cgroups", "memory\n"),
        ]);
        assert_eq!(Machine::read(root.path()), Machine::default());
        let root = machine(&[("proc/cmdline", "cgroup_disable=cpu,memory\n")]);
        assert_eq!(Machine::read(root.path()).memory_control, MemoryControl::Disabled);
    }
}
