//! Bodies of requests: none panics, none reserves more than its text can hold, and what is read
//! is read again from what it is written as.

#![no_main]

use hermes::api::infer_json::{InferRequest, parse_reply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let mut reserved_bytes = 0;
    let read = InferRequest::parse(text, &mut |bytes| {
        reserved_bytes = bytes;
        Ok(())
    });
    // Eight bytes an element, of which each takes two of text.
    assert!(reserved_bytes <= 4 * text.len() as u64 + 2048);
    if let Ok(request) = read {
        let again = InferRequest::parse(&request.to_json(), &mut |_| Ok(()));
        assert_eq!(again.expect("what was written is read"), request);
    }
    let _ = parse_reply(text);
});
