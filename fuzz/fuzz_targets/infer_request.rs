//! Bodies of requests: none panics, none reserves more than its text can hold, and what is read
//! is read again from what it is written as.

#![no_main]

use hermes::wire::infer_json::InferRequest;
use hermes::wire::infer_reply::InferReply;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    // The last newline stands for where the JSON ends and binary data begins.
    let json_bytes = body.iter().rposition(|byte| *byte == b'\n').unwrap_or(body.len());
    let (text, binary) = body.split_at(json_bytes);
    let mut reserved_bytes = 0;
    let read = InferRequest::parse(text, binary, &mut |bytes| {
        reserved_bytes = bytes;
        Ok(())
    });
    // Eight bytes an element, of which each takes two of text.
    assert!(reserved_bytes <= 4 * body.len() as u64 + 2048);
    if let Ok(request) = read {
        let (body, json_bytes) = request.encode();
        let (text, binary) = body.split_at(json_bytes);
        let again = InferRequest::parse(text, binary, &mut |_| Ok(()));
        assert_eq!(again.expect("what was written is read"), request);
    }
    let _ = InferReply::parse(text, binary);
});
