//! Tensor names of other layouts, turned into ours; and the tensors that are not ours one to one.
//!
//! Most tensors have another name and are otherwise the same: [`Names::rename`]. Some parameters are several stored tensors,
//! one after the other (queries, keys and values), a slice of one (an expert of a stack), one with its axes in another order,
//! or one with a constant added (norm weights stored less one): [`Names::join`]. Both are data, and may be read backwards:
//! each [`Piece`] says where in a stored tensor its elements lie.

use std::borrow::Cow;

use crate::checkpoint::View;

/// A pattern of names: text, with `*` for one dotted segment.
type Pattern = Cow<'static, str>;

/// Rules from the names in a checkpoint to the names that the model asks for.
///
/// In a pattern `*` stands for one dotted segment. The first rule that matches the beginning of a name (at a dot) replaces
/// that part; other names stay as they are.
#[derive(Debug, Clone, Default)]
pub struct Names {
    renames: Vec<(Pattern, Pattern)>,
    joins: Vec<Join>,
    ignored: Vec<Pattern>,
    ones: Vec<(Pattern, usize)>,
    tied: Option<(&'static str, &'static str)>,
}

/// A parameter that is not one stored tensor as it is.
#[derive(Debug, Clone)]
pub struct Join {
    native: Pattern,
    /// One after the other along the parameter's first axis.
    pub pieces: Vec<Piece>,
    /// Added to every stored element.
    pub plus: f64,
}

/// A stored tensor's share of a parameter: the elements that remain after some steps, in row-major order.
///
/// ```
/// use semisep_zoo::import::Piece;
///
/// // The keys of GPT-NeoX: rows (head, q or k or v, feature), the second of the three.
/// let (heads, head_dim) = (8, 64);
/// let keys = Piece::of("layers.*.attention.query_key_value").split(0, &[heads, 3, head_dim]).take(1, 1, 1);
/// ```
#[derive(Debug, Clone)]
pub struct Piece {
    foreign: Pattern,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(super) enum Step {
    Split { axis: usize, sizes: Vec<usize> },
    Take { axis: usize, start: usize, len: usize },
    Swap(usize, usize),
}

impl Piece {
    /// All of the tensor whose name begins with this pattern; what follows it in the name, follows in the parameter's.
    pub fn of(foreign: impl Into<Pattern>) -> Self {
        Self { foreign: foreign.into(), steps: Vec::new() }
    }

    /// Makes several axes of one. Its size must be the product of theirs, so `split(0, &[n])` says that there are n rows.
    pub fn split(mut self, axis: usize, sizes: &[usize]) -> Self {
        self.steps.push(Step::Split { axis, sizes: sizes.into() });
        self
    }

    /// Only so many places of an axis.
    pub fn take(mut self, axis: usize, start: usize, len: usize) -> Self {
        self.steps.push(Step::Take { axis, start, len });
        self
    }

    /// Two axes in the other order.
    pub fn swap(mut self, a: usize, b: usize) -> Self {
        self.steps.push(Step::Swap(a, b));
        self
    }

    /// The steps from the stored tensor to what remains of it.
    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it is a whole tensor.
    pub(super) fn is_plain(&self) -> bool {
        self.steps.is_empty()
    }

    /// Where the elements lie in the stored tensor; `None` if it has not the shape that the steps ask for.
    pub fn view(&self, whole: View) -> Option<View> {
        self.steps.iter().try_fold(whole, |view, step| match step {
            Step::Split { axis, sizes } => view.split(*axis, sizes),
            Step::Take { axis, start, len } => view.take(*axis, *start, *len),
            Step::Swap(a, b) => view.swap(*a, *b),
        })
    }
}

/// What a stored tensor is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The parameter.
    pub native: String,
    /// The rule that puts it together and the piece of it that the tensor is; `None` where it is the parameter itself.
    pub join: Option<(usize, usize)>,
}

impl Names {
    /// Every name stays as it is.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names that begin with `foreign` begin with `native` instead.
    pub fn rename(mut self, foreign: impl Into<Pattern>, native: impl Into<Pattern>) -> Self {
        self.renames.push((foreign.into(), native.into()));
        self
    }

    /// As [`Names::rename`], before all rules so far.
    pub fn first(mut self, foreign: impl Into<Pattern>, native: impl Into<Pattern>) -> Self {
        self.renames.insert(0, (foreign.into(), native.into()));
        self
    }

    /// Parameters that begin with `native` are these pieces, one after the other along the first axis. A tensor may serve
    /// several parameters; the stars of all pieces stand for the same.
    pub fn join(self, native: impl Into<Pattern>, pieces: impl Into<Vec<Piece>>) -> Self {
        self.join_plus(native, pieces, 0.0)
    }

    /// Parameters that begin with `native` are the tensors that begin with `foreign`, and a constant added.
    pub fn plus(self, foreign: impl Into<Pattern>, native: impl Into<Pattern>, constant: f64) -> Self {
        self.join_plus(native, [Piece::of(foreign)], constant)
    }

    /// As [`Names::join`], with a constant added to every element.
    pub fn join_plus(mut self, native: impl Into<Pattern>, pieces: impl Into<Vec<Piece>>, plus: f64) -> Self {
        self.joins.push(Join { native: native.into(), pieces: pieces.into(), plus });
        self
    }

    /// Names that begin with this are known and not needed.
    pub fn ignore(mut self, foreign: impl Into<Pattern>) -> Self {
        self.ignored.push(foreign.into());
        self
    }

    /// Tensors that begin with this are written with so many axes of one element before their own.
    pub fn ones(mut self, foreign: impl Into<Pattern>, axes: usize) -> Self {
        self.ones.push((foreign.into(), axes));
        self
    }

    /// How many axes of one element are written before those of this tensor.
    pub(super) fn ones_before(&self, foreign: &str) -> usize {
        let rule = self.ones.iter().find(|(pattern, _)| matched(pattern, foreign).is_some());
        rule.map_or(0, |(_, axes)| *axes)
    }

    /// The tensor `alias` (a name of ours) is stored as well, but is the same as `original`.
    pub fn tie(mut self, alias: &'static str, original: &'static str) -> Self {
        self.tied = Some((alias, original));
        self
    }

    /// Alias and original of tied tensors.
    pub fn tied(&self) -> Option<(&'static str, &'static str)> {
        self.tied
    }

    /// How many rules put parameters together.
    pub(super) fn rules(&self) -> usize {
        self.joins.len()
    }

    /// Names in a checkpoint that may stand for a parameter as it is.
    pub(super) fn renamed_from(&self, native: &str) -> impl Iterator<Item = String> {
        let rules = self.renames.iter();
        let renamed = rules.filter_map(move |(foreign, ours)| {
            let (stars, rest) = matched(ours, native)?;
            // One that stands for any of several is none to write.
            let stood_for = foreign.split('.').filter(|part| *part == "*").count() <= stars.len();
            stood_for.then(|| filled(foreign, &stars, rest))
        });
        renamed.chain([native.to_owned()])
    }

    /// Whether a constant is added to what is stored of this parameter.
    pub fn adds_to(&self, native: &str) -> bool {
        self.joins.iter().any(|join| join.plus != 0.0 && matched(&join.native, native).is_some())
    }

    /// The rule of a [`Destination`].
    pub fn rule(&self, index: usize) -> Option<&Join> {
        self.joins.get(index)
    }

    /// What a tensor of the checkpoint is for; nothing if it is not needed.
    pub fn destinations(&self, foreign: &str) -> Vec<Destination> {
        if self.ignored.iter().any(|pattern| matched(pattern, foreign).is_some()) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (rule, join) in self.joins.iter().enumerate() {
            for (piece, Piece { foreign: pattern, .. }) in join.pieces.iter().enumerate() {
                if let Some((stars, rest)) = matched(pattern, foreign) {
                    found.push(Destination {
                        native: filled(&join.native, &stars, rest),
                        join: Some((rule, piece)),
                    });
                }
            }
        }
        if found.is_empty() {
            let renamed = self.renames.iter().find_map(|(pattern, native)| {
                let (stars, rest) = matched(pattern, foreign)?;
                Some(filled(native, &stars, rest))
            });
            found.push(Destination { native: renamed.unwrap_or_else(|| foreign.into()), join: None });
        }
        found
    }

    /// The name of a piece's tensor for a parameter that this rule makes.
    pub fn foreign(&self, native: &str, (rule, piece): (usize, usize)) -> Option<String> {
        let join = self.joins.get(rule)?;
        let (stars, rest) = matched(&join.native, native)?;
        Some(filled(&join.pieces.get(piece)?.foreign, &stars, rest))
    }
}

/// The pattern with its stars filled in, and what follows it.
fn filled(pattern: &str, stars: &[&str], rest: &str) -> String {
    let mut stars = stars.iter();
    let segments: Vec<&str> = pattern
        .split('.')
        .map(|part| if part == "*" { stars.next().copied().unwrap_or("*") } else { part })
        .collect();
    segments.join(".") + rest
}

/// What the stars stand for, and what follows the pattern in the name.
fn matched<'a>(pattern: &str, name: &'a str) -> Option<(Vec<&'a str>, &'a str)> {
    let mut rest = name;
    let mut stars = Vec::new();
    for (i, part) in pattern.split('.').enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('.')?;
        }
        let end = rest.find('.').unwrap_or(rest.len());
        let segment = &rest[..end];
        match part {
            "*" => stars.push(segment),
            _ if part == segment => {}
            _ => return None,
        }
        rest = &rest[end..];
    }
    Some((stars, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_stars_and_ignored_names() {
        let names = Names::new()
            .rename("backbone.embeddings", "backbone.embedding")
            .rename("model.layers.*.mamba", "backbone.layers.*.mixer")
            .ignore("model.layers.*.rotary.inv_freq");
        let native = |name| match &names.destinations(name)[..] {
            [Destination { native, join: None }] => Some(native.clone()),
            _ => None,
        };
        assert_eq!(native("backbone.embeddings.weight").as_deref(), Some("backbone.embedding.weight"));
        assert_eq!(native("backbone.embeddingsX.weight").as_deref(), Some("backbone.embeddingsX.weight"));
        assert_eq!(native("model.layers.12.mamba.D").as_deref(), Some("backbone.layers.12.mixer.D"));
        assert_eq!(native("model.layers.12.rotary.inv_freq"), None);
        assert_eq!(native("model.layers").as_deref(), Some("model.layers"));
    }

    /// From a stored tensor to parameters and from a parameter back to its tensors.
    #[test]
    fn joined_names_go_both_ways() {
        let names = Names::new()
            .join("layers.*.in_proj", [Piece::of("model.*.q_proj"), Piece::of("model.*.k_proj")])
            .join("layers.*.experts.0", [Piece::of("model.*.experts").take(0, 0, 1)])
            .join("layers.*.experts.1", [Piece::of("model.*.experts").take(0, 1, 1)])
            .plus("model.*.norm", "layers.*.norm", 1.0);
        let to = |name: &str| names.destinations(name);
        let place = |native: &str, join| Destination { native: native.into(), join: Some(join) };
        assert_eq!(to("model.3.k_proj.bias"), [place("layers.3.in_proj.bias", (0, 1))]);
        let experts = [place("layers.7.experts.0", (1, 0)), place("layers.7.experts.1", (2, 0))];
        assert_eq!(to("model.7.experts"), experts);
        assert_eq!(names.foreign("layers.3.in_proj.bias", (0, 0)).as_deref(), Some("model.3.q_proj.bias"));
        assert_eq!(names.foreign("layers.3.out_proj.bias", (0, 0)), None);
        let [Destination { join: Some((rule, 0)), .. }] = to("model.0.norm.weight")[..] else { panic!() };
        assert_eq!(names.rule(rule).map(|r| r.plus), Some(1.0));
    }

    /// Heads, then q, k, v: the rows of the keys, in order, of weight and bias alike.
    #[test]
    fn pieces_of_a_fused_map() {
        let (heads, p, d) = (2, 3, 4);
        let keys = Piece::of("qkv").split(0, &[heads, 3, p]).take(1, 1, 1);
        let weight = keys.view(View::whole(&[heads * 3 * p, d])).unwrap();
        assert_eq!((weight.start, &weight.shape[..]), (p * d, &[heads, 1, p, d][..]));
        let bias = keys.view(View::whole(&[heads * 3 * p])).unwrap();
        assert_eq!((bias.start, &bias.strides[..]), (p, &[3 * p, p, 1][..]));
        assert!(keys.view(View::whole(&[heads * 3 * p + 1, d])).is_none());
        assert!(keys.view(View::whole(&[])).is_none());
        assert!(Piece::of("a").take(0, 3, 2).view(View::whole(&[4])).is_none());
    }
}
