//! Positions as a bias of attention scores by the distance of query and key.

use candle_core::{DType, Device, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Init, Issue, VarBuilder};

/// Longest distance that a bias may tell apart.
const MAX_DISTANCE: usize = 1 << 20;

/// `rel_bias = { buckets = 32, max_distance = 128 }`: a learned bias a head and bucket of distances, as in T5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RelBiasConfig {
    /// Buckets: half of them one distance each, the others ever wider.
    pub buckets: usize,
    /// Distances from this on share the last bucket.
    pub max_distance: usize,
}

impl Default for RelBiasConfig {
    fn default() -> Self {
        Self { buckets: 32, max_distance: 128 }
    }
}

impl RelBiasConfig {
    /// What is wrong with it, at the key where it stands.
    pub fn check(&self, key: &str) -> Option<Issue> {
        let Self { buckets, max_distance } = *self;
        if buckets < 2 || buckets % 2 == 1 || buckets > MAX_DISTANCE {
            let message = format!("expected an even number of buckets from 2, found {buckets}");
            return Some(Issue::new(format!("{key}.buckets"), message).help("T5 has 32"));
        }
        (max_distance <= buckets / 2 || max_distance > MAX_DISTANCE).then(|| {
            let least = buckets / 2 + 1;
            let message =
                format!("expected max_distance from {least} to {MAX_DISTANCE}, found {max_distance}");
            Issue::new(format!("{key}.max_distance"), message)
                .help("half of the buckets hold one distance each")
        })
    }

    /// The bucket of a distance to an earlier token: itself below N/2, then by its logarithm up to `max_distance`
    /// (Raffel et al. 2020, section 2.1; one-sided).
    pub fn bucket(&self, distance: usize) -> usize {
        let exact = self.buckets / 2;
        if distance < exact {
            return distance;
        }
        let ratio = |x: usize| (x as f64 / exact as f64).ln();
        let wide = (ratio(distance) / ratio(self.max_distance) * exact as f64).floor();
        exact.saturating_add(wide as usize).min(self.buckets - 1)
    }
}

/// The learned bias of a layer: `weight` (buckets, heads).
#[derive(Debug, Clone)]
pub struct RelativeBias {
    weight: Tensor,
    bucket_of: Tensor, // (n) u32, by distance
}

impl RelativeBias {
    /// With the parameter of `vb`, in full precision and without decay; it starts at standard deviation `std`.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn new(config: &RelBiasConfig, heads: usize, std: f64, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get_f32((config.buckets, heads), "weight", Init::Normal { std })?;
        let buckets: Vec<u32> = (0..=config.max_distance).map(|n| config.bucket(n) as u32).collect();
        Ok(Self { weight, bucket_of: Tensor::new(buckets, vb.device())? })
    }

    /// The bias by distance, (heads, n); greater distances have that of the last.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn table(&self) -> Result<Tensor> {
        self.weight.index_select(&self.bucket_of, 0)?.t()?.contiguous()
    }
}

/// The slopes of ALiBi: `2^(-8/h · i)` for i = 1..h where h is a power of two; else those of the next smaller power,
/// then every second one of the next greater (Press et al. 2022, section 3 and the reference code).
pub fn alibi_slopes(heads: usize) -> Vec<f64> {
    let powers = |h: usize| (1..=h).map(move |i| 2f64.powf(-8.0 * i as f64 / h as f64));
    if heads == 0 {
        return vec![];
    }
    let below = 1 << heads.ilog2();
    powers(below).chain(powers(2 * below).step_by(2)).take(heads).collect()
}

/// ALiBi's bias by distance, `-slope · distance`: (heads, n).
///
/// # Errors
/// If memory cannot be had.
pub fn alibi_table(heads: usize, n: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let values: Vec<f64> = alibi_slopes(heads)
        .iter()
        .flat_map(|slope| (0..n).map(move |distance| -slope * distance as f64))
        .collect();
    Tensor::from_vec(values, (heads, n), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T5's `_relative_position_bucket(-n, bidirectional=False, 32, 128)`.
    #[test]
    fn buckets_are_those_of_t5() {
        let config = RelBiasConfig::default();
        let known =
            [(0, 0), (15, 15), (16, 16), (18, 16), (19, 17), (32, 21), (64, 26), (112, 30), (113, 31)];
        for (distance, bucket) in known {
            assert_eq!(config.bucket(distance), bucket, "{distance}");
        }
        assert_eq!((config.bucket(128), config.bucket(1 << 40)), (31, 31));
        assert!((1..200).all(|n| config.bucket(n) >= config.bucket(n - 1)));
    }

    #[test]
    fn impossible_buckets_are_refused() {
        let check = |buckets, max_distance| RelBiasConfig { buckets, max_distance }.check("rel_bias");
        assert!(check(32, 128).is_none() && check(2, 2).is_none());
        assert_eq!(check(31, 128).unwrap().key, "rel_bias.buckets");
        assert_eq!(check(0, 128).unwrap().key, "rel_bias.buckets");
        assert_eq!(check(32, 16).unwrap().key, "rel_bias.max_distance");
        assert_eq!(check(32, 1 << 40).unwrap().key, "rel_bias.max_distance");
    }

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), (1..=8).map(|i| 0.5f64.powi(i)).collect::<Vec<_>>());
        // The reference's get_slopes(6): four of four, then the first and third of eight.
        assert_eq!(alibi_slopes(6), [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]);
        assert_eq!(alibi_slopes(1), [0.00390625]);
        assert_eq!(alibi_slopes(12).len(), 12);
    }
}
