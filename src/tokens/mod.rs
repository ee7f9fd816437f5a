//! A tokenizer.json becomes a tokenizer, which is looked at before: what its rules make of a text is
//! bounded before a text is there, and what is no tokenizer of one text is refused. Nothing here
//! knows a budget, a store or a socket.

mod assembly;
mod characters;
mod charsmap;
mod error;
mod growth;
mod patterns;
mod rules;

pub use assembly::{Assembled, AssemblyError, Manner, assemble};
pub use error::RuleError;
pub use growth::Growth;
