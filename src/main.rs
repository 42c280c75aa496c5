//! The `afterimage` binary; everything is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Messages are taken apart on one thread and let go on another: the system's allocator spends a quarter of the worker's
/// time on that. RocksDB and librdkafka keep to the system's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    afterimage::cli::main()
}
