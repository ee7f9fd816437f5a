//! hermesd, hermes-shard and hermes-bench in one file, which is installed as hermesd, with links of
//! the other names to it: it does what the name says by which it is called. Each of them alone has
//! all of tract in it, nine tenths of its size.

use hermes::sys::heap::CountingAllocator;
use std::env;
use std::path::Path;
use std::process::{ExitCode, Termination};

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

/// What a wrong command line ends with.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let path = env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().unwrap_or_default();
    match name.to_str() {
        Some("hermesd") => hermes::hermesd::main(),
        Some("hermes-shard") => hermes_shard::main(),
        Some("hermes-bench") => hermes_bench::main().report(),
        _ => {
            hermes::tell!(
                "this is hermesd, hermes-shard and hermes-bench in one file, and {} is none of \
                 these names: call it by a link of one (ln -s)",
                name.display()
            );
            ExitCode::from(USAGE)
        }
    }
}
