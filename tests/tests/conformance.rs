//! Every mixer keeps the contract of `semisep_core::Mixer`. A new family is one more file of cases and a line here.

mod conformance_cases;
mod conformance_checks;

use conformance_checks as check;
use semisep_core::MixerConfig;
use semisep_models::Registry;

/// Width of every case.
const D: usize = 16;

/// Name and configuration.
type Case = (&'static str, Box<dyn MixerConfig>);

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(conformance_cases::attention::cases());
    cases.extend(conformance_cases::block_state::cases());
    cases.extend(conformance_cases::deltanet::cases());
    cases.extend(conformance_cases::gau::cases());
    cases.extend(conformance_cases::gla::cases());
    cases.extend(conformance_cases::griffin::cases());
    cases.extend(conformance_cases::h3::cases());
    cases.extend(conformance_cases::hgrn2::cases());
    cases.extend(conformance_cases::hyena::cases());
    cases.extend(conformance_cases::kan::cases());
    cases.extend(conformance_cases::mamba3::cases());
    cases.extend(conformance_cases::mamba::cases());
    cases.extend(conformance_cases::mlp::cases());
    cases.extend(conformance_cases::moe::cases());
    cases.extend(conformance_cases::retnet::cases());
    cases.extend(conformance_cases::rnn::cases());
    cases.extend(conformance_cases::rwkv::cases());
    cases.extend(conformance_cases::s4::cases());
    cases.extend(conformance_cases::s5::cases());
    cases.extend(conformance_cases::s6::cases());
    cases.extend(conformance_cases::short_conv::cases());
    cases.extend(conformance_cases::xlstm::cases());
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
