//! `[blocks.NAME]`: one mixer with the keys around it, or a composition of other blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use semisep_core::MixerConfig;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Table};
use super::keys::{BranchKeys, LayerKeys, ParallelKeys, SeriesKeys, Share};
use super::read::{Expected, read};
use super::schema::{keys_of, own_schema};
use super::suggest::advice;
use super::{is_name, is_path};
use crate::Registry;
use crate::normal::Merge;

/// What is said of a block without a mixer.
const BLOCK_FORMS: &str = "a block needs `mixer`, `parallel` or `series`";

/// One block of the file, read but not yet composed.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) form: Form,
    /// A channel mixer after it, with a residual of its own.
    pub(super) mlp: Option<Branch>,
    pub(super) share: Option<Share>,
}

#[derive(Debug, Clone)]
pub(super) enum Form {
    Mixer(Branch),
    Parallel { of: Vec<String>, merge: Merge, shared_norm: bool },
    Series { of: Vec<String> },
}

/// A mixer and the keys around it.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) mixer: Arc<dyn MixerConfig>,
    pub(super) keys: BranchKeys,
}

/// What the blocks of a file are read with.
pub(super) struct Blocks<'r> {
    pub(super) registry: &'r Registry,
    /// `None` if the file does not say: mixers are then not checked.
    pub(super) d_model: Option<usize>,
}

impl Blocks<'_> {
    /// All blocks by name; `None` for those that could not be read.
    pub(super) fn read<'d>(
        &self,
        document: &mut Document<'d>,
        blocks: Table<'d>,
    ) -> BTreeMap<String, Option<Block>> {
        let mut all = BTreeMap::new();
        for (name, value) in blocks.into_inner() {
            let key = format!("blocks.{}", name.get_ref());
            if !is_name(name.get_ref()) {
                let message =
                    format!("block name \"{}\": expected letters, digits, `_` and `-`", name.get_ref());
                document.span(name.span(), &key, message, None);
                continue;
            }
            let span = value.span();
            let block = match value.into_inner() {
                DeValue::Table(table) => self.block(document, &key, Spanned::new(span, table)),
                other => {
                    document.span(span, &key, format!("expected a table, found {}", a(&other)), None);
                    None
                }
            };
            all.insert(name.get_ref().to_string(), block);
        }
        all
    }

    fn block<'d>(&self, document: &mut Document<'d>, key: &str, mut table: Table<'d>) -> Option<Block> {
        let forms: Vec<&str> = ["mixer", "parallel", "series"]
            .into_iter()
            .filter(|f| table.get_ref().contains_key(*f))
            .collect();
        if let [first, second, ..] = forms[..] {
            let message = format!("`{first}` and `{second}` in one block: expected one of them");
            document.key(&format!("{key}.{second}"), message, None);
            return None;
        }
        let mlp = table.get_mut().remove("mlp");
        let mlp = mlp.map(|value| self.mlp(document, &format!("{key}.mlp"), value));
        let layer = take(&mut table, &keys_of::<LayerKeys>());
        let layer_schema = own_schema::<LayerKeys>();
        let expected = Expected { key, what: "the block", schema: &layer_schema, others: &[] };
        let layer = read(document, &expected, layer, LayerKeys::deserialize).value;
        let around: Vec<String> = keys_of::<LayerKeys>().into_iter().chain(["mlp".to_owned()]).collect();
        let form = match forms[..] {
            ["parallel"] => composed(document, key, table, &around, |k: ParallelKeys| Form::Parallel {
                of: k.parallel,
                merge: k.merge,
                shared_norm: k.shared_norm,
            }),
            ["series"] => {
                composed(document, key, table, &around, |k: SeriesKeys| Form::Series { of: k.series })
            }
            _ => self.branch(document, key, table, None, &around).map(Form::Mixer),
        };
        let mlp = match mlp {
            None => None,
            Some(None) => return None,
            Some(mlp) => mlp,
        };
        let share = layer?.share;
        if let Some(Share::Id(id)) = &share
            && !is_name(id)
        {
            let message = format!("share id \"{id}\": expected letters, digits, `_` and `-`");
            document.value(&format!("{key}.share"), message, None);
        }
        Some(Block { form: form?, mlp, share })
    }

    fn mlp<'d>(&self, document: &mut Document<'d>, key: &str, value: Spanned<DeValue<'d>>) -> Option<Branch> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => self.branch(document, key, Spanned::new(span, table), Some("mlp"), &[]),
            other => {
                let help = Some("`mlp = {}` takes the defaults".to_owned());
                document.span(span, key, format!("expected a table, found {}", a(&other)), help);
                None
            }
        }
    }

    /// A mixer and the keys around it; `around` are valid keys that were taken out before.
    fn branch<'d>(
        &self,
        document: &mut Document<'d>,
        key: &str,
        mut table: Table<'d>,
        default_kind: Option<&str>,
        around: &[String],
    ) -> Option<Branch> {
        let keys = take(&mut table, &keys_of::<BranchKeys>());
        let branch_schema = own_schema::<BranchKeys>();
        let expected = Expected { key, what: "the block", schema: &branch_schema, others: &[] };
        let keys = read(document, &expected, keys, BranchKeys::deserialize).value;
        if let Some(keys) = &keys {
            check_branch(document, key, keys);
        }
        let others: Vec<String> =
            keys_of::<BranchKeys>().into_iter().chain(["mixer".into()]).chain(around.to_vec()).collect();
        let kind = self.kind(document, key, &mut table, default_kind, BLOCK_FORMS)?;
        let (mixer, doubtful) = self.mixer(document, key, &kind, table, &others)?;
        let issues = self.d_model.map(|d_model| mixer.check(d_model)).unwrap_or_default();
        for issue in issues {
            let root = issue.key.split(['.', '[']).next().unwrap_or_default();
            if !doubtful.contains(root) {
                let message = format!("`{}`: {}", issue.key, issue.message);
                document.value(&format!("{key}.{}", issue.key), message, issue.help);
            }
        }
        Some(Branch { mixer, keys: keys? })
    }

    /// The configuration of a mixer, with the mixers inside it, and the keys in doubt; `others` are valid keys that are
    /// not its own.
    fn mixer<'d>(
        &self,
        document: &mut Document<'d>,
        key: &str,
        kind: &str,
        table: Table<'d>,
        others: &[String],
    ) -> Option<(Arc<dyn MixerConfig>, BTreeSet<String>)> {
        let known = self.registry.get(kind)?;
        let schema = (known.schema)(&mut Default::default());
        let what = format!("mixer \"{kind}\"");
        let expected = Expected { key, what: &what, schema: schema.as_value(), others };
        let inside = table.get_ref().clone();
        let section = read(document, &expected, table, known.read);
        let (mut mixer, mut doubtful) = (section.value?, section.doubtful);
        for (name, nested) in mixer.nested() {
            let Some(value) = inside.get(name) else { continue };
            let DeValue::Table(table) = value.get_ref() else { return None };
            let (key, mut table) = (format!("{key}.{name}"), Spanned::new(value.span(), table.clone()));
            let kind = self.kind(document, &key, &mut table, None, "a nested mixer needs `mixer`")?;
            let (inner, in_doubt) = self.mixer(document, &key, &kind, table, &["mixer".into()])?;
            if !in_doubt.is_empty() {
                doubtful.insert(name.into());
            }
            nested.resolve(inner);
        }
        Some((Arc::from(mixer), doubtful))
    }

    /// Takes `mixer` out of the table: the name of a registered kind.
    fn kind<'d>(
        &self,
        document: &mut Document<'d>,
        key: &str,
        table: &mut Table<'d>,
        default: Option<&str>,
        missing: &str,
    ) -> Option<String> {
        let at = format!("{key}.mixer");
        let Some(value) = table.get_mut().remove("mixer") else {
            if default.is_none() {
                document.absent(key, missing, advice("", self.registry.names()));
            }
            return default.map(String::from);
        };
        match value.get_ref() {
            DeValue::String(name) if self.registry.get(name).is_some() => Some(name.to_string()),
            DeValue::String(name) => {
                let help = advice(name, self.registry.names());
                document.span(value.span(), &at, format!("no mixer is called \"{name}\""), help);
                None
            }
            other => {
                let message = format!("expected the name of a mixer, found {}", a(other));
                document.span(value.span(), &at, message, advice("", self.registry.names()));
                None
            }
        }
    }
}

fn composed<'d, K>(
    document: &mut Document<'d>,
    key: &str,
    table: Table<'d>,
    around: &[String],
    form: impl Fn(K) -> Form,
) -> Option<Form>
where
    K: for<'a> Deserialize<'a> + schemars::JsonSchema,
{
    let schema = own_schema::<K>();
    let expected = Expected { key, what: "a composed block", schema: &schema, others: around };
    let form = form(read(document, &expected, table, K::deserialize).value?);
    if let Form::Parallel { merge: Merge::Scaled(scale), .. } = form
        && !scale.is_finite()
    {
        document.value(&format!("{key}.merge"), format!("expected a finite scale, found {scale}"), None);
    }
    Some(form)
}

fn check_branch(document: &mut Document<'_>, key: &str, keys: &BranchKeys) {
    let multipliers =
        [("input_multiplier", keys.input_multiplier), ("output_multiplier", keys.output_multiplier)];
    for (name, value) in multipliers {
        if !value.is_finite() {
            document.value(
                &format!("{key}.{name}"),
                format!("expected a finite number, found {value}"),
                None,
            );
        }
    }
    let paths = [
        ("path", &keys.path, true),
        ("norm_path", &keys.norm_path, keys.norm.pre()),
        ("post_norm_path", &keys.post_norm_path, keys.norm.post()),
    ];
    for (name, path, used) in paths {
        let at = format!("{key}.{name}");
        match path {
            Some(path) if !is_path(path) => {
                let message = format!("expected names separated by dots, found \"{path}\"");
                document.value(&at, message, Some("for example `mixer` or `attn.self`".into()));
            }
            Some(_) if !used => document.key(&at, format!("`{name}` without such a norm"), norm_help(name)),
            _ => {}
        }
    }
}

fn norm_help(name: &str) -> Option<String> {
    let placement = if name == "norm_path" { "pre" } else { "post" };
    Some(format!("`norm = \"{placement}\"` or `norm = \"both\"` makes one"))
}

/// Takes these keys out of a table, into one of their own.
fn take<'d>(table: &mut Table<'d>, keys: &[String]) -> Table<'d> {
    let mut taken = DeTable::new();
    for key in keys {
        if let Some((name, value)) = table.get_mut().remove_entry(key.as_str()) {
            taken.insert(name, value);
        }
    }
    Spanned::new(table.span(), taken)
}

/// A value in words.
pub(super) fn a(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(s) => format!("string \"{s}\""),
        DeValue::Integer(i) => i.to_string(),
        DeValue::Float(f) => f.to_string(),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => format!("date {d}"),
        DeValue::Array(_) => "an array".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
