//! What the kernel and the processor offer: mappings, advice, affinity, memory figures.
//!
//! `unsafe` calls into libc and memmap2 live here and are wrapped safely beside it. Nothing here
//! knows what a model is.

#![allow(unsafe_code)]

pub mod affinity;
pub mod aligned;
pub mod board;
pub mod bus;
pub mod capabilities;
pub mod cgroup;
pub mod child;
pub mod code;
pub mod direct;
pub mod disk;
pub mod file;
pub mod file_limit;
pub mod heap;
pub mod lock;
pub mod map;
pub mod memory;
mod page;
pub mod panics;
pub mod passed;
pub mod peer;
pub mod pressure;
pub mod refaults;
pub mod tcp;
pub mod terminal;
pub mod threads;
