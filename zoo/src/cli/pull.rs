//! `semisep pull`, and what any download tells the user.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::{Outcome, print, say};
use crate::hub::{Event, ModelId, PullOptions, pull};
use crate::units::bytes;
use crate::{Error, Result};

/// Download a model from the Hugging Face Hub, into the cache that Python's huggingface_hub uses
///
/// Only the files that are needed: config.json, the tokenizer's and one set of weights, safetensors if there are any. What
/// is in the cache is not downloaded again, and an interrupted download continues. Prints the model's folder. The other
/// commands download what they need by themselves.
///
/// HF_HOME or HF_HUB_CACHE is the cache, HF_TOKEN the token for gated models, HF_ENDPOINT another server;
/// HF_HUB_OFFLINE=1 connects to nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Model, as on its page; OWNER/NAME@REVISION as well
    #[arg(value_name = "OWNER/NAME")]
    model: String,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "R")]
    revision: Option<String>,
    /// The file of weights, where there are several .pth files
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(&self) -> Result<Outcome> {
        let id = match (ModelId::recognise(&self.model), &self.revision) {
            (Some(id), None) => id?,
            (Some(id), Some(_)) if self.model.contains('@') => {
                return Err(Error::new(format!("{}: expected one revision, found two", id?))
                    .hint("leave out --revision"));
            }
            (_, revision) => ModelId::new(&self.model, revision.as_deref())?,
        };
        let options = PullOptions { file: self.file.clone(), ..PullOptions::default() };
        let mut progress = Progress::default();
        let pulled = pull(&id, &options, &mut |event| progress.tell(event))?;
        drop(progress);
        print(&if self.json {
            format!("{:#}\n", serde_json::to_value(&pulled).map_err(Error::new)?)
        } else {
            format!("{}\n", pulled.folder.display())
        })?;
        if pulled.downloaded == 0 && !self.json {
            let total = pulled.files.iter().map(|file| file.bytes).sum();
            say(&format!("[{id}: all {} files are in the cache, {}]", pulled.files.len(), bytes(total)));
        }
        Ok(Outcome::Good)
    }
}

/// A download on standard error: its size first; a bar on a terminal; what went wrong on its way.
#[derive(Default)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn tell(&mut self, event: Event) {
        match event {
            Event::Planned { missing: 0, .. } => {}
            Event::Planned { model, commit, files, total, missing } => {
                let commit = commit.get(..7).unwrap_or(&commit);
                let (all, to_come) = (bytes(total), bytes(missing));
                say(&format!("[{model} at {commit}: {files} files, {all}; {to_come} to download]"));
                self.bar = bar(missing);
            }
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.suspend(|| say(&format!("[{text}]"))),
                None => say(&format!("[{text}]")),
            },
            Event::File(name) => self.with(|bar| bar.set_message(name)),
            Event::Came(n) => self.with(|bar| bar.inc(n)),
            Event::Lost(n) => self.with(|bar| bar.inc_length(n)),
        }
    }

    fn with(&self, change: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = &self.bar {
            change(bar);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.with(ProgressBar::finish_and_clear);
    }
}

/// A bar on a terminal, nothing elsewhere.
fn bar(length: u64) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(length);
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    Some(bar)
}
