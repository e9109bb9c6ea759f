//! One mixer run several times on the same input.

use candle_core::{Result, Tensor};

use crate::{Context, Cost, Mixer, MixerConfig, Mixing, ParameterGroup, State, VarBuilder};

const KIND: &str = "banks";

/// Independent copies of a mixer: (b, l, d) -> (b, l, banks, d).
pub(crate) struct Banks {
    banks: Vec<Box<dyn Mixer>>,
    groups: Vec<ParameterGroup>,
}

impl Banks {
    /// Copies with parameters below `0`, `1`, ...; a single one has them where it would have them alone.
    pub(crate) fn new<C: MixerConfig + ?Sized>(
        config: &C,
        d_model: usize,
        banks: usize,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let at = |i: usize| if banks == 1 { vb.clone() } else { vb.pp(i) };
        let banks = (0..banks).map(|i| config.build(d_model, at(i))).collect::<Result<Vec<_>>>()?;
        let groups = banks.iter().flat_map(|b| b.parameter_groups()).collect();
        Ok(Self { banks, groups })
    }

    /// Runs every bank, each on its own part of the state.
    fn run(
        &self,
        ctx: &mut Context<'_>,
        f: impl Fn(&dyn Mixer, &mut Context<'_>) -> Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let mut outputs = Vec::with_capacity(self.banks.len());
        for (i, bank) in self.banks.iter().enumerate() {
            let state = ctx.state.as_deref_mut().map(|s| s.child_mut(&i.to_string())).transpose()?;
            let shared = ctx.shared.as_deref_mut();
            outputs.push(f(&**bank, &mut Context { state, cu_seqlens: ctx.cu_seqlens, shared })?);
        }
        Ok(outputs)
    }
}

impl Mixer for Banks {
    fn forward(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let lengths = ctx.check(KIND, b, l)?;
        let outputs = self.run(ctx, |bank, ctx| bank.forward(x, ctx))?;
        ctx.leave(&[], &lengths)?;
        Tensor::stack(&outputs, 2)
    }

    fn step(&self, x: &Tensor, ctx: &mut Context<'_>) -> Result<Tensor> {
        let (b, _) = x.dims2()?;
        ctx.state_mut()?.check(KIND, b)?;
        let outputs = self.run(ctx, |bank, ctx| bank.step(x, ctx))?;
        ctx.leave(&[], &vec![1; b])?;
        Tensor::stack(&outputs, 1)
    }

    fn causal(&self) -> bool {
        self.banks.iter().all(|b| b.causal())
    }

    fn receives(&self) -> Vec<(&'static str, usize)> {
        let mut all: Vec<_> = self.banks.iter().flat_map(|b| b.receives()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn hands_on(&self) -> Vec<(&'static str, usize)> {
        self.banks.iter().flat_map(|b| b.hands_on()).collect()
    }

    fn new_state(&self, batch: usize) -> Result<State> {
        let mut state = State::new(KIND, batch);
        for (i, bank) in self.banks.iter().enumerate() {
            state = state.with_child(&i.to_string(), bank.new_state(batch)?);
        }
        Ok(state)
    }

    fn cost(&self, batch: usize, seqlen: usize) -> Cost {
        self.banks.iter().map(|b| b.cost(batch, seqlen)).sum()
    }

    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        self.groups.clone()
    }

    /// None: its output is not one sequence.
    fn matrix(&self, _: &Tensor) -> Result<Option<Mixing>> {
        Ok(None)
    }
}
