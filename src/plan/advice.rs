//! What would make passes faster: plans for boards, budgets and variants that one could have.

use super::board::Core;
use super::planner::plan;
use super::profile::{PassTime, Profile};
use super::wish::{Overrides, PlanError, Planned, Wish, mib};
use std::fmt;

/// Share of the latency below which a change is not worth a word.
const WORTH_TELLING: f64 = 0.01;

/// What would help, the most helpful first. It reads as a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Advice {
    pub now_us: f64,
    pub changes: Vec<WhatIf>,
}

/// A change with the latency of the best plan after it.
#[derive(Clone, Debug, PartialEq)]
pub struct WhatIf {
    pub change: Change,
    pub latency_us: f64,
}

/// What one could change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A disk of twice the bandwidth.
    Disk,
    /// As many cores again, which bring as much as the last doubling did.
    Cores,
    /// More budget, for pins.
    Budget { more_bytes: u64 },
    /// Another variant of the model.
    Variant(String),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Change::Disk => f.write_str("a disk of twice the bandwidth"),
            Change::Cores => f.write_str("twice the cores"),
            Change::Budget { more_bytes } => write!(f, "{} more of budget", mib(*more_bytes)),
            Change::Variant(name) => write!(f, "the variant {name}"),
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let least_us = self.now_us * (1.0 - WORTH_TELLING);
        let mut helpful = self.changes.iter().filter(|change| change.latency_us <= least_us);
        let Some(best) = helpful.next() else {
            let names: Vec<String> = self.changes.iter().map(|c| c.change.to_string()).collect();
            return write!(f, "nothing would help much: not {}", names.join(", nor "));
        };
        let (now_ms, best_ms) = (self.now_us / 1e3, best.latency_us / 1e3);
        let percent = 100.0 * (1.0 - best.latency_us / self.now_us);
        let change = &best.change;
        write!(
            f,
            "{change} would help most: {best_ms:.1} ms instead of {now_ms:.1} (-{percent:.0} %)"
        )?;
        for WhatIf { change, latency_us } in helpful {
            write!(f, ", {change} {:.1} ms", latency_us / 1e3)?;
        }
        Ok(())
    }
}

/// What would make the planned passes faster. `others` are profiles of the model's other variants.
///
/// # Errors
/// As [`plan`]; a variant that does not fit the budget is left out.
pub fn advise(
    profile: &Profile,
    wish: &Wish,
    fixed: &Overrides,
    planned: &Planned,
    others: &[&Profile],
) -> Result<Advice, PlanError> {
    let now_us = planned.forecast.latency_us;
    let mut changes = vec![];
    let mut note = |change, planned: Planned| {
        changes.push(WhatIf { change, latency_us: planned.forecast.latency_us });
    };
    if !planned.fits {
        note(Change::Disk, plan(&with_twice_the_disk(profile), wish, fixed)?);
        let whole_bytes = profile.held_bytes(planned.plan.source) + planned.plan.window_bytes;
        let all_bytes = profile.fixed_bytes(wish.tokens).saturating_add(whole_bytes);
        let more_bytes = wish.budget_bytes.min(all_bytes.saturating_sub(wish.budget_bytes));
        let richer = Wish { budget_bytes: wish.budget_bytes + more_bytes, ..*wish };
        note(Change::Budget { more_bytes }, plan(profile, &richer, fixed)?);
    }
    note(Change::Cores, plan(&with_twice_the_cores(profile), wish, fixed)?);
    for other in others {
        if let Ok(planned) = plan(other, wish, fixed) {
            note(Change::Variant(other.variant.clone()), planned);
        }
    }
    changes.sort_by(|a, b| a.latency_us.total_cmp(&b.latency_us));
    Ok(Advice { now_us, changes })
}

fn with_twice_the_disk(profile: &Profile) -> Profile {
    let mut other = profile.clone();
    other.reads.iter_mut().for_each(|read| read.bandwidth_bytes_s *= 2.0);
    other
}

fn with_twice_the_cores(profile: &Profile) -> Profile {
    let mut other = profile.clone();
    let cores = profile.board.cores.len();
    let again = profile.board.cores.iter().map(|core| Core { id: cores + core.id, ..*core });
    other.board.cores.extend(again);
    let sum_us = |threads, tokens| profile.compute_us(threads, tokens).iter().sum::<f64>();
    let mut tokens: Vec<u64> = profile.passes.iter().map(|pass| pass.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    for tokens in if tokens.is_empty() { vec![1] } else { tokens } {
        let now_us = sum_us(cores, tokens);
        let half_us = if cores > 1 { sum_us(cores / 2, tokens) } else { 2.0 * now_us };
        let latency_us = now_us * now_us / half_us.max(now_us);
        let pass = |threads, latency_us| PassTime { threads, tokens, latency_us };
        other.passes.retain(|old| (old.threads, old.tokens) != (cores, tokens));
        other.passes.extend([pass(cores, now_us), pass(2 * cores, latency_us)]);
    }
    other
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, MIB};
    use super::super::wish::Usage;
    use super::*;

    fn advice(profile: &Profile, budget_bytes: u64, others: &[&Profile]) -> Advice {
        let wish = Wish { budget_bytes, tokens: 128, usage: Usage::Cyclic };
        let fixed = Overrides::default();
        let planned = plan(profile, &wish, &fixed).unwrap();
        advise(profile, &wish, &fixed, &planned, others).unwrap()
    }

    #[test]
    fn where_the_disk_is_the_bound_it_is_what_helps() {
        let profile = fixture::profile();
        let advice = advice(&profile, 64 * MIB, &[]);
        assert_eq!(advice.changes[0].change, Change::Disk);
        let text = advice.to_string();
        assert!(text.starts_with("a disk of twice the bandwidth would help most: "), "{text}");
        assert!(text.contains("64.0 MiB more of budget"), "{text}");
    }

    #[test]
    fn where_all_is_pinned_only_cores_help() {
        let advice = advice(&fixture::profile(), 2048 * MIB, &[]);
        assert_eq!(advice.changes.len(), 1);
        // 700 ms on one core, 366 on two: 191 on four.
        let expected = "twice the cores would help most: 191.4 ms instead of 366.0 (-48 %)";
        assert_eq!(advice.to_string(), expected);
    }

    #[test]
    fn a_variant_of_fewer_bytes_is_named_with_its_figures() {
        let profile = fixture::profile();
        let mut small = fixture::profile();
        small.variant = "q8".into();
        for run in small.layers.iter_mut().flat_map(|layer| &mut layer.blocks) {
            *run = fixture::blocks(run.count, MIB / 4);
        }
        let found = advice(&profile, 64 * MIB, &[&small]);
        assert_eq!(found.changes[0].change, Change::Variant("q8".into()));
        let mut huge = small.clone();
        huge.graph_bytes = 99 * MIB;
        assert_eq!(advice(&profile, 64 * MIB, &[&huge]).changes.len(), 3, "it does not fit");
    }

    #[test]
    fn where_nothing_helps_it_says_so() {
        let mut profile = fixture::profile();
        profile.passes.iter_mut().for_each(|pass| pass.threads = 2);
        profile.passes.truncate(1);
        profile.passes.push(PassTime { threads: 1, ..profile.passes[0] });
        let text = advice(&profile, 2048 * MIB, &[]).to_string();
        assert_eq!(text, "nothing would help much: not twice the cores");
    }
}
