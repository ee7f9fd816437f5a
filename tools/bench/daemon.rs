//! A hermesd of its own for a benchmark: the program beside this one, on a socket in a folder of
//! its own.

use super::client::Client;
use anyhow::{Context, Result, bail};
use hermes::engine::Request;
use hermes::sys::memory;
use hermes::wire::infer_json::InferRequest;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Time for the daemon to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon, stopped on drop.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Starts hermesd on `store` and waits until it answers.
    pub fn start(store: &Path, budget_bytes: u64, variant: Option<&str>) -> Result<Daemon> {
        Daemon::start_with(store, budget_bytes, variant, &[])
    }

    /// [`Daemon::start`] with more arguments.
    pub fn start_with(
        store: &Path,
        budget_bytes: u64,
        variant: Option<&str>,
        more: &[&str],
    ) -> Result<Daemon> {
        let folder = std::env::temp_dir().join(format!("hermes-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let (program, socket) = (beside_us("hermesd")?, folder.join("socket"));
        let mut command = Command::new(&program);
        command.env("HERMES_LOG", "error").arg("--store").arg(store).arg("--socket").arg(&socket);
        command.args(["--budget", &budget_bytes.to_string()]);
        command.args(variant.into_iter().flat_map(|variant| ["--variant", variant]));
        let child = command.args(more).spawn().with_context(|| program.display().to_string())?;
        let mut daemon = Daemon { child, folder, socket };
        let began = Instant::now();
        while daemon.client()?.get("/v2/health/live").is_err() {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("hermesd ended at its start: {status}");
            }
            if began.elapsed() > PATIENCE {
                bail!("hermesd does not answer");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// A caller of it.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::new(&self.socket)?)
    }

    /// What it holds resident now.
    pub fn resident_bytes(&self) -> u64 {
        memory::process_of(self.child.id()).resident_bytes
    }

    /// Time that it has spent on processors.
    pub fn cpu_seconds(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        // The name before may have spaces; utime and stime are fields 14 and 15, in hundredths
        // (proc_pid_stat(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
        ticks.sum::<f64>() / 100.0
    }

    /// The most it held.
    pub fn peak_bytes(&self) -> u64 {
        memory::process_of(self.child.id()).peak_bytes
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already; there is nothing else to be done about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A program of this build.
pub fn beside_us(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    match path.exists() {
        true => Ok(path),
        false => bail!("{} is not there: build all programs of the project", path.display()),
    }
}

/// The body of an infer call with binary tensors, and how many bytes of it are JSON.
pub fn body(request: Request, binary_output: bool, timeout_us: u64) -> (Vec<u8>, usize) {
    let inputs = request.inputs;
    InferRequest { inputs, binary_output, timeout_us, ..InferRequest::default() }.encode()
}
