//! Seeded initial values: the same seed and name give the same tensor on every machine and in any order.

use std::fmt;
use std::sync::Arc;

type Fill = Arc<dyn Fn(&[usize], &mut Rng) -> Vec<f32> + Send + Sync>;

/// How a parameter starts out.
#[derive(Clone)]
pub enum Init {
    /// One value everywhere.
    Const(f64),
    /// Uniform in `[lo, hi)`.
    Uniform {
        /// Lower bound.
        lo: f64,
        /// Upper bound.
        hi: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Any function of the shape (row-major values).
    Custom(Fill),
}

impl Init {
    /// All zeros.
    pub const ZEROS: Self = Self::Const(0.0);
    /// All ones.
    pub const ONES: Self = Self::Const(1.0);

    /// PyTorch's default for a linear map with `fan_in` inputs: uniform within ±1/√fan_in.
    pub fn linear(fan_in: usize) -> Self {
        let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
        Self::Uniform { lo: -bound, hi: bound }
    }

    /// Glorot and Bengio 2010, for a map of these widths: uniform within ±gain √(6 / (inputs + outputs)).
    pub fn xavier(inputs: usize, outputs: usize, gain: f64) -> Self {
        let bound = gain * (6.0 / (inputs + outputs).max(1) as f64).sqrt();
        Self::Uniform { lo: -bound, hi: bound }
    }

    /// The bias under a softplus that makes the first step sizes log-uniform in `[min, max]`, at least `floor`
    /// (Mamba, section 3.6).
    pub fn dt_bias(min: f64, max: f64, floor: f64) -> Self {
        Self::custom(move |shape, rng| {
            (0..shape.iter().product())
                .map(|_| {
                    let dt = rng.uniform(min.ln(), max.ln()).exp().max(floor);
                    (dt + (-(-dt).exp_m1()).ln()) as f32 // inverse of softplus
                })
                .collect()
        })
    }

    /// A function of the shape.
    pub fn custom(f: impl Fn(&[usize], &mut Rng) -> Vec<f32> + Send + Sync + 'static) -> Self {
        Self::Custom(Arc::new(f))
    }

    /// The same values times `factor`.
    pub fn scaled(self, factor: f64) -> Self {
        match self {
            Self::Const(v) => Self::Const(v * factor),
            Self::Uniform { lo, hi } => Self::Uniform { lo: lo * factor, hi: hi * factor },
            Self::Normal { std } => Self::Normal { std: std * factor },
            Self::Custom(f) => Self::custom(move |shape, rng| {
                f(shape, rng).into_iter().map(|v| (f64::from(v) * factor) as f32).collect()
            }),
        }
    }

    /// The values of a tensor of this shape, row-major.
    pub fn values(&self, shape: &[usize], rng: &mut Rng) -> Vec<f32> {
        let n = shape.iter().product();
        match self {
            Self::Const(v) => vec![*v as f32; n],
            Self::Uniform { lo, hi } => (0..n).map(|_| rng.uniform(*lo, *hi) as f32).collect(),
            Self::Normal { std } => (0..n).map(|_| (rng.normal() * std) as f32).collect(),
            Self::Custom(f) => f(shape, rng),
        }
    }
}

impl fmt::Debug for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Const(v) => write!(f, "Const({v})"),
            Self::Uniform { lo, hi } => write!(f, "Uniform({lo}, {hi})"),
            Self::Normal { std } => write!(f, "Normal({std})"),
            Self::Custom(_) => write!(f, "Custom"),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seedable, and the same numbers for ever.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for this seed and name (FNV-1a), independent of all other names.
    pub fn named(seed: u64, name: &str) -> Self {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        let mut rng = Self(seed ^ hash);
        Self(rng.next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[lo, hi)`.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.unit()
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.unit();
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * self.unit()).cos()
    }

    /// Uniform in `0..n`; 0 for `n == 0`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_independent_and_repeatable() {
        let draw = |name| Init::Normal { std: 1.0 }.values(&[1000], &mut Rng::named(7, name));
        assert_eq!(draw("a"), draw("a"));
        assert_ne!(draw("a"), draw("b"));
        let mean: f32 = draw("a").iter().sum::<f32>() / 1000.0;
        let var: f32 = draw("a").iter().map(|v| v * v).sum::<f32>() / 1000.0;
        let half = Init::Normal { std: 1.0 }.scaled(0.5).values(&[1000], &mut Rng::named(7, "a"));
        assert!(draw("a").iter().zip(half).all(|(whole, half)| (whole * 0.5 - half).abs() < 1e-6));
        assert!(mean.abs() < 0.1 && (var - 1.0).abs() < 0.15, "mean {mean}, variance {var}");
    }
}
