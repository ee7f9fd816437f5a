//! Whether the board that a profile is of still is that board.

use super::board::Board;
use super::profile::Profile;
use std::fmt;

/// What has changed since a profile was measured. It reads as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    Version { was: String, is: String },
    Hermes { was: String, is: String },
    Cpu { was: String, is: String },
    Cores { was: Vec<usize>, is: Vec<usize> },
    Kernel { was: String, is: String },
    PageBytes { was: u64, is: u64 },
    Disk { was: String, is: String },
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut tell = |what: &str, was: &dyn fmt::Display, is: &dyn fmt::Display| {
            write!(f, "the profile is stale: {what} was {was} and is {is}")
        };
        match self {
            Stale::Version { was, is } => tell("the model's version", was, is),
            Stale::Hermes { was, is } => tell("the version of Hermes", was, is),
            Stale::Cpu { was, is } => tell("the processor", was, is),
            Stale::Cores { was, is } => {
                tell("the list of cores", &format!("{was:?}"), &format!("{is:?}"))
            }
            Stale::Kernel { was, is } => tell("the kernel", was, is),
            Stale::PageBytes { was, is } => tell("the page size in bytes", was, is),
            Stale::Disk { was, is } => tell("the disk", was, is),
        }
    }
}

impl Profile {
    /// What has changed since it was measured, if anything that matters has: `board` is the board
    /// now, `hermes` this version of Hermes, `version` the model's. Speeds of cores are figures,
    /// not identity.
    pub fn staleness(&self, board: &Board, hermes: &str, version: &str) -> Option<Stale> {
        if let Some((was, is)) = changed(&self.version, version) {
            return Some(Stale::Version { was, is });
        }
        staleness((&self.board, board), (&self.hermes, hermes))
    }
}

/// What has changed of a board and of Hermes, each as it was and as it is.
pub(super) fn staleness(
    (old, board): (&Board, &Board),
    (was_hermes, hermes): (&str, &str),
) -> Option<Stale> {
    let ids = |board: &Board| board.cores.iter().map(|core| core.id).collect::<Vec<_>>();
    if let Some((was, is)) = changed(was_hermes, hermes) {
        return Some(Stale::Hermes { was, is });
    }
    if let Some((was, is)) = changed(&old.cpu, &board.cpu) {
        return Some(Stale::Cpu { was, is });
    }
    if ids(old) != ids(board) {
        return Some(Stale::Cores { was: ids(old), is: ids(board) });
    }
    if let Some((was, is)) = changed(&old.kernel, &board.kernel) {
        return Some(Stale::Kernel { was, is });
    }
    if old.page_bytes != board.page_bytes {
        return Some(Stale::PageBytes { was: old.page_bytes, is: board.page_bytes });
    }
    changed(&old.disk, &board.disk).map(|(was, is)| Stale::Disk { was, is })
}

fn changed(was: &str, is: &str) -> Option<(String, String)> {
    (was != is).then(|| (was.to_owned(), is.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn check(change: impl FnOnce(&mut Board), expected: &str) {
        let profile = fixture::profile();
        let mut board = profile.board.clone();
        change(&mut board);
        let stale = profile.staleness(&board, &profile.hermes, &profile.version);
        assert_eq!(stale.map_or(String::new(), |stale| stale.to_string()), expected);
    }

    #[test]
    fn a_changed_board_makes_a_profile_stale() {
        check(|_| {}, "");
        check(|board| board.cores[0].speed = 0.9, "");
        check(
            |board| board.disk = "sdb1 ext4".into(),
            "the profile is stale: the disk was vda ext4 and is sdb1 ext4",
        );
        check(
            |board| board.kernel = "6.19".into(),
            "the profile is stale: the kernel was 6.18 and is 6.19",
        );
        check(
            |board| board.cores.truncate(1),
            "the profile is stale: the list of cores was [0, 1] and is [0]",
        );
        check(
            |board| board.cpu = "Cortex-A72".into(),
            "the profile is stale: the processor was EPYC and is Cortex-A72",
        );
        check(
            |board| board.page_bytes = 16384,
            "the profile is stale: the page size in bytes was 4096 and is 16384",
        );
    }

    #[test]
    fn another_version_makes_a_profile_stale() {
        let profile = fixture::profile();
        let text = |hermes, version| {
            profile.staleness(&profile.board, hermes, version).unwrap().to_string()
        };
        assert!(text("0.1.0", "2").ends_with("the model's version was 1 and is 2"));
        assert!(text("0.2.0", "1").ends_with("the version of Hermes was 0.1.0 and is 0.2.0"));
    }
}
