//! From logits to a token: penalty, temperature, top-k, top-p, min-p, in the order of transformers' processors.

use semisep_core::Rng;

/// How to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerOptions {
    /// 0 takes the likeliest token; otherwise logits are divided by it.
    pub temperature: f64,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest tokens that together reach this probability.
    pub top_p: f64,
    /// Keep tokens at least this likely, relative to the likeliest.
    pub min_p: f64,
    /// Divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019); 1 is off.
    pub repetition_penalty: f64,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Rng,
    seen: Vec<bool>,
}

impl Sampler {
    /// For sequence `row` with this prompt: its draws depend on the seed and the row alone, not on the rest of a batch.
    pub fn new(options: &SamplerOptions, row: usize, vocab: usize, prompt: &[u32]) -> Self {
        let mut seen = vec![false; vocab];
        for &id in prompt {
            if let Some(s) = seen.get_mut(id as usize) {
                *s = true;
            }
        }
        Self { options: options.clone(), rng: Rng::named(options.seed, &row.to_string()), seen }
    }

    /// The next token, from the logits of one position; entries past the vocabulary (padding) are never chosen.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let token = self.choose(logits);
        if let Some(s) = self.seen.get_mut(token as usize) {
            *s = true;
        }
        token
    }

    fn choose(&mut self, logits: &[f32]) -> u32 {
        let penalty = self.options.repetition_penalty as f32;
        let mut scored: Vec<(u32, f32)> = (0u32..)
            .zip(logits.iter().zip(&self.seen))
            .map(|(id, (&logit, &seen))| {
                let penalised = if logit > 0.0 { logit / penalty } else { logit * penalty };
                (id, if seen { penalised } else { logit })
            })
            .collect();
        if self.options.temperature <= 0.0 {
            return argmax(&scored);
        }
        scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.options.top_k > 0 {
            scored.truncate(self.options.top_k);
        }
        let best = scored.first().map_or(0.0, |s| s.1);
        let mut weights: Vec<f64> =
            scored.iter().map(|s| (f64::from(s.1 - best) / self.options.temperature).exp()).collect();
        weights.truncate(self.kept(&weights));
        let mut draw = self.rng.unit() * weights.iter().sum::<f64>();
        for (w, s) in weights.iter().zip(&scored) {
            draw -= w;
            if draw < 0.0 {
                return s.0;
            }
        }
        scored[..weights.len()].last().map_or(0, |s| s.0)
    }

    /// How many of the weights, sorted downwards, top-p and min-p leave; at least one.
    fn kept(&self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let mut n = 0;
        while n < weights.len() && sum < self.options.top_p * total && weights[n] >= self.options.min_p {
            sum += weights[n];
            n += 1;
        }
        n.max(1).min(weights.len())
    }
}

/// The first of the largest; NaN never wins.
fn argmax(scored: &[(u32, f32)]) -> u32 {
    let best = scored.iter().fold((0, f32::NEG_INFINITY), |best, &s| if s.1 > best.1 { s } else { best });
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(options: SamplerOptions, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(&options, 0, logits.len(), &[]);
        (0..n).map(|_| sampler.sample(logits)).collect()
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0];
        let tokens = draws(SamplerOptions { temperature: 1.0, ..Default::default() }, &logits, 20_000);
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        for (id, &logit) in logits.iter().enumerate() {
            let got = tokens.iter().filter(|&&t| t as usize == id).count() as f64 / 20_000.0;
            assert!((got - f64::from(logit).exp() / total).abs() < 0.015, "token {id}: {got}");
        }
    }

    #[test]
    fn filters_keep_the_likeliest() {
        let logits = [0.0, 3.0, 2.0, 1.0];
        let hot = SamplerOptions { temperature: 5.0, ..Default::default() };
        let kinds = |o: SamplerOptions| {
            let mut kinds = draws(o, &logits, 500);
            kinds.sort_unstable();
            kinds.dedup();
            kinds
        };
        assert_eq!(kinds(SamplerOptions { top_k: 2, ..hot.clone() }), [1, 2]);
        assert_eq!(kinds(SamplerOptions { top_p: 0.01, ..hot.clone() }), [1]);
        assert_eq!(kinds(SamplerOptions { min_p: 0.75, ..hot.clone() }), [1, 2]);
        assert_eq!(kinds(hot), [0, 1, 2, 3]);
        assert_eq!(kinds(SamplerOptions::default()), [1]);
    }

    #[test]
    fn the_penalty_turns_away_from_what_was_said() {
        let options = SamplerOptions { repetition_penalty: 10.0, ..Default::default() };
        assert_eq!(draws(options, &[1.0, 1.5, 1.2], 3), [1, 2, 0]);
    }

    #[test]
    fn rows_and_seeds_differ_and_repeat() {
        let logits = [0.0; 50];
        let run = |seed, row| {
            let options = SamplerOptions { temperature: 1.0, seed, ..Default::default() };
            let mut s = Sampler::new(&options, row, 50, &[]);
            (0..20).map(|_| s.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(1, 0), run(1, 0));
        assert_ne!(run(1, 0), run(2, 0));
        assert_ne!(run(1, 0), run(1, 1));
    }
}
