//! The machine under the figures: what it is, and its two limits.

use serde::Serialize;

/// Where a comparison ran.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processor, as the system names it.
    pub cpu: String,
    /// Threads used.
    pub threads: usize,
    /// Widest vector instructions used.
    pub instructions: &'static str,
    /// Measured read bandwidth of all threads together, bytes a second.
    pub read_bandwidth: f64,
    /// Measured rate of an f32 matrix product of all threads together, operations a second.
    pub gemm_rate: f64,
}

impl Machine {
    /// Describes and measures this machine (about a second).
    pub fn measure() -> Self {
        Self {
            cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.into()),
            threads: candle_core::utils::get_num_threads(),
            instructions: instructions(),
            read_bandwidth: semisep_kernels::machine::read_bandwidth(),
            gemm_rate: semisep_kernels::machine::gemm_rate(),
        }
    }
}

fn cpu_name() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    if std::is_x86_feature_detected!("avx512f") {
        "AVX-512"
    } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        "AVX2"
    } else {
        "SSE2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    "baseline"
}
