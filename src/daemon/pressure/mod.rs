//! How short memory is, from signs that come or are looked for, as a level that the engine obeys.
//!
//! `ladder` turns signs into levels, `listen` waits for who tells, `look` finds signs where nobody
//! does. Who tells is `sys::pressure`'s to find; what a level means is the engine's.

mod ladder;
mod listen;
mod look;

use crate::engine::Pressure;
use crate::sys::pressure::{Found, Places};
use ladder::Ladder;
use listen::Listener;
use look::{Look, Looker};
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

/// Between two looks at the figures.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Follows memory pressure, on the event loop; an idle daemon is woken only where nobody tells.
#[derive(Debug)]
pub struct PressureWatch {
    signs: Signs,
    ladder: Ladder,
}

#[derive(Debug)]
enum Signs {
    Never,
    /// By one that may mean others, where there is a looker to doubt it.
    Told {
        listener: Listener,
        doubt: Option<Looker>,
    },
    Looked {
        looker: Looker,
        ticks: Interval,
    },
}

impl PressureWatch {
    /// Probes who tells, takes the first and logs who it is. Needs the runtime's context.
    pub fn begin() -> PressureWatch {
        PressureWatch {
            signs: Signs::find(&Places::of_self()),
            ladder: Ladder::new(Instant::now()),
        }
    }

    /// Waits for the next change of the level, which it logs. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Pressure {
        loop {
            let before = self.ladder.level();
            let look = tokio::select! {
                look = self.signs.next() => Some(look),
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
    fn find(places: &Places) -> Signs {
        let (teller, doubt) = match places.open() {
            Found::Off => {
                log::info!("memory pressure is not watched: MEMORY_PRESSURE_WATCH says so");
                return Signs::Never;
            }
            Found::Nobody => return Signs::looked("nobody tells"),
            Found::Teller(teller) => (teller, None),
            Found::Systems(teller) => (teller, Some(Looker::of_self())),
        };
        let path = teller.path().display().to_string();
        match Listener::start(teller) {
            Ok(listener) => {
                log::info!("memory pressure is told by {path}");
                Signs::Told { listener, doubt }
            }
            Err(error) => Signs::looked(&format!("{path}: {error}")),
        }
    }

    fn looked(why: &str) -> Signs {
        log::info!("memory pressure is looked for in the figures each second: {why}");
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Signs::Looked { looker: Looker::of_self(), ticks }
    }

    async fn next(&mut self) -> Look {
        loop {
            match self {
                Signs::Never => return pending().await,
                Signs::Looked { looker, ticks } => {
                    ticks.tick().await;
                    return looker.look();
                }
                Signs::Told { listener, doubt } => match listener.next().await {
                    Ok(why) if doubt.as_ref().is_some_and(Looker::is_plenty) => {
                        log::debug!("not ours: memory pressure {why}, but there is plenty");
                    }
                    Ok(why) => return Look::Short { most: Pressure::Hold, why },
                    Err(why) => *self = Signs::looked(&why),
                },
            }
        }
    }
}

/// Waits until `instant`; for ever where there is none.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}
