//! Problems of a blueprint, as data and as drawn text.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Longest part of a source line that is drawn, in characters.
const DRAWN: usize = 120;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The blueprint cannot be used.
    Error,
    /// Probably not meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One problem and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What was expected and what was found.
    pub message: String,
    /// One thing to try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The key, from the root: `blocks.ssd.headdim`, `stack.at.attn[3]`; empty for problems of the whole file.
    pub key: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Bytes of the file.
    pub span: Range<usize>,
}

/// All problems of one file, in its order. `Display` draws each with its source line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// The file, as the caller named it.
    pub file: String,
    /// The problems.
    pub diagnostics: Vec<Diagnostic>,
    #[serde(skip)]
    source: String,
}

impl Diagnostics {
    /// No problems.
    pub fn none(file: &str) -> Self {
        Self { file: file.into(), diagnostics: Vec::new(), source: String::new() }
    }

    /// Sorted by place, each once.
    pub(super) fn new(file: &str, source: &str, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(|d| (d.span.start, d.severity as u8));
        diagnostics.dedup_by(|a, b| a.span == b.span && a.message == b.message);
        Self { file: file.into(), diagnostics, source: source.into() }
    }

    /// How many are errors.
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// How many are warnings.
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning)
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }
}

impl std::error::Error for Diagnostics {}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            draw(f, &self.file, &self.source, diagnostic)?;
            writeln!(f)?;
        }
        let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        write!(f, "{}: {}", self.file, plural(self.errors(), "error"))?;
        match self.warnings() {
            0 => Ok(()),
            n => write!(f, ", {}", plural(n, "warning")),
        }
    }
}

fn draw(f: &mut fmt::Formatter<'_>, file: &str, source: &str, d: &Diagnostic) -> fmt::Result {
    writeln!(f, "{}: {}", d.severity, printable(&d.message))?;
    let gutter = " ".repeat(d.line.to_string().len());
    let key = if d.key.is_empty() { String::new() } else { format!(" ({})", printable(&d.key)) };
    writeln!(f, "{gutter}--> {file}:{}:{}{key}", d.line, d.column)?;
    let text = source.lines().nth(d.line - 1).unwrap_or_default();
    let before = d.column - 1;
    let marked = source.get(d.span.clone()).unwrap_or_default();
    let width = marked.lines().next().unwrap_or_default().chars().count().max(1);
    let skip = before.saturating_sub(DRAWN / 2);
    let drawn: String = printable(text).chars().skip(skip).take(DRAWN).collect();
    let width = width.min(DRAWN.saturating_sub(before - skip)).max(1);
    writeln!(f, "{gutter} |")?;
    writeln!(f, "{}", format!("{} | {drawn}", d.line).trim_end())?;
    writeln!(f, "{gutter} | {}{}", " ".repeat(before - skip), "^".repeat(width))?;
    if let Some(help) = &d.help {
        writeln!(f, "{gutter} = help: {}", printable(help))?;
    }
    Ok(())
}

/// One character a character, without those that would move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Line and column (in characters), from 1, of a byte.
pub(super) fn position(source: &str, byte: usize) -> (usize, usize) {
    let mut byte = byte.min(source.len());
    while !source.is_char_boundary(byte) {
        byte -= 1;
    }
    let before = &source[..byte];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
