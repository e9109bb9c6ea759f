//! The raw table of a blueprint: where each key stands, and what was found wrong.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Severity, position};
use super::syntax::Broken;

/// Problems beyond this many are not collected.
const MOST: usize = 200;

/// A table of the file with its place.
pub(super) type Table<'d> = Spanned<DeTable<'d>>;

/// The file, and what was found in it so far.
pub(super) struct Document<'d> {
    source: &'d str,
    root: &'d Table<'d>,
    broken: Broken,
    found: Vec<Diagnostic>,
}

/// Which part of an entry is at fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Key,
    Value,
}

impl<'d> Document<'d> {
    pub(super) fn new(source: &'d str, root: &'d Table<'d>, broken: Broken) -> Self {
        Self { source, root, broken, found: vec![] }
    }

    pub(super) fn found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// Whether any error was reported.
    pub(super) fn failed(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// The text at these bytes, if it is short.
    pub(super) fn text(&self, span: &Range<usize>) -> Option<&'d str> {
        self.source.get(span.clone()).filter(|text| (1..=40).contains(&text.len()))
    }

    /// The key of the entry at these bytes.
    pub(super) fn key_at(&self, span: &Range<usize>) -> String {
        innermost(self.root.get_ref(), span).map(|path| join("", &path)).unwrap_or_default()
    }

    /// Whether this key stands in the file.
    pub(super) fn has(&self, key: &str) -> bool {
        let mut table = Some(self.root.get_ref());
        key.split('.').all(|name| match table.and_then(|t| t.get(name)) {
            Some(value) => {
                table = value.get_ref().as_table();
                true
            }
            None => false,
        })
    }

    /// An error at the value of a key (`stack.at.attn[3]`), or at the nearest table around it that exists.
    pub(super) fn value(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        let span = locate(self.root, key, Part::Value);
        self.push(Severity::Error, span, key, message.into(), help);
    }

    /// An error at the name of a key.
    pub(super) fn key(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        let span = locate(self.root, key, Part::Key);
        self.push(Severity::Error, span, key, message.into(), help);
    }

    /// A warning at the name of a key.
    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        let span = locate(self.root, key, Part::Key);
        self.push(Severity::Warning, span, key, message.into(), help);
    }

    /// An error at a table that lacks a key; none if the key may be in a broken line.
    pub(super) fn absent(&mut self, key: &str, message: impl Into<String>, help: Option<String>) {
        if self.broken == Broken::Nothing {
            self.value(key, message, help);
        }
    }

    /// An error at a name that no block has, as a key or as a value; none if the block may be in a broken table.
    pub(super) fn no_block(&mut self, key: &str, is_key: bool, name: &str, help: Option<String>) {
        if self.broken < Broken::Tables {
            let span = locate(self.root, key, if is_key { Part::Key } else { Part::Value });
            self.push(Severity::Error, span, key, format!("no block is called \"{name}\""), help);
        }
    }

    /// An error at these bytes.
    pub(super) fn span(&mut self, span: Range<usize>, key: &str, message: String, help: Option<String>) {
        self.push(Severity::Error, span, key, message, help);
    }

    fn push(
        &mut self,
        severity: Severity,
        span: Range<usize>,
        key: &str,
        message: String,
        help: Option<String>,
    ) {
        if self.found.len() >= MOST {
            return;
        }
        let (line, column) = position(self.source, span.start);
        let key = key.to_owned();
        self.found.push(Diagnostic { severity, message, help, key, line, column, span });
    }
}

/// The bytes of an entry; of the nearest existing table around it if it does not exist.
fn locate(root: &Table<'_>, key: &str, part: Part) -> Range<usize> {
    let mut table = root.get_ref();
    let mut span = root.span();
    let mut segments = key.split('.').filter(|s| !s.is_empty()).peekable();
    while let Some(segment) = segments.next() {
        let (name, indices) = segment.split_once('[').unwrap_or((segment, ""));
        let Some((k, mut value)) = table.get_key_value(name) else { return span };
        let whole = part == Part::Key && segments.peek().is_none() && indices.is_empty();
        for index in indices.split(['[', ']']).filter_map(|i| i.parse::<usize>().ok()) {
            match value.get_ref().as_array().and_then(|a| a.get(index)) {
                Some(element) => value = element,
                None => return value.span(),
            }
        }
        span = if whole { k.span() } else { value.span() };
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return span,
        }
    }
    span
}

/// One step into a table or an array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Key(name) => name.clone(),
            Self::Index(index) => index.to_string(),
        }
    }
}

/// `base.key[index]`
pub(super) fn join(base: &str, path: &[Step]) -> String {
    path.iter().fold(base.to_owned(), |key, step| match step {
        Step::Key(name) if key.is_empty() => name.clone(),
        Step::Key(name) => format!("{key}.{name}"),
        Step::Index(index) => format!("{key}[{index}]"),
    })
}

/// The innermost entry that holds these bytes.
pub(super) fn innermost(table: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<Step>> {
    table.iter().find_map(|(key, value)| {
        let step = Step::Key(key.get_ref().to_string());
        if holds(&key.span(), span) {
            return Some(vec![step]);
        }
        within(value, span, step)
    })
}

fn within(value: &Spanned<DeValue<'_>>, span: &Range<usize>, step: Step) -> Option<Vec<Step>> {
    if value.span() == *span {
        return Some(vec![step]);
    }
    let inner = match value.get_ref() {
        DeValue::Table(table) => innermost(table, span),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(i, v)| within(v, span, Step::Index(i))),
        _ => None,
    };
    match inner {
        Some(path) => Some([vec![step], path].concat()),
        None => holds(&value.span(), span).then(|| vec![step]),
    }
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}
