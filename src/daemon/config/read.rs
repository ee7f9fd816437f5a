//! Reading and merging: every value with its origin, every error with its place.

use super::super::address::Addresses;
use super::super::token::Token;
use super::models::{MODEL_KEYS, SECTION};
use super::{DEFAULT_PATH, KEYS, Key, Settings};
use crate::sys::capabilities::WITHOUT;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use toml::de::DeTable;
use toml::{Table, Value};

/// Most bytes of a config file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Mistakes in a name, at most, for it to be taken for another.
const MAX_MISTAKES: usize = 2;

/// A config that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The system refused.
    #[error("{path}: cannot read the config: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key or value is wrong.
    #[error("{origin}: {message}")]
    Wrong {
        /// Where it is.
        origin: Origin,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
            Origin::Environment(variable) => f.write_str(variable),
            Origin::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// Where the settings are read from, again at each reload.
#[derive(Clone, Debug)]
pub struct ConfigSources {
    /// The file that the command line names.
    path: Option<PathBuf>,
    environment: Vec<(String, String)>,
    flags: Table,
}

impl ConfigSources {
    /// The config file (a named one must be there), the process's environment, and `flags`: a
    /// structure whose fields are keys.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Wrong`] for flags that TOML cannot hold, such as a path that is not UTF-8.
    pub fn new(
        path: Option<PathBuf>,
        flags: &impl Serialize,
    ) -> Result<ConfigSources, ConfigError> {
        let flags = Table::try_from(flags).map_err(|error| ConfigError::Wrong {
            origin: Origin::Flag("store".to_string()),
            message: format!("a flag cannot be used: {error}"),
        })?;
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let ours = |(name, _): &(String, String)| name.starts_with("HERMES_") && name != WITHOUT;
        let environment = std::env::vars_os().filter_map(text).filter(ours).collect();
        Ok(ConfigSources { path, environment, flags })
    }

    /// Reads and merges everything.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn read(&self) -> Result<Effective, ConfigError> {
        let mut effective = Effective {
            settings: Settings::default(),
            files: vec![],
            warnings: vec![],
            token: None,
            values: BTreeMap::new(),
            model_values: BTreeMap::new(),
        };
        let path = self.path.clone().unwrap_or_else(|| DEFAULT_PATH.into());
        match read_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.is_none() => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
            Ok(text) => effective.add_file(&path, &text)?,
        }
        for path in drop_ins(&path)? {
            let text = read_file(&path)
                .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            effective.add_file(&path, &text)?;
        }
        for (variable, text) in &self.environment {
            effective.add_variable(variable, text)?;
        }
        for (name, value) in &self.flags {
            effective.add(find(&KEYS, name), value.clone(), Origin::Flag(name.clone()))?;
        }
        effective.finish()?;
        Ok(effective)
    }
}

/// The settings in force and where each comes from.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The values.
    pub settings: Settings,
    /// Files that were read, in order.
    pub files: Vec<PathBuf>,
    /// What is odd but no error.
    pub warnings: Vec<String>,
    /// What `token-file` holds.
    pub token: Option<Token>,
    values: BTreeMap<&'static str, (Value, Origin)>,
    /// Those of `[models.NAME]`, by the name and the key.
    model_values: BTreeMap<(String, &'static str), (Value, Origin)>,
}

impl Effective {
    /// What was set for a key, and where.
    pub fn value(&self, key: &Key) -> Option<&(Value, Origin)> {
        self.values.get(key.name)
    }

    /// What was set for single models, and where: by the model's name and the key.
    pub fn model_values(&self) -> impl Iterator<Item = (&str, &'static str, &(Value, Origin))> {
        self.model_values.iter().map(|((model, key), set)| (model.as_str(), *key, set))
    }

    /// The keys that `newer` sets otherwise and that only a restart changes.
    pub fn needs_restart(&self, newer: &Effective) -> Vec<&'static Key> {
        fn set<'a>(effective: &'a Effective, key: &Key) -> Option<&'a Value> {
            effective.value(key).map(|(value, _)| value)
        }
        let differs = |key: &&Key| !key.is_live && set(self, key) != set(newer, key);
        KEYS.iter().filter(differs).collect()
    }

    /// Takes over from `newer` what a reload may change.
    pub fn take_live(&mut self, newer: Effective) {
        for key in KEYS.iter().filter(|key| key.is_live) {
            self.values.remove(key.name);
        }
        let is_live = |name: &str| KEYS.iter().any(|key| key.is_live && key.name == name);
        self.values.extend(newer.values.into_iter().filter(|(name, _)| is_live(name)));
        self.model_values = newer.model_values;
        self.token = newer.token;
        let settings = std::mem::take(&mut self.settings);
        let Settings { token_file, budget, latency, accuracy, .. } = newer.settings;
        let settings = Settings { token_file, budget, latency, accuracy, ..settings };
        let Settings { drain, log, rights, models, .. } = newer.settings;
        self.settings = Settings { drain, log, rights, models, ..settings };
    }

    /// Goes back to the budget of `older`.
    pub fn keep_budget(&mut self, older: &Effective) {
        self.settings.budget = older.settings.budget;
        match older.values.get("budget") {
            Some(value) => drop(self.values.insert("budget", value.clone())),
            None => drop(self.values.remove("budget")),
        }
    }

    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let wrong = |offset: usize, message: String| {
            let line = text[..offset.min(text.len())].matches('\n').count() + 1;
            Err(ConfigError::Wrong { origin: Origin::File(path.to_owned(), line), message })
        };
        let broken = |error: toml::de::Error| {
            wrong(error.span().map_or(0, |span| span.start), error.message().to_string())
        };
        let places = match places(text) {
            Ok(places) => places,
            Err(error) => return broken(error),
        };
        if let Some((path, offset)) = places.iter().find(|(path, _)| !is_known(path)) {
            return wrong(*offset, unknown(path));
        }
        // Types and values, each error with its span.
        if let Err(error) = toml::from_str::<Settings>(text) {
            return broken(error);
        }
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return broken(error),
        };
        for (path_of, offset) in &places {
            let parts = &mut path_of.iter();
            let first = parts.next().and_then(|part| table.get(part));
            let value = parts.fold(first, |within, part| within?.get(part));
            let line = text[..*offset].matches('\n').count() + 1;
            let origin = Origin::File(path.to_owned(), line);
            match (value, &path_of[..]) {
                (Some(value), [section, model, key]) if section == SECTION => {
                    let key = find(&MODEL_KEYS, key).name;
                    self.model_values.insert((model.clone(), key), (value.clone(), origin));
                }
                (Some(value), of) => self.add(find(&KEYS, &of.join(".")), value.clone(), origin)?,
                (None, _) => {}
            }
        }
        self.files.push(path.to_owned());
        Ok(())
    }

    fn add_variable(&mut self, variable: &str, text: &str) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.variable() == variable) else {
            let variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
            if let Some(nearest) = nearest(variable, variables.iter().map(String::as_str)) {
                self.warnings.push(format!("{variable} sets nothing: did you mean {nearest}?"));
            }
            return Ok(());
        };
        let value = match key.name.starts_with("rights.") || key.name == "listen" {
            true => {
                let parts = text.split([',', ' ']).filter(|part| !part.is_empty());
                Value::Array(parts.map(Value::from).collect())
            }
            false => match key.name {
                "threads" | "loaders" | "tokens" | "drain" => text.parse().map(Value::Integer).ok(),
                "profiles" => text.parse().map(Value::Boolean).ok(),
                "accuracy" => text.parse().map(Value::Float).ok(),
                _ => None,
            }
            .unwrap_or_else(|| Value::String(text.to_string())),
        };
        self.add(key, value, Origin::Environment(variable.to_string()))
    }

    /// Sets a key after checking its value alone.
    fn add(&mut self, key: &'static Key, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let table = nest([(key.name, value.clone())]);
        if let Err(error) = table.try_into::<Settings>() {
            let message = error.message().to_string();
            return Err(ConfigError::Wrong { origin, message });
        }
        self.values.insert(key.name, (value, origin));
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ConfigError> {
        let values = self.values.iter().map(|(name, (value, _))| (*name, value.clone()));
        let mut table = nest(values);
        let mut models = Table::new();
        for ((model, key), (value, _)) in &self.model_values {
            let model = models.entry(model).or_insert_with(|| Table::new().into());
            if let Value::Table(model) = model {
                model.insert((*key).to_owned(), value.clone());
            }
        }
        table.insert(SECTION.to_owned(), models.into());
        self.settings = table.try_into().expect("each value was checked when it was added");
        let wrong = |name: &str, message: String| {
            Err(ConfigError::Wrong { origin: self.values[name].1.clone(), message })
        };
        if let Settings { budget: Some(budget), window: Some(window), .. } = &self.settings
            && window.0 >= budget.0
        {
            let message = format!(
                "a window of {} bytes does not fit into the budget of {} bytes ({})",
                window.0, budget.0, self.values["budget"].1
            );
            return wrong("window", message);
        }
        let mut listen = self.settings.listen.iter().flat_map(Addresses::iter);
        let Some(path) = &self.settings.token_file else {
            // Whoever scans a network finds what asks nobody for anything.
            return listen.find(|address| address.is_open()).map_or(Ok(()), |open| {
                let message = format!("other machines may reach {open}: set token-file too");
                wrong("listen", message)
            });
        };
        match Token::read(path) {
            Ok(token) => self.token = Some(token),
            Err(error) => return wrong("token-file", error.to_string()),
        }
        Ok(())
    }
}

fn find(keys: &'static [Key], name: &str) -> &'static Key {
    keys.iter().find(|key| key.name == name).expect("the name was checked")
}

/// Whether a path in a file is that of a key.
fn is_known(path: &[String]) -> bool {
    match path {
        [section, _, key] if section == SECTION => MODEL_KEYS.iter().any(|known| known.name == key),
        _ => KEYS.iter().any(|known| known.name == path.join(".")),
    }
}

/// A table of keys whose names are paths.
fn nest<'a>(values: impl IntoIterator<Item = (&'a str, Value)>) -> Table {
    let mut table = Table::new();
    for (name, value) in values {
        match name.split_once('.') {
            None => drop(table.insert(name.to_string(), value)),
            Some((section, name)) => {
                let section = table.entry(section).or_insert_with(|| Table::new().into());
                if let Value::Table(section) = section {
                    section.insert(name.to_string(), value);
                }
            }
        }
    }
    table
}

/// The paths of all keys in a file and the offsets at which they stand.
fn places(text: &str) -> Result<Vec<(Vec<String>, usize)>, toml::de::Error> {
    let table = DeTable::parse(text)?;
    let mut places = vec![];
    add_places(table.get_ref(), &[], &mut places);
    // The first mistake of a file is told first.
    places.sort_by_key(|(_, offset)| *offset);
    Ok(places)
}

/// Those below `within`: sections have keys, and that of models has a section for each.
fn add_places(table: &DeTable<'_>, within: &[String], places: &mut Vec<(Vec<String>, usize)>) {
    for (key, value) in table {
        let path = [within, &[key.get_ref().to_string()]].concat();
        let has_sections = within.is_empty() || within == [SECTION];
        match value.get_ref().as_table() {
            Some(section) if has_sections => add_places(section, &path, places),
            _ => places.push((path, key.span().start)),
        }
    }
}

fn unknown(path: &[String]) -> String {
    let name = path.join(".");
    if path[0] == SECTION {
        let keys = MODEL_KEYS.map(|key| key.name).join(" and ");
        return format!("there is no key {name:?}: [{SECTION}.NAME] has {keys}");
    }
    match nearest(&name, KEYS.iter().map(|key| key.name)) {
        Some(nearest) => format!("there is no key {name:?}: did you mean {nearest:?}?"),
        None => {
            let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
            format!("there is no key {name:?}; the keys are {}", names.join(", "))
        }
    }
}

/// The name that `name` is nearest to, if it is near: a few mistakes away, or without the section.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let mistakes = |known: &str| {
        let known = known.to_lowercase();
        let short = known.rsplit('.').next().unwrap_or(&known);
        let within = name.rsplit('.').next().unwrap_or(&name);
        strsim::damerau_levenshtein(&name, &known).min(strsim::damerau_levenshtein(within, short))
    };
    let (mistakes, nearest) = known.map(|known| (mistakes(known), known)).min()?;
    (mistakes <= MAX_MISTAKES.min(name.len() / 2)).then_some(nearest)
}

/// The drop-ins of a config file, `<path>.d/*.conf` and `*.toml`, by name.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let failed = |source| ConfigError::Read { path: folder.clone(), source };
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(failed)?,
    };
    let mut paths = vec![];
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_ours = path.extension().is_some_and(|end| end == "conf" || end == "toml");
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        if is_ours && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a regular file: a FIFO or a terminal would be waited for, for ever where nobody writes.
fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // Without this flag, opening a FIFO waits already.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let bytes = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if bytes as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::{Bytes, Level};
    use crate::daemon::rights::Right;
    use crate::plan::Way;
    use crate::values::Latency;

    fn sources(text: &str) -> (tempfile::TempDir, ConfigSources) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, text).unwrap();
        let sources = ConfigSources { path: Some(path), environment: vec![], flags: Table::new() };
        (folder, sources)
    }

    /// The error of a config of one file, without the folder.
    fn check(text: &str, expected: &str) {
        let (folder, sources) = sources(text);
        let error = sources.read().unwrap_err().to_string();
        let error = error.replace(&format!("{}/", folder.path().display()), "");
        assert!(error.starts_with(expected), "{error:?} for {text:?}");
    }

    #[test]
    fn mistakes_are_told_with_line_and_nearest_key() {
        check(
            "\nbudgt = \"1MiB\"\n",
            "c.toml:2: there is no key \"budgt\": did you mean \"budget\"?",
        );
        check(
            "Budget = \"1MiB\"",
            "c.toml:1: there is no key \"Budget\": did you mean \"budget\"?",
        );
        check(
            "drain = 1\n[rights]\n\ninfr = []\n",
            "c.toml:4: there is no key \"rights.infr\": did you mean \"rights.infer\"?",
        );
        check("load = []", "c.toml:1: there is no key \"load\": did you mean \"rights.load\"?");
        check("colour = 1", "c.toml:1: there is no key \"colour\"; the keys are store, socket");
        check("[store]\nx = 1", "c.toml:2: there is no key \"store.x\"");
        check("\n\nbudget = \"64Mbit\"", "c.toml:3: \"64Mbit\" is not a size");
        check("budget = -1", "c.toml:1: invalid value: integer `-1`, expected a size");
        check("budget = true", "c.toml:1: invalid type: boolean `true`, expected a size");
        check("threads = 0", "c.toml:1: 0 threads: give 1 to 255");
        check("loaders = 99999", "c.toml:1: 99999 threads: give 1 to 255");
        check("tokens = 0", "c.toml:1: 0 tokens: give 1 to 1000000");
        check("profiles = 1", "c.toml:1: invalid type: integer `1`, expected a boolean");
        check("source = \"ram\"", "c.toml:1: unknown variant `ram`, expected `mapped` or `direct`");
        check("drain = 1.5", "c.toml:1: invalid type: floating point `1.5`, expected u32");
        check("variant = \"q9\"", "c.toml:1: there is no variant \"q9\": there are f32, bf16");
        check("log = \"loud\"", "c.toml:1: unknown variant `loud`, expected one of `error`");
        check("rights = 3", "c.toml:1: there is no key \"rights\"");
        check(
            "[rights]\nload = [\n \"root\",\n \"no such user\",\n]",
            "c.toml:2: there is no user \"no such user\"",
        );
        check("latency = 0", "c.toml:1: no answer takes no time");
        check("latency = \"31536000s\"", "c.toml:1: 31536000s is more than an hour");
        check("latency = 0.4", "c.toml:1: invalid type: floating point `0.4`, expected a time");
        check("\naccuracy = 2", "c.toml:2: an accuracy of 2: give more than 0 and at most 1");
        check("accuracy = nan", "c.toml:1: an accuracy of NaN");
        check("[models.m]\n\nlatency = \"0ms\"", "c.toml:3: no answer takes no time");
        check(
            "[models.m]\nvariant = \"q8\"",
            "c.toml:2: there is no key \"models.m.variant\": [models.NAME] has latency and accuracy",
        );
        check("models = 3", "c.toml:1: there is no key \"models\": [models.NAME] has");
        check("[models]\nlatency = 1", "c.toml:2: there is no key \"models.latency\"");
        check("[models.m.n]\nlatency = 1", "c.toml:1: there is no key \"models.m.n\"");
        check("drain = 1\ndrain = 2", "c.toml:2: duplicate key");
        check("drain 1", "c.toml:1: ");
        check(
            "window = \"2MiB\"\nbudget = \"1MiB\"",
            "c.toml:1: a window of 2097152 bytes does not",
        );
    }

    #[test]
    fn later_sources_win_key_by_key() {
        let (folder, mut sources) = sources("budget = \"64MiB\"\ndrain = 1\nlog = \"warn\"\n");
        let drop_in = |name: &str, text: &str| {
            let folder = folder.path().join("c.toml.d");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), text).unwrap();
        };
        drop_in("20-b.conf", "drain = 3\n[rights]\nload = [\"7\"]");
        drop_in("10-a.toml", "drain = 2\nwindow = 4194304");
        drop_in("README", "this is none");
        drop_in(".hidden.conf", "nor is this");
        sources.environment = vec![
            ("HERMES_BUDGET".to_string(), "65MiB".to_string()),
            ("HERMES_THREADS".to_string(), "3".to_string()),
            ("HERMES_TOKENS".to_string(), "64".to_string()),
            ("HERMES_PROFILES".to_string(), "false".to_string()),
            ("HERMES_SOURCE".to_string(), "direct".to_string()),
            ("HERMES_RIGHTS_INFER".to_string(), "1,2 @3".to_string()),
            ("HERMES_BUDGT".to_string(), "1MiB".to_string()),
            ("HERMES_MODELS".to_string(), "/models".to_string()),
        ];
        sources.flags = nest([("budget", Value::String("66MiB".to_string()))]);
        let effective = sources.read().unwrap();
        let settings = &effective.settings;
        assert_eq!(settings.budget, Some(Bytes(66 << 20)));
        assert_eq!(settings.window, Some(Bytes(4 << 20)));
        assert_eq!(settings.threads.unwrap().0.get(), 3);
        assert_eq!((settings.tokens.0, settings.profiles), (64, false));
        assert_eq!(settings.source, Some(Way::Direct));
        assert_eq!((settings.drain, settings.log), (3, Level::Warn));
        assert_eq!(settings.rights.texts(Right::Infer), ["1", "2", "@3"]);
        assert_eq!(settings.rights.texts(Right::Load), ["7"]);
        assert_eq!(settings.rights.texts(Right::Install), ["root", "self"]);
        let origin = |name| effective.values[name].1.to_string();
        assert_eq!(origin("budget"), "--budget");
        assert_eq!(origin("threads"), "HERMES_THREADS");
        assert!(origin("drain").ends_with("c.toml.d/20-b.conf:1"));
        assert_eq!(effective.files.len(), 3);
        assert_eq!(effective.warnings, ["HERMES_BUDGT sets nothing: did you mean HERMES_BUDGET?"]);
        sources.environment = vec![("HERMES_THREADS".to_string(), "many".to_string())];
        let error = sources.read().unwrap_err().to_string();
        assert!(error.starts_with("HERMES_THREADS: invalid type"), "{error}");
    }

    #[test]
    fn models_have_targets_of_their_own() {
        let (folder, mut sources) = sources(
            "latency = 2\n[models.\"all.MiniLM-L6\"]\nlatency = \"400ms\"\naccuracy = 0.98\n",
        );
        let drop_ins = folder.path().join("c.toml.d");
        fs::create_dir_all(&drop_ins).unwrap();
        let drop_in = "[models.\"all.MiniLM-L6\"]\naccuracy = 0.99\n[models.other]\naccuracy = 1";
        fs::write(drop_ins.join("a.conf"), drop_in).unwrap();
        sources.environment = vec![("HERMES_ACCURACY".to_string(), "0.9".to_string())];
        let effective = sources.read().unwrap();
        let Settings { latency, accuracy, models, .. } = &effective.settings;
        assert_eq!(
            (latency.map(Latency::us), accuracy.map(f64::from)),
            (Some(2_000_000), Some(0.9))
        );
        let of = |name: &str| (models[name].latency.map(Latency::us), models[name].accuracy);
        assert_eq!(of("all.MiniLM-L6"), (Some(400_000), Some(0.99.try_into().unwrap())));
        assert_eq!(of("other"), (None, Some(1.0.try_into().unwrap())));
        let targets = effective.settings.targets();
        let of = |name: &str| (targets.of(name).latency_us, targets.of(name).accuracy);
        assert_eq!(of("all.MiniLM-L6"), (Some(4e5), Some(0.99)));
        assert_eq!(of("other"), (Some(2e6), Some(1.0)));
        assert_eq!(of("of nobody"), (Some(2e6), Some(0.9)));
        let shown = super::super::show(&effective);
        let own = shown.split_once("[models.\"all.MiniLM-L6\"]\n").unwrap().1;
        assert!(own.starts_with("accuracy = 0.99  # ") && own.contains("a.conf:2\n"), "{shown}");
        let path = folder.path().join("shown.toml");
        fs::write(&path, &shown).unwrap();
        let again = ConfigSources { path: Some(path), environment: vec![], flags: Table::new() };
        assert_eq!(again.read().unwrap().settings.models, effective.settings.models);

        sources.environment.clear();
        let mut running = effective;
        fs::remove_dir_all(drop_ins).unwrap();
        running.take_live(sources.read().unwrap());
        assert_eq!(running.settings.accuracy, None);
        assert_eq!(running.settings.models.keys().collect::<Vec<_>>(), ["all.MiniLM-L6"]);
        assert!(!super::super::show(&running).contains("other"));
    }

    #[test]
    fn only_a_named_file_must_be_there() {
        let path = Some(PathBuf::from("/nowhere/at/all.toml"));
        let sources = ConfigSources { path, environment: vec![], flags: Table::new() };
        let error = sources.read().unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/at/all.toml: cannot read the config"), "{error}");
    }

    #[test]
    fn a_reload_changes_what_is_live_and_names_the_rest() {
        let (_folder, before) = sources("budget = \"64MiB\"\ndrain = 1\nthreads = 2");
        let (_other, after) = sources("budget = \"65MiB\"\ndrain = 2\n");
        let (mut running, newer) = (before.read().unwrap(), after.read().unwrap());
        let keys: Vec<&str> = running.needs_restart(&newer).iter().map(|key| key.name).collect();
        assert_eq!(keys, ["threads"]);
        let mut refused = newer.clone();
        refused.keep_budget(&running);
        assert_eq!(refused.settings.budget, Some(Bytes(64 << 20)));
        running.take_live(newer);
        assert_eq!(running.settings.drain, 2);
        assert_eq!(running.settings.budget, Some(Bytes(65 << 20)));
        assert_eq!(running.settings.threads.unwrap().0.get(), 2);
    }
}
