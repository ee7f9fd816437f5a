//! From a model's files to a version in a store: what `hermes-shard build` does.
//!
//! `order` is what is asked for, `source` what is read for it, `draft` what is found out about it
//! and becomes the version. `place`, `configs`, `makers` and `embedder` know what lies beside a
//! model, `architectures` draw the graph of a checkpoint, `dims` and `trial` settle open
//! dimensions; `building` says what is written when, and `write`, `layers`, `tensor` and `encode`
//! make layer files of its weights. `player` plays what was written with `inputs`, which
//! `calibrate` reads or makes up, to learn about it: `learned` and `statistics` tell encoders what
//! weights are used for, `importance` tells which tensors matter. Nothing here is needed to serve a
//! model.

mod architectures;
mod building;
mod calibrate;
mod configs;
mod dims;
mod draft;
mod embedder;
mod encode;
mod error;
mod files;
mod foreign;
mod generation;
pub mod importance;
mod inputs;
mod layers;
mod learned;
mod makers;
mod order;
mod place;
mod player;
mod source;
mod statistics;
mod tensor;
mod trial;
mod uneven;
mod watch;
mod write;

pub use calibrate::Sketch;
pub use draft::Draft;
pub use embedder::Named;
pub use error::ShardError;
pub use inputs::Inputs;
pub use order::{LADDER, Order};
pub use player::{Choice, Observer, Player, Streamed};
pub use source::{Source, TokenizerFile};
pub use watch::Watch;
