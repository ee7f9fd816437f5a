//! A flow that somebody has begun, and that ends with them.

use super::Flow;
use std::ops::Deref;
use std::sync::Arc;

/// Ends a flow when it is dropped: whoever is unwound by a panic leaves no loader that waits for
/// room, and none that would keep others waiting for it.
pub struct OwnedFlow(Arc<Flow>);

impl OwnedFlow {
    /// Will end `flow`.
    pub fn of(flow: Arc<Flow>) -> OwnedFlow {
        OwnedFlow(flow)
    }
}

impl Deref for OwnedFlow {
    type Target = Arc<Flow>;

    fn deref(&self) -> &Arc<Flow> {
        &self.0
    }
}

impl Drop for OwnedFlow {
    /// Nothing is left to be ended where that was done before.
    fn drop(&mut self) {
        self.0.end();
    }
}
