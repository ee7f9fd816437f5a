//! Manifests: none panics, and one that is accepted is written and accepted again, names no file
//! outside its folder and no weight whose size overflows.

#![no_main]

use hermes::store::manifest::Manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(manifest) = Manifest::parse(json) else { return };
    let files = manifest.layers.iter().flat_map(|layer| layer.files.values());
    for path in files.map(|file| &file.path).chain([&manifest.graph.path]) {
        assert!(!path.starts_with('/') && !path.split('/').any(|part| part == ".."));
    }
    for weight in &manifest.weights {
        assert!(weight.bytes() > 0);
    }
    let again = serde_json::to_vec(&manifest).expect("what was read can be written");
    assert!(Manifest::parse(&again).is_ok(), "and read again");
});
