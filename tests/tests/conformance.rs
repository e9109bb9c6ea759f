//! Every mixer keeps the contract of `semisep_core::Mixer`. A new mixer is one more line in `cases`.

mod conformance_checks;

use conformance_checks as check;
use semisep_attention::{AttentionConfig, QkNorm};
use semisep_core::{MixerConfig, MlpConfig, RotaryConfig};
use semisep_mamba1::{Mamba1Config, ParameterNorms};
use semisep_mamba2::Mamba2Config;
use semisep_models::Registry;

/// Width of every case.
const D: usize = 16;

fn cases() -> Vec<(&'static str, Box<dyn MixerConfig>)> {
    let mamba1 = Mamba1Config { d_state: 4, ..Default::default() };
    let mamba2 = Mamba2Config { d_state: 8, headdim: 8, chunk_size: 8, dt_max: 0.5, ..Default::default() };
    let attention = AttentionConfig { head_dim: Some(8), ..AttentionConfig::new(2) };
    let rope = |dim, interleaved| Some(RotaryConfig { dim, theta: 100.0, interleaved });
    let mut cases: Vec<(&str, Box<dyn MixerConfig>)> = Vec::new();
    let mut add = |name, config: Box<dyn MixerConfig>| cases.push((name, config));
    add("mamba1", Box::new(mamba1.clone()));
    let norms = |weighted| Some(ParameterNorms { eps: 1e-6, weighted });
    add("mamba1 jamba", Box::new(Mamba1Config { norms: norms(true), bias: true, ..mamba1.clone() }));
    add("mamba1 falcon", Box::new(Mamba1Config { norms: norms(false), conv_bias: false, ..mamba1 }));
    add("mamba2", Box::new(mamba2.clone()));
    add("mamba2 groups", Box::new(Mamba2Config { ngroups: 2, d_has_hdim: true, ..mamba2.clone() }));
    add("mamba2 norm first", Box::new(Mamba2Config { norm_before_gate: true, bias: true, ..mamba2.clone() }));
    add("mamba2 d_ssm", Box::new(Mamba2Config { d_ssm: Some(24), rmsnorm: false, ..mamba2.clone() }));
    add("mamba2 limit", Box::new(Mamba2Config { dt_limit: Some((0.01, Some(0.2))), d_conv: 2, ..mamba2 }));
    add("attention", Box::new(attention.clone()));
    add(
        "attention hybrid",
        Box::new(AttentionConfig { d_conv: 4, rope: rope(Some(4), false), ..attention.clone() }),
    );
    add(
        "attention grouped",
        Box::new(AttentionConfig {
            n_heads: 4,
            n_kv_heads: Some(2),
            qkv_bias: true,
            out_bias: true,
            qk_norm: Some(QkNorm { eps: 1e-6 }),
            rope: rope(None, true),
            ..attention.clone()
        }),
    );
    add(
        "attention window",
        Box::new(AttentionConfig { window: Some(5), softcap: Some(2.0), scale: Some(0.5), ..attention }),
    );
    add("mlp", Box::new(MlpConfig { d_intermediate: Some(20), ..Default::default() }));
    add("mlp plain", Box::new(MlpConfig { gated: false, bias: true, ..Default::default() }));
    cases
}

/// Runs one check over every case, and names all that fail.
fn for_each(check: impl Fn(&dyn MixerConfig, usize) -> candle_core::Result<()>) {
    let mut failures = Vec::new();
    for (name, config) in cases() {
        assert!(config.check(D).is_empty(), "{name}: {:?}", config.check(D));
        let run = std::panic::AssertUnwindSafe(|| check(&*config, D));
        match std::panic::catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(e)) => failures.push(format!("{name}: {e}")),
            Err(_) => failures.push(format!("{name}: panicked (see above)")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_registered_mixer_has_a_case() {
    let kinds: Vec<&str> = cases().iter().map(|(_, config)| config.kind()).collect();
    for name in Registry::builtin().names() {
        assert!(kinds.contains(&name), "no case of {name}");
    }
}

#[test]
fn forward_equals_step_by_step() {
    for_each(check::steps);
}

#[test]
fn any_split_into_chunks_gives_the_same() {
    for_each(check::chunks);
}

#[test]
fn packed_sequences_equal_separate_ones() {
    for_each(check::packed);
}

#[test]
fn rows_of_a_batch_are_independent() {
    for_each(check::rows);
}

#[test]
fn the_future_does_not_reach_the_past() {
    for_each(check::causal);
}

#[test]
fn states_fork_save_and_load() {
    for_each(check::states);
}

#[test]
fn foreign_states_are_refused_and_left_alone() {
    for_each(check::foreign_states);
}

#[test]
fn gradients_of_every_parameter_and_of_the_input_are_exact() {
    for_each(check::gradients);
}

#[test]
fn gradients_flow_through_both_states() {
    for_each(check::state_gradients);
}

#[test]
fn lower_precisions_stay_near() {
    for_each(check::precisions);
}

#[test]
fn the_mixing_matrix_gives_the_output() {
    for_each(check::matrix);
}

#[test]
fn cost_counts_parameters_and_state() {
    for_each(check::cost);
}

#[test]
fn empty_input_leaves_the_state() {
    for_each(check::empty);
}
