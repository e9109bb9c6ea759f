//! One function, three machines: recurrence in chunks, recurrence by steps, masked attention. Retention is the state-space
//! scan with a fixed decay, linear attention the one without, a scan with one decay a channel the general case.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use common::{assert_close, random};
use semisep_kernels::{
    DecayScan, ScalarDecayScan, ScalarDecayStateUpdate, SelectiveScan, SsdChunkScan, decay_scan,
    scalar_decay_scan, scalar_decay_state_update, selective_scan, ssd_chunk_scan,
};

const B: usize = 2;
const L: usize = 150;
const H: usize = 3;
const P: usize = 5;
const N: usize = 4;
const TOLERANCE: f64 = 1e-12;

fn qkv() -> [Tensor; 3] {
    [(1, N), (2, N), (3, P)].map(|(seed, width)| random(seed, &[B, L, H, width], DType::F64))
}

/// Retention's decays, `1 - 2^(-5-i)`, as logarithms.
fn retention() -> Tensor {
    let decays: Vec<f64> = (0..H).map(|i| (1.0 - 2f64.powi(-5 - i as i32)).ln()).collect();
    Tensor::from_vec(decays, H, &Device::Cpu).unwrap()
}

/// `(Q Kᵀ ∘ W) V` head by head, with W[t,s] = `weight(b, h, t, s)` for s ≤ t: attention without a softmax, by its sums.
fn masked_attention(
    [q, k, v]: &[Tensor; 3],
    weight: impl Fn(usize, usize, usize, usize) -> f64,
) -> Result<Tensor> {
    let mask = (0..B * H * L * L).map(|i| {
        let (b, h, t, s) = (i / (H * L * L), i / (L * L) % H, i / L % L, i % L);
        if s <= t { weight(b, h, t, s) } else { 0.0 }
    });
    let mask = Tensor::from_vec(mask.collect::<Vec<f64>>(), (B, H, L, L), &Device::Cpu)?;
    let heads = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    let scores = heads(q)?.matmul(&heads(k)?.t()?.contiguous()?)?;
    (scores * mask)?.matmul(&heads(v)?)?.transpose(1, 2)
}

/// exp of decays summed over s < j ≤ t, by a running sum of each (b, h): `sums[b][h][t]`.
fn running(log_decay: &Tensor) -> Vec<Vec<Vec<f64>>> {
    let sum = |b: usize, h: usize| {
        let steps = log_decay.i((b, .., h)).unwrap().to_vec1::<f64>().unwrap();
        steps
            .iter()
            .scan(0.0, |total, d| {
                *total += d;
                Some(*total)
            })
            .collect()
    };
    (0..B).map(|b| (0..H).map(|h| sum(b, h)).collect()).collect()
}

#[test]
fn retention_is_ssd_with_a_fixed_decay_is_masked_attention() -> Result<()> {
    let (qkv, decay) = (qkv(), retention());
    let [q, k, v] = &qkv;
    let rates = decay.to_vec1::<f64>()?;
    let attention = masked_attention(&qkv, |_, h, t, s| ((t - s) as f64 * rates[h]).exp())?;
    let (scan, state) = scalar_decay_scan(&ScalarDecayScan::new(q, k, v, &decay))?;
    assert_close("retention and masked attention", &scan, &attention, TOLERANCE);
    let ones = Tensor::ones((B, L, H), DType::F64, &Device::Cpu)?;
    for chunk in [1, 16, 64, 256] {
        let (ssd, last) = ssd_chunk_scan(&SsdChunkScan::new(v, &ones, &decay, k, q, chunk))?;
        assert_close(&format!("SSD in chunks of {chunk}"), &ssd, &attention, TOLERANCE);
        assert_close(&format!("state of SSD in chunks of {chunk}"), &last, &state, TOLERANCE);
    }
    let memory = Tensor::zeros((B, H, P, N), DType::F64, &Device::Cpu)?;
    for t in 0..L {
        let at = |x: &Tensor| x.i((.., t))?.contiguous();
        let (q, k, v) = (at(q)?, at(k)?, at(v)?);
        let y = scalar_decay_state_update(&memory, &ScalarDecayStateUpdate::new(&q, &k, &v, &decay))?;
        assert_close(&format!("step {t}"), &y, &attention.i((.., t))?, 100.0 * TOLERANCE);
    }
    assert_close("state after steps", &memory, &state, TOLERANCE);
    Ok(())
}

#[test]
fn linear_attention_is_the_scan_without_decay() -> Result<()> {
    let qkv = qkv();
    let [q, k, v] = &qkv;
    let none = Tensor::zeros(H, DType::F64, &Device::Cpu)?;
    let (scan, state) = scalar_decay_scan(&ScalarDecayScan::new(q, k, v, &none))?;
    assert_close("outputs", &scan, &masked_attention(&qkv, |_, _, _, _| 1.0)?, TOLERANCE);
    let heads = |t: &Tensor| t.transpose(1, 2)?.contiguous();
    assert_close("state", &state, &heads(v)?.t()?.contiguous()?.matmul(&heads(k)?)?, TOLERANCE);
    Ok(())
}

#[test]
fn ssd_is_attention_under_a_mask_of_decays() -> Result<()> {
    let qkv = qkv();
    let [q, k, v] = &qkv;
    let dt = random(4, &[B, L, H], DType::F64).affine(0.05, 0.06)?;
    let a = Tensor::new(&[-0.3f64, -1.0, -4.0], &Device::Cpu)?;
    let log_decay = dt.broadcast_mul(&a)?;
    let (sums, steps) = (running(&log_decay), dt.to_vec3::<f64>()?);
    let attention =
        masked_attention(&qkv, |b, h, t, s| (sums[b][h][t] - sums[b][h][s]).exp() * steps[b][s][h])?;
    let (ssd, state) = ssd_chunk_scan(&SsdChunkScan::new(v, &dt, &a, k, q, 64))?;
    assert_close("SSD", &ssd, &attention, TOLERANCE);
    let scalar = ScalarDecayScan { scale: Some(&dt), ..ScalarDecayScan::new(q, k, v, &log_decay) };
    let (scan, last) = scalar_decay_scan(&scalar)?;
    assert_close("decays of their own", &scan, &attention, TOLERANCE);
    assert_close("states", &last, &state, TOLERANCE);
    // The same decay in each channel of the key: the scan with one a channel, whose state is transposed.
    let wide = log_decay.unsqueeze(3)?.broadcast_as((B, L, H, N))?.contiguous()?;
    let keys = k.broadcast_mul(&dt.unsqueeze(3)?)?;
    let (by_channel, last) = decay_scan(&DecayScan::new(q, &keys, v, &wide))?;
    assert_close("one decay a channel", &by_channel, &attention, TOLERANCE);
    assert_close("transposed states", &last.transpose(2, 3)?, &state, TOLERANCE);
    Ok(())
}

/// Mamba-1's scan over H P channels whose rates are those of their head.
#[test]
fn the_selective_scan_with_one_rate_a_head_is_ssd() -> Result<()> {
    let [q, k, v] = qkv();
    let dt = random(4, &[B, L, H], DType::F64).affine(0.05, 0.06)?;
    let a = Tensor::new(&[-0.3f64, -1.0, -4.0], &Device::Cpu)?;
    let (ssd, state) = ssd_chunk_scan(&SsdChunkScan::new(&v, &dt, &a, &k, &q, 64))?;
    let steps = dt.unsqueeze(3)?.broadcast_as((B, L, H, P))?.reshape((B, L, H * P))?;
    let rates = a.reshape((H, 1, 1))?.broadcast_as((H, P, N))?.reshape((H * P, N))?;
    let (y, last) = selective_scan(&SelectiveScan::new(&v.flatten_from(2)?, &steps, &rates, &k, &q))?;
    assert_close("outputs", &y, &ssd.flatten_from(2)?, TOLERANCE);
    assert_close("states", &last.reshape(state.dims())?, &state, TOLERANCE);
    Ok(())
}
