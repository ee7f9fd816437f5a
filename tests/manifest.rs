//! What a manifest costs in memory before anything of it is believed.

use hermes::store::manifest::{HEAP_BYTES_PER_BYTE, Manifest};
use hermes::sys::heap::{self, CountingAllocator};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// Bytes of each manifest, about.
const BYTES: usize = 1 << 20;

/// A manifest whose field `field` holds `item` again and again.
fn manifest_of(field: &str, item: &str) -> String {
    let items = vec![item; BYTES / (item.len() + 1)].join(",");
    let value = |name: &str, empty: &str| match name == field {
        true => format!("[{items}]"),
        false => empty.to_owned(),
    };
    let checksum = "0000000000000000";
    format!(
        "{{\"format\":1,\"model\":\"m\",\"version\":\"1\",\"inputs\":{},\"outputs\":{},\
         \"graph\":{{\"path\":\"g\",\"bytes\":1,\"checksum\":\"{checksum}\"}},\"weights\":{},\
         \"layers\":{},\"variants\":{},\"provenance\":{{\"source\":\"\",\"source_bytes\":0,\
         \"producer\":\"\",\"tool\":\"\",\"created_s\":0}}}}",
        value("inputs", "[]"),
        value("outputs", "[{\"name\":\"a\",\"dtype\":\"FP32\",\"shape\":[]}]"),
        value("weights", "[]"),
        value("layers", "[]"),
        value("variants", "[\"f32\"]"),
    )
}

/// The daemon asks the ledger for what parsing takes, by the manifest's length alone: a shape of
/// ones took eighteen times its bytes, and eight were granted.
#[test]
fn parsing_takes_no_more_than_is_granted() {
    let file = "{\"path\":\"\",\"bytes\":0,\"index_checksum\":\"0000000000000000\",\
                \"relative_error\":0,\"max_error\":0}";
    let files: Vec<String> = (0..500).map(|n| format!("\"{n}\":{file}")).collect();
    let files = files.join(",");
    let long = "1,".repeat(100_000) + "1";
    let dims = "1,".repeat(31) + "1";
    let port = |dims: &str| format!("{{\"name\":\"\",\"dtype\":\"BOOL\",\"shape\":[{dims}]}}");
    let symbols = vec!["\"a\""; 32].join(",");
    for (field, item) in [
        ("variants", "\"a\"".to_owned()),
        ("inputs", port(&long)),
        ("inputs", port(&dims)),
        ("inputs", port(&symbols)),
        ("inputs", port("1")),
        ("inputs", port("")),
        ("weights", port(&long)),
        ("weights", port(&dims)),
        ("weights", port("1")),
        ("weights", port("")),
        ("layers", "{\"name\":\"\",\"files\":{}}".to_owned()),
        ("layers", format!("{{\"name\":\"\",\"files\":{{\"a\":{file}}}}}")),
        ("layers", format!("{{\"name\":\"a\",\"files\":{{{files}}}}}")),
        ("layers", format!("\"{}\"", "\\u0001".repeat(100_000))),
        ("variants", format!("\"{}\"", "\u{7f}".repeat(100_000))),
    ] {
        let json = manifest_of(field, &item);
        let before = heap::live_bytes();
        heap::reset_peak();
        let error = Manifest::parse(json.as_bytes()).map(drop).unwrap_err().to_string();
        let took = heap::peak_bytes() - before + json.len() as u64;
        let granted = json.len() as u64 * HEAP_BYTES_PER_BYTE;
        let item = &item[..item.len().min(60)];
        // What the allocator needs for itself, most for short names, is counted.
        assert!(took < granted * 4 / 5, "{field} of {item}: {took} of {granted} bytes");
        assert!(error.len() < 30_000, "{field} of {item}: an error of {} bytes", error.len());
    }
}
