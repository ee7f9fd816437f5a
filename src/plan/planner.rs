//! Tries plans on the forecast and picks one.
//!
//! Every way of reading, number of loaders and placement is tried with windows from two units up,
//! pins taking what the window leaves of the budget. The fastest wins; among those within one per
//! cent of it the one that takes the least memory, then the one with the fewest threads. They are
//! compared on a rough tape, whose blocks take unevenly long: on an even one, a window of two
//! blocks would do nearly always.

use super::forecast::{Forecast, ForecastError, Passing, TapeTimes, forecast};
use super::profile::{Profile, ReadRate};
use super::wish::{Alternative, Kind, Overrides, PlanError, Planned, Usage, Wish};
use super::{Dealing, Grouping, PinPlace, Placement, Plan, Release, Way};

/// How much slower than the fastest a plan may be that takes less memory.
const SLACK: f64 = 1.01;

/// How much more bandwidth loaders beyond the number of cores must bring to be tried.
const WORTH_A_LOADER: f64 = 1.05;

/// Windows in a row that bring nothing, after which larger ones are not tried.
const VAIN_WINDOWS: usize = 3;

/// The window from which on a larger one brought nothing, and what a pass takes more with none to
/// speak of: 4 MiB cost BERT-Large 13 %, in the middle of 14 pairs of passes on a fast disk.
const WIDE_BYTES: u64 = 16 << 20;
const NARROW_COST: f64 = 0.17;

/// Plans near the fastest whose pins are tried to be fewer, and halvings of how many.
const SHRUNK_PLANS: usize = 6;
const SHRINK_STEPS: usize = 6;

/// The best plan for a wish, by a profile.
///
/// # Errors
/// [`PlanError::Budget`] where nothing fits, which names the least budget that would do; what is
/// set by hand and cannot be played.
pub fn plan(profile: &Profile, wish: &Wish, fixed: &Overrides) -> Result<Planned, PlanError> {
    let search = Search { profile, wish, fixed, fixed_bytes: profile.fixed_bytes(wish.tokens) };
    let tried = search.tried()?;
    let chosen = search.choose(&tried)?;
    let mut alternatives = alternatives(&tried, &chosen.plan);
    for alternative in &mut alternatives {
        let plan = &alternative.plan;
        alternative.forecast = forecast(profile, plan, wish.tokens, Passing::Later)?;
    }
    Ok(Planned { alternatives, ..planned_by(profile, wish, chosen.plan)? })
}

/// What passes by a plan take.
///
/// # Errors
/// A plan that cannot be played.
pub(super) fn planned_by(
    profile: &Profile,
    wish: &Wish,
    plan: Plan,
) -> Result<Planned, ForecastError> {
    let forecast = forecast(profile, &plan, wish.tokens, Passing::Later)?;
    let granted_bytes = profile.fixed_bytes(wish.tokens) + plan.window_bytes + plan.pin_bytes;
    let fits = forecast.bytes_read == 0;
    Ok(Planned { plan, forecast, granted_bytes, fits, alternatives: vec![] })
}

/// A plan of the same kind for another tape: its window as far as that has to hold more or can spare
/// some, and pins that take what it leaves of the budget. None where there is no room for it.
///
/// # Errors
/// A grouping that is not of this tape.
pub(super) fn refit(
    profile: &Profile,
    wish: &Wish,
    fixed: &Overrides,
    frame: &Plan,
) -> Result<Option<Plan>, PlanError> {
    let fixed_bytes = profile.fixed_bytes(wish.tokens);
    let pin_bytes = fixed.pin_bytes.unwrap_or(0);
    let search = Search { profile, wish, fixed, fixed_bytes };
    let least = search.least_window_bytes(frame.source)?;
    let needed = [least, pin_bytes].into_iter().fold(fixed_bytes, u64::saturating_add);
    if needed > wish.budget_bytes {
        return Ok(None);
    }
    let most = search.most_window_bytes(frame.source, least);
    let window_bytes = frame.window_bytes.min(most).max(least);
    let pin_bytes = search.pin_bytes(frame.source, window_bytes);
    Ok(Some(Plan { window_bytes, pin_bytes, ..frame.clone() }))
}

/// What plans are compared by: a pass over a rough tape.
///
/// # Errors
/// A plan that cannot be played.
pub(super) fn compared_us(
    profile: &Profile,
    wish: &Wish,
    plan: &Plan,
) -> Result<f64, ForecastError> {
    let tape = TapeTimes::new(profile, plan.source, plan.threads, wish.tokens)?.rough();
    Ok(rough_pass(&tape, plan)?.latency_us)
}

/// A pass over a rough tape, with what a narrow window costs beside.
fn rough_pass(tape: &TapeTimes, plan: &Plan) -> Result<Forecast, ForecastError> {
    let mut forecast = tape.pass(plan, Passing::Later, None)?;
    if forecast.bytes_read > 0 {
        let width = plan.window_bytes.min(WIDE_BYTES) as f64 / WIDE_BYTES as f64;
        forecast.latency_us *= 1.0 + NARROW_COST * (1.0 - width);
    }
    Ok(forecast)
}

#[derive(Clone, Debug)]
struct Candidate {
    plan: Plan,
    /// On the rough tape.
    forecast: Forecast,
}

/// Who loads and computes where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CrewPlan {
    loaders: usize,
    threads: usize,
    placement: Placement,
}

struct Search<'a> {
    profile: &'a Profile,
    wish: &'a Wish,
    fixed: &'a Overrides,
    /// Of the process, graph and activations.
    fixed_bytes: u64,
}

impl Search<'_> {
    /// Every plan tried; at least one.
    fn tried(&self) -> Result<Vec<Candidate>, PlanError> {
        let mut tried = vec![];
        let mut least_bytes = u64::MAX;
        for way in self.ways() {
            let least_window = self.least_window_bytes(way)?;
            let pin_bytes = self.fixed.pin_bytes.unwrap_or(0);
            let least =
                [least_window, pin_bytes].into_iter().fold(self.fixed_bytes, u64::saturating_add);
            least_bytes = least_bytes.min(least);
            if least <= self.wish.budget_bytes {
                self.try_way(way, least_window, &mut tried)?;
            }
        }
        match tried.is_empty() {
            false => Ok(tried),
            true => Err(PlanError::Budget {
                model: self.profile.model.clone(),
                variant: self.profile.variant.clone(),
                tokens: self.wish.tokens,
                budget_bytes: self.wish.budget_bytes,
                least_bytes,
            }),
        }
    }

    fn ways(&self) -> Vec<Way> {
        match self.fixed.source {
            Some(way) => vec![way],
            None => [Way::Mapped, Way::Direct]
                .into_iter()
                .filter(|way| self.profile.has(*way))
                .collect(),
        }
    }

    fn try_way(
        &self,
        way: Way,
        least_window: u64,
        tried: &mut Vec<Candidate>,
    ) -> Result<(), PlanError> {
        let mut crews = self.crews(way);
        crews.sort_by_key(|crew| crew.threads);
        for crews in crews.chunk_by(|a, b| a.threads == b.threads) {
            let tape = self.tape(way, crews[0].threads)?;
            for crew in crews {
                for pins in self.places() {
                    self.try_windows(&tape, way, *crew, pins, least_window, tried)?;
                }
            }
        }
        Ok(())
    }

    fn tape(&self, way: Way, threads: usize) -> Result<TapeTimes<'_>, ForecastError> {
        Ok(TapeTimes::new(self.profile, way, threads, self.wish.tokens)?.rough())
    }

    fn places(&self) -> Vec<PinPlace> {
        match self.fixed.pins {
            Some(place) => vec![place],
            None => vec![PinPlace::Spread, PinPlace::Head],
        }
    }

    fn crews(&self, way: Way) -> Vec<CrewPlan> {
        let cores = self.profile.board.cores.len();
        let placements = match self.fixed.placement {
            Some(placement) => vec![placement],
            None if cores > 1 => vec![Placement::Shared, Placement::Apart],
            None => vec![Placement::Shared],
        };
        let mut crews = vec![];
        for loaders in self.loader_counts(way) {
            for placement in &placements {
                for threads in self.thread_counts(*placement, loaders) {
                    crews.push(CrewPlan { loaders, threads, placement: *placement });
                }
            }
        }
        crews
    }

    /// Up to as many loaders as cores, and more where measuring showed that they bring more.
    fn loader_counts(&self, way: Way) -> Vec<usize> {
        if let Some(loaders) = self.fixed.loaders {
            return vec![loaders];
        }
        let cores = self.profile.board.cores.len();
        let mut counts: Vec<usize> = (1..=cores).collect();
        let mut reads: Vec<&ReadRate> =
            self.profile.reads.iter().filter(|r| r.way == way && !r.is_scattered).collect();
        reads.sort_by_key(|read| read.loaders);
        let usual = reads.iter().filter(|read| read.loaders <= cores);
        let mut best = usual.map(|read| read.bandwidth_bytes_s).fold(0.0, f64::max);
        for read in reads.iter().filter(|read| read.loaders > cores) {
            if read.bandwidth_bytes_s > WORTH_A_LOADER * best {
                best = read.bandwidth_bytes_s;
                counts.push(read.loaders);
            }
        }
        counts
    }

    /// All cores that a placement leaves to compute; where it shares, also fewer threads that were
    /// measured, as long as they do share.
    fn thread_counts(&self, placement: Placement, loaders: usize) -> Vec<usize> {
        if let Some(threads) = self.fixed.threads {
            return vec![threads];
        }
        let cores = self.profile.board.cores.len();
        if placement == Placement::Apart {
            return vec![placement.crew_cores(cores, loaders).0];
        }
        let measured = self.profile.passes.iter().map(|pass| pass.threads);
        let shares = |threads: &usize| *threads < cores && threads + loaders.min(cores) > cores;
        let mut counts: Vec<usize> = measured.filter(shares).collect();
        counts.push(cores);
        counts.sort_unstable();
        counts.dedup();
        counts
    }

    /// Two of the largest units, or what must be held at once.
    fn least_window_bytes(&self, way: Way) -> Result<u64, PlanError> {
        if let Some(window_bytes) = self.fixed.window_bytes {
            return Ok(window_bytes);
        }
        let tape_bytes = self.profile.held_bytes(way);
        if self.fixed.release == Some(Release::AtEnd) {
            return Ok(tape_bytes);
        }
        let grouping = self.fixed.grouping.as_ref().unwrap_or(&Grouping::Blocks);
        let unit_bytes = self.profile.largest_unit_bytes(way, grouping)?;
        Ok((2 * unit_bytes).min(tape_bytes))
    }

    fn try_windows(
        &self,
        tape: &TapeTimes,
        way: Way,
        crew: CrewPlan,
        pins: PinPlace,
        least_window: u64,
        tried: &mut Vec<Candidate>,
    ) -> Result<(), PlanError> {
        let (mut best_us, mut vain) = (f64::INFINITY, 0);
        for window_bytes in self.windows(way, least_window) {
            let candidate = self.candidate(tape, way, crew, pins, window_bytes)?;
            let latency_us = candidate.forecast.latency_us;
            vain = if latency_us < best_us { 0 } else { vain + 1 };
            best_us = best_us.min(latency_us);
            tried.push(candidate);
            if vain == VAIN_WINDOWS {
                break;
            }
        }
        Ok(())
    }

    /// Windows to try, each half as large again as the one before, up to the tape. Where the whole
    /// tape can be pinned beside the least window, no larger one takes that room.
    fn windows(&self, way: Way, least: u64) -> Vec<u64> {
        let most = self.most_window_bytes(way, least);
        if self.fixed.window_bytes.is_some() {
            return vec![least];
        }
        let windows = std::iter::successors(Some(least), |window| Some(window + window / 2 + 1));
        windows.take_while(|window| *window <= most).collect()
    }

    /// The tape, or what is left beside it or beside pins that are set by hand.
    fn most_window_bytes(&self, way: Way, least: u64) -> u64 {
        let tape_bytes = self.profile.held_bytes(way);
        let room = self.room();
        let most = match least.saturating_add(tape_bytes) <= room {
            true => room - tape_bytes,
            false => room - self.fixed.pin_bytes.unwrap_or(0),
        };
        most.min(tape_bytes).max(least)
    }

    /// Bytes for pins beside a window.
    fn pin_bytes(&self, way: Way, window_bytes: u64) -> u64 {
        let spare = (self.room() - window_bytes).min(self.profile.held_bytes(way));
        self.fixed.pin_bytes.unwrap_or(spare)
    }

    /// Bytes for window and pins.
    fn room(&self) -> u64 {
        self.wish.budget_bytes - self.fixed_bytes
    }

    fn candidate(
        &self,
        tape: &TapeTimes,
        way: Way,
        crew: CrewPlan,
        pins: PinPlace,
        window_bytes: u64,
    ) -> Result<Candidate, PlanError> {
        let plan = Plan {
            source: way,
            loaders: crew.loaders,
            threads: crew.threads,
            placement: crew.placement,
            grouping: self.fixed.grouping.clone().unwrap_or(Grouping::Blocks),
            turns: self.fixed.turns.unwrap_or(Dealing::Next),
            release: self.fixed.release.unwrap_or(Release::AfterUse),
            window_bytes,
            pin_bytes: self.pin_bytes(way, window_bytes),
            pins,
            variants: vec![],
        };
        let forecast = rough_pass(tape, &plan)?;
        Ok(Candidate { plan, forecast })
    }

    fn choose(&self, tried: &[Candidate]) -> Result<Candidate, PlanError> {
        let fastest_us = tried.iter().map(|c| c.forecast.latency_us).fold(f64::INFINITY, f64::min);
        let is_near = |c: &&Candidate| c.forecast.latency_us <= SLACK * fastest_us;
        let mut near: Vec<Candidate> = tried.iter().filter(is_near).cloned().collect();
        if near.iter().any(|c| c.forecast.bytes_read == 0) {
            // All of it stays. The window then only serves the first pass: the one that ends soonest.
            near.retain(|c| c.forecast.bytes_read == 0);
            return self.best_first(near);
        }
        near.sort_by_key(|c| self.cost(c));
        near.truncate(SHRUNK_PLANS);
        let shrunk = near.iter().map(|c| self.with_fewer_pins(c, SLACK * fastest_us));
        let mut shrunk = shrunk.collect::<Result<Vec<_>, _>>()?;
        shrunk.sort_by_key(|c| self.cost(c));
        Ok(shrunk.swap_remove(0))
    }

    /// What a plan costs beside time: memory, then threads, then pins in another place than usual.
    fn cost(&self, candidate: &Candidate) -> (u64, usize, bool, u64) {
        let plan = &candidate.plan;
        let usual = match self.wish.usage {
            Usage::OneShot => PinPlace::Head,
            Usage::Cyclic => PinPlace::Spread,
        };
        let granted_bytes = self.granted_bytes(plan);
        (granted_bytes, plan.loaders + plan.threads, plan.pins != usual, plan.window_bytes)
    }

    fn granted_bytes(&self, plan: &Plan) -> u64 {
        self.fixed_bytes + plan.window_bytes + plan.pin_bytes
    }

    fn best_first(&self, candidates: Vec<Candidate>) -> Result<Candidate, PlanError> {
        let mut first = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let (plan, tokens) = (&candidate.plan, self.wish.tokens);
            let latency_us =
                super::forecast(self.profile, plan, tokens, Passing::First)?.latency_us;
            first.push((latency_us, candidate));
        }
        let fastest_us = first.iter().map(|(us, _)| *us).fold(f64::INFINITY, f64::min);
        let near = first.into_iter().filter(|(us, _)| *us <= SLACK * fastest_us);
        let best = near.map(|(_, candidate)| candidate).min_by_key(|c| self.cost(c));
        Ok(best.expect("the fastest is near the fastest"))
    }

    /// The same plan with as few pins as keep it within `most_us`.
    fn with_fewer_pins(&self, from: &Candidate, most_us: f64) -> Result<Candidate, PlanError> {
        if self.fixed.pin_bytes.is_some() || from.plan.pin_bytes == 0 {
            return Ok(from.clone());
        }
        let tape = self.tape(from.plan.source, from.plan.threads)?;
        let (mut low, mut best) = (0, from.clone());
        for step in 0..SHRINK_STEPS {
            // None at all comes first: it is the answer wherever compute is the bound.
            let pin_bytes = if step == 0 { 0 } else { low + (best.plan.pin_bytes - low) / 2 };
            let plan = Plan { pin_bytes, ..best.plan.clone() };
            let forecast = rough_pass(&tape, &plan)?;
            match forecast.latency_us <= most_us {
                true => best = Candidate { plan, forecast },
                false => low = pin_bytes,
            }
            if best.plan.pin_bytes == 0 {
                break;
            }
        }
        Ok(best)
    }
}

/// The fastest plan of each kind but the chosen one's, the two fastest of those.
fn alternatives(tried: &[Candidate], chosen: &Plan) -> Vec<Alternative> {
    let kinds = [Kind::Source, Kind::Placement, Kind::Loaders, Kind::Threads, Kind::Pins];
    let of_kind = |kind: Kind| {
        let candidates = tried.iter().filter(|c| difference(&c.plan, chosen) == Some(kind));
        let best =
            candidates.min_by(|a, b| a.forecast.latency_us.total_cmp(&b.forecast.latency_us))?;
        let Candidate { plan, forecast } = best.clone();
        Some(Alternative { plan, forecast, differs_in: kind })
    };
    let mut found: Vec<Alternative> = kinds.into_iter().filter_map(of_kind).collect();
    found.sort_by(|a, b| a.forecast.latency_us.total_cmp(&b.forecast.latency_us));
    found.truncate(2);
    found
}

fn difference(plan: &Plan, other: &Plan) -> Option<Kind> {
    let differences = [
        (plan.source != other.source, Kind::Source),
        (plan.placement != other.placement, Kind::Placement),
        (plan.loaders != other.loaders, Kind::Loaders),
        (plan.threads != other.threads, Kind::Threads),
        (plan.pins != other.pins && plan.pin_bytes.min(other.pin_bytes) > 0, Kind::Pins),
    ];
    differences.into_iter().find(|(differs, _)| *differs).map(|(_, kind)| kind)
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
