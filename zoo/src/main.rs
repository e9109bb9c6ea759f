//! The `semisep` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    semisep_kernels::keep_freed_memory();
    semisep_zoo::cli::run(std::env::args_os())
}
