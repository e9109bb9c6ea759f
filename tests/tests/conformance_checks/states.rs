//! States: forked, saved, loaded, refused, counted.

use candle_core::{DType, Result};
use semisep_core::{Context, MixerConfig, State, VarBuilder};
use semisep_tests::{assert_close, randn};

use super::{assert_same_state, build, continued, stepped};

pub(crate) fn states(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let mixer = build(config, d, DType::F32)?;
    if !mixer.causal() {
        return Ok(());
    }
    let mut state = mixer.new_state(2)?;
    continued(&*mixer, &randn(1, &[2, 9, d], DType::F32)?, &mut state)?;
    let mut fork = state.fork()?;
    let mut loaded = mixer.new_state(2)?;
    loaded.load(state.tensors()?)?;
    assert_same_state("loaded", &loaded, &state, 0.0)?;
    // The original goes another way; fork and file do not notice.
    stepped(&*mixer, &randn(2, &[2, d], DType::F32)?, &mut state)?;
    stepped(&*mixer, &randn(3, &[2, d], DType::F32)?, &mut state)?;
    let next = randn(4, &[2, d], DType::F32)?;
    let (a, b) = (stepped(&*mixer, &next, &mut fork)?, stepped(&*mixer, &next, &mut loaded)?);
    assert_close("fork and loaded state", &a, &b, 0.0);
    assert_same_state("fork and loaded state", &fork, &loaded, 0.0)
}

pub(crate) fn foreign_states(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let mixer = build(config, d, DType::F32)?;
    let x = randn(1, &[2, 3, d], DType::F32)?;
    let token = randn(2, &[2, d], DType::F32)?;
    let mut stranger = State::new("stranger", 2);
    let mut small = mixer.new_state(1)?;
    for state in [&mut stranger, &mut small] {
        assert!(stepped(&*mixer, &token, state).is_err());
        assert!(continued(&*mixer, &x, state).is_err());
        assert!(state.seen().iter().all(|&s| s == 0));
    }
    if !mixer.causal() {
        // Without a state to go on from, none is taken either.
        let mut own = mixer.new_state(2)?;
        assert!(stepped(&*mixer, &token, &mut own).is_err() && continued(&*mixer, &x, &mut own).is_err());
        return Ok(());
    }
    // A wrong width leaves the state as it was.
    let mut state = mixer.new_state(2)?;
    continued(&*mixer, &x, &mut state)?;
    let before = state.fork()?;
    let wide = randn(3, &[2, 3, d + 1], DType::F32)?;
    assert!(mixer.forward(&wide, &mut Context::with_state(&mut state)).is_err());
    assert!(stepped(&*mixer, &randn(4, &[2, d + 1], DType::F32)?, &mut state).is_err());
    assert_same_state("after errors", &state, &before, 0.0)
}

pub(crate) fn cost(config: &dyn MixerConfig, d: usize) -> Result<()> {
    let dry = VarBuilder::shapes(DType::F32);
    let mixer = config.build(d, dry.clone())?;
    let groups = mixer.parameter_groups();
    let parameters: usize = groups.iter().map(|g| g.elements()).sum();
    for (batch, seqlen) in [(1, 1), (2, 9), (3, 200)] {
        let cost = mixer.cost(batch, seqlen);
        assert_eq!(cost.parameters, parameters as u64);
        assert_eq!(cost.state_bytes + cost.kv_bytes, mixer.new_state(batch)?.size_bytes(seqlen));
        let idle = cost.parameters - mixer.active_parameters();
        let weights: usize = groups.iter().filter(|g| g.weight_decay).map(|g| g.elements()).sum();
        let met = weights as u64 - idle;
        assert!(cost.flops >= 2 * (batch * seqlen) as u64 * met, "every weight meets every token");
    }
    Ok(())
}
