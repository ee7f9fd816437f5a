//! Loaders, compute, faults, pressure and ends, by chance: the traversal that every pass follows,
//! played as threads would play it, with a naive account of every byte beside it.
//!
//! A seed decides all of it. `HERMES_SEED=17 cargo test --test simulate` plays one again,
//! `HERMES_SEEDS=100000` so many. What fails is decided by block and lap, not by who comes first.

use hermes::stream::{Dealing, Release, Rules, Spot, Traversal, Wake, Work};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, resume_unwind};
use std::rc::Rc;

const SEEDS: u64 = 4000;

#[test]
fn every_traversal_ends_within_its_window_with_nothing_held() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    if let Some(seed) = number("HERMES_SEED") {
        return println!("{:?}", Simulation::new(seed).play());
    }
    let seeds = number("HERMES_SEEDS").unwrap_or(SEEDS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let endings = std::thread::scope(|scope| {
        let play = |first: u64| (first..seeds).step_by(threads as usize).map(play_told).collect();
        let players: Vec<_> =
            (0..threads).map(|first| scope.spawn(move || -> Vec<Ending> { play(first) })).collect();
        let mut endings = BTreeMap::new();
        for player in players {
            let played = player.join().unwrap_or_else(|panic| resume_unwind(panic));
            played.into_iter().for_each(|ending| *endings.entry(ending).or_insert(0) += 1);
        }
        endings
    });
    println!("{seeds} seeds: {endings:?}");
    for ending in [Ending::Played, Ending::LoadFailed, Ending::RowsFailed, Ending::Ended] {
        assert!(endings.contains_key(&ending), "none of {ending:?}: {endings:?}");
    }
}

fn play_told(seed: u64) -> Ending {
    catch_unwind(|| Simulation::new(seed).play()).unwrap_or_else(|panic| {
        eprintln!("HERMES_SEED={seed} cargo test --test simulate fails as this did");
        resume_unwind(panic)
    })
}

/// How a traversal came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Played,
    /// A load, or the loader.
    LoadFailed,
    /// What compute reads beside the tape.
    RowsFailed,
    /// Somebody else failed it.
    Failed,
    /// Compute was cancelled, or panicked.
    Ended,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What the seed decided.
#[derive(Debug)]
struct Case {
    seed: u64,
    agents: usize,
    turns: Dealing,
    release: Release,
    bytes: Vec<u64>,
    kinds: Vec<Kind>,
    /// Units as they are told, and how many blocks each has.
    told_units: Vec<usize>,
    units: Vec<usize>,
    window_bytes: u64,
    repeats: u64,
    /// Laps that compute plays: fewer where the tape goes on until the end.
    laps: u64,
    /// One load, or read of rows, in so many fails; 0 is none.
    faults_every: u64,
    /// Steps after which this happens.
    revoked_at: u64,
    failed_at: u64,
    ended_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Streamed,
    Pinned,
    Kept,
}

impl Case {
    fn new(seed: u64, random: &mut Random) -> Case {
        let blocks = random.below(25) as usize;
        let bytes: Vec<u64> = (0..blocks).map(|_| 1 + random.below(100)).collect();
        let mut left = blocks;
        let mut cut = vec![];
        let longest = 1 + random.below(6);
        while left > 0 {
            cut.push(left.min(1 + random.below(longest) as usize));
            left -= cut[cut.len() - 1];
        }
        let single = random.one_in(2);
        let units = if single { vec![1; blocks] } else { cut };
        let streamed = random.below(5);
        let kind = |random: &mut Random| match (random.below(4) < streamed, random.one_in(2)) {
            (true, _) => Kind::Streamed,
            (false, true) => Kind::Pinned,
            (false, false) => Kind::Kept,
        };
        let kinds: Vec<Kind> = (0..blocks).map(|_| kind(random)).collect();
        let laps = if random.one_in(2) { 1 } else { 1 + random.below(4) };
        let repeats = if random.one_in(4) { u64::MAX } else { laps - 1 };
        let release = if random.one_in(5) { Release::AtEnd } else { Release::AfterUse };
        let all = bytes.iter().zip(&kinds);
        let loaded: Vec<u64> =
            all.map(|(bytes, kind)| if *kind == Kind::Pinned { 0 } else { *bytes }).collect();
        let largest = |bytes: &[u64]| {
            let mut rest = bytes;
            let sums = units.iter().map(|length| {
                let (unit, others) = rest.split_at(*length);
                rest = others;
                unit.iter().sum::<u64>()
            });
            sums.max().unwrap_or(0)
        };
        let least_bytes = match (release, repeats) {
            (Release::AtEnd, _) => loaded.iter().sum(),
            (Release::AfterUse, 0) => largest(&loaded),
            (Release::AfterUse, _) => largest(&bytes),
        };
        let slack = random.below(400);
        let late = |random: &mut Random, chance| match random.one_in(chance) {
            true => random.below(40 * (blocks as u64 + 1)),
            false => u64::MAX,
        };
        Case {
            seed,
            agents: 1 + random.below(4) as usize,
            turns: if random.one_in(2) { Dealing::Next } else { Dealing::Stride },
            release,
            bytes,
            kinds,
            told_units: if single { vec![] } else { units.clone() },
            units,
            window_bytes: least_bytes + if random.one_in(3) { 0 } else { slack },
            repeats,
            laps,
            faults_every: if random.one_in(3) { 20 + random.below(100) } else { 0 },
            revoked_at: late(random, 2),
            failed_at: late(random, 8),
            ended_at: late(random, 5),
        }
    }

    fn strikes(&self, fault: Fault, block: usize, lap: u64) -> bool {
        let what = (block as u64) << 32 | lap << 4 | fault as u64;
        self.faults_every > 0 && Random(self.seed ^ Random(what).next()).one_in(self.faults_every)
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Error,
    Panic,
    Rows,
}

/// What is in memory: block and lap.
type Accounts = Rc<RefCell<BTreeMap<usize, (usize, Option<u64>)>>>;

/// The memory of a block; the accounts have it as long as anybody does.
struct Memory {
    id: usize,
    block: usize,
    /// The lap that it was loaded for; none where it was pinned before.
    lap: Option<u64>,
    accounts: Accounts,
}

impl Drop for Memory {
    fn drop(&mut self) {
        assert!(self.accounts.borrow_mut().remove(&self.id).is_some(), "given back twice");
    }
}

enum Loader {
    Awake,
    Waiting,
    Loading { unit: usize, missing: Vec<usize>, loaded: Vec<(usize, Rc<Memory>)> },
    Releasing { block: usize, memory: Option<Rc<Memory>> },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compute {
    Awake,
    WaitsForBlock,
    WaitsForLoaders,
    Gone,
}

struct Simulation {
    case: Case,
    random: Random,
    traversal: Traversal<Rc<Memory>>,
    /// How often each actor is chosen, compute last.
    weights: Vec<u64>,
    loaders: Vec<Loader>,
    compute: Compute,
    leases: Vec<(usize, Rc<Memory>)>,
    /// The next block to be leased, and its lap.
    next: (usize, u64),
    ending: Option<Ending>,
    is_revoked: bool,
    has_ended: bool,
    accounts: Accounts,
    /// What whoever pinned blocks has of them.
    pins: Vec<Rc<Memory>>,
    ids: usize,
    unit_of: Vec<usize>,
    /// Blocks given back of each unit, over all laps, and when the revocation was heeded.
    used: Vec<usize>,
    used_before: Option<Vec<usize>>,
    loads: BTreeSet<(usize, u64)>,
    claims: Vec<(usize, u64)>,
    arrived: u64,
    steps: u64,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = Random(seed);
        let case = Case::new(seed, &mut random);
        let accounts = Accounts::default();
        let blocks = case.bytes.len();
        let mut pins = vec![];
        let mut spots = vec![];
        for block in 0..blocks {
            let pinned = (case.kinds[block] == Kind::Pinned).then(|| {
                accounts.borrow_mut().insert(block, (block, None));
                let accounts = Rc::clone(&accounts);
                Rc::new(Memory { id: block, block, lap: None, accounts })
            });
            pins.extend(pinned.clone());
            let is_kept = case.kinds[block] == Kind::Kept;
            spots.push(Spot { bytes: case.bytes[block], pinned, is_kept });
        }
        let Case { window_bytes, turns, release, repeats, .. } = case;
        let rules = Rules { window_bytes, units: &case.told_units, turns, release, repeats };
        let traversal = Traversal::new(&rules, spots);
        let units = case.units.iter().enumerate();
        Simulation {
            traversal,
            weights: (0..=case.agents).map(|_| 1 << random.below(5)).collect(),
            loaders: (0..case.agents).map(|_| Loader::Awake).collect(),
            compute: Compute::Awake,
            leases: vec![],
            next: (0, 0),
            ending: None,
            is_revoked: false,
            has_ended: false,
            accounts,
            pins,
            ids: blocks,
            unit_of: units.flat_map(|(unit, length)| vec![unit; *length]).collect(),
            used: vec![0; case.units.len()],
            used_before: None,
            loads: BTreeSet::new(),
            claims: vec![(0, 0); case.agents],
            arrived: 0,
            steps: 0,
            random,
            case,
        }
    }

    fn play(mut self) -> Ending {
        while let Some(actor) = self.choose() {
            self.steps += 1;
            let most = 200 * (self.case.laps + 1) * (self.case.bytes.len() as u64 + 10);
            assert!(self.steps < most, "it goes on and on: {:?}", self.case);
            if self.steps == self.case.revoked_at {
                self.is_revoked = true;
                self.pins.clear();
            }
            if self.steps == self.case.failed_at && !self.has_ended {
                self.ending.get_or_insert(Ending::Failed);
                let wake = self.traversal.fail();
                self.wake(wake);
            }
            match self.loaders.len() == actor {
                true => self.step_compute(),
                false => self.step_loader(actor),
            }
            self.check();
        }
        assert!(self.compute == Compute::Gone, "compute waits for ever: {:?}", self.case);
        let waits = |loader: &Loader| !matches!(loader, Loader::Gone);
        assert!(!self.loaders.iter().any(waits), "a loader waits for ever: {:?}", self.case);
        assert!(self.accounts.borrow().len() == self.pins.len(), "memory is left: {:?}", self.case);
        self.ending.expect("it has ended")
    }

    /// Somebody who can go on.
    fn choose(&mut self) -> Option<usize> {
        let can_go_on = |actor: usize| match self.loaders.get(actor) {
            Some(loader) => !matches!(loader, Loader::Waiting | Loader::Gone),
            None => self.compute == Compute::Awake,
        };
        let actors: Vec<usize> = (0..=self.loaders.len()).filter(|a| can_go_on(*a)).collect();
        let sum: u64 = actors.iter().map(|actor| self.weights[*actor]).sum();
        let mut chosen = if sum > 0 { self.random.below(sum) } else { return None };
        actors.into_iter().find(|actor| {
            let weight = self.weights[*actor];
            let is_it = chosen < weight;
            chosen = chosen.wrapping_sub(weight);
            is_it
        })
    }

    fn wake(&mut self, wake: Wake) {
        if matches!(wake, Wake::Compute | Wake::Everybody) && self.compute != Compute::Gone {
            self.compute = Compute::Awake;
        }
        let waiting = self.loaders.iter().enumerate();
        let waiting = waiting.filter(|(_, loader)| matches!(loader, Loader::Waiting));
        let mut woken: Vec<usize> = waiting.map(|(index, _)| index).collect();
        match wake {
            Wake::Nobody | Wake::Compute => woken.clear(),
            Wake::Loader if !woken.is_empty() => {
                let kept = self.random.below(woken.len() as u64) as usize;
                woken = vec![woken[kept]];
            }
            Wake::Loader | Wake::Loaders | Wake::Everybody => {}
        }
        woken.into_iter().for_each(|index| self.loaders[index] = Loader::Awake);
    }

    fn step_loader(&mut self, agent: usize) {
        match std::mem::replace(&mut self.loaders[agent], Loader::Awake) {
            Loader::Awake => match self.traversal.next_work(agent, self.case.agents) {
                Work::Load(unit) => self.claim(agent, unit),
                Work::Release(block, memory) => {
                    assert!(self.case.release == Release::AfterUse, "nothing goes before the end");
                    self.loaders[agent] = Loader::Releasing { block, memory: Some(memory) };
                }
                Work::Wait => self.loaders[agent] = Loader::Waiting,
                Work::Done => self.loaders[agent] = Loader::Gone,
            },
            Loader::Loading { unit, missing, loaded } => self.load(agent, unit, missing, loaded),
            Loader::Releasing { block, memory: Some(memory) } => {
                assert_eq!(Rc::strong_count(&memory), 1, "block {block} goes with its loader");
                self.loaders[agent] = Loader::Releasing { block, memory: None };
            }
            Loader::Releasing { block, memory: None } => {
                let wake = self.traversal.left(block);
                self.wake(wake);
            }
            Loader::Waiting | Loader::Gone => unreachable!("it cannot go on"),
        }
    }

    /// The lap that compute is in with a unit, or comes to next.
    fn lap(&self, unit: usize) -> u64 {
        (self.used[unit] / self.case.units[unit]) as u64
    }

    fn claim(&mut self, agent: usize, unit: usize) {
        let missing: Vec<usize> = self.traversal.missing(unit).collect();
        assert!(!missing.is_empty() && missing.iter().all(|block| self.unit_of[*block] == unit));
        let lap = self.lap(unit);
        let place = lap * self.case.units.len() as u64 + unit as u64;
        let whose = match self.case.turns {
            Dealing::Next => 0,
            Dealing::Stride => agent,
        };
        if self.case.turns == Dealing::Stride {
            assert_eq!(place % self.case.agents as u64, agent as u64, "each has its own");
        }
        let (count, last) = self.claims[whose];
        assert!(count == 0 || last < place, "units are claimed in order: {:?}", self.case);
        self.claims[whose] = (count + 1, place);
        self.loaders[agent] = Loader::Loading { unit, missing, loaded: vec![] };
    }

    fn load(
        &mut self,
        agent: usize,
        unit: usize,
        missing: Vec<usize>,
        mut loaded: Vec<(usize, Rc<Memory>)>,
    ) {
        let Some(&block) = missing.get(loaded.len()) else {
            self.arrived += if self.has_ended { 0 } else { loaded.len() as u64 };
            let wake = self.traversal.arrived(unit, loaded);
            return self.wake(wake);
        };
        let lap = self.lap(unit);
        let panics = self.case.strikes(Fault::Panic, block, lap);
        if self.has_ended || panics || self.case.strikes(Fault::Error, block, lap) {
            // What was loaded goes first.
            drop(loaded);
            self.ending.get_or_insert(Ending::LoadFailed);
            self.loaders[agent] = if panics { Loader::Gone } else { Loader::Awake };
            let wake = self.traversal.lost();
            return self.wake(wake);
        }
        let is_there = self.accounts.borrow().values().any(|(other, _)| *other == block);
        assert!(!is_there, "block {block} is loaded while it is there: {:?}", self.case);
        assert!(self.loads.insert((block, lap)), "block {block} is loaded twice in lap {lap}");
        self.accounts.borrow_mut().insert(self.ids, (block, Some(lap)));
        let accounts = Rc::clone(&self.accounts);
        loaded.push((block, Rc::new(Memory { id: self.ids, block, lap: Some(lap), accounts })));
        self.ids += 1;
        self.loaders[agent] = Loader::Loading { unit, missing, loaded };
    }

    fn step_compute(&mut self) {
        if self.has_ended {
            return self.finish();
        }
        let (block, lap) = self.next;
        let is_ended = self.steps >= self.case.ended_at;
        let is_played = lap == self.case.laps || self.case.bytes.is_empty();
        if is_ended || self.traversal.is_over() || (is_played && self.leases.is_empty()) {
            let how = if is_ended { Ending::Ended } else { Ending::Played };
            let how = *self.ending.get_or_insert(how);
            assert!(how != Ending::Played || is_played, "over, and nothing has happened");
            self.has_ended = true;
            let wake = self.traversal.end();
            return self.wake(wake);
        }
        // Threads go on to the next block while others use those before; within a lap, since they
        // meet where an op ends.
        let may_lease = !is_played && self.leases.iter().all(|lease| lease.0 < block);
        if !may_lease || (!self.leases.is_empty() && self.random.one_in(2)) {
            let which = self.random.below(self.leases.len() as u64) as usize;
            let (block, memory) = self.leases.swap_remove(which);
            return self.give_back(block, memory);
        }
        if self.case.strikes(Fault::Rows, block, lap) {
            self.ending.get_or_insert(Ending::RowsFailed);
            let wake = self.traversal.fail();
            return self.wake(wake);
        }
        let Some(memory) = self.traversal.lease(block) else {
            // Those that use blocks go on.
            if self.leases.is_empty() {
                self.compute = Compute::WaitsForBlock;
            }
            return;
        };
        let stays = self.case.release == Release::AtEnd || self.case.kinds[block] != Kind::Streamed;
        let first = if self.case.kinds[block] == Kind::Pinned { None } else { Some(0) };
        let is_right = match stays {
            false => memory.lap == Some(lap),
            true if self.used_before.is_none() => memory.lap == first,
            true => memory.lap == first || memory.lap == Some(lap),
        };
        assert!(memory.block == block && is_right, "lap {lap}, block {block}: {:?}", self.case);
        self.leases.push((block, Rc::clone(memory)));
        let following = block + 1;
        let is_last = following == self.case.bytes.len();
        self.next = if is_last { (0, lap + 1) } else { (following, lap) };
    }

    fn heed_revocation(&mut self) {
        if self.is_revoked {
            self.used_before.get_or_insert(self.used.clone());
            let wake = self.traversal.revoke();
            self.wake(wake);
        }
    }

    fn give_back(&mut self, block: usize, memory: Rc<Memory>) {
        self.heed_revocation();
        self.used[self.unit_of[block]] += 1;
        let (wake, last) = self.traversal.give_back(block, memory);
        self.wake(wake);
        drop(last);
    }

    /// Waits for loaders, takes what was to be kept, and lets go what is still leased.
    fn finish(&mut self) {
        if self.traversal.is_busy() {
            self.compute = Compute::WaitsForLoaders;
            return;
        }
        self.heed_revocation();
        let kept = self.traversal.take_kept();
        let is_kept = |block: &usize| self.case.kinds[*block] == Kind::Kept && !self.is_revoked;
        assert!(kept.iter().all(|(block, memory)| is_kept(block) && memory.block == *block));
        let to_keep: BTreeSet<usize> =
            self.accounts.borrow().values().map(|(block, _)| *block).filter(is_kept).collect();
        assert_eq!(kept.len(), to_keep.len(), "all that is there and was to be kept");
        assert_eq!(self.traversal.released() + kept.len() as u64, self.arrived, "{:?}", self.case);
        drop(kept);
        for (block, memory) in std::mem::take(&mut self.leases) {
            let (wake, last) = self.traversal.give_back(block, memory);
            assert!(wake == Wake::Nobody && last.is_some(), "it has ended");
        }
        assert_eq!(self.accounts.borrow().len(), self.pins.len(), "memory is left");
        self.compute = Compute::Gone;
    }

    fn check(&mut self) {
        let accounts = self.accounts.borrow();
        let revoked_since = |unit: usize| self.used_before.as_ref().map(|before| before[unit]);
        let mut held_bytes = 0;
        for (block, lap) in accounts.values() {
            let unit = self.unit_of[*block];
            let stays = self.case.kinds[*block] == Kind::Kept && self.used[unit] > 0;
            let is_first = lap.is_none_or(|lap| lap == 0);
            held_bytes +=
                if lap.is_none() || (stays && is_first) { 0 } else { self.case.bytes[*block] };
        }
        let told_bytes = self.traversal.held_bytes();
        assert!(told_bytes <= self.case.window_bytes, "{told_bytes}: {:?}", self.case);
        let is_told = held_bytes <= told_bytes || self.has_ended;
        assert!(is_told, "{held_bytes} are held, not {told_bytes}: {:?}", self.case);
        if self.traversal.is_over() || self.loaders.iter().any(|l| matches!(l, Loader::Awake)) {
            return;
        }
        let is_at_work = |loader: &Loader| !matches!(loader, Loader::Waiting | Loader::Gone);
        if self.case.release == Release::AfterUse && !self.loaders.iter().any(is_at_work) {
            // Nobody is about to let anything go.
            for (block, lap) in accounts.values() {
                let unit = self.unit_of[*block];
                let is_coming = lap.is_some_and(|lap| lap >= self.lap(unit));
                let length = self.case.units[unit];
                let may_stay = self.case.kinds[*block] != Kind::Streamed
                    && revoked_since(unit)
                        .is_none_or(|before| before / length == self.used[unit] / length);
                assert!(is_coming || may_stay, "block {block} has not gone: {:?}", self.case);
            }
        }
        drop(accounts);
        // Who waits is right to.
        for agent in 0..self.loaders.len() {
            if matches!(self.loaders[agent], Loader::Waiting) {
                let work = self.traversal.next_work(agent, self.case.agents);
                let is_none = matches!(work, Work::Wait | Work::Done);
                assert!(is_none, "loader {agent} waits while there is work: {:?}", self.case);
            }
        }
    }
}
