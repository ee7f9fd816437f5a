//! How a model has done so far.

use super::doubt::Doubt;
use crate::plan::{Ladder, Plan, Profile};
use crate::stream::Grant;
use std::sync::Arc;

/// What is known of a model since it was loaded.
#[derive(Default)]
pub(super) struct Standing {
    /// How its passes are planned, whatever single requests ask for.
    pub own: Option<Plan>,
    /// What was measured of it on this board.
    pub profile: Option<Arc<Profile>>,
    /// The precisions of its tensors, once they were asked for.
    pub ladder: Option<(Arc<Ladder>, Grant)>,
    /// Its passes against their forecasts.
    pub doubt: Doubt,
    /// Why it was tried in vain to measure it, if it was.
    pub given_up: Option<String>,
    /// Why it answers no more, if it does not.
    pub failure: Option<String>,
}
