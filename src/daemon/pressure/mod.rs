//! How short memory is, from signs that come or are looked for, as a level that the engine obeys.
//!
//! `ladder` turns signs into levels, `listen` waits for who tells, `look` finds signs where nobody
//! does. Who tells is `sys::pressure`'s to find; what a level means is the engine's.

mod ladder;
mod listen;
mod look;

use crate::engine::Pressure;
use crate::sys::pressure::{Found, Places, Teller};
use ladder::Ladder;
use listen::Listener;
use look::{Look, Looker};
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

/// Between two looks at the figures: others can take some hundred MB in a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Follows memory pressure, on the event loop.
#[derive(Debug)]
pub struct PressureWatch {
    /// None where it is not watched.
    signs: Option<Signs>,
    ladder: Ladder,
}

/// Where signs come from.
#[derive(Debug)]
struct Signs {
    listener: Option<Listener>,
    /// Whether the listener's teller may mean others.
    is_doubted: bool,
    looker: Looker,
    ticks: Interval,
}

impl PressureWatch {
    /// Probes who tells, takes the first and logs who it is. Needs the runtime's context.
    pub fn begin() -> PressureWatch {
        PressureWatch {
            signs: Signs::find(&Places::of_self(), Looker::of_self()),
            ladder: Ladder::new(Instant::now()),
        }
    }

    /// Waits for the next change of the level, which it logs; `has_pins` says whether there is
    /// anything to give that the kernel may not be able to take. Dropping the future loses nothing.
    pub async fn changed(&mut self, has_pins: impl Fn() -> bool) -> Pressure {
        loop {
            let before = self.ladder.level();
            let is_worth_a_look = || before > Pressure::None || has_pins();
            let look = tokio::select! {
                look = next(&mut self.signs, is_worth_a_look) => Some(look),
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
            let urgency = if level > before { log::Level::Warn } else { log::Level::Info };
            log::log!(urgency, "memory pressure: {} after {}: {why}", level.name(), before.name());
            return level;
        }
    }
}

impl Signs {
    fn find(places: &Places, looker: Looker) -> Option<Signs> {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut signs = Signs { listener: None, is_doubted: false, looker, ticks };
        match places.open() {
            Found::Off => {
                log::info!("memory pressure is not watched: MEMORY_PRESSURE_WATCH says so");
                return None;
            }
            Found::Nobody => signs.look_alone("nobody tells"),
            Found::Teller(teller) => signs.listen(teller),
            Found::Systems(teller) => {
                signs.is_doubted = true;
                signs.listen(teller);
            }
        }
        Some(signs)
    }

    fn listen(&mut self, teller: Teller) {
        let path = teller.path().display().to_string();
        match Listener::start(teller) {
            Ok(listener) => {
                log::info!("memory pressure is told by {path}");
                self.listener = Some(listener);
            }
            Err(error) => self.look_alone(&format!("{path}: {error}")),
        }
    }

    fn look_alone(&mut self, why: &str) {
        log::info!("memory pressure is looked for in the figures: {why}");
        self.listener = None;
    }

    async fn next(&mut self, is_worth_a_look: impl Fn() -> bool) -> Look {
        loop {
            let Some(listener) = &mut self.listener else {
                self.ticks.tick().await;
                return self.looker.look();
            };
            tokio::select! {
                told = listener.next() => match told {
                    Ok(why) if self.is_doubted && self.looker.is_plenty() => {
                        log::debug!("not ours: memory pressure {why}, but there is plenty");
                    }
                    Ok(why) => return Look::Short { most: Pressure::Hold, why },
                    Err(why) => self.look_alone(&why),
                },
                _ = self.ticks.tick() => if is_worth_a_look() {
                    // Whether it is worse is told by those who wait for memory.
                    return self.looker.look().at_most(Pressure::Pins);
                },
            }
        }
    }
}

/// The next sign; none ever where nothing is watched.
async fn next(signs: &mut Option<Signs>, is_worth_a_look: impl Fn() -> bool) -> Look {
    match signs {
        Some(signs) => signs.next(is_worth_a_look).await,
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
    use std::cell::Cell;
    use tokio::time::timeout;

    /// A kernel cannot take what is neither cache nor swapped: it stalls nobody before it kills.
    #[tokio::test]
    async fn pins_go_before_anybody_tells() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let places = Places { watch: Some(fifo), write: None, cgroup: None, system: None };
        let short = || Some(MachineMemory { total_bytes: 1000, available_bytes: 1 });
        let signs = Signs::find(&places, Looker::fake(short));
        assert!(signs.as_ref().unwrap().listener.is_some(), "somebody may tell");
        let mut watch = PressureWatch { signs, ladder: Ladder::new(Instant::now()) };
        let looks = 2 * LOOK_INTERVAL;
        let has_pins = Cell::new(false);
        let nothing = watch.changed(|| has_pins.get());
        assert!(timeout(looks, nothing).await.is_err(), "nothing is to be given");
        has_pins.set(true);
        let level = watch.changed(|| has_pins.get()).await;
        assert_eq!(level, Pressure::Pins);
        let worse = watch.changed(|| false);
        assert!(timeout(looks, worse).await.is_err(), "nobody has told of more");
    }
}
