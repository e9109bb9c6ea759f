//! What became of every tensor of a checkpoint.

use std::fmt;

use crate::checkpoint::StoredType;

/// The report of a load.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Tensors read, in the order in which the model asks for them.
    pub loaded: Vec<LoadedTensor>,
    /// Parameters that the checkpoint lacks, with their shapes.
    pub missing: Vec<(String, Vec<usize>)>,
    /// Tensors of the checkpoint that the model has no use for, by their names there.
    pub unexpected: Vec<String>,
    /// Tensors that the family is known to store without using them, or that repeat another.
    pub ignored: Vec<String>,
    /// Parameters whose shape disagrees.
    pub mismatched: Vec<Mismatch>,
    /// Tensors with values that are NaN or infinite, and how many.
    pub non_finite: Vec<(String, usize)>,
    /// What the importer overruled.
    pub notes: Vec<String>,
}

/// A tensor and what it became.
#[derive(Debug, Clone)]
pub struct LoadedTensor {
    /// The parameter's name.
    pub name: String,
    /// Its name in the checkpoint; several, joined by ` + `, where it is put together.
    pub stored_as: String,
    /// The shape in the checkpoint, of a tensor that is the parameter as it is.
    pub stored_shape: Vec<usize>,
    /// The parameter's shape: the same but for dimensions of 1.
    pub shape: Vec<usize>,
    /// Its type in the checkpoint (that of its first part).
    pub dtype: StoredType,
}

/// A tensor of the wrong shape.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// Its name in the checkpoint, or those of its parts.
    pub stored_as: String,
    /// What the configuration asks for.
    pub expected: Vec<usize>,
    /// What the checkpoint holds, by part.
    pub found: Vec<Vec<usize>>,
}

impl Report {
    /// Tensors whose dimensions of 1 differ from the parameter's.
    pub fn reshaped(&self) -> impl Iterator<Item = &LoadedTensor> {
        self.loaded.iter().filter(|t| t.shape != t.stored_shape)
    }

    /// Elements read.
    pub fn elements(&self) -> usize {
        self.loaded.iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }

    /// Everything that a strict load refuses, in words; `None` if there is nothing.
    pub(crate) fn refusal(&self, allow_missing: bool, allow_unexpected: bool) -> Option<String> {
        let mut parts = Vec::new();
        if !self.mismatched.is_empty() {
            let list = self.mismatched.iter().map(ToString::to_string);
            parts.push(format!(
                "{} another shape than the configuration says: {}",
                have(self.mismatched.len()),
                some(list)
            ));
        }
        if !allow_missing && !self.missing.is_empty() {
            let list = self.missing.iter().map(|(name, shape)| format!("{name} {shape:?}"));
            parts.push(format!("{} missing: {}", are(self.missing.len()), some(list)));
        }
        if !allow_unexpected && !self.unexpected.is_empty() {
            let list = self.unexpected.iter().cloned();
            parts.push(format!("{} unexpected: {}", are(self.unexpected.len()), some(list)));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found: Vec<String> = self.found.iter().map(|shape| format!("{shape:?}")).collect();
        write!(f, "{}: expected {:?}, found {}", self.stored_as, self.expected, found.join(" + "))
    }
}

/// One line: `23 tensors loaded, 1 ignored (lm_head.weight)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded", self.loaded.len())?;
        let reshaped: Vec<String> = self.reshaped().map(|t| t.stored_as.clone()).collect();
        let missing: Vec<String> = self.missing.iter().map(|(name, _)| name.clone()).collect();
        let lists = [
            ("reshaped", &reshaped),
            ("ignored", &self.ignored),
            ("missing, filled with random values", &missing),
            ("unexpected", &self.unexpected),
        ];
        for (what, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            write!(f, ", {} {what} ({})", list.len(), some(list.iter().cloned()))?;
        }
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}

fn have(n: usize) -> String {
    if n == 1 { "1 tensor has".into() } else { format!("{n} tensors have") }
}

fn are(n: usize) -> String {
    if n == 1 { "1 tensor is".into() } else { format!("{n} tensors are") }
}

/// The first few of a list.
pub(crate) fn some(list: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 6;
    let more = list.len().saturating_sub(SHOWN);
    let mut text = list.take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}
