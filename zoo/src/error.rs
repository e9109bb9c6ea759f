//! Errors of files and commands: where, what was expected and found, one thing to try.

use std::fmt;
use std::path::Path;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in one sentence that names the file, what was expected and what was found.
#[derive(Debug)]
pub struct Error {
    place: Option<String>,
    message: String,
    hint: Option<String>,
}

impl Error {
    /// An error that no file is to blame for.
    pub fn new(message: impl fmt::Display) -> Self {
        Self { place: None, message: message.to_string(), hint: None }
    }

    /// An error in a file.
    pub fn at(path: &Path, message: impl fmt::Display) -> Self {
        Self { place: Some(path.display().to_string()), ..Self::new(message) }
    }

    /// Adds one thing to try.
    pub fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// One thing to try, if there is one.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Names what is to blame if no file is, such as an environment variable.
    pub fn prefixed(mut self, name: &str) -> Self {
        self.message = format!("{name}: {}", self.message);
        self
    }

    /// Names the file to blame, unless one is named already.
    pub fn in_file(mut self, path: &Path) -> Self {
        self.place.get_or_insert_with(|| path.display().to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.message),
            None => write!(f, "{}", self.message),
        }
    }
}

impl std::error::Error for Error {}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::new(error)
    }
}
