//! Bodies of the embeddings call: none panics, and no text or token is held that was not asked for.

#![no_main]

use hermes::api::embeddings_json::{EmbeddingsRequest, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut asked_bytes = 0;
    let read = EmbeddingsRequest::parse(body, &mut |bytes| {
        asked_bytes = bytes;
        Ok(())
    });
    if let Ok(request) = read {
        let held_bytes: u64 = request.inputs.iter().map(Input::held_bytes).sum();
        assert!(held_bytes <= asked_bytes, "{held_bytes} of {asked_bytes}");
    }
});
