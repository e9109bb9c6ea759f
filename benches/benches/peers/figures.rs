//! Speeds and their limits.

use std::fmt;
use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use semisep_models::LanguageModel;

use crate::candle_peer::Peer;

/// What the machine can do at the best.
pub(crate) struct Limits {
    pub(crate) threads: usize,
    /// Bytes a second.
    pub(crate) read_bandwidth: f64,
    /// Operations a second, f32.
    pub(crate) gemm_rate: f64,
}

impl Limits {
    pub(crate) fn measure() -> Self {
        Self {
            threads: candle_core::utils::get_num_threads(),
            read_bandwidth: semisep_kernels::machine::read_bandwidth(),
            gemm_rate: semisep_kernels::machine::gemm_rate(),
        }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "threads": self.threads,
            "read_bandwidth": self.read_bandwidth,
            "gemm_rate": self.gemm_rate,
        })
    }
}

/// One implementation's figures for one model.
pub(crate) struct Figures {
    pub(crate) model: &'static str,
    pub(crate) who: String,
    /// Tokens a second, one at a time.
    pub(crate) decode: f64,
    /// Bytes of weights read a token, over the read bandwidth, times the decode rate.
    pub(crate) decode_of_bandwidth: f64,
    /// Tokens read and tokens a second; `None` if it has no prefill but steps.
    pub(crate) prefill: Option<(usize, f64)>,
    /// Operations of the matrices a token, over the product rate, times the prefill rate.
    pub(crate) prefill_of_gemm: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:28} decode {:7.1} tokens/s ({:3.0} % of bandwidth)",
            self.who,
            self.decode,
            100.0 * self.decode_of_bandwidth
        )?;
        match self.prefill {
            Some((length, rate)) => write!(
                f,
                "   prefill {length}: {rate:7.1} tokens/s ({:3.0} % of product rate)",
                100.0 * self.prefill_of_gemm
            ),
            None => write!(f, "   prefill: steps only"),
        }
    }
}

pub(crate) fn to_json(all: &[Figures]) -> Vec<serde_json::Value> {
    let one = |f: &Figures| {
        serde_json::json!({
            "model": f.model,
            "implementation": f.who,
            "decode_tokens_per_second": f.decode,
            "decode_of_bandwidth": f.decode_of_bandwidth,
            "prefill_length": f.prefill.map(|p| p.0),
            "prefill_tokens_per_second": f.prefill.map(|p| p.1),
            "prefill_of_gemm_rate": f.prefill.map(|_| f.prefill_of_gemm),
        })
    };
    all.iter().map(one).collect()
}

/// The median of `n` timed calls, seconds, and the read bandwidth around them: shared machines change theirs from one
/// moment to the next, so the larger of a measurement before and one after is the limit.
pub(crate) fn beside_bandwidth(n: usize, f: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
    let before = semisep_kernels::machine::read_bandwidth();
    let seconds = median(n, f)?;
    Ok((seconds, before.max(semisep_kernels::machine::read_bandwidth())))
}

/// The median of `n` timed calls, seconds.
pub(crate) fn median(n: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[n / 2])
}

/// Largest difference of the two models' logits over a few steps, over the largest logit.
pub(crate) fn disagreement(ours: &LanguageModel, peer: &Peer) -> Result<f64> {
    let mut state = ours.new_state(1)?;
    let mut peer_state = peer.new_state()?;
    let (mut worst, mut scale) = (0f64, 0f64);
    for id in [11u32, 503, 7, 42] {
        let a = ours.step(&[id], &mut state)?;
        let b = peer.step(&Tensor::new(&[id], &Device::Cpu)?, &mut peer_state)?;
        let b = b.reshape(a.dims())?;
        let max = |t: &Tensor| t.abs()?.flatten_all()?.max(0)?.to_dtype(DType::F64)?.to_scalar::<f64>();
        worst = worst.max(max(&(&a - &b)?)?);
        scale = scale.max(max(&b)?);
    }
    Ok(worst / scale)
}
