//! How a model has done so far.

use super::doubt::Doubt;
use crate::plan::Profile;
use std::sync::Arc;

/// What is known of a model since it was loaded.
#[derive(Default)]
pub(super) struct Standing {
    /// What was measured of it on this board.
    pub profile: Option<Arc<Profile>>,
    /// Its passes against their forecasts.
    pub doubt: Doubt,
    /// Why it was tried in vain to measure it, if it was.
    pub given_up: Option<String>,
    /// Why it answers no more, if it does not.
    pub failure: Option<String>,
}
