//! Abacus positions (McLeish et al. 2024, "Transformers Can Do Arithmetic with the Right Embeddings", section 3.1): a
//! digit learns its place within its number, whatever stands around it.

use candle_core::{Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Init, Issue, Rng, VarBuilder, in_range};

/// `abacus = { digit_tokens = [48, 49, 50, 51, 52, 53, 54, 55, 56, 57] }`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AbacusConfig {
    /// The tokens that are digits.
    pub digit_tokens: Vec<u32>,
    /// Places that have an embedding, beside the 0 of all other tokens; greater places take the last.
    #[serde(default = "hundred")]
    pub max_places: usize,
    /// In training alone, places are counted from a number drawn anew for each batch, up to this many later: places beyond
    /// the training lengths are learned too. 100 in the paper; 0 for never.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_shift: usize,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn hundred() -> usize {
    100
}

impl AbacusConfig {
    /// What is wrong with it, at the key where it stands.
    pub fn check(&self, key: &str) -> Option<Issue> {
        if self.digit_tokens.is_empty() {
            let issue = Issue::new(format!("{key}.digit_tokens"), "expected at least one token, found none");
            return Some(issue.help("over bytes, the digits are 48 to 57"));
        }
        if let Some(issue) = in_range(&format!("{key}.max_places"), self.max_places, 1) {
            return Some(issue);
        }
        (self.max_shift >= self.max_places).then(|| {
            let found =
                format!("expected less than max_places = {}, found {}", self.max_places, self.max_shift);
            Issue::new(format!("{key}.max_shift"), found).help("places beyond max_places take the last")
        })
    }

    /// The shift of one training batch, uniform in 0 to `max_shift`.
    pub fn draw_shift(&self, rng: &mut Rng) -> u32 {
        rng.below(self.max_shift + 1) as u32
    }
}

/// Each token's place in its run of digits, from 1, plus `shift`; 0 for all other tokens. Numbers are meant to be written
/// with the least significant digit first.
///
/// `run` holds the digits that came right before, and is left as it is after the last token: a text may be given in
/// pieces. In training, `shift` is drawn anew for each batch, so that places beyond the training lengths are learned.
pub fn abacus_positions(ids: &[u32], digit_tokens: &[u32], shift: u32, run: &mut u32) -> Vec<u32> {
    let mut place = |id: &u32| match digit_tokens.contains(id) {
        true => {
            *run = run.saturating_add(1);
            run.saturating_add(shift)
        }
        false => {
            *run = 0;
            0
        }
    };
    ids.iter().map(&mut place).collect()
}

/// The embedding of digit places, added to that of the tokens.
#[derive(Debug, Clone)]
pub struct AbacusEmbedding {
    config: AbacusConfig,
    weight: Tensor, // (max_places + 1, d)
}

impl AbacusEmbedding {
    /// With the parameter `weight` of `vb`, (max_places + 1, d).
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn new(config: &AbacusConfig, d_model: usize, vb: &VarBuilder) -> Result<Self> {
        let weight = vb.get((config.max_places + 1, d_model), "weight", Init::Normal { std: 0.02 })?;
        Ok(Self { config: config.clone(), weight })
    }

    /// Embeddings of ids (b, l), whose rows go on from `runs` (b) and leave the new ones: (b, l, d), in the weight's dtype.
    ///
    /// # Errors
    /// If the ids are not u32, or there is not one run a row.
    pub fn forward(&self, ids: &Tensor, shift: u32, runs: &mut [u32]) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        let lengths = vec![l; b];
        self.of_sequences(&ids.flatten_all()?, &lengths, shift, runs)?.reshape((b, l, self.weight.dim(1)?))
    }

    /// Embeddings of sequences of these lengths, one behind the other: ids (Σ lengths) -> (Σ lengths, d). Each goes on from
    /// its run and leaves the new one.
    ///
    /// # Errors
    /// If the ids are not u32 or not as many as the lengths say, or there is not one run a sequence.
    pub fn of_sequences(
        &self,
        ids: &Tensor,
        lengths: &[usize],
        shift: u32,
        runs: &mut [u32],
    ) -> Result<Tensor> {
        let ids = ids.to_vec1::<u32>()?;
        if runs.len() != lengths.len() {
            bail!("abacus: {} sequences of ids and {} runs: expected one each", lengths.len(), runs.len());
        }
        if lengths.iter().sum::<usize>() != ids.len() {
            bail!("abacus: {} ids, expected {lengths:?}", ids.len());
        }
        let last = self.config.max_places as u32;
        let (mut places, mut rest) = (Vec::with_capacity(ids.len()), &ids[..]);
        for (&len, run) in lengths.iter().zip(runs) {
            let (sequence, behind) = rest.split_at(len);
            let of_row = abacus_positions(sequence, &self.config.digit_tokens, shift, run);
            places.extend(of_row.into_iter().map(|place| place.min(last)));
            rest = behind;
        }
        let places = Tensor::from_vec(places, ids.len(), self.weight.device())?;
        self.weight.index_select(&places, 0)
    }

    /// Its parameters: a row a place and one for all other tokens.
    pub fn parameters(config: &AbacusConfig, d_model: usize) -> u64 {
        (config.max_places as u64 + 1).saturating_mul(d_model as u64)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    const DIGITS: [u32; 3] = [7, 8, 9];

    #[test]
    fn places_count_within_a_number() {
        let places = |ids: &[u32], shift| abacus_positions(ids, &DIGITS, shift, &mut 0);
        assert_eq!(places(&[7, 8, 0, 9, 9, 9, 1], 0), [1, 2, 0, 1, 2, 3, 0]);
        assert_eq!(places(&[0, 7, 7], 17), [0, 18, 19]);
    }

    #[test]
    fn pieces_are_the_whole() {
        let ids = [7, 8, 0, 9, 9, 9, 1, 7];
        let whole = abacus_positions(&ids, &DIGITS, 2, &mut 0);
        for cut in 0..ids.len() {
            let mut run = 0;
            let mut pieces = abacus_positions(&ids[..cut], &DIGITS, 2, &mut run);
            pieces.extend(abacus_positions(&ids[cut..], &DIGITS, 2, &mut run));
            assert_eq!(pieces, whole);
        }
    }

    #[test]
    fn embeddings_are_bounded_and_rows_are_apart() -> Result<()> {
        let config = AbacusConfig { digit_tokens: DIGITS.to_vec(), max_places: 2, max_shift: 0 };
        assert!(config.check("abacus").is_none());
        assert_eq!(
            AbacusConfig { max_places: 0, ..config.clone() }.check("abacus").unwrap().key,
            "abacus.max_places"
        );
        let shifted = AbacusConfig { max_shift: 2, ..config.clone() };
        assert_eq!(shifted.check("abacus").unwrap().key, "abacus.max_shift");
        let mut rng = crate::Rng::new(3);
        let draws: Vec<u32> = (0..100).map(|_| shifted.draw_shift(&mut rng)).collect();
        assert!((0..=2).all(|shift| draws.contains(&shift)) && draws.iter().all(|&shift| shift <= 2));
        let layer = AbacusEmbedding::new(&config, 4, &VarBuilder::seeded(1, DType::F32, Device::Cpu))?;
        let mut runs = [0, 5];
        let ids = Tensor::new(&[[7u32, 7, 7], [7, 0, 7]], &Device::Cpu)?;
        let e = layer.forward(&ids, 0, &mut runs)?.to_vec3::<f32>()?;
        assert_eq!(runs, [3, 1]);
        let w = layer.weight.to_vec2::<f32>()?;
        assert_eq!(
            e,
            [[w[1].clone(), w[2].clone(), w[2].clone()], [w[2].clone(), w[0].clone(), w[1].clone()]]
        );
        assert!(layer.forward(&ids, 0, &mut [0]).is_err());
        // Packed sequences are what they are alone.
        let mut packed = [0, 5, 2];
        let ids = Tensor::new(&[7u32, 7, 7, 7, 0, 7], &Device::Cpu)?;
        let p = layer.of_sequences(&ids, &[3, 3, 0], 0, &mut packed)?.to_vec2::<f32>()?;
        assert_eq!((p, packed), (e.concat(), [3, 1, 2]));
        assert!(layer.of_sequences(&ids, &[3, 4, 0], 0, &mut packed).is_err());
        Ok(())
    }
}
