//! What a language model needs beside its passes, as pure functions: logits become tokens, and bytes
//! become text that ends where it should. Nothing here knows a tokenizer, a thread or a socket.

pub mod random;
pub mod sampler;
pub mod stops;
pub mod whole;
