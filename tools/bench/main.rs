//! hermes-bench alone (see `tools/programs` for what is installed).

use hermes::sys::heap::CountingAllocator;

#[global_allocator]
static HEAP: CountingAllocator = CountingAllocator;

fn main() -> anyhow::Result<()> {
    hermes_bench::main()
}
