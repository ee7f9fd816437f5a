//! A thread that waits for who tells of memory pressure.

use crate::sys::pressure::Teller;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{Receiver, channel};

/// Hands on what a teller tells. Dropping it ends its thread.
#[derive(Debug)]
pub struct Listener {
    path: String,
    told: Receiver<io::Result<()>>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Those of the kernel, for want of a thread or a descriptor.
    pub fn start(teller: Teller) -> io::Result<Listener> {
        let path = teller.path().display().to_string();
        let (stopped, stop) = io::pipe()?;
        // One sign waits: more say no more.
        let (tell, told) = channel(1);
        let thread = std::thread::Builder::new().name("pressure".to_string()).spawn(move || {
            loop {
                let sign = match teller.wait(stopped.as_fd()) {
                    Ok(true) => Ok(()),
                    Ok(false) => return,
                    Err(error) => Err(error),
                };
                let is_last = sign.is_err();
                if tell.blocking_send(sign).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Listener { path, told, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for a sign and says whose it is; `Err` says why there will be no more. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> Result<String, String> {
        match self.told.recv().await {
            Some(Ok(())) => Ok(format!("told by {}", self.path)),
            Some(Err(error)) => Err(format!("{}: {error}", self.path)),
            None => Err(format!("{}: its thread has ended", self.path)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.told.close();
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that waits for memory pressure panicked");
        }
    }
}
