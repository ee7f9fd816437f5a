//! Hermes runs neural networks that are larger than the memory of the board they run on.
//!
//! A model is a small graph and a long tape. The graph stays in memory; the big weights lie on
//! disk in the order in which a pass consumes them and flow through a window of a few MiB. See
//! ARCHITECTURE.md for the whole in ten minutes.
//!
//! Dependencies point one way: `codec <- store <- graph` and `sys <- stream <- plan`, both `<-
//! engine <- daemon <- api`, and `graph <- shard` beside them; `tests/architecture.rs` keeps it so.
//! What needs no graph is a library of its own (`base.rs`), so that the client is a small program.

pub mod api;
pub mod daemon;
pub mod engine;
pub mod graph;
pub mod hermesd;
pub mod shard;
pub mod tokens;

pub use hermes_base::{
    checkpoint, codec, manual, plan, say, store, stream, sys, tell, text, values, wire,
};
