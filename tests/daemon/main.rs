//! The programs as their users meet them: real processes, real sockets, real files. One test program
//! for all of them: what it is linked with is linked once.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod choices;
mod clients;
mod crash;
mod crowd;
mod decided;
mod doctor;
mod documents;
mod embed;
mod generation;
mod hostile;
mod metrics;
mod onnx;
mod openapi;
mod plans;
mod pressure;
mod protocol;
mod service;
mod strange;
mod tcp;
mod texts;
mod tokenizers;
mod versions;
