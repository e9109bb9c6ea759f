//! Differentiable operators with any number of inputs and outputs.
//!
//! candle's custom operators have at most three inputs and one output. Here an operator is computed first, by plain
//! code that fills storages, and enters the autograd graph afterwards, only if one of its inputs is tracked:
//!
//! ```text
//! i0 ─┐
//! i1 ─┤ token ─┐                         The tokens are one-element tensors. In the backward pass the main node runs
//! i2 ─┘        ├ token ─ main = o0 ─ o1  first: it computes every gradient once, leaves them in the shared `Slot`, and
//! i3 ──────────┘                         the tokens hand them to their inputs. Further outputs hang off the main node
//!                                        and leave their own gradient in the slot before it runs.
//! ```
//! Nothing is copied, dtypes may differ, and a second backward pass works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

/// The backward half of an operator whose outputs are known already.
pub(crate) trait Backward: Send + Sync + 'static {
    /// The operator's name in error messages.
    fn name(&self) -> &'static str;

    /// Gradients of the `inputs` (those given to [`record`], detached, in order) from those of the outputs.
    ///
    /// `output` is output 0; `grads[k]` is `None` where output `k` played no part in the loss (never for output 0).
    /// A `None` in the answer stands for zero.
    fn backward(
        &self,
        inputs: &[Option<Tensor>],
        output: &Tensor,
        grads: &[Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>>;
}

/// Turns computed storages into tensors, recorded in the autograd graph where an input is tracked.
///
/// All storages and inputs live on one device.
pub(crate) fn record<B: Backward>(
    op: B,
    inputs: &[Option<&Tensor>],
    outputs: Vec<(Storage, Shape)>,
) -> Result<Vec<Tensor>> {
    let tracked: Vec<(usize, &Tensor)> =
        inputs.iter().enumerate().filter_map(|(i, t)| t.filter(|t| t.track_op()).map(|t| (i, t))).collect();
    if tracked.is_empty() {
        return Ok(outputs.into_iter().map(Tensor::from).collect());
    }
    let slot = Arc::new(Slot::new(outputs.len()));
    let token = token_chain(&tracked, &slot)?;
    let mut outputs = outputs.into_iter();
    let Some(first) = outputs.next() else { bail!("{}: an operator needs an output", op.name()) };
    let node = Main {
        op,
        inputs: inputs.iter().map(|t| t.map(Tensor::detach)).collect(),
        result: Pending::new(first),
        slot: slot.clone(),
    };
    let mut tensors = vec![token.apply_op1(node)?];
    for (i, output) in outputs.enumerate() {
        let extra = Extra { index: i + 1, result: Pending::new(output), slot: slot.clone() };
        tensors.push(tensors[0].apply_op1(extra)?);
    }
    Ok(tensors)
}

/// Whether any of the inputs asks for a gradient, so that intermediates are worth keeping.
pub(crate) fn any_tracked(inputs: &[Option<&Tensor>]) -> bool {
    inputs.iter().flatten().any(|t| t.track_op())
}

/// Gradients on their way: from the further outputs to the main node, and from there to the tokens.
struct Slot {
    outputs: Mutex<Vec<Option<Tensor>>>,
    inputs: Mutex<Vec<Option<Tensor>>>,
}

impl Slot {
    fn new(outputs: usize) -> Self {
        Self { outputs: Mutex::new(vec![None; outputs]), inputs: Mutex::new(Vec::new()) }
    }
}

/// A panic elsewhere leaves a slot's plain data usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A computed result waiting for the graph node that hands it over.
struct Pending(Mutex<Option<(Storage, Shape)>>);

impl Pending {
    fn new(result: (Storage, Shape)) -> Self {
        Self(Mutex::new(Some(result)))
    }

    fn cpu(&self, name: &str) -> Result<(CpuStorage, Shape)> {
        match lock(&self.0).take() {
            Some((Storage::Cpu(storage), shape)) => Ok((storage, shape)),
            _ => bail!("{name}: the result is not on the CPU: inputs live on different devices"),
        }
    }

    fn cuda(&self, name: &str) -> Result<(CudaStorage, Shape)> {
        match lock(&self.0).take() {
            Some((Storage::Cuda(storage), shape)) => Ok((storage, shape)),
            _ => bail!("{name}: the result is not on the GPU: inputs live on different devices"),
        }
    }
}

struct Main<B> {
    op: B,
    inputs: Vec<Option<Tensor>>,
    result: Pending,
    slot: Arc<Slot>,
}

impl<B: Backward> CustomOp1 for Main<B> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result.cpu(self.op.name())
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result.cuda(self.op.name())
    }

    fn bwd(&self, token: &Tensor, output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut grads: Vec<Option<Tensor>> = lock(&self.slot.outputs).iter_mut().map(Option::take).collect();
        grads[0] = Some(grad.contiguous()?);
        let inputs = self.op.backward(&self.inputs, &output.detach(), &grads)?;
        *lock(&self.slot.inputs) = inputs;
        Ok(Some(token.zeros_like()?))
    }
}

/// Output 1 and following: a child of the main output that adds nothing to its gradient.
struct Extra {
    index: usize,
    result: Pending,
    slot: Arc<Slot>,
}

impl CustomOp1 for Extra {
    fn name(&self) -> &'static str {
        "tape-output"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result.cpu("tape-output")
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.result.cuda("tape-output")
    }

    fn bwd(&self, main: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        lock(&self.slot.outputs)[self.index] = Some(grad.contiguous()?);
        Ok(Some(main.zeros_like()?))
    }
}

/// Links `tracked` inputs into one token, two or three at a time.
fn token_chain(tracked: &[(usize, &Tensor)], slot: &Arc<Slot>) -> Result<Tensor> {
    let (head, tail) = tracked.split_at(tracked.len().min(3));
    let mut token = link(head, None, slot)?;
    for pair in tail.chunks(2) {
        token = link(pair, Some(&token), slot)?;
    }
    Ok(token)
}

fn link(inputs: &[(usize, &Tensor)], previous: Option<&Tensor>, slot: &Arc<Slot>) -> Result<Tensor> {
    let token = Token { indices: inputs.iter().map(|&(i, _)| i).collect(), slot: slot.clone() };
    let tensors: Vec<&Tensor> = inputs.iter().map(|&(_, t)| t).chain(previous).collect();
    match tensors[..] {
        [a] => a.apply_op1(token),
        [a, b] => a.apply_op2(b, token),
        [a, b, c] => a.apply_op3(b, c, token),
        _ => bail!("tape: a token links one to three tensors, got {}", tensors.len()),
    }
}

/// Hands the gradients in the slot to up to three inputs; an argument past `indices` is the previous token.
struct Token {
    indices: Vec<usize>,
    slot: Arc<Slot>,
}

impl Token {
    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, like: &CudaStorage) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let device = like.device().clone();
        let zero = device.alloc_zeros::<f32>(1)?;
        Ok((CudaStorage::wrap_cuda_slice(zero, device), Shape::from(1)))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(&self, _: &CudaStorage) -> Result<(CudaStorage, Shape)> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }

    fn grad(&self, k: usize, arg: &Tensor) -> Result<Option<Tensor>> {
        let Some(&index) = self.indices.get(k) else { return Ok(Some(arg.zeros_like()?)) };
        let grad = lock(&self.slot.inputs).get_mut(index).and_then(Option::take);
        Ok(Some(match grad {
            Some(grad) => grad,
            None => arg.zeros_like()?,
        }))
    }
}

impl CustomOp1 for Token {
    fn name(&self) -> &'static str {
        "tape-token"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(&self, s: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.cuda(s)
    }
    fn bwd(&self, a: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.grad(0, a)
    }
}

impl CustomOp2 for Token {
    fn name(&self) -> &'static str {
        "tape-token"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(
        &self,
        s: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda(s)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((self.grad(0, a)?, self.grad(1, b)?))
    }
}

impl CustomOp3 for Token {
    fn name(&self) -> &'static str {
        "tape-token"
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.cpu()
    }
    fn cuda_fwd(
        &self,
        s: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.cuda(s)
    }
    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok((self.grad(0, a)?, self.grad(1, b)?, self.grad(2, c)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    /// y = Σ k·inputs[k] (k from 1), s = Σ inputs: two outputs, any number of inputs.
    struct Weighted;

    impl Backward for Weighted {
        fn name(&self) -> &'static str {
            "weighted"
        }
        fn backward(
            &self,
            inputs: &[Option<Tensor>],
            _: &Tensor,
            grads: &[Option<Tensor>],
        ) -> Result<Vec<Option<Tensor>>> {
            (0..inputs.len())
                .map(|k| {
                    let dy = grads[0].as_ref().unwrap().affine((k + 1) as f64, 0.0)?;
                    Ok(Some(match &grads[1] {
                        Some(ds) => (dy + ds)?,
                        None => dy,
                    }))
                })
                .collect()
        }
    }

    fn weighted(inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
        let (mut y, mut s) = (vec![0.0; 2], vec![0.0; 2]);
        for (k, t) in inputs.iter().enumerate() {
            for (i, v) in t.to_vec1::<f64>()?.into_iter().enumerate() {
                y[i] += (k + 1) as f64 * v;
                s[i] += v;
            }
        }
        let out = [y, s].map(|v| (Storage::Cpu(CpuStorage::F64(v)), Shape::from(2)));
        record(Weighted, &inputs.iter().map(|t| Some(*t)).collect::<Vec<_>>(), out.into())
    }

    #[test]
    fn gradients_reach_every_tracked_input_through_both_outputs() -> Result<()> {
        for n in 1..=8 {
            let vars: Vec<Var> =
                (0..n).map(|k| Var::new(&[k as f64, 1.0], &Device::Cpu)).collect::<Result<_>>()?;
            let fixed = Tensor::zeros(2, DType::F64, &Device::Cpu)?;
            // Doubled first, so that the inputs are intermediates of the graph and not leaves alone.
            let doubled: Vec<Tensor> = vars.iter().map(|v| v.affine(2.0, 0.0)).collect::<Result<_>>()?;
            let mut inputs: Vec<&Tensor> = doubled.iter().collect();
            inputs.push(&fixed);
            let out = weighted(&inputs)?;
            for (outputs, extra) in [(&out[..], 1.0), (&out[..1], 0.0)] {
                let loss = outputs
                    .iter()
                    .try_fold(Tensor::zeros((), DType::F64, &Device::Cpu)?, |a, o| a + o.sum_all()?)?;
                for _ in 0..2 {
                    let grads = loss.backward()?;
                    for (k, var) in vars.iter().enumerate() {
                        let g = grads.get(var).unwrap().to_vec1::<f64>()?;
                        assert_eq!(g, vec![2.0 * ((k + 1) as f64 + extra); 2], "input {k} of {n}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_second_output_alone_gives_gradients() -> Result<()> {
        let var = Var::new(&[3.0f64, 4.0], &Device::Cpu)?;
        let out = weighted(&[var.as_tensor()])?;
        let grads = out[1].sum_all()?.backward()?;
        assert_eq!(grads.get(&var).unwrap().to_vec1::<f64>()?, vec![1.0, 1.0]);
        Ok(())
    }

    #[test]
    fn untracked_inputs_leave_no_graph() -> Result<()> {
        let out = weighted(&[&Tensor::new(&[1.0f64, 2.0], &Device::Cpu)?])?;
        assert!(!out[0].track_op() && !out[1].track_op());
        Ok(())
    }
}
