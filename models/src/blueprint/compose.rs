//! From blocks to layers of the normal form: compositions unfolded, paths of parameters and norms given.

use std::collections::{BTreeMap, BTreeSet};

use super::block::{Block, Branch, Form};
use super::document::Document;
use super::suggest::advice;
use crate::normal::{self, Input, Merge, Output, Stage};

/// Stages that one layer may have.
const MAX_STAGES: usize = 64;

type Blocks = BTreeMap<String, Option<Block>>;

/// One stage before its norms have paths.
struct Draft<'a> {
    branches: Vec<Member<'a>>,
    merge: Merge,
    shared_norm: bool,
}

/// A mixer of a stage.
struct Member<'a> {
    branch: &'a Branch,
    path: String,
    /// Its name among the branches.
    label: &'a str,
    /// Of the part that it belongs to.
    share: Option<String>,
}

/// The stages of the layer that each block makes; `None` where there are errors, which are reported.
pub(super) fn compose(document: &mut Document<'_>, blocks: &Blocks) -> BTreeMap<String, Option<Vec<Stage>>> {
    let sound: BTreeMap<&str, bool> = blocks
        .iter()
        .map(|(name, block)| (name.as_str(), references(document, blocks, name, block)))
        .collect();
    let inner: BTreeSet<&str> =
        blocks.values().flatten().flat_map(|block| parts(block).1).map(String::as_str).collect();
    let mut composed = BTreeMap::new();
    for (name, block) in blocks {
        let mut stages = None;
        if let Some(block) = block
            && reachable(blocks, name).iter().all(|n| sound.get(n) == Some(&true))
        {
            stages = layer(document, blocks, name, block);
            // A part of others may speak to the parts beside it.
            if let Some((message, help)) =
                stages.as_deref().filter(|_| !inner.contains(name.as_str())).and_then(lost)
            {
                document.key(&format!("blocks.{name}"), message, Some(help));
                stages = None;
            }
        }
        composed.insert(name.clone(), stages);
    }
    composed
}

/// The blocks that a block is made of.
pub(super) fn parts(block: &Block) -> (&'static str, &[String]) {
    match &block.form {
        Form::Mixer(_) => ("mixer", &[]),
        Form::Parallel { of, .. } => ("parallel", of),
        Form::Series { of } => ("series", of),
    }
}

/// A block and all that it is made of, each once.
pub(super) fn reachable<'a>(blocks: &'a Blocks, name: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![name]);
    while let Some(name) = open.pop() {
        if seen.insert(name)
            && let Some(Some(block)) = blocks.get(name)
        {
            open.extend(parts(block).1.iter().map(String::as_str));
        }
    }
    seen
}

/// Checks the names in a composed block; whether all are well.
fn references(document: &mut Document<'_>, blocks: &Blocks, name: &str, block: &Option<Block>) -> bool {
    let Some(block) = block else { return false };
    let (form, of) = parts(block);
    let mut well = true;
    if form != "mixer" && of.is_empty() {
        document.value(&format!("blocks.{name}.{form}"), "expected at least one block, found none", None);
        well = false;
    }
    for (i, part) in of.iter().enumerate() {
        let key = format!("blocks.{name}.{form}[{i}]");
        let problem = match blocks.get(part) {
            None => {
                document.no_block(&key, false, part, advice(part, blocks.keys().map(String::as_str)));
                well = false;
                None
            }
            Some(_) if reachable(blocks, part).contains(name) => {
                Some((format!("block \"{name}\" is part of itself, through \"{part}\""), None))
            }
            Some(Some(inner)) => unfit(form, part, inner),
            Some(None) => None,
        };
        if let Some((message, help)) = problem {
            document.value(&key, message, help);
            well = false;
        }
    }
    well
}

fn unfit(form: &str, part: &str, block: &Block) -> Option<(String, Option<String>)> {
    if form == "parallel" && block.share.is_some() {
        let help = "give `share` to the block that the stack names".to_owned();
        return Some((format!("block \"{part}\" has `share` and cannot be part of another"), Some(help)));
    }
    let plain = matches!(block.form, Form::Mixer(_)) && block.mlp.is_none();
    (form == "parallel" && !plain).then(|| {
        (format!("block \"{part}\" is more than one mixer: parallel branches are one mixer each"), None)
    })
}

fn layer(document: &mut Document<'_>, blocks: &Blocks, name: &str, block: &Block) -> Option<Vec<Stage>> {
    let mut drafts = vec![];
    unfold(blocks, (name, block), None, &mut drafts);
    if drafts.len() > MAX_STAGES {
        let message = format!("block \"{name}\" has more than {MAX_STAGES} mixers in series");
        document.key(&format!("blocks.{name}"), message, None);
        return None;
    }
    let stages: Vec<Stage> = drafts.into_iter().enumerate().map(|(i, draft)| finish(i, draft)).collect();
    if let Some((first, second)) = collision(&stages) {
        let message =
            format!("two parts of block \"{name}\" have their parameters at `{first}` and `{second}`");
        let help = Some("name different blocks, or set `path` or `norm_path`".into());
        document.key(&format!("blocks.{name}"), message, help);
        return None;
    }
    Some(stages)
}

/// What surrounds a part of a composed block.
#[derive(Clone, Default)]
struct Inside {
    /// The share id of the innermost part that has one.
    share: Option<String>,
}

/// Appends the stages of a block; stops where there are too many.
fn unfold<'a>(
    blocks: &'a Blocks,
    (name, block): (&'a str, &'a Block),
    inside: Option<Inside>,
    drafts: &mut Vec<Draft<'a>>,
) {
    if drafts.len() > MAX_STAGES {
        return;
    }
    // The `share` of the whole is the layer's.
    let own_share = inside.as_ref().and(block.share.as_ref()).and_then(|share| share.id(name));
    let share = own_share.or_else(|| inside.as_ref().and_then(|i| i.share.clone()));
    let at = |branch: &'a Branch, default: &str, label| {
        let path = branch.keys.path.clone().unwrap_or_else(|| default.into());
        Member { branch, path, label, share: share.clone() }
    };
    let own = |branch: &'a Branch| at(branch, if inside.is_some() { name } else { "mixer" }, name);
    let one = |branch| Draft { branches: vec![branch], merge: Merge::Sum, shared_norm: true };
    match &block.form {
        Form::Mixer(branch) => drafts.push(one(own(branch))),
        Form::Parallel { of, merge, shared_norm } => {
            let branches = of.iter().filter_map(|part| match blocks.get(part) {
                Some(Some(Block { form: Form::Mixer(branch), .. })) => Some(at(branch, part, part)),
                _ => None,
            });
            drafts.push(Draft { branches: branches.collect(), merge: *merge, shared_norm: *shared_norm });
        }
        Form::Series { of } => {
            for part in of {
                if let Some(Some(inner)) = blocks.get(part) {
                    unfold(blocks, (part, inner), Some(Inside { share: share.clone() }), drafts);
                }
            }
        }
    }
    if let Some(mlp) = &block.mlp {
        let path = if inside.is_some() { format!("{name}_mlp") } else { "mlp".into() };
        drafts.push(one(at(mlp, &path, name)));
    }
}

/// The default paths of the norms before and after a branch of the stage with this index.
pub(super) fn norm_paths(stage: usize, label: Option<&str>, shared: bool) -> (String, String) {
    let number = if stage == 0 { String::new() } else { (stage + 1).to_string() };
    let label = label.map(|l| format!("_{l}")).unwrap_or_default();
    let pre = if shared { "" } else { label.as_str() };
    (format!("norm{number}{pre}"), format!("post_norm{number}{label}"))
}

fn finish(index: usize, draft: Draft<'_>) -> Stage {
    let several = draft.branches.len() > 1;
    let branches = draft.branches.into_iter().map(|Member { branch, path, label, share }| {
        let keys = &branch.keys;
        let (pre, post) = match &share {
            None => norm_paths(index, several.then_some(label), draft.shared_norm),
            // Wherever the part stands.
            Some(_) => {
                (format!("norm_{}", path.replace('.', "_")), format!("post_norm_{}", path.replace('.', "_")))
            }
        };
        normal::Branch {
            mixer: branch.mixer.clone(),
            path,
            pre_norm: keys.norm.pre().then(|| keys.norm_path.clone().unwrap_or(pre)),
            post_norm: keys.norm.post().then(|| keys.post_norm_path.clone().unwrap_or(post)),
            input_multiplier: keys.input_multiplier,
            output_multiplier: keys.output_multiplier,
            input: keys.input,
            output: keys.output,
            share,
        }
    });
    Stage { branches: branches.collect(), merge: draft.merge }
}

/// A mixer that reads an aside which no earlier one leaves, or leaves one that no later one reads; and what to do.
fn lost(stages: &[Stage]) -> Option<(String, String)> {
    let mut left: Option<(&str, bool)> = None; // by whom, and whether it was read
    let unread = |by: &str| {
        let help = "give a later mixer of the layer `input = \"aside\"` or `input = \"both\"`".to_owned();
        Some((format!("no later mixer of the layer reads what `{by}` leaves aside"), help))
    };
    for stage in stages {
        for branch in stage.branches.iter().filter(|b| b.input != Input::Stream) {
            let Some((_, read)) = &mut left else {
                let help = "give an earlier mixer of the layer `output = \"aside\"`".to_owned();
                let message = format!("`{}` reads what an earlier mixer left aside: none does", branch.path);
                return Some((message, help));
            };
            *read = true;
        }
        if let Some(writer) = stage.branches.iter().find(|b| b.output == Output::Aside)
            && let Some((by, false)) = left.replace((&writer.path, false))
        {
            return unread(by);
        }
    }
    left.filter(|(_, read)| !read).and_then(|(by, _)| unread(by))
}

/// Two paths of which one is the other or above it. Norms before the branches of one stage may be the same.
fn collision(stages: &[Stage]) -> Option<(String, String)> {
    let mut paths: Vec<&str> = vec![];
    for stage in stages {
        let pre: BTreeSet<&str> = stage.branches.iter().filter_map(|b| b.pre_norm.as_deref()).collect();
        paths.extend(pre);
        paths.extend(
            stage.branches.iter().flat_map(|b| [Some(b.path.as_str()), b.post_norm.as_deref()]).flatten(),
        );
    }
    let above = |a: &str, b: &str| a == b || b.strip_prefix(a).is_some_and(|rest| rest.starts_with('.'));
    let pairs = paths.iter().enumerate().flat_map(|(i, a)| paths[i + 1..].iter().map(move |b| (*a, *b)));
    pairs.into_iter().find(|(a, b)| above(a, b) || above(b, a)).map(|(a, b)| (a.into(), b.into()))
}
