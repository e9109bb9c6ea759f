//! Multiple choice: the likeliest continuation, as lm-eval scores it.

use std::path::Path;

use semisep_models::LanguageModel;
use serde::Serialize;

use super::{Sequence, predict};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Most choices of a question.
const MAX_CHOICES: usize = 1000;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// What comes before each choice.
    pub context: String,
    /// The choices.
    pub choices: Vec<String>,
    /// Which is right.
    pub answer: usize,
}

/// How many questions were answered rightly.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// Questions.
    pub questions: usize,
    /// Share where the right choice has the highest log-likelihood.
    pub acc: f64,
    /// Its standard error.
    pub acc_stderr: f64,
    /// Share where it has the highest log-likelihood a character of the choice.
    pub acc_norm: f64,
    /// Its standard error.
    pub acc_norm_stderr: f64,
}

/// The questions of a JSON Lines text: `{"context": "...", "choices": ["...", ...], "answer": 0}`, the answer an index
/// or the choice itself.
///
/// # Errors
/// If a line is something else; the error names the line.
pub fn read_questions(text: &str, path: &Path) -> Result<Vec<Choices>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let questions = lines.map(|(i, line)| {
        question(line).map_err(|message| {
            Error::at(path, format!("line {}: {message}", i + 1)).hint(
                r#"each line is an object like {"context": "2 + 2 =", "choices": ["3", "4"], "answer": 1}"#,
            )
        })
    });
    let questions = questions.collect::<Result<Vec<_>>>()?;
    if questions.is_empty() {
        return Err(Error::at(path, "expected a question a line, found none"));
    }
    Ok(questions)
}

fn question(line: &str) -> Result<Choices, String> {
    #[derive(serde::Deserialize)]
    struct Line {
        context: String,
        choices: Vec<String>,
        answer: serde_json::Value,
    }
    let Line { context, choices, answer } = serde_json::from_str(line).map_err(|e| e.to_string())?;
    if !(2..=MAX_CHOICES).contains(&choices.len()) {
        return Err(format!("choices: expected 2 to {MAX_CHOICES}, found {}", choices.len()));
    }
    if let Some(i) = choices.iter().position(String::is_empty) {
        return Err(format!("choices: number {i} is empty"));
    }
    let index = match &answer {
        serde_json::Value::Number(n) => n.as_u64().and_then(|n| usize::try_from(n).ok()),
        serde_json::Value::String(text) => choices.iter().position(|c| c == text),
        _ => None,
    };
    let index = index.filter(|&i| i < choices.len()).ok_or_else(|| {
        format!("answer: expected 0 to {} or one of the choices, found {answer}", choices.len() - 1)
    })?;
    Ok(Choices { context, choices, answer: index })
}

/// Scores every choice of every question; `tick(done, of)` is called with tokens as they are done.
///
/// As lm-eval's `multiple_choice` does: a choice follows its context after a space, the two are tokenized together, and
/// the tokens past those of the context alone are predicted; spaces at the context's end go with the choice; `start`
/// stands before a choice whose context has no tokens; `acc_norm` divides by the characters of the choice; the first of
/// equals wins. `context` tokens at the most are kept, the last ones; 0 keeps all.
///
/// # Errors
/// If a choice has no tokens, or a context has none and there is no `start`.
pub fn choose(
    model: &LanguageModel,
    tokenizer: &Tokenizer,
    questions: &[Choices],
    (start, context, chunk): (Option<u32>, usize, usize),
    tick: &mut dyn FnMut(usize, usize),
) -> Result<Score> {
    let mut sequences = Vec::new();
    for (i, question) in questions.iter().enumerate() {
        for choice in &question.choices {
            let sequence = sequence(tokenizer, &question.context, choice, start);
            sequences.push(cut(sequence.map_err(|e| Error::new(format!("question {i}: {e}")))?, context));
        }
    }
    let of = sequences.iter().map(|s| s.ids.len()).sum();
    let mut done = 0;
    let predicted = predict(model, &sequences, chunk, &mut |tokens| {
        done += tokens;
        tick(done, of);
    })?;
    let mut sums = predicted.iter().map(|tokens| tokens.iter().map(|p| p.log_likelihood).sum::<f64>());
    let (mut right, mut right_norm) = (0, 0);
    for question in questions {
        let sums: Vec<f64> = sums.by_ref().take(question.choices.len()).collect();
        let a_character = sums.iter().zip(&question.choices).map(|(sum, c)| sum / c.chars().count() as f64);
        right_norm += usize::from(best(&a_character.collect::<Vec<_>>()) == question.answer);
        right += usize::from(best(&sums) == question.answer);
    }
    let n = questions.len();
    Ok(Score {
        questions: n,
        acc: right as f64 / n as f64,
        acc_stderr: stderr(right, n),
        acc_norm: right_norm as f64 / n as f64,
        acc_norm_stderr: stderr(right_norm, n),
    })
}

fn sequence(tokenizer: &Tokenizer, context: &str, choice: &str, start: Option<u32>) -> Result<Sequence> {
    let before = context.trim_end();
    let after = format!("{} {choice}", &context[before.len()..]);
    let whole = tokenizer.encode_piece(&format!("{before}{after}"))?;
    let mut from = tokenizer.encode_piece(before)?.len();
    let mut ids = whole;
    if from == 0 {
        let start = start.ok_or_else(|| {
            Error::new("the context has no tokens, and config.json names no bos_token_id or eos_token_id")
        })?;
        ids.insert(0, start);
        from = 1;
    }
    if ids.len() <= from {
        return Err(Error::new(format!("the choice {choice:?} adds no tokens to its context")));
    }
    Ok(Sequence { ids, from })
}

/// Keeps the last `context` tokens, at least one before the predicted ones.
fn cut(mut sequence: Sequence, context: usize) -> Sequence {
    if context > 0 && sequence.ids.len() > context {
        let off = (sequence.ids.len() - context).min(sequence.from - 1);
        sequence.ids.drain(..off);
        sequence.from -= off;
    }
    sequence
}

/// The first of the highest.
fn best(scores: &[f64]) -> usize {
    scores.iter().enumerate().fold(0, |best, (i, score)| if *score > scores[best] { i } else { best })
}

/// Standard error of a mean of ones and zeros, with the sample's standard deviation.
fn stderr(right: usize, n: usize) -> f64 {
    let mean = right as f64 / n as f64;
    if n < 2 { 0.0 } else { (mean * (1.0 - mean) / (n - 1) as f64).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_what_is_none() {
        let path = Path::new("q.jsonl");
        let good = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1, \"id\": 7}\n\n\
                    {\"context\": \"\", \"choices\": [\"b\", \"c\"], \"answer\": \"b\"}\n";
        let answers: Vec<usize> = read_questions(good, path).unwrap().iter().map(|q| q.answer).collect();
        assert_eq!(answers, [1, 0]);
        for (line, part) in [
            ("", "found none"),
            ("[]", "line 1"),
            ("{\"context\": \"a\"}", "choices"),
            (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "expected 2 to"),
            (r#"{"context": "a", "choices": ["b", ""], "answer": 0}"#, "number 1 is empty"),
            (r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#, "expected 0 to 1"),
            (r#"{"context": "a", "choices": ["b", "c"], "answer": "d"}"#, "found \"d\""),
            (r#"{"context": "a", "choices": ["b", "c"], "answer": -1}"#, "found -1"),
        ] {
            let message = read_questions(line, path).unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn spaces_at_the_end_go_with_the_choice() {
        let of = |context: &str| sequence(&Tokenizer::Bytes, context, "x", Some(9)).unwrap();
        assert_eq!(of("ab"), Sequence { ids: b"ab x".iter().map(|&b| b.into()).collect(), from: 2 });
        assert_eq!(of("ab  "), Sequence { ids: b"ab   x".iter().map(|&b| b.into()).collect(), from: 2 });
        assert_eq!(of(""), Sequence { ids: vec![9, b' '.into(), b'x'.into()], from: 1 });
        assert!(sequence(&Tokenizer::Bytes, "", "x", None).is_err());
        assert_eq!(
            cut(of("abcdef"), 3),
            Sequence { ids: b"f x".iter().map(|&b| b.into()).collect(), from: 1 }
        );
        assert_eq!(cut(of("abcdef"), 1).ids.len(), 3, "what is predicted stays whole");
    }

    #[test]
    fn the_first_of_equals_and_standard_errors() {
        assert_eq!(best(&[1.0, 3.0, 3.0]), 1);
        assert_eq!((stderr(1, 1), stderr(1, 2)), (0.0, 0.5));
    }
}
