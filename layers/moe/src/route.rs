//! Which experts a token takes, and with what weight.

use candle_core::{D, DType, Result, Tensor};

use crate::{MoeConfig, Scoring, softmax};

/// The choices of t tokens.
pub(crate) struct Routes {
    /// The tokens of each expert, in order.
    pub(crate) tokens: Vec<Vec<u32>>,
    /// Where choice j of token i lies when the experts' tokens are put one after the other, at i k + j.
    pub(crate) places: Vec<u32>,
    /// (t, k), differentiable.
    pub(crate) weights: Tensor,
}

impl Routes {
    /// From logits and scores (t, experts), both in full precision.
    pub(crate) fn new(
        config: &MoeConfig,
        logits: &Tensor,
        scores: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Self> {
        let k = config.num_experts_per_tok;
        let choice = match bias {
            Some(bias) => scores.broadcast_add(bias)?,
            None => scores.clone(),
        };
        let choice: Vec<Vec<f64>> = choice.detach().to_dtype(DType::F64)?.to_vec2()?;
        let chosen: Vec<Vec<usize>> = choice.into_iter().map(|row| choose(config, row)).collect();
        let mut tokens = vec![Vec::new(); config.num_experts];
        for (token, experts) in chosen.iter().enumerate() {
            experts.iter().for_each(|&e| tokens[e].push(token as u32));
        }
        Ok(Self {
            places: places(&chosen, &tokens, k),
            weights: weights(config, logits, scores, &chosen)?,
            tokens,
        })
    }
}

/// The k best experts of one token, best first; the first of equals.
fn choose(config: &MoeConfig, mut scores: Vec<f64>) -> Vec<usize> {
    if config.n_group > 1 {
        // A group is worth its two best experts; the others' scores become zero (DeepSeek-V3).
        let size = scores.len() / config.n_group;
        let worth: Vec<f64> =
            scores.chunks(size).map(|group| best(group, 2).iter().map(|&i| group[i]).sum()).collect();
        let kept = best(&worth, config.topk_group);
        for (i, group) in scores.chunks_mut(size).enumerate() {
            if !kept.contains(&i) {
                group.fill(0.0);
            }
        }
    }
    best(&scores, config.num_experts_per_tok)
}

/// The indices of the `k` largest values, largest first; the first of equals.
fn best(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(k);
    order
}

fn places(chosen: &[Vec<usize>], tokens: &[Vec<u32>], k: usize) -> Vec<u32> {
    let mut next: Vec<u32> = tokens
        .iter()
        .scan(0, |start, part| {
            let first = *start;
            *start += part.len() as u32;
            Some(first)
        })
        .collect();
    let mut places = Vec::with_capacity(chosen.len() * k);
    for experts in chosen {
        for &e in experts {
            places.push(next[e]);
            next[e] += 1;
        }
    }
    places
}

/// Weights (t, k) of the chosen experts.
fn weights(config: &MoeConfig, logits: &Tensor, scores: &Tensor, chosen: &[Vec<usize>]) -> Result<Tensor> {
    let k = config.num_experts_per_tok;
    let flat: Vec<u32> = chosen.iter().flatten().map(|&e| e as u32).collect();
    let index = Tensor::from_vec(flat, (chosen.len(), k), scores.device())?;
    let weights = match (config.scoring, config.norm_topk_prob) {
        // Scores over their sum: the softmax of the chosen alone, without the others' underflow.
        (Scoring::Softmax, true) => softmax(&logits.contiguous()?.gather(&index, 1)?)?,
        (Scoring::Softmax, false) => scores.contiguous()?.gather(&index, 1)?,
        (Scoring::Sigmoid, normed) => {
            let weights = scores.contiguous()?.gather(&index, 1)?;
            if normed {
                weights.broadcast_div(&(weights.sum_keepdim(D::Minus1)? + config.norm_topk_eps)?)?
            } else {
                weights
            }
        }
    };
    weights * config.routed_scaling_factor
}
