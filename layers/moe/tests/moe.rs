//! Routed experts against a dense evaluation, token by token and expert by expert.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use semisep_core::{Activation, Context, Mixer, MixerConfig, ParameterGroup, Rng, Source, VarBuilder};
use semisep_moe::{Moe, MoeConfig, Scoring};

const D: usize = 6;
const EXPERTS: usize = 8;

/// Values by name; a bias that changes choices; routers by `router`.
struct Values {
    router: fn(&[usize], &mut Rng) -> Vec<f64>,
}

const RANDOM: Values = Values { router: |shape, rng| normal(shape, rng) };

fn normal(shape: &[usize], rng: &mut Rng) -> Vec<f64> {
    (0..shape.iter().product()).map(|_| rng.normal()).collect()
}

impl Values {
    fn values(&self, name: &str, shape: &[usize]) -> Vec<f64> {
        let mut rng = Rng::named(3, name);
        match name {
            "gate.weight" => (self.router)(shape, &mut rng),
            "gate.e_score_correction_bias" => vec![0.3, -0.2, 0.0, 0.1, -0.1, 0.2, -0.3, 0.05],
            _ => normal(shape, &mut rng),
        }
    }

    /// Rows of a matrix.
    fn rows(&self, name: &str, rows: usize, columns: usize) -> Vec<Vec<f64>> {
        self.values(name, &[rows, columns]).chunks(columns).map(<[f64]>::to_vec).collect()
    }
}

impl Source for Values {
    fn get(&self, p: &ParameterGroup, dtype: DType, device: &Device) -> Result<Tensor> {
        Tensor::from_vec(self.values(&p.name, &p.shape), p.shape.as_slice(), device)?.to_dtype(dtype)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }
}

fn build(config: &MoeConfig, values: Values) -> Moe {
    Moe::new(D, config, &VarBuilder::new(Arc::new(values), DType::F64, Device::Cpu)).unwrap()
}

/// One configuration for each family's way to route.
fn variants() -> Vec<MoeConfig> {
    let base = MoeConfig { num_experts: EXPERTS, d_intermediate: 5, ..Default::default() };
    let sigmoid =
        MoeConfig { scoring: Scoring::Sigmoid, expert_bias: true, norm_topk_prob: true, ..base.clone() };
    vec![
        base.clone(),
        MoeConfig { norm_topk_prob: true, shared_d_intermediate: Some(4), ..base.clone() },
        MoeConfig { norm_topk_prob: true, shared_d_intermediate: Some(4), shared_gate: true, ..base },
        MoeConfig { norm_topk_eps: 1e-6, ..sigmoid.clone() },
        MoeConfig {
            n_group: 4,
            topk_group: 2,
            num_experts_per_tok: 3,
            routed_scaling_factor: 2.5,
            gated: false,
            activation: Activation::Relu2,
            ..sigmoid.clone()
        },
        MoeConfig {
            latent_size: Some(3),
            gated: false,
            activation: Activation::Relu2,
            shared_d_intermediate: Some(4),
            ..sigmoid
        },
    ]
}

fn tokens(n: usize) -> Vec<Vec<f64>> {
    let mut rng = Rng::new(5);
    (0..n).map(|_| (0..D).map(|_| 2.0 * rng.normal()).collect()).collect()
}

fn tensor(tokens: &[Vec<f64>]) -> Tensor {
    Tensor::from_vec(tokens.concat(), (1, tokens.len(), D), &Device::Cpu).unwrap()
}

fn map(rows: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    rows.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn mlp(config: &MoeConfig, name: &str, hidden: usize, x: &[f64]) -> Vec<f64> {
    let wide = if config.gated { 2 * hidden } else { hidden };
    let h = map(&RANDOM.rows(&format!("{name}.fc1.weight"), wide, x.len()), x);
    let h: Vec<f64> = match config.gated {
        true => (0..hidden).map(|i| h[i] * h[hidden + i] * sigmoid(h[hidden + i])).collect(),
        false => h.iter().map(|v| v.max(0.0).powi(2)).collect(),
    };
    map(&RANDOM.rows(&format!("{name}.fc2.weight"), x.len(), hidden), &h)
}

/// Expert and weight of each choice of one token, by the definition.
fn choices(config: &MoeConfig, x: &[f64]) -> Vec<(usize, f64)> {
    let logits = map(&RANDOM.rows("gate.weight", EXPERTS, D), x);
    let total: f64 = logits.iter().map(|v| v.exp()).sum();
    let score = |logit: f64| match config.scoring {
        Scoring::Softmax => logit.exp() / total,
        Scoring::Sigmoid => sigmoid(logit),
    };
    let scores: Vec<f64> = logits.into_iter().map(score).collect();
    let bias = RANDOM.values("gate.e_score_correction_bias", &[EXPERTS]);
    let used = if config.expert_bias { 1.0 } else { 0.0 };
    let mut choice: Vec<(f64, usize)> = (0..EXPERTS).map(|e| (scores[e] + used * bias[e], e)).collect();
    let size = EXPERTS / config.n_group;
    if config.n_group > 1 {
        let worth = |group: &[(f64, usize)]| {
            let mut values: Vec<f64> = group.iter().map(|c| c.0).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            values[0] + values[1]
        };
        let mut groups: Vec<(f64, usize)> =
            choice.chunks(size).enumerate().map(|(g, group)| (worth(group), g)).collect();
        groups.sort_by(|a, b| b.0.total_cmp(&a.0));
        let kept: Vec<usize> = groups[..config.topk_group].iter().map(|g| g.1).collect();
        choice.iter_mut().filter(|c| !kept.contains(&(c.1 / size))).for_each(|c| c.0 = 0.0);
    }
    choice.sort_by(|a, b| b.0.total_cmp(&a.0));
    let chosen: Vec<usize> = choice[..config.num_experts_per_tok].iter().map(|c| c.1).collect();
    let eps = if config.scoring == Scoring::Sigmoid { config.norm_topk_eps } else { 0.0 };
    let sum = chosen.iter().map(|&e| scores[e]).sum::<f64>() + eps;
    let norm = if config.norm_topk_prob { sum } else { 1.0 };
    chosen.into_iter().map(|e| (e, scores[e] / norm * config.routed_scaling_factor)).collect()
}

fn dense(config: &MoeConfig, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; D];
    let mut add =
        |weight: f64, answer: Vec<f64>| y.iter_mut().zip(answer).for_each(|(y, a)| *y += weight * a);
    for (e, weight) in choices(config, x) {
        let expert = |x: &[f64]| mlp(config, &format!("experts.{e}"), config.d_intermediate, x);
        let answer = match config.latent_size {
            Some(width) => {
                let inner = map(&RANDOM.rows("fc1_latent_proj.weight", width, D), x);
                map(&RANDOM.rows("fc2_latent_proj.weight", D, width), &expert(&inner))
            }
            None => expert(x),
        };
        add(weight, answer);
    }
    if let Some(hidden) = config.shared_d_intermediate {
        let gate = map(&RANDOM.rows("shared_expert_gate.weight", 1, D), x)[0];
        add(if config.shared_gate { sigmoid(gate) } else { 1.0 }, mlp(config, "shared_expert", hidden, x));
    }
    y
}

#[test]
fn routed_experts_equal_the_dense_definition() -> Result<()> {
    let tokens = tokens(57);
    for config in variants() {
        assert!(config.check(D).is_empty(), "{:?}", config.check(D));
        let got = build(&config, RANDOM).forward(&tensor(&tokens), &mut Context::default())?;
        let got: Vec<Vec<f64>> = got.squeeze(0)?.to_vec2()?;
        for (x, got) in tokens.iter().zip(got) {
            let want = dense(&config, x);
            let scale = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            for (g, w) in got.iter().zip(&want) {
                assert!((g - w).abs() < 1e-12 * scale, "{config:?}: {got:?}, expected {want:?}");
            }
        }
    }
    Ok(())
}

/// Weights of the experts by their index, for logits given as they are: the tokens are unit vectors.
fn weights_of(config: &MoeConfig) -> Vec<f64> {
    const LOGITS: [f64; EXPERTS] = [0.1, 2.0, -1.0, 1.5, 0.9, -0.4, 0.8, -2.0];
    let first = |shape: &[usize], _: &mut Rng| {
        (0..shape.iter().product()).map(|i| if i % D == 0 { LOGITS[i / D] } else { 0.0 }).collect()
    };
    let layer = build(config, Values { router: first });
    let x: Vec<Vec<f64>> = vec![(0..D).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect()];
    let y: Vec<f64> = layer
        .forward(&tensor(&x), &mut Context::default())
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    // What each expert alone would answer; the weights are the solution of y = Σ w_e answer_e over the two chosen, found by
    // trying every pair.
    let answers: Vec<Vec<f64>> =
        (0..EXPERTS).map(|e| mlp(config, &format!("experts.{e}"), config.d_intermediate, &x[0])).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for i in 0..EXPERTS {
        for j in i + 1..EXPERTS {
            let (a, b) = (&answers[i], &answers[j]);
            let (aa, ab, bb, ya, yb) = (dot(a, a), dot(a, b), dot(b, b), dot(&y, a), dot(&y, b));
            let det = aa * bb - ab * ab;
            let (wi, wj) = ((ya * bb - yb * ab) / det, (yb * aa - ya * ab) / det);
            let error: f64 = (0..D).map(|k| (y[k] - wi * a[k] - wj * b[k]).abs()).sum();
            if error < 1e-9 && wi.abs() > 1e-6 && wj.abs() > 1e-6 {
                let mut weights = vec![0.0; EXPERTS];
                (weights[i], weights[j]) = (wi, wj);
                return weights;
            }
        }
    }
    panic!("no two experts answer {y:?}");
}

fn close(got: &[f64], chosen: [(usize, f64); 2]) {
    let mut want = vec![0.0; EXPERTS];
    chosen.iter().for_each(|&(e, w)| want[e] = w);
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-9), "{got:?}, expected {want:?}");
}

/// The logits above, of which 2.0 (expert 1) and 1.5 (expert 3) are the largest.
fn partition() -> f64 {
    [0.1f64, 2.0, -1.0, 1.5, 0.9, -0.4, 0.8, -2.0].iter().map(|v| v.exp()).sum()
}

/// transformers' `JambaSparseMoeBlock`: a softmax over all experts, whose two best entries stay as they are.
#[test]
fn jamba_takes_the_best_of_the_softmax() {
    let config = MoeConfig { num_experts: EXPERTS, d_intermediate: 5, ..Default::default() };
    close(&weights_of(&config), [(1, 2f64.exp() / partition()), (3, 1.5f64.exp() / partition())]);
}

/// transformers' `GraniteMoeHybridTopKGating`: a softmax over the two best logits.
#[test]
fn granite_takes_the_softmax_of_the_best() {
    let config =
        MoeConfig { num_experts: EXPERTS, d_intermediate: 5, norm_topk_prob: true, ..Default::default() };
    let first = 1.0 / (1.0 + (-0.5f64).exp());
    close(&weights_of(&config), [(1, first), (3, 1.0 - first)]);
}

/// transformers' `Lfm2MoeSparseMoeBlock`: sigmoids; a bias that chooses and does not weigh; their sum and 1e-6 below, where
/// `norm_topk_prob` says so; a factor.
#[test]
fn lfm2_chooses_with_a_bias_and_weighs_without() {
    // With the bias of `Values`, experts 1 (0.88 - 0.2) and 3 (0.82 + 0.1), 4 (0.71 - 0.1), 6 (0.69 - 0.3), 0 (0.52 + 0.3).
    let (s3, s0) = (sigmoid(1.5), sigmoid(0.1));
    let config = MoeConfig {
        num_experts: EXPERTS,
        d_intermediate: 5,
        scoring: Scoring::Sigmoid,
        expert_bias: true,
        norm_topk_eps: 1e-6,
        routed_scaling_factor: 1.5,
        ..Default::default()
    };
    close(&weights_of(&config), [(3, 1.5 * s3), (0, 1.5 * s0)]);
    let normed = MoeConfig { norm_topk_prob: true, ..config.clone() };
    let sum = s3 + s0 + 1e-6;
    close(&weights_of(&normed), [(3, 1.5 * s3 / sum), (0, 1.5 * s0 / sum)]);
    let unbiased = MoeConfig { expert_bias: false, routed_scaling_factor: 1.0, ..config };
    close(&weights_of(&unbiased), [(1, sigmoid(2.0)), (3, s3)]);
}

/// An expert that no token takes costs nothing and leaves no trace.
#[test]
fn experts_without_tokens_are_left_out() -> Result<()> {
    let config = MoeConfig { num_experts_per_tok: 1, ..variants()[0].clone() };
    let one = tokens(1);
    let y = build(&config, RANDOM).forward(&tensor(&one), &mut Context::default())?;
    let y: Vec<f64> = y.flatten_all()?.to_vec1()?;
    let want = dense(&config, &one[0]);
    assert!(y.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12));
    Ok(())
}

/// An even load has loss 1; all tokens at one expert, with all the score, have the number of experts.
#[test]
fn balance_measures_the_load() -> Result<()> {
    let config = MoeConfig { num_experts_per_tok: 1, ..variants()[0].clone() };
    let x = tensor(&tokens(64)).abs()?;
    let load = |router| -> Result<(f64, Vec<f64>)> {
        let balance = build(&config, Values { router }).balance(&x)?;
        Ok((balance.loss.to_scalar()?, balance.shares))
    };
    let (even, shares) = load(|shape, _| vec![0.0; shape.iter().product()])?;
    assert!(
        (even - 1.0).abs() < 1e-12 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-12,
        "{even} {shares:?}"
    );
    let (all, shares) = load(|shape, _| {
        (0..shape.iter().product()).map(|i| if i < shape[1] { 100.0 } else { 0.0 }).collect()
    })?;
    assert!((all - 8.0).abs() < 1e-9, "{all}");
    assert_eq!(shares[0], 1.0);
    Ok(())
}

#[test]
fn impossible_choices_are_refused() {
    let keys = |config: MoeConfig| config.check(D).into_iter().map(|i| i.key).collect::<Vec<_>>();
    let base = MoeConfig::default();
    assert_eq!(keys(MoeConfig { num_experts_per_tok: 9, ..base.clone() }), ["num_experts_per_tok"]);
    assert_eq!(keys(MoeConfig { n_group: 3, ..base.clone() }), ["n_group"]);
    assert_eq!(
        keys(MoeConfig { n_group: 4, num_experts_per_tok: 3, ..base.clone() }),
        ["num_experts_per_tok"]
    );
    assert_eq!(keys(MoeConfig { topk_group: 2, ..base.clone() }), ["topk_group"]);
    assert_eq!(keys(MoeConfig { shared_gate: true, ..base.clone() }), ["shared_gate"]);
    assert_eq!(keys(MoeConfig { num_experts: 0, ..base }), ["num_experts"]);
}
