//! The `semisep` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    semisep_zoo::cli::run(std::env::args_os())
}
