//! The measurement of one model.

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};
use semisep_core::{Activations, Rng, VarBuilder};
use semisep_kernels::machine::read_bandwidth;
use semisep_models::{LanguageModel, ModelState, weights_by_type};

use super::memory::Peak;
use super::{BenchOptions, LengthReport, Machine, ModelReport, Subject};

/// Single-token passes a decode figure takes at the most.
const DECODE_STEPS: usize = 64;

/// Measures one subject; `tick(what)` is called before each figure.
///
/// # Errors
/// If the model cannot be built or run.
pub fn measure(
    subject: Subject,
    options: &BenchOptions,
    machine: &Machine,
    tick: &mut dyn FnMut(&str),
) -> Result<ModelReport> {
    let mut peak = Peak::start();
    let random_weights = subject.model.is_none();
    let model = match subject.model {
        Some(model) => model,
        None => {
            let vb = VarBuilder::seeded(options.seed, subject.dtype, Device::Cpu)
                .quantised(subject.quant)
                .with_activations(subject.activations);
            LanguageModel::new(&subject.architecture, &vb)?
        }
    };
    let lengths = options
        .lengths
        .iter()
        .map(|&length| {
            tick(&format!("{} at {length} tokens", subject.name));
            measure_length(&model, length, options, machine, &mut peak)
        })
        .collect::<Result<_>>()?;
    Ok(ModelReport {
        name: subject.name,
        parameters: model.cost(1, 1).parameters,
        dtype: format!("{:?}", model.dtype()).to_lowercase(),
        weights: weights_by_type(model.parameter_groups()),
        exact_activations: subject.activations == Activations::Exact,
        random_weights,
        backend: format!("cpu ({})", machine.instructions),
        lengths,
        peak_bytes: peak.bytes(),
    })
}

fn measure_length(
    model: &LanguageModel,
    length: usize,
    options: &BenchOptions,
    machine: &Machine,
    peak: &mut Peak,
) -> Result<LengthReport> {
    let batch = options.batch;
    let vocab = model.config().vocab_size;
    let mut rng = Rng::named(options.seed, &length.to_string());
    let ids: Vec<u32> = (0..batch * length).map(|_| rng.below(vocab) as u32).collect();
    let ids = Tensor::from_vec(ids, (batch, length), &Device::Cpu)?;

    let mut state = model.new_state(batch)?;
    let prefill = median(options.seconds, 1, || {
        state = model.new_state(batch)?;
        model.prefill(&ids, Some(&mut state)).map(drop)
    })?;
    let before = peak.without(read_bandwidth);
    let decode = median(options.seconds, 3, || step(model, &mut state, rng.below(vocab) as u32))?;
    let bandwidth = before.max(peak.without(read_bandwidth));
    let cost = model.cost(batch, length);
    // Prefill computes the head for the last position alone.
    let head = 2 * (model.config().padded_vocab() * model.config().d_model * batch * (length - 1)) as u64;
    Ok(LengthReport {
        length,
        prefill_tokens_per_second: (batch * length) as f64 / prefill.as_secs_f64(),
        prefill_of_gemm_rate: (cost.flops - head) as f64 / prefill.as_secs_f64() / machine.gemm_rate,
        decode_tokens_per_second: batch as f64 / decode.as_secs_f64(),
        decode_of_read_bandwidth: (read_by_step(model) + cost.state_bytes + cost.kv_bytes) as f64
            / decode.as_secs_f64()
            / bandwidth,
        state_bytes: cost.state_bytes,
        kv_bytes: cost.kv_bytes,
    })
}

/// Bytes of weights that a token passes: all of them, but for the embedding where it is no head as well.
fn read_by_step(model: &LanguageModel) -> u64 {
    let all: u64 = weights_by_type(model.parameter_groups()).iter().map(|row| row.bytes).sum();
    let table = model.parameter_groups().iter().filter(|g| g.name == "backbone.embedding.weight");
    let table: u64 = weights_by_type(table).iter().map(|row| row.bytes).sum();
    if model.config().tie_embeddings { all } else { all - table }
}

fn step(model: &LanguageModel, state: &mut ModelState, token: u32) -> Result<()> {
    let batch = state.states().first().map_or(1, semisep_core::State::batch);
    model.step(&vec![token; batch], state).map(drop)
}

/// The median time of `f` over as many calls as fit in `seconds`, `least` to [`DECODE_STEPS`], after one more to warm up
/// where there is time for it.
fn median(seconds: f64, least: usize, mut f: impl FnMut() -> Result<()>) -> Result<Duration> {
    let budget = Duration::from_secs_f64(seconds);
    let begin = Instant::now();
    let mut times = Vec::new();
    loop {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed());
        if times.len() >= DECODE_STEPS || (times.len() >= least && begin.elapsed() >= budget) {
            break;
        }
    }
    if times.len() > 2 {
        times.remove(0); // the warm-up
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
