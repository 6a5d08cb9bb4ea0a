//! The `easel` program: parses the command line and dispatches.

use std::process::ExitCode;

fn main() -> ExitCode {
    easel::cli::main()
}
