//! What is known of a model for those who ask about its plans.

use super::error::EngineError;
use super::ladder::ladder;
use super::model::Model;
use super::needs::ladder_bytes;
use super::pins::UNPINNED_SHARE;
use super::pressure::Pressure;
use super::targets::{is_set, merged};
use crate::plan::{
    Chosen, Ladder, Overrides, PlanError, Planned, Profile, Target, TargetError, Usage, Wish,
    advise, plan, plan_target,
};
use crate::store::ModelDir;
use crate::store::manifest::Manifest;
use crate::stream::{Category, Grant, Ledger};
use std::sync::Arc;

/// What plans are made for.
#[derive(Clone, Debug)]
pub(super) struct PlanTerms {
    pub budget_bytes: u64,
    /// What other models hold for as long as they are loaded.
    pub others_bytes: u64,
    pub tokens: u64,
    pub usage: Usage,
    pub fixed: Overrides,
}

impl PlanTerms {
    /// The best plan, and the wish that it fulfils: what pins leave to others is not its own.
    pub fn plan(&self, profile: &Profile) -> Result<(Wish, Planned), PlanError> {
        let PlanTerms { budget_bytes, others_bytes, tokens, usage, ref fixed } = *self;
        let reserved = (budget_bytes / UNPINNED_SHARE).saturating_add(others_bytes);
        let wish = Wish { budget_bytes: budget_bytes.saturating_sub(reserved), tokens, usage };
        if let Ok(planned) = plan(profile, &wish, fixed) {
            return Ok((wish, planned));
        }
        // Nothing is left for others then; a pass finds out whether that does.
        let wish = Wish { budget_bytes, ..wish };
        Ok((wish, plan(profile, &wish, fixed)?))
    }

    /// The same where memory is so short: nothing is pinned then.
    pub fn under(mut self, pressure: Pressure) -> PlanTerms {
        if pressure > Pressure::None {
            self.fixed.pin_bytes = Some(0);
        }
        self
    }

    /// The choice of precisions for a target, and the wish that it fulfils.
    pub fn choose(
        &self,
        profile: &Profile,
        ladder: &Ladder,
        target: &Target,
    ) -> Result<(Wish, Chosen), TargetError> {
        let PlanTerms { budget_bytes, others_bytes, tokens, usage, ref fixed } = *self;
        let reserved = (budget_bytes / UNPINNED_SHARE).saturating_add(others_bytes);
        let wish = Wish { budget_bytes: budget_bytes.saturating_sub(reserved), tokens, usage };
        Ok((wish, plan_target(profile, ladder, &wish, target, fixed)?))
    }
}

/// What is asked about plans; what is left out is as the engine has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inquiry {
    /// Of the whole engine.
    pub budget_bytes: Option<u64>,
    pub tokens: Option<u64>,
    pub usage: Option<Usage>,
    /// Within which time a pass is to be computed, and how accurately.
    pub target: Target,
    /// What of the plan is set by hand.
    pub fixed: Overrides,
}

/// Where it is found out which precisions a model's tensors have.
#[derive(Clone)]
pub(super) enum Precisions {
    Loaded(Arc<Model>),
    Stored { dir: ModelDir, variant: String, ledger: Arc<Ledger> },
}

/// What is known of a model that was measured here.
#[derive(Clone)]
pub struct Known {
    /// Of the variant that is served.
    pub profile: Arc<Profile>,
    /// Of the model's other variants.
    pub(super) others: Vec<Profile>,
    pub(super) terms: PlanTerms,
    /// What the model is to keep to.
    pub(super) target: Target,
    pub(super) precisions: Precisions,
}

impl Known {
    /// How passes would be played, and what would help. Takes some milliseconds, for long tapes a
    /// few hundred, and several times that for a target, for which the indexes of the version's
    /// layer files are read; otherwise nothing is.
    ///
    /// # Errors
    ///
    /// [`EngineError::Plan`] where there is no such plan; [`EngineError::Target`] where no choice of
    /// precisions keeps to the target, and [`EngineError::NoChoice`] where there is none to choose
    /// from.
    pub fn plan(&self, inquiry: Inquiry) -> Result<Answered, EngineError> {
        let usual = &self.terms;
        let terms = PlanTerms {
            budget_bytes: inquiry.budget_bytes.unwrap_or(usual.budget_bytes),
            others_bytes: usual.others_bytes,
            tokens: inquiry.tokens.unwrap_or(usual.tokens),
            usage: inquiry.usage.unwrap_or(usual.usage),
            fixed: inquiry.fixed.or(usual.fixed.clone()),
        };
        self.profile.reaches(terms.tokens).map_err(PlanError::from)?;
        let target = merged(&inquiry.target, &self.target);
        if is_set(&target) {
            return self.choose(&terms, &target);
        }
        let (wish, planned) = terms.plan(&self.profile)?;
        self.answer(&terms, wish, planned, Arc::clone(&self.profile), None)
    }

    fn choose(&self, terms: &PlanTerms, target: &Target) -> Result<Answered, EngineError> {
        let (ladder, _held) = self.ladder()?;
        let (wish, chosen) = terms.choose(&self.profile, &ladder, target)?;
        let choice = ladder.choice_of(&chosen.planned.plan.variants)?;
        let profile = Arc::new(self.profile.with_choice(&ladder, &choice)?);
        let twice_the_time = Target { latency_us: target.latency_us.map(|us| 2.0 * us), ..*target };
        let twice_the_memory =
            PlanTerms { budget_bytes: terms.budget_bytes.saturating_mul(2), ..terms.clone() };
        let more = [
            ("2 x the time", terms.choose(&self.profile, &ladder, &twice_the_time)),
            ("2 x the memory", twice_the_memory.choose(&self.profile, &ladder, target)),
        ];
        let is_there = |what: &str| target.latency_us.is_some() || what != "2 x the time";
        let more = more.into_iter().filter(|(what, _)| is_there(what)).filter_map(|(what, of)| {
            of.ok().map(|(_, chosen)| More { what, accuracy: chosen.accuracy })
        });
        let manifest = self.manifest();
        let tensors = ladder.tensors.iter().zip(&choice).map(|(tensor, rung)| {
            let rung = &tensor.rungs[*rung];
            ChosenTensor {
                name: tensor.name.clone(),
                node: tensor.node.clone(),
                layer: manifest.layers[tensor.layer].name.clone(),
                variant: rung.variant.clone(),
                elements: tensor.elements,
                bytes: rung.bytes(),
                divergence: rung.divergence,
            }
        });
        let choice = AnsweredChoice {
            target: *target,
            digest: ladder.digest(&choice),
            accuracy: chosen.accuracy,
            bits: ladder.bits(&choice),
            bytes: ladder.bytes(&choice),
            tensors: tensors.collect(),
            more: more.collect(),
        };
        self.answer(terms, wish, chosen.planned, profile, Some(choice))
    }

    fn answer(
        &self,
        terms: &PlanTerms,
        wish: Wish,
        planned: Planned,
        profile: Arc<Profile>,
        choice: Option<AnsweredChoice>,
    ) -> Result<Answered, EngineError> {
        // Where precisions are chosen, a variant is no alternative.
        let others: Vec<&Profile> =
            if choice.is_none() { self.others.iter().collect() } else { vec![] };
        let advice = advise(&profile, &wish, &terms.fixed, &planned, &others)?.to_string();
        let budget_bytes = terms.budget_bytes;
        Ok(Answered { profile, budget_bytes, wish, planned, choice, advice })
    }

    fn manifest(&self) -> &Manifest {
        match &self.precisions {
            Precisions::Loaded(model) => &model.dir.manifest,
            Precisions::Stored { dir, .. } => &dir.manifest,
        }
    }

    /// The precisions of the model's tensors, and what they hold where that is not held with it.
    fn ladder(&self) -> Result<(Arc<Ladder>, Option<Grant>), EngineError> {
        match &self.precisions {
            Precisions::Loaded(model) => Ok((model.ladder()?, None)),
            Precisions::Stored { dir, variant, ledger } => {
                let held = ledger.try_grant(Category::Request, ladder_bytes(&dir.manifest))?;
                let ladder = ladder(dir, variant, None)?;
                // Its graph may use weights in another order, or several times.
                let choice = ladder.choice_of(&vec![variant.clone(); ladder.tensors.len()])?;
                let as_measured = self.profile.with_choice(&ladder, &choice)?;
                let runs = as_measured.layers.iter().flat_map(|layer| &layer.blocks);
                let blocks = runs.flat_map(|run| std::iter::repeat_n(run.bytes, run.count));
                match self.profile.is_of(blocks) {
                    true => Ok((Arc::new(ladder), Some(held))),
                    false => Err(EngineError::NoChoice {
                        model: self.profile.model.clone(),
                        why: "how its graph uses its weights is only known once it is loaded"
                            .into(),
                        advice: format!("load it with hermesctl load {}", self.profile.model),
                    }),
                }
            }
        }
    }
}

/// The answer to an inquiry.
#[derive(Clone, Debug)]
pub struct Answered {
    /// By which it is planned: what was measured, or for a choice of precisions follows from that.
    pub profile: Arc<Profile>,
    /// Of the whole engine; the wish has what is left of it for the model.
    pub budget_bytes: u64,
    pub wish: Wish,
    pub planned: Planned,
    /// The precisions, where there is a target.
    pub choice: Option<AnsweredChoice>,
    /// What would help most, as a sentence.
    pub advice: String,
}

/// The precisions that are chosen for a target.
#[derive(Clone, Debug, PartialEq)]
pub struct AnsweredChoice {
    pub target: Target,
    /// As answers tell it.
    pub digest: String,
    /// How close answers are expected to come to those of the best precision.
    pub accuracy: f64,
    /// Of a weight, in the mean.
    pub bits: f64,
    /// Of the tape.
    pub bytes: u64,
    /// In the order of the choice.
    pub tensors: Vec<ChosenTensor>,
    /// What more of something would give.
    pub more: Vec<More>,
}

/// The precision of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct ChosenTensor {
    pub name: String,
    /// The first node that uses it; empty where that is not known.
    pub node: String,
    /// Name of its layer.
    pub layer: String,
    pub variant: String,
    pub elements: u64,
    pub bytes: u64,
    /// How far answers are off with this tensor alone so.
    pub divergence: f64,
}

/// The accuracy that more of something would give.
#[derive(Clone, Debug, PartialEq)]
pub struct More {
    pub what: &'static str,
    pub accuracy: f64,
}
