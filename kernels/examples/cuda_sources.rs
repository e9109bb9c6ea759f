//! Prints every CUDA specialisation that ships, one JSON object a line: op, options, source. Needs no CUDA.

use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for s in semisep_kernels::cuda::shipped() {
        let line = serde_json::json!({ "op": s.op, "defines": s.defines, "options": s.options(), "source": s.source() });
        writeln!(out, "{line}")?;
    }
    Ok(())
}
