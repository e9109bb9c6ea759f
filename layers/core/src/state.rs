//! What a layer remembers between calls: named tensors, one row a sequence.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use crate::entry::{Entry, StateKind};

/// The memory of one layer for a batch of sequences.
///
/// Tensors are updated in place by `step`; [`State::fork`] copies them.
#[derive(Debug, Clone)]
pub struct State {
    layer: &'static str,
    seen: Vec<usize>,
    entries: Vec<Entry>,
    children: Vec<(String, State)>,
}

impl State {
    /// An empty state of `batch` sequences for a layer of this kind.
    pub fn new(layer: &'static str, batch: usize) -> Self {
        Self { layer, seen: vec![0; batch], entries: Vec::new(), children: Vec::new() }
    }

    /// Adds an entry of zeros, `shape` including the batch. A cache starts with the capacity in `shape`.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn with_zeros(
        mut self,
        name: &'static str,
        kind: StateKind,
        shape: impl Into<Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let (tensor, dropped) = (Tensor::zeros(shape, dtype, device)?, vec![0; self.batch()]);
        self.entries.push(Entry { name, kind, tensor, dropped });
        Ok(self)
    }

    /// Adds the state of a mixer inside this layer; its entries are called `name.entry` here. The mixer itself updates
    /// it, and counts its tokens.
    pub fn with_child(mut self, name: &str, state: State) -> Self {
        self.children.push((name.to_owned(), state));
        self
    }

    /// The state of the mixer of this name inside this layer.
    ///
    /// # Errors
    /// If there is none.
    pub fn child_mut(&mut self, name: &str) -> Result<&mut State> {
        let layer = self.layer;
        match self.children.iter_mut().find(|(n, _)| n == name) {
            Some((_, state)) => Ok(state),
            None => bail!("{layer}: the state has no part named {name}"),
        }
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.seen.len()
    }

    /// Tokens seen by each sequence.
    pub fn seen(&self) -> &[usize] {
        &self.seen
    }

    /// Counts `lengths[row]` further tokens. Call it last in a forward pass, when nothing can fail any more.
    pub fn advance(&mut self, lengths: &[usize]) {
        for (seen, len) in self.seen.iter_mut().zip(lengths) {
            *seen += len;
        }
    }

    /// Refuses a state of another layer or batch size.
    ///
    /// # Errors
    /// If `layer` or `batch` differs.
    pub fn check(&self, layer: &str, batch: usize) -> Result<()> {
        if self.layer != layer {
            bail!("{layer}: the state belongs to a layer of kind {}", self.layer);
        }
        if self.batch() != batch {
            bail!("{layer}: the state has {} sequences, the input {batch}", self.batch());
        }
        Ok(())
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        if let Some((child, entry)) = name.split_once('.')
            && let Some((_, state)) = self.children.iter().find(|(n, _)| n == child)
        {
            return state.get(entry);
        }
        self.entry(name).map(|entry| &entry.tensor)
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        match self.entries.iter().find(|e| e.name == name) {
            Some(entry) => Ok(entry),
            None => bail!("{}: the state has no tensor named {name}", self.layer),
        }
    }

    fn entry_mut(&mut self, name: &str) -> Result<&mut Entry> {
        let layer = self.layer;
        match self.entries.iter_mut().find(|e| e.name == name) {
            Some(entry) => Ok(entry),
            None => bail!("{layer}: the state has no tensor named {name}"),
        }
    }

    /// How many of the tokens seen by each sequence a cache still holds: all, or the last ones where it has a limit. They
    /// lie in its first slots.
    ///
    /// # Errors
    /// If there is no such entry.
    pub fn held(&self, name: &str) -> Result<Vec<usize>> {
        Ok(self.entry(name)?.held(&self.seen))
    }

    /// Replaces the tensor of this name; a recurrent one keeps its shape.
    ///
    /// # Errors
    /// If there is none, or the shape of a recurrent entry changes.
    pub fn set(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let layer = self.layer;
        let entry = self.entry_mut(name)?;
        if entry.kind == StateKind::Recurrent && entry.tensor.dims() != tensor.dims() {
            bail!("{layer}: state {name} has shape {:?}, got {:?}", entry.tensor.dims(), tensor.dims());
        }
        entry.tensor = tensor;
        Ok(())
    }

    /// Makes room for `tokens` tokens a sequence in all that are still empty of its caches, so that they need not grow.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn reserve(&mut self, tokens: usize) -> Result<()> {
        for entry in self.entries.iter_mut().filter(|e| matches!(e.kind, StateKind::Cache { .. })) {
            let mut shape = entry.tensor.dims().to_vec();
            if shape[1] == 0 {
                shape[1] = entry.kind.window().map_or(tokens, |w| tokens.min(w.saturating_mul(2)));
                entry.tensor = Tensor::zeros(shape, entry.tensor.dtype(), entry.tensor.device())?;
            }
        }
        self.children.iter_mut().try_for_each(|(_, child)| child.reserve(tokens))
    }

    /// Appends `lengths[row]` tokens to a cache behind those that it holds ([`State::held`]), growing it by doubling. A
    /// cache with a limit first drops what no query can reach, if it is full.
    ///
    /// `tokens` is (b, l, ...) with equal lengths, or (1, Σ lengths, ...) packed. Tracked tensors are concatenated, so
    /// that gradients flow; others are written in place.
    ///
    /// # Errors
    /// If shapes disagree or memory cannot be had.
    pub fn append(&mut self, name: &str, tokens: &Tensor, lengths: &[usize]) -> Result<()> {
        let seen = self.seen.clone();
        let batch = seen.len();
        let entry = self.entry_mut(name)?;
        let most = |held: &[usize]| held.iter().zip(lengths).map(|(s, l)| s + l).max().unwrap_or(0);
        let (tracked, capacity) = (tokens.track_op() || entry.tensor.track_op(), entry.tensor.dim(1)?);
        if tracked || most(&entry.held(&seen)) > capacity {
            entry.drop_out_of_reach(&seen)?;
        }
        let held = entry.held(&seen);
        if tracked {
            entry.tensor = entry.concatenate(tokens, lengths, &held, most(&held))?;
            return Ok(());
        }
        entry.make_room(most(&held))?;
        let cache = &entry.tensor;
        let tokens = tokens.to_dtype(cache.dtype())?.contiguous()?;
        let uniform = tokens.dim(0)? == batch && held.windows(2).all(|w| w[0] == w[1]);
        if uniform {
            return if tokens.dim(1)? == 0 { Ok(()) } else { cache.slice_set(&tokens, 1, held[0]) };
        }
        let mut start = 0;
        for (row, &len) in lengths.iter().enumerate() {
            if len > 0 {
                let piece = if tokens.dim(0)? == batch {
                    tokens.narrow(0, row, 1)?
                } else {
                    tokens.narrow(1, start, len)?
                };
                cache.narrow(0, row, 1)?.slice_set(&piece.contiguous()?, 1, held[row])?;
            }
            start += len;
        }
        Ok(())
    }

    /// A copy that no later step of this state touches.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn fork(&self) -> Result<Self> {
        let mut fork = self.clone();
        for entry in &mut fork.entries {
            entry.tensor = entry.tensor.copy()?;
        }
        for (_, child) in &mut fork.children {
            *child = child.fork()?;
        }
        Ok(fork)
    }

    /// The same state, cut off from the autograd graph (truncated back-propagation through time).
    pub fn detach(&self) -> Self {
        let mut state = self.clone();
        for entry in &mut state.entries {
            entry.tensor = entry.tensor.detach();
        }
        for (_, child) in &mut state.children {
            *child = child.detach();
        }
        state
    }

    /// Forgets all but the first `len` tokens of each sequence.
    ///
    /// # Errors
    /// If a sequence is longer than that and the state holds a recurrent part, or has dropped tokens that would be within
    /// reach again: neither can be undone. Fork the state before going on from it.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let cut = self.seen.iter().any(|&s| s > len);
        if cut && self.entries.iter().any(|e| e.kind == StateKind::Recurrent) {
            bail!(
                "{}: cannot truncate a recurrent state from {:?} to {len} tokens; fork it before going on",
                self.layer,
                self.seen
            );
        }
        for entry in &self.entries {
            let lost =
                |(&seen, &dropped): (&usize, &usize)| seen > len && dropped > entry.kind.out_of_reach(len);
            if self.seen.iter().zip(&entry.dropped).any(lost) {
                bail!(
                    "{}: cannot truncate from {:?} to {len} tokens: the window before them is gone; fork the state \
                     before going on",
                    self.layer,
                    self.seen
                );
            }
        }
        let mut children = self.children.clone();
        for (_, child) in &mut children {
            child.truncate(len)?;
        }
        self.children = children;
        for seen in &mut self.seen {
            *seen = len.min(*seen);
        }
        Ok(())
    }

    /// Bytes that this state needs after `seqlen` tokens a sequence. The allocated capacity of caches is not counted: up to
    /// twice as many slots.
    pub fn size_bytes(&self, seqlen: usize) -> u64 {
        let own: u64 = self.entries.iter().map(|e| e.size_bytes(seqlen)).sum();
        own + self.children.iter().map(|(_, child)| child.size_bytes(seqlen)).sum::<u64>()
    }

    /// Every tensor by name, caches without what is out of reach and cut to the longest row, with `seen` (b, i64) beside
    /// them: what a state file holds. Depends on the tokens alone, not on the pieces in which they came.
    ///
    /// # Errors
    /// If a copy cannot be made.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for entry in &self.entries {
            let tensor = match entry.kind {
                StateKind::Recurrent => entry.tensor.clone(),
                StateKind::Cache { .. } => {
                    let mut entry = entry.clone();
                    entry.drop_out_of_reach(&self.seen)?;
                    let most = entry.held(&self.seen).into_iter().max().unwrap_or(0);
                    entry.tensor.narrow(1, 0, most)?
                }
            };
            all.insert(entry.name.to_string(), tensor.contiguous()?);
        }
        for (name, child) in &self.children {
            let mut tensors = child.tensors()?;
            tensors.remove("seen"); // the same as ours
            all.extend(tensors.into_iter().map(|(entry, t)| (format!("{name}.{entry}"), t)));
        }
        let seen: Vec<i64> = self.seen.iter().map(|&s| s as i64).collect();
        all.insert("seen".into(), Tensor::new(seen, &Device::Cpu)?);
        Ok(all)
    }

    /// Takes over tensors that [`State::tensors`] gave. `self` is a new state of the same layer and batch size; it is
    /// unchanged if anything is missing or of another shape.
    ///
    /// # Errors
    /// If a tensor is missing, left over, or of another shape or batch size.
    pub fn load(&mut self, mut tensors: BTreeMap<String, Tensor>) -> Result<()> {
        let mut loaded = self.clone();
        let Some(seen) = tensors.remove("seen") else { bail!("{}: no tensor named seen", self.layer) };
        let seen = seen.to_dtype(DType::I64)?;
        let counts = seen.to_vec1::<i64>()?;
        if counts.len() != self.batch() || counts.iter().any(|&s| s < 0) {
            bail!("{}: seen has {} rows, expected {}", self.layer, counts.len(), self.batch());
        }
        loaded.seen = counts.into_iter().map(|s| s as usize).collect();
        for (name, child) in &mut loaded.children {
            let prefix = format!("{name}.");
            let names: Vec<String> = tensors.keys().filter(|n| n.starts_with(&prefix)).cloned().collect();
            let part = names.iter().filter_map(|n| Some((n[prefix.len()..].to_owned(), tensors.remove(n)?)));
            let mut part: BTreeMap<String, Tensor> = part.collect();
            part.insert("seen".into(), seen.clone());
            child.load(part)?;
        }
        let seen = loaded.seen.clone();
        for entry in &mut loaded.entries {
            let Some(tensor) = tensors.remove(entry.name) else {
                bail!("{}: no tensor named {}", self.layer, entry.name)
            };
            let mut expected = entry.tensor.dims().to_vec();
            if entry.kind != StateKind::Recurrent {
                entry.dropped = seen.iter().map(|&s| entry.kind.out_of_reach(s)).collect();
                expected[1] = entry.held(&seen).into_iter().max().unwrap_or(0);
            }
            if tensor.dims() != expected {
                bail!("{}: {} has shape {:?}, expected {expected:?}", self.layer, entry.name, tensor.dims());
            }
            entry.tensor = tensor.to_device(entry.tensor.device())?.to_dtype(entry.tensor.dtype())?.copy()?;
        }
        if let Some(name) = tensors.keys().next() {
            bail!("{}: unexpected tensor {name}: the state belongs to another layer", self.layer);
        }
        *self = loaded;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::IndexOp;

    use super::*;

    fn cache(batch: usize) -> Result<State> {
        State::new("test", batch).with_zeros(
            "k",
            StateKind::Cache { limit: None },
            (batch, 0, 2),
            DType::F32,
            &Device::Cpu,
        )
    }

    fn tokens(b: usize, l: usize) -> Tensor {
        Tensor::arange(0f32, (b * l * 2) as f32, &Device::Cpu).unwrap().reshape((b, l, 2)).unwrap()
    }

    #[test]
    fn ragged_rows_append_behind_their_own_end() -> Result<()> {
        let mut state = cache(2)?;
        state.append("k", &tokens(1, 5), &[2, 3])?;
        state.advance(&[2, 3]);
        state.append("k", &tokens(2, 1), &[1, 1])?;
        state.advance(&[1, 1]);
        let k = state.get("k")?;
        assert_eq!(
            k.narrow(0, 0, 1)?.narrow(1, 0, 3)?.flatten_all()?.to_vec1::<f32>()?,
            [0., 1., 2., 3., 0., 1.]
        );
        assert_eq!(k.narrow(0, 1, 1)?.narrow(1, 3, 1)?.flatten_all()?.to_vec1::<f32>()?, [2., 3.]);
        assert_eq!(state.seen(), [3, 4]);
        Ok(())
    }

    #[test]
    fn a_fork_is_not_touched_by_the_original() -> Result<()> {
        let mut state = cache(1)?;
        state.append("k", &tokens(1, 3), &[3])?;
        state.advance(&[3]);
        let fork = state.fork()?;
        state.truncate(1)?;
        state.append("k", &tokens(1, 1).affine(0.0, 9.0)?, &[1])?;
        assert_eq!(
            fork.get("k")?.narrow(1, 0, 3)?.flatten_all()?.to_vec1::<f32>()?,
            [0., 1., 2., 3., 4., 5.]
        );
        Ok(())
    }

    #[test]
    fn tensors_round_trip_and_strangers_are_refused() -> Result<()> {
        let mut state = cache(2)?;
        state.append("k", &tokens(2, 3), &[3, 3])?;
        state.advance(&[3, 3]);
        let saved = state.tensors()?;
        let mut other = cache(2)?;
        other.load(saved.clone())?;
        assert_eq!(other.seen(), [3, 3]);
        assert!(cache(3)?.load(saved.clone()).is_err());
        let mut extra = saved;
        extra.insert("x".into(), tokens(1, 1));
        assert!(cache(2)?.load(extra).is_err());
        Ok(())
    }

    #[test]
    fn parts_go_where_the_whole_goes() -> Result<()> {
        let whole = || Ok::<_, candle_core::Error>(cache(1)?.with_child("ssm", cache(1)?));
        let mut state = whole()?;
        for part in [false, true] {
            let target = if part { state.child_mut("ssm")? } else { &mut state };
            target.append("k", &tokens(1, 3), &[3])?;
            target.advance(&[3]);
        }
        let fork = state.fork()?;
        assert_eq!(state.size_bytes(3), 2 * cache(1)?.size_bytes(3));
        assert!(state.tensors()?.keys().eq(["k", "seen", "ssm.k"]));
        let mut loaded = whole()?;
        loaded.load(state.tensors()?)?;
        assert_eq!(loaded.child_mut("ssm")?.seen(), [3]);
        state.truncate(1)?;
        assert_eq!(state.child_mut("ssm")?.seen(), [1]);
        state.child_mut("ssm")?.append("k", &tokens(1, 1).affine(0.0, 9.0)?, &[1])?;
        assert_eq!(fork.get("ssm.k")?.i((0, 1, 0))?.to_scalar::<f32>()?, 2.0);
        assert!(state.child_mut("other").is_err() && state.get("ssm.v").is_err());
        let mut lacking = fork.tensors()?;
        lacking.remove("ssm.k");
        assert!(whole()?.load(lacking).is_err());
        Ok(())
    }

    #[test]
    fn a_recurrent_state_is_not_truncated() -> Result<()> {
        let mut state =
            State::new("test", 1).with_zeros("h", StateKind::Recurrent, (1, 4), DType::F32, &Device::Cpu)?;
        state.advance(&[3]);
        assert!(state.truncate(2).is_err());
        state.truncate(3)
    }
}
