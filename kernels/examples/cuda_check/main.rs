//! Checks every CUDA kernel against the plain definitions on the CPU, then times the shapes that matter.
//!
//! `cargo run --release --features cuda -p semisep-kernels --example cuda_check [-- --json FILE] [--small]`
//!
//! Exits 1 if a check fails. `--small` checks a few small cases and times nothing (for `compute-sanitizer`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a check that panics has failed")]

mod causal_conv1d;
#[path = "../../tests/common/mod.rs"]
mod common;
mod report;

use candle_core::{Device, Result};
use report::Report;

fn main() -> Result<()> {
    let mut json = None;
    let mut small = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = Some(args.next().expect("--json needs a file")),
            "--small" => small = true,
            other => candle_core::bail!("unknown argument {other}"),
        }
    }
    let device = Device::new_cuda(0)?;
    semisep_kernels::cuda::keep_freed_memory(&device)?;
    let mut report = Report::new(&device)?;
    causal_conv1d::check(&device, &mut report, small)?;
    if !small {
        report.copy_ceiling()?;
        causal_conv1d::time(&device, &mut report)?;
    }
    report.print();
    if let Some(json) = json {
        std::fs::write(json, report.json())?;
    }
    if report.failed() {
        std::process::exit(1);
    }
    Ok(())
}
