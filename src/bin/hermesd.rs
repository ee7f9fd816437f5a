//! The daemon alone (see `tools/programs` for what is installed).

use hermes::sys::heap::CountingAllocator;
use std::process::ExitCode;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    hermes::hermesd::main()
}
