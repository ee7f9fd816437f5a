//! What Hermes stands on, and what its client shares with its daemon: files and memory, blocks and
//! their codecs, checkpoints as makers publish them, the flow of weights, plans, arrays and how they
//! travel, chats and texts. Nothing here knows a graph, so that a program which only asks is a small
//! one.

pub mod checkpoint;
pub mod codec;
pub mod manual;
pub mod plan;
pub mod store;
pub mod stream;
pub mod sys;
pub mod text;
pub mod values;
pub mod wire;

#[cfg(test)]
#[path = "../tests/common/gguf.rs"]
mod gguf;
#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;
