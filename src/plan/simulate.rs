//! A pass played on paper: the real traversal, loaders and compute as streams of work whose speeds
//! change only where one of them begins or ends something.

use super::speeds::{Speed, Speeds};
use super::{Dealing, Plan};
use crate::stream::{Rules, Spot, Traversal, Work};

/// Work left that counts as none: a billionth of a second, and less than a byte.
const NOTHING: f64 = 1e-3;

/// One unit of the tape.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    pub held_bytes: u64,
    /// Bytes to load, of requests of the disk's size.
    pub work: f64,
    /// Compute without weights, before the unit is waited for.
    pub before_us: f64,
    /// Compute that holds the unit.
    pub compute_us: f64,
    pub stay: Stay,
}

/// What becomes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// It is loaded and released.
    Streamed,
    /// It is there from the start.
    Pinned,
    /// It is loaded and stays.
    Kept,
}

/// What a pass came to.
#[derive(Clone, Copy, Debug)]
pub struct Played {
    pub latency_us: f64,
    pub stall_us: f64,
    pub window_peak_bytes: u64,
}

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lapse {
    pub what: Doing,
    pub start_us: f64,
    pub end_us: f64,
}

/// Who does what. Units are counted along the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A loader brings a unit in.
    Load { loader: usize, unit: usize },
    /// Compute waits for a unit.
    Wait { unit: usize },
    /// Compute uses a unit.
    Compute { unit: usize },
}

/// Plays a pass over `units`, and `tail_us` of compute after the last. Notes what takes time in
/// `spans`, if given.
///
/// # Panics
/// If the window holds less than a unit, or than the tape where nothing is released before the end.
pub fn play(
    units: &[Unit],
    tail_us: f64,
    plan: &Plan,
    speeds: &Speeds,
    spans: Option<&mut Vec<Lapse>>,
) -> Played {
    let &Plan { window_bytes, turns, release, .. } = plan;
    let rules = Rules { window_bytes, turns, release, ..Rules::default() };
    let spots = units.iter().map(|unit| Spot {
        bytes: unit.held_bytes,
        pinned: (unit.stay == Stay::Pinned).then_some(()),
        is_kept: unit.stay == Stay::Kept,
    });
    let mut pass = Pass {
        units,
        plan,
        speeds,
        spans,
        traversal: Traversal::new(&rules, spots),
        loaders: vec![None; plan.loaders],
        loading: [0, 0],
        phase: Phase::Done,
        phase_since_us: 0.0,
        now_us: 0.0,
        stall_us: 0.0,
    };
    pass.begin(0);
    while pass.phase != Phase::Done {
        pass.claim();
        pass.step();
    }
    Played {
        latency_us: pass.now_us + tail_us,
        stall_us: pass.stall_us,
        window_peak_bytes: pass.traversal.peak_bytes(),
    }
}

struct Pass<'a> {
    units: &'a [Unit],
    plan: &'a Plan,
    speeds: &'a Speeds,
    spans: Option<&'a mut Vec<Lapse>>,
    /// Each unit is a block of it.
    traversal: Traversal<()>,
    loaders: Vec<Option<Load>>,
    /// Loaders at work, on their own cores and on shared ones.
    loading: [usize; 2],
    phase: Phase,
    phase_since_us: f64,
    now_us: f64,
    stall_us: f64,
}

#[derive(Clone, Copy)]
struct Load {
    unit: usize,
    left: f64,
    since_us: f64,
}

/// What compute does.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Before { unit: usize, left_us: f64 },
    Waiting { unit: usize },
    Computing { unit: usize, left_us: f64 },
    Done,
}

impl Pass<'_> {
    /// Gives every loader without work the next unit that the window has room for.
    fn claim(&mut self) {
        for loader in 0..self.loaders.len() {
            while self.loaders[loader].is_none() {
                match self.traversal.next_work(loader, self.loaders.len()) {
                    Work::Load(unit) => {
                        let (left, since_us) = (self.units[unit].work, self.now_us);
                        self.loaders[loader] = Some(Load { unit, left, since_us });
                        self.loading[usize::from(self.speeds.is_shared[loader])] += 1;
                    }
                    // It takes no time that counts.
                    Work::Release(unit, ()) => _ = self.traversal.left(unit),
                    // What is next for one is next for all.
                    Work::Wait | Work::Done if self.plan.turns == Dealing::Next => return,
                    Work::Wait | Work::Done => break,
                }
            }
        }
    }

    /// Goes on to when the next load or computation ends.
    fn step(&mut self) {
        let computes = !matches!(self.phase, Phase::Waiting { .. });
        let speed = self.speeds.of(self.loading[1], self.loading[0], computes);
        let step_us = self.until_next(speed);
        assert!(step_us.is_finite(), "compute waits for a unit that nobody loads");
        self.now_us += step_us;
        // Compute first: what a load lets it begin has not begun before now.
        self.compute_on(step_us * speed.compute);
        for loader in 0..self.loaders.len() {
            self.load_on(loader, step_us * self.load_speed(loader, speed));
        }
    }

    fn load_speed(&self, loader: usize, speed: Speed) -> f64 {
        match self.speeds.is_shared[loader] {
            true => speed.shared_load,
            false => speed.alone_load,
        }
    }

    fn until_next(&self, speed: Speed) -> f64 {
        let compute_us = match self.phase {
            Phase::Before { left_us, .. } | Phase::Computing { left_us, .. } => {
                left_us / speed.compute
            }
            Phase::Waiting { .. } | Phase::Done => f64::INFINITY,
        };
        let loads = self.loaders.iter().enumerate();
        let load_us = loads.filter_map(|(loader, load)| {
            load.map(|load| load.left / self.load_speed(loader, speed))
        });
        load_us.fold(compute_us, f64::min)
    }

    fn load_on(&mut self, loader: usize, bytes: f64) {
        let Some(load) = &mut self.loaders[loader] else { return };
        load.left -= bytes;
        if load.left > NOTHING {
            return;
        }
        let Load { unit, since_us, .. } = *load;
        self.loaders[loader] = None;
        self.loading[usize::from(self.speeds.is_shared[loader])] -= 1;
        let _ = self.traversal.arrived(unit, [(unit, ())]);
        self.note(Doing::Load { loader, unit }, since_us);
        if self.phase == (Phase::Waiting { unit }) {
            self.stall_us += self.now_us - self.phase_since_us;
            self.note(Doing::Wait { unit }, self.phase_since_us);
            self.compute(unit);
        }
    }

    fn compute_on(&mut self, us: f64) {
        match &mut self.phase {
            Phase::Before { left_us, .. } | Phase::Computing { left_us, .. } => *left_us -= us,
            Phase::Waiting { .. } | Phase::Done => {}
        }
        match self.phase {
            Phase::Before { unit, left_us } if left_us <= NOTHING => self.wait(unit),
            Phase::Computing { unit, left_us } if left_us <= NOTHING => self.finish(unit),
            _ => {}
        }
    }

    fn begin(&mut self, unit: usize) {
        let Some(first) = self.units.get(unit) else {
            self.enter(Phase::Done);
            return;
        };
        match first.before_us > NOTHING {
            true => self.enter(Phase::Before { unit, left_us: first.before_us }),
            false => self.wait(unit),
        }
    }

    fn wait(&mut self, unit: usize) {
        match self.traversal.lease(unit) {
            Some(()) => self.compute(unit),
            None => self.enter(Phase::Waiting { unit }),
        }
    }

    fn compute(&mut self, unit: usize) {
        self.enter(Phase::Computing { unit, left_us: self.units[unit].compute_us });
    }

    fn finish(&mut self, unit: usize) {
        self.note(Doing::Compute { unit }, self.phase_since_us);
        let _ = self.traversal.give_back(unit, ());
        self.begin(unit + 1);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_since_us = self.now_us;
    }

    fn note(&mut self, what: Doing, start_us: f64) {
        let end_us = self.now_us;
        if let Some(spans) = &mut self.spans {
            spans.push(Lapse { what, start_us, end_us });
        }
    }
}
