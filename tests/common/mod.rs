//! What the tests of whole programs share.

pub mod daemon;
pub mod small_store;
