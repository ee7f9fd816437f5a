//! How many threads compute and load.

use hermes::engine::Config;

/// The threads of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crew {
    /// Of compute.
    pub threads: usize,
    pub loaders: usize,
}

/// 1, 2, 4 and 8 compute threads, and each number of loaders from 1 to 4.
pub const CREWS: [Crew; 4] = [
    Crew { threads: 1, loaders: 1 },
    Crew { threads: 2, loaders: 2 },
    Crew { threads: 4, loaders: 3 },
    Crew { threads: 8, loaders: 4 },
];

impl Crew {
    /// Every number of compute threads with every number of loaders.
    pub fn all() -> impl Iterator<Item = Crew> {
        let loaders = CREWS.map(|crew| crew.loaders);
        let threads = CREWS.map(|crew| crew.threads);
        threads.into_iter().flat_map(move |threads| {
            loaders.into_iter().map(move |loaders| Crew { threads, loaders })
        })
    }

    /// `config` with this crew.
    pub fn of(self, config: Config) -> Config {
        Config { threads: Some(self.threads), loaders: Some(self.loaders), ..config }
    }

    /// The same as arguments of hermesd.
    pub fn arguments(self) -> [String; 4] {
        let Crew { threads, loaders } = self;
        ["--threads".into(), threads.to_string(), "--loaders".into(), loaders.to_string()]
    }
}
