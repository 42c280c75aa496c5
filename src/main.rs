//! The `afterimage` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    afterimage::cli::main()
}
