//! From ready to stopped: signals, reloads, and what the service manager is told meanwhile.

use super::config::{ConfigError, ConfigSources, Effective};
use super::journal;
use super::notify::Manager;
use super::pressure::PressureWatch;
use super::rights::Rights;
use super::token::Token;
use super::watchdog::Watchdog;
use crate::engine::{Engine, ModelStats, Pressure, Progress};
use crate::values::size::Size;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two looks at what is loaded, where somebody wants to know.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What each extension of the time to stop asks for; the next one comes well before it is over.
const EXTENSION: Duration = Duration::from_secs(5);

/// Names of models that a status line has room for.
const STATUS_MODELS: usize = 8;

/// How far the daemon has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It accepts and answers.
    Serving,
    /// It accepts nothing new and finishes what runs.
    Draining,
    /// It cancels what runs.
    Cancelling,
}

/// The settings that a reload changes.
#[derive(Clone, Debug)]
pub struct Live {
    /// Who may do what.
    pub rights: Arc<Rights>,
    /// What TCP clients have to send, where that is anything.
    pub token: Option<Token>,
    /// Time for running requests to end.
    pub drain: Duration,
}

impl Live {
    fn of(effective: &Effective) -> Live {
        let settings = &effective.settings;
        Live {
            rights: Arc::new(settings.rights.clone()),
            token: effective.token.clone(),
            drain: settings.drain_deadline(),
        }
    }
}

/// What the server follows. Clones follow the same.
#[derive(Clone, Debug)]
pub struct Control {
    /// How far the daemon has come.
    pub phase: watch::Receiver<Phase>,
    /// The settings in force.
    pub live: watch::Receiver<Live>,
}

/// Signals that cannot be taken.
#[derive(Debug, Error)]
#[error("cannot take signals: {0}")]
pub struct LifecycleError(#[from] io::Error);

/// The daemon's course. Made before the engine starts, so that no signal is lost.
pub struct Lifecycle {
    sources: ConfigSources,
    running: Effective,
    phase: watch::Sender<Phase>,
    live: watch::Sender<Live>,
    manager: Manager,
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Lifecycle {
    /// Takes SIGHUP, SIGTERM and SIGINT from now on. Needs the runtime's context.
    ///
    /// # Errors
    ///
    /// [`LifecycleError`] where the kernel refuses.
    pub fn new(sources: ConfigSources, running: Effective) -> Result<Lifecycle, LifecycleError> {
        Ok(Lifecycle {
            phase: watch::Sender::new(Phase::Serving),
            live: watch::Sender::new(Live::of(&running)),
            manager: Manager::find(),
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            sources,
            running,
        })
    }

    /// What the server follows.
    pub fn control(&self) -> Control {
        Control { phase: self.phase.subscribe(), live: self.live.subscribe() }
    }

    /// Tells the service manager that the socket serves, and obeys signals for ever.
    pub async fn run(&mut self, engine: &Engine) {
        let mut seen = None;
        self.tell_status(engine, &mut seen);
        self.manager.ready();
        let pinned = engine.clone();
        let mut pressure = PressureWatch::begin(move || pinned.pinned_bytes() > 0);
        let interval_of_watchdog = self.manager.watchdog().filter(|whole| !whole.is_zero());
        let mut feeding = interval_of_watchdog.map(|whole| every(whole / 2));
        let mut watchdog = Watchdog::new(interval_of_watchdog.unwrap_or_default(), Instant::now());
        let mut looking = self.manager.is_present().then(|| every(STATUS_INTERVAL));
        let mut reading = ConfigReading::default();
        loop {
            tokio::select! {
                Some(()) = self.reload.recv() => self.begin_reload(&mut reading, engine),
                read = reading.done() => {
                    self.end_reload(read, engine);
                    if reading.again {
                        self.begin_reload(&mut reading, engine);
                    }
                }
                Some(()) = self.terminate.recv() => self.advance("SIGTERM"),
                Some(()) = self.interrupt.recv() => self.advance("SIGINT"),
                () = tick(&mut feeding) => match watchdog.check(engine.progress(), Instant::now()) {
                    None => self.manager.feed(),
                    Some(still) => log::error!(
                        "nothing has moved in the engine for {} s: the watchdog is not fed",
                        still.as_secs()
                    ),
                },
                () = tick(&mut looking) => self.tell_progress(engine, &mut seen),
                level = pressure.changed() => {
                    engine.set_pressure(level);
                    seen = None;
                    self.tell_progress(engine, &mut seen);
                }
            }
        }
    }

    /// Begins to read the config anew; where that is under way, notes that it is to be done again.
    fn begin_reload(&mut self, reading: &mut ConfigReading, engine: &Engine) {
        log::info!("SIGHUP: reading the config anew");
        self.manager.reloading();
        if let Err(error) = reading.begin(&self.sources, engine) {
            log::error!("the old config stays in force: no thread to read the new one: {error}");
            self.manager.ready();
        }
    }

    /// Takes the config that was read; keeps the old one where the new one is wrong.
    fn end_reload(&mut self, read: Option<ReadConfig>, engine: &Engine) {
        match read {
            Some(Ok((newer, budget_bytes))) => self.swap(newer, budget_bytes, engine),
            Some(Err(error)) => self.keep(&error),
            None => log::error!("the config could not be read: see above"),
        }
        self.manager.ready();
    }

    fn swap(&mut self, mut newer: Effective, budget_bytes: u64, engine: &Engine) {
        newer.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        for key in self.running.needs_restart(&newer) {
            let place = newer.value(key).map(|(_, origin)| format!(" ({origin})"));
            let place = place.unwrap_or_default();
            log::warn!("{} has changed{place}: it needs a restart, the old value stays", key.name);
        }
        if newer.settings.budget != self.running.settings.budget {
            match engine.set_budget(budget_bytes) {
                Ok(()) => log::info!("the budget is {} now", Size(budget_bytes)),
                Err(error) => {
                    let text = error.to_string().replace('\n', ": ");
                    log::error!("the old budget stays in force: {text}");
                    newer.keep_budget(&self.running);
                }
            }
        }
        self.running.take_live(newer);
        journal::set_level(self.running.settings.log.filter());
        engine.set_targets(self.running.settings.targets());
        self.live.send_replace(Live::of(&self.running));
        log::info!("the config is reloaded");
    }

    fn keep(&self, error: &ConfigError) {
        log::error!("the old config stays in force: {error}");
    }

    /// One signal drains, the next one cancels.
    fn advance(&mut self, signal: &str) {
        let phase = *self.phase.borrow();
        let next = match phase {
            Phase::Serving => Phase::Draining,
            Phase::Draining | Phase::Cancelling => Phase::Cancelling,
        };
        match next {
            Phase::Draining => {
                let drain = self.running.settings.drain;
                log::info!("{signal}: what runs has {drain} s to end; once more cancels it");
                self.manager.stopping();
                self.manager.status(format!("draining, {drain} s at most"));
            }
            _ => {
                log::info!("{signal} again: what runs is cancelled");
                self.manager.status("cancelling what runs".to_string());
            }
        }
        self.manager.extend(EXTENSION);
        self.phase.send_replace(next);
    }

    fn tell_progress(&mut self, engine: &Engine, seen: &mut Option<Progress>) {
        let phase = *self.phase.borrow();
        match phase {
            Phase::Serving => self.tell_status(engine, seen),
            Phase::Draining | Phase::Cancelling => self.manager.extend(EXTENSION),
        }
    }

    /// Tells what is loaded, if anything has happened since `seen`.
    fn tell_status(&mut self, engine: &Engine, seen: &mut Option<Progress>) {
        let progress = engine.progress();
        if self.manager.is_present() && seen.replace(progress) != Some(progress) {
            self.manager.status(status(engine));
        }
    }
}

/// A config that was read, and the budget by it.
type ReadConfig = Result<(Effective, u64), ConfigError>;

/// The config while it is read, by a thread of its own: names of users may be looked up over a
/// network, and neither signals nor requests wait for that.
#[derive(Default)]
struct ConfigReading {
    outcome: Option<oneshot::Receiver<ReadConfig>>,
    /// Whether it has changed meanwhile.
    again: bool,
}

impl ConfigReading {
    fn begin(&mut self, sources: &ConfigSources, engine: &Engine) -> io::Result<()> {
        self.again = self.outcome.is_some();
        if self.again {
            return Ok(());
        }
        let (sources, engine) = (sources.clone(), engine.clone());
        let (sender, outcome) = oneshot::channel();
        std::thread::Builder::new().name("reload".to_owned()).spawn(move || {
            let read = sources.read().map(|effective| {
                let budget_bytes = effective.settings.budget_bytes();
                effective.settings.tell_missing_models(&engine);
                (effective, budget_bytes)
            });
            // The receiver is gone when the daemon ends.
            let _ = sender.send(read);
        })?;
        self.outcome = Some(outcome);
        Ok(())
    }

    /// What was read, `None` where the thread failed; never where none reads.
    async fn done(&mut self) -> Option<ReadConfig> {
        match &mut self.outcome {
            None => std::future::pending().await,
            Some(outcome) => {
                let read = outcome.await;
                self.outcome = None;
                read.ok()
            }
        }
    }
}

/// What is loaded, in a line.
fn status(engine: &Engine) -> String {
    let stats = engine.stats();
    let in_service = |model: &ModelStats| model.loaded.as_ref().is_some_and(|of| of.in_service);
    let models = stats.models.iter().filter(|model| in_service(model));
    let models: Vec<&str> = models.map(|model| model.name.as_str()).collect();
    let ledger = engine.ledger();
    let held_bytes = ledger.held_in_all_bytes();
    let budget = Size(ledger.budget_bytes());
    let names = match models.len() {
        0 => "no model is loaded".to_string(),
        1..=STATUS_MODELS => format!("loaded: {}", models.join(", ")),
        count => format!("loaded: {} and more, {count} in all", models[..STATUS_MODELS].join(", ")),
    };
    let pressure = match stats.pressure {
        Pressure::None => String::new(),
        level => format!("; memory pressure: {}", level.name()),
    };
    format!("{names}; {} of {budget} held{pressure}", Size(held_bytes))
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The next tick; never where there is no interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
