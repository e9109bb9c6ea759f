//! Initial values, as in the reference's `ssm_init.py` and `train_helpers`.

use semisep_core::{Init, Rng};

use crate::config::{CInit, S5Config};
use crate::hippo::{Eigen, hippo_n};

/// Eigenvalues and eigenvectors that are held: of each block all, or those with ω < 0, whose conjugates are left out.
struct Held {
    eigen: std::sync::Arc<Eigen>,
    blocks: usize,
    /// Held states of a block.
    each: usize,
}

impl Held {
    fn new(config: &S5Config) -> Self {
        let block = config.d_state / config.blocks.max(1);
        let each = if config.conj_sym { block / 2 } else { block };
        Self { eigen: hippo_n(block), blocks: config.blocks, each }
    }

    /// Entry of eigenvector `state` at row `row` of its block.
    fn vector(&self, state: usize, row: usize) -> (f64, f64) {
        self.eigen.vectors[(state % self.each) * self.eigen.n + row]
    }

    /// The rows of the whole space in which the block of `state` lies.
    fn first_row(&self, state: usize) -> usize {
        state / self.each * self.eigen.n
    }
}

/// Imaginary parts of the eigenvalues; real parts are all -½.
pub(crate) fn lambda_im(config: &S5Config) -> Init {
    let config = config.clone();
    Init::custom(move |_, _| {
        let held = Held::new(&config);
        (0..held.blocks).flat_map(|_| held.eigen.omega[..held.each].iter().map(|&w| w as f32)).collect()
    })
}

/// Log-uniform step sizes.
pub(crate) fn log_step(config: &S5Config) -> Init {
    Init::Uniform { lo: config.dt_min.ln(), hi: config.dt_max.ln() }
}

/// `V⁻¹ B` of a real B (d_state, d), LeCun normal: (P, d, 2).
pub(crate) fn b(config: &S5Config) -> Init {
    let config = config.clone();
    Init::custom(move |shape, rng| {
        let (held, d) = (Held::new(&config), shape[1]);
        let n = held.eigen.n;
        let std = 1.0 / (config.d_state as f64).sqrt();
        let b: Vec<f64> = (0..config.d_state * d).map(|_| truncated_normal(rng) * std).collect();
        let mut values = Vec::with_capacity(shape.iter().product());
        for state in 0..shape[0] {
            let first = held.first_row(state);
            let column = |j: usize| {
                // Row `state` of Vᴴ is the conjugate eigenvector.
                (0..n).fold((0.0, 0.0), |(re, im), k| {
                    let (v, b) = (held.vector(state, k), b[(first + k) * d + j]);
                    (re + v.0 * b, im - v.1 * b)
                })
            };
            values.extend((0..d).map(column).flat_map(|(re, im)| [re as f32, im as f32]));
        }
        values
    })
}

/// The output map, (..., d, P, 2).
pub(crate) fn c(config: &S5Config) -> Init {
    let config = config.clone();
    Init::custom(move |shape, rng| {
        let (rank, n) = (shape.len(), config.d_state as f64);
        let (states, d) = (shape[rank - 2], shape[rank - 3]);
        let rows: usize = shape[..rank - 2].iter().product();
        let std = match config.c_init {
            CInit::ComplexNormal => {
                let draw = |_| (rng.normal() * 0.5f64.sqrt()) as f32;
                return (0..rows * states * 2).map(draw).collect();
            }
            CInit::TruncStandardNormal => 1.0 / n.sqrt(),
            CInit::LecunNormal => 1.0 / (n * d as f64).sqrt(),
        };
        let held = Held::new(&config);
        let mut values = Vec::with_capacity(rows * states * 2);
        for _ in 0..rows {
            let c: Vec<(f64, f64)> = (0..config.d_state)
                .map(|_| (truncated_normal(rng) * std, truncated_normal(rng) * std))
                .collect();
            for state in 0..states {
                let first = held.first_row(state);
                let (re, im) = (0..held.eigen.n).fold((0.0, 0.0), |(re, im), k| {
                    let (v, c) = (held.vector(state, k), c[first + k]);
                    (re + c.0 * v.0 - c.1 * v.1, im + c.0 * v.1 + c.1 * v.0)
                });
                values.extend([re as f32, im as f32]);
            }
        }
        values
    })
}

/// Standard normal, cut off at two standard deviations and scaled back to variance 1.
fn truncated_normal(rng: &mut Rng) -> f64 {
    loop {
        let x = rng.normal();
        if x.abs() <= 2.0 {
            return x / 0.879_625_661_034_239_8;
        }
    }
}
