//! What is known of a model for those who ask about its plans. Pure: over a profile.

use super::error::EngineError;
use super::pins::UNPINNED_SHARE;
use crate::plan::{Overrides, PlanError, Planned, Profile, Usage, Wish, advise, plan};
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
}

/// What is asked about plans; what is left out is as the engine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inquiry {
    /// Of the whole engine.
    pub budget_bytes: Option<u64>,
    pub tokens: Option<u64>,
    pub usage: Option<Usage>,
    /// What of the plan is set by hand.
    pub fixed: Overrides,
}

/// What is known of a model that was measured here.
#[derive(Clone, Debug)]
pub struct Known {
    /// Of the variant that is served.
    pub profile: Arc<Profile>,
    /// Of the model's other variants.
    pub(super) others: Vec<Profile>,
    pub(super) terms: PlanTerms,
}

impl Known {
    /// How passes would be played, and what would help. Takes some milliseconds, for long tapes a
    /// few hundred; reads nothing.
    ///
    /// # Errors
    ///
    /// [`EngineError::Plan`] where there is no such plan.
    pub fn plan(&self, inquiry: Inquiry) -> Result<Answered, EngineError> {
        let usual = &self.terms;
        let terms = PlanTerms {
            budget_bytes: inquiry.budget_bytes.unwrap_or(usual.budget_bytes),
            others_bytes: usual.others_bytes,
            tokens: inquiry.tokens.unwrap_or(usual.tokens),
            usage: inquiry.usage.unwrap_or(usual.usage),
            fixed: inquiry.fixed.or(usual.fixed.clone()),
        };
        let (wish, planned) = terms.plan(&self.profile)?;
        let others: Vec<&Profile> = self.others.iter().collect();
        let advice = advise(&self.profile, &wish, &terms.fixed, &planned, &others)?.to_string();
        let (profile, budget_bytes) = (Arc::clone(&self.profile), terms.budget_bytes);
        Ok(Answered { profile, budget_bytes, wish, planned, advice })
    }
}

/// The answer to an inquiry.
#[derive(Clone, Debug)]
pub struct Answered {
    pub profile: Arc<Profile>,
    /// Of the whole engine; the wish has what is left of it for the model.
    pub budget_bytes: u64,
    pub wish: Wish,
    pub planned: Planned,
    /// What would help most, as a sentence.
    pub advice: String,
}
