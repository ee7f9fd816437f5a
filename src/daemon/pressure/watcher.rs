//! A thread that waits for who tells of memory pressure, and looks at the figures.

use super::look::{Look, Looker};
use crate::engine::Pressure;
use crate::sys::pressure::{Found, Places, Teller, Wait, wait};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};

/// Between two looks at the figures: others can take some hundred MB in a second.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Hands on what is seen. Dropping it ends its thread.
#[derive(Debug)]
pub struct Watcher {
    seen: Receiver<Look>,
    /// Whether memory was short when it was last seen.
    is_short: Arc<AtomicBool>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread, which finds out who tells and logs it; `has_pins` says whether there is
    /// anything to give that the kernel may not be able to take.
    ///
    /// # Errors
    ///
    /// Those of the kernel, for want of a thread or a descriptor.
    pub fn start(
        find: impl FnOnce() -> (Places, Looker) + Send + 'static,
        has_pins: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<Watcher> {
        let (stopped, stop) = io::pipe()?;
        let is_short = Arc::<AtomicBool>::default();
        let was_short = Arc::clone(&is_short);
        // One sign waits: more say no more.
        let (tell, seen) = channel(1);
        let thread = std::thread::Builder::new().name("pressure".to_string()).spawn(move || {
            let (places, looker) = find();
            let is_worth_a_look = || was_short.load(Ordering::Relaxed) || has_pins();
            let Some(mut signs) = Signs::find(&places, looker) else { return };
            while let Some(look) = signs.next(&stopped, is_worth_a_look) {
                if tell.blocking_send(look).is_err() {
                    return;
                }
            }
        })?;
        Ok(Watcher { seen, is_short, stop: Some(stop), thread: Some(thread) })
    }

    /// Waits for the next sign; none ever comes where nobody is to watch. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Look {
        match self.seen.recv().await {
            Some(look) => look,
            None => std::future::pending().await,
        }
    }

    /// Whether memory is short, so that the figures are worth a look whatever is held.
    pub fn set_short(&self, is_short: bool) {
        self.is_short.store(is_short, Ordering::Relaxed);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.seen.close();
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that watches memory pressure panicked");
        }
    }
}

/// Where signs come from.
struct Signs {
    teller: Option<Teller>,
    /// Whether it may mean others.
    is_doubted: bool,
    looker: Looker,
}

impl Signs {
    /// Takes the first who tells; `None` where nobody is to watch.
    fn find(places: &Places, looker: Looker) -> Option<Signs> {
        let (teller, is_doubted) = match places.open() {
            Found::Off => {
                log::info!("memory pressure is not watched: MEMORY_PRESSURE_WATCH says so");
                return None;
            }
            Found::Nobody => (None, false),
            Found::Teller(teller) => (Some(teller), false),
            Found::Systems(teller) => (Some(teller), true),
        };
        match &teller {
            Some(teller) => log::info!("memory pressure is told by {}", teller.path().display()),
            None => log::info!("memory pressure is looked for in the figures: nobody tells"),
        }
        Some(Signs { teller, is_doubted, looker })
    }

    /// Waits for the next sign; `None` once it is stopped.
    fn next(&mut self, stop: &PipeReader, is_worth_a_look: impl Fn() -> bool) -> Option<Look> {
        loop {
            let look = match (wait(self.teller.as_ref(), stop.as_fd(), LOOK_INTERVAL), &self.teller)
            {
                (Ok(Wait::Stopped), _) => return None,
                (Ok(Wait::Told), Some(teller)) => {
                    let why = format!("told by {}", teller.path().display());
                    if self.is_doubted && self.looker.is_plenty() {
                        log::debug!("not ours: memory pressure {why}, but there is plenty");
                        continue;
                    }
                    Look::Short { most: Pressure::Hold, why }
                }
                (Err(error), Some(teller)) => {
                    let path = teller.path().display();
                    log::info!("memory pressure is looked for in the figures: {path}: {error}");
                    self.teller = None;
                    continue;
                }
                (Err(error), None) => {
                    log::error!("memory pressure is not watched any more: {error}");
                    return None;
                }
                // Whether it is worse is told by those who wait for memory.
                (Ok(_), Some(_)) if is_worth_a_look() => self.looker.look().at_most(Pressure::Pins),
                (Ok(_), Some(_)) => continue,
                (Ok(_), None) => self.looker.look(),
            };
            if look != Look::Ample {
                return Some(look);
            }
        }
    }
}
