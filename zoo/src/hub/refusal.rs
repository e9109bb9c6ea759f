//! Answers that end a pull, as errors: what is the matter, and one thing to try.

use ureq::http::{HeaderMap, StatusCode};

use super::{ModelId, Settings};
use crate::Error;

/// What was asked for.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) id: &'a ModelId,
    pub(super) file: Option<&'a str>,
}

/// The error of a status that no retry mends.
pub(super) fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    subject: Subject<'_>,
    settings: &Settings,
) -> Error {
    let (repo, revision) = (subject.id.repo(), subject.id.revision());
    let code = headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
    let server = settings.endpoint.origin().host();
    let page = format!("{}/{repo}", settings.endpoint.url());
    match (status.as_u16(), code, subject.file) {
        (401 | 403, "GatedRepo", _) => {
            Error::new(format!("{repo} is gated: access is not granted ({status})"))
                .hint(format!("accept its licence at {page}, then set HF_TOKEN to a token of that account"))
        }
        (401, "RepoNotFound", _) | (404, "RepoNotFound", _) => no_repo(repo, server),
        (401, _, _) if settings.token.is_some() => {
            Error::new(format!("{server} refuses the token for {repo} ({status})")).hint(format!(
                "make a new one at {}/settings/tokens and set HF_TOKEN, or leave it out for a public model",
                settings.endpoint.url()
            ))
        }
        (401, _, _) => Error::new(format!(
            "{server} does not give {repo} to everyone ({status}): it is gated, private, or not there"
        ))
        .hint(format!("check the name; else accept its licence at {page} and set HF_TOKEN")),
        (403, _, _) => {
            Error::new(format!("{server} does not grant access to {repo} ({status})")).hint(format!(
                "accept its licence at {page}, then set HF_TOKEN to a token of that account that may read it"
            ))
        }
        (404, "RevisionNotFound", _) => no_revision(subject.id),
        (404, _, Some(file)) => Error::new(format!("{repo} has no file {file} at {revision}"))
            .hint("check its name on the model's page, or name another revision with @REVISION"),
        (404, _, None) => no_repo(repo, server),
        _ => Error::new(format!("{server} answers {status} for {repo}"))
            .hint("try again later, or see whether the server's interface is that of the Hub"),
    }
}

pub(super) fn no_repo(repo: &str, server: &str) -> Error {
    Error::new(format!("there is no model {repo} on {server}, and no folder of this name here"))
        .hint("check the name; for a private model set HF_TOKEN")
}

pub(super) fn no_revision(id: &ModelId) -> Error {
    Error::new(format!("{} has no revision {}", id.repo(), id.revision()))
        .hint("name a branch, tag or commit that it has, or leave @REVISION out for main")
}
