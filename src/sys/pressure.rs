//! Who tells this process that memory is short: the service manager, its cgroup, the kernel.

use super::capabilities::{Capabilities, Feature};
use super::cgroup::MemoryCgroup;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, fstatfs};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The trigger we ask for: a stall of 200 ms within 2 s, systemd's default. Whoever has no
/// privilege may only ask for windows of a multiple of 2 s. The kernel puts a NUL in the place of
/// the last byte.
const TRIGGER: &[u8] = b"some 200000 2000000\0";

/// Where this process may be told.
#[derive(Clone, Debug)]
pub struct Places {
    /// What `MEMORY_PRESSURE_WATCH` names (systemd.resource-control(5), MemoryPressureWatch=).
    pub watch: Option<PathBuf>,
    /// What `MEMORY_PRESSURE_WRITE` holds: in base64, what is written there first.
    pub write: Option<String>,
    /// memory.pressure of the own cgroup.
    pub cgroup: Option<PathBuf>,
    /// The whole system's.
    pub system: Option<PathBuf>,
}

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// Whoever runs the service wishes that pressure is not watched.
    Off,
    /// This tells of the service, or of the cgroup.
    Teller(Teller),
    /// This tells of the whole system, of other cgroups that are short within their own limits too.
    Systems(Teller),
    /// Nobody tells: look for yourself.
    Nobody,
}

/// An open file that tells when memory is short.
#[derive(Debug)]
pub struct Teller {
    path: PathBuf,
    file: File,
    is_kernels: bool,
}

impl Places {
    /// Those of this process.
    pub fn of_self() -> Places {
        let has_psi = Capabilities::get().has(Feature::Psi);
        let has_cgroup = has_psi && Capabilities::get().has(Feature::Cgroup);
        Places {
            watch: std::env::var_os("MEMORY_PRESSURE_WATCH").map(PathBuf::from),
            write: std::env::var("MEMORY_PRESSURE_WRITE").ok(),
            cgroup: has_cgroup.then(MemoryCgroup::pressure_file).flatten(),
            system: has_psi.then(|| PathBuf::from("/proc/pressure/memory")),
        }
    }

    /// Opens the first that works.
    pub fn open(&self) -> Found {
        if let Some(watch) = &self.watch {
            if watch.as_os_str().is_empty() || watch == Path::new("/dev/null") {
                return Found::Off;
            }
            let teller = self.trigger().and_then(|trigger| Teller::open(watch, &trigger));
            match teller {
                Ok(teller) => return Found::Teller(teller),
                Err(error) => log::warn!(
                    "MEMORY_PRESSURE_WATCH={}: {error}; memory pressure is looked for elsewhere",
                    watch.display()
                ),
            }
        }
        let told = |path: &Path| {
            let opened = Teller::open(path, TRIGGER);
            opened.inspect_err(|error| log::debug!("{}: {error}", path.display())).ok()
        };
        let cgroups = self.cgroup.as_deref().and_then(told).map(Found::Teller);
        let systems = || self.system.as_deref().and_then(told).map(Found::Systems);
        cgroups.or_else(systems).unwrap_or(Found::Nobody)
    }

    /// What the service manager wants to be written first.
    fn trigger(&self) -> io::Result<Vec<u8>> {
        let text = self.write.as_deref().unwrap_or_default();
        base64::decode(text).map_err(|error| {
            io::Error::other(format!("MEMORY_PRESSURE_WRITE is not base64: {error}"))
        })
    }
}

impl Teller {
    /// Opens what lies at `path` and asks it for `trigger`.
    ///
    /// # Errors
    ///
    /// Those of the kernel, and an inode that is none of: a file of the kernel's, which is asked
    /// by writing to it (nothing else is written to); a FIFO, which would return what is written
    /// to it; a listening stream socket.
    fn open(path: &Path, trigger: &[u8]) -> io::Result<Teller> {
        let kind = fs::metadata(path)?.file_type();
        let teller = |file, is_kernels| Teller { path: path.to_owned(), file, is_kernels };
        if kind.is_socket() {
            let mut stream = UnixStream::connect(path)?;
            stream.write_all(trigger)?;
            stream.set_nonblocking(true)?;
            return Ok(teller(File::from(OwnedFd::from(stream)), false));
        }
        if !kind.is_fifo() && !kind.is_file() {
            return Err(io::Error::other("neither a file nor a FIFO nor a socket"));
        }
        // A FIFO that is also open for writing has no end when its writer goes.
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if kind.is_fifo() {
            return Ok(teller(file, false));
        }
        let system = fstatfs(&file)?.filesystem_type();
        if system != CGROUP2_SUPER_MAGIC && system != PROC_SUPER_MAGIC {
            return Err(io::Error::other("a file, but not one of the kernel's"));
        }
        if !trigger.is_empty() {
            file.write_all(trigger)?;
        }
        Ok(teller(file, true))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what is there; whether there was anything.
    fn discard(&self) -> io::Result<bool> {
        let mut buffer = [0; 256];
        let mut any = false;
        loop {
            match (&self.file).read(&mut buffer) {
                Ok(0) if any => return Ok(true),
                Ok(0) => return Err(io::Error::other("the other end is closed")),
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Somebody tells that memory is short.
    Told,
    /// Nobody has, for as long as was to be waited.
    Quiet,
    /// It was stopped.
    Stopped,
}

/// Waits until `teller` tells that memory is short, where there is one, or `stop` is readable or
/// closed; no longer than `patience`.
///
/// # Errors
///
/// Those of the kernel, and where it will never tell again: a socket's other end is closed, the
/// cgroup is gone.
pub fn wait(teller: Option<&Teller>, stop: BorrowedFd<'_>, patience: Duration) -> io::Result<Wait> {
    let end = Instant::now() + patience;
    loop {
        let mut polled = vec![PollFd::new(stop, PollFlags::POLLIN)];
        polled.extend(teller.map(|teller| {
            let wanted = if teller.is_kernels { PollFlags::POLLPRI } else { PollFlags::POLLIN };
            PollFd::new(teller.file.as_fd(), wanted)
        }));
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, left) {
            Err(Errno::EINTR) => continue,
            Ok(0) => return Ok(Wait::Quiet),
            result => result?,
        };
        let [stopped, told] = [0, 1].map(|index| {
            let events = polled.get(index).map(|fd| fd.revents().unwrap_or(PollFlags::all()));
            events.unwrap_or(PollFlags::empty())
        });
        if !stopped.is_empty() {
            return Ok(Wait::Stopped);
        }
        let Some(teller) = teller else { continue };
        if teller.is_kernels {
            let is_gone = told.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL);
            return if is_gone { Err(io::Error::other("it is gone")) } else { Ok(Wait::Told) };
        }
        if teller.discard()? {
            return Ok(Wait::Told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::os::unix::net::UnixListener;

    /// A folder with a plain file, two FIFOs and a socket, and what is found by these names.
    fn check(watch: &str, write: &str, cgroup: &str, system: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("plain"), "as it was").unwrap();
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        mkfifo(&path("other"), Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        let places = Places {
            watch: (!watch.is_empty()).then(|| path(watch)),
            write: (!write.is_empty()).then(|| write.to_string()),
            cgroup: (!cgroup.is_empty()).then(|| path(cgroup)),
            system: Some(path(system)),
        };
        let name = |teller: Teller| {
            assert!(!teller.is_kernels);
            assert!(!teller.discard().unwrap(), "nothing has come yet");
            teller.path().file_name().unwrap().to_str().unwrap().to_string()
        };
        let found = match places.open() {
            Found::Off => "off".to_string(),
            Found::Nobody => "nobody".to_string(),
            Found::Teller(teller) => name(teller),
            Found::Systems(teller) => format!("system's {}", name(teller)),
        };
        assert_eq!(found, expected, "{places:?}");
        assert_eq!(fs::read(path("plain")).unwrap(), b"as it was");
    }

    #[test]
    fn the_first_place_that_works_is_taken() {
        check("fifo", "c29tZQ==", "other", "other", "fifo");
        check("socket", "c29tZQ==", "other", "other", "socket");
        check("none", "", "other", "fifo", "other");
        check("plain", "c29tZQ==", "other", "fifo", "other");
        check("fifo", "no base64!", "other", "fifo", "other");
        check(".", "", "other", "fifo", "other");
        check("", "", "plain", "fifo", "system's fifo");
        check("", "", "", "fifo", "system's fifo");
        check("plain", "", "none", "plain", "nobody");
        check("/dev/null", "", "fifo", "fifo", "off");
        check("/dev/zero", "", "", "none", "nobody");
    }

    /// A socket is asked, may tell, and may go.
    #[test]
    fn a_socket_tells_until_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let teller = Teller::open(&path, b"asked").unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut asked = [0; 5];
        far.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"asked");
        let (stop, mut stopper) = io::pipe().unwrap();
        far.write_all(&[1; 700]).unwrap();
        let wait = || wait(Some(&teller), stop.as_fd(), Duration::from_secs(60));
        assert_eq!(wait().unwrap(), Wait::Told);
        drop(far);
        let error = wait().unwrap_err();
        assert_eq!(error.to_string(), "the other end is closed");
        stopper.write_all(&[1]).unwrap();
        assert_eq!(wait().unwrap(), Wait::Stopped, "whoever stops it comes first");
    }

    /// A trigger is only written to files of the kernel's; where this one takes it, it is one.
    #[test]
    fn the_kernel_is_asked_where_it_can_be() {
        let system = Some(PathBuf::from("/proc/pressure/memory"));
        let places = Places { watch: None, write: None, cgroup: None, system };
        match places.open() {
            Found::Systems(teller) => {
                assert!(teller.is_kernels);
                let (stop, stopper) = io::pipe().unwrap();
                drop(stopper);
                let patience = Duration::from_secs(60);
                assert_eq!(wait(Some(&teller), stop.as_fd(), patience).unwrap(), Wait::Stopped);
            }
            found => assert!(matches!(found, Found::Nobody), "{found:?}"),
        }
    }
}
