//! What the tests of whole programs share.

// Each test program uses a part of it.
#![allow(dead_code)]

pub mod crews;
pub mod daemon;
pub mod frozen;
pub mod gguf;
pub mod made;
pub mod precision;
pub mod programs;
pub mod python;
pub mod references;
pub mod schema;
#[path = "../../tools/ctl/scrape.rs"]
pub mod scrape;
pub mod served;
pub mod skip;
pub mod small_store;
pub mod tar;
pub mod tiny;
pub mod writer;
