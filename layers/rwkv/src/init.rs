//! Initial values as in RWKV-LM (`RWKV-v4neo`, `RWKV-v5`, `RWKV-v7/train_temp`), by the depth of the layer.
//!
//! `depth` is RWKV-LM's `ratio_0_to_1`, and `1 - depth` stands for its `ratio_1_to_almost0`. Where it draws orthogonal
//! matrices, normal values of the same variance are drawn here.

use semisep_core::{Init, Rng};

/// A function of the feature's index and of the number of features.
fn by_feature(f: impl Fn(usize, usize) -> f64 + Send + Sync + 'static) -> Init {
    Init::custom(move |shape, _: &mut Rng| {
        let n = shape.iter().product();
        (0..n).map(|i| f(i, n) as f32).collect()
    })
}

/// `i / (n - 1)`
fn along(i: usize, n: usize) -> f64 {
    i as f64 / (n.max(2) - 1) as f64
}

/// `(i / n)^power + offset`: the share of the token itself in a mix (RWKV-4, 5).
pub(crate) fn mix(power: f64, offset: f64) -> Init {
    by_feature(move |i, n| (i as f64 / n as f64).powf(power) + offset)
}

/// `1 - (i / n)^power - offset`: the share of the token before (RWKV-6, 7).
pub(crate) fn shift(power: f64, offset: f64) -> Init {
    by_feature(move |i, n| 1.0 - (i as f64 / n as f64).powf(power) - offset)
}

/// `time_decay`: from `low` to `low + span`, ever steeper the deeper the layer.
pub(crate) fn decay(low: f64, span: f64, depth: f64) -> Init {
    by_feature(move |i, n| low + span * along(i, n).powf(0.7 + 1.3 * depth))
}

/// `time_first` of RWKV-4.
pub(crate) fn first() -> Init {
    by_feature(|i, _| 0.3f64.ln() + 0.5 * (((i + 1) % 3) as f64 - 1.0))
}

/// `time_faaaa` of RWKV-5 and 6.
pub(crate) fn bonus(depth: f64) -> Init {
    by_feature(move |i, n| depth * (1.0 - along(i, n)) + 0.1 * (((i + 1) % 3) as f64 - 1.0))
}

/// `w0` of RWKV-7 with heads of `head_size` features.
pub(crate) fn decay7(depth: f64, head_size: usize) -> Init {
    by_feature(move |i, n| {
        -6.0 + 6.0 * along(i, n).powf(1.0 + depth.powf(0.3)) + 0.5 + 2.5 * zigzag(i, head_size)
    })
}

/// `a0` of RWKV-7.
pub(crate) fn rate7(head_size: usize) -> Init {
    by_feature(move |i, n| -0.19 + 0.3 * zigzag(i, head_size) + 0.4 * (along(i, n) - 0.5))
}

/// `start + slope (i / (n - 1) - 1/2)`
pub(crate) fn ramp(start: f64, slope: f64) -> Init {
    by_feature(move |i, n| start + slope * (along(i, n) - 0.5))
}

/// From -1 to 1 within each head, flat in the middle.
fn zigzag(i: usize, head_size: usize) -> f64 {
    let half = (head_size.max(2) - 1) as f64 / 2.0;
    let z = ((i % head_size.max(1)) as f64 - half) / half;
    z * z.abs()
}

/// A matrix with orthogonal rows of this length, in variance.
pub(crate) fn matrix(scale: f64, inputs: usize) -> Init {
    Init::Normal { std: scale / (inputs.max(1) as f64).sqrt() }
}

/// `weight` of the norm of heads.
pub(crate) fn ln_x(depth: f64) -> Init {
    Init::Const(depth.max(0.05).powf(0.7))
}
