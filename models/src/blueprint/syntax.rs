//! All syntax errors of a file, and a text without them.
//!
//! The parser gives up much of a file at some errors. So the lines at fault are blanked, which moves nothing, and the
//! rest is read again until nothing is at fault.

use std::ops::Range;

use toml::de::DeTable;

use super::diagnostic::{Diagnostic, Severity, position};

/// Syntax errors beyond this many are not looked for.
const MOST: usize = 50;

/// How much of the file is no TOML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Broken {
    /// Nothing: what is not there is missing.
    Nothing,
    /// Some lines: some keys may be missing because of that.
    Lines,
    /// Headers or the rest of the file: some tables may be missing because of that.
    Tables,
}

/// The text with the lines at fault blanked, and what is wrong with them.
pub(super) fn repair(source: &str) -> (String, Vec<Diagnostic>, Broken) {
    let (mut text, mut found, mut broken) = (source.to_owned(), vec![], Broken::Nothing);
    for _ in 0..MOST {
        let errors = DeTable::parse_recoverable(&text).1;
        let Some(error) = errors.iter().min_by_key(|e| e.span().map_or(0, |s| s.start)) else {
            return (text, found, broken);
        };
        let span = error.span().unwrap_or(0..0);
        let fault = Fault::of(&text, span, error.message());
        found.push(syntax_error(source, fault.span, &fault.message));
        broken = broken.max(fault.broken);
        if text[fault.blank.clone()].trim().is_empty() {
            break;
        }
        let blank: String =
            text[fault.blank.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        text.replace_range(fault.blank, &blank);
    }
    (text, found, Broken::Tables)
}

/// An error of a whole file or of its syntax.
pub(super) fn syntax_error(source: &str, span: Range<usize>, message: &str) -> Diagnostic {
    let (line, column) = position(source, span.start);
    let (message, help, key) = (message.to_owned(), None, String::new());
    Diagnostic { severity: Severity::Error, message, help, key, line, column, span }
}

struct Fault {
    message: String,
    span: Range<usize>,
    blank: Range<usize>,
    broken: Broken,
}

impl Fault {
    fn of(text: &str, span: Range<usize>, message: &str) -> Self {
        let line = line_at(text, span.start);
        let start = opening(text, line.start);
        let message = plain(message, span.is_empty());
        if text[line.clone()].trim_start().starts_with('[') && start.is_none() {
            // Without its header, a section would be read as a part of the one above.
            let rest = &text[line.end..];
            let next = rest.find("\n[").map_or(text.len(), |i| line.end + i);
            return Self { message, span, blank: line.start..next, broken: Broken::Tables };
        }
        match start.or_else(|| opening(text, line.end)) {
            Some((bracket, None)) => {
                let message = format!("`{}` is not closed", &text[bracket..=bracket]);
                let blank = line_at(text, bracket);
                Self { message, span: bracket..bracket + 1, blank, broken: Broken::Lines }
            }
            Some((bracket, Some(end))) => {
                let blank = line_at(text, bracket).start..line_at(text, end).end.max(line.end);
                Self { message, span, blank, broken: Broken::Lines }
            }
            None => Self { message, span, blank: line, broken: Broken::Lines },
        }
    }
}

/// The parser's words, clearer where they need to be.
fn plain(message: &str, nothing: bool) -> String {
    match message.split_once(", expected") {
        Some(("string values must be quoted", _)) if nothing => "expected a value, found nothing".into(),
        Some(("string values must be quoted", _)) => "expected a value: strings stand in quotes".into(),
        Some(("invalid basic string" | "invalid literal string", quote)) => {
            format!("the string is not closed: expected{quote}")
        }
        _ => message.into(),
    }
}

/// The line of this byte, without its end.
fn line_at(text: &str, byte: usize) -> Range<usize> {
    let byte = byte.min(text.len());
    let start = text.as_bytes()[..byte].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let end = text.as_bytes()[byte..].iter().position(|b| *b == b'\n').map_or(text.len(), |i| byte + i);
    start..end
}

/// The outermost bracket open at this byte, and where it closes if it does. Strings of several lines are not known here.
fn opening(text: &str, at: usize) -> Option<(usize, Option<usize>)> {
    let mut open: Vec<usize> = vec![];
    let mut quote = None;
    let mut escaped = false;
    let mut comment = false;
    let mut held = None;
    for (i, byte) in text.bytes().enumerate() {
        if i == at {
            held = Some(*open.first()?);
        }
        match (byte, quote) {
            (b'\n', _) => (quote, comment, escaped) = (None, false, false),
            _ if comment => {}
            (_, Some(b'"')) if escaped => escaped = false,
            (b'\\', Some(b'"')) => escaped = true,
            (_, Some(q)) if byte == q => quote = None,
            (_, Some(_)) => {}
            (b'"' | b'\'', None) => quote = Some(byte),
            (b'#', None) => comment = true,
            (b'[' | b'{', None) => open.push(i),
            (b']' | b'}', None) => {
                open.pop();
                if let (Some(bracket), true) = (held, open.is_empty()) {
                    return Some((bracket, Some(i)));
                }
            }
            _ => {}
        }
    }
    held.or_else(|| if at >= text.len() { open.first().copied() } else { None })
        .map(|bracket| (bracket, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> (Vec<(usize, String)>, String) {
        let (text, found, _) = repair(source);
        assert_eq!(text.len(), source.len());
        assert!(DeTable::parse(&text).is_ok(), "{text}");
        let kept = text.lines().filter(|l| !l.trim().is_empty()).collect::<Vec<_>>().join("|");
        (found.into_iter().map(|d| (d.line, d.message)).collect(), kept)
    }

    #[test]
    fn each_broken_line_is_one_error() {
        let (found, kept) = lines("a 1\nb = 2\nc =\nb = 3\nd = \"x\ne = 5\n");
        assert_eq!(found.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [1, 3, 4, 5]);
        assert_eq!(found[1].1, "expected a value, found nothing");
        assert_eq!(kept, "b = 2|e = 5");
    }

    #[test]
    fn a_bracket_that_is_not_closed_is_named() {
        let (found, kept) = lines("a = { b = [1, 2], c = 3\n# } is no bracket\nd = [1]\n[t]\ne = \"}\"\n");
        assert_eq!(found, [(1, "`{` is not closed".to_owned())]);
        assert_eq!(kept, "# } is no bracket|d = [1]|[t]|e = \"}\"");
        assert_eq!(lines("a = 1\nb = [1, 2\n").0, [(2, "`[` is not closed".to_owned())]);
    }

    #[test]
    fn an_error_within_brackets_takes_all_their_lines() {
        let (found, kept) = lines("a = [\n 1\n 2\n]\nb = 1\n");
        assert_eq!((found.len(), found[0].0, kept.as_str()), (1, 3, "b = 1"));
    }

    #[test]
    fn a_section_without_header_is_not_read_as_the_one_above() {
        let (found, kept) = lines("[a]\nx = 1\n[a\nx = 2\n[b]\ny = 1\n[b]\ny = 2\n");
        assert_eq!(found.iter().map(|(l, _)| *l).collect::<Vec<_>>(), [3, 7]);
        assert_eq!(kept, "[a]|x = 1|[b]|y = 1");
    }
}
