//! Looking for oneself how short memory is, where nobody tells.

use crate::engine::Pressure;
use crate::sys::capabilities::Capabilities;
use crate::sys::cgroup::{Filling, MemoryCgroup};
use crate::sys::memory::{self, MachineMemory};
use crate::values::size::Size;

/// Memory is short where the machine can give less than this part of what it has, and how far that
/// counts. A small board may live with little for ever; work is held where the end is near.
const SHORT_SHARES: [(u64, Pressure); 3] =
    [(40, Pressure::Hold), (20, Pressure::Window), (8, Pressure::Pins)];

/// Where the machine can give this part of what it has, it is not the machine that is short.
const PLENTY_SHARE: u64 = 4;

/// A cgroup is nearly full where this many tenths of its limit are held, and tight below that.
const NEARLY_TENTHS: u64 = 9;
const TIGHT_TENTHS: u64 = 8;

/// Tenths of its limit that must be held for a hit of the limit to count: page cache that nobody
/// maps, such as that of a model being installed, hits it without harm.
const HIT_TENTHS: u64 = 5;

/// How a look at the figures turned out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// There is enough.
    Ample,
    /// Neither nor.
    Tight,
    /// Memory is short, as far as `most` says.
    Short { most: Pressure, why: String },
}

impl Look {
    /// The same, but no reason for more than `level`.
    pub fn at_most(self, level: Pressure) -> Look {
        match self {
            Look::Short { most, why } => Look::Short { most: most.min(level), why },
            look => look,
        }
    }
}

/// Compares the figures with limits and with those before.
#[derive(Debug)]
pub struct Looker {
    machine: fn() -> Option<MachineMemory>,
    group: Option<MemoryCgroup>,
    /// Of each cgroup with a limit on the way up.
    hits: Vec<u64>,
}

impl Looker {
    /// For this process.
    pub fn of_self() -> Looker {
        Looker {
            machine: memory::machine,
            group: Capabilities::get().memory_cgroup(),
            hits: vec![],
        }
    }

    /// For a machine that is not this one, and no cgroup.
    #[cfg(test)]
    pub fn fake(machine: fn() -> Option<MachineMemory>) -> Looker {
        Looker { machine, group: None, hits: vec![] }
    }

    /// Looks.
    pub fn look(&mut self) -> Look {
        let fillings = self.fillings();
        self.judge((self.machine)(), &fillings)
    }

    /// Whether neither the machine nor a limit of ours can be what is short.
    pub fn is_plenty(&self) -> bool {
        is_plenty((self.machine)(), &self.fillings())
    }

    fn fillings(&self) -> Vec<Filling> {
        self.group.as_ref().map(MemoryCgroup::fillings).unwrap_or_default()
    }

    fn judge(&mut self, machine: Option<MachineMemory>, fillings: &[Filling]) -> Look {
        let hits: Vec<u64> = fillings.iter().map(|filling| filling.hits).collect();
        let before = std::mem::replace(&mut self.hits, hits);
        // A limit that was set since says nothing of what came before.
        let is_known = before.len() == fillings.len();
        let judge = |(index, filling): (usize, &Filling)| {
            Look::of_group(*filling, if is_known { before[index] } else { filling.hits })
        };
        let groups = fillings.iter().enumerate().map(judge);
        // What is worse counts.
        groups.chain(machine.map(judge_machine)).max().unwrap_or(Look::Ample)
    }
}

impl Look {
    /// At a cgroup with a limit that was hit so often `before`.
    fn of_group(filling: Filling, before: u64) -> Look {
        let Filling { held_bytes, limit_bytes, hits } = filling;
        let why = format!("the cgroup holds {} of {}", Size(held_bytes), Size(limit_bytes));
        if hits > before && holds(filling, HIT_TENTHS) {
            let why = format!("{why} and hit its limit {} times", hits - before);
            return Look::Short { most: Pressure::Hold, why };
        }
        if holds(filling, NEARLY_TENTHS) {
            return Look::Short { most: Pressure::Window, why };
        }
        if holds(filling, TIGHT_TENTHS) { Look::Tight } else { Look::Ample }
    }
}

fn is_plenty(machine: Option<MachineMemory>, fillings: &[Filling]) -> bool {
    let machine = machine.is_some_and(|of| of.available_bytes >= of.total_bytes / PLENTY_SHARE);
    machine && !fillings.iter().any(|filling| holds(*filling, HIT_TENTHS))
}

/// Whether a cgroup holds this many tenths of its limit.
fn holds(filling: Filling, tenths: u64) -> bool {
    filling.held_bytes / tenths >= filling.limit_bytes / 10
}

fn judge_machine(machine: MachineMemory) -> Look {
    let MachineMemory { total_bytes, available_bytes } = machine;
    let short = SHORT_SHARES.iter().find(|(share, _)| available_bytes < total_bytes / share);
    if let Some((_, most)) = short {
        let why = format!("MemAvailable is {} of {}", Size(available_bytes), Size(total_bytes));
        return Look::Short { most: *most, why };
    }
    if machine.spare_bytes() == 0 { Look::Tight } else { Look::Ample }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_the_machine_can_give_is_judged_by_what_it_has() {
        let short = |most, mib| {
            let why = format!("MemAvailable is {mib} MiB of 1000 MiB");
            Look::Short { most, why }
        };
        let check = |available: u64, expected: Look| {
            let machine =
                MachineMemory { total_bytes: 1000 * MIB, available_bytes: available * MIB };
            let mut looker = Looker::fake(|| None);
            assert_eq!(looker.judge(Some(machine), &[]), expected, "{available} MiB");
        };
        check(24, short(Pressure::Hold, 24));
        check(25, short(Pressure::Window, 25));
        check(50, short(Pressure::Pins, 50));
        check(124, short(Pressure::Pins, 124));
        check(125, Look::Tight);
        check(166, Look::Tight);
        check(167, Look::Ample);
        assert_eq!(Looker::fake(|| None).judge(None, &[]), Look::Ample);
    }

    #[test]
    fn a_cgroup_is_judged_by_its_limit_and_how_often_it_was_hit() {
        let mut looker = Looker::fake(|| None);
        let mut check = |held: u64, hits: u64, expected: &str| {
            let filling = Filling { held_bytes: held * MIB, limit_bytes: 100 * MIB, hits };
            let ample = MachineMemory { total_bytes: 8, available_bytes: 8 };
            let said = match looker.judge(Some(ample), &[filling]) {
                Look::Short { most, why } => format!("{}: {why}", most.name()),
                look => format!("{look:?}"),
            };
            assert_eq!(said, expected, "{held} MiB, {hits} hits");
        };
        // Hits from before the first look say nothing of now.
        check(60, 7, "Ample");
        check(60, 9, "hold: the cgroup holds 60 MiB of 100 MiB and hit its limit 2 times");
        check(60, 9, "Ample");
        check(40, 99, "Ample");
        check(80, 99, "Tight");
        check(90, 99, "window: the cgroup holds 90 MiB of 100 MiB");
        check(90, 100, "hold: the cgroup holds 90 MiB of 100 MiB and hit its limit 1 times");
    }

    /// A slice around the unit may be full while the unit has room.
    #[test]
    fn each_cgroup_on_the_way_up_is_judged_by_itself() {
        let mut looker = Looker::fake(|| None);
        let mut look = |own: (u64, u64), above: (u64, u64)| {
            let of =
                |(held, hits)| Filling { held_bytes: held * MIB, limit_bytes: 100 * MIB, hits };
            match looker.judge(None, &[of(own), of(above)]) {
                Look::Short { most, .. } => most.name(),
                _ => "ample",
            }
        };
        assert_eq!(look((10, 0), (60, 5)), "ample");
        assert_eq!(look((10, 0), (95, 5)), "window");
        assert_eq!(look((10, 0), (60, 6)), "hold");
        assert_eq!(look((10, 9), (60, 6)), "ample", "page cache that nobody maps");
    }

    #[test]
    fn what_is_worse_counts() {
        let mut looker = Looker::fake(|| None);
        let filling = Filling { held_bytes: 90, limit_bytes: 100, hits: 0 };
        let mut most = |available_bytes| {
            let machine = MachineMemory { total_bytes: 1000, available_bytes };
            match looker.judge(Some(machine), &[filling]) {
                Look::Short { most, .. } => most,
                look => panic!("{look:?}"),
            }
        };
        assert_eq!(most(99), Pressure::Window);
        assert_eq!(most(24), Pressure::Hold);
    }

    #[test]
    fn plenty_is_a_quarter_of_the_machine_and_half_of_the_limit() {
        let check = |available: u64, held: Option<u64>, expected: bool| {
            let machine = MachineMemory { total_bytes: 400, available_bytes: available };
            let of = |held| Filling { held_bytes: held, limit_bytes: 100, hits: 9 };
            let fillings: Vec<Filling> = held.map(of).into_iter().collect();
            assert_eq!(is_plenty(Some(machine), &fillings), expected, "{available}, {held:?}");
        };
        check(100, None, true);
        check(99, None, false);
        check(100, Some(49), true);
        check(100, Some(50), false);
        assert!(!is_plenty(None, &[]), "who knows nothing doubts nobody");
    }
}
