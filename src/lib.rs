//! Hermes runs neural networks that are larger than the memory of the board they run on.
//!
//! A model is a small graph and a long tape. The graph stays in memory; the big weights lie on
//! disk in the order in which a pass consumes them and flow through a window of a few MiB. See
//! ARCHITECTURE.md for the whole in ten minutes.
//!
//! Dependencies point one way: `codec <- store <- graph` and `sys <- stream <- plan`, both `<-
//! engine <- daemon <- api`, and `graph <- shard` beside them; `tests/architecture.rs` keeps it so.

pub mod api;
pub mod codec;
pub mod daemon;
pub mod engine;
pub mod graph;
pub mod manual;
pub mod plan;
pub mod shard;
pub mod store;
pub mod stream;
pub mod sys;

#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
