//! From a model's files to a version in a store: what `hermes-shard build` does.
//!
//! `order` is what is asked for; `place`, `makers` and `embedder` read what lies beside a model;
//! `dims` and `trial` settle its open dimensions; `build` brings it together, and `write`, `tensor`
//! and `encode` make layer files of its weights. Nothing here is needed to serve a model.

mod build;
mod dims;
mod embedder;
mod encode;
mod layers;
mod makers;
mod order;
mod place;
mod tensor;
mod trial;
mod watch;
mod write;

pub use build::{Begun, begin};
pub use embedder::Named;
pub use order::Order;
pub use watch::Watch;
