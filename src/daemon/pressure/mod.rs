//! How short memory is, from signs that come or are looked for, as a level that the engine obeys.
//!
//! `watcher` is a thread that waits for who tells and looks at the figures, `look` judges these,
//! `ladder` turns signs into levels. Who tells is `sys::pressure`'s to find; what a level means is
//! the engine's.

mod ladder;
mod look;
mod watcher;

use crate::engine::Pressure;
use crate::sys::pressure::Places;
use ladder::Ladder;
use look::{Look, Looker};
use std::future::pending;
use std::time::Instant;
use tokio::time::sleep_until;
use watcher::Watcher;

/// Follows memory pressure, on the event loop.
#[derive(Debug)]
pub struct PressureWatch {
    /// None where there can be none.
    watcher: Option<Watcher>,
    ladder: Ladder,
}

impl PressureWatch {
    /// Has a thread probe who tells, take the first and log who it is; `has_pins` says whether there
    /// is anything to give that the kernel may not be able to take.
    pub fn begin(has_pins: impl Fn() -> bool + Send + 'static) -> PressureWatch {
        PressureWatch::of(|| (Places::of_self(), Looker::of_self()), has_pins)
    }

    fn of(
        find: impl FnOnce() -> (Places, Looker) + Send + 'static,
        has_pins: impl Fn() -> bool + Send + 'static,
    ) -> PressureWatch {
        let watcher = Watcher::start(find, has_pins);
        let failed = |error| log::error!("memory pressure is not watched: {error}");
        PressureWatch { watcher: watcher.map_err(failed).ok(), ladder: Ladder::new(Instant::now()) }
    }

    /// Waits for the next change of the level, which it logs. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Pressure {
        loop {
            let before = self.ladder.level();
            let look = tokio::select! {
                look = next(&mut self.watcher) => Some(look),
                () = until(self.ladder.calm_at()) => None,
            };
            let now = Instant::now();
            let why = match look {
                Some(Look::Short { most, why }) => self.ladder.climb(most, now).then_some(why),
                Some(Look::Tight) => {
                    self.ladder.stay(now);
                    None
                }
                Some(Look::Ample) => None,
                None => self.ladder.descend(now).then(|| "there is enough again".to_string()),
            };
            let Some(why) = why else { continue };
            let level = self.ladder.level();
            if let Some(watcher) = &self.watcher {
                watcher.set_short(level > Pressure::None);
            }
            let urgency = if level > before { log::Level::Warn } else { log::Level::Info };
            log::log!(urgency, "memory pressure: {} after {}: {why}", level.name(), before.name());
            return level;
        }
    }
}

/// The next sign; none ever where nobody watches.
async fn next(watcher: &mut Option<Watcher>) -> Look {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => pending().await,
    }
}

/// Waits until `instant`; for ever where there is none.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memory::MachineMemory;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::time::timeout;
    use watcher::LOOK_INTERVAL;

    /// A kernel cannot take what is neither cache nor swapped: it stalls nobody before it kills.
    #[tokio::test]
    async fn pins_go_before_anybody_tells() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let places = Places { watch: Some(fifo), write: None, cgroup: None, system: None };
        let short = || Some(MachineMemory { total_bytes: 1000, available_bytes: 1 });
        let pins = Arc::<AtomicBool>::default();
        let has_pins = Arc::clone(&pins);
        let mut watch = PressureWatch::of(
            move || (places, Looker::fake(short)),
            move || has_pins.load(Ordering::Relaxed),
        );
        let looks = 2 * LOOK_INTERVAL;
        assert!(timeout(looks, watch.changed()).await.is_err(), "nothing is to be given");
        pins.store(true, Ordering::Relaxed);
        assert_eq!(watch.changed().await, Pressure::Pins);
        pins.store(false, Ordering::Relaxed);
        assert!(timeout(looks, watch.changed()).await.is_err(), "nobody has told of more");
    }
}
