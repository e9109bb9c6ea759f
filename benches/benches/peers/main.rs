//! Mamba-130m and Mamba-2-130m shapes, the same random weights, in one process: semisep beside candle-transformers, each
//! figure also as a fraction of what the machine allows (read bandwidth for decoding, product rate for prefill).
//!
//! `cargo bench --bench peers`; `-- --json FILE` writes the figures too.

mod candle_peer;
mod figures;
mod ours;

use candle_core::{DType, Result};
use figures::{Figures, Limits};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let json = args.iter().position(|a| a == "--json").and_then(|i| args.get(i + 1));
    let limits = Limits::measure();
    println!(
        "{} threads: reads {:.1} GB/s, f32 products {:.0} GFLOP/s",
        limits.threads,
        limits.read_bandwidth / 1e9,
        limits.gemm_rate / 1e9
    );
    let mut all: Vec<Figures> = Vec::new();
    for name in ["mamba-130m", "mamba2-130m"] {
        let weights = ours::weights(name)?;
        let semisep = ours::build(name, &weights, DType::F32)?;
        let peer = candle_peer::Peer::new(name, &weights)?;
        let error = figures::disagreement(&semisep, &peer)?;
        println!("\n{name}: logits of both differ by {error:.1e} of the largest");
        assert!(error < 1e-3, "the two must compute the same model for the comparison to mean anything");
        all.push(ours::measure(name, &semisep, &limits)?);
        drop(semisep);
        all.push(candle_peer::measure(name, &peer, &limits)?);
        drop(peer);
        all.push(ours::measure(name, &ours::build(name, &weights, DType::BF16)?, &limits)?);
        for figures in &all[all.len() - 3..] {
            println!("{figures}");
        }
    }
    if let Some(path) = json {
        let report = serde_json::json!({ "limits": limits.to_json(), "figures": figures::to_json(&all) });
        std::fs::write(path, format!("{report:#}\n"))?;
    }
    Ok(())
}
