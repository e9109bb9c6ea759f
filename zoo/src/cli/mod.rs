//! The `semisep` command: a thin layer over the library, one file a subcommand.
//!
//! A subcommand is an `Args` with a `run(&self) -> Result<Outcome>`: an [`Error`] it returns is printed once, here.

mod architecture;
mod bench;
mod check;
mod describe;
mod eval;
mod export;
mod generate;
mod import;
mod inspect;
mod list;
mod model;
mod pull;
mod verify;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{Error, Result};

const EXIT_CODES: &str = "Exit codes:\n  0  done, and everything is in order\n  1  done, and something is not: a \
                          difference out of tolerance, an error in a blueprint\n  2  not done: wrong usage, a file \
                          that cannot be read, loaded or downloaded";

/// Declare, load, compare and run sequence models: state spaces, linear recurrences and attention, mixed freely.
#[derive(Parser)]
#[command(name = "semisep", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Describe(describe::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Generate(generate::Args),
    Eval(eval::Args),
    Import(import::Args),
    Export(export::Args),
    Pull(pull::Args),
    List(list::Args),
}

impl Command {
    fn run(&self) -> Result<Outcome> {
        match self {
            Self::Check(args) => args.run(),
            Self::Describe(args) => args.run(),
            Self::Bench(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Verify(args) => args.run(),
            Self::Generate(args) => args.run(),
            Self::Eval(args) => args.run(),
            Self::Import(args) => args.run(),
            Self::Export(args) => args.run(),
            Self::Pull(args) => args.run(),
            Self::List(args) => args.run(),
        }
    }
}

/// How a command that did its work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is in order: exit code 0.
    Good,
    /// The command found something wrong in what it looked at: exit code 1.
    Bad,
}

/// Runs the command line, the program's name first, and gives its exit code: 0, 1 (see [`Outcome`]), or 2 after an error.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version come this way too, with exit code 0. A closed pipe is no error of ours.
            let _ = usage.print();
            return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
        }
    };
    match cli.command.run() {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Err(error) => {
            report(&error);
            ExitCode::from(2)
        }
    }
}

fn report(error: &Error) {
    let mut stderr = std::io::stderr().lock();
    let colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let (red, cyan, plain) = if colour { ("\x1b[1;31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    // There is nobody left to tell if this fails.
    let _ = writeln!(stderr, "{red}error:{plain} {error}");
    if let Some(advice) = error.advice() {
        let _ = writeln!(stderr, "{cyan}  help:{plain} {advice}");
    }
}

/// Writes to standard output; a reader that has gone away is no error.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(format!("standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error, where what is no result goes.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
