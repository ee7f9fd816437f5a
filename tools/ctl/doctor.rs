//! `hermesctl doctor`: what this board offers, what stands in the way, and how to mend it.

use super::client::{Client, ClientError};
use super::scrape::Scrape;
use hermes_base::sys::board::{Machine, MachineCore, MemoryControl, ServiceLimit};
use hermes_base::sys::disk::{Disk, read_speed};
use hermes_base::sys::{affinity, map};
use hermes_base::values::size::Size;
use hermes_base::values::{DEFAULT_STORE, named_store};
use hermes_base::wire::table;
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The last lines of the command's help.
pub const DOCTOR_EXIT_CODES: &str = "Exit codes: 0 no problem was found (notes are none), 1 there \
                                     is one, 2 usage (arguments or files).";

/// Below this the kernel reads in requests too small for most disks; it is its default.
const MIN_READ_AHEAD_KIB: u64 = 128;

/// Boards slow down at 80 to 85 degrees.
const HOT_C: i64 = 80;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It could be better, or is not known.
    Note,
    /// What Hermes promises does not hold.
    Problem,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "PROBLEM",
        }
    }
}

/// A line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    found: String,
    /// What to type; lines that begin with `#` are for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

fn check(name: &'static str, state: State, found: impl Into<String>) -> Check {
    Check { name, state, found: found.into(), fix: None }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    check(name, State::Ok, found)
}

fn note(name: &'static str, found: impl Into<String>) -> Check {
    check(name, State::Note, found)
}

impl Check {
    fn fix(self, fix: impl Into<String>) -> Check {
        Check { fix: Some(fix.into()), ..self }
    }
}

/// What the doctor says, and whether all is well.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// What is to be printed.
    pub text: String,
    /// Whether there is no problem.
    pub is_well: bool,
}

/// Looks at this machine, at the disk of `store` (by default the one of `$HERMES_STORE`, then
/// [`DEFAULT_STORE`]), which it reads for a second, and at the client's daemon, which need not run.
///
/// # Errors
///
/// [`ClientError::Usage`] where `store` was named and is no folder.
pub fn run(client: &Client, store: Option<&Path>, json: bool) -> Result<Diagnosis, ClientError> {
    let named = store.map(Path::to_owned).or_else(named_store);
    let folder = named.as_deref().unwrap_or(DEFAULT_STORE.as_ref());
    if named.is_some() && !folder.is_dir() {
        let text = format!(
            "{}: no such folder; --store, else HERMES_STORE, is the one with the models",
            folder.display()
        );
        return Err(ClientError::Usage(text));
    }
    let root = Path::new("/");
    let board = Machine::read(root);
    let mut checks = checks(&board);
    checks.extend(disk_checks(root, folder));
    checks.push(daemon_check(client));
    let is_well = checks.iter().all(|check| check.state != State::Problem);
    let text = match json {
        true => json!({ "well": is_well, "checks": checks }).to_string(),
        false => report(&checks),
    };
    Ok(Diagnosis { text, is_well })
}

fn report(checks: &[Check]) -> String {
    let mut rows = vec![["CHECK", "STATE", "FOUND"].map(str::to_owned)];
    let row = |c: &Check| [c.name.to_owned(), c.state.name().to_owned(), c.found.clone()];
    rows.extend(checks.iter().map(row));
    let fixes = checks
        .iter()
        .filter_map(|check| check.fix.as_ref().map(|fix| format!("\n\n# {}\n{fix}", check.name)));
    let fixes: String = fixes.collect();
    table::lines(&rows) + &fixes
}

/// What the board itself tells.
fn checks(board: &Machine) -> Vec<Check> {
    let mut checks = vec![
        ok("board", board.model.as_deref().unwrap_or("unknown")),
        kernel(board),
        ok("page size", Size(map::page_size() as u64).to_string()),
        cores(&board.cores, affinity::allowed_cores().len()),
        governor(&board.cores),
        memory(board),
        swap(board),
        memory_limit(board),
        stalls(board),
    ];
    checks.extend(board.hottest_c.map(temperature));
    checks
}

fn kernel(board: &Machine) -> Check {
    let release = &board.kernel;
    match map::populate_supported() {
        true => ok("kernel", format!("{release}, blocks are mapped (MADV_POPULATE_READ)")),
        false => note(
            "kernel",
            format!("{release}, blocks are copied: MADV_POPULATE_READ came with 5.14"),
        ),
    }
}

fn cores(cores: &[MachineCore], allowed: usize) -> Check {
    let mut kinds = BTreeMap::new();
    for capacity in cores.iter().filter_map(|core| core.capacity) {
        *kinds.entry(capacity).or_insert(0) += 1;
    }
    let kinds = match kinds.len() {
        0 | 1 => String::new(),
        _ => {
            let kinds =
                kinds.iter().rev().map(|(speed, count)| format!("{count} of speed {speed}"));
            format!(": {}", kinds.collect::<Vec<_>>().join(", "))
        }
    };
    // Where /sys says nothing of cores, those that may be used are all that is known.
    let online = cores.len().max(allowed);
    let found = format!("{online}{kinds}");
    match allowed < online {
        true => note("cores", format!("{found}; this shell may use {allowed} of them")),
        false => ok("cores", found),
    }
}

fn governor(cores: &[MachineCore]) -> Check {
    let governors: BTreeSet<_> = cores.iter().filter_map(|core| core.governor.as_ref()).collect();
    if governors.is_empty() {
        return ok("governor", "none: the kernel does not scale the clock here");
    }
    // These drivers choose the clock themselves; their powersave is what others call ondemand.
    let chooses = |driver: &str| driver == "intel_pstate" || driver.ends_with("-epp");
    let is_slow = governors.iter().any(|(driver, governor)| match governor.as_str() {
        "performance" | "schedutil" => false,
        _ => !chooses(driver),
    });
    let names: BTreeSet<_> = governors.iter().map(|(_, governor)| governor.as_str()).collect();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    if !is_slow {
        return ok("governor", names);
    }
    note("governor", format!("{names}: cores that wait for the disk are clocked down"))
        .fix("echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
}

fn memory(board: &Machine) -> Check {
    let (total, available) = (Size(board.memory_bytes), Size(board.available_bytes));
    match board.memory_bytes {
        0 => note("memory", "unknown: /proc/meminfo does not tell"),
        _ => ok("memory", format!("{total}, of which {available} are available")),
    }
}

fn swap(board: &Machine) -> Check {
    if board.swaps.is_empty() {
        return ok("swap", "none");
    }
    let areas = board.swaps.iter().map(|swap| format!("{} on {}", Size(swap.bytes), swap.path));
    let areas = areas.collect::<Vec<_>>().join(", ");
    if board.swaps.iter().all(|swap| swap.is_zram()) {
        return ok("swap", format!("{areas}: compressed memory"));
    }
    let check = note("swap", format!("{areas}: a daemon that was swapped out answers late"));
    match board.memory_control {
        MemoryControl::Works(2) => {
            check.fix("sudo systemctl set-property hermesd.service MemorySwapMax=0")
        }
        _ => check,
    }
}

fn memory_limit(board: &Machine) -> Check {
    const NAME: &str = "MemoryMax=";
    let reason = match board.memory_control {
        MemoryControl::Works(version) => {
            let limit = match board.service_limit {
                ServiceLimit::NotRunning => "hermesd.service does not run".to_owned(),
                ServiceLimit::None => "hermesd.service has none".to_owned(),
                ServiceLimit::Bytes(bytes) => format!("hermesd.service has {}", Size(bytes)),
            };
            return ok(NAME, format!("works (cgroup v{version}); {limit}"));
        }
        MemoryControl::Disabled => "the memory cgroup is disabled",
        MemoryControl::Missing => "the kernel has no memory cgroup here",
    };
    let set = match &board.unit_limit {
        Some((file, value)) => format!(", not even {value} of {}", file.display()),
        None => String::new(),
    };
    let found = format!("silently does nothing{set}: {reason}");
    check(NAME, State::Problem, found).fix(match (board.memory_control, board.boot_file) {
        (MemoryControl::Disabled, Some(file)) => add_to_command_line(file, "cgroup_enable=memory"),
        (MemoryControl::Disabled, None) => {
            "# take cgroup_disable=memory out of the kernel's command line, or put \
             cgroup_enable=memory\n# there (GRUB: /etc/default/grub, then sudo update-grub), and \
             start anew"
                .to_owned()
        }
        _ => "# use a kernel with CONFIG_MEMCG and a system that mounts cgroups; until then the\n\
              # budget is what keeps hermesd small"
            .to_owned(),
    })
}

fn stalls(board: &Machine) -> Check {
    const NAME: &str = "PSI";
    if board.has_psi {
        return ok(NAME, "on");
    }
    let check = note(NAME, "off: the kernel does not tell of stalls for memory");
    match board.boot_file {
        Some(file) => check.fix(add_to_command_line(file, "psi=1")),
        None => check,
    }
}

/// A Raspberry Pi's command line is one line.
fn add_to_command_line(file: &str, word: &str) -> String {
    format!("sudo sed -i '1 s/$/ {word}/' {file} && sudo reboot")
}

fn temperature(hottest_c: i64) -> Check {
    match hottest_c {
        HOT_C.. => note("temperature", format!("{hottest_c} C: boards clock themselves down")),
        _ => ok("temperature", format!("{hottest_c} C")),
    }
}

fn disk_checks(root: &Path, folder: &Path) -> Vec<Check> {
    let Ok(path) = std::fs::canonicalize(folder) else {
        return vec![note(
            "store",
            format!("{} cannot be reached; --store says where", folder.display()),
        )];
    };
    let disk = Disk::of(root, &path);
    let mut checks = vec![ok("store", path.display().to_string())];
    let is_memory = disk.as_ref().is_some_and(Disk::is_memory);
    checks.extend(disk.as_ref().map_or(vec![note("disk", "unknown")], disk_kind));
    if !is_memory {
        checks.push(bandwidth(&path));
    }
    checks
}

fn disk_kind(disk: &Disk) -> Vec<Check> {
    let file_system = &disk.file_system;
    if disk.is_memory() {
        let found = format!("{file_system}: the store is in memory, which streaming is to save");
        let fix = "# build or install the store on a disk, and say so: store = in \
                   /etc/hermes/hermesd.toml";
        return vec![check("disk", State::Problem, found).fix(fix)];
    }
    let Some(device) = &disk.device else {
        return vec![ok("disk", format!("{file_system}, on no disk of this machine"))];
    };
    let model = device.model.iter().map(|model| format!(" ({model})")).collect::<String>();
    let found = format!("{file_system} on {}{model}", device.name);
    let mut checks = vec![match device.is_rotational {
        true => note("disk", format!("{found}, said to seek: rows of tables come slowly")),
        false => ok("disk", found),
    }];
    checks.extend(device.read_ahead_kib.map(|kib| match kib < MIN_READ_AHEAD_KIB {
        true => note("read-ahead", format!("{kib} KiB: requests are small")).fix(format!(
            "echo {MIN_READ_AHEAD_KIB} | sudo tee /sys/block/{}/queue/read_ahead_kb",
            device.name
        )),
        false => ok("read-ahead", format!("{kib} KiB")),
    }));
    checks
}

/// Reads with as many readers as the daemon has loaders by default.
fn bandwidth(folder: &Path) -> Check {
    const NAME: &str = "bandwidth";
    let readers = (affinity::allowed_cores().len() / 2).max(1);
    match read_speed(folder, readers) {
        Ok(speed) => {
            let (mb_s, bytes) = (speed.mb_s(), Size(speed.bytes));
            ok(NAME, format!("{mb_s:.0} MB/s ({bytes}, readers: {readers})"))
        }
        Err(error) => {
            let found =
                format!("not measured, too little to read and no file can be written: {error}");
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => note(NAME, found)
                    .fix(format!("sudo hermesctl doctor --store {}", folder.display())),
                _ => note(NAME, found),
            }
        }
    }
}

fn daemon_check(client: &Client) -> Check {
    const NAME: &str = "daemon";
    let asked = || -> Result<String, ClientError> {
        let server = client.get("/v2")?;
        let metrics = Scrape::parse(&client.get_text("/metrics")?).map_err(ClientError::Broken)?;
        let version = server["version"].as_str().unwrap_or("of an unknown version").to_owned();
        let budget = Size(metrics.sum("hermes_budget_bytes") as u64);
        let listening = metrics.named("hermes_listening");
        let addresses = listening.filter_map(|sample| sample.labels.get("address").cloned());
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        let socket = client.socket().display();
        Ok(format!("hermesd {version} answers at {socket}, budget {budget}; it serves {addresses}"))
    };
    match asked() {
        Ok(found) => ok(NAME, found),
        Err(error) => note(NAME, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hermes_base::sys::board::Swap;
    use hermes_base::sys::disk::Device;

    /// A check's state, and words of what it found and of its fix.
    #[track_caller]
    fn expect(check: &Check, state: State, found: &str, fix: Option<&str>) {
        assert_eq!((check.state, check.found.as_str()), (state, found));
        assert_eq!(check.fix.as_deref(), fix);
    }

    #[test]
    fn a_stock_raspberry_pi_is_told_how_to_get_limits() {
        let board = Machine {
            memory_control: MemoryControl::Disabled,
            boot_file: Some("/boot/firmware/cmdline.txt"),
            ..Machine::default()
        };
        let found = "silently does nothing: the memory cgroup is disabled";
        let fix = "sudo sed -i '1 s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo \
                   reboot";
        expect(&memory_limit(&board), State::Problem, found, Some(fix));
        assert!(stalls(&board).fix.unwrap().contains("s/$/ psi=1/"));
        let unit_limit = Some(("/etc/a.conf".into(), "300M".to_owned()));
        let board = Machine { unit_limit, boot_file: None, ..board };
        let check = memory_limit(&board);
        assert!(check.found.contains("not even 300M of /etc/a.conf"), "{}", check.found);
        assert!(check.fix.unwrap().starts_with("# take cgroup_disable=memory out"));
        assert_eq!(stalls(&board).fix, None);
    }

    #[test]
    fn a_limit_that_works_is_told() {
        let board = |version, service_limit| Machine {
            memory_control: MemoryControl::Works(version),
            service_limit,
            ..Machine::default()
        };
        let check = |board, found| expect(&memory_limit(&board), State::Ok, found, None);
        let limited = board(2, ServiceLimit::Bytes(300 << 20));
        check(limited, "works (cgroup v2); hermesd.service has 300 MiB");
        check(board(1, ServiceLimit::None), "works (cgroup v1); hermesd.service has none");
        check(
            board(1, ServiceLimit::NotRunning),
            "works (cgroup v1); hermesd.service does not run",
        );
    }

    #[test]
    fn governors_that_slow_down_are_noted() {
        let core = |driver: &str, governor: &str| MachineCore {
            capacity: None,
            governor: Some((driver.to_owned(), governor.to_owned())),
        };
        let check =
            |cores: &[MachineCore], state| assert_eq!(governor(cores).state, state, "{cores:?}");
        check(&[], State::Ok);
        check(&[core("cpufreq-dt", "performance"), core("cpufreq-dt", "schedutil")], State::Ok);
        check(&[core("cpufreq-dt", "performance"), core("cpufreq-dt", "ondemand")], State::Note);
        check(&[core("acpi-cpufreq", "powersave")], State::Note);
        check(&[core("intel_pstate", "powersave"), core("amd-pstate-epp", "powersave")], State::Ok);
    }

    #[test]
    fn cores_of_two_kinds_are_counted() {
        let core = |capacity| MachineCore { capacity, governor: None };
        let kinds = [Some(446), Some(446), Some(1024)].map(core);
        let found = "3: 1 of speed 1024, 2 of speed 446";
        expect(&cores(&kinds, 3), State::Ok, found, None);
        expect(&cores(&[core(Some(1024)), core(Some(1024))], 2), State::Ok, "2", None);
        expect(&cores(&[], 2), State::Ok, "2", None);
        let found = "2; this shell may use 1 of them";
        expect(&cores(&[core(None), core(None)], 1), State::Note, found, None);
    }

    #[test]
    fn swap_on_a_disk_is_noted() {
        let board = |path: &str, version| Machine {
            swaps: vec![Swap { path: path.to_owned(), bytes: 1 << 20 }],
            memory_control: MemoryControl::Works(version),
            ..Machine::default()
        };
        assert_eq!(swap(&Machine::default()).state, State::Ok);
        assert_eq!(swap(&board("/dev/zram0", 2)).state, State::Ok);
        assert!(swap(&board("/var/swap", 2)).fix.unwrap().contains("MemorySwapMax=0"));
        let check = swap(&board("/var/swap", 1));
        assert_eq!((check.state, check.fix), (State::Note, None), "version 1 has no such limit");
    }

    #[test]
    fn disks_are_described() {
        let device = Device {
            name: "sda".to_owned(),
            model: None,
            is_rotational: true,
            read_ahead_kib: Some(16),
        };
        let disk = Disk { file_system: "ext4".to_owned(), device: Some(device) };
        let checks = disk_kind(&disk);
        assert_eq!([checks[0].state, checks[1].state], [State::Note; 2]);
        let fix = "echo 128 | sudo tee /sys/block/sda/queue/read_ahead_kb";
        expect(&checks[1], State::Note, "16 KiB: requests are small", Some(fix));
        let disk = Disk { file_system: "tmpfs".to_owned(), device: None };
        assert_eq!(disk_kind(&disk)[0].state, State::Problem);
    }
}
