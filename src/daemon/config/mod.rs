//! The daemon's settings: what they are, where they come from, how they are shown.
//!
//! In rising order: the defaults, the config file, its drop-ins by name, the environment, the
//! command line. `read` merges them key by key, `show` writes down the result with the origin of
//! each value.

mod flags;
mod models;
mod read;
mod show;

pub use flags::Flags;
pub use models::ModelSettings;
pub use read::{ConfigError, ConfigSources, Effective};
pub use show::show;

use super::address::Addresses;
use super::rights::Rights;
use crate::codec;
use crate::engine::{Config, EXPECTED_TOKENS, Engine, EngineError};
use crate::plan::Way;
use crate::sys::{capabilities::Capabilities, memory};
use crate::values::{
    Accuracy, Bytes, DEFAULT_SOCKET, DEFAULT_STORE, Latency, Threads, Tokens, size,
};
use log::LevelFilter;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// The config file, if the command line names no other.
pub const DEFAULT_PATH: &str = "/etc/hermes/hermesd.toml";

/// Seconds to drain, if nothing else is said.
const DEFAULT_DRAIN_S: u32 = 10;

/// The budget where the kernel does not say what is available.
const BLIND_BUDGET_BYTES: u64 = 64 << 20;

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder of the store.
    pub store: PathBuf,
    /// Unix socket to serve; [`Settings::socket()`] has the default.
    pub socket: Option<PathBuf>,
    /// What is served beside it.
    pub listen: Option<Addresses>,
    /// File with the token that TCP clients have to send.
    #[serde(rename = "token-file")]
    pub token_file: Option<PathBuf>,
    /// Bytes that the process may hold; [`Settings::budget`] has the default.
    pub budget: Option<Bytes>,
    /// Bytes of tape ahead of and under compute.
    pub window: Option<Bytes>,
    /// Compute threads.
    pub threads: Option<Threads>,
    /// Loader threads.
    pub loaders: Option<Threads>,
    /// How blocks are read.
    pub source: Option<Way>,
    /// Variant of every model.
    pub variant: Option<Variant>,
    /// Time within which answers are to be there, where a model has no other.
    pub latency: Option<Latency>,
    /// How close answers are to be to those of the best variant, where a model has no other.
    pub accuracy: Option<Accuracy>,
    /// Tokens that requests are expected to have.
    pub tokens: Tokens,
    /// Whether models are measured while nothing waits; their plans follow.
    pub profiles: bool,
    /// Seconds for running requests to end after the daemon was told to stop.
    pub drain: u32,
    /// The gravest messages that are not logged begin below this.
    pub log: Level,
    /// Who may do what.
    pub rights: Rights,
    /// What is set for one model, by its name.
    pub models: BTreeMap<String, ModelSettings>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            store: DEFAULT_STORE.into(),
            socket: None,
            listen: None,
            token_file: None,
            budget: None,
            window: None,
            threads: None,
            loaders: None,
            source: None,
            variant: None,
            latency: None,
            accuracy: None,
            tokens: Tokens(EXPECTED_TOKENS),
            profiles: true,
            drain: DEFAULT_DRAIN_S,
            log: Level::Info,
            rights: Rights::default(),
            models: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// The Unix socket to serve: what is set, else the default where `listen` says nothing.
    pub fn socket(&self) -> Option<&Path> {
        let default = self.listen.is_none().then_some(Path::new(DEFAULT_SOCKET));
        self.socket.as_deref().or(default)
    }

    /// Bytes that the process may hold: what is set, else half of what the machine can give now,
    /// within three quarters of the cgroup's limit, since the page cache is charged there too.
    pub fn budget_bytes(&self) -> u64 {
        if let Some(budget) = self.budget {
            return budget.0;
        }
        let limit = Capabilities::get().memory_cgroup().and_then(|group| group.limit_bytes());
        budget_for(memory::machine().map(|machine| machine.available_bytes), limit)
    }

    /// The engine that these settings ask for.
    pub fn engine(&self) -> Config {
        let budget_bytes = self.budget_bytes();
        if self.budget.is_none() {
            log::info!("the budget is {}: no other is set", size::Size(budget_bytes));
        }
        Config {
            window_bytes: self.window.map(|window| window.0),
            threads: self.threads.map(|threads| threads.0.get().into()),
            loaders: self.loaders.map(|threads| threads.0.get().into()),
            source: self.source,
            tokens: self.tokens.0,
            targets: self.targets(),
            profiles: self.profiles,
            profile_folder: None,
            rehearses: true,
            variant: self.variant.as_ref().map(|variant| variant.0.clone()),
            best_instead: true,
            ..Config::new(&self.store, budget_bytes)
        }
    }

    /// Whether a daemon would start with these settings, by starting its engine and stopping it.
    /// Returns the number of models in the store.
    ///
    /// # Errors
    ///
    /// Those of the start: a store that cannot be read, a budget that is too small.
    pub fn try_engine(&self) -> Result<usize, EngineError> {
        let engine = Engine::start(self.engine())?;
        let models = engine.models();
        engine.shutdown();
        Ok(models?.len())
    }

    /// Time for running requests to end.
    pub fn drain_deadline(&self) -> Duration {
        Duration::from_secs(self.drain.into())
    }
}

fn budget_for(available_bytes: Option<u64>, limit_bytes: Option<u64>) -> u64 {
    let half = available_bytes.map_or(BLIND_BUDGET_BYTES, |available| available / 2);
    half.min(limit_bytes.map_or(u64::MAX, |limit| limit - limit / 4))
}

/// What can be set, by its name in the config; the order in which it is shown.
#[derive(Debug)]
pub struct Key {
    /// Its path in the config file, such as `rights.load`.
    pub name: &'static str,
    /// Whether a reload changes it.
    pub is_live: bool,
    /// What it is where it is not set.
    pub default: &'static str,
}

const fn key(name: &'static str, default: &'static str) -> Key {
    Key { name, is_live: false, default }
}

const fn live(name: &'static str, default: &'static str) -> Key {
    Key { name, is_live: true, default }
}

/// All keys.
pub const KEYS: [Key; 19] = [
    key("store", ""),
    key("socket", "none, as listen says what is served"),
    key("listen", "the socket alone"),
    live("token-file", "none, no token is asked for"),
    live("budget", "half of what the machine can give"),
    key("window", "planned, or chosen from the budget"),
    key("threads", "planned, or one a core"),
    key("loaders", "planned, or one for two cores"),
    key("source", "planned, or chosen by the disk's read-ahead"),
    key("variant", "the best that each model has"),
    live("latency", "no other than what the budget and the disk allow"),
    live("accuracy", "as close as the latency allows"),
    key("tokens", ""),
    key("profiles", ""),
    live("drain", ""),
    live("log", ""),
    live("rights.infer", ""),
    live("rights.load", ""),
    live("rights.install", ""),
];

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("HERMES_{}", self.name.replace(['.', '-'], "_").to_uppercase())
    }
}

/// A variant that there is a codec for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Variant(
    /// Its name.
    pub String,
);

impl TryFrom<String> for Variant {
    type Error = String;

    fn try_from(name: String) -> Result<Variant, String> {
        if codec::by_name(&name).is_some() {
            return Ok(Variant(name));
        }
        let known: Vec<&str> = codec::ALL.iter().map(|codec| codec.name()).collect();
        Err(format!("there is no variant {name:?}: there are {}", known.join(", ")))
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Variant, String> {
        Variant::try_from(name.to_string())
    }
}

/// The least grave messages that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The same for the log.
    pub fn filter(self) -> LevelFilter {
        match self {
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_leaves_room_for_others() {
        let check = |available, limit, expected| assert_eq!(budget_for(available, limit), expected);
        check(Some(1 << 30), None, 512 << 20);
        check(Some(1 << 30), Some(4 << 30), 512 << 20);
        check(Some(1 << 30), Some(64 << 20), 48 << 20);
        check(None, None, BLIND_BUDGET_BYTES);
        check(None, Some(32 << 20), 24 << 20);
        assert!(Settings::default().budget_bytes() > 0);
    }
}
