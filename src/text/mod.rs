//! What a language model needs beside its passes, as pure functions: chats become prompts, logits
//! become tokens, and bytes become text that ends where it should; and what a tokenizer takes, by its
//! file. Nothing here builds a tokenizer, or knows a thread or a socket.

mod bounded;
pub mod chat;
pub mod clock;
pub mod detokenizer;
mod dump;
pub mod messages;
mod python;
pub mod random;
mod ranking;
pub mod sampler;
pub mod settings;
mod sought;
pub mod stops;
pub mod template;
pub mod tree;
pub mod vocabulary;
pub mod whole;

pub use minijinja::Value;
pub use minijinja::value::ValueKind;

/// The name of the template that is taken where none is asked for.
const DEFAULT: &str = "default";

#[cfg(test)]
mod cases;
