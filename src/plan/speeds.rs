//! How fast loaders and compute are while so many of them are at work at once.

use super::disk::DiskCurve;
use super::profile::Profile;
use super::{Plan, Way};

/// Steps of the search for a rate: each halves what is left of its interval.
const SEARCH_STEPS: usize = 50;

/// Part of compute's time that loaders on its cores leave it at least.
const LEAST_COMPUTE: f64 = 0.05;

/// Speeds in one state of a pass.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Bytes a microsecond that a loader brings in on a core where compute runs too.
    pub shared_load: f64,
    /// The same on a core where compute does not run.
    pub alone_load: f64,
    /// Of compute, 1 being undisturbed.
    pub compute: f64,
}

/// Which cores everybody has, and what follows for their speeds.
pub struct Speeds {
    /// By loader: whether compute has its core too.
    pub is_shared: Vec<bool>,
    /// By loaders at work on shared cores, those on their own, and whether compute runs.
    table: Vec<Speed>,
    alone: usize,
}

/// Loaders of one kind.
#[derive(Clone, Copy)]
struct Kind {
    /// How many are at work.
    count: f64,
    /// Their CPU time for each byte.
    cpu_us: f64,
    /// Most bytes a microsecond that the processor lets each bring in.
    cap: f64,
}

impl Speeds {
    /// The speeds of a plan's crew on the profile's cores.
    pub fn new(profile: &Profile, plan: &Plan, disk: &DiskCurve) -> Speeds {
        let cores = profile.board.cores.len();
        let (compute_cores, loader_cores) = plan.placement.crew_cores(cores, plan.loaders);
        let compute_cores = plan.threads.min(compute_cores);
        let core_of = |loader: usize| cores - 1 - loader % loader_cores;
        let is_shared: Vec<bool> =
            (0..plan.loaders).map(|loader| core_of(loader) < compute_cores).collect();
        let shared = is_shared.iter().filter(|shared| **shared).count();
        let alone = plan.loaders - shared;
        let speed_of = |wanted: bool| {
            let kind = (0..plan.loaders).filter(|loader| is_shared[*loader] == wanted);
            let speeds: Vec<f64> =
                kind.map(|loader| profile.board.cores[core_of(loader)].speed).collect();
            match speeds.len() {
                0 => 1.0,
                count => speeds.iter().sum::<f64>() / count as f64,
            }
        };
        let cores_of = |count: usize| count.min(loader_cores).max(1) as f64;
        let crew = CrewSpeed {
            profile,
            way: plan.source,
            disk,
            shared_speed: speed_of(true),
            alone_speed: speed_of(false),
            shared_cores: cores_of(shared),
            alone_cores: cores_of(alone),
            capacity: profile.board.cores[..compute_cores].iter().map(|core| core.speed).sum(),
        };
        let mut table = Vec::with_capacity(2 * (shared + 1) * (alone + 1));
        for s in 0..=shared {
            for a in 0..=alone {
                table.extend([false, true].map(|computes| crew.speed(s, a, computes)));
            }
        }
        Speeds { is_shared, table, alone }
    }

    /// The speeds while so many loaders are at work, and compute or not.
    pub fn of(&self, shared: usize, alone: usize, computes: bool) -> Speed {
        self.table[2 * (shared * (self.alone + 1) + alone) + usize::from(computes)]
    }

    /// Bytes a microsecond that the loaders bring in at most, nothing computed beside them.
    pub fn best_load(&self) -> f64 {
        let shared = self.table.len() / 2 / (self.alone + 1);
        let states = (0..shared).flat_map(|s| (0..=self.alone).map(move |a| (s, a)));
        let rates = states.map(|(s, a)| {
            let speed = self.of(s, a, false);
            s as f64 * speed.shared_load + a as f64 * speed.alone_load
        });
        rates.fold(0.0, f64::max)
    }
}

struct CrewSpeed<'a> {
    profile: &'a Profile,
    way: Way,
    disk: &'a DiskCurve,
    shared_speed: f64,
    alone_speed: f64,
    shared_cores: f64,
    alone_cores: f64,
    /// Sum of the speeds of compute's cores.
    capacity: f64,
}

impl CrewSpeed<'_> {
    fn speed(&self, shared: usize, alone: usize, computes: bool) -> Speed {
        let contention = self.profile.contention(self.way);
        let cpu_us = self.disk.cpu_us_per_byte(shared + alone);
        let slowdown = if computes { contention.loader_slowdown } else { 1.0 };
        let on_shared = kind(shared, cpu_us / self.shared_speed, slowdown, self.shared_cores);
        let on_own = kind(alone, cpu_us / self.alone_speed, 1.0, self.alone_cores);
        let waiting_us = self.waiting_us(on_shared, on_own);
        let (shared_load, alone_load) = (on_shared.rate(waiting_us), on_own.rate(waiting_us));
        // Seconds of a core that loaders take each second.
        let shared_use = on_shared.count * shared_load * cpu_us / self.shared_speed;
        let alone_use = on_own.count * alone_load * cpu_us / self.alone_speed;
        let lost = contention.compute_loss * shared_use * self.shared_speed / self.capacity;
        let slowed = 1.0 + (contention.memory_slowdown - 1.0) * alone_use;
        let compute = (1.0 - lost).max(LEAST_COMPUTE) / slowed;
        Speed { shared_load, alone_load, compute }
    }

    /// How long a byte waits for the disk while these loaders are at work: the time with which the
    /// disk gives as much as they bring in.
    fn waiting_us(&self, shared: Kind, alone: Kind) -> f64 {
        let count = shared.count + alone.count;
        if count == 0.0 {
            return 0.0;
        }
        let loaded = |waiting_us: f64| {
            shared.count * shared.rate(waiting_us) + alone.count * alone.rate(waiting_us)
        };
        // One request gets at most its share of the disk's best, and each at least what all get.
        let (mut low, mut high) = (0.0, 2.0 * count / self.disk.rate(count));
        for _ in 0..SEARCH_STEPS {
            let middle = f64::midpoint(low, high);
            let rate = loaded(middle);
            match self.disk.rate(rate * middle) < rate {
                true => low = middle,
                false => high = middle,
            }
        }
        high
    }
}

/// Loaders at work on so many cores, where each one's CPU work takes `slowdown` times as long as
/// undisturbed.
fn kind(count: usize, cpu_us: f64, slowdown: f64, cores: f64) -> Kind {
    let on_one_core = (count as f64 / cores).max(1.0);
    let cap = 1.0 / (cpu_us * (on_one_core + slowdown - 1.0));
    Kind { count: count as f64, cpu_us: cpu_us * slowdown, cap }
}

impl Kind {
    /// Bytes a microsecond that each loader brings in where a byte waits so long for the disk.
    fn rate(&self, waiting_us: f64) -> f64 {
        if self.count == 0.0 {
            return 0.0;
        }
        (1.0 / (waiting_us + self.cpu_us)).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, MIB};
    use super::super::{Contention, Placement, Way};
    use super::*;

    fn speeds(profile: &Profile, plan: &Plan) -> Speeds {
        Speeds::new(profile, plan, &DiskCurve::new(profile, plan.source, MIB, 0.0).unwrap())
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} instead of {expected}");
    }

    #[test]
    fn loaders_alone_reach_what_was_measured() {
        let profile = fixture::profile();
        for read in &profile.reads {
            let (source, loaders) = (read.way, read.loaders);
            let plan = Plan { source, loaders, ..fixture::plan() };
            let speed = speeds(&profile, &plan).of(loaders, 0, false);
            close(loaders as f64 * speed.shared_load, read.bandwidth_bytes_s / 1e6);
        }
    }

    #[test]
    fn a_shared_core_slows_both_and_an_own_core_neither() {
        let profile = fixture::profile();
        let plan = fixture::plan();
        let crew = speeds(&profile, &plan);
        assert_eq!(crew.is_shared, [true]);
        let (idle, busy) = (crew.of(1, 0, false), crew.of(1, 0, true));
        // 0.571 ns a byte of which 0.25 are CPU, which takes a quarter longer beside compute.
        close(1.0 / busy.shared_load, 1.0 / idle.shared_load + 0.25e-3 / 4.0);
        close(busy.compute, 1.0 - busy.shared_load * 0.25e-3 / 2.0);
        let apart = Plan { placement: Placement::Apart, threads: 1, ..plan };
        let crew = speeds(&profile, &apart);
        assert_eq!(crew.is_shared, [false]);
        close(crew.of(0, 1, true).alone_load, 1750.0);
        close(crew.of(0, 1, true).compute, 1.0);
        let mut slow = profile.clone();
        slow.mapped_contention = Contention { memory_slowdown: 1.2, ..slow.mapped_contention };
        assert!(speeds(&slow, &apart).of(0, 1, true).compute < 1.0);
    }

    #[test]
    fn loaders_on_one_core_share_it() {
        let mut profile = fixture::profile();
        profile.reads.iter_mut().for_each(|read| read.cpu_ns_per_byte = 1.5);
        let apart = Plan {
            placement: Placement::Apart,
            source: Way::Direct,
            loaders: 4,
            threads: 1,
            ..fixture::plan()
        };
        let crew = speeds(&profile, &apart);
        let total = 4.0 * crew.of(0, 4, true).alone_load;
        assert!(total <= 1e3 / 1.5 + 1e-6, "{total}: one core, 1.5 ns for each byte");
        assert!(crew.best_load() >= total);
    }
}
